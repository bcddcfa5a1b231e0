"""RAM images from page batches: the last record of a page wins, zero pages too.

Bytes are written where a block's pages belong in an output; nothing is held but one bit a page
that says whether the output has data there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import UnsupportedError
from vmstream.guest.coverage import PageBitmap
from vmstream.stream.events import PageBatch, RAMBlock, Run
from vmstream.wire.constants import RAMSaveFlag


class PageSink(Protocol):
    """Where pages go; offsets in bytes."""

    def write(self, offset: int, data: memoryview | bytes | NDArray[np.uint8]) -> None:
        """Write contiguous bytes."""
        ...

    def write_rows(self, offset: int, rows: NDArray[np.uint8]) -> None:
        """Write rows behind one another, uint8 (n, size)."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Write zeros over what was written before."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """A stretch of a block and its place in a sink, bytes."""

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
        # Pages from here on were never written: most runs of zero pages need no look.
        self._top = [0] * len(blocks)

    def add(self, batch: PageBatch) -> None:
        """Write one batch.

        Raises:
            UnsupportedError: A record of a kind that is not decoded here.
        """
        fills = batch.fills()
        filled = bool(fills.any())
        seen = 0
        for run in batch.runs():
            if not self._places[run.block]:
                pass
            elif run.kind == RAMSaveFlag.PAGE:
                self._write_pages(batch, run)
            elif run.kind == RAMSaveFlag.ZERO:
                if filled:
                    self._write_fills(run, fills[seen : seen + run.count])
                else:
                    self._write_zeros(run)
            else:
                raise UnsupportedError(
                    run.record_offset,
                    f"{run.kind.name} page record: not decoded by this version",
                    context=f"block {self._blocks[run.block].idstr!r}",
                    advice="`vmstream inspect` counts them",
                )
            if run.kind == RAMSaveFlag.ZERO:
                seen += run.count

    def _write_pages(self, batch: PageBatch, run: Run) -> None:
        size = self._page_size
        rows: NDArray[np.uint8] = np.ndarray(
            (run.count, size), np.uint8, batch.window, run.payload, (run.stride, 1)
        )
        self._write_rows(run, rows)

    def _write_rows(self, run: Run, rows: NDArray[np.uint8]) -> None:
        size = self._page_size
        end = run.block_offset + run.count * size
        for place in self._places[run.block]:
            begin = max(run.block_offset, place.block_offset)
            stop = min(end, place.block_offset + place.length)
            if begin >= stop:
                continue
            at = place.sink_offset + begin - place.block_offset
            first = (begin - run.block_offset) // size
            whole, rest = divmod(stop - begin, size)
            place.sink.write_rows(at, rows[first : first + whole])
            if rest:
                # A block whose length is no multiple of the page size ends inside its last page.
                place.sink.write(at + whole * size, rows[first + whole][:rest])
        page = run.block_offset // size
        self._data[run.block].add_range(page, page + run.count)
        self._top[run.block] = max(self._top[run.block], page + run.count)

    def _write_zeros(self, run: Run) -> None:
        size = self._page_size
        page = run.block_offset // size
        stop = min(page + run.count, self._top[run.block])
        if page >= stop:
            return
        data = self._data[run.block]
        written = data.members(page, stop)
        if not written.any():
            return
        # Only pages that have data: the rest stay holes.
        edges = np.flatnonzero(np.diff(written, prepend=False, append=False)).reshape(-1, 2)
        for begin, end in (edges + page).tolist():
            for place in self._places[run.block]:
                low = max(begin * size, place.block_offset)
                high = min(end * size, place.block_offset + place.length)
                if low < high:
                    place.sink.zero(place.sink_offset + low - place.block_offset, high - low)
        data.discard_range(page, stop)

    # Fill bytes other than zero: written by 0.10 to 1.4 for any page of equal bytes
    # (QEMU v1.4.0 arch_init.c ram_save_block(), is_dup_page()).
    def _write_fills(self, run: Run, fills: NDArray[np.uint8]) -> None:
        size = self._page_size
        edges = [0, *(np.flatnonzero(np.diff(fills)) + 1).tolist(), run.count]
        for begin, end in zip(edges, edges[1:], strict=False):
            part = run._replace(block_offset=run.block_offset + begin * size, count=end - begin)
            value = int(fills[begin])
            if value:
                row = np.full((1, size), value, np.uint8)
                self._write_rows(part, np.broadcast_to(row, (part.count, size)))
            else:
                self._write_zeros(part)
