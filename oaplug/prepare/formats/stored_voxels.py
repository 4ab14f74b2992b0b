"""The voxels of a file by numpy, unpacked once: bytes behind a header, plain or compressed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.prepare.formats.image_file import ImageFault

if TYPE_CHECKING:
    from io import BufferedIOBase
    from pathlib import Path
    from typing import Literal

    from numpy.typing import NDArray

_STEP = 1 << 18
"""Bytes unpacked at once: they stay in the cache until they are copied."""
_MOST_PACKED = 1100
"""Deflate shrinks by less than this; a header that claims more voxels must not fill the memory."""
_ZLIB_OR_GZIP = 47
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class StoredVoxels:
    """Where the voxels of an image (x,y,z), x fastest, are: from byte `start` of the unpacked content.

    With "gzip" the whole file is compressed; with "zlib" what follows `start`, which `packed_bytes` says
    the length of (None: up to the end).
    """

    path: Path
    start: int
    shape: tuple[int, int, int]
    voxel_type: np.dtype[Any]
    packing: Literal["", "gzip", "zlib"] = ""
    packed_bytes: int | None = None

    def load(self) -> NDArray[Any]:
        """The voxels (x,y,z); a compressed file is read to its end, which verifies its checksum.

        Raises ImageFault where the file is cut short, and OSError, EOFError or isal's error where its
        compressed content is damaged.
        """
        needed = prod(self.shape) * self.voxel_type.itemsize
        most = self.path.stat().st_size * (_MOST_PACKED if self.packing else 1)
        if needed > most:
            self._refuse_short(needed, "at most " * bool(self.packing) + str(max(0, most - self.start)))
        content = self._unpacked(needed) if self.packing == "zlib" else self._streamed(needed)
        if len(content) < needed:
            self._refuse_short(needed, str(len(content)))
        return content[:needed].view(self.voxel_type).reshape(self.shape, order="F")

    def _streamed(self, needed: int) -> NDArray[np.uint8]:
        content = np.empty(needed, dtype=np.uint8)
        with open_unpacked(self.path) if self.packing else self.path.open("rb") as file:
            file.seek(self.start)
            filled = _fill(file, content.data)
            while self.packing and file.read(_STEP):
                pass
        return content[:filled]

    def _unpacked(self, needed: int) -> NDArray[np.uint8]:
        from isal import isal_zlib

        with self.path.open("rb") as file:
            file.seek(self.start)
            packed = file.read(-1 if self.packed_bytes is None else self.packed_bytes)
        if self.packed_bytes is not None and len(packed) < self.packed_bytes:
            message = f"expected {self.packed_bytes} compressed bytes, got {len(packed)}"
            raise ImageFault("cut short", f"is cut short: {message}; copy it again")
        return np.frombuffer(isal_zlib.decompress(packed, _ZLIB_OR_GZIP, max(1, needed)), dtype=np.uint8)

    def _refuse_short(self, needed: int, found: str) -> None:
        message = f"is cut short: expected {needed} bytes of voxels, got {found}; copy it again"
        raise ImageFault("cut short", message)


def open_unpacked(path: Path) -> BufferedIOBase:
    """The content of a gzip file; reading it to its end verifies its checksum.

    Raises ImageFault where the file does not begin as gzip does.
    """
    from isal import igzip

    with path.open("rb") as file:
        start = file.read(len(_GZIP))
    if start != _GZIP:
        message = f"cannot be read: expected a gzip file, got one that begins with {start!r}"
        raise ImageFault("unreadable file", f"{message}; copy or export it again")
    unpacked: BufferedIOBase = igzip.IGzipFile(path, "rb")
    return unpacked


def _fill(file: Any, content: memoryview) -> int:
    """Read until `content` is full or the file ends; how many bytes were read."""
    filled = 0
    while got := file.readinto(content[filled : filled + _STEP]):
        filled += got
    return filled
