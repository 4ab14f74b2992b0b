"""The trainer: epochs of steps, validation, checkpoints. Varied by settings and parts, not by subclassing."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from oaplug.core.errors import CheckpointError, OaplugError
from oaplug.core.evaluation import table_metrics
from oaplug.core.seeds import derive_seed
from oaplug.model.checkpoint import Checkpoint, load_checkpoint, load_network
from oaplug.train.checkpoints import checkpoint_path, load_newest, save
from oaplug.train.environment import warn_of_differences
from oaplug.train.evaluate import validate
from oaplug.train.interference import measure_interference
from oaplug.train.logbook import Logbook, describe, describe_step
from oaplug.train.schedule import learning_rate
from oaplug.train.stepper import Step, Stepper
from oaplug.train.stopping import Interrupted, StopRequest, epochs_since_best, stop_on_signals
from oaplug.train.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from oaplug.core.plan import TrainSettings
    from oaplug.core.predictions import PredictionTable
    from oaplug.core.target import Target
    from oaplug.feed.source import BatchSource
    from oaplug.model.network import Network
    from oaplug.model.precision import Precision
    from oaplug.plug.protocols import Callback

log = logging.getLogger(__name__)


class TrainingError(OaplugError):
    """Training cannot go on: the loss is not finite, say."""


class _StopAsked(Exception):
    """Leaves a validation."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a fold needs: data, settings, where to write, who looks on."""

    network: Network
    training: BatchSource
    validation: BatchSource | None
    targets: Mapping[str, Target]
    settings: TrainSettings
    precision: Precision
    folder: Path
    fold: str
    model: str
    best_metric: str
    run: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    world: World = field(default_factory=World)


class Trainer:
    """Trains one fold; `train` may be called on a fresh trainer or, after `resume`, on one that goes on.

    Its state is the stepper's, the logbook's records, and where it is: `epoch`, `next_step`, `sums` (of the
    losses of the epoch so far), `counted` steps in them, `skipped` steps of the run, and the `best` metric.
    """

    def __init__(self, job: TrainingJob, *, progress: Callable[[int, int, str], None] | None = None) -> None:
        self.job = job
        self._progress = progress
        self.stepper = Stepper(job.network, settings=job.settings, precision=job.precision, world=job.world)
        self.logbook = Logbook(job.folder)
        self.epoch = self.next_step = self.counted = self.skipped = 0
        self.sums: dict[str, float] = {}
        self.best: float | None = None
        self.steps_per_epoch = max(job.training.batches_per_epoch // job.settings.accumulation_steps, 1)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint; raises CheckpointError where there is none."""
        checkpoint = load_newest(self.job.folder)
        try:
            self._take_up(checkpoint)
        except KeyError as missing:
            raise CheckpointError(
                f"{checkpoint_path(self.job.folder, 'latest')} holds weights but not the state of a training "
                f"({missing}); start from it with -pretrained_weights, under another --tag"
            ) from None

    def _take_up(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        load_network(self.job.network, checkpoint, path=checkpoint_path(self.job.folder, "latest"))
        self.stepper.load(checkpoint.training, progress)
        self.epoch, self.next_step = int(progress["epoch"]), int(progress["next_step"])
        self.sums, self.counted = dict(progress["sums"]), progress["counted"]
        self.best, self.skipped = progress["best"], progress["skipped"]
        self.logbook = Logbook(self.job.folder, progress["records"])
        self._restore_callbacks(progress["callbacks"])
        warn_of_differences(progress["environment"], self.job.environment)
        log.info(
            "resuming at epoch %d step %d of %d epochs", self.epoch, self.next_step, self.job.settings.epochs
        )

    def _restore_callbacks(self, states: Sequence[Mapping[str, Any]]) -> None:
        if len(states) != len(self.job.callbacks):
            raise CheckpointError(
                f"{self.job.folder} holds a training with {len(states)} callbacks, not "
                f"{len(self.job.callbacks)}; continue it with the same --callback options"
            )
        for callback, state in zip(self.job.callbacks, states, strict=True):
            callback.load_state_dict(state)

    def train(self) -> None:
        """Train until the last epoch; writes checkpoint_best, _latest and, at the end, _final.

        Raises Interrupted after a signal, once the state is saved; TrainingError where losses are not finite.
        """
        for callback in self._lookers_on:
            callback.on_start(self.job.run)
        with stop_on_signals() as stop:
            while not self._is_over():
                self._run_epoch(stop)
        self._save("final")
        if self.job.world.is_first:
            self.logbook.draw()
        self._tell("on_end")
        self.job.world.wait()

    def _is_over(self) -> bool:
        settings, records = self.job.settings, self.logbook.records
        patience = settings.early_stopping_epochs
        if patience is not None and epochs_since_best(records, f"val.{self.job.best_metric}") >= patience:
            return True
        return self.epoch >= settings.epochs

    def _run_epoch(self, stop: StopRequest) -> None:
        start = time.perf_counter()
        self._train_epoch(stop)
        record: dict[str, Any] = {"epoch": self.epoch, "learning_rate": self._rate(0)}
        record |= {f"train.loss.{name}": total / max(self.counted, 1) for name, total in self.sums.items()}
        if self.job.settings.log_gradient_cosine:
            record |= measure_interference(self.job, self.epoch)
        if self.job.validation is not None:
            record |= self._validate(stop)
        record["skipped"] = self.skipped
        record["seconds"] = round(time.perf_counter() - start, 3)
        self._finish_epoch(record)

    def _finish_epoch(self, record: dict[str, Any]) -> None:
        improved = self._is_best(record)
        self.epoch, self.next_step, self.counted, self.sums = self.epoch + 1, 0, 0, {}
        if self.job.world.is_first:
            self.logbook.add(record)
            log.info("%s", describe(record))
            self._tell("on_epoch", record)
        else:
            self.logbook.records.append(record)
        if improved:
            self._save("best")  # first, because the latest says that this one is there
        self._save("latest")

    def _train_epoch(self, stop: StopRequest) -> None:
        self.stepper.train_mode()
        many = min(self.job.settings.accumulation_steps, self.job.training.batches_per_epoch)
        batches = self.job.training.epoch(self.epoch, first=self.next_step * many)
        while self.next_step < self.steps_per_epoch:
            # reading and augmenting draw from generators of their own; this seed is for dropout alone
            purpose = (self.job.fold, self.epoch, self.next_step, self.job.world.rank)
            torch.manual_seed(derive_seed(self.job.settings.seed, "dropout", *purpose))
            rate = self._rate(self.next_step)
            step = self.stepper.step(islice(batches, many), count=many, rate=rate, stop=stop)
            self.next_step += 1
            self._count(step)
            self._show(step.losses)
            if step.asked_to_stop:
                self._leave(stop)
            if time.monotonic() - self._saved_at > 60 * self.job.settings.checkpoint_minutes:
                self._save("latest")

    def _count(self, step: Step) -> None:
        """Add a step's losses; raises TrainingError where one too many is not finite."""
        if step.is_finite:
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in step.losses.items()}
            self.counted += 1
            return
        self.skipped += 1
        allowed = self.job.settings.skip_bad_steps
        ids = ", ".join(i for part in self.job.world.gather(step.case_ids) for i in part)
        where = f"{self.job.folder}: loss or gradient not finite in epoch {self.epoch}, cases {ids}"
        if self.skipped > allowed:
            raise TrainingError(
                f"{where}; look at these cases, or try a smaller training.learning_rate or "
                f"training.precision=float32 under a new --tag; {self._last_good()}"
            )
        log.warning("%s; step skipped (%d of %d)", where, self.skipped, allowed)

    def _last_good(self) -> str:
        path = checkpoint_path(self.job.folder, "latest")
        return f"the last good checkpoint is {path}" if path.is_file() else "no checkpoint was saved yet"

    def _leave(self, stop: StopRequest) -> NoReturn:
        self._save("latest")
        self.job.world.wait()
        raise Interrupted(
            f"stopped by {stop.signal or 'another process'} in epoch {self.epoch}, step {self.next_step}; "
            f"everything is saved in {self.job.folder}: continue with --c"
        )

    def _show(self, losses: Mapping[str, float]) -> None:
        if self._progress is not None and self.job.world.is_first:
            done = self.epoch * self.steps_per_epoch + self.next_step
            what = describe_step(self.epoch, losses, device=self.job.precision.device)
            self._progress(done, self.job.settings.epochs * self.steps_per_epoch, what)

    def _rate(self, step: int) -> float:
        steps = self.steps_per_epoch
        return learning_rate(self.job.settings, step=self.epoch * steps + step, steps_per_epoch=steps)

    def _validate(self, stop: StopRequest) -> dict[str, float | None]:
        try:
            self.stepper.share_statistics()
            with self.stepper.averaged():
                table, losses = validate(self.job, between=partial(self._raise_if, stop))
        except _StopAsked:
            self._leave(stop)
        record: dict[str, float | None] = {f"val.loss.{name}": value for name, value in losses.items()}
        return record | {f"val.{name}": value for name, value in table_metrics(table).items()}

    def _raise_if(self, stop: StopRequest) -> None:
        """Between validation batches, of which every process has as many."""
        if self.job.world.is_any(bool(stop), device=self.job.precision.device):
            raise _StopAsked

    def validation_table(self, checkpoint: str = "final") -> PredictionTable:
        """Predictions of the validation cases by a saved checkpoint ("best" or "final")."""
        path = checkpoint_path(self.job.folder, checkpoint)
        load_network(self.job.network, load_checkpoint(path), path=path)
        return validate(self.job)[0]

    def _is_best(self, record: Mapping[str, Any]) -> bool:
        value = record.get(f"val.{self.job.best_metric}")
        if value is None or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    @property
    def _lookers_on(self) -> Sequence[Callback]:
        """The callbacks, in the one process that tells others."""
        return self.job.callbacks if self.job.world.is_first else ()

    def _tell(self, what: str, *given: Any) -> None:
        for callback in self._lookers_on:
            try:
                getattr(callback, what)(*given)
            except Exception:  # a callback only looks on: it must not end a training
                log.exception("the callback %s failed", type(callback).__name__)

    def _save(self, name: str) -> None:
        if not self.job.world.is_first:
            return
        progress = {
            **{
                key: getattr(self, key)
                for key in ("epoch", "next_step", "sums", "counted", "skipped", "best")
            },
            **self.stepper.progress(),
            "records": self.logbook.records,
            "environment": dict(self.job.environment),
            "callbacks": [callback.state_dict() for callback in self.job.callbacks],
        }
        if name == "latest":
            state, training = self.job.network.state_dict(), self.stepper.tensors()
            self._saved_at = time.monotonic()
        else:
            with self.stepper.averaged():
                state, training = {n: t.clone() for n, t in self.job.network.state_dict().items()}, {}
        save(self.job.folder, name, Checkpoint(network=state, training=training, progress=progress))
