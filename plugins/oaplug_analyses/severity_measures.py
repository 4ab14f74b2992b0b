"""The axis of each fold of a model, and how the grades of test cases lie along it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core import axis as axes
from oaplug.core.bootstrap import Estimate, estimate
from oaplug.core.metrics import auc
from oaplug.core.target import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from oaplug.core.axis import Axis
    from oaplug.core.features import Features
    from oaplug.core.study import Study, StudyModel
    from oaplug.core.target import Target
    from oaplug_analyses.options import SeverityAxisOptions

    Floats = NDArray[np.float64]
    Grades = NDArray[np.int64]
    Truths = Mapping[str, tuple[Target, Grades]]

NEEDS = frozenset({"predictions", "features", "train_features"})


@dataclass(frozen=True, kw_only=True)
class FoldAxis:
    """The axis of one fold of a model, and where cases lie: `train` (n,2), `test` (N,2) in the study's order.

    `features` (N,F) are those of the test cases, as the encoder gave them; `train_truths` grades (n,) by
    target.
    """

    model: str
    fold: str
    axis: Axis
    train: Floats
    test: Floats
    features: NDArray[np.float32]
    train_truths: Mapping[str, Grades]


@dataclass(frozen=True, kw_only=True)
class OnTarget:
    """A model's folds on one ordered target, over the n cases (`rows` of the study) of known grade.

    `estimates` has each statistic's mean over the folds, and by "folds.NAME" its values (folds,);
    `shuffled` (S,) is the mean |rho| of the folds with grades dealt out at random.
    """

    model: str
    target: Target
    rows: NDArray[np.intp]
    folds: tuple[FoldAxis, ...]
    estimates: Mapping[str, Estimate]
    shuffled: Floats

    @property
    def p_value(self) -> float:
        """Fraction of shuffles, this order counted too, that reach the mean |rho|; NaN without one."""
        value = float(self.estimates["abs_spearman"].value)
        reached = np.round(self.shuffled, 9) >= np.round(value, 9)
        return float((reached.sum() + 1) / (reached.size + 1)) if np.isfinite(value) else float("nan")


def fit_folds(model: StudyModel) -> tuple[FoldAxis, ...]:
    """The axis of each fold of a model: fitted on its training cases, turned to rise with severity."""
    test, train = model.features(), model.train_features()
    return tuple(_fit_fold(model.name, fold, test.folds[fold], train[fold]) for fold in test.folds)


def _fit_fold(model: str, fold: str, test: NDArray[np.float32], train: Features) -> FoldAxis:
    features = train.folds[fold]
    axis = axes.fit_axis(features)
    ordered = [name for name, target in train.targets.items() if is_ordered(target)]
    for name in sorted(ordered, key=lambda name: -len(train.targets[name].grades)):
        known = train.truths[name] != MISSING
        if np.unique(train.truths[name][known]).size > 1:
            axis = axis.rising_with(train.truths[name][known], features[known])
            break
    return FoldAxis(
        model=model,
        fold=fold,
        axis=axis,
        train=axis.project(features),
        test=axis.project(test),
        features=test,
        train_truths=train.truths,
    )


def is_ordered(target: Target) -> bool:
    """Whether a target's grades can lie in order along an axis."""
    return target.kind == "ordinal" or len(target.grades) == 2


def known_truths(study: Study) -> dict[str, tuple[Target, Grades]]:
    """Ordered targets with the grades (N,) of the study's cases, finest first; without any that nobody knows.

    Targets that no model predicts come from the models' features, so that a model of the coarse target
    alone is held against the fine one too.
    """
    found: dict[str, tuple[Target, Grades]] = {}
    for model in study.models:
        found = {name: (p.target, p.truth) for name, p in model.predictions.targets.items()} | found
    for model in study.models_with(NEEDS):
        features = model.features()
        found = {name: (features.targets[name], t) for name, t in features.truths.items()} | found
    ordered = [
        (name, pair) for name, pair in found.items() if is_ordered(pair[0]) and (pair[1] != MISSING).any()
    ]
    return dict(sorted(ordered, key=lambda item: -len(item[1][0].grades)))


@dataclass(frozen=True, kw_only=True)
class _Along:
    """Coordinates (n,) of the cases of known grade along one axis, and what the probe says of them."""

    target: Target
    truth: Grades
    values: Floats
    scores: Floats
    auroc_train: float

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Everything measured of them, for case weights (b,n)."""
        rho = axes.spearman(self.values, self.truth, weights=weights)
        found = {"abs_spearman": np.abs(rho), "spearman": rho}
        if len(self.target.grades) == 2:
            unknown = np.isnan(self.auroc_train)
            area = auc(self.truth == 1, self.scores, weights=weights)
            found["auroc"] = np.full(rho.shape, np.nan) if unknown else area
            return found | {"auroc_train": np.full(rho.shape, self.auroc_train)}
        means = axes.centroids(self.values, self.truth, grades=len(self.target.grades), weights=weights)
        return found | {"ordered": axes.ordered_fraction(means), "tau": axes.centroid_tau(means)}


def _along(fold: FoldAxis, target: Target, truth: Grades, rows: NDArray[np.intp]) -> _Along:
    values, scores, on_train = fold.test[rows, 0], np.zeros(rows.size), np.nan
    labels = fold.train_truths.get(target.name)
    if len(target.grades) == 2 and labels is not None:
        known = labels != MISSING
        train, positive = fold.train[known, 0], labels[known] == 1
        scores = axes.probe_scores(train, positive, values)
        on_train = float(auc(positive, axes.probe_scores(train, positive, train)))
    return _Along(target=target, truth=truth[rows], values=values, scores=scores, auroc_train=on_train)


def _over_folds(folds: Sequence[_Along], weights: Floats) -> dict[str, Floats]:
    """Means over the folds (b,), and by "folds.NAME" the values of each (b,folds)."""
    measured = [fold.statistics(weights) for fold in folds]
    stacked = {name: np.stack([one[name] for one in measured], axis=-1) for name in measured[0]}
    return {name: values.mean(axis=-1) for name, values in stacked.items()} | {
        f"folds.{name}": values for name, values in stacked.items()
    }


def measure(
    study: Study, target: Target, truth: Grades, folds: tuple[FoldAxis, ...], options: SeverityAxisOptions
) -> OnTarget:
    """One model's folds on one target of grades `truth` (N,); intervals are from resampled test subjects."""
    rows = np.flatnonzero(truth != MISSING)
    subjects = [study.subject_ids[row] for row in rows]
    shuffle = partial(axes.shuffled_correlations, shuffles=options.shuffles, seed=study.seed)
    return OnTarget(
        model=folds[0].model,
        target=target,
        rows=rows,
        folds=folds,
        estimates=estimate(
            partial(_over_folds, [_along(fold, target, truth, rows) for fold in folds]),
            subjects,
            resamples=study.resamples,
            seed=study.seed,
            confidence=options.confidence,
        ),
        shuffled=np.mean([shuffle(fold.test[rows, 0], truth[rows], subjects) for fold in folds], axis=0),
    )
