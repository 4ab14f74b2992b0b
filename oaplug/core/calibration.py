"""How far probabilities can be taken at their word: calibration error, Brier score, log loss, temperature.

Like `oaplug.core.metrics` these take case weights (..., N), so that rows of resamples cost one product.
The tests hold them against scikit-learn and against plain loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Grades = NDArray[np.int64]

SMALLEST = float(np.finfo(np.float64).eps)
"""Probabilities below this are taken as this where their logarithm is asked for, as scikit-learn does."""

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature that is looked for."""


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Bins of scores in [0, 1]: `edges` (B+1,), and the bin `place` (N,) of each case.

    A bin holds its lower edge but not its upper one; the last holds both.
    """

    edges: Floats
    place: NDArray[np.int64]

    def members(self) -> Floats:
        """1 where a case (rows) lies in a bin (columns): (N,B)."""
        table = np.zeros((self.place.size, self.edges.size - 1))
        table[np.arange(self.place.size), self.place] = 1
        return table


def equal_width(scores: ArrayLike, *, count: int) -> Bins:
    """`count` bins of the same width between 0 and 1."""
    return _cut(np.asarray(scores, dtype=np.float64), np.linspace(0, 1, count + 1))


def equal_mass(scores: ArrayLike, *, count: int) -> Bins:
    """`count` bins of as many cases each; fewer where scores are equal, which share a bin."""
    given = np.asarray(scores, dtype=np.float64)
    sizes = [part.size for part in np.array_split(given, count)]
    first = np.cumsum(sizes)[:-1]
    inner = np.sort(given)[first[first < given.size]]
    return _cut(given, np.unique(np.r_[0.0, inner, 1.0]))


def _cut(scores: Floats, edges: Floats) -> Bins:
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, edges.size - 2)
    return Bins(edges=edges, place=np.asarray(place, dtype=np.int64))


def scores_and_hits(
    truth: ArrayLike, probabilities: ArrayLike, predicted: ArrayLike
) -> tuple[Floats, NDArray[np.bool_]]:
    """What is held to its word: scores (N,) and whether what they promise came true (N,).

    Of two grades the probability of the positive one; of more the probability of the predicted grade
    (top-label calibration).
    """
    index, table = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    if table.shape[1] == 2:
        return table[:, 1], index == 1
    called = np.asarray(predicted, dtype=np.int64)
    return table[np.arange(called.size), called], index == called


def calibration_error(
    scores: ArrayLike, hits: ArrayLike, bins: Bins, *, weights: ArrayLike | None = None
) -> Floats:
    """Expected calibration error (...): |frequency - mean score| of each bin, averaged over cases.

    Naeini, Cooper and Hauskrecht 2015. The bins stay as they are in every row of `weights`.
    """
    gaps = np.asarray(hits, dtype=np.float64) - np.asarray(scores, dtype=np.float64)
    weight = _as_weights(weights, gaps.size)
    return _ratio(np.abs(weight @ (bins.members() * gaps[:, None])).sum(axis=-1), weight.sum(axis=-1))


def calibrated_hits(scores: ArrayLike, *, draws: int, rng: np.random.Generator) -> Floats:
    """Hits (draws,N) as they would be if every score were the truth: independent, each with its chance.

    Consistency resampling (Broecker and Smith 2007): what a calibrated model shows by chance alone.
    """
    given = np.asarray(scores, dtype=np.float64)
    return (rng.random((draws, given.size)) < given).astype(np.float64)


def calibrated_errors(scores: ArrayLike, bins: Bins, hits: Floats) -> Floats:
    """Calibration errors (draws,) of `calibrated_hits`: what the error would be without miscalibration."""
    given = np.asarray(scores, dtype=np.float64)
    errors: Floats = np.abs((hits - given) @ bins.members()).sum(axis=1) / max(given.size, 1)
    return errors


def brier_scores(truth: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Squared errors (N,) of probabilities (Brier 1950).

    Of two grades that of the positive one, between 0 and 1; of more the sum over grades, between 0 and 2.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    squares = (table - np.eye(table.shape[1])[np.asarray(truth, dtype=np.int64)]) ** 2
    return np.asarray(squares[:, 1] if table.shape[1] == 2 else squares.sum(axis=1))


def log_losses(truth: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Negative log likelihoods (N,) of the true grades, in nats."""
    table = np.asarray(probabilities, dtype=np.float64)
    index = np.asarray(truth, dtype=np.int64)
    return -np.log(np.clip(table[np.arange(index.size), index], SMALLEST, 1.0))


def mean(values: ArrayLike, *, weights: ArrayLike | None = None) -> Floats:
    """Weighted mean (...) of values (N,)."""
    given = np.asarray(values, dtype=np.float64)
    weight = _as_weights(weights, given.size)
    return _ratio(weight @ given, weight.sum(axis=-1))


def brier_parts(
    truth: ArrayLike, probabilities: ArrayLike, *, count: int, weights: ArrayLike | None = None
) -> dict[str, Floats]:
    """Murphy's parts of the Brier score (1973), summed over the grades that it sums over.

    Brier = reliability - resolution + uncertainty + within: miscalibration of bins (less is better), how
    far bins differ from the base rate (more is better), the Brier score of the base rate, and what `count`
    bins of equal width hide.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    index = np.asarray(truth, dtype=np.int64)
    weight = _as_weights(weights, index.size)
    grades = (1,) if table.shape[1] == 2 else range(table.shape[1])
    found = [_parts(table[:, grade], index == grade, count=count, weight=weight) for grade in grades]
    parts = {name: np.sum([one[name] for one in found], axis=0) for name in found[0]}
    whole = mean(brier_scores(index, table), weights=weight)
    within = whole - (parts["reliability"] - parts["resolution"] + parts["uncertainty"])
    return parts | {"within": within}


def _parts(scores: Floats, hits: NDArray[np.bool_], *, count: int, weight: Floats) -> dict[str, Floats]:
    """Reliability, resolution and uncertainty (...) of one grade against the rest."""
    members, total = equal_width(scores, count=count).members(), weight.sum(axis=-1)
    size = weight @ members
    score = _ratio(weight @ (members * scores[:, None]), size)
    rate = _ratio(weight @ (members * hits[:, None]), size)
    base = _ratio(weight @ hits.astype(np.float64), total)
    return {
        "reliability": _ratio(np.nansum(size * (score - rate) ** 2, axis=-1), total),
        "resolution": _ratio(np.nansum(size * (rate - base[..., None]) ** 2, axis=-1), total),
        "uncertainty": base * (1 - base),
    }


def with_temperature(probabilities: ArrayLike, temperature: float) -> Floats:
    """softmax(log p / temperature) of probabilities (N,K): what dividing the logits would have given."""
    logarithms = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST)) / temperature
    raised = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_temperature(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """The temperature that minimises the log loss of cases (N,K) (Guo et al. 2017), within TEMPERATURES.

    Above 1 the model is too sure of itself, below 1 not sure enough.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(log_losses(truth, with_temperature(probabilities, np.exp(log_temperature))).mean())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _as_weights(weights: ArrayLike | None, size: int) -> Floats:
    return np.ones(size) if weights is None else np.asarray(weights, dtype=np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """A quotient that is NaN where the denominator is 0."""
    above, below = np.broadcast_arrays(numerator, denominator)
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0))
