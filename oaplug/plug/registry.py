"""The parts of this environment, looked up by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from oaplug.core.errors import PluginError, nearest
from oaplug.core.settings import from_mapping
from oaplug.plug.discovery import Found, find_plugins, identity, load_plugins
from oaplug.plug.plugin import Part, Plugin, Status, normal_name
from oaplug.plug.specs import Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib import metadata

__all__ = ["Part", "Plugin", "Registry", "discover", "parse_options", "registry"]
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Every part of every healthy plugin, and all plugins, healthy or not."""

    parts: tuple[Part, ...] = ()
    plugins: tuple[Plugin, ...] = ()

    @property
    def quarantined(self) -> tuple[Plugin, ...]:
        """The plugins that are broken."""
        return tuple(plugin for plugin in self.plugins if plugin.status == "broken")

    def of_kind(self, kind: str) -> tuple[Part, ...]:
        """Parts of a kind ("backbone", "head", "analysis", "converter", "callback"), by name."""
        return tuple(sorted((p for p in self.parts if p.spec.kind == kind), key=lambda p: p.spec.name))

    def get(self, kind: str, name: str) -> Part:
        """The part called `name` or `distribution:name`.

        Raises PluginError where it is unknown (quoting broken plugins and naming those that are switched
        off) or offered by several distributions (naming all).
        """
        distribution, _, bare = name.rpartition(":")
        parts = [part for part in self.of_kind(kind) if _is_of(distribution, part)]
        found = [part for part in parts if part.spec.name == bare]
        if len(found) == 1:
            return found[0]
        if found:
            names = " or ".join(part.qualified_name for part in found)
            raise PluginError(f"the {kind} {name!r} is offered by several distributions; write {names}")
        if distribution:
            raise PluginError(f"no {kind} {name!r}{self._why_none_of(distribution, bare, parts)}")
        hint = nearest(name, [part.spec.name for part in parts])
        raise PluginError(f"no {kind} {name!r}{hint}{self._left_out()}")

    def _why_none_of(self, distribution: str, name: str, parts: list[Part]) -> str:
        """Why a distribution does not offer a part; `parts` are those of the kind that it does offer."""
        plugins = [plugin for plugin in self.plugins if _is_of(distribution, plugin)]
        broken = [plugin for plugin in plugins if plugin.status == "broken"]
        if broken:
            quoted = "\n".join(plugin.traceback.rstrip() for plugin in broken)
            return f"; the plugin {broken[0].distribution} {broken[0].version} is broken:\n{quoted}"
        for plugin in plugins:
            if plugin.status != "ok":
                return f"; {plugin.distribution} is {plugin.status}{_way_in(plugin.status, plugin)}"
        if plugins or parts:
            return nearest(name, [part.spec.name for part in parts])
        known = {plugin.distribution for plugin in self.plugins} | {part.distribution for part in self.parts}
        return f"; no plugin of a distribution {distribution!r} is installed{nearest(distribution, known)}"

    def _left_out(self) -> str:
        """The plugins that might have offered a part: broken ones with their reasons, those switched off."""
        said = [f"; the plugin {q.distribution} is broken: {q.reason}" for q in self.quarantined]
        for status in ("disabled", "not allowed"):
            names = dict.fromkeys(p.distribution for p in self.plugins if p.status == status)
            if names:
                said.append(f"; {status}: {', '.join(names)}{_way_in(status)}")
        return "".join(said)

    def spec(self, kind: type[S], name: str) -> S:
        """The spec of the part called `name`, typed."""
        return cast("S", self.get(kind.kind, name).spec)


def _is_of(distribution: str, one: Part | Plugin) -> bool:
    return not distribution or normal_name(one.distribution) == normal_name(distribution)


def _way_in(status: Status, plugin: Plugin | None = None) -> str:
    if status == "disabled":
        return f" (oaplug_plugins --enable {plugin.distribution if plugin is not None else 'NAME'})"
    return " (OAPLUG_LOAD_PLUGINS lists what is)"


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The parts of this environment, discovered once per process."""
    return _registry_of(find_plugins())


def discover(entry_points: Iterable[metadata.EntryPoint]) -> Registry:
    """The parts of some entry points; a broken plugin is quarantined with one warning line.

    OAPLUG_LOAD_PLUGINS (comma-separated distributions) is an allow-list applied before any import;
    OAPLUG_PLUGINS_STRICT=1 raises PluginError instead of quarantining.
    """
    return _registry_of(_found(entry_point) for entry_point in entry_points)


def _found(entry_point: metadata.EntryPoint) -> Found:
    owner = entry_point.dist
    name, version, problem = identity(owner) if owner is not None else (entry_point.value, "unknown", "")
    return Found(distribution=name, version=version, entry_point=entry_point, problem=problem)


def _registry_of(found: Iterable[Found]) -> Registry:
    plugins = load_plugins(found)
    return Registry(parts=tuple(part for plugin in plugins for part in plugin.parts), plugins=plugins)


def parse_options(spec: Spec, options: Mapping[str, Any] | None) -> Any:
    """The options of a part from JSON; raises PluginError naming an unknown key or a wrong value."""
    return from_mapping(spec.options, options or {}, where=f"{spec.kind} {spec.name}", error=PluginError)
