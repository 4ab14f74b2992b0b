"""A fold's checkpoints on disk: the latest with the one before it, the best, the final; and its lock."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from oaplug.core.errors import CheckpointError, PlanError
from oaplug.model.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oaplug.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the checkpoint called "latest", "previous", "best" or "final" lies."""
    return folder / f"checkpoint_{name}.safetensors"


def save(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Write one checkpoint atomically; what was the latest stays as the previous.

    Raises CheckpointError where the disk is full or cannot be written; the old file is then untouched.
    """
    path = checkpoint_path(folder, name)
    try:
        if name == "latest" and path.is_file():
            _keep_as(checkpoint_path(folder, "previous"), path)
        save_checkpoint(path, checkpoint)
    except OSError as failure:
        raise CheckpointError(
            f"{path} could not be written ({failure.strerror or failure}); the one before it is whole: "
            "make room, then continue with --c"
        ) from failure


def _keep_as(kept: Path, path: Path) -> None:
    """Give `path` a second name, atomically, so that there is never a moment without a whole file."""
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".writing-"))
    try:
        os.link(path, temporary / kept.name)
        (temporary / kept.name).replace(kept)
    except OSError:  # no hard links here: a moment with the previous alone
        path.replace(kept)
    finally:
        (temporary / kept.name).unlink(
            missing_ok=True
        )  # renaming to another name of the same file does nothing
        temporary.rmdir()


def load_newest(folder: Path) -> Checkpoint:
    """The latest checkpoint, or the one before where the latest is damaged or missing (said aloud).

    Raises CheckpointError where neither is there or whole.
    """
    latest, previous = (checkpoint_path(folder, name) for name in ("latest", "previous"))
    try:
        return load_checkpoint(latest)
    except CheckpointError as failure:
        if not previous.is_file():
            raise
        checkpoint = load_checkpoint(previous)
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
