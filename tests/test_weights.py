"""Weights from elsewhere: released networks give their own outputs here, and what does not fit is refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import pickle
from dataclasses import fields, replace

import pytest
import torch
from documents import DOCS, quoted, table
from released_networks import (
    linear,
    nnmamba_features,
    nnmamba_state,
    resnet3d_features,
    resnet3d_state,
)
from safetensors.torch import save_file
from test_m3t import legacy_state as m3t_state
from test_m3t import plain_forward as m3t_forward

import oaplug
from oaplug.commands import convert_weights as command
from oaplug.core.errors import CheckpointError, PluginError
from oaplug.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from oaplug.model.parts import record_part
from oaplug.model.run_folder import read_run
from oaplug.model.weight_files import read_weight_file
from oaplug.model.weights import start_encoder
from oaplug.plug import BackboneSpec, WeightMap, WeightSource
from oaplug.plug.registry import registry
from oaplug.testing.toy import HIERARCHY

CUBE = (12, 12, 12)
KL = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}
OA = {"oa": {"kind": "binary"}}


def m3t_features(state, volume):
    return m3t_forward(state, volume, legacy=True, heads=8)


RELEASED = {  # backbone: state by outputs, features, classifier, input size
    "resnet3d": (lambda n: resnet3d_state(outputs=n), resnet3d_features, "fc", (33, 40, 35)),
    "m3t": (lambda n: m3t_state(CUBE, width=16, classes=n), m3t_features, "4.linear", CUBE),
    "nnmamba": (lambda n: nnmamba_state(outputs=n), nnmamba_features, "mlp.3", (10, 13, 12)),
}


def released(backbone, outputs):
    """State dict, a volume, and the logits that the released network gives for it."""
    make, features, classifier, size = RELEASED[backbone]
    state = make(outputs)
    volume = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2))
    return state, volume, linear(state, classifier, features(state, volume))


def saved(path, content):
    torch.save(content, path)
    return path


def convert(tmp_path, state, source, **choices):
    file = saved(tmp_path / "released.pth", state)
    return oaplug.convert_weights(file, source=source, output=tmp_path / "made.safetensors", **choices)


def network_of(made, *, size, targets, head=None, **choices):
    record = made.record
    return oaplug.create_network(
        record.backbone.name,
        head or record.head.name,
        targets=targets,
        input_size=size,
        weights=made.path,
        **choices,
    ).eval()


def assert_same(found, expected):
    assert expected.numel() == 1 or expected.std() > 0.01, "numbers that hardly differ would agree by chance"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", RELEASED)
@pytest.mark.parametrize(("outputs", "target"), [(1, "oa"), (5, "kl")])
def test_the_study_s_single_models_give_their_logits(tmp_path, backbone, outputs, target):
    state, volume, logits = released(backbone, outputs)
    made = convert(tmp_path, state, "study")
    network = network_of(made, size=volume.shape[2:], targets=HIERARCHY, target=target)
    assert list(made.record.targets) == [target]
    with torch.no_grad():
        assert_same(network(volume)[target], logits)


@pytest.mark.parametrize("backbone", RELEASED)
def test_the_study_s_dual_models_give_the_logits_of_both_heads(tmp_path, backbone):
    state, volume, kl = released(backbone, 5)
    outer = {"binary_head.weight": torch.randn(2, 5), "binary_head.bias": torch.randn(2)}
    wrapped = {f"backbone.{name}": tensor for name, tensor in state.items()} | outer
    made = convert(tmp_path, wrapped, "study")
    assert made.record.backbone.name == backbone
    network = network_of(made, size=volume.shape[2:], targets=HIERARCHY)
    with torch.no_grad():
        logits = network(volume)
    assert_same(logits["kl"], kl)
    assert_same(logits["oa"], linear(outer, "binary_head", kl))


@pytest.mark.parametrize(("backbone", "source"), [("m3t", "m3t"), ("nnmamba", "nnmamba")])
def test_of_two_outputs_one_logit_remains_with_the_same_probabilities(tmp_path, backbone, source):
    state, volume, logits = released(backbone, 2)
    made = convert(tmp_path, state, source)
    network = network_of(made, size=volume.shape[2:], targets=OA)
    with torch.no_grad():
        found = network.probabilities(network(volume))["oa"]
    assert_same(found, logits.softmax(dim=1))


def test_any_other_number_of_outputs_is_a_target_of_as_many_grades(tmp_path):
    state, volume, logits = released("nnmamba", 3)
    made = convert(tmp_path, state, "nnmamba")
    network = network_of(made, size=volume.shape[2:], targets=made.record.targets)
    with torch.no_grad():
        assert_same(network(volume)["grade"], logits)


def test_the_authors_dropout_becomes_the_head_s(tmp_path):
    made = convert(tmp_path, nnmamba_state(), "nnmamba")
    assert made.record.head.options["dropout"] == 0.5
    assert network_of(made, size=(8, 8, 8), targets=OA).head.dropout.p == 0.5


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "B"), (18, "A"), (18, "B"), (34, "A")])
def test_medicalnet_s_encoders_give_their_features(tmp_path, depth, shortcut):
    state = resnet3d_state(depth, shortcut=shortcut)
    nested = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    made = convert(tmp_path, nested, "medicalnet")
    assert (made.record.backbone.options["depth"], made.record.head) == (depth, None)
    volume = torch.randn(2, 1, 33, 40, 35, generator=torch.Generator().manual_seed(2))
    network = network_of(made, size=(33, 40, 35), targets=HIERARCHY, head="dual")
    with torch.no_grad():
        assert_same(network.features(volume), resnet3d_features(state, volume))


@pytest.mark.parametrize("depth", [50, 101])
def test_depth_width_channels_and_shortcut_are_read_off_bottlenecks(tmp_path, depth):
    made = convert(tmp_path, resnet3d_state(depth, width=2, channels=3), "medicalnet")
    options = {"depth": depth, "width": 2, "shortcut": "B", "dilated": True}
    assert options.items() <= made.record.backbone.options.items()
    assert made.record.in_channels == 3
    state, converted = resnet3d_state(depth, width=2, channels=3), load_checkpoint(made.path).network
    assert all(torch.equal(converted[f"encoder.{name}"], state[name]) for name in state)


STUDY_M3T = {"channels": 16, "resnet_width": 64, "width": 128, "depth": 4, "mlp_width": 256}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "parameters", "not_default"),
    [
        (lambda: resnet3d_state(width=64, outputs=5), 33_162_565, {}),
        (lambda: m3t_state((128, 128, 128), **STUDY_M3T), 11_996_469, {"legacy": True}),
        (lambda: nnmamba_state(channels=32, blocks=3, width=32, outputs=5), 12_876_453, {}),
    ],
)
def test_the_study_s_networks_have_its_sizes_and_are_those_of_the_defaults(
    tmp_path, make, parameters, not_default
):
    made = convert(tmp_path, make(), "study")
    assert (made.parameters, made.not_default) == (parameters, not_default)


def test_the_sizes_of_m3t_are_read_off_its_shapes(tmp_path):
    made = convert(tmp_path, m3t_state((9, 9, 9), width=16, depth=3, mlp_width=24, channels=5), "m3t")
    expected = {"channels": 5, "width": 16, "depth": 3, "mlp_width": 24, "resnet_width": 4, "legacy": True}
    assert expected.items() <= made.record.backbone.options.items()
    assert made.record.input_size == (9, 9, 9)


def test_a_checkpoint_says_what_it_was_made_of_and_of_which_file_without_a_folder(tmp_path):
    made = convert(tmp_path, resnet3d_state(outputs=5), "study")
    said = load_checkpoint(made.path).progress["weights"]
    digest = hashlib.sha256((tmp_path / "released.pth").read_bytes()).hexdigest()
    assert (said["source"], said["file"], said["sha256"]) == ("study", "released.pth", digest)
    assert (said["backbone"]["name"], said["head"]["name"]) == ("resnet3d", "single")
    assert str(tmp_path) not in json.dumps(said)


def test_old_files_without_counters_of_batches_are_whole(tmp_path):
    state = {n: t for n, t in resnet3d_state(outputs=1).items() if not n.endswith("num_batches_tracked")}
    made = convert(tmp_path, state, "study")
    assert load_checkpoint(made.path).network["encoder.bn1.num_batches_tracked"] == 0


def test_converting_leaves_the_generator_and_the_file_as_they_were(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    file = saved(tmp_path / "released.pth", resnet3d_state(outputs=1))
    before = file.read_bytes()
    oaplug.convert_weights(file, source="study", output=tmp_path / "made.safetensors")
    assert torch.equal(torch.rand(3), expected)
    assert file.read_bytes() == before


def without(*names):
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("make", "source", "words"),
    [
        (lambda: without("layer3.1.bn2.bias")(resnet3d_state()), "medicalnet", "without layer3.1.bn2.bias"),
        (lambda: resnet3d_state() | {"aspp.0.weight": torch.ones(2)}, "medicalnet", "with aspp.0.weight"),
        (
            lambda: resnet3d_state() | {"layer2.0.conv1.weight": torch.ones(8, 5, 3, 3, 3)},
            "medicalnet",
            r"layer2.0.conv1.weight has the shape \(8, 5, 3, 3, 3\), and \(8, 4, 3, 3, 3\)",
        ),
        (lambda: without("conv1.weight")(resnet3d_state()), "medicalnet", "there is no conv1.weight"),
        (lambda: resnet3d_state() | {"conv1.weight": torch.ones(3)}, "medicalnet", r"conv1.weight .*\(3,\)"),
        (lambda: resnet3d_state() | {"layer4.2.x": torch.ones(1)}, "medicalnet", r"\(2, 2, 2, 3\) basic"),
        (lambda: resnet3d_state(outputs=3), "study", "has 3 outputs; the study's have 1 or 5"),
        (lambda: resnet3d_state(), "study", "has no outputs"),
        (lambda: without("fc.bias")(resnet3d_state(outputs=5)), "study", "weight and a bias, got fc.weight"),
        (
            lambda: {f"backbone.{n}": t for n, t in resnet3d_state(outputs=5).items()},
            "study",
            "one linear layer.*got nothing",
        ),
        (
            lambda: (
                {f"backbone.{n}": t for n, t in resnet3d_state(outputs=5).items()}
                | {"binary_head.weight": torch.ones(2, 4), "binary_head.bias": torch.ones(2)}
            ),
            "study",
            r"coarse_linear.oa.weight has the shape \(2, 4\), and \(2, 5\)",
        ),
        (lambda: without("2.axial_plane")(m3t_state(CUBE, width=16)), "m3t", "2.axial_plane"),
        (lambda: without("3.0.0.fn.1.qkv.bias")(m3t_state(CUBE, width=16)), "m3t", "layers.0.attention.qkv"),
        (lambda: m3t_state((12, 12, 11), width=16), "m3t", r"positions has the shape \(39, 16\)"),
        (lambda: nnmamba_state() | {"mamba_seq.mamba.D": torch.ones(8)}, "nnmamba", r"mamba_seq\.\*"),
        (lambda: without("layer2.1.bn1.weight")(nnmamba_state()), "nnmamba", "layer2.1.bn1.weight"),
        (lambda: {"weight": torch.ones(2)}, "study", "no m3t: .*no nnmamba: .*no resnet3d: "),
        (
            lambda: {"conv1.weight": torch.ones(4, 3, 7, 7)},
            "torchvision",
            "part of m3t.*-pretrained_weights",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, make, source, words):
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path, make(), source)
    assert not (tmp_path / "made.safetensors").exists()


def test_an_unknown_source_or_backbone_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(PluginError, match="did you mean 'medicalnet'"):
        convert(tmp_path, resnet3d_state(), "medicalnett")
    with pytest.raises(PluginError, match="the backbone m3t does not know weights of 'medicalnet'"):
        convert(tmp_path, resnet3d_state(), "medicalnet", backbone="m3t")


def test_another_head_is_taken_where_its_tensors_are_the_same(tmp_path):
    made = convert(tmp_path, resnet3d_state(outputs=5), "study", head="none")
    assert made.record.head is None
    assert made.unused == ("linear.weight", "linear.bias")
    assert not [name for name in load_checkpoint(made.path).network if name.startswith("head.")]
    with pytest.raises(CheckpointError, match=r"linear.weight has the shape \(5, 32\), and \(4, 32\)"):
        convert(tmp_path, resnet3d_state(outputs=5), "study", head="ordinal")
    with pytest.raises(CheckpointError, match="no classifier in it, and so no head single"):
        convert(tmp_path, resnet3d_state(), "medicalnet", head="single")


def test_a_network_is_built_as_its_weights_say_and_of_no_other_parts(tmp_path):
    made = convert(tmp_path, resnet3d_state(outputs=5), "study")
    choices = {"targets": KL, "input_size": (16, 16, 16), "weights": str(made.path)}
    assert oaplug.create_network("resnet3d", "single", **choices).num_features == 32
    with pytest.raises(CheckpointError, match="backbone resnet3d, not of nnmamba"):
        oaplug.create_network("nnmamba", "single", **choices)
    with pytest.raises(CheckpointError, match="head single, not of ordinal"):
        oaplug.create_network("resnet3d", "ordinal", **choices)
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        oaplug.create_network("resnet3d", "single", **choices, backbone_options={"width": 8})
    with pytest.raises(CheckpointError, match="positions"):
        network_of(convert(tmp_path, m3t_state(CUBE, width=16), "m3t"), size=(8, 8, 8), targets=KL)


def test_a_network_takes_the_weights_of_a_training_with_the_options_it_is_given(tmp_path):
    parts = {"targets": KL, "input_size": (16, 16, 16), "backbone_options": {"width": 4, "depth": 10}}
    trained = oaplug.create_network("resnet3d", "single", **parts)
    path = save_checkpoint(tmp_path / "c.safetensors", Checkpoint(network=trained.state_dict()))
    again = oaplug.create_network("resnet3d", "single", **parts, weights=path)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in trained.state_dict().items())


@pytest.mark.parametrize("weights", ["medicalnet", {"source": "x"}])
def test_a_checkpoint_whose_header_is_odd_is_refused(tmp_path, weights):
    checkpoint = Checkpoint(network={"encoder.w": torch.ones(2)}, progress={"weights": weights})
    path = save_checkpoint(tmp_path / "c.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match=r"c\.safetensors: "):
        read_weight_file(path)


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda place: {"state_dict": {"w": torch.ones(2)}, "x": Hostile(place)}, r"running code in it \(po"),
        (lambda place: torch.nn.Linear(2, 2), "running code in it .*Linear"),
        (lambda place: {"model": {"w": torch.ones(2)}, "args": argparse.Namespace()}, "argparse.Namespace"),
    ],
)
def test_a_file_that_needs_code_is_refused_and_runs_none(tmp_path, content, words):
    path = saved(tmp_path / "w.pth", content(tmp_path / "made"))
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_weight_file(path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "made").exists()


def test_an_old_pickle_that_needs_code_is_refused_and_runs_none(tmp_path):
    for protocol in (2, 4):
        (tmp_path / "w.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "made"), protocol=protocol))
        with pytest.raises(CheckpointError, match=r"w\.bin"):
            read_weight_file(tmp_path / "w.bin")
    assert not (tmp_path / "made").exists()


def circle():
    content = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole PyTorch file"),
        (b"<html>not found</html>", "not a whole PyTorch file"),
        (circle(), "no state dict"),
        ([1, 2], "no state dict"),
        ({"w": torch.eye(3).to_sparse()}, "w is no plain tensor"),
        ({"w": torch.zeros(2, device="meta")}, "w is no plain tensor"),
        ({"w": torch.tensor([1.0, torch.nan])}, "w has values that are not finite"),
    ],
)
def test_a_damaged_or_strange_file_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        saved(path, content)
    with pytest.raises(CheckpointError, match=rf"w\.pt.*{words}"):
        read_weight_file(path)


def test_half_a_file_is_refused_and_one_that_is_missing_named(tmp_path):
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        with pytest.raises(CheckpointError, match=f"{name} does not exist"):
            read_weight_file(path)
        saved(path, {"w": torch.ones(4000)}) if name == "w.pth" else save_file({"w": torch.ones(9)}, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=f"{name} is not a whole"):
            read_weight_file(path)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 1}, lambda s: {"state_dict": s}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_wrappers_around_names_and_state_dicts_are_taken_off(tmp_path, wrap, prefix):
    path = saved(tmp_path / "w.pth", wrap({f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.ones(1)}))
    assert list(read_weight_file(path).tensors) == ["a.weight", "b"]


def start(path, backbone="resnet3d", *, size=(16, 16, 16), **options):
    """An encoder before and after it starts from a file, and the report."""
    part = registry().get("backbone", backbone)
    torch.manual_seed(0)
    encoder = oaplug.create_encoder(backbone, input_size=size, **options)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    report = start_encoder(encoder, path, spec=part.spec, part=record_part(part, options))
    return before, encoder.state_dict(), report


def checkpoint_file(tmp_path):
    state = resnet3d_state()
    network = {f"encoder.{n}": t for n, t in state.items()} | {"head.linear.weight": torch.ones(5, 32)}
    return save_checkpoint(tmp_path / "c.safetensors", Checkpoint(network=network))


def plain_file(tmp_path):
    save_file(resnet3d_state() | {"head.linear.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def foreign_file(tmp_path):
    state = {f"module.{n}": t for n, t in (resnet3d_state() | {"head.linear.weight": torch.ones(2)}).items()}
    return saved(tmp_path / "w.pth", {"state_dict": state})


@pytest.mark.parametrize("make", [checkpoint_file, plain_file, foreign_file])
def test_an_encoder_starts_from_a_checkpoint_from_safetensors_or_from_a_foreign_file(tmp_path, make):
    _, after, report = start(make(tmp_path), width=4)
    state = resnet3d_state()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert set(report.matched) == set(state)
    assert (report.random, report.unused, report.fraction) == ((), ("head.linear.weight",), 1.0)


def test_weights_with_shortcuts_of_type_a_leave_type_b_s_projections_random(tmp_path):
    path = saved(tmp_path / "w.pth", resnet3d_state(shortcut="A", outputs=3))
    before, after, report = start(path, width=4)
    assert report.random
    assert all(".downsample." in name for name in report.random)
    assert all(torch.equal(before[name], after[name]) for name in report.random)
    assert report.unused == ("fc.weight", "fc.bias")
    counted = len(resnet3d_state(shortcut="A"))
    assert f"w.pth: {counted} of" in str(report)
    assert "15 are left random, 2 tensors of the file are unused" in str(report)
    numbers = {n: t.numel() for n, t in resnet3d_state().items() if n.endswith(("weight", "bias"))}
    missing = sum(count for name, count in numbers.items() if "downsample" in name)
    assert report.fraction == pytest.approx(1 - missing / sum(numbers.values()))


def test_weights_of_less_than_half_of_the_encoder_are_refused(tmp_path):
    state = {name: t for name, t in resnet3d_state().items() if not name.startswith("layer4")}
    with pytest.raises(CheckpointError, match=r"w\.pth does not hold .* resnet3d.*by name \d+\.\d% of the"):
        start(saved(tmp_path / "w.pth", state), width=4)
    with pytest.raises(CheckpointError, match=r"by name \d+\.\d%.*the file in_conv\.conv\.0\.weight, "):
        start(saved(tmp_path / "w.pth", nnmamba_state()), width=4)


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path):
    path = saved(tmp_path / "w.pth", resnet3d_state(width=4))
    with pytest.raises(CheckpointError, match=r"conv1\.weight .*\(4, 1, 7, 7, 7\), and \(8, 1, 7, 7, 7\) in"):
        start(path, width=8)


def test_weights_of_another_backbone_s_conversion_are_refused(tmp_path):
    made = convert(tmp_path, resnet3d_state(), "medicalnet")
    with pytest.raises(CheckpointError, match="weights of the backbone resnet3d, not of nnmamba"):
        start(made.path, "nnmamba", channels=4)


SMALL_M3T = {"channels": 3, "resnet_width": 4, "width": 16, "depth": 2, "mlp_width": 20}


def test_the_study_s_m3t_fills_the_corrected_one_with_a_warning(tmp_path, caplog):
    path = saved(tmp_path / "w.pth", m3t_state(CUBE, width=16))
    with caplog.at_level(logging.WARNING, logger="oaplug"):
        _, after, report = start(path, "m3t", size=CUBE, **SMALL_M3T)
    assert (report.source, report.fraction, report.random) == ("m3t", 1.0, ())
    assert torch.equal(after["positions"], m3t_state(CUBE, width=16)["2.positions"])
    assert "were made with legacy=True; this run has legacy=False" in caplog.text
    caplog.clear()
    start(path, "m3t", size=CUBE, **SMALL_M3T, legacy=True)
    assert not caplog.text


def test_a_2d_resnet_fills_m3t_s_slice_network_and_what_is_left_out_is_listed(tmp_path):
    prefix = "1.CNN_2D."
    theirs = m3t_state(CUBE, width=16)
    state = {n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)}
    state |= {
        "conv1.weight": torch.ones(4, 1, 7, 7),
        "fc.weight": torch.ones(9, 32),
        "fc.bias": torch.ones(9),
    }
    before, after, report = start(saved(tmp_path / "w.pth", state), "m3t", size=CUBE, **SMALL_M3T)
    assert (report.source, set(report.unused)) == ("torchvision", {"conv1.weight", "fc.weight", "fc.bias"})
    assert torch.equal(after["slices.network.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert torch.equal(after["slices.network.conv1.weight"], before["slices.network.conv1.weight"])
    assert "slices.network.conv1.weight" in report.random


def test_starting_from_weights_draws_nothing_so_the_head_starts_as_it_would_without(tmp_path):
    path = saved(tmp_path / "w.pth", resnet3d_state())
    start(path, width=4)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    oaplug.create_encoder("resnet3d", input_size=(16, 16, 16), width=4)
    assert torch.equal(drawn, torch.rand(3))


TOY, SINGLE = "Dataset901_Toy", "resnet3d-single_kl"


def small_state():
    """Weights of the small network that tests train: width 4, depth 10, a stem of 3 voxels."""
    return resnet3d_state(10) | {"conv1.weight": torch.linspace(-1, 1, 108).reshape(4, 1, 3, 3, 3)}


@pytest.mark.slow
def test_a_run_records_its_file_of_weights_and_keeps_it_when_it_goes_on(trained_project, tmp_path, capsys):
    project = trained_project.copy(tmp_path)
    file = saved(tmp_path / "medical.pth", {"state_dict": small_state() | {"fc.bias": torch.ones(2)}})
    tag = ("--tag", "medical", "--set", "training.learning_rate=1e-30")
    assert project.train(901, *tag, "-pretrained_weights", file) == 0
    assert "medical.pth: 72 of the encoder's 72 tensors (100.0% of its parameters)" in capsys.readouterr().out
    folder = project.model(TOY, SINGLE, tag="medical")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    record = read_run(folder).choices.pretrained_weights
    assert (record.file, record.sha256) == ("medical.pth", digest)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["pretrained_weights"] == {"file": "medical.pth", "sha256": digest}
    report = json.loads((folder / "fold_0" / "pretrained_weights.json").read_text())
    assert (report["unused"], report["random"], report["source"]) == (["fc.bias"], [], "names")
    assert str(tmp_path) not in json.dumps([report, provenance])

    trained = load_checkpoint(folder / "fold_0" / "checkpoint_final.safetensors").network
    for name in ("conv1.weight", "layer4.0.conv2.weight"):
        torch.testing.assert_close(trained[f"encoder.{name}"], small_state()[name])

    assert project.train(901, *tag, fold=1) == 2
    assert "another run.pretrained_weights" in capsys.readouterr().err
    file.rename(tmp_path / "renamed.pth")
    assert project.train(901, *tag, "-pretrained_weights", tmp_path / "renamed.pth", fold=1) == 0
    (tmp_path / "renamed.pth").unlink()
    assert project.train(901, *tag, "--val") == 0
    assert project.train(901, *tag, "--c", "-pretrained_weights", file) == 0
    assert "medical.pth is not read" in capsys.readouterr().out
    assert read_run(folder).choices.pretrained_weights.sha256 == digest


@pytest.mark.slow
def test_training_refuses_weights_that_do_not_fit_in_one_line_and_leaves_the_fold_untrained(
    trained_project, tmp_path, capsys
):
    project = trained_project.copy(tmp_path)
    wide = saved(tmp_path / "wide.pth", resnet3d_state(10, width=8))
    for name, words in [
        ("missing.pth", "does not exist"),
        (wide.name, "conv1.weight has the shape"),
    ]:
        assert project.train(901, "--tag", "x", "-pretrained_weights", tmp_path / name) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert project.train(901, "--tag", "x") == 0, "the run is still free to be trained otherwise"


def run_command(tmp_path, state, *more):
    file, out = saved(tmp_path / "released.pth", state), tmp_path / "made.safetensors"
    return command.main([str(a) for a in (file, "-o", out, *more)])


def test_the_command_converts_and_says_what_came_of_it_and_how_to_train_from_it(tmp_path, capsys):
    state = resnet3d_state(10, outputs=5) | {"conv_seg.0.weight": torch.ones(1)}
    assert run_command(tmp_path, state, "--from", "medicalnet") == 0
    said = capsys.readouterr().out
    assert "backbone: resnet3d (depth=10, width=4, dilated=true, shortcut=B" in said
    assert "head:     single for kl" in said
    assert "unused:   conv_seg.0.weight" in said
    out = tmp_path / "made.safetensors"
    assert f"result: {out}\n" in said
    assert f"-b resnet3d --set backbone.depth=10 --set backbone.width=4 -pretrained_weights {out}\n" in said
    _, _, report = start(out, width=4, depth=10)
    assert (report.fraction, set(report.unused)) == (1.0, {"head.linear.weight", "head.linear.bias"})


@pytest.mark.parametrize(
    ("state", "more", "words"),
    [
        (resnet3d_state(), ("--from", "study"), "its classifier has no outputs"),
        (resnet3d_state(), ("--from", "elsewhere"), "no backbone knows weights of 'elsewhere'"),
        (resnet3d_state(), ("--from", "medicalnet", "-b", "resnett"), "did you mean 'resnet3d'"),
        (resnet3d_state(), ("--from", "medicalnet", "--head", "single"), "no classifier"),
        (torch.nn.Linear(1, 1), ("--from", "medicalnet"), "running code"),
        (resnet3d_state(), ("--from", "medicalnet", "-o", "w.pth"), "name it so"),
    ],
)
def test_the_command_answers_mistakes_in_one_line_with_status_2(tmp_path, capsys, state, more, words):
    assert run_command(tmp_path, state, *more) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("oaplug_convert_weights: ")
    assert said.count("\n") == 1


def test_a_backbone_of_a_third_party_brings_its_own_sources(monkeypatch, tmp_path):
    part = registry().get("backbone", "resnet3d")

    def read(state, encoder_state):
        return WeightMap(
            encoder={name.removeprefix("my."): tensor for name, tensor in state.items()},
            options={"width": 4, "depth": 10},
        )

    source = WeightSource(name="mine", summary="my own names", read=read)
    mine = replace(part, spec=replace(part.spec, weight_sources=(source,)))
    others = [p for p in registry().parts if p != part]
    changed = replace(registry(), parts=(*others, mine))
    monkeypatch.setattr("oaplug.model.conversion.registry", lambda: changed)
    state = {f"my.{name}": tensor for name, tensor in resnet3d_state(10).items()}
    assert convert(tmp_path, state, "mine").record.source == "mine"


def test_two_sources_of_one_name_are_refused():
    source = WeightSource(name="mine", summary="", read=lambda state, encoder_state: WeightMap(encoder={}))
    with pytest.raises(PluginError, match="two weight sources"):
        BackboneSpec(name="net", summary="", build=lambda: None, weight_sources=(source, source))


@pytest.mark.parametrize("kind", [WeightSource, WeightMap])
def test_every_field_of_a_weight_source_and_map_is_documented(kind):
    rows = table(DOCS / "plugins.md", "Weights of released implementations", first="field")
    documented = {quoted(name)[0] for name, of, _ in rows if quoted(of) == [kind.__name__]}
    assert documented == {field.name for field in fields(kind)}
