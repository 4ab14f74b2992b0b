"""A table with any columns as records of cases.csv, by a mapping that the user gives."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from oaplug.core.case_table import FIXED_COLUMNS
from oaplug.core.dataset import description_from_json
from oaplug.core.errors import DatasetError
from oaplug_converters.listing import Entry
from oaplug_converters.options import ColumnOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.dataset import DatasetDescription
    from oaplug_converters.text_tables import TextRow, TextTable

_COLUMN_OF = {"subject_id": "subject", "side": "side", "visit": "visit", "split": "split"}
"""Columns of cases.csv that may be absent, and the options that name them."""
_SPLITS = {"": "", "training": "train", "tr": "train", "testing": "test", "ts": "test"}
_BRACES = re.compile(r"\{([^{}:]+)(?::(\d+))?\}")


@dataclass(frozen=True)
class ColumnMapping:
    """What the options say of one table."""

    options: ColumnOptions
    table: TextTable

    def describe(self, name: str, *, channels: tuple[str, ...], file_ending: str) -> DatasetDescription:
        """The description of the dataset.

        Raises DatasetError where targets, labels, regions or covariates are not as dataset.json has them.
        """
        options = self.options
        content = {
            "channel_names": {str(i): channel for i, channel in enumerate(channels)},
            "labels": options.labels,
            "file_ending": file_ending,
            "targets": {
                name: {key: value for key, value in entry.items() if key != "column"}
                for name, entry in options.targets.items()
            },
            "regions": options.regions,
            "covariates": list(self._covariates),
        }
        description = description_from_json(content, name=name, where="the options")
        taken = sorted({*FIXED_COLUMNS, *description.targets} & {*description.covariates})
        if taken:
            raise DatasetError(f"the covariate {taken[0]!r} has the name of another column; rename it")
        return description

    @cached_property
    def _covariates(self) -> dict[str, str]:
        given = self.options.covariates
        return dict(given.items() if hasattr(given, "items") else zip(given, given, strict=True))

    @cached_property
    def columns(self) -> dict[str, str]:
        """By column of cases.csv that of the table; columns under default names may be absent there."""
        options, defaults = self.options, ColumnOptions()
        found = {"case_id": options.case_id}
        for name, option in _COLUMN_OF.items():
            column = getattr(options, option)
            if column in self.table.columns or column != getattr(defaults, option):
                found[name] = column
        for name, entry in options.targets.items():
            column = entry.get("column", name)
            if column in self.table.columns or "column" in entry or "derived_from" not in entry:
                found[name] = column
        return found | self._covariates

    def entries(self) -> list[Entry]:
        """Every row as a record of cases.csv; raises DatasetError where the table lacks a column."""
        self.table.require(self.options.case_id, hint="; name that of the case ids by --set case_id=COLUMN")
        for column in self.columns.values():
            self.table.require(column)
        return [self._entry(row) for row in self.table.rows]

    def _entry(self, row: TextRow) -> Entry:
        cells = {name: self._known(text) for name, text in row.cells.items()}
        record = {name: cells[column] for name, column in self.columns.items()}
        record["side"] = self.options.side_values.get(record.get("side", ""), record.get("side", ""))
        split = record.get("split", "")
        split = self.options.split_values.get(split, split).lower()
        record["split"] = _SPLITS.get(split, split)
        return Entry(record=record, cells=cells, path=self.table.path, line=row.line)

    def _known(self, text: str) -> str:
        return "" if text in self.options.missing else text

    def check_pattern(self, text: str) -> None:
        """Raise DatasetError where a pattern, or a column of paths, names a column that is not there."""
        for name in _columns_in(text):
            self.table.require(name)

    def unused(self) -> list[str]:
        """Columns of the table that nothing was taken from."""
        texts = [getattr(self.options, field.name) for field in fields(self.options)]
        named = {name for text in texts for one in _texts(text) for name in _columns_in(one)}
        return [name for name in self.table.columns if name not in {*self.columns.values(), *named}]


def _texts(value: Any) -> list[str]:
    """The texts of an option: itself, or its members."""
    members = value if isinstance(value, tuple) else (value,)
    return [member for member in members if isinstance(member, str)]


def _columns_in(text: str) -> list[str]:
    """Columns that a pattern has in braces; a text without braces is a column itself."""
    return [found[1] for found in _BRACES.finditer(text)] if "{" in text else [text]


def fill_pattern(text: str, cells: Mapping[str, str], *, escape: Any = str) -> str:
    """A pattern with the cells of a row for {COLUMN} and {COLUMN:3}; or the cell of the column `text`.

    Blank where any of these cells is. `escape` is applied to cells in patterns.
    """
    if "{" not in text:
        return cells.get(text, "")
    if not all(cells.get(name) for name in _columns_in(text)):
        return ""
    return _BRACES.sub(lambda found: escape(cells[found[1]].rjust(int(found[2] or 0), "0")), text)
