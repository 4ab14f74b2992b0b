"""Intervals by resampling subjects: cases of one person are drawn together or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.seeds import random_generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]
    Statistic = Callable[[Floats], Mapping[str, Floats]]

CELLS_PER_BLOCK = 4_000_000
"""Case weights held in memory at once (32 MB)."""


JACKKNIFE_ROWS = 500
"""Most leave-one-out rows of a jackknife."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval; `undefined` counts the resamples that had no value and were left out.

    All four have the shape of the statistic, () or (K,); NaN where there is no value.
    """

    value: Floats
    low: Floats
    high: Floats
    undefined: NDArray[np.int64]

    def at(self, index: int) -> Estimate:
        """The estimate of one of K."""
        return Estimate(
            value=self.value[index],
            low=self.low[index],
            high=self.high[index],
            undefined=self.undefined[index],
        )


def subject_weights(subject_ids: Sequence[str], *, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks (b,N) of case weights, `resamples` rows in all: how often each case's subject was drawn.

    As many subjects are drawn, with replacement, as there are. The same subjects and seed give the
    same rows, so every model of a study is resampled alike.
    """
    for counts in subject_counts(subject_ids, resamples=resamples, seed=seed):
        yield counts.astype(np.float64)


def subject_counts(subject_ids: Sequence[str], *, resamples: int, seed: int) -> Iterator[Counts]:
    """The rows of `subject_weights` as whole numbers, which the metrics multiply faster."""
    place = np.unique(np.asarray(subject_ids, dtype=str), return_inverse=True)[1]
    yield from redrawn(place, resamples=resamples, rng=random_generator(seed, "bootstrap subjects"))


def redrawn(place: NDArray[np.intp], *, resamples: int, rng: np.random.Generator) -> Iterator[Counts]:
    """Blocks (b,N) of counts, from draws of whole groups; `place` (N,) is each case's group, 0..S-1.

    Each row takes S numbers of `rng`, as `rng.integers(0, S, size=S)` does, whatever the size of a block.
    """
    groups = int(place.max(initial=-1)) + 1
    alone = np.array_equal(place, np.arange(groups))
    rows_per_block = max(1, CELLS_PER_BLOCK // max(1, len(place)))
    for start in range(0, resamples, rows_per_block):
        rows = min(rows_per_block, resamples - start)
        cells = rng.integers(0, groups, size=(rows, groups))
        cells += groups * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * groups).reshape(rows, groups)
        yield counts if alone else counts[:, place]


def left_out(place: NDArray[np.intp]) -> Iterator[Counts]:
    """Blocks (b,N) of jackknife counts: each row leaves one group of cases out, as `place` (N,) groups them.

    Beyond JACKKNIFE_ROWS groups several are left out together: the acceleration of a BCa interval, the
    one thing this is for, comes out the same, because skewness shrinks as the square root of their number.
    """
    rows = min(int(place.max(initial=-1)) + 1, JACKKNIFE_ROWS)
    rows_per_block = max(1, CELLS_PER_BLOCK // max(1, len(place)))
    for start in range(0, rows, rows_per_block):
        left = np.arange(start, min(start + rows_per_block, rows))
        yield np.asarray(left[:, None] != place % rows, dtype=np.int64)


def estimate(
    statistic: Statistic, subject_ids: Sequence[str], *, resamples: int, seed: int, confidence: float
) -> dict[str, Estimate]:
    """Values of `statistic` with percentile intervals from a cluster bootstrap over subjects.

    `statistic` takes case weights (b,N) and gives arrays (b,) or (b,K) by name; the value itself is
    that of all cases counted once. Efron and Tibshirani 1993, chapter 13.
    """
    point = statistic(np.ones((1, len(subject_ids))))
    blocks = [statistic(w) for w in subject_weights(subject_ids, resamples=resamples, seed=seed)]
    estimates = {}
    for name, value in point.items():
        low, high, undefined = _percentiles(np.concatenate([block[name] for block in blocks]), confidence)
        estimates[name] = Estimate(value=value[0], low=low, high=high, undefined=undefined)
    return estimates


def _percentiles(samples: Floats, confidence: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Lower and upper percentile over resamples (B,...), and how many were NaN."""
    columns = samples.reshape(len(samples), -1).T
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    bounds = np.full((2, len(columns)), np.nan)
    for index, column in enumerate(columns):
        known = column[~np.isnan(column)]
        if known.size:
            bounds[:, index] = np.quantile(known, tails)
    low, high = bounds.reshape(2, *samples.shape[1:])
    return low, high, np.isnan(samples).sum(axis=0)
