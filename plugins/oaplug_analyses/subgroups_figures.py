"""The figure of the subgroups analysis: the headline metric of every group, and against the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from oaplug_analyses.drawing import (
    BODY,
    GRID,
    INK,
    LEGEND,
    MUTED,
    SMALL,
    bound_cells,
    panels,
    write_figure,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell, Figure
    from oaplug_analyses.subgroups import GroupResult

LINE_INCHES = 0.115
"""Height of one model's line in a group."""


def forest(result: GroupResult, folder: Path, colours: Mapping[str, str]) -> Figure:
    """Two panels, the value and the difference to the rest, with a block of lines for every group."""
    metric, label = result.headline, result.label(result.headline)
    data = write_table(
        folder,
        name=f"subgroup_forest_{result.target.name}",
        caption=f"{result.target.name}: {label} of every group (left) and its difference to the cases in "
        f"the other groups of the same covariate (right); {result.interval}. Open dots: fewer than "
        f"{result.small} cases, or a grade is missing.",
        columns=[
            *("covariate", "group", "n", "model", "value", "low", "high"),
            *("difference", "difference_low", "difference_high"),
        ],
        rows=_rows(result),
    )
    places = _places(result)
    height = 1.1 + LINE_INCHES * (max(places) + len(result.models) + 1)
    canvas, axes = panels(2, width_inches=4.1, height_inches=height, columns=2)
    for one, sort in zip(axes, ("values", "differences"), strict=True):
        for shift, model in enumerate(result.models):
            _draw(one, getattr(model, sort)[metric], result, places, shift, colours[model.model])
        _arrange(one, result, places)
    axes[1].axvline(0, color=MUTED, linewidth=0.9)
    axes[1].tick_params(labelleft=False)
    axes[0].set_xlabel(label, fontsize=BODY, color=INK)
    axes[1].set_xlabel(f"{label}, group minus rest", fontsize=BODY, color=INK)
    handles = [Line2D([], [], color=colours[one.model], marker="o", markersize=5) for one in result.models]
    names = [one.model for one in result.models]
    canvas.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), **LEGEND)
    return write_figure(canvas, data, folder)


def _rows(result: GroupResult) -> list[Sequence[Cell]]:
    metric = result.headline
    return [
        [
            *(group.covariate, group.name, len(group.rows), one.model),
            *bound_cells(one.values[metric].at(index)),
            *bound_cells(one.differences[metric].at(index)),
        ]
        for index, group in enumerate(result.groups)
        for one in result.models
    ]


def _places(result: GroupResult) -> list[float]:
    """Where the lines of each group begin, in lines: a gap after a group, a larger one after a covariate."""
    places, line, before = [], 0.0, result.groups[0].covariate
    for group in result.groups:
        line += 1.6 if group.covariate != before else 0.0
        places.append(line)
        line, before = line + len(result.models) + 0.9, group.covariate
    return places


def _draw(
    axes: Axes, found: Estimate, result: GroupResult, places: Sequence[float], shift: int, colour: str
) -> None:
    for index, place in enumerate(places):
        one, row = found.at(index), place + shift
        if np.isnan(one.value):
            continue
        axes.plot([one.low, one.high], [row, row], color=colour, linewidth=1.8, solid_capstyle="round")
        face = "white" if result.note(index) else colour
        axes.plot([one.value], [row], "o", color=colour, markersize=4.6, markerfacecolor=face)


def _arrange(axes: Axes, result: GroupResult, places: Sequence[float]) -> None:
    middle = (len(result.models) - 1) / 2
    names = [f"{group.covariate} {group.name}  (n = {len(group.rows)})" for group in result.groups]
    axes.set_yticks([place + middle for place in places], names)
    axes.set_ylim(max(places) + len(result.models) - 0.2, -0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, axis="x", color=GRID)
    axes.tick_params(axis="y", length=0, labelsize=SMALL)
