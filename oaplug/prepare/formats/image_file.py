"""An image as the header of its file describes it, in whatever format: where its voxels lie, and loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from oaplug.core.volume import Affine

SHEAR_TOLERANCE_DEGREES = 0.05
"""Largest difference from a right angle between two axes; headers are rounded."""
_LEAST_MM, _MOST_MM = 1e-9, 1e9


class ImageFault(Exception):
    """Why a file is no image that can be used: the `kind` of the problem, and what to do about it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A 3D image of one real value per voxel, in its file's own axes (x,y,z).

    `affine` leads from voxel indices to RAS+ millimetres. `load` gives the voxels (x,y,z) as they are
    stored, in any order in memory; their values are slope * stored + intercept. It raises ImageFault, or
    what the format's library raises, where the file is damaged. `doubt` is a fault that others read past.
    """

    shape: tuple[int, int, int]
    affine: Affine
    load: Callable[[], NDArray[Any]]
    slope: float = 1.0
    intercept: float = 0.0
    doubt: ImageFault | None = None


def check_dimensions(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Sizes along x, y and z; raises ImageFault where there are more or fewer, or one is not positive."""
    if any(size < 1 for size in sizes):
        message = f"the header gives the size {_shown(sizes)}, expected positive numbers; export it again"
        raise ImageFault("bad header", message)
    if len(sizes) != 3:
        found = f"{len(sizes)}D of {' x '.join(str(size) for size in sizes)}"
        raise ImageFault("not 3D", f"expected a 3D image, got {found}; save one 3D file per channel")
    width, height, depth = sizes
    return (int(width), int(height), int(depth))


def check_one_value(components: int) -> None:
    """Raise ImageFault where a voxel has several values, as colours have."""
    if components != 1:
        message = f"expected one value per voxel, got {components} (colour?); save one file per channel"
        raise ImageFault("several values per voxel", message)


def check_spacing(spacing_mm: Sequence[float], *, field: str) -> None:
    """Raise ImageFault where a distance between voxels is zero, negative, NaN, or beyond all measure."""
    if not all(_LEAST_MM < value < _MOST_MM for value in spacing_mm):
        shown = _shown([round(float(value), 6) for value in spacing_mm])
        message = f"{field} is {shown}, expected distances above 0 mm; correct the header or export it again"
        raise ImageFault("bad spacing", message)


def check_right_angles(affine: Affine, *, field: str) -> None:
    """Raise ImageFault saying by how much where the axes of a grid are not at right angles."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
    shear = float(np.degrees(np.arcsin(np.clip(np.abs(cosines), 0, 1))).max())
    if not shear <= SHEAR_TOLERANCE_DEGREES:
        message = (
            f"{field} is sheared: axes are {shear:.3g} degrees off a right angle, expected at most "
            f"{SHEAR_TOLERANCE_DEGREES}; resample the image to a straight grid"
        )
        raise ImageFault("sheared axes", message)


def affine_from_lps(
    directions: NDArray[np.float64], *, spacing_mm: Sequence[float], origin_mm: Sequence[float]
) -> Affine:
    """The affine to RAS+ millimetres of a grid described as ITK does: LPS+, one axis per column (3,3)."""
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ directions * np.asarray(spacing_mm)
    affine[:3, 3] = to_ras @ np.asarray(origin_mm)
    return affine


def _shown(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
