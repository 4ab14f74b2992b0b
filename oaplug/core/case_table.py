"""cases.csv: one row a case, with subject, side, visit, split, one column per target, covariates."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import atomic_path
from oaplug.core.case import Case, Problem, Side, SplitName
from oaplug.core.errors import DatasetError
from oaplug.core.target import MISSING, Target, fill_derived, grade_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

FIXED_COLUMNS = ("case_id", "subject_id", "side", "visit", "split")
_SIDES: dict[str, Side | None] = {"": None, "l": "L", "left": "L", "r": "R", "right": "R"}
_SPLITS: dict[str, SplitName | None] = {"": None, "train": "train", "test": "test"}
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One checked row of cases.csv; labels are grade indices with derived targets filled in."""

    case_id: str
    subject_id: str
    side: Side | None
    visit: str
    split: SplitName | None
    labels: dict[str, int]
    covariates: dict[str, str]

    def to_case(self, images: tuple[Path, ...], mask: Path | None, split: SplitName) -> Case:
        """The case this row describes, once its files are known."""
        return Case(
            case_id=self.case_id,
            subject_id=self.subject_id,
            images=images,
            split=split,
            side=self.side,
            visit=self.visit,
            mask=mask,
            labels=self.labels,
            covariates=self.covariates,
        )


def read_case_rows(
    path: Path, targets: Mapping[str, Target], *, covariates: Sequence[str]
) -> tuple[list[CaseRow], list[Problem]]:
    """Read cases.csv, collecting every problem; a row that cannot be used is left out.

    Raises DatasetError where the file as a whole is unreadable or has no column case_id.
    """
    header, records = _read_csv(path)
    problems = _check_header(header, targets, covariates=covariates, path=path)
    rows: list[CaseRow] = []
    for line, record in enumerate(records, start=2):
        row, found = parse_case_row(record, targets, covariates=covariates, path=path, line=line)
        problems += found
        rows += [row] if row is not None else []
    counts = Counter(row.case_id for row in rows)
    for case_id in [name for name, count in counts.items() if count > 1]:
        problems.append(
            Problem(
                kind="duplicate case",
                case_id=case_id,
                file=str(path),
                message=f"has {counts[case_id]} rows; keep one",
            )
        )
    unique = {row.case_id: row for row in reversed(rows)}
    return [unique[name] for name in counts], problems


def read_covariates(path: Path, *, without: Collection[str]) -> dict[str, dict[str, str]]:
    """By case id the columns of a cases.csv as text: subject_id, side, visit, and all others not `without`.

    Columns may be any, declared or not. Raises DatasetError where the file cannot be read or lists a case
    twice.
    """
    _, records = _read_csv(path)
    left_out = {"case_id", "split", *without}
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        case_id = record["case_id"]
        if case_id in rows:
            raise DatasetError(f"{path}: case {case_id} has several rows; keep one")
        told = {name: value for name, value in record.items() if name not in left_out}
        side = _SIDES.get(told.get("side", "").lower())
        rows[case_id] = {"subject_id": "", **told} | ({"side": side} if side else {})
    return rows


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            records = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
            header = [name.strip() for name in reader.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as failure:
        raise DatasetError(f"{path} cannot be read as UTF-8 CSV: {failure}") from None
    if "case_id" not in header:
        raise DatasetError(f"{path}: no column 'case_id' (columns: {', '.join(header) or 'none'})")
    return header, records


def _check_header(
    header: list[str], targets: Mapping[str, Target], *, covariates: Sequence[str], path: Path
) -> list[Problem]:
    known = {*FIXED_COLUMNS, *targets, *covariates}
    problems = [
        Problem(
            kind="unknown column",
            file=str(path),
            message=f"column {name!r} is no target or covariate of dataset.json; declare or remove it",
        )
        for name in header
        if name not in known
    ]
    needed = [t.name for t in targets.values() if not t.is_derived] + list(covariates)
    problems += [
        Problem(
            kind="missing column", file=str(path), message=f"no column {name!r}, which dataset.json declares"
        )
        for name in needed
        if name not in header
    ]
    return problems


def parse_case_row(
    record: Mapping[str, str],
    targets: Mapping[str, Target],
    *,
    covariates: Sequence[str],
    path: Path,
    line: int,
) -> tuple[CaseRow | None, list[Problem]]:
    """Check one row, given as text by the columns of cases.csv; gives all that is wrong with it.

    `path` and `line` say where it comes from. A row without a usable case_id gives None.
    """
    case_id = record.get("case_id", "")
    problems: list[Problem] = []

    def complain(kind: str, message: str) -> None:
        problems.append(Problem(kind=kind, case_id=case_id, file=f"{path}:{line}", message=message))

    if not _SAFE_ID.fullmatch(case_id):
        complain("bad case id", f"case_id {case_id!r}: use letters, digits, '.', '_' and '-'")
        return None, problems
    side_text, split_text = record.get("side", "").lower(), record.get("split", "").lower()
    if side_text not in _SIDES:
        complain("bad side", f"side {record['side']!r}: use L, R or leave it blank")
    if split_text not in _SPLITS:
        complain("bad split", f"split {record['split']!r}: use train, test or leave it blank")
    labels: dict[str, int] = {}
    for name, target in targets.items():
        try:
            labels[name] = target.index_of(record.get(name, ""))
        except DatasetError as failure:
            labels[name] = MISSING
            complain("bad label", str(failure))
    labels, contradictions = fill_derived(labels, targets)
    for name in contradictions:
        parent = targets[name].derived_from
        complain("contradiction", f"{name} = {record[name]} contradicts {parent} = {record[str(parent)]}")
    row = CaseRow(
        case_id=case_id,
        subject_id=record.get("subject_id", "") or case_id,
        side=_SIDES.get(side_text),
        visit=record.get("visit", ""),
        split=_SPLITS.get(split_text),
        labels=labels,
        covariates={name: record.get(name, "") for name in covariates},
    )
    return row, problems


def case_record(case: Case, targets: Mapping[str, Target], *, covariates: Sequence[str]) -> dict[str, Any]:
    """One row of cases.csv as written: grades by name, blanks where unknown."""
    record = {
        "case_id": case.case_id,
        "subject_id": case.subject_id,
        "side": case.side or "",
        "visit": case.visit,
        "split": case.split,
    }
    for name, target in targets.items():
        index = case.labels.get(name, MISSING)
        record[name] = "" if index == MISSING else grade_names(target)[index]
    return record | {name: case.covariates.get(name, "") for name in covariates}


def write_case_table(path: Path, records: Iterable[Mapping[str, Any]], *, columns: Sequence[str]) -> Path:
    """Write cases.csv (or any table of records) atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(records)
    return path
