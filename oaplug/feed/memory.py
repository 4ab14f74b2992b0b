"""Memory that this process may still take."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROL_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Mount below /sys/fs/cgroup, limit, use, and the key of memory.stat that can be freed: versions 2 and 1."""


def available_memory_bytes(*, root: Path = Path("/")) -> float:
    """Memory that can be taken without swapping, within the limits of a container or a cluster's job.

    What Linux says (`root` is where its /proc and /sys are); elsewhere half of what there is, or 2 GiB.
    """
    return min(_of_machine(root), *_left_in_groups(root))


def _of_machine(root: Path) -> float:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2.0 * 2**30


def _left_in_groups(root: Path) -> list[float]:
    """What is left of the limit of each control group above this process; infinite where none is set."""
    left = [float("inf")]
    for mount, limit_file, use_file, freeable in _CONTROL_FILES:
        for folder in _groups(root, mount):
            try:
                limit = float((folder / limit_file).read_text(encoding="ascii"))  # "max": no limit
                used = float((folder / use_file).read_text(encoding="ascii"))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left.append(max(limit - used + float(stat[freeable]), 0.0))
            except (OSError, KeyError, ValueError):
                continue
    return left


def _groups(root: Path, mount: str) -> Iterator[Path]:
    """The folders of this process's control group and those around it, the mount itself last."""
    base = root / "sys/fs/cgroup" / mount
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if mount in controllers.split(","):
            inner = PurePosixPath(path.lstrip("/"))
            yield from (base / part for part in (inner, *inner.parents))
