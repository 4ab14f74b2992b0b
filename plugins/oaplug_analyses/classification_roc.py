"""ROC curves of the classification analysis, with bands from resampled subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from oaplug.core import metrics
from oaplug.core.bootstrap import subject_counts
from oaplug.core.target import grade_names
from oaplug_analyses.drawing import (
    BODY,
    GRID,
    HEADING,
    INK,
    LEGEND,
    MUTED,
    cell,
    panels,
    write_figure,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug_analyses.classification import Graded, TargetResult

    Floats = NDArray[np.float64]
    Curve = tuple[Floats, Floats]

FALSE_RATES = np.linspace(0, 1, 101)
"""False positive rates at which bands are given."""

BANDS_DRAWN = 2
"""Models up to which bands are drawn; of more they would hide each other, and are in the CSV alone."""


def roc_curves(result: TargetResult, folder: Path, colours: Mapping[str, str]) -> Figure:
    """The ROC curve of a binary target, or one panel per grade against the rest; AUC in the legends."""
    grades = roc_grades(result)
    bands = {
        (grade, graded.model): band(graded, grade, result) for grade in grades for graded in result.models
    }
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
        f"curve with its interval; the diagonal is chance. {_band_words(result)} A grade that no or every "
        "case has is left out.",
        columns=["grade", "model", "false_positive_rate", "true_positive_rate"],
        rows=rows,
    )
    _write_bands(result, bands, folder)
    listed = 0.3 + 0.16 * len(result.models)
    beside = 1.7 + 0.065 * max(len(graded.model) for graded in result.models)
    width, height = (3.4 + beside, 3.3) if len(grades) == 1 else (2.9, 2.95 + listed)
    canvas, axes = panels(len(grades), width_inches=width, height_inches=height)
    for one, grade in zip(axes, grades, strict=True):
        if len(result.models) <= BANDS_DRAWN:
            _shade(one, {g.model: bands[grade, g.model] for g in result.models}, colours)
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


def _shade(axes: Axes, bands: Mapping[str, Curve], colours: Mapping[str, str]) -> None:
    for model, (low, high) in bands.items():
        axes.fill_between(FALSE_RATES, low, high, color=colours[model], alpha=0.13, linewidth=0)


def band(graded: Graded, grade: int, result: TargetResult) -> Curve:
    """Lowest and highest true positive rate at FALSE_RATES: pointwise percentiles over resampled subjects."""
    positive, score = graded.predictions.truth == grade, graded.predictions.probabilities[:, grade]
    draws = subject_counts(result.subject_ids, resamples=result.resamples, seed=result.seed)
    rates = np.concatenate([metrics.true_rates(positive, score, FALSE_RATES, weights=w) for w in draws])
    known = rates[~np.isnan(rates[:, 0])]
    if not len(known):
        nothing = np.full(FALSE_RATES.shape, np.nan)
        return nothing, nothing
    low, high = np.quantile(known, [(1 - result.confidence) / 2, (1 + result.confidence) / 2], axis=0)
    return low, high


def _band_words(result: TargetResult) -> str:
    where = f"roc_bands_{result.target.name}.csv"
    what = (
        f"pointwise {result.confidence:.0%} bands of the true positive rate from {result.resamples} resamples"
    )
    if len(result.models) > BANDS_DRAWN:
        return f"The {what} of subjects are in {where}."
    return f"Shaded: {what} of subjects ({where})."


def _write_bands(result: TargetResult, bands: Mapping[tuple[int, str], Curve], folder: Path) -> None:
    names = grade_names(result.target)
    rows: list[Sequence[Cell]] = [
        [names[grade], model, float(rate), cell(low), cell(high)]
        for (grade, model), curve in bands.items()
        for rate, low, high in zip(FALSE_RATES, *curve, strict=True)
    ]
    columns = ["grade", "model", "false_positive_rate", "true_positive_low", "true_positive_high"]
    write_table(folder, name=f"roc_bands_{result.target.name}", caption="", columns=columns, rows=rows)


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
