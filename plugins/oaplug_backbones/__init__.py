"""Backbones that ship with oaplug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from oaplug.plug import BackboneSpec, hookimpl

if TYPE_CHECKING:
    from oaplug.plug.protocols import Encoder


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


def _build_resnet3d(
    options: ResNet3dOptions, *, in_channels: int, input_size: tuple[int, int, int]
) -> Encoder:
    from oaplug_backbones.resnet3d import ResNet3d

    return ResNet3d(options, in_channels=in_channels)


@hookimpl
def oaplug_backbones() -> list[BackboneSpec]:
    """The backbones of this package."""
    return [
        BackboneSpec(
            name="resnet3d",
            summary="3D ResNet as in MedicalNet, dilated or strided",
            build=_build_resnet3d,
            options=ResNet3dOptions,
            reference="Chen, Ma, Zheng 2019, arXiv 1904.00625; Hara et al. 2018, CVPR",
        )
    ]
