"""The contract of a backbone."""

from __future__ import annotations

from inspect import getattr_static
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from oaplug.model.build import build_encoder
from oaplug.testing.checks import (
    are_close,
    as_module,
    check_gradients,
    check_options,
    check_same_seed,
    check_state_dict,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.plug.protocols import Encoder
    from oaplug.plug.specs import BackboneSpec, Spec

Size = tuple[int, int, int]
SIZES: tuple[Size, Size] = ((16, 20, 24), (17, 25, 21))
BATCH = 3


def check_backbone(
    spec: BackboneSpec, options: Mapping[str, Any] | None = None, *, sizes: tuple[Size, Size] = SIZES
) -> None:
    """Check everything the engine relies on in a backbone.

    Args:
        spec: the backbone.
        options: its options; small ones make a quick check (default: the backbone's own).
        sizes: input sizes (D,H,W) for one and for two channels, rounded up to multiples of size_multiple.

    Raises:
        AssertionError: saying what to change.
    """
    multiple = spec.size_multiple(check_options(spec, options))
    require(
        len(multiple) == 3 and all(isinstance(step, int) and step > 0 for step in multiple),
        spec,
        f"size_multiple gave {multiple!r}; give three positive integers for D, H and W",
    )
    for in_channels, wanted in enumerate(sizes, start=1):
        depth, height, width = (-(-n // step) * step for n, step in zip(wanted, multiple, strict=True))
        _check_encoder(spec, options or {}, in_channels=in_channels, size=(depth, height, width))


def _check_encoder(spec: BackboneSpec, options: Mapping[str, Any], *, in_channels: int, size: Size) -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return as_module(build_encoder(spec, options, in_channels=in_channels, input_size=size), spec)

    volume = torch.randn(BATCH, in_channels, *size, generator=torch.Generator().manual_seed(1))
    module = build(0)
    encoder = cast("Encoder", module)
    check_same_seed(module, build(0), spec)
    _check_features(encoder, volume, spec)
    check_gradients(module, lambda: encoder(volume), spec)
    module.eval()
    with torch.no_grad():
        _check_independence(encoder, volume, spec)
        _check_cam_layer(encoder, volume, spec)
        check_state_dict(module, build(2), volume, spec)


def _check_features(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    count = getattr(encoder, "num_features", None)
    require(isinstance(count, int) and count > 0, spec, f"num_features is {count!r}; set it to F, an int")
    features = encoder(volume)
    require(isinstance(features, Tensor), spec, f"forward gave {type(features).__name__}; give (B,F)")
    found, expected = tuple(features.shape), (len(volume), count)
    where = f"for volumes of shape {tuple(volume.shape)}"
    require(
        found == expected,
        spec,
        f"features have shape {found} {where}, expected (B, num_features) = {expected}; pool and flatten, or "
        "correct num_features",
    )
    require(bool(features.isfinite().all()), spec, f"features are not finite {where}")


def _check_independence(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    together = encoder(volume)
    require(
        are_close(together, encoder(volume)),
        spec,
        "in eval mode the same volumes gave other features; draw nothing in forward but by nn.Dropout",
    )
    alone = torch.cat([encoder(volume[index : index + 1]) for index in range(len(volume))])
    require(
        are_close(together, alone),
        spec,
        "in eval mode the features of a volume depend on the others in its batch; normalise with running "
        "statistics (nn.BatchNorm3d) or within each volume",
    )
    require(
        not are_close(together[:1], together[1:2]),
        spec,
        "different volumes gave the same features; the volume must reach them",
    )


def _check_cam_layer(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    require(
        isinstance(getattr_static(type(encoder), "cam_layer", None), property),
        spec,
        "cam_layer must be a property of the encoder's class: an attribute would hold its parameters twice",
    )
    layer = encoder.cam_layer
    if layer is None:
        return
    require(
        any(layer is module for module in cast("nn.Module", encoder).modules()),
        spec,
        "cam_layer gives something that is no submodule of the encoder; give a submodule or None",
    )
    shapes: list[tuple[int, ...]] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    encoder(volume)
    hook.remove()
    require(
        bool(shapes) and all(len(shape) == 5 and shape[0] == len(volume) for shape in shapes),
        spec,
        f"cam_layer gives activations of shape {shapes}, expected (B,K,d,h,w); choose another layer, or None",
    )
