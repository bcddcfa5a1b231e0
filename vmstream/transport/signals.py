"""Signals that wait until what was begun has been put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Deferred:
    """Notes SIGINT, SIGTERM and SIGHUP, and ends the process by them when left; a context manager.

    An exception out of nowhere, which is what a signal is by default, could come in the middle of
    a command to QEMU. Outside the main thread, where Python delivers none, it does nothing.

    Args:
        stop: Called when one comes, to end what is waited for; it may not wait itself.

    Attributes:
        number: The first one that came, 0 before.
    """

    def __init__(self, stop: Callable[[], None] | None = None) -> None:
        self.number = 0
        self.stop = stop
        self._before: dict[signal.Signals, signal.Handlers | Callable[..., object] | int | None]
        self._before = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                # Who is started by nohup stays deaf to SIGHUP.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            raise SystemExit(128 + self.number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        if self.stop is not None:
            self.stop()


def ignore_ending() -> None:
    """Ignore what `Deferred` defers."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def end_within(seconds: int) -> None:
    """Have the system end this process after that time, whatever it waits for."""
    signal.alarm(seconds)
