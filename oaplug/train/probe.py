"""What a CPU trains fastest with: number format and memory layout, timed once per run and recorded."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from oaplug.core.batch import Batch
from oaplug.model.precision import choose_precision
from oaplug.model.run_folder import (
    PrecisionChoice,
    build_network,
    has_trained_fold,
    is_same_run,
    read_run,
    targets_of_run,
)
from oaplug.train.batch_size import with_batch_size
from oaplug.train.fold import torch_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oaplug.model.precision import Precision
    from oaplug.model.run_folder import RunDescription
    from oaplug.plug.registry import Registry
    from oaplug.train.world import World

log = logging.getLogger(__name__)

PRECISION_KEY, LAYOUT_KEY = "training.precision", "training.channels_last"
SECONDS_WORTH_A_PROBE = 60.0
"""A training that is shorter, by its first step, is not worth a probe."""
SHARE_OF_TRAINING, SECONDS = 0.01, (5.0, 60.0)
"""How long a probe may take: a share of the training, within limits."""
NEEDED_GAIN = 0.1
"""What share of a step another candidate has to save."""
STEPS = 3

Layout = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A number format and a memory layout."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return self.precision + ("+channels_last" if self.channels_last else "")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found: a candidate, why, and the seconds of a step with each that was tried."""

    best: Candidate
    reason: str
    seconds: dict[str, float]


def with_recorded_precision(run: RunDescription, folder: Path) -> RunDescription:
    """The run with what `folder` has for precision and layout, where they are "auto" and it is this run's.

    Of a run with a trained fold they are kept in any case: from then on it has one set of settings.
    """
    if not _open_keys(run) or not (folder / "plans.json").is_file():
        return run
    there = read_run(folder)
    choice = there.choices.precision
    kept = _with_recorded(run, there)
    if has_trained_fold(folder):
        return kept
    planned = run.plan.training.precision, run.plan.training.channels_last
    if choice is None or planned != (choice.planned, choice.planned_channels_last):
        return run
    batch = there.choices.batch
    is_same_batch = batch is not None and batch.planned == run.plan.training.batch_size
    compared = with_batch_size(kept, there.plan.training.batch_size, choice=batch) if is_same_batch else kept
    return kept if is_same_run(there, compared) else run


def resolve_precision(
    run: RunDescription,
    registry: Registry,
    *,
    folder: Path,
    device: torch.device,
    world: World,
    training_cases: int,
) -> RunDescription:
    """The run with precision and layout to train with on a CPU, and why, where its plan says "auto".

    Other devices keep "auto", which says there what to use; a run that was trained before keeps what it has.
    """
    if device.type != "cpu" or not _open_keys(run) or has_trained_fold(folder):
        return run
    if world.is_first:
        found = _find(run, registry, processes=world.size, training_cases=training_cases)
        run = _with_finding(run, found)
    return world.gather(run)[0]


def _open_keys(run: RunDescription) -> dict[str, str]:
    """Names in TrainSettings of what is left to the machine, by their key in a plan."""
    keys = {PRECISION_KEY: "precision", LAYOUT_KEY: "channels_last"}
    return {key: name for key, name in keys.items() if getattr(run.plan.training, name) == "auto"}


def _with_recorded(run: RunDescription, there: RunDescription) -> RunDescription:
    names = _open_keys(run)
    values = {name: getattr(there.plan.training, name) for name in names.values()}
    reasons = {key: there.plan.reasons[key] for key in names if key in there.plan.reasons}
    return _changed(run, values=values, reasons=reasons, choice=there.choices.precision)


def _with_finding(run: RunDescription, found: Finding) -> RunDescription:
    names, settings = _open_keys(run), run.plan.training
    choice = PrecisionChoice(
        planned=settings.precision,
        planned_channels_last=settings.channels_last,
        seconds_per_step={name: float(f"{seconds:.4g}") for name, seconds in found.seconds.items()},
    )
    values = {name: getattr(found.best, name) for name in names.values()}
    return _changed(run, values=values, reasons=dict.fromkeys(names, found.reason), choice=choice)


def _changed(
    run: RunDescription,
    *,
    values: dict[str, str | bool],
    reasons: dict[str, str],
    choice: PrecisionChoice | None,
) -> RunDescription:
    training = replace(run.plan.training, **values)  # type: ignore[arg-type]
    plan = replace(run.plan, training=training, reasons=run.plan.reasons | reasons)
    return replace(run, plan=plan, choices=replace(run.choices, precision=choice))


def _find(run: RunDescription, registry: Registry, *, processes: int, training_cases: int) -> Finding:
    settings = run.plan.training
    batch_size = max(min(settings.batch_size, training_cases) // processes, 1)
    steps = settings.epochs * max(training_cases // settings.batch_size, 1)
    candidates = _candidates(settings.precision, settings.channels_last)
    try:
        found = probe(
            candidates,
            lambda c, b: StepTimer(run, registry, c, batch_size=b),
            batch_size=batch_size,
            steps=steps,
        )
    except Exception as failure:  # a part that fails here may still train, or say why it does not
        why = f"no step could be timed: {' '.join(str(failure).split())[:200]}"
        log.info("precision %s: %s", candidates[0], why)
        log.debug("no probe", exc_info=True)
        return Finding(best=candidates[0], reason=why, seconds={})
    log.log(logging.INFO if found.seconds else logging.DEBUG, "precision %s", found.reason)
    return found


def _candidates(precision: str, channels_last: Layout) -> list[Candidate]:
    """What may be used, first what is used where nothing wins, then the likeliest first."""
    formats = ["float32"] if precision == "auto" else [precision]
    if precision == "auto" and has_fast_bfloat16():
        formats.append("bfloat16")
    layouts = [False, True] if channels_last == "auto" else [channels_last]
    first, *others = [Candidate(precision=f, channels_last=c) for f in formats for c in layouts]
    return [first, *sorted(others, key=lambda c: (c.precision != "bfloat16", not c.channels_last))]


def has_fast_bfloat16() -> bool:
    """Whether PyTorch has kernels for bfloat16 on this CPU; without them a step takes many times as long."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


class StepTimer:
    """Times forward and backward of a run's network with a candidate, on noise."""

    def __init__(
        self, run: RunDescription, registry: Registry, candidate: Candidate, *, batch_size: int
    ) -> None:
        settings = replace(run.plan.training, precision=candidate.precision)  # type: ignore[arg-type]
        self.settings = settings
        self.precision: Precision = choose_precision(
            candidate.precision, device=torch.device("cpu"), channels_last=candidate.channels_last
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.network = build_network(run, registry)
            self.precision.place(self.network)
            shape = (len(run.description.channel_names), *run.configuration.size_voxels)
            self.volume = torch.randn(batch_size, *shape)
        self.network.train()
        if settings.freeze_encoder:
            self.network.encoder.requires_grad_(requires_grad=False).eval()
        grades = torch.zeros(batch_size, dtype=torch.long)
        self.truth = Batch(targets=dict.fromkeys(targets_of_run(run, registry), grades))

    def __call__(self) -> float:
        """Seconds of one step."""
        self.network.zero_grad(set_to_none=True)
        device = self.precision.device
        with torch_settings(self.settings, device=device), torch.random.fork_rng(devices=[]):
            start = time.perf_counter()
            with self.precision.autocast():
                losses = self.network.loss(self.network(self.precision.arrange(self.volume)), self.truth)
            with self.precision.gradients():
                losses["total"].backward()  # type: ignore[no-untyped-call]
            return time.perf_counter() - start


def probe(
    candidates: list[Candidate],
    timer: Callable[[Candidate, int], Callable[[], float]],
    *,
    batch_size: int,
    steps: int,
) -> Finding:
    """The candidate with the shortest step; the first where none saves a tenth, or `steps` are soon taken.

    Args:
        candidates: the first is what others have to beat.
        timer: makes, for a candidate and a batch size, what takes a step and gives its seconds.
        batch_size: cases in a step; fewer are used where a step is long.
        steps: how many steps the training will take.
    """
    first, *others = candidates
    if not others:
        return Finding(best=first, reason=f"{first}: nothing else is fast on this CPU", seconds={})
    start = time.perf_counter()
    step = timer(first, batch_size)
    once = step()
    if once * steps >= SECONDS_WORTH_A_PROBE:
        once = min(once, step())  # the first also makes kernels and takes memory
    if (training := once * steps) < SECONDS_WORTH_A_PROBE:
        reason = f"{first}: {steps} steps of {once:.2g} s are too short a training to time others"
        return Finding(best=first, reason=reason, seconds={})
    limit = min(max(SHARE_OF_TRAINING * training, SECONDS[0]), SECONDS[1])
    share = min(1.0, limit / (2 * len(candidates) * once))
    tried = max(min(batch_size, 2), int(batch_size * share))
    seconds: dict[str, float] = {}
    for candidate in candidates:
        if seconds and time.perf_counter() - start > limit:
            break
        step = timer(candidate, tried)
        step()
        seconds[str(candidate)] = min(step() for _ in range(STEPS if share == 1 else 1))
    return _decide(candidates, seconds, batch_size=tried)


def _decide(candidates: list[Candidate], seconds: dict[str, float], *, batch_size: int) -> Finding:
    first = candidates[0]
    tried = [c for c in candidates if str(c) in seconds]
    best = min(tried, key=lambda c: seconds[str(c)])
    if seconds[str(best)] >= (1 - NEEDED_GAIN) * seconds[str(first)]:
        best = first
    shown = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    reason = f"{best}: forward and backward of {batch_size} on this CPU: {shown}"
    untried = [str(c) for c in candidates if c not in tried]
    if untried:
        reason += f"; no time was left for {', '.join(untried)}"
    if best == first:
        reason += f"; another would have to save {NEEDED_GAIN:.0%}"
    return Finding(best=best, reason=reason, seconds=seconds)
