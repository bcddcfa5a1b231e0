"""Where the last version of each page stands, so that it can be read there.

A page of guest memory is a number of 64 bits: 0 for one of zeros, sent or not; else the input that
its bytes are in, and their place there. Pages that are encoded (zlib, XBZRLE, compressed packets of
multifd, fill bytes) have no bytes in the input. They are decoded while indexing and kept in a
spool, each at a place of its own, so that a page sent a thousand times takes the room of one. The
alternative for XBZRLE, a chain of records for each page, would make a read as long as the chain,
which a stream decides; the spool has a bound, and an encoded page is read like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import IntegrityError, LimitError, TruncatedError
from vmstream.guest.memory import Placement, RAMImage
from vmstream.stream.events import MappedPages, MultiFDPacket, PageBatch, RAMBlock

# Of a place: bits of the offset; what is above is 1 for the spool, 2 for the first input.
_OFFSET_BITS = 48
_SPOOL = 1 << _OFFSET_BITS
_FIRST_INPUT = 2

# Pages that are indexed if nobody says otherwise: 2 GiB of places, for 1 TiB in pages of 4 KiB.
MAX_INDEXED = 1 << 28

# Bytes that are read at a time.
_AT_ONCE = 1 << 20

_Numbers = NDArray[np.int64]
_Places = NDArray[np.uint64]


class Input(Protocol):
    """What can be read at any offset."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end."""
        ...


class PageStore(Input, Protocol):
    """Where pages are kept that are nowhere else; what was not written is zeros."""

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        ...

    def write_pages(
        self, window: memoryview, positions: _Numbers, offsets: _Numbers, size: int, stride: int
    ) -> None:
        """Write pages of `size` bytes from `positions` in `window` to `offsets`, int64 (n,)."""
        ...


class PageIndex:
    """Fold over page batches that notes where pages stand.

    Args:
        blocks: The block list.
        page_size: Target page size, bytes.
        inputs: The main channel, then the others, by place; `None` for one that cannot be read
            in any order, whose pages go to the spool.
        spool: For pages that cannot be read from an input.
        on_fault: Called with the fault of a page that does not decode; what could be decoded of
            it counts. Without it the fault is raised.
        most_pages: Pages that are indexed.

    Attributes:
        source: Number of the input whose pages come next.

    Raises:
        LimitError: There are more pages.

    Memory:
        8 bytes a page that has data, in stretches of 512 pages, and 1 bit a page. The spool has no
        more bytes than the guest has RAM.
    """

    def __init__(
        self,
        blocks: tuple[RAMBlock, ...],
        page_size: int,
        inputs: Sequence[Input | None],
        spool: PageStore,
        on_fault: Callable[[IntegrityError], None] | None = None,
        *,
        most_pages: int = MAX_INDEXED,
    ) -> None:
        self.blocks = blocks
        self.page_size = page_size
        self._inputs = inputs
        self._spool = spool
        counts = [-(-b.used_length // page_size) for b in blocks]
        if sum(counts) > most_pages:
            raise _too_many(sum(counts), most_pages)
        try:
            # Untouched pages of these take no memory.
            self._places: list[_Places] = [np.zeros(n, np.uint64) for n in counts]
        except MemoryError as error:
            raise _too_many(sum(counts), most_pages) from error
        sinks, base = [], 0
        for places, count in zip(self._places, counts, strict=True):
            sinks.append(_Sink(self, places, base))
            base += count * page_size
        self._sinks = sinks
        self._image = RAMImage(
            blocks,
            page_size,
            [Placement(i, 0, b.used_length, sinks[i], 0) for i, b in enumerate(blocks)],
            on_fault,
        )
        self.source = 0
        # The window whose bytes are those of an input, and what to add to a position in it.
        self.window: memoryview | None = None
        self.shift = 0

    def add(self, batch: PageBatch) -> None:
        """Note the pages of one batch.

        Raises:
            IntegrityError: A page does not decode, and there is no `on_fault`.
        """
        self._stand_in(batch.window, batch.window_offset, batch.end)
        self._image.add(batch)
        self.window = None

    def add_mapped(self, event: MappedPages) -> None:
        """Note a stretch of a mapped-ram page area."""
        if not len(event.data) or not len(event.present):
            return
        size, length = event.page_size, self.blocks[event.block].used_length
        first, sink = event.block_offset // size, self._sinks[event.block]
        start = event.end - len(event.data)
        if self._inputs[0] is not None and not length % size:
            base = self._place(0, start, event.end)
            places = self._places[event.block][first : first + len(event.present)]
            at = np.uint64(base) + np.arange(len(event.present), dtype=np.uint64) * np.uint64(size)
            places[event.present] = at[event.present]
            return
        for begin, count, present in event.runs():
            if present:
                offset = (first + begin) * size
                stop = min(length - offset, count * size)
                sink.write(offset, event.data[begin * size : begin * size + stop])

    def add_packet(self, packet: MultiFDPacket, pages: memoryview) -> None:
        """Note the pages of a packet of multifd.

        Args:
            packet: The packet.
            pages: Its pages with data, one behind the other: its payload, or what that unpacks to.
        """
        if pages is packet.payload:
            self._stand_in(pages, packet.end - len(pages), packet.end)
        self._image.add_packet(packet, pages)
        self.window = None

    def discard(self, block: int, start: int, length: int) -> None:
        """Make a range of a block as if it had never been sent; bytes, on page boundaries."""
        self._image.discard(block, start, length)

    def has_data(self, block: int, offset: int, length: int) -> bool:
        """Whether any page that a range of a block touches may have other bytes than zeros."""
        size = self.page_size
        return bool(self._places[block][offset // size : -(-(offset + length) // size)].any())

    def read_into(self, block: int, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with what a block has from `offset` on; both lie within it.

        Raises:
            TruncatedError: The input is shorter than it was.
            StreamError: What holds the stream is damaged there.
            OSError: The input cannot be read.
        """
        size, at = self.page_size, 0
        step = max(1, _AT_ONCE // size) * size
        while at < len(buffer):
            inside = (offset + at) % size
            count = min(len(buffer) - at, step - inside)
            first, stop = (offset + at) // size, -(-(offset + at + count) // size)
            places = self._places[block][first:stop]
            target = buffer[at : at + count]
            if inside or count % size:
                pages = np.empty((len(places), size), np.uint8)
                self._fetch(places, pages)
                target[:] = pages.reshape(-1)[inside : inside + count].data
            else:
                self._fetch(places, np.frombuffer(target, np.uint8).reshape(-1, size))
            at += count

    def read_pages(self, block: int, page: _Numbers, pages: NDArray[np.uint8]) -> None:
        """Fill `pages`, uint8 (n, page size), with the pages of these numbers."""
        self._fetch(self._places[block][page], pages)

    # Say that positions in a window are places in an input, if it can be read there.
    def _stand_in(self, window: memoryview, offset: int, end: int) -> None:
        if self._inputs[self.source] is not None:
            self.window, self.shift = window, self._place(self.source, offset, end)

    def _place(self, source: int, offset: int, end: int) -> int:
        if end >> _OFFSET_BITS or (source + _FIRST_INPUT) >> (63 - _OFFSET_BITS):
            raise LimitError(offset, "an input of 256 TiB or more, or too many of them")
        return (source + _FIRST_INPUT) << _OFFSET_BITS | offset

    # Read pages, run by run: pages whose places are evenly spaced are read at once.
    def _fetch(self, places: _Places, pages: NDArray[np.uint8]) -> None:
        if not places.any():
            pages[:] = 0
            return
        size = self.page_size
        step = np.diff(places.view(np.int64))
        # Records of the stream, pages one behind the other, and zeros.
        even = (step > 0) & (step <= 2 * size) | ((step == 0) & (places[1:] == 0))
        cut = ~even
        cut[1:] |= even[:-1] & (step[1:] != step[:-1])
        first = np.concatenate(([0], np.flatnonzero(cut) + 1))
        counts = np.diff(first, append=len(places)).tolist()
        for row, count, place in zip(first.tolist(), counts, places[first].tolist(), strict=True):
            target = pages[row : row + count]
            if not place:
                target[:] = 0
            elif count == 1 or int(step[row]) == size:
                self._read(place, target.reshape(-1).data)
            else:
                apart = int(step[row])
                buffer = np.empty((count - 1) * apart + size, np.uint8)
                self._read(place, buffer.data)
                target[:] = np.ndarray((count, size), np.uint8, buffer.data, 0, (apart, 1))

    def _read(self, place: int, buffer: memoryview) -> None:
        number, offset = place >> _OFFSET_BITS, place & (_SPOOL - 1)
        source = self._inputs[number - _FIRST_INPUT] if number >= _FIRST_INPUT else self._spool
        got = 0 if source is None else source.read_into(offset, buffer)
        if got == len(buffer):
            return
        if number < _FIRST_INPUT:
            # The last page of a block need not be a whole one.
            buffer[got:] = bytes(len(buffer) - got)
            return
        raise TruncatedError(
            offset + got,
            "the input is shorter than it was when it was indexed",
            expected=f"{len(buffer) - got} more bytes",
        )


class _Sink:
    """A block of an index, as `RAMImage` wants what it writes to."""

    def __init__(self, index: PageIndex, places: _Places, base: int) -> None:
        self._index = index
        self._places = places
        self._base = base  # in the spool

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Keep bytes in the spool: fill bytes, and what is less than a page."""
        size = self._index.page_size
        # Of a page that its block ends in, nobody asks for what is behind the end.
        self._index._spool.write(self._base + offset, data)
        first, count = offset // size, -(-len(data) // size)
        self._places[first : first + count] = self._spooled(np.arange(first, first + count))

    def write_pages(
        self, window: memoryview, positions: _Numbers, offsets: _Numbers, size: int, stride: int
    ) -> None:
        """Note where pages are; those that are in no input are kept in the spool."""
        index, page = self._index, offsets // size
        if window is index.window:
            self._places[page] = (positions + index.shift).view(np.uint64)
            return
        index._spool.write_pages(window, positions, offsets + self._base, size, stride)
        self._places[page] = self._spooled(page)

    def zero(self, offset: int, length: int) -> None:
        """Forget pages."""
        size = self._index.page_size
        self._places[offset // size : -(-(offset + length) // size)] = 0

    def read_pages(self, offsets: _Numbers, pages: NDArray[np.uint8]) -> None:
        """Read what pages were, for a difference to them."""
        self._index._fetch(self._places[offsets // self._index.page_size], pages)

    def _spooled(self, page: _Numbers) -> _Places:
        return (page * self._index.page_size + (self._base + _SPOOL)).view(np.uint64)


def _too_many(pages: int, most: int) -> LimitError:
    return LimitError(
        0,
        f"an index of {pages} pages takes {8 * pages >> 20} MiB",
        expected=f"at most {most} pages",
        advice="--max-ram SIZE allows SIZE bytes of RAM",
    )
