"""oaplug: coarse-to-fine severity grading of knee osteoarthritis from 3D MRI, every part a plugin.

Importing it is free; the functions below import what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "convert_weights": "oaplug.model.conversion",
    "create_encoder": "oaplug.model.build",
    "create_network": "oaplug.model.build",
    "list_backbones": "oaplug.model.build",
    "list_heads": "oaplug.model.build",
    "load_model": "oaplug.infer.predictor",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'oaplug' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
