"""Tests of paired differences, and corrections for making many of them.

McNemar 1947 (Edwards 1948) for two correctness vectors, DeLong, DeLong and Clarke-Pearson 1988 for two
AUCs (by subjects: Obuchowski 1997), two-sided bootstrap p-values, Holm 1979, Benjamini and Hochberg 1995.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

EXACT_BELOW = 25
"""Discordant pairs from which McNemar's chi-square is good enough."""

TIE = 9
"""Decimals to which differences are rounded before counting signs: exact ties come out as 1e-17."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """`table` [[both right, only the first], [only the second, both wrong]], p-value and name of the test."""

    table: tuple[tuple[int, int], tuple[int, int]]
    p_value: float
    test: str


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> McNemar:
    """Whether two classifiers are right equally often on the same cases; both arguments (N,) boolean.

    The binomial test below EXACT_BELOW discordant pairs, else chi-square with Edwards' correction.
    """
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    table = ((int((first & second).sum()), only_first), (only_second, int((~first & ~second).sum())))
    discordant = only_first + only_second
    if discordant < EXACT_BELOW:
        p_value = _binomial_two_sided(min(only_first, only_second), discordant)
        return McNemar(table=table, p_value=p_value, test="mcnemar_exact")
    from scipy.stats import chi2

    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
    return McNemar(table=table, p_value=float(chi2.sf(statistic, 1)), test="mcnemar_chi2+continuity")


def _binomial_two_sided(successes: int, trials: int) -> float:
    """P of an outcome as uneven as this when both sides are equally likely."""
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(successes, trials, 0.5)))


@dataclass(frozen=True, kw_only=True)
class DeLong:
    """The difference (second minus first) of two AUCs, its standard error and p-value (NaN: undefined)."""

    difference: float
    standard_error: float
    p_value: float


def delong(
    positive: ArrayLike, first: ArrayLike, second: ArrayLike, *, subjects: ArrayLike | None = None
) -> DeLong:
    """Whether two scores (N,) of the same cases have the same AUC; `positive` (N,) is boolean.

    With `subjects` (N,), cases of one subject may depend on each other (Obuchowski 1997);
    where each has one case this is DeLong's test.
    """
    is_positive = np.asarray(positive, dtype=bool)
    owner = np.arange(is_positive.size) if subjects is None else np.asarray(subjects)
    if min(is_positive.sum(), (~is_positive).sum()) < 2:
        return DeLong(difference=np.nan, standard_error=np.nan, p_value=np.nan)
    placed = [_placements(is_positive, np.asarray(score, dtype=np.float64)) for score in (first, second)]
    difference = placed[1] - placed[0]
    variance = _variance_of_mean(difference, is_positive, np.unique(owner, return_inverse=True)[1])
    value = float(difference[is_positive].mean())
    return DeLong(difference=value, standard_error=variance**0.5, p_value=_normal_p(value, variance))


def _placements(is_positive: NDArray[np.bool_], score: Floats) -> Floats:
    """Per case (N,) the fraction of the other class on its right side, ties half; each class's mean: AUC."""
    positives, negatives = np.sort(score[is_positive]), np.sort(score[~is_positive])
    placed = np.empty(score.shape)
    placed[is_positive] = _below(negatives, score[is_positive])
    placed[~is_positive] = 1.0 - _below(positives, score[~is_positive])
    return placed


def _below(ordered: Floats, values: Floats) -> Floats:
    """Fraction of `ordered` that lies below each value, ties half."""
    lower = np.searchsorted(ordered, values, side="left")
    fraction: Floats = (lower + np.searchsorted(ordered, values, side="right")) / (2 * ordered.size)
    return fraction


def _variance_of_mean(difference: Floats, is_positive: NDArray[np.bool_], owner: NDArray[np.intp]) -> float:
    """Variance of a difference of AUCs from its placements (N,), summed by subject within each class."""
    sums = []
    for chosen in (is_positive, ~is_positive):
        count, subjects = int(chosen.sum()), np.unique(owner[chosen])
        centred = np.where(chosen, difference - difference[chosen].mean(), 0.0)
        by_subject = np.bincount(owner, weights=centred) / count
        clusters = subjects.size
        sums.append((by_subject, clusters / (clusters - 1) if clusters > 1 else np.nan))
    (above, scale_above), (below, scale_below) = sums
    clusters = int(owner.max()) + 1
    together = 2 * clusters / (clusters - 1) * (above * below).sum()
    variance = scale_above * (above**2).sum() + scale_below * (below**2).sum() + together
    return float(np.maximum(variance, 0.0))


def _normal_p(value: float, variance: float) -> float:
    from scipy.special import ndtr

    if round(value, TIE) == 0 and not variance > 0:
        return 1.0
    return float(2 * ndtr(-abs(value) / variance**0.5)) if variance > 0 else float("nan")


def bootstrap_p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of resampled differences (B,), exact ties counted on both sides; NaN left out.

    p = min(1, 2 min((#{d <= 0} + 1) / (B + 1), (#{d >= 0} + 1) / (B + 1))), never below 2 / (B + 1).
    """
    given = np.asarray(differences, dtype=np.float64)
    known = np.round(given[~np.isnan(given)], TIE)
    if not known.size:
        return float("nan")
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * ((rarer + 1) / (known.size + 1)))


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """q-values (M,): the false discovery rate at which each test is called; NaN is not in the family."""
    return _adjusted(p_values, _step_up)


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values (M,) that control the chance of one false call; NaN is not in the family."""
    return _adjusted(p_values, _step_down)


def _step_up(ascending: Floats) -> Floats:
    scaled = ascending * ascending.size / np.arange(1, ascending.size + 1)
    smallest: Floats = np.minimum.accumulate(scaled[::-1])[::-1]
    return smallest


def _step_down(ascending: Floats) -> Floats:
    largest: Floats = np.maximum.accumulate(ascending * np.arange(ascending.size, 0, -1))
    return largest


def _adjusted(p_values: ArrayLike, adjust: Callable[[Floats], Floats]) -> Floats:
    """`adjust` applied to the known p-values in ascending order, back in the order given and at most 1."""
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")[: int((~np.isnan(given)).sum())]
    adjusted = np.full(given.shape, np.nan)
    adjusted[order] = np.minimum(adjust(given[order]), 1.0)
    return adjusted
