"""mapped-ram: a bitmap and a page area for each block, at fixed places of the file.

Bitmaps are written when the pages are, so that only a finished file can be read, and the list of
blocks runs through it from area to area, so that it takes an input to seek in.
QEMU v10.1.0 docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from vmstream.errors import IntegrityError, LimitError, StreamError, TruncatedError, quoted
from vmstream.stream.cursor import Cursor, NeedData, Steps
from vmstream.stream.events import MappedBlock, MappedPages
from vmstream.stream.limits import check_ram
from vmstream.wire import parse
from vmstream.wire.constants import MAX_RAM_BLOCKS, TARGET_PAGE_SIZES
from vmstream.wire.layout import RAM_WORD_SIZE

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
    """

    entry: parse.MappedEntry
    offset: int
    bitmap: int
    pages: int


def mapped_blocks(
    cursor: Cursor, total: int, context: str, *, ignore_shared: bool, origin: int, max_ram: int
) -> Generator[NeedData, None, tuple[list[Area], StreamError | None]]:
    """Look through the list of blocks; the cursor stays at the MEM_SIZE word.

    Args:
        cursor: Where decoding stands.
        total: Sum of the lengths, bytes.
        context: For errors.
        ignore_shared: The capability x-ignore-shared was on.
        origin: Offset of the stream's first byte in the file.
        max_ram: Bytes that the list may state.

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
            data = yield from cursor.peek(at, parse.LONGEST_MAPPED_ENTRY)
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
            area = Area(entry, at, entry.bitmap_offset - origin, entry.pages_offset - origin)
            _check(area, at + size, left, context)
            if not areas:
                # All have pages of one size.
                check_ram(max_ram, total, entry.page_size, at, context)
            areas.append(area)
            left -= entry.block.used_length
            at = area.pages + entry.block.used_length
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
    elif area.bitmap < behind or area.pages < area.bitmap + _bitmap_size(entry):
        what = f"bitmap at {entry.bitmap_offset:#x}, pages at {entry.pages_offset:#x}"
    if what:
        raise IntegrityError(
            area.offset,
            "the header of a mapped-ram block does not add up",
            context=f"{context}, block {quoted(entry.block.idstr)}",
            expected="the entry, the bitmap, then the pages, as long as the total",
            found=what,
        )


# Whole words of 64 bits. QEMU v10.1.0 migration/ram.c mapped_ram_setup_ramblock().
def _bitmap_size(entry: parse.MappedEntry) -> int:
    return -(-(entry.block.used_length // entry.page_size) // 64) * 8


def mapped_pages(cursor: Cursor, index: int, area: Area, context: str) -> Steps:
    """Yield the events of one block; the cursor moves behind its page area."""
    entry = area.entry
    size, count = entry.page_size, entry.block.used_length // entry.page_size
    context = f"{context}, block {quoted(entry.block.idstr)}"
    bitmap = yield from cursor.peek(area.bitmap, _bitmap_size(entry))
    if len(bitmap) < _bitmap_size(entry):
        raise TruncatedError(area.bitmap + len(bitmap), "the input ends", context=context)
    # Longs of the host that wrote it: of a little-endian one, bit i of byte n is page 8 n + i.
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=count, bitorder="little")
    present = bits.view(np.bool_)
    yield from _reach(cursor, area.pages, context)
    yield MappedBlock(*cursor.take(area.pages - cursor.offset), index, size, area.bitmap)
    page = 0
    while page < count:
        if not present[page]:
            following = page + int(present[page:].argmax())
            following = following if present[following] else count
            if following == count or (following - page) * size >= _SKIPPED:
                yield from _reach(cursor, cursor.offset + (following - page) * size, context)
                yield MappedPages(
                    *cursor.take((following - page) * size),
                    index,
                    page * size,
                    size,
                    present[page:following],
                    memoryview(b""),
                )
                page = following
                continue
        yield from cursor.have(size, context)
        part = present[page : page + cursor.left() // size]
        # Up to the last that is there: what comes behind may be long.
        part = part[: len(part) - int(part[::-1].argmax())] if part.any() else part
        data = cursor.rest()[: len(part) * size]
        yield MappedPages(*cursor.take(len(data)), index, page * size, size, part, data)
        page += len(part)


# What is passed over must be there, if only as a hole of the file.
def _reach(cursor: Cursor, offset: int, context: str) -> Steps:
    if not (yield from cursor.peek(offset - 1, 1)):
        raise TruncatedError(cursor.offset, "the input ends in a page area", context=context)
