"""The selective scan of Mamba (Gu and Dao 2023, arXiv:2312.00752) in plain PyTorch, with bounded memory.

Forward and backward are one operator each: torch.compile and fake tensors see no step inside. Forward keeps
the inputs and the states before chunks of positions; backward computes the other states again.
selective_scan_chunks.py has the algorithm.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from oaplug_backbones.selective_scan_chunks import Given, backward, empty_gradients, empty_outputs, forward


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Give y (B,D,L): y[l] = C[l] h[l] + D u[l], where h[l] = exp(dt[l] A) h[l-1] + dt[l] B[l] u[l].

    The state starts at zero. Arguments mean what they mean in mamba-ssm's selective_scan_fn, and gradients
    reach every tensor (there is no double backward). All arithmetic is float32, or float64 where u is, also
    for half-precision inputs and under autocast; y has the precision of u.

    Args:
        u: input (B,D,L).
        delta: step sizes dt, before bias and softplus (B,D,L).
        A: real rates (D,N), negative for states that fade.
        B: how the input enters the states (B,N,L).
        C: how the states are read (B,N,L).
        D: weight of the direct path (D,).
        z: gate (B,D,L): y is multiplied by silu(z).
        delta_bias: added to delta (D,).
        delta_softplus: dt is softplus(delta + delta_bias), not delta + delta_bias.

    Raises:
        ValueError: A shape does not fit the others, or a tensor is not real floating point.
    """
    _check(u, A, delta=delta, z=z, B=B, C=C, D=D, delta_bias=delta_bias)
    y: Tensor = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[0]
    return y


def _check(u: Tensor, A: Tensor, **others: Tensor | None) -> None:
    """Refuse shapes that do not fit u (B,D,L) and A (D,N), and tensors that are not real floating point."""
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be (B,D,L) and A (D,N), got {tuple(u.shape)} and {tuple(A.shape)}")
    (batch, channels, length), states = u.shape, A.shape[1]
    expected: dict[str, tuple[int, ...]] = {
        "A": (channels, states),
        "D": (channels,),
        "delta_bias": (channels,),
    }
    expected |= {name: (batch, states, length) for name in ("B", "C")}
    for name, tensor in {"u": u, "A": A, **others}.items():
        if tensor is None:
            continue
        shape = expected.get(name, (batch, channels, length))
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} where u is {tuple(u.shape)}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a real floating-point type, got {tensor.dtype}")


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus"
)


@torch.library.custom_op(
    "oaplug::selective_scan", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Give y (B,D,L) and the state before each chunk."""
    given = Given(*arguments)
    with torch.autocast(given.u.device.type, enabled=False):
        return forward(given)


@torch.library.custom_op(
    "oaplug::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor y_gradient, Tensor first_states, {_ARGUMENTS}) -> Tensor[]",
)
def _scan_backward(y_gradient: Tensor, first_states: Tensor, *arguments: Any) -> list[Tensor]:
    """Give the gradient by each tensor, in the arguments' order; an absent tensor's is empty."""
    given = Given(*arguments)
    with torch.autocast(given.u.device.type, enabled=False):
        return backward(given, first_states, y_gradient)


@_scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    return empty_outputs(Given(*arguments))


@_scan_backward.register_fake
def _(y_gradient: Tensor, first_states: Tensor, *arguments: Any) -> list[Tensor]:
    return empty_gradients(Given(*arguments))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what backward needs: the inputs and the states before chunks."""
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(output[1], *tensors)


def _differentiate(ctx: Any, y_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by all arguments of the scan."""
    first_states, *tensors = ctx.saved_tensors
    gradients = _scan_backward(y_gradient, first_states, *tensors, ctx.delta_softplus)
    given = [
        None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True)
    ]
    return (*given, None)


def _refuse(_ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError("selective_scan has no double backward: call it without create_graph=True")


_scan.register_autograd(_differentiate, setup_context=_keep)
_scan_backward.register_autograd(_refuse)
