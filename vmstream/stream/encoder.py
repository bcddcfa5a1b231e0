"""Events to bytes: the mirror of the decoder.

`Encoder.encode` makes the bytes of an event from what the event says, never from where it stood.
What an event borrows (pages, bodies, data) is what it says; heads, names, words, lengths and
footers are made anew by the grammar.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import EncodeError
from vmstream.stream.events import (
    Anomaly,
    ChannelEvent,
    ChannelHead,
    Command,
    Configuration,
    DeviceState,
    EndOfStream,
    Event,
    FileHeader,
    Gap,
    LiveRecord,
    MappedBlock,
    MappedPages,
    MultiFDPacket,
    Padding,
    PageBatch,
    Payload,
    RAMBlock,
    RAMBlockList,
    RAMControl,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.wire import build
from vmstream.wire.constants import CAP_MAPPED_RAM, FLAT_RAM, RAMSaveFlag, SectionType
from vmstream.wire.layout import RAM_WORD_SIZE
from vmstream.wire.live import BitmapBits, BitmapComplete, BitmapStart, BodyEnd
from vmstream.wire.parse import BlockEntry, ConfigurationValues, SectionHead

_CONTINUE = int(RAMSaveFlag.CONTINUE)
_STARTS = (SectionType.QEMU_VM_SECTION_START, SectionType.QEMU_VM_SECTION_FULL)


class Encoder:
    """Makes the bytes of events, in the order of the stream.

    It keeps what later events refer to: which section is open, whether RAM is one flat space (RAM
    section version 3), and of which bitmap the record before was.
    """

    def __init__(self) -> None:
        self._section: SectionStart | None = None
        self._flat = False
        self._mapped = False
        self._bitmap: tuple[bytes, bytes] | None = None
        self._record: object = None  # of which a stretch has been encoded

    def encode(self, event: Event) -> bytes | memoryview:
        """Return the bytes of an event; empty for one that covers none.

        Raises:
            EncodeError: A value does not fit its field, or the event is of a kind whose bytes its
                fields do not determine: `Gap`, those of mapped-ram and those of channels.
        """
        match event:
            case FileHeader():
                return build.file_header()
            case Configuration():
                self._mapped = CAP_MAPPED_RAM in event.capabilities
                return build.configuration(_configuration(event))
            case SectionStart():
                return self._start(event)
            case RAMBlockList():
                return self._block_list(event)
            case PageBatch():
                return encode_pages(event, flat=self._flat)
            case RAMControl():
                return build.ram_word(0, event.flags)
            case Payload():
                return event.data
            case LiveRecord():
                return self._live(event)
            case SectionFooter():
                return build.section_footer(event.section_id)
            case Command():
                return build.command(event.cmd, event.data)
            case EndOfStream():
                return bytes([SectionType.QEMU_VM_EOF])
            case VMDescription():
                return build.vmdescription(event.text)
            case Padding():
                return bytes(event.end - event.offset)
            case Anomaly():
                return b""
            case (
                Gap()
                | MappedBlock()
                | MappedPages()
                | ChannelHead()
                | MultiFDPacket()
                | DeviceState()
            ):
                raise EncodeError(
                    f"{type(event).__name__}: its bytes do not follow from its fields"
                )
            case ChannelEvent():
                raise EncodeError("an event of a channel is none of this stream")

    def _start(self, event: SectionStart) -> bytes:
        self._section, self._record = event, None
        if event.idstr == b"ram":
            self._flat = event.version_id == FLAT_RAM
        if event.section_type not in _STARTS:
            return build.section_part(event.section_type, event.section_id)
        head = SectionHead(
            event.section_type,
            event.section_id,
            event.idstr,
            event.instance_id,
            event.version_id,
        )
        return build.section_head(head)

    def _block_list(self, event: RAMBlockList) -> bytes:
        # Of mapped-ram each entry is an event of its own; a flat space has no list.
        return encode_blocks(event.total, () if self._flat or self._mapped else event.blocks)

    def _live(self, event: LiveRecord) -> bytes:
        record = event.record
        if isinstance(record, BodyEnd):
            return build.BODY_ENDS.get(self._idstr, build.VFIO_END)
        data = bytes(event.data)
        if record is self._record:
            return data
        # The bytes of the head are what is not data; how much data there is only a record of
        # bitmap bits needs to say, and that comes whole.
        self._record = None if event.final else record
        head = build.live_record(record, len(data), self._bitmap)
        if isinstance(record, (BitmapStart, BitmapBits, BitmapComplete)):
            self._bitmap = record.node, record.name
        return head + data

    @property
    def _idstr(self) -> bytes:
        return self._section.idstr if self._section is not None else b""


def _configuration(event: Configuration) -> ConfigurationValues:
    return ConfigurationValues(
        event.name, event.target_page_bits, event.capabilities, event.uuid, event.subsections
    )


def encode_blocks(total: int, blocks: tuple[RAMBlock, ...]) -> bytes:
    """Make the MEM_SIZE word and the entries of the block list behind it."""
    entries = (BlockEntry(b.idstr, b.used_length, b.host_page_size, b.gpa, None) for b in blocks)
    word = build.ram_word(total, RAMSaveFlag.MEM_SIZE)
    return word + b"".join(map(build.ram_block, entries))


def encode_pages(batch: PageBatch, *, flat: bool = False) -> memoryview:
    """Make the records of a batch: heads and names from its columns, behind them its payloads.

    Args:
        batch: The records.
        flat: RAM section version 3: no record has a name.
    """
    columns = batch.columns
    size = columns.size.astype(np.int64)
    begin = np.concatenate(([0], np.cumsum(size)))
    out = np.empty(int(begin[-1]), np.uint8)
    heads = (columns.block_offset | columns.flags).astype(">u8")
    _scatter(out, begin[:-1], heads.view(np.uint8).reshape(-1, RAM_WORD_SIZE))
    named = [] if flat else np.flatnonzero(~columns.flags & _CONTINUE).tolist()
    for row in named:
        name = build.counted(batch.blocks[int(columns.block[row])].idstr)
        at = int(begin[row]) + RAM_WORD_SIZE
        out[at : at + len(name)] = np.frombuffer(name, np.uint8)
    row = 0
    for run in batch.runs():
        length = int(columns.payload_size[row])
        to = int(begin[row]) + run.stride - length
        target: NDArray[np.uint8] = np.ndarray(
            (run.pages, length), np.uint8, out.data, to, (run.stride, 1)
        )
        target[:] = np.ndarray(
            (run.pages, length), np.uint8, batch.window, run.payload, (run.stride, 1)
        )
        row += run.pages
    return out.data


def _scatter(out: NDArray[np.uint8], at: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
    out[at[:, None] + np.arange(rows.shape[1])] = rows
