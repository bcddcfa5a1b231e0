"""`records`: every item on the wire, in order, page records as runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields as fields_of, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmstream.container.layers import Container
from vmstream.guest.multifd import compression_of
from vmstream.ops.channels import Channels
from vmstream.ops.pipeline import Findings, Progress, events
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.records import RECORDS_SCHEMA, RecordReport
from vmstream.stream.decoder import Decoder
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
from vmstream.transport.source import Source
from vmstream.wire.constants import MultiFDFlag, RAMSaveFlag, SectionType, command_name
from vmstream.wire.live import KINDS as LIVE_KINDS, BitmapBits
from vmstream.wire.parse import command_fields

PAGE_KINDS: Final = {
    RAMSaveFlag.PAGE: "normal",
    RAMSaveFlag.ZERO: "zero",
    RAMSaveFlag.XBZRLE: "xbzrle",
    RAMSaveFlag.COMPRESS_PAGE: "compressed",
}

# Words that --kind takes: types of item, kinds of page and of records of iterable sections.
KINDS: Final = (
    "header", "configuration", "section", "ram-blocks", "mapped-block", "pages",
    *PAGE_KINDS.values(), "unset",
    "channel", "packet", "device-state", "ram-control", "live", *LIVE_KINDS, "payload",
    "footer", "command", "eof", "vmdescription", "padding", "gap", "anomaly",
)  # fmt: skip


class Records:
    """The items of a stream, as an iterator of `RecordReport`.

    Runs of pages and stretches of a payload are joined across batches, so the lines do not
    depend on how the input was cut.

    Args:
        source: The input.
        page_size: Target page size in bytes, if the user states it.
        kinds: Only these, words of KINDS; all if empty.
        begin: Only items that reach behind this offset.
        end: Only items that start before this one; reading stops there.
        progress: Called with (offset, size or None).
        container: What is around the stream.
        channels: Recorded beside the main one; left out of a range, which is of the main one.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.

    Attributes:
        findings: The anomalies so far.
    """

    def __init__(
        self,
        source: Source,
        *,
        page_size: int | None = None,
        kinds: tuple[str, ...] = (),
        begin: int = 0,
        end: int | None = None,
        progress: Progress | None = None,
        container: Container | None = None,
        channels: Channels | None = None,
        max_ram: int | None = None,
    ) -> None:
        self.findings = Findings()
        self._channels = [c.name for c in channels.list] if channels is not None else []
        decoder = Decoder(page_size, max_ram=max_ram)
        self._events = events(source, decoder, progress, container, channels)
        self._kinds = frozenset(kinds)
        self._begin = begin
        self._end = end

    def __iter__(self) -> Iterator[RecordReport]:
        held: RecordReport | None = None
        for item in self._items():
            if held is not None:
                joined = _join(held, item)
                if joined is not None:
                    held = joined
                    continue
                if self._wanted(held):
                    yield held
            held = item
            own = item.channel is None and item.type != "anomaly"
            if self._end is not None and item.offset >= self._end and own:
                return
        if held is not None and self._wanted(held):
            yield held

    def _wanted(self, item: RecordReport) -> bool:
        if item.channel is not None and (self._begin or self._end is not None):
            return False
        if item.end < self._begin or (item.end == self._begin and item.end > item.offset):
            return False
        if self._end is not None and item.offset >= self._end:
            return False
        return not self._kinds or item.type in self._kinds or item.fields.get("kind") in self._kinds

    def _items(self) -> Iterator[RecordReport]:
        blocks: tuple[RAMBlock, ...] = ()
        for event in self._events:
            self.findings.on(event)
            if isinstance(event, RAMBlockList):
                blocks = event.blocks
            if isinstance(event, ChannelEvent):
                name = self._channels[event.channel]
                for item in _in_channel(event.event, blocks):
                    yield replace(item, channel=name)
            elif isinstance(event, PageBatch):
                yield from _runs(event)
            elif isinstance(event, MappedPages):
                yield from _mapped_runs(event, blocks[event.block])
            else:
                yield _item(event, *_describe(event))


def _item(
    event: Event, name: str, fields: dict[str, Any], channel: str | None = None
) -> RecordReport:
    return RecordReport(RECORDS_SCHEMA, name, event.offset, event.end, fields, channel)


def _in_channel(event: Event, blocks: tuple[RAMBlock, ...]) -> Iterator[RecordReport]:
    if isinstance(event, PageBatch):
        yield from _runs(event)
    elif isinstance(event, MultiFDPacket):
        fields: dict[str, Any] = {
            "packet_num": event.packet_num,
            "sync": bool(event.flags & MultiFDFlag.SYNC),
        }
        if event.block >= 0:
            fields |= _name("block", blocks[event.block].idstr)
            fields["compression"] = compression_of(event)
            fields["page_size"] = event.page_size
            fields["normal"] = _page_runs(event.normal, event.page_size)
            fields["zero"] = _page_runs(event.zero, event.page_size)
        yield _item(event, "packet", fields)
    else:
        yield _item(event, *_describe(event))


# Neighbouring pages as [offset of the first, count].
def _page_runs(offsets: NDArray[np.uint64], page_size: int) -> list[list[int]]:
    if not len(offsets):
        return []
    first = np.concatenate(([0], np.flatnonzero(np.diff(offsets) != page_size) + 1))
    counts = np.diff(first, append=len(offsets))
    return [[int(offsets[at]), n] for at, n in zip(first.tolist(), counts.tolist(), strict=True)]


def _runs(batch: PageBatch) -> Iterator[RecordReport]:
    for run in batch.runs():
        yield RecordReport(
            RECORDS_SCHEMA,
            "pages",
            run.record_offset,
            run.record_offset + run.pages * run.stride,
            {
                "kind": PAGE_KINDS[run.kind],
                **_name("block", batch.blocks[run.block].idstr),
                "block_offset": run.block_offset,
                "count": run.pages,
                "page_size": batch.page_size,
                "record_size": run.stride,
            },
        )


# A page that is not in its place is zero, whatever stands there.
def _mapped_runs(event: MappedPages, block: RAMBlock) -> Iterator[RecordReport]:
    size = event.page_size
    for first, count, present in event.runs():
        begin = event.offset + first * size
        yield RecordReport(
            RECORDS_SCHEMA,
            "pages",
            begin,
            begin + count * size,
            {
                "kind": "normal" if present else "unset",
                **_name("block", block.idstr),
                "block_offset": event.block_offset + first * size,
                "count": count,
                "page_size": size,
                "record_size": size,
            },
        )


# One item for two that follow each other and are cut from the same, else `None`.
def _join(first: RecordReport, second: RecordReport) -> RecordReport | None:
    if (first.type, first.channel, first.end) != (second.type, second.channel, second.offset):
        return None
    a, b = first.fields, second.fields
    if first.type == "pages":
        same = ("kind", "block", "block_b64", "record_size")
        next_page = int(str(a["block_offset"])) + int(str(a["count"])) * int(str(a["page_size"]))
        if any(a.get(k) != b.get(k) for k in same) or b["block_offset"] != next_page:
            return None
        fields = {**a, "count": int(str(a["count"])) + int(str(b["count"]))}
    elif first.type in ("payload", "live") and not a["final"]:
        if a["section_id"] != b["section_id"]:
            return None
        fields = b
    else:
        return None
    return replace(first, end=second.end, fields=fields)


def _name(key: str, name: bytes) -> dict[str, object]:
    full = in_full(name)
    fields: dict[str, object] = {key: readable(name)}
    if full is not None:
        fields[f"{key}_b64"] = full
    return fields


def _block(block: RAMBlock) -> dict[str, object]:
    fields = _name("idstr", block.idstr) | {"used_length": block.used_length}
    if block.host_page_size is not None:
        fields["host_page_size"] = block.host_page_size
    if block.gpa is not None:
        fields["gpa"] = block.gpa
    return fields


# What a record says, by the names it has in `wire.live`; of bits also the bits.
def _live_fields(event: LiveRecord) -> dict[str, object]:
    record = event.record
    fields: dict[str, object] = {
        "section_id": event.section_id,
        "kind": record.kind,
        "final": event.final,
    }
    for item in fields_of(record):
        value = getattr(record, item.name)
        fields |= _name(item.name, value) if isinstance(value, bytes) else {item.name: value}
    if isinstance(record, BitmapBits):
        fields["data"] = event.data.hex()
    return fields


def _describe(event: Event) -> tuple[str, dict[str, Any]]:
    """Name and fields of an event that is no page batch."""
    match event:
        case FileHeader():
            return "header", {"version": 3}
        case Configuration():
            fields: dict[str, Any] = _name("machine", event.name)
            if event.target_page_bits is not None:
                fields["target_page_bits"] = event.target_page_bits
            if event.capabilities:
                fields["capabilities"] = [readable(c) for c in event.capabilities]
            if event.uuid is not None:
                fields["uuid"] = event.uuid.hex()
            return "configuration", fields
        case SectionStart():
            kind = SectionType(event.section_type).name.removeprefix("QEMU_VM_SECTION_")
            return "section", {
                "section_type": kind,
                "section_id": event.section_id,
                **_name("idstr", event.idstr),
                "instance_id": event.instance_id,
                "version_id": event.version_id,
                "packaged": event.packaged,
            }
        case RAMBlockList():
            return "ram-blocks", {
                "total": event.total,
                "blocks": [_block(b) for b in event.blocks],
            }
        case MappedBlock():
            return "mapped-block", {
                "block_index": event.block,
                "page_size": event.page_size,
                "bitmap_offset": event.bitmap_offset,
            }
        case ChannelHead():
            return "channel", {"channel_id": event.channel_id, "uuid": event.uuid.hex()}
        case DeviceState():
            return "device-state", {
                **_name("idstr", event.idstr),
                "instance_id": event.instance_id,
                "size": len(event.data),
                "final": event.final,
            }
        case RAMControl():
            return "ram-control", {"flag": event.flags.name}
        case Payload():
            return "payload", {
                "section_id": event.section_id,
                "framing": event.framing,
                "final": event.final,
            }
        case LiveRecord():
            return "live", _live_fields(event)
        case SectionFooter():
            return "footer", {"section_id": event.section_id}
        case Command():
            return "command", {
                "cmd": event.cmd,
                "name": command_name(event.cmd),
                "data": event.data.hex(),
                **command_fields(event.cmd, event.data),
            }
        case EndOfStream():
            return "eof", {"inferred": event.inferred}
        case VMDescription():
            layout = event.layout
            return "vmdescription", {
                "page_size": layout.page_size if layout else None,
                "devices": len(layout.devices) if layout else 0,
            }
        case Padding():
            return "padding", {}
        case Gap():
            return "gap", {"reason": event.reason}
        case Anomaly():
            return "anomaly", {
                "severity": event.severity,
                "code": event.code,
                "message": event.message,
            }
        case PageBatch() | MappedPages() | MultiFDPacket() | ChannelEvent():
            raise TypeError("not one item of the stream")
