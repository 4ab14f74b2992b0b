"""Image files into canonical arrays: the one place where a file's axes are turned into ours."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.case import Problem
from oaplug.core.errors import DatasetError
from oaplug.core.volume import Volume
from oaplug.prepare.formats.image_file import ImageFault, ImageFile
from oaplug.prepare.formats.itk_image import describe_itk_image
from oaplug.prepare.formats.metaimage import describe_metaimage, is_metaimage
from oaplug.prepare.formats.nifti import describe_nifti, is_nifti
from oaplug.prepare.formats.voxels import is_constant, to_float32, to_labels
from oaplug.prepare.geometry import spacing_of, to_canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.volume import Affine, FloatArray

log = logging.getLogger(__name__)
GRID_TOLERANCE = 1e-3
"""Largest difference between files of a case in spacing or origin (mm) and in a direction cosine."""
_DICOM_ENDINGS = {".dcm", ".ima"}
_DICOM_MAGIC = slice(128, 132), b"DICM"


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
    """The volume (C,D,H,W) of a case in RAS+ axes, from one 3D file per channel.

    NIfTI, MetaImage, and any other format of SimpleITK. Voxels are never interpolated: axes are permuted
    and flipped to the nearest anatomical ones, and the affine keeps what obliqueness remains. Raises
    ImageError naming case and file where a file is missing, damaged, not a plain 3D image, constant, holds
    NaN or infinite voxels, is uncertain of its place, or lies on another grid than the first.
    """
    first, grid = read_channel(paths[0], case_id=case_id)
    channels = [first]
    for path in paths[1:]:
        channel, other = read_channel(path, case_id=case_id)
        check_same_grid(other, grid, path=path, case_id=case_id, of=paths[0].name)
        channels.append(channel)
    for channel, path in zip(channels, paths, strict=True):
        check_not_constant(channel, path=path, case_id=case_id)
    data = np.stack(channels) if len(channels) > 1 else first[None]
    return Volume(data=data, spacing_mm=spacing_of(grid.affine), affine=grid.affine)


def read_mask(path: Path, *, case_id: str) -> tuple[NDArray[np.int16], Affine]:
    """A label image (D,H,W) in RAS+ axes, and its affine.

    Raises ImageError as `read_image` does, and where a voxel is no whole number that int16 can hold.
    """
    labels, grid = _read(path, convert=to_labels, case_id=case_id)
    return labels, grid.affine


def read_channel(path: Path, *, case_id: str) -> tuple[FloatArray, Grid]:
    """One channel (D,H,W) of a case in RAS+ axes, and its grid.

    Raises ImageError as `read_image` does, but for constant images.
    """
    channel, grid = _read(path, convert=to_float32, case_id=case_id)
    return channel, grid


def read_grid(path: Path, *, case_id: str) -> Grid:
    """The grid of a file in its own axes, from its header alone; raises ImageError where it has none."""
    with _naming(path, case_id=case_id):
        image = _describe(path)
    return Grid(shape=image.shape, affine=image.affine)


def check_certain(path: Path, *, case_id: str) -> None:
    """Raise ImageError where a file is read, but only with a warning."""
    with _naming(path, case_id=case_id):
        if doubt := _describe(path).doubt:
            raise doubt


def canonical_grid(grid: Grid) -> Grid:
    """The same grid in RAS+ axes."""
    empty, affine = to_canonical(np.empty((0, *grid.shape), dtype=np.int8), grid.affine)
    return Grid(shape=empty.shape[1:], affine=affine)


def check_not_constant(channel: FloatArray, *, path: Path, case_id: str) -> None:
    """Raise ImageError where every voxel of a channel (D,H,W) is the same."""
    if is_constant(channel):
        message = f"every voxel is {channel.flat[0]:g}; expected an image; export it again or remove the case"
        raise image_error("constant image", message, path=path, case_id=case_id)


def check_same_grid(grid: Grid, reference: Grid, *, path: Path, case_id: str, of: str) -> None:
    """Raise ImageError saying what differs where the file at `path` does not lie on the grid of `of`.

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
            off = f" ({_voxels_off(grid, reference):.3g} voxels off)" if what.startswith("origin") else ""
            return f"{what} {np.round(found, 4).tolist()}{off} differs from {np.round(expected, 4).tolist()}"
    return ""


def _voxels_off(grid: Grid, reference: Grid) -> float:
    shift = (grid.affine - reference.affine)[:3, 3]
    return float(np.abs(np.linalg.inv(reference.affine[:3, :3]) @ shift).max())


_MEASURES: dict[str, Callable[[Affine], Any]] = {
    "spacing (D,H,W in mm)": spacing_of,
    "direction": lambda affine: affine[:3, :3] / spacing_of(affine),
    "origin (RAS in mm)": lambda affine: affine[:3, 3],
}


def _read(path: Path, *, convert: Callable[..., NDArray[Any]], case_id: str) -> tuple[NDArray[Any], Grid]:
    """The voxels (D,H,W) of a file in RAS+ axes, made of the stored ones by `convert`, and their grid."""
    with _naming(path, case_id=case_id):
        image = _describe(path)
        if image.doubt is not None:
            _warn_once(image.doubt.kind, f"case {case_id}: {path} {image.doubt.message}")
        view, affine = to_canonical(image.load()[None], image.affine)
        data = convert(view[0], slope=image.slope, intercept=image.intercept)
    return data, Grid(shape=data.shape, affine=affine)


def _warn_once(kind: str, message: str) -> None:
    """Warn of the first file of a kind in this process; the integrity check lists all of them."""
    if kind not in _WARNED:
        _WARNED.add(kind)
        log.warning("%s (only the first such file is named; --verify_dataset_integrity lists all)", message)


_WARNED: set[str] = set()


def _describe(path: Path) -> ImageFile:
    _refuse_other_things(path)
    if is_nifti(path):
        return describe_nifti(path)
    return describe_metaimage(path) if is_metaimage(path) else describe_itk_image(path)


def _refuse_other_things(path: Path) -> None:
    """Raise ImageFault for what is no single image file, such as DICOM's series of slices."""
    how = "make a dataset of DICOM series by `oaplug_convert dicom`"
    if path.is_dir():
        raise ImageFault("DICOM", f"is a folder, expected one file per channel; {how}")
    if not path.exists():
        raise ImageFault("missing file", "the file does not exist; add it")
    with path.open("rb") as file:
        start = file.read(132)
    place, magic = _DICOM_MAGIC
    if start[place] == magic or path.suffix.lower() in _DICOM_ENDINGS:
        raise ImageFault("DICOM", f"is a DICOM file, expected one volume per file; {how}")


@contextmanager
def _naming(path: Path, *, case_id: str) -> Iterator[None]:
    """Turn whatever is wrong with a file into an ImageError that names the case and the file."""
    from isal import isal_zlib

    damage: Any = isal_zlib.error
    try:
        yield
    except ImageFault as fault:
        raise image_error(fault.kind, fault.message, path=path, case_id=case_id) from None
    except EOFError as failure:
        message = f"is cut short ({_reason(failure)}); copy it again"
        raise image_error("cut short", message, path=path, case_id=case_id) from None
    except (RuntimeError, OSError, ValueError, OverflowError, damage) as failure:
        message = f"cannot be read ({_reason(failure)}); copy or export it again"
        raise image_error("unreadable file", message, path=path, case_id=case_id) from None


def _reason(failure: BaseException) -> str:
    """The last line of a failure, which is the telling one of ITK's, but for the system's reason."""
    lines = [line.strip() for line in str(failure).splitlines() if not line.startswith("Reason:")]
    last = (lines or [type(failure).__name__])[-1]
    return last.removeprefix("sitk::ERROR: ").removeprefix("ITK ERROR: ").rstrip(".")


def image_error(kind: str, message: str, *, path: Path, case_id: str) -> ImageError:
    """The error for a file of a case, ready to raise or to list."""
    return ImageError(Problem(kind=kind, message=message, case_id=case_id, file=str(path)))
