"""Edits of guest memory: what a page is, said by its last record."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import (
    AddressError,
    EncodeError,
    quoted,
)
from vmstream.ops.edits import Editing, check_count
from vmstream.ops.inspect import Summary
from vmstream.ops.memory import GuestMemory
from vmstream.ops.pipeline import Progress, run
from vmstream.ops.splice import Splice, Target
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Command,
    Event,
    MappedBlock,
    MappedPages,
    PageBatch,
)
from vmstream.transport.source import FileSource, OpenSource
from vmstream.wire import build
from vmstream.wire.constants import (
    PAGE_KINDS,
    MigCmd,
    RAMSaveFlag,
)
from vmstream.wire.layout import RAM_WORD_SIZE

_CONTINUE = int(RAMSaveFlag.CONTINUE)
_PAGE = int(RAMSaveFlag.PAGE)
_KINDS = int(PAGE_KINDS)
_Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Patch:
    """Bytes for a place in a block; `read` gives so many from an offset in them on."""

    block: int
    offset: int
    length: int
    read: Callable[[int, int], bytes]
    edit: str


class _LastRecords:
    """Fold: where the last record of some pages stands, or their place in a mapped-ram area.

    Args:
        pages: int64 (n,), ascending, of each block.
        page_size: Bytes.
        summary: Fold of a walk before.
    """

    def __init__(self, pages: dict[int, _Numbers], page_size: int, summary: Summary) -> None:
        self.pages = pages
        self._size = np.uint64(page_size)
        self._summary = summary
        self.record = {b: np.zeros(len(p), np.uint64) for b, p in pages.items()}
        self.end = {b: np.zeros(len(p), np.uint64) for b, p in pages.items()}
        self.payload = {b: np.zeros(len(p), np.uint32) for b, p in pages.items()}
        self.flags = {b: np.zeros(len(p), np.uint16) for b, p in pages.items()}
        self.present = {b: np.zeros(len(p), np.bool_) for b, p in pages.items()}
        self.mapped: dict[int, MappedBlock] = {}

    def on(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, PageBatch):
            self._batch(event)
        elif isinstance(event, MappedBlock):
            self.mapped[event.block] = event
        elif isinstance(event, MappedPages) and event.block in self.pages:
            block, pages = event.block, self.pages[event.block]
            first = event.block_offset // event.page_size
            rows = np.arange(*np.searchsorted(pages, (first, first + len(event.present))))
            inside = pages[rows] - first
            at = np.uint64(event.offset) + inside.astype(np.uint64) * self._size
            self.record[block][rows] = at
            self.end[block][rows] = at + self._size
            self.present[block][rows] = event.present[inside]
        elif isinstance(event, Command) and event.cmd == MigCmd.POSTCOPY_RAM_DISCARD:
            for block, start, length in self._summary.discarded(event) or ():
                if block in self.pages:
                    size = int(self._size)
                    edges = (start // size, (start + length) // size)
                    first, stop = np.searchsorted(self.pages[block], edges).tolist()
                    self.end[block][first:stop] = 0

    def _batch(self, batch: PageBatch) -> None:
        c = batch.columns
        for block, pages in self.pages.items():
            rows = np.flatnonzero(c.block == block)
            page = (c.block_offset[rows] // self._size).view(np.int64)
            at = np.minimum(np.searchsorted(pages, page), len(pages) - 1)
            hit = pages[at] == page
            rows, at = rows[hit], at[hit]
            # Of several records of a page the last stays.
            self.record[block][at] = c.record_offset[rows]
            self.end[block][at] = c.record_offset[rows] + c.size[rows]
            self.payload[block][at] = c.payload_size[rows]
            self.flags[block][at] = c.flags[rows]


def _patches(
    editing: Editing, memory: GuestMemory, stack: contextlib.ExitStack
) -> Iterator[_Patch]:
    for address, content in editing.options.patches:
        edit = f"--patch-ram {address}"
        length, read = _content(content, edit, stack)
        if not length:
            raise EncodeError(f"{edit}: nothing to put there")
        if re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", address):
            at, done = int(address, 0), 0
            while done < length:
                found = memory.locate(at + done)
                regions = memory.map.regions
                region = next((r for r in regions if r.gpa <= at + done < r.gpa + r.length), None)
                if found is None or region is None:
                    raise AddressError(at + done, f"{edit}: no RAM at address {at + done:#x}")
                part = min(length - done, region.gpa + region.length - at - done)
                yield _Patch(*found, part, partial(_later, read, done), edit)
                done += part
            continue
        name, plus, offset = address.rpartition("+")
        if not plus or not re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", offset):
            raise EncodeError(f"{edit}: an address is a number, or IDSTR+OFFSET")
        block = memory.block_index(name)
        memory.check_block(block, int(offset, 0), length)
        yield _Patch(block, int(offset, 0), length, read, edit)


def _later(read: Callable[[int, int], bytes], shift: int, at: int, count: int) -> bytes:
    return read(shift + at, count)


# Length and bytes of what --patch-ram puts in.
def _content(
    content: str, edit: str, stack: contextlib.ExitStack
) -> tuple[int, Callable[[int, int], bytes]]:
    if content.startswith("hex:"):
        try:
            data = bytes.fromhex(content.removeprefix("hex:"))
        except ValueError:
            raise EncodeError(f"{edit}: {content!r} is not hex") from None
        return len(data), lambda at, count: data[at : at + count]
    source = stack.enter_context(OpenSource(content))
    if not isinstance(source, FileSource) or source.size is None:
        raise EncodeError(f"{edit}: {content}: not a regular file")
    return source.size, source.read_at


def patch_ram(
    editing: Editing,
    memory: GuestMemory,
    stack: contextlib.ExitStack,
    progress: Progress | None,
) -> None:
    """Make the splices of --patch-ram.

    Args:
        editing: The stream, walked once.
        memory: Its memory, which is read again when the splices are written.
        stack: Keeps files with content open.
        progress: Called with (offset, size or None).

    Raises:
        AddressError: The guest has no RAM there.
        EncodeError: Pages are not in the stream, or two patches overlap.
        OutputError: The stream has no such block, or does not tell where its blocks stand.
    """
    size, places = memory.page_size, editing.places
    editing.check_pages_here("--patch-ram", "write the change to a stream that has its pages")
    patches = sorted(_patches(editing, memory, stack), key=lambda p: (p.block, p.offset))
    for first, second in pairwise(patches):
        if first.block == second.block and second.offset < first.offset + first.length:
            raise EncodeError(f"{first.edit} and {second.edit} overlap")
    touched: dict[int, list[_Numbers]] = {}
    total = 0
    for p in patches:
        pages = np.arange(p.offset // size, -(-(p.offset + p.length) // size))
        total += len(pages)
        check_count(total, 0)
        touched.setdefault(p.block, []).append(pages)
    editing.doubts = (
        memory.map.doubts if any("+" not in a for a, _ in editing.options.patches) else ()
    )
    by_block: dict[int, list[_Patch]] = {}
    for p in patches:
        by_block.setdefault(p.block, []).append(p)
    wanted = {b: np.unique(np.concatenate(parts)) for b, parts in touched.items()}
    for block in wanted:
        if block in memory.elsewhere:
            idstr = memory.blocks[block].idstr
            raise EncodeError(f"block {quoted(idstr)} is shared memory: its pages are in a file")
    if editing.plain is not None:
        for block, pages in wanted.items():
            editing.coverage[block].sent.add(pages)
            editing.changed[block] = {
                page: partial(_page, memory, block, page, mine)
                for page, mine in _by_page(pages, by_block[block], size)
            }
        return
    last = _LastRecords(wanted, size, editing.summary)
    decoder = Decoder(editing.options.page_size, max_ram=editing.options.max_ram)
    run(editing.source, decoder, [last], progress)
    bits: dict[int, int] = {}
    for block, pages in last.pages.items():
        idstr = memory.blocks[block].idstr
        named = b"" if places.flat else build.counted(editing.renames.get(idstr, idstr))
        for i, (page, mine) in enumerate(_by_page(pages, by_block[block], size)):
            make = partial(_write, partial(_page, memory, block, page, mine))
            what = f"{mine[0].edit}: {quoted(idstr)} page at {page * size:#x}"
            record, end = int(last.record[block][i]), int(last.end[block][i])
            flags = int(last.flags[block][i])
            if not end:
                if places.ram_end is None or block in last.mapped:
                    raise EncodeError(f"{what} was never sent, and there is no end of RAM")
                head = build.ram_word(page * size, RAMSaveFlag.PAGE) + named
                editing.splices.append(
                    Splice(
                        places.ram_end,
                        places.ram_end,
                        partial(make, head=head),
                        f"{what}, never sent before",
                        len(head) + size,
                    )
                )
                continue
            if block in last.mapped:
                if not last.present[block][i]:
                    at, bit = _bit(last.mapped[block], page)
                    bits[at] = bits.get(at, 0) | bit
                editing.splices.append(Splice(record, end, make, what, size))
                continue
            if flags & _KINDS != _PAGE:
                kind = RAMSaveFlag(flags & _KINDS).name
                what += f", {kind} record -> PAGE"
                word = build.ram_word(page * size, RAMSaveFlag(flags & ~_KINDS | _PAGE))
                editing.add(record, record + RAM_WORD_SIZE, word, what)
            payload = int(last.payload[block][i])
            editing.splices.append(Splice(end - payload, end, make, what, size))
        check_count(len(editing.splices), 0)
    for at, bit in bits.items():
        byte = bytearray(1)
        editing.access.read_into(at, memoryview(byte))
        editing.add(at, at + 1, bytes([byte[0] | bit]), "--patch-ram: bitmap of mapped-ram")


# Pages, with the patches that touch each. Both are in order.
def _by_page(
    pages: _Numbers, patches: list[_Patch], size: int
) -> Iterator[tuple[int, list[_Patch]]]:
    begin = 0
    for page in pages.tolist():
        while patches[begin].offset + patches[begin].length <= page * size:
            begin += 1
        stop = begin
        while stop < len(patches) and patches[stop].offset < (page + 1) * size:
            stop += 1
        yield page, patches[begin:stop]


# A page of the guest with the patches that are in it.
def _page(memory: GuestMemory, block: int, page: int, patches: list[_Patch]) -> bytes:
    size = memory.page_size
    offset, used = page * size, memory.blocks[block].used_length
    content = bytearray(size)
    there = min(size, used - offset)
    content[:there] = memory.read_block(memory.blocks[block].idstr, offset, there)
    for p in patches:
        low, high = max(offset, p.offset), min(offset + there, p.offset + p.length)
        content[low - offset : high - offset] = p.read(low - p.offset, high - low)
    return bytes(content)


def _write(make: Callable[[], bytes], to: Target, head: bytes = b"") -> None:
    to.write(head + make())


# Offset of the byte of a bitmap that has the bit of a page, and the bit.
def _bit(event: MappedBlock, page: int) -> tuple[int, int]:
    order = event.bitmap_order
    byte = page // 8
    within = byte % order
    return event.bitmap_offset + byte - within + (order - 1 - within), 1 << page % 8
