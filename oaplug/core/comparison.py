"""Two models on the same cases: the difference of a metric, its intervals and its p-value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.metrics import target_metrics
from oaplug.core.significance import TIE, bootstrap_p_value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from oaplug.core.predictions import TargetPredictions

    Floats = NDArray[np.float64]
    Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model on one target: its runs (other seeds or folds), each for the same N cases of known truth."""

    name: str
    runs: tuple[TargetPredictions, ...]

    def measure(self, weights: ArrayLike, names: Collection[str]) -> dict[str, Floats]:
        """Metrics (b,R) of every run for rows of weights (b,N)."""
        found = [
            target_metrics(
                p.truth,
                p.probabilities,
                p.predicted,
                ordered=p.target.kind == "ordinal",
                weights=weights,
                names=names,
            )
            for p in self.runs
        ]
        return {name: np.stack([one[name] for one in found], axis=-1) for name in found[0]}


def measure_together(
    contenders: Sequence[Contender], blocks: Iterable[ArrayLike], names: Collection[str]
) -> list[dict[str, Floats]]:
    """Metrics (B,R) of each contender on the same blocks of weights (b,N), whose rows sum up to B."""
    measured = [[one.measure(block, names) for one in contenders] for block in blocks]
    return [
        {name: np.concatenate([rows[index][name] for rows in measured]) for name in measured[0][index]}
        for index in range(len(contenders))
    ]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One metric of one model: over all cases, in every resample (B,), and with each subject left out (J,).

    `jackknife` is empty where there are several runs: leaving out subjects says nothing about runs.
    """

    value: float
    samples: Floats
    jackknife: Floats


def mean_of_runs(values: Floats, samples: Floats, jackknife: Floats, *, rng: np.random.Generator) -> Sampled:
    """The mean over R runs of `values` (R,), `samples` (B,R) and `jackknife` (J,R).

    Runs are a random factor: each resample redraws them too, R with replacement (a two-level bootstrap;
    Davison and Hinkley 1997, section 3.8). With few runs it understates their spread by (R - 1) / R.
    """
    if samples.shape[1] == 1:
        return Sampled(value=float(values[0]), samples=samples[:, 0], jackknife=jackknife[:, 0])
    drawn = rng.integers(0, samples.shape[1], size=samples.shape)
    samples = np.take_along_axis(samples, drawn, axis=1)
    return Sampled(value=float(values.mean()), samples=samples.mean(axis=1), jackknife=np.empty(0))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A model's metric minus the baseline's; NaN where there is no value.

    `low` and `high` are percentiles of the resampled differences, `bca_low` and `bca_high` the bias-corrected
    and accelerated ones; `undefined` counts the resamples that had no value and were left out.
    """

    baseline: float
    model: float
    delta: float
    low: float
    high: float
    bca_low: float
    bca_high: float
    p_value: float
    undefined: int


def difference(baseline: Sampled, model: Sampled, *, confidence: float) -> Difference:
    """What resampling says about a model's metric minus the baseline's, drawn on the same resamples."""
    samples = model.samples - baseline.samples
    delta = model.value - baseline.value
    low, high = percentile_interval(samples, confidence=confidence)
    several_runs = not (baseline.jackknife.size and model.jackknife.size)
    jackknife = np.empty(0) if several_runs else model.jackknife - baseline.jackknife
    bca_low, bca_high = bca_interval(delta, samples, jackknife, confidence=confidence)
    return Difference(
        baseline=baseline.value,
        model=model.value,
        delta=delta,
        low=low,
        high=high,
        bca_low=bca_low,
        bca_high=bca_high,
        p_value=bootstrap_p_value(samples),
        undefined=int(np.isnan(samples).sum()),
    )


def percentile_interval(samples: Floats, *, confidence: float) -> Interval:
    """Percentiles of samples (B,), NaN left out."""
    return _quantiles(samples, (1 - confidence) / 2, (1 + confidence) / 2)


def bca_interval(value: float, samples: Floats, jackknife: Floats, *, confidence: float) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987) of `value` from samples (B,) and jackknife (J,).

    NaN where it is not defined: nothing was left out, or every resample lies on one side of the value.
    """
    from scipy.special import ndtr, ndtri

    known = np.round(samples[~np.isnan(samples)], TIE)
    centre = round(value, TIE)
    if known.size and (known == centre).all():
        return value, value
    acceleration = _acceleration(jackknife)
    below = ((known < centre).mean() + (known <= centre).mean()) / 2 if known.size else 0.0
    if not 0 < below < 1 or np.isnan(acceleration):
        return np.nan, np.nan
    bias = ndtri(below)
    shifted = bias + ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    low, high = ndtr(bias + shifted / (1 - acceleration * shifted))
    return _quantiles(samples, float(low), float(high))


def _acceleration(jackknife: Floats) -> float:
    """A sixth of the skewness of the jackknife values (J,)."""
    if jackknife.size < 2:
        return np.nan
    centred = jackknife.mean() - jackknife
    spread = float((centred**2).sum())
    return float((centred**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _quantiles(samples: Floats, low: float, high: float) -> Interval:
    known = samples[~np.isnan(samples)]
    if not known.size:
        return np.nan, np.nan
    lower, upper = np.quantile(known, [low, high])
    return float(lower), float(upper)
