"""How well each target is graded: metrics with intervals, confusion, ROC curves, numbers per grade."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core import metrics
from oaplug.core.bootstrap import Estimate, estimate
from oaplug.core.findings import Findings, Table
from oaplug.core.target import grade_names
from oaplug_analyses import classification_figures as figures
from oaplug_analyses.classification_roc import roc_curves, roc_grades
from oaplug_analyses.drawing import bound_cells, keyed, model_colours, told, with_bounds, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure
    from oaplug.core.predictions import TargetPredictions
    from oaplug.core.study import Study
    from oaplug.core.target import Target
    from oaplug_analyses.options import ClassificationOptions

    Floats = NDArray[np.float64]

PER_GRADE = {"sensitivity": "sensitivity", "precision": "precision", "grade_f1": "F1"}


@dataclass(frozen=True, kw_only=True)
class Graded:
    """What one model achieves on one target, over the cases whose truth is known."""

    model: str
    predictions: TargetPredictions
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """One target: the models that predict it, in the study's order, and what they were measured on."""

    target: Target
    models: tuple[Graded, ...]
    subject_ids: tuple[str, ...]
    resamples: int
    seed: int
    confidence: float

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of the metrics that suit this target, in the order they are shown."""
        return tuple(name for name in metrics.METRIC_NAMES if name in self.models[0].estimates)

    @property
    def headline(self) -> str:
        """The metric models are ranked by: agreement for ordered grades, discrimination otherwise."""
        return "qwk" if "qwk" in self.metric_names else "auc"

    def label(self, metric: str) -> str:
        """Short name of a metric, as columns and panels show it."""
        macro = " (macro)" if len(self.target.grades) > 2 and metric in {"auc", "f1"} else ""
        return {"qwk": "QWK", "mae": "MAE"}.get(metric, metrics.METRIC_NAMES[metric]) + macro

    @property
    def size(self) -> str:
        """How many cases of how many subjects."""
        return f"{len(self.subject_ids)} cases of {len(set(self.subject_ids))} subjects"

    @property
    def interval(self) -> str:
        """What an interval is, in words."""
        return f"{self.confidence:.0%} intervals from {self.resamples} bootstrap resamples of subjects"


@dataclass(frozen=True)
class Classification:
    """Builds with ClassificationOptions; needs predictions only."""

    options: ClassificationOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Measure every model on every target and draw what was found into `folder`."""
        results = self.measure(study)
        known = [result for result in results if result.models]
        colours = model_colours([model.name for model in study.models])
        tables = [table for result in known for table in _tables(result, folder)]
        drawn = [figure for result in known for figure in _figures(result, folder, colours)]
        return Findings(
            title="Classification",
            summary=tuple(_sentence(result) for result in results),
            numbers={key: value for result in known for key, value in headline_numbers(result).items()},
            tables=tuple(tables),
            figures=tuple(drawn),
        )

    def measure(self, study: Study) -> tuple[TargetResult, ...]:
        """The results of every target, in the study's order; one without known truths has no models."""
        return tuple(self._measure(study, target) for target in study.targets.values())

    def _measure(self, study: Study, target: Target) -> TargetResult:
        graded: list[Graded] = []
        subject_ids: tuple[str, ...] = ()
        for model in study.models:
            predictions = model.predictions.targets.get(target.name)
            if predictions is None or not predictions.known().any():
                continue
            rows = np.flatnonzero(predictions.known())
            subject_ids = tuple(study.subject_ids[row] for row in rows)
            known = predictions.take(rows)
            estimates = estimate(
                partial(measure, known),
                subject_ids,
                resamples=study.resamples,
                seed=study.seed,
                confidence=self.options.confidence,
            )
            graded.append(Graded(model=model.name, predictions=known, estimates=estimates))
        return TargetResult(
            target=target,
            models=tuple(graded),
            subject_ids=subject_ids,
            resamples=study.resamples,
            seed=study.seed,
            confidence=self.options.confidence,
        )


def measure(predictions: TargetPredictions, weights: Floats) -> dict[str, Floats]:
    """Every number of one model and target for case weights (b,N): (b,) by metric, (b,K) by grade."""
    grades = len(predictions.target.grades)
    matrix = metrics.confusion(predictions.truth, predictions.predicted, grades=grades, weights=weights)
    overall = metrics.target_metrics(
        predictions.truth,
        predictions.probabilities,
        predictions.predicted,
        ordered=predictions.target.kind == "ordinal",
        weights=weights,
    )
    by_grade = [
        metrics.auc(predictions.truth == grade, predictions.probabilities[:, grade], weights=weights)
        for grade in range(grades)
    ]
    return {
        **overall,
        "sensitivity": metrics.recall_by_grade(matrix),
        "precision": metrics.precision_by_grade(matrix),
        "grade_f1": metrics.f1_by_grade(matrix),
        "grade_auc": np.stack(by_grade, axis=-1),
    }


def headline_numbers(result: TargetResult) -> dict[str, float | None]:
    """Headline values by `MODEL.TARGET.METRIC`, each with `.low` and `.high`."""
    numbers: dict[str, float | None] = {}
    for graded in result.models:
        for metric in result.metric_names:
            numbers |= keyed(f"{graded.model}.{result.target.name}.{metric}", graded.estimates[metric])
    return numbers


def _sentence(result: TargetResult) -> str:
    """The best model of a target in plain words."""
    name = result.target.name
    if not result.models:
        return f"{name}: no case has a known truth, so nothing could be measured."
    headline = metrics.METRIC_NAMES[result.headline]
    values = [float(graded.estimates[result.headline].value) for graded in result.models]
    best = max(values, key=lambda value: -np.inf if np.isnan(value) else value)
    leaders = [g for g, value in zip(result.models, values, strict=True) if value == best]
    if not leaders:
        return f"{name}: the {headline} is not defined on {result.size}: only one grade occurs."
    if len(leaders) > 1:
        names = " and ".join(graded.model for graded in leaders)
        return f"{name}: {names} share the highest {headline}, {best:.3f}, on {result.size}."
    return _praise(result, leaders[0])


def _praise(result: TargetResult, first: Graded) -> str:
    """The numbers of the best model, and how far the next one lies behind."""
    others = [m for m in ("auc", "accuracy", "mae") if m in result.metric_names and m != result.headline]
    rest = ", ".join(f"{result.label(m)} is {told(first.estimates[m])}" for m in others)
    headline = metrics.METRIC_NAMES[result.headline]
    behind = _runner_up(result, first)
    verb = f"has the highest {headline}," if behind else f"reaches {headline}"
    best = told(first.estimates[result.headline], what=f"{result.confidence:.0%} interval ")
    place = f"{result.target.name}, on {result.size}"
    return f"{place}: {first.model} {verb} {best}{behind}. For {first.model}, {rest}."


def _runner_up(result: TargetResult, first: Graded) -> str:
    others = [g for g in result.models if g is not first and not np.isnan(g.estimates[result.headline].value)]
    if not others:
        return ""
    second = max(others, key=lambda graded: float(graded.estimates[result.headline].value))
    return f", ahead of {second.model} with {told(second.estimates[result.headline])}"


def _tables(result: TargetResult, folder: Path) -> list[Table]:
    return [_metric_table(result, folder), _grade_table(result, folder)]


def _metric_table(result: TargetResult, folder: Path) -> Table:
    columns = ["model", "n"]
    for metric in result.metric_names:
        columns += with_bounds(result.label(metric))
    rows = []
    for graded in result.models:
        found = [graded.estimates[metric] for metric in result.metric_names]
        undefined = max(int(one.undefined) for one in found)
        row: list[Cell] = [graded.model, len(result.subject_ids)]
        rows.append([*row, *(value for one in found for value in bound_cells(one)), undefined])
    return write_table(
        folder,
        name=f"metrics_{result.target.name}",
        caption=f"{result.target.name}: metrics on {result.size}, with {result.interval}. Undefined "
        "resamples (one class only) were left out; the last column is the most that any metric lost.",
        columns=[*columns, "undefined resamples"],
        rows=rows,
    )


def _grade_table(result: TargetResult, folder: Path) -> Table:
    columns = ["grade", "model", "n"] + [c for label in PER_GRADE.values() for c in with_bounds(label)]
    rows: list[Sequence[Cell]] = []
    for index, grade in enumerate(grade_names(result.target)):
        for graded in result.models:
            count = int((graded.predictions.truth == index).sum())
            found = [graded.estimates[key].at(index) for key in PER_GRADE]
            rows.append([grade, graded.model, count, *(value for one in found for value in bound_cells(one))])
    return write_table(
        folder,
        name=f"grades_{result.target.name}",
        caption=f"{result.target.name}, grade by grade: n cases truly of that grade, how many of them were "
        f"found (sensitivity), how many calls of that grade were right (precision); {result.interval}.",
        columns=columns,
        rows=rows,
    )


def _figures(result: TargetResult, folder: Path, colours: Mapping[str, str]) -> list[Figure]:
    drawn = [figures.comparison(result, folder, colours), figures.confusions(result, folder)]
    if roc_grades(result):
        drawn.append(roc_curves(result, folder, colours))
    return drawn
