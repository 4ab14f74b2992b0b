"""Discovering parts by entry points, one isolated try each, and looking them up by name."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pluggy

from oaplug.core.errors import PluginError, nearest
from oaplug.core.settings import from_mapping
from oaplug.plug import hookspecs
from oaplug.plug.specs import AnalysisSpec, BackboneSpec, CallbackSpec, ConverterSpec, HeadSpec, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

log = logging.getLogger(__name__)
GROUP = "oaplug"
HOOKS: dict[str, type[Spec]] = {
    "oaplug_backbones": BackboneSpec,
    "oaplug_heads": HeadSpec,
    "oaplug_analyses": AnalysisSpec,
    "oaplug_converters": ConverterSpec,
    "oaplug_callbacks": CallbackSpec,
}
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A spec and the distribution it came from."""

    spec: Spec
    distribution: str
    version: str

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which is never ambiguous."""
        return f"{self.distribution}:{self.spec.name}"


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A plugin that could not be loaded, with the traceback of why."""

    entry_point: str
    distribution: str
    version: str
    reason: str
    traceback: str


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Every part of every healthy plugin, and the plugins that are not."""

    parts: tuple[Part, ...] = ()
    quarantined: tuple[Quarantined, ...] = field(default=())

    def of_kind(self, kind: str) -> tuple[Part, ...]:
        """Parts of a kind ("backbone", "head", "analysis", "converter", "callback"), by name."""
        return tuple(sorted((p for p in self.parts if p.spec.kind == kind), key=lambda p: p.spec.name))

    def get(self, kind: str, name: str) -> Part:
        """The part called `name` or `distribution:name`.

        Raises PluginError where it is unknown (quoting broken plugins) or offered twice (naming both).
        """
        parts = self.of_kind(kind)
        found = [p for p in parts if name in (p.spec.name, p.qualified_name)]
        if len(found) == 1:
            return found[0]
        if found:
            names = " or ".join(p.qualified_name for p in found)
            raise PluginError(f"the {kind} {name!r} is offered by several distributions; write {names}")
        broken = "".join(f"; the plugin {q.distribution} is broken: {q.reason}" for q in self.quarantined)
        raise PluginError(f"no {kind} {name!r}{nearest(name, [p.spec.name for p in parts])}{broken}")

    def spec(self, kind: type[S], name: str) -> S:
        """The spec of the part called `name`, typed."""
        return cast("S", self.get(kind.kind, name).spec)


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The parts of this environment, discovered once per process."""
    return discover(metadata.entry_points(group=GROUP))


def discover(entry_points: Iterable[metadata.EntryPoint]) -> Registry:
    """Load plugins one by one; a broken one is quarantined with one warning line.

    OAPLUG_LOAD_PLUGINS (comma-separated distributions) is an allow-list applied before any import;
    OAPLUG_PLUGINS_STRICT=1 raises PluginError instead of quarantining.
    """
    allowed = os.environ.get("OAPLUG_LOAD_PLUGINS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")} | {"oaplug"}
    parts: list[Part] = []
    broken: list[Quarantined] = []
    for entry_point in sorted(entry_points, key=lambda e: (_distribution(e), e.name)):
        if names is not None and _distribution(entry_point)[0] not in names:
            continue
        try:
            parts += _load(entry_point)
        except Exception as failure:
            broken.append(_quarantine(entry_point, failure))
    return Registry(parts=tuple(parts), quarantined=tuple(broken))


def _load(entry_point: metadata.EntryPoint) -> list[Part]:
    """Import one plugin, register it, and check everything its hooks give."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(entry_point.load(), entry_point.name)
    manager.check_pending()
    distribution, version = _distribution(entry_point)
    parts: list[Part] = []
    for hook, expected in HOOKS.items():
        for given in getattr(manager.hook, hook)():
            for spec in given:
                if not isinstance(spec, expected):
                    raise PluginError(f"{hook} gave {spec!r}, expected {expected.__name__}")
                parts.append(Part(spec=spec, distribution=distribution, version=version))
    return parts


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    owner = entry_point.dist
    return (owner.name, owner.version) if owner is not None else (entry_point.value, "unknown")


def _quarantine(entry_point: metadata.EntryPoint, failure: Exception) -> Quarantined:
    distribution, version = _distribution(entry_point)
    reason = f"{type(failure).__name__}: {failure}"
    if os.environ.get("OAPLUG_PLUGINS_STRICT") == "1":
        raise PluginError(f"plugin {distribution} ({entry_point.value}) is broken: {reason}") from failure
    warnings.warn(f"oaplug plugin {distribution} is left out: {reason}; see oaplug_plugins", stacklevel=2)
    text = "".join(traceback.format_exception(failure))
    log.debug("plugin %s is left out\n%s", distribution, text)
    return Quarantined(
        entry_point=entry_point.value,
        distribution=distribution,
        version=version,
        reason=reason,
        traceback=text,
    )


def parse_options(spec: Spec, options: Mapping[str, Any] | None) -> Any:
    """The options of a part from JSON; raises PluginError naming an unknown key or a wrong value."""
    return from_mapping(spec.options, options or {}, where=f"{spec.kind} {spec.name}", error=PluginError)
