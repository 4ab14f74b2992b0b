"""How alike the features of models are on the same cases: linear CKA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.axis import chance_cka, linear_cka
from oaplug_analyses.drawing import INK, SMALL, cell, panels, short_name, write_figure, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug_analyses.severity_measures import FoldAxis

    Floats = NDArray[np.float64]


def alignment(folds: Sequence[FoldAxis], folder: Path) -> Figure:
    """Linear CKA between models on the test cases, means over pairs of folds."""
    values = {
        (a, b): (
            linear_cka(folds[a].features, folds[b].features),
            chance_cka(folds[a].features, folds[b].features),
        )
        for a in range(len(folds))
        for b in range(a, len(folds))
    }
    rows: list[Sequence[Cell]] = [
        [folds[a].model, folds[a].fold, folds[b].model, folds[b].fold, cell(found), cell(chance)]
        for (a, b), (found, chance) in values.items()
    ]
    names = list(dict.fromkeys(fold.model for fold in folds))
    between = [chance for (a, b), (_, chance) in values.items() if a != b and math.isfinite(chance)]
    by_chance = sum(between) / len(between) if between else math.nan
    folded = " Means over pairs of folds; on the diagonal, over pairs of different folds of one model."
    several = len(folds) > len(names)
    data = write_table(
        folder,
        name="alignment",
        caption="Linear centred kernel alignment (Kornblith et al. 2019) of the models' features of the same "
        "test cases: 1 means equal up to rotation and size. With the cases of one model shuffled it would be "
        f"{by_chance:.2f} on average.{folded if several else ''}",
        columns=["model", "fold", "other_model", "other_fold", "cka", "cka_shuffled"],
        rows=rows,
    )
    matrix = _by_model(folds, names, {pair: found for pair, (found, _) in values.items()})
    side = 1.7 + 0.55 * len(names)
    canvas, (axes,) = panels(1, width_inches=side + 1.0, height_inches=side)
    _heat(axes, matrix, [short_name(name) for name in names])
    return write_figure(canvas, data, folder)


def _by_model(
    folds: Sequence[FoldAxis], names: Sequence[str], values: Mapping[tuple[int, int], float]
) -> Floats:
    """Means (M,M) over pairs of folds; of a model with itself over different ones, where it has several."""
    matrix = np.full((len(names), len(names)), np.nan)
    for row, one in enumerate(names):
        for column, other in enumerate(names[: row + 1]):
            pairs = [p for p in values if {folds[p[0]].model, folds[p[1]].model} == {one, other}]
            different = [p for p in pairs if p[0] != p[1]]
            matrix[row, column] = np.mean([values[p] for p in different or pairs])
            matrix[column, row] = matrix[row, column]
    return matrix


def _heat(axes: Axes, matrix: Floats, names: Sequence[str]) -> None:
    axes.imshow(np.nan_to_num(matrix), cmap="Blues", vmin=0, vmax=1.15)
    for (row, column), value in np.ndenumerate(matrix):
        text, colour = ("–", INK) if math.isnan(value) else (f"{value:.2f}", "white" if value > 0.65 else INK)
        axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
