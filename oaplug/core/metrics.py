"""Metrics as pure functions on arrays, all of them vectorised over resamples.

A bootstrap resample is a row of case weights (how often each case was drawn), so every metric takes
weights (..., N) and gives one value per row: the point estimate is the row of ones. Values that are
not defined (one class only) are NaN. The tests hold them against scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def confusion(
    truth: ArrayLike, predicted: ArrayLike, *, grades: int, weights: ArrayLike | None = None
) -> Floats:
    """Confusion matrices (..., K, K), rows truth and columns prediction, of grade indices (N,).

    Raises ValueError for an index outside 0..K-1, such as that of an unknown truth.
    """
    rows, columns = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if rows.size and not (min(rows.min(), columns.min()) >= 0 and max(rows.max(), columns.max()) < grades):
        raise ValueError(f"grade indices must lie in 0..{grades - 1}; leave out cases whose truth is unknown")
    weight = np.ones(rows.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    cells = np.zeros((rows.size, grades * grades))
    cells[np.arange(rows.size), rows * grades + columns] = 1.0
    flat: Floats = weight @ cells
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
    weight = np.ones(scores.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if not scores.size:
        return np.full(weight.shape[:-1], np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, scores[order][1:] != scores[order][:-1]])
    sorted_weight, sorted_positive = weight[..., order], is_positive[order]
    positives = np.add.reduceat(sorted_weight * sorted_positive, starts, axis=-1)
    negatives = np.add.reduceat(sorted_weight * ~sorted_positive, starts, axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum(axis=-1)
    return _ratio(wins, positives.sum(axis=-1) * negatives.sum(axis=-1))


def auc_macro(truth: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> Floats:
    """One-vs-rest AUC averaged over the grades that have both positives and negatives.

    `truth` (N,) grade indices, `probabilities` (N,K); for K = 2 this is the AUC of grade 1.
    """
    index, table = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    if table.shape[1] == 2:
        return auc(index == 1, table[:, 1], weights=weights)
    curves = [auc(index == grade, table[:, grade], weights=weights) for grade in range(table.shape[1])]
    return _nanmean(np.stack(curves, axis=-1))


def roc_curve(positive: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates from (0,0) to (1,1), one point per distinct score."""
    is_positive, scores = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])
    true = np.cumsum(is_positive[order])[ends]
    false = np.cumsum(~is_positive[order])[ends]
    return np.r_[0.0, false / max(false[-1], 1)], np.r_[0.0, true / max(true[-1], 1)]


METRIC_NAMES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "qwk": "quadratic weighted kappa",
    "mae": "mean absolute error (grades)",
}


def target_metrics(
    truth: ArrayLike,
    probabilities: ArrayLike,
    predicted: ArrayLike,
    *,
    ordered: bool,
    weights: ArrayLike | None = None,
) -> dict[str, Floats]:
    """The study's metrics of one target, from truth (N,), probabilities (N,K) and predictions (N,).

    F1 is that of the positive grade for two grades, the macro mean for more; kappa and MAE are given
    for ordered targets of more than two grades.
    """
    grades = np.asarray(probabilities).shape[1]
    matrix = confusion(truth, predicted, grades=grades, weights=weights)
    values = {
        "auc": auc_macro(truth, probabilities, weights=weights),
        "accuracy": accuracy(matrix),
        "f1": f1_positive(matrix) if grades == 2 else f1_macro(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
    }
    if ordered and grades > 2:
        values |= {"qwk": quadratic_kappa(matrix), "mae": mean_absolute_error(matrix)}
    return values


def predicted_grades(probabilities: ArrayLike) -> NDArray[np.int64]:
    """Grade indices (N,) of probabilities (N,K): positive from 0.5 up for two, else the most probable."""
    table = np.asarray(probabilities, dtype=np.float64)
    if table.shape[1] == 2:
        return (table[:, 1] >= 0.5).astype(np.int64)
    return np.asarray(table.argmax(axis=1), dtype=np.int64)


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
