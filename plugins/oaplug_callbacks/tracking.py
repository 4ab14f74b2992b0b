"""What callbacks for experiment trackers share: optional packages, names, settings as flat mappings."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def import_optional(module: str, *, callback: str, install: str) -> Any:
    """A package that this callback alone needs; raises PluginError saying how to install it."""
    try:
        return import_module(module)
    except ImportError as failure:
        raise PluginError(
            f"the callback {callback} needs the package {install} ({failure}); "
            f"pip install {install}, or 'oaplug[tracking]' for all trackers"
        ) from None


@contextmanager
def unless_set(**variables: str) -> Iterator[None]:
    """Within, these environment variables have these values, where the person who runs it set no other."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def project_name(run: Mapping[str, Any]) -> str:
    """What trainings of one dataset have in common."""
    return str(run.get("plan", {}).get("dataset_name") or "oaplug")


def run_name(folder: Path) -> str:
    """`MODEL/fold_0`."""
    return f"{folder.parent.name}/{folder.name}"


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's record that are defined, by name; trackers group by `/`."""
    return {
        name.replace(".", "/"): float(value)
        for name, value in record.items()
        if isinstance(value, (int, float)) and name != "epoch"
    }


def flat_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Choices and plan of a run by dotted key, without the plan's reasons; lists stay whole."""
    return _flat({"run": run.get("run", {}), "plan": run.get("plan", {})})


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key == "reasons":
            continue
        if isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found
