"""Checks that backbones and heads share. A failed one is an AssertionError that says what to change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from oaplug.core.errors import OaplugError
from oaplug.core.settings import to_mapping
from oaplug.plug.registry import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.plug.specs import Spec

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""How close two ways to the same float32 numbers must come."""


def require(condition: bool, spec: Spec, message: str) -> None:
    """Raise an AssertionError that names the part where `condition` does not hold."""
    if not condition:
        raise AssertionError(f"{spec.kind} {spec.name}: {message}")


def are_close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers up to rounding."""
    return torch.allclose(first, second, rtol=RELATIVE, atol=ABSOLUTE)


def check_options(spec: Spec, options: Mapping[str, Any] | None) -> Any:
    """Options, parsed: all have defaults, and come back from JSON as they went in (plans keep them so)."""
    try:
        parse_options(spec, None)
        parsed = parse_options(spec, options)
        written = json.loads(json.dumps(to_mapping(parsed)))
        again = parse_options(spec, written)
    except (OaplugError, TypeError) as failure:
        raise AssertionError(
            f"{spec.kind} {spec.name}: options cannot be read from JSON ({failure}); give every field a "
            "default, and use numbers, strings, bools, None, and tuples, lists or dicts of them"
        ) from failure
    require(
        again == parsed, spec, f"options do not survive JSON: {parsed} became {again}; compare them by value"
    )
    return parsed


def as_module(part: object, spec: Spec) -> nn.Module:
    """What build gave, as the module it must be."""
    require(isinstance(part, nn.Module), spec, f"build gave {type(part).__name__}; give a torch.nn.Module")
    return cast("nn.Module", part)


def check_gradients(module: nn.Module, run: Callable[[], Tensor], spec: Spec) -> None:
    """Every parameter must take part in what `run` gives in training mode, and get a finite gradient."""
    module.train()
    module.zero_grad()
    output = run()
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (output * weights).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    unused = [name for name, gradient in gradients.items() if gradient is None]
    require(
        not unused,
        spec,
        f"no gradient reaches {', '.join(unused[:5])}; use these parameters in forward or remove them "
        "(distributed training waits for all of them)",
    )
    broken = [name for name, g in gradients.items() if g is not None and not bool(g.isfinite().all())]
    require(not broken, spec, f"the gradient of {', '.join(broken[:5])} is not finite")


def check_state_dict(module: nn.Module, other: nn.Module, inputs: Tensor, spec: Spec) -> None:
    """Weights saved as safetensors and loaded into a module built anew must give the same outputs."""
    from safetensors.torch import load, save

    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    try:
        other.load_state_dict(load(save(state)), strict=True)
    except RuntimeError as failure:
        message = f"its weights cannot be saved and loaded: {' '.join(str(failure).split())}"
        raise AssertionError(
            f"{spec.kind} {spec.name}: {message}; register every tensor once, in the constructor"
        ) from failure
    module.eval()
    other.eval()
    for name, (first, second) in _outputs(module(inputs), other(inputs)).items():
        require(
            are_close(first, second),
            spec,
            f"{name} differs once its weights were saved and loaded; keep state in parameters and buffers",
        )


def _outputs(first: Any, second: Any) -> dict[str, tuple[Tensor, Tensor]]:
    if isinstance(first, Tensor):
        return {"its output": (first, second)}
    return {f"its output {name!r}": (first[name], second[name]) for name in first}


def check_same_seed(first: nn.Module, second: nn.Module, spec: Spec) -> None:
    """Two modules built after the same torch.manual_seed must have the same weights."""
    weights, others = first.state_dict(), second.state_dict()
    require(
        list(weights) == list(others) and all(torch.equal(weights[name], others[name]) for name in weights),
        spec,
        "torch.manual_seed does not settle its initial weights; draw them from torch's global generator only",
    )
