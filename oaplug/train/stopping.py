"""Reasons to stop early: a signal from outside, or a validation that no longer improves."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from oaplug.core.errors import OaplugError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR2")


class Interrupted(OaplugError):
    """A signal ended the training after its state was saved; it can be continued.

    Its exit status is that of "try again later" (EX_TEMPFAIL), so that a script can tell it from an error.
    """

    exit_status = 75


class LostProcess(OaplugError):
    """Another process of the training has ended, so that this one cannot go on."""

    exit_status = 1


class StopRequest:
    """Whether a signal has asked the training to stop, and which."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


def signals_to_catch(names: Sequence[str]) -> list[signal.Signals]:
    """Those signals that this system has and this process does not ignore."""
    numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, SIGTERM, SIGINT and SIGUSR2 raise a request instead of ending the process.

    A second SIGINT interrupts at once. Signals that are ignored (those of a job in the background) stay so.
    In a thread that is not the main one nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: Any) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in signals_to_catch(SIGNALS)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def epochs_since_best(records: Sequence[Mapping[str, Any]], metric: str) -> int:
    """How many epochs the best value of `metric` lies back; 0 where there is none yet."""
    values = [(r[metric], -index) for index, r in enumerate(records) if r.get(metric) is not None]
    if not values:
        return 0
    _, best = max(values)
    return len(records) - 1 + best
