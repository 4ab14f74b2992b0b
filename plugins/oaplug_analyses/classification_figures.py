"""Figures of the classification analysis: model comparison and confusion matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from oaplug.core import metrics
from oaplug.core.target import grade_names
from oaplug_analyses.drawing import (
    BODY,
    GRID,
    HEADING,
    INK,
    MUTED,
    SMALL,
    cell,
    panels,
    short_name,
    write_figure,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell, Figure
    from oaplug_analyses.classification import Graded, TargetResult

    Floats = NDArray[np.float64]


def comparison(result: TargetResult, folder: Path, colours: Mapping[str, str]) -> Figure:
    """One panel per metric, one dot with its interval per model."""
    data = write_table(
        folder,
        name=f"comparison_{result.target.name}",
        caption=f"{result.target.name}: dots are the metrics of each model on {result.size}, bars their "
        f"{result.interval}. Overlapping bars do not mean that two models are equal: they saw the same "
        "cases, so compare them in pairs.",
        columns=["metric", "model", "n", "resamples", "value", "low", "high", "undefined_resamples"],
        rows=[
            _metric_row(result, graded, metric) for metric in result.metric_names for graded in result.models
        ],
    )
    across = 3 if len(result.metric_names) > 4 else len(result.metric_names)
    height = 0.75 + 0.34 * len(result.models)
    canvas, axes = panels(
        len(result.metric_names), width_inches=8.7 / across, height_inches=height, columns=across
    )
    for index, (one, metric) in enumerate(zip(axes, result.metric_names, strict=True)):
        _dots(
            one, [(g.model, g.estimates[metric]) for g in result.models], colours, named=index % across == 0
        )
        one.set_xlim(*_limits(result, metric))
        better = ", lower is better" if metric == "mae" else ""
        one.set_title(result.label(metric) + better, **HEADING)
    return write_figure(canvas, data, folder)


def _metric_row(result: TargetResult, graded: Graded, metric: str) -> list[Cell]:
    found = graded.estimates[metric]
    values = [cell(found.value), cell(found.low), cell(found.high), int(found.undefined)]
    return [metric, graded.model, len(result.subject_ids), result.resamples, *values]


def _limits(result: TargetResult, metric: str) -> tuple[float, float]:
    """One scale for all metrics that end at 1, so that panels can be compared; errors start at 0."""
    shown = {metric} if metric == "mae" else set(result.metric_names) - {"mae"}
    ends = [v for g in result.models for m in shown for v in (g.estimates[m].low, g.estimates[m].high)]
    known = [float(end) for end in ends if np.isfinite(end)]
    if metric == "mae":
        return 0.0, 1.08 * max([*known, 0.1])
    return math.floor(10 * min([*known, 0.9])) / 10 - 0.02, 1.02


def _dots(
    axes: Axes, estimates: Sequence[tuple[str, Estimate]], colours: Mapping[str, str], *, named: bool
) -> None:
    centred: dict[str, Any] = {"ha": "center", "fontsize": SMALL}
    for row, (model, found) in enumerate(estimates):
        if np.isnan(found.value):
            middle = axes.get_yaxis_transform()
            axes.text(0.5, row, "not defined", transform=middle, color=MUTED, va="center", **centred)
            continue
        colour = colours[model]
        axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([found.value], [row], "o", color=colour, markersize=6, markeredgecolor="white")
        above, text = (0, 5), f"{found.value:.2f}"
        axes.annotate(text, (found.value, row), above, textcoords="offset points", color=INK, **centred)
    axes.set_yticks(range(len(estimates)), [short_name(model) if named else "" for model, _ in estimates])
    axes.set_ylim(len(estimates) - 0.5, -0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)


def confusions(result: TargetResult, folder: Path) -> Figure:
    """One confusion matrix per model: counts, and the percentage of each true grade."""
    names = grade_names(result.target)
    matrices = [
        metrics.confusion(g.predictions.truth, g.predictions.predicted, grades=len(names))
        for g in result.models
    ]
    shares = [_row_percent(matrix) for matrix in matrices]
    rows: list[Sequence[Cell]] = [
        [graded.model, names[t], names[p], int(matrix[t, p]), cell(share[t, p])]
        for graded, matrix, share in zip(result.models, matrices, shares, strict=True)
        for t in range(len(names))
        for p in range(len(names))
    ]
    data = write_table(
        folder,
        name=f"confusion_{result.target.name}",
        caption=f"{result.target.name}: confusion matrices of {result.size}. Rows are true grades, columns "
        "predicted ones; each cell gives the count and the percentage of its row.",
        columns=["model", "true", "predicted", "count", "row_percent"],
        rows=rows,
    )
    side = 1.1 + 0.42 * max(len(names), 3)
    canvas, axes = panels(
        len(matrices), width_inches=side + 0.2, height_inches=side, columns=2 if len(matrices) == 4 else 3
    )
    for one, graded, matrix, share in zip(axes, result.models, matrices, shares, strict=True):
        _heat(one, matrix, share, names=names)
        one.set_title(short_name(graded.model), fontsize=BODY, color=INK)
        one.set_xlabel(f"predicted {result.target.name}", fontsize=BODY, color=INK)
        one.set_ylabel(f"true {result.target.name}", fontsize=BODY, color=INK)
    return write_figure(canvas, data, folder)


def _row_percent(matrix: Floats) -> Floats:
    total = matrix.sum(axis=1, keepdims=True)
    percent: Floats = np.divide(100.0 * matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    return percent


def _heat(axes: Axes, matrix: Floats, share: Floats, *, names: Sequence[str]) -> None:
    axes.imshow(np.nan_to_num(share), cmap="Blues", vmin=0, vmax=115)
    for (row, column), count in np.ndenumerate(matrix):
        percent = share[row, column]
        text = f"{count:.0f}" + ("" if math.isnan(percent) else f"\n{percent:.0f}%")
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=SMALL,
            color="white" if percent > 70 else INK,
        )
    axes.set_xticks(range(len(names)), list(names))
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
