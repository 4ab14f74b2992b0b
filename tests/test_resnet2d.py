"""The 2D ResNets have torchvision's names and size, and give MONAI's numbers with the same weights."""

from __future__ import annotations

import pytest
import torch
from oaplug_backbones.resnet2d import ResNet2d
from torch import nn

BLOCKS = {18: (2, (2, 2, 2, 2)), 50: (3, (3, 4, 6, 3))}


def torchvision_names(depth):
    """State-dict names of torchvision's ResNets, from the rule by which it names them."""

    def norm(prefix):
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{prefix}.{kind}" for kind in kinds]

    convolutions, stages = BLOCKS[depth]
    names = ["conv1.weight", *norm("bn1")]
    for stage, count in enumerate(stages, start=1):
        for block in range(count):
            place = f"layer{stage}.{block}"
            for index in range(1, convolutions + 1):
                names += [f"{place}.conv{index}.weight", *norm(f"{place}.bn{index}")]
            if block == 0 and (stage > 1 or convolutions == 3):
                names += [f"{place}.downsample.0.weight", *norm(f"{place}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


def monai_network(depth, *, in_channels, width, num_classes):
    """The same network in MONAI, which names its weights alike and strides in the same places."""
    from monai.networks.nets.resnet import ResNet  # seconds to import

    convolutions, stages = BLOCKS[depth]
    return ResNet(
        block="basic" if convolutions == 2 else "bottleneck",
        layers=list(stages),
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        num_classes=num_classes,
    )


def randomize_(network):
    """Weights and running statistics that hide nothing: no zero mean, no unit variance."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.dtype.is_floating_point:
            tensor.mul_(0.8).add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return network


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_with_a_thousand_classes_the_networks_have_torchvision_s_names_and_size(depth, parameters):
    network = ResNet2d(depth, num_classes=1000)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert list(network.state_dict()) == torchvision_names(depth)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_logits_and_gradients_are_monai_s_with_the_same_weights(depth):
    options = {"in_channels": 2, "width": 8, "num_classes": 5}
    network = randomize_(ResNet2d(depth, **options)).eval()
    other = monai_network(depth, **options).eval()
    other.load_state_dict(network.state_dict())
    images = torch.randn(3, 2, 45, 70, generator=torch.Generator().manual_seed(2))
    logits, expected = network(images), other(images)
    assert logits.std() > 0.01, "logits that hardly differ would agree by chance"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    expected.square().sum().backward()
    ours, theirs = (
        network.get_parameter("layer1.0.conv1.weight"),
        other.get_parameter("layer1.0.conv1.weight"),
    )
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "features"), [(18, 32), (50, 128)])
def test_without_classes_the_features_are_what_the_classifier_would_get(depth, features):
    torch.manual_seed(0)
    classifier = ResNet2d(depth, width=4, num_classes=3).eval()
    network = ResNet2d(depth, width=4).eval()
    state = {name: t for name, t in classifier.state_dict().items() if not name.startswith("fc.")}
    network.load_state_dict(state)
    images = torch.randn(2, 3, 33, 40)
    assert network.num_features == features
    with torch.no_grad():
        found = network(images)
        expected = nn.functional.linear(found, classifier.fc.weight, classifier.fc.bias)
        torch.testing.assert_close(classifier(images), expected)
    assert found.shape == (2, features)


def test_convolutions_start_with_kaiming_s_fan_out_spread():
    torch.manual_seed(0)
    weight = ResNet2d(18).get_parameter("layer2.1.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
