"""Ordinal regression by conditional probabilities (CORN): consistent ranks without shared weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaplug.core.target import MISSING
from oaplug_heads.losses import at_least, masked_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.batch import Batch
    from oaplug.core.target import Target
    from oaplug_heads import OrdinalOptions


class OrdinalHead(nn.Module):
    """K-1 logits (B,K-1); logit k is P(grade > k | grade >= k); their product cannot rise with k."""

    def __init__(self, options: OrdinalOptions, *, num_features: int, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.target = next(iter(targets.values()))
        self.thresholds = {
            t.name: t.threshold_in(self.target)
            for t in targets.values()
            if t.derived_from == self.target.name
        }
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(num_features, len(self.target.grades) - 1)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of features (B,F)."""
        return {self.target.name: self.linear(self.dropout(features))}

    def loss(self, logits: Mapping[str, Tensor], truth: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy of every step k over the cases with grade >= k (those a step concerns)."""
        scores, grades = logits[self.target.name].float(), truth.targets[self.target.name][:, None]
        steps = torch.arange(scores.shape[1], device=scores.device)[None, :]
        losses = functional.binary_cross_entropy_with_logits(
            scores, (grades > steps).float(), reduction="none"
        )
        concerned = (grades >= steps) & (grades != MISSING)
        weights = None if truth.case_weights is None else truth.case_weights[:, None].expand_as(losses)
        total = masked_mean(losses, concerned, case_weights=weights)
        return {"total": total, self.target.name: total}

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grade probabilities (B,K) as differences of P(grade > k), and derived targets from them."""
        above = torch.sigmoid(logits[self.target.name].float()).cumprod(dim=1)
        edge = above.new_ones(len(above), 1)
        table = torch.cat([edge, above], dim=1) - torch.cat([above, 0 * edge], dim=1)
        derived = {name: at_least(table, threshold) for name, threshold in self.thresholds.items()}
        return {self.target.name: table, **derived}

    def score(self, logits: Mapping[str, Tensor], target: str, *, grade: int | None = None) -> Tensor:
        """The scalar (B,) of saliency: log-odds of a derived target, or a grade's log-probability."""
        table = self.probabilities(logits)[target].clamp(min=1e-12)
        if target in self.thresholds:
            odds = torch.log(table[:, 1]) - torch.log(table[:, 0])
            return -odds if grade == 0 else odds
        chosen = table.max(dim=1).values if grade is None else table[:, grade]
        return torch.log(chosen)
