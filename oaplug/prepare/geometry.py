"""Voxel grids and their place in the patient: orientation, boxes, resampling.

Every function returns an affine that maps the new voxel indices to the same millimetres as before. Masks are
flipped and permuted but never resampled, so that no label is invented: networks do not see them, and maps are
brought to the mask's own grid (`back_to_image`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from oaplug.core.volume import Volume
from oaplug.prepare.axis_matrices import apply_weights, axis_weights, interpolate_within, is_within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from oaplug.core.case import Side
    from oaplug.core.volume import Affine, FloatArray

    Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

DType = TypeVar("DType", bound=np.generic)


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Distances in mm between neighbouring voxels along the three axes of a grid."""
    first, second, third = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return (first, second, third)


def canonical_axes(affine: Affine) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The voxel axes that run along R, A and S, and whether each must be flipped to run towards them.

    Of all permutations with flips the one that leaves the smallest rotation is taken, so an oblique
    grid gets its nearest anatomical axes.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(
        permutations(range(3)), key=lambda axes: sum(abs(cosines[i, axis]) for i, axis in enumerate(axes))
    )
    return order, tuple(bool(cosines[i, axis] < 0) for i, axis in enumerate(order))


def to_canonical(data: NDArray[DType], affine: Affine) -> tuple[NDArray[DType], Affine]:
    """A view of `data` (C, then the axes of `affine`) as (C,D,H,W) in RAS+ axes, and its affine."""
    order, flips = canonical_axes(affine)
    moved = data.transpose(0, *(axis + 1 for axis in order))
    ordered = affine[:, [*order, 3]]
    flipped = tuple(axis for axis, flip in enumerate(flips) if flip)
    return np.flip(moved, tuple(axis + 1 for axis in flipped)), _flip_affine(
        ordered, moved.shape[1:], axes=flipped
    )


def from_canonical(data: NDArray[DType], affine: Affine) -> NDArray[DType]:
    """A view of `data` (C,D,H,W) in RAS+ axes with the axes of a file's `affine`: undoes `to_canonical`."""
    order, flips = canonical_axes(affine)
    flipped: NDArray[DType] = np.flip(data, tuple(axis + 1 for axis, flip in enumerate(flips) if flip))
    stored: NDArray[DType] = flipped.transpose(0, *(order.index(axis) + 1 for axis in range(3)))
    return stored


def mirror_side(volume: Volume, *, side: Side | None) -> Volume:
    """A left knee with D reversed, so that +D is lateral in every knee; other volumes as they are.

    The affine of a mirrored volume has a negative determinant: it still leads to the true place.
    """
    if side != "L":
        return volume
    affine = _flip_affine(volume.affine, volume.data.shape[1:], axes=(0,))
    return replace(volume, data=np.flip(volume.data, 1), affine=affine)


def _flip_affine(affine: Affine, shape: Sequence[int], *, axes: Sequence[int]) -> Affine:
    flipped: Affine = affine.copy()
    for axis in axes:
        flipped[:, 3] += (shape[axis] - 1) * affine[:, axis]
        flipped[:, axis] = -affine[:, axis]
    return flipped


def nonzero_box(data: NDArray[Any]) -> Box:
    """Start and stop per axis of the voxels of `data` (C,D,H,W) that are not zero in some channel.

    The whole volume where every voxel is zero.
    """
    box: list[tuple[int, int]] = []
    for axis in range(1, 4):
        slabs = np.moveaxis(data, axis, 0)
        filled = (index for index, slab in enumerate(slabs) if slab.any())
        start = next(filled, None)
        if start is None:
            break
        stop = next(index for index in range(len(slabs), start, -1) if slabs[index - 1].any())
        data = np.moveaxis(slabs[start:stop], 0, axis)
        box.append((start, stop))
    depth, height, width = box or [(0, size) for size in data.shape[1:]]
    return (depth, height, width)


def box_center(box: Box) -> tuple[float, float, float]:
    """Voxel coordinates of the middle of a box."""
    depth, height, width = ((start + stop - 1) / 2 for start, stop in box)
    return (depth, height, width)


def crop(volume: Volume, box: Box) -> Volume:
    """The part of a volume in a box that lies within it."""
    within = (slice(None), *(slice(start, stop) for start, stop in box))
    return replace(
        volume, data=volume.data[within], affine=_shifted(volume.affine, [start for start, _ in box])
    )


def pad_crop(
    volume: Volume,
    *,
    size_voxels: tuple[int, int, int],
    center_voxels: tuple[float, float, float],
    pad_value: Sequence[float],
) -> Volume:
    """The box of `size_voxels` around `center_voxels`; beyond the border each channel's `pad_value`.

    Raises ValueError where the centre is not in the volume.
    """
    shape = volume.data.shape[1:]
    if not all(-0.5 <= center <= size - 0.5 for center, size in zip(center_voxels, shape, strict=True)):
        raise ValueError(f"the centre {center_voxels} is not in a volume of {shape} voxels")
    # rounded twice, so that a middle between two voxels falls to the same one whatever its last digits
    starts = [round(round(c - (size - 1) / 2, 6)) for c, size in zip(center_voxels, size_voxels, strict=True)]
    kept = [_overlap(*extent) for extent in zip(starts, size_voxels, shape, strict=True)]
    source, target = (slice(None), *(old for old, _ in kept)), tuple(new for _, new in kept)
    data = np.empty((len(volume.data), *size_voxels), dtype=volume.data.dtype)
    for into, channel, value in zip(data, volume.data[source], pad_value, strict=True):
        into[:] = value
        into[target] = channel
    return replace(volume, data=data, affine=_shifted(volume.affine, starts))


def _overlap(start: int, size: int, old_size: int) -> tuple[slice, slice]:
    """Where `size` voxels from `start` on lie among `old_size` ones, in old and in new indices."""
    first, last = max(start, 0), min(start + size, old_size)
    return slice(first, last), slice(first - start, last - start)


def _shifted(affine: Affine, start: Sequence[float]) -> Affine:
    """The affine of a grid whose voxel (0,0,0) is voxel `start` of the given one."""
    shifted: Affine = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=float)
    return shifted


def resample(volume: Volume, *, spacing_mm: tuple[float, float, float], anti_aliasing: bool = True) -> Volume:
    """The volume at another spacing, by linear interpolation; its extent is kept to within half a new voxel.

    The middle of the volume stays in the middle, so resampling and mirroring may be exchanged. See
    `resample_grid` for the anti-aliasing filter.
    """
    extents = zip(volume.data.shape[1:], volume.spacing_mm, spacing_mm, strict=True)
    size_voxels = [max(1, round(size * old / new)) for size, old, new in extents]
    return resample_grid(volume, size_voxels=size_voxels, spacing_mm=spacing_mm, anti_aliasing=anti_aliasing)


def resample_to_size(
    volume: Volume, *, size_voxels: tuple[int, int, int], anti_aliasing: bool = True
) -> Volume:
    """The volume stretched to `size_voxels`, each axis by its own factor; its extent is kept exactly."""
    extents = zip(volume.data.shape[1:], volume.spacing_mm, size_voxels, strict=True)
    depth, height, width = (old * spacing / new for old, spacing, new in extents)
    spacing_mm = (depth, height, width)
    return resample_grid(volume, size_voxels=size_voxels, spacing_mm=spacing_mm, anti_aliasing=anti_aliasing)


def resample_grid(
    volume: Volume, *, size_voxels: Sequence[int], spacing_mm: tuple[float, float, float], anti_aliasing: bool
) -> Volume:
    """The volume on a grid with the same middle and directions; voxels beyond the border repeat it.

    An axis that shrinks by a factor f is first smoothed with a Gaussian of
    sqrt((f^2 - 1) / (8 ln 2)) old voxels, which turns a point spread as wide as an old voxel (full width
    at half maximum) into one as wide as a new voxel (Cardoso et al., MICCAI 2015, "Scale factor point
    spread function matching"). Smoothing and interpolation are one sparse matrix per axis.
    """
    shape = volume.data.shape[1:]
    factors = np.asarray(spacing_mm) / volume.spacing_mm
    weights = {
        axis: axis_weights(old, new, factor=factor, anti_aliasing=anti_aliasing)
        for axis, (old, new, factor) in enumerate(zip(shape, size_voxels, factors.tolist(), strict=True))
        if old != new or abs(factor - 1) > _SAME_FACTOR
    }
    data = np.empty((len(volume.data), *size_voxels), dtype=np.float32)
    for channel, into in zip(volume.data, data, strict=True):
        into[:] = apply_weights(weights, channel)
    start = (np.asarray(shape) - 1) / 2 - (np.asarray(size_voxels) - 1) / 2 * factors
    affine = _shifted(volume.affine, start.tolist())
    affine[:3, :3] *= factors
    return Volume(data=data, spacing_mm=spacing_mm, affine=affine)


_SAME_FACTOR = 1e-7
"""Spacings that agree this well move no voxel of a 1000-voxel axis by 1e-4 of its size."""


def back_to_image(
    prepared_map: FloatArray, *, prepared_affine: Affine, image_shape: tuple[int, ...], image_affine: Affine
) -> FloatArray:
    """A map (D,H,W) on the grid of a prepared volume, brought to the grid of the image it was made from.

    Trilinear; zero where the image lies outside of the prepared volume's voxels. Any two grids will do;
    where their axes are parallel, as they are after preprocessing, each is a sparse matrix.
    """
    to_map = np.linalg.inv(prepared_affine) @ image_affine
    data = np.asarray(prepared_map, dtype=np.float32)
    if _is_parallel(to_map, image_shape):
        places = [to_map[axis, axis] * np.arange(image_shape[axis]) + to_map[axis, 3] for axis in range(3)]
        weights = {axis: interpolate_within(places[axis], data.shape[axis]) for axis in range(3)}
        return np.ascontiguousarray(apply_weights(weights, data))
    from scipy.ndimage import affine_transform

    sampled: FloatArray = affine_transform(
        data, to_map, output_shape=tuple(image_shape), order=1, mode="nearest"
    )
    for axis, size in enumerate(prepared_map.shape):
        place = _coordinate(to_map[axis], image_shape)
        sampled *= is_within(place, size)
    return sampled


def _is_parallel(to_map: Affine, image_shape: tuple[int, ...]) -> bool:
    """Whether each axis of an image runs along that of the map, to within _SAME_FACTOR of a voxel."""
    across = to_map[:3, :3] * np.asarray(image_shape)
    return bool((np.abs(across - np.diag(np.diag(across))) <= _SAME_FACTOR).all())


def _coordinate(row: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """One coordinate of every voxel of a grid, as an array that broadcasts to the grid's shape."""
    place = np.full((1, 1, 1), row[3])
    for axis, step in enumerate(row[:3]):
        if abs(step) * shape[axis] > _SAME_FACTOR:
            place = place + step * np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(3)])
    return place
