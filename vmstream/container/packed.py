"""Compressed data as a source: read in order, unpacked into one reused buffer.

A codec is a generator over a `PackedInput`: it yields unpacked bytes, a bounded number at a time,
and returns only behind the end mark of the last member. Where the packed data is cut or damaged
it raises; what it yielded before is read first, and only then the error is raised from `window`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from vmstream.container.layers import Container, Finding, ShiftedSource
from vmstream.errors import FormatError, LimitError, StreamError, TruncatedError
from vmstream.transport.source import DigestSource, FileSource, PipeSource, Source, Window

# Packed bytes that a codec takes at a time, and those it gives at a time at the most.
SLICE = 128 << 10
MOST = 4 << 20


class PackedInput:
    """A place in packed data.

    Attributes:
        offset: Of the next byte, absolute in the bytes of the layer.
        kind: What the data is, for messages.
        unmarked: Set by a format without an end mark, where it ends with the input: what its last
            bytes tell of whether they are the last.
    """

    def __init__(self, source: Source, kind: str, start: int = 0) -> None:
        self.offset = start
        self.kind = kind
        self.unmarked = ""
        self._source = source
        self._view = memoryview(b"")
        self._base = start
        self._at_end = False

    def peek(self, size: int) -> memoryview:
        """Return the next bytes: `size` of them, fewer only where the input ends."""
        left = len(self._view) - (self.offset - self._base)
        if left < size and not self._at_end:
            self._view, self._base, self._at_end = self._source.window(self.offset, size)
        at = self.offset - self._base
        return self._view[at : at + size]

    def some(self) -> memoryview:
        """Return the next bytes, at most SLICE; none at the end of the input."""
        self.peek(1)
        at = self.offset - self._base
        return self._view[at : at + SLICE]

    def have(self, size: int) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            TruncatedError: The input ends before.
        """
        view = self.peek(size)
        if len(view) < size:
            raise self.ends()
        return view

    def skip(self, size: int) -> None:
        """Move behind the next `size` bytes. Raises TruncatedError if there are fewer."""
        while size:
            view = self.some()
            if not view:
                raise self.ends()
            self.offset += min(size, len(view))
            size -= min(size, len(view))

    def drain(self) -> None:
        """Read the input up to its end."""
        while view := self.some():
            self.offset += len(view)

    def skip_zeros(self) -> bool:
        """Move behind zeros; tell whether anything follows."""
        while view := self.some():
            data = bytes(view)
            rest = data.lstrip(b"\0")
            self.offset += len(data) - len(rest)
            if rest:
                return True
        return False

    def ends(self) -> TruncatedError:
        """Say that the input ends inside the packed data."""
        end = self._base + len(self._view)
        return TruncatedError(
            end, f"the {self.kind} data ends before its end mark", context=f"{self.kind} layer"
        )

    def damaged(self, what: str, error: type[StreamError] = FormatError) -> StreamError:
        """Say that the packed data here is damaged."""
        return error(self.offset, f"{self.kind} data: {what}", context=f"{self.kind} layer")


Codec = Callable[[PackedInput], Iterator[bytes]]


class _Unpacked(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self.fault: StreamError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._chunk:
            try:
                self._chunk = memoryview(next(self._chunks))
            except StopIteration:
                return 0
            except StreamError as error:
                # Behind it in packed data is no place in what that unpacks to.
                error.behind = None
                self.fault = error
                return 0
        size = min(len(buffer), len(self._chunk))
        buffer[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size


class UnpackedSource:
    """What is in compressed data, as a source that is read in order.

    Args:
        source: The compressed data.
        kind: Its name.
        codec: What unpacks it: all members, with the end mark of the last.
        more: Whether the first bytes behind a member are those of another.
        container: Takes what is odd behind the last member.
    """

    seekable = False
    origin = 0

    def __init__(
        self,
        source: Source,
        kind: str,
        codec: Codec,
        more: Callable[[memoryview], bool],
        container: Container,
    ) -> None:
        self.name = source.name
        self.identity = source.identity
        self._inner = source
        # Offsets in messages are those in the layer with the header.
        if isinstance(source, ShiftedSource):
            self._input = PackedInput(source.inner, kind, source.start)
        else:
            self._input = PackedInput(source, kind)
        if container.packed is None:
            start, size = self._input.offset, _size_of_file(container, source)
            container.packed = lambda: min(self._input.offset - start, size)
        self._stream = _Unpacked(_members(self._input, codec, more, container))
        self._pipe = PipeSource(self._stream, self.name)
        self._told = False

    @property
    def size(self) -> int | None:
        """Bytes unpacked, `None` while it is not known."""
        return self._pipe.size

    def window(self, offset: int, need: int) -> Window:
        """Unpack from `offset` on.

        Raises:
            StreamError: Once, where the packed data is cut or damaged and bytes behind that are
                asked for. Asked again, the window has what there is, as the end of the input.
        """
        view, base, at_end = self._pipe.window(offset, need)
        if not at_end or self._stream.fault is None:
            return view, base, at_end
        if len(view) - (offset - base) >= need:
            return view, base, False
        if not self._told:
            self._told = True
            raise self._stream.fault
        # A bare stream is read to its end behind a fault too; sizes and sums are of all of it.
        # But a bomb has no end that anyone lives to see.
        if not isinstance(self._stream.fault, LimitError):
            self._input.drain()
        return view, base, True

    def close(self) -> None:
        """Close the inner source."""
        self._inner.close()


# What an image on the way could make more of; no bound where the input is a pipe.
def _size_of_file(container: Container, source: Source) -> int:
    outermost = container.layers[0].source if container.layers else source
    if isinstance(outermost, DigestSource):
        outermost = outermost.inner
    if isinstance(outermost, FileSource):
        return outermost.stored
    return sys.maxsize


# Every member, and what stands behind the last: zeros are the padding of a block device.
def _members(
    data: PackedInput, codec: Codec, more: Callable[[memoryview], bool], container: Container
) -> Iterator[bytes]:
    given = 0
    packed = container.packed or (lambda: data.offset)
    while True:
        data.unmarked = ""
        for piece in codec(data):
            given += len(piece)
            container.check_expansion(given, packed(), data.offset, f"{data.kind} layer")
            yield piece
        if not data.skip_zeros():
            _note_unmarked(data, container)
            return
        if not more(data.peek(16)):
            break
    _note_unmarked(data, container)
    begin = data.offset
    data.drain()
    container.note(
        Finding(
            "warning",
            "trailing",
            begin,
            f"offset {begin:#x}, {data.kind} layer: {data.offset - begin} bytes behind the end of "
            f"the {data.kind} data",
        )
    )


def _note_unmarked(data: PackedInput, container: Container) -> None:
    if data.unmarked:
        container.note(
            Finding(
                "info",
                "no-end-mark",
                data.offset,
                f"offset {data.offset:#x}, {data.kind} layer: the format has no end mark, so a "
                f"file that was cut between two blocks looks whole; {data.unmarked}",
            )
        )
