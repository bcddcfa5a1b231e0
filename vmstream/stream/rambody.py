"""RAM sections: the block list, page records by way of the scanner, and the page size.

The page size is not on the wire where it is wanted. Who decides it, in order: the caller, the
target-page-bits of the configuration section, the first PAGE record, the usual size. What the
vmdescription says at the end must agree.
"""

from __future__ import annotations

from collections.abc import Generator

from vmstream.errors import FormatError, IntegrityError, LimitError, UnsupportedError
from vmstream.stream.cursor import Cursor, NeedData, Steps
from vmstream.stream.events import (
    Event,
    Gap,
    RAMBlock,
    RAMBlockList,
    RAMControl,
    VMDescription,
    fault,
)
from vmstream.stream.limits import check_ram
from vmstream.stream.mapped import bitmap_order, mapped_blocks, mapped_pages
from vmstream.stream.probe import next_record, probe_page_size
from vmstream.stream.scanner import BadRecord, RAMState, scan_records
from vmstream.stream.tail import describe
from vmstream.wire import grammar, parse
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    CAP_MAPPED_RAM,
    DEFAULT_PAGE_SIZE,
    MAX_RAM,
    MAX_RAM_BLOCKS,
    PAGE_KINDS,
    RAM_LOW_FLAG_MASK,
    RAMSaveFlag,
    SectionType,
)
from vmstream.wire.layout import RAM_WORD_SIZE, split_head, struct_of

_read_word = struct_of(grammar.RAM_WORD).unpack_from

# How far the page size is looked for at a time: enough for a PAGE record of any size and the
# head after it, behind some zero pages.
_PROBE_SIZE = 1 << 20


class RAMReader:
    """Read the bodies of RAM sections.

    Args:
        cursor: Where decoding stands. Moved.
        page_size: Target page size in bytes, if the caller knows it.
        strict: Raise the first fault.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.

    Attributes:
        capabilities: Of the configuration section; they say how the block list reads.
        page_size: Target page size, bytes; `None` until it is decided.
        page_size_source: Who decided.
        origin: Offset of the stream's first byte in the file that mapped-ram offsets are of.
        seekable: Windows can be had in any order.
    """

    def __init__(
        self, cursor: Cursor, page_size: int | None, *, strict: bool, max_ram: int | None = None
    ) -> None:
        self.capabilities: tuple[bytes, ...] = ()
        self.page_size = page_size
        self.page_size_source: str | None = "argument" if page_size else None
        self._in = cursor
        self._strict = strict
        self._max_ram = MAX_RAM if max_ram is None else max_ram
        self._assumed = False  # RAM was read with the default page size, nothing told it
        self._probed = 0  # up to here the page size was looked for
        self._state: RAMState | None = None
        self._block_lost = False  # the record that named the current block may be lost
        self.origin = 0
        self.seekable = True
        self._mapped = False

    def decide_page_size(self, size: int, source: str) -> None:
        """Take a page size, unless it is decided."""
        if self.page_size is None:
            self.page_size = size
            self.page_size_source = source

    def assume_page_size(self) -> None:
        """Settle for the usual size if RAM was read with it and nothing has told."""
        if self._assumed:
            self.decide_page_size(DEFAULT_PAGE_SIZE, "default")

    def check_page_size(self, event: VMDescription) -> Steps:
        """Compare with the vmdescription, which has the last word, but too late to use it."""
        stated = event.layout.page_size if event.layout else None
        if stated is None:
            return
        if self._state is not None:
            total = int(self._state.used_length.sum())
            check_ram(self._max_ram, total, stated, event.offset, "vmdescription")
        if not self._assumed or stated == DEFAULT_PAGE_SIZE:
            self.decide_page_size(stated, "vmdescription")
        used = self.page_size or DEFAULT_PAGE_SIZE
        if used != stated:
            error = IntegrityError(
                event.offset,
                "RAM was read with another page size than the vmdescription states",
                context="vmdescription",
                expected=str(stated),
                found=f"{used} ({self.page_size_source or 'default'})",
                advice=f"read the stream with --page-size {stated}",
            )
            if self._strict:
                raise error
            yield fault(error)

    def body(self, head: parse.SectionHead, kind: int) -> Steps:
        """Read the body of a START, PART or END of RAM, up to and with its EOS."""
        context = f"{describe(head)} {SectionType(kind).name.removeprefix('QEMU_VM_SECTION_')}"
        if kind == SectionType.QEMU_VM_SECTION_START:
            if head.version_id not in (3, 4):
                raise UnsupportedError(
                    self._in.offset,
                    f"RAM section version {head.version_id}",
                    context=context,
                    expected="3 or 4",
                )
            yield from self._block_list(head, context)
        ram = self._state
        if ram is None:
            raise FormatError(self._in.offset, "RAM without a block list", context=context)
        ram.context = context
        yield from self._records(ram)

    def bare(self, blocks: tuple[RAMBlock, ...], context: str) -> Steps:
        """Read page records up to the end of the input: a channel of postcopy-preempt.

        QEMU v10.1.0 migration/ram.c ram_load_postcopy() on RAM_CHANNEL_POSTCOPY. 7.2 ends it with
        EOS, later ones with the connection.
        """
        self._state = RAMState(blocks, context=context)
        while (yield from self._in.want(1)):
            yield from self._records(self._state, bare=True)

    # Page records and other words up to EOS, or of a bare channel the end of the input.
    def _records(self, ram: RAMState, *, bare: bool = False) -> Steps:
        context = ram.context
        while True:
            if self._mapped:
                # Only words without pages. QEMU v10.1.0 migration/ram.c parse_ramblocks().
                yield from self._in.have(RAM_WORD_SIZE, context)
                if (yield from self._control(context, self._in.place)):
                    return
                continue
            if not (yield from self._in.want(RAM_WORD_SIZE)) and bare:
                return
            undecided = self.page_size is None and self._in.left() >= RAM_WORD_SIZE
            if undecided and self._in.offset >= self._probed:
                yield from self._probe(ram)
            if self._block_lost:
                self._find_block(ram)
                self._block_lost = ram.current < 0
            view = self._in.view
            if self.page_size is not None:
                ram.page_size = self.page_size
            else:
                # Not further than was looked, so that the size is known before a page is taken.
                view = view[: max(self._probed - self._in.base, self._in.place + RAM_WORD_SIZE)]
            try:
                batch, pos, needed = scan_records(ram, view, self._in.base, self._in.place)
            except BadRecord as bad:
                if self._strict:
                    raise bad.error from None
                end = bad.end
                if end is None:
                    yield from self._in.want(4 * ram.page_size)
                    at = next_record(ram, self._in.view, self._in.place)
                    if at is None:
                        raise bad.error from None
                    end = self._in.base + at
                yield fault(bad.error)
                yield Gap(*self._in.take(end - self._in.offset), "a damaged page record")
                continue
            if batch is not None:
                self._in.offset = batch.end
                yield batch
            elif needed:
                yield from self._in.have(needed, context)
                self._probed = self._in.offset  # the record may go on behind it
            elif (yield from self._control(context, pos)):
                return

    def lose_block(self) -> None:
        """Forget which block CONTINUE means: a record with another name may be lost."""
        if self._state is not None and not self._state.flat and len(self._state.blocks) > 1:
            self._state.current = -1
            self._block_lost = True

    # Behind lost bytes: an address that is in one block alone tells which block CONTINUE means.
    def _find_block(self, ram: RAMState) -> None:
        if self._in.left() < RAM_WORD_SIZE:
            return
        (word,) = _read_word(self._in.view, self._in.place)
        addr, flags = split_head(word, self.page_size or DEFAULT_PAGE_SIZE)
        if flags & PAGE_KINDS and flags & RAMSaveFlag.CONTINUE:
            within = [i for i, b in enumerate(ram.blocks) if addr < b.used_length]
            if len(within) == 1:
                ram.current = within[0]

    # A RAM word that is no page record; true behind EOS.
    def _control(self, context: str, pos: int) -> Generator[Event | NeedData, None, bool]:
        (word,) = _read_word(self._in.view, pos)
        addr, flags = split_head(word, self.page_size or DEFAULT_PAGE_SIZE)
        flag = RAMSaveFlag(flags)
        if flag == RAMSaveFlag.HOOK:
            raise UnsupportedError(
                self._in.offset,
                "HOOK: RDMA carries the pages outside the stream",
                context=context,
            )
        if flag not in (RAMSaveFlag.EOS, RAMSaveFlag.MULTIFD_FLUSH) or addr:
            raise FormatError(
                self._in.offset,
                f"illegal RAM word {word:#x}",
                context=context,
                expected="a page record, EOS or MULTIFD_FLUSH",
            )
        yield RAMControl(*self._in.take(RAM_WORD_SIZE), flag)
        return flag == RAMSaveFlag.EOS

    def _block_list(self, head: parse.SectionHead, context: str) -> Steps:
        yield from self._in.have(RAM_WORD_SIZE, context)
        (word,) = _read_word(self._in.view, self._in.place)
        total, flags = word & ~RAM_LOW_FLAG_MASK, word & RAM_LOW_FLAG_MASK
        if flags != RAMSaveFlag.MEM_SIZE:
            raise FormatError(
                self._in.offset,
                f"RAM word {word:#x} where the block list should start",
                context=context,
                expected="MEM_SIZE",
            )
        if head.version_id == 3:
            # 0.10 to 0.12: one flat space, no list. QEMU v0.12.0 vl.c ram_save_live().
            blocks: tuple[RAMBlock, ...] = (RAMBlock(b"ram", total),)
            used = 0
        elif CAP_MAPPED_RAM in self.capabilities:
            yield from self._mapped_ram(total, context)
            return
        else:
            entries, used = yield from self._entries(total, context)
            blocks = tuple(
                RAMBlock(e.idstr, e.used_length, e.host_page_size, e.gpa) for e in entries
            )
        check_ram(
            self._max_ram,
            sum(b.used_length for b in blocks),
            self.page_size,
            self._in.offset,
            context,
        )
        self._state = RAMState(blocks, flat=head.version_id == 3, context=context)
        yield RAMBlockList(*self._in.take(RAM_WORD_SIZE + used), total, blocks)

    def _mapped_ram(self, total: int, context: str) -> Steps:
        shared = CAP_IGNORE_SHARED in self.capabilities
        entries, error = yield from mapped_blocks(
            self._in,
            total,
            context,
            ignore_shared=shared,
            origin=self.origin,
            max_ram=self._max_ram,
            seekable=self.seekable,
        )
        if error is not None and (self._strict or not entries):
            raise error
        order, finding = 1, None
        if self.seekable:
            order, finding = yield from bitmap_order(self._in, entries)
        found = (e.entry.block for e in entries)
        blocks = tuple(RAMBlock(b.idstr, b.used_length, None, b.gpa) for b in found)
        self._state = RAMState(blocks, context=context)
        self._mapped = True
        for size in {e.entry.page_size for e in entries}:
            self.decide_page_size(size, "mapped-ram")
        yield RAMBlockList(*self._in.take(RAM_WORD_SIZE), total, blocks)
        if error is not None and not self.seekable:
            raise error
        if finding is not None:
            yield finding
        for index, entry in enumerate(entries):
            yield from mapped_pages(self._in, index, entry, order, context)
        if error is not None:
            raise error

    def _entries(
        self, total: int, context: str
    ) -> Generator[NeedData, None, tuple[tuple[parse.BlockEntry, ...], int]]:
        size = 4096
        while True:
            left = yield from self._in.want(size)
            try:
                return parse.ram_block_list(
                    self._in.rest()[RAM_WORD_SIZE:],
                    self._in.offset + RAM_WORD_SIZE,
                    total,
                    ignore_shared=CAP_IGNORE_SHARED in self.capabilities,
                )
            except parse.Short:
                if left < size:
                    raise self._in.ends(context) from None
                if size > 300 * MAX_RAM_BLOCKS:
                    raise LimitError(
                        self._in.offset, "RAM block list too long", context=context
                    ) from None
                size *= 2

    def _probe(self, ram: RAMState) -> Steps:
        (word,) = _read_word(self._in.view, self._in.place)
        if not word & int(PAGE_KINDS):
            return
        yield from self._in.want(_PROBE_SIZE)
        pos = self._in.place
        self._probed = self._in.offset + _PROBE_SIZE
        found = probe_page_size(
            self._in.view[: pos + _PROBE_SIZE], pos, set(ram.index), flat=ram.flat
        )
        if found is None:
            self._assumed = True
        elif self._assumed and found != DEFAULT_PAGE_SIZE:
            raise IntegrityError(
                self._in.offset,
                f"pages of {found} bytes behind zero pages that were read as {DEFAULT_PAGE_SIZE}",
                context=ram.context,
                advice=f"read the stream with --page-size {found}",
            )
        else:
            check_ram(
                self._max_ram, int(ram.used_length.sum()), found, self._in.offset, ram.context
            )
            self.decide_page_size(found, "probe")
