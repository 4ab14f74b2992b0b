"""Starting one process per GPU on this machine (`-num_gpus N`); torchrun and srun do so from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_LEAVE = 30.0


def launch(arguments: Sequence[str], *, processes: int) -> int:
    """Run `python -m oaplug ARGUMENTS` in several processes that train together; gives the exit status.

    When one fails the others are ended and its status is given. SIGTERM, SIGINT and SIGUSR2 are passed on.
    """
    port = _free_port()
    children = [_start(arguments, rank=rank, size=processes, port=port) for rank in range(processes)]
    before = _pass_on_signals(children)
    try:
        return _wait(children)
    finally:
        _end(children)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(arguments: Sequence[str], *, rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen([sys.executable, "-m", "oaplug", *arguments], env=os.environ | variables)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pass_on_signals(children: Sequence[subprocess.Popen[bytes]]) -> dict[int, Any]:
    def pass_on(number: int, _frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    names = [name for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name)]
    return {getattr(signal, name): signal.signal(getattr(signal, name), pass_on) for name in names}


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended well, or one has failed."""
    while True:
        states = [child.poll() for child in children]
        if failed := [state for state in states if state not in (None, 0)]:
            return int(failed[0] or 1) if (failed[0] or 0) > 0 else 1
        if all(state == 0 for state in states):
            return 0
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run: a process that waits for one that is gone never comes back."""
    deadline = time.monotonic() + (_SECONDS_TO_LEAVE if all(c.poll() != 1 for c in children) else 2.0)
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()
