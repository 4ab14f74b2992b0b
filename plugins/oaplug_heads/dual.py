"""Two levels of the hierarchy at once: the study's dual head, as its text and as its code have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaplug.core.target import MISSING
from oaplug_heads.losses import at_least, check_soft_labels, cross_entropy, logit_of, soft_grades

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.core.batch import Batch
    from oaplug.core.target import Target
    from oaplug_heads import DualOptions


class DualHead(nn.Module):
    """Linear layers for the finest target and for each target derived from it, all on the same features.

    Logits: {target: (B,K)}, two for each derived target. Loss: CE(fine) + coarse_weight * sum CE(derived).
    """

    def __init__(self, options: DualOptions, *, num_features: int, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.fine = next(t for t in targets.values() if not t.is_derived)
        self.thresholds = {
            t.name: t.threshold_in(self.fine) for t in targets.values() if t.derived_from == self.fine.name
        }
        self.coarse = tuple(self.thresholds)
        self.soft_label_width = check_soft_labels(options.soft_label_width, self.fine)
        self.coarse_weight = options.coarse_weight
        self.dropout = nn.Dropout(options.dropout)
        self.fine_linear = nn.Linear(num_features, len(self.fine.grades))
        width = self._coarse_width(num_features)
        self.coarse_linear = nn.ModuleDict({name: nn.Linear(width, 2) for name in self.coarse})

    def _coarse_width(self, num_features: int) -> int:
        return num_features

    def _coarse_input(self, features: Tensor, fine_logits: Tensor) -> Tensor:
        return features

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of features (B,F)."""
        dropped = self.dropout(features)
        fine = self.fine_linear(dropped)
        shared = self._coarse_input(dropped, fine)
        return {self.fine.name: fine, **{name: layer(shared) for name, layer in self.coarse_linear.items()}}

    def loss(self, logits: Mapping[str, Tensor], truth: Batch) -> dict[str, Tensor]:
        """Cross-entropies over the known labels of each target (soft where set), and their weighted sum."""
        soft = self._soft_labels(truth)
        parts = {
            name: cross_entropy(
                logits[name], truth.targets[name], case_weights=truth.case_weights, soft=soft.get(name)
            )
            for name in (self.fine.name, *self.coarse)
        }
        total = parts[self.fine.name] + self.coarse_weight * sum(
            (parts[name] for name in self.coarse), start=torch.zeros_like(parts[self.fine.name])
        )
        return {"total": total, **parts}

    def _soft_labels(self, truth: Batch) -> dict[str, Tensor]:
        """Per target probabilities (B,K); a derived one has those of the grades, or its label without one."""
        if not self.soft_label_width:
            return {}
        fine = truth.targets[self.fine.name]
        table = soft_grades(fine, num_grades=len(self.fine.grades), width=self.soft_label_width)
        found = {self.fine.name: table}
        for name, threshold in self.thresholds.items():
            label = functional.one_hot(truth.targets[name].clamp(min=0), 2).to(table.dtype)
            found[name] = torch.where((fine != MISSING)[:, None], at_least(table, threshold), label)
        return found

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Softmax of each target's logits, (B,K)."""
        return {name: torch.softmax(logits[name].float(), dim=1) for name in (self.fine.name, *self.coarse)}

    def score(self, logits: Mapping[str, Tensor], target: str, *, grade: int | None = None) -> Tensor:
        """A logit (B,): that of `grade`; None: the predicted grade's, or logit 1 of a derived target."""
        if target in self.coarse:
            return logits[target][:, 1 if grade is None else grade]
        return logit_of(logits[target], grade)


class DualCascadeHead(DualHead):
    """The derived targets from the logits of the finest one (Linear(K,2) on K logits): the study's code."""

    def _coarse_width(self, num_features: int) -> int:
        return len(self.fine.grades)

    def _coarse_input(self, features: Tensor, fine_logits: Tensor) -> Tensor:
        return fine_logits
