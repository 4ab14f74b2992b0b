"""Stored voxels as arrays in canonical axes: turned, scaled and converted in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.prepare.formats.image_file import ImageFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from oaplug.core.volume import FloatArray

_FIT_INT16 = ("int8", "uint8", "int16")


def to_float32(view: NDArray[Any], *, slope: float, intercept: float) -> FloatArray:
    """slope * view + intercept of a view (D,H,W) of any type, contiguous in memory.

    Scaled in float64, then rounded. Raises ImageFault where a voxel is NaN, infinite or beyond float32.
    """
    channel = np.empty(view.shape, dtype=np.float32)
    may_overflow = view.dtype.kind == "f" or (slope, intercept) != (1, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        for into, stored in _planes(channel, view):
            values = stored
            if may_overflow:
                values = _scaled(stored, slope=slope, intercept=intercept).astype(np.float32, copy=False)
                if not np.isfinite(values).all():
                    message = "has voxels that are NaN, infinite or beyond float32; export the image again"
                    raise ImageFault("NaN or infinite", message)
            into[...] = values
    return channel


def to_labels(view: NDArray[Any], *, slope: float, intercept: float) -> NDArray[np.int16]:
    """slope * view + intercept of a view (D,H,W) of any type, as whole numbers, contiguous in memory.

    Raises ImageFault where a value is no whole number that int16 can hold.
    """
    labels = np.empty(view.shape, dtype=np.int16)
    may_differ = view.dtype.name not in _FIT_INT16 or (slope, intercept) != (1, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        for into, stored in _planes(labels, view):
            values = stored
            if may_differ:
                exact = _scaled(stored, slope=slope, intercept=intercept)
                values = exact.astype(np.int16)
                if not np.array_equal(values, exact):
                    message = "has voxels that are no whole label numbers; save the mask as integers"
                    raise ImageFault("bad mask", message)
            into[...] = values
    return labels


def is_constant(data: NDArray[Any]) -> bool:
    """Whether all voxels are the same; looks at few of them first."""
    few = data[tuple(slice(None, None, max(1, size // 8)) for size in data.shape)]
    return bool((few == data.flat[0]).all() and (data == data.flat[0]).all())


def _planes(target: NDArray[Any], view: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Planes of `target` and compact copies of those of `view`, each holding the fastest axes of both.

    A copy that fits into the cache makes turning axes cheap, and a volume's size is a power of two too
    often for strided reading: all its lines would fall into the same few places of the cache.
    """
    fastest = int(np.argmin(np.abs(view.strides)))
    across = 0 if fastest == 2 else 1 - fastest
    pairs = zip(np.moveaxis(target, across, 0), np.moveaxis(view, across, 0), strict=True)
    for into, plane in pairs:
        yield into, plane.copy(order="K")


def _scaled(stored: NDArray[Any], *, slope: float, intercept: float) -> NDArray[Any]:
    if (slope, intercept) == (1, 0):
        return stored
    scaled: NDArray[Any] = stored.astype(np.float64) * slope + intercept
    return scaled
