"""2D ResNets with torchvision's state-dict names, so that weights trained with those load as they are."""

from __future__ import annotations

from torch import Tensor, nn

from oaplug_backbones.residual import BASIC, BOTTLENECK, expansion, residual_stage, start_convolutions

_LAYOUTS = {18: (BASIC, (2, 2, 2, 2)), 50: (BOTTLENECK, (3, 4, 6, 3))}


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
        channels = width
        for index, count in enumerate(blocks):
            layer = residual_stage(
                kernels,
                channels,
                blocks=count,
                width=width * 2**index,
                dimensions=2,
                stride=1 + min(index, 1),
            )
            self.add_module(f"layer{index + 1}", layer)
            channels = width * 2**index * expansion(kernels)
        self.num_features = channels
        self.fc = nn.Identity() if num_classes is None else nn.Linear(channels, num_classes)
        self.apply(start_convolutions)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B,F) or logits (B,K) of images (B,C,H,W)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        features: Tensor = self.fc(x.mean(dim=(2, 3)))
        return features
