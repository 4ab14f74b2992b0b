"""Whether a coarse answer agrees with the fine one it follows from: oa with kl >= 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core import metrics
from oaplug.core.bootstrap import estimate
from oaplug.core.findings import Findings
from oaplug.core.target import grade_names
from oaplug_analyses import hierarchy_figures as figures
from oaplug_analyses.drawing import bound_cells, keyed, model_colours, told, with_bounds, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell, Table
    from oaplug.core.predictions import TargetPredictions
    from oaplug.core.study import Study, StudyModel
    from oaplug.core.target import Target
    from oaplug_analyses.options import HierarchyOptions

    Floats = NDArray[np.float64]

TITLE = "Hierarchy"
SAME_SCORE = 1e-6
"""Probabilities that differ by no more are one score: the coarse answer has no head of its own."""


@dataclass(frozen=True, kw_only=True)
class BothAnswers:
    """The fine and the coarse answer of one model to the same N cases."""

    fine: TargetPredictions
    coarse: TargetPredictions

    @property
    def implied(self) -> NDArray[np.int64]:
        """What the predicted fine grade makes of the coarse target (N,), 0 or 1."""
        return (self.fine.predicted >= self._threshold).astype(np.int64)

    @property
    def agree(self) -> NDArray[np.bool_]:
        """Whether the coarse prediction is the one that the fine grade implies (N,)."""
        return np.asarray(self.coarse.predicted == self.implied)

    @property
    def score(self) -> Floats:
        """The coarse answer's own probability of being positive (N,)."""
        return self.coarse.probabilities[:, 1]

    @property
    def summed(self) -> Floats:
        """The probability of all fine grades that mean positive (N,)."""
        return self.score if self.is_one_score else self._sum

    @property
    def is_one_score(self) -> bool:
        """Whether the coarse probability is nothing but the sum over fine grades, but for rounding."""
        return bool(np.abs(self.score - self._sum).max(initial=0.0) <= SAME_SCORE)

    @property
    def _sum(self) -> Floats:
        return np.asarray(self.fine.probabilities[:, self._threshold :].sum(axis=1))

    @property
    def _threshold(self) -> int:
        return self.coarse.target.threshold_in(self.fine.target)

    def measure(self, weights: Floats) -> dict[str, Floats]:
        """Every number for case weights (b,N): (b,), and (b,K) by true fine grade."""
        total = weights.sum(axis=-1)
        both = metrics.confusion(self.coarse.predicted, self.implied, grades=2, weights=weights)
        known = np.flatnonzero(self.coarse.known())
        positive, of_known = self.coarse.truth[known] == 1, weights[:, known]
        areas = [metrics.auc(positive, s[known], weights=of_known) for s in (self.score, self.summed)]
        return {
            "consistency": metrics.accuracy(both),
            "kappa": metrics.quadratic_kappa(both),
            "auc_head": areas[0],
            "auc_sum": areas[1],
            "auc_difference": areas[0] - areas[1],
            "score_gap": weights @ np.abs(self.score - self.summed) / total,
            "by_grade": np.stack([self._in_grade(weights, g) for g in self._grades], axis=-1),
        }

    @property
    def _grades(self) -> range:
        return range(len(self.fine.target.grades))

    def _in_grade(self, weights: Floats, grade: int) -> Floats:
        """Consistency (b,) among the cases that truly have a fine grade."""
        rows = np.flatnonzero(self.fine.truth == grade)
        pair = self.coarse.predicted[rows], self.implied[rows]
        return metrics.accuracy(metrics.confusion(*pair, grades=2, weights=weights[:, rows]))


@dataclass(frozen=True, kw_only=True)
class Linked:
    """What was measured of one model."""

    model: str
    answers: BothAnswers
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class LinkResult:
    """One coarse target and the fine one it follows from: models that answer both, and those without."""

    fine: Target
    coarse: Target
    models: tuple[Linked, ...]
    without: tuple[str, ...]
    case_ids: tuple[str, ...]
    size: str
    interval: str

    @property
    def rule(self) -> str:
        """The coarse target in terms of the fine one."""
        return f"{self.fine.name} >= {self.coarse.at_least}"


@dataclass(frozen=True)
class Hierarchy:
    """Builds with HierarchyOptions; needs predictions only."""

    options: HierarchyOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Compare the coarse and fine answers of every model that gives both."""
        results = [result for result in self.measure(study) if result.models]
        if not results:
            return Findings(title=TITLE, summary=(_nothing(study),))
        colours = model_colours([model.name for model in study.models])
        shown = [_tables(result, folder) for result in results]
        drawn = [
            [figures.scores(result, folder), figures.by_grade(result, tables[1], folder, colours)]
            for result, tables in zip(results, shown, strict=True)
        ]
        return Findings(
            title=TITLE,
            summary=tuple(sentence for result in results for sentence in _sentences(result)),
            numbers={key: value for result in results for key, value in numbers_of(result).items()},
            tables=tuple(table for tables in shown for table in tables),
            figures=tuple(figure for pair in drawn for figure in pair),
        )

    def measure(self, study: Study) -> list[LinkResult]:
        """The results of every derived target whose parent is in the study too."""
        targets = study.targets
        derived = [target for target in targets.values() if target.derived_from in targets]
        return [self._measure(study, targets[str(coarse.derived_from)], coarse) for coarse in derived]

    def _measure(self, study: Study, fine: Target, coarse: Target) -> LinkResult:
        both = {fine.name, coarse.name}
        chosen = [model for model in study.models if both <= model.predictions.targets.keys()]
        subjects = len(set(study.subject_ids))
        return LinkResult(
            fine=fine,
            coarse=coarse,
            models=tuple(self._link(study, model, fine=fine.name, coarse=coarse.name) for model in chosen),
            without=tuple(model.name for model in study.models if model not in chosen),
            case_ids=study.case_ids,
            size=f"{len(study.case_ids)} cases of {subjects} subjects",
            interval=f"{self.options.confidence:.0%} intervals from {study.resamples} bootstrap resamples of "
            "subjects",
        )

    def _link(self, study: Study, model: StudyModel, *, fine: str, coarse: str) -> Linked:
        answers = BothAnswers(fine=model.predictions.targets[fine], coarse=model.predictions.targets[coarse])
        estimates = estimate(
            answers.measure,
            study.subject_ids,
            resamples=study.resamples,
            seed=study.seed,
            confidence=self.options.confidence,
        )
        return Linked(model=model.name, answers=answers, estimates=estimates)


def _nothing(study: Study) -> str:
    if not any(target.is_derived for target in study.targets.values()):
        return "No target follows from another, so there is no hierarchy to look at."
    return "No model answers both a target and the finer one it follows from, so there is nothing to compare."


OVERALL = {
    "consistency": "consistency",
    "kappa": "kappa",
    "auc_head": "AUC of the head",
    "auc_sum": "AUC of the sum",
    "auc_difference": "head minus sum",
    "score_gap": "mean distance of scores",
}


def numbers_of(result: LinkResult) -> dict[str, float | None]:
    """Headline values by `MODEL.TARGET.NAME`, each with `.low` and `.high`."""
    numbers: dict[str, float | None] = {}
    for linked in result.models:
        for name in OVERALL:
            numbers |= keyed(f"{linked.model}.{result.coarse.name}.{name}", linked.estimates[name])
    return numbers


def _sentences(result: LinkResult) -> list[str]:
    sentences = [_sentence(result, linked) for linked in result.models]
    if result.without:
        names, verb = ", ".join(result.without), "answers" if len(result.without) == 1 else "answer"
        both = f"{result.fine.name} and {result.coarse.name}"
        sentences.append(f"{names} {verb} only one of {both}, which leaves nothing to compare.")
    return sentences


def _sentence(result: LinkResult, linked: Linked) -> str:
    name, found, answers = result.coarse.name, linked.estimates, linked.answers
    apart = int((~answers.agree).sum())
    text = (
        f"{linked.model} calls {name} as its grade of {result.fine.name} implies ({result.rule}) in "
        f"{told(found['consistency'])} of {result.size}, and contradicts itself in {apart}; kappa is "
        f"{told(found['kappa'])}."
    )
    if answers.is_one_score:
        return f"{text} Its {name} is the sum over grades of {result.fine.name}, so both have the same AUC."
    areas = f"{told(found['auc_head'])} of its own answer and {told(found['auc_sum'])} of the sum over grades"
    return f"{text} AUC of {name}: {areas}, a difference of {told(found['auc_difference'])}."


def _tables(result: LinkResult, folder: Path) -> list[Table]:
    return [_overall_table(result, folder), _grade_table(result, folder)]


def _overall_table(result: LinkResult, folder: Path) -> Table:
    rows: list[Sequence[Cell]] = [
        [
            *(linked.model, len(result.case_ids), int((~linked.answers.agree).sum())),
            *(value for name in OVERALL for value in bound_cells(linked.estimates[name])),
        ]
        for linked in result.models
    ]
    return write_table(
        folder,
        name=f"hierarchy_{result.coarse.name}",
        caption=f"{result.coarse.name} against {result.rule}, on {result.size}: share of cases in which both "
        "predictions agree, Cohen's kappa between them; AUC of the model's own probability (head) and of the "
        "probabilities of the grades that mean positive (sum), over cases of known truth, their difference "
        f"and the mean distance between the two; {result.interval}.",
        columns=[
            "model",
            "n",
            "contradictions",
            *(c for label in OVERALL.values() for c in with_bounds(label)),
        ],
        rows=rows,
    )


def _grade_table(result: LinkResult, folder: Path) -> Table:
    name = result.coarse.name
    counts = [f"both {name}", "only the head", "only the grades", "neither"]
    rows: list[Sequence[Cell]] = []
    for index, grade in enumerate(grade_names(result.fine)):
        for linked in result.models:
            here = linked.answers.fine.truth == index
            found = bound_cells(linked.estimates["by_grade"].at(index))
            rows.append([grade, linked.model, int(here.sum()), *found, *_calls(linked.answers, here)])
    return write_table(
        folder,
        name=f"hierarchy_grades_{name}",
        caption=f"The same by true grade of {result.fine.name}: share of cases in which {name} and "
        f"{result.rule} agree, and how many of them the coarse answer (head), the predicted grade, both or "
        f"neither call {name}; {result.interval}. A share that is 1 in the sample is 1 in every resample.",
        columns=[f"true {result.fine.name}", "model", "n", *with_bounds("consistency"), *counts],
        rows=rows,
    )


def _calls(answers: BothAnswers, here: NDArray[np.bool_]) -> list[int]:
    head, grades = answers.coarse.predicted == 1, answers.implied == 1
    pairs = [head & grades, head & ~grades, ~head & grades, ~head & ~grades]
    return [int((pair & here).sum()) for pair in pairs]
