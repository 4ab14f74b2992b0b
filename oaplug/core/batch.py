"""What a head's loss is given besides logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Truths of one batch: per target grade indices (B,) int64 with -1 for a missing label,
    `case_weights` (B,) that scale each case's loss (None: all equal), and the epoch from 0."""

    targets: Mapping[str, Tensor]
    case_weights: Tensor | None = None
    epoch: int = 0
