"""How well groups of cases are graded, by sex, side, site, age or whatever else is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core import metrics
from oaplug.core.bootstrap import estimate
from oaplug.core.findings import Findings
from oaplug_analyses.drawing import bound_cells, keyed, model_colours, told, with_bounds, write_table
from oaplug_analyses.subgroups_figures import forest
from oaplug_analyses.subgroups_grouping import Group, make_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell, Table
    from oaplug.core.predictions import TargetPredictions
    from oaplug.core.study import Study
    from oaplug.core.target import Target
    from oaplug_analyses.options import SubgroupsOptions

    Floats = NDArray[np.float64]

TITLE = "Subgroups"
MENTIONED = 4
"""Differences that the summary names one by one."""


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """What one model achieves in every group: `values` and `differences` by metric, each of shape (G,)."""

    model: str
    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """One target: its groups, cases of unknown truth left out, and the models that answer it."""

    target: Target
    groups: tuple[Group, ...]
    grades_in: tuple[int, ...]
    models: tuple[Grouped, ...]
    small: int
    interval: str

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of the metrics that suit this target."""
        return metrics.metrics_of(len(self.target.grades), ordered=self.target.kind == "ordinal")

    @property
    def headline(self) -> str:
        """The metric that is drawn: agreement for ordered grades, discrimination otherwise."""
        return "qwk" if "qwk" in self.metric_names else "auc"

    def label(self, metric: str) -> str:
        """Short name of a metric, as columns and panels show it."""
        macro = " (macro)" if len(self.target.grades) > 2 and metric in {"auc", "f1"} else ""
        return {"qwk": "QWK", "mae": "MAE"}.get(metric, metrics.METRIC_NAMES[metric]) + macro

    def note(self, index: int) -> str:
        """What to beware of in a group."""
        notes = []
        if len(self.groups[index].rows) < self.small:
            notes.append(f"fewer than {self.small} cases")
        if missing := len(self.target.grades) - self.grades_in[index]:
            several = f"{missing} {'grade' if missing == 1 else 'grades'} missing"
            notes.append("one class only" if self.grades_in[index] == 1 else several)
        return ", ".join(notes)


@dataclass(frozen=True)
class Subgroups:
    """Builds with SubgroupsOptions; needs predictions and covariates."""

    options: SubgroupsOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Measure every model in every group, and against the other groups."""
        groups, without = make_groups(study.covariates, self.options)
        if not groups:
            return Findings(title=TITLE, summary=("No covariate makes groups.", *without))
        results = [self._measure(study, target, groups) for target in study.targets.values()]
        known = [result for result in results if result.models and result.groups]
        tables = [table for result in known for table in _tables(result, folder)]
        colours = model_colours([model.name for model in study.models])
        return Findings(
            title=TITLE,
            summary=(*(s for result in results for s in _sentences(result)), *without),
            numbers={key: value for result in known for key, value in numbers_of(result).items()},
            tables=tuple(tables),
            figures=tuple(forest(result, folder, colours) for result in known),
        )

    def _measure(self, study: Study, target: Target, groups: Sequence[Group]) -> GroupResult:
        answering = [
            (model.name, model.predictions.targets[target.name])
            for model in study.models
            if target.name in model.predictions.targets
        ]
        truth = answering[0][1].truth
        kept = [_known(group, truth) for group in groups]
        kept = [group for group in kept if group.rows.size]
        if not kept:
            answering = []
        return GroupResult(
            target=target,
            groups=tuple(kept),
            grades_in=tuple(np.unique(truth[group.rows]).size for group in kept),
            models=tuple(self._model(study, name, answers, kept) for name, answers in answering),
            small=self.options.small,
            interval=f"{self.options.confidence:.0%} intervals from {study.resamples} bootstrap resamples of "
            "subjects",
        )

    def _model(self, study: Study, name: str, answers: TargetPredictions, groups: Sequence[Group]) -> Grouped:
        found = estimate(
            lambda weights: measure(answers, groups, weights),
            study.subject_ids,
            resamples=study.resamples,
            seed=study.seed,
            confidence=self.options.confidence,
        )
        names = [key.partition(" ")[0] for key in found if key.endswith(" value")]
        return Grouped(
            model=name,
            values={name: found[f"{name} value"] for name in names},
            differences={name: found[f"{name} difference"] for name in names},
        )


def _known(group: Group, truth: NDArray[np.int64]) -> Group:
    """The group without cases of unknown truth."""
    return Group(
        covariate=group.covariate,
        name=group.name,
        rows=group.rows[truth[group.rows] >= 0],
        rest=group.rest[truth[group.rest] >= 0],
    )


def measure(answers: TargetPredictions, groups: Sequence[Group], weights: Floats) -> dict[str, Floats]:
    """Metrics (b,G) of groups, and how far they lie above those of the rest, for case weights (b,N)."""
    found: dict[bytes, dict[str, Floats]] = {}  # of two groups each is the rest of the other

    def of(rows: NDArray[np.intp]) -> dict[str, Floats]:
        key = rows.tobytes()
        if key not in found:
            found[key] = _metrics(answers.take(rows), weights[:, rows])
        return found[key]

    inside, outside = [of(group.rows) for group in groups], [of(group.rest) for group in groups]
    values = {name: np.stack([one[name] for one in inside], axis=-1) for name in inside[0]}
    rest = {name: np.stack([one[name] for one in outside], axis=-1) for name in outside[0]}
    differences = {f"{name} difference": values[name] - rest[name] for name in values}
    return {f"{name} value": value for name, value in values.items()} | differences


def _metrics(answers: TargetPredictions, weights: Floats) -> dict[str, Floats]:
    return metrics.target_metrics(
        answers.truth,
        answers.probabilities,
        answers.predicted,
        ordered=answers.target.kind == "ordinal",
        weights=weights,
    )


def numbers_of(result: GroupResult) -> dict[str, float | None]:
    """Headline metric by `MODEL.TARGET.COVARIATE.GROUP.METRIC`, and its `.difference` to the rest."""
    numbers: dict[str, float | None] = {}
    for one in result.models:
        for index, group in enumerate(result.groups):
            key = f"{one.model}.{result.target.name}.{group.covariate}.{group.name}.{result.headline}"
            numbers |= keyed(key, one.values[result.headline].at(index))
            numbers |= keyed(f"{key}.difference", one.differences[result.headline].at(index))
    return numbers


def _sentences(result: GroupResult) -> list[str]:
    name = result.target.name
    if not result.models:
        return [f"{name}: no case of any group has a known truth, so nothing could be measured."]
    label = result.label(result.headline)
    apart = _apart(result)
    total = _comparisons(result)
    told_of = [
        f"{name}, {one.model}, {group.covariate} {group.name} (n = {len(group.rows)}): {label} "
        f"{told(one.values[result.headline].at(index))}, {told(one.differences[result.headline].at(index))} "
        f"from the rest{_beware(result, index)}."
        for one, index, group in apart[:MENTIONED]
    ]
    more = [f"{name}: the table has the others."] if len(apart) > MENTIONED else []
    return [
        f"{name}: in {len(apart)} of {total} comparisons of a group with the rest, the interval of the "
        f"difference in {label} leaves out 0; about one in twenty does so by chance.",
        *told_of,
        *more,
    ]


def _beware(result: GroupResult, index: int) -> str:
    note = result.note(index)
    return f" (beware: {note})" if note else ""


def _apart(result: GroupResult) -> list[tuple[Grouped, int, Group]]:
    """Groups whose interval of the difference leaves out 0: the farthest first, those with a note last."""
    found = [
        (one, index, group)
        for one in result.models
        for index, group in _asked(result)
        if _leaves_out_zero(one.differences[result.headline].at(index))
    ]
    return sorted(
        found,
        key=lambda entry: (
            bool(result.note(entry[1])),
            -abs(float(entry[0].differences[result.headline].value[entry[1]])),
        ),
    )


def _leaves_out_zero(found: Estimate) -> bool:
    return bool(found.low > 0 or found.high < 0)


def _comparisons(result: GroupResult) -> int:
    """How many differences to the rest are defined."""
    asked = [index for index, _ in _asked(result)]
    values = [one.differences[result.headline].value[asked] for one in result.models]
    return int(sum((~np.isnan(value)).sum() for value in values))


def _asked(result: GroupResult) -> list[tuple[int, Group]]:
    """Groups with their numbers, without the second of two, which mirrors the first."""
    groups = list(enumerate(result.groups))
    return [
        (index, group)
        for index, group in groups
        if not any(np.array_equal(group.rows, earlier.rest) for _, earlier in groups[:index])
    ]


def _tables(result: GroupResult, folder: Path) -> list[Table]:
    labels = [result.label(metric) for metric in result.metric_names]
    values = write_table(
        folder,
        name=f"subgroups_{result.target.name}",
        caption=f"{result.target.name}: metrics of every group, n cases of known truth; {result.interval}. "
        "A grade that a group or a resample lacks is left out of macro means.",
        columns=["covariate", "group", "model", "n", *(c for x in labels for c in with_bounds(x)), "note"],
        rows=_rows(result, differences=False),
    )
    differences = write_table(
        folder,
        name=f"subgroup_differences_{result.target.name}",
        caption=f"{result.target.name}: metrics of every group minus those of the cases in the other groups "
        f"of the same covariate; {result.interval}, not corrected for how many there are.",
        columns=["covariate", "group", "model", "n", *(c for x in labels for c in with_bounds(x)), "note"],
        rows=_rows(result, differences=True),
    )
    return [values, differences]


def _rows(result: GroupResult, *, differences: bool) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for index, group in enumerate(result.groups):
        for one in result.models:
            found = one.differences if differences else one.values
            cells = [c for metric in result.metric_names for c in bound_cells(found[metric].at(index))]
            note = result.note(index) or None
            rows.append([group.covariate, group.name, one.model, len(group.rows), *cells, note])
    return rows
