"""What a walk over page records found, and what becomes of it: columns, or a few long runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmstream.stream.events import PageColumns, Run
from vmstream.wire import grammar
from vmstream.wire.constants import PAGE_KINDS
from vmstream.wire.layout import RAM_WORD_SIZE, dtype_of

# From this mean length on a batch is cheaper as runs than as columns (tests/bench/bench.py).
FEW_RUNS = 256

_PAGE_KINDS = int(PAGE_KINDS)
_KINDS = {int(kind): kind for kind in PAGE_KINDS}
_HEAD = dtype_of(grammar.RAM_WORD)["head"]

# Behind the last piece of heads.
_NO_PIECE = (-1, np.zeros(0, np.uint64), np.zeros(0, np.int64))


class Walk:
    """What was walked: records of one kind and block behind each other, as columns."""

    __slots__ = ("block", "count", "flags", "long", "payload", "start", "stride", "total")

    def __init__(self) -> None:
        self.start: list[int] = []
        self.count: list[int] = []
        self.stride: list[int] = []
        self.flags: list[int] = []
        self.payload: list[int] = []
        self.block: list[int] = []
        # Heads of long ones, which were read to find their ends: (first row, uint64 (n,), cuts).
        self.long: list[tuple[int, NDArray[np.uint64], NDArray[np.int64]]] = []
        self.total = 0

    def add(
        self, start: int, count: int, stride: int, flags: int, payload: int, block: int
    ) -> None:
        """Add records that stand behind what is there."""
        self.start.append(start)
        self.count.append(count)
        self.stride.append(stride)
        self.flags.append(flags)
        self.payload.append(payload)
        self.block.append(block)
        self.total += count

    def few_runs(
        self, view: memoryview, base: int, page_size: int, lengths: Sequence[int]
    ) -> tuple[Run, ...] | None:
        """Return what was walked as runs.

        `None` if there are many, or if one may go beyond the end of its block.

        Args:
            view: The window.
            base: Absolute offset of its first byte.
            page_size: Target page size, bytes.
            lengths: Of the RAM blocks, bytes.
        """
        most = self.total // FEW_RUNS
        if len(self.start) > most:
            return None
        # Of each run: block, block offset, pages, start, stride, flags and size of the payload.
        found: list[list[int]] = []
        pieces = iter(self.long)
        piece_row, piece, piece_cuts = next(pieces, _NO_PIECE)
        row, neighbour = 0, -1
        alike: list[int] = []
        for start, count, *shape in zip(
            self.start, self.count, self.block, self.stride, self.flags, self.payload, strict=True
        ):
            block, stride, flags, payload = shape
            if shape != alike:
                alike, neighbour = shape, -1
            at, stop = start, row + count
            while row < stop:
                if row == piece_row:
                    heads, cuts = piece, piece_cuts
                    piece_row, piece, piece_cuts = next(pieces, _NO_PIECE)
                else:
                    heads = gather(view, start, count, stride)
                    cuts = cuts_of(heads, page_size)
                if len(found) + len(cuts) > most:
                    return None
                edges = [*cuts.tolist(), len(heads)]
                if int(heads[0]) != neighbour:
                    edges.insert(0, 0)
                else:
                    found[-1][2] += edges[0]
                for first, end in pairwise(edges):
                    offset = int(heads[first]) & -page_size
                    begin = at + first * stride
                    found.append([block, offset, end - first, begin, stride, flags, payload])
                neighbour = int(heads[-1]) + page_size
                row += len(heads)
                at += len(heads) * stride
        if any(offset + (n - 1) * page_size >= lengths[b] for b, offset, n, *_ in found):
            return None
        return tuple(
            Run(_KINDS[f & _PAGE_KINDS], b, offset, n, base + begin, begin + s - p, s, f)
            for b, offset, n, begin, s, f, p in found
        )

    def columns(self, view: memoryview, base: int, page_size: int) -> PageColumns:
        """Return what was walked as columns: a stretch is spread over its records."""
        start, count = np.array(self.start, np.int64), np.array(self.count, np.int64)
        stride = np.array(self.stride, np.int64)
        if len(start) == 1:
            position = np.arange(self.total)
            position *= stride
            position += start
        else:
            before = np.cumsum(count) - count
            position = np.repeat(start - before * stride, count)
            position += np.repeat(stride, count) * np.arange(self.total)
        heads = self._heads(view, position)
        return PageColumns(
            record_offset=(position + base).view(np.uint64),
            size=np.repeat(stride.astype(np.uint32), count),
            flags=np.repeat(np.array(self.flags, np.uint16), count),
            block=np.repeat(np.array(self.block, np.int32), count),
            block_offset=heads & np.uint64(~(page_size - 1) & 0xFFFFFFFFFFFFFFFF),
            payload_size=np.repeat(np.array(self.payload, np.uint32), count),
        )

    # The heads of all that was walked, in host order.
    def _heads(self, view: memoryview, position: NDArray[np.int64]) -> NDArray[np.uint64]:
        # A view that starts at every byte, so that heads can be taken from any offset.
        places = len(view) - RAM_WORD_SIZE + 1
        wire: NDArray[np.uint64] = np.ndarray((places,), _HEAD, view, 0, (1,))
        if not self.long:
            return wire[position]
        pieces: list[NDArray[np.uint64]] = []
        row = 0
        for first, heads, _ in self.long:
            pieces += (wire[position[row:first]], heads)
            row = first + len(heads)
        pieces.append(wire[position[row:]])
        return np.concatenate(pieces)


def gather(view: memoryview, pos: int, count: int, stride: int) -> NDArray[np.uint64]:
    """Return the heads of records that are evenly spaced, in host order, uint64 (count,)."""
    wire: NDArray[np.uint64] = np.ndarray((count,), _HEAD, view, pos, (stride,))
    return wire.astype(np.uint64)


def cuts_of(heads: NDArray[np.uint64], page_size: int) -> NDArray[np.int64]:
    """Return the rows whose head is not that of the page behind the row before, int64 (k,)."""
    cuts: NDArray[np.int64] = (heads[1:] - heads[:-1] != page_size).nonzero()[0] + 1
    return cuts
