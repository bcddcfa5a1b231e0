"""`inspect`: the account of a stream, as one fold."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EXIT_OK
from vmstream.guest.coverage import KINDS, BlockCoverage, RAMCoverage, unsent
from vmstream.guest.multifd import compression_of
from vmstream.ops.channels import ChannelCounts, Channels
from vmstream.ops.live import LiveSummary
from vmstream.ops.pipeline import Findings, Progress, noted, run
from vmstream.ops.quick import quick_events
from vmstream.ops.snapshots import snapshot_report
from vmstream.report.models.containers import LayerReport, SaveImageReport
from vmstream.report.models.inspect import (
    INSPECT_SCHEMA,
    CommandReport,
    InspectReport,
    SectionReport,
    VMDescriptionReport,
)
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.pages import PageCounts, PassReport, RAMBlockReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Anomaly,
    ChannelEvent,
    Command,
    Configuration,
    EndOfStream,
    Event,
    FileHeader,
    Gap,
    LiveRecord,
    MappedBlock,
    MappedPages,
    MultiFDPacket,
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
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    COMMAND_LENGTHS,
    DEFAULT_PAGE_SIZE,
    MigCmd,
    RAMSaveFlag,
    SectionType,
    command_name,
)
from vmstream.wire.layout import RAM_WORD_SIZE
from vmstream.wire.parse import command_fields, discarded_ranges
from vmstream.wire.vmsd import VMDescriptionLayout

# What a stream can make the report hold.
MAX_SECTIONS = 1 << 16
MAX_COMMANDS = 1000

_START = SectionType.QEMU_VM_SECTION_START
_END = SectionType.QEMU_VM_SECTION_END
_FULL = SectionType.QEMU_VM_SECTION_FULL

# Commands that show a feature of the QEMU that wrote the stream.
_FEATURE_OF_COMMAND: dict[int, str] = {
    MigCmd.OPEN_RETURN_PATH: "return-path",
    MigCmd.POSTCOPY_ADVISE: "postcopy-ram",
    MigCmd.PACKAGED: "postcopy, switched over",
    MigCmd.ENABLE_COLO: "x-colo",
    MigCmd.SWITCHOVER_START: "switchover-start",
}


@dataclass(slots=True)
class SectionSummary:
    """A section as it is seen so far; the fields are those of `SectionReport`."""

    start: SectionStart
    size: int = 0
    body_offset: int = 0
    body_size: int = 0
    parts: int = 0
    ended: bool = False
    framing: str = "none"


class Summary:
    """Fold: everything that `inspect` tells of a stream.

    Attributes:
        findings: Anomalies so far; `finish` adds those of the stream as a whole.
        live: What is in iterable sections other than RAM.
        coverage: RAM as sent; `None` before the first page.
        blocks: The block list.
        blocks_offset: Where its first entry stands.
        end: Offset behind the last byte covered.
        ended: EOF was seen.
        channels: What was read beside the main channel, by place.
        own_pages: Pages with data on the main channel, if there are others of multifd.
    """

    def __init__(self) -> None:
        self.findings = Findings()
        self.live = LiveSummary(self.findings)
        self.configuration: Configuration | None = None
        self.blocks: tuple[RAMBlock, ...] = ()
        self.ram_total: int | None = None
        self.blocks_offset = 0
        self.ram_version: int | None = None
        self.coverage: RAMCoverage | None = None
        self.sections: list[SectionSummary] = []
        self.commands: list[CommandReport] = []
        self.command_count = 0
        self.features: dict[str, None] = {}
        self.vmdescription: VMDescription | None = None
        self.end = 0
        self.end_offset: int | None = None
        self.ended = False
        self.read = False
        self._footers = False
        self._discarded = False
        self._live: dict[int, SectionSummary] = {}
        self._current: SectionSummary | None = None
        self.channels: dict[int, ChannelCounts] = {}
        self.own_pages = 0

    def on(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Anomaly):
            self.findings.on(event)
            return
        if isinstance(event, ChannelEvent):
            self._channel(event)
            return
        self.end = event.end
        if isinstance(event, PageBatch):
            coverage = self._covered(event.page_size)
            if syncs := [c.syncs for c in self.channels.values() if c.packets]:
                coverage.generation = max(syncs)
                # Few, if any: zero pages of QEMU before 9.0.
                self.own_pages += len(event) - len(event.fills())
            coverage.add(event)
            self._body(event)
        elif isinstance(event, MappedPages):
            self._covered(event.page_size).add_mapped(event)
            self._body(event)
        elif isinstance(event, MappedBlock):
            self.features["mapped-ram"] = None
            self._body(event)
        elif isinstance(event, SectionStart):
            self._section(event)
            self.live.on(event)
        elif isinstance(event, (LiveRecord, Payload)):
            self._body(event)
            self.live.on(event)
        elif isinstance(event, (RAMControl, Gap)):
            self._body(event)
        elif isinstance(event, SectionFooter):
            self._footers = True
            if self._current is not None:
                self._current.size += event.end - event.offset
            self._current = None
        elif isinstance(event, FileHeader):
            self.read = True
        elif isinstance(event, Configuration):
            self.configuration = event
        elif isinstance(event, RAMBlockList):
            self.blocks = event.blocks
            self.ram_total = event.total
            self.blocks_offset = event.offset + RAM_WORD_SIZE
            self._body(event)
        elif isinstance(event, Command):
            self._command(event)
        elif isinstance(event, EndOfStream):
            self.ended = True
            self.end_offset = event.end
            self._current = None
        elif isinstance(event, VMDescription):
            self.vmdescription = event
            self.end_offset = event.end
            if event.layout is not None:
                self._confirm(event.layout)

    def _covered(self, page_size: int) -> RAMCoverage:
        if self.coverage is None:
            self.coverage = RAMCoverage(self.blocks, page_size)
        return self.coverage

    def _channel(self, event: ChannelEvent) -> None:
        counts = self.channels.setdefault(event.channel, ChannelCounts())
        inner = event.event
        if isinstance(inner, PageBatch):
            self._covered(inner.page_size).add(inner)
        elif isinstance(inner, MultiFDPacket) and inner.block >= 0:
            coverage = self._covered(inner.page_size)
            coverage.generation, coverage.rounds = counts.syncs, "multifd" in self.features
            coverage.add_packet(inner, self.end, compressed=compression_of(inner) != "none")
        counts.on(inner)

    def _section(self, event: SectionStart) -> None:
        self._current = None
        if event.section_type in (_START, _FULL):
            if len(self.sections) == MAX_SECTIONS:
                self._note("info", "many-sections", event.offset, f"only {MAX_SECTIONS} listed")
            self._current = SectionSummary(event, body_offset=event.end)
            if len(self.sections) < MAX_SECTIONS:
                self.sections.append(self._current)
            if event.section_type == _START:
                self._live[event.section_id] = self._current
                if event.idstr == b"ram":
                    self.ram_version = event.version_id
        else:
            self._current = self._live.get(event.section_id)
        if self._current is not None:
            self._current.size += event.end - event.offset
            self._current.parts += 1
            self._current.ended = event.section_type == _END

    def _body(
        self,
        event: PageBatch
        | MappedBlock
        | MappedPages
        | RAMControl
        | RAMBlockList
        | LiveRecord
        | Payload
        | Gap,
    ) -> None:
        section = self._current
        if isinstance(event, RAMControl) and event.flags == RAMSaveFlag.MULTIFD_FLUSH:
            self.features["multifd"] = None
        if section is None:
            return
        section.size += event.end - event.offset
        section.body_size += event.end - event.offset
        if isinstance(event, Payload):
            section.framing = event.framing
        elif not isinstance(event, Gap) and section.framing != "footer-scan":
            section.framing = "records"

    def _command(self, event: Command) -> None:
        self.command_count += 1
        if event.cmd not in COMMAND_LENGTHS or len(event.data) not in (
            COMMAND_LENGTHS[event.cmd] or (len(event.data),)
        ):
            self._note(
                "warning",
                "command",
                event.offset,
                f"offset {event.offset:#x}: command {event.cmd} with {len(event.data)} bytes of "
                "data, which QEMU refuses",
            )
        if event.cmd == MigCmd.POSTCOPY_RAM_DISCARD:
            ranges = self.discarded(event)
            if ranges is None:
                self._note(
                    "warning",
                    "command",
                    event.offset,
                    f"offset {event.offset:#x}: POSTCOPY_RAM_DISCARD of what QEMU refuses",
                )
            for block, start, length in ranges or ():
                self._discarded = True
                if self.coverage is not None:
                    self.coverage.discard(block, start, length)
        # An ADVISE without data is for dirty bitmaps alone.
        bare_advise = event.cmd == MigCmd.POSTCOPY_ADVISE and not event.data
        if not bare_advise and (feature := _FEATURE_OF_COMMAND.get(event.cmd)):
            self.features[feature] = None
        if len(self.commands) < MAX_COMMANDS:
            self.commands.append(
                CommandReport(
                    event.offset,
                    event.cmd,
                    command_name(event.cmd),
                    len(event.data),
                    command_fields(event.cmd, event.data),
                )
            )

    def discarded(self, event: Command) -> list[tuple[int, int, int]] | None:
        """Ranges of a POSTCOPY_RAM_DISCARD as (block, start, length); `None` if they are illegal.

        QEMU v10.1.0 migration/ram.c ram_discard_range(), system/physmem.c
        ram_block_discard_range(): within the block, on page boundaries.
        """
        found = discarded_ranges(event.data)
        index = next((i for i, b in enumerate(self.blocks) if found and b.idstr == found[0]), None)
        if found is None or index is None:
            return None
        size = self.coverage.page_size if self.coverage else DEFAULT_PAGE_SIZE
        for start, length in found[1]:
            if start % size or length % size or start + length > self.blocks[index].used_length:
                return None
        return [(index, start, length) for start, length in found[1]]

    # Sections that came before their description was known were framed by their footers.
    def _confirm(self, layout: VMDescriptionLayout) -> None:
        layouts = layout.queues()
        for section in self.sections:
            start = section.start
            if start.section_type != _FULL:
                continue
            devices = layouts.get((start.idstr, start.instance_id))
            size = devices.popleft().size if devices else None
            if section.framing == "footer-scan" and size == section.body_size:
                section.framing = "footer-scan, confirmed"

    def _note(self, severity: str, code: str, offset: int, message: str) -> None:
        self.findings.on(Anomaly(offset, offset, severity, code, message))

    # ---- behind the last event -----------------------------------------------------------

    def finish(self, *, quick: bool = False) -> None:
        """Add the findings that take the whole stream. Call once, behind the last event."""
        if quick or not self.ended or self.findings.error is not None:
            return
        if self.vmdescription is None:
            self._note(
                "info",
                "no-vmdescription",
                self.end_offset or 0,
                "the stream has no vmdescription: it was suppressed, cut off behind the end of "
                "stream, or is of postcopy; device sections are framed by inference",
            )
        missing = {b.block.idstr: b.pages_missing for b in self.coverage_blocks()}
        self.live.finish()
        for section in self._live.values():
            # Proxmox Backup sends a START and nothing else; dirty bitmaps without a bitmap have no
            # END, as they stop being active: QEMU v10.1.0 migration/block-dirty-bitmap.c
            # dirty_bitmap_is_active().
            bare = section.start.idstr == b"pbs-state" or (
                section.start.idstr == b"dirty-bitmap" and not self.live.has_bitmaps
            )
            if section.ended or bare:
                continue
            name = readable(section.start.idstr)
            once = not any(missing.values()) and self.coverage is not None
            once = once and not any(b.resent.count() for b in self.coverage_blocks())
            if name == "ram" and once:
                # QEMU v10.1.0 migration/migration.c bg_migration_thread() ends without it.
                self.features["background-snapshot"] = None
                self._note(
                    "info",
                    "no-ram-end",
                    section.start.offset,
                    "no END of 'ram' and every page once: a background snapshot",
                )
            else:
                self._note("warning", "no-end", section.start.offset, f"no END of section {name!r}")
        if any(missing.values()):
            self._note_missing(missing)
        self._note_doubts()

    # What the loader would take, and what no QEMU of its time has written.
    def _note_doubts(self) -> None:
        seen = self.coverage
        if seen is None:
            return
        self._note_own_pages()
        if seen.filled:
            # Since 1.5 only pages of zeros are sent so; 9.0 refuses any other fill byte.
            # A vmdescription is there since 2.3, the others since 2.4.
            self._note(
                "warning" if self.configuration or self._footers or self.vmdescription else "info",
                "fill-byte",
                seen.first_filled,
                f"offset {seen.first_filled:#x}: {seen.filled} ZERO records with a fill byte other "
                "than 0, which no QEMU since 1.5 writes",
            )
        if seen.baseless:
            self._note(
                "warning",
                "xbzrle-base",
                seen.first_baseless,
                f"offset {seen.first_baseless:#x}: {seen.baseless} XBZRLE records change pages "
                "that were not sent before; an image takes those for zeros",
            )
        in_order = not (
            self.features.keys() & {"background-snapshot", "postcopy, switched over"}
            or any(b.records[3] for b in seen.blocks)
        )
        if seen.out_of_place and in_order:
            self._note(
                "warning",
                "out-of-place",
                seen.first_out_of_place,
                f"offset {seen.first_out_of_place:#x}: {seen.out_of_place} page records stand "
                "between two neighbouring pages but belong elsewhere: a damaged address?",
            )

    # QEMU v10.1.0 migration/ram.c ram_save_target_page() sends none itself before postcopy.
    def _note_own_pages(self) -> None:
        multifd = any(c.packets for c in self.channels.values())
        if multifd and self.own_pages and "postcopy, switched over" not in self.features:
            self._note(
                "warning",
                "own-pages",
                0,
                f"the main channel has {self.own_pages} pages with data of its own, which that of "
                "multifd does not: are these its channels?",
            )

    def _note_missing(self, missing: dict[bytes, int]) -> None:
        told = ", ".join(f"{readable(b)}: {n}" for b, n in missing.items() if n)
        if elsewhere := self.pages_elsewhere() or self.pages_withdrawn():
            self._note("warning", "pages-elsewhere", 0, elsewhere)
        elif CAP_IGNORE_SHARED in self.capabilities and all(
            n in (0, b.pages) for b, n in zip(self.coverage_blocks(), missing.values(), strict=True)
        ):
            self._note("info", "ignore-shared", 0, f"shared blocks without pages ({told})")
        elif any(b"virtio-mem" in s.start.idstr for s in self.sections):
            self._note("info", "unplugged", 0, f"pages never sent ({told}): unplugged virtio-mem")
        else:
            self._note(
                "warning",
                "pages-missing",
                0,
                f"pages never sent ({told}): free page hints or a balloon do that, and so does "
                "damage; an image has zeros there",
            )

    def pages_elsewhere(self) -> str:
        """Why this stream does not carry its pages; empty if it does."""
        if any(c.packets for c in self.channels.values()):
            return ""
        normal = sum(int(b.records.sum() - b.records[1]) for b in self.coverage_blocks())
        if "multifd" in self.features or (
            self.blocks
            and not normal
            and self.ended
            and CAP_IGNORE_SHARED not in self.capabilities
            and any(b.pages_missing for b in self.coverage_blocks())
        ):
            return "the main channel of multifd: pages travel on the other channels (--channel)"
        return ""

    def pages_withdrawn(self) -> str:
        """Why pages that were there are gone; empty if none are."""
        if self._discarded and any(b.pages_missing for b in self.coverage_blocks()):
            return (
                "pages that postcopy withdrew were not sent again: the rest is cut off, or on "
                "the second channel of postcopy-preempt (--channel)"
            )
        return ""

    @property
    def capabilities(self) -> tuple[bytes, ...]:
        """Capabilities of the configuration section."""
        return self.configuration.capabilities if self.configuration else ()

    @property
    def machine(self) -> str | None:
        """Machine type, readable."""
        return readable(self.configuration.name) if self.configuration else None

    def coverage_blocks(self) -> list[BlockCoverage]:
        """Coverage per block; blocks without a page are there too."""
        if self.coverage is None:
            return unsent(self.blocks, self._page_size() or DEFAULT_PAGE_SIZE)
        return self.coverage.blocks

    # The page size that the stream states; RAM may have been read with another.
    def _page_size(self) -> int | None:
        if self.configuration and self.configuration.target_page_bits:
            return 1 << self.configuration.target_page_bits
        described = self.vmdescription
        return described.layout.page_size if described and described.layout else None

    @property
    def complete(self) -> bool:
        """The end was seen, of the stream and of every section that needs one, undamaged."""
        unended = any(a.code == "no-end" for a in self.findings.kept)
        return self.ended and self.findings.error is None and not unended

    @property
    def exit_code(self) -> int:
        """Exit status: that of the findings, and 1 if there are none and it is not complete."""
        return self.findings.exit_code or (EXIT_OK if self.complete else EXIT_FINDINGS)

    def report(
        self,
        source: Source,
        decoder: Decoder,
        *,
        quick: bool = False,
        container: Container | None = None,
        channels: Channels | None = None,
    ) -> InspectReport:
        """Make the document."""
        config, described = self.configuration, self.vmdescription
        features = ["configuration"] if config else []
        features += ["section-footers"] if decoder.footers else []
        features += ["vmdescription"] if described else []
        features += list(self.features)
        counted = self.channels.values()
        packed = dict.fromkeys(w for c in counted for w in c.compressions if w != "none")
        if any(c.packets for c in counted) and "multifd" not in self.features:
            features.append("multifd")
        features += [f"multifd-{word}" for word in packed]
        for column, name in ((2, "xbzrle"), (3, "compress")):
            if not (packed and column == 3) and any(
                b.records[column] for b in self.coverage_blocks()
            ):
                features.append(name)
        passes = self.coverage.passes if self.coverage else []
        told_by = "wire" if self.coverage and self.coverage.rounds else "inferred"
        page_size, page_size_source = decoder.page_size, decoder.page_size_source
        if page_size is None and described is not None and described.layout is not None:
            page_size, page_size_source = described.layout.page_size, "vmdescription"
        layers = layer_reports(container)
        return InspectReport(
            schema=INSPECT_SCHEMA,
            input=source.name,
            container=layers[0].kind if layers else "raw",
            size=self.end if source.size is None else source.size,
            complete=self.complete,
            end_offset=self.end_offset,
            quick=quick,
            machine=self.machine,
            uuid=str(uuid.UUID(bytes=config.uuid)) if config and config.uuid else None,
            page_size=page_size,
            page_size_source=page_size_source,
            capabilities=[readable(c) for c in self.capabilities],
            features=features,
            footers=decoder.footers,
            vmdescription=None
            if described is None
            else VMDescriptionReport(
                described.offset,
                described.end - described.offset,
                described.layout.page_size if described.layout else None,
                len(described.layout.devices) if described.layout else 0,
            ),
            ram_version=self.ram_version,
            ram_total=self.ram_total,
            ram_blocks=[block_report(b, quick=quick) for b in self.coverage_blocks()],
            passes=[
                PassReport(i + 1, p.offset, page_counts(p.records), p.wire_bytes, told_by)
                for i, p in enumerate(passes)
            ],
            pass_count=self.coverage.pass_count if self.coverage else 0,
            sections=[_section_report(s) for s in self.sections],
            commands=self.commands,
            command_count=self.command_count,
            anomalies=self.findings.report(),
            anomaly_count=self.findings.count,
            layers=layers,
            channels=[
                self.channels.get(c.place, ChannelCounts()).report(c)
                for c in (channels.list if channels is not None else ())
            ],
            live=None if quick else self.live.report(),
        )


def page_counts(records: NDArray[np.int64]) -> PageCounts:
    """Name the columns of a row of counts."""
    return PageCounts(**dict(zip(KINDS, records.tolist(), strict=True)))


def block_report(covered: BlockCoverage, *, quick: bool = False) -> RAMBlockReport:
    """Account for one block; without pages after a quick look."""
    block = covered.block
    return RAMBlockReport(
        idstr=readable(block.idstr),
        used_length=block.used_length,
        pages=None if quick else page_counts(covered.records),
        wire_bytes=None if quick else covered.wire_bytes,
        pages_missing=None if quick else covered.pages_missing,
        pages_resent=None if quick else covered.resent.count(),
        host_page_size=block.host_page_size,
        gpa=block.gpa,
        idstr_b64=in_full(block.idstr),
    )


def layer_reports(container: Container | None) -> list[LayerReport]:
    """Account for what is around the stream, the outermost layer first."""
    return [
        LayerReport(
            layer.kind,
            layer.source.size,
            None
            if (image := layer.image) is None
            else SaveImageReport(
                version=image.header.version,
                byte_order=image.header.byte_order,
                finished=image.header.finished,
                was_running=image.header.was_running,
                format=image.format,
                name=image.name,
                xml_size=len(image.xml),
                cookie_size=None if image.cookie is None else len(image.cookie),
                stream_offset=image.stream_offset,
            ),
            None if layer.snapshot is None else snapshot_report(layer.snapshot),
        )
        for layer in (container.layers if container is not None else ())
    ]


def _section_report(section: SectionSummary) -> SectionReport:
    start = section.start
    live = start.section_type == _START
    return SectionReport(
        section_id=start.section_id,
        section_type="START" if live else "FULL",
        idstr=readable(start.idstr),
        instance_id=start.instance_id,
        version_id=start.version_id,
        offset=start.offset,
        size=section.size,
        body_offset=section.body_offset,
        body_size=section.body_size,
        parts=section.parts,
        framing=section.framing,
        ended=section.ended if live else None,
        packaged=start.packaged,
        idstr_b64=in_full(start.idstr),
    )


def inspect(
    source: Source,
    *,
    page_size: int | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
    max_ram: int | None = None,
) -> tuple[InspectReport, int]:
    """Read a stream and account for it.

    Args:
        source: The input; `quick` takes a seekable one.
        page_size: Target page size in bytes, to overrule what the stream shows.
        quick: Read head and tail alone.
        progress: Called with (offset, size or None).
        container: What is around the stream.
        channels: Recorded beside the main one; not for `quick`.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.

    Returns:
        The document, and the exit status.

    Raises:
        StreamError: The input is no migration stream at all. Any later fault is in the document.
    """
    decoder = Decoder(page_size, max_ram=max_ram)
    summary = Summary()
    if quick:
        for event in chain(noted(container), quick_events(source, decoder)):
            summary.on(event)
    else:
        run(source, decoder, [summary], progress, container, channels)
    if summary.findings.error is not None and not summary.read:
        raise summary.findings.error
    summary.finish(quick=quick)
    report = summary.report(source, decoder, quick=quick, container=container, channels=channels)
    return report, summary.exit_code
