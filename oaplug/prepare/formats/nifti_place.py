"""Where NIfTI's headers place their voxels: qform and sform, which must agree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from oaplug.prepare.formats.image_file import ImageFault, affine_from_lps, check_right_angles, check_spacing

if TYPE_CHECKING:
    from oaplug.core.volume import Affine

_MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Of NIfTI's units metre and micrometre; anything else is taken as millimetres, as ITK does."""
_SCANNER = 1
_ROUNDED = 0.01
"""By how much a quaternion's square may be more than 1."""
_LEAST_SQUARE = 1e-7
"""Below it the scalar part of a quaternion is taken as zero, as in NIfTI's own code."""


@dataclass(frozen=True, kw_only=True)
class NiftiPlace:
    """The fields of a header that place voxels; pixdim (8,) begins with the handedness of the qform."""

    units: int
    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    offset: tuple[float, ...]
    sform: tuple[float, ...]

    @property
    def doubt(self) -> ImageFault | None:
        """What is to be said of a header that has neither qform nor sform."""
        if self.qform_code > 0 or self.sform_code > 0:
            return None
        message = (
            "says nothing of its orientation (qform_code and sform_code are 0); its axes are taken to run to "
            "the left, back and top, as ITK does; check that, and set a code to 1"
        )
        return ImageFault("no orientation", message)


def affine_of(place: NiftiPlace, *, shape: tuple[int, int, int]) -> Affine:
    """The affine from voxel indices to RAS+ millimetres.

    The sform where its code says "scanner" or there is no qform, else the qform: ITK's choice. It matters
    little, because ImageFault is raised where the two place any voxel of `shape` half a voxel apart. It is
    raised too where axes are sheared, and where a spacing is not positive. Where there is neither, axes run
    in ITK's directions (LPS) from the origin.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _chosen(place, shape=shape)


def _chosen(place: NiftiPlace, *, shape: tuple[int, int, int]) -> Affine:
    qform, sform = _qform(place), _sform(place)
    if place.qform_code <= 0 and place.sform_code <= 0:
        return affine_from_lps(np.eye(3), spacing_mm=np.diag(qform)[:3].tolist(), origin_mm=(0, 0, 0))
    if place.sform_code <= 0:
        return qform
    if place.qform_code > 0:
        _check_agreement(qform, sform, shape=shape)
        return sform if place.sform_code == _SCANNER else qform
    _check_spacing_of(sform, qform, shape=shape)
    return sform


def _qform(place: NiftiPlace) -> Affine:
    """The affine of the quaternion; of the spacing alone where the qform is not in use."""
    scale = _MILLIMETRES.get(place.units, 1.0)
    spacing_mm = [step * scale for step in place.pixdim[1:4]]
    check_spacing(spacing_mm, field="the spacing (pixdim)")
    affine = np.eye(4)
    if place.qform_code > 0:
        affine[:3, :3] = _rotation(np.asarray(place.quaternion, dtype=np.float64))
        affine[:3, 3] = np.asarray(place.offset) * scale
        affine[:3, 2] *= -1.0 if place.pixdim[0] < 0 else 1.0
    affine[:3, :3] *= spacing_mm
    _check_finite(affine, field="the qform")
    return affine


def _rotation(imaginary: np.ndarray) -> np.ndarray:
    """The rotation (3,3) of a unit quaternion, of which the header has the three imaginary parts."""
    square = 1.0 - float(imaginary @ imaginary)
    if square < -_ROUNDED:
        shown = imaginary.tolist()
        message = f"the qform's quaternion {shown} is longer than 1; correct the header or export it again"
        raise ImageFault("bad header", message)
    if square < _LEAST_SQUARE:
        real, (b, c, d) = 0.0, imaginary / np.linalg.norm(imaginary)
    else:
        real, (b, c, d) = np.sqrt(square), imaginary
    across = np.array([[0, -d, c], [d, 0, -b], [-c, b, 0]])
    return np.asarray(np.eye(3) + 2 * real * across + 2 * across @ across)


def _sform(place: NiftiPlace) -> Affine:
    affine = np.eye(4)
    if place.sform_code > 0:
        affine[:3] = np.reshape(place.sform, (3, 4)) * _MILLIMETRES.get(place.units, 1.0)
        _check_finite(affine, field="the sform")
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        check_spacing(spacing_mm, field="the spacing of the sform")
        check_right_angles(affine, field="the sform")
    return affine


def _check_finite(affine: Affine, *, field: str) -> None:
    if not np.isfinite(affine).all():
        message = f"{field} has numbers that are NaN or infinite; correct the header or export it again"
        raise ImageFault("bad header", message)


def _check_agreement(qform: Affine, sform: Affine, *, shape: tuple[int, int, int]) -> None:
    """Raise ImageFault where two affines place any voxel more than half a voxel apart."""
    corners = np.array([*product(*((0, size - 1) for size in shape))]).T
    there = (qform - sform)[:3] @ np.vstack([corners, np.ones(8)])
    apart_mm = float(np.linalg.norm(there, axis=0).max())
    if not apart_mm <= _half_voxel(sform):
        message = (
            f"qform and sform place voxels up to {apart_mm:.3g} mm apart ({_turn(qform, sform)}), so "
            "programs disagree; expected less than half a voxel; set the code of the wrong one to 0"
        )
        raise ImageFault("ambiguous place", message)


def _turn(first: Affine, second: Affine) -> str:
    """By how much the axes of two affines are turned against each other."""
    one, other = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in (first, second))
    between = one.T @ other
    if np.linalg.det(between) < 0:
        return "one is mirrored"
    angle = np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1, 1)))
    return f"turned by {angle:.3g} degrees"


def _check_spacing_of(sform: Affine, qform: Affine, *, shape: tuple[int, int, int]) -> None:
    """Raise ImageFault where pixdim, which some programs take, is another spacing than that of the sform."""
    found, expected = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (qform, sform))
    if not (np.abs(found - expected) * shape).max() <= _half_voxel(sform):
        values = [np.round(value, 4).tolist() for value in (found, expected)]
        message = f"pixdim says a spacing of {values[0]} mm, the sform {values[1]}"
        raise ImageFault("ambiguous place", f"{message}; correct pixdim, or export the image again")


def _half_voxel(affine: Affine) -> float:
    return float(np.linalg.norm(affine[:3, :3], axis=0).min()) / 2
