"""Once an epoch, whether the head's losses pull the encoder the same way; training goes on bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from oaplug.core.interference import compare_gradients, loss_gradients
from oaplug.core.seeds import derive_seed

if TYPE_CHECKING:
    from oaplug.train.trainer import TrainingJob

FLOAT16_SCALE = 2.0**10


def measure_interference(job: TrainingJob, epoch: int) -> dict[str, float | None]:
    """Cosines and norms of the losses' gradients on the epoch's first batch, by the weights of its end.

    They are entries of the epoch's record: `train.gradient_cosine.A.B`, `train.gradient_norm.A`, means over
    processes; None where one is not defined. All processes must call.
    """
    batch = next(job.training.epoch(epoch))
    purpose = (job.fold, epoch, job.world.rank)
    gradients = loss_gradients(
        job.network,
        job.precision.arrange(batch.volume),
        batch.truth,
        autocast=job.precision.autocast(),
        seed=derive_seed(job.settings.seed, "interference", *purpose),
        scale=FLOAT16_SCALE if job.precision.needs_scaling else 1.0,
    )
    found = job.world.mean(compare_gradients(gradients), device=job.precision.device)
    return {f"train.{name}": value if math.isfinite(value) else None for name, value in found.items()}
