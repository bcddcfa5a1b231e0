"""A file from another and what is different in it: stretches replaced, put in or left out.

What no splice names is copied as it is, so it is the same by construction, damaged or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

from vmstream.errors import EncodeError, TruncatedError
from vmstream.ops.pipeline import Progress
from vmstream.stream.events import Event, PageBatch
from vmstream.transport.sink import Copier, Output, OutputFile
from vmstream.transport.source import RandomAccess

_AT_ONCE = 1 << 20
_BY_KERNEL = 64 << 20
_BLOCK = 4096


class Target(Protocol):
    """What a splice that makes its data writes it to."""

    @property
    def offset(self) -> int:
        """In the output, of what is written next."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes; they need not stay."""
        ...

    def skip(self, length: int) -> None:
        """Write so many zeros, which a file need not have."""
        ...

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at a place that was skipped; they need not stay.

        Raises:
            EncodeError: The output is none to seek in, even if there are no bytes.
        """
        ...


@dataclass(frozen=True, slots=True)
class Splice:
    """A stretch of the input, and what stands in its place.

    Attributes:
        begin: Offset in the input, bytes.
        end: Behind the last byte that goes; `begin` for what is put in.
        data: What comes: the bytes, or what writes them when it is their turn.
        what: For people: what it changes.
        size: Bytes that come, if `data` writes them; `None` if that shows only then.
    """

    begin: int
    end: int
    data: bytes | Callable[[Target], None]
    what: str
    size: int | None = None

    @property
    def length(self) -> int:
        """Bytes that come, as far as it is known before."""
        return len(self.data) if isinstance(self.data, bytes) else self.size or 0

    @property
    def delta(self) -> int:
        """By how many bytes the output is longer."""
        return self.length - (self.end - self.begin)


def in_order(splices: Iterable[Splice]) -> list[Splice]:
    """Sort splices by place; what is put in at one place stays in order.

    Raises:
        EncodeError: Two of them overlap.
    """
    found = sorted(splices, key=lambda s: (s.begin, s.end))
    for first, second in pairwise(found):
        if second.begin < first.end:
            raise EncodeError(
                f"two edits of the bytes at {second.begin:#x}: {first.what}; {second.what}"
            )
    return found


class Nowhere:
    """An output of which only the length is wanted."""

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Do nothing."""


class Ahead:
    """Fold and context manager: copies the input into a file while it is walked.

    A thread starts with the first pages outside of mapped-ram, whose holes are to stay holes.

    Args:
        source: The input.
        size: Its length, bytes.
        out: Where it goes. It is the thread's until `stop` returns.
    """

    def __init__(self, source: Copier, size: int, out: OutputFile) -> None:
        self._source, self._size, self._out = source, size, out
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._copied: Future[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def on(self, event: Event) -> None:
        """Start with the first pages."""
        if self._copied is None and isinstance(event, PageBatch):
            self._copied = self._pool.submit(self._copy)

    def stop(self) -> int:
        """Stop; return the bytes that were copied.

        Raises:
            OSError: With the path.
        """
        self._stopped.set()
        return self._copied.result() if self._copied is not None else 0

    def _copy(self) -> int:
        at = 0
        while at < self._size and not self._stopped.is_set():
            done = self._out.take(self._source, at, min(_BY_KERNEL, self._size - at), at)
            if not done:
                break
            at += done
        return at


class _At:
    """A `Target` in an output, whose first `copied` bytes are those of the input so far."""

    def __init__(self, out: Output, offset: int, copied: int) -> None:
        self.offset = offset
        self.copied = copied
        self._out = out

    def write(self, data: bytes | memoryview) -> None:
        self._out.write(self.offset, data)
        self.offset += len(data)

    def skip(self, length: int) -> None:
        if isinstance(self._out, (OutputFile, Nowhere)):
            if isinstance(self._out, OutputFile) and self.offset < self.copied:
                self._out.clear(self.offset, min(length, self.copied - self.offset))
            self.offset += length
            return
        zeros = memoryview(bytes(min(length, _AT_ONCE)))
        for at in range(0, length, _AT_ONCE):
            self.write(zeros[: length - at])

    def put(self, offset: int, data: bytes | memoryview) -> None:
        if not isinstance(self._out, (OutputFile, Nowhere)):
            raise EncodeError(
                "mapped-ram has bitmaps that are written when their pages are: it goes to a file, "
                "and not to standard output or into a compressed stream"
            )
        if len(data):
            self._out.write(offset, data)


def write_spliced(
    source: RandomAccess,
    size: int,
    splices: Iterable[Splice],
    out: Output,
    *,
    at: int = 0,
    sparse: bool = False,
    copied: int = 0,
    progress: Progress | None = None,
) -> tuple[list[tuple[int, int]], int]:
    """Write the input with its splices.

    Args:
        source: The input.
        size: Its length, bytes.
        splices: As `in_order` gives them.
        out: Where it goes.
        at: Offset in the output to begin at.
        sparse: Leave out blocks of zeros, where the output is a file.
        copied: Bytes of the input that are in the output already, at their old place.
        progress: Called with (bytes of the input that are done, those there are).

    Returns:
        Of each splice, its offset in the output and its length; and where the output ends.

    Raises:
        TruncatedError: The input is shorter than it was.
        OSError: With the path.

    Memory:
        A buffer of 1 MiB, and what a splice has that makes its data.
    """
    buffer = memoryview(bytearray(_AT_ONCE))
    to = _At(out, at, copied)
    done, places = 0, []
    for splice in (*splices, Splice(size, size, b"", "")):
        while done < splice.begin:
            done += _copy(source, done, splice.begin - done, to, buffer, sparse=sparse)
            if progress is not None:
                progress(done, size)
        begin = to.offset
        if isinstance(splice.data, bytes):
            to.write(splice.data)
        elif splice.size is not None and isinstance(out, Nowhere):
            to.skip(splice.size)
        else:
            splice.data(to)
        places.append((begin, to.offset - begin))
        done = splice.end
    if isinstance(out, OutputFile):
        out.resize(to.offset)
    return places[:-1], to.offset


# Copy some of a stretch of the input; return how much.
def _copy(
    source: RandomAccess, at: int, length: int, to: _At, buffer: memoryview, *, sparse: bool
) -> int:
    out = to._out
    if isinstance(out, Nowhere):
        to.offset += length
        return length
    if to.offset == at < to.copied:
        done = min(length, to.copied - at)
        to.offset += done
        return done
    # Five times as fast as through a buffer, but it fills holes.
    if not sparse and isinstance(out, OutputFile) and isinstance(source, Copier):
        done = out.take(source, at, min(_BY_KERNEL, length), to.offset)
        if done:
            to.offset += done
            return done
    part = buffer[: min(_AT_ONCE, length)]
    got = source.read_into(at, part)
    if got < len(part):
        raise TruncatedError(at + got, "the input is shorter than it was")
    whole = len(part) // _BLOCK * _BLOCK
    if sparse and whole and isinstance(out, OutputFile):
        out.write_sparse(to.offset, part[:whole], over=to.offset < to.copied)
        to.offset += whole
        part = part[whole:]
    to.write(part)
    return got
