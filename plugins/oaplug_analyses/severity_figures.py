"""Figures of the severity axis: its plane, cases along it, neighbours, variance, alignment of models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from oaplug.core.axis import centroids
from oaplug.core.target import MISSING, grade_names
from oaplug_analyses.drawing import (
    BODY,
    GRID,
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
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug.core.target import Target
    from oaplug_analyses.severity_measures import FoldAxis

    Floats = NDArray[np.float64]

MOST_PANELS = 12
COMPONENTS = 10
PANEL_INCHES = 2.75
DOT: dict[str, Any] = {"s": 15, "linewidths": 0.4}
_THIN: dict[str, Any] = {"color": INK, "linewidth": 0.9}
BOX: dict[str, Any] = {
    "widths": 0.62,
    "showfliers": False,
    "patch_artist": True,
    "boxprops": {"facecolor": "none", "edgecolor": INK, "linewidth": 0.9},
    "medianprops": {"color": INK, "linewidth": 1.6},
    "whiskerprops": _THIN,
    "capprops": _THIN,
    "manage_ticks": False,
    "zorder": 3,
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is drawn: axes of folds, and the cases with their grades (N,) of one target."""

    folds: tuple[FoldAxis, ...]
    target: Target
    truth: NDArray[np.int64]
    case_ids: tuple[str, ...]

    @property
    def drawn(self) -> tuple[FoldAxis, ...]:
        """All folds where they have room in a figure, else the first of each model."""
        if len(self.folds) <= MOST_PANELS:
            return self.folds
        first = {fold.model: fold for fold in reversed(self.folds)}
        return tuple(fold for fold in self.folds if first[fold.model] is fold)[:MOST_PANELS]

    @property
    def note(self) -> str:
        """What a caption says of folds that are not drawn."""
        return "" if len(self.drawn) == len(self.folds) else " The first fold of each model is drawn."

    @cached_property
    def colours(self) -> list[str]:
        """A colour per grade, dark to light with severity."""
        count = len(self.target.grades)
        return [to_hex(colormaps["viridis"](0.02 + 0.93 * index / (count - 1))) for index in range(count)]

    def grade(self, row: int) -> str | None:
        """A case's grade as text; None where it is unknown."""
        index = int(self.truth[row])
        return None if index == MISSING else grade_names(self.target)[index]

    def case_rows(self, fold: FoldAxis, *columns: Floats) -> list[Sequence[Cell]]:
        """Rows of a table: model, fold, case, grade, and values of `columns` (N,)."""
        return [
            [fold.model, fold.fold, name, self.grade(row), *(float(column[row]) for column in columns)]
            for row, name in enumerate(self.case_ids)
        ]

    def centroids(self, values: Floats) -> Floats:
        """Mean (K,) of `values` (N,) per grade; NaN where a grade has no case."""
        known = self.truth != MISSING
        return centroids(values[known], self.truth[known], grades=len(self.target.grades))


def _titled(
    shown: Shown, *, height_inches: float = PANEL_INCHES
) -> tuple[Canvas, list[tuple[Axes, FoldAxis]]]:
    """A panel for each fold that is drawn, with its name above."""
    count = len(shown.drawn)
    columns = 2 if count == 4 else 3
    canvas, axes = panels(count, width_inches=PANEL_INCHES, height_inches=height_inches, columns=columns)
    several = len(shown.folds) > len({fold.model for fold in shown.folds})
    for one, fold in zip(axes, shown.drawn, strict=True):
        name = f"{fold.model}, fold {fold.fold}" if several else fold.model
        one.set_title(short_name(name), fontsize=BODY, color=INK, loc="left")
    return canvas, list(zip(axes, shown.drawn, strict=True))


def _scatter(axes: Axes, shown: Shown, x: Floats, y: Floats) -> None:
    """Cases as dots in the colour of their grade, those of unknown grade hollow."""
    unknown = shown.truth == MISSING
    axes.scatter(x[unknown], y[unknown], facecolors="none", edgecolors=MUTED, zorder=2, **DOT)
    known = np.flatnonzero(~unknown)
    colours = [shown.colours[grade] for grade in shown.truth[known]]
    axes.scatter(x[known], y[known], c=colours, edgecolors="white", zorder=3, **DOT)


def _name_grades(canvas: Canvas, shown: Shown) -> None:
    """A legend of grades below all panels."""
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5}
    handles = [Line2D([], [], color=colour, **style) for colour in shown.colours]
    names = [f"{shown.target.name} {name}" for name in grade_names(shown.target)]
    if (shown.truth == MISSING).any():
        handles.append(Line2D([], [], markerfacecolor="none", markeredgecolor=MUTED, **style))
        names.append("unknown")
    canvas.legend(
        handles, names, loc="outside lower center", ncols=6, fontsize=SMALL, labelcolor=INK, frameon=False,
        handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip


def plane(shown: Shown, folder: Path) -> Figure:
    """Test cases in the plane of the first two components, grades' centroids joined in order."""
    rows = [row for fold in shown.folds for row in shown.case_rows(fold, fold.test[:, 0], fold.test[:, 1])]
    data = write_table(
        folder,
        name="plane",
        caption="Test cases in the plane of the first two principal components of the training features, in "
        "deviations of the training cases along the first. The line joins the centroids of "
        f"{shown.target.name} grades in their order.{shown.note}",
        columns=["model", "fold", "case_id", shown.target.name, "pc1", "pc2"],
        rows=rows,
    )
    canvas, axes = _titled(shown)
    for one, fold in axes:
        x, y = fold.test.T
        _scatter(one, shown, x, y)
        _join_centroids(one, shown, x, y)
        share = 100 * np.nan_to_num(fold.axis.explained)[:2]
        one.set_xlabel(f"PC1 ({share[0]:.0f}% of variance)", fontsize=BODY, color=INK)
        second = f" ({share[1]:.0f}%)" if share.size > 1 else ""
        one.set_ylabel(f"PC2{second}", fontsize=BODY, color=INK)
        one.grid(visible=True, color=GRID)
    _name_grades(canvas, shown)
    return write_figure(canvas, data, folder)


def _join_centroids(axes: Axes, shown: Shown, x: Floats, y: Floats) -> None:
    across, up = shown.centroids(x), shown.centroids(y)
    there = np.flatnonzero(~np.isnan(across))
    axes.plot(across[there], up[there], color=INK, linewidth=1.3, zorder=4)
    colours = [shown.colours[grade] for grade in there]
    axes.scatter(across[there], up[there], s=62, c=colours, edgecolors=INK, linewidths=1.1, zorder=5)


def along(shown: Shown, folder: Path) -> Figure:
    """PC1 by grade: boxes, and every case beside its like."""
    rows = [row for fold in shown.folds for row in shown.case_rows(fold, fold.test[:, 0])]
    data = write_table(
        folder,
        name="along",
        caption=f"Test cases along the axis by {shown.target.name} grade: every case, boxes from quartile to "
        "quartile with the median, whiskers to the farthest case within 1.5 boxes. The axis is turned so "
        f"that it rises with the grades of the training cases.{shown.note}",
        columns=["model", "fold", "case_id", shown.target.name, "pc1"],
        rows=rows,
    )
    canvas, axes = _titled(shown)
    for one, fold in axes:
        _boxes(one, shown, fold.test[:, 0])
        one.set_xlabel(f"{shown.target.name} grade", fontsize=BODY, color=INK)
        one.set_ylabel("PC1 (deviations)", fontsize=BODY, color=INK)
    return write_figure(canvas, data, folder)


def _boxes(axes: Axes, shown: Shown, values: Floats) -> None:
    low, high = float(values.min()), float(values.max())
    for grade, colour in enumerate(shown.colours):
        of_grade = values[shown.truth == grade]
        if of_grade.size == 0:
            continue
        axes.boxplot(of_grade, positions=[grade], **BOX)
        offsets = swarm(of_grade, step=(high - low) / 40 or 1.0, width=0.8)
        axes.scatter(grade + offsets, of_grade, color=colour, edgecolors="white", zorder=2, **DOT)
    axes.set_xticks(range(len(shown.target.grades)), list(grade_names(shown.target)))
    axes.grid(visible=True, axis="y", color=GRID)


def swarm(values: Floats, *, step: float, width: float) -> Floats:
    """Offsets (n,) that spread values (n,) within a `step` side by side, over at most `width`."""
    offsets = np.zeros(values.size)
    bins = np.floor((values - values.min(initial=0.0)) / step).astype(int)
    fullest = max(np.bincount(bins).max(initial=1), 1)
    gap = min(0.13, width / fullest)
    for index in np.unique(bins):
        rows = np.flatnonzero(bins == index)
        rows = rows[np.argsort(values[rows], kind="stable")]
        places = np.arange(rows.size) - (rows.size - 1) / 2
        offsets[rows] = gap * places
    return offsets


def neighbours(shown: Shown, folder: Path, *, perplexity: float, seed: int) -> list[Figure]:
    """t-SNE of the standardised test features; nothing for fewer than five cases."""
    count = len(shown.case_ids)
    drawn = [fold for fold in shown.drawn if np.ptp(fold.features, axis=0).max(initial=0) > 0]
    if count < 5 or len(drawn) < len(shown.drawn):
        return []
    perplexity = min(perplexity, (count - 1) / 3)
    placed = [
        _place(fold.axis.standardise(fold.features), perplexity=perplexity, seed=seed) for fold in drawn
    ]
    data = write_table(
        folder,
        name="neighbours",
        caption="t-SNE (van der Maaten and Hinton 2008) of the test cases' standardised features, perplexity "
        f"{perplexity:.3g}, begun from principal components: near cases have like features; distances "
        f"between groups and the sizes of groups mean nothing.{shown.note}",
        columns=["model", "fold", "case_id", shown.target.name, "x", "y"],
        rows=[row for fold, xy in zip(drawn, placed, strict=True) for row in shown.case_rows(fold, *xy.T)],
    )
    canvas, axes = _titled(shown, height_inches=PANEL_INCHES - 0.2)
    for (one, _), xy in zip(axes, placed, strict=True):
        _scatter(one, shown, *xy.T)
        one.set_xticks([])
        one.set_yticks([])
        one.margins(0.08)
    _name_grades(canvas, shown)
    return [write_figure(canvas, data, folder)]


def _place(features: Floats, *, perplexity: float, seed: int) -> Floats:
    from sklearn.manifold import TSNE

    method = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(method.fit_transform(features), dtype=np.float64)


def variance(folds: Sequence[FoldAxis], folder: Path, colours: Mapping[str, str]) -> Figure:
    """Fraction of the training features' variance along each of the first components."""
    rows: list[Sequence[Cell]] = [
        [fold.model, fold.fold, index + 1, cell(value)]
        for fold in folds
        for index, value in enumerate(fold.axis.explained[:COMPONENTS])
    ]
    data = write_table(
        folder,
        name="variance",
        caption="Fraction of the standardised training features' variance along each principal component, "
        "one line per fold. A first component that holds nearly all means that features say one thing only.",
        columns=["model", "fold", "component", "explained"],
        rows=rows,
    )
    canvas, (axes,) = panels(1, width_inches=5.6, height_inches=3.0)
    named: set[str] = set()
    for fold in folds:
        values = fold.axis.explained[:COMPONENTS]
        label = None if fold.model in named else short_name(fold.model)
        axes.plot(
            range(1, values.size + 1),
            values,
            "o-",
            color=colours[fold.model],
            linewidth=1.4,
            markersize=3.5,
            label=label,
        )
        named.add(fold.model)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(range(1, COMPONENTS + 1))
    axes.set_xlabel("principal component", fontsize=BODY, color=INK)
    axes.set_ylabel("fraction of variance", fontsize=BODY, color=INK)
    axes.grid(visible=True, axis="y", color=GRID)
    axes.legend(fontsize=SMALL, labelcolor=INK, frameon=False, loc="upper right")
    return write_figure(canvas, data, folder)
