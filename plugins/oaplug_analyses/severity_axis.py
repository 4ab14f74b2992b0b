"""Whether a model's features order cases by severity: the axis of its training features, on test cases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.findings import Findings
from oaplug_analyses import severity_figures as figures
from oaplug_analyses.drawing import cell, model_colours, write_table
from oaplug_analyses.severity_alignment import alignment
from oaplug_analyses.severity_measures import NEEDS, fit_folds, known_truths, measure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from oaplug.core.bootstrap import Estimate
    from oaplug.core.findings import Cell, Figure, Table
    from oaplug.core.study import Study, StudyModel
    from oaplug_analyses.options import SeverityAxisOptions
    from oaplug_analyses.severity_measures import FoldAxis, OnTarget, Truths

LABELS = {
    "abs_spearman": "|ρ|",
    "auroc": "AUROC",
    "auroc_train": "AUROC train",
    "ordered": "in order",
    "tau": "tau",
}
"""Statistics as columns show them, before the name of their target."""


@dataclass(frozen=True)
class SeverityAxis:
    """Builds with SeverityAxisOptions; needs features and train_features of one model at least."""

    options: SeverityAxisOptions

    def run(self, study: Study, folder: Path) -> Findings:
        """Fit an axis per fold of every model that has features; write tables and figures into `folder`."""
        return self.look_at(study).findings(folder)

    def look_at(self, study: Study) -> Axes:
        """The axes of every model, and how each target lies along them."""
        by_model = {model.name: fit_folds(model) for model in study.models_with(NEEDS)}
        truths = known_truths(study)
        results = [
            measure(study, target, truth, folds, self.options)
            for target, truth in truths.values()
            for folds in by_model.values()
        ]
        return Axes(
            study=study,
            options=self.options,
            folds=tuple(fold for folds in by_model.values() for fold in folds),
            truths=truths,
            results=tuple(results),
        )


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Axes and what was measured along them, to be put into words, numbers, tables and figures."""

    study: Study
    options: SeverityAxisOptions
    folds: tuple[FoldAxis, ...]
    truths: Truths
    results: tuple[OnTarget, ...]

    @cached_property
    def models(self) -> list[str]:
        """Models that have axes, in the study's order."""
        return list(dict.fromkeys(fold.model for fold in self.folds))

    def findings(self, folder: Path) -> Findings:
        """All of them, written into `folder`."""
        tables = [self._main_table(folder), self._baseline_table(folder)] if self.results else []
        by_fold = self._fold_table(folder)
        return Findings(
            title="Severity axis",
            summary=tuple(self._sentences()),
            numbers=self.numbers(),
            tables=(*tables, by_fold) if len(self.folds) > len(self.models) else tuple(tables),
            figures=tuple(self._figures(folder)),
        )

    def _figures(self, folder: Path) -> list[Figure]:
        drawn = []
        if self.truths:
            target, truth = next(iter(self.truths.values()))
            shown = figures.Shown(folds=self.folds, target=target, truth=truth, case_ids=self.study.case_ids)
            drawn = [figures.plane(shown, folder), figures.along(shown, folder)]
            drawn += figures.neighbours(
                shown, folder, perplexity=self.options.perplexity, seed=self.study.seed
            )
        colours = model_colours([model.name for model in self.study.models])
        drawn.append(figures.variance(self.folds, folder, colours))
        return [*drawn, alignment(self.folds, folder)] if len(self.folds) > 1 else drawn

    def _of(self, model: str) -> list[OnTarget]:
        return [result for result in self.results if result.model == model]

    def _folds_of(self, model: str) -> list[FoldAxis]:
        return [fold for fold in self.folds if fold.model == model]

    def _explained(self, model: str) -> float:
        return float(np.mean([fold.axis.explained[0] for fold in self._folds_of(model)]))

    def numbers(self) -> dict[str, float | None]:
        """Means over folds by `MODEL.TARGET.STATISTIC`, each with `.low` and `.high`."""
        numbers = {f"{model}.explained_variance": cell(self._explained(model)) for model in self.models}
        for result in self.results:
            key = f"{result.model}.{result.target.name}"
            for name in ("abs_spearman", "spearman", "auroc", "auroc_train", "ordered", "tau"):
                if (found := result.estimates.get(name)) is not None:
                    numbers[f"{key}.{name}"] = cell(found.value)
                    numbers |= {f"{key}.{name}.low": cell(found.low), f"{key}.{name}.high": cell(found.high)}
            numbers[f"{key}.shuffled"] = cell(result.shuffled.mean())
            numbers[f"{key}.p_shuffled"] = cell(result.p_value)
        return numbers

    def _main_table(self, folder: Path) -> Table:
        columns = ["model", "folds", "training cases", "features", "PC1 variance"]
        shown = [
            (name, r.target.name) for r in self._of(self.models[0]) for name in LABELS if name in r.estimates
        ]
        for name, target in shown:
            label = f"{target}: {LABELS[name]}"
            columns += [label] if name == "auroc_train" else [label, f"{label} low", f"{label} high"]
        rows = []
        for model in self.models:
            folds = self._folds_of(model)
            size = [len(folds), _range(len(fold.train) for fold in folds), folds[0].features.shape[1]]
            row: list[Cell] = [model, *size, cell(self._explained(model))]
            found = {r.target.name: r.estimates for r in self._of(model)}
            for name, target in shown:
                bounds = _cells(found[target][name])
                row += bounds[:1] if name == "auroc_train" else bounds
            rows.append(row)
        return write_table(
            folder,
            name="severity_axis",
            caption="The first principal component (PC1) of standardised training features, on test cases: "
            f"{self._size()}. |ρ|: Spearman correlation of PC1 with the grade; AUROC: of a logistic "
            "regression on PC1 fitted on the training cases; in order: fraction of adjacent grades whose "
            "centroids rise along PC1; tau: Kendall's, of centroids with grades. "
            f"{self._intervals()}{self._means()}",
            columns=columns,
            rows=rows,
        )

    def _size(self) -> str:
        return ", ".join(f"{r.rows.size} with known {r.target.name}" for r in self._of(self.models[0]))

    def _intervals(self) -> str:
        return (
            f"Intervals ({self.options.confidence:.0%}) are from {self.study.resamples} bootstrap resamples "
            "of test subjects, the axis being fixed."
        )

    def _means(self) -> str:
        several = len(self.folds) > len(self.models)
        return " Values are means over folds; features of different folds are never mixed." if several else ""

    def _baseline_table(self, folder: Path) -> Table:
        rows: list[Sequence[Cell]] = [
            [
                *(r.target.name, r.model, cell(r.estimates["abs_spearman"].value)),
                *(cell(r.shuffled.mean()), cell(np.quantile(r.shuffled, 0.95)), cell(r.p_value)),
            ]
            for r in self.results
        ]
        return write_table(
            folder,
            name="shuffled",
            caption=f"|ρ| of PC1 with the grades, and with the same grades dealt out to other subjects "
            f"{self.options.shuffles} times: what no order at all gives.",
            columns=["target", "model", "|ρ|", "shuffled mean", "shuffled 95th percentile", "p"],
            rows=rows,
        )

    def _fold_table(self, folder: Path) -> Table:
        rows: list[Sequence[Cell]] = []
        for r in self.results:
            for name in [name for name in r.estimates if not name.startswith("folds.")]:
                of_folds = r.estimates[f"folds.{name}"]
                for index, fold in enumerate(r.folds):
                    sizes = [len(fold.train), r.rows.size, cell(fold.axis.explained[0])]
                    rows.append(
                        [r.model, fold.fold, *sizes, r.target.name, name, *_cells(of_folds.at(index))]
                    )
        return write_table(
            folder,
            name="folds",
            caption="Every statistic of every fold. spearman is the correlation along the axis as it was "
            "turned on the training cases, so that it is negative where test cases contradict them.",
            columns=["model", "fold", "training cases", "test cases", "PC1 variance", "target", "statistic",
                     "value", "low", "high"],
            rows=rows,
        )  # fmt: skip

    def _sentences(self) -> list[str]:
        said = [self._sentence(target.name) for target, _ in self.truths.values()]
        if not said:
            said = ["No case of the test has a known grade of a target with an order."]
        said += [f"{model.name} is left out: {why}." for model, why in self._left_out()]
        if degenerate := [m for m in self.models if np.isnan(self._explained(m))]:
            said.append(
                f"All training cases have the same features by {', '.join(degenerate)}: there is no axis."
            )
        return said

    def _left_out(self) -> list[tuple[StudyModel, str]]:
        missing = [model for model in self.study.models if model.name not in self.models]
        return [(m, "; ".join(dict.fromkeys(filter(None, map(m.lacks, sorted(NEEDS)))))) for m in missing]

    def _sentence(self, target: str) -> str:
        """Whose axis orders a target's grades best, in plain words."""
        known = [
            r
            for r in self.results
            if r.target.name == target and not np.isnan(r.estimates["abs_spearman"].value)
        ]
        if not known:
            return f"{target}: the known grades are all the same, or no axis varies."
        best = max(known, key=lambda r: float(r.estimates["abs_spearman"].value))
        found = best.estimates["abs_spearman"]
        text = (
            f"{target}: PC1 of {best.model} follows the grade with |ρ| {found.value:.3f} "
            f"({found.low:.3f} to {found.high:.3f}); shuffled grades give {best.shuffled.mean():.3f}."
        )
        if "tau" in best.estimates:
            ordered, tau = best.estimates["ordered"].value, best.estimates["tau"].value
            text += f" {ordered:.0%} of adjacent centroids rise (tau {tau:.2f})."
        others = ", ".join(
            f"{r.model} {r.estimates['abs_spearman'].value:.3f}" for r in known if r is not best
        )
        return text + (f" Others: {others}." if others else "")


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _cells(found: Estimate) -> list[Cell]:
    return [cell(found.value), cell(found.low), cell(found.high)]
