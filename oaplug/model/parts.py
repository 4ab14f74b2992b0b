"""Which part of which distribution a network is made of: recorded when built, checked when loaded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import CheckpointError, PluginError
from oaplug.core.settings import to_mapping
from oaplug.plug.registry import Registry, parse_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oaplug.plug.registry import Part


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A part as it is written into plans and checkpoints."""

    name: str
    distribution: str
    version: str
    revision: int
    options: dict[str, Any] = field(default_factory=dict)


def record_part(part: Part, options: Mapping[str, Any] | None) -> PartRecord:
    """The record of a part with its options resolved; raises PluginError for options it does not have."""
    return PartRecord(
        name=part.spec.name,
        distribution=part.distribution,
        version=part.version,
        revision=part.spec.revision,
        options=to_mapping(parse_options(part.spec, options)),
    )


def find_recorded(registry: Registry, kind: str, record: PartRecord) -> Part:
    """The installed part a record names.

    Raises CheckpointError where it is not installed (saying what to install) or has another revision;
    warns where the distribution's version differs.
    """
    wanted = f"{kind} {record.name!r} of {record.distribution} {record.version}"
    try:
        part = registry.get(kind, f"{record.distribution}:{record.name}")
    except PluginError as failure:
        install = f"pip install {record.distribution}=={record.version}"
        raise CheckpointError(f"this model needs the {wanted}; {install} ({failure})") from None
    if part.spec.revision != record.revision:
        raise CheckpointError(
            f"this model was made with revision {record.revision} of the {wanted}; installed is revision "
            f"{part.spec.revision} ({part.version}); pip install {record.distribution}=={record.version}"
        )
    if part.version != record.version:
        warnings.warn(f"made with {wanted}, installed is {part.version}", stacklevel=2)
    return part
