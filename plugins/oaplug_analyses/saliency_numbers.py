"""Overlaps of many cases as numbers: means with intervals, and differences between models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.bootstrap import Estimate, estimate
from oaplug.core.errors import PredictionError, nearest
from oaplug.core.overlap import FRACTIONS
from oaplug_analyses.drawing import cell
from oaplug_analyses.saliency_maps import INPUT, RANDOM, UNTRAINED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from oaplug.core.overlap import RegionOverlap
    from oaplug_analyses.saliency_asked import Asked
    from oaplug_analyses.saliency_maps import Measured

    Floats = NDArray[np.float64]

_PERCENT = [round(100 * fraction) for fraction in FRACTIONS]
METRICS = {
    "mass": "mass",
    **{f"top{percent}": f"top {percent}%" for percent in _PERCENT},
    **{f"dice{percent}": f"Dice {percent}%" for percent in _PERCENT},
    "mass_lift": "mass lift",
    "top1_lift": "top 1% lift",
}
"""Metrics by key, and how tables and panels call them."""
COMPARED = tuple(name for name in METRICS if not name.endswith("_lift"))


def values_of(overlaps: Sequence[RegionOverlap]) -> Floats:
    """Every metric (N,M) of the overlaps of N cases, in the order of METRICS."""
    rows = [[one.mass, *one.top, *one.dice, one.mass_lift, one.top_lift[0]] for one in overlaps]
    return np.array(rows, dtype=np.float64).reshape(len(overlaps), len(METRICS))


def chances_of(overlaps: Sequence[RegionOverlap]) -> Floats:
    """What every metric (N,M) comes to by chance, which depends on the region's size only."""
    rows = [[*(one.region_fraction,) * (1 + len(FRACTIONS)), *one.dice_chance, 1.0, 1.0] for one in overlaps]
    return np.array(rows, dtype=np.float64).reshape(len(overlaps), len(METRICS))


def mean_of_known(values: Floats, weights: Floats) -> Floats:
    """Weighted means (b,K) of values (N,K) for rows of weights (b,N), NaN left out; NaN where all are."""
    known = ~np.isnan(values)
    total = weights @ known.astype(np.float64)
    summed = weights @ np.where(known, values, 0.0)
    means: Floats = np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0)
    return means


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The maps of one question against one region: per model, estimates (M,) of the metrics.

    `differences` are those of each model but the baseline, model minus baseline on the same cases;
    `controls` the means (M,) of maps by name that know no network, `chances` (M,) what the region's size
    alone leads to.
    """

    question: str
    region: str
    subject_ids: tuple[str, ...]
    chances: Floats
    means: dict[str, Estimate]
    differences: dict[str, Estimate]
    controls: dict[str, dict[str, Floats]]

    def of(self, model: str, metric: str) -> Estimate:
        """One metric of one model."""
        return self.means[model].at(_place(metric))

    @property
    def region_fraction(self) -> float:
        """The region's part of all voxels."""
        return self.chance("mass")

    def chance(self, metric: str) -> float:
        """What one metric comes to by chance."""
        return float(self.chances[_place(metric)])

    def difference(self, model: str, metric: str) -> Estimate:
        """One metric of one model minus that of the baseline."""
        return self.differences[model].at(_place(metric))

    def control(self, model: str, name: str, metric: str) -> float:
        """One metric of a map that knows no network, on the input of a model."""
        return float(self.controls[model][name][_place(metric)])


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Maps of a network beside those of the same network with new random weights, for N cases each.

    `correlation` (N,) is Spearman's, `mass` and `untrained_mass` (N,) are those in the main region.
    """

    model: str
    question: str
    correlation: Floats
    mass: Floats
    untrained_mass: Floats


def _place(metric: str) -> int:
    return list(METRICS).index(metric)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What was measured, as numbers and tables."""

    asked: Asked
    measured: Measured

    @cached_property
    def baseline(self) -> str:
        """The model the others are compared with; raises PredictionError for one that is not there."""
        names = list(self.asked.opened)
        name = self.asked.options.baseline
        if name and name not in names:
            raise PredictionError(f"baseline {name!r} is no model with networks{nearest(name, names)}")
        return name or names[0]

    @cached_property
    def question_names(self) -> list[str]:
        """All questions, in the order in which they were asked."""
        asked = [question.name for of_model in self.asked.questions.values() for question in of_model]
        return list(dict.fromkeys(asked))

    @cached_property
    def answered(self) -> dict[tuple[str, str], Answered]:
        """By question and region."""
        return {
            (question, region): self._answer(question, region)
            for question in self.question_names
            for region in self.asked.regions
        }

    @cached_property
    def subject_ids(self) -> tuple[str, ...]:
        """Subjects of the cases that were measured, in their order."""
        study = self.asked.study
        subjects = dict(zip(study.case_ids, study.subject_ids, strict=True))
        return tuple(subjects[case.case_id] for case in self.measured.cases)

    def _answer(self, question: str, region: str) -> Answered:
        models = [m for m, asked in self.asked.questions.items() if question in {q.name for q in asked}]
        values = {m: values_of(self.measured.overlaps(m, question, region)) for m in models}
        others = [m for m in models if m != self.baseline and self.baseline in models]
        return Answered(
            question=question,
            region=region,
            subject_ids=self.subject_ids,
            chances=chances_of(self.measured.overlaps(models[0], question, region)).mean(axis=0),
            means={model: self._estimate(values[model]) for model in models},
            differences={m: self._estimate(values[m] - values[self.baseline]) for m in others},
            controls={
                model: {
                    name: mean_of_known(
                        values_of(self.measured.overlaps(model, name, region)),
                        np.ones((1, len(self.subject_ids))),
                    )[0]
                    for name in (RANDOM, INPUT)
                }
                for model in models
            },
        )

    def _estimate(self, values: Floats) -> Estimate:
        study = self.asked.study
        return estimate(
            lambda weights: {"mean": mean_of_known(values, weights)},
            self.subject_ids,
            resamples=study.resamples,
            seed=study.seed,
            confidence=self.asked.options.confidence,
        )["mean"]

    @property
    def size(self) -> str:
        """How many cases of how many subjects."""
        return f"{len(self.subject_ids)} cases of {len(set(self.subject_ids))} subjects"

    @property
    def intervals(self) -> str:
        """What an interval is."""
        resamples = self.asked.study.resamples
        return (
            f"{self.asked.options.confidence:.0%} intervals from {resamples} bootstrap resamples of subjects"
        )

    def headline(self) -> dict[str, float | None]:
        """Means by `MODEL.QUESTION.REGION.METRIC`, differences by `MODEL_vs_BASELINE...`; `.low`, `.high`."""
        numbers: dict[str, float | None] = {}
        for (question, region), found in self.answered.items():
            for model, means in found.means.items():
                numbers |= _named(means, f"{model}.{question}.{region}")
                for name, control in found.controls[model].items():
                    place = f"{model}.{name}.{region}"
                    numbers |= {f"{place}.{m}": cell(control[_place(m)]) for m in COMPARED}
            for model, means in found.differences.items():
                numbers |= _named(means, f"{model}_vs_{self.baseline}.{question}.{region}")
            numbers[f"region_fraction.{region}"] = cell(found.region_fraction)
        for one in self.untrained:
            key = f"{one.model}.{one.question}"
            numbers[f"{key}.untrained_correlation"] = cell(one.correlation.mean())
            numbers[f"{key}.untrained_mass"] = cell(one.untrained_mass.mean())
        return numbers

    @cached_property
    def untrained(self) -> list[Untrained]:
        """By question and model, for those that were looked at with untrained networks."""
        return [
            self._untrained(model, question)
            for question in self.question_names
            for model in self.asked.opened
            if any((model, question) in case.similarity for case in self.measured.cases)
        ]

    def _untrained(self, model: str, question: str) -> Untrained:
        cases = [case for case in self.measured.cases if (model, question) in case.similarity]
        region = self.asked.main_region
        return Untrained(
            model=model,
            question=question,
            correlation=np.array([case.similarity[model, question] for case in cases]),
            mass=np.array([case.overlaps[model, question][region].mass for case in cases]),
            untrained_mass=np.array(
                [case.overlaps[model, UNTRAINED + question][region].mass for case in cases]
            ),
        )


def _named(means: Estimate, key: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for place, metric in enumerate(METRICS):
        one = means.at(place)
        for ending, value in zip(("", ".low", ".high"), bounds(one), strict=True):
            found[f"{key}.{metric}{ending}"] = value
    return found


def bounds(one: Estimate) -> list[float | None]:
    """A value and the ends of its interval as cells."""
    return [cell(one.value), cell(one.low), cell(one.high)]
