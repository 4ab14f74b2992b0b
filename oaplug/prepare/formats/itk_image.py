"""Images of the other formats that SimpleITK reads, and what it passes over in NRRD."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.prepare.formats.image_file import (
    ImageFault,
    ImageFile,
    affine_from_lps,
    check_dimensions,
    check_one_value,
    check_right_angles,
    check_spacing,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_SPACES = {"left-posterior-superior", "lps", "right-anterior-superior", "ras"}
"""NRRD's names of spaces that ITK turns into its own."""
_WITHOUT_ORIENTATION = ("Gipl", "VTK", "TIFF", "LSM", "MRC", "BioRad", "Stimulate")
"""ITK's readers of volumes for which it knows no directions."""
_LONGEST_HEADER = 1 << 20
_STEP = 1 << 18


def describe_itk_image(path: Path) -> ImageFile:
    """The image in a file of any format of SimpleITK, by its header.

    Raises ImageFault where it is no 3D image of real numbers or its place is uncertain, and RuntimeError
    where ITK cannot read the header.
    """
    import SimpleITK as sitk

    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetPixelID() in {sitk.sitkComplexFloat32, sitk.sitkComplexFloat64}:
        raise ImageFault("complex voxels", "expected real voxels, got complex ones; save the magnitude")
    check_one_value(reader.GetNumberOfComponents())
    shape = check_dimensions(reader.GetSize())
    _check_format(path, reader.GetImageIOFromFileName(str(path)).removesuffix("ImageIO"))
    check_spacing(reader.GetSpacing(), field="the spacing")
    affine = affine_from_lps(
        np.reshape(reader.GetDirection(), (3, 3)),
        spacing_mm=reader.GetSpacing(),
        origin_mm=reader.GetOrigin(),
    )
    check_right_angles(affine, field="the direction")
    return ImageFile(shape=shape, affine=affine, load=lambda: _load(reader))


def _load(reader: Any) -> NDArray[Any]:
    import SimpleITK as sitk

    voxels: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    return voxels


def _check_format(path: Path, name: str) -> None:
    if name in _WITHOUT_ORIENTATION:
        message = f"{name} files say nothing of their orientation; save the image as NIfTI with an affine"
        raise ImageFault("no orientation", message)
    if name == "Nrrd":
        _check_nrrd(path)


def _check_nrrd(path: Path) -> None:
    """Raise ImageFault where ITK would guess the place of an NRRD file, or not see that it is damaged."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    header, _, packed = start.partition(b"\r\n\r\n" if b"\r\n\r\n" in start.split(b"\n\n")[0] else b"\n\n")
    lines = [line.partition(":") for line in header.decode("latin-1").splitlines() if ": " in line]
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    _check_nrrd_place(fields)
    skips = {"data file", "datafile", "byte skip", "byteskip", "line skip", "lineskip"}
    if fields.get("encoding", "").lower() in ("gzip", "gz") and not skips & set(fields):
        _check_gzip(path, start=len(start) - len(packed))


def _check_nrrd_place(fields: dict[str, str]) -> None:
    space, directions = fields.get("space", ""), fields.get("space directions", "")
    if not directions or space.lower() not in _SPACES:
        missing = f"is in the space {space!r}" if space else "has no 'space'"
        message = "has no 'space directions'" if not directions else missing
        raise ImageFault(
            "no orientation",
            f"{message}, so its orientation is unknown; expected directions in left-posterior-superior or "
            "right-anterior-superior; export it again",
        )
    if "none" in directions.lower() or not np.isfinite(_numbers(directions)).all():
        message = f"'space directions' is {directions}, expected three vectors of numbers"
        raise ImageFault("bad spacing", f"{message}; correct the header or export it again")


def _numbers(text: str) -> list[float]:
    found = re.findall(r"[^\s(),]+", text)
    return [float(value) for value in found]


def _check_gzip(path: Path, *, start: int) -> None:
    """Read compressed voxels to their end, which verifies their checksum: ITK does not."""
    from isal import igzip

    with path.open("rb") as file:
        file.seek(start)
        with igzip.IGzipFile(fileobj=file) as unpacked:
            while unpacked.read(_STEP):
                pass
