"""The section state machine: windows of bytes in, events out.

The decoder does no I/O. Its caller gives it windows (`supply`) and takes events (`next_event`);
NEED_DATA asks for a window that starts at `decoder.offset` or before and reaches `decoder.need`
bytes further, or ends where the input ends. Events do not depend on how the input is cut, but
for the cuts between page batches and between the stretches of a payload or of a long record.

    while (event := decoder.next_event()) is not None:
        if event is NEED_DATA:
            decoder.supply(*source.window(decoder.offset, decoder.need))
        else: ...

Memory: the decoder holds no window. It holds the device sections (`stream.tail`) up to
MAX_DEVICE_TAIL.
"""

from __future__ import annotations

from collections.abc import Generator

from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.stream.cursor import NEED_DATA, Cursor, NeedData, SansIO, Steps
from vmstream.stream.events import (
    Anomaly,
    Command,
    Configuration,
    FileHeader,
    Gap,
    Payload,
    SectionFooter,
    SectionStart,
    VMDescription,
    fault,
)
from vmstream.stream.live import LiveHandlers, LiveReader, live_body
from vmstream.stream.rambody import RAMReader
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
    MAX_CONFIGURATION,
    MAX_DEVICE_TAIL,
    TARGET_PAGE_BITS,
    MigCmd,
    SectionType,
)
from vmstream.wire.layout import struct_of

__all__ = ["NEED_DATA", "Decoder"]

_PART_HEAD = struct_of(grammar.SECTION_PART_HEAD)

# Iterable sections of one stream; QEMU has a dozen handlers.
_MAX_LIVE = 4096

# Zero bytes at the end of the held device sections that are kept as bytes.
_KEPT_ZEROS = 64


class Decoder(SansIO):
    """Decode one migration stream.

    Args:
        page_size: Target page size in bytes, if the caller knows better than the stream.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        strict: Raise the first StreamError. Otherwise a fault becomes an `Anomaly` with the
            error, a `Gap` over what could not be read, and decoding goes on behind it.

    Attributes:
        footers: Whether sections have footers; `None` until the first section told.
        strict: As given.
    """

    def __init__(
        self, page_size: int | None = None, *, strict: bool = False, max_ram: int | None = None
    ) -> None:
        super().__init__(Cursor(), strict=strict)
        self.footers: bool | None = None
        self._ram = RAMReader(self._in, page_size, strict=strict, max_ram=max_ram)
        self._live: dict[int, parse.SectionHead] = {}
        self._handlers = LiveHandlers()
        self._readers: dict[int, LiveReader | None] = {}
        self._settled = False  # a PART or END was seen: the set-up phase is over
        self._over = False  # the input ended inside a package

    @property
    def origin(self) -> int:
        """Offset of the stream in the file, if mapped-ram offsets are of a longer file."""
        return self._ram.origin

    @origin.setter
    def origin(self, offset: int) -> None:
        self._ram.origin = offset

    @property
    def seekable(self) -> bool:
        """Windows can be had in any order, which mapped-ram takes."""
        return self._ram.seekable

    @seekable.setter
    def seekable(self, value: bool) -> None:
        self._ram.seekable = value

    @property
    def page_size(self) -> int | None:
        """Target page size, bytes; `None` until it is decided."""
        return self._ram.page_size

    @property
    def page_size_source(self) -> str | None:
        """Who decided: a word of `report.models.InspectReport`."""
        return self._ram.page_size_source

    def decide_page_size(self, size: int, source: str) -> None:
        """Take the target page size that another channel tells, unless it is decided."""
        self._ram.decide_page_size(size, source)

    # ---- the stream --------------------------------------------------------------------

    def _stream(self) -> Steps:
        yield from self._guarded(self._head_and_items())
        while True:
            if self._in.lost is None:
                self._ram.assume_page_size()
                yield from self._drain("incomplete, or not readable")
                if self._in.lost is None:
                    return
                self._live.clear()  # the place was lost before, and not by this
            yield Gap(*self._in.skip_lost(), "not readable where it is stored")
            if self._live and self.footers:
                yield from self._guarded(self._from_a_footer())

    def _head_and_items(self) -> Steps:
        yield from self._head()
        yield from self._items()

    # A fault ends the steps. Where bytes are lost that was told, and the input does not end.
    def _guarded(self, steps: Steps) -> Steps:
        try:
            yield from steps
        except StreamError as error:
            if self.strict:
                raise
            if self._in.lost is None or not isinstance(error, TruncatedError):
                yield fault(error)

    # Go on behind the first footer of an iterable section that an item follows.
    def _from_a_footer(self) -> Steps:
        begin = self._in.offset
        while True:
            at_end, view = self._in.at_end, self._in.rest()
            found = []
            for live in self._live.values():
                place, here = find_footer(view, 0, live.section_id, live=True, at_end=at_end)
                found.append((place, not here, live.section_id))
            size, missed, section_id = min(found)
            self._in.take(size)
            if not missed:
                break
            if (yield from self._is_all(at_end)):
                self._in.take(self._in.left())
                break
        if self._in.offset > begin:
            yield Gap(begin, self._in.offset, "not readable, up to the next footer")
        if not missed:
            self._ram.lose_block()
            yield from self._footer(self._live[section_id])
            yield from self._items()

    def _head(self) -> Steps:
        yield from self._in.want(8)
        if not self._in.left():
            raise TruncatedError(0, "empty input", expected="a migration stream")
        try:
            size = parse.file_header(self._in.rest()[:8])
        except parse.Short as short:
            yield from self._in.have(short.size, "file header")
            raise AssertionError("unreachable") from None
        yield FileHeader(*self._in.take(size))
        yield from self._in.have(1, "behind the file header")
        if self._in.rest()[0] != SectionType.QEMU_VM_CONFIGURATION:
            return
        size = 512
        while True:
            left = yield from self._in.want(size)
            try:
                found, used = parse.configuration(self._in.rest(), self._in.offset)
                break
            except parse.Short:
                if left < size:
                    raise self._in.ends("configuration") from None
                if size > MAX_CONFIGURATION:
                    raise LimitError(
                        self._in.offset, "configuration section too long", context="configuration"
                    ) from None
                size *= 2
        if found.target_page_bits is not None:
            if found.target_page_bits not in TARGET_PAGE_BITS:
                raise FormatError(
                    self._in.offset,
                    "impossible target page size",
                    context="configuration/target-page-bits",
                    expected="8 to 24 bits",
                    found=str(found.target_page_bits),
                )
            self._ram.decide_page_size(1 << found.target_page_bits, "target-page-bits")
        self._ram.capabilities = found.capabilities
        yield Configuration(
            *self._in.take(used),
            name=found.name,
            target_page_bits=found.target_page_bits,
            capabilities=found.capabilities,
            uuid=found.uuid,
            subsections=found.subsections,
        )

    def _items(self) -> Steps:
        while not self._over:
            yield from self._in.have(1, "between sections")
            kind = self._in.rest()[0]
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
                    self._in.offset,
                    f"unknown item type {kind:#04x}",
                    expected="START, PART, END, FULL, COMMAND or EOF",
                    advice="the section before is longer or shorter than it was read",
                )

    def _command(self) -> Steps:
        yield from self._in.have(5, "command")
        size = 5 + int.from_bytes(self._in.rest()[3:5], "big")
        yield from self._in.have(size, "command")
        cmd, data, size = parse.command(self._in.rest(), self._in.offset)
        yield Command(*self._in.take(size), cmd, data)
        length = parse.command_fields(cmd, data).get("length") if cmd == MigCmd.PACKAGED else None
        if length is not None:
            # QEMU v10.1.0 migration/savevm.c loadvm_handle_cmd_packaged(): the package stands
            # behind the command, outside its length. Held whole, as QEMU holds it.
            if length > MAX_DEVICE_TAIL:
                raise LimitError(
                    self._in.offset, f"a package of {length} bytes", context="PACKAGED"
                )
            yield from self._in.want(length)
            package = bytes(self._in.rest()[:length])
            damaged = False
            for event in self._tail(package, packaged=True, zeros=0):
                damaged = damaged or (isinstance(event, Anomaly) and event.error is not None)
                yield event
            if len(package) < length:
                if not damaged:
                    raise self._in.ends("PACKAGED")
                self._over = True

    def _start(self) -> Steps:
        left = yield from self._in.want(parse.LONGEST_SECTION_HEAD)
        try:
            head, size = parse.section_head(self._in.rest(), self._in.offset)
        except parse.Short:
            raise self._in.ends("section header") from None
        if left < size:
            raise self._in.ends("section header")
        yield self._section(head, head.section_type, size)
        if head.section_type == SectionType.QEMU_VM_SECTION_START:
            if len(self._live) >= _MAX_LIVE:
                raise LimitError(self._in.offset, f"over {_MAX_LIVE} iterable sections")
            self._live[head.section_id] = head
            self._readers[head.section_id] = self._handlers.reader(head)
        yield from self._body(head, head.section_type)

    def _part(self) -> Steps:
        yield from self._in.have(_PART_HEAD.size, "section part")
        kind, section_id = _PART_HEAD.unpack_from(self._in.view, self._in.place)
        head = self._live.get(section_id)
        if head is None:
            raise FormatError(
                self._in.offset,
                f"a part of section {section_id}, which was not started",
                expected=", ".join(map(str, self._live)) or "a START first",
                advice="the section before is longer or shorter than it was read",
            )
        yield self._section(head, kind, _PART_HEAD.size)
        yield from self._body(head, kind)

    def _section(self, head: parse.SectionHead, kind: int, size: int) -> SectionStart:
        return SectionStart(
            *self._in.take(size),
            kind,
            head.section_id,
            head.idstr,
            head.instance_id,
            head.version_id,
        )

    # The body of a section or part, and its footer. Behind a fault in it the stream is picked
    # up again at its footer, if it has one.
    def _body(self, head: parse.SectionHead, kind: int) -> Steps:
        full = kind == SectionType.QEMU_VM_SECTION_FULL
        reader = None if full else self._readers.get(head.section_id)
        try:
            if head.idstr == b"ram" and not full:
                yield from self._ram.body(head, kind)
            elif reader is None or (yield from live_body(self._in, reader, head, kind)):
                yield from self._foreign_body(head)
            yield from self._footer(head)
        except (FormatError, IntegrityError) as error:
            # Where no footer has told yet, one is looked for behind a handler that is not RAM:
            # so is the end of one that is not known here.
            if self.strict or not (self.footers or (self.footers is None and reader is not None)):
                raise
            yield fault(error)
            yield from self._to_footer(head, "not readable, up to the next footer")

    def _footer(self, head: parse.SectionHead) -> Steps:
        if self.footers is False:
            return
        left = yield from self._in.want(FOOTER_SIZE)
        found = has_footer(self._in.rest(), 0, head.section_id)
        if self.footers is None:
            # The first section tells for the whole stream. QEMU v10.1.0 migration/savevm.c
            # check_section_footer() asks the machine type, which is not to be trusted here.
            if 0 < left < FOOTER_SIZE and is_footer_start(self._in.rest(), head.section_id):
                raise self._in.ends(f"footer of {describe(head)}")
            self.footers = found
            if not found:
                return
        if not found:
            if left < FOOTER_SIZE:
                raise self._in.ends(f"footer of {describe(head)}")
            raise FormatError(
                self._in.offset,
                "missing section footer",
                context=describe(head),
                expected=f"0x7e and id {head.section_id}",
                found=bytes(self._in.rest()[:FOOTER_SIZE]).hex(),
            )
        yield SectionFooter(*self._in.take(FOOTER_SIZE), head.section_id)

    # ---- bodies without a length ---------------------------------------------------------

    # A section of a handler that is not decoded here. Its end is inferred from its footer.
    def _foreign_body(self, head: parse.SectionHead) -> Steps:
        if self.footers is False:
            raise UnsupportedError(
                self._in.offset,
                "a section of unknown length in a stream without footers",
                context=describe(head),
                advice="nothing behind it can be framed",
            )
        while True:
            at_end = self._in.at_end
            size, found = find_footer(self._in.rest(), 0, head.section_id, live=True, at_end=at_end)
            if found or size:
                # A stretch of the body; the bytes behind it may be part of a footer.
                data = self._in.rest()[:size]
                yield Payload(
                    *self._in.take(size), head.section_id, "footer-scan", data, final=found
                )
            if found:
                return
            if (yield from self._is_all(at_end)):
                raise self._in.ends(describe(head))

    # Ask for more bytes than there are; true if there were none, and that was known before.
    def _is_all(self, known: bool) -> Generator[NeedData, None, bool]:
        left = self._in.left()
        return (yield from self._in.want(left + _PART_HEAD.size)) == left and known

    # Skip to the next footer of this section that an item follows.
    def _to_footer(self, head: parse.SectionHead, reason: str) -> Steps:
        begin = self._in.offset
        while True:
            at_end = self._in.at_end
            size, found = find_footer(self._in.rest(), 0, head.section_id, live=True, at_end=at_end)
            self._in.take(size)
            if found:
                break
            if (yield from self._is_all(at_end)):
                self._in.take(self._in.left())
                break
        if self._in.offset > begin:
            yield Gap(begin, self._in.offset, reason)
        if found:
            yield from self._footer(head)

    def _device_tail(self) -> Steps:
        self._live.clear()  # all of them have ended
        held = bytearray()
        zeros = 0
        base = self._in.offset
        whole = True
        while (yield from self._in.want(1)):
            chunk = bytes(self._in.rest())
            solid = chunk.rstrip(b"\0")
            if solid:
                room = MAX_DEVICE_TAIL - len(held) - zeros
                if len(solid) > room:
                    whole = False
                    if room > 0:
                        held += bytes(zeros) + chunk[:room]
                        zeros = 0
                        self._in.take(room)
                    break
                held += bytes(zeros) + solid
                zeros = 0
            zeros += len(chunk) - len(solid)
            self._in.take(len(chunk))
        kept = min(zeros, _KEPT_ZEROS)
        held += bytes(kept)
        self._in.offset = base
        yield from self._tail(held, packaged=False, zeros=zeros - kept, at_end=whole)
        begin = self._in.offset
        yield from self._drain("behind the end of the stream")
        if self._in.offset > begin:
            yield Anomaly(
                begin,
                begin,
                "warning",
                "trailing",
                f"offset {begin:#x}: {self._in.offset - begin} bytes behind the stream's end",
            )

    def _tail(
        self, held: bytes | bytearray, *, packaged: bool, zeros: int, at_end: bool = True
    ) -> Steps:
        tail = Tail(
            memoryview(held),
            self._in.offset,
            self.footers,
            packaged=packaged,
            strict=self.strict,
            at_end=at_end,
            zeros=zeros,
        )
        for event in frame_tail(tail):
            if not isinstance(event, Anomaly):
                self._in.offset = event.end
            yield event
            if isinstance(event, VMDescription):
                yield from self._ram.check_page_size(event)
