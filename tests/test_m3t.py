"""m3t is the network of the article, or of its widely used implementation: numbers, names, any size."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from oaplug_backbones.m3t_weights import (
    classifier_keys_of_legacy,
    encoder_state_from_legacy,
    encoder_state_from_torchvision,
)
from oaplug_backbones.resnet2d import ResNet2d
from torch import nn
from torch.nn import functional

from oaplug import create_encoder, create_network
from oaplug.core.errors import CheckpointError, PluginError
from oaplug.plug import BackboneSpec
from oaplug.plug.registry import registry
from oaplug.testing.contract import check_backbone

KL = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}
CUBE, BOX = (12, 12, 12), (9, 14, 11)
SMALL = {"channels": 3, "resnet_width": 4, "width": 12, "depth": 2, "heads": 3, "mlp_width": 20}
ARTICLE = {"channels": 32, "resnet_depth": 50, "width": 256, "depth": 8}


def legacy_shapes(size, *, channels=3, resnet_width=4, width=12, depth=2, mlp_width=20, classes=5):
    """Names and shapes of the widely used implementation's weights, with a 2D ResNet-18."""

    def norm(prefix, count):
        kinds = ("weight", "bias", "running_mean", "running_var")
        return {f"{prefix}.{kind}": (count,) for kind in kinds} | {f"{prefix}.num_batches_tracked": ()}

    def linear(prefix, inputs, outputs):
        return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}

    shapes = {}
    for index, inputs in enumerate((1, channels), start=1):
        shapes[f"0.conv{index}.weight"] = (channels, inputs, 5, 5, 5)
        shapes |= {f"0.conv{index}.bias": (channels,)} | norm(f"0.bn{index}", channels)
    shapes["1.CNN_2D.conv1.weight"] = (resnet_width, channels, 7, 7)
    shapes |= norm("1.CNN_2D.bn1", resnet_width)
    inputs = resnet_width
    for stage in range(4):
        outputs = resnet_width * 2**stage
        for block in range(2):
            place = f"1.CNN_2D.layer{stage + 1}.{block}"
            shapes[f"{place}.conv1.weight"] = (outputs, inputs, 3, 3)
            shapes[f"{place}.conv2.weight"] = (outputs, outputs, 3, 3)
            shapes |= norm(f"{place}.bn1", outputs) | norm(f"{place}.bn2", outputs)
            if block == 0 and stage > 0:
                shapes[f"{place}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= norm(f"{place}.downsample.1", outputs)
            inputs = outputs
    shapes |= linear("1.non_linear_proj.0", inputs, 2 * width) | linear(
        "1.non_linear_proj.2", 2 * width, width
    )
    shapes |= {"2.cls_token": (1, 1, width), "2.sep_token": (1, 1, width)}
    shapes |= {f"2.{plane}_plane": (1, width) for plane in ("coronal", "sagittal", "axial")}
    shapes["2.positions"] = (sum(size) + 4, width)
    for layer in range(depth):
        attention, perceptron = f"3.{layer}.0.fn", f"3.{layer}.1.fn"
        shapes |= linear(f"{attention}.1.qkv", width, 3 * width)
        shapes |= linear(f"{attention}.1.projection", width, width)
        shapes |= linear(f"{perceptron}.1.0", width, mlp_width) | linear(
            f"{perceptron}.1.3", mlp_width, width
        )
        for place in (f"{attention}.0", f"{perceptron}.0"):
            shapes |= {f"{place}.weight": (width,), f"{place}.bias": (width,)}
    return shapes | linear("4.linear", width, classes)


def legacy_state(size, *, prefix="", **sizes):
    """Weights of the widely used implementation that hide nothing: every tensor random."""
    generator = torch.Generator().manual_seed(3)

    def draw(name, shape):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith("running_var"):
            return torch.rand(shape, generator=generator) + 0.5
        fan_in = math.prod(shape[1:]) if len(shape) > 1 and "token" not in name else 4
        noise = torch.randn(shape, generator=generator) * math.sqrt(2 / max(fan_in, 1))
        return noise + 1 if name.endswith("weight") and len(shape) == 1 else noise

    return {prefix + name: draw(name, shape) for name, shape in legacy_shapes(size, **sizes).items()}


def plain_norm(weights, prefix, x):
    statistics = (weights[f"{prefix}.running_mean"], weights[f"{prefix}.running_var"])
    return functional.batch_norm(x, *statistics, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])


def plain_linear(weights, prefix, x):
    return functional.linear(x, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])


def plain_resnet18(weights, prefix, image):
    """One slice (C,h,w) to features (F,)."""
    norm = partial(plain_norm, weights)
    x = functional.conv2d(image[None], weights[f"{prefix}.conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(functional.relu(norm(f"{prefix}.bn1", x)), 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            place = f"{prefix}.layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, weights[f"{place}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(norm(f"{place}.bn1", y))
            y = norm(f"{place}.bn2", functional.conv2d(y, weights[f"{place}.conv2.weight"], padding=1))
            if stride == 2:
                x = functional.conv2d(x, weights[f"{place}.downsample.0.weight"], stride=2)
                x = norm(f"{place}.downsample.1", x)
            x = functional.relu(y + x)
    return x.mean(dim=(0, 2, 3))


def plain_attention(weights, prefix, x, *, heads, legacy):
    """Tokens (T,width), one head after the other; of the 3 * width outputs of qkv every third is a query."""
    width = x.shape[1]
    qkv, outputs = plain_linear(weights, f"{prefix}.qkv", x), []
    for head in range(heads):
        span = qkv[:, head * 3 * width // heads : (head + 1) * 3 * width // heads]
        query, key, value = span[:, 0::3], span[:, 1::3], span[:, 2::3]
        energy = torch.einsum("qd,kd->qk", query, key)
        if legacy:
            attention = energy.softmax(dim=-1) / width**0.5
        else:
            attention = (energy / (width / heads) ** 0.5).softmax(dim=-1)
        outputs.append(torch.einsum("qk,kd->qd", attention, value))
    return plain_linear(weights, f"{prefix}.projection", torch.cat(outputs, dim=1))


def plain_forward(weights, volume, *, legacy, heads=3, depth=2):
    """The class token (1,width) of a volume (1,1,D,H,W) from weights under the legacy names."""
    x = volume
    for index in (1, 2):
        kernel, bias = weights[f"0.conv{index}.weight"], weights[f"0.conv{index}.bias"]
        x = functional.relu(
            plain_norm(weights, f"0.bn{index}", functional.conv3d(x, kernel, bias, padding=2))
        )
    x = x[0] * x[0] if legacy else x[0]
    planes = [[x[:, d] for d in range(x.shape[1])], [x[:, :, h] for h in range(x.shape[2])]]
    planes.append([x[:, :, :, w] for w in range(x.shape[3])])
    tokens, spans = [weights["2.cls_token"][0, 0]], []
    for plane in planes:
        for image in plane:
            y = plain_linear(weights, "1.non_linear_proj.0", plain_resnet18(weights, "1.CNN_2D", image))
            tokens.append(plain_linear(weights, "1.non_linear_proj.2", functional.relu(y)))
        tokens.append(weights["2.sep_token"][0, 0])
        spans.append(len(tokens))
    x = torch.stack(tokens)
    x[: spans[0]] += weights["2.coronal_plane"]
    x[spans[0] : spans[1]] += weights["2.sagittal_plane"]
    x[spans[1] :] += weights["2.axial_plane"]
    x = x + weights["2.positions"]
    for layer in range(depth):
        for place, name in (("0", "attention"), ("1", "perceptron")):
            fn = f"3.{layer}.{place}.fn"
            y = functional.layer_norm(x, x.shape[1:], weights[f"{fn}.0.weight"], weights[f"{fn}.0.bias"])
            if name == "attention":
                y = plain_attention(weights, f"{fn}.1", y, heads=heads, legacy=legacy)
            else:
                y = plain_linear(weights, f"{fn}.1.3", functional.gelu(plain_linear(weights, f"{fn}.1.0", y)))
            x = x + y
    return x[:1]


def small_encoder(size, *, seed=0, **options):
    torch.manual_seed(seed)
    return create_encoder("m3t", input_size=size, **{**SMALL, **options})


def volumes(size, *, count=2, seed=1):
    return torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(seed))


def count_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("legacy", [True, False])
def test_the_small_variant_with_five_outputs_has_the_study_s_number_of_parameters(legacy):
    options = {"legacy": legacy}
    network = create_network("m3t", "single", targets=KL, input_size=(128,) * 3, backbone_options=options)
    assert count_parameters(network) == 11_996_469
    assert network.num_features == 128


@pytest.mark.parametrize(("mlp_width", "parameters"), [(512, 29_229_538), (768, 30_280_162)])
def test_the_widely_used_implementation_s_size_is_that_of_512_hidden_units_and_not_of_768(
    mlp_width, parameters
):
    encoder = create_encoder("m3t", input_size=(128,) * 3, legacy=True, mlp_width=mlp_width, **ARTICLE)
    assert count_parameters(encoder) + count_parameters(nn.Linear(256, 2)) == parameters


@pytest.mark.parametrize("size", [CUBE, BOX])
@pytest.mark.parametrize("legacy", [True, False])
def test_features_are_those_of_a_plain_network_that_takes_one_slice_at_a_time(size, legacy):
    weights = legacy_state(size)
    encoder = small_encoder(size, legacy=legacy).eval()
    encoder.load_state_dict(encoder_state_from_legacy(weights))
    volume = volumes(size)
    with torch.no_grad():
        features = encoder(volume)
        expected = torch.cat([plain_forward(weights, v[None], legacy=legacy) for v in volume])
        other = torch.cat([plain_forward(weights, v[None], legacy=not legacy) for v in volume])
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert (features - other).abs().max() > 0.1, "the two variants must be told apart"
    assert (features[0] - features[1]).abs().max() > 0.01, "the volume must matter"


def test_attention_is_that_of_pytorch_s_own_module():
    width, heads = SMALL["width"], SMALL["heads"]
    attention = small_encoder(BOX).layers[0].attention
    other = nn.MultiheadAttention(width, heads, batch_first=True)
    split = torch.arange(3 * width).view(heads, -1, 3)
    order = torch.cat([split[..., kind].flatten() for kind in range(3)])
    with torch.no_grad():
        other.in_proj_weight.copy_(attention.qkv.weight[order])
        other.in_proj_bias.copy_(attention.qkv.bias[order])
        other.out_proj.load_state_dict(attention.projection.state_dict())
    tokens = 3 * torch.randn(2, 17, width)
    expected, _ = other(tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_with_recomputed_activations_it_keeps_the_contract_too():
    check_backbone(
        registry().spec(BackboneSpec, "m3t"), SMALL | {"checkpoint_slices": True, "slices_per_chunk": 20}
    )


def test_the_legacy_variant_s_loss_reaches_every_weight():
    encoder = small_encoder(BOX, legacy=True)
    _, gradients = train_step(encoder, volumes(BOX))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.any() for name, gradient in gradients.items() if name.endswith("weight"))


def test_another_size_than_the_built_one_is_refused():
    with pytest.raises(ValueError, match=r"size \(9, 14, 11\), got \(12, 12, 12\)"):
        small_encoder(BOX)(volumes(CUBE))


@pytest.mark.parametrize(
    ("options", "advice"), [({"heads": 5}, "multiple of heads"), ({"slices_per_chunk": 0}, "positive")]
)
def test_options_that_do_not_fit_together_are_refused(options, advice):
    with pytest.raises(PluginError, match=f"backbone m3t: .*{advice}"):
        small_encoder(BOX, **options)


def batch_sizes(encoder, run):
    """How many slices went through the 2D network at a time."""
    seen = []
    hook = encoder.slices.network.register_forward_pre_hook(lambda _m, inputs: seen.append(len(inputs[0])))
    run()
    hook.remove()
    return seen


@pytest.mark.parametrize("size", [CUBE, BOX, (8, 13, 13)])
@pytest.mark.parametrize("slices_per_chunk", [1, 7, 16])
def test_chunks_bound_the_slices_at_a_time_and_change_no_feature(size, slices_per_chunk):
    weights = encoder_state_from_legacy(legacy_state(size))
    whole, chunked = small_encoder(size), small_encoder(size, slices_per_chunk=slices_per_chunk)
    volume = volumes(size)
    for encoder in (whole, chunked):
        encoder.load_state_dict(weights)
        encoder.eval()
    expected = whole(volume)
    with torch.no_grad():
        sizes = batch_sizes(chunked, lambda: torch.testing.assert_close(chunked(volume), expected))
    assert sum(sizes) == len(volume) * sum(size)
    assert max(sizes) <= max(slices_per_chunk, len(volume))


@pytest.mark.parametrize(("size", "batches"), [(CUBE, [72]), (BOX, [18, 28, 22]), ((8, 13, 13), [16, 52])])
def test_in_training_slices_of_one_size_share_their_batch_statistics(size, batches):
    encoder = small_encoder(size, slices_per_chunk=4)
    volume = volumes(size)
    assert batch_sizes(encoder, lambda: encoder(volume)) == batches


def test_in_training_a_cube_s_batch_statistics_are_those_of_all_slices_of_all_cases():
    encoder = small_encoder(CUBE)
    volume = volumes(CUBE)
    features = encoder.volume_block(volume)
    slices = [features.select(axis, index) for axis in (2, 3, 4) for index in range(CUBE[0])]
    network = encoder.slices.network
    filtered = torch.cat([functional.conv2d(s, network.conv1.weight, stride=2, padding=3) for s in slices])
    encoder(volume)
    torch.testing.assert_close(network.bn1.running_mean, 0.1 * filtered.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network.bn1.running_var, 0.9 + 0.1 * filtered.var(dim=(0, 2, 3)))


def train_step(encoder, volume):
    """Features and gradients by name; the running statistics change as they do in training."""
    encoder.train()
    features = encoder(volume)
    features.square().sum().backward()
    return features.detach(), {name: p.grad for name, p in encoder.named_parameters()}


def test_recomputed_activations_change_no_feature_gradient_or_running_statistic():
    plain, recomputed = (
        small_encoder(CUBE, checkpoint_slices=flag, slices_per_chunk=100) for flag in (False, True)
    )
    volume = volumes(CUBE)
    features, gradients = train_step(plain, volume)
    sizes = batch_sizes(recomputed, lambda: train_step(recomputed, volume))
    assert sizes[0] == 72, "the features were computed"
    assert len(sizes) == 2, "and once more in the backward pass"
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict())
    recomputed.zero_grad()
    torch.testing.assert_close(train_step(recomputed, volume), (features, gradients))


def test_after_recomputing_the_running_statistics_are_followed_again():
    encoder = small_encoder(BOX, checkpoint_slices=True, slices_per_chunk=10)
    for _ in range(2):
        train_step(encoder, volumes(BOX))
    chunks = sum(math.ceil(side / 5) for side in BOX)
    assert encoder.slices.network.bn1.num_batches_tracked == 2 * chunks


def test_recomputing_keeps_fewer_activations_for_the_backward_pass():
    def saved_bytes(encoder):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
            encoder(volumes((24, 24, 24)))
        return sum(kept)

    plain, recomputed = (small_encoder((24, 24, 24), checkpoint_slices=flag) for flag in (False, True))
    assert saved_bytes(recomputed) < 0.7 * saved_bytes(plain)


def test_chunks_in_training_mix_slices_from_all_over_the_volume():
    encoder = small_encoder(CUBE, checkpoint_slices=True, slices_per_chunk=12)
    position = torch.arange(12.0).view(1, 1, 12, 1, 1).expand(1, 3, *CUBE)
    means = []
    encoder.slices.network.register_forward_pre_hook(
        lambda _m, inputs: means.extend([inputs[0].mean().item()])
    )
    encoder.slices(position)
    assert len(means) == 3
    assert max(abs(mean - position.mean().item()) for mean in means) < 1.5


def test_chunks_of_planes_of_different_sizes_take_turns():
    encoder = small_encoder((9, 15, 12), checkpoint_slices=True, slices_per_chunk=3)
    seen = []
    encoder.slices.network.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape[2:]))
    encoder.slices(torch.zeros(1, 3, 9, 15, 12))
    assert len(seen) == 3 + 5 + 4
    assert {tuple(size) for size in seen[-4:]} == {(15, 12), (9, 12), (9, 15)}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.layers."])
def test_every_weight_of_the_widely_used_implementation_finds_its_place_whatever_the_prefix(prefix):
    weights = legacy_state(BOX, prefix=prefix)
    head = {f"{prefix}4.linear.weight", f"{prefix}4.linear.bias"}
    assert set(classifier_keys_of_legacy(weights)) == head
    renamed = encoder_state_from_legacy(weights)
    small_encoder(BOX, legacy=True).load_state_dict(renamed)
    kept = sorted(
        t.double().sum().item() for name, t in weights.items() if "_plane" not in name and name not in head
    )
    moved = sorted(t.double().sum().item() for name, t in renamed.items() if name != "plane_embeddings")
    assert moved == kept


def test_planes_keep_their_order_and_heads_beside_the_network_are_the_classifier_s():
    weights = legacy_state(BOX, prefix="backbone.") | {"oa_head.weight": torch.zeros(2, 5)}
    planes = encoder_state_from_legacy(weights)["plane_embeddings"]
    names = ("coronal", "sagittal", "axial")
    assert all(
        torch.equal(row, weights[f"backbone.2.{n}_plane"][0]) for row, n in zip(planes, names, strict=True)
    )
    assert "oa_head.weight" in classifier_keys_of_legacy(weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"conv1.weight": w["0.conv1.weight"]}, "state dict of one M3T"),
        (lambda w: w | {"copy.2.cls_token": w["2.cls_token"]}, "got 2 of them"),
        (lambda w: {k: t for k, t in w.items() if k != "2.axial_plane"}, r"lack 2\.axial_plane"),
        (lambda w: w | {"3.0.0.fn.1.gate.weight": torch.ones(1)}, r"unknown name '3\.0\.0\.fn\.1\.gate"),
    ],
)
def test_weights_of_another_shape_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        encoder_state_from_legacy(change(legacy_state(BOX)))


@pytest.mark.parametrize("channels", [3, 5])
def test_imagenet_weights_fill_the_2d_network_and_its_first_layer_where_there_are_three_channels(channels):
    torch.manual_seed(5)
    imagenet = ResNet2d(18, width=4, num_classes=10).state_dict()
    encoder = small_encoder(BOX, channels=channels)
    first = encoder.slices.network.conv1.weight.detach().clone()
    found = encoder_state_from_torchvision(imagenet, encoder_state=encoder.state_dict())
    missing, unexpected = encoder.load_state_dict(found, strict=False)
    filled = encoder.slices.network.state_dict()
    assert not unexpected
    assert {name for name in missing if name.startswith("slices.network.")} == (
        set() if channels == 3 else {"slices.network.conv1.weight"}
    )
    assert torch.equal(filled["conv1.weight"], imagenet["conv1.weight"] if channels == 3 else first)
    assert all(torch.equal(filled[name], imagenet[name]) for name in filled if name != "conv1.weight")


def test_imagenet_weights_of_another_depth_are_refused():
    imagenet = ResNet2d(50, width=4, num_classes=10).state_dict()
    with pytest.raises(CheckpointError, match="resnet_depth"):
        encoder_state_from_torchvision(imagenet, encoder_state=small_encoder(BOX).state_dict())
