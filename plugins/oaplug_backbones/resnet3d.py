"""MONAI's 3D ResNet as an encoder, with MedicalNet's dilated stages and state-dict names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from monai.networks.nets.resnet import ResNet
from torch import nn

if TYPE_CHECKING:
    from oaplug_backbones.options import ResNet3dOptions

_BLOCKS = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
}


class ResNet3d(ResNet):  # type: ignore[misc]
    """Volumes (B,C,D,H,W) to features (B,F), F = 8 * width (32 * width from depth 50 up).

    State-dict names are MedicalNet's: conv1, bn1, layer1..4, without fc.
    """

    def __init__(self, options: ResNet3dOptions, *, in_channels: int) -> None:
        block, layers = _BLOCKS[options.depth]
        super().__init__(
            block=block,
            layers=layers,
            block_inplanes=[options.width * factor for factor in (1, 2, 4, 8)],
            n_input_channels=in_channels,
            conv1_t_size=options.stem_kernel,
            conv1_t_stride=options.stem_stride,
            no_max_pool=not options.stem_pool,
            shortcut_type=options.shortcut,
            feed_forward=False,
            bias_downsample=False,
        )
        if options.dilated:
            _dilate(self.layer3, dilation=2)
            _dilate(self.layer4, dilation=4)
        self.num_features = options.width * 8 * (4 if block == "bottleneck" else 1)

    @property
    def cam_layer(self) -> nn.Module:
        """The last stage, whose activations CAM methods use."""
        return self.layer4  # type: ignore[no-any-return]


def _dilate(stage: nn.Sequential, *, dilation: int) -> None:
    """Make a stage keep its input's size: strides become 1, and its 3x3x3 convolutions dilated."""
    for block in stage:
        for convolution in (m for m in block.modules() if isinstance(m, nn.Conv3d)):
            convolution.stride = (1, 1, 1)
            if convolution.kernel_size == (3, 3, 3):
                convolution.dilation = convolution.padding = (dilation,) * 3
        _unstride_shortcut(block)


def _unstride_shortcut(block: Any) -> None:
    """A shortcut of type A is a function, not a module: give it stride 1 too."""
    if isinstance(block.downsample, partial):
        settings = {**block.downsample.keywords, "stride": 1}
        block.downsample = partial(block.downsample.func, *block.downsample.args, **settings)
