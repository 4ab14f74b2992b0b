"""What a plugin may not change in this process while it is imported: it is put back, and noted."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from types import TracebackType

KEPT_CHARACTERS = 20_000


class _Tap:
    """Stands in for a standard stream: keeps what is written, and passes it on once it is opened.

    A logging handler made while it stands in goes on to work afterwards.
    """

    def __init__(self, stream: TextIO, kept: list[str]) -> None:
        self._stream = stream
        self._kept = kept
        self.is_open = False

    def write(self, text: str) -> int:
        if self.is_open:
            return self._stream.write(text)
        self._kept.append(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Surroundings:
    """Within it standard streams and warnings are kept, and on leaving it these are as they were:

    the streams, the working directory, the warnings filters, the handlers of SIGINT and SIGTERM, and the
    level and handlers of the root logger. Environment variables and sys.path stay as the plugin left them,
    because what it imports later may need them; `notes` tells of everything that was changed.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._kept: list[str] = []
        self._taps: dict[str, _Tap] = {}
        self._streams: dict[str, TextIO] = {}

    @property
    def output(self) -> str:
        """What was printed and warned of."""
        return "".join(self._kept)[:KEPT_CHARACTERS]

    def __enter__(self) -> Surroundings:
        self._folder = _working_directory()
        self._environment, self._path = dict(os.environ), list(sys.path)
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._logging = (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)
        self._warnings = warnings.catch_warnings(record=True)
        self._warned = self._warnings.__enter__()
        warnings.simplefilter("default")
        for name in ("stdout", "stderr"):
            if (stream := getattr(sys, name)) is not None:
                self._streams[name] = stream
                self._taps[name] = _Tap(stream, self._kept)
                setattr(sys, name, self._taps[name])
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _failure: BaseException | None, _where: TracebackType | None
    ) -> None:
        for name, stream in self._streams.items():
            self._taps[name].is_open = True
            setattr(sys, name, stream)
        self._warnings.__exit__(None, None, None)
        self._kept += [f"{w.category.__name__}: {w.message}\n" for w in self._warned]
        self._put_back_folder()
        self._put_back_handlers()
        self._put_back_logging()
        changed = {key for key, _ in self._environment.items() ^ dict(os.environ).items()}
        if changed:
            self.notes.append(f"changed the environment variables {', '.join(sorted(changed))}")
        if sys.path != self._path:
            self.notes.append("changed sys.path")

    def _put_back_folder(self) -> None:
        if self._folder is not None and _working_directory() != self._folder:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)
            self.notes.append("changed the working directory (put back)")

    def _put_back_handlers(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
                self.notes.append(f"changed the handler of {signal.Signals(number).name} (put back)")

    def _put_back_logging(self) -> None:
        level, handlers, disabled = self._logging
        root = logging.root
        if (root.level, root.handlers, root.manager.disable) != self._logging:
            root.setLevel(level)
            root.handlers[:] = handlers
            logging.disable(disabled)
            self.notes.append("set up logging for the whole process (put back)")


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
