"""3D ResNets with MedicalNet's dilated stages and state-dict names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from oaplug_backbones.residual import BASIC, BOTTLENECK, expansion, residual_stage, start_convolutions

if TYPE_CHECKING:
    from oaplug_backbones.options import ResNet3dOptions

_BLOCKS = {
    10: (BASIC, (1, 1, 1, 1)),
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
}
_STRIDES, _DILATIONS = (1, 2, 2, 2), (1, 1, 1, 1)
_DILATED_STRIDES, _DILATED_DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)


class ResNet3d(nn.Module):
    """Volumes (B,C,D,H,W) to features (B,F), F = 8 * width (32 * width from depth 50 up).

    State-dict names are MedicalNet's: conv1, bn1, layer1..4, without fc.
    """

    def __init__(self, options: ResNet3dOptions, *, in_channels: int) -> None:
        super().__init__()
        kernels, counts = _BLOCKS[options.depth]
        strides = _DILATED_STRIDES if options.dilated else _STRIDES
        dilations = _DILATED_DILATIONS if options.dilated else _DILATIONS
        self.conv1 = nn.Conv3d(
            in_channels, options.width, options.stem_kernel,
            stride=options.stem_stride, padding=options.stem_kernel // 2, bias=False,
        )  # fmt: skip
        self.bn1 = nn.BatchNorm3d(options.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if options.stem_pool else nn.Identity()
        channels = options.width
        for index, blocks in enumerate(counts):
            width = options.width * 2**index
            layer = residual_stage(
                kernels, channels, blocks=blocks, width=width, dimensions=3, stride=strides[index],
                dilation=dilations[index], shortcut=options.shortcut,
            )  # fmt: skip
            self.add_module(f"layer{index + 1}", layer)
            channels = width * expansion(kernels)
        self.num_features = channels
        self.apply(start_convolutions)

    @property
    def cam_layer(self) -> nn.Module:
        """The last stage, whose activations CAM methods use."""
        return self.get_submodule("layer4")

    def forward(self, volume: Tensor) -> Tensor:
        """Features (B,F) of volumes (B,C,D,H,W)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(volume))))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return x.mean(dim=(2, 3, 4))
