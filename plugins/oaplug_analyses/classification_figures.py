"""Figures of the classification analysis: model comparison, confusion matrices, ROC curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from oaplug.core import metrics
from oaplug.core.target import grade_names
from oaplug_analyses.drawing import (
    BODY,
    GRID,
    INK,
    MUTED,
    SMALL,
    TITLE,
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
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell, Figure
    from oaplug_analyses.classification import Graded, TargetResult

    Floats = NDArray[np.float64]
    Curve = tuple[Floats, Floats]

HEADING: dict[str, Any] = {"fontsize": TITLE, "color": INK, "loc": "left"}
LEGEND: dict[str, Any] = {
    "fontsize": SMALL,
    "title_fontsize": SMALL,
    "labelcolor": INK,
    "handlelength": 1.4,
    "frameon": False,
}


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


def roc_curves(result: TargetResult, folder: Path, colours: Mapping[str, str]) -> Figure:
    """The ROC curve of a binary target, or one panel per grade against the rest; AUC in the legends."""
    grades = roc_grades(result)
    curves = {(grade, graded.model): _curve(graded, grade) for grade in grades for graded in result.models}
    names = grade_names(result.target)
    rows: list[Sequence[Cell]] = [
        [names[grade], model, float(false), float(true)]
        for (grade, model), curve in curves.items()
        for false, true in zip(*curve, strict=True)
    ]
    rest = ", one grade against the rest" if len(names) > 2 else ""
    data = write_table(
        folder,
        name=f"roc_{result.target.name}",
        caption=f"{result.target.name}: ROC curves{rest}, of {result.size}. Legends give the area under each "
        "curve with its interval; the diagonal is chance. A grade that no or every case has is left out.",
        columns=["grade", "model", "false_positive_rate", "true_positive_rate"],
        rows=rows,
    )
    listed = 0.3 + 0.16 * len(result.models)
    beside = 1.7 + 0.065 * max(len(graded.model) for graded in result.models)
    width, height = (3.4 + beside, 3.3) if len(grades) == 1 else (2.9, 2.95 + listed)
    canvas, axes = panels(len(grades), width_inches=width, height_inches=height)
    for one, grade in zip(axes, grades, strict=True):
        _roc_panel(one, [(g, curves[grade, g.model]) for g in result.models], colours, grade=grade)
        one.set_title(
            f"{result.target.name} = {names[grade]}" if len(names) > 2 else result.target.name, **HEADING
        )
    if len(grades) == 1:
        _list_areas(axes[0], result, named=True, loc="center left", bbox_to_anchor=(1.04, 0.5))
    else:
        for one in axes:
            _list_areas(one, result, named=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        _name_models(canvas, result, colours)
    return write_figure(canvas, data, folder)


def roc_grades(result: TargetResult) -> list[int]:
    """Grades that have a curve: the positive one of two, else all; those without both classes have none."""
    count = len(result.target.grades)
    truth = result.models[0].predictions.truth
    return [g for g in (range(count) if count > 2 else (1,)) if 0 < (truth == g).sum() < len(truth)]


def _curve(graded: Graded, grade: int) -> Curve:
    return metrics.roc_curve(graded.predictions.truth == grade, graded.predictions.probabilities[:, grade])


def _roc_panel(
    axes: Axes, curves: Sequence[tuple[Graded, Curve]], colours: Mapping[str, str], *, grade: int
) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    for graded, (false, true) in curves:
        area = graded.estimates["grade_auc"].at(grade)
        label = f"{area.value:.2f} ({area.low:.2f} to {area.high:.2f})"
        axes.plot(false, true, color=colours[graded.model], linewidth=1.6, label=label)
    axes.set_aspect("equal")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("false positive rate", fontsize=BODY, color=INK)
    axes.set_ylabel("true positive rate", fontsize=BODY, color=INK)
    axes.grid(visible=True, color=GRID)


def _list_areas(axes: Axes, result: TargetResult, *, named: bool, **place: Any) -> None:
    """The AUC of every curve of a panel, beside or below it so that it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    if named:
        labels = [f"{g.model}: {area}" for g, area in zip(result.models, labels, strict=True)]
    axes.legend(handles, labels, title="AUC", alignment="left", borderaxespad=0.0, **LEGEND, **place)


def _name_models(canvas: Canvas, result: TargetResult, colours: Mapping[str, str]) -> None:
    handles = [Line2D([], [], color=colours[g.model]) for g in result.models]
    names = [g.model for g in result.models]
    canvas.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), **LEGEND)
