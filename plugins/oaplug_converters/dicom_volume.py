"""The slices of a series as one volume: whether they are one, and reading it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.errors import DatasetError
from oaplug_converters.dicom_slices import DISCRIMINATORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from oaplug_converters.dicom_slices import Slice

_DIRECTION_TOLERANCE = 1e-3
"""Largest difference of direction cosines within one volume."""
_EVEN_TOLERANCE = 0.02
"""Largest difference between two gaps, as a part of the usual one and in mm: positions are often rounded."""
_PLANES = ("sagittal", "coronal", "axial")
"""Of a normal along x, y, z (LPS)."""


def in_order(slices: Sequence[Slice], *, expected: int = 0) -> list[Slice]:
    """The slices of one evenly spaced volume along their normal; `expected` is their number (0: any).

    Raises DatasetError saying what was found where they are anything else: a localiser, several echoes,
    a series with missing or unevenly spaced slices.
    """
    refusal = _refusal_of_files(slices) or _refusal_of_planes(slices) or _refusal_of_echoes(slices)
    if refusal:
        raise DatasetError(refusal)
    ordered = sorted(slices, key=_along_normal)
    refusal = _refusal_of_steps(ordered)
    if not refusal and expected and len(ordered) != expected:
        refusal = f"{len(ordered)} slices, expected {expected}; get the missing ones, or change --set slices"
    if refusal:
        raise DatasetError(refusal)
    return ordered


def _refusal_of_files(slices: Sequence[Slice]) -> str:
    if any(one.frames > 1 for one in slices):
        return "an enhanced file of several frames; write it as one file per slice, or as NIfTI (table)"
    if any(one.samples != 1 for one in slices):
        return "colour images; expected one value per voxel"
    unplaced = [one.path.name for one in slices if not one.position_mm or not one.orientation]
    if unplaced:
        return f"{unplaced[0]} has no ImagePositionPatient or ImageOrientationPatient; it is in no volume"
    return ""


def _refusal_of_planes(slices: Sequence[Slice]) -> str:
    planes: list[tuple[NDArray[np.float64], list[Slice]]] = []
    for one in slices:
        orientation = np.asarray(one.orientation)
        for known, members in planes:
            if np.abs(known - orientation).max() < _DIRECTION_TOLERANCE:
                members.append(one)
                break
        else:
            planes.append((orientation, [one]))
    if len(planes) > 1:
        found = ", ".join(f"{_plane(members[0])} {len(members)}" for _, members in planes)
        return (
            f"a localiser or several stacks: slices of {len(planes)} orientations ({found}); choose another"
        )
    grids = Counter(one.grid for one in slices)
    if len(grids) > 1:
        found = ", ".join(
            f"{count} of {x:g}x{y:g} at {dx:g}x{dy:g} mm" for (x, y, dx, dy), count in grids.items()
        )
        return f"slices of different grids ({found}); a volume has one"
    return ""


def _plane(one: Slice) -> str:
    return _PLANES[int(np.abs(_normal(one)).argmax())]


def _normal(one: Slice) -> NDArray[np.float64]:
    row, column = np.reshape(one.orientation, (2, 3))
    return np.cross(row, column)


def _along_normal(one: Slice) -> float:
    return float(_normal(one) @ one.position_mm)


def _refusal_of_echoes(slices: Sequence[Slice]) -> str:
    """Several images of one place, or several echo times, which are volumes of their own."""
    per_place = Counter(round(_along_normal(one), 2) for one in slices)
    times = {one.told[0] for one in slices}
    if len(per_place) == len(slices) and len(times) == 1:
        return ""
    most = max(per_place.values())
    differing = []
    for index, name in enumerate(DISCRIMINATORS):
        values = list(dict.fromkeys(one.told[index] for one in slices))
        if len(values) > 1:
            shown = ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
            differing.append(f"{name} ({shown})")
    told = f"which differ in {' and '.join(differing)}" if differing else "which nothing tells apart"
    kind = "several echoes" if len(times) > 1 else "several volumes"
    return (
        f"{kind} in one series: {len(slices)} images at {len(per_place)} places, up to {most} each, {told}; "
        "have them written as series of their own, or leave one"
    )


def _refusal_of_steps(ordered: Sequence[Slice]) -> str:
    """Slices that are not on one line along their normal, or not evenly spaced."""
    if len(ordered) < 2:
        return "a single slice; expected a volume"
    positions = np.array([one.position_mm for one in ordered])
    normal = _normal(ordered[0])
    along = positions @ normal
    step = float(np.median(np.diff(along)))
    tolerance_mm = max(_EVEN_TOLERANCE * step, _EVEN_TOLERANCE)
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    if np.linalg.norm(sideways, axis=1).max() > tolerance_mm:
        return "slices are shifted against each other (a tilted gantry?); resample them to a straight stack"
    for first, second, gap in zip(ordered, ordered[1:], np.diff(along).tolist(), strict=False):
        if abs(gap - step) > tolerance_mm:
            return _bad_gap(first, second, gap=gap, step=step)
    between = ordered[0].spacing_between_mm
    if between > 0 and round(step / between) > 1 and abs(step / between - round(step / between)) < 0.02:
        return (
            f"slices are {step:.3f} mm apart, but SpacingBetweenSlices is {between:g} mm: only every "
            f"{_ordinal(round(step / between))} is there; get the others"
        )
    return ""


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _bad_gap(first: Slice, second: Slice, *, gap: float, step: float) -> str:
    where = f"between {first.path.name} and {second.path.name}"
    missing = round(gap / step) - 1
    if missing > 0 and abs(gap / step - missing - 1) < 0.1:
        return f"{missing} missing slices {where}, which are {gap:.3f} mm apart, others {step:.3f}; get them"
    return f"uneven spacing: {gap:.3f} mm {where}, mostly {step:.3f}; resample the series to even slices"


def read_volume(ordered: Sequence[Slice]) -> Any:
    """The volume of slices `in_order` as an image of SimpleITK, placed as their headers say.

    Raises DatasetError where voxels cannot be read.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(one.path) for one in ordered])
    if not _has_one_whole_scale(ordered):
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise DatasetError(
            f"{ordered[0].path.parent}: the voxels of {len(ordered)} slices cannot be read; get them again"
        ) from None
    first, last = ordered[0], ordered[-1]
    normal = _normal(first)
    step = float(normal @ np.subtract(last.position_mm, first.position_mm)) / (len(ordered) - 1)
    directions = np.column_stack([*np.reshape(first.orientation, (2, 3)), normal])
    image.SetOrigin(first.position_mm)
    image.SetSpacing((first.grid[2], first.grid[3], step))
    image.SetDirection(directions.ravel().tolist())
    return image


def _has_one_whole_scale(slices: Sequence[Slice]) -> bool:
    """Whether stored numbers stay whole, and mean the same in all slices."""
    scales = {one.rescale for one in slices}
    return len(scales) == 1 and all(value.is_integer() for value in scales.pop())
