"""report.html: one self-contained page rendered from findings.json, readable without oaplug or a network."""

from __future__ import annotations

import base64
from importlib import resources
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import check_schema, read_json, write_text
from oaplug.core.errors import PathError
from oaplug.study.run import FINDINGS_FILE, FINDINGS_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

REPORT_FILE = "report.html"
TEMPLATE = "report.html.j2"
NO_VALUE = "–"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHOWN_SCALE = 0.78
"""CSS pixels per image pixel: figures are drawn fine enough for dense screens and paper."""


def write_report(folder: Path) -> Path:
    """Render FOLDER/findings.json and the figures it names to FOLDER/report.html; returns its path.

    Raises PathError where findings.json is missing or was written by a newer oaplug.
    """
    path = folder / FINDINGS_FILE
    content = read_json(path, hint="run oaplug_analyze first")
    content = check_schema(content, path=path, newest=FINDINGS_SCHEMA, error=PathError)
    return write_text(folder / REPORT_FILE, _render(content, folder=folder))


def _render(content: Mapping[str, Any], *, folder: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    text = resources.files("oaplug.study").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections = [_section(entry, folder=folder / entry["name"]) for entry in content["analyses"]]
    return environment.from_string(text).render(study=content, title=_title(content), sections=sections)


def _title(content: Mapping[str, Any]) -> str:
    names = [model["name"] for model in content["models"]]
    if len(names) == 1:
        return f"How {names[0]} grades"
    return " against ".join(names) if len(names) == 2 else f"{len(names)} models compared"


def _section(entry: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """What the template shows of one analysis."""
    findings = entry.get("findings") or {"title": entry["name"], "summary": [], "tables": [], "figures": []}
    return {
        "name": entry["name"],
        "about": entry["summary"],
        "plugin": entry["plugin"],
        "status": entry["status"],
        "reason": entry.get("reason", ""),
        "traceback": entry.get("traceback", ""),
        "title": findings["title"],
        "sentences": findings["summary"],
        "tables": [_table(table, folder=folder) for table in findings["tables"]],
        "figures": [_figure(figure, folder=folder) for figure in findings["figures"]],
    }


def _figure(figure: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """A figure with its PNG inlined; `source` is empty where that is missing or outside the folder."""
    path = (folder / figure["image"]).resolve()
    shown = {
        "image": figure["image"],
        "caption": figure["caption"],
        "data": f"{folder.name}/{figure['data']}",
    }
    content = path.read_bytes() if path.is_relative_to(folder.resolve()) and path.is_file() else b""
    if not content.startswith(PNG_SIGNATURE):
        return {**shown, "source": "", "width": 0}
    width_pixels = int.from_bytes(content[16:20], "big")
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    return {**shown, "source": source, "width": round(width_pixels * SHOWN_SCALE)}


def _table(table: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """A table as shown: columns `X`, `X low`, `X high` become one, the value with its interval below."""
    columns: Sequence[str] = table["columns"]
    place = {name: index for index, name in enumerate(columns)}
    bounds = {
        name: (place[f"{name} low"], place[f"{name} high"])
        for name in columns
        if f"{name} low" in place and f"{name} high" in place
    }
    hidden = {index for pair in bounds.values() for index in pair}
    shown = [index for index in range(len(columns)) if index not in hidden]
    rows = [[_cell(row, index, bounds.get(columns[index])) for index in shown] for row in table["rows"]]
    return {
        "name": table["name"],
        "caption": table["caption"],
        "columns": [
            {"name": columns[index], "numeric": _is_numeric(table["rows"], index)} for index in shown
        ],
        "rows": rows,
        "data": f"{folder.name}/{table['data']}" if table["data"] else "",
    }


def _cell(row: Sequence[Any], index: int, bounds: tuple[int, int] | None) -> dict[str, str]:
    interval = ""
    if bounds is not None and None not in (row[bounds[0]], row[bounds[1]]):
        interval = f"{_text(row[bounds[0]])} to {_text(row[bounds[1]])}"
    return {"text": _text(row[index]), "interval": interval}


def _text(value: Any) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
    return str(value)


def _is_numeric(rows: Sequence[Sequence[Any]], index: int) -> bool:
    values = [row[index] for row in rows if row[index] is not None]
    return bool(values) and all(isinstance(value, (int, float)) for value in values)
