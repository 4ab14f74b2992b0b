"""The contract of a head strategy."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from oaplug.core.batch import Batch
from oaplug.core.target import MISSING
from oaplug.model.build import build_head
from oaplug.testing.checks import check_import, check_options, one_line, require
from oaplug.testing.modules import (
    are_close,
    build_seeded,
    check_gradients,
    check_state_dict,
    check_weights_follow_seed,
    under_autocast,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.core.target import Target
    from oaplug.plug.protocols import HeadStrategy
    from oaplug.plug.specs import HeadSpec, Spec


def check_head(
    spec: HeadSpec,
    targets: Mapping[str, Target],
    options: Mapping[str, Any] | None = None,
    *,
    num_features: int = 7,
) -> None:
    """Check everything the engine relies on in a head.

    Args:
        spec: the head.
        targets: targets it accepts, parents first; HIERARCHY and BINARY of oaplug.testing.toy, for instance.
        options: its options (default: the head's own).
        num_features: F.

    Raises:
        AssertionError: saying what to change.
    """
    check_import(spec)
    check_options(spec, options)
    refusal = spec.accepts(targets)
    require(refusal is None, spec, f"it does not accept {list(targets)}: {refusal}; check it with others")
    truth = _every_grade_twice(targets)
    rows = len(next(iter(truth.targets.values())))
    features = torch.randn(rows, num_features, generator=torch.Generator().manual_seed(3))

    counts = {name: torch.bincount(grades).tolist() for name, grades in truth.targets.items()}
    build = partial(build_head, spec, options or {}, num_features=num_features, targets=targets)
    module = check_weights_follow_seed(partial(build, grade_counts=counts), spec)
    head = cast("HeadStrategy", module)
    _check_loss(head, features, truth, spec)
    check_gradients(module, lambda: head.loss(head(features), truth)["total"], spec)
    module.eval()
    _check_missing_labels(head, features, truth, spec)
    _check_missing_target(head, features, truth, spec)
    _check_case_weights(head, features, truth, spec)
    _check_large_logits(head, features, truth, spec)
    _check_probabilities(head, features, targets, spec)
    _check_scores(head, features, targets, spec)
    _check_rare_grades(build, features, truth, spec)
    with torch.no_grad():
        other = build_seeded(partial(build, grade_counts=counts), spec, seed=2)
        check_state_dict(module, other, features, spec)


def _every_grade_twice(targets: Mapping[str, Target]) -> Batch:
    """Truths in which every grade occurs at least twice; derived targets follow their parents."""
    rows = 2 * max(len(target.grades) for target in targets.values())
    grades: dict[str, Tensor] = {}
    for name, target in targets.items():
        parent = targets.get(target.derived_from or "")
        if parent is None:
            grades[name] = torch.arange(rows) % len(target.grades)
        else:
            grades[name] = (grades[parent.name] >= target.threshold_in(parent)).long()
    return Batch(targets=grades)


def _check_loss(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    logits = head(features)
    require(
        isinstance(logits, dict) and all(len(value) == len(features) for value in logits.values()),
        spec,
        "forward must give a dict of logits by name, each with one row per case",
    )
    losses = head.loss(logits, truth)
    require("total" in losses, spec, f"loss gave {list(losses)}; 'total', which is minimised, is missing")
    for name, value in losses.items():
        require(value.dim() == 0, spec, f"the loss {name!r} has shape {tuple(value.shape)}; give a scalar")
        require(bool(value.isfinite()), spec, f"the loss {name!r} is {value.item()}; it must be finite")
    under_autocast(lambda: head.loss(head(features), truth)["total"], spec, what="the loss")


def _check_missing_labels(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    unknown = {name: torch.full_like(grades, MISSING) for name, grades in truth.targets.items()}
    total, gradient = _total_and_gradient(head, features, Batch(targets=unknown), spec)
    require(
        total == 0 and bool((gradient == 0).all()),
        spec,
        f"with every label missing (-1) the loss is {total} and its gradient has norm "
        f"{gradient.norm().item()}; both must be 0: divide by the number of known labels, but at least by 1",
    )
    hidden = torch.arange(len(features)) % 3 == 1
    partly = {name: grades.masked_fill(hidden, MISSING) for name, grades in truth.targets.items()}
    known = {name: grades[~hidden] for name, grades in truth.targets.items()}
    total, gradient = _total_and_gradient(head, features, Batch(targets=partly), spec)
    subset, _ = _total_and_gradient(head, features[~hidden], Batch(targets=known), spec)
    require(
        abs(total - subset) <= 1e-5 * max(1.0, abs(subset)) and bool((gradient[hidden] == 0).all()),
        spec,
        f"the loss of a batch with missing labels (-1) is {total}, of its labelled cases alone {subset}; "
        "mask missing labels and take the mean over the known ones",
    )


def _check_missing_target(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    """A batch may know no label of one target, and those of the others."""
    for name, grades in truth.targets.items():
        without = Batch(targets={**truth.targets, name: torch.full_like(grades, MISSING)})
        total, gradient = _total_and_gradient(head, features, without, spec)
        require(
            math.isfinite(total) and bool(gradient.isfinite().all()),
            spec,
            f"where no label of {name!r} is known, and those of other targets are, the loss is {total}; "
            "mask each target by itself",
        )


def _check_case_weights(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    weights = torch.ones(len(features))
    plain, _ = _total_and_gradient(head, features, truth, spec)
    equal, _ = _total_and_gradient(head, features, Batch(targets=truth.targets, case_weights=weights), spec)
    require(
        abs(plain - equal) <= 1e-5 * max(1.0, abs(plain)),
        spec,
        f"the loss is {plain} without case_weights and {equal} where all are 1; both must be the same",
    )
    weights[0] = 0
    weighted = Batch(targets=truth.targets, case_weights=weights)
    _, gradient = _total_and_gradient(head, features, weighted, spec)
    require(
        bool((gradient[0] == 0).all()),
        spec,
        "a case of weight 0 gets a gradient; scale each case's loss by truth.case_weights",
    )
    weights = torch.linspace(0.5, 2, len(features))
    weighted = Batch(targets=truth.targets, case_weights=weights)
    _, unscaled = _total_and_gradient(head, features, truth, spec)
    _, scaled = _total_and_gradient(head, features, weighted, spec)
    factors = scaled.norm(dim=1) / unscaled.norm(dim=1).clamp(min=1e-12) / weights
    require(
        bool((factors / factors.mean() - 1).abs().max() < 1e-2),
        spec,
        "the gradients of cases are not in proportion to their case_weights; multiply each case's loss by "
        "its weight",
    )


def _check_large_logits(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    total, gradient = _total_and_gradient(head, 1e3 * features, truth, spec)
    require(
        math.isfinite(total) and bool(gradient.isfinite().all()),
        spec,
        f"with large logits the loss is {total}, or its gradient not finite; take logarithms of softmax or "
        "sigmoid in one step (torch.nn.functional.log_softmax, logsigmoid)",
    )


def _check_rare_grades(build: Callable[..., object], features: Tensor, truth: Batch, spec: Spec) -> None:
    """Grades that never occur in training, and counts that are not known (create_network gives none)."""
    some = {name: [0, *torch.bincount(grades)[1:].tolist()] for name, grades in truth.targets.items()}
    for counts, what in ((some, "a grade that never occurs in training"), ({}, "grade_counts={}")):
        try:
            head = cast("HeadStrategy", build_seeded(partial(build, grade_counts=counts), spec, seed=0))
            total, _ = _total_and_gradient(head, features, truth, spec)
        except (KeyError, ZeroDivisionError, ValueError, IndexError) as failure:
            raise AssertionError(
                f"head {spec.name}: it cannot be built with {what} ({one_line(failure)}); "
                "counts may be 0 or unknown"
            ) from failure
        require(
            math.isfinite(total), spec, f"built with {what}, its loss is {total}; counts may be 0 or unknown"
        )


def _total_and_gradient(
    head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec
) -> tuple[float, Tensor]:
    """The total loss, and its gradient for the features (B,F)."""
    leaf = features.clone().requires_grad_()
    total = head.loss(head(leaf), truth)["total"]
    require(total.requires_grad, spec, "the loss 'total' has no gradient; compute it from the logits, always")
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.item(), gradient


def _check_probabilities(
    head: HeadStrategy, features: Tensor, targets: Mapping[str, Target], spec: Spec
) -> None:
    logits = head(features)
    tables = head.probabilities(logits)
    require(
        set(tables) == set(targets),
        spec,
        f"probabilities gave {sorted(tables)}, expected every target it was built with: {sorted(targets)}",
    )
    half = head.probabilities({name: value.to(torch.bfloat16) for name, value in logits.items()})
    for name, target in targets.items():
        shape = (len(features), len(target.grades))
        _check_rows(tables[name], shape, spec, what=f"of {name!r}")
        _check_rows(half[name], shape, spec, what=f"of {name!r} from bfloat16 logits (call .float() first)")
        parent = targets.get(target.derived_from or "")
        if parent is not None and name not in logits:
            positive = tables[parent.name][:, target.threshold_in(parent) :].sum(dim=1)
            require(
                are_close(tables[name][:, 1], positive),
                spec,
                f"{name!r} has no logits of its own, so its second column must be the sum of the "
                f"probabilities of {parent.name!r} from {target.at_least!r} up",
            )


def _check_rows(table: Tensor, shape: tuple[int, int], spec: Spec, *, what: str) -> None:
    require(
        tuple(table.shape) == shape,
        spec,
        f"probabilities {what} have shape {tuple(table.shape)}, expected (B,K) = {shape}",
    )
    sums = table.double().sum(dim=1)
    require(
        bool((table >= -1e-6).all()) and bool(((sums - 1).abs() < 1e-4).all()),
        spec,
        f"probabilities {what} must not be negative and must sum to 1 in every row; got sums from "
        f"{sums.min().item():.5f} to {sums.max().item():.5f} and the minimum {table.min().item():.5f}",
    )


def _check_scores(head: HeadStrategy, features: Tensor, targets: Mapping[str, Target], spec: Spec) -> None:
    tables = head.probabilities(head(features))
    for name, target in targets.items():
        count = len(target.grades)
        scores = [_check_score(head, features, name, grade, spec) for grade in range(count)]
        chosen = _check_score(head, features, name, None, spec)
        positive = torch.ones(len(features), dtype=torch.int64)
        grades = positive if count == 2 else tables[name].argmax(dim=1)
        expected = torch.stack(scores, dim=1).gather(1, grades[:, None])[:, 0]
        meant = "the positive class's (grade=1)" if count == 2 else "the predicted grade's"
        require(are_close(chosen, expected), spec, f"score({name!r}, grade=None) must be {meant}")


def _check_score(head: HeadStrategy, features: Tensor, name: str, grade: int | None, spec: Spec) -> Tensor:
    """The score (B,) of one target and grade, once it has the shape, and a gradient for every case."""
    leaf = features.clone().requires_grad_()
    score = head.score(head(leaf), name, grade=grade)
    what = f"score({name!r}, grade={grade})"
    require(
        tuple(score.shape) == (len(features),),
        spec,
        f"{what} has shape {tuple(score.shape)}, expected one scalar per case, (B,)",
    )
    require(
        score.requires_grad and bool(score.isfinite().all()),
        spec,
        f"{what} must be finite and differentiable: no argmax as the result, no detach",
    )
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    require(
        bool(gradient.isfinite().all()) and bool((gradient != 0).any(dim=1).all()),
        spec,
        f"{what} has a gradient that is not finite, or zero for a case; saliency needs one",
    )
    return score.detach()
