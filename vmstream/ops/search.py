"""`search`: where bytes stand in guest memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from vmstream.ops.memory import GuestMemory, Stretch
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.search import SEARCH_SCHEMA, HitReport

# Memory that is searched at a time.
_STEP = 1 << 20

# The longest text or bytes that can be searched for, and how far a match of a regular expression
# can reach, and look, to either side.
LONGEST = 64 << 10

# What an expression must begin with for its matches to be looked for by that: `bytes.find` is
# quicker than `re`.
_SHORTEST_PREFIX = 3

# Bytes of a match that are reported.
SHOWN = 64

# In a buffer: where what can be looked at begins, where matches may start, where they must have
# started, and where what can be looked at ends.
_Finder = Callable[[bytearray, int, int, int, int], Iterator[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Needle:
    """What is searched for.

    Attributes:
        find: Yields (start, end) of the matches in a buffer that start in a range of it, in order.
        before: Bytes in front of a match that matter.
        behind: Bytes from its start on that may be in it.
        in_zeros: A match may start with a zero byte.
        text: What every match begins with, as far as that is plain.
    """

    find: _Finder
    before: int
    behind: int
    in_zeros: bool
    text: bytes


def literal(pattern: bytes) -> Needle:
    """Search for these bytes.

    Raises:
        ValueError: There are none, or more than LONGEST.
    """
    if not 0 < len(pattern) <= LONGEST:
        raise ValueError(f"a pattern has 1 to {LONGEST} bytes")

    def find(
        buffer: bytearray, begin: int, start: int, last: int, end: int
    ) -> Iterator[tuple[int, int]]:
        end = min(end, last - 1 + len(pattern))
        while (at := buffer.find(pattern, start, end)) >= 0:
            start = at + len(pattern)
            yield at, start

    return Needle(find, 0, len(pattern), pattern[0] == 0, pattern)


def expression(pattern: bytes) -> Needle:
    """Search for matches of a regular expression, of bytes; empty ones do not count.

    Raises:
        ValueError: It is none.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no regular expression: {error}") from error

    prefix = _prefix(pattern)

    def find(
        buffer: bytearray, begin: int, start: int, last: int, end: int
    ) -> Iterator[tuple[int, int]]:
        for match in compiled.finditer(memoryview(buffer)[begin:end], start - begin):
            if match.start() >= last - begin:
                return
            if match.end() > match.start():
                yield match.start() + begin, match.end() + begin

    def find_prefix(
        buffer: bytearray, begin: int, start: int, last: int, end: int
    ) -> Iterator[tuple[int, int]]:
        final = min(end, last - 1 + len(prefix))
        seen = memoryview(buffer)[begin:end]
        while (at := buffer.find(prefix, start, final)) >= 0:
            match = compiled.match(seen, at - begin)
            start = at + 1
            if match is not None:
                start = match.end() + begin
                yield at, start

    if len(prefix) < _SHORTEST_PREFIX:
        return Needle(find, LONGEST, LONGEST, True, b"")
    return Needle(find_prefix, LONGEST, LONGEST, prefix[0] == 0, prefix)


# The bytes that each match of an expression begins with, as far as that is plain to see. The
# expression compiles.
def _prefix(pattern: bytes) -> bytes:
    if b"|" in pattern:
        return b""
    plain = re.match(rb"[^.^$*+?{\\[()]*", pattern)
    prefix = plain[0] if plain else b""
    quantified = pattern[len(prefix) : len(prefix) + 1] in (b"*", b"+", b"?", b"{")
    return prefix[:-1] if quantified else prefix


def search(
    memory: GuestMemory,
    needle: Needle,
    *,
    block: str | None = None,
    limit: int | None = None,
) -> Iterator[HitReport]:
    """Yield where it stands, by address; matches do not overlap.

    Args:
        memory: Where to look.
        needle: What for.
        block: Name of the one block to look in, instead of all RAM in the guest-physical map.
        limit: So many and no more.

    Raises:
        OutputError: There is no such block, or the stream does not tell where blocks stand.
        StreamError: The input is damaged where it is read, or not what it was.

    Memory:
        1 MiB, and 128 KiB around it for a regular expression.
    """
    stretches = memory.stretches(None if block is None else memory.block_index(block))
    yield from islice(_hits(memory, stretches, needle), limit)


def _hits(memory: GuestMemory, stretches: list[Stretch], needle: Needle) -> Iterator[HitReport]:
    buffer = bytearray(needle.before + _STEP + needle.behind)
    view = memoryview(buffer)
    for stretch in stretches:
        done = 0  # behind the last match
        for at in range(0, stretch.length, _STEP):
            last = min(stretch.length, at + _STEP)
            if not needle.in_zeros and not stretch.has_data(at, last - at):
                continue
            begin = max(0, at - needle.before)
            end = min(stretch.length, last + needle.behind)
            stretch.read_into(begin, view[: end - begin])
            first = max(at, done) - begin
            for start, stop in needle.find(buffer, 0, first, last - begin, end - begin):
                done = begin + stop
                found = bytes(buffer[start : min(stop, start + SHOWN)])
                yield hit_report(memory, *stretch.place(begin + start), stop - start, found)


def hit_report(
    memory: GuestMemory, block: int, offset: int, length: int, found: bytes
) -> HitReport:
    """Describe a hit at a place in a block; `found` are the first SHOWN bytes of it."""
    name = memory.blocks[block].idstr
    return HitReport(
        SEARCH_SCHEMA,
        memory.address_of(block, offset),
        readable(name),
        offset,
        length,
        found.hex(),
        in_full(name),
    )
