"""Files that are either whole or absent: written beside their final name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from oaplug.core.errors import OaplugError, PathError

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNFINISHED = ".writing-"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is flushed and takes that name.

    The temporary file keeps the ending of `path` (writers choose formats by it); on failure it is removed.
    """
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_UNFINISHED, suffix="-" + path.name)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_link(source: Path, path: Path) -> bool:
    """Make `path` a hard link to the file `source`, in place of what is there; False where that cannot be.

    A symbolic link is followed, so that the name of the data is linked and not the link.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{_UNFINISHED}{uuid4().hex}-{path.name}")
    try:
        os.link(source.resolve(), temporary)
        temporary.replace(path)
    except OSError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def remove_unfinished(folder: Path, *, older_than_s: float | None = None) -> list[Path]:
    """Remove what killed processes left half written in `folder` and below; gives what it was.

    Only for a folder that no other process writes into, or with an age that no write reaches: by the clock
    of the file system, which other machines share.
    """
    until_s = float("inf") if older_than_s is None else _file_system_time_s(folder) - older_than_s
    left = [path for path in folder.rglob(f"{_UNFINISHED}*") if _was_written_before(path, until_s)]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _file_system_time_s(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=_UNFINISHED) as file:
        file.write(b"now")
        file.flush()
        return os.fstat(file.fileno()).st_mtime


def _was_written_before(path: Path, time_s: float) -> bool:
    try:
        return path.is_file() and path.stat().st_mtime <= time_s
    except FileNotFoundError:  # finished meanwhile
        return False


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(folder: Path) -> Path:
    """Create `folder` with its parents; raises PathError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise PathError(f"cannot create the folder {folder}: {failure.strerror}") from failure
    return folder


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON atomically, keys in the order given; NaN is refused because JSON has none."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, error: type[OaplugError] = PathError, hint: str = "") -> Any:
    """Read a JSON file; a missing or malformed one raises `error` with the path and `hint`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{path} does not exist{'; ' + hint if hint else ''}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{path} is not valid JSON: {failure}") from None
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from None


def check_schema(content: Any, *, path: Path, newest: int, error: type[OaplugError]) -> dict[str, Any]:
    """The mapping in an artifact, once its `schema` number is one this version can read."""
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise error(f"{path}: expected a JSON object with a 'schema' number")
    if content["schema"] > newest:
        raise error(
            f"{path}: schema {content['schema']} is newer than this oaplug reads ({newest}); upgrade oaplug"
        )
    return content


def digest_of_file(path: Path) -> str:
    """Hex BLAKE2b-128 of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of_json(content: Any) -> str:
    """Hex BLAKE2b-128 of a JSON value, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
