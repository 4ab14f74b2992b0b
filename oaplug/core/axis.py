"""A severity axis: the first principal component of training features, and how grades lie along it.

All statistics take case weights (..., N), how often each case was drawn, and give one value per row, as
the metrics do; the point estimate is the row of ones. Values that are not defined are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.seeds import random_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Grades = NDArray[np.int64]

PLANE = 2
TIE_DECIMALS = 9
"""Coordinates are rounded to so many decimals of a deviation, so that equal cases have equal ranks."""
PROBE_ITERATIONS = 2000


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Standardisation and the first two principal components of training features (n,F).

    `mean` and `scale` (F,) standardise, `components` (2,F) are unit vectors (zeros where there is no
    second), `deviation` is that of the training cases along the first, `explained` (P,) the fraction of
    their variance along every component, largest first.
    """

    mean: Floats
    scale: Floats
    components: Floats
    deviation: float
    explained: Floats

    def standardise(self, features: ArrayLike) -> Floats:
        """Features (N,F) in deviations of the training cases."""
        standard: Floats = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        return standard

    def project(self, features: ArrayLike) -> Floats:
        """Coordinates (N,2) of features (N,F), in deviations of the training cases along the axis."""
        plane = self.standardise(features) @ self.components.T / self.deviation
        rounded: Floats = np.round(plane, TIE_DECIMALS)
        return rounded

    def rising_with(self, grades: Grades, features: ArrayLike) -> Axis:
        """The same axis, turned round where grades (n,) fall along it; its sign is arbitrary."""
        if spearman(self.project(features)[:, 0], grades) < 0:
            return replace(self, components=self.components * [[-1.0], [1.0]])
        return self


def fit_axis(train: ArrayLike) -> Axis:
    """Fit to training features (n,F), n > 1: StandardScaler, then PCA with two components and random state 0.

    Components whose variance is nothing but rounding count as none.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    features = np.asarray(train, dtype=np.float64)
    scaler = StandardScaler().fit(features)
    standard = scaler.transform(features)
    variances = np.linalg.svd(standard, compute_uv=False) ** 2 / len(standard)
    rank = int((variances > 1e-12 * max(variances.sum(), 1.0)).sum())
    components = np.zeros((PLANE, features.shape[1]))
    if rank:
        kept = min(PLANE, rank)
        components[:kept] = PCA(n_components=kept, random_state=0).fit(standard).components_
    return Axis(
        mean=scaler.mean_,
        scale=scaler.scale_,
        components=components,
        deviation=float((standard @ components[0]).std()) if rank else 1.0,
        explained=variances / variances.sum() if rank else np.full(len(variances), np.nan),
    )


def spearman(first: ArrayLike, second: ArrayLike, *, weights: ArrayLike | None = None) -> Floats:
    """Spearman's rank correlation (...,) of values (N,); equal values share their mean rank."""
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    weight = np.ones(one.size) if weights is None else np.asarray(weights, dtype=np.float64)
    ranks = [_centred(_ranks(values, weight), weight) for values in (one, other)]
    shared, *own = (
        (weight * a * b).sum(axis=-1) for a, b in ((ranks[0], ranks[1]), *zip(ranks, ranks, strict=True))
    )
    return _ratio(shared, np.sqrt(own[0] * own[1]))


def _ranks(values: Floats, weight: Floats) -> Floats:
    """Mean ranks (..., N) that values (N,) have where each occurs `weight` (..., N) times."""
    if not values.size:
        return np.zeros(weight.shape)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    counts = np.add.reduceat(weight[..., order], starts, axis=-1)
    middle = np.cumsum(counts, axis=-1) - (counts - 1) / 2
    ranks = np.empty(weight.shape)
    ranks[..., order] = np.repeat(middle, np.diff([*starts, values.size]), axis=-1)
    return ranks


def _centred(ranks: Floats, weight: Floats) -> Floats:
    centre = _ratio((weight * ranks).sum(axis=-1), weight.sum(axis=-1))
    return ranks - centre[..., None]


def centroids(values: ArrayLike, truth: Grades, *, grades: int, weights: ArrayLike | None = None) -> Floats:
    """Mean value (..., K) of the cases of each grade; NaN for a grade without cases."""
    coordinate = np.asarray(values, dtype=np.float64)
    weight = np.ones(coordinate.size) if weights is None else np.asarray(weights, dtype=np.float64)
    of_grade = (truth[:, None] == np.arange(grades)).astype(np.float64)
    return _ratio((weight * coordinate) @ of_grade, weight @ of_grade)


def ordered_fraction(means: Floats) -> Floats:
    """Fraction (...,) of adjacent grades whose centroids (..., K) rise; absent grades are passed over."""
    rises, pairs = np.zeros((2, *means.shape[:-1]))
    for low, high in _pairs(means):
        between = means[..., low + 1 : high]
        adjacent = _present(means, low, high) & np.isnan(between).all(axis=-1)
        rises = rises + (adjacent & (means[..., high] > means[..., low]))
        pairs = pairs + adjacent
    return _ratio(rises, pairs)


def centroid_tau(means: Floats) -> Floats:
    """Kendall's tau-b (...,) of centroids (..., K) against their grade; absent grades are left out."""
    balance, pairs, ties = np.zeros((3, *means.shape[:-1]))
    for low, high in _pairs(means):
        both = _present(means, low, high)
        step = np.sign(np.where(both, means[..., high] - means[..., low], 0.0))
        balance, pairs, ties = balance + step, pairs + both, ties + (both & (step == 0))
    return _ratio(balance, np.sqrt(pairs * (pairs - ties)))


def _pairs(means: Floats) -> list[tuple[int, int]]:
    return [(low, high) for high in range(means.shape[-1]) for low in range(high)]


def _present(means: Floats, low: int, high: int) -> NDArray[np.bool_]:
    return np.asarray(~(np.isnan(means[..., low]) | np.isnan(means[..., high])))


def probe_scores(train: ArrayLike, positive: NDArray[np.bool_], values: ArrayLike) -> Floats:
    """Log-odds (N,) of `values` (N,) by a logistic regression fitted on training values (n,).

    All 0 where the training cases are of one class.
    """
    from sklearn.linear_model import LogisticRegression

    coordinate = np.asarray(values, dtype=np.float64)
    if np.unique(positive).size < 2:
        return np.zeros(coordinate.shape)
    model = LogisticRegression(max_iter=PROBE_ITERATIONS)
    model.fit(np.asarray(train, dtype=np.float64)[:, None], positive)
    scores: Floats = coordinate * model.coef_[0, 0] + model.intercept_[0]
    return scores


def shuffled_correlations(
    values: ArrayLike, truth: Grades, subject_ids: Sequence[str], *, shuffles: int, seed: int
) -> Floats:
    """|Spearman| (S,) of values (N,) with grades that are dealt out anew, S times.

    Subjects with several cases keep their grades together, and swap them with subjects of as many cases.
    """
    rng = random_generator(seed, "shuffled grades")
    ones = np.ones(len(truth))
    coordinates, grades = (
        _centred(_ranks(np.asarray(table, dtype=np.float64), ones), ones) for table in (values, truth)
    )
    rows, found = _rows_by_count(subject_ids), np.zeros(shuffles)
    dealt = np.arange(len(truth))
    for index in range(shuffles):
        for block in rows:
            dealt[block] = rng.permutation(block)
        found[index] = coordinates @ grades[dealt]
    return _ratio(np.abs(found), np.sqrt((coordinates @ coordinates) * (grades @ grades)))


def _rows_by_count(subject_ids: Sequence[str]) -> list[NDArray[np.int64]]:
    """Rows (S,m) of the cases of subjects with m cases each, for every m."""
    by_subject: dict[str, list[int]] = {}
    for row, subject in enumerate(subject_ids):
        by_subject.setdefault(subject, []).append(row)
    counts = sorted({len(rows) for rows in by_subject.values()})
    return [
        np.array([rows for rows in by_subject.values() if len(rows) == count], dtype=np.int64)
        for count in counts
    ]


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Linear centred kernel alignment of features (N,F) and (N,G) of the same cases, from 0 to 1.

    |Y'X|^2 / (|X'X| |Y'Y|) with Frobenius norms of centred features (Kornblith et al. 2019, equation 4);
    unchanged by rotation and by one factor. NaN where features do not vary.
    """
    x, y = _centred_features(first), _centred_features(second)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / own) if own > 0 else float("nan")


def chance_cka(first: ArrayLike, second: ArrayLike) -> float:
    """What `linear_cka` is on average once one's cases are shuffled: the higher, the fewer they are.

    |X|^2 |Y|^2 / ((N - 1) |X'X| |Y'Y|): the mean of tr(K P L P') over permutations P, K and L being centred.
    """
    x, y = _centred_features(first), _centred_features(second)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    spread = np.linalg.norm(x) ** 2 * np.linalg.norm(y) ** 2
    return float(spread / ((len(x) - 1) * own)) if own > 0 else float("nan")


def _centred_features(features: ArrayLike) -> Floats:
    table = np.asarray(features, dtype=np.float64)
    centred: Floats = table - table.mean(axis=0)
    return centred


def _ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    numerator, denominator = np.broadcast_arrays(
        np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    )
    quotient: Floats = np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )
    return quotient
