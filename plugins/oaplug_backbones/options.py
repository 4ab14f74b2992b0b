"""Options of the backbones: what plans and `--set backbone.KEY=VALUE` may say. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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

    The network of the article is channels=32, resnet_depth=50, width=256, depth=8, mlp_width=768.
    `width` is that of tokens and features, `mlp_width` that of the transformer's hidden layers.
    `legacy` reproduces the widely used implementation, slips included (features multiplied by
    themselves, attention scaled after its softmax), for weights trained with it.
    `slices_per_chunk` slices go through the 2D network at a time; `checkpoint_slices` forgets their
    activations and computes them again in the backward pass.
    """

    channels: int = 16
    resnet_depth: Literal[18, 50] = 18
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

    `scan` "css4" also scans the stem's tokens reversed and in two more directions with shared weights,
    as the authors' segmentation network does. `width` is that of the features, `state_width`,
    `convolution_width` and `expansion` are Mamba's d_state, d_conv and expand.
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
    """Options of `densenet121`."""

    width: int = 64
    growth_rate: int = 32
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SeResNetOptions:
    """Options of `seresnet50`."""

    reduction: int = 16
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EfficientNetOptions:
    """Options of `efficientnet_b0`: no more than its normalisation."""

    norm: Literal["batch", "instance"] = "batch"


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Options of `vit`: a patch of `patch_voxels` a side is one token."""

    patch_voxels: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int = 1536
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SwinUnetrOptions:
    """Options of `swin_unetr`, the encoder of SwinUNETR."""

    width: int = 24
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window_voxels: int = 7
    use_v2: bool = False
