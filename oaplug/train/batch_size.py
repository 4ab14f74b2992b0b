"""The batch size of a run: the planned one, or the largest whose step is estimated to fit into memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from oaplug.core.errors import PlanError
from oaplug.feed.memory import available_memory_bytes
from oaplug.model.memory import estimate_training_memory
from oaplug.model.precision import choose_precision
from oaplug.model.run_folder import (
    BatchChoice,
    build_network,
    has_trained_fold,
    is_same_run,
    read_run,
    targets_of_run,
)

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.model.memory import MemoryEstimate
    from oaplug.model.run_folder import RunDescription
    from oaplug.plug.registry import Registry
    from oaplug.train.world import World

log = logging.getLogger(__name__)

KEY = "training.batch_size"
CUDA_FRACTION, CPU_FRACTION = 0.9, 0.5
"""Of the memory that is free, what a step may take; on a CPU the cached volumes want the other half."""


@dataclass(frozen=True, kw_only=True)
class MemoryTarget:
    """How many bytes a step of one process may take, and by which rule."""

    bytes: float
    rule: str

    def __str__(self) -> str:
        return f"{_gib(self.bytes)} may be used ({self.rule})"


def resolve_batch_size(
    run: RunDescription, registry: Registry, *, folder: Path, device: torch.device, world: World
) -> RunDescription:
    """The run with the batch size to train with, why, and the estimate of its memory.

    A run of these settings that is in `folder` already keeps its batch size. One given by --set is taken
    as it is. Raises PlanError where the estimate says that not even one case fits.
    """
    resolved = None
    if world.is_first:
        resolved = _recorded(run, folder) or _choose(run, registry, device=device, processes=world.size)
    first = world.gather(resolved)[0]
    assert first is not None
    return first


def memory_target(memory_gib: float | None, *, device: torch.device, processes: int = 1) -> MemoryTarget:
    """What the plan says, else a share of the memory that is free."""
    if memory_gib is not None:
        return MemoryTarget(bytes=memory_gib * 2**30, rule="training.memory_gib")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        rule = f"{CUDA_FRACTION:.0%} of the free memory of {device}"
        return MemoryTarget(bytes=CUDA_FRACTION * free, rule=rule)
    rule = f"{CPU_FRACTION:.0%} of the available memory" + (f" / {processes}" if processes > 1 else "")
    return MemoryTarget(bytes=CPU_FRACTION * available_memory_bytes() / processes, rule=rule)


def _recorded(run: RunDescription, folder: Path) -> RunDescription | None:
    """The run with the batch size that plans.json has, where it was resolved from the same settings."""
    if not (folder / "plans.json").is_file():
        return None
    there = read_run(folder)
    planned = there.choices.batch.planned if there.choices.batch else there.plan.training.batch_size
    if planned != run.plan.training.batch_size:
        return None
    batch_size, reason = there.plan.training.batch_size, there.plan.reasons.get(KEY)
    kept = with_batch_size(run, batch_size, choice=there.choices.batch, reason=reason)
    has_same_target = there.plan.training.memory_gib == run.plan.training.memory_gib
    if has_trained_fold(folder) or (is_same_run(there, kept) and has_same_target):
        return kept
    return None


def with_batch_size(
    run: RunDescription, batch_size: int, *, choice: BatchChoice | None, reason: str | None = None
) -> RunDescription:
    """The run with another batch size, how it was chosen, and the reason in the plan."""
    training = replace(run.plan.training, batch_size=batch_size)
    reasons = run.plan.reasons | ({KEY: reason} if reason else {})
    plan = replace(run.plan, training=training, reasons=reasons)
    return replace(run, plan=plan, choices=replace(run.choices, batch=choice))


def _choose(
    run: RunDescription, registry: Registry, *, device: torch.device, processes: int
) -> RunDescription:
    planned = run.plan.training.batch_size
    target = memory_target(run.plan.training.memory_gib, device=device, processes=processes)
    try:
        estimate = estimate_run_memory(run, registry, device=device)
    except Exception as failure:  # a part that cannot be estimated may still train
        why = f"its memory could not be estimated: {' '.join(str(failure).split())[:200]}"
        log.warning("%s is %d as planned; %s", KEY, planned, why)
        log.debug("no estimate", exc_info=True)
        return with_batch_size(run, planned, choice=BatchChoice(planned=planned), reason=f"as planned; {why}")
    batch_size, reason = _decide(run, estimate, target, processes=processes)
    choice = BatchChoice(
        planned=planned,
        estimated_gib=_round(estimate.bytes(-(-batch_size // processes))),
        target_gib=_round(target.bytes),
        source=estimate.source,
    )
    return with_batch_size(run, batch_size, choice=choice, reason=reason)


def estimate_run_memory(run: RunDescription, registry: Registry, *, device: torch.device) -> MemoryEstimate:
    """The memory of a training step of a run, in one process."""
    settings = run.plan.training
    depth, height, width = run.configuration.size_voxels
    return estimate_training_memory(
        partial(build_network, run, registry),
        volume_shape=(len(run.description.channel_names), depth, height, width),
        targets=tuple(targets_of_run(run, registry)),
        settings=settings,
        precision=choose_precision(settings.precision, device=device, channels_last=settings.channels_last),
    )


def _decide(
    run: RunDescription, estimate: MemoryEstimate, target: MemoryTarget, *, processes: int
) -> tuple[int, str]:
    """The batch size and the reason for it; logs where it is not as planned, or does not fit."""
    planned = run.plan.training.batch_size

    def step(batch_size: int) -> str:
        needed = _gib(estimate.bytes(-(-batch_size // processes)))
        return f"a step of {batch_size} is estimated at {needed} ({estimate.source})"

    fitting = estimate.largest_batch(target.bytes) * processes
    if KEY in run.choices.overrides:
        if planned > fitting:
            log.warning("%s=%d as given, but %s, and %s", KEY, planned, step(planned), target)
        return planned, f"given by --set; {step(planned)}, {target}"
    if planned <= fitting:
        why = run.plan.reasons.get(KEY)
        return planned, f"as planned: {step(planned)}, {target}" + (f"; planned because {why}" if why else "")
    if not fitting:
        raise PlanError(f"not even one case fits: {step(processes)}, and {target}; {_advice(run)}")
    reason = f"lowered from {planned}: {step(planned)}, but {target}; {step(fitting)}"
    log.warning("%s=%d, %s", KEY, fitting, reason)
    return fitting, reason


def _advice(run: RunDescription) -> str:
    """What takes less memory, and how to train all the same."""
    voxels = math.prod(run.configuration.size_voxels)
    configurations = run.plan.configurations.items()
    smaller = [name for name, c in configurations if math.prod(c.size_voxels) < voxels]
    options = run.choices.backbone.options.items()
    checkpoints = [
        f"backbone.{key}=true" for key, v in options if key.startswith("checkpoint") and v is False
    ]
    settings = [*checkpoints, "training.precision=bfloat16"]
    tries = [*smaller, *(f"--set {setting}" for setting in settings)]
    return f"try {', '.join(tries)}; or allow more by --set training.memory_gib=GIB, or any by --set {KEY}=1"


def _gib(count: float) -> str:
    gib = count / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{gib:.2g} GiB"


def _round(count: float) -> float:
    return round(count / 2**30, 3)
