"""`search --history`: where bytes stand in versions of pages that a later record replaced.

The stream is read once more, into an index of its own. A version is searched when it is about to be
replaced, while the index still says where it stands; so nothing is kept of the past but two
numbers a page, and each version is read once, with its neighbours of that time.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vmstream.container.open import OpenStream
from vmstream.errors import UnsupportedError
from vmstream.guest.index import PageIndex
from vmstream.ops.channels import Channels
from vmstream.ops.inspect import Summary
from vmstream.ops.memory import GuestMemory, Indexer, MemoryOptions
from vmstream.ops.pipeline import events
from vmstream.ops.search import SHOWN, Needle, hit_report, search
from vmstream.report.models.search import HitReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    ChannelEvent,
    Event,
    MappedPages,
    MultiFDPacket,
    PageBatch,
)

# Replaced versions that are searched at a time, bytes.
_STEP = 1 << 20

# A record: number of its input, 0 for the main channel, above its offset.
_OFFSET_BITS = 48

_Numbers = NDArray[np.int64]


@dataclass(slots=True)
class HistorySeen:
    """What a search of the past came by.

    Attributes:
        superseded: Versions of pages that were replaced or withdrawn.
        mapped: Pages stand in mapped-ram areas, which have one version of each.
    """

    superseded: int = 0
    mapped: bool = False

    @property
    def remark(self) -> str | None:
        """Why there is no past to search; `None` if there is."""
        if self.superseded:
            return None
        if self.mapped:
            return "a mapped-ram file has one version of each page: there is no history"
        return "no page was sent a second time: there is no history"


class _Enough(Exception):
    """So many hits were asked for and no more."""


def check_file(path: str | os.PathLike[str], option: str = "--history") -> None:
    """Refuse what cannot be read twice.

    Args:
        path: The input.
        option: That takes it.

    Raises:
        UnsupportedError: It is a pipe or the like.
        OSError: It is not there.
    """
    mode = 0 if str(path) == "-" else os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UnsupportedError(
            0,
            f"{option} reads the stream twice, and what comes in a pipe comes once",
            advice="save it to a file, and give its name",
        )


def search_history(
    opened: OpenStream,
    memory: GuestMemory,
    needle: Needle,
    found: Callable[[HitReport], None],
    *,
    options: MemoryOptions,
    channels: Channels | None = None,
    page_size: int | None = None,
    block: str | None = None,
    limit: int | None = None,
) -> HistorySeen:
    """Search versions of pages that were replaced, in the order they were, then the last ones.

    A match may go on in the next page of the block if the record of that came right behind, and
    both versions stood side by side. Matches that start in one page do not overlap.

    Args:
        opened: The stream, opened anew.
        memory: What it leaves its guest with.
        needle: What to search for.
        found: Takes each hit, with the record of the page that it starts in.
        options: How the memory was indexed.
        channels: Recorded beside the main one, opened anew.
        page_size: As for the memory.
        block: Name of the one block to look in, instead of all RAM in the guest-physical map.
        limit: So many hits and no more.

    Raises:
        OutputError: There is no such block, or the stream does not tell where blocks stand.
        StreamError: As of `read_memory`.
        OSError: The spool cannot be written.

    Memory:
        As to index memory, 16 bytes a page more, and the versions that are searched: 1 MiB in one
        piece, up to 33 in many.
    """
    only = {r.block for r in memory.map.regions} if block is None else {memory.block_index(block)}
    left = limit

    def take(hit: HitReport) -> None:
        nonlocal left
        if block is not None or hit.gpa is not None:
            found(hit)
            if left is not None:
                left -= 1
                if not left:
                    raise _Enough

    seen = HistorySeen()
    summary = Summary()
    names = [c.name for c in channels.list] if channels is not None else []
    decoder = Decoder(page_size, strict=not options.partial, max_ram=options.max_ram)
    with ExitStack() as held, suppress(_Enough):
        past = _Past(memory, needle, only, take, names, seen)
        fold = _Replay(opened, channels, options, summary, held, past)
        for event in events(opened.source, decoder, None, opened.container, channels):
            summary.on(event)
            fold.on(event)
        for hit in search(memory, needle, block=block):
            # By its address, since names need not be readable.
            there = None if hit.gpa is None else memory.locate(hit.gpa)
            index = there[0] if there is not None else memory.block_index(block or hit.block)
            take(past.dated(hit, index))
    return seen


class _Replay(Indexer):
    """Fold: the index once more, watched."""

    def __init__(
        self,
        opened: OpenStream,
        channels: Channels | None,
        options: MemoryOptions,
        summary: Summary,
        held: ExitStack,
        past: _Past,
    ) -> None:
        super().__init__(opened.source, channels, options, summary, None, held)
        self._past = past

    def open(self, page_size: int) -> PageIndex:
        """Make the index."""
        index = super().open(page_size)
        self._past.watch(index)
        return index

    def on(self, event: Event) -> None:
        """Take one event."""
        inner = event.event if isinstance(event, ChannelEvent) else event
        self._past.offsets = inner.record_offset if isinstance(inner, PageBatch) else inner.offset
        super().on(event)
        if isinstance(inner, PageBatch):
            self._past.count += len(inner)
        elif isinstance(inner, MultiFDPacket):
            self._past.count += len(inner.normal) + len(inner.zero)
        elif isinstance(inner, MappedPages):
            self._past.seen.mapped = True


class _Past:
    """Searches versions of pages as they are replaced.

    Attributes:
        offsets: Of the records that are being added, or of the packet.
        count: Records, and pages in packets, that came before.
    """

    def __init__(
        self,
        memory: GuestMemory,
        needle: Needle,
        only: set[int],
        found: Callable[[HitReport], None],
        channels: list[str],
        seen: HistorySeen,
    ) -> None:
        self.offsets: int | NDArray[np.uint64] = 0
        self.count = 0
        self.seen = seen
        self._memory = memory
        self._needle = needle
        self._only = only
        self._found = found
        self._channels = channels
        # Of each page, its last record so far, and the number of that: 0 if there is none, else
        # at least 2, so that nothing comes right behind none.
        self._records: list[NDArray[np.uint64]] = []
        self._numbers: list[_Numbers] = []

    def watch(self, index: PageIndex) -> None:
        """Search what this index is about to forget."""
        size = self._size = index.page_size
        counts = [-(-b.used_length // size) for b in index.blocks]
        self._records = [np.zeros(n, np.uint64) for n in counts]
        self._numbers = [np.zeros(n, np.int64) for n in counts]
        self._buffer = bytearray()
        # Pages that a match can reach into, to either side.
        self._reach = -(-(self._needle.behind - 1) // size)
        self._index = index
        index.watch(self._before)

    def dated(self, hit: HitReport, block: int) -> HitReport:
        """Say in a hit in a last version which record that is of."""
        page = hit.block_offset // self._size if self._numbers else 0
        if not self._numbers or not self._numbers[block][page]:
            return hit
        offset, channel = self._record(block, page)
        return replace(hit, record_offset=offset, channel=channel)

    def _record(self, block: int, page: int) -> tuple[int, str | None]:
        record = int(self._records[block][page])
        source = record >> _OFFSET_BITS
        return record & (1 << _OFFSET_BITS) - 1, self._channels[source - 1] if source else None

    # Pages are about to change, by the records in these rows of the event.
    def _before(self, block: int, page: _Numbers, rows: _Numbers | None) -> None:
        numbers = self._numbers[block]
        known = page[numbers[page] != 0]
        self.seen.superseded += len(known)
        step = max(1, _STEP // self._size)
        for at in range(0, len(known) if block in self._only else 0, step):
            part = known[at : at + step]
            self._search(block, part)
            # Seen with all that they stood beside.
            numbers[part] = 0
        if rows is None:
            numbers[page] = 0
            return
        offset = self.offsets if isinstance(self.offsets, int) else self.offsets[rows]
        source = np.uint64(self._index.source << _OFFSET_BITS)
        self._records[block][page] = np.asarray(offset, np.uint64) | source
        numbers[page] = rows + (self.count + 2)

    def _search(self, block: int, page: _Numbers) -> None:
        size = self._size
        begins, counts = self._around(block, page)
        firsts = np.cumsum(counts) - counts
        wanted = np.arange(int(counts.sum())) + np.repeat(begins - firsts, counts)
        if not self._needle.in_zeros:
            data = np.add.reduceat(self._index.may_have_data(block, wanted), firsts) != 0
            wanted = wanted[np.repeat(data, counts)]
            begins, counts = begins[data], counts[data]
            firsts = np.cumsum(counts) - counts
        room = len(wanted) * size
        if len(self._buffer) < room:
            self._buffer = bytearray(room)
        buffer = self._buffer
        self._index.read_pages(
            block, wanted, np.frombuffer(buffer, np.uint8, room).reshape(-1, size)
        )
        # Pages that are replaced stand alone more often than not, so a look at each would cost more
        # than one at all of them.
        if buffer.find(self._needle.text, 0, room) < 0:
            return
        used = self._memory.blocks[block].used_length
        replaced = page.tolist()
        for begin, count, first in zip(
            begins.tolist(), counts.tolist(), firsts.tolist(), strict=True
        ):
            at = first * size
            shift = begin * size - at
            end = min(at + count * size, used - shift)
            for start, stop in self._matches(at, end):
                low, high = (start + shift) // size, (stop - 1 + shift) // size
                if bisect_left(replaced, low) == bisect_right(replaced, high):
                    continue  # not in what is replaced
                offset = start + shift
                shown = bytes(buffer[start : min(stop, start + SHOWN)])
                hit = hit_report(self._memory, block, offset, stop - start, shown)
                record, channel = self._record(block, low)
                self._found(replace(hit, superseded=True, record_offset=record, channel=channel))

    # Matches in a stretch of the buffer. Of those that reach into a next page, none hides what
    # starts there: which pages are searched together is then of no consequence.
    def _matches(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        size, start = self._size, begin
        while start < end:
            border = end
            for match, stop in self._needle.find(self._buffer, begin, start, end, end):
                yield match, stop
                border = (match // size + 1) * size
                if stop > border:
                    break
            else:
                return
            start = border

    # Stretches of pages that a match in these can be in: first page and number of pages of each.
    def _around(self, block: int, page: _Numbers) -> tuple[_Numbers, _Numbers]:
        numbers = self._numbers[block]
        # Pages with a neighbour that is replaced as well have no need to look for it.
        new = np.ones(len(page), np.bool_)
        new[1:] = (np.diff(page) != 1) | (np.diff(numbers[page]) != 1)
        first = np.flatnonzero(new)
        begin, end = page[first], page[np.append(first[1:], len(page)) - 1] + 1
        for _ in range(self._reach):
            more = begin > 0
            more[more] = numbers[begin[more]] - numbers[begin[more] - 1] == 1
            begin = begin - more
            further = end < len(numbers)
            further[further] = numbers[end[further]] - numbers[end[further] - 1] == 1
            end = end + further
            if not (more.any() or further.any()):
                break
        # Those that have come to overlap are one.
        apart = np.ones(len(begin), np.bool_)
        apart[1:] = begin[1:] >= np.maximum.accumulate(end)[:-1]
        first = np.flatnonzero(apart)
        return begin[first], np.maximum.reduceat(end, first) - begin[first]
