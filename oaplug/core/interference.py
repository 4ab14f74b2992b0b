"""Whether the losses of a head pull the shared encoder the same way: cosines between their gradients.

Du et al. 2018 (arXiv 1812.02224) and Yu et al. 2020 (NeurIPS, PCGrad) take a negative cosine as the sign
of tasks that interfere. Measuring changes neither weights, running statistics nor random numbers.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from oaplug.core.batch import Batch

COSINE, NORM = "gradient_cosine", "gradient_norm"


def loss_gradients(
    network: Any,
    volume: Tensor,
    truth: Batch,
    *,
    autocast: AbstractContextManager[object],
    seed: int,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """By part of the head's loss its gradient (P,) float32 with respect to the encoder's parameters.

    `network` (oaplug.model.network.Network) computes volumes (B,C,D,H,W) as in training, with the batch's
    own statistics and dropout drawn from `seed`, and is left as it was. `scale` multiplies losses, against
    underflow in float16. Empty where the encoder is frozen or the loss has one part.
    """
    import torch

    parameters = [p for p in network.encoder.parameters() if p.requires_grad]
    with torch.enable_grad(), _as_in_training(network), _own_randomness(volume.device, seed):
        buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
        with autocast:
            logits = torch.func.functional_call(network, buffers, (volume,))
            losses = network.loss(logits, truth)
        parts = {name: loss for name, loss in losses.items() if name != "total" and loss.requires_grad}
        if not parameters or len(parts) < 2:
            return {}
        return {name: _gradient(loss * scale, parameters) / scale for name, loss in parts.items()}


def _gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    import torch

    from oaplug.core.convolution_gradients import ExactConvolutionGradients

    with ExactConvolutionGradients():  # type: ignore[no-untyped-call]
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    return torch.cat([gradient.detach().float().flatten() for gradient in found])


@contextmanager
def _as_in_training(network: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _own_randomness(device: Any, seed: int) -> Iterator[None]:
    """Within, torch draws from `seed`; after, it goes on as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def compare_gradients(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """`gradient_cosine.A.B` of each pair of parts and `gradient_norm.A` of each; a cosine with 0 is NaN."""
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    found = {f"{NORM}.{name}": norm for name, norm in norms.items()}
    for first, second in combinations(gradients, 2):
        product = norms[first] * norms[second]
        dot = float(gradients[first] @ gradients[second])
        found[f"{COSINE}.{first}.{second}"] = dot / product if product > 0 else float("nan")
    return found
