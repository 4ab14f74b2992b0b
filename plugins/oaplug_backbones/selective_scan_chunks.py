"""The selective scan, group of chunks after group of chunks, forward and backward.

Positions are cut into chunks of 64, and neighbouring chunks are worked on side by side, as a group: a step
is one operation on the same position of every chunk. A first pass gives what each chunk adds to the state,
a loop over the chunks the state before each, and a second pass all states. Only the states before chunks are
kept for backward, which goes from the last group to the first. Decays are products of exp(dt A) and never
differences of their logarithms, so any dt is stable.

Inside a group arrays are (T,G,B,N,D): position in the chunk, chunk, row of the batch, state, channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK = 64
"""Positions of a chunk; one state (N,D) is kept for each chunk."""
_GROUP_ELEMENTS = 1 << 20
"""Positions x N x D of a group; three arrays of this size are all the working memory, whatever the length."""


@dataclass(frozen=True)
class Given:
    """What the scan is called with; selective_scan describes it."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

    @property
    def dtype(self) -> torch.dtype:
        """The precision of all arithmetic."""
        return torch.float64 if self.u.dtype == torch.float64 else torch.float32

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors, in the order of gradients."""
        return (self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.delta_bias)

    def column(self, vector: Tensor) -> Tensor:
        """A vector (D,) as (D,1)."""
        return vector.to(self.dtype)[:, None]

    def groups(self) -> list[_Group]:
        """All groups: some rows of the batch after others, in each from the first position to the last."""
        batch, _, length = self.u.shape
        chunks = _GROUP_ELEMENTS // max(1, _CHUNK * self.A.numel())
        rows = max(1, min(batch, chunks))
        reach = max(1, chunks // rows) * _CHUNK
        return [
            _Group(slice(row, min(batch, row + rows)), slice(start, min(length, start + reach)))
            for row in range(0, batch, rows)
            for start in range(0, length, reach)
        ]

    def memory(self, arrays: int) -> list[Tensor]:
        """Working memory: flat arrays of the largest group's size."""
        size = max((group.elements for group in self.groups()), default=0) * self.A.numel()
        return [self.u.new_empty(size, dtype=self.dtype) for _ in range(arrays)]


@dataclass(frozen=True)
class _Group:
    """Neighbouring chunks of some rows of the batch."""

    rows: slice
    positions: slice

    @property
    def chunks(self) -> slice:
        """The numbers of its chunks."""
        return slice(self.positions.start // _CHUNK, -(-self.positions.stop // _CHUNK))

    @property
    def elements(self) -> int:
        """Rows x positions, filled up to whole chunks."""
        chunks: int = self.chunks.stop - self.chunks.start
        rows: int = self.rows.stop - self.rows.start
        return rows * chunks * _CHUNK

    def cut(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """This group's part (B,X,l) of a tensor (B,X,L)."""
        return tensor[self.rows, :, self.positions].to(dtype).contiguous()

    def put(self, tensor: Tensor, part: Tensor) -> None:
        """Write this group's part (B,X,l) of a tensor (B,X,L)."""
        tensor[self.rows, :, self.positions] = part

    def fold(self, part: Tensor) -> Tensor:
        """(B,X,l) as (T,G,B,X), with zeros after the last position."""
        batch, size, width = part.shape
        chunks = self.chunks.stop - self.chunks.start
        flat = functional.pad(part.reshape(-1, width), (0, chunks * _CHUNK - width))
        return flat.t().contiguous().view(chunks, _CHUNK, batch, size).transpose(0, 1).contiguous()

    def unfold(self, folded: Tensor) -> Tensor:
        """(T,G,B,X) as (B,X,l)."""
        batch, size = folded.shape[2:]
        flat = folded.transpose(0, 1).reshape(-1, batch * size).t().contiguous()
        width = self.positions.stop - self.positions.start
        return flat[:, :width].view(batch, size, width)


class _Part:
    """A group's share of the scan: h[t] = decay[t] h[t-1] + drive[t].

    u, raw (dt before softplus) and dt are (B,D,l); steps (dt) and inputs (dt u) (T,G,B,D); B, C (T,G,B,N);
    decay and drive (T,G,B,N,D); A is (N,D).
    """

    def __init__(self, given: Given, group: _Group, memory: Sequence[Tensor]) -> None:
        self.given, self.group = given, group
        self.u, self.raw, self.B, self.C = (
            group.cut(tensor, given.dtype) for tensor in (given.u, given.delta, given.B, given.C)
        )
        if given.delta_bias is not None:
            self.raw = self.raw + given.column(given.delta_bias)
        self.dt = functional.softplus(self.raw) if given.delta_softplus else self.raw
        self.steps, self.inputs = group.fold(self.dt), group.fold(self.dt * self.u)
        self.B, self.C = group.fold(self.B), group.fold(self.C)
        self.A = given.A.to(given.dtype).t().contiguous()
        shape = (*self.B.shape, len(given.A))
        size = group.elements * given.A.numel()
        self.decay, self.drive, *self.spare = (array[:size].view(shape) for array in memory)
        rates = self.A / log(2)  # for exp2, which takes torch a third of exp's time on a CPU
        torch.mul(self.steps[..., None, :], rates, out=self.decay).exp2_()
        torch.mul(self.inputs[..., None, :], self.B[..., None], out=self.drive)
        self.chunk_decay = (self.steps.sum(0)[..., None, :] * rates).exp2_()

    def first_states(self, carry: Tensor) -> Tensor:
        """The state before each chunk (G,B,N,D), from the one before the group (B,N,D)."""
        if len(self.chunk_decay) == 1:
            return carry[None]
        ends = _last(self.drive.unbind(0), self.decay.unbind(0)[1:])
        return _carry(carry, ends, self.chunk_decay)

    def run_(self, first_states: Tensor) -> Tensor:
        """Turn drive into the states (T,G,B,N,D)."""
        self.drive[0].addcmul_(self.decay[0], first_states)
        _run_(self.drive.unbind(0), self.decay.unbind(0)[1:])
        return self.drive

    def run_adjoint(self, gradient: Tensor, carry: Tensor) -> Tensor:
        """The loss's gradient by each state (T,G,B,N,D), from that by y before gate (T,G,B,D).

        Carry (B,N,D) is what the next group sends back to the last state of this one.
        """
        adjoint = torch.mul(gradient[..., None, :], self.C[..., None], out=self.spare[0])
        states, links = adjoint.unbind(0)[::-1], self.decay.unbind(0)[:0:-1]
        entering = carry[None]
        if len(self.chunk_decay) > 1:
            leaving = _last(states, links).mul_(self.decay[0])
            entering = _carry(carry, leaving.flip(0), self.chunk_decay.flip(0)).flip(0)
        adjoint[-1] += entering
        _run_(states, links)
        return adjoint

    def ungated(self, states: Tensor) -> Tensor:
        """Y before the gate (B,D,l)."""
        y = self.group.unfold(_over_states(self.C, states))
        return y if self.given.D is None else y.addcmul_(self.given.column(self.given.D), self.u)


def _run_(states: Sequence[Tensor], links: Sequence[Tensor]) -> None:
    """In place states[i+1] += links[i] * states[i], for one i after the other."""
    for (state, after), link in zip(pairwise(states), links, strict=True):
        after.addcmul_(link, state)


def _last(states: Sequence[Tensor], links: Sequence[Tensor]) -> Tensor:
    """What _run_ would make of the last state, without changing any."""
    last = states[0].clone()
    for after, link in zip(states[1:], links, strict=True):
        torch.addcmul(after, link, last, out=last)
    return last


def _carry(carry: Tensor, ends: Tensor, decays: Tensor) -> Tensor:
    """What enters each chunk (G,B,N,D): carry, then ends[g] + decays[g] * what entered chunk g."""
    entering = torch.empty_like(ends)
    entering[0] = carry
    for (here, after), end, decay in zip(pairwise(entering.unbind(0)), ends[:-1], decays[:-1], strict=True):
        torch.addcmul(end, decay, here, out=after)
    return entering


def _over_states(weights: Tensor, states: Tensor) -> Tensor:
    """Weights (T,G,B,N) times states (T,G,B,N,D), summed over N: (T,G,B,D)."""
    products = torch.bmm(weights.flatten(0, 2)[:, None], states.flatten(0, 2))
    return products.view(*weights.shape[:3], states.shape[4])


def _over_channels(weights: Tensor, states: Tensor) -> Tensor:
    """Weights (T,G,B,D) times states (T,G,B,N,D), summed over D: (T,G,B,N)."""
    products = torch.bmm(weights.flatten(0, 2)[:, None], states.flatten(0, 2).transpose(1, 2))
    return products.view(*weights.shape[:3], states.shape[3])


def empty_outputs(given: Given) -> tuple[Tensor, Tensor]:
    """Memory for y (B,D,L) and for the state before each chunk (G,B,N,D)."""
    batch, channels, length = given.u.shape
    shape = (-(-length // _CHUNK), batch, given.A.shape[1], channels)
    return given.u.new_empty(given.u.shape), given.u.new_empty(shape, dtype=given.dtype)


def forward(given: Given) -> tuple[Tensor, Tensor]:
    """Give y (B,D,L), and the state before each chunk (G,B,N,D)."""
    y, first_states = empty_outputs(given)
    memory = given.memory(2)
    carry = y.new_empty(0)
    for group in given.groups():
        part = _Part(given, group, memory)
        if group.positions.start == 0:
            carry = torch.zeros_like(part.chunk_decay[0])
        first_states[group.chunks, group.rows] = first = part.first_states(carry)
        states = part.run_(first)
        carry = states[-1, -1].clone()
        part_y = part.ungated(states)
        if given.z is not None:
            part_y = part_y * functional.silu(group.cut(given.z, given.dtype))
        group.put(y, part_y)
    return y, first_states


def empty_gradients(given: Given) -> list[Tensor]:
    """Memory for the gradient by each tensor; none for an absent one."""
    return [given.u.new_empty(0) if x is None else x.new_empty(x.shape) for x in given.tensors]


def backward(given: Given, first_states: Tensor, y_gradient: Tensor) -> list[Tensor]:
    """Give the gradient by each tensor, in the order of Given; an absent one's is empty."""
    gradients = _Gradients(given)
    memory = given.memory(3)
    carry = y_gradient.new_empty(0)
    for group in reversed(given.groups()):
        part = _Part(given, group, memory)
        if group.positions.stop == given.u.shape[2]:
            carry = torch.zeros_like(part.chunk_decay[0])
        first = first_states[group.chunks, group.rows]
        states = part.run_(first)
        by_y = gradients.by_gate(part, states, group.cut(y_gradient, given.dtype))
        by_drive = part.run_adjoint(gradients.by_output(part, states, by_y), carry)
        by_input = gradients.by_drive(part, by_drive)
        by_kept = by_drive.mul_(part.decay)
        carry = by_kept[0, 0].clone()
        by_kept[1:].mul_(states[:-1])
        by_kept[0].mul_(first)
        gradients.by_step(part, by_kept, by_input, by_y)
    return gradients.all()


class _Gradients:
    """Gradients by the tensors given, filled group by group; sums over positions in full precision."""

    def __init__(self, given: Given) -> None:
        self.filled = empty_gradients(given)
        self.u, self.delta, _, self.B, self.C, _, self.z, _ = self.filled
        self.A = given.A.new_zeros(given.A.shape[::-1], dtype=given.dtype)
        self.D, self.delta_bias = (given.A.new_zeros(len(given.A), dtype=given.dtype) for _ in range(2))

    def by_gate(self, part: _Part, states: Tensor, by_y: Tensor) -> Tensor:
        """The gradient by y before the gate (B,D,l), from that by y; keeps that by z."""
        if part.given.z is None:
            return by_y
        z = part.group.cut(part.given.z, part.given.dtype)
        sigmoid = z.sigmoid()
        slope = sigmoid * (1 + z * (1 - sigmoid))
        part.group.put(self.z, by_y * part.ungated(states) * slope)
        return by_y * z * sigmoid

    def by_output(self, part: _Part, states: Tensor, by_y: Tensor) -> Tensor:
        """The gradient by y before the gate folded (T,G,B,D); keeps that by C."""
        folded = part.group.fold(by_y)
        part.group.put(self.C, part.group.unfold(_over_channels(folded, states)))
        return folded

    def by_drive(self, part: _Part, by_drive: Tensor) -> Tensor:
        """The gradient by dt u (B,D,l), from that by drive; keeps that by B."""
        part.group.put(self.B, part.group.unfold(_over_channels(part.inputs, by_drive)))
        return part.group.unfold(_over_states(part.B, by_drive))

    def by_step(self, part: _Part, by_exponent: Tensor, by_input: Tensor, by_y: Tensor) -> None:
        """Keep the gradients by A, u, delta, D and delta_bias; by_exponent, by dt A, is overwritten."""
        given, group = part.given, part.group
        self.A += torch.mul(by_exponent, part.steps[..., None, :], out=part.decay).sum((0, 1, 2))
        by_dt = group.unfold(by_exponent.mul_(part.A).sum(3)).addcmul(by_input, part.u)
        by_raw = by_dt * part.raw.sigmoid() if given.delta_softplus else by_dt
        by_u = by_input * part.dt
        group.put(self.delta, by_raw)
        group.put(self.u, by_u if given.D is None else by_u.addcmul_(given.column(given.D), by_y))
        self.D += (by_y * part.u).sum((0, 2))
        self.delta_bias += by_raw.sum((0, 2))

    def all(self) -> list[Tensor]:
        """All gradients, in the order of Given, in the precision of what they belong to."""
        for place, total in ((2, self.A.t()), (5, self.D), (7, self.delta_bias)):
            if self.filled[place].numel():
                self.filled[place].copy_(total)
        return self.filled
