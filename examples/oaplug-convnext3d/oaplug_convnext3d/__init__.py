"""The backbone `convnext3d` of oaplug. Importing this imports no torch: listing parts stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaplug.core.errors import PluginError
from oaplug.plug import BackboneSpec, hookimpl

if TYPE_CHECKING:
    from oaplug.plug.protocols import Encoder

Size = tuple[int, int, int]
requires_oaplug_api = (1, 1)


@dataclass(frozen=True, kw_only=True)
class ConvNeXt3dOptions:
    """Options of `convnext3d`; ConvNeXt-T of the article, in 2D, is width=96, depths=(3, 3, 9, 3).

    `patch_voxels` (D,H,W) is how much of the volume becomes one position of the first stage; every
    further stage halves the volume and doubles the channels, `width` at first. `kernel` is that of the
    depthwise convolutions. `drop_path` is the rate at which the last block is left out of a case in
    training (the first never is, those between in proportion), `layer_scale` the factor with which every
    block begins to contribute (0: without).
    """

    width: int = 32
    depths: tuple[int, ...] = (2, 2, 6, 2)
    kernel: int = 7
    patch_voxels: Size = (4, 4, 4)
    drop_path: float = 0.1
    layer_scale: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.width, *self.patch_voxels, *self.depths, len(self.depths)) < 1:
            raise PluginError("width, depths and patch_voxels must be positive, with at least one stage")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise PluginError(f"kernel must be odd, so that blocks keep the volume's size, got {self.kernel}")
        if not 0 <= self.drop_path < 1 or self.layer_scale < 0:
            raise PluginError(f"drop_path must lie in [0, 1) and layer_scale not below 0, got {self}")


def size_multiple(options: ConvNeXt3dOptions) -> Size:
    """Sizes (D,H,W) of which no voxel falls off where the volume is cut into patches and halved."""
    depth, height, width = (voxels * 2 ** (len(options.depths) - 1) for voxels in options.patch_voxels)
    return depth, height, width


def build(options: ConvNeXt3dOptions, *, in_channels: int, input_size: Size) -> Encoder:
    """The network from volumes (B,C,D,H,W) to features (B,F), F = width * 2 ** (stages - 1)."""
    from oaplug_convnext3d.network import ConvNeXt3d

    return ConvNeXt3d(options, in_channels=in_channels)


@hookimpl
def oaplug_backbones() -> list[BackboneSpec]:
    """The backbones of this package."""
    return [
        BackboneSpec(
            name="convnext3d",
            summary="a compact 3D ConvNeXt: depthwise 7x7x7 convolutions and inverted bottlenecks",
            build=build,
            options=ConvNeXt3dOptions,
            size_multiple=size_multiple,
            reference="Liu et al. 2022, A ConvNet for the 2020s, arXiv 2201.03545",
        )
    ]
