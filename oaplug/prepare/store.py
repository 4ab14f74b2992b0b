"""A preprocessed case on disk: CASE.b2nd (float16, blosc2), then CASE.json, the record that it is done."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oaplug.core.artifacts import atomic_path, check_schema, read_json, write_json
from oaplug.core.case import Side
from oaplug.core.errors import DatasetError, PathError
from oaplug.core.settings import from_mapping, to_mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

RECORD_SCHEMA = 2
"""2: with the array's checksum; records without one are read too."""
_AGAIN = "run oaplug_preprocess again"


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """Where a preprocessed case came from and lies.

    `inputs` are digests of the image files, `configuration` that of the plan's configuration, `revision` the
    preprocessing code's. `shape` (C,D,H,W) and `affine` (4,4) are those of the array, `original_shape` and
    `original_affine` those of the image in RAS+ axes as `read_image` gives it. `array_crc32` is the checksum
    of the array's file (None in records of earlier versions, which are believed without it).
    """

    inputs: tuple[str, ...]
    configuration: str
    revision: int
    side: Side | None
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    original_shape: tuple[int, ...]
    original_affine: tuple[tuple[float, ...], ...]
    array_crc32: int | None = None


def array_path(folder: Path, case_id: str) -> Path:
    """Where a case's array belongs in the folder of a configuration's data identifier."""
    return folder / f"{case_id}.b2nd"


def record_path(folder: Path, case_id: str) -> Path:
    """Where a case's record belongs in the folder of a configuration's data identifier."""
    return folder / f"{case_id}.json"


def write_array(path: Path, array: NDArray[Any]) -> Path:
    """Write `array` (C,D,H,W) atomically as float16 blosc2, one chunk a channel for reads of whole volumes.

    Zstandard at its fastest level halves a volume at the price of a few milliseconds. Raises DatasetError
    where a value does not fit into float16, PathError where the file cannot be written.
    """
    import blosc2

    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(array, dtype=np.float16)
    if not np.isfinite(half).all():
        raise DatasetError(
            f"{path}: voxels beyond ±65504 (float16), or NaN; choose another normalization than 'none'"
        )
    settings = {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 1,
        "filters": [blosc2.Filter.SHUFFLE],
        "nthreads": 1,
    }
    stored = blosc2.asarray(half, chunks=(1, *half.shape[1:]), cparams=settings, contiguous=True)
    with writing(path), atomic_path(path) as temporary:  # not written by blosc2, which says no reason
        temporary.write_bytes(stored.to_cframe())
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what the system refuses to write at `path` becomes a PathError that says why."""
    try:
        yield
    except OSError as failure:
        reason = failure.strerror or str(failure)
        again = "put that right and run the command again (what is finished is kept)"
        raise PathError(f"cannot write {path}: {reason}; {again}") from failure


def open_array(path: Path) -> Any:
    """The blosc2 array at `path`, memory-mapped: indexing reads the chunks that are needed.

    Raises DatasetError where the file is missing or damaged.
    """
    import blosc2

    if not path.is_file():
        raise DatasetError(f"{path} does not exist; run oaplug_preprocess first")
    try:
        return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError, TypeError) as failure:
        raise DatasetError(f"{path} is damaged ({failure}); {_AGAIN}") from None


def read_array(path: Path) -> NDArray[np.float16]:
    """The array (C,D,H,W) written to `path`; raises DatasetError where the file is missing or damaged."""
    stored = open_array(path)
    try:
        array: NDArray[np.float16] = stored[...]
    except (RuntimeError, ValueError, OSError) as failure:
        raise DatasetError(f"{path} is damaged ({failure}); {_AGAIN}") from None
    return array


def write_record(path: Path, record: CaseRecord) -> Path:
    """Write a case's record atomically; it says that the array beside it is whole.

    Raises PathError where the file cannot be written.
    """
    with writing(path):
        return write_json(path, {"schema": RECORD_SCHEMA, **to_mapping(record)})


def read_record(path: Path) -> CaseRecord:
    """The record at `path`; raises DatasetError where it is missing or malformed."""
    content = read_json(path, error=DatasetError, hint="run oaplug_preprocess first")
    content = dict(check_schema(content, path=path, newest=RECORD_SCHEMA, error=DatasetError))
    content.pop("schema")
    return from_mapping(CaseRecord, content, where=str(path), error=DatasetError)


def checksum(path: Path) -> int:
    """CRC-32 of a file, which notices damage and costs little."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
