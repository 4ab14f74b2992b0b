"""What plugin authors see: specs, protocols, the hooks and the registry. Importing it imports no torch."""

from oaplug.plug.hookspecs import API_VERSION, hookimpl
from oaplug.plug.specs import (
    AnalysisSpec,
    BackboneSpec,
    CallbackSpec,
    ConverterSpec,
    HeadSpec,
    NoOptions,
    Spec,
    WeightMap,
    WeightSource,
)

__all__ = [
    "API_VERSION",
    "AnalysisSpec",
    "BackboneSpec",
    "CallbackSpec",
    "ConverterSpec",
    "HeadSpec",
    "NoOptions",
    "Spec",
    "WeightMap",
    "WeightSource",
    "hookimpl",
]
