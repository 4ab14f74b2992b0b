"""Figures of the hierarchy analysis: both scores of every case, and agreement by true grade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from oaplug.core.target import MISSING, grade_names
from oaplug_analyses.drawing import (
    BODY,
    GRID,
    INK,
    LEGEND,
    MUTED,
    TITLE,
    grade_colours,
    panels,
    short_name,
    write_figure,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from oaplug.core.findings import Cell, Figure, Table
    from oaplug_analyses.hierarchy import BothAnswers, Linked, LinkResult


def scores(result: LinkResult, folder: Path) -> Figure:
    """One panel per model: the coarse answer's probability against the sum over fine grades, case by case."""
    data = write_table(
        folder,
        name=f"hierarchy_scores_{result.coarse.name}",
        caption=f"{result.coarse.name}: probability that the model gives by itself against the sum of its "
        f"probabilities for {result.rule}, {result.size}, coloured by the true grade of {result.fine.name} "
        "(grey: unknown). In the shaded quarters the two lie on different sides of one half; rings mark "
        f"cases whose {result.coarse.name} contradicts the most probable grade.",
        columns=[
            *("model", "case_id", f"true_{result.fine.name}", "probability_head", "probability_sum"),
            *(f"predicted_{result.coarse.name}", f"predicted_{result.fine.name}", "agree"),
        ],
        rows=[row for linked in result.models for row in _case_rows(result, linked)],
    )
    count = len(result.models)
    canvas, axes = panels(count, width_inches=2.95, height_inches=3.1, columns=2 if count == 4 else 3)
    for one, linked in zip(axes, result.models, strict=True):
        _scatter(one, linked.answers)
        share = float(linked.estimates["consistency"].value)
        one.set_title(f"{short_name(linked.model)}\nconsistency {share:.2f}", fontsize=BODY, color=INK)
        one.set_xlabel(f"sum of p({result.rule})", fontsize=BODY, color=INK)
        one.set_ylabel(f"p({result.coarse.name}) of its own", fontsize=BODY, color=INK)
    _name_grades(canvas, result)
    return write_figure(canvas, data, folder)


def _case_rows(result: LinkResult, linked: Linked) -> list[Sequence[Cell]]:
    answers = linked.answers
    fine, coarse = grade_names(result.fine), grade_names(result.coarse)
    return [
        [
            *(linked.model, case_id, None if truth == MISSING else fine[truth], float(own), float(summed)),
            *(coarse[called], fine[grade], int(agree)),
        ]
        for case_id, truth, own, summed, called, grade, agree in zip(
            result.case_ids,
            answers.fine.truth,
            answers.score,
            answers.summed,
            answers.coarse.predicted,
            answers.fine.predicted,
            answers.agree,
            strict=True,
        )
    ]


def _scatter(axes: Axes, answers: BothAnswers) -> None:
    for corner in ((0.0, 0.5), (0.5, 0.0)):
        axes.add_patch(Rectangle(corner, 0.5, 0.5, color=GRID, alpha=0.6, linewidth=0, zorder=0))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    colours = np.array([*grade_colours(len(answers.fine.target.grades)), "#c3cad1"])
    spots: dict[str, Any] = {"s": 20, "alpha": 0.9, "linewidths": 0.4, "edgecolors": "white"}
    axes.scatter(answers.summed, answers.score, color=list(colours[answers.fine.truth]), **spots)
    apart = ~answers.agree
    axes.scatter(
        answers.summed[apart], answers.score[apart], s=52, facecolors="none", edgecolors=INK, linewidths=0.9
    )
    axes.set_aspect("equal")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)


def _name_grades(canvas: Canvas, result: LinkResult) -> None:
    names = grade_names(result.fine)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
    handles = [Line2D([], [], color=colour, **dot) for colour in grade_colours(len(names))]
    canvas.legend(
        handles,
        names,
        title=f"true {result.fine.name}",
        loc="outside lower center",
        ncols=min(len(names), 8),
        **LEGEND,
    )


def by_grade(result: LinkResult, data: Table, folder: Path, colours: Mapping[str, str]) -> Figure:
    """Agreement of both answers among the cases of each true grade, one dot with its interval per model."""
    names = grade_names(result.fine)
    canvas, (axes,) = panels(1, width_inches=2.2 + 0.9 * len(names), height_inches=2.7)
    for place, linked in enumerate(result.models):
        shift = 0.7 * ((place + 0.5) / len(result.models) - 0.5)
        _shares(axes, linked, shift=shift, colour=colours[linked.model])
    counts = [int((result.models[0].answers.fine.truth == index).sum()) for index in range(len(names))]
    labels = [f"{name}\nn = {count}" for name, count in zip(names, counts, strict=True)]
    axes.set_xticks(range(len(names)), labels)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(f"true grade of {result.fine.name}", fontsize=BODY, color=INK)
    axes.set_ylabel("consistency", fontsize=BODY, color=INK)
    axes.set_title(f"{result.coarse.name} against {result.rule}", fontsize=TITLE, color=INK, loc="left")
    axes.grid(visible=True, axis="y", color=GRID)
    handles = [Line2D([], [], color=colours[one.model], marker="o", markersize=5) for one in result.models]
    models = [short_name(one.model, width=40) for one in result.models]
    axes.legend(handles, models, loc="center left", bbox_to_anchor=(1.02, 0.5), **LEGEND)
    return write_figure(canvas, data, folder)


def _shares(axes: Axes, linked: Linked, *, shift: float, colour: str) -> None:
    found = linked.estimates["by_grade"]
    for index in np.flatnonzero(~np.isnan(found.value)):
        place, one = index + shift, found.at(int(index))
        axes.plot([place, place], [one.low, one.high], color=colour, linewidth=2.0, solid_capstyle="round")
        axes.plot([place], [one.value], "o", color=colour, markersize=5.5, markeredgecolor="white")
