"""Networks of MONAI as encoders: what precedes their classifier or decoder, averaged over space.

State-dict names are MONAI's. Importing any module of MONAI imports all of them, so this is done when one
is built; nothing is ever downloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oaplug_backbones.options import (
        DenseNetOptions,
        EfficientNetOptions,
        SeResNetOptions,
        SwinUnetrOptions,
        VitOptions,
    )

Size = tuple[int, int, int]


class PooledEncoder(nn.Sequential):
    """Stages from volumes (B,C,D,H,W) to maps (B,F,d,h,w), whose average over space is features (B,F)."""

    def __init__(self, *, num_features: int, stages: dict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(stages))
        self.num_features = num_features

    def forward(self, volume: Tensor) -> Tensor:
        """Features (B,F) of volumes (B,C,D,H,W)."""
        maps = volume
        for stage in self:
            maps = stage(maps)
        return maps.mean(dim=(2, 3, 4))

    @property
    def cam_layer(self) -> nn.Module:
        """The last stage: its output is the maps that are averaged."""
        return self[-1]


class HalvingPool(nn.Module):
    """Average of 2x2x2 voxels; of what is left of them at the end of an odd size."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,F,d,h,w), each side halved and rounded up."""
        kernel = [min(2, size) for size in maps.shape[2:]]
        return nn.functional.avg_pool3d(maps, kernel, stride=2, ceil_mode=True)


class TokenGrid(nn.Module):
    """Tokens (B,N,F) in the order of their patches to maps (B,F,d,h,w) with d*h*w = N."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (B,F,d,h,w) of tokens (B,N,F)."""
        return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *self.size)


class DeepestMaps(nn.Module):
    """The last of maps at several resolutions, finest first."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B,F,d,h,w)."""
        return maps[-1]


def build_densenet121(options: DenseNetOptions, *, in_channels: int) -> PooledEncoder:
    """DenseNet-121 (Huang et al. 2017). Grids of odd size keep their last voxels, which MONAI's drops."""
    from monai.networks.nets.densenet import DenseNet121

    network = DenseNet121(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=1,
        init_features=options.width,
        growth_rate=options.growth_rate,
        dropout_prob=options.dropout,
    )
    for number in (1, 2, 3):
        network.features.get_submodule(f"transition{number}").pool = HalvingPool()
    return PooledEncoder(
        num_features=network.class_layers.out.in_features,
        stages={"features": network.features, "relu": nn.ReLU()},  # MONAI's ReLU overwrites its input
    )


def build_seresnet50(options: SeResNetOptions, *, in_channels: int) -> PooledEncoder:
    """SE-ResNet-50 (Hu, Shen, Sun 2018), with stages of `width` times 4, 8, 16 and 32 channels."""
    from monai.networks.nets.senet import SEResNet50

    class SeResNet50(SEResNet50):  # type: ignore[misc]
        def _make_layer(self, block: Any, planes: int, **settings: Any) -> Any:
            return super()._make_layer(block, planes * options.width // 64, **settings)

    network = SeResNet50(
        spatial_dims=3, in_channels=in_channels, inplanes=options.width, reduction=options.reduction
    )
    names = ("layer0", "layer1", "layer2", "layer3", "layer4")
    return PooledEncoder(
        num_features=32 * options.width, stages={name: getattr(network, name) for name in names}
    )


def build_efficientnet_b0(options: EfficientNetOptions, *, in_channels: int) -> PooledEncoder:
    """EfficientNet-B0 (Tan, Le 2019), with MONAI's padding and initial state put right."""
    from monai.networks.nets.efficientnet import EfficientNetBN

    norms = {"batch": {}, "group": {"norm": ("group", {"num_groups": 8})}}
    network = EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=in_channels, **norms[options.norm]
    )
    for module in network.modules():
        if isinstance(module, nn.ConstantPad3d):
            _pad_odd_sizes(module)
        elif isinstance(module, nn.Conv3d) and module.groups > 1:
            _widen_initial_weights(module)
    encoder = PooledEncoder(
        num_features=network._fc.in_features,
        stages={
            "_conv_stem_padding": network._conv_stem_padding,
            "_conv_stem": network._conv_stem,
            "_bn0": network._bn0,
            "stem_swish": nn.SiLU(),
            "_blocks": network._blocks,
            "_conv_head": network._conv_head,
            "_bn1": network._bn1,
            "head_swish": nn.SiLU(),
        },
    )
    _settle_statistics(encoder, in_channels=in_channels)
    return encoder


def _pad_odd_sizes(pad: nn.ConstantPad3d) -> None:
    """One more zero after odd sizes, which a strided convolution would cut short.

    MONAI pads as is right for sizes that can be halved five times, and those do not notice.
    """
    before, after = pad.padding[:2]
    pad.padding = (before, after + 1) * 3 if before != after else pad.padding


def _widen_initial_weights(depthwise: nn.Conv3d) -> None:
    """Give a depthwise convolution the spread that follows from the fan-out of one of its groups.

    MONAI takes that of all: up to 1152 of them, and weights so small that Adam's first steps replace them.
    """
    with torch.no_grad():
        depthwise.weight.mul_(depthwise.groups**0.5)


def _settle_statistics(encoder: nn.Module, *, in_channels: int) -> None:
    """Start running statistics from those of noise, and follow the data at PyTorch's default pace.

    They start at variances of 1, from which swish and squeeze-and-excitation let next to nothing through
    in eval mode, and at MONAI's pace they would take a thousand steps to forget it.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches, of which there is one
    if norms:
        with torch.no_grad():
            encoder(torch.randn(2, in_channels, 48, 48, 48))
    for norm in norms:
        norm.momentum = 0.1


def build_vit(options: VitOptions, *, in_channels: int, input_size: Size) -> PooledEncoder:
    """Vision transformer (Dosovitskiy et al. 2021) without class token: features are the tokens' mean."""
    from monai.networks.nets.vit import ViT

    network = ViT(
        in_channels=in_channels,
        img_size=input_size,
        patch_size=options.patch_voxels,
        hidden_size=options.width,
        mlp_dim=options.mlp_width,
        num_layers=options.depth,
        num_heads=options.heads,
        dropout_rate=options.dropout,
        spatial_dims=3,
    )
    for block in network.blocks:
        block.norm_cross_attn = block.cross_attn = nn.Identity()  # there, but not used
        block.attn.use_flash_attention = options.dropout == 0  # MONAI's drops in eval mode too
    grid = [size // patch for size, patch in zip(input_size, options.patch_voxels, strict=True)]
    return PooledEncoder(
        num_features=options.width,
        stages={
            "patch_embedding": network.patch_embedding,
            "blocks": nn.Sequential(*network.blocks),
            "norm": network.norm,
            "grid": TokenGrid(grid),
        },
    )


def build_swin_unetr(options: SwinUnetrOptions, *, in_channels: int) -> PooledEncoder:
    """The encoder of Swin UNETR (Hatamizadeh et al. 2022): its deepest maps, at a 32nd of the input."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    network = SwinTransformer(
        in_chans=in_channels,
        embed_dim=options.width,
        window_size=(options.window_tokens,) * 3,
        patch_size=(2, 2, 2),
        depths=options.depths,
        num_heads=options.heads,
        use_checkpoint=options.checkpoint_blocks,
        spatial_dims=3,
        use_v2=options.use_v2,
    )
    return PooledEncoder(
        num_features=16 * options.width, stages={"swinViT": network, "deepest": DeepestMaps()}
    )
