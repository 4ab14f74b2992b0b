"""The temperature that validation cases ask for; the analysed cases never have a say in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.calibration import fit_temperature, with_temperature

if TYPE_CHECKING:
    from collections.abc import Collection

    from oaplug.core.predictions import PredictionTable, TargetPredictions
    from oaplug.core.study import StudyModel

FEWEST = 10
"""Validation cases below which no temperature is fitted."""


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A temperature with the folds and the number of cases it was fitted to, or why there is none."""

    value: float | None = None
    folds: tuple[str, ...] = ()
    cases: int = 0
    reason: str = ""

    @property
    def sentence(self) -> str:
        """What it was fitted to."""
        assert self.value is not None
        meaning = "too sure of itself" if self.value > 1 else "not sure enough"
        folds = f"{'fold' if len(self.folds) == 1 else 'folds'} {', '.join(self.folds)}"
        text = (
            f"{self.cases} validation cases of {folds} ask for a temperature of {self.value:.2f} ({meaning})"
        )
        if len(self.folds) == 1:
            return text
        return f"{text}; they were predicted by single folds, whose mean is less sure than each"

    def applied(self, answers: TargetPredictions) -> TargetPredictions | None:
        """The answers with scaled probabilities; None without a temperature. Predicted grades stay."""
        if self.value is None:
            return None
        return replace(answers, probabilities=with_temperature(answers.probabilities, self.value))


def fitted_temperature(model: StudyModel, target: str, *, without: Collection[str]) -> Temperature:
    """The temperature of a model on one target, fitted to the validation cases of the folds that predicted.

    Cases of the subjects `without`, those that are analysed, are left out. Where several folds were
    averaged, each gives its own validation cases, and one temperature is fitted to all of them.
    """
    folds = sorted({fold for names in model.predictions.folds for fold in names.split("+") if fold})
    if "all" in folds:
        return Temperature(reason="fold all was trained on every training case and has no validation cases")
    tables = model.validation()
    if missing := [fold for fold in folds if fold not in tables]:
        where = f"fold_{missing[0]}/validation/predictions.csv"
        return Temperature(reason=f"the model's folder has no {where}")
    if not folds:
        return Temperature(reason="the table does not say which folds predicted")
    parts = [_usable(tables[fold], target, without=without) for fold in folds]
    truth = np.concatenate([part[0] for part in parts])
    if len(truth) < FEWEST:
        found = f"{len(truth)} validation cases of other subjects have a known truth"
        return Temperature(reason=f"{found}, and {FEWEST} are needed")
    value = fit_temperature(truth, np.concatenate([part[1] for part in parts]))
    return Temperature(value=value, folds=tuple(folds), cases=len(truth))


def _usable(
    table: PredictionTable, target: str, *, without: Collection[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Truths and probabilities of the validation cases whose truth is known and whose subject is another."""
    answers = table.targets.get(target)
    if answers is None:
        return np.empty(0, dtype=np.int64), np.empty((0, 0))
    others = np.array([subject not in without for subject in table.subject_ids], dtype=bool)
    rows = np.flatnonzero(others & answers.known())
    return answers.truth[rows], answers.probabilities[rows]
