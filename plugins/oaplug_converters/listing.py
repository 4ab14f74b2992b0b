"""Rows of a table into cases whose files are still to be found, and those that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.case_table import CaseRow, parse_case_row
from oaplug_converters.flow import LeftOut, left_out_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.core.case import SplitName
    from oaplug.core.dataset import DatasetDescription


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of a source's table: as a record of cases.csv, as it was, and what is wrong with it already."""

    record: Mapping[str, str]
    cells: Mapping[str, str]
    path: Path
    line: int
    wrong: tuple[str, ...] = ()

    @property
    def split(self) -> SplitName:
        """The split, "train" where the row names none or no known one."""
        return "test" if self.record.get("split") == "test" else "train"


@dataclass(frozen=True, kw_only=True)
class ListedCase:
    """A checked row; `where` is its place for messages."""

    row: CaseRow
    split: SplitName
    cells: Mapping[str, str]
    where: str

    def left_out(self, kind: str, message: str, *, file: object = "") -> LeftOut:
        """The case as one that is left out until somebody mends what `message` says."""
        return left_out_for(
            kind, message, case_id=self.row.case_id, split=self.split, file=file or self.where
        )


def list_cases(
    entries: Sequence[Entry], description: DatasetDescription
) -> tuple[list[ListedCase], list[LeftOut]]:
    """Check every row; left out are wrong ones, cases with several rows, and subjects in both splits."""
    listed: dict[str, ListedCase] = {}
    left: dict[str, LeftOut] = {}
    for entry in entries:
        row, found = parse_case_row(
            entry.record,
            description.targets,
            covariates=description.covariates,
            path=entry.path,
            line=entry.line,
        )
        where = f"{entry.path}:{entry.line}"
        name = row.case_id if row is not None else where
        wrong = [*entry.wrong, *(problem.message for problem in found)]
        if name in listed or name in left:
            here = listed.pop(name).where if name in listed else left[name].problem.file  # type: ignore[union-attr]
            left[name] = left_out_for(
                "several rows", f"is in {here} too; keep one row", case_id=name, split=entry.split, file=where
            )
        elif wrong or row is None:
            kind = found[0].kind if found else "bad value"
            case_id = row.case_id if row is not None else ""
            left[name] = left_out_for(kind, "; ".join(wrong), case_id=case_id, split=entry.split, file=where)
        else:
            listed[name] = ListedCase(row=row, split=entry.split, cells=entry.cells, where=where)
    kept, shared = _without_shared_subjects(list(listed.values()))
    return kept, [*left.values(), *shared]


def _without_shared_subjects(listed: Sequence[ListedCase]) -> tuple[list[ListedCase], list[LeftOut]]:
    """Cases without test cases of subjects that have training cases too, and those."""
    trained = {one.row.subject_id: one.row.case_id for one in listed if one.split == "train"}
    kept, left = [], []
    for one in listed:
        other = trained.get(one.row.subject_id) if one.split == "test" else None
        if other is None:
            kept.append(one)
        else:
            message = f"its subject has the training case {other} too; keep a subject in one split"
            left.append(one.left_out("subject in both splits", message))
    return kept, left
