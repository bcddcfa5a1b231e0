"""The place in the input: windows of bytes, absolute offsets, and asking for more.

Whoever reads does so in a generator: `yield from cursor.have(n, ...)` hands NEED_DATA up to the
caller of the decoder until the bytes are there.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from vmstream.errors import TruncatedError
from vmstream.stream.events import Event


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
