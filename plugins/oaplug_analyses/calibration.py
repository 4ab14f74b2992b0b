"""How far probabilities can be taken at their word, and what one temperature would mend."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core import calibration
from oaplug.core.bootstrap import estimate
from oaplug.core.findings import Findings
from oaplug.core.seeds import random_generator
from oaplug_analyses import calibration_figures as figures
from oaplug_analyses.calibration_tables import SHOWN, tables_of
from oaplug_analyses.calibration_temperature import Temperature, fitted_temperature
from oaplug_analyses.drawing import cell, keyed, told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.predictions import TargetPredictions
    from oaplug.core.study import Study, StudyModel
    from oaplug.core.target import Target
    from oaplug_analyses.options import CalibrationOptions

    Floats = NDArray[np.float64]

DRAWS = 2000
"""How often outcomes are drawn from the probabilities, to see what a calibrated model shows by chance."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What was measured of one model on one target, over the cases whose truth is known.

    `calibrated` (draws,) are calibration errors as a calibrated model of the same probabilities would show,
    `counts` (draws,B) its hits in each bin. `scaled` and `scaled_estimates` are those after temperature
    scaling, None and empty where no temperature could be fitted.
    """

    model: str
    predictions: TargetPredictions
    estimates: Mapping[str, Estimate]
    calibrated: Floats
    counts: Floats
    temperature: Temperature
    scaled: TargetPredictions | None
    scaled_estimates: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """One target: the models that answer it, and how they were measured."""

    target: Target
    models: tuple[Calibrated, ...]
    size: str
    interval: str
    bins: int

    @property
    def promise(self) -> str:
        """Which probability is held to its word."""
        grades = self.target.grades
        return f"p({self.target.name} = {grades[1]})" if len(grades) == 2 else "p(predicted grade)"

    @property
    def outcome(self) -> str:
        """What that probability promises."""
        grades = self.target.grades
        return f"{self.target.name} = {grades[1]}" if len(grades) == 2 else "the predicted grade is right"


@dataclass(frozen=True)
class Calibration:
    """Builds with CalibrationOptions; needs predictions only."""

    options: CalibrationOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Measure every model on every target, with one temperature where validation cases tell it."""
        results = self.measure(study)
        known = [result for result in results if result.models]
        tables = [table for result in known for table in tables_of(result, folder)]
        return Findings(
            title="Calibration",
            summary=tuple(sentence for result in results for sentence in _sentences(result)),
            numbers={key: value for result in known for key, value in numbers_of(result).items()},
            tables=tuple(tables),
            figures=tuple(figures.reliability(result, folder) for result in known),
        )

    def measure(self, study: Study) -> list[CalibrationResult]:
        """The results of every target, in the study's order; one without known truths has no models."""
        return [self._measure(study, target) for target in study.targets.values()]

    def _measure(self, study: Study, target: Target) -> CalibrationResult:
        measured: list[Calibrated] = []
        subjects: list[str] = []
        for model in study.models:
            answers = model.predictions.targets.get(target.name)
            if answers is None or not answers.known().any():
                continue
            rows = np.flatnonzero(answers.known())
            subjects = [study.subject_ids[row] for row in rows]
            measured.append(self._model(study, model, answers.take(rows), subjects))
        return CalibrationResult(
            target=target,
            models=tuple(measured),
            size=f"{len(subjects)} cases of {len(set(subjects))} subjects",
            interval=f"{self.options.confidence:.0%} intervals from {study.resamples} bootstrap resamples of "
            "subjects",
            bins=self.options.bins,
        )

    def _model(
        self, study: Study, model: StudyModel, answers: TargetPredictions, subjects: Sequence[str]
    ) -> Calibrated:
        name, bins = answers.target.name, self.options.bins
        rng = random_generator(study.seed, "calibrated hits", name)
        scores, _ = calibration.scores_and_hits(answers.truth, answers.probabilities, answers.predicted)
        cut = calibration.equal_width(scores, count=bins)
        hits = calibration.calibrated_hits(scores, draws=DRAWS, rng=rng)
        temperature = fitted_temperature(model, name, without=study.subject_ids)
        scaled = temperature.applied(answers)
        return Calibrated(
            model=model.name,
            predictions=answers,
            estimates=self._estimates(study, answers, subjects),
            calibrated=calibration.calibrated_errors(scores, cut, hits),
            counts=hits @ cut.members(),
            temperature=temperature,
            scaled=scaled,
            scaled_estimates={} if scaled is None else self._estimates(study, scaled, subjects),
        )

    def _estimates(
        self, study: Study, answers: TargetPredictions, subjects: Sequence[str]
    ) -> dict[str, Estimate]:
        return estimate(
            partial(measure, answers, bins=self.options.bins),
            subjects,
            resamples=study.resamples,
            seed=study.seed,
            confidence=self.options.confidence,
        )


def measure(answers: TargetPredictions, weights: Floats, *, bins: int) -> dict[str, Floats]:
    """Every number (b,) of predictions whose truths are known, for case weights (b,N)."""
    truth, table = answers.truth, answers.probabilities
    scores, hits = calibration.scores_and_hits(truth, table, answers.predicted)
    cuts = {
        "ece": calibration.equal_width(scores, count=bins),
        "ece_equal_mass": calibration.equal_mass(scores, count=bins),
    }
    errors = {
        name: calibration.calibration_error(scores, hits, cut, weights=weights) for name, cut in cuts.items()
    }
    return {
        **errors,
        "brier": calibration.mean(calibration.brier_scores(truth, table), weights=weights),
        "log_loss": calibration.mean(calibration.log_losses(truth, table), weights=weights),
        **calibration.brier_parts(truth, table, count=bins, weights=weights),
    }


def numbers_of(result: CalibrationResult) -> dict[str, float | None]:
    """Headline values by `MODEL.TARGET.NAME`, each with `.low` and `.high`; after scaling `NAME_scaled`."""
    numbers: dict[str, float | None] = {}
    for one in result.models:
        key = f"{one.model}.{result.target.name}"
        for name in SHOWN:
            numbers |= keyed(f"{key}.{name}", one.estimates[name])
            if one.scaled_estimates:
                numbers |= keyed(f"{key}.{name}_scaled", one.scaled_estimates[name])
        numbers[f"{key}.ece_if_calibrated"] = cell(one.calibrated.mean())
        if one.temperature.value is not None:
            numbers[f"{key}.temperature"] = one.temperature.value
    return numbers


def _sentences(result: CalibrationResult) -> list[str]:
    name = result.target.name
    if not result.models:
        return [f"{name}: no case has a known truth, so nothing could be measured."]
    errors = [f"{one.model} {told(one.estimates['ece'])}" for one in result.models]
    scaled = [_scaled_sentence(name, one) for one in result.models if one.scaled is not None]
    without: dict[str, list[str]] = defaultdict(list)
    for one in result.models:
        if one.scaled is None:
            without[one.temperature.reason].append(one.model)
    return [
        f"{name}, on {result.size}: expected calibration error {', '.join(errors)}. {_by_chance(result)}",
        *scaled,
        *(f"{name}: no temperature for {', '.join(models)}: {why}." for why, models in without.items()),
    ]


def _by_chance(result: CalibrationResult) -> str:
    """Which models are no worse than a calibrated one may look."""
    limits = {one.model: float(np.quantile(one.calibrated, 0.95)) for one in result.models}
    inside = [m.model for m in result.models if float(m.estimates["ece"].value) <= limits[m.model]]
    if not inside:
        each = "That is" if len(result.models) == 1 else "Each is"
        return f"{each} more than 95% of calibrated models would show by chance on as many cases."
    return f"{', '.join(inside)}: no more than a calibrated model may show by chance on as many cases."


def _scaled_sentence(name: str, one: Calibrated) -> str:
    after, losses = one.scaled_estimates["ece"], (one.estimates["log_loss"], one.scaled_estimates["log_loss"])
    return (
        f"{name}, {one.model}: {one.temperature.sentence}; with it the calibration error is {told(after)}, "
        f"and the log loss {losses[1].value:.3f} instead of {losses[0].value:.3f}."
    )
