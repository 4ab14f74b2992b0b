"""Toy studies: models whose scores follow the truth with noise, for analyses to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.case import Case
from oaplug.core.predictions import PredictionTable, TargetPredictions
from oaplug.core.seeds import random_generator
from oaplug.core.study import Study, StudyModel
from oaplug.core.target import MISSING
from oaplug.testing.toy import BINARY, HIERARCHY
from oaplug.testing.toy_grids import ToyGrids, toy_image
from oaplug.testing.toy_source import FOLDS, ToySource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from oaplug.core.target import Target

    Grades = NDArray[np.int64]
    Floats = NDArray[np.float64]

VISITS, VALIDATION_CASES = 2, 20
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
    """A study of made-up models: two visits a subject, and two folds that share the subjects.

    They provide all that an analysis may need. There are no files: images, masks and saliency are made up
    by `Study.image`, `Study.grids` and the opened models.

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
    cases = _Cases(
        case_ids=tuple(f"toy{s:03d}v{v}" for s in range(subjects) for v in range(VISITS)),
        subject_ids=tuple(f"person{s:03d}" for s in range(subjects) for _ in range(VISITS)),
        folds=tuple(FOLDS[s % 2] for s in range(subjects) for _ in range(VISITS)),
        targets=targets,
        truths=truths,
        seed=seed,
    )
    made = [
        _model(cases, name, answered[index] if answered else tuple(targets), noise_std=0.6 + 0.7 * index)
        for index, name in enumerate(MODELS[:models])
    ]
    return Study(
        models=tuple(made),
        case_ids=cases.case_ids,
        subject_ids=cases.subject_ids,
        resamples=resamples,
        seed=seed,
        cases=_imaged(cases),
        read_image=toy_image,
        grids=ToyGrids(),
        covariates={
            "age": tuple("" if i % 11 == 7 else str(45 + 7 * i % 31) for i in range(len(cases.case_ids))),
            "sex": tuple("fm"[i // VISITS % 2] for i in range(len(cases.case_ids))),
        },
    )


def _imaged(cases: _Cases) -> dict[str, Case]:
    """The cases with images and, most of them, masks that are made up; there are no files."""
    return {
        case_id: Case(
            case_id=case_id,
            subject_id=subject_id,
            images=(Path(f"{case_id}_0000.nii.gz"),),
            mask=Path(f"{case_id}.nii.gz") if index % 5 else None,
            split="test",
            side="LR"[index % 2],  # type: ignore[arg-type]
            labels={name: int(known[index]) for name, (_, known) in cases.truths.items()},
        )
        for index, (case_id, subject_id) in enumerate(zip(cases.case_ids, cases.subject_ids, strict=True))
    }


@dataclass(frozen=True, kw_only=True)
class _Cases:
    """Cases, and per target their true grade indices (N,), and these with -1 where they are not known."""

    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    folds: tuple[str, ...]
    targets: Mapping[str, Target]
    truths: Mapping[str, tuple[Grades, Grades]]
    seed: int


def _model(cases: _Cases, name: str, answered: Sequence[str], *, noise_std: float) -> StudyModel:
    finest = max(cases.targets.values(), key=lambda target: len(target.grades))
    validated = {
        fold: _table(_validation_cases(cases, fold), name, answered, noise_std=noise_std) for fold in FOLDS
    }
    source = ToySource(
        model=name,
        targets={target: cases.targets[target] for target in answered},
        case_ids=cases.case_ids,
        subject_ids=cases.subject_ids,
        truths={target: cases.truths[target][1] for target in answered},
        severities=cases.truths[finest.name][0].astype(np.float64),
        validated=validated,
        seed=cases.seed,
    )
    table = _table(cases, name, answered, noise_std=noise_std)
    return StudyModel(name=name, predictions=table, source=source)


def _validation_cases(cases: _Cases, fold: str) -> _Cases:
    """Other people, one visit each."""
    ids = tuple(f"validation{fold}_{index:02d}" for index in range(VALIDATION_CASES))
    truths = _truths(cases.targets, cases=VALIDATION_CASES, grades=None, unknown=None)
    return replace(cases, case_ids=ids, subject_ids=ids, folds=(fold,) * len(ids), truths=truths)


def _table(cases: _Cases, model: str, answered: Sequence[str], *, noise_std: float) -> PredictionTable:
    answers = _answers(cases, model, noise_std=noise_std)
    return PredictionTable(
        case_ids=cases.case_ids,
        subject_ids=cases.subject_ids,
        folds=cases.folds,
        targets={target: answers[target] for target in answered},
        model=model,
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


def _answers(cases: _Cases, model: str, *, noise_std: float) -> dict[str, TargetPredictions]:
    answers: dict[str, TargetPredictions] = {}
    for name, target in cases.targets.items():
        true, known = cases.truths[name]
        parent = answers.get(target.derived_from or "")
        if parent is None:
            rng = random_generator(cases.seed, "toy study", model, name, cases.case_ids[0])
            scores = true + rng.normal(0, noise_std, len(true))
            probabilities = _probabilities(scores, grades=len(target.grades))
        else:
            positive = parent.probabilities[:, target.threshold_in(parent.target) :].sum(axis=1)
            probabilities = np.stack([1 - positive, positive], axis=1)
        answers[name] = TargetPredictions(
            target=target, truth=known, predicted=probabilities.argmax(axis=1), probabilities=probabilities
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
