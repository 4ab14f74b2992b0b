"""What all commands share: errors in one line, progress, the arguments that recur."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from oaplug.core.errors import OaplugError
from oaplug.core.paths import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USER_ERROR = 2
_SECONDS_BETWEEN_LINES = 10.0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit status 2, and that takes no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to look."""
        self.exit(USER_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None,
) -> int:
    """Parse, work, and turn what a user can put right into one line and exit status 2."""
    parsed = parser.parse_args(arguments)
    _set_up_messages()
    try:
        return work(parsed) or 0
    except OaplugError as failure:
        print(f"{parser.prog}: {failure}", file=sys.stderr)
        return failure.exit_status
    except OSError as failure:
        place = f"{failure.filename}: " if failure.filename else ""
        print(f"{parser.prog}: {place}{failure.strerror or failure}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _set_up_messages() -> None:
    """Log lines of oaplug on standard output, warnings as one line on standard error."""
    logger = logging.getLogger("oaplug")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _PrintHandler) for handler in logger.handlers):
        logger.addHandler(_PrintHandler())
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"


class _PrintHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


class Progress:
    """Progress of long work: a bar on a terminal, a plain line now and then in a log."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._task: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` are done, the last being `what`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{self._title}: {what}")
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f"{self._title}: {done} of {total} ({what})", flush=True)


def add_places(parser: argparse.ArgumentParser, *kinds: str) -> None:
    """Options --raw, --preprocessed, --results, which win over the environment."""
    for kind in kinds:
        parser.add_argument(
            f"--{kind}",
            type=Path,
            metavar="FOLDER",
            help=f"instead of the environment variable oaplug_{kind}",
        )


def places(arguments: argparse.Namespace) -> Places:
    """The roots that were given, or the environment's."""
    return Places(
        raw_override=getattr(arguments, "raw", None),
        preprocessed_override=getattr(arguments, "preprocessed", None),
        results_override=getattr(arguments, "results", None),
    )


def triple(kind: Callable[[str], Any]) -> dict[str, Any]:
    """Settings of an option that takes three numbers, for D, H and W."""
    return {"nargs": 3, "type": kind, "metavar": ("D", "H", "W")}


def default_processes() -> int:
    """As many processes as this machine lets us use, at most 8."""
    import os

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)
