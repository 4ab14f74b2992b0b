"""Backbones that ship with oaplug."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.plug import BackboneSpec, hookimpl
from oaplug_backbones import weights
from oaplug_backbones.options import (
    DenseNetOptions,
    EfficientNetOptions,
    M3tOptions,
    NnMambaOptions,
    ResNet3dOptions,
    SeResNetOptions,
    SwinUnetrOptions,
    VitOptions,
)

if TYPE_CHECKING:
    from oaplug.plug.protocols import Encoder


def _build_resnet3d(
    options: ResNet3dOptions, *, in_channels: int, input_size: tuple[int, int, int]
) -> Encoder:
    from oaplug_backbones.resnet3d import ResNet3d

    return ResNet3d(options, in_channels=in_channels)


def _build_m3t(options: M3tOptions, *, in_channels: int, input_size: tuple[int, int, int]) -> Encoder:
    from oaplug_backbones.m3t import M3t

    return M3t(options, in_channels=in_channels, input_size=input_size)


def _build_nnmamba(options: NnMambaOptions, *, in_channels: int, **_context: object) -> Encoder:
    from oaplug_backbones.nnmamba import NnMamba

    return NnMamba(options, in_channels=in_channels)


def _build_densenet121(options: DenseNetOptions, *, in_channels: int, **_context: object) -> Encoder:
    from oaplug_backbones.monai_zoo import build_densenet121

    return build_densenet121(options, in_channels=in_channels)


def _build_seresnet50(options: SeResNetOptions, *, in_channels: int, **_context: object) -> Encoder:
    from oaplug_backbones.monai_zoo import build_seresnet50

    return build_seresnet50(options, in_channels=in_channels)


def _build_efficientnet_b0(options: EfficientNetOptions, *, in_channels: int, **_context: object) -> Encoder:
    from oaplug_backbones.monai_zoo import build_efficientnet_b0

    return build_efficientnet_b0(options, in_channels=in_channels)


def _build_vit(options: VitOptions, *, in_channels: int, input_size: tuple[int, int, int]) -> Encoder:
    from oaplug_backbones.monai_zoo import build_vit

    return build_vit(options, in_channels=in_channels, input_size=input_size)


def _patch_of_vit(options: VitOptions) -> tuple[int, int, int]:
    return options.patch_voxels


def _build_swin_unetr(options: SwinUnetrOptions, *, in_channels: int, **_context: object) -> Encoder:
    from oaplug_backbones.monai_zoo import build_swin_unetr

    return build_swin_unetr(options, in_channels=in_channels)


@hookimpl
def oaplug_backbones() -> list[BackboneSpec]:
    """The backbones of this package."""
    return [
        BackboneSpec(
            name="resnet3d",
            summary="3D ResNet as in MedicalNet, dilated or strided",
            build=_build_resnet3d,
            options=ResNet3dOptions,
            weight_sources=weights.RESNET3D,
            reference="Chen, Ma, Zheng 2019, arXiv 1904.00625; Hara et al. 2018, CVPR",
        ),
        BackboneSpec(
            name="m3t",
            summary="3D block, 2D ResNet over the slices of three planes, transformer over the slices",
            build=_build_m3t,
            options=M3tOptions,
            weight_sources=weights.M3T,
            reference="Jang and Hwang 2022, CVPR, M3T",
        ),
        BackboneSpec(
            name="nnmamba",
            summary="nnMamba's classifier: a Mamba block over the stem's voxels, then residual stages",
            build=_build_nnmamba,
            options=NnMambaOptions,
            weight_sources=weights.NNMAMBA,
            reference="Gong et al. 2025, ISBI, arXiv 2402.03526; Gu and Dao 2023, arXiv 2312.00752",
        ),
        BackboneSpec(
            name="densenet121",
            summary="3D DenseNet-121 of MONAI",
            build=_build_densenet121,
            options=DenseNetOptions,
            reference="Huang et al. 2017, CVPR, arXiv 1608.06993",
        ),
        BackboneSpec(
            name="seresnet50",
            summary="3D SE-ResNet-50 of MONAI: bottlenecks with squeeze-and-excitation",
            build=_build_seresnet50,
            options=SeResNetOptions,
            reference="Hu, Shen, Sun 2018, CVPR, arXiv 1709.01507",
        ),
        BackboneSpec(
            name="efficientnet_b0",
            summary="3D EfficientNet-B0 of MONAI",
            build=_build_efficientnet_b0,
            options=EfficientNetOptions,
            reference="Tan, Le 2019, ICML, arXiv 1905.11946",
        ),
        BackboneSpec(
            name="vit",
            summary="3D vision transformer of MONAI, averaged over its tokens",
            build=_build_vit,
            options=VitOptions,
            size_multiple=_patch_of_vit,
            reference="Dosovitskiy et al. 2021, ICLR, arXiv 2010.11929",
        ),
        BackboneSpec(
            name="swin_unetr",
            summary="the encoder of MONAI's Swin UNETR: attention within shifted windows",
            build=_build_swin_unetr,
            options=SwinUnetrOptions,
            reference="Hatamizadeh et al. 2022, arXiv 2201.01266; Liu et al. 2021, ICCV, arXiv 2103.14030",
        ),
    ]
