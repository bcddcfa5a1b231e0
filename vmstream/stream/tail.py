"""Device sections to events: the part of a stream that has no lengths.

The body of a device section ends where the vmdescription says, and that comes behind all of
them. So the sections behind the last RAM section are held until the input ends, the
vmdescription is found by its frame, and then everything is framed forward, each footer
checked. Without it the ends are inferred from the footers; without those from the headers of the
sections behind, if all that look like headers agree.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    quoted,
)
from vmstream.stream.events import (
    Anomaly,
    Command,
    EndOfStream,
    Event,
    Gap,
    Padding,
    Payload,
    SectionFooter,
    SectionStart,
    VMDescription,
    fault,
)
from vmstream.wire import grammar, parse, vmsd
from vmstream.wire.constants import SectionType
from vmstream.wire.layout import struct_of

_FOOTER = struct_of(grammar.SECTION_FOOTER)
_FRAME = struct_of(grammar.VMDESCRIPTION_HEAD)

# Bounds on hostile input: how many frames of a vmdescription are tried, and the command numbers
# and versions that an item found by inference may have.
MAX_FRAMES_TRIED = 16
_PLAUSIBLE_COMMAND = 64
_PLAUSIBLE_VERSION = 1 << 16
_PLAUSIBLE_PADDING = 4096
_NOT_ZERO = re.compile(rb"[^\0]")

# Of headers that are looked for in device state: bytes of a name at the least, and bytes that are
# looked through at a time.
_SHORTEST_NAME = 2
_HEADS_AT_A_TIME = 1 << 20

FOOTER_SIZE: int = _FOOTER.size


@dataclass(frozen=True, slots=True)
class Frame:
    """A vmdescription found in held bytes: where its EOF byte stands, and what it says."""

    eof: int
    end: int
    layout: vmsd.VMDescriptionLayout


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes from the first device section on.

    Attributes:
        data: The bytes held.
        base: Absolute offset of the first.
        footers: Whether the stream has section footers; `None` if nothing told yet.
        packaged: This is the body of a PACKAGED command: it ends without EOF.
        strict: Raise at the first fault instead of going on behind it.
        at_end: The input ends where `data` and `zeros` end.
        zeros: Zero bytes of the input behind `data` that are not held.
    """

    data: memoryview = field(repr=False)
    base: int
    footers: bool | None
    packaged: bool = False
    strict: bool = False
    at_end: bool = True
    zeros: int = 0


def find_vmdescriptions(data: memoryview) -> Iterator[Frame]:
    """Find what may be the VMDESCRIPTION by its frame, the last first.

    That is EOF, the type byte, a length that fits, and JSON of its shape; padding may follow.
    """
    mark = bytes([SectionType.QEMU_VM_EOF, SectionType.QEMU_VM_VMDESCRIPTION])
    tries: deque[tuple[int, int, int]] = deque(maxlen=MAX_FRAMES_TRIED)
    for match in re.finditer(mark + rb"(?=.{4}\{)", data, re.DOTALL):
        _, length = _FRAME.unpack_from(data, match.start() + 1)
        begin = match.start() + 1 + _FRAME.size
        if length <= len(data) - begin and data[begin + length - 1] == ord("}"):
            tries.append((match.start(), begin, begin + length))
    while tries:
        eof, begin, end = tries.pop()
        try:
            yield Frame(eof, end, vmsd.load(bytes(data[begin:end])))
        except ValueError:
            continue


def plausible_item(data: memoryview, pos: int, *, live: bool, at_end: bool) -> bool | None:
    """Whether an item can stand at `pos`; `None` if the bytes given do not tell yet.

    Used only where the end of a body is inferred. `live`: iterable sections may follow.
    """
    unknown = True if at_end else None
    if pos >= len(data):
        return unknown
    kind = data[pos]
    if kind in (SectionType.QEMU_VM_SECTION_START, SectionType.QEMU_VM_SECTION_FULL):
        try:
            head, _ = parse.section_head(data[pos : pos + parse.LONGEST_SECTION_HEAD], 0)
        except parse.Short:
            return unknown
        except FormatError:
            return False
        return head.version_id < _PLAUSIBLE_VERSION and all(0x20 <= c < 0x7F for c in head.idstr)
    rest = bytes(data[pos + 1 : pos + 5])
    if kind == SectionType.QEMU_VM_EOF:
        if rest[:1] == bytes([SectionType.QEMU_VM_VMDESCRIPTION]):
            return True
        # Else there is nothing behind it but padding: device state is full of zeros, and a byte of
        # 0x7e in front of some looks like the footer of section 0.
        if _NOT_ZERO.search(data, pos + 1, pos + 1 + _PLAUSIBLE_PADDING):
            return False
        return True if len(data) - pos > _PLAUSIBLE_PADDING else unknown
    if kind == SectionType.QEMU_VM_COMMAND:
        return unknown if len(rest) < 2 else int.from_bytes(rest[:2], "big") < _PLAUSIBLE_COMMAND
    if kind in (SectionType.QEMU_VM_SECTION_PART, SectionType.QEMU_VM_SECTION_END):
        # Whatever its id: an unknown one is a fault of that item, not of the footer before.
        return live
    return False


def find_footer(
    data: memoryview, start: int, section_id: int, *, live: bool, at_end: bool
) -> tuple[int, bool]:
    """Find the first footer of `section_id` that an item follows, from `start` on.

    Among device sections one that EOF and a zero follow is taken if no other is found.

    Returns:
        (position, True) if found; else (position from which to look again, False).
    """
    mark = _FOOTER.pack(SectionType.QEMU_VM_SECTION_FOOTER, section_id)
    # One that EOF, a zero and then anything follow: garbage may stand behind the end of a stream.
    last_resort: int | None = None
    # Only looked ahead for, since an id of 0x7e... lets footers overlap.
    for match in re.compile(b"(?=%s)" % re.escape(mark)).finditer(data, start):
        follows = plausible_item(data, match.start() + FOOTER_SIZE, live=live, at_end=at_end)
        if follows:
            return match.start(), True
        if follows is None:
            return match.start(), False
        behind = bytes(data[match.start() + FOOTER_SIZE :][:2])
        if last_resort is None and not live and at_end and behind == b"\0\0":
            last_resort = match.start()
    if last_resort is not None:
        return last_resort, True
    return max(start, len(data) - FOOTER_SIZE + 1), False


def find_heads(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield (position, section id) of what can be the header of a FULL section, in order.

    Ids and versions are below 65,536, as in all streams of QEMU.

    Wire:
        `grammar.SECTION_HEAD`: type, be32 id, u8 length and name, be32 instance, be32 version.

    Memory:
        Some 20 MiB, however long `data` is.
    """
    octets = np.frombuffer(data, np.uint8)
    for begin in range(0, len(octets), _HEADS_AT_A_TIME):
        here = octets[begin : begin + _HEADS_AT_A_TIME + parse.LONGEST_SECTION_HEAD]
        last = min(_HEADS_AT_A_TIME, len(here) - parse.SHORTEST_SECTION_HEAD + 1)
        if last <= 0:
            return
        is_full = here[:last] == SectionType.QEMU_VM_SECTION_FULL
        places = np.flatnonzero(is_full & (here[1 : last + 1] == 0) & (here[2 : last + 2] == 0))
        sizes = here[places + 5].astype(np.int64)
        ends = places + sizes + parse.SHORTEST_SECTION_HEAD
        fits = (sizes >= _SHORTEST_NAME) & (ends <= len(here))
        places, sizes, ends = places[fits], sizes[fits], ends[fits]
        other = np.zeros(len(here) + 1, np.int32)
        np.cumsum((here < 0x20) | (here > 0x7E), out=other[1:])
        named = other[places + 6] == other[places + 6 + sizes]
        named &= (here[ends - 4] == 0) & (here[ends - 3] == 0)
        for place in places[named].tolist():
            yield begin + place, int(here[place + 3]) << 8 | int(here[place + 4])


def has_footer(data: memoryview, pos: int, section_id: int) -> bool:
    """Whether the footer of this section stands at `pos`."""
    return bytes(data[pos : pos + FOOTER_SIZE]) == _FOOTER.pack(
        SectionType.QEMU_VM_SECTION_FOOTER, section_id
    )


def is_footer_start(data: memoryview, section_id: int) -> bool:
    """Whether `data` is what the footer of this section starts with."""
    mark = _FOOTER.pack(SectionType.QEMU_VM_SECTION_FOOTER, section_id)
    return mark.startswith(bytes(data[:FOOTER_SIZE]))


def describe(head: parse.SectionHead) -> str:
    """Name a section in a message."""
    instance = f" instance {head.instance_id:#x}" if head.instance_id else ""
    return f"section {head.section_id} {quoted(head.idstr)}{instance}"


def frame_tail(tail: Tail) -> Iterator[Event]:
    """Yield the events of a tail; they cover it and its zeros whole.

    Raises:
        StreamError: At the first fault, if `tail.strict`.
    """
    return _Framer(tail, None if tail.packaged else _choose_frame(tail)).events()


# The frame that the sections lead up to. Device state may hold anything, a frame too, so one
# that they do not lead up to counts only if nothing but padding follows it: then the damage is in
# the sections.
def _choose_frame(tail: Tail) -> Frame | None:
    found = list(find_vmdescriptions(tail.data))
    for frame in found:
        try:
            deque(_Framer(replace(tail, strict=True), frame).events(), maxlen=0)
        except StreamError:
            continue
        return frame
    if found and not any(tail.data[found[0].end :]):
        return found[0]
    return None


class _Framer:
    def __init__(self, tail: Tail, frame: Frame | None) -> None:
        self.tail = tail
        self.data = tail.data
        self.base = tail.base
        self.pos = 0
        self.ended = False
        self.footers = tail.footers
        self.frame = frame
        self.layouts = frame.layout.queues() if frame else {}
        self.heads: deque[int] | None = None  # where the sections behind start, by inference

    def events(self) -> Iterator[Event]:
        try:
            yield from self._items()
        except StreamError as error:
            if self.tail.strict:
                raise
            yield fault(error)
            if self.frame is not None and self.pos < self.frame.eof:
                yield self._gap(self.frame.eof, "not framed, up to the vmdescription")
                yield from self._end()
        yield from self._rest()

    def _at(self, pos: int) -> int:
        return self.base + pos

    def _gap(self, end: int, reason: str) -> Gap:
        begin, self.pos = self.pos, end
        return Gap(self._at(begin), self._at(end), reason)

    def _items(self) -> Iterator[Event]:
        data = self.data
        while self.pos < len(data) and not self.ended:
            kind = data[self.pos]
            if kind == SectionType.QEMU_VM_EOF and not self.tail.packaged:
                if self.frame is not None and self.pos != self.frame.eof:
                    raise IntegrityError(
                        self._at(self.pos),
                        "end of stream before the vmdescription's",
                        context="device state",
                        expected=f"at {self._at(self.frame.eof):#x}",
                    )
                yield from self._end()
                return
            if kind == SectionType.QEMU_VM_SECTION_FULL:
                yield from self._section()
            elif kind == SectionType.QEMU_VM_COMMAND:
                yield self._command()
            else:
                raise FormatError(
                    self._at(self.pos),
                    f"unknown item type {kind:#04x}",
                    context="device state",
                    expected="SECTION_FULL, COMMAND or EOF",
                )
        if not self.tail.packaged and not self.ended:
            raise self._truncated(1, "between device sections")

    def _truncated(self, needed: int, context: str) -> StreamError:
        end = self._at(len(self.data)) + self.tail.zeros
        if not self.tail.at_end:
            return LimitError(
                self.base,
                f"over {len(self.data) >> 20} MiB of device state without an end",
                context=context,
            )
        return TruncatedError(
            end, "the input ends", context=context, expected=f"at least {needed} bytes more"
        )

    def _command(self) -> Command:
        begin = self.pos
        try:
            cmd, data, size = parse.command(self.data[begin:], self._at(begin))
        except parse.Short:
            raise self._truncated(1, "command") from None
        self.pos += size
        return Command(self._at(begin), self._at(self.pos), cmd, data)

    def _section(self) -> Iterator[Event]:
        begin = self.pos
        try:
            head, size = parse.section_head(self.data[begin:], self._at(begin))
        except parse.Short:
            raise self._truncated(1, "section header") from None
        self.pos += size
        yield SectionStart(
            self._at(begin),
            self._at(self.pos),
            head.section_type,
            head.section_id,
            head.idstr,
            head.instance_id,
            head.version_id,
            self.tail.packaged,
        )
        yield from self._body(head)
        if self.footers and has_footer(self.data, self.pos, head.section_id):
            self.pos += FOOTER_SIZE
            yield SectionFooter(
                self._at(self.pos - FOOTER_SIZE), self._at(self.pos), head.section_id
            )

    def _body(self, head: parse.SectionHead) -> Iterator[Event]:
        begin = self.pos
        layouts = self.layouts.get((head.idstr, head.instance_id))
        layout = layouts.popleft() if layouts else None
        version = layout.description.get("version", head.version_id) if layout else None
        if self.frame is not None and version != head.version_id:
            what = (
                f"says version {version}, not {head.version_id}" if layout else "does not have it"
            )
            yield Anomaly(
                self._at(begin),
                self._at(begin),
                "warning",
                "vmdescription-differs",
                f"offset {self._at(begin):#x}, {describe(head)}: the vmdescription {what}",
            )
        if layout is not None:
            end = begin + layout.size
            if self.footers is None:
                self.footers = has_footer(self.data, end, head.section_id)
            if self.footers:
                right = has_footer(self.data, end, head.section_id)
            else:
                right = end <= len(self.data) and bool(
                    plausible_item(self.data, end, live=False, at_end=False)
                )
            if right:
                yield self._payload(end, head, "vmdescription")
                return
        if self.footers is not False:
            end, found = find_footer(
                self.data, begin, head.section_id, live=False, at_end=self.tail.at_end
            )
            if found:
                self.footers = True
                yield self._payload(end, head, "footer-scan")
                if layout is not None:
                    yield self._size_differs(head, layout, begin, end)
                return
        limit = self.frame.eof if self.frame is not None else len(self.data)
        if layout is not None or self.footers or limit < begin:
            if self.frame is None and self.footers:
                raise self._truncated(FOOTER_SIZE, describe(head))
            raise IntegrityError(
                self._at(begin),
                "the body does not end where the vmdescription says",
                context=describe(head),
                expected=f"{layout.size} bytes" if layout is not None else "an entry in it",
                advice="the device state or the vmdescription is damaged",
            )
        # Neither footers nor a description: no boundary from here on is on the wire.
        whole = self.frame is None and self.tail.at_end and not self.tail.packaged
        if whole and limit > begin:
            limit -= self.data[limit - 1] == SectionType.QEMU_VM_EOF
        scanned = self.heads is not None
        why = ""
        if whole and not scanned:
            heads, why = self._scan_heads(head, limit)
            if heads:
                self.heads, self.footers, scanned = heads, False, True
                yield self._headers_told(head, begin, len(heads))
        if self.heads:
            yield self._payload(self.heads.popleft(), head, "header-scan")
            return
        if scanned and limit < len(self.data):
            yield self._payload(limit, head, "header-scan")
        elif limit > begin:
            yield self._gap(limit, "device state without footers and vmdescription: not framed")
        if not scanned:
            yield Anomaly(
                self._at(begin),
                self._at(begin),
                "info",
                "unframed",
                f"offset {self._at(begin):#x}, {describe(head)}: the stream has neither section "
                f"footers nor a vmdescription, so device sections cannot be told apart from here "
                f"on{why}",
            )
        if self.frame is None and not self.tail.packaged:
            yield from self._inferred_end()

    # Where the sections behind this one start, if all that looks like a header can be one: QEMU
    # counts section ids up as devices register, and leaves out those that have nothing to send.
    # Those of a higher priority come first, so an id below all before may follow. Of two headers
    # that contradict each other at least one is data.
    # QEMU v7.2.0 migration/savevm.c savevm_state_handler_insert(), vmstate_save().
    def _scan_heads(self, head: parse.SectionHead, limit: int) -> tuple[deque[int], str]:
        found: deque[int] = deque()
        last = lowest = head.section_id
        seen, free = {last}, self.pos
        for place, section_id in find_heads(self.data[self.pos : limit]):
            at = self.pos + place
            if lowest < section_id < last or section_id in seen or at < free:
                return deque(), (
                    f"; at {self._at(at):#x} stands what looks like the header of section "
                    f"{section_id}, behind that of section {last}: ambiguous"
                )
            found.append(at)
            seen.add(section_id)
            last, lowest = section_id, min(lowest, section_id)
            free = at + parse.SHORTEST_SECTION_HEAD + self.data[at + 5]
        return found, ""

    def _headers_told(self, head: parse.SectionHead, begin: int, count: int) -> Anomaly:
        return Anomaly(
            self._at(begin),
            self._at(begin),
            "info",
            "header-scan",
            f"offset {self._at(begin):#x}, {describe(head)}: the stream has neither section "
            f"footers nor a vmdescription; that this section ends, and {count} follow, is inferred "
            "from their headers, whose ids agree",
        )

    # The last byte of an unframed tail: 0 is what EOF would be.
    def _inferred_end(self) -> Iterator[Event]:
        if self.pos < len(self.data) and self.data[self.pos] == SectionType.QEMU_VM_EOF:
            self.pos += 1
            self.ended = True
            yield EndOfStream(self._at(self.pos - 1), self._at(self.pos), inferred=True)
            return
        raise self._truncated(1, "device state")

    def _payload(self, end: int, head: parse.SectionHead, framing: str) -> Payload:
        begin, self.pos = self.pos, end
        return Payload(
            self._at(begin), self._at(end), head.section_id, framing, self.data[begin:end]
        )

    def _size_differs(
        self, head: parse.SectionHead, layout: vmsd.DeviceLayout, begin: int, end: int
    ) -> Anomaly:
        return Anomaly(
            self._at(begin),
            self._at(begin),
            "info" if vmsd.may_lie(layout.description) else "warning",
            "vmdescription-size",
            f"offset {self._at(begin):#x}, {describe(head)}: the vmdescription says {layout.size} "
            f"bytes, the footer stands behind {end - begin}",
        )

    # EOF, and the vmdescription if one follows.
    def _end(self) -> Iterator[Event]:
        self.pos += 1
        self.ended = True
        yield EndOfStream(self._at(self.pos - 1), self._at(self.pos))
        begin = self.pos
        if self.frame is not None:
            self.pos = self.frame.end
            text = bytes(self.data[begin + _FRAME.size : self.pos])
            yield VMDescription(self._at(begin), self._at(self.pos), text, self.frame.layout)
        elif begin < len(self.data) and self.data[begin] == SectionType.QEMU_VM_VMDESCRIPTION:
            if begin + _FRAME.size > len(self.data):
                raise self._truncated(1, "vmdescription")
            _, length = _FRAME.unpack_from(self.data, begin)
            end = begin + _FRAME.size + length
            if end > len(self.data):
                raise self._truncated(end - len(self.data), "vmdescription")
            try:
                vmsd.load(bytes(self.data[begin + _FRAME.size : end]))
            except ValueError as exc:
                raise FormatError(
                    self._at(begin),
                    "damaged vmdescription",
                    context="vmdescription",
                    found=str(exc),
                ) from exc

    # What stands behind the end: padding is zeros. Before the end zeros are missing state.
    def _rest(self) -> Iterator[Event]:
        begin, end = self.pos, len(self.data)
        all_end = self._at(end) + self.tail.zeros
        if not self.ended:
            if self._at(begin) < all_end:
                yield Gap(self._at(begin), all_end, "incomplete")
            return
        if any(self.data[begin:end]):
            yield self._gap(end, "behind the end of the stream")
            yield Anomaly(
                self._at(begin),
                self._at(begin),
                "warning",
                "trailing",
                f"offset {self._at(begin):#x}: {end - begin} bytes behind the stream's end",
            )
        if self._at(self.pos) < all_end:
            yield Padding(self._at(self.pos), all_end)
