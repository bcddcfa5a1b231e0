"""Which pages of RAM a stream has sent, how often and in how many passes.

One bit a page and fact, whatever the stream's length. Passes are an inference: nothing on the
wire marks one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmstream.stream.events import MappedPages, MultiFDPacket, PageBatch, PageColumns, RAMBlock, Run
from vmstream.wire.constants import RAMSaveFlag

# Words for the kinds of page record, in the order of the columns of `BlockCoverage.records`.
KINDS: Final = ("normal", "zero", "xbzrle", "compressed")

_ZERO = KINDS.index("zero")
_XBZRLE = KINDS.index("xbzrle")
_COLUMN: Final = {
    RAMSaveFlag.PAGE: 0,
    RAMSaveFlag.ZERO: _ZERO,
    RAMSaveFlag.XBZRLE: _XBZRLE,
    RAMSaveFlag.COMPRESS_PAGE: 3,
}
_KIND_OF_FLAGS = np.zeros(1024, np.uint8)
for _flag, _column in _COLUMN.items():
    _KIND_OF_FLAGS[(np.arange(1024) & int(_flag)) != 0] = _column

_COLUMN_OF_FLAGS: Final[list[int]] = _KIND_OF_FLAGS.tolist()
_ZERO_FLAG, _XBZRLE_FLAG = int(RAMSaveFlag.ZERO), int(RAMSaveFlag.XBZRLE)

# Passes that are told apart; what comes after is counted with the last of them.
MAX_PASSES = 1000

_Indices = NDArray[np.int64]
_Offsets = NDArray[np.uint64] | NDArray[np.int64]


def kind_of(flags: int) -> str:
    """Return the word for the kind of a page record with these flags."""
    return KINDS[_COLUMN_OF_FLAGS[flags]]


def columns_of(flags: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the columns, as KINDS, of page records with these flags, uint8 (n,)."""
    columns: NDArray[np.uint8] = _KIND_OF_FLAGS[flags]
    return columns


class PageBitmap:
    """A set of page numbers below `pages`, one bit each."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        # The same bytes twice: Python is quicker at a range of them, numpy at many places.
        self._bytes = bytearray((pages + 7) // 8)
        self._bits = np.frombuffer(self._bytes, np.uint8)

    def test(self, pages: _Indices) -> NDArray[np.bool_]:
        """Whether each of `pages` is in the set, bool (n,)."""
        bits: NDArray[np.uint8] = self._bits[pages >> 3] >> (pages & 7).astype(np.uint8)
        return (bits & 1).view(np.bool_)

    def add(self, pages: _Indices) -> None:
        """Add pages, in any order."""
        if not len(pages):
            return
        first, last = int(pages[0]), int(pages[-1])
        if last - first + 1 == len(pages) and (np.diff(pages) == 1).all():
            self.add_range(first, last + 1)
            return
        place = pages >> 3
        if (np.diff(place) < 0).any():
            pages = np.sort(pages)
            place = pages >> 3
        bit = np.left_shift(np.uint8(1), (pages & 7).astype(np.uint8))
        starts = np.concatenate(([0], np.flatnonzero(np.diff(place)) + 1))
        self._bits[place[starts]] |= np.bitwise_or.reduceat(bit, starts)

    def add_range(self, first: int, stop: int) -> None:
        """Add the pages from `first` up to but not including `stop`."""
        self._range(first, stop, True)

    def discard_range(self, first: int, stop: int) -> None:
        """Remove the pages from `first` up to but not including `stop`."""
        self._range(first, stop, False)

    def any(self, first: int, stop: int) -> bool:
        """Whether any page from `first` up to `stop` is in the set."""
        if first >= stop:
            return False
        low, high = first >> 3, stop >> 3
        head, rest = 0xFF << (first & 7) & 0xFF, (1 << (stop & 7)) - 1
        held = self._bytes
        if low == high:
            return bool(held[low] & head & rest)
        inside = held.count(0, low + 1, high) != high - low - 1
        return inside or bool(held[low] & head or (rest and held[high] & rest))

    def members(self, first: int, stop: int) -> NDArray[np.bool_]:
        """Membership of the pages from `first` up to `stop`, bool (stop - first,)."""
        bits = np.unpackbits(self._bits[first >> 3 : (stop + 7) >> 3], bitorder="little")
        return bits[first & 7 :][: stop - first].view(np.bool_)

    @property
    def data(self) -> memoryview:
        """The bits, borrowed: page n is bit n % 8 of byte n // 8; bits behind the last are 0."""
        return memoryview(self._bytes).toreadonly()

    def count(self) -> int:
        """Return the number of pages in the set."""
        step = 1 << 20
        return sum(
            int(np.bitwise_count(self._bits[at : at + step]).sum(dtype=np.int64))
            for at in range(0, len(self._bits), step)
        )

    def _range(self, first: int, stop: int, value: bool) -> None:
        if first >= stop:
            return
        low, high = first >> 3, stop >> 3
        head, rest = 0xFF << (first & 7) & 0xFF, (1 << (stop & 7)) - 1
        if low == high:
            self._mask(low, head & rest, value)
            return
        self._mask(low, head, value)
        self._bytes[low + 1 : high] = (b"\xff" if value else b"\0") * (high - low - 1)
        if rest:
            self._mask(high, rest, value)

    def _mask(self, place: int, mask: int, value: bool) -> None:
        if value:
            self._bytes[place] |= mask
        else:
            self._bytes[place] &= ~mask & 0xFF


# Records of each kind, int64 (4,). Four comparisons of bytes beat one bincount.
def _count_kinds(kind: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.array([np.count_nonzero(kind == k) for k in range(len(KINDS))])


@dataclass(slots=True)
class BlockCoverage:
    """What was sent of one RAM block.

    Attributes:
        block: The block.
        pages: Its length in target pages.
        records: Page records by kind, int64 (4,), columns as KINDS.
        wire_bytes: Bytes of its records, heads and names included.
        sent: Pages sent at least once.
        resent: Pages sent more than once.
    """

    block: RAMBlock
    pages: int
    sent: PageBitmap = field(repr=False)
    resent: PageBitmap = field(repr=False)
    records: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    wire_bytes: int = 0

    @property
    def pages_missing(self) -> int:
        """Pages that no record names."""
        return self.pages - self.sent.count()


def unsent(blocks: tuple[RAMBlock, ...], page_size: int) -> list[BlockCoverage]:
    """Account for blocks of which no page was seen; nothing is held for their pages."""
    return [
        BlockCoverage(b, -(-b.used_length // page_size), PageBitmap(0), PageBitmap(0))
        for b in blocks
    ]


@dataclass(slots=True)
class Pass:
    """One sweep over RAM, inferred.

    Attributes:
        offset: Absolute offset of its first record.
        records: Page records by kind, int64 (4,), columns as KINDS.
        wire_bytes: Bytes of its records.
    """

    offset: int
    records: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    wire_bytes: int = 0


class RAMCoverage:
    """Fold over page batches.

    A pass is taken to begin where a page comes that stands at or before the record ahead of it,
    in the order of the block list, and was sent before. A scan for dirty pages goes up through
    the blocks, so that is where it started over; a background snapshot, which sends pages in any
    order but each once, stays one pass.

    Attributes:
        blocks: One entry per RAM block, in wire order.
        passes: The first MAX_PASSES.
        pass_count: How many there were.
        out_of_place: Records between two of neighbouring pages that belong somewhere else.
        first_out_of_place: Offset of the first of them.
        baseless: XBZRLE records of pages that were not sent before.
        first_baseless: Offset of the first of them.
        filled: ZERO records whose fill byte is not 0.
        first_filled: Offset of the first of them.
        generation: With multifd, the number of SYNC packets behind which a record or packet stands;
            `None` without. Within a generation pages come in no order. A pass then begins with a
            generation: each one of them if they are rounds, else one that starts at or before the
            end of the one ahead of it with a page that was sent before.
        rounds: Generations are scans of all RAM, as the main channel says (MULTIFD_FLUSH).
    """

    def __init__(self, blocks: tuple[RAMBlock, ...], page_size: int) -> None:
        self.page_size = page_size
        self.blocks = [
            BlockCoverage(b, n, PageBitmap(n), PageBitmap(n))
            for b in blocks
            for n in (-(-b.used_length // page_size),)
        ]
        self.passes: list[Pass] = []
        self.pass_count = 0
        self.out_of_place = 0
        self.first_out_of_place = 0
        self.baseless = 0
        self.first_baseless = 0
        self.filled = 0
        self.first_filled = 0
        # Of the last four records: the first and the last of an inner stretch of a run will do.
        self._last_keys: list[int] = []
        self._last_offsets: list[int] = []
        self._shift = page_size.bit_length() - 1
        self.generation: int | None = None
        self.rounds = False
        self._entered = -1  # the last generation with pages
        self._highest = -1  # key of it

    def add(self, batch: PageBatch) -> None:
        """Count one batch."""
        runs = batch.pages
        # By plain numbers: a flag's own methods are Python, and cost as much as a run.
        ordered = self.generation is None
        if (
            ordered
            and not isinstance(runs, PageColumns)
            and not any(r.flags & _XBZRLE_FLAG for r in runs)
        ):
            self._add_runs(runs, batch)
            return
        page = (batch.block_offset >> np.uint64(self._shift)).view(np.int64)
        block = batch.block
        kind = _KIND_OF_FLAGS[batch.flags]
        low, high = int(block[0]), int(block[-1])
        if ordered and self._add_next(page, kind, batch):
            return
        if low == high and (block == low).all():
            sent_before = self._add_to_block(low, page, kind, batch)
            key = page | low << 44
        else:
            sent_before = np.empty(len(batch), np.bool_)
            for index in np.unique(block).tolist():
                mine = block == index
                sent_before[mine] = self._add_to_block(
                    index, page[mine], kind[mine], batch, batch.size[mine]
                )
            key = page | block.astype(np.int64) << 44
        if ordered:
            self._count_passes(key, sent_before, kind, batch)
        else:
            self._enter(key, sent_before, batch.offset)
            self._count(0, len(key), kind, batch)
        if (kind == _ZERO).any():
            self._look_at_fills(batch)
        baseless = (kind == _XBZRLE) & ~sent_before
        if baseless.any():
            if not self.baseless:
                self.first_baseless = int(batch.record_offset[np.argmax(baseless)])
            self.baseless += int(np.count_nonzero(baseless))
        if ordered:
            self._look_for_damage(key, batch.record_offset)

    def add_packet(self, packet: MultiFDPacket, offset: int, *, compressed: bool) -> None:
        """Count a packet of a multifd channel.

        Args:
            packet: The packet; of a block.
            offset: Where the main channel stands.
            compressed: Its pages with data are.
        """
        page = (np.concatenate((packet.normal, packet.zero)) >> np.uint64(self._shift)).view(
            np.int64
        )
        seen = self.blocks[packet.block]
        before = self._mark(seen, page)
        self._enter(page | packet.block << 44, before, offset)
        column = _COLUMN[RAMSaveFlag.COMPRESS_PAGE if compressed else RAMSaveFlag.PAGE]
        for counted in (seen, self.passes[-1]):
            counted.records[column] += len(packet.normal)
            counted.records[_ZERO] += len(packet.zero)
            counted.wire_bytes += packet.end - packet.offset

    # Begin a pass if records of multifd show that there is one; `key` are their pages.
    def _enter(self, key: _Indices, sent_before: NDArray[np.bool_], offset: int) -> None:
        low, high = int(key.min()), int(key.max())
        if self.generation != self._entered:
            again = self.rounds or (low <= self._highest and bool(sent_before.any()))
            if not self.passes or again:
                self._begin_pass(offset)
            self._entered, self._highest = self.generation or 0, high
        self._highest = max(self._highest, high)

    def discard(self, block: int, start: int, length: int) -> None:
        """Take a range of a block for never sent; bytes, on page boundaries."""
        self.blocks[block].sent.discard_range(start >> self._shift, (start + length) >> self._shift)

    def add_mapped(self, event: MappedPages) -> None:
        """Count a stretch of a mapped-ram page area: pages that are not there are zero."""
        if not self.passes:
            self._begin_pass(event.offset)
        first, count = event.block_offset >> self._shift, len(event.present)
        normal = int(np.count_nonzero(event.present))
        for counted in (self.blocks[event.block], self.passes[-1]):
            counted.records[_COLUMN[RAMSaveFlag.PAGE]] += normal
            counted.records[_ZERO] += count - normal
            counted.wire_bytes += normal * event.page_size
        self.blocks[event.block].sent.add_range(first, first + count)

    # The usual batch of a first pass: neighbouring pages of one block, none of them seen before,
    # behind those before. It needs none of the care below; false if this is not such a batch.
    def _add_next(self, page: _Indices, kind: NDArray[np.uint8], batch: PageBatch) -> bool:
        first, stop, block = int(page[0]), int(page[-1]) + 1, int(batch.block[0])
        if (
            not self.passes
            or not self._steady()
            or stop - first != len(page)
            or first | block << 44 <= self._last_key()
            or (batch.block != block).any()
            or (page[1:] - page[:-1] != 1).any()
            or self.blocks[block].sent.any(first, stop)
        ):
            return False
        records = _count_kinds(kind)
        if records[_XBZRLE] or (records[_ZERO] and batch.fills().any()):
            return False
        wire_bytes = batch.end - batch.offset
        for counted in (self.blocks[block], self.passes[-1]):
            counted.records += records
            counted.wire_bytes += wire_bytes
        self.blocks[block].sent.add_range(first, stop)
        self._look_for_damage(page[-4:] | block << 44, batch.record_offset[-4:])
        return True

    # A batch of long runs: each is counted as a whole.
    def _add_runs(self, runs: Sequence[Run], batch: PageBatch) -> None:
        last = self._last_key()
        ahead = self._steady()
        for run in runs:
            first, seen = run.block_offset >> self._shift, self.blocks[run.block]
            key = first | run.block << 44
            column, wire_bytes = _COLUMN_OF_FLAGS[run.flags], run.pages * run.stride
            again = self._send_run(seen, first, first + run.pages)
            if not self.passes or (again and key <= last):
                self._begin_pass(run.record_offset)
            for counted in (seen, self.passes[-1]):
                counted.records[column] += run.pages
                counted.wire_bytes += wire_bytes
            ahead = ahead and key > last
            last = key + run.pages - 1
        if any(run.flags & _ZERO_FLAG for run in runs):
            self._look_at_fills(batch)
        if ahead:
            runs = runs[-4:]
        # No record is odd behind the first two of a run and in front of the last two.
        edges = [
            (run, place)
            for run in runs
            for place in sorted({0, min(1, run.pages - 1), max(0, run.pages - 2), run.pages - 1})
        ]
        self._look_for_damage(
            np.array([(r.block_offset >> self._shift | r.block << 44) + n for r, n in edges]),
            np.array([r.record_offset + n * r.stride for r, n in edges]),
        )

    # Add the pages of a run; return whether the first was sent before.
    @staticmethod
    def _send_run(seen: BlockCoverage, first: int, stop: int) -> bool:
        again = False
        if seen.sent.any(first, stop):
            before = seen.sent.members(first, stop)
            again = bool(before[0])
            seen.resent.add(first + np.flatnonzero(before))
        seen.sent.add_range(first, stop)
        return again

    def _last_key(self) -> int:
        return self._last_keys[-1] if self._last_keys else -1

    # No record of the last ones is behind another, so none of them is odd.
    def _steady(self) -> bool:
        return all(a < b for a, b in pairwise(self._last_keys))

    # Facts that no rule of the loader catches, and that a flipped bit would make.

    def _look_at_fills(self, batch: PageBatch) -> None:
        fills = batch.fills()
        if fills.any():
            if not self.filled:
                zero = batch.record_offset[(batch.flags & _ZERO_FLAG) != 0]
                self.first_filled = int(zero[np.argmax(fills != 0)])
            self.filled += int(np.count_nonzero(fills))

    def _look_for_damage(self, key: _Indices, offset: _Offsets) -> None:
        # With the last records of the batch before, so that no cut hides one.
        keys = np.concatenate((np.array(self._last_keys, np.int64), key))
        jumps = np.diff(keys)
        if (jumps <= 0).any():
            # Two neighbours in front, two behind, and the place between them is the record's own.
            odd = (jumps[:-3] == 1) & (jumps[1:-2] + jumps[2:-1] == 2) & (jumps[3:] == 1)
            odd &= jumps[1:-2] != 1
            if odd.any():
                if not self.out_of_place:
                    offsets = self._last_offsets + offset.tolist()
                    self.first_out_of_place = offsets[2 + int(np.argmax(odd))]
                self.out_of_place += int(np.count_nonzero(odd))
        self._last_keys = keys[-4:].tolist()
        self._last_offsets = (self._last_offsets + offset[-4:].tolist())[-4:]

    # Count the records of one block; return which of the pages were sent before.
    def _add_to_block(
        self,
        index: int,
        page: _Indices,
        kind: NDArray[np.uint8],
        batch: PageBatch,
        size: NDArray[np.uint32] | None = None,
    ) -> NDArray[np.bool_]:
        seen = self.blocks[index]
        seen.records += _count_kinds(kind)
        seen.wire_bytes += int((batch.size if size is None else size).sum(dtype=np.int64))
        return self._mark(seen, page)

    # Note pages as sent; return which of them were sent before.
    @staticmethod
    def _mark(seen: BlockCoverage, page: _Indices) -> NDArray[np.bool_]:
        before = seen.sent.test(page)
        if not (np.diff(page) > 0).all():
            # Out of order: a page may come twice within the batch.
            first = np.zeros(len(page), np.bool_)
            first[np.unique(page, return_index=True)[1]] = True
            before |= ~first
        seen.sent.add(page)
        if before.any():
            seen.resent.add(page[before])
        return before

    def _count_passes(
        self,
        key: _Indices,
        sent_before: NDArray[np.bool_],
        kind: NDArray[np.uint8],
        batch: PageBatch,
    ) -> None:
        back = np.empty(len(key), np.bool_)
        back[0] = int(key[0]) <= self._last_key()
        np.less_equal(key[1:], key[:-1], out=back[1:])
        starts = np.flatnonzero(back & sent_before).tolist() if back.any() else []
        if not self.passes:
            starts = [0, *(s for s in starts if s)]
        edges = [*starts, len(key)]
        self._count(0, edges[0], kind, batch)
        for begin, end in pairwise(edges):
            self._begin_pass(int(batch.record_offset[begin]))
            self._count(begin, end, kind, batch)

    def _count(self, begin: int, end: int, kind: NDArray[np.uint8], batch: PageBatch) -> None:
        if begin < end:
            current = self.passes[-1]
            current.records += _count_kinds(kind[begin:end])
            current.wire_bytes += int(batch.size[begin:end].sum(dtype=np.int64))

    def _begin_pass(self, offset: int) -> None:
        self.pass_count += 1
        if len(self.passes) < MAX_PASSES:
            self.passes.append(Pass(offset))
