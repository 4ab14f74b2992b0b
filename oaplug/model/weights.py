"""An encoder that starts from weights of elsewhere, matched by name, with a report of what was matched."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import CheckpointError
from oaplug.model.weight_files import FileRecord, WeightFile, read_weight_file
from oaplug.plug.specs import WeightMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from oaplug.model.parts import PartRecord
    from oaplug.plug.specs import BackboneSpec

log = logging.getLogger(__name__)
_PREFIXES = ("", "encoder.", "network.encoder.", "backbone.", "model.")
_ENOUGH = 0.5
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """What became of a file's tensors: names of the encoder (`matched`, `random`) and of the file (`unused`).

    `source` says how they were matched: "names", or a weight source of the backbone. `fraction` is that of
    the encoder's parameters, counted by their numbers, that come from the file.
    """

    file: FileRecord
    source: str
    fraction: float
    matched: tuple[str, ...]
    random: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.matched) + len(self.random)
        how = "" if self.source == "names" else f" (as {self.source})"
        return (
            f"pretrained weights {self.file.file}{how}: {len(self.matched)} of the encoder's {total} tensors "
            f"({self.fraction:.1%} of its parameters) come from the file, {len(self.random)} are left "
            f"random, {len(self.unused)} tensors of the file are unused"
        )


def start_encoder(encoder: nn.Module, path: Path, *, spec: BackboneSpec, part: PartRecord) -> WeightReport:
    """Put the tensors of a file into an encoder of the backbone `spec`, built as `part` says.

    Tensors are matched by name, or where that gives less than half of the parameters, by a weight source
    of the backbone. The head is never touched.

    Raises CheckpointError where the file cannot be read, is of another backbone, holds less than half of
    the encoder's parameters, or a tensor of another shape (naming it and both shapes).
    """
    file = read_weight_file(path)
    expected = encoder.state_dict()
    parameters = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    source, found = _best_map(file, spec=spec, part=part, parameters=parameters, expected=expected)
    refuse_shapes(expected, found.encoder, where=str(path))
    matched = {name: tensor for name, tensor in found.encoder.items() if name in expected}
    encoder.load_state_dict(matched, strict=False)
    _say_differences(found.options, part.options)
    return WeightReport(
        file=file.record,
        source=source,
        fraction=_fraction(matched, parameters),
        matched=tuple(name for name in expected if name in matched),
        random=tuple(n for n in expected if n not in matched and not n.endswith(_COUNTER)),
        unused=(*found.unused, *(name for name in found.encoder if name not in expected)),
    )


def _best_map(
    file: WeightFile,
    *,
    spec: BackboneSpec,
    part: PartRecord,
    parameters: Mapping[str, int],
    expected: Mapping[str, Tensor],
) -> tuple[str, WeightMap]:
    """The first way to read the file that gives at least half of the encoder's parameters."""
    by_names = _map_by_names(file, set(expected), part=part)
    if _fraction(by_names.encoder, parameters) >= _ENOUGH:
        return "names", by_names
    reasons = [f"by name {_fraction(by_names.encoder, parameters):.1%} of the parameters"]
    for source in spec.weight_sources:
        try:
            found = source.read(file.tensors, expected)
        except CheckpointError as failure:
            reasons.append(f"as {source.name}: {failure}")
            continue
        if _fraction(found.encoder, parameters) >= _ENOUGH:
            return source.name, found
        reasons.append(f"as {source.name} {_fraction(found.encoder, parameters):.1%} of the parameters")
    raise CheckpointError(
        f"{file.path} does not hold the weights of a {spec.name} like this one: {'; '.join(reasons)}. "
        f"The encoder has {some(expected)}, the file {some(file.tensors)}"
    )


def _map_by_names(file: WeightFile, expected: set[str], *, part: PartRecord) -> WeightMap:
    """The file's tensors that are called as the encoder's are, after the prefix that gives most of them."""

    def under(prefix: str) -> dict[str, str]:
        names = {n: n.removeprefix(prefix) for n in file.tensors if n.startswith(prefix)}
        return {name: short for name, short in names.items() if short in expected}

    short = max(map(under, _PREFIXES), key=len)
    return WeightMap(
        encoder={short[name]: file.tensors[name] for name in short},
        options=_recorded_options(file, part),
        unused=tuple(name for name in file.tensors if name not in short),
    )


def _recorded_options(file: WeightFile, part: PartRecord) -> dict[str, Any]:
    """Options with which a converted file says its backbone is built; refuses that of another one."""
    if file.made is None:
        return {}
    made = file.made.backbone
    if (made.distribution, made.name) != (part.distribution, part.name):
        raise CheckpointError(f"{file.path} holds weights of the backbone {made.name}, not of {part.name}")
    return made.options


def _fraction(tensors: Iterable[str], parameters: Mapping[str, int]) -> float:
    return sum(parameters.get(name, 0) for name in tensors) / max(sum(parameters.values()), 1)


def _say_differences(made: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """Warn where weights were made by a network that computes something else from the same tensors."""
    differ = [key for key, value in made.items() if key in used and used[key] != value]
    if differ:
        log.warning(
            "the pretrained weights were made with %s; this run has %s",
            ", ".join(f"{key}={made[key]}" for key in differ),
            ", ".join(f"{key}={used[key]}" for key in differ),
        )


def refuse_shapes(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, where: str) -> None:
    """Raise CheckpointError for the first tensor whose shape is not the expected one."""
    for name, tensor in given.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {name} has the shape {tuple(tensor.shape)}, and {tuple(expected[name].shape)} in "
                "this network; build it as the one of the file was (options such as backbone.width, channels)"
            )


def complete(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Given tensors as a whole state dict; counters of batches that old files lack become 0.

    Raises CheckpointError naming what is missing, what has no place, and what has another shape.
    """
    refuse_shapes(expected, given, where=where)
    filled = {
        name: t.clone() for name, t in expected.items() if name.endswith(_COUNTER) and name not in given
    }
    for tensor in filled.values():
        tensor.zero_()
    tensors = {**filled, **given}
    missing = [name for name in expected if name not in tensors]
    strange = [name for name in given if name not in expected]
    if missing or strange:
        said = [f"without {some(missing)}"] if missing else []
        said += [f"with {some(strange)}, which has no place"] if strange else []
        raise CheckpointError(f"{where}: {' and '.join(said)}")
    return {name: tensors[name].to(expected[name].dtype) for name in expected}


def some(names: Iterable[str], *, shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return (", ".join(listed[:shown]) or "none") + more
