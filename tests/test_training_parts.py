"""The pieces of training: schedule, checkpoints, precision, run resolution."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oaplug.core.dataset import DatasetDescription
from oaplug.core.errors import CheckpointError, OaplugError, PlanError, PluginError
from oaplug.core.plan import Configuration, Plan, TrainSettings
from oaplug.core.target import targets_from_json
from oaplug.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_network,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from oaplug.model.precision import choose_device, choose_precision
from oaplug.model.run_folder import build_network, read_run, write_run
from oaplug.plug.registry import registry
from oaplug.train.schedule import learning_rate
from oaplug.train.settings import RunRequest, model_name, resolve_run

TARGETS = targets_from_json(
    {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}, "oa": {"derived_from": "kl", "at_least": 2}},
    where="test",
)
DESCRIPTION = DatasetDescription(
    name="Dataset900_Test", channel_names=("MRI",), labels={}, file_ending=".nii.gz", targets=TARGETS
)
PLAN = Plan(
    dataset_name="Dataset900_Test",
    configurations={
        "3d_lowres": Configuration(data_identifier="x", spacing_mm=(1, 1, 1), size_voxels=(12, 14, 10))
    },
)


def resolve(tmp_path, *, head="single", target=None, **overrides):
    request = RunRequest(
        configuration="3d_lowres",
        backbone="resnet3d",
        head=head,
        target=target,
        overrides={"backbone.width": 4, "backbone.dilated": False} | overrides,
    )
    return resolve_run(
        request, plan=PLAN, description=DESCRIPTION, registry=registry(), plan_path=tmp_path / "plan.json"
    )


def test_the_cosine_schedule_agrees_with_torch_after_warm_up():
    settings = TrainSettings(epochs=10, learning_rate=0.01, warmup_epochs=0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=70)
    for step in range(70):
        assert learning_rate(settings, step=step, steps_per_epoch=7) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_to_the_full_rate_and_constant_stays_there():
    settings = TrainSettings(epochs=10, learning_rate=0.01, warmup_epochs=2, schedule="constant")
    rates = [learning_rate(settings, step=step, steps_per_epoch=5) for step in range(50)]
    assert np.all(np.diff(rates[:11]) > 0)
    assert rates[10:] == [0.01] * 40
    assert rates[0] > 0


def test_a_checkpoint_comes_back_bit_for_bit_and_training_goes_on_as_if_nothing_happened(tmp_path):
    def train(network, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            network(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()

    def fresh():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1))
        return network, torch.optim.AdamW(network.parameters(), lr=0.01)

    whole, whole_optimizer = fresh()
    train(whole, whole_optimizer, range(6))
    half, half_optimizer = fresh()
    train(half, half_optimizer, range(3))
    path = save_checkpoint(
        tmp_path / "c.safetensors",
        Checkpoint(
            network=half.state_dict(),
            training=optimizer_tensors(half_optimizer),
            progress={"next": [3, None]},
        ),
    )
    resumed, resumed_optimizer = fresh()
    checkpoint = load_checkpoint(path)
    assert checkpoint.progress == {"next": [3, None]}
    load_network(resumed, checkpoint, path=path)
    load_optimizer(resumed_optimizer, checkpoint.training)
    train(resumed, resumed_optimizer, range(3, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("damage", ["pickle", "truncated", "foreign", "empty"])
def test_a_file_that_is_not_a_whole_checkpoint_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "checkpoint_final.safetensors"
    save_checkpoint(path, Checkpoint(network={"w": torch.zeros(100)}))
    if damage == "pickle":
        path.write_bytes(pickle.dumps({"w": [0.0]}))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "foreign":
        save_file({"w": torch.zeros(3)}, str(path))
    else:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint_final"):
        load_checkpoint(path)


def test_a_failed_save_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, Checkpoint(network={"w": torch.ones(3)}))

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, Checkpoint(network={"w": torch.zeros(3)}))
    assert load_checkpoint(path).network["w"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_weights_that_do_not_fit_are_named(tmp_path):
    checkpoint = Checkpoint(network={"weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"weight"):
        load_network(torch.nn.Linear(3, 2), checkpoint, path=tmp_path / "c")


def test_overrides_reach_plan_backbone_and_head_and_are_recorded(tmp_path):
    run = resolve(tmp_path, head="dual", **{"training.epochs": 7, "head.coarse_weight": 0.5})
    assert run.plan.training.epochs == 7
    assert run.choices.backbone.options["width"] == 4
    assert run.choices.head.options["coarse_weight"] == 0.5
    assert run.choices.overrides["training.epochs"] == 7


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epoch", 5, "epochs"),
        ("training.epochs", "many", "epochs"),
        ("training.schedule", "cosin", "schedule"),
        ("trainig.epochs", 5, "training"),
        ("backbone.widht", 5, "width"),
        ("backbone.depth", 19, "depth"),
        ("training.epochs", 0, "positive"),
    ],
)
def test_an_override_that_is_off_is_refused_with_the_key_or_its_nearest_name(tmp_path, key, value, message):
    with pytest.raises((PlanError, PluginError), match=message):
        resolve(tmp_path, **{key: value})


def test_a_run_folder_comes_back_and_refuses_other_settings_once_a_fold_is_trained(tmp_path):
    run = resolve(tmp_path, target="oa")
    write_run(tmp_path / "run", run, fingerprint={"schema": 1})
    again = read_run(tmp_path / "run")
    assert again == run
    other = resolve(tmp_path, target="oa", **{"training.epochs": 3})
    write_run(tmp_path / "run", other, fingerprint=None)  # nothing is trained yet: settings may still change
    write_run(tmp_path / "run", run, fingerprint=None)
    assert read_run(tmp_path / "run") == run
    save_checkpoint(tmp_path / "run" / "fold_0" / "checkpoint_latest.safetensors", Checkpoint(network={}))
    write_run(tmp_path / "run", run, fingerprint=None)
    with pytest.raises(PlanError, match=r"plan\.training\.epochs.*--tag"):
        write_run(tmp_path / "run", other, fingerprint=None)


def test_model_names_say_which_target_a_single_head_answers(tmp_path):
    assert model_name(resolve(tmp_path).choices) == "resnet3d-single_kl"
    assert model_name(resolve(tmp_path, target="oa").choices) == "resnet3d-single_oa"
    assert model_name(resolve(tmp_path, head="dual").choices) == "resnet3d-dual"


def test_a_model_made_with_a_missing_plugin_says_what_to_install(tmp_path):
    write_run(tmp_path, resolve(tmp_path), fingerprint=None)
    content = json.loads((tmp_path / "plans.json").read_text())
    content["run"]["backbone"] |= {"distribution": "oaplug-mynet", "name": "mynet", "version": "1.2"}
    (tmp_path / "plans.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"pip install oaplug-mynet==1\.2"):
        build_network(read_run(tmp_path), registry())


def test_another_revision_of_a_part_stops_and_another_version_only_warns(tmp_path):
    write_run(tmp_path, resolve(tmp_path), fingerprint=None)
    original = json.loads((tmp_path / "plans.json").read_text())

    def load(**changes):
        content = json.loads(json.dumps(original))
        content["run"]["backbone"] |= changes
        (tmp_path / "plans.json").write_text(json.dumps(content))
        return build_network(read_run(tmp_path), registry())

    with pytest.raises(CheckpointError, match="revision 99"):
        load(revision=99)
    with pytest.warns(UserWarning, match=r"0\.0\.1"):
        load(version="0.0.1")


def test_precision_is_float32_on_a_cpu_unless_asked_otherwise():
    cpu = choose_device("cpu")
    assert choose_precision("auto", device=cpu, channels_last=False).dtype is None
    assert choose_precision("bfloat16", device=cpu, channels_last=False).dtype is torch.bfloat16


def test_channels_last_changes_the_layout_and_not_the_numbers():
    precision = choose_precision("float32", device=torch.device("cpu"), channels_last=True)
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 4, 3)
    volume = torch.randn(2, 2, 6, 7, 8)
    expected = network(volume)
    placed = precision.place(network)
    arranged = precision.arrange(volume)
    assert arranged.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(placed(arranged), expected, atol=1e-5, rtol=1e-5)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(OaplugError, match="use cuda"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(OaplugError, match="no such device"):
            choose_device("cuda")
