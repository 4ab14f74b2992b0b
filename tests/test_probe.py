"""What a CPU trains fastest with is timed once per run, recorded, and right."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from torch.nn.functional import conv1d, conv2d, conv3d

from oaplug.core.convolution_gradients import ExactConvolutionGradients, is_usual
from oaplug.core.dataset import DatasetDescription
from oaplug.core.plan import Configuration, Plan
from oaplug.core.target import targets_from_json
from oaplug.model.checkpoint import Checkpoint, save_checkpoint
from oaplug.model.precision import choose_precision
from oaplug.model.run_folder import read_run, write_run
from oaplug.plug.registry import registry
from oaplug.train import probe as probe_module
from oaplug.train.probe import (
    Candidate,
    StepTimer,
    probe,
    resolve_precision,
    with_recorded_precision,
)
from oaplug.train.settings import RunRequest, resolve_run
from oaplug.train.world import World

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PLAIN, LAID_OUT, HALF, BOTH = (
    Candidate(precision=precision, channels_last=layout)
    for precision in ("float32", "bfloat16")
    for layout in (False, True)
)
TARGETS = targets_from_json({"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}, where="test")
DESCRIPTION = DatasetDescription(
    name="Dataset900_Test", channel_names=("MRI",), labels={}, file_ending=".nii.gz", targets=TARGETS
)
PLAN = Plan(
    dataset_name="Dataset900_Test",
    configurations={
        "3d_lowres": Configuration(data_identifier="x", spacing_mm=(1, 1, 1), size_voxels=(12, 14, 10))
    },
    reasons={"training.precision": "auto: whatever is faster"},
)


def run_of(**overrides):
    request = RunRequest(
        configuration="3d_lowres",
        backbone="resnet3d",
        head="single",
        overrides={
            "backbone.width": 4,
            "backbone.depth": 10,
            **{f"training.{key}": value for key, value in overrides.items()},
        },
    )
    return resolve_run(
        request, plan=PLAN, description=DESCRIPTION, registry=registry(), plan_path="oaplugPlans.json"
    )


def choose(run, folder, *, device=CPU, cases=100):
    run = with_recorded_precision(run, folder)
    return resolve_precision(
        run, registry(), folder=folder, device=device, world=World(), training_cases=cases
    )


def chosen(run):
    return run.plan.training.precision, run.plan.training.channels_last


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a step by candidate and batch size, which may be changed; records who was timed."""

    class Clock:
        def __init__(self):
            self.seconds = {PLAIN: 2.0, LAID_OUT: 1.9, HALF: 1.5, BOTH: 1.0}
            self.taken = []
            self.now = 0.0

        def timer(self, candidate, batch_size):
            def step():
                spent = self.seconds[candidate] * batch_size
                self.now += spent
                self.taken.append((candidate, batch_size))
                return spent

            return step

    clock = Clock()
    monkeypatch.setattr(probe_module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(
        probe_module,
        "StepTimer",
        lambda run, registry, candidate, *, batch_size: clock.timer(candidate, batch_size),
    )
    monkeypatch.setattr(probe_module, "has_fast_bfloat16", lambda: True)
    return clock


def test_the_fastest_is_chosen_and_recorded_with_the_timings(tmp_path, clock, caplog):
    clock.seconds = {PLAIN: 0.2, LAID_OUT: 0.19, HALF: 0.15, BOTH: 0.1}
    with caplog.at_level(logging.INFO, logger="oaplug"):
        run = choose(run_of(), tmp_path)
    assert chosen(run) == ("bfloat16", True)
    (line,) = caplog.messages
    assert line == f"precision {run.plan.reasons['training.precision']}"
    for key in ("training.precision", "training.channels_last"):
        reason = run.plan.reasons[key]
        assert reason.startswith(
            "bfloat16+channels_last: forward and backward of 2 on this CPU: float32 0.4 s"
        )
    write_run(tmp_path, run, fingerprint=None)
    found = read_run(tmp_path)
    assert chosen(found) == ("bfloat16", True)
    assert found.choices.precision.planned == "auto"
    assert found.choices.precision.planned_channels_last == "auto"
    assert found.choices.precision.seconds_per_step == {
        "float32": 0.4,
        "float32+channels_last": 0.38,
        "bfloat16": 0.3,
        "bfloat16+channels_last": 0.2,
    }


def test_less_than_a_tenth_is_no_gain(tmp_path, clock):
    clock.seconds = {PLAIN: 0.2, LAID_OUT: 0.181, HALF: 0.3, BOTH: 0.19}
    run = choose(run_of(), tmp_path)
    assert chosen(run) == ("float32", False)
    assert "another would have to save 10%" in run.plan.reasons["training.precision"]
    clock.seconds[LAID_OUT] = 0.179
    assert chosen(choose(run_of(), tmp_path)) == ("float32", True)


def test_a_short_training_is_not_probed_but_resolved_all_the_same(tmp_path, clock):
    run = choose(run_of(epochs=2), tmp_path, cases=20)  # 20 steps of 2 * 2 s
    assert len(clock.taken) > 2
    clock.taken.clear()
    run = choose(run_of(epochs=1), tmp_path, cases=20)
    assert clock.taken == [(PLAIN, 2)]
    assert chosen(run) == ("float32", False)
    assert run.plan.reasons["training.precision"] == (
        "float32: 10 steps of 4 s are too short a training to time others"
    )


@pytest.mark.parametrize(("seconds", "limit"), [(0.01, 5), (2.0, 60), (8.0, 60)])
def test_a_probe_takes_no_longer_than_its_limit_and_one_candidate_more(clock, seconds, limit):
    clock.seconds = dict.fromkeys((PLAIN, LAID_OUT, HALF, BOTH), seconds)
    found = probe([PLAIN, BOTH, LAID_OUT, HALF], clock.timer, batch_size=8, steps=100_000)
    size = clock.taken[-1][1]
    assert clock.now <= limit + 4 * size * seconds + 2 * 8 * seconds
    assert {size for _, size in clock.taken[2:]} == {8 if seconds < 1 else max(2, int(60 / (8 * seconds)))}
    assert ("no time was left" in found.reason) == (seconds > 1)


def test_a_given_precision_or_layout_is_not_tried_otherwise(tmp_path, clock):
    clock.seconds = {PLAIN: 0.4, LAID_OUT: 0.2, HALF: 0.15, BOTH: 0.1}
    assert chosen(choose(run_of(precision="float32"), tmp_path)) == ("float32", True)
    assert {candidate for candidate, _ in clock.taken} == {PLAIN, LAID_OUT}
    assert chosen(choose(run_of(channels_last=False), tmp_path)) == ("bfloat16", False)
    clock.taken.clear()
    given = run_of(precision="bfloat16", channels_last=False)
    assert choose(given, tmp_path) == given
    assert not clock.taken


def test_bfloat16_is_not_tried_where_pytorch_has_no_kernels_for_it(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(probe_module, "has_fast_bfloat16", lambda: False)
    choose(run_of(), tmp_path)
    assert {candidate for candidate, _ in clock.taken} == {PLAIN, LAID_OUT}


def test_other_devices_are_not_probed_and_keep_auto(tmp_path, clock):
    assert choose(run_of(), tmp_path, device=torch.device("cuda")) == run_of()
    assert not clock.taken


@pytest.mark.parametrize("trained", [False, True])
def test_a_resumed_run_and_another_fold_do_not_choose_again(tmp_path, clock, trained):
    first = choose(run_of(), tmp_path)
    write_run(tmp_path, first, fingerprint=None)
    if trained:
        save_checkpoint(tmp_path / "fold_0" / "checkpoint_latest.safetensors", Checkpoint(network={}))
    clock.taken.clear()
    clock.seconds = {PLAIN: 0.1, LAID_OUT: 2.0, HALF: 2.0, BOTH: 2.0}
    again = choose(run_of(), tmp_path)
    assert again == first
    assert not clock.taken
    write_run(tmp_path, again, fingerprint=None)


def test_a_run_of_which_nothing_is_trained_chooses_again_where_its_settings_changed(tmp_path, clock):
    write_run(tmp_path, choose(run_of(), tmp_path), fingerprint=None)
    clock.taken.clear()
    choose(run_of(batch_size=3), tmp_path)
    assert clock.taken


def test_a_run_that_was_trained_before_precisions_were_recorded_keeps_its_own(tmp_path, clock):
    write_run(tmp_path, run_of(channels_last=True), fingerprint=None)
    save_checkpoint(tmp_path / "fold_0" / "checkpoint_latest.safetensors", Checkpoint(network={}))
    run = choose(run_of(), tmp_path)
    assert chosen(run) == ("auto", True)
    assert not clock.taken
    write_run(tmp_path, run, fingerprint=None)


def test_a_network_that_cannot_be_timed_is_trained_in_float32(tmp_path, clock, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(probe_module, "StepTimer", fail)
    run = choose(run_of(), tmp_path)
    assert chosen(run) == ("float32", False)
    assert "no kernel for this" in run.plan.reasons["training.precision"]


@pytest.mark.parametrize("candidate", [PLAIN, BOTH], ids=str)
def test_a_timed_step_is_a_real_one_and_draws_nothing_from_the_generator(candidate):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    timer = StepTimer(run_of(), registry(), candidate, batch_size=2)
    assert timer() > 0
    assert torch.equal(torch.rand(4), expected)
    weight = timer.network.encoder.layer2[0].conv1.weight
    assert weight.grad.norm() > 0
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == candidate.channels_last
    assert torch.backends.mkldnn.enabled


def exact_gradients(convolve, volume, weight, upstream, settings):
    """Gradients in float32 of what bfloat16 sees."""
    volume, weight = (t.bfloat16().float().requires_grad_() for t in (volume, weight))
    convolve(volume, weight, **settings).backward(upstream)
    return volume.grad, weight.grad


def draw_convolution(rng, axes):
    """A random convolution: often over a small map, and at times with groups or much padding."""
    channels_in, channels_out, groups = rng.choice([(1, 8, 1), (8, 8, 1), (16, 32, 1), (7, 5, 1), (8, 8, 8)])
    kernel, dilation = rng.choice([1, 2, 3, 3, 3, 4, 5]), rng.choice([1, 1, 2, 4])
    extent = (kernel - 1) * dilation + 1
    padding = rng.choice([0, (extent - 1) // 2, (extent - 1) // 2, extent - 1])
    smallest = max(1, extent - 2 * padding)
    size = [rng.randint(smallest, smallest + 5) for _ in range(axes)]
    volume = torch.randn(2, channels_in, *size)
    weight = torch.randn(channels_out, channels_in // groups, *[kernel] * axes)
    settings = {"stride": rng.choice([1, 2]), "padding": padding, "dilation": dilation, "groups": groups}
    return volume, weight, settings


@pytest.mark.parametrize(("convolve", "axes"), [(conv1d, 1), (conv2d, 2), (conv3d, 3)])
def test_gradients_of_bfloat16_convolutions_are_those_of_float32_whatever_their_shape(convolve, axes):
    precision = choose_precision("bfloat16", device=CPU, channels_last=False)
    rng = random.Random(axes)
    torch.manual_seed(0)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(axes, torch.contiguous_format)
    for _ in range(150):
        volume, weight, settings = draw_convolution(rng, axes)
        format_ = rng.choice([torch.contiguous_format, layout])
        leaves = [t.clone().requires_grad_() for t in (volume, weight)]
        with precision.autocast():
            out = convolve(*(t.contiguous(memory_format=format_) for t in leaves), **settings)
        assert out.dtype is torch.bfloat16
        upstream = torch.randn(out.shape).bfloat16()
        with precision.gradients():
            out.backward(upstream)
        expected = exact_gradients(convolve, volume, weight, upstream.float(), settings)
        for leaf, gradient in zip(leaves, expected, strict=True):
            difference = (leaf.grad - gradient).norm() / (gradient.norm() + 1e-6)
            assert difference < 0.03, (tuple(volume.shape), tuple(weight.shape), settings)


def test_gradients_of_a_transposed_convolution_keep_their_types():
    volume = torch.randn(1, 4, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 2, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with ExactConvolutionGradients():
        torch.nn.functional.conv_transpose3d(
            volume, weight, torch.zeros(2, dtype=torch.bfloat16)
        ).sum().backward()
    assert volume.grad.dtype is weight.grad.dtype is torch.bfloat16
    expected = volume.detach().float().sum((0, 2, 3, 4))[:, None, None, None, None].expand(weight.shape)
    torch.testing.assert_close(weight.grad.float(), expected, atol=0.1, rtol=0.02)


def test_usual_convolutions_over_maps_larger_than_their_kernel_are_left_to_onednn():
    assert is_usual(size=16, kernel=3, stride=2, padding=1, dilation=1)
    assert is_usual(size=16, kernel=3, stride=1, padding=4, dilation=4)
    assert not is_usual(size=2, kernel=3, stride=1, padding=1, dilation=1)
    assert not is_usual(size=9, kernel=3, stride=1, padding=4, dilation=4)


def test_a_bfloat16_step_of_a_network_has_the_gradient_of_float32():
    gradients = []
    for candidate in (PLAIN, BOTH):
        timer = StepTimer(run_of(), registry(), candidate, batch_size=2)
        timer()
        gradients.append(torch.cat([p.grad.flatten() for p in timer.network.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9
    assert gradients[1].norm() / gradients[0].norm() == pytest.approx(1, abs=0.2)
