"""M3T: a 3D block, a 2D network over the slices of three planes, and a transformer over those slices."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaplug.core.errors import PluginError
from oaplug_backbones.m3t_slices import SliceEncoder

if TYPE_CHECKING:
    from oaplug_backbones.options import M3tOptions

_TOKEN_STD = 0.02


class M3t(nn.Module):
    """Volumes (B,C,D,H,W) of one size to features (B,width): the class token after the last layer.

    Tokens are [class, slices along D, separator, slices along H, separator, slices along W, separator],
    D+H+W+4 in all, plus an embedding per plane and one per position. The sizes D, H and W may differ.
    There is no normalisation after the last layer. Jang and Hwang 2022, CVPR.

    `legacy` changes the function and the spread of the first tokens (a standard normal; else 0.02, as in
    ViT), and no parameter: weights interchange, though what they compute does not.

    Raises:
        PluginError: where `width` is no multiple of `heads`, or `slices_per_chunk` is not positive.
    """

    def __init__(self, options: M3tOptions, *, in_channels: int, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        _check(options)
        self.num_features = width = options.width
        self.input_size = input_size
        self.legacy = options.legacy
        self.volume_block = _volume_block(in_channels, options.channels)
        self.slices = SliceEncoder(options)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.sep_token = nn.Parameter(torch.empty(1, 1, width))
        self.plane_embeddings = nn.Parameter(torch.empty(3, width))
        self.positions = nn.Parameter(torch.empty(sum(input_size) + 4, width))
        for tokens in (self.cls_token, self.sep_token, self.plane_embeddings, self.positions):
            nn.init.normal_(tokens, std=1.0 if options.legacy else _TOKEN_STD)
        self.layers = nn.Sequential(*[TransformerLayer(options) for _ in range(options.depth)])

    @property
    def cam_layer(self) -> nn.Module:
        """The 3D block; its activations (B,channels,D,H,W) have the volume's size."""
        return self.volume_block

    def forward(self, volume: Tensor) -> Tensor:
        """Features (B,width) of volumes (B,C,D,H,W); ValueError for another size than the built one."""
        if tuple(volume.shape[2:]) != self.input_size:
            raise ValueError(
                f"m3t was built for volumes of size {self.input_size}, got {tuple(volume.shape[2:])}; "
                "its position embeddings belong to one size, so build it with this one"
            )
        features = self.volume_block(volume)
        if self.legacy:
            features = features * features
        tokens: Tensor = self.layers(self._embed(self.slices(features)))
        return tokens[:, 0]

    def _embed(self, slices: Tensor) -> Tensor:
        """Tokens (B,D+H+W+4,width) of slices (B,D+H+W,width)."""
        cls, sep = (token.expand(len(slices), -1, -1) for token in (self.cls_token, self.sep_token))
        first, second, third = torch.split(slices, list(self.input_size), dim=1)
        tokens = torch.cat([cls, first, sep, second, sep, third, sep], dim=1)
        lengths = (first.shape[1] + 2, second.shape[1] + 1, third.shape[1] + 1)
        embeddings = torch.split(self.plane_embeddings, 1)
        planes = torch.cat([e.expand(n, -1) for e, n in zip(embeddings, lengths, strict=True)])
        return tokens + planes + self.positions


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each after a layer norm and added to its input; keeps (B,T,width)."""

    def __init__(self, options: M3tOptions) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(options.width)
        self.attention = Attention(options)
        self.norm2 = nn.LayerNorm(options.width)
        self.mlp = nn.Sequential(
            nn.Linear(options.width, options.mlp_width),
            nn.GELU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.mlp_width, options.width),
        )
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B,T,width) of tokens (B,T,width)."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        mixed: Tensor = tokens + self.dropout(self.mlp(self.norm2(tokens)))
        return mixed


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B,T,width): softmax(Q K^T / sqrt(width / heads)) V.

    Of the outputs of `qkv`, split as (head, head_dim, 3), the last axis tells query, key and value.
    With `legacy` it is softmax(Q K^T) / sqrt(width) V, as in the widely used implementation.
    """

    def __init__(self, options: M3tOptions) -> None:
        super().__init__()
        self.qkv = nn.Linear(options.width, 3 * options.width)
        self.projection = nn.Linear(options.width, options.width)
        self._heads, self._legacy, self._dropout = options.heads, options.legacy, options.dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B,T,width) of tokens (B,T,width)."""
        split = self.qkv(tokens).unflatten(-1, (self._heads, -1, 3))
        query, key, value = split.permute(4, 0, 2, 1, 3)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self._dropout if self.training else 0.0,
            scale=1.0 if self._legacy else None,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        if self._legacy:
            mixed = mixed / math.sqrt(tokens.shape[-1])
        projected: Tensor = self.projection(mixed)
        return projected


def _volume_block(in_channels: int, channels: int) -> nn.Sequential:
    """Two convolutions of 5x5x5 that keep the volume's size."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, channels_before in enumerate((in_channels, channels), start=1):
        modules[f"conv{index}"] = nn.Conv3d(channels_before, channels, 5, padding=2)
        modules[f"bn{index}"] = nn.BatchNorm3d(channels)
        modules[f"relu{index}"] = nn.ReLU(inplace=True)
    return nn.Sequential(modules)


def _check(options: M3tOptions) -> None:
    if options.width % options.heads:
        raise PluginError(
            f"backbone m3t: width must be a multiple of heads, got {options.width} and {options.heads}"
        )
    if options.slices_per_chunk < 1:
        raise PluginError(f"backbone m3t: slices_per_chunk must be positive, got {options.slices_per_chunk}")
