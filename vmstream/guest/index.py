"""Where the last version of each page stands, so that it can be read there.

A page of guest memory is a number of 64 bits: 0 for one of zeros, sent or not; else the input that
its bytes are in, and their place there. Pages that are encoded (zlib, XBZRLE, compressed packets of
multifd, fill bytes) have no bytes in the input. They are decoded while indexing and kept in a
spool, each at a place of its own, so that a page sent a thousand times takes the room of one. The
alternative for XBZRLE, a chain of records for each page, would make a read as long as the chain,
which a stream decides; the spool has a bound, and an encoded page is read like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import IntegrityError, LimitError, StreamError, TruncatedError
from vmstream.guest.memory import BeforeWrite, Placement, RAMImage
from vmstream.stream.events import MappedPages, MultiFDPacket, PageBatch, RAMBlock

# Of a place: bits of the offset; what is above is 1 for the spool, 2 for the first input.
_OFFSET_BITS = 48
_SPOOL = 1 << _OFFSET_BITS
_FIRST_INPUT = 2

# Pages that are indexed if nobody says otherwise: 2 GiB of places, for 1 TiB in pages of 4 KiB.
MAX_INDEXED = 1 << 28
# What a page takes of a bound that is stated in bytes.
_PAGE_OF_LIMIT = 4096

# Bytes that are read at a time.
_AT_ONCE = 1 << 20

# Runs of pages that are read one by one; and how many pages apart two of more runs may stand in the
# input to be read at once.
_SCATTERED = 16
_CLOSE = 4

_Numbers = NDArray[np.int64]
_Places = NDArray[np.uint64]


def most_pages(max_ram: int | None) -> int:
    """Return how many pages are taken, of RAM that is bounded to so many bytes."""
    return MAX_INDEXED if max_ram is None else max_ram // _PAGE_OF_LIMIT


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


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an input in which all pages of a range stand that have data.

    Attributes:
        positions: Of the pages, int64 (n,), bytes from the start of the span on; -1 for zeros.
        place: Number of the first byte.
        length: Bytes.
    """

    positions: _Numbers
    place: int
    length: int


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
        from_files: Blocks that have their memory from a file.

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
        self.from_files: set[int] = set()
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

    def take_file(self, block: int, source: int) -> None:
        """Take the memory of a block from an input that is that and nothing else.

        Pages that come after it count.
        """
        size, length = self.page_size, self.blocks[block].used_length
        base, whole, places = self._place(source, 0, length), length // size, self._places[block]
        for at in range(0, whole, _AT_ONCE):
            stop = min(at + _AT_ONCE, whole)
            places[at:stop] = np.arange(at, stop).view(np.uint64) * np.uint64(size)
            places[at:stop] += np.uint64(base)
        if length % size:
            # What is less than a page has no place in an input.
            rest = memoryview(bytearray(length % size))
            self._read(base + whole * size, rest)
            self._sinks[block].write(whole * size, rest)
        self._image.filled(block)
        self.from_files.add(block)

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

    def watch(self, before: BeforeWrite) -> None:
        """Have this called ahead of each change, while the index has what is replaced."""
        self._image.before = before

    def places(self) -> Iterator[_Places]:
        """Yield the places of all pages, block by block, in stretches."""
        for places in self._places:
            for at in range(0, len(places), _AT_ONCE):
                yield places[at : at + _AT_ONCE]

    def restore(self, read: Callable[[memoryview], None], lengths: Sequence[int]) -> None:
        """Take the places that `places` gave, little-endian; no pages may be added behind it.

        Args:
            read: Fills a buffer with the bytes that come next.
            lengths: Of the inputs, bytes.

        Raises:
            ValueError: A place is in no input.
        """
        size, first = self.page_size, 0
        last = np.array([-1] * _FIRST_INPUT + [n - size for n in lengths], np.int64)
        for places in self.places():
            part = np.empty(len(places), "<u8")
            read(part.view(np.uint8).data)
            if part.any():
                number = np.minimum(part >> _OFFSET_BITS, len(last)).astype(np.int64)
                offset = (part & np.uint64(_SPOOL - 1)).astype(np.int64)
                legal = offset <= np.append(last, -1)[number]
                legal |= (number == 1) & (offset == (first + np.arange(len(part))) * size)
                if not (legal | (part == 0)).all():
                    raise ValueError("a place that is in no input")
                places[:] = part
            first += len(part)

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
        page, inside = divmod(offset, size)
        if inside + len(buffer) <= size:
            place = int(self._places[block][page]) if len(buffer) else 0
            if place:
                self._read(place + inside, buffer)
            else:
                buffer[:] = bytes(len(buffer))
            return
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

    def may_have_data(self, block: int, page: _Numbers) -> NDArray[np.bool_]:
        """Whether each of these pages may have other bytes than zeros, bool (n,)."""
        data: NDArray[np.bool_] = self._places[block][page] != 0
        return data

    def span(self, block: int, offset: int, length: int) -> Span | None:
        """Return where the pages of a range stand together, if they do.

        Args:
            block: Index of the block.
            offset: In it, bytes.
            length: Bytes; the span has twice as many at the most.

        Returns:
            `None` if not all of them with data stand in one input, close to each other; or the
            range is not one of whole pages.
        """
        size = self.page_size
        if offset % size or length % size:
            return None
        places = self._places[block][offset // size : (offset + length) // size].view(np.int64)
        data = places != 0
        there = places[data]
        if not len(there):
            return None
        first, last = int(there.min()), int(there.max())
        if first >> _OFFSET_BITS < _FIRST_INPUT or last + size - first > 2 * length:
            return None
        return Span(np.where(data, places - first, -1), first, last + size - first)

    def read_span(self, span: Span, buffer: memoryview) -> None:
        """Fill a buffer of its length. Raises as `read_into` does."""
        self._read(span.place, buffer)

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
        if len(first) > _SCATTERED and self._gather(places, pages):
            return
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

    # Read pages that lie scattered, each close to others, as those of several passes do: a stretch
    # of the input at once, and pages from there. A page more is copied in 0.4 us, a read takes 3.
    # Whether it can be: what lies between may be what the input cannot give.
    def _gather(self, places: _Places, pages: NDArray[np.uint8]) -> bool:
        size = self.page_size
        order = np.argsort(places)
        order = order[np.count_nonzero(places == 0) :]
        at = places[order].view(np.int64)
        cuts = (np.flatnonzero(np.diff(at) > _CLOSE * size) + 1).tolist()
        try:
            for begin, stop in pairwise([0, *cuts, len(at)]):
                start = int(at[begin])
                buffer = np.empty(int(at[stop - 1]) - start + size, np.uint8)
                self._read(start, buffer.data)
                rows: NDArray[np.uint8] = np.ndarray(
                    (len(buffer) - size + 1, size), np.uint8, buffer.data, 0, (1, 1)
                )
                pages[order[begin:stop]] = rows[at[begin:stop] - start]
        except StreamError:
            return False
        pages[places == 0] = 0
        return True

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
