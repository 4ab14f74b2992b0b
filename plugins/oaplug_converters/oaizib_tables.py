"""The tables of OAIZIB-CM: which knee is whose, of which side and grade, and in which split."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from oaplug.core.errors import DatasetError
from oaplug_converters.listing import Entry
from oaplug_converters.oaizib_files import case_id_of
from oaplug_converters.text_tables import TextRow, read_cells, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from oaplug.core.case import SplitName

_NAMES = {"SubjectID": "OAI-SubjectID", "Path": "OAI-Path", "MRBarCode": "OAI-MRBarCode"}
"""Columns of the XLSX files that the CSV twins call otherwise."""
_NEEDED = ("SubjectID", "CMT-ID", "KneeSide", "KLGrade", "Gender", "Age", "BMI")
_SIDES = {"1": "R", "2": "L", "": ""}
_SEXES = {"1": "male", "2": "female", "": ""}
_SIDE_WORDS = {"right": "R", "left": "L"}
_NUMBER = re.compile(r"\d+(\.\d+)?")


def read_sub_info(path: Path, *, split: SplitName, sides: Mapping[str, str]) -> list[Entry]:
    """The rows of a subInfo table as records of cases.csv; `sides` are those of kneeSideInfo.csv.

    Raises DatasetError where the table cannot be read or lacks a column.
    """
    table = read_table(path)
    for name in _NEEDED:
        if name not in table.columns and _NAMES.get(name) not in table.columns:
            table.require(name)
    return [_entry(row, path=path, split=split, sides=sides) for row in table.rows]


def _entry(row: TextRow, *, path: Path, split: SplitName, sides: Mapping[str, str]) -> Entry:
    cells = {
        name: row.cells.get(name, row.cells.get(_NAMES.get(name, ""), "")) for name in (*_NEEDED, "Path")
    }
    cells = {name: re.sub(r"\.0+$", "", text) for name, text in cells.items()}
    number, wrong = cells["CMT-ID"], []
    case_id = case_id_of(number) if number.isdecimal() else number
    if not number.isdecimal():
        wrong.append(f"CMT-ID {number!r}: expected a number such as 001")
    if not cells["SubjectID"]:
        wrong.append("SubjectID is blank; expected the subject's number in the OAI")
    record = {"case_id": case_id, "subject_id": cells["SubjectID"], "visit": _visit(cells["Path"])}
    record |= {"split": split, "kl": cells["KLGrade"], "side": _side(cells, sides.get(case_id, ""), wrong)}
    record["sex"] = _SEXES.get(cells["Gender"], "")
    if cells["Gender"] not in _SEXES:
        wrong.append(f"Gender {cells['Gender']!r}: expected 1 (male), 2 (female) or a blank")
    record |= {name: _measure(cells, column, wrong) for name, column in (("age", "Age"), ("bmi", "BMI"))}
    return Entry(record=record, cells=cells, path=path, line=row.line, wrong=tuple(wrong))


def _side(cells: Mapping[str, str], told: str, wrong: list[str]) -> str:
    """R or L by KneeSide, else as kneeSideInfo.csv has `told`; a contradiction is wrong."""
    text = cells["KneeSide"]
    if text not in _SIDES:
        wrong.append(f"KneeSide {text!r}: expected 1 (right), 2 (left) or a blank")
        return ""
    side = _SIDES[text]
    if side and told and side != told:
        wrong.append(f"KneeSide {text} is {side}, but kneeSideInfo.csv has {told}; correct one of them")
    return side or told


def _measure(cells: Mapping[str, str], column: str, wrong: list[str]) -> str:
    """A number as it is written; blank where it is missing, for which the tables have a blank or 0."""
    text = cells[column]
    if not text:
        return ""
    if not _NUMBER.fullmatch(text):
        wrong.append(f"{column} {text!r}: expected a number or a blank")
        return ""
    return text if float(text) else ""


def _visit(path: str) -> str:
    """The OAI's name of the visit: image release 0.C.2 is of V00, 1.E.1 of V01."""
    found = re.match(r"(\d+)\.", path)
    return f"V{int(found[1]):02d}" if found else ""


def read_sides(path: Path | None) -> dict[str, str]:
    """R or L by case id from kneeSideInfo.csv, which has no header; nothing where there is no such file.

    Raises DatasetError naming a row that is not like `oaizib_001.nii.gz,right`.
    """
    sides: dict[str, str] = {}
    for line, cells in read_cells(path) if path is not None else []:
        name, side = [*cells, ""][:2]
        number = re.fullmatch(r"oaizib_(\d+)\.nii\.gz", name)
        if number is None or side.lower() not in _SIDE_WORDS:
            row = ",".join(cells)
            raise DatasetError(f"{path}:{line}: expected oaizib_001.nii.gz,right or ...,left, got {row!r}")
        sides[case_id_of(number[1])] = _SIDE_WORDS[side.lower()]
    return sides
