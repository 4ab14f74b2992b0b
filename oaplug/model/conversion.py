"""Released weights as checkpoints of oaplug, and networks that are built from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from oaplug.core.errors import CheckpointError, PluginError, nearest
from oaplug.core.settings import to_mapping
from oaplug.core.target import targets_from_json
from oaplug.model.build import build_encoder, build_head, targets_of_head
from oaplug.model.checkpoint import Checkpoint, load_checkpoint, load_network, save_checkpoint
from oaplug.model.parts import find_recorded, record_part
from oaplug.model.weight_files import WeightRecord, read_weight_file, record_of
from oaplug.model.weights import complete
from oaplug.plug.registry import parse_options, registry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from oaplug.model.network import Network
    from oaplug.model.parts import PartRecord
    from oaplug.model.weight_files import FileRecord, WeightFile
    from oaplug.plug.protocols import Encoder, HeadStrategy
    from oaplug.plug.registry import Part
    from oaplug.plug.specs import BackboneSpec, HeadSpec, Size, WeightMap, WeightSource

log = logging.getLogger(__name__)
NO_HEAD = "none"
_ANY_SIZE_VOXELS = 32


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted checkpoint: where it is, what it is, its number of weights, and what was not used.

    `not_default` are the options of the backbone that a network needs to be told to take the weights.
    """

    path: Path
    record: WeightRecord
    parameters: int
    unused: tuple[str, ...]
    not_default: Mapping[str, Any]


def convert_weights(
    path: Path | str, *, source: str, output: Path | str, backbone: str | None = None, head: str | None = None
) -> Conversion:
    """Write released weights as a checkpoint that `create_network` and `-pretrained_weights` take.

    Args:
        path: a .safetensors file, or a PyTorch file with nothing but tensors.
        source: a released implementation that a backbone knows, such as "medicalnet".
        output: the .safetensors file to write.
        backbone: where several know the source (default: the one whose tensors they are).
        head: another head than the released one, of the same tensors; "none" writes the encoder alone.

    Raises:
        PluginError: for a source or part that does not exist.
        CheckpointError: for a file that cannot be read, or does not fit (naming the tensors).
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the converted weights are a .safetensors file; name it so")
    file = read_weight_file(Path(path))
    part, found = _choose(source, file, backbone=backbone)
    where = f"{path}, read as {source}"
    encoder = _build_encoder(part, found)
    parameters = _count(encoder)
    tensors = _named("encoder", complete(_state(encoder), found.encoder, where=where))
    head_part = _choose_head(found, wanted=head, where=where)
    if head_part is not None:
        strategy = _build_head(head_part, found, num_features=encoder.num_features)
        tensors |= _named("head", complete(_state(strategy), found.head_tensors, where=where))
        parameters += _count(strategy)
    record = _record(found, part, head_part, source=source, file=file.record)
    save_checkpoint(output, Checkpoint(network=tensors, progress={"weights": to_mapping(record)}))
    return Conversion(
        path=output,
        record=record,
        parameters=parameters,
        unused=found.unused if head_part is not None else (*found.unused, *found.head_tensors),
        not_default=_not_default(part, record.backbone),
    )


def _choose(source: str, file: WeightFile, *, backbone: str | None) -> tuple[Part, WeightMap]:
    """The backbone whose source of that name takes the file, and what it reads in it."""
    parts = registry().of_kind("backbone") if backbone is None else (registry().get("backbone", backbone),)
    sources = [(part, _source(part, source)) for part in parts]
    known = sorted({s.name for part in parts for s in cast("BackboneSpec", part.spec).weight_sources})
    found, reasons = [], []
    for part, reader in sources:
        if reader is None:
            continue
        try:
            found.append((part, reader.read(file.tensors, None)))
        except CheckpointError as failure:
            reasons.append(f"no {part.spec.name}: {failure}")
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(part.qualified_name for part, _ in found)
        raise CheckpointError(f"{file.path} may be of several backbones; choose {names} with -b")
    if reasons:
        raise CheckpointError(f"{file.path} does not fit {source}: {'; '.join(reasons)}")
    whose = "no backbone knows" if backbone is None else f"the backbone {backbone} does not know"
    raise PluginError(f"{whose} weights of {source!r}{nearest(source, known)}")


def _source(part: Part, name: str) -> WeightSource | None:
    spec = cast("BackboneSpec", part.spec)
    return next((source for source in spec.weight_sources if source.name == name), None)


def _build_encoder(part: Part, found: WeightMap) -> Encoder:
    """An encoder of the shapes that the map asks for, whose own weights are of no account."""
    spec = cast("BackboneSpec", part.spec)
    depth, height, width = spec.size_multiple(parse_options(spec, found.options))
    size = found.input_size or tuple(-(-_ANY_SIZE_VOXELS // n) * n for n in (depth, height, width))
    with _own_randomness():
        return build_encoder(
            spec, found.options, in_channels=found.in_channels, input_size=cast("Size", size)
        )


def _choose_head(found: WeightMap, *, wanted: str | None, where: str) -> Part | None:
    name = found.head if wanted is None else wanted
    if name in (None, NO_HEAD):
        return None
    if not found.head_tensors:
        raise CheckpointError(
            f"{where}: there is no classifier in it, and so no head {name}; use --head none"
        )
    return registry().get("head", name)


def _build_head(part: Part, found: WeightMap, *, num_features: int) -> HeadStrategy:
    spec = cast("HeadSpec", part.spec)
    targets = targets_of_head(spec, targets_from_json(found.targets, where="targets"))
    with _own_randomness():
        return build_head(
            spec, found.head_options, num_features=num_features, targets=targets, grade_counts={}
        )


def _own_randomness() -> AbstractContextManager[None]:
    """Leave torch's global generator as it was."""
    import torch

    return torch.random.fork_rng(devices=[])


def _state(module: Encoder | HeadStrategy) -> dict[str, Tensor]:
    return cast("nn.Module", module).state_dict()


def _count(module: Encoder | HeadStrategy) -> int:
    return sum(parameter.numel() for parameter in cast("nn.Module", module).parameters())


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _record(
    found: WeightMap, part: Part, head: Part | None, *, source: str, file: FileRecord
) -> WeightRecord:
    return WeightRecord(
        source=source,
        file=file.file,
        sha256=file.sha256,
        backbone=record_part(part, found.options),
        head=None if head is None else record_part(head, found.head_options),
        targets={} if head is None else dict(found.targets),
        in_channels=found.in_channels,
        input_size=found.input_size,
    )


@dataclass(frozen=True, kw_only=True)
class OpenedWeights:
    """A checkpoint, and what it says of itself where it was converted."""

    path: Path
    checkpoint: Checkpoint
    record: WeightRecord | None

    def options(self, kind: str, name: str) -> dict[str, Any]:
        """Recorded options of the backbone or head called `name`; none where none is recorded.

        Raises CheckpointError where another part is recorded, or another revision of it.
        """
        parts = {} if self.record is None else {"backbone": self.record.backbone, "head": self.record.head}
        if (part := parts.get(kind)) is None:
            return {}
        if find_recorded(registry(), kind, part) != registry().get(kind, name):
            raise CheckpointError(f"{self.path} holds weights of the {kind} {part.name}, not of {name}")
        return dict(part.options)


def _not_default(part: Part, record: PartRecord) -> dict[str, Any]:
    defaults = record_part(part, {}).options
    return {key: value for key, value in record.options.items() if value != defaults[key]}


def open_weights(path: Path) -> OpenedWeights:
    """Read a checkpoint of oaplug; raises CheckpointError where it is none."""
    checkpoint = load_checkpoint(path)
    return OpenedWeights(path=path, checkpoint=checkpoint, record=record_of(checkpoint, path=path))


def load_weights(network: Network, opened: OpenedWeights) -> None:
    """Put a checkpoint into a network; one of an encoder alone leaves the head as it is, and says so."""
    if opened.record is not None and opened.record.head is None:
        tensors = {name.removeprefix("encoder."): t for name, t in opened.checkpoint.network.items()}
        load_network(network.encoder, Checkpoint(network=tensors), path=opened.path)
        log.info("%s holds an encoder alone: the head is left random", opened.path.name)
    else:
        load_network(network, opened.checkpoint, path=opened.path)
