"""A file from another and what is different in it: stretches replaced, put in or left out.

What no splice names is copied as it is, so it is the same by construction, damaged or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from vmstream.errors import EncodeError, TruncatedError
from vmstream.ops.pipeline import Progress
from vmstream.transport.sink import Copier, OutputFile, StandardOutput
from vmstream.transport.source import RandomAccess

_AT_ONCE = 1 << 20
_BY_KERNEL = 64 << 20
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Splice:
    """A stretch of the input, and what stands in its place.

    Attributes:
        begin: Offset in the input, bytes.
        end: Behind the last byte that goes; `begin` for what is put in.
        data: What comes: the bytes, or what makes them when they are written.
        what: For people: what it changes.
        size: Bytes that come, if `data` makes them.
    """

    begin: int
    end: int
    data: bytes | Callable[[], bytes]
    what: str
    size: int | None = None

    @property
    def length(self) -> int:
        """Bytes that come."""
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


def placed(splices: Iterable[Splice]) -> Iterator[tuple[Splice, int]]:
    """Yield splices in order, each with its offset in the output."""
    shift = 0
    for splice in splices:
        yield splice, splice.begin + shift
        shift += splice.delta


def write_spliced(
    source: RandomAccess,
    size: int,
    splices: Iterable[Splice],
    out: OutputFile | StandardOutput,
    *,
    sparse: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the input with its splices.

    Args:
        source: The input.
        size: Its length, bytes.
        splices: As `in_order` gives them.
        out: Where it goes.
        sparse: Leave out blocks of zeros, where the output is a file.
        progress: Called with (bytes of the input that are done, those there are).

    Raises:
        TruncatedError: The input is shorter than it was.
        OSError: With the path.

    Memory:
        A buffer of 1 MiB, and one splice that makes its data.
    """
    buffer = memoryview(bytearray(_AT_ONCE))
    at = to = 0
    for splice in (*splices, Splice(size, size, b"", "")):
        while at < splice.begin:
            # Five times as fast as through a buffer, but it fills holes.
            if not sparse and isinstance(out, OutputFile) and isinstance(source, Copier):
                done = out.take(source, at, min(_BY_KERNEL, splice.begin - at), to)
                at, to = at + done, to + done
                if done:
                    if progress is not None:
                        progress(at, size)
                    continue
            part = buffer[: min(_AT_ONCE, splice.begin - at)]
            got = source.read_into(at, part)
            if got < len(part):
                raise TruncatedError(at + got, "the input is shorter than it was")
            whole = len(part) // _BLOCK * _BLOCK if sparse and isinstance(out, OutputFile) else 0
            if whole and isinstance(out, OutputFile):
                out.write_sparse(to, part[:whole], over=False)
            if whole < len(part):
                out.write(to + whole, part[whole:])
            at, to = at + len(part), to + len(part)
            if progress is not None:
                progress(at, size)
        data = splice.data if isinstance(splice.data, bytes) else splice.data()
        out.write(to, data)
        at, to = splice.end, to + len(data)
    if isinstance(out, OutputFile):
        out.resize(to)
