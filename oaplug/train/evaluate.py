"""Validation: probabilities and losses of every case of a fold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oaplug.feed.source import LoadedBatch
    from oaplug.model.network import Network
    from oaplug.model.precision import Precision


def predict_cases(
    network: Network, batches: Iterable[LoadedBatch], *, precision: Precision
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Probabilities (N,K) per target of every case of `batches`, and the mean losses by part."""
    network.eval()
    rows: dict[str, list[np.ndarray]] = {}
    losses: dict[str, list[tuple[float, int]]] = {}
    with torch.inference_mode():
        for batch in batches:
            with precision.autocast():
                logits = network(precision.arrange(batch.volume))
                parts = network.loss(logits, batch.truth)
            for name, table in network.probabilities(logits).items():
                rows.setdefault(name, []).append(table.double().cpu().numpy())
            for name, value in parts.items():
                losses.setdefault(name, []).append((float(value), len(batch.case_ids)))
    means = {
        name: sum(v * n for v, n in values) / sum(n for _, n in values) for name, values in losses.items()
    }
    return {name: np.concatenate(tables) for name, tables in rows.items()}, means
