"""The Mamba block on tokens (B,C,L), with mamba-ssm's kernel on GPUs where it imports, else our scan."""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaplug_backbones.selective_scan import selective_scan

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

TIME_STEP_RANGE = (1e-3, 1e-1)
"""Between these the time steps of new blocks lie, evenly on a logarithmic scale."""


class Mamba(nn.Module):
    """Tokens (B,C,L) to tokens (B,C,L), each seeing those before it (Gu and Dao 2023, arXiv 2312.00752).

    Parameters are named and shaped as in mamba-ssm's `Mamba`, so weights interchange. Tokens lie along the
    last axis throughout, as the scan wants them: nothing is transposed.

    Args:
        width: C.
        state_width: numbers a channel remembers (d_state).
        convolution_width: tokens the causal convolution sees, its own and those before (d_conv).
        expansion: inner channels per channel (expand).
    """

    def __init__(self, width: int, *, state_width: int, convolution_width: int, expansion: int) -> None:
        super().__init__()
        inner, rank = expansion * width, math.ceil(width / 16)
        self.split = [rank, state_width, state_width]
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, convolution_width, groups=inner, padding=convolution_width - 1)
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_width + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        _init_time_steps(self.dt_proj)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B,C,L) of tokens (B,C,L)."""
        values, gate = (_project(half, tokens) for half in self.in_proj.weight.chunk(2))
        values = functional.silu(self.conv1d(values)[..., : tokens.shape[-1]])
        steps, inputs, outputs = torch.split(_project(self.x_proj.weight, values), self.split, dim=1)
        scan = scan_for(tokens.device)
        scanned = scan(
            values,
            _project(self.dt_proj.weight, steps),
            -self.A_log.float().exp(),
            inputs,
            outputs,
            D=self.D.float(),
            z=gate,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
        )
        return _project(self.out_proj.weight, scanned)


def _project(weight: Tensor, tokens: Tensor) -> Tensor:
    """Tokens (B,O,L), contiguous, of tokens (B,C,L) and a weight (O,C); `weight @ tokens` would copy both."""
    return torch.bmm(weight.expand(len(tokens), -1, -1), tokens)


@torch.no_grad()
def _init_time_steps(projection: nn.Linear) -> None:
    """Let softplus(bias) be evenly spread in log(TIME_STEP_RANGE), and keep the input's variance."""
    nn.init.uniform_(projection.weight, -(projection.in_features**-0.5), projection.in_features**-0.5)
    low, high = (math.log(step) for step in TIME_STEP_RANGE)
    steps = torch.empty_like(projection.bias).uniform_(low, high).exp()
    projection.bias.copy_(steps + torch.log(-torch.expm1(-steps)))


def scan_for(device: torch.device) -> Callable[..., Tensor]:
    """The selective scan for tensors on a device: mamba-ssm's where it can be used, else ours."""
    return (fused_scan() if device.type == "cuda" else None) or selective_scan


@cache
def fused_scan() -> Callable[..., Tensor] | None:
    """mamba-ssm's scan, or None where it does not import; imported by the first tensor on a GPU."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found,unused-ignore]
    except Exception as failure:  # of many kinds where it was built for another torch or without CUDA
        is_missing = isinstance(failure, ModuleNotFoundError) and failure.name == "mamba_ssm"
        level = logging.INFO if is_missing else logging.WARNING
        log.log(level, "oaplug's own selective scan is used: mamba-ssm does not import (%s)", failure)
        log.debug("mamba-ssm", exc_info=failure)
        return None
    return selective_scan_fn  # type: ignore[no-any-return]
