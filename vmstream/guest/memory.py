"""RAM images from page batches: the last record of a page wins, zero pages too.

Bytes are written where a block's pages belong in an output; nothing is held but one bit a page
that says whether the output has data there. What an XBZRLE record changes is read back from the
output.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import IntegrityError, quoted
from vmstream.guest.coverage import PageBitmap
from vmstream.guest.xbzrle import apply_deltas
from vmstream.stream.events import MappedPages, MultiFDPacket, PageBatch, RAMBlock
from vmstream.wire import grammar
from vmstream.wire.constants import ENCODING_FLAG_XBZRLE, RAMSaveFlag
from vmstream.wire.layout import page_stride, struct_of

_PAGE = int(RAMSaveFlag.PAGE)
_ZERO = int(RAMSaveFlag.ZERO)
_XBZRLE = int(RAMSaveFlag.XBZRLE)
_COMPRESS_PAGE = int(RAMSaveFlag.COMPRESS_PAGE)
_XBZRLE_HEAD_SIZE = struct_of(grammar.XBZRLE_HEAD).size
_COMPRESS_HEAD_SIZE = struct_of(grammar.COMPRESS_PAGE_HEAD).size

# Bytes of pages that are decoded at a time.
_DECODED = 8 << 20

# Pages that are looked at at a time when a range is discarded.
_DISCARDED = 1 << 18

_Numbers = NDArray[np.int64]


class PageSink(Protocol):
    """Where pages go; offsets in bytes."""

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        ...

    def write_pages(
        self, window: memoryview, positions: _Numbers, offsets: _Numbers, size: int, stride: int
    ) -> None:
        """Write pages of `size` bytes from `positions` in `window` to `offsets`, int64 (n,).

        Most pages next to each other in the window stand `stride` bytes apart.
        """
        ...

    def zero(self, offset: int, length: int) -> None:
        """Write zeros over what was written before."""
        ...

    def read_pages(self, offsets: _Numbers, pages: NDArray[np.uint8]) -> None:
        """Fill `pages`, uint8 (n, page size), with what stands at `offsets`, int64 (n,).

        What was not written is zeros.
        """
        ...


# What is told ahead of a write: the block, its pages, ascending, and the place of each one's record
# in the batch, or among the pages of the packet, those with data first; `None` for a discard.
BeforeWrite = Callable[[int, _Numbers, _Numbers | None], None]


@dataclass(frozen=True, slots=True)
class Placement:
    """A stretch of a block and its place in a sink, bytes; starts and ends on a page."""

    block: int
    block_offset: int
    length: int
    sink: PageSink
    sink_offset: int


class RAMImage:
    """Fold over page batches that writes pages to their places.

    Args:
        blocks: The block list.
        page_size: Target page size, bytes.
        placements: Where each stretch of a block goes; blocks without one are left out.
        on_fault: Called with the fault of a page that does not decode; what could be decoded of it
            is written. Without it the fault is raised.
    """

    def __init__(
        self,
        blocks: tuple[RAMBlock, ...],
        page_size: int,
        placements: list[Placement],
        on_fault: Callable[[IntegrityError], None] | None = None,
    ) -> None:
        self._page_size = page_size
        self._blocks = blocks
        self._on_fault = on_fault
        self._places: list[list[Placement]] = [[] for _ in blocks]
        for place in placements:
            self._places[place.block].append(place)
        self._data = [PageBitmap(-(-b.used_length // page_size)) for b in blocks]
        # Called ahead of each write; a page that comes twice in a batch is then written twice.
        self.before: BeforeWrite | None = None

    def add(self, batch: PageBatch) -> None:
        """Write one batch.

        Raises:
            IntegrityError: A page does not decode, and there is no `on_fault`.
        """
        block = batch.block
        first = int(block[0])
        if first == int(block[-1]) and (block == first).all():
            self._add(batch, first, np.arange(len(batch)))
            return
        for index in np.unique(block).tolist():
            self._add(batch, index, np.flatnonzero(block == index))

    def discard(self, block: int, start: int, length: int) -> None:
        """Make a range of a block as if it had never been written; bytes, on page boundaries."""
        first, stop = start // self._page_size, -(-(start + length) // self._page_size)
        for at in range(first, stop, _DISCARDED):
            page = np.arange(at, min(at + _DISCARDED, stop))
            self._announce(block, page, None)
            self._write_zeros(block, page)

    def filled(self, block: int) -> None:
        """Say that all of a block was written by somebody else, so that pages of zeros count."""
        self._data[block].add_range(0, self._data[block].pages)

    def add_mapped(self, event: MappedPages) -> None:
        """Write a stretch of a mapped-ram page area, run by run from where it is."""
        for first, count, present in event.runs() if len(event.data) else ():
            if not present:
                continue
            begin, length = event.block_offset + first * event.page_size, count * event.page_size
            at = first * event.page_size
            for place in self._places[event.block]:
                low = max(begin, place.block_offset)
                high = min(begin + length, place.block_offset + place.length)
                if low < high:
                    place.sink.write(
                        place.sink_offset + low - place.block_offset,
                        event.data[at + low - begin : at + high - begin],
                    )

    def add_packet(self, packet: MultiFDPacket, pages: memoryview) -> None:
        """Write a packet of a multifd channel.

        Args:
            packet: The packet.
            pages: Its pages with data, one behind the other.
        """
        if packet.block < 0 or not self._places[packet.block]:
            return
        size = np.uint64(self._page_size)
        page, rows = _last_of_each((packet.normal // size).view(np.int64))
        self._announce(packet.block, page, rows)
        self._write_pages(pages, packet.block, page, rows * self._page_size, self._page_size)
        page, rows = _last_of_each((packet.zero // size).view(np.int64))
        self._announce(packet.block, page, rows + len(packet.normal))
        self._write_zeros(packet.block, page)

    # Write the records of one block; `rows` are their places in the batch.
    def _add(self, batch: PageBatch, block: int, rows: _Numbers) -> None:
        if not self._places[block]:
            return
        page = (batch.block_offset[rows] // np.uint64(self._page_size)).view(np.int64)
        deltas = (batch.flags[rows] & _XBZRLE) != 0
        changed = np.isin(page, page[deltas])
        if self.before is not None:
            changed |= _repeated(page)
        if changed.any():
            self._add_in_turn(batch, block, rows[changed], page[changed])
            rows, page = rows[~changed], page[~changed]
        page, last = _last_of_each(page)
        self._add_whole(batch, block, rows[last], page)

    # Write records that matter each: the first of each page, then the second of each, and so on.
    def _add_in_turn(self, batch: PageBatch, block: int, rows: _Numbers, page: _Numbers) -> None:
        order = np.argsort(page, kind="stable")
        rows, page = rows[order], page[order]
        begins = np.concatenate(([0], np.flatnonzero(np.diff(page)) + 1))
        counts = np.diff(begins, append=len(page))
        turn = np.arange(len(page)) - np.repeat(begins, counts)
        by_turn = np.argsort(turn, kind="stable")
        for mine in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
            deltas = (batch.flags[rows[mine]] & _XBZRLE) != 0
            for kind, write in ((~deltas, self._add_whole), (deltas, self._add_deltas)):
                if kind.any():
                    write(batch, block, rows[mine[kind]], page[mine[kind]])

    # Write records that need nothing of what the pages were, of ascending pages.
    def _add_whole(self, batch: PageBatch, block: int, rows: _Numbers, page: _Numbers) -> None:
        self._announce(block, page, rows)
        flags = batch.flags[rows]
        end = _ends(batch, rows)
        plain, filled, packed = ((flags & kind) != 0 for kind in (_PAGE, _ZERO, _COMPRESS_PAGE))
        position = end[plain] - self._page_size
        stride = page_stride(self._page_size)
        self._write_pages(batch.window, block, page[plain], position, stride)
        if filled.any():
            fill = np.frombuffer(batch.window, np.uint8)[end[filled] - 1]
            zero = fill == 0
            self._write_zeros(block, page[filled][zero])
            if not zero.all():
                self._write_fills(block, page[filled][~zero], fill[~zero])
        if packed.any():
            for part in self._parts(np.flatnonzero(packed)):
                self._write_buffer(block, page[part], self._inflated(batch, block, rows[part]))

    # Apply XBZRLE records of distinct, ascending pages.
    def _add_deltas(self, batch: PageBatch, block: int, rows: _Numbers, page: _Numbers) -> None:
        for part in self._parts(np.arange(len(rows))):
            end = _ends(batch, rows[part])
            length = batch.payload_size[rows[part]].astype(np.int64) - _XBZRLE_HEAD_SIZE
            begin = end - length
            encoding = np.frombuffer(batch.window, np.uint8)[begin - _XBZRLE_HEAD_SIZE]
            known = encoding == ENCODING_FLAG_XBZRLE
            self._announce(block, page[part], rows[part])
            pages = np.zeros((len(part), self._page_size), np.uint8)
            self._read_pages(block, page[part], pages)
            # A payload of an encoding that nobody knows changes nothing.
            legal = apply_deltas(batch.window, begin, np.where(known, length, 0), pages) & known
            for row in rows[part][~legal].tolist():
                self._fault(
                    batch, block, row, "an XBZRLE page that breaks the rules of the encoding"
                )
            self._write_buffer(block, page[part], pages)

    # Pages of zlib records. As QEMU v8.2.7 migration/ram-compress.c qemu_uncompress_data(): one
    # stream, one page. What a broken one gave is kept, as loaders of 2.4 to 2.12 do.
    def _inflated(self, batch: PageBatch, block: int, rows: _Numbers) -> NDArray[np.uint8]:
        size = self._page_size
        pages = np.zeros((len(rows), size), np.uint8)
        end = _ends(batch, rows)
        begin = end - batch.payload_size[rows] + _COMPRESS_HEAD_SIZE
        for i, (low, high) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
            inflater = zlib.decompressobj()
            try:
                data = inflater.decompress(batch.window[low:high], size + 1)
                whole = inflater.eof and len(data) == size
            except zlib.error:
                data, whole = b"", False
            if not whole:
                self._fault(
                    batch, block, int(rows[i]), "a zlib page that does not inflate to a page"
                )
            data = data[:size]
            pages[i, : len(data)] = np.frombuffer(data, np.uint8)
        return pages

    def _fault(self, batch: PageBatch, block: int, row: int, what: str) -> None:
        error = IntegrityError(
            int(batch.record_offset[row]),
            what,
            context=f"block {quoted(self._blocks[block].idstr)}, "
            f"offset {int(batch.block_offset[row]):#x}",
        )
        if self._on_fault is None:
            raise error
        self._on_fault(error)

    def _announce(self, block: int, page: _Numbers, rows: _Numbers | None) -> None:
        if self.before is not None and len(page):
            self.before(block, page, rows)

    # Indices, as many at a time as pages fit the buffer.
    def _parts(self, rows: _Numbers) -> Iterator[_Numbers]:
        step = max(1, _DECODED // self._page_size)
        for at in range(0, len(rows), step):
            yield rows[at : at + step]

    # Write pages that were decoded, uint8 (n, page size).
    def _write_buffer(self, block: int, page: _Numbers, pages: NDArray[np.uint8]) -> None:
        position = np.arange(len(pages)) * self._page_size
        self._write_pages(pages.reshape(-1).data, block, page, position, self._page_size)

    def _read_pages(self, block: int, page: _Numbers, pages: NDArray[np.uint8]) -> None:
        for place, part, offset in self._parts_of(block, page * self._page_size):
            place.sink.read_pages(offset, pages[part])

    # The placements of a block that some of these offsets are in: each with the offsets' places
    # in the list, and what they are in the sink.
    def _parts_of(
        self, block: int, offset: _Numbers
    ) -> Iterator[tuple[Placement, slice, _Numbers]]:
        for place in self._places[block]:
            low, high = np.searchsorted(
                offset, (place.block_offset, place.block_offset + place.length)
            ).tolist()
            if low < high:
                part = slice(low, high)
                yield place, part, offset[part] + (place.sink_offset - place.block_offset)

    def _write_pages(
        self, window: memoryview, block: int, page: _Numbers, position: _Numbers, stride: int
    ) -> None:
        size, length = self._page_size, self._blocks[block].used_length
        rest = length % size
        if rest and len(page) and int(page[-1]) == length // size:
            # A block whose length is no multiple of the page size ends inside its last page.
            at = int(position[-1])
            self._write_part(block, int(page[-1]) * size, window[at : at + rest])
            self._data[block].add(page[-1:])
            page, position = page[:-1], position[:-1]
        for place, part, offset in self._parts_of(block, page * size):
            place.sink.write_pages(window, position[part], offset, size, stride)
        self._data[block].add(page)

    # Write bytes that lie within one placement.
    def _write_part(self, block: int, offset: int, data: memoryview | bytes) -> None:
        for place in self._places[block]:
            if place.block_offset <= offset < place.block_offset + place.length:
                place.sink.write(place.sink_offset + offset - place.block_offset, data)

    # Only pages that have data are written over: the rest stay holes.
    def _write_zeros(self, block: int, page: _Numbers) -> None:
        page = page[self._data[block].test(page)]
        if not len(page):
            return
        size, length = self._page_size, self._blocks[block].used_length
        cuts = np.flatnonzero(np.diff(page) != 1) + 1
        for run in np.split(page, cuts):
            begin, end = int(run[0]) * size, min(length, (int(run[-1]) + 1) * size)
            for place in self._places[block]:
                low = max(begin, place.block_offset)
                high = min(end, place.block_offset + place.length)
                if low < high:
                    place.sink.zero(place.sink_offset + low - place.block_offset, high - low)
            self._data[block].discard_range(int(run[0]), int(run[-1]) + 1)

    # Fill bytes other than zero: 0.10 to 1.4 sent any page of equal bytes like that
    # (QEMU v1.4.0 arch_init.c ram_save_block(), is_dup_page()).
    def _write_fills(self, block: int, page: _Numbers, fill: NDArray[np.uint8]) -> None:
        size, length = self._page_size, self._blocks[block].used_length
        for number, value in zip(page.tolist(), fill.tolist(), strict=True):
            offset = number * size
            self._write_part(block, offset, bytes([value]) * min(size, length - offset))
        self._data[block].add(page)


# Pages in ascending order, and the place of each one's last record: only that counts, and then
# their order does not.
def _last_of_each(page: _Numbers) -> tuple[_Numbers, _Numbers]:
    if (np.diff(page) > 0).all():
        return page, np.arange(len(page))
    pages, last = np.unique(page[::-1], return_index=True)
    return pages, len(page) - 1 - last


# Which of these pages come more than once.
def _repeated(page: _Numbers) -> NDArray[np.bool_]:
    if (np.diff(page) > 0).all():
        return np.zeros(len(page), np.bool_)
    _, which, counts = np.unique(page, return_inverse=True, return_counts=True)
    many: NDArray[np.bool_] = counts[which] > 1
    return many


# Where records end in the window of their batch.
def _ends(batch: PageBatch, rows: _Numbers) -> _Numbers:
    return (batch.record_offset[rows] + batch.size[rows]).view(np.int64) - batch.window_offset
