"""What an analysis found: sentences, tables and figures, each with a caption; JSON all through."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oaplug.core.settings import to_mapping

if TYPE_CHECKING:
    from collections.abc import Mapping

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A tidy table; a cell that has no value is None. `data` names its CSV in the analysis' folder."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture (`image`) and the CSV it was drawn from (`data`), relative to the analysis' folder."""

    name: str
    caption: str
    image: str
    data: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The outcome of one analysis; `numbers` are headline values by dotted name."""

    title: str
    summary: tuple[str, ...] = ()
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


def findings_to_json(findings: Findings) -> dict[str, Any]:
    """The JSON form of findings, with NaN and infinities as null."""
    content = _finite(to_mapping(findings))
    assert isinstance(content, dict)
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
