"""Learning rates as a pure function of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oaplug.core.plan import TrainSettings


def learning_rate(settings: TrainSettings, *, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then cosine, poly or constant."""
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return settings.learning_rate
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if settings.schedule == "poly":
        return settings.learning_rate * math.pow(1 - done, 0.9)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
