"""How much memory a training step takes, measured on fake tensors before any real one is made.

A step is walked with tensors that have shapes and types but no data, while the bytes of the storages that
are alive are counted (`LiveBytes`). Its phases are forward (with the loss), backward and update; each is
walked at two batch sizes and is a straight line through their peaks.

Not counted: what an allocator rounds up and fragments; workspaces inside kernels (cuDNN, oneDNN, operators
of plugins); the CUDA context and libraries; the process itself; volumes that are cached; augmentation, which
is over before the step begins; copies of gradients that several processes exchange; what
`training.compile` changes.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from oaplug.core.batch import Batch
from oaplug.model.live_bytes import CudaBytes, LiveBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from oaplug.core.plan import TrainSettings
    from oaplug.model.network import Network
    from oaplug.model.precision import Precision

log = logging.getLogger(__name__)

Source = Literal["fake tensors", "measured"]
FAKE_BATCHES = (2, 4)
"""Batch sizes that are walked; not 1, which BatchNorm refuses where it leaves one value per channel."""
REAL_BATCHES = (1, 2)
"""Batch sizes to try, the first that goes, where a real step has to be measured."""

_Peaks = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The peak of a phase of a step in bytes: what any batch size takes, and what each case adds."""

    fixed_bytes: int
    bytes_per_case: int

    def bytes(self, batch_size: int) -> int:
        """The peak at a batch size."""
        return self.fixed_bytes + self.bytes_per_case * batch_size

    def largest_batch(self, target_bytes: float) -> float:
        """How many cases fit into `target_bytes`; infinity where they add nothing."""
        if self.fixed_bytes > target_bytes:
            return 0
        return (target_bytes - self.fixed_bytes) // self.bytes_per_case if self.bytes_per_case else math.inf


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training step, whose largest phase counts.

    `parameter_bytes` and `state_bytes` (weights, buffers, gradients, AdamW's two moments, and the moving
    average where there is one) are parts of the phases. `source` says whether fake tensors were walked or
    a real step was measured.
    """

    forward: Phase
    backward: Phase
    update: Phase
    parameter_bytes: int
    state_bytes: int
    source: Source

    def bytes(self, batch_size: int) -> int:
        """The peak of a step at a batch size."""
        return max(phase.bytes(batch_size) for phase in self._phases)

    def largest_batch(self, target_bytes: float) -> int:
        """The largest batch size whose step takes at most `target_bytes`; 0 where no case fits."""
        return int(min(phase.largest_batch(target_bytes) for phase in self._phases))

    @property
    def _phases(self) -> tuple[Phase, Phase, Phase]:
        return self.forward, self.backward, self.update


def estimate_training_memory(
    build: Callable[[], Network],
    *,
    volume_shape: tuple[int, int, int, int],
    targets: Sequence[str],
    settings: TrainSettings,
    precision: Precision,
) -> MemoryEstimate:
    """The memory of a training step of the network that `build` makes (on the CPU, anew at each call).

    A network that fake tensors do not go through (it looks at values, or calls code that wants data) takes
    a real step on the device with the smallest batch instead; all that is beyond the state is then
    thought to grow with the batch.

    Args:
        build: makes the network, encoder and head.
        volume_shape: C, D, H, W.
        targets: names of the targets that the head's loss asks for.
        settings: what of the training changes memory: accumulation, moving average, frozen encoder.
        precision: device, number format and layout.

    Raises:
        Exception: whatever the network raises in a real step; a training would end with it too.
    """
    context = {"volume_shape": volume_shape, "targets": targets, "settings": settings, "precision": precision}
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            return _walk(_Step(build(), **context))  # type: ignore[arg-type]
        except Exception as failure:  # what fake tensors cannot do is raised as errors of many kinds
            reason = " ".join(str(failure).split())[:200]
            log.info("memory: measuring a real step, as fake tensors do not go through (%s)", reason)
            log.debug("fake tensors do not go through", exc_info=True)
        return _measure(_Step(build(), **context))  # type: ignore[arg-type]


def _walk(step: _Step) -> MemoryEstimate:
    """The estimate from fake steps at two batch sizes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    step.precision.lay_out(step.network)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as meter:
        _replace_tensors(step.network, device=step.precision.device)
        step.prepare()
        few, many = (step.peaks(batch, meter) for batch in FAKE_BATCHES)
    forward, backward, update = map(_line, few, many)
    return _estimate(step, forward, backward, update, source="fake tensors")


def _line(few_bytes: int, many_bytes: int) -> Phase:
    few, many = FAKE_BATCHES
    per_case = max(0, -(-(many_bytes - few_bytes) // (many - few)))
    return Phase(fixed_bytes=max(0, few_bytes - few * per_case), bytes_per_case=per_case)


def _replace_tensors(network: nn.Module, *, device: torch.device) -> None:
    """Put fake tensors of the same shapes, types and strides, on the device, in place of real ones."""
    fakes: dict[int, Tensor] = {}
    for module in network.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None:  # and shared ones stay shared
                    tensors[name] = fakes.setdefault(id(tensor), _fake_like(tensor, device=device))


def _fake_like(tensor: Tensor, *, device: torch.device) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake


def _measure(step: _Step) -> MemoryEstimate:
    """The estimate from one real step."""
    with _real_meter(step.precision.device) as meter:
        step.precision.place(step.network)
        if isinstance(meter, LiveBytes):
            meter.track([*step.network.parameters(), *step.network.buffers()])
        step.prepare()
        batch, (forward, backward, update) = _first_that_goes(step, meter)
    state = step.bytes_of_state()
    held = state if step.settings.accumulation_steps > 1 else state - step.bytes_of_gradients()
    return _estimate(
        step,
        Phase(fixed_bytes=held, bytes_per_case=max(0, forward - held) // batch),
        Phase(fixed_bytes=state, bytes_per_case=max(0, backward - state) // batch),
        Phase(fixed_bytes=update, bytes_per_case=0),
        source="measured",
    )


@contextmanager
def _real_meter(device: torch.device) -> Iterator[LiveBytes | CudaBytes]:
    if device.type == "cuda":
        yield CudaBytes(device)
        return
    with LiveBytes() as meter:
        yield meter


def _first_that_goes(step: _Step, meter: LiveBytes | CudaBytes) -> tuple[int, _Peaks]:
    one, two = REAL_BATCHES
    with suppress(ValueError):  # BatchNorm that is left with one value per channel
        return one, step.peaks(one, meter)
    return two, step.peaks(two, meter)


def _estimate(
    step: _Step, forward: Phase, backward: Phase, update: Phase, *, source: Source
) -> MemoryEstimate:
    return MemoryEstimate(
        forward=forward,
        backward=backward,
        update=update,
        parameter_bytes=_bytes_of(step.network.parameters()),
        state_bytes=step.bytes_of_state(),
        source=source,
    )


class _Step:
    """A step as the trainer takes it once it is under way: gradients, moments and average are there."""

    def __init__(
        self,
        network: Network,
        *,
        volume_shape: tuple[int, ...],
        targets: Sequence[str],
        settings: TrainSettings,
        precision: Precision,
    ) -> None:
        self.network = network
        self.volume_shape = volume_shape
        self.targets = targets
        self.settings = settings
        self.precision = precision
        self.average: list[Tensor] = []
        network.train()
        if settings.freeze_encoder:
            network.encoder.requires_grad_(requires_grad=False).eval()

    def prepare(self) -> None:
        """Make gradients (of zeros), moments and the average."""
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(self.trained)
        self.optimizer.step()
        if self.settings.ema_decay is not None:
            self.average = [tensor.clone() for tensor in self.network.state_dict().values()]

    def peaks(self, batch_size: int, meter: LiveBytes | CudaBytes) -> _Peaks:
        """Peak bytes of forward, backward and update at a batch size."""
        if self.settings.accumulation_steps == 1:  # else the gradients of other batches wait meanwhile
            self.optimizer.zero_grad(set_to_none=True)
        device = self.precision.device
        volume = torch.zeros(batch_size, *self.volume_shape, device=device)
        grades = torch.zeros(batch_size, dtype=torch.long, device=device)
        meter.reset_peak()
        with self.precision.autocast():
            logits = self.network(self.precision.arrange(volume))
            losses = self.network.loss(logits, Batch(targets=dict.fromkeys(self.targets, grades)))
        forward = meter.peak
        meter.reset_peak()
        with self.precision.gradients():
            losses["total"].backward()  # type: ignore[no-untyped-call]
        backward = meter.peak
        meter.reset_peak()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return forward, backward, meter.peak

    def bytes_of_state(self) -> int:
        """Weights, buffers, gradients, moments and average."""
        moments = [t for state in self.optimizer.state.values() for t in state.values() if t.ndim]
        held = [*self.network.parameters(), *self.network.buffers(), *moments, *self.average]
        return _bytes_of(held) + self.bytes_of_gradients()

    def bytes_of_gradients(self) -> int:
        """Gradients, all of them."""
        return _bytes_of(self.trained)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
