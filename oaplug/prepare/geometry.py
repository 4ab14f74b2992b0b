"""Voxel grids and their place in the patient: orientation, boxes, resampling.

Every function returns an affine that maps the new voxel indices to the same millimetres as before.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from oaplug.core.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

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
    from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask

    depth, height, width = get_bbox_from_mask((data != 0).any(axis=0))
    return (_extent(depth), _extent(height), _extent(width))


def _extent(bounds: Sequence[Any]) -> tuple[int, int]:
    return (int(bounds[0]), int(bounds[1]))


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
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

    shape = volume.data.shape[1:]
    if not all(-0.5 <= center <= size - 0.5 for center, size in zip(center_voxels, shape, strict=True)):
        raise ValueError(f"the centre {center_voxels} is not in a volume of {shape} voxels")
    # rounded twice, so that a middle between two voxels falls to the same one whatever its last digits
    starts = [round(round(c - (size - 1) / 2, 6)) for c, size in zip(center_voxels, size_voxels, strict=True)]
    box = [[start, start + size] for start, size in zip(starts, size_voxels, strict=True)]
    channels = zip(volume.data, pad_value, strict=True)
    data = np.stack([crop_and_pad_nd(channel, box, pad_value=float(value)) for channel, value in channels])
    return replace(volume, data=data, affine=_shifted(volume.affine, starts))


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
    data = volume.data
    for axis, (old, new, factor) in enumerate(zip(shape, size_voxels, factors.tolist(), strict=True)):
        if old != new or abs(factor - 1) > _SAME_FACTOR:
            weights = axis_weights(old, new, factor=factor, anti_aliasing=anti_aliasing)
            data = _apply_along(weights, data, axis=axis + 1)
    start = (np.asarray(shape) - 1) / 2 - (np.asarray(size_voxels) - 1) / 2 * factors
    affine = _shifted(volume.affine, start.tolist())
    affine[:3, :3] *= factors
    return Volume(data=np.ascontiguousarray(data), spacing_mm=spacing_mm, affine=affine)


_SAME_FACTOR = 1e-7
"""Spacings that agree this well move no voxel of a 1000-voxel axis by 1e-4 of its size."""


def axis_weights(old: int, new: int, *, factor: float, anti_aliasing: bool) -> csr_array:
    """The matrix (new,old) that smooths and interpolates along one axis; every row sums to one."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.sparse import csr_array

    places = (np.arange(new, dtype=np.float64) - (new - 1) / 2) * factor + (old - 1) / 2
    interpolation = _interpolation(places, old)
    smoothing = np.eye(old)
    if anti_aliasing and factor > 1:
        sigma_voxels = np.sqrt((factor**2 - 1) / (8 * np.log(2)))
        smoothing = gaussian_filter1d(smoothing, sigma_voxels, axis=0, mode="nearest")
    return csr_array(interpolation @ smoothing, dtype=np.float32)


def _interpolation(places: NDArray[np.float64], old: int) -> csr_array:
    """The matrix (new,old) that interpolates at `places` (new,); beyond the ends voxels repeat."""
    from scipy.sparse import csr_array

    new = len(places)
    places = np.clip(places, 0, old - 1)
    below = np.floor(places).astype(int)
    entries = np.concatenate([1 - (places - below), places - below])
    columns = np.concatenate([below, np.minimum(below + 1, old - 1)])
    return csr_array((entries, (np.tile(np.arange(new), 2), columns)), (new, old))


def _apply_along(weights: csr_array, data: FloatArray, *, axis: int) -> FloatArray:
    """`data` (C,D,H,W) multiplied by a matrix (new,old) along one axis, slab by slab to stay in the cache."""
    moved = np.moveaxis(data, axis, -2)
    slabs = moved.reshape(-1, *moved.shape[-2:])
    result = np.empty((len(slabs), weights.shape[0], slabs.shape[-1]), dtype=np.float32)
    for slab, into in zip(slabs, result, strict=True):
        into[:] = weights @ np.ascontiguousarray(slab)
    return np.moveaxis(result.reshape(*moved.shape[:-2], *result.shape[1:]), -2, axis)


def back_to_image(
    prepared_map: FloatArray, *, prepared_affine: Affine, image_shape: tuple[int, ...], image_affine: Affine
) -> FloatArray:
    """A map (D,H,W) on the grid of a prepared volume, brought to the grid of the image it was made from.

    Trilinear; zero where the image lies outside of the prepared volume's voxels. Any two grids will do;
    where their axes are parallel, as they are after preprocessing, each is a sparse matrix.
    """
    from scipy.ndimage import affine_transform

    to_map = np.linalg.inv(prepared_affine) @ image_affine
    data = np.asarray(prepared_map, dtype=np.float32)
    if _is_parallel(to_map, image_shape):
        for axis in range(3):
            places = to_map[axis, axis] * np.arange(image_shape[axis]) + to_map[axis, 3]
            data = _apply_along(_within(places, data.shape[axis]), data[None], axis=axis + 1)[0]
        return np.ascontiguousarray(data)
    sampled: FloatArray = affine_transform(
        data, to_map, output_shape=tuple(image_shape), order=1, mode="nearest"
    )
    for axis, size in enumerate(prepared_map.shape):
        place = _coordinate(to_map[axis], image_shape)
        sampled *= _is_within(place, size)
    return sampled


def _is_parallel(to_map: Affine, image_shape: tuple[int, ...]) -> bool:
    """Whether each axis of an image runs along that of the map, to within _SAME_FACTOR of a voxel."""
    across = to_map[:3, :3] * np.asarray(image_shape)
    return bool((np.abs(across - np.diag(np.diag(across))) <= _SAME_FACTOR).all())


def _within(places: NDArray[np.float64], size: int) -> csr_array:
    """The matrix (new,size) that interpolates at `places` (new,), and gives zero outside of the voxels."""
    from scipy.sparse import csr_array, diags_array

    kept = diags_array(_is_within(places, size).astype(np.float64))
    return csr_array(kept @ _interpolation(places, size), dtype=np.float32)


def _is_within(places: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """Whether places lie in one of `size` voxels; rounded, so that the outer faces count as inside."""
    near = np.round(places, 6)
    return np.asarray((near >= -0.5) & (near <= size - 0.5))


def _coordinate(row: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """One coordinate of every voxel of a grid, as an array that broadcasts to the grid's shape."""
    place = np.full((1, 1, 1), row[3])
    for axis, step in enumerate(row[:3]):
        if abs(step) * shape[axis] > _SAME_FACTOR:
            place = place + step * np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(3)])
    return place
