"""Networks of MONAI as encoders: MONAI's numbers, any size, maps for CAM, and options that are checked."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.efficientnet import EfficientNetBN
from monai.networks.nets.senet import SEResNet50
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.vit import ViT
from oaplug_backbones.monai_zoo import HalvingPool
from test_contracts import SMALL as SMALL_OF_CONTRACTS
from torch import nn

from oaplug import create_encoder
from oaplug.core.errors import PluginError
from oaplug.plug import BackboneSpec
from oaplug.plug.registry import registry
from oaplug.testing.contract import check_backbone

pytestmark = pytest.mark.slow

ZOO = ("densenet121", "seresnet50", "efficientnet_b0", "vit", "swin_unetr")
SIZE = (32, 64, 32)
SMALL = {**SMALL_OF_CONTRACTS, "vit": {**SMALL_OF_CONTRACTS["vit"], "patch_voxels": [8, 8, 8]}}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name, *, size=SIZE, in_channels=2, **options):
    torch.manual_seed(0)
    return create_encoder(name, in_channels=in_channels, input_size=size, **options)


def into_monai(encoder, network, *, beyond):
    """MONAI's network with an encoder's weights; it has more only below the names in `beyond`."""
    missing, unexpected = network.load_state_dict(encoder.state_dict(), strict=False)
    assert unexpected == [], "names are MONAI's"
    assert missing
    assert all(name.startswith(beyond) for name in missing)
    return network.eval()


@torch.no_grad()
def trained_a_little(encoder):
    """An encoder in eval mode whose running statistics are neither those of noise nor 0 and 1."""
    encoder(3 + 2 * noise(2, 2, *SIZE, seed=1))
    return encoder.eval()


@torch.no_grad()
def test_densenet121_with_monai_s_classifier_gives_monai_s_logits():
    encoder = trained_a_little(build("densenet121", width=8, growth_rate=4))
    settings = {"spatial_dims": 3, "in_channels": 2, "init_features": 8, "growth_rate": 4}
    network = into_monai(encoder, DenseNet121(out_channels=3, **settings), beyond="class_layers.out.")
    volume = noise(2, 2, *SIZE)
    torch.testing.assert_close(network.class_layers.out(encoder(volume)), network(volume))


@torch.no_grad()
def test_seresnet50_with_monai_s_classifier_gives_monai_s_logits():
    encoder = trained_a_little(build("seresnet50"))
    network = SEResNet50(spatial_dims=3, in_channels=2, num_classes=3)
    network = into_monai(encoder, network, beyond="last_linear.")
    volume = noise(2, 2, *SIZE)
    torch.testing.assert_close(network.last_linear(encoder(volume)), network(volume), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_efficientnet_b0_with_monai_s_classifier_gives_monai_s_logits(norm):
    encoder = trained_a_little(build("efficientnet_b0", norm=norm))
    norms = {} if norm == "batch" else {"norm": ("group", {"num_groups": 8})}
    network = EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=2, num_classes=3, **norms
    )
    network = into_monai(encoder, network, beyond="_fc.")
    volume = noise(2, 2, *SIZE)
    torch.testing.assert_close(network._fc(encoder(volume)), network(volume), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_vit_gives_the_mean_of_monai_s_tokens(dropout):
    options = {"width": 24, "depth": 2, "heads": 3, "mlp_width": 40, "dropout": dropout}
    encoder = build("vit", patch_voxels=[8, 16, 4], **options).eval()
    network = ViT(
        in_channels=2,
        img_size=SIZE,
        patch_size=(8, 16, 4),
        hidden_size=24,
        mlp_dim=40,
        num_layers=2,
        num_heads=3,
    )
    network = into_monai(encoder, network, beyond="blocks.")
    volume = noise(2, 2, *SIZE)
    tokens, _ = network(volume)
    torch.testing.assert_close(encoder(volume), tokens.mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("use_v2", [False, True])
def test_swin_unetr_gives_the_mean_of_monai_s_deepest_maps(use_v2):
    options = {"width": 12, "depths": [1, 2, 1, 2], "window_tokens": 4, "use_v2": use_v2}
    encoder = build("swin_unetr", **options).eval()
    network = SwinUNETR(
        in_channels=2, out_channels=2, feature_size=12, depths=(1, 2, 1, 2), window_size=4, use_v2=use_v2
    )
    network = into_monai(encoder, network, beyond=("encoder", "decoder", "out."))
    volume = noise(2, 2, *SIZE)
    deepest = network.swinViT(volume, normalize=True)[-1]
    torch.testing.assert_close(encoder(volume), deepest.mean(dim=(2, 3, 4)))


@pytest.mark.parametrize(
    ("name", "options", "features"),
    [
        ("densenet121", {}, 1024),
        ("seresnet50", {"width": 16}, 512),
        ("efficientnet_b0", {}, 1280),
        ("vit", {"depth": 1}, 384),
        ("swin_unetr", {"width": 48}, 768),
    ],
)
def test_the_width_of_features_is_that_of_the_articles_and_options(name, options, features):
    encoder = build(name, **options).eval()
    assert encoder.num_features == features
    with torch.no_grad():
        assert encoder(noise(1, 2, *SIZE)).shape == (1, features)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("efficientnet_b0", {"norm": "group"}),
        ("vit", {**SMALL["vit"], "dropout": 0.2}),
        slow("densenet121", {"width": 8, "growth_rate": 4, "dropout": 0.2}),
        slow("swin_unetr", {**SMALL["swin_unetr"], "use_v2": True, "checkpoint_blocks": True}),
    ],
)
def test_variants_keep_the_contract_too(name, options):
    check_backbone(registry().spec(BackboneSpec, name), options)


@torch.no_grad()
@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "swin_unetr"])
@pytest.mark.parametrize("size", [(17, 30, 33), (40, 64, 65)])
def test_any_size_has_maps_of_a_32nd_of_it_rounded_up(name, size):
    encoder = build(name, size=size, **SMALL.get(name, {})).eval()
    shapes = []
    encoder.cam_layer.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[2:])))
    assert encoder(noise(1, 2, *size)).isfinite().all()
    assert shapes == [tuple(-(-side // 32) for side in size)]


@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 2), (1, 2, 5, 4, 7), (1, 1, 1, 3, 2)])
def test_the_halving_pool_is_the_mean_of_what_lies_in_a_box(shape):
    maps = noise(*shape)
    sums, counts = maps.double().numpy(), np.ones(shape)
    for axis in (2, 3, 4):
        starts = np.arange(0, shape[axis], 2)
        sums, counts = (np.add.reduceat(array, starts, axis=axis) for array in (sums, counts))
    np.testing.assert_allclose(HalvingPool()(maps).numpy(), sums / counts, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_grid_of_vit_has_a_patch_s_token_where_the_patch_lies():
    encoder = build("vit", patch_voxels=[8, 16, 4], depth=0, width=12, heads=2).eval()
    seen = []
    encoder.cam_layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    volume = noise(1, 2, *SIZE)
    encoder(volume)
    volume[:, :, 16:24, 32:48, 20:24] += 1
    encoder(volume)
    changed = (seen[0] != seen[1]).any(dim=1)[0].nonzero().tolist()
    assert seen[0].shape == (1, 12, 4, 4, 8)
    assert changed == [[2, 2, 5]]


def test_vit_is_told_where_each_patch_lies():
    """Two volumes with the same patches at other places differ by their position embedding alone."""
    options = {"patch_voxels": [16, 16, 16], "width": 24, "depth": 2, "heads": 2, "mlp_width": 24}
    encoder = build("vit", **options).eval()
    volume = noise(1, 2, *SIZE)
    with torch.no_grad():
        first, second = encoder(volume), encoder(volume.roll(16, dims=3))
        encoder.get_submodule("patch_embedding").position_embeddings.zero_()
        third, fourth = encoder(volume), encoder(volume.roll(16, dims=3))
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(third, fourth, rtol=1e-4, atol=1e-5)


def test_input_sizes_of_vit_must_be_multiples_of_its_patch():
    with pytest.raises(PluginError, match=r"multiples of \(16, 16, 16\), got \(32, 60, 32\)"):
        build("vit", size=(32, 60, 32))
    assert build("vit", size=(32, 60, 32), patch_voxels=[16, 20, 16], depth=1).num_features == 384


@pytest.mark.parametrize("name", ZOO)
def test_channels_last_volumes_give_the_same_features(name):
    """The engine lays volumes out so, on the CPU as well."""
    encoder = build(name, **SMALL.get(name, {})).eval()
    volume = noise(2, 2, *SIZE)
    with torch.no_grad():
        expected = encoder(volume)
        encoder.to(memory_format=torch.channels_last_3d)
        found = encoder(volume.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_an_untrained_efficientnet_lets_volumes_through_in_eval_mode():
    encoder = build("efficientnet_b0").eval()
    with torch.no_grad():
        first, second = encoder(noise(2, 2, *SIZE))
    assert first.std() > 0.05
    assert (first - second).std() > 0.05


def test_depthwise_convolutions_of_efficientnet_start_with_the_spread_of_one_group_s_fan_out():
    encoder = build("efficientnet_b0")
    depthwise = [m for m in encoder.modules() if isinstance(m, nn.Conv3d) and m.groups > 1]
    assert len(depthwise) == 16
    for convolution in depthwise:
        voxels = convolution.kernel_size[0] ** 3
        assert convolution.weight.std().item() == pytest.approx((2 / voxels) ** 0.5, rel=0.1)


def test_forgetting_the_blocks_activations_changes_no_gradient():
    def gradients(**options):
        encoder = build("swin_unetr", **SMALL["swin_unetr"], **options)
        encoder(noise(1, 2, 32, 32, 32)).square().sum().backward()
        return {name: parameter.grad for name, parameter in encoder.named_parameters()}

    torch.testing.assert_close(gradients(checkpoint_blocks=True), gradients())


def test_building_never_asks_the_network(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ZOO:
        build(name, **SMALL.get(name, {}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("densenet121", {"widht": 8}, "unknown key 'widht'; did you mean 'width'"),
        ("seresnet50", {"pretrained": True}, "unknown key 'pretrained'"),
        ("seresnet50", {"width": 2, "reduction": 16}, r"reduction must be from 1 to 4 \* width = 8, got 16"),
        ("efficientnet_b0", {"norm": "instance"}, "norm: .*'instance'"),
        ("vit", {"width": 100}, "a width of 100 cannot be shared by 6 heads"),
        ("vit", {"heads": 0}, "a width of 384 cannot be shared by 0 heads"),
        ("vit", {"patch_voxels": [16, 16]}, r"the key 'patch_voxels\.2' is missing"),
        ("vit", {"patch_voxels": [16, 0, 16]}, "patch_voxels must be positive"),
        ("swin_unetr", {"heads": [3, 6, 12, 25]}, "a width of 192 cannot be shared by 25 heads"),
        ("swin_unetr", {"depths": [2, 2, 2]}, r"the key 'depths\.3' is missing"),
    ],
)
def test_options_that_fit_no_network_are_refused_before_one_is_built(name, options, message):
    with pytest.raises(PluginError, match=f"backbone {name}: {message}"):
        build(name, **options)
