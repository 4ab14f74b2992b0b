"""CSV and XLSX tables as text, cell by cell: '001' stays '001', and a whole number has no '.0'."""

from __future__ import annotations

import csv
import datetime
import io
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import DatasetError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENDINGS = (".csv", ".xlsx")
_DELIMITERS = ",;\t"


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One row: its number in the file, from 1, and its cells by column, blank where there is nothing."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table with a header."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[TextRow, ...]

    def require(self, column: str, *, hint: str = "") -> str:
        """`column` where the table has it; else raises DatasetError naming those it has."""
        if column not in self.columns:
            advice = hint or nearest(column, self.columns)
            raise DatasetError(
                f"{self.path}: no column {column!r} (columns: {', '.join(self.columns)}){advice}"
            )
        return column


def read_table(path: Path, *, sheet: str = "") -> TextTable:
    """Read a table whose first row names its columns; rows without any text are passed over.

    Raises DatasetError where it cannot be read, names a column twice, or a row is longer than the header.
    """
    lines = read_cells(path, sheet=sheet)
    if not lines:
        raise DatasetError(f"{path} is empty; expected a row of column names and one row per case")
    (_, header), *below = lines
    columns = tuple(header)
    twice = [name for name, count in Counter(filter(None, columns)).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: two columns are called {twice[0]!r}; rename one")
    rows = []
    for line, cells in below:
        if any(cells[len(columns) :]):
            raise DatasetError(
                f"{path}:{line}: {len(cells)} cells below {len(columns)} column names; is a cell with "
                "a comma not quoted?"
            )
        filled = [*cells, *[""] * (len(columns) - len(cells))]
        rows.append(TextRow(line=line, cells={c: v for c, v in zip(columns, filled, strict=False) if c}))
    return TextTable(path=path, columns=tuple(filter(None, columns)), rows=tuple(rows))


def read_cells(path: Path, *, sheet: str = "") -> list[tuple[int, list[str]]]:
    """The number, from 1, and the cells of every row that has any text; raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"the table {path} does not exist; expected a CSV or XLSX file")
    if path.suffix.lower() == ".xlsx":
        rows = _read_xlsx(path, sheet=sheet)
    elif path.suffix.lower() == ".csv":
        rows = _read_csv(path)
    else:
        raise DatasetError(f"{path}: expected a .csv or .xlsx file; save the table as one of these")
    return [(number, cells) for number, cells in enumerate(rows, start=1) if any(cells)]


def _read_csv(path: Path) -> list[list[str]]:
    """Rows of a UTF-8 file, with or without a byte order mark, separated by comma, semicolon or tab."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8; save it as 'CSV UTF-8' or as .xlsx") from None
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        return [[cell.strip() for cell in row] for row in _rows_by_line(text, delimiter)]
    except csv.Error as failure:
        raise DatasetError(f"{path} cannot be read as CSV: {failure}") from None


def _rows_by_line(text: str, delimiter: str) -> list[list[str]]:
    """Rows at the numbers of their last lines, so that messages name lines of the file."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    for row in reader:
        rows += [[]] * (reader.line_num - 1 - len(rows)) + [row]
    return rows


def _read_xlsx(path: Path, *, sheet: str) -> list[list[str]]:
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which are not read
            book = load_workbook(file, read_only=True, data_only=True)
            try:
                return _sheet_rows(book, path=path, sheet=sheet)
            finally:
                book.close()
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, EOFError, SyntaxError) as failure:
        reason = " ".join(str(failure).split())
        raise DatasetError(f"{path} cannot be read as XLSX ({reason}); save or download it again") from None


def _sheet_rows(book: Any, *, path: Path, sheet: str) -> list[list[str]]:
    if sheet and sheet not in book.sheetnames:
        raise DatasetError(f"{path}: no sheet {sheet!r}{nearest(sheet, book.sheetnames)}")
    chosen = book[sheet] if sheet else book.worksheets[0]
    chosen.reset_dimensions()  # what the file says of its size may be wrong
    return [[_text(value) for value in row] for row in chosen.iter_rows(values_only=True)]


def _text(value: Any) -> str:
    """A cell as text; a whole number without decimals, a day as 2004-05-31."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value).strip()


def find_table(source: Path, name: str) -> Path:
    """The table called `name` in `source` or anywhere, or the only one there is.

    Raises DatasetError naming those there are.
    """
    if name:
        inside = source / name
        return inside if inside.is_file() else Path(name)
    found = tables_in(source)
    if len(found) == 1:
        return found[0]
    there = ", ".join(path.name for path in found) or "none"
    raise DatasetError(
        f"{source} has {len(found)} tables (.csv or .xlsx: {there}); name the one that lists the cases "
        "by --set table=FILE"
    )


def tables_in(source: Path) -> Sequence[Path]:
    """CSV and XLSX files directly in a folder, without those that Excel keeps while one is open."""
    if not source.is_dir():
        raise DatasetError(
            f"{source} does not exist or is no folder; expected a folder with images and a table"
        )
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in ENDINGS)
    return [path for path in files if path.is_file() and not path.name.startswith((".", "~$"))]
