"""Readers: the grade of a severity, the grade a reader gives, and how well readers agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRADES = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa between two readings: plain, and with quadratic weights."""

    kappa: float
    quadratic_kappa: float


def grade_of(severity: float) -> int:
    """Grade of a severity: its whole part, within the grades there are."""
    return min(max(math.floor(severity), GRADES[0]), GRADES[-1])


def read_grade(true_severity: float, *, noise_std: float, rng: np.random.Generator) -> int:
    """Grade by a reader who sees severity with an error of `noise_std` grades; 0 gives the true grade."""
    if noise_std < 0:
        raise ValueError(f"noise_std must not be negative, got {noise_std}")
    return grade_of(true_severity + noise_std * rng.standard_normal())


def agreement(first: Sequence[int], second: Sequence[int]) -> Agreement:
    """Agreement of two readings of the same knees."""
    from sklearn.metrics import cohen_kappa_score

    labels = list(GRADES)
    return Agreement(
        kappa=float(cohen_kappa_score(first, second, labels=labels)),
        quadratic_kappa=float(cohen_kappa_score(first, second, labels=labels, weights="quadratic")),
    )
