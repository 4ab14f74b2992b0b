"""Metrics as pure functions on arrays, all of them vectorised over resamples.

A bootstrap resample is a row of case weights (how often each case was drawn), so every metric takes
weights (..., N) and gives one value per row: the point estimate is the row of ones. Values that are
not defined (one class only) are NaN. Counts are best given as integers: where no sum can exceed what
single precision holds exactly, they are multiplied in it. The tests hold all against scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Weights = NDArray[np.float32] | NDArray[np.float64]

MATRIX_UP_TO = 64
"""Size of the smaller class up to which an AUC is a matrix product, and from which cumulative sums win."""

EXACT_TOTAL = 4096
"""Whole weights below this total: no product of two sums exceeds the 24 bits of single precision."""


def confusion(
    truth: ArrayLike, predicted: ArrayLike, *, grades: int, weights: ArrayLike | None = None
) -> Floats:
    """Confusion matrices (..., K, K), rows truth and columns prediction, of grade indices (N,).

    Raises ValueError for an index outside 0..K-1, such as that of an unknown truth.
    """
    rows, columns = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if rows.size and not (min(rows.min(), columns.min()) >= 0 and max(rows.max(), columns.max()) < grades):
        raise ValueError(f"grade indices must lie in 0..{grades - 1}; leave out cases whose truth is unknown")
    weight = _as_weights(weights, rows.size)
    cells = np.zeros((rows.size, grades * grades), dtype=weight.dtype)
    cells[np.arange(rows.size), rows * grades + columns] = 1
    flat: Floats = (weight @ cells).astype(np.float64)
    return flat.reshape(*weight.shape[:-1], grades, grades)


def accuracy(matrix: Floats) -> Floats:
    """Fraction of cases on the diagonal of confusion matrices (..., K, K)."""
    return _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1)))


def recall_by_grade(matrix: Floats) -> Floats:
    """Sensitivity (..., K) of each grade; NaN for a grade without cases."""
    return _ratio(_diagonal(matrix), matrix.sum(axis=-1))


def precision_by_grade(matrix: Floats) -> Floats:
    """Precision (..., K) of each grade; NaN for a grade never predicted."""
    return _ratio(_diagonal(matrix), matrix.sum(axis=-2))


def f1_by_grade(matrix: Floats) -> Floats:
    """F1 (..., K) of each grade; NaN for a grade neither present nor predicted."""
    return _ratio(2 * _diagonal(matrix), matrix.sum(axis=-1) + matrix.sum(axis=-2))


def balanced_accuracy(matrix: Floats) -> Floats:
    """Mean recall over the grades that occur."""
    return _nanmean(recall_by_grade(matrix))


def f1_macro(matrix: Floats) -> Floats:
    """Mean F1 over the grades that are present or predicted, as scikit-learn counts them."""
    return _nanmean(f1_by_grade(matrix))


def f1_positive(matrix: Floats) -> Floats:
    """F1 of the positive grade of a binary target."""
    return f1_by_grade(matrix)[..., 1]


def quadratic_kappa(matrix: Floats) -> Floats:
    """Cohen's kappa with quadratic weights (Cohen 1968) over all K grades.

    NaN where chance agreement is perfect (truth and prediction constant and equal).
    """
    grades = matrix.shape[-1]
    cost = (np.arange(grades)[:, None] - np.arange(grades)[None, :]) ** 2.0
    total = matrix.sum(axis=(-2, -1))[..., None, None]
    chance = matrix.sum(axis=-1)[..., :, None] * matrix.sum(axis=-2)[..., None, :]
    return 1.0 - _ratio((cost * matrix * total).sum(axis=(-2, -1)), (cost * chance).sum(axis=(-2, -1)))


def mean_absolute_error(matrix: Floats) -> Floats:
    """Mean distance, in grades, between truth and prediction."""
    grades = matrix.shape[-1]
    cost = np.abs(np.arange(grades)[:, None] - np.arange(grades)[None, :]).astype(np.float64)
    return _ratio((cost * matrix).sum(axis=(-2, -1)), matrix.sum(axis=(-2, -1)))


def auc(positive: ArrayLike, score: ArrayLike, *, weights: ArrayLike | None = None) -> Floats:
    """Area under the ROC curve: P(score of a positive > of a negative), ties counting one half.

    `positive` (N,) is boolean, `score` (N,); NaN for a row of weights that holds one class only.
    """
    is_positive, scores = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    return _auc(is_positive, scores, _as_weights(weights, scores.size))


def _auc(is_positive: NDArray[np.bool_], scores: Floats, weight: Weights) -> Floats:
    above, below = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    positives, negatives = weight.take(above, axis=-1), weight.take(below, axis=-1)
    if min(above.size, below.size) <= MATRIX_UP_TO:
        beaten = _beaten_by_product(scores[above], scores[below], negatives)
    else:
        beaten = _beaten_by_sums(scores[above], scores[below], negatives)
    wins = np.einsum("...i,...i->...", positives, beaten)
    return _ratio(wins, _total(positives) * _total(negatives))


def _total(weight: Weights) -> Weights:
    """Sums (...) over cases of weights (..., N), as a product because that is faster."""
    total: Weights = weight @ np.ones(weight.shape[-1], dtype=weight.dtype)
    return total


def _beaten_by_product(positive_scores: Floats, negative_scores: Floats, negatives: Weights) -> Weights:
    """Weight of the negatives (..., P) below each positive, ties half, from `negatives` (..., M)."""
    lower = negative_scores[:, None] < positive_scores
    equal = negative_scores[:, None] == positive_scores
    product: Weights = negatives @ (lower + 0.5 * equal).astype(negatives.dtype)
    return product


def _beaten_by_sums(positive_scores: Floats, negative_scores: Floats, negatives: Weights) -> Weights:
    """The same by sorting once and summing up, which takes no P x M matrix."""
    order = np.argsort(negative_scores, kind="stable")
    first = np.searchsorted(negative_scores[order], positive_scores, side="left")
    last = np.searchsorted(negative_scores[order], positive_scores, side="right")
    summed = np.zeros((*negatives.shape[:-1], order.size + 1), dtype=negatives.dtype)
    np.cumsum(negatives.take(order, axis=-1), axis=-1, out=summed[..., 1:])
    beaten: Weights = summed.take(first, axis=-1)
    if not np.array_equal(first, last):
        beaten += summed.take(last, axis=-1)
        beaten *= 0.5
    return beaten


def auc_macro(truth: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Floats:
    """One-vs-rest AUC averaged over the grades that have both positives and negatives.

    `truth` (N,) grade indices, `probabilities` (N,K); for K = 2 this is the AUC of grade 1.
    """
    index, table = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    weight = _as_weights(weights, index.size)
    if table.shape[1] == 2:
        return _auc(index == 1, table[:, 1], weight)
    curves = [_auc(index == grade, table[:, grade], weight) for grade in range(table.shape[1])]
    return _nanmean(np.stack(curves, axis=-1))


def roc_curve(positive: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates from (0,0) to (1,1), one point per distinct score."""
    is_positive, scores = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])
    true = np.cumsum(is_positive[order])[ends]
    false = np.cumsum(~is_positive[order])[ends]
    return np.r_[0.0, false / max(false[-1], 1)], np.r_[0.0, true / max(true[-1], 1)]


def true_rates(
    positive: ArrayLike, score: ArrayLike, false_rates: ArrayLike, *, weights: ArrayLike
) -> Floats:
    """True positive rates (b,F) of the ROC curves at `false_rates` (F,), one row per row of weights (b,N).

    Where a curve rises at a rate, its upper end; NaN for rows that hold one class only.
    """
    is_positive, scores = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])
    drawn, is_positive = np.asarray(weights, dtype=np.float64)[:, order], is_positive[order]
    sums = [np.cumsum(drawn * chosen, axis=1)[:, ends] for chosen in (is_positive, ~is_positive)]
    start = np.zeros((len(drawn), 1))
    true, false = (np.hstack([start, _ratio(found, found[:, -1:])]) for found in sums)
    rates = np.asarray(false_rates, dtype=np.float64)
    curves: Floats = np.stack([np.interp(rates, x, y) for x, y in zip(false, true, strict=True)])
    curves[np.isnan(true[:, -1]) | np.isnan(false[:, -1])] = np.nan
    return curves


METRIC_NAMES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "qwk": "quadratic weighted kappa",
    "mae": "mean absolute error (grades)",
}


def metrics_of(grades: int, *, ordered: bool) -> tuple[str, ...]:
    """Keys of METRIC_NAMES that suit a target of so many grades: kappa and MAE need three in order."""
    suits = ordered and grades > 2
    return tuple(name for name in METRIC_NAMES if suits or name not in {"qwk", "mae"})


def target_metrics(
    truth: ArrayLike,
    probabilities: ArrayLike,
    predicted: ArrayLike,
    *,
    ordered: bool,
    weights: ArrayLike | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Floats]:
    """The study's metrics of one target, from truth (N,), probabilities (N,K) and predictions (N,).

    F1 is that of the positive grade for two grades, the macro mean for more; kappa and MAE are given
    for ordered targets of more than two grades. `names` asks for some of them only.
    """
    grades = np.asarray(probabilities).shape[1]
    wanted = [n for n in metrics_of(grades, ordered=ordered) if names is None or n in names]
    values = {}
    if "auc" in wanted:
        values["auc"] = auc_macro(truth, probabilities, weights=weights)
    if wanted == ["auc"]:
        return values
    matrix = confusion(truth, predicted, grades=grades, weights=weights)
    of_matrix = {
        "accuracy": accuracy,
        "f1": f1_positive if grades == 2 else f1_macro,
        "balanced_accuracy": balanced_accuracy,
        "qwk": quadratic_kappa,
        "mae": mean_absolute_error,
    }
    return values | {name: of_matrix[name](matrix) for name in wanted if name != "auc"}


def predicted_grades(probabilities: ArrayLike) -> NDArray[np.int64]:
    """Grade indices (N,) of probabilities (N,K): positive from 0.5 up for two, else the most probable."""
    table = np.asarray(probabilities, dtype=np.float64)
    if table.shape[1] == 2:
        return (table[:, 1] >= 0.5).astype(np.int64)
    return np.asarray(table.argmax(axis=1), dtype=np.int64)


def _as_weights(weights: ArrayLike | None, cases: int) -> Weights:
    """Weights (..., N) as floats: whole ones in single precision where every product of sums is exact."""
    if weights is None:
        return np.ones(cases)
    given = np.asarray(weights)
    if np.issubdtype(given.dtype, np.integer) and given.sum(axis=-1).max(initial=0) < EXACT_TOTAL:
        return given.astype(np.float32)
    return given.astype(np.float64, copy=False)


def _diagonal(matrix: Floats) -> Floats:
    diagonal: Floats = np.diagonal(matrix, axis1=-2, axis2=-1)
    return diagonal


def _ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    numerator, denominator = np.broadcast_arrays(
        np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    )
    undefined = np.full(numerator.shape, np.nan)
    quotient: Floats = np.divide(numerator, denominator, out=undefined, where=denominator != 0)
    return quotient


def _nanmean(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))
