"""The backbone convnext3d is found by oaplug, keeps its contract, and is the network of the article."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import oaplug
from oaplug.core.errors import PluginError
from oaplug.plug import BackboneSpec
from oaplug.plug.registry import parse_options, registry
from oaplug.testing.contract import check_backbone

NAME = "oaplug-convnext3d:convnext3d"
SMALL = {"width": 4, "depths": (1, 1), "patch_voxels": (2, 2, 2), "kernel": 3}


def encoder_of(size: tuple[int, int, int], **options: Any) -> Any:
    """The encoder for volumes (1,1,D,H,W), made from one seed."""
    torch.manual_seed(0)
    return oaplug.create_encoder(NAME, input_size=size, **options)


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        SMALL | {"drop_path": 0.5, "layer_scale": 0.0},
        SMALL | {"depths": (1, 2, 1), "patch_voxels": (1, 2, 4), "layer_scale": 1.0},
    ],
)
def test_it_keeps_the_contract(options: dict[str, Any]) -> None:
    check_backbone(registry().spec(BackboneSpec, NAME), options)


def test_it_has_as_many_weights_as_the_article_says() -> None:
    """A block of C channels: depthwise, norm, two layers, scale; stem, halvings and norms come on top."""
    size = (32, 32, 32)
    width, depths, kernel, patch = 8, (1, 2, 1, 1), 5, (4, 4, 4)
    encoder = encoder_of(size, width=width, depths=depths, kernel=kernel, patch_voxels=patch)
    expected = (4**3 + 1) * width + 2 * width
    for stage, depth in enumerate(depths):
        c = width * 2**stage
        expected += depth * ((kernel**3 + 1) * c + 2 * c + (c + 1) * 4 * c + (4 * c + 1) * c + c)
        if stage < len(depths) - 1:
            expected += 2 * c + (2**3 * c + 1) * 2 * c
    expected += 2 * width * 2 ** (len(depths) - 1)
    assert sum(p.numel() for p in encoder.parameters()) == expected


def test_every_voxel_of_an_allowed_size_reaches_the_features() -> None:
    spec = registry().spec(BackboneSpec, NAME)
    options = {"width": 4, "depths": (1, 1, 1), "patch_voxels": (1, 2, 4), "layer_scale": 1.0}
    size = spec.size_multiple(parse_options(spec, options))
    assert size == (4, 8, 16)
    volume = torch.zeros(1, 1, *size, requires_grad=True)
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1))
    features = encoder_of(size, **options).eval()(volume + noise)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((features * weights).sum(), volume)
    assert bool((gradient != 0).all())


def test_other_sizes_are_refused() -> None:
    with pytest.raises(PluginError, match=r"multiples of \(4, 4, 4\)"):
        encoder_of((6, 8, 8), **SMALL)


def test_blocks_begin_as_next_to_nothing_and_drop_path_leaves_out_whole_cases() -> None:
    scaled = encoder_of((8, 8, 8), **SMALL)
    block = scaled.stages[1][0]
    x = torch.randn(64, 4, 4, 4, 4)
    assert torch.allclose(block(x), x, atol=1e-4)
    block = encoder_of((8, 8, 8), **SMALL | {"layer_scale": 0.0, "drop_path": 0.5}).stages[3][0]
    x = torch.randn(64, 8, 2, 2, 2)
    block.train()
    changed = (block(x) != x).flatten(1).any(dim=1)
    assert 10 < int(changed.sum()) < 54
    added, expected = (block(x) - x), block.eval()(x) - x
    kept = added.flatten(1).any(dim=1)
    assert torch.allclose(added[kept], 2 * expected[kept], atol=1e-5)


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"depths": ()}, {"drop_path": 1.0}, {"width": 0}])
def test_options_that_make_no_network_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PluginError):
        parse_options(registry().spec(BackboneSpec, NAME), wrong)
