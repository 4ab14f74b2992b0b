"""Figures of saliency: slices with the map laid over them, and overlaps of models beside chance."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from oaplug_analyses.drawing import (
    BODY,
    DPI,
    GRID,
    HEADING,
    INK,
    LEGEND,
    MUTED,
    SMALL,
    cell,
    panels,
    short_name,
    write_figure,
    write_table,
)
from oaplug_analyses.saliency_maps import INPUT, RANDOM
from oaplug_analyses.saliency_numbers import COMPARED, METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug_analyses.saliency_maps import Slices
    from oaplug_analyses.saliency_numbers import Answered, Numbers

CHANCE = {"region": (":", "chance, by the region's size"), RANDOM: ("--", "noise"), INPUT: ("-.", "|input|")}
"""Line styles and names of what a map without knowledge comes to."""
PLANES = (
    ("sagittal", ("A", "P"), (1, 2)),
    ("coronal", ("R", "L"), (0, 2)),
    ("axial", ("R", "L"), (0, 1)),
)
"""Per axis D, H, W that a plane is across: its name, letters left and right, axes shown across and up."""
UP = {2: ("S", "I"), 1: ("A", "P")}
COLOURS, CONTOUR = "inferno", "#35e0ff"
WIDEST_INCHES = 8.2


def overlaps(numbers: Numbers, question: str, folder: Path, colours: Mapping[str, str]) -> Figure:
    """One panel per metric in the main region: a dot with its interval per model, and what chance gives."""
    region = numbers.asked.main_region
    found = numbers.answered[question, region]
    rows: list[Sequence[Cell]] = [
        [
            metric,
            model,
            *map(cell, (one.value, one.low, one.high)),
            *map(cell, _chances(found, model, metric)),
        ]
        for metric in COMPARED
        for model in found.means
        for one in [found.of(model, metric)]
    ]
    data = write_table(
        folder,
        name=f"overlap_{_plain(question)}",
        caption=f"{question}: overlap of saliency with {region}, means of {numbers.size} with "
        f"{numbers.intervals}. Lines in each row: the same for maps that know no network.",
        columns=["metric", "model", "value", "low", "high", "chance", RANDOM, INPUT],
        rows=rows,
    )
    height = 0.8 + 0.42 * len(found.means)
    canvas, axes = panels(len(COMPARED) + 1, width_inches=2.3, height_inches=height, columns=4)
    for index, (one, metric) in enumerate(zip(axes, COMPARED, strict=False)):
        _dots(one, found, metric, colours, named=index % 4 == 0)
        one.set_title(METRICS[metric], **HEADING)
    _explain(axes[-1])
    return write_figure(canvas, data, folder)


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _chances(found: Answered, model: str, metric: str) -> tuple[float, float, float]:
    """What the region's size, noise and the input alone come to."""
    noise, alone = (found.control(model, name, metric) for name in (RANDOM, INPUT))
    return found.chance(metric), noise, alone


def _dots(axes: Axes, found: Answered, metric: str, colours: Mapping[str, str], *, named: bool) -> None:
    for row, model in enumerate(found.means):
        one = found.of(model, metric)
        for chance, (style, _) in zip(_chances(found, model, metric), CHANCE.values(), strict=True):
            axes.plot([chance, chance], [row - 0.34, row + 0.34], style, color=MUTED, linewidth=1.0)
        axes.plot([one.low, one.high], [row, row], color=colours[model], linewidth=2.2)
        axes.plot([one.value], [row], "o", color=colours[model], markersize=6, markeredgecolor="white")
    axes.set_yticks(range(len(found.means)), [short_name(m) if named else "" for m in found.means])
    axes.set_ylim(len(found.means) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)


def _explain(axes: Axes) -> None:
    axes.set_axis_off()
    handles = [Line2D([], [], color=MUTED, linestyle=style) for style, _ in CHANCE.values()]
    names = [name for _, name in CHANCE.values()]
    axes.legend(handles, names, loc="center", title="without a network", alignment="left",
                **LEGEND | {"handlelength": 2.2})  # fmt: skip


def slices(shown: Sequence[Slices], folder: Path, *, region: str) -> Figure:
    """The maps of one question and case: a row per model, a column per plane."""
    first = shown[0]
    rows: list[Sequence[Cell]] = [
        [one.model, name, one.at[axis], int(one.region[axis].sum()), cell(one.mass), cell(one.brightest)]
        for one in shown
        for axis, (name, *_) in enumerate(PLANES)
    ]
    data = write_table(
        folder,
        name=f"slices_{_plain(first.question)}_{_plain(first.case_id)}",
        caption=f"{first.question}, case {first.case_id}: saliency over the image, in the planes where "
        f"{region} (outlined) is largest. Each row has its own colours, up to the value that 0.1% of its "
        "voxels exceed. Cases are chosen by their true grades, before there are maps.",
        columns=["model", "plane", "slice", "region_voxels", "mass", "brightest_shown"],
        rows=rows,
    )
    canvas, axes = _grid(shown)
    for row, one in enumerate(shown):
        for axis in range(3):
            _draw(axes[row][axis], one, axis)
        mass = "not defined" if math.isnan(one.mass) else f"{one.mass:.3f}"
        axes[row][0].set_title(f"{short_name(one.model, width=60)}: mass {mass}", **HEADING)
    return write_figure(canvas, data, folder)


def _extents_mm(one: Slices) -> list[tuple[float, float]]:
    """Width and height of each plane as it is drawn."""
    sizes = (one.image[1].shape[0], *one.image[0].shape)
    mm = [size * spacing for size, spacing in zip(sizes, one.spacing_mm, strict=True)]
    return [(mm[across], mm[up]) for _, _, (across, up) in PLANES]


def _grid(shown: Sequence[Slices]) -> tuple[Canvas, list[list[Axes]]]:
    """Axes (models x planes) whose sizes are in proportion to what they show."""
    extents = _extents_mm(shown[0])
    widths = [width for width, _ in extents]
    scale = WIDEST_INCHES / sum(widths)
    height = scale * max(height for _, height in extents) + 0.55
    canvas = Canvas(figsize=(WIDEST_INCHES, height * len(shown)), dpi=DPI)
    canvas.set_layout_engine("constrained", w_pad=0.03, h_pad=0.05)
    grid = canvas.add_gridspec(len(shown), 3, width_ratios=widths)
    return canvas, [[canvas.add_subplot(grid[row, axis]) for axis in range(3)] for row in range(len(shown))]


def _draw(axes: Axes, one: Slices, axis: int) -> None:
    """One plane, anterior or the patient's right to the left, superior or anterior up."""
    name, (left, right), (across, up) = PLANES[axis]
    image, saliency, region = (_upright(plane[axis]) for plane in (one.image, one.saliency, one.region))
    place: dict[str, Any] = {
        "aspect": one.spacing_mm[up] / one.spacing_mm[across],
        "interpolation": "nearest",
    }
    low, high = np.quantile(image, [0.005, 0.995])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **place)
    strength = Normalize(0, one.brightest or 1.0, clip=True)(saliency)
    axes.imshow(strength, cmap=COLOURS, vmin=0, vmax=1, alpha=np.asarray(strength**0.5 * 0.85), **place)
    if region.any() and not region.all():
        axes.contour(region.astype(float), levels=[0.5], colors=[CONTOUR], linewidths=0.7)
    axes.set_axis_off()
    letter: dict[str, Any] = {"color": "white", "fontsize": SMALL, "transform": axes.transAxes}
    letter["path_effects"] = [withStroke(linewidth=1.5, foreground="black")]
    top, bottom = UP[up]
    axes.text(0.02, 0.5, left, va="center", ha="left", **letter)
    axes.text(0.98, 0.5, right, va="center", ha="right", **letter)
    axes.text(0.5, 0.98, top, va="top", ha="center", **letter)
    axes.text(0.5, 0.02, bottom, va="bottom", ha="center", **letter)
    axes.text(0.5, -0.02, f"{name}, slice {one.at[axis]}", va="top", ha="center", color=INK, fontsize=BODY,
              transform=axes.transAxes)  # fmt: skip


def _upright(plane: NDArray[Any]) -> NDArray[Any]:
    """A plane (across,up) as rows from the top, its first axis running from right to left."""
    upright: NDArray[Any] = plane.T[::-1, ::-1]
    return upright
