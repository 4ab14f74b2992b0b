"""Checks that backbones and heads share: both are torch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from oaplug.testing.checks import one_line, require
from oaplug.testing.surroundings import left_alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from oaplug.plug.specs import Spec

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""How close two ways to the same float32 numbers must come."""


def are_close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers up to rounding."""
    return torch.allclose(first, second, rtol=RELATIVE, atol=ABSOLUTE)


def as_module(part: object, spec: Spec) -> nn.Module:
    """What build gave, as the module it must be."""
    require(isinstance(part, nn.Module), spec, f"build gave {type(part).__name__}; give a torch.nn.Module")
    return cast("nn.Module", part)


def build_seeded(build: Callable[[], object], spec: Spec, *, seed: int) -> nn.Module:
    """The module that `build` gives after torch.manual_seed(seed), changing nothing else of the process."""
    torch.manual_seed(seed)
    with left_alone(spec, "build", draws=True):
        return as_module(build(), spec)


def check_weights_follow_seed(build: Callable[[], object], spec: Spec) -> nn.Module:
    """The module of seed 0, once the seed of torch's global generator alone settles its weights."""
    first, second = build_seeded(build, spec, seed=0), build_seeded(build, spec, seed=0)
    weights, others = first.state_dict(), second.state_dict()
    require(
        list(weights) == list(others) and all(torch.equal(weights[name], others[name]) for name in weights),
        spec,
        "torch.manual_seed does not settle its initial weights; draw them from torch's global generator only",
    )
    state = torch.get_rng_state()
    build_seeded(build, spec, seed=1)
    require(
        not torch.equal(state, torch.get_rng_state()),
        spec,
        "build seeds torch's global generator, so every seed and fold would begin with the same weights; "
        "leave seeding to the engine",
    )
    return first


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


def under_autocast(run: Callable[[], Tensor], spec: Spec, *, what: str) -> None:
    """What `run` gives must be finite in bfloat16, in which networks are trained on GPUs."""
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = run()
    except RuntimeError as failure:
        raise AssertionError(
            f"{spec.kind} {spec.name}: {what} failed under bfloat16 autocast ({one_line(failure)}); where "
            "float32 is needed, compute with tensors of one type: .float(), or weight.to(x.dtype)"
        ) from failure
    require(
        bool(output.isfinite().all()),
        spec,
        f"{what} is not finite under bfloat16 autocast; compute what is delicate in float32 (.float())",
    )


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
