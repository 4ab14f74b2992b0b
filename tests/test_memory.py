"""The memory of a training step, counted by hand and by the profiler, and the batch size it leads to."""

from __future__ import annotations

import gc
import json
import logging
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import oaplug
from oaplug.core.batch import Batch
from oaplug.core.dataset import DatasetDescription
from oaplug.core.errors import PlanError
from oaplug.core.plan import Configuration, Plan, TrainSettings
from oaplug.core.target import targets_from_json
from oaplug.feed.source import LoadedBatch
from oaplug.model.checkpoint import Checkpoint, save_checkpoint
from oaplug.model.live_bytes import LiveBytes
from oaplug.model.memory import MemoryEstimate, Phase, estimate_training_memory
from oaplug.model.precision import choose_precision
from oaplug.model.run_folder import BatchChoice, read_run, write_run
from oaplug.plug.registry import registry
from oaplug.train import batch_size as batch_size_module
from oaplug.train.batch_size import estimate_run_memory, memory_target, resolve_batch_size
from oaplug.train.settings import RunRequest, resolve_run
from oaplug.train.stepper import Stepper
from oaplug.train.world import World

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FLOAT = 4
GIB = 2**30
SHAPE = (1, 8, 10, 12)
VOLUME_BYTES = 8 * 10 * 12 * FLOAT
TARGETS = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}, "oa": {"derived_from": "kl", "at_least": 2}}


class Scales(nn.Module):
    """Multiplies a volume `count` times by a learnt number: every product keeps what it multiplies."""

    def __init__(self, count):
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(count))

    def forward(self, volume):
        for scale in self.scales:
            volume = volume * scale
        return volume


class Peeking(nn.Module):
    """Looks at the values of a volume before it gives it to another module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, volume):
        return self.module(volume if float(volume.max()) < 1 else volume / 2)


class Normalized(nn.Module):
    """Batch normalisation of one number a case: it takes no batch of one."""

    def __init__(self, module):
        super().__init__()
        self.module, self.norm = module, nn.BatchNorm1d(1)

    def forward(self, volume):
        return self.norm(self.module(volume).flatten(1).mean(dim=1, keepdim=True))


class Toy(nn.Module):
    """As a Network: an encoder and a head without weights."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Identity()

    def forward(self, volume):
        return {"kl": self.encoder(volume)}

    def loss(self, logits, truth):
        return {"total": logits["kl"].sum() * truth.targets["kl"].sum()}


def precision_of(name="float32"):
    return choose_precision(name, device=CPU, channels_last=True)


def estimate(build, *, shape=SHAPE, precision="float32", **settings):
    return estimate_training_memory(
        build,
        volume_shape=shape,
        targets=("kl", "oa"),
        settings=TrainSettings(**settings),
        precision=precision_of(precision),
    )


def small_network(size=(16, 24, 20), *, width=8, depth=10):
    return oaplug.create_network(
        "resnet3d",
        "dual",
        targets=TARGETS,
        input_size=size,
        backbone_options={"width": width, "depth": depth},
    )


def allocated_in_a_step(build, path, *, batch_size, shape, precision, **settings):
    """The peak of the trainer's second step, from the address of every allocation that the profiler saw."""
    settings, grades = TrainSettings(**settings), torch.arange(batch_size) % 2
    gc.collect()
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        stepper = Stepper(build(), settings=settings, precision=precision_of(precision), world=World())
        stepper.train_mode()
        for step in range(2):
            truth = Batch(targets={"kl": grades, "oa": grades})
            many = (
                LoadedBatch(volume=torch.zeros(batch_size, *shape), truth=truth, case_ids=("a",))
                for _ in range(settings.accumulation_steps)
            )
            with torch.profiler.record_function(f"step {step}"):
                stepper.step(many, count=settings.accumulation_steps, rate=1e-3)
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    begin = next(event["ts"] for event in events if event["name"] == "step 1")
    return peak_after(begin, [event for event in events if event["name"] == "[memory]"])


def peak_after(begin, records):
    alive, live, peak = {}, 0, 0
    for record in sorted(records, key=lambda event: event["ts"]):
        address, count = record["args"]["Addr"], record["args"]["Bytes"]
        if count > 0:
            alive[address] = count
        live += count if count > 0 else -alive.pop(address, 0)
        peak = max(peak, live) if record["ts"] >= begin else 0
    return peak


def test_a_chain_of_products_keeps_one_volume_each():
    found = estimate(lambda: Toy(Scales(6)))
    assert found.source == "fake tensors"
    # five products and the input are kept for the backward pass; the sixth product is the logits
    assert found.forward.bytes_per_case == pytest.approx(7 * VOLUME_BYTES, abs=20)
    # where it begins, one gradient, and the product of it with a volume that is to be summed, are added
    assert found.backward.bytes_per_case == pytest.approx(9 * VOLUME_BYTES, rel=0.15)
    # of a step that is over the input and the logits are left
    assert found.update.bytes_per_case <= 2.01 * VOLUME_BYTES


def test_weights_gradients_and_two_moments_are_the_state():
    class Linear(nn.Linear):
        def __init__(self):
            super().__init__(30, 20)
            self.register_buffer("seen", torch.zeros(7))

        def forward(self, volume):
            return super().forward(volume.flatten(1)[:, :30])

    weights = 30 * 20 + 20
    found = estimate(lambda: Toy(Linear()))
    assert found.parameter_bytes == weights * FLOAT
    assert found.state_bytes == (4 * weights + 7) * FLOAT
    assert found.update.fixed_bytes >= found.state_bytes
    averaged = estimate(lambda: Toy(Linear()), ema_decay=0.9)
    assert averaged.state_bytes == (5 * weights + 2 * 7) * FLOAT


def test_a_frozen_encoder_has_neither_gradients_nor_moments_nor_kept_activations():
    network = small_network()
    encoder, head = (sum(p.numel() for p in m.parameters()) for m in (network.encoder, network.head))
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())
    free, frozen = (estimate(small_network, shape=(1, 16, 24, 20), freeze_encoder=f) for f in (False, True))
    assert frozen.state_bytes == (encoder + 4 * head) * FLOAT + buffers
    assert free.state_bytes == 4 * (encoder + head) * FLOAT + buffers
    assert frozen.backward.bytes_per_case < free.backward.bytes_per_case / 3


def test_weights_that_are_used_twice_count_once():
    def tied():
        scales = Scales(2)
        scales.scales[1] = scales.scales[0]
        return Toy(scales)

    assert estimate(tied).parameter_bytes == FLOAT
    assert estimate(tied).forward.bytes_per_case == pytest.approx(3 * VOLUME_BYTES, abs=20)


def test_gradients_of_other_batches_wait_where_gradients_accumulate():
    once = estimate(small_network, shape=(1, 16, 24, 20))
    twice = estimate(small_network, shape=(1, 16, 24, 20), accumulation_steps=2)
    waiting = twice.forward.fixed_bytes - once.forward.fixed_bytes
    assert waiting == pytest.approx(once.parameter_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("float32", {}),
        ("bfloat16", {}),
        pytest.param(
            "float32",
            {"ema_decay": 0.9, "accumulation_steps": 2, "gradient_clip": None},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_estimate_is_what_the_profiler_sees_the_trainer_s_step_allocate(tmp_path, precision, settings):
    size = (24, 48, 64)

    def build():
        return small_network(size, width=16, depth=18)

    found = estimate(build, shape=(1, *size), precision=precision, **settings)
    assert found.source == "fake tensors"
    step = {"batch_size": 5, "shape": (1, *size), "precision": precision, **settings}
    allocated = allocated_in_a_step(build, tmp_path / "trace.json", **step)
    assert 0.8 * allocated < found.bytes(5) < 1.1 * allocated


def test_volumes_that_no_memory_holds_can_be_estimated():
    found = estimate(lambda: Toy(Scales(1)), shape=(1, 10_000, 10_000, 10_000))
    assert found.bytes(1) > 8e12


@pytest.mark.parametrize("wrap", [Peeking, lambda m: Normalized(Peeking(m))])
def test_a_network_that_looks_at_values_is_measured_in_a_real_step(wrap, caplog):
    caplog.set_level(logging.INFO, logger="oaplug")
    measured = estimate(lambda: Toy(wrap(Scales(6))))
    assert measured.source == "measured"
    assert "measuring a real step" in caplog.text
    assert measured.forward.bytes_per_case == pytest.approx(7 * VOLUME_BYTES, rel=0.2)
    walked = estimate(lambda: Toy(Scales(6)))
    assert 0.8 * walked.bytes(4) < measured.bytes(4) < 1.3 * walked.bytes(4)


def test_what_a_network_raises_in_a_real_step_is_raised():
    class Broken(nn.Module):
        def forward(self, volume):
            raise RuntimeError("no such axis")

    with pytest.raises(RuntimeError, match="no such axis"):
        estimate(lambda: Toy(nn.Sequential(nn.Conv3d(1, 1, 1), Broken())))


def test_an_estimate_draws_nothing_from_the_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    for build in (small_network, lambda: Toy(Peeking(nn.Sequential(nn.Dropout(0.5), Scales(2))))):
        torch.manual_seed(3)
        estimate(build, shape=(1, 16, 24, 20))
        assert torch.equal(torch.rand(4), expected)


def test_live_bytes_counts_views_once_and_forgets_what_died():
    with LiveBytes() as meter:
        kept = torch.zeros(100)
        views = [kept[:10], kept.view(10, 10)]
        gone = torch.ones(50)
        assert meter.live == 150 * FLOAT
        del gone
        assert meter.live == 100 * FLOAT
        assert meter.peak == 150 * FLOAT
        meter.reset_peak()
        assert meter.peak == 100 * FLOAT
        del kept
        assert meter.live == 100 * FLOAT, "the views still hold it"
        views.clear()
        assert meter.live == 0


phases = st.builds(Phase, fixed_bytes=st.integers(0, 10**12), bytes_per_case=st.integers(0, 10**11))


@given(phases, phases, st.integers(1, 10**11), st.integers(0, 10**13))
def test_the_largest_batch_fits_and_one_case_more_does_not(forward, backward, per_case, target):
    update = Phase(fixed_bytes=0, bytes_per_case=per_case)
    found = MemoryEstimate(
        forward=forward, backward=backward, update=update, parameter_bytes=0, state_bytes=0, source="measured"
    )
    largest = found.largest_batch(target)
    assert largest == 0 or found.bytes(largest) <= target
    assert found.bytes(largest + 1) > target


DESCRIPTION = DatasetDescription(
    name="Dataset900_Test",
    channel_names=("MRI",),
    labels={},
    file_ending=".nii.gz",
    targets=targets_from_json(TARGETS, where="test"),
)


def configuration(*size):
    return Configuration(data_identifier="x", spacing_mm=(1, 1, 1), size_voxels=size)


PLAN = Plan(
    dataset_name="Dataset900_Test",
    configurations={"3d_fullres": configuration(16, 24, 20), "3d_lowres": configuration(12, 14, 10)},
    training=TrainSettings(batch_size=8),
    reasons={"training.batch_size": "few voxels"},
)


def run_of(*, backbone="resnet3d", configuration="3d_fullres", options=None, **overrides):
    if options is None:
        options = {"backbone.width": 4, "backbone.depth": 10} if backbone == "resnet3d" else {}
    request = RunRequest(
        configuration=configuration,
        backbone=backbone,
        head="single",
        overrides={**options, **{f"training.{key}": value for key, value in overrides.items()}},
    )
    return resolve_run(
        request, plan=PLAN, description=DESCRIPTION, registry=registry(), plan_path="oaplugPlans.json"
    )


def resolve(run, folder, *, world=None):
    return resolve_batch_size(run, registry(), folder=folder, device=CPU, world=world or World())


@pytest.fixture
def available(monkeypatch):
    """Says how many GiB are available from now on; a step takes 1 GiB, and 1 GiB more for every case."""
    step = Phase(fixed_bytes=GIB, bytes_per_case=GIB)
    found = MemoryEstimate(
        forward=step, backward=step, update=step, parameter_bytes=0, state_bytes=0, source="fake tensors"
    )
    monkeypatch.setattr(batch_size_module, "estimate_run_memory", lambda *_, **__: found)

    def there_are(gib):
        monkeypatch.setattr(batch_size_module, "available_memory_bytes", lambda: gib * GIB)

    there_are(64)
    return there_are


def test_a_planned_batch_size_that_fits_stays_and_the_estimate_is_recorded(tmp_path, available, caplog):
    run = resolve(run_of(), tmp_path)
    assert run.plan.training.batch_size == 8
    assert run.choices.batch == BatchChoice(planned=8, estimated_gib=9, target_gib=32, source="fake tensors")
    assert run.plan.reasons["training.batch_size"] == (
        "as planned: a step of 8 is estimated at 9.00 GiB (fake tensors), 32.00 GiB may be used "
        "(50% of the available memory); planned because few voxels"
    )
    assert not caplog.records


@pytest.mark.parametrize("by", ["training.memory_gib", "50% of the available memory"])
def test_a_planned_batch_size_that_does_not_fit_is_lowered_to_the_largest_that_does(
    tmp_path, available, caplog, by
):
    if by == "training.memory_gib":
        run = resolve(run_of(memory_gib=4.9), tmp_path)
    else:
        available(9.8)
        run = resolve(run_of(), tmp_path)
    assert run.plan.training.batch_size == 3
    assert run.choices.batch == BatchChoice(planned=8, estimated_gib=4, target_gib=4.9, source="fake tensors")
    reason = (
        f"lowered from 8: a step of 8 is estimated at 9.00 GiB (fake tensors), but 4.90 GiB may be used "
        f"({by}); a step of 3 is estimated at 4.00 GiB (fake tensors)"
    )
    assert run.plan.reasons["training.batch_size"] == reason
    assert [record.message for record in caplog.records] == [f"training.batch_size=3, {reason}"]


def test_a_batch_size_that_is_given_is_taken_with_a_warning_where_it_does_not_fit(
    tmp_path, available, caplog
):
    assert resolve(run_of(batch_size=5), tmp_path).plan.training.batch_size == 5
    assert not caplog.records
    available(8)
    assert resolve(run_of(batch_size=5), tmp_path).plan.training.batch_size == 5
    assert "training.batch_size=5 as given, but a step of 5 is estimated at 6.00 GiB" in caplog.text


def test_where_no_case_fits_the_error_says_what_takes_less(tmp_path, available):
    available(3)
    with pytest.raises(PlanError) as failure:
        resolve(run_of(backbone="m3t"), tmp_path)
    assert str(failure.value) == (
        "not even one case fits: a step of 1 is estimated at 2.00 GiB (fake tensors), and 1.50 GiB may be "
        "used (50% of the available memory); try 3d_lowres, --set backbone.checkpoint_slices=true, "
        "--set training.precision=bfloat16; or allow more by --set training.memory_gib=GIB, or any by "
        "--set training.batch_size=1"
    )
    with pytest.raises(PlanError, match="try --set training"):
        resolve(run_of(configuration="3d_lowres"), tmp_path)


@pytest.mark.parametrize("trained", [False, True])
def test_another_fold_keeps_the_batch_size_of_the_run_on_a_fuller_or_emptier_machine(
    tmp_path, available, trained
):
    available(8)
    first = resolve(run_of(), tmp_path)
    write_run(tmp_path, first, fingerprint=None)
    if trained:
        train_something(tmp_path)
    for gib in (0.001, 64):
        available(gib)
        again = resolve(run_of(), tmp_path)
        assert again == first
        write_run(tmp_path, again, fingerprint=None)
    assert read_run(tmp_path).plan.training.batch_size == 3


def train_something(folder):
    save_checkpoint(folder / "fold_0" / "checkpoint_latest.safetensors", Checkpoint(network={}))


def test_a_trained_run_keeps_its_batch_size_whatever_memory_another_fold_may_take(tmp_path, available):
    write_run(tmp_path, resolve(run_of(memory_gib=4.0), tmp_path), fingerprint=None)
    train_something(tmp_path)
    other = resolve(run_of(memory_gib=64.0), tmp_path)
    assert other.plan.training.batch_size == 3
    write_run(tmp_path, other, fingerprint=None)
    with pytest.raises(PlanError, match=r"plan\.training\.batch_size"):
        write_run(tmp_path, resolve(run_of(batch_size=4), tmp_path), fingerprint=None)


def test_a_run_of_which_nothing_is_trained_chooses_again_where_its_settings_changed(tmp_path, available):
    write_run(tmp_path, resolve(run_of(memory_gib=4.0), tmp_path), fingerprint=None)
    assert resolve(run_of(), tmp_path).plan.training.batch_size == 8
    assert resolve(run_of(batch_size=6), tmp_path).plan.training.batch_size == 6
    available(16)
    assert resolve(run_of(options={"backbone.width": 5}), tmp_path).plan.training.batch_size == 7
    assert resolve(run_of(memory_gib=4.0), tmp_path).plan.training.batch_size == 3


def test_a_run_from_before_batch_sizes_were_resolved_keeps_its_own(tmp_path, available):
    write_run(tmp_path, run_of(), fingerprint=None)
    content = json.loads((tmp_path / "plans.json").read_text())
    del content["run"]["batch"], content["plan"]["training"]["memory_gib"]
    (tmp_path / "plans.json").write_text(json.dumps(content))
    available(0.001)
    assert resolve(run_of(), tmp_path).plan.training.batch_size == 8


class TwoProcesses(World):
    """The first of two, the other of which agrees."""

    def gather(self, value):
        return [value, None]


def test_processes_share_a_batch_and_each_takes_memory_for_its_own_part(tmp_path, available):
    world = TwoProcesses(rank=0, size=2)
    assert resolve(run_of(memory_gib=4.0), tmp_path, world=world).plan.training.batch_size == 6
    available(16)
    run = resolve(run_of(), tmp_path, world=world)
    assert run.plan.training.batch_size == 6
    assert (run.choices.batch.estimated_gib, run.choices.batch.target_gib) == (4, 4)
    assert "4.00 GiB may be used (50% of the available memory / 2)" in run.plan.reasons["training.batch_size"]


def test_the_estimate_of_a_run_is_of_its_network_configuration_and_settings():
    found = estimate_run_memory(run_of(ema_decay=0.9), registry(), device=CPU)
    kl = {"kl": TARGETS["kl"]}
    same = estimate_training_memory(
        lambda: oaplug.create_network(
            "resnet3d",
            "single",
            targets=kl,
            input_size=(16, 24, 20),
            backbone_options={"width": 4, "depth": 10},
        ),
        volume_shape=(1, 16, 24, 20),
        targets=("kl",),
        settings=TrainSettings(ema_decay=0.9),
        precision=precision_of(),
    )
    assert found == same


def test_a_network_whose_memory_cannot_be_estimated_is_trained_as_planned_with_a_warning(
    tmp_path, caplog, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(batch_size_module, "estimate_run_memory", fail)
    run = resolve(run_of(), tmp_path)
    assert run.plan.training.batch_size == 8
    assert run.choices.batch.estimated_gib is None
    assert "training.batch_size is 8 as planned; its memory could not be estimated" in caplog.text
    assert "no kernel for this" in run.plan.reasons["training.batch_size"]


def test_the_target_is_half_of_the_available_memory_shared_by_the_processes(available):
    available(8)
    assert memory_target(None, device=CPU).bytes == 4 * GIB
    assert memory_target(None, device=CPU, processes=4).bytes == GIB
    assert memory_target(1.5, device=CPU, processes=4).bytes == 1.5 * GIB


def test_a_target_on_a_gpu_is_nine_tenths_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 24 * GIB))
    found = memory_target(None, device=torch.device("cuda", 1), processes=2)
    assert found.bytes == 9 * GIB
    assert str(found) == "9.00 GiB may be used (90% of the free memory of cuda:1)"


def test_a_target_must_be_positive():
    with pytest.raises(PlanError, match="memory_gib"):
        TrainSettings(memory_gib=0)


def test_the_command_writes_the_batch_size_and_why_and_another_fold_takes_it(
    trained_project, tmp_path, monkeypatch, capsys
):
    def there_are(count):
        monkeypatch.setattr(batch_size_module, "available_memory_bytes", lambda: count)

    project = trained_project.copy(tmp_path)
    model = partial(project.model, "Dataset901_Toy", "resnet3d-single_kl")
    whole = read_run(model())
    assert whole.plan.training.batch_size == whole.choices.batch.planned == 4
    there_are(2 * estimate_run_memory(whole, registry(), device=CPU).bytes(2) + 2)
    assert project.train(901, "--tag", "low") == 0
    assert "training.batch_size=2, lowered from 4" in capsys.readouterr().err
    content = json.loads((model(tag="low") / "plans.json").read_text())
    assert content["plan"]["training"]["batch_size"] == 2
    assert content["run"]["batch"]["planned"] == 4
    assert "lowered from 4" in content["plan"]["reasons"]["training.batch_size"]
    there_are(1000)
    assert project.train(901, "--tag", "low", fold=1) == 0
    for fold in ("fold_0", "fold_1"):
        assert json.loads((model(tag="low") / fold / "debug.json").read_text())["batch_size"] == 2
