"""The cases that models get wrong with the most confidence, with a look at their images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.errors import OaplugError
from oaplug.core.findings import Findings
from oaplug.core.target import grade_names
from oaplug_analyses.drawing import write_table
from oaplug_analyses.error_gallery_figures import Slices, gallery, middle_slices

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.findings import Cell, Figure, Table
    from oaplug.core.predictions import TargetPredictions
    from oaplug.core.study import Study, StudyModel
    from oaplug.core.target import Target
    from oaplug_analyses.options import ErrorGalleryOptions

log = logging.getLogger(__name__)
TITLE = "Error gallery"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A case that a model gets wrong, with the probability it gave to its answer and to the truth.

    `shared` counts the models that get it wrong too, this one included, of `asked` that answer the target.
    """

    case_id: str
    true: str
    predicted: str
    confidence: float
    true_probability: float
    grades_off: int
    shared: int
    asked: int


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """All mistakes of one model on one target, the most confident first, among `known` cases."""

    model: str
    target: Target
    mistakes: tuple[Mistake, ...]
    known: int


@dataclass(frozen=True)
class ErrorGallery:
    """Builds with ErrorGalleryOptions; needs predictions, and shows images where the study has them."""

    options: ErrorGalleryOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """List the mistakes of every model, and draw the worst where images are at hand."""
        found = find_mistakes(study)
        with_images = "images" in study.provides and self.options.shown > 0
        figures, unread = self._draw(study, found, folder) if with_images else ([], [])
        summary = [_sentence(one) for one in found]
        if not found:
            summary = ["No case has a known truth, so nothing can be wrong."]
        elif self.options.shown and not with_images:
            summary.append(f"No image is shown: {study.cases_lacking}.")
        return Findings(
            title=TITLE,
            summary=(*summary, *unread),
            numbers={f"{one.model}.{one.target.name}.mistakes": len(one.mistakes) for one in found},
            tables=tuple(self._table(study, target, found, folder) for target in _targets(found)),
            figures=tuple(figures),
        )

    def _table(self, study: Study, target: Target, found: Sequence[Mistakes], folder: Path) -> Table:
        rows: list[Sequence[Cell]] = []
        place = {case_id: row for row, case_id in enumerate(study.case_ids)}
        for one in found:
            if one.target == target:
                listed = enumerate(one.mistakes[: self.options.listed], start=1)
                rows += [_row(one.model, rank, m, study.subject_ids[place[m.case_id]]) for rank, m in listed]
        sizes = ", ".join(
            f"{one.model} {len(one.mistakes)} of {one.known}" for one in found if one.target == target
        )
        return write_table(
            folder,
            name=f"errors_{target.name}",
            caption=f"{target.name}: cases of known truth that a model gets wrong ({sizes}), the "
            f"{self.options.listed} it is most confident about; confidence is its probability of the grade "
            "it predicts.",
            columns=[
                *("model", "rank", "case_id", "subject_id", "true", "predicted", "confidence"),
                *("probability of the truth", "grades off", "models wrong", "models asked"),
            ],
            rows=rows,
        )

    def _draw(self, study: Study, found: Sequence[Mistakes], folder: Path) -> tuple[list[Figure], list[str]]:
        """A gallery per model and target, and sentences on images that could not be read."""
        unread: dict[str, str] = {}
        slices: dict[str, Slices] = {}
        figures = []
        for number, one in enumerate(found):
            worst = one.mistakes[: self.options.shown]
            for mistake in worst:
                _look(study, mistake.case_id, slices=slices, unread=unread)
            readable = [mistake for mistake in worst if mistake.case_id in slices]
            if readable:
                figures.append(gallery(one, readable, slices, folder, number=number))
        return figures, [f"An image could not be shown: {reason}" for reason in unread.values()]


def _look(study: Study, case_id: str, *, slices: dict[str, Slices], unread: dict[str, str]) -> None:
    """Take the middle slices of a case once; an image that cannot be read costs no other."""
    if case_id in slices or case_id in unread:
        return
    try:
        slices[case_id] = middle_slices(study.image(case_id))
    except OaplugError as failure:
        log.warning("error gallery: %s", failure)
        unread[case_id] = f"{failure}."


def find_mistakes(study: Study) -> list[Mistakes]:
    """Mistakes of every model on every target that has known truths, targets in the study's order."""
    found = []
    for target in study.targets.values():
        answering = [model for model in study.models if target.name in model.predictions.targets]
        wrong = [_wrong(model, target.name) for model in answering]
        shared = np.sum(wrong, axis=0)
        found += [
            _mistakes(model, target, shared=shared, asked=len(answering))
            for model in answering
            if model.predictions.targets[target.name].known().any()
        ]
    return found


def _wrong(model: StudyModel, target: str) -> NDArray[np.bool_]:
    answers = model.predictions.targets[target]
    wrong: NDArray[np.bool_] = answers.known() & (answers.predicted != answers.truth)
    return wrong


def _mistakes(model: StudyModel, target: Target, *, shared: NDArray[np.int64], asked: int) -> Mistakes:
    answers = model.predictions.targets[target.name]
    rows = np.flatnonzero(_wrong(model, target.name))
    confidence = answers.probabilities[rows, answers.predicted[rows]]
    ordered = rows[np.argsort(-confidence, kind="stable")]
    return Mistakes(
        model=model.name,
        target=target,
        known=int(answers.known().sum()),
        mistakes=tuple(
            _mistake(model.predictions.case_ids[row], answers, row, shared=int(shared[row]), asked=asked)
            for row in ordered.tolist()
        ),
    )


def _mistake(case_id: str, answers: TargetPredictions, row: int, *, shared: int, asked: int) -> Mistake:
    names = grade_names(answers.target)
    true, predicted = int(answers.truth[row]), int(answers.predicted[row])
    return Mistake(
        case_id=case_id,
        true=names[true],
        predicted=names[predicted],
        confidence=float(answers.probabilities[row, predicted]),
        true_probability=float(answers.probabilities[row, true]),
        grades_off=abs(predicted - true),
        shared=shared,
        asked=asked,
    )


def _targets(found: Sequence[Mistakes]) -> list[Target]:
    return list({one.target.name: one.target for one in found}.values())


def _row(model: str, rank: int, mistake: Mistake, subject_id: str) -> list[Cell]:
    return [
        *(model, rank, mistake.case_id, subject_id, mistake.true, mistake.predicted),
        *(mistake.confidence, mistake.true_probability, mistake.grades_off, mistake.shared, mistake.asked),
    ]


def _sentence(one: Mistakes) -> str:
    name = one.target.name
    if not one.mistakes:
        return f"{name}: {one.model} gets none of {one.known} cases wrong."
    worst = one.mistakes[0]
    text = (
        f"{name}: {one.model} gets {len(one.mistakes)} of {one.known} cases wrong, most confidently "
        f"{worst.case_id} (true {worst.true}, predicted {worst.predicted} with probability "
        f"{worst.confidence:.2f})"
    )
    everyone = sum(mistake.shared == mistake.asked for mistake in one.mistakes)
    return f"{text}; {everyone} of them all models get wrong." if worst.asked > 1 else f"{text}."
