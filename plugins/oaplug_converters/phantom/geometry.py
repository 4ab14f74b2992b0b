"""Points, signed distances and partial volume: the geometry the knee is built from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Triple = tuple[float, float, float]

FIELD_OF_VIEW_MM: Triple = (112.0, 140.0, 140.0)


class Points(NamedTuple):
    """Positions in mm, one array (D,H,W) per axis: x to lateral, y to anterior, z to superior."""

    x: FloatArray
    y: FloatArray
    z: FloatArray


class Bases(NamedTuple):
    """Cosine bases (size, terms) per axis, from which smooth fields are summed."""

    d: FloatArray
    h: FloatArray
    w: FloatArray


def spacing_of(shape: tuple[int, int, int]) -> Triple:
    """Voxel size (D,H,W) in mm that makes `shape` voxels fill the field of view."""
    d, h, w = (extent / size for extent, size in zip(FIELD_OF_VIEW_MM, shape, strict=True))
    return d, h, w


def grid_axes(shape: tuple[int, int, int]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Voxel centres in mm along each axis, zero in the middle of the field of view."""
    d, h, w = (
        ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32) * np.float32(extent)
        for extent, size in zip(FIELD_OF_VIEW_MM, shape, strict=True)
    )
    return d, h, w


def cosine_bases(axes_mm: tuple[FloatArray, FloatArray, FloatArray], *, terms: tuple[int, ...]) -> Bases:
    """The lowest `terms` cosines along each axis, by position, so that shape does not matter."""
    d, h, w = (
        np.cos(np.pi * np.outer(axis / extent + 0.5, np.arange(count))).astype(np.float32)
        for axis, extent, count in zip(axes_mm, FIELD_OF_VIEW_MM, terms, strict=True)
    )
    return Bases(d, h, w)


def smooth_field(coefficients: FloatArray, bases: Bases) -> FloatArray:
    """Sum of cosines (D,H,W) with `coefficients` (terms along D, H, W)."""
    field = np.tensordot(bases.d, coefficients, axes=(1, 0))
    field = np.tensordot(field, bases.h, axes=(1, 1))
    return np.tensordot(field, bases.w, axes=(1, 1))


def rotation_matrix(angles_degrees: Triple) -> FloatArray:
    """Rotation (3,3) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(angles_degrees)), np.sin(np.radians(angles_degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).astype(np.float32)


def bend(points: Points, *, angle_degrees: float, hinge_mm: tuple[float, float]) -> Points:
    """Turn about an axis along x through `hinge_mm` (y, z): flexion for a positive angle."""
    cosine, sine = (
        np.float32(np.cos(np.radians(angle_degrees))),
        np.float32(np.sin(np.radians(angle_degrees))),
    )
    y, z = points.y - np.float32(hinge_mm[0]), points.z - np.float32(hinge_mm[1])
    return Points(
        points.x,
        cosine * y + sine * z + np.float32(hinge_mm[0]),
        cosine * z - sine * y + np.float32(hinge_mm[1]),
    )


def ellipsoid_distance(points: Points, *, center_mm: Triple, radii_mm: Triple) -> FloatArray:
    """Signed distance (D,H,W) in mm to an ellipsoid, exact to first order at its surface, negative inside."""
    scaled = [
        (axis - np.float32(center)) / np.float32(radius)
        for axis, center, radius in zip(points, center_mm, radii_mm, strict=True)
    ]
    length = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    slope = np.sqrt(
        sum((part / np.float32(radius)) ** 2 for part, radius in zip(scaled, radii_mm, strict=True))
    )
    return length * (length - 1) / (slope + np.float32(1e-6))


def rod_distance(points: Points, *, start_mm: Triple, end_mm: Triple, radius_mm: float) -> FloatArray:
    """Signed distance (D,H,W) in mm to a rod with round ends: a ligament or a vessel."""
    start, along = np.asarray(start_mm, np.float32), np.subtract(end_mm, start_mm).astype(np.float32)
    offset = [axis - value for axis, value in zip(points, start, strict=True)]
    share = sum(part * value for part, value in zip(offset, along, strict=True)) / np.float32(along @ along)
    share = np.clip(share, 0, 1)
    squared = sum((part - share * value) ** 2 for part, value in zip(offset, along, strict=True))
    return np.sqrt(squared) - np.float32(radius_mm)


def smooth_union(first_mm: FloatArray, second_mm: FloatArray, *, blend_mm: float) -> FloatArray:
    """Signed distance to either of two bodies, their seam rounded over `blend_mm`."""
    mix = np.maximum(np.float32(blend_mm) - np.abs(first_mm - second_mm), 0)
    return np.minimum(first_mm, second_mm) - mix * mix / np.float32(4 * blend_mm)


def smooth_cut(first_mm: FloatArray, second_mm: FloatArray, *, blend_mm: float) -> FloatArray:
    """Signed distance to what two bodies share, the edge rounded over `blend_mm`."""
    return -smooth_union(-first_mm, -second_mm, blend_mm=blend_mm)


def coverage(distance_mm: FloatArray, *, width_mm: float) -> FloatArray:
    """Share of a voxel of `width_mm` (0 to 1) that lies inside a surface at signed distance `distance_mm`."""
    return np.clip(np.float32(0.5) - distance_mm / np.float32(width_mm), 0, 1)


def ramp(values: FloatArray, *, start: float, stop: float) -> FloatArray:
    """Smooth step: 0 at and before `start`, 1 at and beyond `stop` (which may be the smaller one)."""
    share = np.clip((values - np.float32(start)) / np.float32(stop - start), 0, 1)
    return share * share * (3 - 2 * share)
