"""Linear filters that work one axis at a time: interpolation, spline fields, Gaussian smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """For each of N output places along an axis: K input places and their weights, both (K,N)."""

    indices: Tensor
    weights: Tensor

    def part(self, first: int, last: int) -> Taps:
        """The taps of output places `first` up to `last`."""
        return Taps(self.indices[:, first:last], self.weights[:, first:last])


def linear_taps(positions: Tensor, *, length: int, device: torch.device) -> Taps:
    """Linear interpolation at `positions` (N,) float64 in voxels; beyond the ends the end goes on."""
    inside = positions.clamp(0, length - 1)
    lower = inside.floor().clamp(max=max(length - 2, 0))
    weight = inside - lower
    indices = torch.stack([lower, lower + 1]).clamp(max=length - 1).long()
    return Taps(indices.to(device), torch.stack([1 - weight, weight]).float().to(device))


def spline_taps(length: int, *, spacing_voxels: float, device: torch.device) -> Taps:
    """A cubic B-spline with a control point every `spacing_voxels`, the first one spacing before voxel 0."""
    place = torch.arange(length, dtype=torch.float64) / spacing_voxels
    lower = place.floor()
    t = place - lower
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * t * (1 + t - t**2) + 1, t**3]) / 6
    indices = lower.long() + torch.arange(4)[:, None]
    return Taps(indices.to(device), weights.float().to(device))


def control_points(length: int, *, spacing_voxels: float) -> int:
    """How many control points `spline_taps` refers to."""
    return math.floor((length - 1) / spacing_voxels) + 4


def weigh_along(array: Tensor, axis: int, taps: Taps) -> Tensor:
    """The weighted sum of the taps' places along an axis of array (any shape); a new array."""
    shape = [1] * array.ndim
    shape[axis] = -1
    result: Tensor | None = None
    for indices, weights in zip(taps.indices, taps.weights.to(array.dtype), strict=True):
        taken = _take(array, axis, indices)
        if result is None:
            result = taken.mul_(weights.view(shape))
        else:
            result.addcmul_(taken, weights.view(shape))
    assert result is not None
    return result


def _take(array: Tensor, axis: int, indices: Tensor) -> Tensor:
    """Places along an axis; for the last one gather is several times as fast as index_select on a CPU."""
    if axis == array.ndim - 1:
        return array.gather(axis, indices.expand(*array.shape[:-1], -1))
    return array.index_select(axis, indices)


def blur_along(array: Tensor, axis: int, *, sigma_voxels: float) -> Tensor:
    """Gaussian smoothing along one axis with mirrored ends; a new array, or the same where nothing is done.

    The kernel reaches round(3 sigma - 1/4) voxels, as far as batchgeneratorsv2's.
    """
    length = array.shape[axis]
    radius = min(round(3 * sigma_voxels - 0.25), length - 1)
    if radius < 1:
        return array
    weights = [math.exp(-0.5 * (offset / sigma_voxels) ** 2) for offset in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    result = array * (weights[0] / total)
    for offset in range(1, radius + 1):
        weight, left = weights[offset] / total, length - offset
        low, high = array.narrow(axis, 0, left), array.narrow(axis, offset, left)
        result.narrow(axis, 0, left).add_(high, alpha=weight)
        result.narrow(axis, offset, left).add_(low, alpha=weight)
        result.narrow(axis, 0, offset).add_(array.narrow(axis, 1, offset).flip(axis), alpha=weight)
        result.narrow(axis, left, offset).add_(array.narrow(axis, left - 1, offset).flip(axis), alpha=weight)
    return result
