"""JSON into frozen dataclasses and back, with errors that name the key.

Dataclasses are the only modelling style of oaplug, so that plugin authors need nothing else;
pydantic checks and converts their fields (docs/decisions/0002).
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, TypeVar

from oaplug.core.errors import OaplugError, PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")


def from_mapping(
    kind: type[T], mapping: Mapping[str, Any], *, where: str, error: type[OaplugError] = PlanError
) -> T:
    """Build the dataclass `kind` from a JSON mapping, refusing unknown keys and wrong types.

    `where` (a file or option name) opens the message of the `error` that is raised.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        if "__pydantic_config__" not in kind.__dict__:
            kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
        adapter = _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(mapping))  # type: ignore[no-any-return]
    except ValidationError as failure:
        raise error(f"{where}: {_explain(kind, failure.errors()[0])}") from None
    except OaplugError as failure:
        raise error(f"{where}: {failure}") from None


_ADAPTERS: dict[type, Any] = {}


def _explain(kind: type, problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}{nearest(location[-1], _field_names(kind, location[:-1]))}"
    if problem["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"the key {key!r} is missing"
    return f"{key}: {problem['msg'].lower()}, got {problem['input']!r}"


def _field_names(kind: Any, path: Sequence[str]) -> list[str]:
    """Names of the fields of the dataclass found by walking `path` down from `kind`."""
    from typing import get_args, get_type_hints

    for name in path:
        if dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind).get(name)
        else:  # a dict[str, X] or an optional: the dataclass among its arguments
            kind = next((a for a in get_args(kind) if dataclasses.is_dataclass(a)), None)
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def to_mapping(value: Any) -> Any:
    """The JSON form of a dataclass, tuple, list or dict of them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(item) for item in value]
    return value


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["training.epochs=5"]` as `{"training.epochs": 5}`; values are JSON, else plain text."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise PlanError(f"--set {assignment}: expected KEY=VALUE, such as training.epochs=5")
        try:
            overrides[key] = json.loads(text)
        except json.JSONDecodeError:
            overrides[key] = text
    return overrides


def apply_override(mapping: dict[str, Any], key: str, value: Any, *, open_keys: Sequence[str] = ()) -> None:
    """Set the dotted `key` in a nested mapping in place; a key that does not exist is refused.

    Below `open_keys` (free-form options of a plugin) new keys may be added.
    """
    *parents, last = key.split(".")
    node: Any = mapping
    for depth, name in enumerate(parents):
        if not isinstance(node, dict) or name not in node:
            raise PlanError(f"--set {key}: no plan key {'.'.join(parents[: depth + 1])!r}{_near(node, name)}")
        node = node[name]
    if not isinstance(node, dict) or (last not in node and ".".join(parents) not in open_keys):
        raise PlanError(f"--set {key}: no plan key {key!r}{_near(node, last)}")
    node[last] = value


def _near(node: Any, name: str) -> str:
    return nearest(name, node) if isinstance(node, dict) else ""
