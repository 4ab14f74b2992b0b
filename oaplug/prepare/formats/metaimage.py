"""MetaImage (.mha, .mhd), read here because its library prints of damaged files, and reads on."""

from __future__ import annotations

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
from oaplug.prepare.formats.stored_voxels import StoredVoxels

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.core.volume import Affine

_ENDINGS = (".mha", ".mhd")
_LONGEST_HEADER = 1 << 16
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""numpy's names of element types; MetaImage's long has four bytes everywhere."""
_HERE = "LOCAL"
_LAST = "ElementDataFile"

Fields = dict[str, str]


def is_metaimage(path: Path) -> bool:
    """Whether a file's name is one of MetaImage's."""
    return path.name.lower().endswith(_ENDINGS)


def describe_metaimage(path: Path) -> ImageFile:
    """The image in a MetaImage file, by its header.

    Raises ImageFault where it is no 3D image of real numbers, says nothing of its orientation, or keeps
    its voxels in a way that is not read here: as text, or in several files.
    """
    fields, length = _parse(path)
    shape = check_dimensions([int(value) for value in _numbers(fields, "DimSize")])
    check_one_value(int(fields.get("ElementNumberOfChannels", "1")))
    voxels = StoredVoxels(shape=shape, voxel_type=_voxel_type(fields), **_where(fields, path, length=length))
    return ImageFile(shape=shape, affine=_affine(fields), load=voxels.load)


def _parse(path: Path) -> tuple[Fields, int]:
    """The fields of a header, and its length."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    fields: Fields = {}
    length = 0
    for line in start.splitlines(keepends=True):
        length += len(line)
        name, equals, value = line.decode("latin-1").partition("=")
        if not equals or not line.endswith(b"\n"):
            break
        fields[name.strip()] = value.strip()
        if name.strip() == _LAST:
            return fields, length
    message = f"cannot be read: expected a MetaImage header that ends with {_LAST}; copy or export it again"
    raise ImageFault("unreadable file", message)


def _where(fields: Fields, path: Path, *, length: int) -> dict[str, Any]:
    """The file of the voxels, where they start in it, and how they are packed."""
    name = fields[_LAST]
    several = name == "LIST" or "%" in name or len(name.split()) > 1
    if several or not _is_true(fields, "BinaryData", "True") or fields.get("HeaderSize", "0") != "0":
        message = "keeps its voxels as text, behind a header or in several files"
        raise ImageFault("bad header", f"{message}; save it as one .mha or .nii.gz")
    data_path = path if name.upper() == _HERE else path.parent / name
    if not data_path.is_file():
        raise ImageFault("missing file", f"its voxels should be in {name}, which does not exist; add it")
    packed = fields.get("CompressedDataSize")
    return {
        "path": data_path,
        "start": length if data_path == path else 0,
        "packing": "zlib" if _is_true(fields, "CompressedData", "False") else "",
        "packed_bytes": int(packed) if packed else None,
    }


def _voxel_type(fields: Fields) -> np.dtype[Any]:
    name = fields.get("ElementType", "none")
    if name not in _TYPES:
        message = f"element type {name} is none of {', '.join(_TYPES)}; export the image as MET_SHORT"
        raise ImageFault("bad voxel type", message)
    swapped = any(_is_true(fields, key, "False") for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    return np.dtype((">" if swapped else "<") + _TYPES[name])


def _affine(fields: Fields) -> Affine:
    directions = _first_of(fields, "TransformMatrix", "Rotation", "Orientation")
    if not directions:
        message = "has no TransformMatrix, so its orientation is unknown; export it again with one"
        raise ImageFault("no orientation", message)
    spacing_mm = _numbers(fields, "ElementSpacing")
    check_spacing(spacing_mm, field="ElementSpacing")
    origin = _first_of(fields, "Offset", "Position", "Origin")
    columns = np.reshape(_numbers(fields, directions, count=9), (3, 3)).T
    check_spacing(np.linalg.norm(columns, axis=0).tolist(), field=f"the length of axes in {directions}")
    affine = affine_from_lps(
        columns, spacing_mm=spacing_mm, origin_mm=_numbers(fields, origin) if origin else (0, 0, 0)
    )
    check_right_angles(affine, field=directions)
    return affine


def _first_of(fields: Fields, *names: str) -> str:
    return next((name for name in names if name in fields), "")


def _is_true(fields: Fields, name: str, default: str) -> bool:
    return fields.get(name, default).lower() in ("true", "1")


def _numbers(fields: Fields, name: str, *, count: int = 3) -> list[float]:
    """Numbers of a field; those of DimSize may be any number of them."""
    try:
        values = [float(value) for value in fields[name].split()]
    except (KeyError, ValueError):
        values = []
    if not values or (len(values) != count and name != "DimSize"):
        found = fields.get(name, "nothing")
        message = f"{name} in the header is {found}, expected {count} numbers; correct it or export it again"
        raise ImageFault("bad header", message)
    return values
