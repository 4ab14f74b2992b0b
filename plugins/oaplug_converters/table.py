"""Any folder of images with a table of cases, into a raw dataset."""

from __future__ import annotations

import glob
import gzip
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.core.artifacts import atomic_path, make_folder
from oaplug.core.errors import DatasetError
from oaplug_converters.columns import ColumnMapping, fill_pattern
from oaplug_converters.flow import LeftOut, finish
from oaplug_converters.listing import list_cases
from oaplug_converters.placing import SourceFile, image_problem, place_file, read_image, write_image
from oaplug_converters.text_tables import find_table, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.case import Case
    from oaplug.core.converter import ConversionRecord, RawFolder
    from oaplug.core.dataset import DatasetDescription
    from oaplug_converters.listing import Entry, ListedCase
    from oaplug_converters.options import TableOptions

_ONE_FILE = (".nii.gz", ".nii", ".mha", ".nrrd")
"""Formats that keep an image in one file, which can be linked; others are written anew as .nii.gz."""
_PAIRS = (".hdr", ".img")
"""NIfTI in two files, of which SimpleITK reads what is missing as zeros."""


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Files of one case in the source: one per channel, and the mask where it has one."""

    images: tuple[Path, ...]
    mask: Path | None


class TableConverter:
    """Links or copies what the rows of a table name; mixed formats are written anew as .nii.gz."""

    def __init__(self, options: TableOptions) -> None:
        self.options = options
        self.patterns = (options.image,) if isinstance(options.image, str) else tuple(options.image)
        if len(self.patterns) != len(options.channels):
            raise DatasetError(
                f"image has {len(self.patterns)} columns or patterns, channels has {len(options.channels)} "
                "names; give one of each per channel"
            )

    def convert(self, source: Path, dataset: RawFolder) -> ConversionRecord:
        """Write every case whose files are there; what is wrong with others is in the record."""
        root = source.parent if source.is_file() else source
        path = source if source.is_file() else find_table(source, self.options.table)
        mapping = ColumnMapping(self.options, read_table(path, sheet=self.options.sheet))
        entries = mapping.entries()
        for pattern in filter(None, (*self.patterns, self.options.mask)):
            mapping.check_pattern(pattern)
        description = mapping.describe(
            dataset.folder.name,
            channels=self.options.channels,
            file_ending=self._common_ending(entries, root),
        )
        listed, left_out = list_cases(entries, description)
        cases: list[Case] = []
        for done, one in enumerate(listed, start=1):
            outcome = self._write(one, root, dataset=dataset, description=description)
            (left_out if isinstance(outcome, LeftOut) else cases).append(outcome)  # type: ignore[arg-type]
            dataset.report(done, len(listed), one.row.case_id)
        return finish(
            dataset,
            description,
            cases=cases,
            left_out=left_out,
            source=path,
            notes=table_notes(mapping, description),
        )

    def _common_ending(self, entries: list[Entry], root: Path) -> str:
        """The ending of all files where they have one that can be linked, else .nii.gz."""
        patterns = [*self.patterns, *filter(None, [self.options.mask])]
        found = {
            _ending(path)
            for entry in entries
            for pattern in patterns
            for path in _matches(pattern, entry.cells, root)
        }
        (ending,) = found if len(found) == 1 else (".nii.gz",)
        return ending if ending in _ONE_FILE else ".nii.gz"

    def _write(
        self, one: ListedCase, root: Path, *, dataset: RawFolder, description: DatasetDescription
    ) -> Case | LeftOut:
        try:
            files = self._find(one, root)
        except DatasetError as failure:
            return one.left_out("missing file", str(failure))
        images = dataset.image_paths(one.row.case_id, split=one.split, description=description)
        mask = dataset.mask_path(one.row.case_id, split=one.split, description=description)
        origins = (*files.images, files.mask) if files.mask else files.images
        try:
            for origin in origins:
                _check_image(origin)
            for origin, target in zip(origins, (*images, mask), strict=False):
                self._bring(origin, target)
        except DatasetError as failure:
            return one.left_out("unusable file", str(failure))
        if files.mask is None:
            mask.unlink(missing_ok=True)  # of an earlier run, when the table had one
        return one.row.to_case(images, mask if files.mask else None, one.split)

    def _find(self, one: ListedCase, root: Path) -> _Files:
        """The files of a case, with a mask where a cell names one or a pattern fits one.

        Raises DatasetError where one is missing, or a pattern fits several.
        """
        images = tuple(_only_match(pattern, one, root) for pattern in self.patterns)
        pattern = self.options.mask
        is_there = (
            bool(_matches(pattern, one.cells, root)) if "{" in pattern else bool(one.cells.get(pattern))
        )
        return _Files(images=images, mask=_only_match(pattern, one, root) if is_there else None)

    def _bring(self, origin: Path, target: Path) -> None:
        if target.name.endswith(_ending(origin)):
            place_file(SourceFile(path=origin), target, copy=self.options.place == "copy")
        else:
            _write_anew(origin, target)


def _matches(pattern: str, cells: Mapping[str, str], root: Path) -> list[Path]:
    """Files that a row names by a pattern or a column; a relative path starts at `root`."""
    if "{" not in pattern:
        text = fill_pattern(pattern, cells)
        path = root / text.replace("\\", "/")
        return [path] if text and path.is_file() else []
    text = fill_pattern(pattern, cells, escape=glob.escape)
    found = glob.glob(str(Path(glob.escape(str(root))) / text)) if text else []
    return sorted(path for path in map(Path, found) if path.is_file())


def _only_match(pattern: str, one: ListedCase, root: Path) -> Path:
    found = _matches(pattern, one.cells, root)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:5])
        raise DatasetError(f"{len(found)} files fit {pattern!r} ({names}); make it fit one")
    named = fill_pattern(pattern, one.cells)
    if not named:
        raise DatasetError(f"a column of {pattern!r} is blank; expected what names the file")
    raise DatasetError(f"there is no file {root / named}; add it, or correct the row or the pattern")


def _check_image(path: Path) -> None:
    """Raise DatasetError where a file is no usable image."""
    wrong = image_problem(path)
    if _ending(path) in _PAIRS:
        wrong = "of a pair .hdr/.img nobody can tell whether it is whole; save it as .nii.gz"
    if wrong:
        raise DatasetError(f"{path}: {wrong}")


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def _write_anew(origin: Path, target: Path) -> None:
    """Write an image as .nii.gz, unless that is there and as old as `origin`; NIfTI keeps its bytes."""
    changed = origin.stat().st_mtime_ns
    if target.is_file() and target.stat().st_mtime_ns == changed:
        return
    make_folder(target.parent)
    with atomic_path(target) as temporary:
        if _ending(origin) == ".nii":
            with origin.open("rb") as plain, gzip.open(temporary, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(plain, packed, 1 << 20)
        else:
            write_image(read_image(origin), temporary)
        os.utime(temporary, ns=(changed, changed))


def table_notes(mapping: ColumnMapping, description: DatasetDescription) -> list[str]:
    """What a user may have forgotten: targets, columns."""
    notes = [] if description.targets else ["no targets: nothing to train; give --set targets=..."]
    unused = mapping.unused()
    return notes + ([f"columns not used: {', '.join(unused)}"] if unused else [])
