"""Two processes train what one would, each case once, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import assert_same_run, assert_same_tensors, predictions_of, records_of
from safetensors.torch import load_file

from oaplug.testing.toy import write_toy_dataset
from oaplug.train.launch import _exit_status
from oaplug.train.stopping import LostProcess

DATASET = "Dataset905_Pairs"
PLUGIN = '''
"""A backbone without batch statistics, and hooks that make a process slow, or die, at a step."""
import os
from oaplug.plug import BackboneSpec, hookimpl

def build(options, *, in_channels, input_size):
    import torch
    from torch import nn

    class Encoder(nn.Module):
        num_features = 6
        cam_layer = None

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv3d(in_channels, 6, 3, padding=1),
                nn.GroupNorm(2, 6),
                nn.ReLU(),
                nn.AdaptiveAvgPool3d(1),
            )
            self.steps = 0

        def forward(self, volume):
            self.steps += self.training
            self.misbehave()
            return self.layers(volume).flatten(1)

        def misbehave(self):
            rank, at, what = os.environ.get("TEST_MISBEHAVE", "- 0 -").split()
            if rank == os.environ.get("RANK") and self.steps == int(at):
                if what == "raise":
                    raise ValueError("a process of the test gave up")
                os.kill(os.getpid(), 9)
            if "TEST_SLOW" in os.environ:
                import time
                open(os.environ["TEST_SLOW"], "a").write(".")
                time.sleep(0.2)

    return Encoder()

@hookimpl
def oaplug_backbones():
    return [BackboneSpec(name="grouped", summary="of a test", build=build)]
'''


@dataclass(frozen=True)
class Pairs:
    """The project of these tests, whose trainings are processes."""

    project: object
    plugins: Path

    def environment(self, **more):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("oaplug_")}
        return inherited | {"PYTHONPATH": str(self.plugins), "OMP_NUM_THREADS": "1", **more}

    def arguments(self, tag, *more, epochs=3):
        places = ("--preprocessed", self.project.preprocessed, "--results", self.project.results)
        settings = {"epochs": epochs, "batch_size": 4, "learning_rate": 0.01}
        sets = [word for key, value in settings.items() for word in ("--set", f"training.{key}={value}")]
        words = (905, "3d_lowres", 0, "-b", "grouped", "--tag", tag, "-device", "cpu", *places, *sets, *more)
        return ["train", *map(str, words)]

    def start(self, *words, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words, status=0, **environment):
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=240)
        assert process.returncode == status, (process.returncode, out[-2000:], err[-4000:])
        return out, err

    def fold(self, tag):
        return self.project.model(DATASET, "grouped-single_disease", tag=tag) / "fold_0"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A binary data set, seven of it for validation, and a backbone with group normalisation."""
    from conftest import Project

    root = tmp_path_factory.mktemp("pairs")
    plugins = root / "plugins"
    info = plugins / "grouped_backbone-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grouped-backbone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[oaplug]\ngrouped = grouped_backbone\n")
    (plugins / "grouped_backbone.py").write_text(PLUGIN)
    project = Project(root)
    write_toy_dataset(project.raw / DATASET, cases=30, kind="binary")
    assert project.prepare(905) == 0
    path = project.preprocessed / DATASET / "splits_final.json"
    splits = json.loads(path.read_text())
    cases = sorted(splits[0]["train"] + splits[0]["val"])
    path.write_text(json.dumps([{"train": cases[:-7], "val": cases[-7:]}]))
    return Pairs(project, plugins)


@pytest.fixture(scope="module")
def alone(pairs):
    """The fold that one process trained."""
    pairs.run("oaplug", *pairs.arguments("alone"))
    return pairs.fold("alone")


@pytest.fixture(scope="module")
def together(pairs):
    """The fold that two processes of -num_gpus trained."""
    out, err = pairs.run("oaplug", *pairs.arguments("together", "-num_gpus", 2))
    assert out.count("epoch   0 ") == 1, "the first process alone says it"
    assert "Traceback" not in err
    return pairs.fold("together")


def assert_nearly_the_same(first, second):
    """Equal losses, metrics and probabilities up to the order of floating-point sums."""
    for one, other in zip(records_of(first), records_of(second), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    rows = [predictions_of(fold) for fold in (first, second)]
    assert [row["case_id"] for row in rows[0]] == [row["case_id"] for row in rows[1]]
    for one, other in zip(*rows, strict=True):
        assert float(one["disease_prob_yes"]) == pytest.approx(float(other["disease_prob_yes"]), abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(alone, together):
    assert_nearly_the_same(alone, together)
    assert len(predictions_of(together)) == 7, "every case once, though seven do not divide by two"
    losses = [record["train.loss.total"] for record in records_of(alone)]
    assert len(set(losses)) == 3


@pytest.mark.slow
def test_torchrun_starts_the_same_training(pairs, together):
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "oaplug")
    pairs.run(*launcher, *pairs.arguments("torchrun"))
    assert_same_run(together, pairs.fold("torchrun"))


def wait_for(file, length, *, seconds=90):
    deadline = time.monotonic() + seconds
    while not file.is_file() or file.stat().st_size < length:
        assert time.monotonic() < deadline, "the training did not come so far"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["num_gpus", "torchrun"])
def test_a_signal_to_the_launcher_makes_all_save_and_the_training_goes_on(
    pairs, together, tmp_path, launcher
):
    tag, steps = f"stopped-{launcher}", tmp_path / "steps"
    if launcher == "num_gpus":
        words = ("oaplug", *pairs.arguments(tag, "-num_gpus", 2))
    else:
        start = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "oaplug")
        words = (*start, *pairs.arguments(tag))
    process = pairs.start(*words, TEST_SLOW=str(steps))
    wait_for(steps, 6)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert "stopped by SIGTERM" in err
    assert "continue with --c" in err
    if launcher == "num_gpus":  # torchrun has a status of its own for a signal
        assert process.returncode == 75, (out, err)
        assert "Traceback" not in err
    assert (pairs.fold(tag) / "checkpoint_latest.safetensors").is_file()
    assert not (pairs.fold(tag) / "checkpoint_final.safetensors").is_file()
    again = ("oaplug", *pairs.arguments(tag, "-num_gpus", 2, "--c"))
    _, err = pairs.run(*again)
    assert "warning" not in err, "two processes went on with what two began"
    assert_same_run(together, pairs.fold(tag))


@pytest.mark.slow
def test_another_number_of_processes_is_warned_of(pairs, alone):
    out, err = pairs.run("oaplug", *pairs.arguments("alone", "-num_gpus", 2, "--c"))
    (line,) = [line for line in err.splitlines() if line.startswith("warning")]
    assert "begun with processes 1, and goes on with 2" in line
    assert "resuming at epoch 3" in out


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_process_that_dies_ends_all_within_seconds_and_says_why(pairs, rank, how):
    arguments = pairs.arguments(f"dies-{how}-{rank}", "-num_gpus", 2, epochs=200)
    begin = time.monotonic()
    process = pairs.start("oaplug", *arguments, TEST_MISBEHAVE=f"{rank} 7 {how}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == {"raise": 1, "kill": 137}[how]
    if how == "raise":
        assert "ValueError: a process of the test gave up" in err
    else:
        assert f"process {rank} of 2 was ended by SIGKILL from outside" in err
    lines = [line for line in err.splitlines() if line.startswith("oaplug_train:")]
    assert lines == [
        f"oaplug_train: process {1 - rank} of 2 stops because another one has ended; that one has said why"
    ]
    assert time.monotonic() - begin < 60
    fold = pairs.fold(f"dies-{how}-{rank}")
    assert load_file(fold / "checkpoint_latest.safetensors"), "the first epoch was saved"


@pytest.mark.slow
def test_a_mistake_is_said_once_and_a_share_that_is_no_share_is_refused(pairs):
    _, err = pairs.run(
        "oaplug", *pairs.arguments("odd", "-num_gpus", 2, "--set", "training.batch_size=3"), status=2
    )
    assert "which 2 processes cannot share; choose a multiple" in err
    assert "Traceback" not in err


def test_the_status_of_a_launch_is_that_of_the_process_that_failed_by_itself():
    lost = LostProcess.exit_status
    assert _exit_status([0, 0]) == 0
    assert _exit_status([75, 75]) == 75
    assert _exit_status([lost, 2]) == 2
    assert _exit_status([2, lost]) == 2
    assert _exit_status([lost, -9]) == 137
    assert _exit_status([-15, lost]) == 143
    assert _exit_status([lost, lost]) == lost


@pytest.mark.slow
def test_weights_are_the_same_at_every_process(pairs, together):
    """The first process writes; a resumed run starts the others from it, and nothing changes by that."""
    best, final = (load_file(together / f"checkpoint_{n}.safetensors") for n in ("latest", "final"))
    network = {name: tensor for name, tensor in best.items() if name.startswith("network.")}
    assert_same_tensors(network, final)
