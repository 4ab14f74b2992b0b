"""Resampling along one axis at a time: the sparse matrix that maps old voxels to new ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from oaplug.core.volume import FloatArray


_CUT_OFF = 4.0


def axis_weights(old: int, new: int, *, factor: float, anti_aliasing: bool) -> csr_array:
    """The matrix (new,old) that smooths and interpolates along one axis; every row sums to one."""
    from scipy.sparse import csr_array

    places = (np.arange(new, dtype=np.float64) - (new - 1) / 2) * factor + (old - 1) / 2
    smoothing = np.eye(old)
    if anti_aliasing and factor > 1:
        smoothing = _gaussian(old, sigma_voxels=math.sqrt((factor**2 - 1) / (8 * math.log(2))))
    return csr_array(interpolate_at(places, old) @ smoothing, dtype=np.float32)


def _gaussian(size: int, *, sigma_voxels: float) -> NDArray[np.float64]:
    """The matrix (size,size) of a Gaussian filter cut off at four sigma; beyond the ends voxels repeat."""
    reach = int(_CUT_OFF * sigma_voxels + 0.5)
    steps = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (steps / sigma_voxels) ** 2)
    rows = np.arange(size)[:, None]
    smoothing = np.zeros((size, size))
    np.add.at(smoothing, (rows, np.clip(rows + steps, 0, size - 1)), kernel / kernel.sum())
    return smoothing


def interpolate_at(places: NDArray[np.float64], old: int) -> csr_array:
    """The matrix (new,old) that interpolates at `places` (new,); beyond the ends voxels repeat."""
    from scipy.sparse import csr_array

    new = len(places)
    places = np.clip(places, 0, old - 1)
    below = np.floor(places).astype(int)
    entries = np.concatenate([1 - (places - below), places - below])
    columns = np.concatenate([below, np.minimum(below + 1, old - 1)])
    return csr_array((entries, (np.tile(np.arange(new), 2), columns)), (new, old))


def interpolate_within(places: NDArray[np.float64], old: int) -> csr_array:
    """The matrix (new,old) that interpolates at `places` (new,), and gives zero outside of the voxels."""
    from scipy.sparse import csr_array, diags_array

    kept = diags_array(is_within(places, old).astype(np.float64))
    return csr_array(kept @ interpolate_at(places, old), dtype=np.float32)


def is_within(places: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """Whether places lie in one of `size` voxels; rounded, so that the outer faces count as inside."""
    near = np.round(places, 6)
    return np.asarray((near >= -0.5) & (near <= size - 0.5))


def apply_weights(weights: Mapping[int, csr_array], channel: FloatArray) -> FloatArray:
    """`channel` (D,H,W) multiplied by a matrix (new,old) along each of some axes.

    The axis that shrinks most goes first, so that what is in between is small.
    """
    by_shrinkage = sorted(weights, key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1])
    for axis in by_shrinkage:
        channel = _apply_along(weights[axis], channel, axis=axis)
    return channel


def _apply_along(weights: csr_array, channel: FloatArray, *, axis: int) -> FloatArray:
    """`channel` (D,H,W) multiplied along one axis, slab by slab to stay in the processor's cache."""
    slabs = np.moveaxis(channel, axis, -2)
    result = np.empty((len(slabs), weights.shape[0], slabs.shape[-1]), dtype=np.float32)
    for slab, into in zip(slabs, result, strict=True):
        into[:] = weights @ np.ascontiguousarray(slab)
    return np.moveaxis(result, -2, axis)
