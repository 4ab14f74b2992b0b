"""Starting a fold from weights of elsewhere: recorded in the run, reported in the fold's folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from oaplug.core.artifacts import write_json
from oaplug.core.settings import to_mapping
from oaplug.model.parts import find_recorded
from oaplug.model.run_folder import read_run
from oaplug.model.weight_files import record_file
from oaplug.model.weights import start_encoder

if TYPE_CHECKING:
    from pathlib import Path

    from oaplug.model.network import Network
    from oaplug.model.run_folder import RunDescription
    from oaplug.plug.registry import Registry
    from oaplug.plug.specs import BackboneSpec

log = logging.getLogger(__name__)


def with_weights(
    run: RunDescription, folder: Path, *, weights: Path | None, is_trained: bool
) -> RunDescription:
    """The run with the file that its encoder starts from, by name and SHA-256.

    Where the fold is trained already (it is resumed, or only validated), the file is not used again: what
    the run's folder says stays.

    Raises CheckpointError where there is no such file.
    """
    if is_trained and (folder / "plans.json").is_file():
        record = read_run(folder).choices.pretrained_weights
        if weights is not None:
            log.info("%s is not read: the fold is there, with weights of its own", weights.name)
    else:
        record = None if weights is None else record_file(weights)
    return replace(run, choices=replace(run.choices, pretrained_weights=record))


def start_from_weights(
    network: Network, path: Path, *, run: RunDescription, registry: Registry, folder: Path | None
) -> None:
    """Put a file's tensors into the encoder; the names go into pretrained_weights.json of `folder`.

    Every process of a distributed training calls this, and one of them with a folder.
    """
    part = run.choices.backbone
    spec = cast("BackboneSpec", find_recorded(registry, "backbone", part).spec)
    report = start_encoder(network.encoder, path, spec=spec, part=part)
    if folder is not None:
        log.info("%s (names in pretrained_weights.json)", report)
        write_json(folder / "pretrained_weights.json", {"schema": 1, **to_mapping(report)})
