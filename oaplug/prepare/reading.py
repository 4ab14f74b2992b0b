"""Image files into canonical arrays: the one place where SimpleITK's axes are turned into ours."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.case import Problem
from oaplug.core.errors import DatasetError
from oaplug.core.volume import Volume
from oaplug.prepare.geometry import spacing_of, to_canonical
from oaplug.prepare.nifti import read_stored_voxels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.volume import Affine, FloatArray

GRID_TOLERANCE = 1e-3
"""Largest difference between files of a case in spacing or origin (mm) and in a direction cosine."""


class ImageError(DatasetError):
    """A file of a case cannot be used; `problem` says which and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where voxels lie: shape (D,H,W) and the affine from voxel indices to millimetres in RAS+."""

    shape: tuple[int, ...]
    affine: Affine


def read_image(paths: Sequence[Path], *, case_id: str) -> Volume:
    """The volume (C,D,H,W) of a case in RAS+ axes, from one 3D file per channel in any format of SimpleITK.

    Voxels are never interpolated: axes are permuted and flipped to the nearest anatomical ones, and the
    affine keeps what obliqueness remains. Raises DatasetError naming case and file where a file is missing,
    damaged, not a plain 3D image, holds NaN or infinite voxels, or lies on another grid than the first.
    """
    first, grid = read_channel(paths[0], case_id=case_id)
    channels = [first]
    for path in paths[1:]:
        channel, other = read_channel(path, case_id=case_id)
        check_same_grid(other, grid, path=path, case_id=case_id, of=paths[0].name)
        channels.append(channel)
    return Volume(data=np.stack(channels), spacing_mm=spacing_of(grid.affine), affine=grid.affine)


def read_mask(path: Path, *, case_id: str) -> tuple[NDArray[np.int16], Affine]:
    """A label image (D,H,W) in RAS+ axes, and its affine.

    Raises DatasetError as `read_image` does, and where a voxel is no whole number that int16 can hold.
    """
    values, grid = _read(path, case_id=case_id)
    with np.errstate(invalid="ignore"):
        labels = np.ascontiguousarray(values).astype(np.int16)
    if not np.array_equal(labels, values):
        message = "has voxels that are no whole label numbers; save the mask as integers"
        raise image_error("bad mask", message, path=path, case_id=case_id)
    return labels, grid.affine


def read_channel(path: Path, *, case_id: str) -> tuple[FloatArray, Grid]:
    """One channel (D,H,W) of a case in RAS+ axes, and its grid; raises DatasetError as `read_image` does."""
    values, grid = _read(path, case_id=case_id)
    with np.errstate(over="ignore"):
        channel = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(channel).all():
        raise image_error("NaN or infinite", _NOT_FINITE, path=path, case_id=case_id)
    return channel, grid


def read_grid(path: Path, *, case_id: str) -> Grid:
    """The grid of a file in its own axes, from its header alone; raises DatasetError where it has none."""
    import SimpleITK as sitk

    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as failure:
        message = f"cannot be read ({_reason(failure)}); copy or export it again"
        raise image_error("unreadable file", message, path=path, case_id=case_id) from None
    if refusal := _refusal(reader):
        raise image_error("unusable image", refusal, path=path, case_id=case_id)
    return Grid(shape=tuple(reader.GetSize()), affine=_ras_affine(reader))


def canonical_grid(grid: Grid) -> Grid:
    """The same grid in RAS+ axes."""
    empty, affine = to_canonical(np.empty((0, *grid.shape), dtype=np.int8), grid.affine)
    return Grid(shape=empty.shape[1:], affine=affine)


def check_same_grid(grid: Grid, reference: Grid, *, path: Path, case_id: str, of: str) -> None:
    """Raise a DatasetError saying what differs where the file at `path` does not lie on the grid of `of`.

    Grids are compared in RAS+ axes, so two files may store the same voxels in different order.
    """
    difference = _difference(grid, reference)
    if difference:
        message = f"{difference} of {of}; resample the file onto that grid or correct its header"
        raise image_error("grid mismatch", message, path=path, case_id=case_id)


def _difference(grid: Grid, reference: Grid) -> str:
    if grid.shape != reference.shape:
        return f"shape {grid.shape} (D,H,W) differs from {reference.shape}"
    for what, measure in _MEASURES.items():
        found, expected = measure(grid.affine), measure(reference.affine)
        if not np.allclose(found, expected, rtol=0, atol=GRID_TOLERANCE):
            return f"{what} {np.round(found, 4).tolist()} differs from {np.round(expected, 4).tolist()}"
    return ""


_MEASURES: dict[str, Callable[[Affine], Any]] = {
    "spacing (D,H,W in mm)": spacing_of,
    "direction": lambda affine: affine[:3, :3] / spacing_of(affine),
    "origin (RAS in mm)": lambda affine: affine[:3, 3],
}


def _read(path: Path, *, case_id: str) -> tuple[NDArray[Any], Grid]:
    """The voxels (D,H,W) of a file in the type they are stored in, and their grid."""
    import SimpleITK as sitk

    if not path.is_file():
        raise image_error("missing file", "the file does not exist; add it", path=path, case_id=case_id)
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        stored = read_stored_voxels(path)
        reader.ReadImageInformation()
        refusal = _refusal(reader) or (stored.cut_short() if stored else "")
        image = None if refusal else reader.Execute()
    except (RuntimeError, OSError, EOFError, ValueError, OverflowError, zlib.error) as failure:
        message = f"cannot be read ({_reason(failure)}); copy or export it again"
        raise image_error("unreadable file", message, path=path, case_id=case_id) from None
    if image is None:
        raise image_error("unusable image", refusal, path=path, case_id=case_id)
    if stored and not stored.all_finite():
        raise image_error("NaN or infinite", _NOT_FINITE, path=path, case_id=case_id)
    # a copy, because a view would outlive the image whose memory it shows
    data, affine = to_canonical(sitk.GetArrayFromImage(image).transpose(2, 1, 0)[None], _ras_affine(image))
    return data[0], Grid(shape=data.shape[1:], affine=affine)


_NOT_FINITE = "has voxels that are NaN, infinite or beyond float32; export the image again"


def _refusal(reader: Any) -> str:
    """Why an image whose header was read cannot be used; empty where it can."""
    import SimpleITK as sitk

    if reader.GetDimension() != 3:
        return f"expected a 3D image, got {reader.GetDimension()}D; save one 3D file per channel"
    if reader.GetPixelID() in {sitk.sitkComplexFloat32, sitk.sitkComplexFloat64}:
        return "expected real voxels, got complex ones; save the magnitude"
    components = reader.GetNumberOfComponents()
    if components != 1:
        return f"expected one value per voxel, got {components} (colour?); save one file per channel"
    return ""


def _reason(failure: BaseException) -> str:
    """The last line of a failure, which is the telling one of ITK's, but for the system's reason."""
    lines = [line.strip() for line in str(failure).splitlines() if not line.startswith("Reason:")]
    last = (lines or [type(failure).__name__])[-1]
    return last.removeprefix("sitk::ERROR: ").removeprefix("ITK ERROR: ").rstrip(".")


def _ras_affine(image: Any) -> Affine:
    """The affine from voxel indices (x,y,z) to RAS+ millimetres of a SimpleITK image, which is LPS+."""
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = to_ras @ np.asarray(image.GetOrigin())
    return affine


def image_error(kind: str, message: str, *, path: Path, case_id: str) -> ImageError:
    """The error for a file of a case, ready to raise or to list."""
    return ImageError(Problem(kind=kind, message=message, case_id=case_id, file=str(path)))
