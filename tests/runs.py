"""Trainings of a few seconds' fraction: run whole, stopped and resumed, and compared bit for bit."""

from __future__ import annotations

import csv
import json
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oaplug.feed.source import BatchSource
from oaplug.model.checkpoint import load_checkpoint
from oaplug.model.network import Network
from oaplug.model.run_folder import write_run
from oaplug.plug.registry import registry
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.splits import fold_cases, read_or_make_splits
from oaplug.train import trainer
from oaplug.train.fold import FoldRequest, train_fold
from oaplug.train.settings import RunRequest, resolve_run
from oaplug.train.stepper import Stepper
from oaplug.train.stopping import Interrupted

SMALL = {"backbone.width": 4, "backbone.depth": 10, "backbone.dilated": False, "backbone.stem_kernel": 3}
EVENTS = {
    "reading": (BatchSource, "_read"),
    "step": (Stepper, "step"),
    "validation": (Network, "probabilities"),
    "saving": (trainer, "save"),
}
"""Where a training can be stopped: what it calls there."""


@dataclass(frozen=True)
class Trainings:
    """Trainings of one preprocessed dataset, each in a folder of its own, of a small network."""

    preprocessed: Path
    results: Path
    epochs: int = 3

    def request(self, name, *, resume=False, callbacks=(), **settings):
        """What `train` trains; settings are overrides with `__` for the dot (head__dropout=0.3)."""
        data = PreprocessedFolder(self.preprocessed)
        keys = {key.replace("__", "."): value for key, value in settings.items()}
        run = resolve_run(
            RunRequest(
                configuration="3d_lowres",
                backbone="resnet3d",
                head="single",
                overrides=SMALL | {"training.epochs": self.epochs} | keys,
            ),
            plan=data.plan(),
            description=data.description(),
            registry=registry(),
            plan_path=self.preprocessed / "oaplugPlans.json",
        )
        splits = read_or_make_splits(data.splits_path, data.cases(), data.description().targets)
        write_run(self.results / name, run, fingerprint=None)
        return FoldRequest(
            run=run,
            folder=self.results / name,
            data=data,
            fold="0",
            split=fold_cases(splits, 0, cases=data.cases()),
            device=torch.device("cpu"),
            resume=resume,
            callbacks=callbacks,
        )

    def train(self, name, *, resume=False, callbacks=(), progress=None, **settings):
        """Train, or go on with, the fold in results/NAME; gives its folder."""
        request = self.request(name, resume=resume, callbacks=callbacks, **settings)
        return train_fold(request, registry(), progress=progress)

    def train_with_stops(self, name, stops, **settings):
        """Train until the end, stopped at each (event, occurrence) of `stops` on the way."""
        for index, (event, occurrence) in enumerate(stops):
            with stopping_at(event, occurrence), pytest.raises(Interrupted, match="continue with --c"):
                self.train(name, resume=index > 0, **settings)
        return self.train(name, resume=True, **settings)


@contextmanager
def at_occurrence(event, occurrence, do):
    """Within, `do()` is called just before the training does something for the nth time (from 1)."""
    owner, name = EVENTS[event]
    function, count = getattr(owner, name), 0

    def counted(*arguments, **named):
        nonlocal count
        count += 1
        if count == occurrence:
            do()
        return function(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield


def stopping_at(event, occurrence, number=signal.SIGTERM):
    """Within, this process gets a signal just before the training does something for the nth time.

    After the training, in the predictions of its final checkpoint, nobody listens and nothing is sent.
    """

    def send():
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler):
            os.kill(os.getpid(), number)

    return at_occurrence(event, occurrence, send)


def records_of(fold):
    """metrics.jsonl, without what a clock says."""
    lines = (fold / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def predictions_of(fold):
    """validation/predictions.csv, without the model's name."""
    with (fold / "validation" / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoint_of(fold, name="latest"):
    """One of a fold's checkpoints in memory."""
    return load_checkpoint(fold / f"checkpoint_{name}.safetensors")


def assert_same_tensors(first, second):
    """Same names, same bits (NaN too)."""
    assert first.keys() == second.keys()
    assert first
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert tensor.numpy(force=True).tobytes() == second[name].numpy(force=True).tobytes(), name


def assert_same_run(first, second):
    """Two folds hold the same weights, optimizer, history and predictions, bit for bit."""
    for name in ("final", "best", "latest"):
        file = f"checkpoint_{name}.safetensors"
        assert_same_tensors(load_file(first / file), load_file(second / file))
    kept = [checkpoint_of(fold).progress for fold in (first, second)]
    for progress in kept:
        for record in progress["records"]:
            record.pop("seconds")
        with suppress(KeyError):
            progress.pop("environment")
    assert kept[0] == kept[1]
    assert records_of(first) == records_of(second)
    assert predictions_of(first) == predictions_of(second)
