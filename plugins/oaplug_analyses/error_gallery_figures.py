"""Middle slices of cases in three planes, with what was true and what was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug_analyses.drawing import BODY, INK, SMALL, panels, short_name, write_figure, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug.core.volume import Volume
    from oaplug_analyses.error_gallery import Mistake, Mistakes

PLANES = ("sagittal", "coronal", "axial")
GREYS = (1.0, 99.0)
"""Percentiles of a volume that are shown black and white."""


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The middle slice in each of PLANES, from 0 (black) to 1, upright or anterior up; its extent in mm."""

    images: tuple[NDArray[np.float32], ...]
    extents_mm: tuple[tuple[float, float], ...]


def middle_slices(volume: Volume) -> Slices:
    """The middle slices of the first channel of a volume (C,D,H,W) in canonical axes."""
    data = volume.data[0]
    black, white = np.percentile(data, GREYS)
    grey = np.clip((data - black) / max(white - black, 1e-12), 0, 1).astype(np.float32)
    d, h, w = (size // 2 for size in grey.shape)
    cut = (grey[d], grey[:, h], grey[:, :, w])
    lengths = [size * spacing for size, spacing in zip(grey.shape, volume.spacing_mm, strict=True)]
    (sagittal, coronal, axial) = ((lengths[b], lengths[a]) for a, b in ((2, 1), (2, 0), (1, 0)))
    return Slices(images=tuple(one.T[::-1] for one in cut), extents_mm=(sagittal, coronal, axial))


def gallery(
    found: Mistakes, shown: Sequence[Mistake], slices: Mapping[str, Slices], folder: Path, *, number: int
) -> Figure:
    """One row per case, one column per plane; `number` tells the galleries of a study apart."""
    name = found.target.name
    rows: list[Sequence[Cell]] = [
        [
            *(found.model, mistake.case_id, mistake.true, mistake.predicted),
            *(mistake.confidence, mistake.true_probability, mistake.shared, mistake.asked),
        ]
        for mistake in shown
    ]
    data = write_table(
        folder,
        name=f"gallery_{name}_{number}",
        caption=f"{name}, {found.model}: the {len(shown)} most confident of {len(found.mistakes)} mistakes "
        f"among {found.known} cases of known truth. Middle slices of the raw image (first channel, grey from "
        f"the {GREYS[0]:g}st to the {GREYS[1]:g}th percentile): sagittal with anterior to the right, coronal "
        "and axial with the patient's right to the right.",
        columns=[
            *("model", "case_id", "true", "predicted", "confidence", "true_probability"),
            *("models_wrong", "models_asked"),
        ],
        rows=rows,
    )
    canvas, axes = panels(3 * len(shown), width_inches=2.35, height_inches=2.3, columns=3)
    for row, mistake in enumerate(shown):
        for column, plane in enumerate(PLANES):
            one = axes[3 * row + column]
            _show(one, slices[mistake.case_id], column)
            if row == 0:
                one.set_title(plane, fontsize=BODY, color=INK)
        axes[3 * row].set_ylabel(
            _words(mistake), fontsize=SMALL, color=INK, linespacing=1.5, rotation=0, ha="right", va="center"
        )
    canvas.suptitle(f"{name}, {short_name(found.model, width=50)}", fontsize=BODY, color=INK)
    return write_figure(canvas, data, folder)


def _words(mistake: Mistake) -> str:
    others = f"\n{mistake.shared} of {mistake.asked} models wrong" if mistake.asked > 1 else ""
    return (
        f"{short_name(mistake.case_id, width=24)}\ntrue {mistake.true}, predicted {mistake.predicted}\n"
        f"p {mistake.confidence:.2f}, of the truth {mistake.true_probability:.2f}{others}"
    )


def _show(axes: Axes, slices: Slices, plane: int) -> None:
    width_mm, height_mm = slices.extents_mm[plane]
    axes.imshow(
        slices.images[plane], cmap="gray", vmin=0, vmax=1, extent=(0, width_mm, 0, height_mm), aspect="equal"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
