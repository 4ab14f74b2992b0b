"""The forest plot of paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from oaplug_analyses.drawing import (
    BODY,
    GRID,
    INK,
    MUTED,
    SMALL,
    short_name,
    stacked,
    write_figure,
)
from oaplug_analyses.paired_tables import p_text, short_metric, signed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from oaplug.core.findings import Figure, Table
    from oaplug_analyses.paired_comparisons import Comparison

WIDTH_INCHES, LINE_INCHES, AROUND_INCHES = 7.6, 0.23, 1.1
LONGEST_NAME = 56
TEXT_COLUMNS = {"difference (interval)": 1.03, "p": 1.44, "q": 1.575}
"""Where the columns of numbers begin, in widths of the panel."""


def forest(
    comparisons: Sequence[Comparison],
    data: Table,
    folder: Path,
    *,
    grades: Mapping[str, int],
    colours: Mapping[str, str],
    called_below: float,
) -> Figure:
    """One panel per target, and one for errors in grades; filled dots have a q below `called_below`."""
    panels: dict[tuple[str, bool], list[Comparison]] = defaultdict(list)
    for one in comparisons:
        panels[one.target, one.metric == "mae"].append(one)
    lines = [_lines(rows, grades=grades) for rows in panels.values()]
    heights = [LINE_INCHES * len(found) for found in lines]
    canvas, axes = stacked(heights, around_inches=AROUND_INCHES, width_inches=WIDTH_INCHES)
    for panel, ((target, is_error), rows), found in zip(axes, panels.items(), lines, strict=True):
        _draw(panel, found, colours=colours, called_below=called_below)
        alike = (c for key, several in panels.items() if key[1] == is_error for c in several)
        panel.set_xlim(*_limits(alike))
        better = "grades; left of 0 is better" if is_error else "right of 0 is better"
        panel.set_xlabel(f"difference, model minus baseline ({better})", fontsize=BODY, color=INK)
        panel.set_title(_title(target, rows), fontsize=BODY, linespacing=1.4, color=INK, loc="left", pad=16)
    return write_figure(canvas, data, folder)


def _title(target: str, rows: Sequence[Comparison]) -> str:
    """Target and size, and below them the names that all rows share."""
    models, baselines = {one.model for one in rows}, {one.baseline for one in rows}
    size = f"{target}, {rows[0].cases} cases of {rows[0].subjects} subjects"
    if len(baselines) > 1:
        return size
    model = _in_one_line(*models) if len(models) == 1 else "models"
    return f"{size}\n{model} against {_in_one_line(*baselines)}"


def _in_one_line(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _lines(rows: Sequence[Comparison], *, grades: Mapping[str, int]) -> list[tuple[str, Comparison | None]]:
    """Lines of a panel from the top: a label and a comparison, or a metric's heading above several."""
    by_metric: dict[str, list[Comparison]] = defaultdict(list)
    for one in rows:
        by_metric[short_metric(one, grades=grades)].append(one)
    one_baseline = len({one.baseline for one in rows}) == 1
    lines: list[tuple[str, Comparison | None]] = []
    for metric, group in by_metric.items():
        if len(group) == 1:
            lines.append((metric, group[0]))
            continue
        lines.append((metric, None))
        lines += [(c.model if one_baseline else f"{c.model} − {c.baseline}", c) for c in group]
    return lines


def _draw(
    axes: Axes,
    lines: Sequence[tuple[str, Comparison | None]],
    *,
    colours: Mapping[str, str],
    called_below: float,
) -> None:
    axes.axvline(0, color=MUTED, linewidth=0.9)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": SMALL}
    for heading, place in TEXT_COLUMNS.items():
        axes.text(place, -0.9, heading, color=MUTED, **beside)
    for row, (_, one) in enumerate(lines):
        if one is not None:
            _draw_line(axes, one, row=row, colour=colours[one.model], called=one.q_value < called_below)
            for text, place in zip(_numbers(one), TEXT_COLUMNS.values(), strict=True):
                axes.text(place, row, text, color=INK, **beside)
    axes.set_yticks(range(len(lines)), [short_name(label, width=40) for label, _ in lines])
    for tick, (_, one) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if one is None else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)


def _numbers(one: Comparison) -> tuple[str, str, str]:
    found = one.difference
    change = f"{signed(found.delta)} ({signed(found.low)} to {signed(found.high)})"
    shown = change if math.isfinite(found.delta) else "not defined"
    return shown, p_text(one.p_value), p_text(one.q_value)


def _draw_line(axes: Axes, one: Comparison, *, row: int, colour: str, called: bool) -> None:
    found = one.difference
    axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2.0, solid_capstyle="round")
    face = colour if called else "white"
    axes.plot([found.delta], [row], "o", color=colour, markersize=6, markerfacecolor=face)


def _limits(comparisons: Iterable[Comparison]) -> tuple[float, float]:
    """Room for every interval and for 0, the same in all panels of one unit."""
    ends = [end for c in comparisons for end in (c.difference.low, c.difference.high)]
    known = [end for end in ends if math.isfinite(end)]
    low, high = min([0.0, *known]), max([0.0, *known])
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin
