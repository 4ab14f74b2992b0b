"""Options of the analyses, apart from them so that listing parts imports no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from oaplug.core.errors import PluginError
from oaplug.core.saliency import SaliencyMethod


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


@dataclass(frozen=True, kw_only=True)
class SeverityAxisOptions:
    """`confidence` is the coverage of the intervals, `shuffles` how often grades are dealt out at random for
    the baseline, `perplexity` that of the t-SNE (less where there are few cases)."""

    confidence: float = 0.95
    shuffles: int = 1000
    perplexity: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise PluginError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if self.shuffles < 1 or self.perplexity < 1:
            raise PluginError("shuffles and perplexity must be 1 at least")


@dataclass(frozen=True, kw_only=True)
class TaskInterferenceOptions:
    """`batches` of training cases are measured per fold of a saved model; with 0, only what was logged is
    shown. `confidence` is the coverage of the interval of the mean."""

    batches: int = 16
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.batches < 0:
            raise PluginError(f"batches must not be negative, got {self.batches}")
        if not 0 < self.confidence < 1:
            raise PluginError(f"confidence must lie between 0 and 1, got {self.confidence}")


@dataclass(frozen=True, kw_only=True)
class HierarchyOptions:
    """`confidence` is the coverage of every interval, between 0 and 1."""

    confidence: float = 0.95

    def __post_init__(self) -> None:
        _check_confidence(self.confidence)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """`bins` of the calibration error and the reliability diagrams; `confidence` of every interval."""

    bins: int = 15
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _check_confidence(self.confidence)
        if not 2 <= self.bins <= 100:
            raise PluginError(f"bins must lie between 2 and 100, got {self.bins}")


@dataclass(frozen=True, kw_only=True)
class SubgroupsOptions:
    """How cases are grouped. `covariates` are those that group them (none: all there are).

    `bands` cut numbers at limits given by covariate, {"age": [50, 60]}; without, at the quartiles. Those
    named in `categories` are names even where they are written as numbers. Groups of fewer than `small`
    cases are noted; `confidence` is the coverage of every interval.
    """

    covariates: tuple[str, ...] = ()
    bands: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    categories: tuple[str, ...] = ("site", "center", "visit")
    small: int = 20
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _check_confidence(self.confidence)
        for name, limits in self.bands.items():
            if not limits or list(limits) != sorted(set(limits)):
                raise PluginError(f"bands of {name} must ascend, got {list(limits)}")


@dataclass(frozen=True, kw_only=True)
class ErrorGalleryOptions:
    """`shown` wrong cases per model and target are drawn, `listed` of them are in the table."""

    shown: int = 6
    listed: int = 20

    def __post_init__(self) -> None:
        if self.shown < 0 or self.listed < 1:
            raise PluginError("shown must not be negative, and listed 1 at least")


@dataclass(frozen=True, kw_only=True)
class SaliencyOverlapOptions:
    """Which maps are made, and what they are measured against.

    `targets` are asked as `oa` (the predicted grade, of two the positive) or `kl:4` (one grade), `regions`
    are regions or labels of dataset.json, the first of which is drawn (`study`: labels 2 and 4); none: all.
    `method`, `copies`, `noise_std`, `steps`, `fixed_grade` and `copies_per_batch` are those of
    oaplug.core.saliency.SaliencySettings. `maps` is how maps are written, `baseline` the model that others
    are compared with (default: the first). Untrained networks are looked at with `untrained_cases`, and
    `shown_cases` are drawn. `seed` of the noise is the study's where None.
    """

    method: SaliencyMethod = "smoothgrad_x_input"
    targets: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    copies: int = 8
    noise_std: float = 0.05
    steps: int = 32
    fixed_grade: bool = False
    copies_per_batch: int | None = None
    maps: Literal["float32", "uint16", "none"] = "float32"
    baseline: str = ""
    untrained_cases: int = 5
    shown_cases: int = 2
    confidence: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_confidence(self.confidence)
        if min(self.copies, self.steps, 1 if self.copies_per_batch is None else self.copies_per_batch) < 1:
            raise PluginError("copies, steps and copies_per_batch must be positive")
        if min(self.noise_std, self.untrained_cases, self.shown_cases) < 0:
            raise PluginError("noise_std, untrained_cases and shown_cases must not be negative")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise PluginError(f"confidence must lie between 0 and 1, got {confidence}")
