"""Gaussian noise from a counter-based hash: the same numbers on every device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from oaplug.core.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**18
"""Numbers made at a time on a CPU: they stay in its cache. Which number is which depends on it."""
_HALF = BLOCK // 2


def add_noise(volume: Tensor, *, std: float, seed: int) -> None:
    """Add Gaussian noise to volume (C,D,H,W) float32, contiguous, in place."""
    flat = volume.view(-1)
    blocks = math.ceil(len(flat) / BLOCK)
    step = 1 if volume.device.type == "cpu" else blocks
    for first in range(0, blocks, step):
        part = flat[first * BLOCK : (first + step) * BLOCK]
        noise = normal_numbers(seed, first_block=first, blocks=step, device=volume.device)
        part.add_(noise[: len(part)], alpha=std)


def normal_numbers(seed: int, *, first_block: int, blocks: int, device: torch.device) -> Tensor:
    """Standard normal numbers (blocks * BLOCK,): number i of a seed is the same wherever it is made.

    Counters are hashed with a key of 63 bits, and the Box-Muller transform makes two numbers of two hashes.
    """
    key = derive_seed(seed, "normal_numbers")
    counters = torch.arange(blocks * BLOCK, dtype=torch.int32, device=device)
    counters += _signed(first_block * BLOCK + key)
    uniform = _hash(counters, _signed(key >> 32)).to(torch.float32).view(blocks, 2, _HALF)
    radius = uniform[:, 0].mul_(2.0**-32).add_(0.5).clamp_(min=2.0**-33).log_().mul_(-2).sqrt_()
    angle = uniform[:, 1].mul_(math.pi * 2.0**-31)
    result = torch.empty_like(uniform)
    torch.mul(angle.cos(), radius, out=result[:, 0])
    torch.mul(angle.sin_(), radius, out=result[:, 1])
    return result.view(-1)


def _hash(words: Tensor, key: int) -> Tensor:
    """Hash words (N,) int32 in place, as if unsigned: C. Wellons' "triple32", keyed in every round."""
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        _fold(words, shift).mul_(_signed(factor)).bitwise_xor_(key)
    return _fold(words, 14)


def _fold(words: Tensor, shift: int) -> Tensor:
    return words.bitwise_xor_(words.bitwise_right_shift(shift).bitwise_and_(0xFFFFFFFF >> shift))


def _signed(word: int) -> int:
    """The lowest 32 bits of a number, as int32 has them."""
    return (word + 2**31) % 2**32 - 2**31
