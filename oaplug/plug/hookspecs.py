"""The five hooks (pluggy project and entry-point group "oaplug"); a hook can be added, never removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oaplug.plug.specs import AnalysisSpec, BackboneSpec, CallbackSpec, ConverterSpec, HeadSpec

API_VERSION = 1
"""Version of the hooks, specs and protocols of this package."""

hookspec = pluggy.HookspecMarker("oaplug")
hookimpl = pluggy.HookimplMarker("oaplug")


@hookspec
def oaplug_backbones() -> Iterable[BackboneSpec]:  # type: ignore[empty-body]
    """Give the backbones this plugin offers."""


@hookspec
def oaplug_heads() -> Iterable[HeadSpec]:  # type: ignore[empty-body]
    """Give the head strategies this plugin offers."""


@hookspec
def oaplug_analyses() -> Iterable[AnalysisSpec]:  # type: ignore[empty-body]
    """Give the analyses this plugin offers."""


@hookspec
def oaplug_converters() -> Iterable[ConverterSpec]:  # type: ignore[empty-body]
    """Give the dataset converters this plugin offers."""


@hookspec
def oaplug_callbacks() -> Iterable[CallbackSpec]:  # type: ignore[empty-body]
    """Give the training callbacks this plugin offers."""
