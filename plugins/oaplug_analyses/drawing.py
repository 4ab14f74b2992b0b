"""How figures and tables of the analyses look and are written: one style, data beside every picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure as Canvas

from oaplug.core.artifacts import atomic_path
from oaplug.core.case_table import write_case_table
from oaplug.core.findings import Figure, Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell

INK, MUTED, GRID = "#1f2933", "#66727f", "#e3e8ee"
SMALL, BODY, TITLE = 7.5, 8.5, 9.5
DPI = 144
PICTURE: dict[str, Any] = {
    "format": "png",
    "facecolor": "white",
    "bbox_inches": "tight",
    "pad_inches": 0.08,
    "metadata": {"Software": None},
}
HEADING: dict[str, Any] = {"fontsize": TITLE, "color": INK, "loc": "left"}
LEGEND: dict[str, Any] = {
    "fontsize": SMALL,
    "title_fontsize": SMALL,
    "labelcolor": INK,
    "handlelength": 1.4,
    "frameon": False,
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
            "#56B4E9", "#882255", "#999933", "#332288", "#555555")  # fmt: skip
_SEVERITY = ("#f6d860", "#ee964b", "#d1495b", "#7b2d6f", "#241b4b")


def model_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per model, the same in every figure, safe for colour-blind readers (Okabe and Ito; Tol)."""
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def grade_colours(count: int) -> list[str]:
    """A colour per grade, from light for the least severe to dark."""
    ramp = LinearSegmentedColormap.from_list("severity", _SEVERITY)
    return [to_hex(ramp(index / max(count - 1, 1))) for index in range(count)]


def panels(
    count: int, *, width_inches: float, height_inches: float, columns: int = 3
) -> tuple[Canvas, list[Axes]]:
    """A figure with `count` panels of the given size, filled row by row."""
    across = min(count, columns)
    down = math.ceil(count / across)
    canvas = Canvas(figsize=(across * width_inches, down * height_inches), dpi=DPI)
    canvas.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)
    axes = [canvas.add_subplot(down, across, index + 1) for index in range(count)]
    for one in axes:
        _tidy(one)
    return canvas, axes


def stacked(
    heights_inches: Sequence[float], *, around_inches: float, width_inches: float
) -> tuple[Canvas, list[Axes]]:
    """Panels of different heights below each other, with `around_inches` for the title and axis of each."""
    height_inches = sum(heights_inches) + around_inches * len(heights_inches)
    canvas = Canvas(figsize=(width_inches, height_inches), dpi=DPI)
    canvas.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)
    grid = canvas.add_gridspec(len(heights_inches), 1, height_ratios=list(heights_inches))
    axes = [canvas.add_subplot(grid[row, 0]) for row in range(len(heights_inches))]
    for one in axes:
        _tidy(one)
    return canvas, axes


def paired_panels(
    count: int, *, width_inches: float, heights_inches: tuple[float, float], columns: int = 3
) -> tuple[Canvas, list[tuple[Axes, Axes]]]:
    """A figure with `count` pairs of panels, a high one and a low one below it that shares its x axis."""
    across = min(count, columns)
    down = math.ceil(count / across)
    canvas = Canvas(figsize=(across * width_inches, down * sum(heights_inches)), dpi=DPI)
    canvas.set_layout_engine("constrained", w_pad=0.07, h_pad=0.03)
    grid = canvas.add_gridspec(2 * down, across, height_ratios=list(heights_inches) * down)
    pairs = []
    for index in range(count):
        row, column = divmod(index, across)
        upper = canvas.add_subplot(grid[2 * row, column])
        lower = canvas.add_subplot(grid[2 * row + 1, column], sharex=upper)
        _tidy(upper)
        _tidy(lower)
        upper.tick_params(labelbottom=False)
        pairs.append((upper, lower))
    return canvas, pairs


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, length=3)
    axes.set_axisbelow(True)


def short_name(name: str, *, width: int = 26) -> str:
    """A model's name on at most two lines of `width` characters, broken where folder names are joined."""
    if len(name) <= width:
        return name
    head, joint, tail = name.partition("__")
    lines = [head, tail] if joint else [name[:width], name[width:]]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def with_bounds(label: str) -> list[str]:
    """Columns of a value and its interval, which the report shows as one."""
    return [label, f"{label} low", f"{label} high"]


def bound_cells(found: Estimate) -> list[Cell]:
    """The cells of `with_bounds`."""
    return [cell(found.value), cell(found.low), cell(found.high)]


def told(found: Estimate, *, what: str = "") -> str:
    """A value with its interval in words, `what` before the interval."""
    if not math.isfinite(found.value):
        return "not defined"
    return f"{found.value:.3f} ({what}{found.low:.3f} to {found.high:.3f})"


def keyed(key: str, found: Estimate) -> dict[str, float | None]:
    """Headline numbers of a value: KEY, KEY.low and KEY.high."""
    low, high = cell(found.low), cell(found.high)
    return {key: cell(found.value), f"{key}.low": low, f"{key}.high": high}


def cell(value: Any) -> float | None:
    """A number as a table cell; None where it is not defined."""
    number = float(value)
    return number if math.isfinite(number) else None


def write_table(
    folder: Path, *, name: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]
) -> Table:
    """A table of findings, also written to FOLDER/NAME.csv."""
    file = f"{name}.csv"
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    write_case_table(folder / file, records, columns=columns)
    return Table(name=name, caption=caption, columns=tuple(columns), rows=tuple(map(tuple, rows)), data=file)


def write_figure(canvas: Canvas, data: Table, folder: Path) -> Figure:
    """A figure of findings: FOLDER/NAME.png, beside the table it was drawn from."""
    file = f"{data.name}.png"
    with atomic_path(folder / file) as temporary:
        canvas.savefig(temporary, **PICTURE)
    return Figure(name=data.name, caption=data.caption, image=file, data=data.data)
