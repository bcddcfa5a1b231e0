"""mapped-ram: a bitmap and a page area for each block, at fixed places of the file.

Bitmaps are written when the pages are, so that only a finished file can be read, and the list of
blocks runs through it from area to area, so that it takes an input to seek in.
QEMU v10.1.0 docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import (
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    quoted,
)
from vmstream.stream.cursor import Cursor, NeedData, Steps
from vmstream.stream.events import Anomaly, MappedBlock, MappedPages
from vmstream.stream.limits import check_ram
from vmstream.wire import parse
from vmstream.wire.constants import MAX_RAM_BLOCKS, TARGET_PAGE_SIZES
from vmstream.wire.layout import RAM_WORD_SIZE

# Pages whose bits are unpacked at a time, a byte for each.
_AT_ONCE = 1 << 20

# Bytes of a big-endian long; 1 is little-endian, where longs of any size read the same.
_ORDERS = (1, 8, 4)

# To tell the order of bitmaps: bytes of each that are looked through, longs of it at the most, and
# bytes of pages in all; and how many times as many contradictions an order has that is not the one.
_LOOKED_THROUGH = 1 << 20
_LONGS = 16
_LOOKED_AT = 16 << 20
_CLEARLY = 8

# Unset pages in a row that are not read to get at what is behind them, bytes.
_SKIPPED = 1 << 20


@dataclass(frozen=True, slots=True)
class Area:
    """A block and its places in the stream, bytes.

    Attributes:
        entry: As on the wire, with offsets in the file.
        offset: Where the entry stands.
        bitmap: Where its bitmap stands.
        pages: Where its page area starts.
        end: Where the next entry stands.
    """

    entry: parse.MappedEntry
    offset: int
    bitmap: int
    pages: int
    end: int

    @property
    def count(self) -> int:
        """Pages of the block."""
        return self.entry.block.used_length // self.entry.page_size

    @property
    def left_out(self) -> bool:
        """The block has neither bitmap nor area: its memory is shared."""
        return self.end == self.bitmap


def mapped_blocks(
    cursor: Cursor,
    total: int,
    context: str,
    *,
    ignore_shared: bool,
    origin: int,
    max_ram: int,
    seekable: bool,
) -> Generator[NeedData, None, tuple[list[Area], StreamError | None]]:
    """Look through the list of blocks; the cursor stays at the MEM_SIZE word.

    Args:
        cursor: Where decoding stands.
        total: Sum of the lengths, bytes.
        context: For errors.
        ignore_shared: The capability x-ignore-shared was on.
        origin: Offset of the stream's first byte in the file.
        max_ram: Bytes that the list may state.
        seekable: The input is one to seek in. Otherwise the first block is all that can be had.

    Returns:
        The blocks, and what is wrong with the one behind them: an entry that contradicts another,
        the total, or QEMU's rules, or is cut off.
    """
    areas: list[Area] = []
    try:
        check_ram(max_ram, total, None, cursor.offset, context)
        at, left = cursor.offset + RAM_WORD_SIZE, total
        while left:
            if len(areas) >= MAX_RAM_BLOCKS:
                raise LimitError(at, f"over {MAX_RAM_BLOCKS} RAM blocks", context=context)
            if seekable:
                data = yield from cursor.peek(at, parse.LONGEST_MAPPED_ENTRY)
            else:
                yield from cursor.want(RAM_WORD_SIZE + parse.LONGEST_MAPPED_ENTRY)
                data = bytes(cursor.rest()[RAM_WORD_SIZE:][: parse.LONGEST_MAPPED_ENTRY])
            try:
                entry, size = parse.mapped_ram_block(data, at, ignore_shared=ignore_shared)
            except parse.Short:
                # Where the input ends is not known if nothing is there: the header before tells.
                raise TruncatedError(
                    at + len(data) if data or not areas else areas[-1].offset,
                    "the input ends before the end of the mapped-ram list",
                    context=context,
                ) from None
            if areas and entry.page_size != areas[0].entry.page_size:
                raise IntegrityError(at, "mapped-ram blocks of several page sizes", context=context)
            if ignore_shared and not entry.bitmap_offset and not entry.pages_offset:
                # A block that is left out has neither (seen from 11.1; 10.0 fails).
                area = Area(entry, at, at + size, at + size, at + size)
            else:
                pages = entry.pages_offset - origin
                end = pages + entry.block.used_length
                area = Area(entry, at, entry.bitmap_offset - origin, pages, end)
            _check(area, at + size, left, context)
            if not areas:
                # All have pages of one size.
                check_ram(max_ram, total, entry.page_size, at, context)
            areas.append(area)
            if not seekable:
                raise UnsupportedError(
                    at + size,
                    "mapped-ram takes an input to seek in, and this is a pipe or compressed",
                    context=context,
                    advice="save it to a file first, unpacked, or give --spool DIR for a pipe",
                )
            left -= entry.block.used_length
            at = area.end
    except StreamError as error:
        return areas, error
    return areas, None


def _check(area: Area, behind: int, left: int, context: str) -> None:
    entry = area.entry
    length, page_size = entry.block.used_length, entry.page_size
    what = ""
    if page_size not in TARGET_PAGE_SIZES:
        what = f"pages of {page_size} bytes"
    elif not 0 < length <= left or length % page_size:
        what = f"a length of {length:#x}"
    elif area.bitmap < behind or (
        area.end > behind and area.pages < area.bitmap + _bitmap_size(entry)
    ):
        what = f"bitmap at {entry.bitmap_offset:#x}, pages at {entry.pages_offset:#x}"
    if what:
        raise IntegrityError(
            area.offset,
            "the header of a mapped-ram block does not add up",
            context=f"{context}, block {quoted(entry.block.idstr)}",
            expected="the entry, the bitmap, then the pages, as long as the total",
            found=what,
        )


# Whole longs, of 4 bytes at the least. QEMU v10.1.0 migration/ram.c mapped_ram_setup_ramblock().
def _bitmap_size(entry: parse.MappedEntry) -> int:
    return -(-(entry.block.used_length // entry.page_size) // 32) * 4


def bitmap_order(
    cursor: Cursor, areas: list[Area]
) -> Generator[NeedData, None, tuple[int, Anomaly | None]]:
    """Infer in which order the host that wrote the bitmaps has the bytes of a long.

    Nothing states it, and the guest's machine type does not tell the host. But bits behind the last
    page of a block are never set, and most pages that a bitmap has hold something, while those that
    it does not have are mostly holes. Only what is clearly so is taken for big-endian.

    Args:
        cursor: Where decoding stands. It stays there.
        areas: The blocks.

    Returns:
        Bytes of a big-endian long, or 1 for little-endian, whatever the size of its longs; and a
        finding, if there is anything to say.
    """
    fitting = list(_ORDERS)
    areas = [a for a in areas if not a.left_out]
    if not areas:
        return 1, None
    for area in areas:
        count = area.count
        whole = count // 64 * 8
        if count % 64:
            at = area.bitmap + whole
            tail = yield from cursor.peek(at, min(8, area.pages - at))
            fitting = [o for o in fitting if not _bits(tail, 0, 64, o)[count % 64 :].any()]
        if fitting == [1]:
            break
    if fitting == [1]:
        return 1, None
    if not fitting:
        evidence = "but in every order they have bits behind the last page of a block"
        return 1, _order_finding(areas, "warning", 1, evidence)
    if len(fitting) == 1:
        evidence = "read as little-endian they have bits behind the last page of a block"
        return fitting[0], _order_finding(areas, "info", fitting[0], evidence)
    wrong = yield from _contradictions(cursor, areas)
    best = min(fitting, key=lambda order: wrong[order])
    if best == 1:
        return 1, None
    evidence = f"of the pages looked at {wrong[best]} contradict it, {wrong[1]} little-endian"
    if 1 not in fitting or wrong[1] > _CLEARLY * wrong[best]:
        return best, _order_finding(areas, "info", best, evidence)
    evidence = f"but of the pages looked at {wrong[1]} contradict it, {wrong[best]} big-endian"
    return 1, _order_finding(areas, "warning", 1, evidence)


def _order_finding(areas: list[Area], severity: str, order: int, evidence: str) -> Anomaly:
    at = areas[0].bitmap
    taken = "little-endian" if order == 1 else f"big-endian, longs of {order} bytes"
    return Anomaly(
        at,
        at,
        severity,
        "bitmap-order",
        f"offset {at:#x}: the bitmaps are taken for those of a host that is {taken} (inferred): "
        f"{evidence}",
    )


# How many of some pages contradict each order: there by the bitmap and all zero, or not there and
# not zero. Only those are looked at of which the orders say different things.
def _contradictions(cursor: Cursor, areas: list[Area]) -> Generator[NeedData, None, dict[int, int]]:
    wrong = dict.fromkeys(_ORDERS, 0)
    looked = 0
    for area in areas:
        size = area.entry.page_size
        bitmap = yield from cursor.peek(area.bitmap, min(_bitmap_size(area.entry), _LOOKED_THROUGH))
        longs = np.frombuffer(bitmap + bytes(-len(bitmap) % 8), "<u8")
        odd = np.flatnonzero(longs != longs.byteswap())
        for first in (odd[:: max(1, odd.size // _LONGS)][:_LONGS] * 64).tolist():
            pages = min(64, area.count - first)
            if looked and looked + pages * size > _LOOKED_AT:
                break
            looked += pages * size
            data = yield from cursor.peek(area.pages + first * size, pages * size)
            there = np.frombuffer(data[: len(data) // size * size], np.uint8).reshape(-1, size)
            filled: NDArray[np.bool_] = np.logical_or.reduce(there, axis=1)
            for order in _ORDERS:
                said = _bits(bitmap, first, len(filled), order)
                wrong[order] += int(np.count_nonzero(said != filled))
    return wrong


# Which of `count` pages from `first`, a multiple of 64, are set in a bitmap.
def _bits(bitmap: bytes, first: int, count: int, order: int) -> NDArray[np.bool_]:
    data = bitmap[first // 8 : first // 8 + -(-count // 64) * 8]
    data += bytes(-(-count // 64) * 8 - len(data))
    longs = np.frombuffer(data, np.uint8).reshape(-1, order)[:, ::-1]
    return np.unpackbits(longs.ravel(), count=count, bitorder="little").view(np.bool_)


def mapped_pages(cursor: Cursor, index: int, area: Area, order: int, context: str) -> Steps:
    """Yield the events of one block; the cursor moves behind its page area.

    Args:
        cursor: Where decoding stands.
        index: Of the block.
        area: The block.
        order: What `bitmap_order` found.
        context: For errors.
    """
    entry = area.entry
    size, count = entry.page_size, area.count
    context = f"{context}, block {quoted(entry.block.idstr)}"
    if area.left_out:
        yield MappedBlock(*cursor.take(area.end - cursor.offset), index, size, area.bitmap)
        return
    bitmap = yield from cursor.peek(area.bitmap, -(-count // 64) * 8)
    if len(bitmap) < _bitmap_size(entry):
        raise TruncatedError(area.bitmap + len(bitmap), "the input ends", context=context)
    yield from _reach(cursor, area.pages, context)
    yield MappedBlock(*cursor.take(area.pages - cursor.offset), index, size, area.bitmap, order)
    for first in range(0, count, _AT_ONCE):
        present = _bits(bitmap, first, min(_AT_ONCE, count - first), order)
        yield from _stretches(cursor, index, present, first, size, context)


# The events of some pages of a block from `first` on; the cursor is there, and moves behind them.
def _stretches(
    cursor: Cursor, index: int, present: NDArray[np.bool_], first: int, size: int, context: str
) -> Steps:
    page, count = 0, len(present)
    while page < count:
        at = (first + page) * size
        if not present[page]:
            following = page + int(present[page:].argmax())
            following = following if present[following] else count
            if following == count or (following - page) * size >= _SKIPPED:
                length = (following - page) * size
                yield from _reach(cursor, cursor.offset + length, context)
                yield MappedPages(
                    *cursor.take(length), index, at, size, present[page:following], memoryview(b"")
                )
                page = following
                continue
        yield from cursor.have(size, context)
        part = present[page : page + cursor.left() // size]
        # Up to the last that is there: what comes behind may be long.
        part = part[: len(part) - int(part[::-1].argmax())] if part.any() else part
        data = cursor.rest()[: len(part) * size]
        yield MappedPages(*cursor.take(len(data)), index, at, size, part, data)
        page += len(part)


# What is passed over must be there, if only as a hole of the file.
def _reach(cursor: Cursor, offset: int, context: str) -> Steps:
    if not (yield from cursor.peek(offset - 1, 1)):
        raise TruncatedError(cursor.offset, "the input ends in a page area", context=context)
