"""What the trainer costs beside a bare PyTorch loop: steps per second of both, taken in turns.

    python benchmarks/train_overhead.py [--size 64 128 128] [--batch 2] [--steps 20] [--rounds 5]

Both train the same network from the same weights on the same batches, already on the device, in the same
precision and with AdamW and clipping; the bare loop looks at its loss once a step, as loops do that print it.
A round is both, in an order that changes; the first steps of each are not counted. The ratio is that of the
trainer's rate to the bare loop's within a round. On a GPU the trainer then also reads, decompresses and
augments batches; busy is the share of the time in which kernels or copies run there, from torch.profiler.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from oaplug import create_network
from oaplug.core.batch import Batch
from oaplug.core.case import Case
from oaplug.core.plan import AugmentationSettings, TrainSettings
from oaplug.core.target import targets_from_json
from oaplug.feed.source import BatchSource, LoadedBatch
from oaplug.model.precision import Precision, choose_device, choose_precision
from oaplug.prepare.store import read_array, write_array
from oaplug.train.trainer import Trainer, TrainingJob

TARGETS = targets_from_json({"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}, where="benchmark")
WARM_UP = 3
CASES = 16


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and for how long."""

    size: tuple[int, int, int]
    batch: int
    width: int
    steps: int
    precision: Precision

    def network(self) -> torch.nn.Module:
        """The same network, with the same weights, every time."""
        torch.manual_seed(0)
        options = {"width": self.width, "depth": 18, "dilated": False}
        network = create_network(
            "resnet3d", "single", targets=TARGETS, input_size=self.size, backbone_options=options
        )
        return self.precision.place(network)


@dataclass(frozen=True, kw_only=True)
class Preloaded:
    """Batches that are on the device already, a few of them again and again."""

    batches: tuple[LoadedBatch, ...]
    batches_per_epoch: int

    def epoch(self, _epoch: int, *, first: int = 0) -> Iterator[LoadedBatch]:
        """The batches from number `first` on."""
        for index in range(first, self.batches_per_epoch):
            yield self.batches[index % len(self.batches)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=3, default=[64, 128, 128], metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=32, help="channels of the ResNet-18's first stage")
    parser.add_argument("--steps", type=int, default=20, help="steps that are counted, in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--device", help="default: a GPU where there is one")
    given = parser.parse_args()
    logging.getLogger("oaplug").setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    precision = choose_precision(given.precision, device=device, channels_last="auto")
    setting = Setting(
        size=tuple(given.size), batch=given.batch, width=given.width, steps=given.steps, precision=precision
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{given.threads} threads"
    print(f"ResNet-18 of width {given.width}, batch {given.batch} of {setting.size}, {name}, "
          f"{precision.dtype or torch.float32}, torch {torch.__version__}")  # fmt: skip
    compare(setting, rounds=given.rounds)
    if device.type == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            with_loading(setting, Path(folder))


def compare(setting: Setting, *, rounds: int) -> None:
    """Print the rates of both in every round, and their ratio with its spread."""
    source = Preloaded(batches=preload(setting), batches_per_epoch=WARM_UP + setting.steps)
    ratios = []
    for index in range(rounds):
        loops = [bare_rate, trainer_rate]
        rates = {loop: loop(setting, source) for loop in (loops if index % 2 else reversed(loops))}
        bare, ours = rates[bare_rate], rates[trainer_rate]
        ratios.append(ours / bare)
        print(f"round {index + 1}: bare {bare:.3f}, trainer {ours:.3f} steps/s, ratio {ratios[-1]:.3f}",
              flush=True)  # fmt: skip
    print(f"ratio {median(ratios):.3f} (median; {min(ratios):.3f} to {max(ratios):.3f})")


def preload(setting: Setting) -> tuple[LoadedBatch, ...]:
    """Noise and grades on the device."""
    generator = torch.Generator().manual_seed(0)
    device, batch = setting.precision.device, setting.batch
    return tuple(
        LoadedBatch(
            volume=torch.randn(batch, 1, *setting.size, generator=generator).to(device),
            truth=Batch(targets={"kl": torch.randint(5, (batch,), generator=generator).to(device)}),
            case_ids=tuple(f"case{index}_{i}" for i in range(batch)),
        )
        for index in range(4)
    )


def bare_rate(setting: Setting, source: Preloaded) -> float:
    """Steps per second of a loop in plain PyTorch."""
    settings, precision = TrainSettings(), setting.precision
    network = setting.network().train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    times = []
    for batch in source.epoch(0):
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            loss = network.loss(network(precision.arrange(batch.volume)), batch.truth)["total"]
        with precision.gradients():
            loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is not finite")
        times.append(now(precision))
    return rate(times)


def trainer_rate(setting: Setting, source: Preloaded | BatchSource) -> float:
    """Steps per second of oaplug_train's trainer, checkpoints not counted."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            job_of(setting, source, Path(folder)), progress=lambda *_: times.append(now(setting.precision))
        )
        trainer.train()
    return rate(times)


def job_of(setting: Setting, source: Preloaded | BatchSource, folder: Path) -> TrainingJob:
    """One epoch without validation."""
    return TrainingJob(
        network=setting.network(),
        training=source,
        validation=None,
        targets=TARGETS,
        settings=TrainSettings(epochs=1, batch_size=setting.batch),
        precision=setting.precision,
        folder=folder,
        fold="0",
        model="benchmark",
        best_metric="kl.qwk",
    )


def now(precision: Precision) -> float:
    """The time once the device has done what it was given."""
    if precision.device.type == "cuda":
        torch.cuda.synchronize(precision.device)
    return time.perf_counter()


def rate(times: list[float]) -> float:
    """Steps per second after the warm-up."""
    counted = times[WARM_UP - 1 :]
    return (len(counted) - 1) / (counted[-1] - counted[0])


class NoiseStore:
    """Volumes of noise on disk, as oaplug_preprocess stores them; read anew each time."""

    def __init__(self, folder: Path, size: tuple[int, int, int]) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        for index in range(CASES):
            volume = rng.normal(size=(1, *size)).astype(np.float32)
            write_array(folder / f"case{index}.b2nd", volume)

    def read(self, case_id: str) -> np.ndarray:
        """One volume (C,D,H,W)."""
        return read_array(self.folder / f"{case_id}.b2nd")


def with_loading(setting: Setting, folder: Path) -> None:
    """Print the rate with reading and augmentation, and how busy the GPU is meanwhile."""
    count = -(-(WARM_UP + setting.steps) * setting.batch // CASES) * CASES
    cases = tuple(
        Case(case_id=f"case{i % CASES}", subject_id=f"s{i}", images=(), labels={"kl": i % 5})
        for i in range(count)
    )
    for readers in (1, 4):
        source = BatchSource(
            cases=cases,
            store=NoiseStore(folder, setting.size),
            targets=("kl",),
            batch_size=setting.batch,
            seed=0,
            fold="0",
            device=setting.precision.device,
            augmentation=AugmentationSettings(),
            readers=readers,
        )
        plain = trainer_rate(setting, source)
        busy = busy_share(setting, replace(source, seed=1), folder)
        print(f"loading and augmenting, {readers} readers: {plain:.3f} steps/s, GPU busy {busy:.0%}")


def busy_share(setting: Setting, source: BatchSource, folder: Path) -> float:
    """The part of an epoch, after its warm-up, in which the GPU does something."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    profile = torch.profiler.profile(activities=activities)
    times: list[float] = []

    def look(done: int, *_: object) -> None:
        if done == WARM_UP:
            profile.start()
            times.append(now(setting.precision))
        if done == WARM_UP + setting.steps:
            times.append(now(setting.precision))
            profile.stop()

    Trainer(job_of(setting, source, folder / "busy"), progress=look).train()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    return union_microseconds(spans) / 1e6 / (times[1] - times[0])


def union_microseconds(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals that are sorted by their beginning."""
    total, end = 0.0, -math.inf
    for first, last in spans:
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


if __name__ == "__main__":
    main()
