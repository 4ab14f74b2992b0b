"""A fold's checkpoints on disk: the latest and the one before it, the best, the final; and its lock."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from oaplug.core.artifacts import remove_unfinished
from oaplug.core.errors import CheckpointError, PlanError
from oaplug.model.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from oaplug.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the checkpoint called "latest", "previous", "best" or "final" lies."""
    return folder / f"checkpoint_{name}.safetensors"


def save(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Write one checkpoint atomically; what was the latest stays as the previous.

    Raises CheckpointError where the disk is full or cannot be written; nothing has changed then.
    """
    path = checkpoint_path(folder, name)
    try:
        if name != "latest":
            save_checkpoint(path, checkpoint)
            return
        next_path = save_checkpoint(checkpoint_path(folder, "next"), checkpoint)
        if path.is_file():
            _keep_as(checkpoint_path(folder, "previous"), path)
        next_path.replace(path)
    except OSError as failure:
        raise CheckpointError(
            f"{path} could not be written ({failure.strerror or failure}); what was saved before is whole: "
            "make room, then continue with --c"
        ) from failure


def _keep_as(kept: Path, path: Path) -> None:
    """Give `path` a second name, atomically, so that there is never a moment without the latest."""
    second = kept.with_name(f".writing-{kept.name}")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # no hard links here: a moment with the previous alone
        path.replace(kept)
        return
    second.replace(kept)
    second.unlink(missing_ok=True)  # two names of one file: renaming to the other did nothing


def clean(folder: Path) -> None:
    """Remove what a killed training left half written; only under the folder's lock."""
    remove_unfinished(folder)
    checkpoint_path(folder, "next").unlink(missing_ok=True)


def load_newest(folder: Path) -> Checkpoint:
    """The latest checkpoint, or the one before where the latest is damaged or missing (said aloud).

    Raises CheckpointError where neither is there and whole.
    """
    latest, previous = (checkpoint_path(folder, name) for name in ("latest", "previous"))
    try:
        return load_checkpoint(latest)
    except CheckpointError as failure:
        if not previous.is_file():
            raise
        try:
            checkpoint = load_checkpoint(previous)
        except CheckpointError as other:
            raise CheckpointError(f"{failure}; and {other}; train anew under --tag NAME") from None
        log.warning("%s; going on from %s", failure, previous.name)
        return checkpoint


def has_state(folder: Path) -> bool:
    """Whether a training was begun here and saved."""
    return any(checkpoint_path(folder, name).is_file() for name in ("latest", "previous"))


@contextmanager
def fold_lock(folder: Path) -> Iterator[None]:
    """Keep others from training in `folder`; the lock ends with this process, however that ends.

    Raises PlanError where somebody else holds it.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise PlanError(
            f"{folder} is being trained by another process; wait for it, or train under --tag NAME"
        ) from None
