"""Toy datasets in nnU-Net's layout: small images of a blob whose size follows the grade."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from oaplug.core.artifacts import make_folder, write_json
from oaplug.core.case import Case, Side
from oaplug.core.case_table import FIXED_COLUMNS, case_record, write_case_table
from oaplug.core.converter import RawFolder
from oaplug.core.dataset import DatasetDescription, description_to_json
from oaplug.core.seeds import random_generator
from oaplug.core.target import MISSING, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.case import SplitName


Kind = Literal["hierarchy", "binary", "unlabelled"]
Size = tuple[int, int, int]

HIERARCHY = {
    "kl": Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4)),
    "oa": Target(name="oa", kind="binary", grades=(0, 1), derived_from="kl", at_least=2),
}
BINARY = {"disease": Target(name="disease", kind="binary", grades=("no", "yes"))}
TARGETS: dict[str, Mapping[str, Target]] = {
    "hierarchy": HIERARCHY,
    "binary": BINARY,
    "derived alone": {"oa": HIERARCHY["oa"]},
}
"""Sets of targets that heads are asked to answer."""
SPACING_MM = (2.0, 1.0, 1.25)
TILT_DEGREES = 8.0
"""Images are turned about D by this much, so that no axis but D is a patient's."""
TEST_PAIRS = 4
"""Of so many pairs of cases in a row, the last is in the test split."""

_TARGETS: dict[str, Mapping[str, Target]] = {"hierarchy": HIERARCHY, "binary": BINARY, "unlabelled": {}}
_SIDES: tuple[Side, Side] = ("R", "L")
_RADIUS_RANGE = (0.35, 0.85)
_TISSUE, _BLOB, _NOISE_STD = 60.0, 200.0, 8.0


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """What all images of a dataset have in common."""

    shape: Size
    channels: int
    seed: int
    with_masks: bool


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
    """Write a raw dataset of small images with a training and a test split (3 to 1); gives `folder`.

    Args:
        folder: the DatasetXXX_Name folder to write into.
        cases: how many.
        shape: voxels along D, H and W (RAS+).
        channels: image files per case; in every other one the blob is dark on bright tissue.
        kind: "hierarchy" has the targets kl (0 to 4) and oa = kl >= 2, of which some are missing; "binary"
            has the target disease (no or yes) and no more; "unlabelled" is plain nnU-Net, without cases.csv.
        with_masks: the blob as a mask (default: for all but "binary").
        with_sides: every other case is a left one, which mirrors a right one (default: for "hierarchy").
        with_subjects: some subjects have two cases, at two visits (default: for "hierarchy").
        seed: another one gives other noise and another order of grades.
    """
    targets, is_hierarchy = _TARGETS[kind], kind == "hierarchy"
    drawing = _Drawing(
        shape=shape,
        channels=channels,
        seed=seed,
        with_masks=kind != "binary" if with_masks is None else with_masks,
    )
    columns = ["case_id", *targets]
    columns += ["side"] if (is_hierarchy if with_sides is None else with_sides) else []
    columns += ["subject_id", "visit"] if (is_hierarchy if with_subjects is None else with_subjects) else []
    description = _describe(folder.name, targets, channels=channels)
    severities = _draw_severities(cases, targets, seed=seed)
    raw = RawFolder(make_folder(folder))
    made = [_make_case(i, s, targets, columns=columns) for i, s in enumerate(severities)]
    for case, severity in zip(made, severities, strict=True):
        _write_images(raw, case, description, drawing=drawing, severity=severity)
    _write_tables(folder, description, made, columns=columns)
    return folder


def _describe(name: str, targets: Mapping[str, Target], *, channels: int) -> DatasetDescription:
    return DatasetDescription(
        name=name,
        channel_names=tuple(f"toy{channel}" for channel in range(channels)),
        labels={"background": 0, "blob": 1},
        file_ending=".nii.gz",
        targets=targets,
        regions={"lesion": ("blob",)} if targets else {},
    )


def _draw_severities(cases: int, targets: Mapping[str, Target], *, seed: int) -> list[float]:
    """A severity from 0 to 1 per case: one step per grade, equally frequent, in a drawn order."""
    levels = max((len(target.grades) for target in targets.values()), default=5)
    steps = np.arange(cases) % levels / (levels - 1)
    shuffled: list[float] = random_generator(seed, "toy severities").permutation(steps).tolist()
    return shuffled


def _make_case(index: int, severity: float, targets: Mapping[str, Target], *, columns: Sequence[str]) -> Case:
    case_id = f"toy_{index:03d}"
    has_visits = "visit" in columns and index // 2 % 3 == 0
    split: SplitName = "test" if index // 2 % TEST_PAIRS == TEST_PAIRS - 1 else "train"
    return Case(
        case_id=case_id,
        subject_id=f"person_{index // 2:03d}" if has_visits else case_id,
        visit=("baseline", "later")[index % 2] if has_visits else "",
        side=_SIDES[index % 2] if "side" in columns else None,
        images=(),
        split=split,
        labels=_grades_of(index, severity, targets),
    )


def _grades_of(index: int, severity: float, targets: Mapping[str, Target]) -> dict[str, int]:
    """Grade indices; in a hierarchy some cases lack the finest grade, and some every grade."""
    if not targets:
        return {}
    finest, *derived = targets.values()
    grade = round(severity * (len(finest.grades) - 1))
    grades = {finest.name: grade, **{t.name: t.derive(grade, finest) for t in derived}}
    if derived and index % 10 == 4:
        grades[finest.name] = MISSING
    if derived and index % 16 == 9:
        grades = dict.fromkeys(grades, MISSING)
    return grades


def _write_images(
    raw: RawFolder, case: Case, description: DatasetDescription, *, drawing: _Drawing, severity: float
) -> None:
    mask = _draw_blob(drawing.shape, severity=severity)
    place = {"split": case.split, "description": description}
    for channel, path in enumerate(raw.image_paths(case.case_id, **place)):  # type: ignore[arg-type]
        rng = random_generator(drawing.seed, "toy noise", case.case_id, channel)
        _write_image(path, _draw_image(rng, mask, inverted=channel % 2 == 1), is_left=case.side == "L")
    if drawing.with_masks:
        path = raw.mask_path(case.case_id, **place)  # type: ignore[arg-type]
        _write_image(path, mask.astype(np.uint8), is_left=case.side == "L")


def _draw_blob(shape: Size, *, severity: float) -> NDArray[np.bool_]:
    """An ellipsoid (D,H,W) in the proportions of the image, a little lateral (towards +D) of its middle."""
    middle = np.array(shape) / 2 - 0.5
    middle[0] += 0.08 * shape[0]
    low, high = _RADIUS_RANGE
    radii = np.array(shape) / 2 * (low + (high - low) * severity)
    offsets = (np.indices(shape) - middle[:, None, None, None]) / radii[:, None, None, None]
    return np.asarray((offsets**2).sum(axis=0) <= 1)


def _draw_image(rng: np.random.Generator, mask: NDArray[np.bool_], *, inverted: bool) -> NDArray[np.float32]:
    """The blob (D,H,W) in noisy tissue, within a black border of one voxel."""
    inside, outside = (_TISSUE, _BLOB) if inverted else (_BLOB, _TISSUE)
    image = np.where(mask, inside, outside) + rng.normal(0, _NOISE_STD, mask.shape)
    bordered = np.zeros(mask.shape, dtype=np.float32)
    bordered[1:-1, 1:-1, 1:-1] = image[1:-1, 1:-1, 1:-1]
    return bordered


def _write_image(path: Path, voxels: NDArray[np.float32] | NDArray[np.uint8], *, is_left: bool) -> None:
    """Write voxels (D,H,W) in RAS+ axes; SimpleITK wants z,y,x and directions in LPS+."""
    import SimpleITK as sitk

    make_folder(path.parent)
    canonical = voxels[::-1] if is_left else voxels
    image = sitk.GetImageFromArray(np.ascontiguousarray(canonical.transpose(2, 1, 0)))
    cosine, sine = math.cos(math.radians(TILT_DEGREES)), math.sin(math.radians(TILT_DEGREES))
    image.SetSpacing(SPACING_MM)
    image.SetDirection((-1, 0, 0, 0, -cosine, sine, 0, sine, cosine))
    image.SetOrigin((7.0, -3.0, 11.0))
    sitk.WriteImage(image, str(path))


def _write_tables(
    folder: Path, description: DatasetDescription, cases: Sequence[Case], *, columns: Sequence[str]
) -> None:
    content = description_to_json(description)
    content["numTraining"] = sum(case.split == "train" for case in cases)
    if not description.targets:  # as nnU-Net knows it
        content = {key: value for key, value in content.items() if value not in ({}, [])}
        write_json(folder / "dataset.json", content)
        return
    write_json(folder / "dataset.json", content)
    records = [case_record(case, description.targets, covariates=()) for case in cases]
    ordered = [name for name in (*FIXED_COLUMNS, *description.targets) if name in columns]
    write_case_table(
        folder / "cases.csv", [{name: r[name] for name in ordered} for r in records], columns=ordered
    )
