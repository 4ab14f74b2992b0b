"""Errors a user can cause: each becomes one clear line and exit status 2."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class OaplugError(Exception):
    """Something the user can put right; the message says what, where, and how."""

    exit_status = 2


class PathError(OaplugError):
    """A folder, file or environment variable is missing or cannot be used."""


class DatasetError(OaplugError):
    """A raw dataset folder breaks the format."""


class PlanError(OaplugError):
    """A plan, or an override of it, cannot be used."""


class PluginError(OaplugError):
    """A part is unknown, ambiguous, or its plugin is broken."""


class CheckpointError(OaplugError):
    """A checkpoint or model folder cannot be read or does not fit."""


class PredictionError(OaplugError):
    """A prediction table is malformed, or tables do not belong together."""


class LeakError(OaplugError):
    """Cases a model was trained on were about to be used to test it."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint `; did you mean 'x'?` for a misspelt name, else the choices."""
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known) if known else 'none'}"
