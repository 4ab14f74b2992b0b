"""Single DICOM files: those of a folder, and what of their headers a volume depends on."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Vector = tuple[float, ...]
_MAGIC_AT = 128
_NO_IMAGES = (
    *("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104."),
    *("1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.9.", "1.2.840.10008.5.1.4.1.1.66"),
)
"""How SOP classes begin of what lies beside images: DICOMDIR, reports, documents, displays, curves, raw."""
DISCRIMINATORS = {
    "echo time": "0018|0081",
    "echo number": "0018|0086",
    "image type": "0008|0008",
    "temporal position": "0020|0100",
    "trigger time": "0018|1060",
    "acquisition": "0020|0012",
}
"""What tells apart images of one place in a series, and the tag it is in."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one file says. `position_mm` and `orientation` are LPS; `told` holds the DISCRIMINATORS.

    `rescale` is slope and intercept; `patient` a hash that says no more than whether two are the same.
    """

    path: Path
    series_uid: str
    instance_uid: str
    description: str
    position_mm: Vector
    orientation: Vector
    grid: tuple[float, ...]
    spacing_between_mm: float
    frames: int
    samples: int
    rescale: tuple[float, float]
    laterality: str
    patient: str
    told: tuple[str, ...]


def find_dicom_files(folder: Path) -> Iterator[Path]:
    """DICOM files in a folder and below that may hold images, by name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and _may_be_image(path):
            yield path


def _may_be_image(path: Path) -> bool:
    """Judge by the preamble and the SOP class behind it, or by the first tag of a file without one."""
    with path.open("rb") as file:
        start = file.read(1024)
    if start[_MAGIC_AT : _MAGIC_AT + 4] != b"DICM":
        return path.suffix.lower() in {".dcm", ".ima"} or start[:4] == b"\x08\x00\x05\x00"
    return not _class_of(start).startswith(_NO_IMAGES)


def _class_of(start: bytes) -> str:
    """The media storage SOP class of a file's meta information, which is always explicit little-endian."""
    at = start.find(b"\x02\x00\x02\x00UI")
    if at < 0:
        return ""
    (length,) = struct.unpack_from("<H", start, at + 6)
    return start[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ")


def read_slice(path: Path) -> Slice:
    """The header of a file; raises DatasetError where GDCM cannot read it."""
    import SimpleITK as sitk

    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise DatasetError(
            f"{path}: is a DICOM file that cannot be read: damaged, cut short, or compressed in a way that "
            "GDCM does not know; get it again, or have it written uncompressed"
        ) from None
    return _slice_of(path, reader)


def _slice_of(path: Path, reader: Any) -> Slice:
    keys = set(reader.GetMetaDataKeys())

    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip("\0 ") if tag in keys else ""

    def number(tag: str, default: float) -> float:
        return (_numbers(text(tag), count=1) or (default,))[0]

    size, spacing = reader.GetSize(), reader.GetSpacing()
    patient = f"{text('0010|0020')}\n{text('0010|0010')}"
    return Slice(
        path=path,
        series_uid=text("0020|000e"),
        instance_uid=text("0008|0018"),
        description=text("0008|103e"),
        position_mm=_numbers(text("0020|0032"), count=3),
        orientation=_numbers(text("0020|0037"), count=6),
        grid=(*size[:2], *(round(value, 5) for value in spacing[:2])),
        spacing_between_mm=number("0018|0088", 0.0),
        frames=size[2] if len(size) > 2 else 1,
        samples=reader.GetNumberOfComponents(),
        rescale=(number("0028|1053", 1.0), number("0028|1052", 0.0)),
        laterality=text("0020|0060") or text("0020|0062"),
        patient=hashlib.blake2b(patient.encode(), digest_size=8).hexdigest(),
        told=tuple(text(tag) for tag in DISCRIMINATORS.values()),
    )


def _numbers(text: str, *, count: int) -> Vector:
    """Numbers of a DICOM value; nothing where there are not `count` of them."""
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return values if len(values) == count else ()
