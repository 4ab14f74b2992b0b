"""Files of weights from elsewhere, read without running anything that is in them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import CheckpointError
from oaplug.core.settings import from_mapping
from oaplug.model.checkpoint import CHECKPOINT_HEADER, load_checkpoint
from oaplug.model.parts import PartRecord

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from oaplug.model.checkpoint import Checkpoint

_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
_MOST_WRAPPERS = 4
_PREFIX = re.compile(r"((module|_orig_mod)\.)+")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Which file: its name without the folder, and the SHA-256 of its bytes in hex."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """What a converted checkpoint says of itself, in its header.

    `head` is None for an encoder alone; `targets` are the head's, as in dataset.json; `input_size` is
    None where the weights suit any.
    """

    source: str
    file: str
    sha256: str
    backbone: PartRecord
    head: PartRecord | None = None
    targets: dict[str, Any] = field(default_factory=dict)
    in_channels: int = 1
    input_size: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of a file by name, on the CPU.

    A checkpoint of oaplug gives those of its network, `encoder.*` and `head.*`; `made` is what it says of
    itself where it was converted.
    """

    path: Path
    record: FileRecord
    tensors: Mapping[str, Tensor]
    made: WeightRecord | None = None


def record_file(path: Path) -> FileRecord:
    """Name and SHA-256 of a file; raises CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(f"the file of weights {path} does not exist")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return FileRecord(file=path.name, sha256=digest.hexdigest())


def read_weight_file(path: Path) -> WeightFile:
    """Read a .safetensors file (a checkpoint of oaplug or not), or a PyTorch file with nothing but tensors.

    A PyTorch file may hold its state dict under "state_dict" or "model", and names may begin with
    "module."; both are taken off.

    Raises CheckpointError where the file is missing or damaged, or could only be read by running code.
    """
    record = record_file(path)
    if path.suffix == ".safetensors":
        tensors, made = _read_safetensors(path)
    else:
        tensors, made = _find_state_dict(_unpickle(path), path=path), None
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, path=path)
    return WeightFile(path=path, record=record, tensors=_without_wrapper(tensors), made=made)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], WeightRecord | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            if CHECKPOINT_HEADER not in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}, None  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as failure:
        raise CheckpointError(f"{path} is not a whole safetensors file: {failure}") from None
    checkpoint = load_checkpoint(path)
    return dict(checkpoint.network), record_of(checkpoint, path=path)


def record_of(checkpoint: Checkpoint, *, path: Path) -> WeightRecord | None:
    """What a checkpoint says of itself where it was converted; raises CheckpointError where that is odd."""
    progress = checkpoint.progress
    content = progress.get("weights") if isinstance(progress, Mapping) else None
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: its header does not say what the weights are; convert them again")
    return from_mapping(WeightRecord, content, where=str(path), error=CheckpointError)


def _unpickle(path: Path) -> Any:
    """What a PyTorch file holds; the unpickler knows tensors and containers, and refuses all else."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about the age of the format
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:  # a damaged or hostile file may fail in any way
        raise CheckpointError(f"{path} {_why(failure)}") from None


def _why(failure: Exception) -> str:
    text = str(failure)
    needs = re.search(r"GLOBAL ([\w.]+)", text)
    if needs or "TorchScript" in text:
        return (
            f"could only be read by running code in it ({needs[1] if needs else 'TorchScript'}); ask for a "
            "file with nothing but a state dict, or write one where it comes from: "
            "torch.save(model.state_dict(), PATH)"
        )
    return (
        f"is not a whole PyTorch file of tensors ({type(failure).__name__}); get it again, "
        "and call it .safetensors if it is one"
    )


def _find_state_dict(content: Any, *, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what a PyTorch file holds, out of the dicts it is wrapped in."""
    import torch

    for _ in range(_MOST_WRAPPERS):
        inner = [content[key] for key in _WRAPPERS if isinstance(content, Mapping) and key in content]
        nested = [value for value in inner if isinstance(value, Mapping)]
        if not nested:
            break
        content = nested[0]
    items = content.items() if isinstance(content, Mapping) else []
    found = {name: t for name, t in items if isinstance(name, str) and isinstance(t, torch.Tensor)}
    if not found:
        raise CheckpointError(
            f"{path} holds no state dict: no tensors by name, at its top or in 'state_dict'"
        )
    return found


def _check_tensor(name: str, tensor: Tensor, *, path: Path) -> None:
    """Refuse what no network can start from: tensors without storage, sparse ones, and NaN."""
    import torch

    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_complex():
        raise CheckpointError(f"{path}: {name} is no plain tensor of real numbers with values")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{path}: {name} has values that are not finite")


def _without_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that wrappers of a whole network put before each."""
    if not all(_PREFIX.match(name) for name in tensors):
        return dict(tensors)
    short = {_PREFIX.sub("", name, count=1): tensor for name, tensor in tensors.items()}
    return short if len(short) == len(tensors) else dict(tensors)
