"""RAM images from page batches: the last record of a page wins, zero pages too.

Bytes are written where a block's pages belong in an output; nothing is held but one bit a page
that says whether the output has data there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import UnsupportedError, quoted
from vmstream.guest.coverage import PageBitmap
from vmstream.stream.events import PageBatch, RAMBlock
from vmstream.wire.constants import RAMSaveFlag
from vmstream.wire.layout import page_stride

_ZERO = int(RAMSaveFlag.ZERO)
_ENCODED = int(RAMSaveFlag.XBZRLE | RAMSaveFlag.COMPRESS_PAGE)

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
    """

    def __init__(
        self, blocks: tuple[RAMBlock, ...], page_size: int, placements: list[Placement]
    ) -> None:
        self._page_size = page_size
        self._blocks = blocks
        self._places: list[list[Placement]] = [[] for _ in blocks]
        for place in placements:
            self._places[place.block].append(place)
        self._data = [PageBitmap(-(-b.used_length // page_size)) for b in blocks]

    def add(self, batch: PageBatch) -> None:
        """Write one batch.

        Raises:
            UnsupportedError: A record of a kind that is not decoded here.
        """
        block = batch.block
        first = int(block[0])
        if first == int(block[-1]) and (block == first).all():
            self._add(batch, first, None)
            return
        for index in np.unique(block).tolist():
            self._add(batch, index, np.flatnonzero(block == index))

    # Write the records of one block; `rows` are their places in the batch, `None` for all.
    def _add(self, batch: PageBatch, block: int, rows: _Numbers | None) -> None:
        if not self._places[block]:
            return
        if rows is None:
            rows = np.arange(len(batch))
        flags = batch.flags[rows]
        if (flags & _ENCODED).any():
            at = int(rows[np.argmax((flags & _ENCODED) != 0)])
            kind = RAMSaveFlag(int(batch.flags[at]) & _ENCODED)
            raise UnsupportedError(
                int(batch.record_offset[at]),
                f"{kind.name} page record: not decoded by this version",
                context=f"block {quoted(self._blocks[block].idstr)}",
                advice="`vmstream inspect` counts them",
            )
        page = (batch.block_offset[rows] // np.uint64(self._page_size)).view(np.int64)
        if not (np.diff(page) > 0).all():
            # A page may come twice: only its last record counts, and then order does not.
            page, last = np.unique(page[::-1], return_index=True)
            rows = rows[len(rows) - 1 - last]
            flags = batch.flags[rows]
        end = (batch.record_offset[rows] + batch.size[rows]).view(np.int64) - batch.window_offset
        filled = (flags & _ZERO) != 0
        self._write_pages(batch, block, page[~filled], end[~filled] - self._page_size)
        if filled.any():
            fill = np.frombuffer(batch.window, np.uint8)[end[filled] - 1]
            zero = fill == 0
            self._write_zeros(block, page[filled][zero])
            if not zero.all():
                self._write_fills(block, page[filled][~zero], fill[~zero])

    def _write_pages(
        self, batch: PageBatch, block: int, page: _Numbers, position: _Numbers
    ) -> None:
        size, length = self._page_size, self._blocks[block].used_length
        offset = page * size
        rest = length % size
        if rest and len(page) and int(page[-1]) == length // size:
            # A block whose length is no multiple of the page size ends inside its last page.
            at = int(position[-1])
            self._write_part(block, int(offset[-1]), batch.window[at : at + rest])
            self._data[block].add(page[-1:])
            page, position, offset = page[:-1], position[:-1], offset[:-1]
        for place in self._places[block]:
            low, high = np.searchsorted(
                offset, (place.block_offset, place.block_offset + place.length)
            )
            if low < high:
                place.sink.write_pages(
                    batch.window,
                    position[low:high],
                    offset[low:high] + (place.sink_offset - place.block_offset),
                    size,
                    page_stride(size),
                )
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
