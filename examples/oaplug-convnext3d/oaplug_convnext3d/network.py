"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) with three axes instead of two, written from the article."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from oaplug_convnext3d import ConvNeXt3dOptions

EXPANSION = 4
"""How much wider a block is within than without (section 2.4, inverted bottleneck)."""
INITIAL_STD = 0.02
"""Standard deviation, of a truncated normal, of the first weights (appendix A.1)."""


class ConvNeXt3d(nn.Module):
    """Volumes (B,C,D,H,W) to features (B,F), F = width * 2 ** (stages - 1).

    A stem of patches, stages of residual blocks with a halving of the volume before each but the first,
    the mean over the volume, a last normalisation.
    """

    def __init__(self, options: ConvNeXt3dOptions, *, in_channels: int) -> None:
        super().__init__()
        rates = torch.linspace(0, options.drop_path, sum(options.depths)).tolist()
        stages: list[nn.Module] = []
        channels = options.width
        for stage, depth in enumerate(options.depths):
            if stage == 0:
                stages.append(_patchify(in_channels, channels, patch_voxels=options.patch_voxels))
            else:
                stages.append(_halve(channels))
                channels *= 2
            taken = sum(options.depths[:stage])
            blocks = [Block(options, channels, drop_path=rate) for rate in rates[taken : taken + depth]]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.num_features = channels
        self.apply(_initialise)

    @property
    def cam_layer(self) -> nn.Module:
        """The last stage, whose activations (B,K,d,h,w) class activation maps look at."""
        return self.stages[-1]

    def forward(self, volume: Tensor) -> Tensor:
        """Features (B,F) of volumes (B,C,D,H,W)."""
        features: Tensor = self.norm(self.stages(volume).mean(dim=(2, 3, 4)))
        return features


class Block(nn.Module):
    """A depthwise convolution, then, at every position, a wider layer and back; added to what came in."""

    def __init__(self, options: ConvNeXt3dOptions, channels: int, *, drop_path: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(
            channels, channels, options.kernel, padding=options.kernel // 2, groups=channels
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, EXPANSION * channels)
        self.narrow = nn.Linear(EXPANSION * channels, channels)
        first_scale = torch.full((channels,), options.layer_scale)
        self.scale = nn.Parameter(first_scale) if options.layer_scale > 0 else None
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (B,C,D,H,W) of the same shape."""
        inner = self.depthwise(x).movedim(1, -1)  # channels last, for layers that work on channels
        inner = self.narrow(functional.gelu(self.widen(self.norm(inner))))
        if self.scale is not None:
            inner = inner * self.scale
        return x + self._drop(inner.movedim(-1, 1))

    def _drop(self, inner: Tensor) -> Tensor:
        """Leave the block out of some cases of a training batch (stochastic depth, Huang et al. 2016)."""
        if not self.training or self.drop_path == 0:
            return inner
        kept = functional.dropout(inner.new_ones(len(inner), 1, 1, 1, 1), self.drop_path)
        return inner * kept


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels of every position of volumes (B,C,D,H,W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Volumes of the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _patchify(in_channels: int, channels: int, *, patch_voxels: tuple[int, int, int]) -> nn.Sequential:
    """The stem: patches that do not overlap become positions."""
    return nn.Sequential(
        nn.Conv3d(in_channels, channels, patch_voxels, stride=patch_voxels), ChannelNorm(channels, eps=1e-6)
    )


def _halve(channels: int) -> nn.Sequential:
    """Between stages: half the volume, twice the channels, normalised before (section 2.6)."""
    return nn.Sequential(ChannelNorm(channels, eps=1e-6), nn.Conv3d(channels, 2 * channels, 2, stride=2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv3d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
