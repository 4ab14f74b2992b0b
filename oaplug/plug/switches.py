"""Which plugins may be imported: environment variables, and a user's file of disabled distributions."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.core.errors import PathError
from oaplug.plug.plugin import OURS, normal_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oaplug.plug.plugin import Status

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What may be imported, and what happens when that fails; names as `normal_name` gives them."""

    allowed: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()
    is_strict: bool = False
    is_traced: bool = False

    def status_of(self, distribution: str) -> Status:
        """Whether plugins of a distribution may be imported; those of oaplug always may."""
        name = normal_name(distribution)
        if name == OURS:
            return "ok"
        if name in self.disabled:
            return "disabled"
        return "ok" if self.allowed is None or name in self.allowed else "not allowed"


def read_switches() -> Switches:
    """The switches of this process; a file of disabled distributions that cannot be read is warned of."""
    allowed = os.environ.get("OAPLUG_LOAD_PLUGINS")
    try:
        disabled = read_disabled()
    except PathError as failure:
        warnings.warn(f"no plugin is disabled: {failure}", stacklevel=2)
        disabled = ()
    return Switches(
        allowed=None if allowed is None else frozenset(normal_name(n.strip()) for n in allowed.split(",")),
        disabled=frozenset(map(normal_name, disabled)),
        is_strict=os.environ.get("OAPLUG_PLUGINS_STRICT") == "1",
        is_traced=os.environ.get("OAPLUG_TRACE_PLUGINS") == "1",
    )


def disabled_file() -> Path:
    """plugins.json in $OAPLUG_CONFIG, else in $XDG_CONFIG_HOME/oaplug, else in ~/.config/oaplug.

    Raises PathError for a user without a home.
    """
    folder = os.environ.get("OAPLUG_CONFIG")
    if folder:
        return Path(folder) / "plugins.json"
    try:
        root = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    except RuntimeError:
        raise PathError("this user has no home folder; export OAPLUG_CONFIG=FOLDER") from None
    return root / "oaplug" / "plugins.json"


def read_disabled() -> tuple[str, ...]:
    """Names of the disabled distributions; raises PathError for a file that cannot be understood."""
    try:
        path = disabled_file()
    except PathError:
        return ()
    try:
        if not path.is_file():
            return ()
    except OSError as failure:
        raise PathError(f"{path} cannot be read: {failure.strerror}") from None
    from oaplug.core.artifacts import check_schema, read_json

    content = check_schema(read_json(path), path=path, newest=SCHEMA, error=PathError)
    names = content.get("disabled")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PathError(f"{path}: expected 'disabled' to be a list of distributions; correct or delete it")
    return tuple(names)


def write_disabled(distributions: Iterable[str]) -> Path:
    """Store the names of all disabled distributions; gives the file.

    Raises PathError where nothing can be written.
    """
    from oaplug.core.artifacts import write_json

    path = disabled_file()
    try:
        return write_json(path, {"schema": SCHEMA, "disabled": sorted(distributions)})
    except (OSError, PathError) as failure:
        why = getattr(failure, "strerror", None) or failure
        raise PathError(f"cannot write {path}: {why}; export OAPLUG_CONFIG=FOLDER") from None
