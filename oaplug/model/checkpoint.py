"""One safetensors file per checkpoint: tensors of network and training, JSON progress in the header."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import atomic_path
from oaplug.core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

CHECKPOINT_SCHEMA = 2
_FIRST_WITH_CHECKSUM = 2
CHECKPOINT_HEADER = "oaplug_checkpoint"
_NETWORK = "network."


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory.

    `network` and `training` are tensors by name (the latter "optimizer.*" and "average.*": what a resumed
    run needs beside the network), `progress` is JSON.
    """

    network: Mapping[str, Tensor]
    training: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically; the file that was there stays until the new one is whole.

    Raises OSError where the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    named = {_NETWORK + name: tensor for name, tensor in checkpoint.network.items()}
    named |= checkpoint.training
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    progress = json.loads(json.dumps(dict(checkpoint.progress)))  # as it will be read: tuples are lists
    header = {
        "schema": CHECKPOINT_SCHEMA,
        "progress": progress,
        "checksum": _checksum(tensors, progress),
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata={CHECKPOINT_HEADER: json.dumps(header)})
        except SafetensorError as failure:  # which hides the OSError
            raise _as_os_error(failure, path) from failure
    return path


def _as_os_error(failure: Exception, path: Path) -> OSError:
    """The OSError that safetensors met while writing, from what it says ("... (os error 28)")."""
    found = re.search(r"os error (\d+)", str(failure))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises CheckpointError where it is missing, malformed (a pickle, truncated), damaged (its checksum
    differs) or newer than this code.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[CHECKPOINT_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        schema, progress = int(header["schema"]), header["progress"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as failure:
        raise CheckpointError(f"{path} is not a whole oaplug checkpoint (safetensors): {failure}") from None
    if schema > CHECKPOINT_SCHEMA:
        raise CheckpointError(f"{path}: schema {schema} is newer than this oaplug reads; upgrade oaplug")
    if schema >= _FIRST_WITH_CHECKSUM and header.get("checksum") != _checksum(tensors, progress):
        raise CheckpointError(f"{path} is damaged: its checksum is not the one it was written with")
    return Checkpoint(
        network={n.removeprefix(_NETWORK): t for n, t in tensors.items() if n.startswith(_NETWORK)},
        training={n: t for n, t in tensors.items() if not n.startswith(_NETWORK)},
        progress=progress,
    )


def _checksum(tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> str:
    """Hex BLAKE2b-128 over names, types, shapes, bytes and progress."""
    import torch

    digest = hashlib.blake2b(json.dumps(progress, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_network(network: nn.Module, checkpoint: Checkpoint, *, path: Path) -> None:
    """Put a checkpoint's weights into a network; raises CheckpointError naming what does not fit."""
    try:
        network.load_state_dict(dict(checkpoint.network), strict=True)
    except RuntimeError as failure:
        first = " ".join(str(failure).split())[:300]
        raise CheckpointError(f"{path} does not fit the network of its plan: {first}") from None


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Tensors of an optimizer's state, named "PARAMETER.KEY" by the parameter's index."""
    import torch

    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value
        for index, entries in state.items()
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take up an optimizer's state where `optimizer_tensors` left it; learning rates are the schedule's.

    Tensors are laid out in memory as their parameter is, because that decides the last bit of a sum.
    """
    import torch

    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entries in optimizer.state.items():
        for key, tensor in entries.items():
            if torch.is_tensor(tensor) and tensor.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
