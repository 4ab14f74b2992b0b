"""A training gives the same bits however often it is stopped and however its data is read."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from runs import (
    Trainings,
    assert_same_run,
    at_occurrence,
    checkpoint_of,
    predictions_of,
    records_of,
    stopping_at,
)

from oaplug.core.errors import CheckpointError, OaplugError
from oaplug.model.checkpoint import Checkpoint, save_checkpoint
from oaplug.train.stopping import Interrupted, epochs_since_best, stop_on_signals

pytestmark = pytest.mark.slow

TOY = "Dataset901_Toy"
SETTINGS = {
    "plain": {},
    "everything": {
        "training__precision": "bfloat16",
        "training__accumulation_steps": 2,
        "training__ema_decay": 0.9,
        "training__early_stopping_epochs": 2,
        "training__checkpoint_minutes": 1e-9,
        "training__learning_rate": 0.02,
        "head__dropout": 0.4,
        "training__epochs": 7,
    },
    "sampled": {
        "training__sampling": "balanced",
        "training__class_weights": "balanced",
        "training__schedule": "poly",
        "training__layer_decay": 0.7,
        "training__readers": 2,
    },
    "frozen": {"training__freeze_encoder": True, "training__readers": 0, "training__channels_last": False},
    "float16": {"training__precision": "float16", "training__deterministic": True},
    "nnunet": {"augmentation__backend": "batchgeneratorsv2", "head__dropout": 0.4},
}
STOPS = [("step", 2), ("validation", 1), ("saving", 1), ("reading", 3)]


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """progress.png takes longer to draw than these networks to train."""
    monkeypatch.setattr("oaplug.train.logbook.draw_progress", lambda records, path: None)


@pytest.fixture(scope="module")
def preprocessed(trained_project):
    return trained_project.preprocessed / TOY


@pytest.fixture
def trainings(preprocessed, tmp_path):
    return Trainings(preprocessed, tmp_path)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_that_is_stopped_anywhere_goes_on_to_the_same_bits(trainings, name):
    settings = {"training__batch_size": 3} | SETTINGS[name]
    whole = trainings.train("whole", **settings)
    stopped = trainings.train_with_stops("stopped", STOPS, **settings)
    assert_same_run(whole, stopped)
    if name == "everything":
        assert 2 < len(records_of(whole)) < 7, "early stopping came into it"


@pytest.mark.slow
@pytest.mark.parametrize("event", ["reading", "step", "validation", "saving"])
def test_a_training_can_be_stopped_at_every_single_step_reading_validation_and_save(trainings, event):
    settings = SETTINGS["everything"] | {"training__batch_size": 3, "training__epochs": 2}
    whole = trainings.train("whole", **settings)
    for occurrence in range(1, 100):
        try:
            with stopping_at(event, occurrence):
                stopped = trainings.train(f"stopped{occurrence}", **settings)
        except Interrupted:
            stopped = trainings.train(f"stopped{occurrence}", resume=True, **settings)
            assert_same_run(whole, stopped)
        else:
            break
    assert occurrence > 2


def test_the_number_of_readers_changes_nothing(trainings):
    folds = [trainings.train(f"readers{n}", training__readers=n, training__batch_size=3) for n in (0, 1, 2)]
    for fold in folds[1:]:
        assert_same_run(folds[0], fold)


def test_another_seed_is_another_training(trainings):
    folds = [trainings.train(f"seed{seed}", training__seed=seed) for seed in (0, 1)]
    assert records_of(folds[0]) != records_of(folds[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_is_obeyed_after_the_step_in_which_it_came(trainings, number):
    with (
        stopping_at("step", 2, number),
        pytest.raises(Interrupted, match=f"{number.name} in epoch 0, step 2"),
    ):
        trainings.train("stopped")
    assert checkpoint_of(trainings.results / "stopped" / "fold_0").progress["next_step"] == 2
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler), "handlers are put back"


def test_the_command_ends_with_status_75_and_one_line_and_a_second_ctrl_c_ends_at_once(
    trained_project, tmp_path, capsys
):
    project = trained_project.copy(tmp_path)

    def interrupt_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    arguments = ("--tag", "stopped", "--set", "training.batch_size=3")
    with stopping_at("step", 2):
        assert project.train(901, *arguments) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("oaplug_train: stopped by SIGTERM in epoch 0, step 2; everything is saved in ")
    assert line.endswith(": continue with --c")
    with at_occurrence("step", 2, interrupt_twice):
        assert project.train(901, *arguments, "--c") == 130
    fold = project.model(TOY, "resnet3d-single_kl", tag="stopped") / "fold_0"
    assert checkpoint_of(fold).progress["next_step"] == 2, "nothing was saved after the second one"
    capsys.readouterr()
    assert project.train(901, *arguments, "--c") == 0
    assert "resuming at epoch 0 step 2 of 1 epochs" in capsys.readouterr().out
    assert project.train(901, *arguments, "--tag", "whole") == 0
    assert_same_run(project.model(TOY, "resnet3d-single_kl", tag="whole") / "fold_0", fold)


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not request
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_finished_training_that_is_continued_stays_as_it_is(trainings):
    fold = trainings.train("done")
    before = checkpoint_of(fold, "final"), records_of(fold), predictions_of(fold)
    trainings.train("done", resume=True)
    after = checkpoint_of(fold, "final"), records_of(fold), predictions_of(fold)
    assert before[1:] == after[1:]
    assert all(torch.equal(t, after[0].network[name]) for name, t in before[0].network.items())


def change_checkpoint(fold, change):
    checkpoint = checkpoint_of(fold)
    progress = json.loads(json.dumps(checkpoint.progress))
    change(progress)
    save_checkpoint(fold / "checkpoint_latest.safetensors", replace(checkpoint, progress=progress))


def test_a_training_that_goes_on_elsewhere_is_warned_of_in_a_line_for_each_difference(trainings):
    with stopping_at("step", 2), pytest.raises(Interrupted):
        trainings.train("moved")
    elsewhere = {
        **{"oaplug": "0.0.1", "torch": "1.0", "machine": "abacus", "device": "cuda:3"},
        **{"threads": 77, "processes": 4, "data": "other"},
    }
    fold = trainings.results / "moved" / "fold_0"
    here = checkpoint_of(fold).progress["environment"]
    assert here.keys() == elsewhere.keys()
    change_checkpoint(fold, lambda progress: progress["environment"].update(elsewhere))
    with pytest.warns(UserWarning, match="was begun with") as caught:
        trainings.train("moved", resume=True)
    lines = [str(warning.message) for warning in caught]
    assert len(lines) == 7
    assert not any("\n" in line for line in lines)
    for name, value in elsewhere.items():
        (line,) = [line for line in lines if f"with {name} " in line]
        assert f"{name} {value}, and goes on with {here[name]}" in line


def test_other_data_is_noticed_even_where_only_a_case_has_changed_sides(trained_project, tmp_path):
    project = trained_project.copy(tmp_path)
    trainings = Trainings(project.preprocessed / TOY, tmp_path / "runs")
    with stopping_at("step", 2), pytest.raises(Interrupted):
        trainings.train("run")
    path = project.preprocessed / TOY / "splits_final.json"
    splits = json.loads(path.read_text())
    splits[0]["val"], splits[0]["train"] = splits[0]["train"], splits[0]["val"]
    path.write_text(json.dumps(splits))
    with pytest.warns(UserWarning, match="was begun with data"):
        trainings.train("run", resume=True)


def test_continuing_needs_a_checkpoint_of_a_training(trainings):
    with pytest.raises(CheckpointError, match="no checkpoint_latest to continue; train without --c"):
        trainings.train("nothing", resume=True)
    fold = trainings.results / "nothing" / "fold_0"
    with stopping_at("step", 1), pytest.raises(Interrupted):
        trainings.train("nothing")
    weights = Checkpoint(network=checkpoint_of(fold).network)
    save_checkpoint(fold / "checkpoint_latest.safetensors", weights)
    with pytest.raises(CheckpointError, match="holds weights but not the state of a training"):
        trainings.train("nothing", resume=True)


def test_a_training_that_is_there_is_not_overwritten(trainings):
    trainings.train("there")
    with pytest.raises(OaplugError, match=r"continue it with --c, train anew under --tag NAME"):
        trainings.train("there")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0),
        ([None, None], 0),
        ([0.5], 0),
        ([0.5, 0.4, 0.4], 2),
        ([0.4, 0.5, 0.5], 1),
        ([0.1, None, 0.2], 0),
    ],
)
def test_epochs_since_the_best_count_from_its_first_occurrence(values, expected):
    assert epochs_since_best([{"m": value} for value in values], "m") == expected


def test_threads_and_determinism_of_a_plan_end_with_its_training(trainings):
    threads = torch.get_num_threads()
    seen = []

    def look(*_):
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    settings = {"training__threads": threads + 1, "training__deterministic": True, "training__epochs": 1}
    trainings.train("run", progress=look, **settings)
    assert set(seen) == {(threads + 1, True)}
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, False)
