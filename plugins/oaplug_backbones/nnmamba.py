"""nnMamba's classifier as an encoder: convolutions, one Mamba block on the stem's voxels, residual stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaplug_backbones.mamba import Mamba
from oaplug_backbones.residual import BASIC, residual_stage

if TYPE_CHECKING:
    from oaplug_backbones.options import NnMambaOptions

_FLIPS = ((2,), (1,), (1, 2))
"""Axes of tokens (B,C,L) that css4 turns round for its three further scans."""


class NnMamba(nn.Module):
    """Volumes (B,C,D,H,W) to features (B,F), F = width: the classifier's hidden layer after its ReLU.

    State-dict names are the authors': in_conv, mamba_layer_stem, layer1..3, mlp.0. Their dropout and
    mlp.3 belong to the head.
    """

    def __init__(self, options: NnMambaOptions, *, in_channels: int) -> None:
        super().__init__()
        widths = [options.channels * factor for factor in (1, 2, 4, 8)]
        self.in_conv = DoubleConvolution(in_channels, widths[0])
        self.mamba_layer_stem = MambaLayer(options)
        blocks = {"blocks": options.blocks, "stride": 2, "dimensions": 3}
        self.layer1 = residual_stage(BASIC, widths[0], width=widths[1], **blocks)
        self.layer2 = residual_stage(BASIC, widths[1], width=widths[2], **blocks)
        self.layer3 = residual_stage(BASIC, widths[2], width=widths[3], **blocks)
        self.mlp = nn.Sequential(nn.Linear(sum(widths[1:]), options.width), nn.ReLU())
        self.num_features = options.width

    @property
    def cam_layer(self) -> nn.Module:
        """The last stage, whose activations CAM methods use."""
        return self.layer3

    def forward(self, volume: Tensor) -> Tensor:
        """Features (B,F) of volumes (B,C,D,H,W)."""
        maps = self.in_conv(volume)
        maps = self.mamba_layer_stem(maps) + maps
        pooled = []
        for stage in (self.layer1, self.layer2, self.layer3):
            maps = stage(maps)
            pooled.append(maps.mean(dim=(2, 3, 4)))
        return self.mlp(torch.cat(pooled, dim=1))  # type: ignore[no-any-return]


class DoubleConvolution(nn.Module):
    """Two 3x3x3 convolutions with batch normalisation and ReLU; the first halves the size."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv3d(in_channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, volume: Tensor) -> Tensor:
        """Maps (B,K,d,h,w) of volumes (B,C,D,H,W)."""
        return self.conv(volume)  # type: ignore[no-any-return]


class MambaLayer(nn.Module):
    """A Mamba block over all voxels of maps (B,C,D,H,W) in row-major order, between two 1x1x1 convolutions.

    `scan="css4"` is the scan of the authors' segmentation network (nnMamba.py of their repository): one
    block reads the tokens as they are, in reversed order, with reversed channels, and with both reversed;
    each output is turned back and the four are averaged. It takes four times the work and memory.
    """

    def __init__(self, options: NnMambaOptions) -> None:
        super().__init__()
        channels = options.channels
        self.flips = _FLIPS if options.scan == "css4" else ()
        self.nin = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm3d(channels)
        self.mamba = Mamba(
            channels,
            state_width=options.state_width,
            convolution_width=options.convolution_width,
            expansion=options.expansion,
        )
        self.nin2 = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape (B,C,D,H,W)."""
        active = functional.relu(self.norm(self.nin(maps)), inplace=True)
        mixed = self._scan(active.flatten(2)).view(active.shape) + active
        return functional.relu(self.norm2(self.nin2(mixed)), inplace=True)

    def _scan(self, tokens: Tensor) -> Tensor:
        """Tokens (B,C,L) of tokens (B,C,L), scanned in one direction or in four."""
        total = self.mamba(tokens)
        for axes in self.flips:
            total = total + self.mamba(tokens.flip(axes)).flip(axes)
        return total / (1 + len(self.flips)) if self.flips else total  # type: ignore[no-any-return]
