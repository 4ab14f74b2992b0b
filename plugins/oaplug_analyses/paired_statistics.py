"""How models differ on the same cases: metrics in pairs, with intervals, tests and corrections."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from oaplug.core.findings import Findings
from oaplug.core.metrics import METRIC_NAMES, metrics_of
from oaplug_analyses.drawing import cell, model_colours
from oaplug_analyses.paired_comparisons import (
    BOOTSTRAP,
    STUDY_RESAMPLES,
    STUDY_SEED,
    Resampling,
    as_family,
    cases_of,
    check_known,
    compare_as_the_study,
    compare_with_baseline,
)
from oaplug_analyses.paired_figures import forest
from oaplug_analyses.paired_tables import (
    p_text,
    short_metric,
    shown_table,
    signed,
    write_study_table,
    write_texts,
    write_tidy,
)

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.core.study import Study
    from oaplug_analyses.options import PairedStatisticsOptions
    from oaplug_analyses.paired_comparisons import Comparison

TITLE = "Paired statistics"
MENTIONED = 4
"""Differences that the summary names one by one."""


@dataclass(frozen=True)
class PairedStatistics:
    """Builds with PairedStatisticsOptions; needs predictions only."""

    options: PairedStatisticsOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Compare the models of `study`; tables and a forest plot go into `folder`."""
        comparisons = self.compare(study)
        if not comparisons:
            return Findings(title=TITLE, summary=(_nothing(study),))
        return _Telling(study=study, comparisons=comparisons, options=self.options).findings(folder)

    def compare(self, study: Study) -> tuple[Comparison, ...]:
        """Every comparison of the family, corrected for being one of them.

        Raises PredictionError where an option names a model or target that the study does not have, or
        the study protocol lacks a model.
        """
        how = resampling(study, self.options)
        by_target = {name: cases_of(study, target) for name, target in study.targets.items()}
        if self.options.protocol == "study":
            return as_family(compare_as_the_study(by_target, how))
        for name in self.options.targets:
            check_known(name, by_target, what="target")
        for name in self.options.metrics:
            check_known(name, METRIC_NAMES, what="metric")
        baseline = baseline_of(study, self.options)
        found = []
        for name, cases in by_target.items():
            suitable = metrics_of(len(cases.target.grades), ordered=cases.target.kind == "ordinal")
            metrics = [metric for metric in suitable if metric in (self.options.metrics or suitable)]
            if metrics and name in (self.options.targets or by_target):
                found += compare_with_baseline(cases, baseline, metrics=metrics, how=how)
        return as_family(found)


def resampling(study: Study, options: PairedStatisticsOptions) -> Resampling:
    """Resamples and seed that were asked for, else those of the protocol."""
    is_study = options.protocol == "study"
    resamples = STUDY_RESAMPLES if is_study else study.resamples
    seed = STUDY_SEED if is_study else study.seed
    return Resampling(
        resamples=resamples if options.resamples is None else options.resamples,
        seed=seed if options.seed is None else options.seed,
        confidence=options.confidence,
    )


def baseline_of(study: Study, options: PairedStatisticsOptions) -> str:
    """The model that the others are compared with: the one declared, else the first."""
    names = list(dict.fromkeys(model.model_name for model in study.models))
    if options.baseline:
        check_known(options.baseline, names, what="model")
    return options.baseline or names[0]


def _nothing(study: Study) -> str:
    if len({model.model_name for model in study.models}) < 2:
        return "There is one model only, so there is nothing to compare it with."
    return "Nothing could be compared: no target that the baseline answers is answered by another model."


@dataclass(frozen=True, kw_only=True)
class _Telling:
    """Comparisons put into words, numbers, tables and a figure."""

    study: Study
    comparisons: tuple[Comparison, ...]
    options: PairedStatisticsOptions

    @cached_property
    def grades(self) -> dict[str, int]:
        return {name: len(target.grades) for name, target in self.study.targets.items()}

    @cached_property
    def how(self) -> Resampling:
        return resampling(self.study, self.options)

    def findings(self, folder: Path) -> Findings:
        """All of them, written into `folder`."""
        rate = self.options.false_discovery_rate
        caption = f"{self._caption('Differences between models')} Filled dots: q (BH) below {rate:g}."
        tidy = write_tidy(self.comparisons, folder, caption=caption)
        write_texts(self.comparisons, folder, grades=self.grades)
        is_study = self.options.protocol == "study"
        if is_study:
            write_study_table(self.comparisons, folder, false_discovery_rate=rate)
        table = shown_table(
            self.comparisons,
            grades=self.grades,
            caption=f"{self._caption('Values and differences')} q (BH) bounds the false discovery rate "
            "(Benjamini and Hochberg), p (Holm) the chance of a single false call, over this family of "
            f"{len(self.comparisons)} tests. More columns are in differences.csv; differences.md and "
            "differences.tex hold this table for an article.",
            data="comparisons.csv" if is_study else tidy.data,
        )
        colours = model_colours(list(dict.fromkeys(model.model_name for model in self.study.models)))
        figure = forest(
            self.comparisons,
            tidy,
            folder,
            grades=self.grades,
            colours=colours,
            called_below=rate,
        )
        return Findings(
            title=TITLE,
            summary=tuple(self._sentences()),
            numbers=self._numbers(),
            tables=(table,),
            figures=(figure,),
        )

    def _caption(self, what: str) -> str:
        mae = " For MAE, lower is better." if any(c.metric == "mae" for c in self.comparisons) else ""
        return (
            f"{what}, model minus baseline, with {self.options.confidence:.0%} percentile intervals from "
            f"{self.how.resamples:,} paired bootstrap resamples of subjects.{mae}"
        )

    def _numbers(self) -> dict[str, float | None]:
        """Every comparison by `MODEL_vs_BASELINE.TARGET.METRIC` and what of it."""
        numbers: dict[str, float | None] = {}
        for one in self.comparisons:
            found, key = one.difference, f"{one.model}_vs_{one.baseline}.{one.target}.{one.metric}"
            values = {
                **{"delta": found.delta, "low": found.low, "high": found.high},
                **{"bca_low": found.bca_low, "bca_high": found.bca_high, "p": one.p_value},
                **{"q_bh": one.q_value, "p_holm": one.p_holm, "p_delong": one.delong_p},
            }
            numbers |= {f"{key}.{name}": cell(value) for name, value in values.items()}
        return numbers

    def _sentences(self) -> list[str]:
        sentences = [self._headline(), *self._changes(), self._tests()]
        if self.options.protocol == "pairs" and not self.options.baseline and self._several_models():
            first = self.comparisons[0].baseline
            sentences.append(
                f"No baseline was declared, so all models were compared with the first, {first}; "
                "--baseline NAME chooses another."
            )
        if any(one.model_runs > 1 or one.baseline_runs > 1 for one in self.comparisons):
            sentences.append(
                "Models given with several runs are compared by the mean over runs; each resample redraws "
                "runs as well as subjects. With few runs their spread is understated."
            )
        if self.study.left_out:
            sentences.append(
                f"{self.study.left_out} cases that not every model predicted were left out (--intersect)."
            )
        return sentences

    def _several_models(self) -> bool:
        return len({one.model for one in self.comparisons}) > 1

    def _headline(self) -> str:
        called, rate = self._called(), self.options.false_discovery_rate
        many = f"{len(called)} of {len(self.comparisons)} differences hold"
        return f"{many} at a false discovery rate of {rate:g} (Benjamini-Hochberg)."

    def _called(self) -> list[Comparison]:
        called = [c for c in self.comparisons if c.q_value < self.options.false_discovery_rate]
        return sorted(called, key=lambda one: one.q_value)

    def _changes(self) -> list[str]:
        told = [self._change(one) for one in self._called()[:MENTIONED]]
        more = len(self._called()) - MENTIONED
        return [*told, *([f"The other {more} are in the table."] if more > 0 else [])]

    def _change(self, one: Comparison) -> str:
        found = one.difference
        return (
            f"{one.target}: {one.model} has {short_metric(one, grades=self.grades)} {found.model:.3f}, "
            f"{one.baseline} {found.baseline:.3f}: {signed(found.delta)} ({signed(found.low)} to "
            f"{signed(found.high)}), p {p_text(one.p_value)}, q {p_text(one.q_value)}."
        )

    def _tests(self) -> str:
        tests = {one.test for one in self.comparisons} - {BOOTSTRAP}
        accuracy = " Accuracy was tested with McNemar's test." if tests else ""
        several = any(one.cases != one.subjects for one in self.comparisons)
        clusters = " Subjects with several cases were resampled with all of them." if several else ""
        smallest = f"{2 / (self.how.resamples + 1):.2g}"
        return f"Bootstrap p-values cannot fall below {smallest} here (--resamples).{accuracy}{clusters}"
