"""Validation: probabilities and losses of every case of a fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from oaplug.core.evaluation import prediction_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oaplug.core.predictions import PredictionTable
    from oaplug.feed.source import LoadedBatch
    from oaplug.model.network import Network
    from oaplug.model.precision import Precision
    from oaplug.train.trainer import TrainingJob


def validate(
    job: TrainingJob, *, between: Callable[[], None] | None = None
) -> tuple[PredictionTable, dict[str, float]]:
    """Predictions of all validation cases and their mean losses by part, whichever process computed them.

    `between` is called before every batch, by all processes as often.
    """
    source = job.validation
    assert source is not None
    mine = predict_cases(job.network, source.in_order(), precision=job.precision, between=between)
    if between is not None:
        for _ in range(source.idle_rounds):
            between()
    parts = job.world.gather(mine)
    rows = {case_id: row for part in parts for case_id, row in part.rows.items()}
    tables = {
        name: np.stack([rows[case.case_id][name] for case in source.cases])
        for name in rows[source.cases[0].case_id]
    }
    count = len(source.cases)
    losses = {
        name: sum(part.loss_sums.get(name, 0.0) for part in parts) / count for name in parts[0].loss_sums
    }
    return prediction_table(source.cases, tables, targets=job.targets, fold=job.fold, model=job.model), losses


@dataclass(frozen=True, kw_only=True)
class PartOfCases:
    """Probabilities (K,) by case id and target, and sums over cases of the losses."""

    rows: dict[str, dict[str, np.ndarray]]
    loss_sums: dict[str, float]


def predict_cases(
    network: Network,
    batches: Iterable[LoadedBatch],
    *,
    precision: Precision,
    between: Callable[[], None] | None = None,
) -> PartOfCases:
    """Probabilities and losses of every case of `batches`."""
    network.eval()
    rows: dict[str, dict[str, np.ndarray]] = {}
    loss_sums: dict[str, float] = {}
    with torch.inference_mode():
        for batch in batches:
            if between is not None:
                between()
            with precision.autocast():
                logits = network(precision.arrange(batch.volume))
                losses = network.loss(logits, batch.truth)
            tables = {n: t.double().cpu().numpy() for n, t in network.probabilities(logits).items()}
            for index, case_id in enumerate(batch.case_ids):
                rows[case_id] = {name: table[index] for name, table in tables.items()}
            for name, value in losses.items():
                loss_sums[name] = loss_sums.get(name, 0.0) + float(value) * len(batch.case_ids)
    return PartOfCases(rows=rows, loss_sums=loss_sums)
