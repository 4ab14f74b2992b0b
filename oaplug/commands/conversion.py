"""conversion.json: what a raw dataset was converted by, so that the same run can take it up again."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import make_folder, read_json, remove_unfinished, write_json
from oaplug.core.errors import PathError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from oaplug.core.converter import ConversionRecord

FILE = "conversion.json"
LOCK = ".conversion.lock"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One conversion into `folder`. Paths and messages of the source are not kept: they may name persons."""

    folder: Path
    converter: str
    options: Mapping[str, Any]

    def begin(self) -> None:
        """Write the record of an unfinished conversion."""
        self._write({"finished": False})

    def finish(self, record: ConversionRecord) -> None:
        """Write what came out."""
        problems = [{"case": problem.case_id, "kind": problem.kind} for problem in record.problems]
        excluded = [{"case": case, "reason": reason} for case, reason in record.excluded]
        found = {"cases": record.cases, "excluded": excluded, "problems": problems}
        self._write({"finished": True, **found})

    def _write(self, content: Mapping[str, Any]) -> None:
        made_by = {"converter": self.converter, "options": dict(self.options)}
        write_json(self.folder / FILE, {"schema": SCHEMA, **made_by, **content})


@contextmanager
def open_conversion(folder: Path, *, converter: str, options: Mapping[str, Any]) -> Iterator[Conversion]:
    """A conversion into a new folder, or into one that the same converter with the same options wrote.

    One process at a time. Half-written files of a killed one are removed, and so is the folder where this
    one ends before it wrote anything. Raises PathError where something else is there.
    """
    from filelock import FileLock, Timeout

    conversion = Conversion(folder=folder, converter=converter, options=options)
    is_new = not _is_something(folder)
    if not is_new:
        _check_the_same(conversion)
    try:
        lock = FileLock(make_folder(folder) / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise PathError(f"{folder} is being written by another oaplug_convert; wait for it") from None
    try:
        remove_unfinished(folder)
        if is_new:
            conversion.begin()
        yield conversion
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)
        if not _is_something(folder):
            (folder / FILE).unlink(missing_ok=True)
            folder.rmdir()


def _is_something(folder: Path) -> bool:
    """Whether a folder holds more than the record of nothing."""
    return folder.exists() and bool({path.name for path in folder.iterdir()} - {FILE, LOCK})


def _check_the_same(conversion: Conversion) -> None:
    folder = conversion.folder
    advice = "remove it or choose another id with -d"
    if not (folder / FILE).is_file():
        raise PathError(f"{folder} exists already; {advice}")
    there = read_json(folder / FILE)
    if there.get("converter") != conversion.converter:
        raise PathError(f"{folder} exists already, written by {there.get('converter')}; {advice}")
    before, now = there.get("options", {}), dict(conversion.options)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            changed = f"{key}={before.get(key)!r}, now {now.get(key)!r}"
            raise PathError(f"{folder} exists already, written with {changed}; {advice}")
