"""Where the files of OAIZIB-CM are: zips or unpacked folders, tables at the top or in info/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.case import Problem
from oaplug.core.errors import DatasetError
from oaplug_converters.placing import SourceFile, members_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from oaplug.core.case import SplitName

HUB = "YongchengYAO/OAIZIB-CM"
TABLES: Mapping[SplitName, str] = {"train": "subInfo_train", "test": "subInfo_test"}
SIDES = "kneeSideInfo.csv"
_FILE = re.compile(r"oaizib_(\d{1,6})(_0000)?\.nii\.gz")
_DEPTHS = ("*", "*/*", "*/*/*")


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """What there is of a download: images and masks by case id, tables by split, and damaged zips."""

    images: Mapping[str, SourceFile]
    masks: Mapping[str, SourceFile]
    tables: Mapping[SplitName, Path]
    sides: Path | None
    problems: tuple[Problem, ...]


def case_id_of(number: str) -> str:
    """The case with a CMT-ID: oaizib_001, whether its zeros were kept or not."""
    return f"oaizib_{int(number):03d}"


def find_hub_files(source: Path, *, without: Path) -> HubFiles:
    """Look through `source`, but not through the folder `without`, which is being written.

    A file in a folder wins over the same one in a zip. Raises DatasetError where there is no table, as
    nothing can be said of any image then.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is no folder; expected the files of the hub's data set {HUB}")
    images: dict[str, SourceFile] = {}
    masks: dict[str, SourceFile] = {}
    problems: list[Problem] = []
    for file in [*_unpacked(source, without=without), *_packed(source, problems=problems)]:
        name = (file.member or file.path.name).rpartition("/")[2]
        if found := _FILE.fullmatch(name):
            (images if found[2] else masks).setdefault(case_id_of(found[1]), file)
    named = {split: _find(source, f"{stem}.xlsx", f"{stem}.csv") for split, stem in TABLES.items()}
    tables = {split: path for split, path in named.items() if path is not None}
    if not tables:
        raise DatasetError(
            f"{source} has neither {' nor '.join(TABLES.values())} (.xlsx or .csv), here or in info/; "
            f"download them from {HUB}"
        )
    return HubFiles(
        images=images, masks=masks, tables=tables, sides=_find(source, SIDES), problems=tuple(problems)
    )


def _unpacked(source: Path, *, without: Path) -> Iterator[SourceFile]:
    """Image files in folders, those nearest to the top first."""
    ours = without.resolve()
    for depth in _DEPTHS:
        for path in sorted(source.glob(f"{depth}.nii.gz")):
            if path.is_file() and ours not in path.resolve().parents:
                yield SourceFile(path=path)


def _packed(source: Path, *, problems: list[Problem]) -> Iterator[SourceFile]:
    """Members of the zips; a damaged zip is added to the problems."""
    for path in sorted(source.glob("*.zip")):
        try:
            members = members_of(path)
        except DatasetError as failure:
            message = str(failure).removeprefix(f"{path}: ")
            problems.append(Problem(kind="damaged zip", message=message, file=str(path)))
            continue
        for member in members:
            if not member.startswith("__MACOSX/"):
                yield SourceFile(path=path, member=member)


def _find(source: Path, *names: str) -> Path | None:
    """The first of these files that is there: in info/, as newer revisions have it, or at the top."""
    places = [folder / name for name in names for folder in (source / "info", source)]
    return next((path for path in places if path.is_file()), None)
