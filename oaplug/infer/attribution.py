"""Which voxels a network's scores depend on: gradients, and what is made of them.

`scores` takes volumes (B,C,D,H,W) to one tensor (B,) per question. All questions share one forward pass.
Maps are signed, one per question; `to_map` makes of each what is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    Scores = Callable[[Tensor], Sequence[Tensor]]


def gradient(scores: Scores, volumes: Tensor) -> list[Tensor]:
    """Derivatives (B,C,D,H,W) of each question's score with respect to `volumes` (B,C,D,H,W).

    Simonyan et al., "Deep inside convolutional networks", ICLR workshop 2014.
    """
    volumes = volumes.detach().requires_grad_()
    return derivatives(scores(volumes), volumes)


def derivatives(found: Sequence[Tensor], of: Tensor) -> list[Tensor]:
    """Derivatives of scores (B,), each summed over the batch, with respect to one tensor."""
    last = len(found) - 1
    return [
        torch.autograd.grad(score.sum(), of, retain_graph=index < last)[0]
        for index, score in enumerate(found)
    ]


def input_x_gradient(scores: Scores, volume: Tensor) -> list[Tensor]:
    """Input times gradient (1,C,D,H,W) of a volume (1,C,D,H,W) (Shrikumar et al., 2016)."""
    return [volume * one for one in gradient(scores, volume)]


def smoothgrad_x_input(scores: Scores, volume: Tensor, noises: Iterable[Tensor]) -> list[Tensor]:
    """Means (1,C,D,H,W) over noisy copies of each copy times its gradient, signed.

    Smilkov et al., "SmoothGrad", 2017, with input times gradient as the map that is smoothed.

    Args:
        scores: of the network.
        volume: (1,C,D,H,W).
        noises: batches (b,C,D,H,W) of noise to be added, one row a copy.
    """
    sums: list[Tensor] = []
    copies = 0
    for noise in noises:
        noisy = volume + noise
        products = [(noisy * one).sum(dim=0, keepdim=True) for one in gradient(scores, noisy)]
        sums = [total + one for total, one in zip(sums, products, strict=True)] if sums else products
        copies += len(noisy)
    return [total / copies for total in sums]


def integrated_gradients(scores: Scores, volume: Tensor, *, steps: int, per_batch: int) -> list[Tensor]:
    """Gradients (1,C,D,H,W) integrated on the straight path from zero to `volume`, times the volume.

    Sundararajan et al., ICML 2017, by Gauss-Legendre quadrature with `steps` points. Zero is the mean
    intensity of a volume that is z-scored.
    """
    nodes, weights = (torch.as_tensor(values) for values in np.polynomial.legendre.leggauss(steps))
    sums: list[Tensor] = []
    for start in range(0, steps, per_batch):
        place = (slice(start, start + per_batch), *(None,) * (volume.ndim - 1))
        alphas, shares = ((part[place]).to(volume) for part in ((nodes + 1) / 2, weights / 2))
        weighed = [(shares * one).sum(dim=0, keepdim=True) for one in gradient(scores, alphas * volume)]
        sums = [total + one for total, one in zip(sums, weighed, strict=True)] if sums else weighed
    return [volume * total for total in sums]


def grad_cam(scores: Scores, volume: Tensor, *, layer: nn.Module) -> list[Tensor]:
    """Grad-CAM (1,1,D,H,W) of a volume (1,C,D,H,W), from a layer that gives (1,K,d,h,w).

    Selvaraju et al., ICCV 2017; brought to the size of the volume by trilinear interpolation.
    """
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        found = scores(volume.detach().requires_grad_())
    finally:
        hook.remove()
    activations = kept[-1]
    maps = []
    for one in derivatives(found, activations):
        weights = one.mean(dim=(2, 3, 4), keepdim=True)
        cam = functional.relu((weights * activations.detach()).sum(dim=1, keepdim=True))
        maps.append(functional.interpolate(cam, volume.shape[2:], mode="trilinear", align_corners=False))
    return maps


def to_map(attribution: Tensor) -> Tensor:
    """Absolute values of (1,C,D,H,W), added over the channels: (D,H,W) from 0 to 1, all 0 if constant."""
    return stretch(attribution.detach()[0].abs().sum(dim=0))


def stretch(values: Tensor) -> Tensor:
    """Values brought to the range from 0 to 1; all 0 where they are all the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
