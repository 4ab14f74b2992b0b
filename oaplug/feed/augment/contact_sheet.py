"""Contact sheets: what augmentation makes of a data set's own cases, to look at before training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from oaplug.feed.augment.apply import apply_draws
from oaplug.feed.augment.captions import describe, extremes
from oaplug.feed.augment.draw import AXES, draw_augmentation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from oaplug.core.plan import AugmentationSettings

_INCHES = 2.1
_CAPTION_INCHES = 0.62
_NARROW = 0.12
Triple = tuple[float, float, float]


class View:
    """The middle slice across one axis, upright, with an edge length of the voxels' true proportions."""

    def __init__(self, axis: str, spacing_mm: Triple, size_voxels: Sequence[int]) -> None:
        self._axis = AXES.index(axis)
        self.voxel_mm = spacing_mm
        across, up = (i for i in range(3) if i != self._axis)
        self._aspect = spacing_mm[up] / spacing_mm[across]
        self.height_per_width = size_voxels[up] / size_voxels[across] * self._aspect

    def slice_of(self, volume: Tensor) -> Tensor:
        """The slice (up, across) of the first channel of volume (C,D,H,W)."""
        first = volume[0].float()
        return first.select(self._axis, first.shape[self._axis] // 2).T

    def show(self, panel: Axes, volume: Tensor, *, window: tuple[float, float], caption: str) -> None:
        """Draw the slice with its caption below."""
        low, high = window
        panel.imshow(
            self.slice_of(volume).numpy(), cmap="gray", vmin=low, vmax=high, origin="lower",
            aspect=self._aspect, interpolation="nearest",
        )  # fmt: skip
        panel.set_axis_off()
        panel.text(0.5, -0.02, caption, transform=panel.transAxes, ha="center", va="top", fontsize=6.5)


def sample_sheet(
    volumes: Mapping[str, Tensor],
    settings: AugmentationSettings,
    *,
    view: View,
    samples: int,
    seed: int,
) -> Figure:
    """A row for each case (volumes (C,D,H,W) by case id): the original, then its first epochs in fold 0."""
    figure, panels = _grid(len(volumes), 1 + samples, view)
    for row, (case_id, volume) in zip(panels, volumes.items(), strict=True):
        window = _window(view.slice_of(volume))
        view.show(row[0], volume, window=window, caption=case_id)
        for epoch, panel in enumerate(row[1:]):
            changed, parts = _sample(volume, settings, seed, ("0", epoch, case_id), voxel_mm=view.voxel_mm)
            caption = _wrap([f"epoch {epoch}: " + (parts[0] if parts else "as it is"), *parts[1:]])
            view.show(panel, changed, window=window, caption=caption)
    return figure


def _sample(
    volume: Tensor,
    settings: AugmentationSettings,
    seed: int,
    purpose: tuple[int | str, ...],
    *,
    voxel_mm: Triple,
) -> tuple[Tensor, list[str]]:
    """A case as training sees it, and what was drawn (not known of batchgeneratorsv2)."""
    if settings.backend == "batchgeneratorsv2":
        from oaplug.feed.augment.batchgenerators import build_transforms, transform_case

        transforms = build_transforms(settings, size=volume.shape[1:])
        return transform_case(transforms, volume.clone(), seed, *purpose), ["batchgeneratorsv2"]
    draw = draw_augmentation(settings, seed, *purpose, voxel_mm=voxel_mm)
    return apply_draws(volume[None], [draw])[0], describe(draw)


def part_sheet(volume: Tensor, settings: AugmentationSettings, *, view: View) -> Figure:
    """Each part alone on volume (C,D,H,W): the original between both ends of what the plan allows."""
    parts = extremes(settings)
    figure, panels = _grid(math.ceil(len(parts) / 2), 7, view, narrow=3)
    window = _window(view.slice_of(volume))
    places = [row[first : first + 3] for row in panels for first in (0, 4)]
    for panel in panels.flat:
        panel.set_axis_off()
    for part, place in zip(parts, places, strict=False):
        low, high = (
            apply_draws(volume[None], [replace(draw, voxel_mm=view.voxel_mm)])[0] for draw in part.draws
        )
        captions = [_wrap(describe(draw) or ["as it is"]) for draw in part.draws]
        view.show(place[0], low, window=window, caption=captions[0])
        view.show(place[1], volume, window=window, caption="original")
        view.show(place[2], high, window=window, caption=captions[1])
        place[1].set_title(f"{part.name} (probability {part.probability:g})", fontsize=8)
    return figure


def _grid(rows: int, columns: int, view: View, *, narrow: int | None = None) -> tuple[Figure, Any]:
    """A figure and its panels (rows, columns); the column `narrow` is a gap."""
    from matplotlib.figure import Figure

    widths = [_NARROW if column == narrow else 1.0 for column in range(columns)]
    height = _INCHES * view.height_per_width + _CAPTION_INCHES
    figure = Figure(figsize=(_INCHES * sum(widths), height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, width_ratios=widths)


def _window(image: Tensor) -> tuple[float, float]:
    """The original's intensities from black to white, so that a change of brightness shows."""
    low, high = torch.quantile(image, torch.tensor([0.005, 0.995])).tolist()
    return low, max(high, low + 1e-6)


def _wrap(parts: Sequence[str], *, width: int = 34) -> str:
    """Captions joined by commas, on as few lines as fit."""
    lines = [parts[0]]
    for part in parts[1:]:
        joined = f"{lines[-1]}, {part}"
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, part]
    return "\n".join(lines)
