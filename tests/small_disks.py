"""File systems that are soon full."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(folder, *, kib):
    """A file system of so many KiB at `folder`; skips where this user may make none."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only the administrator can mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
