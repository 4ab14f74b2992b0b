"""From probabilities to prediction tables, and from tables to the study's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oaplug.core.metrics import predicted_grades, target_metrics
from oaplug.core.predictions import PredictionTable, TargetPredictions
from oaplug.core.target import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oaplug.core.case import Case
    from oaplug.core.target import Target


def prediction_table(
    cases: Sequence[Case],
    probabilities: Mapping[str, np.ndarray],
    *,
    targets: Mapping[str, Target],
    fold: str,
    model: str,
) -> PredictionTable:
    """A prediction table of cases whose probabilities (N,K) are known."""
    answers = {
        name: TargetPredictions(
            target=targets[name],
            truth=np.array([case.labels.get(name, MISSING) for case in cases], dtype=np.int64),
            predicted=predicted_grades(table),
            probabilities=table,
        )
        for name, table in probabilities.items()
    }
    return PredictionTable(
        case_ids=tuple(case.case_id for case in cases),
        subject_ids=tuple(case.subject_id for case in cases),
        folds=(fold,) * len(cases),
        targets=answers,
        model=model,
    )


def table_metrics(table: PredictionTable) -> dict[str, float | None]:
    """Metrics by "target.metric" over the cases with a truth; None where one is not defined."""
    values: dict[str, float | None] = {}
    for name, p in table.targets.items():
        known = p.known()
        if not known.any():
            continue
        metrics = target_metrics(
            p.truth[known], p.probabilities[known], p.predicted[known], ordered=p.target.kind == "ordinal"
        )
        for metric, value in metrics.items():
            values[f"{name}.{metric}"] = float(value) if np.isfinite(value) else None
    return values


def default_best_metric(targets: Mapping[str, Target]) -> str:
    """The metric that chooses the best epoch: kappa of an ordinal target, else AUC."""
    first = next(iter(targets.values()))
    ordered = first.kind == "ordinal" and len(first.grades) > 2
    return f"{first.name}.{'qwk' if ordered else 'auc'}"
