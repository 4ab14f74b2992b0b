"""resnet3d is the study's network: its size, its names, its strides, and every number it gives."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from oaplug import create_encoder, create_network
from oaplug.core.errors import PluginError

KL = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def medicalnet_names(depth, *, shortcut="B"):
    """State-dict names of MedicalNet's basic-block networks, from the rule by which it names them."""

    def norm(prefix):
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{prefix}.{kind}" for kind in kinds]

    names = ["conv1.weight", *norm("bn1")]
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            place = f"layer{stage}.{block}"
            names += [f"{place}.conv1.weight", *norm(f"{place}.bn1")]
            names += [f"{place}.conv2.weight", *norm(f"{place}.bn2")]
            if stage > 1 and block == 0 and shortcut == "B":
                names += [f"{place}.downsample.0.weight", *norm(f"{place}.downsample.1")]
    return names


def output_size(encoder, layer, volume):
    """Spatial size of what a layer of an encoder gives."""
    seen = []
    hook = getattr(encoder, layer).register_forward_hook(lambda _m, _i, output: seen.append(output.shape[2:]))
    with torch.no_grad():
        encoder(volume)
    hook.remove()
    return tuple(seen[0])


def randomize_(encoder, *, seed):
    """Weights and running statistics that hide nothing: no zero mean, no unit variance."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in encoder.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.dtype.is_floating_point:
            tensor.mul_(0.8).add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return encoder


def plain_forward(weights, volume, *, strides, dilations):
    """A basic-block ResNet-18 with projection shortcuts (type B) in bare torch.nn.functional."""

    def norm(x, prefix):
        statistics = (weights[f"{prefix}.running_mean"], weights[f"{prefix}.running_var"])
        return functional.batch_norm(x, *statistics, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])

    x = functional.conv3d(volume, weights["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool3d(functional.relu(norm(x, "bn1")), 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        dilation = dilations[stage - 1]
        for block in (0, 1):
            place, stride = f"layer{stage}.{block}", strides[stage - 1] if block == 0 else 1
            y = functional.conv3d(
                x, weights[f"{place}.conv1.weight"], stride=stride, padding=dilation, dilation=dilation
            )
            y = functional.relu(norm(y, f"{place}.bn1"))
            y = functional.conv3d(y, weights[f"{place}.conv2.weight"], padding=dilation, dilation=dilation)
            y = norm(y, f"{place}.bn2")
            if f"{place}.downsample.0.weight" in weights:
                x = functional.conv3d(x, weights[f"{place}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{place}.downsample.1")
            x = functional.relu(y + x)
    return x.mean(dim=(2, 3, 4))


def test_resnet18_with_five_outputs_has_the_study_s_number_of_parameters():
    network = create_network("resnet3d", "single", targets=KL, input_size=(32, 48, 40))
    assert sum(p.numel() for p in network.parameters()) == 33_162_565
    assert network.num_features == 512


def test_one_output_more_costs_513_parameters():
    def count(grades):
        targets = {"kl": {"kind": "ordinal", "grades": list(range(grades))}}
        network = create_network("resnet3d", "single", targets=targets, input_size=(32, 32, 32))
        return sum(p.numel() for p in network.parameters())

    assert count(5) - count(4) == 513


@pytest.mark.parametrize("depth", [18, 34])
def test_the_encoder_s_state_dict_has_medicalnet_s_names_in_its_order(depth):
    encoder = create_encoder("resnet3d", input_size=(32, 32, 32), depth=depth, width=4)
    assert list(encoder.state_dict()) == medicalnet_names(depth)


def test_a_shortcut_of_type_a_has_no_weights():
    encoder = create_encoder("resnet3d", input_size=(32, 32, 32), width=4, shortcut="A")
    assert list(encoder.state_dict()) == medicalnet_names(18, shortcut="A")
    assert encoder(torch.zeros(2, 1, 33, 40, 35)).shape == (2, 32)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("dilated", "stride"), [(True, 8), (False, 32)])
def test_dilation_keeps_an_eighth_of_the_input_and_strides_a_thirty_second(dilated, stride, shortcut):
    size = (64, 96, 32)
    encoder = create_encoder("resnet3d", input_size=size, width=4, dilated=dilated, shortcut=shortcut)
    volume = torch.zeros(2, 1, *size)
    assert output_size(encoder, "layer2", volume) == tuple(side // 8 for side in size)
    assert output_size(encoder, "layer4", volume) == tuple(side // stride for side in size)


@pytest.mark.parametrize(
    ("dilated", "strides", "dilations"),
    [(True, (1, 2, 1, 1), (1, 1, 2, 4)), (False, (1, 2, 2, 2), (1, 1, 1, 1))],
)
def test_the_features_are_those_of_a_plain_pytorch_network_with_the_same_weights(dilated, strides, dilations):
    size = (41, 56, 47)
    torch.manual_seed(0)
    encoder = create_encoder("resnet3d", in_channels=2, input_size=size, width=8, dilated=dilated)
    randomize_(encoder, seed=1).eval()
    volume = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = encoder(volume)
        expected = plain_forward(encoder.state_dict(), volume, strides=strides, dilations=dilations)
    assert features.std() > 0.01, "features that hardly differ would agree by chance"
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_the_same_weights_dilated_and_strided_give_other_features():
    torch.manual_seed(0)
    dilated = create_encoder("resnet3d", input_size=(32, 40, 48), width=8).eval()
    strided = create_encoder("resnet3d", input_size=(32, 40, 48), width=8, dilated=False).eval()
    strided.load_state_dict(dilated.state_dict())
    volume = torch.randn(1, 1, 32, 40, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert not torch.allclose(dilated(volume), strided(volume), atol=1e-3)


def test_convolutions_start_with_kaiming_s_fan_out_spread():
    torch.manual_seed(0)
    encoder = create_encoder("resnet3d", input_size=(32, 32, 32), width=32)
    weight = encoder.state_dict()["layer2.1.conv1.weight"]
    fan_out = weight.shape[0] * 27
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({"depth": 10}, 32),
        ({"depth": 50}, 128),
        ({"stem_stride": 1, "stem_pool": False, "stem_kernel": 3}, 32),
    ],
)
def test_variants_give_their_width_of_features(options, features):
    encoder = create_encoder("resnet3d", input_size=(17, 20, 23), width=4, **options)
    assert encoder.num_features == features
    assert encoder(torch.zeros(2, 1, 17, 20, 23)).shape == (2, features)


def test_without_early_shrinking_the_stem_keeps_the_input_s_size():
    options = {"stem_stride": 1, "stem_pool": False, "stem_kernel": 3, "width": 4}
    encoder = create_encoder("resnet3d", input_size=(10, 14, 12), **options)
    assert output_size(encoder, "layer1", torch.zeros(1, 1, 10, 14, 12)) == (10, 14, 12)


def test_unknown_options_and_depths_are_refused():
    with pytest.raises(PluginError, match="unknown key 'widht'; did you mean 'width'"):
        create_encoder("resnet3d", input_size=(32, 32, 32), widht=8)
    with pytest.raises(PluginError, match="depth"):
        create_encoder("resnet3d", input_size=(32, 32, 32), depth=19)


def monai_network(depth, *, shortcut, dilated):
    """The same network in MONAI, whose last two stages are dilated afterwards as MedicalNet's are."""
    from monai.networks.nets.resnet import ResNet  # seconds to import

    kind, layers = {18: ("basic", [2, 2, 2, 2]), 50: ("bottleneck", [3, 4, 6, 3])}[depth]
    network = ResNet(
        kind, layers, [4, 8, 16, 32], n_input_channels=2, conv1_t_size=7, conv1_t_stride=2,
        shortcut_type=shortcut, feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    for stage, dilation in ((network.layer3, 2), (network.layer4, 4)) if dilated else ():
        for block in stage:
            for convolution in (m for m in block.modules() if isinstance(m, nn.Conv3d)):
                convolution.stride = (1, 1, 1)
                if convolution.kernel_size == (3, 3, 3):
                    convolution.dilation = convolution.padding = (dilation,) * 3
            if isinstance(block.downsample, partial):
                block.downsample = partial(
                    block.downsample.func, **{**block.downsample.keywords, "stride": 1}
                )
    return network


@pytest.mark.slow
@pytest.mark.parametrize("dilated", [True, False])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("depth", [18, 50])
def test_the_same_seed_gives_the_weights_and_features_of_monai(depth, shortcut, dilated):
    size, options = (33, 32, 40), {"width": 4, "depth": depth, "shortcut": shortcut, "dilated": dilated}
    torch.manual_seed(3)
    other = monai_network(depth, shortcut=shortcut, dilated=dilated)
    torch.manual_seed(3)
    encoder = create_encoder("resnet3d", in_channels=2, input_size=size, **options)
    weights, expected = encoder.state_dict(), other.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    volume = torch.randn(2, 2, *size)
    torch.testing.assert_close(encoder(volume), other(volume), rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_shortcuts_without_weights():
    encoder = create_encoder("resnet3d", input_size=(16, 16, 16), width=4, depth=10, shortcut="A").eval()
    for name, parameter in encoder.named_parameters():
        if name.startswith(("layer2", "layer3", "layer4")):
            nn.init.zeros_(parameter)  # what is left of these stages is their shortcuts
    encoder(torch.randn(1, 1, 16, 16, 16)).sum().backward()
    assert encoder.conv1.weight.grad.abs().sum() > 0


def test_the_networks_of_the_study_are_built_without_monai_whose_import_takes_seconds():
    code = (
        "import sys; from oaplug import create_encoder\n"
        "for name in ('resnet3d', 'm3t', 'nnmamba'): create_encoder(name, input_size=(32, 32, 32))\n"
        "print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
