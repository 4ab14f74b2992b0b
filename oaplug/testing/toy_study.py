"""Toy studies: models whose scores follow the truth with noise, for analyses to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.predictions import PredictionTable, TargetPredictions
from oaplug.core.seeds import random_generator
from oaplug.core.study import Study, StudyModel
from oaplug.core.target import MISSING
from oaplug.testing.toy import BINARY, HIERARCHY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from oaplug.core.target import Target

    Grades = NDArray[np.int64]
    Floats = NDArray[np.float64]

VISITS = 2
MODELS = ("steady", "noisy", "noisier")


def toy_study(
    *,
    targets: Mapping[str, Target] = HIERARCHY,
    models: int = 2,
    subjects: int = 15,
    grades: int | None = None,
    unknown: Callable[[str, int], bool] | None = None,
    answered: Sequence[Sequence[str]] = (),
    resamples: int = 10,
    seed: int = 0,
) -> Study:
    """A study of made-up predictions: two visits a subject, and two folds that share the subjects.

    Args:
        targets: HIERARCHY or BINARY of oaplug.testing.toy, or some of your own, parents first.
        models: how many, at most 3.
        subjects: how many.
        grades: only this many of the lowest grades occur as truths (default: all).
        unknown: from the name of a target and the number of a case whether its truth is unknown.
        answered: per model the targets that it answers (default: all).
        resamples: of every bootstrap.
        seed: another one gives other noise.
    """
    truths = _truths(targets, cases=subjects * VISITS, grades=grades, unknown=unknown)
    case_ids = tuple(f"toy{s:03d}v{v}" for s in range(subjects) for v in range(VISITS))
    subject_ids = tuple(f"person{s:03d}" for s in range(subjects) for _ in range(VISITS))
    folds = tuple(str(s % 2) for s in range(subjects) for _ in range(VISITS))
    made = []
    for index, name in enumerate(MODELS[:models]):
        names = answered[index] if answered else tuple(targets)
        answers = _answers(targets, truths, noise_std=0.6 + 0.7 * index, seed=seed, model=name)
        table = PredictionTable(
            case_ids=case_ids,
            subject_ids=subject_ids,
            folds=folds,
            targets={target: answers[target] for target in names},
            model=name,
        )
        made.append(StudyModel(name=name, predictions=table))
    return Study(
        models=tuple(made), case_ids=case_ids, subject_ids=subject_ids, resamples=resamples, seed=seed
    )


def _truths(
    targets: Mapping[str, Target],
    *,
    cases: int,
    grades: int | None,
    unknown: Callable[[str, int], bool] | None,
) -> dict[str, tuple[Grades, Grades]]:
    """Per target the true grade indices (N,), and those with -1 where they are not known."""
    found: dict[str, tuple[Grades, Grades]] = {}
    for name, target in targets.items():
        parent = targets.get(target.derived_from or "")
        if parent is None:
            true = np.arange(cases, dtype=np.int64) // VISITS % (grades or len(target.grades))
        else:
            true = np.array([target.derive(int(g), parent) for g in found[parent.name][0]], dtype=np.int64)
        hidden = [unknown is not None and unknown(name, index) for index in range(cases)]
        found[name] = (true, np.where(hidden, MISSING, true))
    return found


def _answers(
    targets: Mapping[str, Target],
    truths: Mapping[str, tuple[Grades, Grades]],
    *,
    noise_std: float,
    seed: int,
    model: str,
) -> dict[str, TargetPredictions]:
    answers: dict[str, TargetPredictions] = {}
    for name, target in targets.items():
        true, known = truths[name]
        parent = answers.get(target.derived_from or "")
        if parent is None:
            noise = random_generator(seed, "toy study", model, name).normal(0, noise_std, len(true))
            probabilities = _probabilities(true + noise, grades=len(target.grades))
        else:
            positive = parent.probabilities[:, target.threshold_in(parent.target) :].sum(axis=1)
            probabilities = np.stack([1 - positive, positive], axis=1)
        predicted = probabilities.argmax(axis=1)
        answers[name] = TargetPredictions(
            target=target, truth=known, predicted=predicted, probabilities=probabilities
        )
    return answers


def _probabilities(scores: Floats, *, grades: int) -> Floats:
    """Probabilities (N,K) of grades that lie near scores (N,)."""
    near = np.exp(-((scores[:, None] - np.arange(grades)) ** 2))
    return np.asarray(near / near.sum(axis=1, keepdims=True))


TOY_STUDIES: dict[str, Callable[[], Study]] = {
    "of two models and a binary target": lambda: toy_study(targets=BINARY),
    "of two models and a hierarchy of targets": toy_study,
    "with missing truths, a grade that never occurs, and models of different targets": lambda: toy_study(
        grades=4,
        unknown=lambda name, case: case % 7 == 3 or (name == "kl" and case % 5 == 1),
        answered=(("kl", "oa"), ("oa",)),
    ),
    "of one model, with all truths of one class": lambda: toy_study(targets=BINARY, models=1, grades=1),
    "in which no truth is known": lambda: toy_study(unknown=lambda _name, _case: True),
}
"""What an analysis is checked with: how each differs, and what makes it."""
