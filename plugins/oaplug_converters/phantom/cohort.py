"""Draw a cohort: who has which knee, how severe, in which split, and how a reader graded it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oaplug_converters.phantom.reader import GRADES, grade_of, read_grade

VISIT = "V00"
TWO_KNEES_SHARE = 0.5
KNEE_CORRELATION = 0.4
"""Correlation of the normal scores behind the severities of one subject's knees."""
_ANATOMY, _READER, _COHORT = 0, 1, 2
"""Streams of random numbers that must not touch each other."""


@dataclass(frozen=True, kw_only=True)
class PhantomCase:
    """One knee of a cohort: what goes into cases.csv, and the key of its random numbers."""

    case_id: str
    subject_id: str
    side: str
    visit: str
    split: str
    true_severity: float
    kl_true: int
    kl: int
    seed: int
    index: int

    def generator(self) -> np.random.Generator:
        """Source of this knee's anatomy and noise; it depends on seed and index only, so any order does."""
        return _generator(self.seed, _ANATOMY, self.index)


@dataclass(frozen=True)
class _Seat:
    """A knee before its severity is known."""

    subject: int
    side: str


def draw_cohort(
    *, cases: int, seed: int, label_noise: float = 0.5, test_fraction: float = 1 / 3
) -> tuple[PhantomCase, ...]:
    """Draw a cohort, even over the grades, in an order that says nothing about them.

    Args:
        cases: number of knees; about half of the subjects have two.
        seed: key of all random numbers, not negative.
        label_noise: error of the reader behind `kl`, in grades (standard deviation).
        test_fraction: share of the subjects in the test split, drawn evenly over severity.

    Raises:
        ValueError: for a number of cases or a fraction that makes no cohort.
    """
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must lie in [0, 1), got {test_fraction}")
    rng = _generator(seed, _COHORT)
    seats = _draw_seats(rng, cases=cases)
    subjects = np.array([seat.subject for seat in seats])
    severity = _draw_severity(rng, subjects=subjects)
    tested = _draw_test_subjects(rng, subjects=subjects, severity=severity, test_fraction=test_fraction)
    return tuple(
        PhantomCase(
            case_id=f"knee_{index:04d}",
            subject_id=f"subject_{seat.subject:04d}",
            side=seat.side,
            visit=VISIT,
            split="test" if seat.subject in tested else "train",
            true_severity=float(severity[index]),
            kl_true=grade_of(severity[index]),
            kl=read_grade(severity[index], noise_std=label_noise, rng=_generator(seed, _READER, index)),
            seed=seed,
            index=index,
        )
        for index, seat in enumerate(seats)
    )


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _draw_seats(rng: np.random.Generator, *, cases: int) -> list[_Seat]:
    """Fill `cases` seats with subjects of one or two knees."""
    seats: list[_Seat] = []
    subject = 0
    while len(seats) < cases:
        sides = ["R", "L"] if rng.random() < 0.5 else ["L", "R"]
        knees = 2 if rng.random() < TWO_KNEES_SHARE else 1
        seats += [_Seat(subject, side) for side in sides[:knees]]
        subject += 1
    return seats[:cases]


def _draw_severity(rng: np.random.Generator, *, subjects: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Severity (cases,) in [0, 5), even by rank, somewhat alike in the knees of one subject."""
    shared, own = rng.standard_normal(subjects.max() + 1), rng.standard_normal(subjects.size)
    score = np.sqrt(KNEE_CORRELATION) * shared[subjects] + np.sqrt(1 - KNEE_CORRELATION) * own
    rank = score.argsort().argsort()
    severity = len(GRADES) * (rank + rng.random(subjects.size)) / subjects.size
    return np.minimum(severity, np.nextafter(len(GRADES), 0))


def _draw_test_subjects(
    rng: np.random.Generator,
    *,
    subjects: npt.NDArray[np.int64],
    severity: npt.NDArray[np.float64],
    test_fraction: float,
) -> frozenset[int]:
    """Every n-th subject in order of mean severity, from a random start (systematic sampling)."""
    mean = np.bincount(subjects, weights=severity) / np.bincount(subjects)
    steps = np.floor(np.arange(mean.size + 1) * test_fraction + rng.random())
    return frozenset(int(subject) for subject in mean.argsort()[np.diff(steps) > 0])
