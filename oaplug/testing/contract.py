"""Contract checks for plugin authors: what the engine relies on in a backbone and in a head.

A failed check is an AssertionError that says what to change. Call them in your own tests:
`check_backbone(spec)`, `check_head(spec, HIERARCHY)`.
"""

from __future__ import annotations

import json
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from oaplug.core.batch import Batch
from oaplug.core.settings import to_mapping
from oaplug.core.target import MISSING
from oaplug.model.build import build_encoder, build_head
from oaplug.plug.registry import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.core.target import Target
    from oaplug.plug.protocols import Encoder, HeadStrategy
    from oaplug.plug.specs import BackboneSpec, HeadSpec, Spec

Size = tuple[int, int, int]
Targets = "Mapping[str, Target]"
SMALLEST_SIZES: tuple[Size, Size] = ((16, 20, 24), (17, 25, 21))
"""Sizes (D,H,W) that backbones are built for, rounded up to multiples they ask for; all sides differ."""
BATCH = 3
_CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def check_backbone(
    spec: BackboneSpec, options: Mapping[str, Any] | None = None, *, sizes: tuple[Size, ...] = SMALLEST_SIZES
) -> None:
    """Check everything the engine relies on in a backbone.

    Args:
        spec: the backbone.
        options: its options; small ones make a quick check (default: the backbone's defaults).
        sizes: input sizes (D,H,W), rounded up to what `size_multiple` asks for.

    Raises:
        AssertionError: saying what to change.
    """
    _check_options(spec, options)
    multiple = spec.size_multiple(parse_options(spec, options))
    _require(
        len(multiple) == 3 and all(isinstance(step, int) and step > 0 for step in multiple),
        spec,
        f"size_multiple gave {multiple!r}; give three positive integers for D, H and W",
    )
    for size, in_channels in zip(sizes, (1, 2), strict=False):
        rounded = cast("Size", tuple(-(-n // step) * step for n, step in zip(size, multiple, strict=True)))
        _check_encoder(spec, options or {}, in_channels=in_channels, size=rounded)


def _check_encoder(spec: BackboneSpec, options: Mapping[str, Any], *, in_channels: int, size: Size) -> None:
    def build(seed: int = 0) -> Encoder:
        torch.manual_seed(seed)
        return build_encoder(spec, options, in_channels=in_channels, input_size=size)

    volume = torch.randn(BATCH, in_channels, *size, generator=torch.Generator().manual_seed(1))
    encoder = build()
    module = _as_module(encoder, spec)
    _check_features(encoder, volume, spec)
    _check_gradients(module, lambda: encoder(volume), spec)
    module.eval()
    with torch.no_grad():
        _check_batch_independence(encoder, volume, spec)
        _check_state_dict(module, _as_module(build(seed=2), spec), volume, spec)
        _check_same_seed(module, lambda: _as_module(build(), spec), spec)
        _check_cam_layer(encoder, volume, spec)


def _check_features(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    count = getattr(encoder, "num_features", None)
    _require(isinstance(count, int) and count > 0, spec, f"num_features is {count!r}; set it to F, an int")
    features = encoder(volume)
    where = f"for volumes of shape {tuple(volume.shape)}"
    _require(isinstance(features, Tensor), spec, f"forward gave {type(features).__name__}; give a tensor (B,F)")
    expected = (len(volume), count)
    _require(
        tuple(features.shape) == expected,
        spec,
        f"features have shape {tuple(features.shape)} {where}, expected (B, num_features) = {expected}; "
        "pool and flatten, or correct num_features",
    )
    _require(bool(features.isfinite().all()), spec, f"features are not finite {where}")


def _check_batch_independence(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    together = encoder(volume)
    _require(
        torch.allclose(together, encoder(volume), **_CLOSE),
        spec,
        "in eval mode the same volumes gave other features; nothing may be drawn in forward (use nn.Dropout)",
    )
    alone = torch.cat([encoder(volume[index : index + 1]) for index in range(len(volume))])
    _require(
        torch.allclose(together, alone, **_CLOSE),
        spec,
        "in eval mode the features of a volume depend on the others in its batch; normalise with running "
        "statistics (nn.BatchNorm3d) or within each volume",
    )


def _check_cam_layer(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    _require(
        isinstance(getattr_static(type(encoder), "cam_layer", None), property),
        spec,
        "cam_layer must be a property of the encoder's class: an attribute would hold its parameters twice",
    )
    layer = encoder.cam_layer
    if layer is None:
        return
    modules = list(cast("nn.Module", encoder).modules())
    _require(
        any(layer is module for module in modules),
        spec,
        "cam_layer gives something that is no submodule of the encoder; give a submodule or None",
    )
    shapes: list[tuple[int, ...]] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    encoder(volume)
    hook.remove()
    _require(
        bool(shapes) and all(len(shape) == 5 and shape[0] == len(volume) for shape in shapes),
        spec,
        f"cam_layer gives activations of shape {shapes}, expected (B,K,d,h,w); choose another layer, or None",
    )


def check_head(
    spec: HeadSpec,
    targets: Mapping[str, Target],
    options: Mapping[str, Any] | None = None,
    *,
    num_features: int = 7,
) -> None:
    """Check everything the engine relies on in a head, for targets it accepts (parents first).

    Raises AssertionError saying what to change.
    """
    _check_options(spec, options)
    refusal = spec.accepts(targets)
    _require(refusal is None, spec, f"it does not accept {list(targets)}: {refusal}; check it with others")

    def build(seed: int = 0) -> HeadStrategy:
        torch.manual_seed(seed)
        counts = {name: [2] * len(target.grades) for name, target in targets.items()}
        return build_head(
            spec, options or {}, num_features=num_features, targets=targets, grade_counts=counts
        )

    head = build()
    module = _as_module(head, spec)
    features = _features(targets, num_features=num_features)
    truth = _truth(targets)
    _check_loss(head, features, truth, spec)
    _check_gradients(module, lambda: head.loss(head(features), truth)["total"], spec)
    module.eval()
    _check_missing_labels(head, features, truth, spec)
    _check_case_weights(head, features, truth, spec)
    _check_probabilities(head, features, targets, spec)
    _check_scores(head, features, targets, spec)
    with torch.no_grad():
        _check_state_dict(module, _as_module(build(seed=2), spec), features, spec)
        _check_same_seed(module, lambda: _as_module(build(), spec), spec)


def _features(targets: Mapping[str, Target], *, num_features: int) -> Tensor:
    """Features (B,F), one row for every grade of the finest target, twice."""
    rows = 2 * max(len(target.grades) for target in targets.values())
    return torch.randn(rows, num_features, generator=torch.Generator().manual_seed(3))


def _truth(targets: Mapping[str, Target]) -> Batch:
    """Every grade of every target twice, derived targets following their parents."""
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
    _require(
        isinstance(logits, dict) and all(len(value) == len(features) for value in logits.values()),
        spec,
        "forward must give a dict of logits by name, each with one row per case",
    )
    losses = head.loss(logits, truth)
    _require("total" in losses, spec, f"loss gave {list(losses)}; 'total', which is minimised, is missing")
    for name, value in losses.items():
        _require(value.dim() == 0, spec, f"the loss {name!r} has shape {tuple(value.shape)}; give a scalar")
        _require(bool(value.isfinite()), spec, f"the loss {name!r} is {float(value)} though labels are known")
    _require(losses["total"].requires_grad, spec, "loss 'total' has no gradient; do not detach the logits")


def _check_missing_labels(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    nothing = Batch(targets={name: torch.full_like(t, MISSING) for name, t in truth.targets.items()})
    total, gradient = _total_and_gradient(head, features, nothing)
    _require(
        total == 0 and bool((gradient == 0).all()),
        spec,
        f"with every label missing (-1) the loss is {total} and its gradient has norm "
        f"{float(gradient.norm())}; both must be 0, and differentiable: divide by at least 1",
    )
    hidden = torch.arange(len(features)) % 3 == 1
    partly = Batch(targets={name: t.masked_fill(hidden, MISSING) for name, t in truth.targets.items()})
    known = Batch(targets={name: t[~hidden] for name, t in truth.targets.items()})
    total, gradient = _total_and_gradient(head, features, partly)
    subset, _ = _total_and_gradient(head, features[~hidden], known)
    _require(
        abs(total - subset) <= 1e-5 * max(1.0, abs(subset)),
        spec,
        f"the loss of a batch with missing labels (-1) is {total}, that of its labelled cases alone {subset}; "
        "mask missing labels and take the mean over the known ones",
    )
    _require(
        bool((gradient[hidden] == 0).all()),
        spec,
        "a case whose labels are all missing (-1) gets a gradient; mask it",
    )


def _check_case_weights(head: HeadStrategy, features: Tensor, truth: Batch, spec: Spec) -> None:
    weights = torch.ones(len(features))
    plain, _ = _total_and_gradient(head, features, truth)
    equal, _ = _total_and_gradient(head, features, Batch(targets=truth.targets, case_weights=weights))
    _require(
        abs(plain - equal) <= 1e-5 * max(1.0, abs(plain)),
        spec,
        f"the loss is {plain} without case_weights and {equal} where all are 1; both must be the same",
    )
    weights[0] = 0
    _, gradient = _total_and_gradient(head, features, Batch(targets=truth.targets, case_weights=weights))
    _require(
        bool((gradient[0] == 0).all()),
        spec,
        "a case of weight 0 gets a gradient; scale each case's loss by truth.case_weights",
    )


def _total_and_gradient(head: HeadStrategy, features: Tensor, truth: Batch) -> tuple[float, Tensor]:
    """The total loss, and its gradient for the features (B,F)."""
    leaf = features.clone().requires_grad_()
    total = head.loss(head(leaf), truth)["total"]
    (gradient,) = torch.autograd.grad(total, leaf)
    return float(total), gradient


def _check_probabilities(
    head: HeadStrategy, features: Tensor, targets: Mapping[str, Target], spec: Spec
) -> None:
    logits = head(features)
    tables = head.probabilities(logits)
    _require(
        set(tables) == set(targets),
        spec,
        f"probabilities gave {sorted(tables)}, expected every target it was built with: {sorted(targets)}",
    )
    for name, table in tables.items():
        _check_rows(table, (len(features), len(targets[name].grades)), spec, what=f"of {name!r}")
    for name, target in targets.items():
        if target.derived_from in targets and name not in logits:
            parent = targets[str(target.derived_from)]
            positive = tables[parent.name][:, target.threshold_in(parent) :].sum(dim=1)
            _require(
                torch.allclose(tables[name][:, 1], positive, **_CLOSE),
                spec,
                f"{name!r} has no logits of its own, so its positive class must be the sum of the "
                f"probabilities of {parent.name!r} from {target.at_least!r} up",
            )
    half = head.probabilities({name: value.to(torch.bfloat16) for name, value in logits.items()})
    for name, table in half.items():
        shape = (len(features), len(targets[name].grades))
        _check_rows(table.float(), shape, spec, what=f"of {name!r} from bfloat16 logits (call .float() first)")


def _check_rows(table: Tensor, shape: tuple[int, int], spec: Spec, *, what: str) -> None:
    """Probabilities (B,K) must be that, from 0 to 1, with rows that sum to 1."""
    _require(
        tuple(table.shape) == shape,
        spec,
        f"probabilities {what} have shape {tuple(table.shape)}, expected (B,K) = {shape}",
    )
    sums = table.sum(dim=1)
    _require(
        bool((table >= -1e-6).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4),
        spec,
        f"probabilities {what} must not be negative and must sum to 1 in every row, got sums from "
        f"{float(sums.min()):.5f} to {float(sums.max()):.5f} and a minimum of {float(table.min()):.5f}",
    )


def _check_scores(
    head: HeadStrategy, features: Tensor, targets: Mapping[str, Target], spec: Spec
) -> None:
    tables = head.probabilities(head(features))
    for name, target in targets.items():
        count = len(target.grades)
        scores = {grade: _check_score(head, features, name, grade, spec) for grade in range(count)}
        chosen = _check_score(head, features, name, None, spec)
        grades = torch.ones(len(features)) if count == 2 else tables[name].argmax(dim=1)
        expected = torch.stack([scores[int(grade)][row] for row, grade in enumerate(grades)])
        _require(
            torch.allclose(chosen, expected, **_CLOSE),
            spec,
            f"score({name!r}, grade=None) must be that of "
            + ("the positive class (grade=1)" if count == 2 else "the predicted grade"),
        )


def _check_score(head: HeadStrategy, features: Tensor, name: str, grade: int | None, spec: Spec) -> Tensor:
    """The score (B,) of one target and grade, once it has the shape and a gradient for every case."""
    leaf = features.clone().requires_grad_()
    score = head.score(head(leaf), name, grade=grade)
    what = f"score({name!r}, grade={grade})"
    _require(
        tuple(score.shape) == (len(features),),
        spec,
        f"{what} has shape {tuple(score.shape)}, expected one scalar per case, (B,)",
    )
    _require(
        score.requires_grad and bool(score.isfinite().all()),
        spec,
        f"{what} must be finite and differentiable: no argmax, no detach",
    )
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    _require(
        bool(gradient.isfinite().all()) and bool((gradient != 0).any(dim=1).all()),
        spec,
        f"{what} has a gradient that is not finite, or zero for a case; saliency differentiates it",
    )
    return score.detach()


def _check_options(spec: Spec, options: Mapping[str, Any] | None) -> None:
    """Options must come back from JSON as they went in: that is how plans and checkpoints keep them."""
    parsed = parse_options(spec, options)
    written = json.loads(json.dumps(to_mapping(parsed)))
    _require(
        parse_options(spec, written) == parsed,
        spec,
        f"options do not survive JSON: {parsed} became {written}; use numbers, strings, bools, tuples and None",
    )


def _check_gradients(module: nn.Module, run: Callable[[], Tensor], spec: Spec) -> None:
    """Every parameter must take part in what `run` gives in training mode, and get a finite gradient."""
    module.train()
    module.zero_grad()
    output = run()
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (output * weights).sum().backward()  # type: ignore[no-untyped-call]
    trained = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    unused = [name for name, gradient in trained.items() if gradient is None]
    _require(
        not unused,
        spec,
        f"no gradient reaches {', '.join(unused[:5])}; use these parameters in forward or remove them "
        "(distributed training waits for all of them)",
    )
    broken = [name for name, g in trained.items() if g is not None and not bool(g.isfinite().all())]
    _require(not broken, spec, f"the gradient of {', '.join(broken[:5])} is not finite")


def _check_state_dict(module: nn.Module, other: nn.Module, inputs: Tensor, spec: Spec) -> None:
    """Weights saved as safetensors and loaded into a module built anew must give the same outputs."""
    from safetensors.torch import load, save

    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    try:
        loaded = load(save(state))
        other.load_state_dict(loaded, strict=True)
    except RuntimeError as failure:
        message = f"its weights cannot be saved and loaded: {' '.join(str(failure).split())}"
        raise AssertionError(f"{_name(spec)}: {message}; let no two names share a tensor") from failure
    other.eval()
    for name, (first, second) in _outputs(module(inputs), other(inputs)).items():
        _require(
            torch.allclose(first, second, **_CLOSE),
            spec,
            f"{name} differs once its weights were saved and loaded; keep all state in parameters and buffers",
        )


def _outputs(first: Any, second: Any) -> dict[str, tuple[Tensor, Tensor]]:
    if isinstance(first, Tensor):
        return {"the output": (first, second)}
    return {f"the output {name!r}": (first[name], second[name]) for name in first}


def _check_same_seed(module: nn.Module, build: Callable[[], nn.Module], spec: Spec) -> None:
    """The same seed of torch's generator must give the same weights."""
    fresh, again = build().state_dict(), build().state_dict()
    _require(
        list(fresh) == list(module.state_dict()) and all(torch.equal(fresh[n], again[n]) for n in fresh),
        spec,
        "torch.manual_seed does not settle its initial weights; draw them from torch's global generator only",
    )


def _as_module(part: object, spec: Spec) -> nn.Module:
    _require(
        isinstance(part, nn.Module), spec, f"build gave {type(part).__name__}; give a torch.nn.Module"
    )
    return cast("nn.Module", part)


def _require(condition: bool, spec: Spec, message: str) -> None:
    if not condition:
        raise AssertionError(f"{_name(spec)}: {message}")


def _name(spec: Spec) -> str:
    return f"{spec.kind} {spec.name}"
