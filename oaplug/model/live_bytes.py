"""Meters of memory: storages that are alive, real or fake, and what CUDA's allocator gave."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, within a `with`, the bytes of storages from when an operator gives them until they die.

    A storage counts once, whatever views there are of it. What an operator allocates inside and gives
    back before it ends is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._track(tensor.untyped_storage())

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def forget(_: object) -> None:
            self.live -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)

    def reset_peak(self) -> None:
        """Begin a phase."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count what it gives."""
        result = func(*args, **(kwargs or {}))
        self.track(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


class CudaBytes:
    """What CUDA's allocator gives from when this is made, kernels' workspaces included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = torch.cuda.memory_allocated(device)

    @property
    def peak(self) -> int:
        """Most bytes at a time since `reset_peak`."""
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def reset_peak(self) -> None:
        """Begin a phase."""
        torch.cuda.reset_peak_memory_stats(self._device)
