"""Building encoders and networks by name, for commands and notebooks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oaplug.core.errors import PluginError
from oaplug.core.settings import to_mapping
from oaplug.core.target import Target, derived_targets, finest_target
from oaplug.plug.registry import parse_options, registry
from oaplug.plug.specs import BackboneSpec, HeadSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from oaplug.model.network import Network
    from oaplug.plug.protocols import Encoder, HeadStrategy

Size = tuple[int, int, int]


def list_backbones() -> list[str]:
    """Names of the backbones that are installed."""
    return [part.spec.name for part in registry().of_kind("backbone")]


def list_heads() -> list[str]:
    """Names of the head strategies that are installed."""
    return [part.spec.name for part in registry().of_kind("head")]


def create_encoder(name: str, *, in_channels: int = 1, input_size: Size, **options: Any) -> Encoder:
    """An encoder (B,C,D,H,W) -> (B,F) with random weights.

    Args:
        name: a backbone of `list_backbones()`.
        in_channels: C.
        input_size: D, H, W in voxels.
        options: options of the backbone; unknown ones are refused.

    Raises:
        PluginError: for an unknown backbone or option, or a size that is not the multiple it asks for.
    """
    return build_encoder(
        registry().spec(BackboneSpec, name), options, in_channels=in_channels, input_size=input_size
    )


def build_encoder(
    spec: BackboneSpec, options: Mapping[str, Any], *, in_channels: int, input_size: Size
) -> Encoder:
    """Build a backbone's encoder after checking the input size against its size_multiple."""
    parsed = parse_options(spec, options)
    multiple = spec.size_multiple(parsed)
    if any(size % step for size, step in zip(input_size, multiple, strict=True)):
        raise PluginError(
            f"backbone {spec.name} needs sizes that are multiples of {multiple}, got {tuple(input_size)}; "
            f"run oaplug_plan_experiment -b {spec.name}"
        )
    return spec.build(parsed, in_channels=in_channels, input_size=tuple(input_size))


def targets_of_head(
    spec: HeadSpec, targets: Mapping[str, Target], *, target: str | None = None
) -> dict[str, Target]:
    """The targets a head is given: the chosen one (default the finest) and those derived from it.

    Raises PluginError where the head does not take them or the target does not exist.
    """
    if target is not None and target not in targets:
        raise PluginError(f"no target {target!r} in dataset.json; known: {', '.join(targets) or 'none'}")
    if target is not None and not spec.single_target:
        raise PluginError(f"head {spec.name} answers the whole hierarchy and takes no --target")
    chosen = targets[target] if target is not None else finest_target(targets)
    given = {chosen.name: chosen} | {t.name: t for t in derived_targets(targets, chosen.name)}
    if (reason := spec.accepts(given)) is not None:
        raise PluginError(f"head {spec.name} does not suit this dataset: {reason}")
    return given


def build_head(
    spec: HeadSpec,
    options: Mapping[str, Any],
    *,
    num_features: int,
    targets: Mapping[str, Target],
    grade_counts: Mapping[str, Sequence[int]],
) -> HeadStrategy:
    """Build a head for targets it accepts."""
    parsed = parse_options(spec, options)
    return spec.build(parsed, num_features=num_features, targets=targets, grade_counts=grade_counts)


def create_network(
    backbone: str,
    head: str,
    *,
    targets: Mapping[str, Any],
    input_size: Size,
    in_channels: int = 1,
    target: str | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    weights: Path | str | None = None,
) -> Network:
    """A network: encoder + head strategy, with random weights or those of a checkpoint.

    Args:
        backbone: a name of `list_backbones()`.
        head: a name of `list_heads()`.
        targets: as in dataset.json, e.g. {"kl": {"kind": "ordinal", "grades": [0, 1, 2, 3, 4]}}.
        input_size: D, H, W in voxels.
        in_channels: C.
        target: which target, for heads of one (default the finest).
        backbone_options: options of the backbone.
        head_options: options of the head.
        weights: a checkpoint of these parts. One that `convert_weights` wrote knows their options, which
            are taken where none are given; one of an encoder alone leaves the head random.

    Raises:
        PluginError: for unknown parts or options, or a head that does not suit the targets.
        CheckpointError: for a checkpoint of other parts, or one that does not fit.
    """
    from pathlib import Path

    from oaplug.core.target import targets_from_json, targets_to_json
    from oaplug.model.conversion import load_weights, open_weights
    from oaplug.model.network import Network

    opened = None if weights is None else open_weights(Path(weights))
    if opened is not None:
        backbone_options = opened.options("backbone", backbone) | dict(backbone_options or {})
        head_options = opened.options("head", head) | dict(head_options or {})
    known = {n: targets_to_json({n: t})[n] if isinstance(t, Target) else t for n, t in targets.items()}
    head_spec = registry().spec(HeadSpec, head)
    given = targets_of_head(head_spec, targets_from_json(known, where="targets"), target=target)
    encoder = create_encoder(
        backbone, in_channels=in_channels, input_size=input_size, **dict(backbone_options or {})
    )
    strategy = build_head(
        head_spec,
        to_mapping(dict(head_options or {})),
        num_features=encoder.num_features,
        targets=given,
        grade_counts={},
    )
    network = Network(encoder, strategy)
    if opened is not None:
        load_weights(network, opened)
    return network
