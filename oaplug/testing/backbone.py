"""The contract of a backbone."""

from __future__ import annotations

from functools import partial
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from oaplug.model.build import build_encoder
from oaplug.testing.checks import check_import, check_options, one_line, require
from oaplug.testing.modules import (
    are_close,
    build_seeded,
    check_gradients,
    check_state_dict,
    check_weights_follow_seed,
    under_autocast,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.plug.protocols import Encoder
    from oaplug.plug.specs import BackboneSpec, Spec

Size = tuple[int, int, int]
SIZES: tuple[Size, Size] = ((16, 20, 24), (17, 25, 21))
DEFAULT_SIZE: Size = (64, 128, 128)
"""Of the volumes that the default options must be built for, rounded up to multiples of size_multiple."""
BATCH = 3


def check_backbone(
    spec: BackboneSpec, options: Mapping[str, Any] | None = None, *, sizes: tuple[Size, Size] = SIZES
) -> None:
    """Check everything the engine relies on in a backbone.

    Args:
        spec: the backbone.
        options: its options; small ones make a quick check (default: the backbone's own, which must be
            built in any case).
        sizes: input sizes (D,H,W) for one and for two channels, rounded up to multiples of size_multiple.

    Raises:
        AssertionError: saying what to change.
    """
    check_import(spec)
    multiple = _size_multiple(spec, check_options(spec, options))
    first, second = (_rounded(size, multiple) for size in sizes)
    if options:
        _check_default_options(spec)
    _check_one_channel(spec, options or {}, size=first)
    _check_two_channels(spec, options or {}, size=second)


def _size_multiple(spec: BackboneSpec, options: Any) -> Size:
    multiple = spec.size_multiple(options)
    require(
        len(multiple) == 3 and all(isinstance(step, int) and step > 0 for step in multiple),
        spec,
        f"size_multiple gave {multiple!r}; give three positive integers for D, H and W",
    )
    return multiple


def _rounded(size: Size, multiple: Size) -> Size:
    depth, height, width = (-(-n // step) * step for n, step in zip(size, multiple, strict=True))
    return depth, height, width


def _check_default_options(spec: BackboneSpec) -> None:
    size = _rounded(DEFAULT_SIZE, _size_multiple(spec, check_options(spec, None)))
    build = partial(build_encoder, spec, {}, in_channels=1, input_size=size)
    try:
        module = build_seeded(build, spec, seed=0)
    except AssertionError:
        raise
    except Exception as failure:
        raise AssertionError(
            f"backbone {spec.name}: with its default options it cannot be built for volumes of {size} "
            f"({one_line(failure)}); choose defaults that work"
        ) from failure
    _num_features(module, spec)


def _check_one_channel(spec: BackboneSpec, options: Mapping[str, Any], *, size: Size) -> None:
    build = partial(build_encoder, spec, options, in_channels=1, input_size=size)
    volume = _volume(1, size)
    module = check_weights_follow_seed(build, spec)
    encoder = cast("Encoder", module)
    _check_features(encoder, volume, spec)
    check_gradients(module, lambda: encoder(volume), spec)
    module.eval()
    with torch.no_grad():
        _check_independence(encoder, volume, spec)
        _check_cam_layer(encoder, volume, spec)
        check_state_dict(module, build_seeded(build, spec, seed=2), volume, spec)
    module.train()
    under_autocast(lambda: encoder(volume), spec, what="forward")


def _check_two_channels(spec: BackboneSpec, options: Mapping[str, Any], *, size: Size) -> None:
    build = partial(build_encoder, spec, options, in_channels=2, input_size=size)
    volume = _volume(2, size)
    module = build_seeded(build, spec, seed=0)
    encoder = cast("Encoder", module)
    _check_features(encoder, volume, spec)
    check_gradients(module, lambda: encoder(volume), spec)
    module.eval()
    with torch.no_grad():
        _check_channels_are_seen(encoder, volume, spec)
        _check_cam_layer(encoder, volume, spec)


def _volume(in_channels: int, size: Size) -> Tensor:
    return torch.randn(BATCH, in_channels, *size, generator=torch.Generator().manual_seed(1))


def _num_features(encoder: object, spec: Spec) -> int:
    count = getattr(encoder, "num_features", None)
    require(isinstance(count, int) and count > 0, spec, f"num_features is {count!r}; set it to F, an int")
    return cast("int", count)


def _check_features(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    count, before = _num_features(encoder, spec), volume.clone()
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
    require(
        torch.equal(volume, before),
        spec,
        "forward changed the volume it was given; use no in-place operation on it",
    )


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


def _check_channels_are_seen(encoder: Encoder, volume: Tensor, spec: Spec) -> None:
    changed = volume.clone()
    changed[:, 1] = changed[:, 1].flip(1)
    require(
        not are_close(encoder(volume), encoder(changed)),
        spec,
        "another second channel gave the same features; take all in_channels in",
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
