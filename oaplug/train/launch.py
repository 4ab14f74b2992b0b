"""Starting one process per GPU on this machine (`-num_gpus N`); torchrun and srun do so from outside."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from oaplug.train.stopping import SIGNALS, Interrupted, LostProcess, signals_to_catch

if TYPE_CHECKING:
    from collections.abc import Sequence

    Children = Sequence[subprocess.Popen[bytes]]

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_SAVE, _SECONDS_TO_FAIL = 120.0, 5.0


def launch(arguments: Sequence[str], *, processes: int) -> int:
    """Run `python -m oaplug ARGUMENTS` in several processes that train together; gives the exit status.

    When one fails the others are ended and its status is given. Signals that stop a training are passed on.
    """
    children: list[subprocess.Popen[bytes]] = []
    before = _pass_on_signals(children)
    port = _free_port()
    try:
        children += [_start(arguments, rank=rank, size=processes, port=port) for rank in range(processes)]
        _wait(children)
    finally:
        ended = _end(children)
        for number, handler in before.items():
            signal.signal(number, handler)
    for rank, child in enumerate(children):
        if child.returncode < 0 and child not in ended:
            name = signal.Signals(-child.returncode).name
            log.error("process %d of %d was ended by %s from outside", rank, processes, name)
    return _exit_status([child.returncode for child in children if child not in ended])


def _start(arguments: Sequence[str], *, rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    """One process, in a session of its own: Ctrl-C in a terminal reaches it through this process alone."""
    threads = max((os.cpu_count() or 1) // size, 1)
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "oaplug", *arguments],
        env={"OMP_NUM_THREADS": str(threads), **os.environ, **variables},
        start_new_session=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pass_on_signals(children: Children) -> dict[int, Any]:
    def pass_on(number: int, _frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    return {number: signal.signal(number, pass_on) for number in signals_to_catch((*SIGNALS, "SIGHUP"))}


def _wait(children: Children) -> None:
    """Wait until all have ended well, or one has not."""
    while any(child.poll() is None for child in children):
        if any(child.returncode for child in children):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end(children: Children) -> list[subprocess.Popen[bytes]]:
    """End those that wait for one that is gone, with more time where all are saving; gives those killed."""
    is_saving = any(child.poll() == Interrupted.exit_status for child in children)
    deadline = time.monotonic() + (_SECONDS_TO_SAVE if is_saving else _SECONDS_TO_FAIL)
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    waiting = [child for child in children if child.poll() is None]
    for child in waiting:
        child.kill()
        child.wait()
    return waiting


def _exit_status(statuses: Sequence[int]) -> int:
    """The status of the one that failed by itself; a signal's number is told as shells tell it."""
    failed = [128 - status if status < 0 else status for status in statuses if status]
    causes = [status for status in failed if status != LostProcess.exit_status]
    return next(iter([*causes, *failed]), 0)
