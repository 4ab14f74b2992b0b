"""NIfTI-1 and -2: their headers, and the voxels behind them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.prepare.formats.image_file import ImageFault, ImageFile, check_dimensions, check_one_value
from oaplug.prepare.formats.nifti_place import NiftiPlace, affine_of
from oaplug.prepare.formats.stored_voxels import StoredVoxels, open_unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
_FIRST, _SECOND = 348, 540
"""Bytes of a header of NIfTI-1 (and Analyze 7.5), and of NIfTI-2, which begin with this number."""
_FIELDS: Mapping[int, Mapping[str, tuple[int, str]]] = {
    _FIRST: {
        "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
        "vox_offset": (108, "f"), "scaling": (112, "2f"), "units": (123, "b"), "codes": (252, "2h"),
        "quaternion": (256, "3f"), "offset": (268, "3f"), "sform": (280, "12f"),
    },
    _SECOND: {
        "dim": (16, "8q"), "datatype": (12, "h"), "bitpix": (14, "h"), "pixdim": (104, "8d"),
        "vox_offset": (168, "q"), "scaling": (176, "2d"), "units": (500, "i"), "codes": (344, "2i"),
        "quaternion": (352, "3d"), "offset": (376, "3d"), "sform": (400, "12d"),
    },
}  # fmt: skip
_MAGICS = {_FIRST: (b"n+1\0", b"ni1\0"), _SECOND: (b"n+2\0", b"ni2\0")}
_MAGIC_AT = {_FIRST: 344, _SECOND: 4}
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip
"""numpy's names of NIfTI's data types of one real value."""
_COMPLEX = (32, 1792, 2048)
_COLOURS = {128: 3, 2304: 4}

Fields = dict[str, Any]


def is_nifti(path: Path) -> bool:
    """Whether a file's name is one of NIfTI's."""
    return path.name.lower().endswith(_ENDINGS)


def describe_nifti(path: Path) -> ImageFile:
    """The image in a NIfTI file, by its header; a fourth and further axes of one voxel do not count.

    Raises ImageFault where it is no 3D image of real numbers, or says nothing certain of its place, and
    what unpacking raises where the header cannot be read.
    """
    header_path, data_path = (_with_ending(path, ending) for ending in (".hdr", ".img"))
    with _open(header_path) as file:
        header = file.read(_SECOND)
    length, order = _version_of(header)
    fields = _parse(header, length, order=order)
    shape = check_dimensions(_sizes(fields["dim"]))
    slope, intercept = _scaling(*fields["scaling"])
    voxels = StoredVoxels(
        path=data_path,
        start=_start(fields["vox_offset"], at_least=length if header_path == data_path else 0),
        shape=shape,
        voxel_type=_voxel_type(fields, order=order),
        packing="gzip" if data_path.suffix.lower() == ".gz" else "",
    )
    if header[_MAGIC_AT[length] :][:4] not in _MAGICS[length]:
        message = (
            "Analyze 7.5 says nothing certain of the orientation; save the image as NIfTI with an affine"
        )
        raise ImageFault("no orientation", message)
    place = _place(fields)
    return ImageFile(
        shape=shape,
        affine=affine_of(place, shape=shape),
        load=voxels.load,
        slope=slope,
        intercept=intercept,
        doubt=place.doubt,
    )


def read_header(path: Path) -> bytes | None:
    """The header of a NIfTI-1 file; None for any other format, Analyze 7.5 and NIfTI-2 among them."""
    if not is_nifti(path):
        return None
    with _open(_with_ending(path, ".hdr")) as file:
        header: bytes = file.read(_FIRST)
    is_first = len(header) == _FIRST and header[_MAGIC_AT[_FIRST] :] in _MAGICS[_FIRST]
    return header if is_first else None


def _open(path: Path) -> Any:
    return open_unpacked(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _with_ending(path: Path, ending: str) -> Path:
    """The file of a .hdr/.img pair that has this ending (before a .gz); a single file as it is."""
    plain = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    zipped = path.name[len(plain) :]
    is_pair = plain.lower().endswith((".hdr", ".img"))
    if is_pair and not plain.lower().endswith(ending):
        return path.with_name(plain[:-4] + ending + zipped)
    return path


def _version_of(header: bytes) -> tuple[int, str]:
    """The length of a header, which tells its version, and its byte order as struct has it."""
    for order in "<>":
        for length in (_FIRST, _SECOND):
            if len(header) >= length and struct.unpack_from(f"{order}i", header) == (length,):
                return length, order
    found = f"got {len(header)} bytes" if len(header) < _FIRST else "found none"
    message = f"cannot be read: expected a NIfTI header, {found}; copy or export it again"
    raise ImageFault("unreadable file", message)


def _parse(header: bytes, length: int, *, order: str) -> Fields:
    fields: Fields = {}
    for name, (place, form) in _FIELDS[length].items():
        values = struct.unpack_from(order + form, header, place)
        fields[name] = values if form[:-1] else values[0]
    return fields


def _sizes(dim: tuple[int, ...]) -> list[int]:
    count, *sizes = dim
    if not 1 <= count <= len(sizes):
        message = f"the header says {count} dimensions, expected 3; copy or export it again"
        raise ImageFault("bad header", message)
    while count > 3 and sizes[count - 1] in (0, 1):
        count -= 1
    if count == 5 and sizes[3] == 1:
        check_one_value(sizes[4])  # the fifth axis holds the values of a voxel
    return sizes[:count]


def _voxel_type(fields: Fields, *, order: str) -> np.dtype[Any]:
    number, bits = fields["datatype"], fields["bitpix"]
    if number in _COMPLEX:
        raise ImageFault("complex voxels", "expected real voxels, got complex ones; save the magnitude")
    check_one_value(_COLOURS.get(number, 1))
    if number not in _TYPES:
        message = f"NIfTI data type {number} is none of whole or real numbers; export the image as int16"
        raise ImageFault("bad voxel type", message)
    voxel_type = np.dtype(order + _TYPES[number])
    if voxel_type.itemsize * 8 != bits:
        message = f"data type {voxel_type.name} has {voxel_type.itemsize * 8} bits, but bitpix says {bits}"
        raise ImageFault("bad voxel type", f"the header contradicts itself: {message}; export it again")
    return voxel_type


def _scaling(slope: float, intercept: float) -> tuple[float, float]:
    """Slope and intercept; a slope that is zero or not finite means that there is no scaling."""
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(intercept):
        message = (
            f"scl_slope is {slope:g}, but scl_inter {intercept:g}, expected a number; correct the header"
        )
        raise ImageFault("bad scaling", message)
    return float(slope), float(intercept)


def _start(offset: float, *, at_least: int) -> int:
    """Where voxels start; 0 means behind the header and the four bytes that follow it in a single file."""
    if offset == 0:
        return at_least + 4 if at_least else 0
    if not np.isfinite(offset) or offset < at_least:
        message = f"vox_offset is {offset:g}, expected at least {at_least}; copy or export it again"
        raise ImageFault("bad header", message)
    return int(offset)


def _place(fields: Fields) -> NiftiPlace:
    qform_code, sform_code = fields["codes"]
    return NiftiPlace(
        units=fields["units"] & 7,
        pixdim=fields["pixdim"],
        qform_code=qform_code,
        sform_code=sform_code,
        quaternion=fields["quaternion"],
        offset=fields["offset"],
        sform=fields["sform"],
    )
