"""Two memories held against each other, a MiB at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import TruncatedError
from vmstream.guest.imageranges import Image
from vmstream.guest.physical import PhysicalMap, Region
from vmstream.ops.memory import GuestMemory, Stretch
from vmstream.ops.pipeline import Progress
from vmstream.report.models.diff import DiffBlock, DiffRAM, DiffRange, DiffRow, DiffRun
from vmstream.report.models.names import in_full, readable
from vmstream.stream.events import RAMBlock
from vmstream.transport.source import RandomAccess

# Bytes that are compared at a time.
_AT_ONCE = 1 << 20

# Bytes of a row of the dump.
ROW = 16

# What a report lists.
MAX_RUNS = 1 << 16
MAX_ROWS = 4096


class Memory(Protocol):
    """Contiguous memory: a `Stretch`, or a part of a file."""

    def has_data(self, at: int, length: int) -> bool:
        """Whether any page that a range touches may have other bytes than zeros."""
        ...

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer from a place on."""
        ...


class FilePart:
    """Memory in a file, from an offset on."""

    def __init__(self, file: RandomAccess, offset: int) -> None:
        self._file = file
        self._offset = offset

    def has_data(self, at: int, length: int) -> bool:
        """Return True: the file tells when it is read."""
        return True

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer. Raises TruncatedError if the file is shorter than it was."""
        got = self._file.read_into(self._offset + at, buffer)
        if got < len(buffer):
            raise TruncatedError(self._offset + at + got, "the image is shorter than it was")


@dataclass(frozen=True, slots=True)
class Part:
    """Memory that both have, without a hole by address.

    Attributes:
        block: Index in the report's blocks.
        block_offset: Bytes.
        gpa: Guest-physical address; `None` if it is not known.
        length: Bytes.
        a: Memory of A, from 0 on.
        b: Memory of B, from 0 on.
    """

    block: int
    block_offset: int
    gpa: int | None
    length: int
    a: Memory
    b: Memory


@dataclass(frozen=True, slots=True)
class Comparable:
    """What is compared, and what is not.

    Attributes:
        blocks: Of both, nothing counted yet.
        parts: In the order of the blocks.
        only_in: Memory that one side alone has by address.
        doubts: What speaks against the addresses that parts were found by.
        unequal: A block or a range is there on one side alone.
    """

    blocks: list[DiffBlock]
    parts: list[Part]
    only_in: list[DiffRange]
    doubts: tuple[str, ...]
    unequal: bool


def two_streams(a: GuestMemory, b: GuestMemory) -> Comparable:
    """Pair blocks by their names; addresses are those of A, where they are known."""
    blocks: list[DiffBlock] = []
    parts: list[Part] = []
    others = {block.idstr: number for number, block in enumerate(b.blocks)}
    for number, block in enumerate(a.blocks):
        other = others.pop(block.idstr, None)
        length_b = None if other is None else b.blocks[other].used_length
        compared = min(block.used_length, length_b or 0)
        why = None if length_b == block.used_length else "of another length"
        if other is None:
            why = "only in A"
        elif number in a.elsewhere or other in b.elsewhere:
            why, compared = "its memory is in a file (x-ignore-shared)", 0
        blocks.append(_block(block, block.used_length, length_b, compared, why))
        if other is not None:
            for region in _by_address(a, number, compared):
                gpa = None if region.gpa < 0 else region.gpa
                ours = Stretch(a, (region,))
                theirs = Stretch(b, (replace(region, block=other),))
                parts.append(Part(number, region.block_offset, gpa, region.length, ours, theirs))
    for other in others.values():
        block = b.blocks[other]
        blocks.append(_block(block, None, block.used_length, 0, "only in B"))
    unequal = any(b.length_a != b.length_b for b in blocks)
    return Comparable(blocks, parts, [], (), unequal)


def _block(
    block: RAMBlock, length_a: int | None, length_b: int | None, compared: int, why: str | None
) -> DiffBlock:
    name = readable(block.idstr)
    return DiffBlock(name, length_a, length_b, compared, 0, 0, why, in_full(block.idstr))


# The first bytes of a block, cut where its addresses are; one that is not known is -1. Of two
# addresses of one place the lower counts.
def _by_address(memory: GuestMemory, block: int, length: int) -> Iterator[Region]:
    regions = memory.map.regions if memory.has_map else ()
    mine = sorted((r for r in regions if r.block == block), key=lambda r: (r.block_offset, r.gpa))
    at = 0
    for region in mine:
        start = max(at, region.block_offset)
        stop = min(length, region.block_offset + region.length)
        if start >= stop:
            continue
        if start > at:
            yield Region(-1, start - at, block, at)
        yield Region(region.gpa + start - region.block_offset, stop - start, block, start)
        at = stop
    if at < length:
        yield Region(-1, length - at, block, at)


def with_image(memory: GuestMemory, image: Image, file: RandomAccess, *, first: bool) -> Comparable:
    """Pair by guest-physical address.

    A raw image does not say where the guest has RAM: what is between is not compared.

    Args:
        memory: Of the stream.
        image: The other side.
        file: Its bytes.
        first: The stream is A.

    Raises:
        OutputError: The stream does not tell where its blocks stand.
    """
    layout = memory.map
    compared = [0] * len(memory.blocks)
    parts: list[Part] = []
    begins = [r.gpa for r in image.ranges]
    for region in sorted(layout.regions, key=lambda r: (r.block, r.block_offset)):
        if region.block in memory.elsewhere:
            continue
        end = region.gpa + region.length
        for there in image.ranges[max(0, bisect_right(begins, region.gpa) - 1) :]:
            gpa = max(region.gpa, there.gpa)
            length = min(end, there.gpa + there.length) - gpa
            if there.gpa >= end:
                break
            if length <= 0:
                continue
            offset = region.block_offset + gpa - region.gpa
            ours: Memory = Stretch(memory, (Region(gpa, length, region.block, offset),))
            theirs: Memory = FilePart(file, there.offset + gpa - there.gpa)
            a, b = (ours, theirs) if first else (theirs, ours)
            parts.append(Part(region.block, offset, gpa, length, a, b))
            compared[region.block] += length
    blocks = []
    for number, (block, done) in enumerate(zip(memory.blocks, compared, strict=True)):
        why = None if done >= block.used_length else "not all of it is in the image"
        if number in memory.elsewhere:
            why = "its memory is in a file (x-ignore-shared)"
        elif all(r.block != number for r in layout.regions):
            why = "it has no address in the map"
        length = block.used_length
        length_a, length_b = (length, None) if first else (None, length)
        blocks.append(_block(block, length_a, length_b, done, why))
    only_in = _only_in(layout, image, first=first)
    # A file that is as long as a machine has addresses has more than RAM.
    counts = [r for r in only_in if image.format != "raw" or r.side == ("a" if first else "b")]
    return Comparable(blocks, parts, only_in, layout.doubts, bool(counts))


def _only_in(layout: PhysicalMap, image: Image, *, first: bool) -> list[DiffRange]:
    ours = [(r.gpa, r.gpa + r.length) for r in layout.regions]
    theirs = [(r.gpa, r.gpa + r.length) for r in image.ranges]
    sides = ("a", "b") if first else ("b", "a")
    if image.format == "raw":
        # Holes of the guest are zeros in the file, or what a device had there.
        theirs_alone = [(layout.size, theirs[0][1])] if theirs[0][1] > layout.size else []
    else:
        theirs_alone = _without(theirs, ours)
    found = [DiffRange(sides[0], at, end - at) for at, end in _without(ours, theirs)]
    return found + [DiffRange(sides[1], at, end - at) for at, end in theirs_alone]


# Ranges, less what others cover; both ascending.
def _without(
    ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    left: list[tuple[int, int]] = []
    first = 0
    for begin, end in ranges:
        at = begin
        while first < len(others) and others[first][1] <= begin:
            first += 1
        for start, stop in others[first:]:
            if start >= end:
                break
            if start > at:
                left.append((at, start))
            at = max(at, stop)
        if at < end:
            left.append((at, end))
    return left


class _Counter:
    """Runs, rows and sums of what differs."""

    def __init__(self, page_size: int, blocks: int, *, rows: bool) -> None:
        self.page_size = page_size
        self.pages = [0] * blocks
        self.bytes = [0] * blocks
        self.runs: list[DiffRun] = []
        self.run_count = 0
        self.rows: list[DiffRow] = []
        self.row_count = 0
        self._want_rows = rows
        self._last: Part | None = None  # of the run that may go on
        self._end = 0  # of it, in the part

    def add(self, part: Part, at: int, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
        """Take pages that differ somewhere, uint8 (n, page size) at a place in a part."""
        page = np.flatnonzero((a.view(np.uint64) != b.view(np.uint64)).any(axis=1))
        differ = a[page] != b[page]
        self.count(part, at, page, np.count_nonzero(differ, axis=1))
        if self._want_rows:
            self._dump(part, at, page, a, b, differ)

    def count(
        self, part: Part, at: int, page: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Take how many bytes differ in which pages, ascending, from a place in a part on."""
        if not len(page):
            return
        self.pages[part.block] += len(page)
        self.bytes[part.block] += int(counts.sum())
        first = np.concatenate(([0], np.flatnonzero(np.diff(page) != 1) + 1))
        sums = np.add.reduceat(counts, first).tolist()
        lengths = np.diff(first, append=len(page)).tolist()
        for start, length, changed in zip(page[first].tolist(), lengths, sums, strict=True):
            self._run(part, at + start * self.page_size, length, changed)

    def _run(self, part: Part, at: int, pages: int, changed: int) -> None:
        goes_on = self._last is part and self._end == at
        self._last, self._end = part, at + pages * self.page_size
        if not goes_on:
            self.run_count += 1
            if len(self.runs) < MAX_RUNS:
                gpa = None if part.gpa is None else part.gpa + at
                self.runs.append(DiffRun(part.block, part.block_offset + at, gpa, pages, changed))
        elif self.run_count <= MAX_RUNS:
            last = self.runs[-1]
            self.runs[-1] = replace(last, pages=last.pages + pages, bytes=last.bytes + changed)

    def _dump(
        self,
        part: Part,
        at: int,
        page: NDArray[np.int64],
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        differ: NDArray[np.bool_],
    ) -> None:
        number, inside = np.nonzero(differ.reshape(len(page), -1, ROW).any(axis=2))
        self.row_count += len(number)
        left = MAX_ROWS - len(self.rows)
        for n, row in zip(number[:left].tolist(), inside[:left].tolist(), strict=True):
            place = at + int(page[n]) * self.page_size + row * ROW
            gpa = None if part.gpa is None else part.gpa + place
            texts = (m[page[n], row * ROW :][:ROW].tobytes().hex() for m in (a, b))
            self.rows.append(DiffRow(part.block, part.block_offset + place, gpa, *texts))


class _Pieces:
    """Compares a piece of memory at a time."""

    def __init__(self, page_size: int, counter: _Counter) -> None:
        self.step = max(1, _AT_ONCE // page_size) * page_size
        self._size = page_size
        self._counter = counter
        # A span can be twice as long as its pages.
        self._a, self._b = (np.empty(2 * self.step, np.uint8) for _ in "ab")
        self._differ = np.empty(2 * self.step, np.bool_)

    def compare(self, part: Part, at: int, *, spans: bool) -> None:
        """Compare a step from a place on, or to the end of the part."""
        length = min(self.step, part.length - at)
        if not part.a.has_data(at, length) and not part.b.has_data(at, length):
            return
        if spans and self._compare_spans(part, at, length):
            return
        whole = -(-length // self._size) * self._size
        for memory, buffer in ((part.a, self._a), (part.b, self._b)):
            memory.read_into(at, buffer[:length].data)
            # What is behind the end of a part is no difference.
            buffer[length:whole] = 0
        a, b = self._a[:whole], self._b[:whole]
        if not np.array_equal(a.view(np.uint64), b.view(np.uint64)):
            shape = -1, self._size
            self._counter.add(part, at, a.reshape(shape), b.reshape(shape))

    # Pages that stand to each other in both inputs alike, as they do in two plain streams of one
    # guest, are compared with what is between them: nothing is copied. Whether they do.
    def _compare_spans(self, part: Part, at: int, length: int) -> bool:
        if not isinstance(part.a, Stretch) or not isinstance(part.b, Stretch):
            return False
        ours, theirs = part.a.span(at, length), part.b.span(at, length)
        if ours is None or theirs is None or not np.array_equal(ours.positions, theirs.positions):
            return False
        a, b = self._a[: ours.length], self._b[: ours.length]
        part.a.read_span(ours, a.data)
        part.b.read_span(theirs, b.data)
        differ = np.not_equal(a, b, out=self._differ[: ours.length])
        if not differ.any():
            return True
        order = np.argsort(ours.positions, kind="stable")
        order = order[np.count_nonzero(ours.positions < 0) :]
        begins = ours.positions[order]
        places = np.flatnonzero(differ)
        number = np.searchsorted(begins, places, side="right") - 1
        inside = places - begins[number] < self._size
        counts = np.bincount(order[number[inside]], minlength=len(ours.positions))
        page = np.flatnonzero(counts)
        self._counter.count(part, at, page, counts[page])
        return True


def compare(
    these: Comparable, page_size: int, *, rows: bool = False, progress: Progress | None = None
) -> DiffRAM:
    """Compare all parts.

    Args:
        these: What is compared.
        page_size: What pages are counted in, bytes.
        rows: Keep the bytes that differ, too.
        progress: Called with (bytes that are done, those there are).

    Raises:
        StreamError: An input is damaged where it is read, or not what it was.

    Memory:
        64 MiB at the most, and what the report lists.
    """
    counter = _Counter(page_size, len(these.blocks), rows=rows)
    pieces = _Pieces(page_size, counter)
    total, before = sum(p.length for p in these.parts), 0
    for part in these.parts:
        for at in range(0, part.length, pieces.step):
            pieces.compare(part, at, spans=not rows)
            if progress is not None:
                progress(before + at, total)
        before += part.length
    blocks = [
        replace(block, pages=pages, bytes=changed)
        for block, pages, changed in zip(these.blocks, counter.pages, counter.bytes, strict=True)
    ]
    return DiffRAM(
        page_size,
        sum(b.compared for b in blocks),
        sum(counter.pages),
        sum(counter.bytes),
        blocks,
        counter.runs,
        counter.run_count,
        counter.rows,
        counter.row_count,
        these.only_in,
        list(these.doubts),
    )
