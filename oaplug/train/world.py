"""The processes of one training: who is first, and how they agree. One process is a world of its own."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

from oaplug.core.errors import PlanError
from oaplug.train.stopping import Interrupted, LostProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

T = TypeVar("T")


_SIGNS_OF_A_LOST_PROCESS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


@dataclass(frozen=True, kw_only=True)
class World:
    """Rank and size as torch.distributed has them; with size 1 nothing is ever sent."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, values: Mapping[str, float], *, device: torch.device) -> dict[str, float]:
        """The mean over processes of each value; all must call with the same names."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def is_any(self, flag: bool, *, device: torch.device) -> bool:
        """Whether any process says so; all must call."""
        return self.mean({"flag": float(flag)}, device=device)["flag"] > 0

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values of these tensors, in place; all must call."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def gather(self, value: T) -> list[T]:
        """What every process gives, by rank, at every process; all must call."""
        if self.size == 1:
            return [value]
        found = [value] * self.size
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Within, what torch says when another process is gone becomes LostProcess, one line."""
    try:
        yield
    except RuntimeError as failure:
        signs = _SIGNS_OF_A_LOST_PROCESS
        is_lost = isinstance(failure, distributed.DistError) or any(sign in str(failure) for sign in signs)
        if not (distributed.is_initialized() and is_lost):
            raise
        raise LostProcess(
            f"process {distributed.get_rank()} of {distributed.get_world_size()} stops because another one "
            "has ended; that one has said why"
        ) from failure


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """The world that torchrun, srun or `-num_gpus` set up through the environment, and this process's device.

    Raises PlanError where there are more processes on a machine than GPUs.
    """
    variables = _rank_variables()
    if variables is None:
        return World(), device
    if device.type == "cuda":
        local = int(variables["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise PlanError(
                f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} are "
                "seen); start as many processes as there are GPUs"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        os.environ.update(variables)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank=distributed.get_rank(), size=distributed.get_world_size()), device


def _rank_variables() -> dict[str, str] | None:
    """RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them, or from srun's variables; None: one process."""
    here = os.environ
    if int(here.get("WORLD_SIZE", "1")) > 1:
        return {key: here[key] for key in ("RANK", "WORLD_SIZE")} | {
            "LOCAL_RANK": here.get("LOCAL_RANK", "0")
        }
    if int(here.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in here and "MASTER_ADDR" in here:
        return {
            "RANK": here["SLURM_PROCID"],
            "WORLD_SIZE": here["SLURM_NTASKS"],
            "LOCAL_RANK": here.get("SLURM_LOCALID", "0"),
        }
    return None


def end_one_of_many(status: int) -> None:
    """Where this process trained with others, end it here, without the interpreter's shutdown.

    Everything is written by now. Threads of gloo that still ran in the shutdown have aborted processes
    whose work was done (seen with PyTorch 2.13: "terminate called without an active exception").
    """
    if distributed.is_available() and _rank_variables() is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def leaving(world: World) -> Iterator[None]:
    """Takes the process group down at the end, or when all were asked to stop; not when one has failed."""
    try:
        yield
    except Interrupted:
        _leave(world)
        raise
    _leave(world)


def _leave(world: World) -> None:
    if world.size > 1:
        distributed.destroy_process_group()
