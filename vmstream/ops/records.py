"""`records`: every item on the wire, in order, page records as runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from vmstream.container.layers import Container
from vmstream.ops.pipeline import Findings, Progress, events
from vmstream.report.models import RECORDS_SCHEMA, RecordReport, in_full, readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Anomaly,
    Command,
    Configuration,
    EndOfStream,
    Event,
    FileHeader,
    Gap,
    MappedBlock,
    MappedPages,
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
from vmstream.wire.constants import RAMSaveFlag, SectionType, command_name
from vmstream.wire.parse import command_fields

PAGE_KINDS: Final = {
    RAMSaveFlag.PAGE: "normal",
    RAMSaveFlag.ZERO: "zero",
    RAMSaveFlag.XBZRLE: "xbzrle",
    RAMSaveFlag.COMPRESS_PAGE: "compressed",
}

# Words that --kind takes: types of item, and kinds of page.
KINDS: Final = (
    "header", "configuration", "section", "ram-blocks", "mapped-block", "pages",
    *PAGE_KINDS.values(), "unset",
    "ram-control", "payload", "footer", "command", "eof", "vmdescription", "padding", "gap",
    "anomaly",
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
        max_ram: int | None = None,
    ) -> None:
        self.findings = Findings()
        decoder = Decoder(page_size, max_ram=max_ram)
        self._events = events(source, decoder, progress, container)
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
            if self._end is not None and item.offset >= self._end and item.type != "anomaly":
                return
        if held is not None and self._wanted(held):
            yield held

    def _wanted(self, item: RecordReport) -> bool:
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
            if isinstance(event, PageBatch):
                yield from _runs(event)
            elif isinstance(event, MappedPages):
                yield from _mapped_runs(event, blocks[event.block])
            else:
                name, fields = _describe(event)
                yield RecordReport(RECORDS_SCHEMA, name, event.offset, event.end, fields)


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
    if first.type != second.type or first.end != second.offset:
        return None
    a, b = first.fields, second.fields
    if first.type == "pages":
        same = ("kind", "block", "block_b64", "record_size")
        next_page = int(str(a["block_offset"])) + int(str(a["count"])) * int(str(a["page_size"]))
        if any(a.get(k) != b.get(k) for k in same) or b["block_offset"] != next_page:
            return None
        fields = {**a, "count": int(str(a["count"])) + int(str(b["count"]))}
    elif first.type == "payload" and not a["final"] and a["section_id"] == b["section_id"]:
        fields = b
    else:
        return None
    return RecordReport(first.schema, first.type, first.offset, second.end, fields)


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
        case RAMControl():
            return "ram-control", {"flag": event.flags.name}
        case Payload():
            return "payload", {
                "section_id": event.section_id,
                "framing": event.framing,
                "final": event.final,
            }
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
        case PageBatch() | MappedPages():
            raise TypeError("a page batch is many records")
