"""One target: the study's single_oa (one logit) and single_kl (five)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oaplug_heads.losses import (
    at_least,
    binary_cross_entropy,
    check_soft_labels,
    cross_entropy,
    log_odds_at_least,
    logit_of,
    soft_grades,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.batch import Batch
    from oaplug.core.target import Target
    from oaplug_heads import SingleOptions


class SingleHead(nn.Module):
    """A linear layer for the first target; targets derived from it follow from its probabilities.

    Logits: {target: (B,1)} for a binary target, else {target: (B,K)}.
    """

    def __init__(self, options: SingleOptions, *, num_features: int, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.target = next(iter(targets.values()))
        self.thresholds = {
            t.name: t.threshold_in(self.target)
            for t in targets.values()
            if t.derived_from == self.target.name
        }
        self.soft_label_width = check_soft_labels(options.soft_label_width, self.target)
        self.is_binary = len(self.target.grades) == 2
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(num_features, 1 if self.is_binary else len(self.target.grades))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of features (B,F)."""
        return {self.target.name: self.linear(self.dropout(features))}

    def loss(self, logits: Mapping[str, Tensor], truth: Batch) -> dict[str, Tensor]:
        """Cross-entropy (binary with one logit; of soft labels where set) over the known labels."""
        name = self.target.name
        if self.is_binary:
            total = binary_cross_entropy(
                logits[name][:, 0], truth.targets[name], case_weights=truth.case_weights
            )
        else:
            width, grades = self.soft_label_width, len(self.target.grades)
            soft = soft_grades(truth.targets[name], num_grades=grades, width=width) if width else None
            total = cross_entropy(
                logits[name], truth.targets[name], case_weights=truth.case_weights, soft=soft
            )
        return {"total": total, name: total}

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per target (B,K); a derived target sums the grades from its threshold up."""
        scores = logits[self.target.name].float()
        if self.is_binary:
            positive = torch.sigmoid(scores[:, 0])
            return {self.target.name: torch.stack([1 - positive, positive], dim=1)}
        table = torch.softmax(scores, dim=1)
        derived = {name: at_least(table, threshold) for name, threshold in self.thresholds.items()}
        return {self.target.name: table, **derived}

    def score(self, logits: Mapping[str, Tensor], target: str, *, grade: int | None = None) -> Tensor:
        """The scalar (B,) saliency differentiates: a logit, or the log-odds of a derived target."""
        scores = logits[self.target.name]
        if target in self.thresholds:
            odds = log_odds_at_least(torch.log_softmax(scores, dim=1), self.thresholds[target])
            return -odds if grade == 0 else odds
        if self.is_binary:
            return -scores[:, 0] if grade == 0 else scores[:, 0]
        return logit_of(scores, grade)
