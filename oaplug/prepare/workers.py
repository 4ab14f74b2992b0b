"""Worker processes that take one item at a time, so that it is known at which item one of them died."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import OaplugError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from multiprocessing.connection import Connection

_MOST_FAILED_STARTS = 5
_GRACE_S = 5.0


def spread(
    answer: Callable[[Any], Any], items: Iterable[Any], *, processes: int, begin: Callable[[], None]
) -> Generator[tuple[Any, Any], None, None]:
    """Every item with its answer (never None), as they come; None where the process died that had it.

    `answer` must pickle and should not raise, which would end its process; `begin` is called once in each.
    A process ends at once when this one is killed. Raises OaplugError where none gets to work.
    """
    waiting, crew = deque(items), _Crew(answer, begin)
    try:
        while waiting or crew.workers:
            while waiting and len(crew.workers) < processes:
                crew.hire(waiting.popleft())
            for worker in crew.listen():
                if worker.is_lost_at_start:
                    waiting.appendleft(worker.item)
                    continue
                yield worker.item, worker.answer
                if waiting and not worker.is_gone:
                    worker.give(waiting.popleft())
                elif not worker.is_gone:
                    crew.let_go(worker)
    finally:
        crew.dismiss()


class _Worker:
    """A process that works on one item at a time, as the process that started it sees it."""

    def __init__(self, answer: Callable[[Any], Any], begin: Callable[[], None], item: Any) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, answer, begin), daemon=True)
        self.process.start()
        theirs.close()
        self.is_ready = self.is_gone = False
        self.give(item)

    @property
    def is_lost_at_start(self) -> bool:
        return self.is_gone and not self.is_ready

    def give(self, item: Any) -> None:
        self.item = item
        self.answer: Any = None
        with suppress(OSError):  # of a process that died meanwhile: its connection will tell
            self.connection.send(item)

    def hear(self) -> bool:
        """Take what has come; whether the item is settled: answered, or its process gone."""
        try:
            self.is_gone = not self.connection.poll()
            message = [] if self.is_gone else self.connection.recv()
        except (EOFError, OSError):
            self.is_gone, message = True, []
        self.is_ready = self.is_ready or not self.is_gone
        self.answer = message[0] if message else None
        return self.is_gone or bool(message)

    def end(self, grace_s: float = _GRACE_S) -> None:
        """Wait for the end of the process, which comes once no item is left; kill it where that is late."""
        self.connection.close()
        self.process.join(max(grace_s, 0))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Crew:
    """The worker processes there are; those that died have left it."""

    def __init__(self, answer: Callable[[Any], Any], begin: Callable[[], None]) -> None:
        self._answer, self._begin = answer, begin
        self._failed_starts = 0
        self.workers: list[_Worker] = []

    def hire(self, item: Any) -> None:
        self.workers.append(_Worker(self._answer, self._begin, item))

    def listen(self) -> list[_Worker]:
        """Wait until something comes; the workers whose items are settled."""
        signs = {sign: w for w in self.workers for sign in (w.connection, w.process.sentinel)}
        speaking = {signs[sign] for sign in wait(list(signs))}  # type: ignore[index]
        settled = [worker for worker in self.workers if worker in speaking and worker.hear()]
        for worker in [worker for worker in settled if worker.is_gone]:
            self.let_go(worker)
        self._count_failed_starts(settled)
        return settled

    def _count_failed_starts(self, settled: Iterable[_Worker]) -> None:
        for worker in settled:
            self._failed_starts = self._failed_starts + 1 if worker.is_lost_at_start else 0
        if self._failed_starts >= _MOST_FAILED_STARTS:
            raise OaplugError(f"{_MOST_FAILED_STARTS} processes ended before they began to work; use -np 1")

    def let_go(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.end()

    def dismiss(self) -> None:
        """End all: each finishes the item it is at, where that does not take long."""
        until = time.monotonic() + _GRACE_S
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            worker.end(until - time.monotonic())
        self.workers.clear()


def _serve(connection: Connection, answer: Callable[[Any], Any], begin: Callable[[], None]) -> None:
    """Be a worker process: say so, then answer items until the other end is closed.

    One that has no memory left ends as if it had been killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    begin()
    with suppress(EOFError, OSError, MemoryError):
        connection.send([])
        while True:
            connection.send([answer(connection.recv())])


def _end_with_parent() -> None:
    """End this process at once when the one that started it is killed; files are whole at any moment."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
