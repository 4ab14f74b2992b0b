"""One optimizer step: accumulation, scaling, clipping, and the moving average of the weights."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from oaplug.core.errors import PlanError
from oaplug.model.checkpoint import load_optimizer, optimizer_tensors
from oaplug.train.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    from torch import Tensor, nn

    from oaplug.core.plan import TrainSettings
    from oaplug.feed.source import LoadedBatch
    from oaplug.model.network import Network
    from oaplug.model.precision import Precision

    class SupportsBool(Protocol):
        """Something that is true or not, perhaps only later."""

        def __bool__(self) -> bool: ...


_AVERAGE, _OPTIMIZER = "average.", "optimizer."


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step gave: mean losses over its batches and processes, and what the processes agree on."""

    losses: dict[str, float]
    is_finite: bool
    asked_to_stop: bool
    case_ids: tuple[str, ...]


class Stepper:
    """Takes optimizer steps of a network; its tensors and `progress` are all that a resumed run needs."""

    def __init__(
        self, network: Network, *, settings: TrainSettings, precision: Precision, world: World
    ) -> None:
        self.network = network
        self.settings = settings
        self.precision = precision
        self.world = world
        if settings.sync_batch_norm and world.size > 1:
            _synchronise_batch_norm(network, precision.device)
        precision.place(network)
        if settings.freeze_encoder:
            network.encoder.requires_grad_(requires_grad=False)
        groups = parameter_groups(network, layer_decay=settings.layer_decay)
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaling)
        self.average = Average(network, decay=settings.ema_decay) if settings.ema_decay is not None else None
        self._forward = _wrapped(network, settings=settings, precision=precision, world=world)

    def train_mode(self) -> None:
        """Set the network to training; a frozen encoder keeps its running statistics."""
        self.network.train()
        if self.settings.freeze_encoder:
            self.network.encoder.eval()

    def step(
        self, batches: Iterable[LoadedBatch], *, count: int, rate: float, stop: SupportsBool = False
    ) -> Step:
        """One step over `count` batches whose gradients are averaged; no change where one is not finite.

        `stop` says, at the end of the step, whether this process was asked to stop.
        """
        self.optimizer.zero_grad(set_to_none=True)
        statistics = self._keep_statistics()
        sums: dict[str, Tensor] = {}
        case_ids: list[str] = []
        for index, batch in enumerate(batches, start=1):
            case_ids += batch.case_ids
            with self._exchange(last=index == count):
                losses = self._backward(batch, share=1 / count)
            sums = {name: value / count + sums.get(name, 0.0) for name, value in losses.items()}
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self._gradients())
        agreed = self._agree(sums, norm=norm, stop=stop)
        is_finite = agreed.pop("bad") == 0
        if is_finite:
            self._apply(norm, rate)
        else:
            self._restore_statistics(statistics)
        self.scaler.update()
        asked = agreed.pop("stop") > 0
        return Step(losses=agreed, is_finite=is_finite, asked_to_stop=asked, case_ids=tuple(case_ids))

    def _keep_statistics(self) -> list[Tensor]:
        """Running statistics, which a batch changes before its loss is known."""
        return [t.clone() for t in self.network.buffers()] if self.settings.skip_bad_steps else []

    def _restore_statistics(self, kept: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.network.buffers(), kept, strict=False):
            tensor.copy_(value)

    def _backward(self, batch: LoadedBatch, *, share: float) -> dict[str, Tensor]:
        with self.precision.autocast():
            logits = self._forward(self.precision.arrange(batch.volume))
            losses = self.network.loss(logits, batch.truth)
        with self.precision.gradients():
            self.scaler.scale(losses["total"] * share).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _agree(self, losses: Mapping[str, Tensor], *, norm: Tensor, stop: SupportsBool) -> dict[str, float]:
        """Mean losses over processes, "bad" and "stop" (above 0 where any process says so).

        Float16's scaler expects gradients to overflow at times and skips those steps by itself.
        """
        values = {name: float(value) for name, value in losses.items()}
        is_finite = math.isfinite(values["total"]) and (self.scaler.is_enabled() or math.isfinite(norm))
        flags = {"bad": float(not is_finite), "stop": float(bool(stop))}
        return self.world.mean({**values, **flags}, device=self.precision.device)

    def _apply(self, norm: Tensor, rate: float) -> None:
        if self.settings.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), self.settings.gradient_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.scaler.step(self.optimizer)
        if self.average is not None:
            self.average.update(self.network)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.network.parameters() if p.grad is not None]

    def _exchange(self, *, last: bool) -> Any:
        """Gradients are exchanged between processes with the last batch of a step alone."""
        return nullcontext() if last or self.world.size == 1 else cast("Any", self._forward).no_sync()

    def tensors(self) -> dict[str, Tensor]:
        """Everything beside the network's own state, by name."""
        found = {_OPTIMIZER + name: t for name, t in optimizer_tensors(self.optimizer).items()}
        if self.average is not None:
            found |= {_AVERAGE + name: t for name, t in self.average.tensors.items()}
        return found

    def progress(self) -> dict[str, Any]:
        """What is no tensor."""
        return {
            "scaler": self.scaler.state_dict(),
            "average_steps": self.average.steps if self.average is not None else 0,
        }

    def load(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Take up `tensors()` and `progress()` of an interrupted run."""
        load_optimizer(self.optimizer, _with_prefix(tensors, _OPTIMIZER))
        self.scaler.load_state_dict(progress["scaler"])
        if self.average is not None:
            self.average.load(_with_prefix(tensors, _AVERAGE), steps=progress["average_steps"])

    def share_statistics(self) -> None:
        """Give all processes the running statistics of the first, whose checkpoint will have them."""
        self.world.copy_from_first(self.network.buffers())
        if self.average is not None:
            self.world.copy_from_first(self.average.tensors.values())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the averaged weights, where the settings ask for them."""
        if self.average is None:
            yield
            return
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.tensors)
        try:
            yield
        finally:
            self.network.load_state_dict(own)


class Average:
    """Exponential moving average of weights and running statistics.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at step n, so that the first weights are
    forgotten soon (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's present weights."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in network.state_dict().items():
            if tensor.dtype.is_floating_point:
                self.tensors[name].lerp_(tensor, weight)
            else:
                self.tensors[name].copy_(tensor)

    def load(self, tensors: Mapping[str, Tensor], *, steps: int) -> None:
        """Take up the average of an interrupted run."""
        self.steps = steps
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def parameter_groups(network: Network, *, layer_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, and the factor of each group's learning rate.

    With layer_decay d < 1 the encoder's child modules, in the order they are defined, learn at d^k of
    the rate, k counting back from the head (d^0), as in Clark et al. 2020, arXiv 2003.10555.
    """
    children = list(network.encoder.children()) if layer_decay != 1 else []
    groups = [(list(network.head.parameters()), 1.0)]
    seen = {id(p) for p in groups[0][0]}
    for steps, child in enumerate(reversed(children), start=1):
        own = [p for p in child.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        groups.append((own, layer_decay**steps))
    rest = [p for p in network.parameters() if id(p) not in seen]
    groups.append((rest, layer_decay ** (len(children) + 1) if children else 1.0))
    return [
        {"params": [p for p in parameters if p.requires_grad], "rate_factor": factor}
        for parameters, factor in groups
        if any(p.requires_grad for p in parameters)
    ]


def _synchronise_batch_norm(network: Network, device: torch.device) -> None:
    """Make batch normalisation take its statistics from the batches of all processes."""
    if device.type != "cuda":
        raise PlanError(f"training.sync_batch_norm needs CUDA GPUs, not {device}; set it to false")
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


def _wrapped(network: Network, *, settings: TrainSettings, precision: Precision, world: World) -> Any:
    """The network as it is called in training: compiled, and exchanging gradients, where asked for."""
    called: Any = network
    if world.size > 1:
        devices = [precision.device] if precision.device.type == "cuda" else None
        called = torch.nn.parallel.DistributedDataParallel(
            network, device_ids=devices, gradient_as_bucket_view=True
        )
    return torch.compile(called) if settings.compile else called


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
