"""OAIZIB-CM as its hub ships it, into a raw dataset with the official split."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from oaplug_datasets_meta import read_meta

from oaplug.core.dataset import description_from_json
from oaplug.core.errors import DatasetError
from oaplug_converters.flow import LeftOut, finish
from oaplug_converters.listing import list_cases
from oaplug_converters.oaizib_files import SIDES, TABLES, find_hub_files
from oaplug_converters.oaizib_tables import read_sides, read_sub_info
from oaplug_converters.placing import image_problem, place_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import Case
    from oaplug.core.converter import ConversionRecord, RawFolder
    from oaplug.core.dataset import DatasetDescription
    from oaplug_converters.listing import Entry, ListedCase
    from oaplug_converters.oaizib_files import HubFiles
    from oaplug_converters.options import OaizibOptions
    from oaplug_converters.placing import SourceFile

_IMAGE_FOLDERS = {"train": "imagesTr", "test": "imagesTs"}


class OaizibConverter:
    """Takes what there is of a download, and says what is missing."""

    def __init__(self, options: OaizibOptions) -> None:
        self.options = options

    def convert(self, source: Path, dataset: RawFolder) -> ConversionRecord:
        """Link, copy or unpack every listed knee whose image is there or was brought by an earlier run."""
        files = find_hub_files(source, without=dataset.folder)
        description = description_from_json(
            read_meta("oaizib_cm"), name=dataset.folder.name, where="oaizib_cm"
        )
        entries = _entries(files)
        listed, left_out = list_cases(entries, description)
        cases: list[Case] = []
        for done, one in enumerate(listed, start=1):
            outcome = self._place(one, files, dataset=dataset, description=description)
            (left_out if isinstance(outcome, LeftOut) else cases).append(outcome)  # type: ignore[arg-type]
            dataset.report(done, len(listed), one.row.case_id)
        return finish(
            dataset,
            description,
            cases=sorted(cases, key=_any_order),
            left_out=left_out,
            source=source,
            notes=_notes(files, entries, cases),
            problems=files.problems,
        )

    def _place(
        self, one: ListedCase, files: HubFiles, *, dataset: RawFolder, description: DatasetDescription
    ) -> Case | LeftOut:
        """Bring image and mask of a knee to their places; one without an image is left out."""
        case_id, split = one.row.case_id, one.split
        (image,) = dataset.image_paths(case_id, split=split, description=description)
        mask = dataset.mask_path(case_id, split=split, description=description)
        for origin, target in ((files.images.get(case_id), image), (files.masks.get(case_id), mask)):
            if wrong := self._bring(origin, target):
                return one.left_out("damaged file", wrong, file=origin or target)
        if not image.is_file():
            return LeftOut(case_id=case_id, split=split, reason=f"no image in {_IMAGE_FOLDERS[split]}")
        return one.row.to_case((image,), mask if mask.is_file() else None, split)

    def _bring(self, origin: SourceFile | None, target: Path) -> str:
        """What is wrong with a file; blank where it is in its place, or nowhere."""
        if origin is None:
            return ""
        if not origin.member and (wrong := image_problem(origin.path)):
            return wrong
        try:
            place_file(origin, target, copy=self.options.place == "copy")
        except DatasetError as failure:
            return str(failure).removeprefix(f"{origin}: ")
        if origin.member and (wrong := image_problem(target)):
            target.unlink()
            return wrong
        return ""


def _any_order(case: Case) -> bytes:
    """Sorts cases independently of their grades, by which the hub's case numbers are sorted."""
    return hashlib.blake2b(case.case_id.encode()).digest()


def _entries(files: HubFiles) -> list[Entry]:
    sides = read_sides(files.sides)
    return [
        entry
        for split, path in files.tables.items()
        for entry in read_sub_info(path, split=split, sides=sides)
    ]


def _notes(files: HubFiles, entries: Sequence[Entry], cases: Sequence[Case]) -> list[str]:
    """What is missing of the download, and what its owner asks of those who use it."""
    missing = [f"{stem} (.xlsx or .csv)" for split, stem in TABLES.items() if split not in files.tables]
    missing += [SIDES] if files.sides is None else []
    notes = [f"missing: {name}" for name in missing]
    notes += _some("no mask", [case.case_id for case in cases if case.mask is None])
    listed = {entry.record["case_id"] for entry in entries}
    notes += _some("in no table, not converted", sorted({*files.images, *files.masks} - listed))
    licence: Mapping[str, str] = read_meta("oaizib_cm")
    return [*notes, f"licence: {licence['licence']}", licence["label_noise"]]


def _some(what: str, case_ids: Sequence[str], *, shown: int = 5) -> list[str]:
    if not case_ids:
        return []
    more = f" and {len(case_ids) - shown} more" if len(case_ids) > shown else ""
    return [f"{what}: {len(case_ids)} cases: {', '.join(case_ids[:shown])}{more}"]
