"""`unpack`: a stream as a directory of files that ordinary tools can edit."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vmstream.container.layers import Container
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.guest.coverage import BlockCoverage
from vmstream.guest.devicejson import EMPTY, to_json
from vmstream.guest.devices import Node
from vmstream.guest.memory import Placement, RAMImage
from vmstream.ops.channels import Channels
from vmstream.ops.devices import Devices
from vmstream.ops.extract import shared_files
from vmstream.ops.inspect import Summary, layer_reports
from vmstream.ops.manifest import (
    BLOCKS,
    DEVICES,
    LIVE,
    MAX_PARTS,
    MAX_SECTIONS,
    MAX_UNSENT,
    RAM_VERSION,
    VMDESCRIPTION,
)
from vmstream.ops.pages import PageFold, check_complete, check_pages
from vmstream.ops.pipeline import Consumer, Progress, run
from vmstream.report.jsonout import dumps
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.unpack import (
    UNPACK_SCHEMA,
    UNPACKED_SCHEMA,
    UnpackedBlock,
    UnpackedConfiguration,
    UnpackedManifest,
    UnpackedSection,
    UnpackReport,
)
from vmstream.stream.decoder import Decoder
from vmstream.stream.encoder import Encoder
from vmstream.stream.events import (
    ChannelEvent,
    DeviceState,
    Event,
    Gap,
    LiveRecord,
    Payload,
    SectionFooter,
    SectionStart,
)
from vmstream.transport.directory import MANIFEST, OutputDirectory
from vmstream.transport.sink import OutputFile, safe_names
from vmstream.transport.source import Source
from vmstream.version import __version__
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    CAP_MAPPED_RAM,
    DEFAULT_PAGE_SIZE,
    SectionType,
)
from vmstream.wire.vmsd import body_size

# Pages that are looked at at a time.
_PAGES = 1 << 20

_ADVICE = "what can be read of its RAM, extract-ram --partial writes"
_PARTS = {
    SectionType.QEMU_VM_SECTION_START: "start",
    SectionType.QEMU_VM_SECTION_PART: "part",
    SectionType.QEMU_VM_SECTION_END: "end",
}


@dataclass(frozen=True, slots=True)
class UnpackOptions:
    """What is unpacked, and where to.

    Attributes:
        output: The directory.
        force: It may have something in it.
        page_size: Target page size in bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        shared_blocks: Names of blocks whose memory is in a file (x-ignore-shared), and the files.
    """

    output: Path
    force: bool = False
    page_size: int | None = None
    max_ram: int | None = None
    shared_blocks: tuple[tuple[str, Path], ...] = ()


class _Blocks(PageFold[RAMImage]):
    """Fold: the memory of each block, as a file."""

    def __init__(
        self,
        summary: Summary,
        channels: Channels | None,
        options: UnpackOptions,
        directory: OutputDirectory,
        stack: contextlib.ExitStack,
    ) -> None:
        super().__init__(summary, channels, partial=False)
        self._options = options
        self._directory = directory
        self._stack = stack
        self.files: list[OutputFile] = []
        self.shared: set[int] = set()

    def open(self, page_size: int) -> RAMImage:
        blocks = self._summary.blocks
        for name, block in zip(safe_names((b.idstr for b in blocks), ".raw"), blocks, strict=True):
            out = self._stack.enter_context(self._directory.file(BLOCKS, name))
            out.resize(block.used_length)
            self.files.append(out)
        image = RAMImage(
            blocks,
            page_size,
            [Placement(i, 0, blocks[i].used_length, f, 0) for i, f in enumerate(self.files)],
        )
        for index, path in shared_files(blocks, self._options.shared_blocks):
            self.files[index].take_file(path, 0, blocks[index].used_length, 0)
            image.filled(index)
            self.shared.add(index)
        return image


@dataclass(slots=True)
class _Found:
    """A section, or the parts of one, as it will be in the manifest."""

    start: SectionStart
    file: OutputFile | None = None
    lengths: list[int] = field(default_factory=list)
    size: int = 0


class _Sections:
    """Fold: which sections there are, in order, and the bodies of iterable ones as files.

    The parts of a section are one file: those of dirty bitmaps are thousands, of a byte each.
    """

    def __init__(self, directory: OutputDirectory, stack: contextlib.ExitStack) -> None:
        self.footers = False
        self.found: list[_Found] = []
        self._directory = directory
        self._stack = stack
        self._encoder = Encoder()
        self._parts: dict[int, _Found] = {}
        self._open: _Found | None = None  # whose body is being read
        self._count = 0

    def on(self, event: Event) -> None:
        """Take one event."""
        match event:
            case SectionStart():
                self._open = self._start(event)
                if self._open is not None:
                    self._encoder.encode(event)
            case LiveRecord() | Payload() if self._open is not None:
                data, to = self._encoder.encode(event), self._open
                if to.file is not None:
                    to.file.write(to.size, data)
                to.lengths[-1] += len(data)
                to.size += len(data)
            case SectionFooter():
                self.footers = True
            case Gap():
                raise IntegrityError(event.offset, f"bytes that are not read: {event.reason}")
            case ChannelEvent() if isinstance(event.event, DeviceState):
                raise UnsupportedError(event.offset, "device state in a multifd channel")

    # What the body goes to, if it is kept here: that of a device comes from its tree.
    def _start(self, start: SectionStart) -> _Found | None:
        if start.idstr == b"ram" and start.section_type != SectionType.QEMU_VM_SECTION_FULL:
            self._start_ram(start)
            return None
        found = None
        if start.section_type == SectionType.QEMU_VM_SECTION_PART:
            found = self._parts.get(start.section_id)
        if found is None:
            found = self._add(start)
        if start.section_type == SectionType.QEMU_VM_SECTION_FULL:
            return None
        if start.section_type == SectionType.QEMU_VM_SECTION_PART:
            self._parts[start.section_id] = found
        self._count += 1
        if self._count > MAX_PARTS:
            raise LimitError(start.offset, f"over {MAX_PARTS} parts of iterable sections")
        found.lengths.append(0)
        return found

    def _add(self, start: SectionStart) -> _Found:
        if len(self.found) >= MAX_SECTIONS:
            raise LimitError(start.offset, f"over {MAX_SECTIONS} sections")
        made = _Found(start)
        part = _PARTS.get(SectionType(start.section_type))
        if part is not None and start.idstr != b"ram":
            [name] = safe_names([start.idstr], f"-{part}.bin")
            name = f"{len(self.found):03}-{name}"
            made.file = self._stack.enter_context(self._directory.file(LIVE, name))
        self.found.append(made)
        return made

    # All pages come with the END.
    def _start_ram(self, start: SectionStart) -> None:
        if start.section_type == SectionType.QEMU_VM_SECTION_PART:
            return
        there = [f.start.section_type for f in self.found if f.start.idstr == b"ram"]
        if start.version_id != RAM_VERSION or start.section_type in there:
            raise UnsupportedError(
                start.offset, f"RAM of section version {start.version_id}, or a second time"
            )
        self._add(start)

    def finish(self) -> None:
        """Give an END to the RAM of a background snapshot, which has none; close the files."""
        ram = [f for f in self.found if f.start.idstr == b"ram" and f.start.section_type in _PARTS]
        if len(ram) == 1:
            end = replace(ram[0].start, section_type=SectionType.QEMU_VM_SECTION_END)
            live = [i for i, f in enumerate(self.found) if f.start.section_type in _PARTS]
            self.found.insert(live[-1] + 1, _Found(end))
        for found in self.found:
            if found.file is not None:
                found.file.commit()


def unpack(
    source: Source,
    options: UnpackOptions,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
    schema: Callable[[Devices], None] | None = None,
) -> tuple[UnpackReport, int]:
    """Write a stream as a directory.

    Args:
        source: The input.
        options: Where to.
        progress: Called with (offset, size or None).
        container: What is around the stream; it is left out.
        channels: Recorded beside the main one.
        schema: Called with the devices of a stream, to give them names that it has not.

    Returns:
        The account, and the exit status: that of the findings.

    Raises:
        StreamError: The stream is damaged, not whole, or has what is not kept in a directory.
        OutputError: The directory is not empty.
        OSError: With the path.

    Memory:
        The state of the devices, and 3 bits a page.
    """
    summary, devices = Summary(), Devices()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(OutputDirectory(options.output, force=options.force))
        blocks = _Blocks(summary, channels, options, directory, stack)
        sections = _Sections(directory, stack)
        decoder = Decoder(options.page_size, strict=True, max_ram=options.max_ram)
        try:
            folds: list[Consumer] = [summary, devices, blocks, sections]
            run(source, decoder, folds, progress, container, channels)
            summary.finish()
            check_pages(summary, partial=False)
            check_complete(summary, "writes", partial=False)
        except (TruncatedError, FormatError, IntegrityError) as error:
            if summary.read:
                error.advice = f"a damaged stream is not unpacked; {_ADVICE}"
            raise
        if not summary.blocks:
            raise IntegrityError(summary.end, "the stream has no RAM")
        if schema is not None:
            schema(devices)
        sections.finish()
        page_size = decoder.page_size or DEFAULT_PAGE_SIZE
        blocks.opened(page_size)
        tree = devices.tree
        files = _block_files(summary, blocks, page_size)
        shared = any(b.file is None for b in files)
        manifest = UnpackedManifest(
            schema=UNPACKED_SCHEMA,
            page_size=page_size,
            footers=sections.footers,
            configuration=_configuration(summary, shared=shared),
            blocks=files,
            sections=list(_section_files(sections, list(tree), devices, directory)),
            vmdescription=None if devices.text is None else VMDESCRIPTION,
        )
        if devices.text is not None:
            directory.write("", VMDESCRIPTION, devices.text)
        directory.write("", MANIFEST, dumps(manifest).encode() + b"\n")
        directory.commit()
    report = UnpackReport(
        schema=UNPACK_SCHEMA,
        tool=f"vmstream {__version__}",
        input=source.name,
        output=str(options.output),
        machine=summary.machine,
        described=devices.described,
        blocks=len(manifest.blocks),
        devices=len(tree),
        undescribed=tree.undescribed,
        anomalies=devices.findings.report(),
        layers=layer_reports(container),
    )
    return report, summary.findings.exit_code


# The configuration of a stream that has all of RAM in it, in page records.
def _configuration(summary: Summary, *, shared: bool) -> UnpackedConfiguration | None:
    event = summary.configuration
    if event is None:
        return None
    gone = {CAP_MAPPED_RAM} if shared else {CAP_MAPPED_RAM, CAP_IGNORE_SHARED}
    left = [readable(c) for c in event.capabilities if c not in gone]
    listed = b"configuration/capabilities" in event.subsections
    return UnpackedConfiguration(
        name=readable(event.name),
        target_page_bits=event.target_page_bits,
        # Without one QEMU has no list: v10.1.0 migration/savevm.c vmstate_capabilites_needed().
        capabilities=left if listed and (left or not event.capabilities) else None,
        uuid=None if event.uuid is None else str(uuid.UUID(bytes=event.uuid)),
        name_b64=in_full(event.name),
    )


def _block_files(summary: Summary, blocks: _Blocks, page_size: int) -> list[UnpackedBlock]:
    ignored = CAP_IGNORE_SHARED in summary.capabilities
    covered = summary.coverage_blocks()
    elsewhere = {
        i
        for i, b in enumerate(covered)
        if ignored and b.pages and i not in blocks.shared and not b.sent.count()
    }
    found, left = [], MAX_UNSENT
    for i, (block, out) in enumerate(zip(summary.blocks, blocks.files, strict=True)):
        name, unsent = None, []
        if i in elsewhere:
            out.abort()
        else:
            name = out.path.name
            out.commit()
            if i not in blocks.shared:
                unsent = list(_unsent(covered[i], page_size, left, summary.end))
                left -= len(unsent)
        found.append(
            UnpackedBlock(
                idstr=readable(block.idstr),
                used_length=block.used_length,
                file=name,
                gpa=block.gpa if elsewhere else None,
                unsent=unsent,
                idstr_b64=in_full(block.idstr),
            )
        )
    return found


# Ranges of a block that no page was sent of, bytes.
def _unsent(covered: BlockCoverage, page_size: int, most: int, end: int) -> Iterator[list[int]]:
    used, begin = covered.block.used_length, None
    if not covered.sent.count():
        yield from [[0, used]] if used else ()
        return
    for first in range(0, covered.pages, _PAGES):
        missing = ~covered.sent.members(first, min(first + _PAGES, covered.pages))
        edges = np.flatnonzero(np.diff(missing, prepend=begin is not None)) + first
        for edge in (edges * page_size).tolist():
            if begin is None:
                begin = edge
                continue
            if most <= 0:
                raise LimitError(end, f"over {MAX_UNSENT} ranges of pages that were not sent")
            most -= 1
            yield [begin, edge - begin]
            begin = None
    if begin is not None:
        yield [begin, used - begin]


# The state of each device goes to a file, what came in a PACKAGED behind the end of RAM.
def _section_files(
    sections: _Sections, tree: Sequence[Node], devices: Devices, directory: OutputDirectory
) -> Iterator[UnpackedSection]:
    nodes = {node.offset: node for node in tree if node.size}
    names = safe_names((f.start.idstr for f in sections.found), ".json")
    number = 0
    in_order = sorted(
        zip(sections.found, names, strict=True), key=lambda found: found[0].start.packaged
    )
    for found, name in in_order:
        start, described = found.start, False
        file = None if found.file is None else found.file.path.name
        if start.section_type == SectionType.QEMU_VM_SECTION_FULL:
            file = f"{number:03}-{name}"
            number += 1
            node = nodes.get(start.end)
            directory.write(DEVICES, file, (EMPTY if node is None else to_json(node)).encode())
            if node is not None and devices.text is not None:
                described = _describes(node)
        yield UnpackedSection(
            part=_PARTS.get(SectionType(start.section_type), "device"),
            section_id=start.section_id,
            idstr=readable(start.idstr),
            instance_id=start.instance_id,
            version_id=start.version_id,
            file=file,
            described=described,
            lengths=found.lengths,
            idstr_b64=in_full(start.idstr),
        )


# Whether a description adds up to a state, as that of QEMU 2.9 to 9.2 does not always.
def _describes(node: Node) -> bool:
    try:
        return bool(node.description) and body_size(node.description) == node.size
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
