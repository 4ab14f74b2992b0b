"""How fast preprocessed cases become batches: each stage alone, and all of them as in training."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from oaplug.feed.source import BatchSource, VolumeStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oaplug.core.case import Case
    from oaplug.core.plan import Plan
    from oaplug.prepare.folder import PreprocessedFolder

SECONDS = 2.0
"""How long each measurement goes on."""
MOST_CASES = 64
"""As many cases tell how fast they are read; there may be many more."""


@dataclass(frozen=True, kw_only=True)
class FeedThroughput:
    """Cases per second, and how many of the cases fit into memory.

    `stages` are measured one at a time: `read` (from disk to a float32 batch, by all readers), `copy` (from
    memory to a float32 batch on the device) and `augment`. `first_epoch` is what training gets while volumes
    come from disk, `later_epochs` when they are kept in memory.
    """

    stages: dict[str, float]
    first_epoch: float
    later_epochs: float
    cases: int
    fitting: int

    @property
    def bottleneck(self) -> str:
        """The slowest stage of an epoch: reading counts until all cases are in memory."""
        counting = {k: v for k, v in self.stages.items() if k != "read" or self.fitting < self.cases}
        return min(counting, key=lambda name: counting[name])


def measure_feed(
    data: PreprocessedFolder,
    cases: Sequence[Case],
    plan: Plan,
    configuration: str,
    *,
    device: torch.device,
    seconds: float | None = None,
) -> FeedThroughput:
    """Measure on `device` with a plan's batch size, readers and augmentation, each stage for `seconds`.

    None: SECONDS. Files that were read lately come from the system's cache. Raises DatasetError where a
    case was not preprocessed or is damaged.
    """
    seconds = SECONDS if seconds is None else seconds
    geometry = plan.configuration(configuration)
    identifier = geometry.data_identifier
    chosen = list(cases)[:MOST_CASES]
    kept = VolumeStore(data, identifier)
    fitting = kept.room_for(kept.read(chosen[0].case_id)) + 1
    from_disk = BatchSource(
        cases=chosen, store=VolumeStore(data, identifier, memory_bytes=0), targets=(), seed=0, fold="feed",
        batch_size=min(plan.training.batch_size, len(chosen)), device=device,
        augmentation=plan.augmentation, voxel_mm=geometry.voxel_mm, readers=plan.training.readers,
    )  # fmt: skip
    from_memory = replace(from_disk, store=kept)
    read = _seconds_per_case(replace(from_disk, augmentation=None, device=torch.device("cpu")), seconds)
    whole = _seconds_per_case(from_disk, seconds)
    copy = _seconds_per_case(replace(from_memory, augmentation=None), seconds)
    later = _seconds_per_case(from_memory, seconds)
    return FeedThroughput(
        stages={"read": 1 / read, "copy": 1 / copy, "augment": 1 / max(later - copy, 1e-9)},
        first_epoch=1 / whole,
        later_epochs=1 / later,
        cases=len(cases),
        fitting=min(fitting, len(cases)),
    )


def _seconds_per_case(source: BatchSource, seconds: float) -> float:
    """After an epoch that is not timed: whole epochs, until `seconds` are over."""
    _run_epoch(source, 0)
    start, count, epoch = time.perf_counter(), 0, 0
    while time.perf_counter() - start < seconds:
        epoch += 1
        count += _run_epoch(source, epoch)
    return (time.perf_counter() - start) / count


def _run_epoch(source: BatchSource, epoch: int) -> int:
    """How many cases an epoch gave, once the device is done with all of them."""
    count = sum(len(batch.case_ids) for batch in source.epoch(epoch))
    if source.device.type == "cuda":
        torch.cuda.synchronize(source.device)
    return count
