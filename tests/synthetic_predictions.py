"""Made-up prediction tables: several visits a subject, grades that scores follow with noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from oaplug.core.predictions import PredictionTable, TargetPredictions
from oaplug.core.study import Study, StudyModel
from oaplug.core.target import Target

KL = Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4))
OA = Target(name="oa", kind="binary", grades=(0, 1), derived_from="kl", at_least=2)


def make_table(*, noise_std=1.0, seed=0, subjects=30, visits=2, unknown=0, model=""):
    """A table of subjects x visits cases; truths depend on neither `noise_std` nor `seed`."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(subjects) % 5, visits)
    score = truth + rng.normal(0, noise_std, truth.size)
    logits = -((score[:, None] - np.arange(5)) ** 2)
    kl = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    oa = np.stack([kl[:, :2].sum(axis=1), kl[:, 2:].sum(axis=1)], axis=1)
    known = np.arange(truth.size) >= unknown
    return PredictionTable(
        case_ids=tuple(f"knee{s:03d}v{v}" for s in range(subjects) for v in range(visits)),
        subject_ids=tuple(f"subject{s:03d}" for s in range(subjects) for _ in range(visits)),
        folds=("0",) * truth.size,
        targets={
            "kl": _answers(KL, np.where(known, truth, -1), kl),
            "oa": _answers(OA, np.where(known, truth >= 2, -1), oa),
        },
        model=model,
    )


def _answers(target, truth, probabilities):
    return TargetPredictions(
        target=target,
        truth=np.asarray(truth, dtype=np.int64),
        predicted=probabilities.argmax(axis=1),
        probabilities=probabilities,
    )


def with_answers(table, name, **changes):
    """`table` with other answers to one target."""
    return replace(table, targets={**table.targets, name: replace(table.targets[name], **changes)})


def make_study(tables, *, resamples=50, seed=0):
    """A study of tables by model name, without going through files."""
    first = next(iter(tables.values()))
    return Study(
        models=tuple(StudyModel(name=name, predictions=table) for name, table in tables.items()),
        case_ids=first.case_ids,
        subject_ids=first.subject_ids,
        resamples=resamples,
        seed=seed,
    )
