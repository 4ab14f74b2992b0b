"""What discovery finds: plugins, one per entry point, and the parts they offer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from oaplug.plug.specs import Spec

Status = Literal["ok", "broken", "disabled", "not allowed"]
OURS = "oaplug"
"""The distribution whose parts are always there."""


def normal_name(distribution: str) -> str:
    """A distribution's name as installers compare it: `My.Plugin_x` is `my-plugin-x`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A spec and the distribution it came from."""

    spec: Spec
    distribution: str
    version: str

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which is never ambiguous."""
        return f"{self.distribution}:{self.spec.name}"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """An entry point with the parts it offers, or with why it offers none.

    `reason` (one line) and `traceback` say why it is broken; `output` is what it printed and warned of
    while it was imported, and `notes` say what it changed in this process.
    """

    distribution: str
    version: str
    entry_point: str
    status: Status
    parts: tuple[Part, ...] = ()
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    output: str = ""
    notes: tuple[str, ...] = ()
