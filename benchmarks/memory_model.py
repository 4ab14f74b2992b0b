"""The estimated memory of a training step beside what a real one takes, backbone by backbone.

    python benchmarks/memory_model.py [--backbones resnet3d m3t nnmamba] [--size 32 64 64] [--batch 2]

Each figure is of a fresh process whose step, the second, is the trainer's own. "allocated" is the most that
PyTorch's allocator had given: by the profiler's record of every allocation on a CPU, by
max_memory_allocated on a GPU. "resident" (CPU) is how far the process grew beyond its size before
the network was built, with workspaces and with libraries that are loaded as they are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

TARGETS = {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}, "oa": {"derived_from": "kl", "at_least": 2}}
STEPS = 2
_KIB = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which step is measured."""

    backbone: str
    size: tuple[int, int, int]
    batch: int
    precision: str
    device: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=["resnet3d", "m3t", "nnmamba"])
    parser.add_argument("--size", nargs=3, type=int, default=[32, 64, 64], metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    given = vars(parser.parse_args())
    names, size = given.pop("backbones"), tuple(given.pop("size"))
    print(f"batch {given['batch']} of {size}, {given['precision']}, {given['device']}: MiB")
    print(f"{'':<16}{'estimated':>11}{'allocated':>11}{'ratio':>8}{'resident':>11}{'seconds':>9}")
    for name in names:
        print_row(Setting(backbone=name, size=size, **given))


def print_row(setting: Setting) -> None:
    """Estimate, measure, compare; the seconds are those of the estimate."""
    on_cpu = setting.device == "cpu"
    estimated, seconds = alone(estimate, setting)
    allocated = alone(profile_allocations if on_cpu else ask_cuda, setting)
    resident = f"{alone(watch_process, setting) / 2**20:.0f}" if on_cpu else "-"
    row = f"{estimated / 2**20:>11.0f}{allocated / 2**20:>11.0f}{estimated / allocated:>8.2f}"
    print(f"{setting.backbone:<16}{row}{resident:>11}{seconds:>9.1f}", flush=True)


def alone(function: Any, setting: Setting) -> Any:
    """What a function gives in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (setting,))


def estimate(setting: Setting) -> tuple[int, float]:
    """Estimated bytes, and how long the estimate takes."""
    from oaplug.core.plan import TrainSettings
    from oaplug.model.memory import estimate_training_memory

    build(setting)  # imports are not counted
    start = time.perf_counter()
    found = estimate_training_memory(
        lambda: build(setting),
        volume_shape=(1, *setting.size),
        targets=tuple(TARGETS),
        settings=TrainSettings(),
        precision=precision_of(setting),
    )
    return found.bytes(setting.batch), time.perf_counter() - start


def profile_allocations(setting: Setting) -> int:
    """Most bytes allocated at a time, from every allocation in the profiler's trace."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        train(setting)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    records = [e["args"] for e in sorted(events, key=lambda e: e.get("ts", 0)) if e["name"] == "[memory]"]
    return max(record["Total Allocated"] for record in records)


def watch_process(setting: Setting) -> int:
    """How far the process grew beyond its size before, at its largest."""
    import torch

    build(setting)
    torch.zeros(1)
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    train(setting)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB - before


def ask_cuda(setting: Setting) -> int:
    """Most bytes that CUDA's allocator had given."""
    import torch

    train(setting)
    return torch.cuda.max_memory_allocated(setting.device)


def train(setting: Setting) -> None:
    """Take steps as the trainer does."""
    import torch

    from oaplug.core.batch import Batch
    from oaplug.core.plan import TrainSettings
    from oaplug.feed.source import LoadedBatch
    from oaplug.train.stepper import Stepper
    from oaplug.train.world import World

    stepper = Stepper(
        build(setting), settings=TrainSettings(), precision=precision_of(setting), world=World()
    )
    stepper.train_mode()
    for _ in range(STEPS):
        volume = torch.randn(setting.batch, 1, *setting.size).to(setting.device)
        grades = torch.arange(setting.batch, device=setting.device) % 2
        batch = LoadedBatch(
            volume=volume, truth=Batch(targets=dict.fromkeys(TARGETS, grades)), case_ids=("case",)
        )
        stepper.step([batch], count=1, rate=1e-4)


def build(setting: Setting) -> Any:
    """The network, with the head of two targets."""
    import oaplug

    return oaplug.create_network(setting.backbone, "dual", targets=TARGETS, input_size=setting.size)


def precision_of(setting: Setting) -> Any:
    """Device, number format and layout."""
    from oaplug.model.precision import choose_device, choose_precision

    return choose_precision(setting.precision, device=choose_device(setting.device), channels_last=True)


if __name__ == "__main__":
    main()
