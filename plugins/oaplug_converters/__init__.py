"""Converters that turn sources of knees into raw datasets of oaplug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.plug import ConverterSpec, hookimpl

if TYPE_CHECKING:
    from oaplug.plug.protocols import Converter


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Options of `phantom`; `shape` follows D,H,W, `label_noise` is a reader's noise in grades."""

    cases: int = 120
    shape: tuple[int, int, int] = (40, 96, 96)
    seed: int = 0
    label_noise: float = 0.0
    test_fraction: float = 0.3
    processes: int = 1


def _build_phantom(options: PhantomOptions) -> Converter:
    from oaplug_converters.phantom.converter import PhantomConverter

    return PhantomConverter(options)


@hookimpl
def oaplug_converters() -> list[ConverterSpec]:
    """The converters of this package."""
    return [
        ConverterSpec(
            name="phantom",
            summary="parametric knees with a known severity (also oaplug_make_phantom); reads no source",
            build=_build_phantom,
            options=PhantomOptions,
        )
    ]
