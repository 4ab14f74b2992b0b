"""Figures of task interference: cosines by batch of saved models, and by epoch as trainings logged them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

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

    from oaplug.core.findings import Cell, Figure, Table
    from oaplug_analyses.task_interference import Batches, Mean

LINE_INCHES, AROUND_INCHES = 0.42, 0.95


def pair_name(pair: str) -> str:
    """A pair of losses in words."""
    return " and ".join(pair.split(".", 1))


def by_batch(
    measured: Sequence[Batches], means: Sequence[Mean], folder: Path, colours: Mapping[str, str]
) -> Figure:
    """One panel per pair of losses, one line per model: every batch, and the mean with its interval."""
    data = _table(
        measured,
        folder,
        name="batches",
        step="batch",
        caption="Cosine between the gradients of two losses on the shared encoder: every training batch "
        "(light), and the mean over batches with its interval. Right of 0 the losses pull the same way; left "
        "of 0 a step for one undoes some of the other.",
    )
    pairs = list(dict.fromkeys(mean.pair for mean in means))
    most = max(sum(mean.pair == pair for mean in means) for pair in pairs)
    height = AROUND_INCHES + LINE_INCHES * most
    canvas, axes = panels(len(pairs), width_inches=6.4, height_inches=height, columns=1)
    for one, pair in zip(axes, pairs, strict=True):
        of_pair = [mean for mean in means if mean.pair == pair]
        for row, mean in enumerate(of_pair):
            folds = [fold.cosines()[pair] for fold in measured if fold.model == mean.model]
            _dots(one, np.concatenate(folds), mean, row=row, colour=colours[mean.model])
        one.set_yticks(range(len(of_pair)), [short_name(mean.model) for mean in of_pair])
        one.set_ylim(len(of_pair) - 0.4, -0.6)
        one.set_xlim(-1.04, 1.04)
        one.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
        one.grid(visible=True, axis="x", color=GRID)
        one.tick_params(axis="y", length=0)
        one.set_xlabel(f"cosine of the gradients of {pair_name(pair)}", fontsize=BODY, color=INK)
    return write_figure(canvas, data, folder)


def _dots(axes: Axes, cosines: np.ndarray, mean: Mean, *, row: int, colour: str) -> None:
    spread = np.linspace(-0.16, 0.16, cosines.size) if cosines.size > 1 else np.zeros(cosines.size)
    axes.scatter(cosines, row + spread, s=13, color=colour, alpha=0.35, linewidths=0, zorder=2)
    axes.plot([mean.low, mean.high], [row, row], color=colour, linewidth=2.4, zorder=3)
    axes.plot([mean.value], [row], "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)


def by_epoch(logged: Sequence[Batches], folder: Path, colours: Mapping[str, str]) -> Figure:
    """One panel per pair of losses, one line per fold: the cosine over the epochs."""
    data = _table(
        logged,
        folder,
        name="epochs",
        step="epoch",
        caption="The same cosine as trainings logged it: on the first batch of each epoch, augmented, by the "
        "weights at the epoch's end; one line per fold. Single batches scatter: look at the trend.",
    )
    pairs = list(dict.fromkeys(pair for one in logged for pair in one.cosines()))
    canvas, axes = panels(len(pairs), width_inches=6.4, height_inches=2.7, columns=1)
    for one, pair in zip(axes, pairs, strict=True):
        named: set[str] = set()
        for fold in [fold for fold in logged if pair in fold.cosines()]:
            values = fold.cosines()[pair]
            label = None if fold.model in named else short_name(fold.model)
            style = "o-" if values.size < 25 else "-"
            one.plot(values, style, color=colours[fold.model], linewidth=1.3, markersize=3.5, label=label)
            named.add(fold.model)
        one.axhline(0, color=MUTED, linewidth=0.9)
        one.set_ylim(-1.04, 1.04)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.grid(visible=True, axis="y", color=GRID)
        one.set_xlabel("epoch", fontsize=BODY, color=INK)
        one.set_ylabel(f"cosine, {pair_name(pair)}", fontsize=BODY, color=INK)
        one.legend(
            fontsize=SMALL, labelcolor=INK, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5)
        )
    return write_figure(canvas, data, folder)


def _table(found: Sequence[Batches], folder: Path, *, name: str, step: str, caption: str) -> Table:
    rows: list[Sequence[Cell]] = [
        [one.model, one.fold, index, what, cell(value)]
        for one in found
        for what, values in one.values.items()
        for index, value in enumerate(values)
    ]
    return write_table(
        folder, name=name, caption=caption, columns=["model", "fold", step, "what", "value"], rows=rows
    )
