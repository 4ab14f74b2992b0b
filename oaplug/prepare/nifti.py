"""What ITK's NIfTI reader passes over in silence: files cut short (read as zeros), and NaN (made zero)."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
_HEADER_BYTES = 348
_FLOATS = {16: "f4", 64: "f8"}
"""numpy's names of NIfTI's float data types."""


@dataclass(frozen=True, kw_only=True)
class StoredVoxels:
    """The voxels of a NIfTI file as stored: their bytes, how many there should be, and their float type."""

    content: memoryview
    needed_bytes: int
    float_type: str | None

    def cut_short(self) -> str:
        """What is missing of the file; empty where it is whole."""
        if len(self.content) >= self.needed_bytes:
            return ""
        found, needed = len(self.content), self.needed_bytes
        return f"is cut short: expected {needed} bytes of voxels, got {found}; copy it again"

    def all_finite(self) -> bool:
        """Whether no stored voxel is NaN or infinite."""
        if self.float_type is None:
            return True
        return bool(np.isfinite(np.frombuffer(self.content[: self.needed_bytes], self.float_type)).all())


def read_stored_voxels(path: Path) -> StoredVoxels | None:
    """The voxels stored in a NIfTI file; None for other formats and for headers left to ITK to refuse.

    A gzip file is read to its end, which checks its checksum: raises OSError, EOFError or zlib.error
    where it is damaged.
    """
    if not path.name.endswith(_ENDINGS):
        return None
    header_path, data_path = (_with_ending(path, ending) for ending in (".hdr", ".img"))
    header = _content(header_path)
    content = header if data_path == header_path else _content(data_path)
    for order in "<>":
        if len(header) >= _HEADER_BYTES and struct.unpack_from(f"{order}i", header) == (_HEADER_BYTES,):
            return _voxels(header, content, order=order)
    return None


def read_header(path: Path) -> bytes | None:
    """The header of a NIfTI-1 file; None for any other format, Analyze 7.5 and NIfTI-2 among them."""
    if not path.name.endswith(_ENDINGS):
        return None
    path = _with_ending(path, ".hdr")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    is_first = len(header) == _HEADER_BYTES and header[344:348] in (b"n+1\0", b"ni1\0")
    return header if is_first else None


def _with_ending(path: Path, ending: str) -> Path:
    """The file of a .hdr/.img pair that has this ending (before a .gz); a single file as it is."""
    name = path.name.removesuffix(".gz")
    zipped = path.name[len(name) :]
    return path.with_name(name[:-4] + ending + zipped) if name.endswith((".hdr", ".img")) else path


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        return file.read()


def _voxels(header: bytes, content: bytes, *, order: str) -> StoredVoxels:
    """Look up dim, datatype, bitpix and vox_offset where NIfTI-1 and Analyze 7.5 have them."""
    dimensions, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
    start = struct.unpack_from(f"{order}f", header, 108)[0]
    return StoredVoxels(
        content=memoryview(content)[int(start) :],
        needed_bytes=prod(sizes[:dimensions]) * bits // 8,
        float_type=order + _FLOATS[datatype] if datatype in _FLOATS else None,
    )
