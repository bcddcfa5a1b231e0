"""The event vocabulary: all that a stream can say, each with the bytes it covers.

The ranges `[offset, end)` of a stream's events are adjacent, start at 0 and end at the length of
the input: every byte belongs to exactly one event. Do not subclass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import StreamError
from vmstream.wire.constants import PAGE_KINDS, MultiFDFlag, RAMSaveFlag
from vmstream.wire.live import Record
from vmstream.wire.vmsd import VMDescriptionLayout


@dataclass(frozen=True, slots=True)
class FileHeader:
    """Magic and version."""

    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """The CONFIGURATION section, 2.4 on.

    Attributes:
        name: Machine type, canonical, as on the wire.
        target_page_bits: `None` if the subsection is absent.
        capabilities: Names of the capabilities that QEMU checks at load.
        uuid: 16 bytes, `None` if absent.
        subsections: Names of the subsections that are there.
    """

    offset: int
    end: int
    name: bytes
    target_page_bits: int | None
    capabilities: tuple[bytes, ...]
    uuid: bytes | None
    subsections: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SectionStart:
    """Head of a section or of a section part.

    Attributes:
        section_type: QEMU_VM_SECTION_START, PART, END or FULL.
        section_id: As on the wire.
        idstr: Name; for PART and END that of their START.
        instance_id: Likewise.
        version_id: Likewise.
        packaged: It stands inside a PACKAGED command.
    """

    offset: int
    end: int
    section_type: int
    section_id: int
    idstr: bytes
    instance_id: int
    version_id: int
    packaged: bool = False


@dataclass(frozen=True, slots=True)
class RAMBlock:
    """A named guest memory region, as the stream lists it.

    Attributes:
        idstr: Name on the wire. Hostile: it can be any 1 to 255 bytes.
        used_length: Bytes.
        host_page_size: Size of its backing pages, bytes, if the stream states it.
        gpa: Address that x-ignore-shared sent, bytes; inside its container, so a hint.
    """

    idstr: bytes
    used_length: int
    host_page_size: int | None = None
    gpa: int | None = None


@dataclass(frozen=True, slots=True)
class RAMBlockList:
    """The MEM_SIZE word and its list.

    Attributes:
        total: Sum of the lengths as the word states it, bytes.
        blocks: In wire order.
    """

    offset: int
    end: int
    total: int
    blocks: tuple[RAMBlock, ...]


_KIND = {int(kind): kind for kind in PAGE_KINDS}
_PAGE_KINDS = int(PAGE_KINDS)
_ZERO = int(RAMSaveFlag.ZERO)


class Run(NamedTuple):
    """Records of one kind and block, of consecutive pages, evenly spaced on the wire.

    `payload` and `stride` are bytes in the window of the batch, so page i of the run stands at
    `payload + i * stride` there; `record_offset` is absolute. `flags` are those of each record.
    """

    kind: RAMSaveFlag
    block: int
    block_offset: int
    pages: int
    record_offset: int
    payload: int
    stride: int
    flags: int


@dataclass(frozen=True, slots=True, eq=False)
class PageColumns:
    """Page records as columns, one row each, in wire order.

    Attributes:
        record_offset: uint64 (n,), absolute offset of the head.
        size: uint32 (n,), bytes on the wire, head to payload.
        flags: uint16 (n,), RAM_SAVE_FLAG_*.
        block: int32 (n,), index in the block list.
        block_offset: uint64 (n,), bytes from the block's start.
        payload_size: uint32 (n,), bytes behind head and name.
    """

    record_offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    flags: NDArray[np.uint16]
    block: NDArray[np.int32]
    block_offset: NDArray[np.uint64]
    payload_size: NDArray[np.uint32]

    def first(self, records: int) -> PageColumns:
        """Return the first so many rows."""
        return self.part(slice(records))

    def part(self, rows: slice) -> PageColumns:
        """Return some of the rows; they are borrowed."""
        return PageColumns(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True, eq=False)
class PageBatch:
    """Consecutive page records.

    Scanned as columns or, where a few long runs are all there is, as those runs. Either way
    there are both: what was not scanned is made when it is asked for.

    Attributes:
        pages: What was scanned.
        blocks: The block list.
        page_size: Target page size, bytes.
        window: Bytes of the input, borrowed: valid until the next event is asked for.
        window_offset: Absolute offset of the first byte of `window`.

    Memory:
        Columns are owned. `detach()` gives a batch that owns its window too.
    """

    offset: int
    end: int
    pages: PageColumns | tuple[Run, ...]
    blocks: tuple[RAMBlock, ...]
    page_size: int
    window: memoryview = field(repr=False)
    window_offset: int

    @cached_property
    def columns(self) -> PageColumns:
        """The records as columns; each is an attribute of the batch, too."""
        if isinstance(self.pages, PageColumns):
            return self.pages
        runs, page = self.pages, self.page_size
        count = [r.pages for r in runs]
        payload_size = [r.record_offset - self.window_offset + r.stride - r.payload for r in runs]
        return PageColumns(
            record_offset=_ramps((r.record_offset, r.pages, r.stride) for r in runs),
            size=np.repeat(np.array([r.stride for r in runs], np.uint32), count),
            flags=np.repeat(np.array([r.flags for r in runs], np.uint16), count),
            block=np.repeat(np.array([r.block for r in runs], np.int32), count),
            block_offset=_ramps((r.block_offset, r.pages, page) for r in runs),
            payload_size=np.repeat(np.array(payload_size, np.uint32), count),
        )

    @property
    def record_offset(self) -> NDArray[np.uint64]:
        """Absolute offset of the head, uint64 (n,)."""
        return self.columns.record_offset

    @property
    def size(self) -> NDArray[np.uint32]:
        """Bytes on the wire, head to payload, uint32 (n,)."""
        return self.columns.size

    @property
    def flags(self) -> NDArray[np.uint16]:
        """RAM_SAVE_FLAG_*, uint16 (n,)."""
        return self.columns.flags

    @property
    def block(self) -> NDArray[np.int32]:
        """Index in `blocks`, int32 (n,)."""
        return self.columns.block

    @property
    def block_offset(self) -> NDArray[np.uint64]:
        """Bytes from the block's start, uint64 (n,)."""
        return self.columns.block_offset

    @property
    def payload_size(self) -> NDArray[np.uint32]:
        """Bytes behind head and name, uint32 (n,)."""
        return self.columns.payload_size

    def __len__(self) -> int:
        if isinstance(self.pages, PageColumns):
            return len(self.pages.record_offset)
        return sum(r.pages for r in self.pages)

    def payload(self, index: int) -> memoryview:
        """Bytes behind head and name of one record, borrowed."""
        end = int(self.record_offset[index]) + int(self.size[index]) - self.window_offset
        return self.window[end - int(self.payload_size[index]) : end]

    def runs(self) -> list[Run]:
        """Split into maximal runs, in wire order. Owned numbers, borrowed bytes."""
        if not isinstance(self.pages, PageColumns):
            return list(self.pages)
        if not len(self):
            return []
        # Of the same size and payload, so evenly spaced.
        step = np.diff(self.block_offset) != self.page_size
        for column in (self.flags, self.block, self.size, self.payload_size):
            step |= np.diff(column) != 0
        first = np.concatenate(([0], np.flatnonzero(step) + 1))
        count = np.diff(first, append=len(self)).tolist()
        payload = (
            self.record_offset[first].astype(np.int64)
            + self.size[first]
            - self.payload_size[first]
            - self.window_offset
        )
        at_first = (self.block, self.block_offset, self.record_offset, self.size, self.flags)
        b, o, r, s, f = (c[first].tolist() for c in at_first)
        k = (_KIND[flags & _PAGE_KINDS] for flags in f)
        return list(map(Run, k, b, o, count, r, payload.tolist(), s, f))

    def fills(self) -> NDArray[np.uint8]:
        """Fill bytes of the ZERO records, in order, uint8 (number of ZERO records,)."""
        window = np.frombuffer(self.window, np.uint8)
        if isinstance(self.pages, PageColumns):
            zero = (self.flags & _ZERO) != 0
            at = self.record_offset[zero] + self.size[zero] - np.uint64(1 + self.window_offset)
            fills: NDArray[np.uint8] = window[at.astype(np.int64)]
            return fills
        return np.concatenate(
            [
                window[r.payload : r.payload + r.pages * r.stride : r.stride]
                for r in self.pages
                if r.flags & _ZERO
            ]
            or [window[:0]]
        )

    def detach(self) -> PageBatch:
        """Return the same batch over an owned copy of its bytes."""
        begin = self.offset - self.window_offset
        copy = memoryview(bytes(self.window[begin : begin + self.end - self.offset]))
        pages = self.pages
        if not isinstance(pages, PageColumns):
            pages = tuple(r._replace(payload=r.payload - begin) for r in pages)
        return replace(self, pages=pages, window=copy, window_offset=self.offset)


# Numbers that go up evenly, one ramp behind the other, from (first, count, step) of each.
def _ramps(ramps: Iterable[tuple[int, int, int]]) -> NDArray[np.uint64]:
    return np.concatenate(
        [np.arange(f, f + n * step, step, dtype=np.uint64) for f, n, step in ramps]
    )


@dataclass(frozen=True, slots=True)
class MappedBlock:
    """A block of a mapped-ram list: its entry, its bitmap, and what lies before its pages.

    Attributes:
        block: Index in the block list.
        page_size: Target page size, bytes.
        bitmap_offset: Absolute offset of the bitmap; `end` for a block that x-ignore-shared
            leaves out, which has neither bitmap nor pages.
        bitmap_order: Bytes of a long of the bitmap, if it is big-endian; 1 if it is not.
    """

    offset: int
    end: int
    block: int
    page_size: int
    bitmap_offset: int
    bitmap_order: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class MappedPages:
    """A stretch of the page area of a mapped-ram block.

    Attributes:
        block: Index in the block list.
        block_offset: Of its first page, bytes from the block's start.
        page_size: Target page size, bytes.
        present: bool (n,), whether each page is in the area. One that is not is zero, whatever
            stands in its place: QEMU does not clear what it wrote there before.
        data: The area, borrowed until the next event is asked for; empty if no page is present.
    """

    offset: int
    end: int
    block: int
    block_offset: int
    page_size: int
    present: NDArray[np.bool_]
    data: memoryview = field(repr=False)

    def runs(self) -> list[tuple[int, int, bool]]:
        """Runs of pages as (first, count, whether they are present), first from 0 on."""
        cuts = np.flatnonzero(self.present[1:] != self.present[:-1]) + 1
        edges = [0, *cuts.tolist(), len(self.present)]
        return [(a, b - a, bool(self.present[a])) for a, b in pairwise(edges)]

    def detach(self) -> MappedPages:
        """Return the same stretch over an owned copy of its bytes."""
        return replace(self, data=memoryview(bytes(self.data)))


@dataclass(frozen=True, slots=True)
class ChannelHead:
    """First bytes of a multifd channel.

    Attributes:
        channel_id: 0 and up.
        uuid: Of the guest, 16 bytes; zeros if it has none.
    """

    offset: int
    end: int
    channel_id: int
    uuid: bytes


@dataclass(frozen=True, slots=True, eq=False)
class MultiFDPacket:
    """A packet of a multifd channel.

    Attributes:
        flags: How it is compressed, and whether it ends a generation (SYNC).
        packet_num: Counted over all channels by the source.
        pages_alloc: Pages that it has room for as it says, 0 in a SYNC packet since 9.0.
        block: Index in the block list; -1 for a packet that counts for nothing, since it has no
            pages or its block or offsets are damaged.
        normal: Offsets of pages with data in the block, bytes, uint64 (n,).
        zero: Offsets of zero pages, likewise.
        page_size: Target page size, bytes.
        payload: The pages one behind the other as they were sent, borrowed.
    """

    offset: int
    end: int
    flags: MultiFDFlag
    packet_num: int
    pages_alloc: int
    block: int
    normal: NDArray[np.uint64]
    zero: NDArray[np.uint64]
    page_size: int
    payload: memoryview = field(repr=False)

    def detach(self) -> MultiFDPacket:
        """Return the same packet over an owned copy of its bytes."""
        return replace(self, payload=memoryview(bytes(self.payload)))


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Device state in a multifd channel, or a stretch of it; the first has the header.

    Attributes:
        idstr: Name of the device.
        instance_id: Instance.
        data: The bytes, borrowed until the next event is asked for.
        final: The state ends here.
    """

    offset: int
    end: int
    idstr: bytes
    instance_id: int
    data: memoryview = field(repr=False)
    final: bool = True


@dataclass(frozen=True, slots=True)
class RAMControl:
    """A RAM word that is no page record: EOS or MULTIFD_FLUSH."""

    offset: int
    end: int
    flags: RAMSaveFlag


@dataclass(frozen=True, slots=True)
class Payload:
    """Body of a section that is not decoded here, or a stretch of it.

    Attributes:
        section_id: Whose body it is.
        framing: How its end was found: 'vmdescription' (stated), 'footer-scan' or 'header-scan'
            (inferred).
        data: The bytes, borrowed until the next event is asked for.
        final: The body ends here.
    """

    offset: int
    end: int
    section_id: int
    framing: str
    data: memoryview = field(repr=False)
    final: bool = True


@dataclass(frozen=True, slots=True)
class LiveRecord:
    """A record of an iterable section other than RAM, or a stretch of one that is long.

    Attributes:
        section_id: Whose record it is.
        record: What it says.
        data: The bytes that belong to it, borrowed until the next event is asked for.
        final: The record ends here; what follows otherwise has the same `record`.
    """

    offset: int
    end: int
    section_id: int
    record: Record
    data: memoryview = field(repr=False)
    final: bool = True


@dataclass(frozen=True, slots=True)
class SectionFooter:
    """The footer behind a section or part, 2.4 on."""

    offset: int
    end: int
    section_id: int


@dataclass(frozen=True, slots=True)
class Command:
    """A COMMAND; the body of PACKAGED follows as events of its own.

    Attributes:
        cmd: MIG_CMD_* number.
        data: Its data, owned.
    """

    offset: int
    end: int
    cmd: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfStream:
    """QEMU_VM_EOF.

    Attributes:
        inferred: The last byte of device state that cannot be framed is 0, as EOF is.
    """

    offset: int
    end: int
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class VMDescription:
    """The VMDESCRIPTION frame behind EOF.

    Attributes:
        text: The JSON, owned.
        layout: What it says of each device's size; `None` if it does not parse.
    """

    offset: int
    end: int
    text: bytes = field(repr=False)
    layout: VMDescriptionLayout | None


@dataclass(frozen=True, slots=True)
class Padding:
    """Zero bytes behind the end of the stream."""

    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that were not read as anything, and why."""

    offset: int
    end: int
    reason: str


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A finding at a place; covers no bytes.

    Attributes:
        severity: 'error' (`error` is set), 'warning' or 'info'.
        code: Stable word for the kind of finding.
        message: For people.
        error: What a strict decoder would have raised.
        channel: File of the channel that the offset is in; `None` for the stream itself.
    """

    offset: int
    end: int
    severity: str
    code: str
    message: str
    error: StreamError | None = None
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """An event of another channel than the main one, where it belongs in the order of things.

    Attributes:
        channel: Place in the list of channels.
        event: What the channel says; its offsets are those of the channel.
    """

    channel: int
    event: Event

    @property
    def offset(self) -> int:
        """Offset in the channel."""
        return self.event.offset

    @property
    def end(self) -> int:
        """Offset behind it in the channel."""
        return self.event.end


Event = (
    FileHeader
    | Configuration
    | SectionStart
    | RAMBlockList
    | PageBatch
    | MappedBlock
    | MappedPages
    | ChannelHead
    | MultiFDPacket
    | DeviceState
    | RAMControl
    | Payload
    | LiveRecord
    | SectionFooter
    | Command
    | EndOfStream
    | VMDescription
    | Padding
    | Gap
    | Anomaly
    | ChannelEvent
)


def fault(error: StreamError) -> Anomaly:
    """Make the finding that an error is where decoding goes on behind it."""
    return Anomaly(error.offset, error.offset, "error", error.code, str(error), error)
