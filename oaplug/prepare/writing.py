"""Maps into files that any viewer lays over the image they belong to."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.artifacts import atomic_path
from oaplug.prepare.formats.nifti import read_header
from oaplug.prepare.geometry import from_canonical
from oaplug.prepare.reading import read_grid

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.core.volume import FloatArray
    from oaplug.prepare.reading import Grid

FLOAT32, UINT16 = 16, 512
"""NIfTI's numbers of data types."""
MOST_STEPS = 65535
_VOXELS_START = 352
_GZIP = 31
"""zlib's number for gzip's format. Looking for repeats (zeros) only is quicker and no worse for saliency."""


def write_map(path: Path, values: FloatArray, *, image: Path, case_id: str, steps: int | None = None) -> Path:
    """Write a map (D,H,W) from 0 to 1, in RAS+ axes on the grid of an image file, as NIfTI (.nii.gz).

    The map takes over the header of a NIfTI-1 image (qform, sform and their codes, units, order of axes);
    for other formats one is made from the image's grid. `steps` (at most MOST_STEPS) stores whole numbers
    and a slope instead of float32, which takes half of the disk.
    """
    grid = read_grid(image, case_id=case_id)
    stored = from_canonical(values[None], grid.affine)[0]
    if stored.shape != grid.shape:
        raise ValueError(f"a map of {stored.shape} voxels does not fit an image of {grid.shape}")
    header = read_header(image) or _make_header(grid)
    order = "<" if struct.unpack_from("<i", header) == (len(header),) else ">"
    if steps is None:
        voxels, slope, kind = stored.astype(f"{order}f4"), 1.0, FLOAT32
    else:
        voxels, slope, kind = np.rint(stored * steps).astype(f"{order}u2"), 1.0 / steps, UINT16
    content = _describe(header, grid, order=order, kind=kind, slope=slope)
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP, strategy=zlib.Z_RLE)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(packer.compress(content + bytes(_VOXELS_START - len(content))))
        file.write(packer.compress(voxels.tobytes(order="F")))
        file.write(packer.flush())
    return path


def _describe(header: bytes, grid: Grid, *, order: str, kind: int, slope: float) -> bytes:
    """A NIfTI-1 header with what belongs to the image's voxels, not to its place, made the map's own."""
    changed = bytearray(header)
    fields = {
        40: ("8h", (3, *grid.shape, 1, 1, 1, 1)),  # dim
        56: ("3fh", (0.0, 0.0, 0.0, 0)),  # intent_p1 to intent_p3, intent_code
        70: ("2h", (kind, 16 if kind == UINT16 else 32)),  # datatype, bitpix
        108: ("3f", (float(_VOXELS_START), slope, 0.0)),  # vox_offset, scl_slope, scl_inter
        124: ("2f", (1.0, 0.0)),  # cal_max, cal_min
        148: ("80s24s", (b"oaplug saliency map", b"")),  # descrip, aux_file
        328: ("16s4s", (b"", b"n+1")),  # intent_name, magic
    }
    for place, (form, values) in fields.items():
        struct.pack_into(order + form, changed, place, *values)
    return bytes(changed)


def _make_header(grid: Grid) -> bytes:
    """A header whose sform is the affine of a grid, in mm; its qform is not given."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, len(header))
    spacing_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    struct.pack_into("<8f", header, 76, 1.0, *spacing_mm, 0.0, 0.0, 0.0, 0.0)
    struct.pack_into("<b", header, 123, 2)  # xyzt_units: mm
    struct.pack_into("<2h", header, 252, 0, 1)  # qform_code, sform_code: scanner
    struct.pack_into("<12f", header, 280, *grid.affine[:3].ravel())
    return bytes(header)
