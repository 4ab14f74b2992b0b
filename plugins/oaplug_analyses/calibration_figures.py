"""Reliability diagrams: how often what was promised came true, and how many cases were promised it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from oaplug.core.calibration import equal_width, scores_and_hits
from oaplug_analyses.drawing import (
    BODY,
    GRID,
    INK,
    LEGEND,
    MUTED,
    SMALL,
    cell,
    paired_panels,
    short_name,
    write_figure,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug.core.predictions import TargetPredictions
    from oaplug_analyses.calibration import Calibrated, CalibrationResult

    Floats = NDArray[np.float64]

BEFORE, AFTER, BAND = "#0072B2", "#D55E00", "#dbe3ea"
PREDICTED = "as predicted"


def reliability(result: CalibrationResult, folder: Path) -> Figure:
    """One diagram per model above the number of cases in each bin."""
    scaled = any(one.scaled is not None for one in result.models)
    after = "; orange: after temperature scaling" if scaled else ""
    data = write_table(
        folder,
        name=f"reliability_{result.target.name}",
        caption=f"{result.target.name}: how often {result.outcome} against {result.promise}, {result.size}, "
        f"{result.bins} bins of equal width (dots: mean probability and frequency of a bin, larger where it "
        f"has more cases; below: how many){after}. Grey: where 95% of calibrated models would lie "
        "bin by bin, cases taken as independent. The diagonal is perfect calibration.",
        columns=[
            *("model", "probabilities", "bin_low", "bin_high", "n", "mean_probability", "frequency"),
            *("calibrated_low", "calibrated_high"),
        ],
        rows=[row for one in result.models for row in _rows(result, one)],
    )
    columns = 2 if len(result.models) == 4 else 3
    canvas, pairs = paired_panels(
        len(result.models), width_inches=2.95, heights_inches=(2.75, 0.95), columns=columns
    )
    for (upper, lower), one in zip(pairs, result.models, strict=True):
        _diagram(upper, lower, result, one)
    handles = [
        Line2D([], [], color=BEFORE, marker="o", markersize=4.5, label=PREDICTED),
        *([Line2D([], [], color=AFTER, marker="o", markersize=4.5, label="with temperature")] * scaled),
        Patch(color=BAND, label="95% of calibrated models"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=3, **LEGEND)
    return write_figure(canvas, data, folder)


def _binned(answers: TargetPredictions, bins: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Edges (B+1,), cases (B,), mean score and frequency (B,) of the bins; NaN for empty ones."""
    scores, hits = scores_and_hits(answers.truth, answers.probabilities, answers.predicted)
    cut = equal_width(scores, count=bins)
    members = cut.members()
    size = members.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return cut.edges, size, scores @ members / size, hits.astype(np.float64) @ members / size


def _band(one: Calibrated, size: Floats) -> Floats:
    """Lowest and highest frequency (2,B) of the middle 95% of calibrated models."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.quantile(one.counts, [0.025, 0.975], axis=0) / size)


def _rows(result: CalibrationResult, one: Calibrated) -> list[Sequence[Cell]]:
    edges, size, score, frequency = _binned(one.predictions, result.bins)
    low, high = _band(one, size)
    rows = _bin_rows(one.model, PREDICTED, (edges, size, score, frequency, low, high))
    if one.scaled is not None:
        edges, size, score, frequency = _binned(one.scaled, result.bins)
        blank = np.full(result.bins, np.nan)
        label = f"temperature {one.temperature.value:.4f}"
        rows += _bin_rows(one.model, label, (edges, size, score, frequency, blank, blank))
    return rows


def _bin_rows(model: str, label: str, columns: Sequence[Floats]) -> list[Sequence[Cell]]:
    edges, size, *values = columns
    return [
        [model, label, cell(edges[b]), cell(edges[b + 1]), int(size[b]), *(cell(v[b]) for v in values)]
        for b in range(len(size))
    ]


def _diagram(upper: Axes, lower: Axes, result: CalibrationResult, one: Calibrated) -> None:
    edges, size, score, frequency = _binned(one.predictions, result.bins)
    low, high = _band(one, size)
    there = size > 0
    width = edges[1] - edges[0]
    upper.bar(edges[:-1][there], (high - low)[there], width, low[there], align="edge", color=BAND, zorder=0)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    if one.scaled is not None:
        _dots(upper, _binned(one.scaled, result.bins), colour=AFTER)
    _dots(upper, (edges, size, score, frequency), colour=BEFORE)
    upper.set_xlim(-0.04, 1.04)
    upper.set_ylim(-0.04, 1.04)
    upper.grid(visible=True, color=GRID)
    found = float(one.estimates["ece"].value)
    after = f", {float(one.scaled_estimates['ece'].value):.3f} with temperature" if one.scaled else ""
    upper.set_title(f"{short_name(one.model)}\nECE {found:.3f}{after}", fontsize=BODY, color=INK)
    upper.set_ylabel("frequency", fontsize=BODY, color=INK)
    lower.bar(edges[:-1], size, width, align="edge", color=MUTED, edgecolor="white", linewidth=0.6)
    for place, count in zip(edges[:-1][there] + width / 2, size[there], strict=True):
        lower.annotate(
            f"{count:.0f}",
            (place, count),
            (0, 1),
            textcoords="offset points",
            fontsize=SMALL - 1.5,
            ha="center",
        )
    lower.set_ylim(0, 1.25 * max(size.max(initial=1.0), 1.0))
    lower.set_ylabel("cases", fontsize=BODY, color=INK)
    lower.set_xlabel(result.promise, fontsize=BODY, color=INK)


def _dots(axes: Axes, binned: Sequence[Floats], *, colour: str) -> None:
    """A dot per bin whose area grows with its cases, on a thin line."""
    _, size, score, frequency = binned
    there = size > 0
    axes.plot(score[there], frequency[there], "-", color=colour, linewidth=0.9, alpha=0.45)
    areas = 9 + 110 * size[there] / size.sum()
    axes.scatter(score[there], frequency[there], s=areas, color=colour, linewidths=0.5, edgecolors="white")
