"""The trainer: epochs of steps, validation, checkpoints. Varied by settings and parts, not by subclassing."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from oaplug.core.errors import CheckpointError, OaplugError
from oaplug.core.evaluation import prediction_table, table_metrics
from oaplug.core.seeds import derive_seed
from oaplug.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_network,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from oaplug.train.evaluate import predict_cases
from oaplug.train.logbook import Logbook
from oaplug.train.schedule import learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from oaplug.core.plan import TrainSettings
    from oaplug.core.predictions import PredictionTable
    from oaplug.core.target import Target
    from oaplug.feed.source import BatchSource, LoadedBatch
    from oaplug.model.network import Network
    from oaplug.model.precision import Precision
    from oaplug.plug.protocols import Callback

log = logging.getLogger(__name__)
Progress = "Callable[[int, int, str], None]"


class TrainingError(OaplugError):
    """Training cannot go on: the loss is not finite, say."""


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
    callbacks: Sequence[Callback] = ()


class Trainer:
    """Trains one fold; `train` may be called on a fresh trainer or, after `resume`, on one that goes on."""

    def __init__(self, job: TrainingJob, *, progress: Callable[[int, int, str], None] | None = None) -> None:
        self.job = job
        self._progress = progress
        self.network = job.network
        job.precision.place(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=job.settings.learning_rate, weight_decay=job.settings.weight_decay
        )
        self._scaler = torch.amp.GradScaler(job.precision.device.type, enabled=job.precision.needs_scaling)
        self.logbook = Logbook(job.folder)
        self.next_epoch = 0
        self.best: float | None = None

    def resume(self) -> None:
        """Go on from checkpoint_latest; raises CheckpointError where there is none."""
        path = self.job.folder / "checkpoint_latest.safetensors"
        checkpoint = load_checkpoint(path)
        load_network(self.network, checkpoint, path=path)
        load_optimizer(self.optimizer, checkpoint.optimizer)
        progress = checkpoint.progress
        self.next_epoch, self.best = int(progress["next_epoch"]), progress["best"]
        self._scaler.load_state_dict(progress["scaler"])
        self.logbook = Logbook(self.job.folder, progress["records"])
        if len(progress["callbacks"]) != len(self.job.callbacks):
            raise CheckpointError(
                f"{path} is of a training with {len(progress['callbacks'])} callbacks, not "
                f"{len(self.job.callbacks)}; continue it with the same --callback options"
            )
        for callback, state in zip(self.job.callbacks, progress["callbacks"], strict=True):
            callback.load_state_dict(state)
        log.info("resuming at epoch %d of %d", self.next_epoch, self.job.settings.epochs)

    def train(self) -> None:
        """Train until the last epoch; writes checkpoint_best, _latest and, at the end, _final."""
        for callback in self.job.callbacks:
            callback.on_start(self.job.run)
        while self.next_epoch < self.job.settings.epochs:
            self._run_epoch(self.next_epoch)
        self._save("final")
        for callback in self.job.callbacks:
            callback.on_end()

    def _run_epoch(self, epoch: int) -> None:
        start = time.perf_counter()
        torch.manual_seed(derive_seed(self.job.settings.seed, "dropout", self.job.fold, epoch))
        record: dict[str, Any] = {"epoch": epoch, "learning_rate": self._learning_rate(epoch, 0)}
        record |= {f"train.loss.{name}": value for name, value in self._train_epoch(epoch).items()}
        improved = False
        if self.job.validation is not None:
            record |= self._validate()
            improved = self._is_best(record)
        record["seconds"] = round(time.perf_counter() - start, 3)
        self.next_epoch = epoch + 1
        self.logbook.add(record, last=self.next_epoch == self.job.settings.epochs)
        log.info("%s", describe(record, self.job))
        self._notify(record)
        if improved:
            self._save("best")  # first, because the latest says that this one is there
        self._save("latest")

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self.network.train()
        sums: dict[str, torch.Tensor] = {}
        steps = self.job.training.batches_per_epoch
        for step, batch in enumerate(self.job.training.epoch(epoch)):
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(epoch, step)
            for name, value in self._step(batch).items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
            if self._progress is not None:
                self._progress(epoch * steps + step + 1, self.job.settings.epochs * steps, f"epoch {epoch}")
        means = {name: float(total) / steps for name, total in sums.items()}
        if not math.isfinite(means["total"]):
            raise TrainingError(
                f"{self.job.folder}: the loss is not finite in epoch {epoch}; "
                "try a smaller training.learning_rate or training.precision=float32 (--tag for a new run)"
            )
        return means

    def _step(self, batch: LoadedBatch) -> dict[str, torch.Tensor]:
        """One optimizer step; gives the detached losses."""
        with self.job.precision.autocast():
            logits = self.network(self.job.precision.arrange(batch.volume))
            losses = self.network.loss(logits, batch.truth)
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(losses["total"]).backward()  # type: ignore[no-untyped-call]
        if self.job.settings.gradient_clip is not None:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.job.settings.gradient_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return {name: value.detach() for name, value in losses.items()}

    def _learning_rate(self, epoch: int, step: int) -> float:
        steps = self.job.training.batches_per_epoch
        return learning_rate(self.job.settings, step=epoch * steps + step, steps_per_epoch=steps)

    def _validate(self) -> dict[str, float | None]:
        table, losses = self._predict_validation()
        record: dict[str, float | None] = {f"val.loss.{name}": value for name, value in losses.items()}
        return record | {f"val.{name}": value for name, value in table_metrics(table).items()}

    def _predict_validation(self) -> tuple[PredictionTable, dict[str, float]]:
        source = self.job.validation
        assert source is not None
        probabilities, losses = predict_cases(self.network, source.in_order(), precision=self.job.precision)
        table = prediction_table(
            source.cases, probabilities, targets=self.job.targets, fold=self.job.fold, model=self.job.model
        )
        return table, losses

    def validation_table(self, checkpoint: str = "final") -> PredictionTable:
        """Predictions of the validation cases by a saved checkpoint ("best" or "final")."""
        path = self.job.folder / f"checkpoint_{checkpoint}.safetensors"
        load_network(self.network, load_checkpoint(path), path=path)
        return self._predict_validation()[0]

    def _is_best(self, record: Mapping[str, Any]) -> bool:
        value = record.get(f"val.{self.job.best_metric}")
        if value is None or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    def _notify(self, record: Mapping[str, Any]) -> None:
        for callback in self.job.callbacks:
            try:
                callback.on_epoch(record)
            except Exception:  # a callback only looks on: it must not end a training
                log.exception("the callback %s failed", type(callback).__name__)

    def _save(self, name: str) -> None:
        progress = {
            "next_epoch": self.next_epoch,
            "best": self.best,
            "scaler": self._scaler.state_dict(),
            "records": self.logbook.records,
            "callbacks": [callback.state_dict() for callback in self.job.callbacks],
        }
        optimizer = optimizer_tensors(self.optimizer) if name == "latest" else {}
        save_checkpoint(
            self.job.folder / f"checkpoint_{name}.safetensors",
            Checkpoint(network=self.network.state_dict(), optimizer=optimizer, progress=progress),
        )


def describe(record: Mapping[str, Any], job: TrainingJob) -> str:
    """One line for an epoch: losses, the metric that counts, seconds."""
    parts = [f"epoch {record['epoch']:>3}", f"train loss {record['train.loss.total']:.4f}"]
    if "val.loss.total" in record:
        parts.append(f"val loss {record['val.loss.total']:.4f}")
    for name in [n for n in record if n.startswith("val.") and n.endswith((".qwk", ".auc"))]:
        value = record[name]
        parts.append(f"{name.removeprefix('val.')} {'-' if value is None else format(value, '.3f')}")
    return "  ".join([*parts, f"{record['seconds']:.1f} s"])
