"""Options of the analyses, apart from them so that listing parts imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oaplug.core.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """`confidence` is the coverage of every interval, between 0 and 1."""

    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise PluginError(f"confidence must lie between 0 and 1, got {self.confidence}")


@dataclass(frozen=True, kw_only=True)
class PairedStatisticsOptions:
    """Which models, targets and metrics are compared: together they declare the family of tests.

    `baseline` is the model all others are compared with (default: the first given); `protocol` "study"
    compares as the article does. No `targets` or `metrics`: all. `confidence` is the coverage of the
    intervals, `false_discovery_rate` the q-value below which a difference is called. `resamples` and
    `seed` of the bootstrap are the study's where None (protocol "study": 10,000 and 42).
    """

    protocol: Literal["pairs", "study"] = "pairs"
    baseline: str = ""
    targets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    confidence: float = 0.95
    false_discovery_rate: float = 0.05
    resamples: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("confidence", "false_discovery_rate"):
            if not 0 < getattr(self, name) < 1:
                raise PluginError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.resamples is not None and self.resamples < 1:
            raise PluginError(f"resamples must be positive, got {self.resamples}")
        if self.protocol == "study" and (self.baseline or self.targets or self.metrics):
            raise PluginError("protocol study has its own baselines, targets and metrics; leave them out")
