"""Losses over batches in which some labels are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from oaplug.core.errors import PlanError
from oaplug.core.target import MISSING

if TYPE_CHECKING:
    from oaplug.core.target import Target


def cross_entropy(
    logits: Tensor, truth: Tensor, *, case_weights: Tensor | None, soft: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of logits (B,K) over the cases whose truth (B,) is known; 0 where none is.

    `soft` are probabilities (B,K) to be met instead of the truth itself.
    """
    if soft is None:
        losses = functional.cross_entropy(logits.float(), truth, reduction="none", ignore_index=MISSING)
    else:
        losses = functional.cross_entropy(logits.float(), soft, reduction="none")
    return masked_mean(losses, truth != MISSING, case_weights=case_weights)


def soft_grades(truth: Tensor, *, num_grades: int, width: float) -> Tensor:
    """Probabilities (B,K) that fall with the distance from truth (B,) as exp(-distance / width), in grades.

    Soft ordinal labels of Diaz and Marathe, CVPR 2019, "Soft labels for ordinal regression", with the
    absolute distance.
    """
    grades = torch.arange(num_grades, device=truth.device)
    return torch.softmax(-(grades[None, :] - truth[:, None]).abs().float() / width, dim=1)


def check_soft_labels(width: float, target: Target) -> float:
    """The width as it is; raises PlanError where it is negative, or the target has no order."""
    if width < 0:
        raise PlanError(f"head.soft_label_width must not be negative, got {width:g}")
    if width > 0 and (target.kind != "ordinal" or len(target.grades) < 3):
        raise PlanError(
            "head.soft_label_width spreads an ordinal target of more than two grades, and "
            f"{target.name!r} is {target.kind}; set it to 0"
        )
    return width


def binary_cross_entropy(logits: Tensor, truth: Tensor, *, case_weights: Tensor | None) -> Tensor:
    """Mean binary cross-entropy of logits (B,) over the cases whose truth (B,) is known; 0 where none is."""
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), truth.clamp(min=0).float(), reduction="none"
    )
    return masked_mean(losses, truth != MISSING, case_weights=case_weights)


def masked_mean(losses: Tensor, known: Tensor, *, case_weights: Tensor | None) -> Tensor:
    """Weighted mean of losses (B,) over `known` (B,); 0, still differentiable, where nothing is known."""
    weights = known.to(losses.dtype)
    if case_weights is not None:
        weights = weights * case_weights.to(losses.dtype)
    total = weights.sum()
    return (weights * losses).sum() / torch.where(total > 0, total, torch.ones_like(total))


def at_least(probabilities: Tensor, threshold: int) -> Tensor:
    """Probabilities (B,2) of "grade index >= threshold" from those (B,K) of an ordinal target."""
    positive = probabilities[:, threshold:].sum(dim=1)
    return torch.stack([1 - positive, positive], dim=1)


def log_odds_at_least(log_probabilities: Tensor, threshold: int) -> Tensor:
    """Log-odds (B,) of "grade index >= threshold" from log-probabilities (B,K), up to nothing: exact."""
    above = torch.logsumexp(log_probabilities[:, threshold:], dim=1)
    return above - torch.logsumexp(log_probabilities[:, :threshold], dim=1)


def logit_of(logits: Tensor, grade: int | None) -> Tensor:
    """The logit (B,) of one grade of logits (B,K); None: the predicted grade's."""
    if grade is None:
        return logits.max(dim=1).values
    return logits[:, grade]
