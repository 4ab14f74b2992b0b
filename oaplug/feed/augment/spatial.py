"""The spatial parts of a draw: one sampling of the volume, the cheapest that gives the same numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from oaplug.core.seeds import random_generator
from oaplug.feed.augment.along_axis import control_points, linear_taps, spline_taps, weigh_along

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from oaplug.feed.augment.draw import Draw

_SLAB_VOXELS = 2**17


def move(volume: Tensor, draw: Draw) -> Tensor:
    """Deform, mirror, scale, rotate and shift volume (C,D,H,W) float32 in one trilinear sampling.

    The edge goes on beyond the edge. Gives a new volume, or the same one where nothing moves. Without
    rotation and deformation trilinear interpolation is three linear ones, and mirroring alone needs none.
    """
    if draw.turns:
        return _sample(volume, draw)
    if draw.scale != 1 or any(draw.shift_fraction):
        return _sample_by_axis(volume, draw)
    flipped = [axis + 1 for axis, flip in enumerate(draw.mirrored) if flip]
    return volume.flip(flipped) if flipped else volume


def _sample_by_axis(volume: Tensor, draw: Draw) -> Tensor:
    factors, shifts = linear_map(draw).diagonal().tolist(), draw.shift_fraction
    for axis, length in enumerate(volume.shape[1:]):
        if factors[axis] != 1 or shifts[axis] != 0:
            center = (length - 1) / 2
            places = torch.arange(length, dtype=torch.float64) - center
            positions = factors[axis] * places + center + shifts[axis] * length
            volume = weigh_along(
                volume, axis + 1, linear_taps(positions, length=length, device=volume.device)
            )
    return volume


def _sample(volume: Tensor, draw: Draw) -> Tensor:
    """Sampling anywhere, on a CPU slab by slab so that what is worked on stays in its cache."""
    size = volume.shape[1:]
    step = max(1, _SLAB_VOXELS // (size[1] * size[2])) if volume.device.type == "cpu" else size[0]
    result = torch.empty_like(volume, memory_format=torch.contiguous_format)
    for first, places in sampling_places(draw, size=size, step=step, device=volume.device):
        corners = _Corners(places, size)
        for sampled, channel in zip(result, volume, strict=True):
            sampled[first : first + len(places[0])] = corners.blend(channel.reshape(-1))
    return result


class _Corners:
    """The eight voxels around each of many places; places (d,H,W) along D, H and W are taken to pieces.

    On a CPU eight times index_select is more than twice as fast as grid_sample, with the same numbers.
    """

    def __init__(self, places: Sequence[Tensor], size: Sequence[int]) -> None:
        strides = (size[1] * size[2], size[2], 1)
        self._steps = [s if length > 1 else 0 for s, length in zip(strides, size, strict=True)]
        self._weights: list[Tensor] = []
        self._index = torch.zeros(places[0].shape, dtype=torch.int32, device=places[0].device)
        for place, length in zip(places, size, strict=True):
            lower = place.clamp_(0, length - 1).floor().clamp_(max=max(length - 2, 0))
            self._index.mul_(length).add_(lower.int())
            self._weights.append(place.sub_(lower))

    def blend(self, flat: Tensor, offset: int = 0, axis: int = 0) -> Tensor:
        """Interpolate one channel (D*H*W,) along the axes from `axis` on."""
        if axis == len(self._steps):
            return flat[offset:].index_select(0, self._index.view(-1)).view(self._index.shape)
        low = self.blend(flat, offset, axis + 1)
        return low.lerp_(self.blend(flat, offset + self._steps[axis], axis + 1), self._weights[axis])


def sampling_places(
    draw: Draw, *, size: Sequence[int], step: int, device: torch.device
) -> Iterator[tuple[int, list[Tensor]]]:
    """For slabs of `step` slices: the first slice, and where to sample, in voxels along D, H and W (d,H,W).

    The affine part is a sum of one ramp per axis; a deformation comes before it.
    """
    matrix = linear_map(draw)
    ramps = [_ramp(matrix[:, axis], length).to(device) for axis, length in enumerate(size)]
    origin = [(0.5 + shift) * length - 0.5 for shift, length in zip(draw.shift_fraction, size, strict=True)]
    planes = [ramps[1][k][:, None] + (ramps[2][k] + origin[k]) for k in range(3)]
    field = _deformation(draw, size=size, device=device) if draw.elastic_displacement_voxels else None
    taps = spline_taps(size[0], spacing_voxels=draw.elastic_spacing_voxels, device=device)
    for first in range(0, size[0], step):
        places = [planes[k] + ramps[0][k, first : first + step, None, None] for k in range(3)]
        if field is not None:
            for place, part in zip(places, field, strict=True):
                place += weigh_along(part, 0, taps.part(first, first + step))
        yield first, places


def _ramp(direction: Tensor, length: int) -> Tensor:
    """How the place to sample changes along one axis (3,N), zero in its middle."""
    return (direction[:, None] * (torch.arange(length, dtype=torch.float64) - (length - 1) / 2)).float()


def linear_map(draw: Draw) -> Tensor:
    """(3,3) float64 from offsets in voxels (d,h,w) of the output to those of the input.

    Rotation is in millimetres, so that shapes are kept whatever the sides of a voxel.
    """
    sides = torch.tensor(draw.voxel_mm, dtype=torch.float64)
    rotation = _rotation(draw.rotation_degrees) * sides / sides[:, None]
    mirror = torch.diag(torch.tensor([-1.0 if flip else 1.0 for flip in draw.mirrored], dtype=torch.float64))
    return rotation @ mirror / draw.scale


def _rotation(degrees: Sequence[float]) -> Tensor:
    """Rotation (3,3) about the D, H and W axes in turn, acting on (d,h,w) vectors."""
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(degrees):
        first, second = [i for i in range(3) if i != axis]
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = torch.eye(3, dtype=torch.float64)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        matrix = matrix @ turn
    return matrix


def _deformation(draw: Draw, *, size: Sequence[int], device: torch.device) -> Tensor:
    """The deformation (3, control points along D, H,W) as the affine part leaves it; D is still to do."""
    coefficients = elastic_coefficients(draw, size=size) @ linear_map(draw).T
    field = coefficients.movedim(-1, 0).float().contiguous().to(device)
    for axis in (2, 1):
        taps = spline_taps(size[axis], spacing_voxels=draw.elastic_spacing_voxels, device=device)
        field = weigh_along(field, axis + 1, taps)
    return field


def elastic_coefficients(draw: Draw, *, size: Sequence[int]) -> Tensor:
    """Displacement (d,h,w) in voxels of every control point (...,3) float64: uniform, each for itself.

    A cubic B-spline whose coefficients stay below 0.4 of the control spacing has no folds (Choi and Lee
    2000, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions"), and the affine part that
    follows adds none; the plan's settings keep to that.
    """
    rng = random_generator(draw.elastic_seed)
    counts = [control_points(length, spacing_voxels=draw.elastic_spacing_voxels) for length in size]
    largest = draw.elastic_displacement_voxels
    return torch.from_numpy(rng.uniform(-largest, largest, (*counts, 3)))
