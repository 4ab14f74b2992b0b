"""Devices, number formats and memory layout, chosen once per run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from oaplug.core.convolution_gradients import ExactConvolutionGradients
from oaplug.core.errors import PlanError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn


def choose_device(name: str | None) -> torch.device:
    """The device called `name` ("cuda", "cuda:1", "cpu", "mps"); None: a GPU where there is one.

    Raises PlanError where the device is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PlanError(f"-device {name}: use cuda, cuda:N, cpu or mps") from None
    there = {
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not there.get(device.type, False):
        raise PlanError(f"-device {name}: torch sees no such device here; try -device cpu")
    return device


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a network computes: autocast type (None: float32 throughout) and memory layout."""

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which networks and losses are computed."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def gradients(self) -> AbstractContextManager[object]:
        """The context in which gradients are computed, outside that of `autocast`."""
        is_delicate = self.device.type == "cpu" and self.dtype == torch.bfloat16
        return ExactConvolutionGradients() if is_delicate else nullcontext()  # type: ignore[no-untyped-call]

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device and layout."""
        return self.lay_out(network.to(self.device))

    def lay_out(self, network: nn.Module) -> nn.Module:
        """Bring the weights of 3D convolutions into the layout; those of 2D ones have no such layout."""
        if self.channels_last:
            for weight in (w for w in network.parameters() if w.ndim == 5):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        return network

    def arrange(self, volume: Tensor) -> Tensor:
        """Move volumes (B,C,D,H,W) to the device and layout."""
        volume = volume.to(self.device)
        return volume.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else volume

    @property
    def needs_scaling(self) -> bool:
        """Whether gradients need scaling (float16 only)."""
        return self.dtype == torch.float16


def choose_precision(name: str, *, device: torch.device, channels_last: bool | Literal["auto"]) -> Precision:
    """The precision of a plan: "auto" is bfloat16 or float16 and channels-last on GPUs.

    On a CPU it is plain float32: what wins there is found by `oaplug.train.probe` and recorded in the plan.
    """
    if name == "auto":
        name = "float32"
        if device.type == "cuda":
            name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if channels_last == "auto":
        channels_last = device.type != "cpu"
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return Precision(device=device, dtype=dtypes[name], channels_last=channels_last)
