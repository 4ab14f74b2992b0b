"""Backbones that ship with oaplug."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.plug import BackboneSpec, hookimpl
from oaplug_backbones.options import ResNet3dOptions

if TYPE_CHECKING:
    from oaplug.plug.protocols import Encoder


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
