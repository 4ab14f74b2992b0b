"""A folder tree of DICOM series with a table of cases, into a raw dataset that names no patient."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.core.artifacts import atomic_path, make_folder, read_json, write_json
from oaplug.core.errors import DatasetError
from oaplug_converters.columns import ColumnMapping, fill_pattern
from oaplug_converters.dicom_slices import find_dicom_files, read_slice
from oaplug_converters.dicom_volume import in_order, read_volume
from oaplug_converters.flow import finish
from oaplug_converters.listing import list_cases
from oaplug_converters.placing import SourceFile, image_problem, place_file, write_image
from oaplug_converters.table import table_notes
from oaplug_converters.text_tables import find_table, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oaplug.core.case import Case, Side
    from oaplug.core.converter import ConversionRecord, RawFolder
    from oaplug.core.dataset import DatasetDescription
    from oaplug_converters.dicom_slices import Slice
    from oaplug_converters.listing import ListedCase
    from oaplug_converters.options import DicomOptions

RECORDS = "conversion_record"
"""Folder of one small file per case that says which slices its image was made of, by their digest."""
_ENDING = ".nii.gz"
_SIDES: Mapping[str, Side] = {"R": "R", "L": "L", "RIGHT": "R", "LEFT": "L"}


class DicomConverter:
    """Writes the series of every row as NIfTI; tags of patient and study stay behind."""

    def __init__(self, options: DicomOptions) -> None:
        self.options = options
        self._series: dict[Path, Mapping[str, Sequence[Slice]]] = {}

    def convert(self, source: Path, dataset: RawFolder) -> ConversionRecord:
        """Write every case whose series is one volume; what is wrong with others is in the record."""
        path = find_table(source, self.options.table)
        mapping = ColumnMapping(self.options, read_table(path, sheet=self.options.sheet))
        description = mapping.describe(
            dataset.folder.name, channels=(self.options.channel,), file_ending=_ENDING
        )
        listed, left_out = list_cases(mapping.entries(), description)
        cases: list[Case] = []
        patients: dict[str, set[str]] = {}
        for done, one in enumerate(listed, start=1):
            try:
                slices = self._find(one, source)
                cases.append(self._write(one, slices, source, dataset=dataset, description=description))
                patients.setdefault(slices[0].patient, set()).add(one.row.subject_id)
            except DatasetError as failure:
                left_out.append(one.left_out("unusable series", str(failure)))
            dataset.report(done, len(listed), one.row.case_id)
        notes = [*table_notes(mapping, description), *_notes(patients)]
        return finish(dataset, description, cases=cases, left_out=left_out, source=path, notes=notes)

    def _find(self, one: ListedCase, source: Path) -> list[Slice]:
        """The slices of a case's series, in order; raises DatasetError naming what there is instead."""
        named = one.cells.get(self.options.folder, "")
        if self.options.folder in one.cells and not named:
            raise DatasetError(f"column {self.options.folder!r} is blank; expected the folder of the series")
        folder = source / named.replace("\\", "/")
        series = self._series_in(folder)
        chosen = self._choose(series, one, folder=folder)
        try:
            return in_order(series[chosen], expected=self.options.slices)
        except DatasetError as failure:
            raise DatasetError(f"{folder}: {_title(series[chosen])} is not one volume: {failure}") from None

    def _series_in(self, folder: Path) -> Mapping[str, Sequence[Slice]]:
        """Slices by SeriesInstanceUID of a folder and those below."""
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}; add it, or correct the row")
        if folder not in self._series:
            found: dict[str, list[Slice]] = {}
            for path in find_dicom_files(folder):
                one = read_slice(path)
                found.setdefault(one.series_uid, []).append(one)
            self._series[folder] = found
        return self._series[folder]

    def _choose(self, series: Mapping[str, Sequence[Slice]], one: ListedCase, *, folder: Path) -> str:
        if not series:
            raise DatasetError(f"{folder} has no DICOM images")
        uid, pattern = one.cells.get(self.options.series, ""), self.options.series_description
        fitting = [
            name
            for name, slices in series.items()
            if uid in ("", name) and (not pattern or fnmatch(slices[0].description, pattern))
        ]
        if len(fitting) == 1:
            return fitting[0]
        there = ", ".join(_title(slices) for slices in series.values())
        wanted = f"{len(fitting)} of them fit; " if uid or pattern else ""
        raise DatasetError(
            f"{folder} holds {len(series)} series ({there}); {wanted}name one in the column "
            f"{self.options.series!r}, or by --set series_description=PATTERN"
        )

    def _write(
        self,
        one: ListedCase,
        slices: Sequence[Slice],
        source: Path,
        *,
        dataset: RawFolder,
        description: DatasetDescription,
    ) -> Case:
        case_id = one.row.case_id
        side = _side(one, slices)
        (image,) = dataset.image_paths(case_id, split=one.split, description=description)
        record = dataset.folder / RECORDS / f"{case_id}.json"
        digest = _digest(slices)
        if not (image.is_file() and record.is_file() and read_json(record).get("source") == digest):
            make_folder(image.parent)
            with atomic_path(image) as temporary:
                write_image(read_volume(slices), temporary)
            write_json(record, {"schema": 1, "source": digest})
        mask = self._bring_mask(
            one, source, dataset.mask_path(case_id, split=one.split, description=description)
        )
        return replace(one.row.to_case((image,), mask, one.split), side=side)

    def _bring_mask(self, one: ListedCase, source: Path, target: Path) -> Path | None:
        named = fill_pattern(self.options.mask, one.cells) if self.options.mask else ""
        if not named:
            return None
        origin = source / named.replace("\\", "/")
        if not origin.is_file() or not origin.name.endswith(_ENDING):
            raise DatasetError(f"there is no mask {origin}; expected a file {_ENDING}")
        if wrong := image_problem(origin):
            raise DatasetError(f"{origin}: {wrong}")
        place_file(SourceFile(path=origin), target, copy=self.options.place == "copy")
        return target


def _side(one: ListedCase, slices: Sequence[Slice]) -> Side | None:
    """The side as the table has it, else as the files do; raises DatasetError where they contradict."""
    told = _SIDES.get(slices[0].laterality.upper())
    if one.row.side and told and one.row.side != told:
        raise DatasetError(
            f"the table says side {one.row.side}, Laterality in {slices[0].path} is {told}; correct the table"
        )
    return one.row.side or told


def _title(slices: Sequence[Slice]) -> str:
    return f"series {slices[0].description!r} of {len(slices)} files, {slices[0].series_uid}"


def _digest(slices: Sequence[Slice]) -> str:
    """Hex digest of which files these are: their instances, sizes and times of change."""
    digest = hashlib.blake2b(digest_size=16)
    for one in slices:
        found = one.path.stat()
        digest.update(f"{one.instance_uid}\n{found.st_size}\n{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _notes(patients: Mapping[str, set[str]]) -> list[str]:
    """A hint where the files know of one patient whom the table lists as several subjects.

    Files of a cohort that all have one patient's identity have been pseudonymised, and say nothing.
    """
    several = [subjects for subjects in patients.values() if len(subjects) > 1]
    if len(patients) < 2 or not several:
        return []
    shown = "; ".join(", ".join(sorted(subjects)) for subjects in several[:5])
    return [
        f"one patient in the DICOM files, several subjects in the table: {shown}; if they are one person, "
        "give them one subject, because folds keep subjects together"
    ]
