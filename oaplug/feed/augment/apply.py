"""Applying drawn augmentation to a batch, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from oaplug.feed.augment.intensity import change_intensity
from oaplug.feed.augment.spatial import move

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from oaplug.feed.augment.draw import Draw


def apply_draws(volumes: Tensor, draws: Sequence[Draw], *, in_place: bool = False) -> Tensor:
    """Augment volumes (B,C,D,H,W), one draw for each: what moves in one sampling, then intensities.

    Computed in float32, given in the volumes' own type. What a case becomes does not depend on the others.
    `in_place` may write into `volumes` (float32), which saves a copy.
    """
    if all(draw.is_neutral for draw in draws):
        return volumes
    result = volumes
    if not in_place or volumes.dtype != torch.float32 or not volumes.is_contiguous():
        result = torch.empty(volumes.shape, dtype=torch.float32, device=volumes.device)
    for changed, volume, draw in zip(result, volumes, draws, strict=True):
        moved = move(volume.float(), draw)
        if moved.data_ptr() != changed.data_ptr():
            changed.copy_(moved)
        change_intensity(changed, draw)
    return result.to(volumes.dtype)
