"""Applying drawn augmentation to a batch on any device: one sampling grid, one intensity pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oaplug.feed.augment.draw import Draw


def apply_draws(volumes: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Augment volumes (B,C,D,H,W) float32, one draw for each."""
    return change_intensity(move(volumes, draws), draws)


def move(volumes: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Rotate, scale, shift and mirror volumes (B,C,D,H,W) in one trilinear sampling; the edge goes on."""
    moved = [index for index, draw in enumerate(draws) if draw.is_spatial]
    if not moved:
        return volumes
    size = tuple(volumes.shape[2:])
    matrices = torch.stack([sampling_matrix(draws[index], size=size) for index in moved]).to(volumes.device)
    grid = functional.affine_grid(matrices, [len(moved), volumes.shape[1], *size], align_corners=False)
    result = volumes.clone()
    result[moved] = functional.grid_sample(
        volumes[moved], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return result


def sampling_matrix(draw: Draw, *, size: Sequence[int]) -> Tensor:
    """The (3,4) matrix, in affine_grid's x,y,z = W,H,D order and unit cube, that maps output to input places.

    Rotation happens in voxel proportions (the cube's sides are scaled by `size`), so that shapes are kept.
    """
    mirror = torch.diag(torch.tensor([-1.0 if flip else 1.0 for flip in draw.mirrored]))
    linear = _rotation(draw.rotation_degrees) @ mirror / draw.scale
    half = torch.tensor([float(length) for length in size])
    unit = torch.diag(1 / half) @ linear @ torch.diag(half)
    shift = 2 * torch.tensor(draw.shift_fraction)
    matrix = torch.cat([unit, shift[:, None]], dim=1)  # rows and columns in D,H,W order
    order = [2, 1, 0]
    return matrix[order][:, [*order, 3]]


def _rotation(degrees: Sequence[float]) -> Tensor:
    """Rotation (3,3) about the D, H and W axes in turn, acting on (d,h,w) vectors."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(degrees):
        first, second = [i for i in range(3) if i != axis]
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        matrix = matrix @ turn
    return matrix


def change_intensity(volumes: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Contrast (about each volume's mean), brightness, gamma (keeping the range) and Gaussian noise."""
    result = volumes
    factors = [
        _column(volumes, [getattr(draw, name) for draw in draws]) for name in ("contrast", "brightness")
    ]
    if any(draw.contrast != 1 or draw.brightness != 1 for draw in draws):
        mean = result.mean(dim=(2, 3, 4), keepdim=True)
        result = ((result - mean) * factors[0] + mean) * factors[1]
    if any(draw.gamma != 1 for draw in draws):
        result = _apply_gamma(result, _column(volumes, [draw.gamma for draw in draws]))
    for index, draw in enumerate(draws):
        if draw.noise_std > 0:
            generator = torch.Generator(device=volumes.device).manual_seed(draw.noise_seed)
            noise = torch.randn(
                volumes.shape[1:], generator=generator, device=volumes.device, dtype=volumes.dtype
            )
            result = result.clone() if result is volumes else result
            result[index] += draw.noise_std * noise
    return result


def _apply_gamma(volumes: Tensor, gamma: Tensor) -> Tensor:
    low, high = volumes.amin(dim=(2, 3, 4), keepdim=True), volumes.amax(dim=(2, 3, 4), keepdim=True)
    extent = (high - low).clamp(min=1e-6)
    return ((volumes - low) / extent).clamp(0, 1) ** gamma * extent + low


def _column(volumes: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=volumes.dtype, device=volumes.device).view(-1, 1, 1, 1, 1)
