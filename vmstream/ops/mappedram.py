"""RAM as mapped-ram: what stands in the START of 'ram' between its head and its EOS.

Each block has a place for each of its pages, and a bitmap of those that are there; pages of zeros
are holes. QEMU v10.1.0 docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import EncodeError, quoted
from vmstream.guest.coverage import PageBitmap
from vmstream.ops.lastpages import Pages
from vmstream.ops.splice import Target
from vmstream.stream.events import RAMBlock
from vmstream.wire import build
from vmstream.wire.constants import (
    MAPPED_RAM_FILE_OFFSET_ALIGNMENT,
    MAX_RAM_BLOCKS,
    TARGET_PAGE_SIZES,
    RAMSaveFlag,
)
from vmstream.wire.layout import RAM_WORD_SIZE
from vmstream.wire.parse import BlockEntry, MappedEntry

# Bytes of a long of the host; its bitmaps are little-endian.
_LONG = 8

# Pages of zeros between two with data that are written with them, and no hole.
_CLOSE = 2

# Where RAM has to end, that offsets of what follows fit in an off_t, too.
_MOST = 1 << 62


def write_mapped(
    pages: Pages,
    to: Target,
    *,
    ignore_shared: bool = False,
    elsewhere: Collection[int] = (),
) -> None:
    """Write the block list, bitmaps and pages of RAM; EOS and footer follow.

    The stream's configuration has to have the capability 'mapped-ram', and its PARTs and END of
    'ram' have an EOS alone.

    Args:
        pages: What is written. Pages of zeros and those that are not given are not in the bitmap;
            they are holes, unless they are a few between others.
        to: Where it goes; its offset is the one in the file.
        ignore_shared: The capability x-ignore-shared is in the configuration: entries have an
            address.
        elsewhere: Blocks whose memory is shared: they have neither bitmap nor page area.

    Wire:
        MEM_SIZE word; for each block its entry, header, bitmap, zeros up to a multiple of 1 MiB
        in the file, page area. QEMU v10.1.0 migration/ram.c ram_save_setup(),
        mapped_ram_setup_ramblock(), ram_save_file_bmap(). Bitmaps are longs of the host that
        loads them: they are written for one of 64 bits, little-endian, which one of 32 bits reads
        the same. Offsets of 0 for shared memory are written and read from 11.1 on.

    Raises:
        EncodeError: The format does not have what is to be written; nothing was. The output is
            none to seek in. A page is not in its block.
        StreamError: As of `pages`.
        OSError: With the path.

    Memory:
        A bit for each page of a block.
    """
    entries = _layout(pages, to.offset, ignore_shared=ignore_shared, elsewhere=elsewhere)
    to.put(to.offset, b"")  # an output that cannot be sought in is refused ahead of all pages
    total = sum(b.used_length for b in pages.blocks)
    to.write(build.ram_word(total, RAMSaveFlag.MEM_SIZE))
    for index, entry in enumerate(entries):
        to.write(build.mapped_ram_block(entry))
        if entry.pages_offset:
            to.skip(entry.pages_offset - to.offset)
            to.put(entry.bitmap_offset, _write_pages(pages, index, to))


# The entries of the list, of which the first stands behind the word at `at`.
def _layout(
    pages: Pages, at: int, *, ignore_shared: bool, elsewhere: Collection[int]
) -> list[MappedEntry]:
    size, blocks = pages.page_size, pages.blocks
    if size not in TARGET_PAGE_SIZES:
        raise EncodeError(f"no target of QEMU has pages of {size} bytes")
    if not 0 < len(blocks) <= MAX_RAM_BLOCKS:
        raise EncodeError(f"mapped-ram has 1 to {MAX_RAM_BLOCKS} RAM blocks, and not {len(blocks)}")
    if elsewhere and not ignore_shared:
        raise EncodeError("memory is left out only by a stream with x-ignore-shared")
    at += RAM_WORD_SIZE
    entries = []
    for index, block in enumerate(blocks):
        entry = _entry(block, size, ignore_shared=ignore_shared)
        at += len(build.mapped_ram_block(entry))
        if index not in elsewhere:
            area = at + _bitmap_size(block.used_length // size)
            area += -area % MAPPED_RAM_FILE_OFFSET_ALIGNMENT
            entry = replace(entry, bitmap_offset=at, pages_offset=area)
            at = area + block.used_length
        if at > _MOST:
            raise EncodeError(f"block {quoted(block.idstr)} ends at {at:#x}: no file is as long")
        entries.append(entry)
    return entries


def _entry(block: RAMBlock, size: int, *, ignore_shared: bool) -> MappedEntry:
    name, length = quoted(block.idstr), block.used_length
    # QEMU v10.1.0 migration/ram.c parse_ramblock_mapped_ram() counts whole pages, and the loop of
    # the list ends by the sum of lengths, not behind an empty block.
    if length <= 0 or length % size:
        raise EncodeError(
            f"block {name} of {length:#x} bytes: mapped-ram has whole pages of {size} bytes alone"
        )
    if ignore_shared and block.gpa is None:
        raise EncodeError(f"block {name}: with x-ignore-shared a block has an address")
    # No host page size: that belongs to postcopy, which QEMU refuses beside mapped-ram.
    # QEMU v10.1.0 migration/options.c migrate_caps_check().
    gpa = block.gpa if ignore_shared else None
    return MappedEntry(BlockEntry(block.idstr, length, None, gpa, None), size, 0, 0)


# Write the page area of a block; return its bitmap.
def _write_pages(pages: Pages, index: int, to: Target) -> bytes:
    size, length = pages.page_size, pages.blocks[index].used_length
    area = to.offset
    there = PageBitmap(length // size)
    for offset, part in pages.pages(index):
        count = part if isinstance(part, int) else len(part)
        if offset % size or offset < to.offset - area or offset + count * size > length:
            raise EncodeError(
                f"pages {offset:#x} to {offset + count * size:#x} are not in block "
                f"{quoted(pages.blocks[index].idstr)} of {length:#x}, or out of order"
            )
        if not isinstance(part, int):
            # Eight bytes at a time: 16 GB/s.
            filled = np.asarray(np.ascontiguousarray(part).view(np.uint64).any(axis=1))
            data = part.reshape(-1).data
            there.add(offset // size + np.flatnonzero(filled))
            for first, stop in _stretches(filled):
                to.skip(area + offset + first * size - to.offset)
                to.write(data[first * size : stop * size])
    to.skip(area + length - to.offset)
    return bytes(there.data).ljust(_bitmap_size(there.pages), b"\0")


# What is written at once: a few zeros are written sooner than they are skipped.
def _stretches(filled: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(filled, prepend=False, append=False)).reshape(-1, 2)
    cuts = np.flatnonzero(edges[1:, 0] - edges[:-1, 1] > _CLOSE) + 1
    for run in np.split(edges, cuts) if len(edges) else ():
        yield int(run[0, 0]), int(run[-1, 1])


# Whole longs.
def _bitmap_size(count: int) -> int:
    return -(-count // (8 * _LONG)) * _LONG
