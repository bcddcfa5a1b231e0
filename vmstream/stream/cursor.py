"""The place in the input: windows of bytes, absolute offsets, and asking for more.

Whoever reads does so in a generator: `yield from cursor.have(n, ...)` hands NEED_DATA up to the
caller of the decoder until the bytes are there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Final

from vmstream.errors import TruncatedError
from vmstream.stream.events import Event, Gap


class NeedData:
    """The type of NEED_DATA."""

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = NeedData()

# What a reader yields on its way.
Steps = Generator[Event | NeedData, None, None]


class Cursor:
    """Where decoding stands.

    Attributes:
        offset: Absolute offset of the next byte.
        need: Bytes that the next step takes from there.
        view: The window, borrowed.
        base: Absolute offset of its first byte.
        at_end: The input ends with the window.
        lost: The window ends at bytes that cannot be had; the offset behind them.
    """

    def __init__(self) -> None:
        self.lost: int | None = None
        self.offset = 0
        self.need = 1
        self.view = memoryview(b"")
        self.base = 0
        self.at_end = False

    @property
    def place(self) -> int:
        """Place of the next byte in the window."""
        return self.offset - self.base

    def left(self) -> int:
        """Count the bytes that are there."""
        return len(self.view) - (self.offset - self.base)

    def rest(self) -> memoryview:
        """Bytes that are there; empty at the end of the input."""
        return self.view[self.offset - self.base :]

    def want(self, size: int) -> Generator[NeedData, None, int]:
        """Ask for windows until `size` bytes are there; fewer only where the input ends."""
        while self.left() < size and not self.at_end:
            self.need = size
            yield NEED_DATA
        return self.left()

    def have(self, size: int, context: str) -> Generator[NeedData, None, None]:
        """Ask for windows until `size` bytes are there.

        Raises:
            TruncatedError: The input ends before.
        """
        left = yield from self.want(size)
        if left < size:
            raise self.ends(context, f"{size - left} bytes more")

    def peek(self, offset: int, size: int) -> Generator[NeedData, None, bytes]:
        """Return up to `size` bytes from an offset further on, fewer where the input ends.

        The input must be one that windows can be had of in any order.
        """
        here = self.offset
        self._forget()
        self.offset = self.base = offset
        yield from self.want(size)
        data = bytes(self.rest()[:size])
        self.offset = here
        self._forget()
        # What is lost further on is not lost here.
        self.lost = None
        return data

    # The window may be somewhere else.
    def _forget(self) -> None:
        self.view, self.base, self.at_end = memoryview(b""), self.offset, False

    def skip_lost(self) -> tuple[int, int]:
        """Move behind the bytes that cannot be had; return the range that was left out."""
        begin = self.offset
        self.offset = max(begin, self.lost or 0)
        self.lost = None
        self._forget()
        return begin, self.offset

    def take(self, size: int) -> tuple[int, int]:
        """Move behind the next `size` bytes; return their range, for an event."""
        begin = self.offset
        self.offset += size
        return begin, self.offset

    def ends(self, context: str, expected: str = "") -> TruncatedError:
        """Say that the input ends inside something."""
        end = self.offset + self.left()
        return TruncatedError(end, "the input ends", context=context, expected=expected)


class SansIO(ABC):
    """A decoder without I/O: its caller gives windows (`supply`) and takes events (`next_event`).

    Args:
        cursor: Where decoding stands.
        strict: Raise the first StreamError. Otherwise a fault becomes an `Anomaly` with the
            error, a `Gap` over what could not be read, and decoding goes on behind it.
    """

    def __init__(self, cursor: Cursor, *, strict: bool) -> None:
        self._in = cursor
        self.strict = strict
        self._steps = self._stream()

    @abstractmethod
    def _stream(self) -> Steps:
        """Yield the events, from the first byte to the last."""

    @property
    def offset(self) -> int:
        """Absolute offset of the first byte not yet covered by an event."""
        return self._in.offset

    @property
    def need(self) -> int:
        """Bytes that the next step takes from `offset` on."""
        return self._in.need

    def supply(self, view: memoryview, offset: int, at_end: bool, lost: int | None = None) -> None:
        """Give the window to decode from.

        Args:
            view: The bytes; borrowed until the next call.
            offset: Absolute offset of the first, at most `self.offset`.
            at_end: The input ends with this window.
            lost: It does not, but the bytes from there up to this offset cannot be had, which the
                caller has told already. What can be picked up behind them is.
        """
        self._in.view = view
        self._in.base = offset
        self._in.at_end = at_end
        self._in.lost = lost

    def next_event(self) -> Event | NeedData | None:
        """Return the next event, NEED_DATA, or `None` behind the last event.

        Raises:
            StreamError: The bytes are at fault, and `strict` was asked for.
        """
        return next(self._steps, None)

    # Cover whatever is left with one gap, a window at a time.
    def _drain(self, reason: str) -> Steps:
        begin = self._in.offset
        while (yield from self._in.want(1)):
            self._in.take(self._in.left())
        if self._in.offset > begin:
            yield Gap(begin, self._in.offset, reason)
