"""Importing one plugin, and checking everything that its hooks give."""

from __future__ import annotations

import inspect
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from oaplug.core.errors import PluginError
from oaplug.plug import hookspecs
from oaplug.plug.plugin import OURS
from oaplug.plug.specs import AnalysisSpec, BackboneSpec, CallbackSpec, ConverterSpec, HeadSpec, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

HOOKS: dict[str, type[Spec]] = {
    "oaplug_backbones": BackboneSpec,
    "oaplug_heads": HeadSpec,
    "oaplug_analyses": AnalysisSpec,
    "oaplug_converters": ConverterSpec,
    "oaplug_callbacks": CallbackSpec,
}
BUILD_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "backbone": ("in_channels", "input_size"),
    "head": ("num_features", "targets", "grade_counts"),
    "analysis": (),
    "converter": (),
    "callback": ("folder",),
}
"""Keyword arguments with which the engine calls `build`, by kind, after the options."""


def load_specs(entry_point: metadata.EntryPoint) -> list[Spec]:
    """Import what an entry point names and collect the specs of its hooks.

    Raises whatever its code raises, and PluginError for what oaplug cannot use.
    """
    plugin = _import(entry_point)
    _check_api(plugin)
    specs: list[Spec] = []
    for hook, function in _hooks_of(plugin, entry_point.name):
        for spec in _call(hook, function):
            _check_spec(spec, hook)
            specs.append(spec)
    return specs


def _import(entry_point: metadata.EntryPoint) -> object:
    try:
        plugin = entry_point.load()
    except ImportError as failure:
        if (failure.name or "").split(".")[0] != OURS:
            raise
        raise PluginError(f"{failure}; it was written for another oaplug, {_our_version()}") from failure
    if plugin is None:
        raise PluginError(f"the entry point {entry_point.value} is None; name a module with hooks")
    return plugin


def _our_version() -> str:
    return f"here is oaplug {metadata.version(OURS)} with plugin API {hookspecs.API_VERSION}"


def _check_api(plugin: object) -> None:
    """Refuse a plugin whose `requires_oaplug_api` (lowest, highest) leaves out our API_VERSION."""
    wanted = getattr(plugin, "requires_oaplug_api", None)
    if wanted is None:
        return
    if not (isinstance(wanted, tuple) and [type(bound) for bound in wanted] == [int, int]):
        raise PluginError(f"requires_oaplug_api is {wanted!r}; give two integers, (lowest, highest)")
    lowest, highest = wanted
    if not lowest <= hookspecs.API_VERSION <= highest:
        what = "oaplug" if lowest > hookspecs.API_VERSION else "this plugin"
        raise PluginError(f"it needs plugin API {lowest} to {highest}, {_our_version()}; upgrade {what}")


def _hooks_of(plugin: object, name: str) -> list[tuple[str, Callable[[], object]]]:
    """The hooks that a plugin implements; raises for unknown ones, wrong arguments, and none at all."""
    manager = pluggy.PluginManager(OURS)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    manager.check_pending()
    callers = {hook: getattr(manager.hook, hook).get_hookimpls() for hook in HOOKS}
    for hook, implementations in callers.items():
        if not implementations and inspect.isroutine(getattr(plugin, hook, None)):
            raise PluginError(f"{hook} is not marked with oaplug.plug.hookimpl")
    hooks = [(hook, one.function) for hook, implementations in callers.items() for one in implementations]
    if not hooks:
        raise PluginError(f"it has no hook; mark functions with oaplug.plug.hookimpl: {', '.join(HOOKS)}")
    return hooks


def _call(hook: str, function: Callable[[], object]) -> list[Any]:
    given = function()
    expected = f"return a list of {HOOKS[hook].__name__}"
    if given is None or isinstance(given, (str, bytes, Spec)):
        raise PluginError(f"{hook} gave {_shown(given)}; {expected}")
    try:
        iterator = iter(given)  # type: ignore[call-overload]
    except TypeError:
        raise PluginError(f"{hook} gave {_shown(given)}; {expected}") from None
    return list(iterator)


def _shown(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _check_spec(spec: object, hook: str) -> None:
    """What the engine relies on before it builds anything; raises PluginError."""
    expected = HOOKS[hook]
    if not isinstance(spec, expected):
        raise PluginError(f"{hook} gave {_shown(spec)} among its specs; give {expected.__name__} only")
    where = f"the {expected.kind} {spec.name}"
    if spec.kind != expected.kind:
        raise PluginError(f"{where} calls itself a {spec.kind!r}; leave kind alone")
    texts = (spec.summary, spec.reference)
    if not all(isinstance(text, str) for text in texts) or type(spec.revision) is not int:
        raise PluginError(f"{where}: summary and reference must be strings, revision an integer")
    for field in ("size_multiple", "accepts"):
        if not callable(getattr(spec, field, callable)):
            raise PluginError(f"{where}: {field} must be a function")
    try:
        hash(spec)
    except TypeError as failure:
        raise PluginError(
            f"{where} is not hashable ({failure}); use tuples and frozensets in its fields"
        ) from None
    _check_options(spec, where)
    _check_build(spec, where)


def _check_options(spec: Spec, where: str) -> None:
    try:
        spec.options()
    except Exception as failure:
        raise PluginError(
            f"{where}: its options cannot be made without arguments ({failure}); "
            "give a dataclass with a default for every field"
        ) from failure


def _check_build(spec: Spec, where: str) -> None:
    names = BUILD_ARGUMENTS[spec.kind]
    try:
        inspect.signature(spec.build).bind(None, **dict.fromkeys(names))
    except TypeError as failure:
        called = ", ".join(["options", *(["*", *names] if names else [])])
        raise PluginError(f"{where}: build is called as build({called}): {failure}") from None
    except ValueError:  # a builtin that does not say
        return
