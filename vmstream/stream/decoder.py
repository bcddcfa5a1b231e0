"""The section state machine: windows of bytes in, events out.

The decoder does no I/O. Its caller gives it windows (`supply`) and takes events (`next_event`);
NEED_DATA asks for a window that starts at `decoder.offset` or before and reaches `decoder.need`
bytes further, or ends where the input ends. Events do not depend on how the input is cut, but
for the cuts between page batches and between the stretches of a payload.

    while (event := decoder.next_event()) is not None:
        if event is NEED_DATA:
            decoder.supply(*source.window(decoder.offset, decoder.need))
        else: ...

Memory: the decoder holds no window. It holds the device sections (`stream.tail`) up to
MAX_DEVICE_TAIL.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.stream.events import (
    Anomaly,
    Command,
    Configuration,
    Event,
    FileHeader,
    Gap,
    Payload,
    RAMBlock,
    RAMBlockList,
    RAMControl,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.stream.scanner import (
    BadRecord,
    RAMState,
    next_record,
    probe_page_size,
    scan_records,
)
from vmstream.stream.tail import (
    FOOTER_SIZE,
    Tail,
    describe,
    find_footer,
    frame_tail,
    has_footer,
    is_footer_start,
)
from vmstream.wire import grammar, parse
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    CAP_MAPPED_RAM,
    DEFAULT_PAGE_SIZE,
    MAX_CONFIGURATION,
    MAX_DEVICE_TAIL,
    MAX_RAM,
    MAX_RAM_BLOCKS,
    PAGE_KINDS,
    RAM_LOW_FLAG_MASK,
    MigCmd,
    RAMSaveFlag,
    SectionType,
)
from vmstream.wire.layout import RAM_WORD_SIZE, split_head, struct_of

_PART_HEAD = struct_of(grammar.SECTION_PART_HEAD)
_read_word = struct_of(grammar.RAM_WORD).unpack_from

# How far the page size is looked for at a time: enough for a PAGE record of any size and the
# head after it, behind some zero pages.
_PROBE_SIZE = 1 << 20

# Iterable sections of one stream; QEMU has a dozen handlers.
_MAX_LIVE = 4096

# Zero bytes at the end of the held device sections that are kept as bytes.
_KEPT_ZEROS = 64


class _NeedData:
    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = _NeedData()

_Steps = Generator[Event | _NeedData, None, None]


class Decoder:
    """Decode one migration stream.

    Args:
        page_size: Target page size in bytes, if the caller knows better than the stream.
        strict: Raise the first StreamError. Otherwise a fault becomes an `Anomaly` with the
            error, a `Gap` over what could not be read, and decoding goes on behind it.

    Attributes:
        offset: Absolute offset of the first byte not yet covered by an event.
        need: Bytes that the next step takes from `offset` on.
        page_size: Target page size, bytes; `None` until it is decided.
        page_size_source: Who decided: 'argument', 'target-page-bits', 'probe', 'default',
            'vmdescription'.
        footers: Whether sections have footers; `None` until the first section told.
    """

    def __init__(self, page_size: int | None = None, *, strict: bool = False) -> None:
        self.offset = 0
        self.need = 1
        self.page_size = page_size
        self.page_size_source: str | None = "argument" if page_size else None
        self.footers: bool | None = None
        self._strict = strict
        self._view = memoryview(b"")
        self._base = 0
        self._at_end = False
        self._capabilities: tuple[bytes, ...] = ()
        self._live: dict[int, parse.SectionHead] = {}
        self._settled = False  # a PART or END was seen: the set-up phase is over
        self._over = False  # the input ended inside a package
        self._assumed = False  # RAM was read with the default page size, nothing told it
        self._ram: RAMState | None = None
        self._steps = self._stream()

    def supply(self, view: memoryview, offset: int, at_end: bool) -> None:
        """Give the window to decode from.

        Args:
            view: The bytes; borrowed until the next call.
            offset: Absolute offset of the first, at most `self.offset`.
            at_end: The input ends with this window.
        """
        self._view = view
        self._base = offset
        self._at_end = at_end

    def next_event(self) -> Event | _NeedData | None:
        """Return the next event, NEED_DATA, or `None` behind the last event.

        Raises:
            StreamError: The bytes are at fault, and `strict` was asked for.
        """
        return next(self._steps, None)

    # ---- bytes -------------------------------------------------------------------------

    def _left(self) -> int:
        return len(self._view) - (self.offset - self._base)

    # Ask for windows until `size` bytes are there; fewer only where the input ends.
    def _want(self, size: int) -> Generator[_NeedData, None, int]:
        while self._left() < size and not self._at_end:
            self.need = size
            yield NEED_DATA
        return self._left()

    # The same, but an input that ends before is a fault.
    def _have(self, size: int, context: str) -> Generator[_NeedData, None, None]:
        left = yield from self._want(size)
        if left < size:
            raise TruncatedError(
                self.offset + left,
                "the input ends",
                context=context,
                expected=f"{size - left} bytes more",
            )

    # Bytes from the next one on; empty at the end of the input.
    def _bytes(self) -> memoryview:
        return self._view[self.offset - self._base :]

    # Move behind the next `size` bytes: the range of an event.
    def _take(self, size: int) -> tuple[int, int]:
        begin = self.offset
        self.offset += size
        return begin, self.offset

    # ---- the stream --------------------------------------------------------------------

    def _stream(self) -> _Steps:
        try:
            yield from self._head()
            yield from self._items()
        except StreamError as error:
            if self._strict:
                raise
            yield self._anomaly(error)
        if self._assumed:
            self._decide_page_size(DEFAULT_PAGE_SIZE, "default")
        yield from self._drain("incomplete, or not readable")

    def _anomaly(self, error: StreamError) -> Anomaly:
        return Anomaly(error.offset, error.offset, "error", error.code, str(error), error)

    # Cover whatever is left with gaps, a window at a time.
    def _drain(self, reason: str) -> _Steps:
        begin = self.offset
        while (yield from self._want(1)):
            self._take(self._left())
        if self.offset > begin:
            yield Gap(begin, self.offset, reason)

    def _head(self) -> _Steps:
        yield from self._want(8)
        if not self._left():
            raise TruncatedError(0, "empty input", expected="a migration stream")
        try:
            size = parse.file_header(self._bytes()[:8])
        except parse.Short as short:
            yield from self._have(short.size, "file header")
            raise AssertionError("unreachable") from None
        yield FileHeader(*self._take(size))
        yield from self._have(1, "behind the file header")
        if self._bytes()[0] != SectionType.QEMU_VM_CONFIGURATION:
            return
        size = 512
        while True:
            left = yield from self._want(size)
            try:
                found, used = parse.configuration(self._bytes(), self.offset)
                break
            except parse.Short:
                if left < size:
                    raise self._ends("configuration") from None
                if size > MAX_CONFIGURATION:
                    raise LimitError(
                        self.offset, "configuration section too long", context="configuration"
                    ) from None
                size *= 2
        if found.target_page_bits is not None:
            if not 8 <= found.target_page_bits <= 24:
                raise FormatError(
                    self.offset,
                    "impossible target page size",
                    context="configuration/target-page-bits",
                    expected="8 to 24 bits",
                    found=str(found.target_page_bits),
                )
            self._decide_page_size(1 << found.target_page_bits, "target-page-bits")
        self._capabilities = found.capabilities
        yield Configuration(
            *self._take(used),
            name=found.name,
            target_page_bits=found.target_page_bits,
            capabilities=found.capabilities,
            uuid=found.uuid,
            subsections=found.subsections,
        )

    def _ends(self, context: str) -> TruncatedError:
        return TruncatedError(self.offset + self._left(), "the input ends", context=context)

    def _decide_page_size(self, size: int, source: str) -> None:
        if self.page_size is None:
            self.page_size = size
            self.page_size_source = source

    def _items(self) -> _Steps:
        while not self._over:
            yield from self._have(1, "between sections")
            kind = self._bytes()[0]
            if kind == SectionType.QEMU_VM_EOF or (
                kind == SectionType.QEMU_VM_SECTION_FULL
                and (self._settled or self.footers is False)
            ):
                yield from self._device_tail()
                return
            if kind == SectionType.QEMU_VM_COMMAND:
                yield from self._command()
            elif kind in (SectionType.QEMU_VM_SECTION_START, SectionType.QEMU_VM_SECTION_FULL):
                yield from self._start()
            elif kind in (SectionType.QEMU_VM_SECTION_PART, SectionType.QEMU_VM_SECTION_END):
                self._settled = True
                yield from self._part()
            else:
                raise FormatError(
                    self.offset,
                    f"unknown item type {kind:#04x}",
                    expected="START, PART, END, FULL, COMMAND or EOF",
                    advice="the section before is longer or shorter than it was read",
                )

    def _command(self) -> _Steps:
        yield from self._have(5, "command")
        size = 5 + int.from_bytes(self._bytes()[3:5], "big")
        yield from self._have(size, "command")
        cmd, data, size = parse.command(self._bytes(), self.offset)
        yield Command(*self._take(size), cmd, data)
        length = parse.command_fields(cmd, data).get("length") if cmd == MigCmd.PACKAGED else None
        if length is not None:
            # QEMU v10.1.0 migration/savevm.c loadvm_handle_cmd_packaged(): the package stands
            # behind the command, outside its length. Held whole, as QEMU holds it.
            if length > MAX_DEVICE_TAIL:
                raise LimitError(self.offset, f"a package of {length} bytes", context="PACKAGED")
            yield from self._want(length)
            package = bytes(self._bytes()[:length])
            damaged = False
            for event in self._tail(package, packaged=True, zeros=0):
                damaged = damaged or (isinstance(event, Anomaly) and event.error is not None)
                yield event
            if len(package) < length:
                if not damaged:
                    raise self._ends("PACKAGED")
                self._over = True

    def _start(self) -> _Steps:
        left = yield from self._want(parse.LONGEST_SECTION_HEAD)
        try:
            head, size = parse.section_head(self._bytes(), self.offset)
        except parse.Short:
            raise self._ends("section header") from None
        if left < size:
            raise self._ends("section header")
        yield self._section(head, head.section_type, size)
        if head.section_type == SectionType.QEMU_VM_SECTION_START:
            if len(self._live) >= _MAX_LIVE:
                raise LimitError(self.offset, f"over {_MAX_LIVE} iterable sections")
            self._live[head.section_id] = head
        yield from self._body(head, head.section_type)

    def _part(self) -> _Steps:
        yield from self._have(_PART_HEAD.size, "section part")
        kind, section_id = _PART_HEAD.unpack_from(self._view, self.offset - self._base)
        head = self._live.get(section_id)
        if head is None:
            raise FormatError(
                self.offset,
                f"a part of section {section_id}, which was not started",
                expected=", ".join(map(str, self._live)) or "a START first",
                advice="the section before is longer or shorter than it was read",
            )
        yield self._section(head, kind, _PART_HEAD.size)
        yield from self._body(head, kind)

    def _section(self, head: parse.SectionHead, kind: int, size: int) -> SectionStart:
        return SectionStart(
            *self._take(size),
            kind,
            head.section_id,
            head.idstr,
            head.instance_id,
            head.version_id,
        )

    # The body of a section or part, and its footer. Behind a fault in it the stream is picked
    # up again at its footer, if it has one.
    def _body(self, head: parse.SectionHead, kind: int) -> _Steps:
        try:
            if head.idstr == b"ram" and kind != SectionType.QEMU_VM_SECTION_FULL:
                yield from self._ram_body(head, kind)
                yield from self._footer(head)
            else:
                yield from self._foreign_body(head)
        except (FormatError, IntegrityError) as error:
            if self._strict or not self.footers:
                raise
            yield self._anomaly(error)
            yield from self._to_footer(head, "not readable, up to the next footer")

    def _footer(self, head: parse.SectionHead) -> _Steps:
        if self.footers is False:
            return
        left = yield from self._want(FOOTER_SIZE)
        found = has_footer(self._bytes(), 0, head.section_id)
        if self.footers is None:
            # The first section tells for the whole stream. QEMU v10.1.0 migration/savevm.c
            # check_section_footer() asks the machine type, which is not to be trusted here.
            if 0 < left < FOOTER_SIZE and is_footer_start(self._bytes(), head.section_id):
                raise self._ends(f"footer of {describe(head)}")
            self.footers = found
            if not found:
                return
        if not found:
            if left < FOOTER_SIZE:
                raise self._ends(f"footer of {describe(head)}")
            raise FormatError(
                self.offset,
                "missing section footer",
                context=describe(head),
                expected=f"0x7e and id {head.section_id}",
                found=bytes(self._bytes()[:FOOTER_SIZE]).hex(),
            )
        yield SectionFooter(*self._take(FOOTER_SIZE), head.section_id)

    # ---- bodies without a length ---------------------------------------------------------

    # A section of a handler that is not decoded here. Its end is inferred from its footer.
    def _foreign_body(self, head: parse.SectionHead) -> _Steps:
        if self.footers is False:
            raise UnsupportedError(
                self.offset,
                "a section of unknown length in a stream without footers",
                context=describe(head),
                advice="nothing behind it can be framed",
            )
        while True:
            at_end = self._at_end
            size, found = find_footer(self._bytes(), 0, head.section_id, live=True, at_end=at_end)
            if found or size:
                # A stretch of the body; the bytes behind it may be part of a footer.
                data = self._bytes()[:size]
                yield Payload(*self._take(size), head.section_id, "footer-scan", data, final=found)
            if found:
                self.footers = True
                yield from self._footer(head)
                return
            if (yield from self._is_all(at_end)):
                raise self._ends(describe(head))

    # Ask for more bytes than there are; true if there were none, and that was known before.
    def _is_all(self, known: bool) -> Generator[_NeedData, None, bool]:
        left = self._left()
        return (yield from self._want(left + _PART_HEAD.size)) == left and known

    # Skip to the next footer of this section that an item follows.
    def _to_footer(self, head: parse.SectionHead, reason: str) -> _Steps:
        begin = self.offset
        while True:
            at_end = self._at_end
            size, found = find_footer(self._bytes(), 0, head.section_id, live=True, at_end=at_end)
            self._take(size)
            if found:
                break
            if (yield from self._is_all(at_end)):
                self._take(self._left())
                break
        if self.offset > begin:
            yield Gap(begin, self.offset, reason)
        if found:
            yield from self._footer(head)

    def _device_tail(self) -> _Steps:
        held = bytearray()
        zeros = 0
        base = self.offset
        whole = True
        while (yield from self._want(1)):
            chunk = bytes(self._bytes())
            solid = chunk.rstrip(b"\0")
            if solid:
                if len(held) + zeros + len(solid) > MAX_DEVICE_TAIL:
                    whole = False
                    break
                held += bytes(zeros) + solid
                zeros = 0
            zeros += len(chunk) - len(solid)
            self._take(len(chunk))
        kept = min(zeros, _KEPT_ZEROS)
        held += bytes(kept)
        self.offset = base
        yield from self._tail(held, packaged=False, zeros=zeros - kept, at_end=whole)
        begin = self.offset
        yield from self._drain("behind the end of the stream")
        if self.offset > begin:
            yield Anomaly(
                begin,
                begin,
                "warning",
                "trailing",
                f"offset {begin:#x}: {self.offset - begin} bytes behind the stream's end",
            )

    def _tail(
        self, held: bytes | bytearray, *, packaged: bool, zeros: int, at_end: bool = True
    ) -> _Steps:
        tail = Tail(
            memoryview(held),
            self.offset,
            self.footers,
            packaged=packaged,
            strict=self._strict,
            at_end=at_end,
            zeros=zeros,
        )
        for event in frame_tail(tail):
            if not isinstance(event, Anomaly):
                self.offset = event.end
            yield event
            if isinstance(event, VMDescription):
                yield from self._check_page_size(event)

    # The vmdescription has the last word on the page size; it comes too late to use it.
    def _check_page_size(self, event: VMDescription) -> _Steps:
        stated = event.layout.page_size if event.layout else None
        if stated is None:
            return
        if not self._assumed or stated == DEFAULT_PAGE_SIZE:
            self._decide_page_size(stated, "vmdescription")
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
            yield self._anomaly(error)

    # ---- RAM ---------------------------------------------------------------------------

    def _ram_body(self, head: parse.SectionHead, kind: int) -> _Steps:
        context = f"{describe(head)} {SectionType(kind).name.removeprefix('QEMU_VM_SECTION_')}"
        if kind == SectionType.QEMU_VM_SECTION_START:
            if head.version_id not in (3, 4):
                raise UnsupportedError(
                    self.offset,
                    f"RAM section version {head.version_id}",
                    context=context,
                    expected="3 or 4",
                )
            yield from self._block_list(head, context)
        ram = self._ram
        if ram is None:
            raise FormatError(self.offset, "RAM without a block list", context=context)
        ram.context = context
        while True:
            yield from self._want(RAM_WORD_SIZE)
            if self.page_size is None and self._left() >= RAM_WORD_SIZE:
                yield from self._probe(ram)
            view = self._view
            if self.page_size is not None:
                ram.page_size = self.page_size
            else:
                # Not further than was looked, so that the size is known before a page is taken.
                view = view[: self.offset - self._base + _PROBE_SIZE]
            try:
                batch, pos, needed = scan_records(ram, view, self._base, self.offset - self._base)
            except BadRecord as bad:
                if self._strict:
                    raise bad.error from None
                end = bad.end
                if end is None:
                    yield from self._want(4 * ram.page_size)
                    at = next_record(ram, self._view, self.offset - self._base)
                    if at is None:
                        raise bad.error from None
                    end = self._base + at
                yield self._anomaly(bad.error)
                yield Gap(*self._take(end - self.offset), "a damaged page record")
                continue
            if batch is not None:
                self.offset = batch.end
                yield batch
            elif needed:
                yield from self._have(needed, context)
            elif (yield from self._control(context, pos)):
                return

    # A RAM word that is no page record; true behind EOS.
    def _control(self, context: str, pos: int) -> Generator[Event | _NeedData, None, bool]:
        (word,) = _read_word(self._view, pos)
        addr, flags = split_head(word, self.page_size or DEFAULT_PAGE_SIZE)
        flag = RAMSaveFlag(flags)
        if flag == RAMSaveFlag.HOOK:
            raise UnsupportedError(
                self.offset,
                "HOOK: RDMA carries the pages outside the stream",
                context=context,
            )
        if flag not in (RAMSaveFlag.EOS, RAMSaveFlag.MULTIFD_FLUSH) or addr:
            raise FormatError(
                self.offset,
                f"illegal RAM word {word:#x}",
                context=context,
                expected="a page record, EOS or MULTIFD_FLUSH",
            )
        yield RAMControl(*self._take(RAM_WORD_SIZE), flag)
        return flag == RAMSaveFlag.EOS

    def _block_list(self, head: parse.SectionHead, context: str) -> _Steps:
        yield from self._have(RAM_WORD_SIZE, context)
        (word,) = _read_word(self._view, self.offset - self._base)
        total, flags = word & ~RAM_LOW_FLAG_MASK, word & RAM_LOW_FLAG_MASK
        if flags != RAMSaveFlag.MEM_SIZE:
            raise FormatError(
                self.offset,
                f"RAM word {word:#x} where the block list should start",
                context=context,
                expected="MEM_SIZE",
            )
        if head.version_id == 3:
            # 0.10 to 0.12: one flat space, no list. QEMU v0.12.0 vl.c ram_save_live().
            blocks: tuple[RAMBlock, ...] = (RAMBlock(b"ram", total),)
            used = 0
        elif CAP_MAPPED_RAM in self._capabilities:
            raise UnsupportedError(
                self.offset, "mapped-ram: pages stand at fixed places", context=context
            )
        else:
            entries, used = yield from self._entries(total, context)
            blocks = tuple(
                RAMBlock(e.idstr, e.used_length, e.host_page_size, e.gpa) for e in entries
            )
        if sum(b.used_length for b in blocks) > MAX_RAM:
            raise LimitError(
                self.offset,
                f"RAM of {total:#x} bytes",
                context=context,
                expected=f"at most {MAX_RAM:#x}",
            )
        self._ram = RAMState(blocks, flat=head.version_id == 3, context=context)
        yield RAMBlockList(*self._take(RAM_WORD_SIZE + used), total, blocks)

    def _entries(
        self, total: int, context: str
    ) -> Generator[_NeedData, None, tuple[tuple[parse.BlockEntry, ...], int]]:
        size = 4096
        while True:
            left = yield from self._want(size)
            try:
                return parse.ram_block_list(
                    self._bytes()[RAM_WORD_SIZE:],
                    self.offset + RAM_WORD_SIZE,
                    total,
                    ignore_shared=CAP_IGNORE_SHARED in self._capabilities,
                )
            except parse.Short:
                if left < size:
                    raise self._ends(context) from None
                if size > 300 * MAX_RAM_BLOCKS:
                    raise LimitError(
                        self.offset, "RAM block list too long", context=context
                    ) from None
                size *= 2

    def _probe(self, ram: RAMState) -> _Steps:
        (word,) = _read_word(self._view, self.offset - self._base)
        if not word & int(PAGE_KINDS):
            return
        yield from self._want(_PROBE_SIZE)
        pos = self.offset - self._base
        found = probe_page_size(self._view[: pos + _PROBE_SIZE], pos, set(ram.index), flat=ram.flat)
        if found is None:
            self._assumed = True
        elif self._assumed and found != DEFAULT_PAGE_SIZE:
            raise IntegrityError(
                self.offset,
                f"pages of {found} bytes behind zero pages that were read as {DEFAULT_PAGE_SIZE}",
                context=ram.context,
                advice=f"read the stream with --page-size {found}",
            )
        else:
            self._decide_page_size(found, "probe")
