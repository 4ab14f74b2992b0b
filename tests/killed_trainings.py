"""Kills trainings at random moments: `killed_trainings.py PREPROCESSED RESULTS KILLS`; prints a JSON report.

Python and torch are started once. Every attempt is a fork of that process, which itself never trains (torch
cannot go on in a fork once it has computed gradients), and reports through shared memory where it is.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from pathlib import Path

import torch
from runs import EVENTS, Trainings

from oaplug.plug.registry import registry
from oaplug.train import trainer as trainer_module
from oaplug.train.checkpoints import has_state
from oaplug.train.fold import _job, _write_validation
from oaplug.train.trainer import Trainer

PLACES = EVENTS | {"validation": (trainer_module, "validate")}
PHASES = ["starting", *PLACES]
SETTINGS = {
    "training__checkpoint_minutes": 1e-9,
    "training__readers": 0,
    "training__batch_size": 3,
    "training__ema_decay": 0.9,
    "head__dropout": 0.3,
}
_FORMAT = "6q"


class Board:
    """What a child tells: its phase, how often it entered one, its last saved and its first position."""

    def __init__(self):
        self._memory = mmap.mmap(-1, struct.calcsize(_FORMAT))
        self.fields = dict.fromkeys(("phase", "wanted", "entered", "saved", "started", "done"), 0)

    def put(self, **changes):
        now = self.get() | changes
        self._memory[:] = struct.pack(_FORMAT, *(now[name] for name in self.fields))

    def get(self):
        return dict(zip(self.fields, struct.unpack(_FORMAT, self._memory[:]), strict=True))


def watch(board):
    """Make every event of a training tell the board its phase."""
    for number, (event, (owner, name)) in enumerate(PLACES.items(), start=1):
        setattr(owner, name, told(board, number, getattr(owner, name), event))
    resume = Trainer.resume

    @functools.wraps(resume)
    def told_resume(trainer):
        resume(trainer)
        board.put(started=position(trainer))

    Trainer.resume = told_resume
    save = Trainer._save

    def told_save(trainer, name):
        save(trainer, name)
        if name == "latest":
            board.put(saved=position(trainer))

    Trainer._save = told_save


def warm_up(trainings):
    """Import what a training imports, once for all forks, without computing a gradient."""
    request = trainings.request("warm", **SETTINGS)
    folder = request.folder / "fold_0"
    folder.mkdir()
    trainer = Trainer(_job(request, registry(), folder))
    trainer._save("final")
    _write_validation(trainer, folder)


def position(trainer):
    return trainer.epoch * 1000 + trainer.next_step


def told(board, number, function, event):
    def telling(*arguments, **named):
        before = board.get()
        board.put(phase=number, entered=before["entered"] + (before["wanted"] == number))
        try:
            return function(*arguments, **named)
        finally:
            board.put(phase=before["phase"])

    return functools.wraps(function)(telling) if event != "saving" else telling


def attempt(trainings, name, board, draw, *, aim):
    """One fork that trains or goes on, killed at the phase `aim` or soon after; gives where, or None."""
    board.put(phase=0, wanted=PHASES.index(aim), entered=0, started=-1, done=0)
    child = os.fork()
    if child == 0:
        train_and_exit(trainings, name, board)
    count, delay_s = draw.randint(1, 3), draw.choice([0.0, draw.uniform(0, 0.004), draw.uniform(0, 0.02)])
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if aim != "starting" and board.get()["entered"] >= count:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return PHASES[board.get()["phase"]] if os.WIFSIGNALED(status) else None
        time.sleep(0.0002)
    if not board.get()["done"]:
        raise RuntimeError("an attempt failed")
    return None


def train_and_exit(trainings, name, board):
    try:
        watch(board)
        is_begun = has_state(trainings.results / name / "fold_0")
        trainings.train(name, resume=is_begun, **SETTINGS)
        board.put(done=1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(preprocessed, results, kills):
    torch.set_num_threads(1)
    import oaplug.train.logbook as logbook

    logbook.draw_progress = lambda records, path: None
    trainings, board, draw = Trainings(Path(preprocessed), Path(results), epochs=4), Board(), random.Random(0)
    warm_up(trainings)
    assert attempt(trainings, "whole", board, draw, aim="starting") is None
    report = {"kills": dict.fromkeys(PHASES, 0), "lost": [], "finished": 0, "attempts": 0, "resumed": 0}
    while True:
        enough = sum(report["kills"].values()) >= int(kills)
        board.put(saved=-1)
        while True:
            name = f"killed{report['finished']}"
            saved = board.get()["saved"]
            aim = "starting" if enough else min(PLACES, key=report["kills"].get)  # which is never reached
            phase = attempt(trainings, name, board, draw, aim=aim)
            report["attempts"] += 1
            now = board.get()
            report["resumed"] += now["started"] >= 0
            if 0 <= now["started"] < saved:
                report["lost"].append([name, saved, now["started"]])
            if now["done"]:
                break
            report["kills"][phase] += 1
            enough = sum(report["kills"].values()) >= int(kills)
        report["finished"] += 1
        if enough:
            break
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
