"""Options of the backbones: what plans and `--set backbone.KEY=VALUE` may say. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oaplug.core.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class ResNet3dOptions:
    """Options of `resnet3d`; the defaults are the study's network.

    `width` is the number of channels of the first stage (64 in the papers; smaller for small machines).
    `dilated` keeps the third and fourth stage at an eighth of the input size, as MedicalNet does; False
    halves it at each. `stem_stride` and `stem_pool` say how soon the input is shrunk: 1 and False suit
    volumes of a few dozen voxels a side.
    """

    depth: Literal[10, 18, 34, 50, 101] = 18
    width: int = 64
    dilated: bool = True
    shortcut: Literal["A", "B"] = "B"
    stem_stride: Literal[1, 2] = 2
    stem_pool: bool = True
    stem_kernel: Literal[3, 5, 7] = 7


@dataclass(frozen=True, kw_only=True)
class M3tOptions:
    """Options of `m3t`; the defaults are the study's small variant, made right.

    The network of the article is channels=32, resnet_depth=50, width=256, depth=8, mlp_width=768; its
    widely used implementation has mlp_width=512. `width` is that of tokens and features, `mlp_width` that
    of the transformer's hidden layers, `resnet_width` the channels of the 2D network's first stage (64 in
    the article, and in ImageNet weights).
    `legacy` reproduces the widely used implementation, slips included (features multiplied by
    themselves, attention scaled after its softmax), for weights trained with it.
    `checkpoint_slices` forgets the 2D network's activations and computes them again in the backward pass.
    About `slices_per_chunk` slices then go through that network at a time, as they do without a gradient;
    in training they share batch statistics. Otherwise all slices of one size do.
    """

    channels: int = 16
    resnet_depth: Literal[18, 50] = 18
    resnet_width: int = 64
    width: int = 128
    depth: int = 4
    heads: int = 8
    mlp_width: int = 256
    dropout: float = 0.0
    legacy: bool = False
    slices_per_chunk: int = 32
    checkpoint_slices: bool = False


@dataclass(frozen=True, kw_only=True)
class NnMambaOptions:
    """Options of `nnmamba`; the defaults are the authors' classifier.

    `scan` "css4" averages four scans with shared weights, of the stem's tokens as they are, in reversed
    order, with reversed channels, and both, as the authors' segmentation network does. `width` is that of
    the features; `state_width`, `convolution_width` and `expansion` are Mamba's d_state, d_conv, expand.
    The dropout of 0.5 before the classifier is the head's: `--set head.dropout=0.5`.
    """

    channels: int = 32
    blocks: int = 3
    width: int = 32
    scan: Literal["single", "css4"] = "single"
    state_width: int = 8
    convolution_width: int = 4
    expansion: int = 2


@dataclass(frozen=True, kw_only=True)
class DenseNetOptions:
    """Options of `densenet121`; `width` is the number of channels of the stem.

    `dropout` is that within dense layers; that before the classifier is the head's.
    """

    width: int = 64
    growth_rate: int = 32
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SeResNetOptions:
    """Options of `seresnet50`; `width` is the number of channels of the stem (64 in the article).

    `reduction` is by how much squeeze-and-excitation narrows the channels, at most 4 * width.
    """

    width: int = 64
    reduction: int = 16

    def __post_init__(self) -> None:
        _require(
            0 < self.reduction <= 4 * self.width,
            f"reduction must be from 1 to 4 * width = {4 * self.width}, got {self.reduction}",
        )


@dataclass(frozen=True, kw_only=True)
class EfficientNetOptions:
    """Options of `efficientnet_b0`: its normalisation, and no more.

    "group" normalises eight groups of channels within each volume, which suits batches of one or two.
    """

    norm: Literal["batch", "group"] = "batch"


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Options of `vit`; the defaults are the widths of ViT-S.

    A box of `patch_voxels` (D,H,W) is one token; input sizes must be multiples of it. `width` is that of
    tokens and features, `mlp_width` that of the hidden layers. The learned position embedding belongs to
    one input size.
    """

    patch_voxels: tuple[int, int, int] = (16, 16, 16)
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int = 1536
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(min(self.patch_voxels) > 0, f"patch_voxels must be positive, got {self.patch_voxels}")
        _require_heads(self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class SwinUnetrOptions:
    """Options of `swin_unetr`, the encoder of Swin UNETR.

    `width` is that of the first stage (48 in the article); each of the four stages has `depths` blocks of
    `heads` heads, within windows of `window_tokens` a side, and doubles the width. `use_v2` precedes each
    stage by residual convolutions, as Swin UNETR V2 does. `checkpoint_blocks` forgets the blocks'
    activations and computes them again in the backward pass.
    """

    width: int = 24
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window_tokens: int = 7
    use_v2: bool = False
    checkpoint_blocks: bool = False

    def __post_init__(self) -> None:
        for stage, heads in enumerate(self.heads):
            _require_heads(self.width * 2**stage, heads)


def _require_heads(width: int, heads: int) -> None:
    _require(heads > 0 and width % heads == 0, f"a width of {width} cannot be shared by {heads} heads")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PluginError(message)
