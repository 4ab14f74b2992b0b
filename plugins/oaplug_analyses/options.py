"""Options of the analyses, apart from them so that listing parts imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass

from oaplug.core.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """`confidence` is the coverage of every interval, between 0 and 1."""

    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise PluginError(f"confidence must lie between 0 and 1, got {self.confidence}")
