"""Residual blocks of ResNets, for images and for volumes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BASIC, BOTTLENECK = (3, 3), (1, 3, 1)
"""Sizes of a block's convolutions."""

_CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ResidualBlock(nn.Module):
    """Convolutions of the given sizes around which the input is added; maps (B,C,...) to (B,C',...).

    C' is `width`, four times that in a bottleneck, which strides in its convolution of size 3. State-dict
    names are those of torchvision, MedicalNet and MONAI: conv{1,2,3}, bn{1,2,3}, downsample.{0,1}. He et al.
    2016, CVPR.

    Args:
        kernels: BASIC or BOTTLENECK.
        in_channels: C.
        width: channels between the convolutions.
        dimensions: 2 for maps (B,C,H,W), 3 for (B,C,D,H,W).
        stride: by what the size shrinks.
        dilation: of the convolutions of size 3.
        shortcut: how the input takes on another shape: "B" by a strided convolution of size 1 with
            normalisation, "A" by leaving out voxels and adding channels of zeros, without weights.
    """

    def __init__(
        self,
        kernels: tuple[int, ...],
        in_channels: int,
        *,
        width: int,
        dimensions: int,
        stride: int = 1,
        dilation: int = 1,
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        self.out_channels = width * expansion(kernels)
        self.stride = stride
        self._depth = len(kernels)
        changes = stride != 1 or in_channels != self.out_channels
        # made before the convolutions, as MONAI does: the same seed gives the same weights
        projection = (
            _projection(in_channels, self.out_channels, stride=stride, dimensions=dimensions)
            if changes and shortcut == "B"
            else None
        )
        channels = [in_channels, *[width] * (self._depth - 1), self.out_channels]
        for index, kernel in enumerate(kernels):
            convolution = _CONVOLUTIONS[dimensions](
                channels[index], channels[index + 1], kernel, bias=False,
                stride=stride if index == kernels.index(3) else 1,
                dilation=dilation if kernel == 3 else 1,
                padding=dilation if kernel == 3 else 0,
            )  # fmt: skip
            self.add_module(f"conv{index + 1}", convolution)
            self.add_module(f"bn{index + 1}", _NORMS[dimensions](channels[index + 1]))
        self.downsample = projection

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,C',...) of maps (B,C,...)."""
        x = maps
        for index in range(1, self._depth + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x))
            x = torch.relu_(x) if index < self._depth else x
        return torch.relu_(x + self._shortcut(maps))

    def _shortcut(self, maps: Tensor) -> Tensor:
        if self.downsample is not None:
            projected: Tensor = self.downsample(maps)
            return projected
        if self.stride > 1:
            pooled = functional.avg_pool3d if maps.ndim == 5 else functional.avg_pool2d
            maps = pooled(maps, kernel_size=1, stride=self.stride)
        added = self.out_channels - maps.shape[1]
        return functional.pad(maps, (0, 0) * (maps.ndim - 2) + (0, added)) if added else maps


def residual_stage(kernels: tuple[int, ...], in_channels: int, *, blocks: int, **block: Any) -> nn.Sequential:
    """Blocks of one width, the first of which may stride; `block` has the arguments of ResidualBlock."""
    first = ResidualBlock(kernels, in_channels, **block)
    later = {**block, "stride": 1}
    rest = [ResidualBlock(kernels, first.out_channels, **later) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def expansion(kernels: tuple[int, ...]) -> int:
    """Channels that a block gives, over its width."""
    return 4 if kernels == BOTTLENECK else 1


def start_convolutions(module: nn.Module) -> None:
    """Kaiming's fan-out spread for a convolution, as ResNets are started; for `Module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _projection(in_channels: int, out_channels: int, *, stride: int, dimensions: int) -> nn.Sequential:
    convolution = _CONVOLUTIONS[dimensions](in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, _NORMS[dimensions](out_channels))
