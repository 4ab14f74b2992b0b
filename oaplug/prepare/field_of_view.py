"""Choosing the input geometry of a plan: which box of the patient to look at, in voxels of which spacing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oaplug.prepare.fingerprint import Fingerprint

Size = tuple[int, int, int]
Triple = tuple[float, float, float]

LOWRES_VOXELS = 64 * 128 * 128
"""Most voxels of 3d_lowres."""
SMALL_EXTENT = 0.5
"""The smallest extent along an axis is an outlier below this fraction of the median."""
_SLACK_VOXELS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A spacing (mm) and a size (voxels), both D,H,W, and why each is what it is."""

    spacing_mm: Triple
    size_voxels: Size
    spacing_reason: str = field(compare=False)
    size_reason: str = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class FieldOfView:
    """The box to look at, in mm along D,H,W, and why."""

    extent_mm: Triple
    reason: str


def choose_field_of_view(fingerprint: Fingerprint) -> FieldOfView:
    """Per axis the smallest extent of the training images, or the median where that is an outlier."""
    extents_mm = np.array(fingerprint.shapes_after_crop) * np.array(fingerprint.spacings_mm)
    smallest, median = extents_mm.min(axis=0), np.median(extents_mm, axis=0)
    outlying = smallest < SMALL_EXTENT * median
    chosen = np.where(outlying, median, smallest)
    reason = "the largest box that every training image fills, so that content size cannot show as padding"
    for axis in np.flatnonzero(outlying):
        padded = int((extents_mm[:, axis] < chosen[axis]).sum())
        reason += (
            f"; but the smallest extent along {'DHW'[axis]}, {smallest[axis]:.4g} mm, is below half the "
            f"median: the median, {median[axis]:.4g} mm, is used and {padded} of {len(extents_mm)} training "
            "cases are padded"
        )
    return FieldOfView(extent_mm=_triple(chosen), reason=reason)


def fullres_geometry(
    fingerprint: Fingerprint,
    view: FieldOfView,
    *,
    spacing_mm: Triple | None,
    size_voxels: Size | None,
    size_multiple: Size,
) -> Geometry:
    """The median spacing and the whole field of view, or what the user gave."""
    median_mm = _triple(np.median(np.array(fingerprint.spacings_mm), axis=0))
    spacing, why_spacing = median_mm, f"the median spacing of {fingerprint.num_cases} training cases"
    if spacing_mm is not None:
        spacing, why_spacing = (
            spacing_mm,
            f"given by the user (training cases: median {as_text(median_mm)} mm)",
        )
    size, why_size = _size_of(view, spacing_mm=spacing, size_multiple=size_multiple)
    if size_voxels is not None:
        size, why_size = size_voxels, f"given by the user (by the rule it would be {size}: {why_size})"
    return Geometry(spacing_mm=spacing, size_voxels=size, spacing_reason=why_spacing, size_reason=why_size)


def lowres_geometry(
    full: Geometry, view: FieldOfView, *, spacing_given: bool, size_given: bool, size_multiple: Size
) -> Geometry:
    """The same field of view at the finest spacing that needs at most LOWRES_VOXELS.

    Finer axes are coarsened first, to the spacing of the coarser ones, then all alike. A given spacing is
    kept; a given size too, with the coarsest spacing that does not take it beyond the field of view.
    """
    if spacing_given:
        return full
    if size_given:
        return _lowres_of_given_size(full, view)
    if math.prod(full.size_voxels) <= LOWRES_VOXELS:
        why = f"as 3d_fullres, which has at most {LOWRES_VOXELS} voxels already: "
        return replace(full, spacing_reason=why + full.spacing_reason, size_reason=why + full.size_reason)
    spacing = coarsen_to_budget(full.spacing_mm, view.extent_mm, voxels=LOWRES_VOXELS)
    size, why_size = _size_of(view, spacing_mm=spacing, size_multiple=size_multiple)
    why_spacing = (
        f"coarsened from {as_text(full.spacing_mm)} mm, finer axes first, until the field of view of "
        f"{as_text(view.extent_mm)} mm has at most {LOWRES_VOXELS} voxels"
    )
    return Geometry(spacing_mm=spacing, size_voxels=size, spacing_reason=why_spacing, size_reason=why_size)


def coarsen_to_budget(spacing_mm: Triple, extent_mm: Triple, *, voxels: int) -> Triple:
    """The spacing max(spacing_mm, t), with the smallest t that divides `extent_mm` into at most `voxels`."""
    spacing, extent = np.array(spacing_mm), np.array(extent_mm)
    order = np.argsort(spacing)
    for count in (1, 2, 3):
        raised, kept = order[:count], order[count:]
        level = float(extent[raised].prod() * (extent[kept] / spacing[kept]).prod() / voxels) ** (1 / count)
        if count == 3 or level <= spacing[kept].min():
            break
    return _triple(np.maximum(spacing, math.ceil(level * 1e4) / 1e4))


def _lowres_of_given_size(full: Geometry, view: FieldOfView) -> Geometry:
    """The given size at the spacing max(spacing, t), with the largest t that stays within the view."""
    level = float((np.array(view.extent_mm) / np.array(full.size_voxels)).min())
    spacing = _triple(np.maximum(full.spacing_mm, math.floor(level * 1e4) / 1e4))
    if spacing == full.spacing_mm:
        why = (
            f"as 3d_fullres: the given size reaches beyond the field of view of {as_text(view.extent_mm)} mm"
        )
    else:
        why = (
            f"coarsened from {as_text(full.spacing_mm)} mm, finer axes first, as far as the given size stays "
            f"within the field of view of {as_text(view.extent_mm)} mm"
        )
    return replace(full, spacing_mm=spacing, spacing_reason=why)


def _size_of(view: FieldOfView, *, spacing_mm: Triple, size_multiple: Size) -> tuple[Size, str]:
    """Voxels of the field of view, rounded down to `size_multiple` but never below it, and why."""
    voxels = [mm / step + _SLACK_VOXELS for mm, step in zip(view.extent_mm, spacing_mm, strict=True)]
    depth, height, width = (max(int(n // m), 1) * m for n, m in zip(voxels, size_multiple, strict=True))
    rounded = "" if set(size_multiple) == {1} else f"; rounded down to multiples of {size_multiple}"
    return (depth, height, width), view.reason + rounded


def as_text(values: Triple) -> str:
    """Three numbers as a reason quotes them."""
    return " x ".join(f"{value:.4g}" for value in values)


def _triple(values: NDArray[Any]) -> Triple:
    first, second, third = values.tolist()
    return (first, second, third)
