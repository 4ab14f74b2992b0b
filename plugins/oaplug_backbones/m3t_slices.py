"""M3T's 2D half: every slice of a volume's features, along three planes, through one 2D network."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oaplug_backbones.resnet2d import ResNet2d

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from oaplug_backbones.options import M3tOptions


class SliceEncoder(nn.Module):
    """Features of a volume (B,C,D,H,W) to one token per slice (B,D+H+W,width): along D, then H, then W.

    Slices of one size go through the network together; in a cube those are all. Chunks are cut where that
    saves memory, that is where no gradient is recorded or activations are recomputed (checkpoint_slices).
    In eval mode they change nothing. In training mode batch normalisation takes its statistics from a
    chunk, so a chunk is not a stack of neighbours: it holds every n-th slice of every case, and the chunks
    of the planes take turns. Recomputing leaves the running statistics alone.
    """

    def __init__(self, options: M3tOptions) -> None:
        super().__init__()
        self.network = ResNet2d(
            options.resnet_depth, in_channels=options.channels, width=options.resnet_width
        )
        self.projection = nn.Sequential(
            nn.Linear(self.network.num_features, 2 * options.width),
            nn.ReLU(),
            nn.Linear(2 * options.width, options.width),
        )
        self._slices_per_chunk = options.slices_per_chunk
        self._recompute = options.checkpoint_slices

    def forward(self, features: Tensor) -> Tensor:
        """Tokens (B,D+H+W,width) of features (B,C,D,H,W)."""
        planes = [features.movedim(axis, 1) for axis in (2, 3, 4)]
        groups = _planes_by_slice_size(planes)
        steps = [self._count_chunks([planes[index] for index in group]) for group in groups]
        parts: list[list[Tensor]] = [[] for _ in groups]
        for group, start in _in_turns(steps):
            stack = [planes[index] for index in groups[group]]
            parts[group].append(self._encode(stack, start, steps[group]))
        tokens: Tensor = self.projection(_in_order(parts, groups, planes))
        return tokens

    def _count_chunks(self, stack: Sequence[Tensor]) -> int:
        if torch.is_grad_enabled() and not self._recompute:
            return 1
        slices_per_case = max(1, self._slices_per_chunk // len(stack[0]))
        return -(-sum(plane.shape[1] for plane in stack) // slices_per_case)

    def _encode(self, stack: Sequence[Tensor], start: int, step: int) -> Tensor:
        """Network features (B,n,F) of the slices `start`, `start + step`, ... of a stack."""
        if not (self._recompute and torch.is_grad_enabled()):
            return self._encode_now(stack, start, step)
        encoded: Tensor = checkpoint(
            self._encode_now,
            stack,
            start,
            step,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=self._forward_and_recompute_contexts,
        )
        return encoded

    def _encode_now(self, stack: Sequence[Tensor], start: int, step: int) -> Tensor:
        slices = _take(stack, start, step)
        encoded: Tensor = self.network(slices.flatten(0, 1))
        return encoded.view(*slices.shape[:2], -1)

    def _forward_and_recompute_contexts(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), keep_buffers(self.network)


@contextmanager
def keep_buffers(network: nn.Module) -> Iterator[None]:
    """Within it the network works on copies of its buffers, so running statistics stay as they were."""
    kept = [(m, name, b) for m in network.modules() for name, b in m.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def _planes_by_slice_size(planes: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the planes (B,N,C,h,w) whose slices have one size and can share a batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, plane in enumerate(planes):
        groups.setdefault(tuple(plane.shape[3:]), []).append(index)
    return list(groups.values())


def _in_turns(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Chunks (group, start) in an order in which no group comes last as a whole.

    Running statistics forget: where the chunks of one plane come last, they are mostly that plane's.
    """
    chunks = [(group, start) for group, step in enumerate(steps) for start in range(step)]
    return sorted(chunks, key=lambda chunk: (chunk[1] + 0.5) / steps[chunk[0]])


def _take(stack: Sequence[Tensor], start: int, step: int) -> Tensor:
    """Slices start, start + step, ... (B,n,C,h,w) of planes (B,N,C,h,w) that are counted as one row."""
    taken, offset = [], 0
    for plane in stack:
        taken.append(plane[:, (start - offset) % step :: step])
        offset += plane.shape[1]
    return torch.cat(taken, dim=1)


def _in_order(
    parts: Sequence[Sequence[Tensor]], groups: Sequence[Sequence[int]], planes: Sequence[Tensor]
) -> Tensor:
    """The chunks' features (B,n,F), put back into the order of the planes' slices (B,D+H+W,F)."""
    encoded: dict[int, Tensor] = {}
    for chunks, group in zip(parts, groups, strict=True):
        counts = [planes[index].shape[1] for index in group]
        joined = torch.cat(list(chunks), dim=1)
        every = torch.arange(sum(counts), device=joined.device)
        taken = torch.cat([every[start :: len(chunks)] for start in range(len(chunks))])
        encoded.update(zip(group, torch.split(joined[:, taken.argsort()], counts, dim=1), strict=True))
    return torch.cat([encoded[index] for index in range(len(planes))], dim=1)
