"""Batches of preprocessed cases: order and augmentation depend on (seed, fold, epoch, case) alone."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from oaplug.core.batch import Batch
from oaplug.core.errors import DatasetError
from oaplug.core.seeds import random_generator
from oaplug.feed.augment.apply import apply_draws
from oaplug.feed.augment.draw import check_mirroring, draw_augmentation
from oaplug.feed.memory import available_memory_bytes
from oaplug.prepare.store import read_array

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

    from oaplug.core.case import Case
    from oaplug.core.plan import AugmentationSettings
    from oaplug.prepare.folder import PreprocessedFolder

_CACHE_FRACTION = 0.5


class VolumeStore:
    """Preprocessed volumes (C,D,H,W) float16 by case id, kept in memory while `memory_bytes` last.

    None: half of what is free.
    """

    def __init__(
        self, folder: PreprocessedFolder, data_identifier: str, *, memory_bytes: float | None = None
    ) -> None:
        self._folder = folder
        self._identifier = data_identifier
        self._kept: dict[str, NDArray[np.float16]] = {}
        self._bytes_left = (
            _CACHE_FRACTION * available_memory_bytes() if memory_bytes is None else memory_bytes
        )

    def read(self, case_id: str) -> NDArray[np.float16]:
        """One volume; raises DatasetError where it was not preprocessed or is damaged."""
        if case_id in self._kept:
            return self._kept[case_id]
        volume = read_array(self._folder.array_path(self._identifier, case_id))
        if volume.nbytes <= self._bytes_left:
            self._bytes_left -= volume.nbytes
            self._kept[case_id] = volume
        return volume

    def room_for(self, volume: NDArray[np.float16]) -> int:
        """How many more volumes like this one can be kept."""
        return int(self._bytes_left // volume.nbytes)


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """Volumes (B,C,D,H,W) float32 on the device, their truths, and the ids they came from."""

    volume: Tensor
    truth: Batch
    case_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Gives the batches of an epoch.

    `voxel_mm` are the sides of a voxel (D,H,W), for rotations. `class_weights` maps a target to a weight per
    grade index; cases take the weight of their grade. Raises
    PlanError where augmentation would swap medial and lateral of cases that have a side.
    """

    cases: Sequence[Case]
    store: VolumeStore
    targets: tuple[str, ...]
    batch_size: int
    seed: int
    fold: str
    device: torch.device
    augmentation: AugmentationSettings | None = None
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    class_weights: Mapping[str, Sequence[float]] | None = None
    sampling_weights: Mapping[str, Sequence[float]] | None = None
    readers: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.augmentation is not None:
            check_mirroring(self.augmentation, self.cases)

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in an epoch (one smaller batch where there are fewer cases than that)."""
        return max(len(self.cases) // self.batch_size, 1)

    def epoch(self, epoch: int, *, first: int = 0) -> Generator[LoadedBatch, None, None]:
        """Shuffled, augmented batches from number `first` on, or this process's share of each.

        The cases that do not fill a batch wait for another epoch's order.
        """
        order = self._order(epoch)
        groups = [
            [self.cases[i] for i in order[start : start + self.batch_size]][self.rank :: self.world_size]
            for start in range(
                first * self.batch_size, self.batches_per_epoch * self.batch_size, self.batch_size
            )
        ]
        yield from self._load(groups, epoch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of the cases: each once, or drawn with replacement by the weights of their grades."""
        rng = random_generator(self.seed, "order", self.fold, epoch)
        if self.sampling_weights is None:
            return rng.permutation(len(self.cases))
        weights = np.array(self._grade_values(self.cases, self.sampling_weights))
        return rng.choice(len(self.cases), size=len(self.cases), p=weights / weights.sum())

    def in_order(self) -> Iterator[LoadedBatch]:
        """Every case once, as listed, without augmentation; of several processes each has its share."""
        yield from self._load(self._groups_in_order(self.rank), None)

    @property
    def idle_rounds(self) -> int:
        """How many batches fewer than the first process this one has in `in_order`."""
        return len(self._groups_in_order(0)) - len(self._groups_in_order(self.rank))

    def _groups_in_order(self, rank: int) -> list[list[Case]]:
        cases = list(self.cases)[rank :: self.world_size]
        size = max(self.batch_size // self.world_size, 1)
        return [cases[i : i + size] for i in range(0, len(cases), size)]

    def _load(self, groups: Sequence[Sequence[Case]], epoch: int | None) -> Iterator[LoadedBatch]:
        """Read batches ahead, one per reader, in threads: decompression runs outside Python's lock."""
        if self.readers == 0:
            for group in groups:
                yield self._finish(self._read(group), group, epoch)
            return
        with ThreadPoolExecutor(max_workers=self.readers) as pool:
            waiting = deque(pool.submit(self._read, group) for group in groups[: self.readers])
            for index, group in enumerate(groups):
                volume = waiting.popleft().result()
                if index + self.readers < len(groups):
                    waiting.append(pool.submit(self._read, groups[index + self.readers]))
                yield self._finish(volume, group, epoch)

    def _read(self, cases: Sequence[Case]) -> Tensor:
        volumes = [self.store.read(case.case_id) for case in cases]
        for case, volume in zip(cases, volumes, strict=True):
            if volume.shape != volumes[0].shape:
                raise DatasetError(
                    f"case {case.case_id} was preprocessed to {volume.shape}, and {cases[0].case_id} to "
                    f"{volumes[0].shape}; run oaplug_preprocess again"
                )
        shape = (len(volumes), *volumes[0].shape)
        # pinned pages are what a GPU copies from while this process goes on
        batch = torch.empty(shape, dtype=torch.float16, pin_memory=self.device.type == "cuda")
        for into, volume in zip(batch, volumes, strict=True):
            into.copy_(torch.from_numpy(volume))
        return batch

    def _finish(self, volume: Tensor, cases: Sequence[Case], epoch: int | None) -> LoadedBatch:
        volume = volume.to(self.device, non_blocking=True).float()
        if epoch is not None:
            volume = self._augment(volume, cases, epoch)
        truth = Batch(
            targets={
                name: torch.tensor([c.labels[name] for c in cases], device=self.device)
                for name in self.targets
            },
            case_weights=self._weights(cases),
            epoch=epoch or 0,
        )
        return LoadedBatch(volume=volume, truth=truth, case_ids=tuple(c.case_id for c in cases))

    def _augment(self, volume: Tensor, cases: Sequence[Case], epoch: int) -> Tensor:
        settings = self.augmentation
        if settings is None or settings.backend == "none":
            return volume
        purposes: list[tuple[int | str, ...]] = [(self.fold, epoch, case.case_id) for case in cases]
        if settings.backend == "native":
            draws = [draw_augmentation(settings, self.seed, *p, voxel_mm=self.voxel_mm) for p in purposes]
            return apply_draws(volume, draws, in_place=True)
        from oaplug.feed.augment.batchgenerators import build_transforms, transform_case

        transforms: Any = build_transforms(settings, size=volume.shape[2:])
        changed = [
            transform_case(transforms, v.cpu(), self.seed, *p) for v, p in zip(volume, purposes, strict=True)
        ]
        return torch.stack(changed).to(self.device)

    def _weights(self, cases: Sequence[Case]) -> Tensor | None:
        if self.class_weights is None:
            return None
        return torch.tensor(self._grade_values(cases, self.class_weights), device=self.device)

    def _grade_values(self, cases: Sequence[Case], weights: Mapping[str, Sequence[float]]) -> list[float]:
        """The weight of each case's grade; 1 where it is not known."""
        name, by_grade = next(iter(weights.items()))
        return [by_grade[c.labels[name]] if c.has_label(name) else 1.0 for c in cases]


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """A weight per grade, N / (K n_k) over the grades that occur ("balanced" in scikit-learn); else 0."""
    present = [count for count in counts if count > 0]
    total = sum(present)
    return [total / (len(present) * count) if count else 0.0 for count in counts]
