"""One safetensors file per checkpoint: tensors of network and optimizer, JSON progress in the header."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import atomic_path
from oaplug.core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

CHECKPOINT_SCHEMA = 1
_HEADER = "oaplug_checkpoint"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory: `network` and `optimizer` tensors by name, and JSON `progress`."""

    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically; the file that was there stays until the new one is whole."""
    from safetensors.torch import save_file

    tensors = {f"network.{name}": tensor.detach().contiguous() for name, tensor in checkpoint.network.items()}
    tensors |= {f"optimizer.{name}": t.detach().contiguous() for name, t in checkpoint.optimizer.items()}
    header = {"schema": CHECKPOINT_SCHEMA, "progress": dict(checkpoint.progress)}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={_HEADER: json.dumps(header)})
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises CheckpointError where it is missing, malformed (a pickle, truncated) or newer than this code.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as failure:
        raise CheckpointError(f"{path} is not a whole oaplug checkpoint (safetensors): {failure}") from None
    if header["schema"] > CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"{path}: schema {header['schema']} is newer than this oaplug reads; upgrade oaplug"
        )
    return Checkpoint(
        network=_with_prefix(tensors, "network."),
        optimizer=_with_prefix(tensors, "optimizer."),
        progress=header["progress"],
    )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


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
    """Take up an optimizer's state where `optimizer_tensors` left it; learning rates are the schedule's."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
