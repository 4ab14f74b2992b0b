"""Toy datasets in nnU-Net's layout: small images of a blob whose size follows the grade, so they can be learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from oaplug.core.artifacts import make_folder
from oaplug.core.converter import RawFolder
from oaplug.core.target import Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


Kind = Literal["hierarchy", "binary", "unlabelled"]
Size = tuple[int, int, int]

HIERARCHY = {
    "kl": Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4)),
    "oa": Target(name="oa", kind="binary", grades=(0, 1), derived_from="kl", at_least=2),
}
BINARY = {"disease": Target(name="disease", kind="binary", grades=("no", "yes"))}
SPACING_MM = (2.0, 1.0, 1.25)
TILT_DEGREES = 8.0
"""Images are turned about the D axis by this much, as scanners do."""
_TARGETS: dict[str, Mapping[str, Target]] = {"hierarchy": HIERARCHY, "binary": BINARY, "unlabelled": {}}
_RADII = (0.35, 0.85)
"""Radius of the blob at the lowest and the highest grade, as a fraction of half the image."""
_TISSUE, _BLOB, _NOISE_STD = 60.0, 200.0, 8.0


def write_toy_dataset(
    folder: Path,
    *,
    cases: int = 24,
    shape: Size = (10, 14, 12),
    channels: int = 1,
    kind: Kind = "hierarchy",
    with_masks: bool | None = None,
    with_sides: bool | None = None,
    with_subjects: bool | None = None,
    seed: int = 0,
) -> Path:
    """Write a dataset of small images (D,H,W) with a training and a test split; gives `folder`.

    Args:
        folder: the DatasetXXX_Name folder to write.
        cases: how many; every fourth is a test case.
        shape: voxels along D, H and W (RAS+).
        channels: image files per case; the second shows the blob dark on bright tissue, and so on in turn.
        kind: "hierarchy" has the targets kl (0 to 4) and oa = kl >= 2, of which some are missing; "binary" has
            one target, disease (no or yes), and a cases.csv of two columns; "unlabelled" has no
            cases.csv at all.
        with_masks: write the blob as a mask (default: for all but "binary").
        with_sides: every other case is a left one, the mirror image of a right one (default: "hierarchy").
        with_subjects: two cases for every third subject, at two visits (default: "hierarchy").
        seed: another one gives other noise and another order of the grades.
    """
    is_hierarchy = kind == "hierarchy"
    drawing = _Drawing(shape=shape, channels=channels, seed=seed)
    description = _describe(folder.name, _TARGETS[kind], channels=channels)
    sides = is_hierarchy if with_sides is None else with_sides
    subjects = is_hierarchy if with_subjects is None else with_subjects
    grades = _draw_grades(cases, _TARGETS[kind], seed=seed)
    raw = RawFolder(make_folder(folder))
    written = []
    for index, grade in enumerate(grades):
        case = _make_case(index, sides=sides, subjects=subjects)
        case = replace(
            case,
            images=raw.image_paths(case.case_id, split=case.split, description=description),
            mask=raw.mask_path(case.case_id, split=case.split, description=description),
            labels=_labels_of(grade, index, description.targets),
        )
        _write_case(case, drawing, severity=_severity(grade, description.targets), mask=with_masks)
        written.append(case)
    return folder


