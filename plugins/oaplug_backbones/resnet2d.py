"""2D ResNets with torchvision's state-dict names, so that weights trained with those load as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BASIC, _BOTTLENECK = (3, 3), (1, 3, 1)
_LAYOUTS = {18: (_BASIC, (2, 2, 2, 2)), 50: (_BOTTLENECK, (3, 4, 6, 3))}


class ResNet2d(nn.Module):
    """Images (B,C,H,W) to features (B,F), F = 8 * width (32 * width at depth 50), or to logits.

    State-dict names are torchvision's: conv1, bn1, layer{1..4}.{i}.conv{1,2,3}, .bn{1,2,3},
    .downsample.{0,1}, and fc where there are classes. As there, a bottleneck strides in its 3x3 convolution.
    He et al. 2016, CVPR.

    Args:
        depth: 18 or 50.
        in_channels: C.
        width: channels of the first stage (64 in the article).
        num_classes: K, for logits (B,K); None gives features.
    """

    def __init__(
        self, depth: int, *, in_channels: int = 3, width: int = 64, num_classes: int | None = None
    ) -> None:
        super().__init__()
        kernels, blocks = _LAYOUTS[depth]
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, expansion = width, _expansion(kernels)
        for stage, count in enumerate(blocks):
            layer = _stage(kernels, channels, width=width * 2**stage, blocks=count, stride=min(stage, 1) + 1)
            self.add_module(f"layer{stage + 1}", layer)
            channels = width * 2**stage * expansion
        self.num_features = channels
        self.fc = nn.Identity() if num_classes is None else nn.Linear(channels, num_classes)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B,F) or logits (B,K) of images (B,C,H,W)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        features: Tensor = self.fc(x.mean(dim=(2, 3)))
        return features


class ResidualBlock(nn.Module):
    """Convolutions of the given kernel sizes around which the input is added; (B,C,H,W) to (B,C',h,w)."""

    def __init__(self, kernels: tuple[int, ...], in_channels: int, *, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels = width * _expansion(kernels)
        self._depth = len(kernels)
        channels = [in_channels, *[width] * (self._depth - 1), self.out_channels]
        for index, kernel in enumerate(kernels):
            step = stride if index == kernels.index(3) else 1
            convolution = _convolution(channels[index], channels[index + 1], kernel=kernel, stride=step)
            self.add_module(f"conv{index + 1}", convolution)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(channels[index + 1]))
        self.downsample = None
        if stride != 1 or in_channels != self.out_channels:
            projection = _convolution(in_channels, self.out_channels, kernel=1, stride=stride)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(self.out_channels))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C',h,w) of images (B,C,H,W)."""
        shortcut = images if self.downsample is None else self.downsample(images)
        x = images
        for index in range(1, self._depth + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x))
            x = torch.relu_(x) if index < self._depth else x
        return torch.relu_(x + shortcut)


def _stage(
    kernels: tuple[int, ...], in_channels: int, *, width: int, blocks: int, stride: int
) -> nn.Sequential:
    """Blocks of one width, the first of which may stride."""
    first = ResidualBlock(kernels, in_channels, width=width, stride=stride)
    rest = [ResidualBlock(kernels, first.out_channels, width=width, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _expansion(kernels: tuple[int, ...]) -> int:
    """Channels that a block gives, over its width."""
    return 4 if kernels == _BOTTLENECK else 1


def _convolution(in_channels: int, out_channels: int, *, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _initialize(module: nn.Module) -> None:
    """Kaiming's fan-out spread, as torchvision starts its ResNets."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
