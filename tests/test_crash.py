"""What goes wrong costs at most the work since the last checkpoint: kills, full disks, damage, bad data."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from runs import (
    Trainings,
    assert_same_run,
    at_occurrence,
    checkpoint_of,
    records_of,
    stopping_at,
)
from safetensors.torch import load_file
from small_disks import mounted

from oaplug.core.errors import CheckpointError, DatasetError
from oaplug.feed.source import BatchSource
from oaplug.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from oaplug.train.checkpoints import fold_lock, load_newest, save
from oaplug.train.stopping import Interrupted
from oaplug.train.trainer import TrainingError

pytestmark = pytest.mark.slow

TOY = "Dataset901_Toy"
LATEST, PREVIOUS = "checkpoint_latest.safetensors", "checkpoint_previous.safetensors"


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    monkeypatch.setattr("oaplug.train.logbook.draw_progress", lambda records, path: None)


@pytest.fixture(scope="module")
def preprocessed(trained_project):
    return trained_project.preprocessed / TOY


@pytest.fixture
def trainings(preprocessed, tmp_path):
    return Trainings(preprocessed, tmp_path)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "not a whole"), (flip_a_bit, "checksum"), (Path.unlink, "does not exist")],
)
def test_a_damaged_checkpoint_costs_one_epoch_and_no_bit(trainings, damage, said, caplog):
    settings = {"training__batch_size": 3}
    whole = trainings.train("whole", **settings)
    with stopping_at("validation", 5), pytest.raises(Interrupted, match="in epoch 2"):
        trainings.train("damaged", **settings)
    fold = trainings.results / "damaged" / "fold_0"
    assert [checkpoint_of(fold, n).progress["epoch"] for n in ("previous", "latest")] == [2, 2]
    assert checkpoint_of(fold, "previous").progress["next_step"] == 0
    damage(fold / LATEST)
    trainings.train("damaged", resume=True, **settings)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said in line
    assert line.endswith("going on from checkpoint_previous.safetensors")
    assert_same_run(whole, fold)


def test_two_damaged_checkpoints_are_both_named(tmp_path):
    for step in range(3):
        save(tmp_path, "latest", Checkpoint(network={"w": torch.ones(400)}, progress={"step": step}))
    assert load_newest(tmp_path).progress == {"step": 2}
    for name in (LATEST, PREVIOUS):
        flip_a_bit(tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"checkpoint_latest.* is damaged.*checkpoint_previous.* is dam"
    ):
        load_newest(tmp_path)


def test_any_flipped_bit_is_noticed(tmp_path):
    """In header, names, shapes, progress, tensors or checksum: refused, or the same content after all."""
    path = tmp_path / "checkpoint.safetensors"
    original = Checkpoint(
        network={"weight": torch.arange(6.0).reshape(2, 3)},
        training={"optimizer.0.step": torch.tensor(3, dtype=torch.int64)},
        progress={"epoch": 1, "sums": {"total": 0.5}},
    )
    content = save_checkpoint(path, original).read_bytes()
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            refused += 1
            continue
        assert loaded.progress == original.progress, place
        assert torch.equal(loaded.network["weight"], original.network["weight"]), place
        assert loaded.training["optimizer.0.step"].equal(original.training["optimizer.0.step"]), place
    assert refused > 0.9 * len(content)


def test_progress_that_json_changes_is_no_damage(tmp_path):
    progress = {"callback": {1: (2, 3), 10: None, 9: float("inf")}}
    path = save_checkpoint(tmp_path / "c.safetensors", Checkpoint(network={}, progress=progress))
    expected = {"callback": {"1": [2, 3], "10": None, "9": float("inf")}}
    assert load_checkpoint(path).progress == expected


def test_the_latest_checkpoint_is_there_at_every_moment_of_a_save(tmp_path, monkeypatch):
    seen = []
    save(tmp_path, "latest", Checkpoint(network={"w": torch.zeros(3)}, progress={"step": 0}))
    for name in ("rename", "replace", "link", "unlink", "remove"):
        original = getattr(os, name)

        def wrapped(*arguments, name=name, original=original, **named):
            before = load_newest(tmp_path).progress["step"]
            result = original(*arguments, **named)
            seen.append((name, before, load_newest(tmp_path).progress["step"]))
            return result

        monkeypatch.setattr(os, name, wrapped)
    for step in (1, 2):
        save(tmp_path, "latest", Checkpoint(network={"w": torch.zeros(3)}, progress={"step": step}))
    assert {name for name, *_ in seen} >= {"link"}
    assert {kept for _, *both in seen for kept in both} == {0, 1, 2}
    assert [both for _, *both in seen] == sorted(both for _, *both in seen)


@contextmanager
def files_of_at_most(size_bytes):
    """Within, the system refuses to make a file larger than this (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_the_system_refuses_is_said_clearly_and_changes_nothing(tmp_path):
    for step in (0, 1):
        save(tmp_path, "latest", Checkpoint(network={"w": torch.ones(400)}, progress={"step": step}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    larger = Checkpoint(network={"w": torch.ones(1_000_000)}, progress={"step": 2})
    with files_of_at_most(100_000), pytest.raises(CheckpointError) as failure:
        save(tmp_path, "latest", larger)
    assert os.strerror(errno.EFBIG) in str(failure.value)
    assert "make room, then continue with --c" in str(failure.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", kib=256) as folder:
        yield folder


def test_a_full_disk_is_said_clearly_and_leaves_the_old_checkpoints(small_disk):
    for step in (0, 1):
        save(small_disk, "latest", Checkpoint(network={"w": torch.ones(10_000)}, progress={"step": step}))
    larger = Checkpoint(network={"w": torch.ones(100_000)}, progress={"step": 2})
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(small_disk, "latest", larger)
    assert {path.name for path in small_disk.iterdir()} == {LATEST, PREVIOUS}
    assert load_newest(small_disk).progress == {"step": 1}
    assert load_checkpoint(small_disk / PREVIOUS).progress == {"step": 0}


def test_a_training_whose_disk_was_full_goes_on_to_the_same_bits_once_there_is_room(trainings, monkeypatch):
    whole = trainings.train("whole")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch_it = lambda: patch.setattr("safetensors.torch.save_file", full)  # noqa: E731
        with at_occurrence("saving", 4, patch_it), pytest.raises(CheckpointError, match="No space left"):
            trainings.train("full")
    assert_same_run(whole, trainings.train("full", resume=True))


@pytest.mark.parametrize("readers", [0, 1, 2])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_damaged_volume_is_named_with_its_case(trained_project, tmp_path, readers, keep):
    project = trained_project.copy(tmp_path)
    debug = project.model(TOY, "resnet3d-single_kl") / "fold_0" / "debug.json"
    case = json.loads(debug.read_text())["training_cases"][1]
    (path,) = (project.preprocessed / TOY).glob(f"*/{case}.b2nd")
    os.truncate(path, int(path.stat().st_size * keep))
    trainings = Trainings(project.preprocessed / TOY, tmp_path / "runs")
    with pytest.raises(DatasetError, match=rf"{case}\.b2nd is damaged \(.+\); run oaplug_preprocess again"):
        trainings.train("run", training__readers=readers)


def test_a_volume_of_another_size_is_named_with_its_case(trained_project, tmp_path):
    from oaplug.prepare.store import read_array, write_array

    project = trained_project.copy(tmp_path)
    debug = project.model(TOY, "resnet3d-single_kl") / "fold_0" / "debug.json"
    case = json.loads(debug.read_text())["training_cases"][1]
    (path,) = (project.preprocessed / TOY).glob(f"*/{case}.b2nd")
    write_array(path, read_array(path)[:, 1:])
    with pytest.raises(DatasetError, match=rf"{case} .*run oaplug_preprocess again"):
        Trainings(project.preprocessed / TOY, tmp_path / "runs").train("run")


@contextmanager
def poisoned(case_id, *, epochs):
    """Within, the volume of a case is NaN in these epochs of training."""
    finish = BatchSource._finish

    def poison(source, volume, cases, epoch):
        batch = finish(source, volume, cases, epoch)
        for index, case in enumerate(cases):
            if case.case_id == case_id and epoch in epochs:
                batch.volume[index] = torch.nan
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchSource, "_finish", poison)
        yield


def a_case_trained_in_epoch_1(fold):
    """A training case that a whole run saw in its second epoch (every case, or all but a rest of them)."""
    return json.loads((fold / "debug.json").read_text())["training_cases"][2]


def test_a_loss_that_is_not_finite_ends_the_training_with_the_cases_and_the_last_good_checkpoint(trainings):
    settings = {"training__batch_size": 3}
    whole = trainings.train("whole", **settings)
    case = a_case_trained_in_epoch_1(whole)
    with poisoned(case, epochs={1}), pytest.raises(TrainingError) as failure:
        trainings.train("poisoned", **settings)
    fold = trainings.results / "poisoned" / "fold_0"
    text = str(failure.value)
    assert "not finite in epoch 1" in text
    assert case in text
    assert text.endswith(f"the last good checkpoint is {fold / LATEST}")
    assert_same_run(whole, trainings.train("poisoned", resume=True, **settings))


def test_no_checkpoint_is_promised_where_none_was_saved(trainings, preprocessed):
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    with (
        pytest.raises(TrainingError, match=r"no checkpoint was saved yet$"),
        poisoned_all(splits[0]["train"]),
    ):
        trainings.train("poisoned")


@contextmanager
def poisoned_all(case_ids):
    finish = BatchSource._finish

    def poison(source, volume, cases, epoch):
        batch = finish(source, volume, cases, epoch)
        if epoch is not None:
            batch.volume.fill_(torch.nan)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchSource, "_finish", poison)
        assert case_ids
        yield


def test_bad_steps_can_be_skipped_and_leave_no_trace_in_weights_and_statistics(trainings, caplog):
    settings = {"training__batch_size": 3, "training__skip_bad_steps": 3, "training__ema_decay": 0.9}
    case = a_case_trained_in_epoch_1(trainings.train("whole", **settings))
    with poisoned(case, epochs={0, 1, 2}):
        fold = trainings.train("poisoned", **settings)
    skipped = [record["skipped"] for record in records_of(fold)]
    assert skipped == sorted(skipped)
    assert 1 <= skipped[-1] <= 3
    for name in ("latest", "final"):
        tensors = load_file(fold / f"checkpoint_{name}.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    lines = [record.getMessage() for record in caplog.records if "step skipped" in record.getMessage()]
    assert len(lines) == skipped[-1]
    assert all(case in line for line in lines)


def test_an_epoch_of_nothing_but_bad_steps_has_no_training_loss(trainings):
    with poisoned_all(["every one"]):
        fold = trainings.train("poisoned", training__skip_bad_steps=1000, training__epochs=1)
    (record,) = records_of(fold)
    assert "train.loss.total" not in record
    assert record["skipped"] > 0


def test_two_trainings_in_one_folder_are_refused(trained_project, tmp_path, capsys):
    project = trained_project.copy(tmp_path)
    fold = project.model(TOY, "resnet3d-single_kl") / "fold_0"
    with fold_lock(fold):
        assert project.train(901, "--c") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{fold} is being trained by another process" in line
    assert project.train(901, "--c") == 0


def test_what_a_killed_training_left_half_written_is_removed_at_the_next_start(trainings):
    with stopping_at("step", 1), pytest.raises(Interrupted):
        trainings.train("killed")
    fold = trainings.results / "killed" / "fold_0"
    (fold / "validation").mkdir()
    left = [fold / ".writing-abc-metrics.jsonl", fold / "validation" / ".writing-x-predictions.csv"]
    left.append(fold / "checkpoint_next.safetensors")
    for path in left:
        path.write_bytes(b"half")
    with fold_lock(fold), pytest.raises(Exception, match="is being trained"):
        trainings.train("killed", resume=True)
    assert all(path.exists() for path in left), "another process may still be writing"
    trainings.train("killed", resume=True)
    assert not any(path.exists() for path in left)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing(preprocessed, tmp_path):
    script = Path(__file__).with_name("killed_trainings.py")
    done = subprocess.run(
        [sys.executable, str(script), str(preprocessed), str(tmp_path), "60"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["kills"].values()) >= 50
    assert all(report["kills"][phase] >= 4 for phase in ("reading", "step", "validation", "saving")), report
    assert report["lost"] == [], "a start lay before the last checkpoint"
    assert report["resumed"] > 30
    assert report["finished"] >= 1
    whole = tmp_path / "whole" / "fold_0"
    for number in range(report["finished"]):
        assert_same_run(whole, tmp_path / f"killed{number}" / "fold_0")
