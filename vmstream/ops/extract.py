"""`extract-ram`: RAM as files, exact or not at all."""

from __future__ import annotations

import contextlib
import errno
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmstream.container.layers import Container
from vmstream.errors import (
    EXIT_FINDINGS,
    AddressError,
    FormatError,
    IntegrityError,
    LimitError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.guest.devices import DeviceTree
from vmstream.guest.imagefile import Plan, plan
from vmstream.guest.kdump import kdump_plan
from vmstream.guest.memory import Placement, RAMImage
from vmstream.guest.notes import Architecture, Note, architecture, cpu_notes
from vmstream.guest.physical import (
    Evidence,
    PhysicalMap,
    concatenated,
    extended,
    physical_map,
    ram_blocks,
)
from vmstream.guest.plugged import left_out
from vmstream.guest.rom import with_rom
from vmstream.guest.srat import MOST_TABLES, TABLES
from vmstream.guest.userlayout import Entry, parse_layout, user_map
from vmstream.guest.vmcoreinfo import Found, find, utsname
from vmstream.ops.channels import Channels
from vmstream.ops.devices import Devices
from vmstream.ops.encode import STANDARD_OUTPUT, compression_of, encode
from vmstream.ops.inspect import Summary, block_report, layer_reports
from vmstream.ops.pages import PageFold, check_complete, check_pages, shared_memory
from vmstream.ops.passes import UntilPass
from vmstream.ops.pipeline import Consumer, Progress, run
from vmstream.ops.quick import quick_events
from vmstream.report.jsonout import dumps
from vmstream.report.models.containers import LayerReport
from vmstream.report.models.extract import (
    BLOCKS_SCHEMA,
    EXTRACT_SCHEMA,
    BlockFile,
    BlocksManifest,
    ChannelInput,
    ExtractReport,
    LayoutReport,
    OutputReport,
    RegionReport,
)
from vmstream.report.models.names import readable
from vmstream.report.models.pages import PageCounts
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Event,
    Payload,
    RAMBlock,
    RAMBlockList,
    SectionStart,
    VMDescription,
)
from vmstream.transport.compress import SUFFIXES
from vmstream.transport.sink import (
    OutputFile,
    StandardOutput,
    check_free,
    check_parent,
    output_directory,
    safe_names,
    write_text,
)
from vmstream.transport.source import DigestSource, Source, read_small, whole_digest
from vmstream.version import __version__
from vmstream.wire.constants import CAP_IGNORE_SHARED, DEFAULT_PAGE_SIZE
from vmstream.wire.vmsd import top_fields

_RTC = b"mc146818rtc"
CMOS_SIZE = 128
_WITH_NOTES = ("elf", "kdump")

# Host bridges of PCs; their state starts with a version of 4 bytes, then PCI configuration. QEMU
# v7.2.0 hw/pci/pci.c vmstate_pci_device.
_NORTHBRIDGES = (b"/I440FX", b"/mch")
_CONFIGURATION = slice(4, 260)

# The state of a virtio-mem device; from 8.1 on what counts comes in the second, ahead of RAM.
_VIRTIO_MEM = (b"virtio-mem", b"virtio-mem-device-early")

# Bytes that are kept of a section, and of all: the bitmap of 8 TiB in blocks of 2 MiB.
_MOST_BODY = 1 << 19
_MOST_BODIES = 16 << 20

# A layout file of as many entries as are taken is a tenth of this.
_MOST_LAYOUT = 8 << 20


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What to write.

    Attributes:
        output: File for the image, or for the one block; `STANDARD_OUTPUT`.
        block: Name of the one block to write.
        all_blocks: Directory for every block.
        below_4g: Size of RAM below 4 GiB, bytes, if the user states it.
        partial: Write what is there of a damaged stream.
        force: Replace files.
        manifest: File for the account with hashes.
        page_size: Target page size in bytes, if the user states it.
        arguments: The command line, for the manifest.
        shared_blocks: Names of blocks whose memory is in a file (x-ignore-shared), and the files.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        format: Of the guest-physical image: 'raw', 'lime', 'elf' or 'kdump'.
        layout: File with the guest-physical map, if the user states it.
        rom: ROM and flash are in the guest-physical image, too.
        compress: One of COMPRESSIONS; by the suffix of `output` if `None`.
        spool: Directory for what goes to standard output, until it is whole; that of the system
            for temporary files if `None`.
        passes: RAM as it was known behind this pass, from 1 to LAST_PASS, instead of the end.
    """

    output: Path | None = None
    block: str | None = None
    all_blocks: Path | None = None
    below_4g: int | None = None
    partial: bool = False
    force: bool = False
    manifest: Path | None = None
    page_size: int | None = None
    arguments: tuple[str, ...] = ()
    shared_blocks: tuple[tuple[str, Path], ...] = ()
    max_ram: int | None = None
    format: str = "raw"
    layout: Path | None = None
    rom: bool = False
    compress: str | None = None
    spool: Path | None = None
    passes: int | None = None


class MapEvidence:
    """Fold: what a stream tells about the guest-physical map."""

    def __init__(self) -> None:
        self.blocks: tuple[RAMBlock, ...] = ()
        self.machine: bytes | None = None
        self.idstrs: set[bytes] = set()
        self._bodies: dict[bytes, bytearray] = {}
        self._kept = 0
        self._body: bytearray | None = None
        self._section = 0
        self._cmos_offset = 0

    def on(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, SectionStart):
            self.idstrs.add(event.idstr)
            self._body, self._section = None, event.section_id
            if event.idstr.endswith((_RTC, *_NORTHBRIDGES, *_VIRTIO_MEM)):
                self._body = self._bodies.setdefault(event.idstr, bytearray())
        elif isinstance(event, Payload) and self._body is not None:
            if self._section == event.section_id:
                room = min(_MOST_BODY - len(self._body), _MOST_BODIES - self._kept)
                self._body += event.data[: max(0, room)]
                self._kept += min(len(event.data), max(0, room))
        elif isinstance(event, RAMBlockList):
            self.blocks = event.blocks
        elif isinstance(event, VMDescription) and event.layout is not None:
            for device in event.layout.devices:
                if device.idstr == _RTC:
                    # Without a vmdescription the CMOS is taken to come first, as it does in
                    # every version 1 to 3. QEMU v10.1.0 hw/rtc/mc146818rtc.c vmstate_rtc.
                    for name, offset, _ in top_fields(device.description):
                        if name == "cmos_data":
                            self._cmos_offset = offset

    def evidence(self, machine: bytes | None, tables: bytes | None = None) -> Evidence:
        """Put it together.

        Args:
            machine: Machine type, `None` if the stream does not say.
            tables: Content of the block of ACPI tables, if it is known.
        """
        cmos = bytes(self._bodies.get(_RTC, b"")[self._cmos_offset :][:CMOS_SIZE])
        virtio_mem: dict[bytes, bytes] = {}
        bridge = None
        for idstr, body in self._bodies.items():
            path, _, name = idstr.rpartition(b"/")
            if name in _VIRTIO_MEM:
                # Of two the one ahead of RAM comes first.
                virtio_mem.setdefault(path, bytes(body))
            elif idstr != _RTC:
                bridge = bytes(body[_CONFIGURATION])
        return Evidence(
            machine,
            self.blocks,
            cmos if len(cmos) == CMOS_SIZE else None,
            frozenset(self.idstrs),
            tables,
            virtio_mem,
            bridge,
        )


class BytesSink:
    """A sink of pages in memory, for what is small.

    Args:
        length: Bytes.

    Attributes:
        content: What is there.
    """

    def __init__(self, length: int) -> None:
        self.content = bytearray(length)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        self.content[offset : offset + len(data)] = data

    def write_pages(
        self,
        window: memoryview,
        positions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        size: int,
        stride: int,
    ) -> None:
        """Write pages, as of `PageSink`."""
        for at, offset in zip(positions.tolist(), offsets.tolist(), strict=True):
            self.write(offset, window[at : at + size])

    def zero(self, offset: int, length: int) -> None:
        """Write zeros."""
        self.write(offset, bytes(length))

    def read_pages(self, offsets: NDArray[np.int64], pages: NDArray[np.uint8]) -> None:
        """Fill `pages` with what stands at `offsets`."""
        for page, offset in zip(pages, offsets.tolist(), strict=True):
            page[:] = np.frombuffer(self.content, np.uint8, len(page), offset)


def tables_block(blocks: tuple[RAMBlock, ...]) -> int | None:
    """Index of the block of ACPI tables, `None` if there is none of a plausible size."""
    for i, block in enumerate(blocks):
        if block.idstr == TABLES and block.used_length <= MOST_TABLES:
            return i
    return None


@dataclass(frozen=True, slots=True)
class _Written:
    """A region of the guest, in the file that it was written to."""

    gpa: int
    length: int
    file: OutputFile
    offset: int

    def read_into(self, at: int, buffer: memoryview) -> None:
        self.file.read_into(self.offset + at, buffer)

    def has_data(self, at: int, length: int) -> bool:
        return self.file.has_data(self.offset + at, length)

    def address(self, at: int) -> int:
        return self.gpa + at


class _Writer(PageFold[RAMImage]):
    """Fold: opens the outputs at the first page, and writes."""

    def __init__(
        self,
        options: ExtractOptions,
        stack: contextlib.ExitStack,
        summary: Summary,
        peeked: Evidence | None,
        source: Source,
        channels: Channels | None,
        stated: tuple[Entry, ...] | None,
        compression: str | None,
    ) -> None:
        super().__init__(summary, channels, partial=options.partial)
        self._options = options
        self._compression = compression
        self.stated = stated
        self._page_size = DEFAULT_PAGE_SIZE
        self._source = source
        self._stack = stack
        self._peeked = peeked
        self.files: dict[int | None, OutputFile] = {}
        self.map: PhysicalMap | None = None
        self.plan: Plan | None = None
        self._tables: BytesSink | None = None
        self.vmcoreinfo: Found | None = None
        self.notes: list[Note] = []
        self.utsname = b""
        self._until = None if options.passes is None else UntilPass(summary, options.passes)

    def on(self, event: Event) -> None:
        if isinstance(event, RAMBlockList):
            self._check(event.blocks)
            return
        kept = event if self._until is None else self._until.cut(event)
        if kept is not None:
            super().on(kept)

    # What can be refused before anything is read.
    def _check(self, blocks: tuple[RAMBlock, ...]) -> None:
        if self._options.block is not None:
            find_block(blocks, self._options.block)

    def open(self, page_size: int) -> RAMImage:
        """Open the outputs."""
        options, output = self._options, self._options.output or Path()
        blocks = self._summary.blocks
        placements: list[Placement] = []
        self._page_size = page_size
        if options.all_blocks is not None:
            self._stack.enter_context(output_directory(options.all_blocks))
            check_free(options.all_blocks / "manifest.json", force=options.force)
            if options.manifest is not None:
                _check_apart(options.all_blocks / "manifest.json", options.manifest)
            suffix = ".raw" + SUFFIXES.get(self._compression or "", "")
            names = safe_names((b.idstr for b in blocks), suffix)
            for i, name in enumerate(names):
                out = self._file(i, options.all_blocks / name, blocks[i].used_length)
                placements.append(Placement(i, 0, blocks[i].used_length, out, 0))
        elif options.block is not None:
            i = find_block(blocks, options.block)
            out = self._file(i, output, blocks[i].used_length)
            placements.append(Placement(i, 0, blocks[i].used_length, out, 0))
        else:
            self.map = self._first_map(blocks)
            self.plan = plan(options.format, self.map)
            out = self._file(None, output, self.plan.size)
            placements.extend(
                Placement(r.block, r.block_offset, r.length, out, r.gpa) for r in self.plan.regions
            )
            at = tables_block(blocks)
            if at is not None and self.stated is None:
                # Up to the end of the last page, which need not be a whole one.
                length = -(-blocks[at].used_length // page_size) * page_size
                self._tables = BytesSink(length)
                placements.append(Placement(at, 0, length, self._tables, 0))
        on_fault = self._page_fault if options.partial else None
        image = RAMImage(blocks, page_size, placements, on_fault)
        self._take_shared(blocks, placements, image)
        return image

    # Memory that the stream leaves to a file. Pages that are in the stream come over it.
    def _take_shared(
        self, blocks: tuple[RAMBlock, ...], placements: list[Placement], image: RAMImage
    ) -> None:
        for index, path in shared_files(blocks, self._options.shared_blocks):
            for out in self.files.values():
                _check_apart(path, out.path)
            for place in placements:
                if place.block == index and isinstance(place.sink, OutputFile):
                    place.sink.take_file(path, place.block_offset, place.length, place.sink_offset)
            image.filled(index)

    def _file(self, key: int | None, path: Path, size: int) -> OutputFile:
        if self._options.manifest is not None:
            _check_apart(path, self._options.manifest)
        if path == STANDARD_OUTPUT:
            directory = self._options.spool or Path(tempfile.gettempdir())
            path = directory / f"vmstream-{secrets.token_hex(8)}"
        check_free(path, force=self._options.force, keep=self._source.identity)
        out = self._stack.enter_context(OutputFile(path, force=self._options.force))
        try:
            out.resize(size)
        except (OSError, OverflowError) as error:
            too_large = isinstance(error, OverflowError) or error.errno == errno.EFBIG
            if key is not None or not too_large:
                raise
            # Addresses are offsets in it; for kdump it is what the file is made of.
            raise OutputError(
                f"{self._options.output}: RAM ends at {size:#x}, beyond what a file can hold here; "
                "--format elf and lime leave out what lies between"
            ) from error
        self.files[key] = out
        return out

    # A seekable stream was asked for its CMOS first. On a pipe that comes behind the pages, so
    # the map may have to be mended at the end; where nothing is known yet, any order will do.
    def _first_map(self, blocks: tuple[RAMBlock, ...]) -> PhysicalMap:
        config = self._summary.configuration
        machine = config.name if config else None
        if self.stated is not None:
            return self._map(Evidence(machine, blocks))
        if self._peeked is not None:
            with contextlib.suppress(OutputError):
                return extended(self._map(self._peeked), blocks, ram_blocks(blocks))
        wanted = [*range(len(blocks))]
        if not self._options.rom:
            wanted = ram_blocks(blocks, pluggable=True)
        try:
            return extended(self._map(Evidence(machine, blocks)), blocks, wanted)
        except OutputError:
            return concatenated(blocks, wanted)

    def _map(self, evidence: Evidence) -> PhysicalMap:
        if self.stated is None:
            found = physical_map(evidence, self._options.below_4g)
            rom, bridge = self._options.rom, evidence.northbridge
            return with_rom(found, evidence.blocks, bridge) if rom else found
        return user_map(self.stated, str(self._options.layout), evidence, self._page_size)

    def drop_unsent(self) -> None:
        """Leave out, of all blocks, those that the stream has no page of."""
        if self._options.all_blocks is not None:
            given = {name for name, _ in self._options.shared_blocks}
            for i, covered in enumerate(self._summary.coverage_blocks()):
                if readable(covered.block.idstr) in given:
                    continue
                if i in self.files and covered.pages_missing == covered.pages:
                    self.files.pop(i).abort()

    def settle(self, evidence: Evidence, tree: DeviceTree) -> None:
        """Bring the image into the layout that the whole stream tells; find what notes have."""
        if self.plan is None:
            return
        if self._tables is not None:
            evidence = replace(evidence, tables=bytes(self._tables.content))
        final, cpus = self._map(evidence), architecture(tree)
        final = replace(final, doubts=final.doubts + tuple(self._left_out(evidence, final)))
        made = self._lay_out(self.plan, final, (), cpus)
        if self._options.format in _WITH_NOTES:
            # By addresses, which are known now.
            written = [
                _Written(r.gpa, r.length, self.files[None], placed.gpa)
                for r, placed in zip(final.regions, made.regions, strict=True)
            ]
            read = partial(_read, written)
            self.vmcoreinfo = find(tree, read, written)
            self.notes = cpu_notes(tree)
            if self.vmcoreinfo.best is not None:
                self.notes.append(self.vmcoreinfo.best.note)
                self.utsname = utsname(self.vmcoreinfo.best, read)
            made = self._lay_out(made, final, self.notes, cpus)
        for offset, head in made.heads:
            self.files[None].write(offset, head)
        self.map, self.plan = final, made

    def _lay_out(
        self,
        old: Plan,
        final: PhysicalMap,
        notes: Sequence[Note],
        cpus: Architecture | None,
    ) -> Plan:
        made = plan(self._options.format, final, notes, cpus)
        if (made.regions, made.size) != (old.regions, old.size):
            _rearrange(self.files[None], old, made)
        return made

    # Blocks of virtio-mem devices that hold memory: their names are paths, as those of devices'
    # own memory are. QEMU v10.1.0 hw/virtio/virtio-mem.c virtio_mem_device_realize().
    def _left_out(self, evidence: Evidence, final: PhysicalMap) -> Iterator[str]:
        placed = {r.block for r in final.regions}
        for i, covered in enumerate(self._summary.coverage_blocks()):
            if i in placed:
                continue
            path, slash, _ = covered.block.idstr.rpartition(b"/")
            if slash and path + b"/virtio-mem" in evidence.idstrs and covered.sent.count():
                yield left_out(covered.block)


# Often there is but something to cut off at the end.
def _rearrange(out: OutputFile, old: Plan, new: Plan) -> None:
    needed = list(moves(old, new))
    length = sum(r.length for r in new.regions)
    inside = sum(max(0, min(r.gpa + r.length, new.size) - r.gpa) for r in old.regions)
    if inside == length and all(begin == to for begin, to, _ in needed):
        out.resize(new.size)
    else:
        out.rearrange(needed, new.size)


def _read(written: Sequence[_Written], gpa: int, length: int) -> bytes:
    for part in written:
        if part.gpa <= gpa and gpa + length <= part.gpa + part.length:
            buffer = bytearray(length)
            part.read_into(gpa - part.gpa, memoryview(buffer))
            return bytes(buffer)
    raise AddressError(gpa, f"no RAM at address {gpa:#x}")


def moves(old: PhysicalMap | Plan, new: PhysicalMap | Plan) -> Iterator[tuple[int, int, int]]:
    """Yield (old offset, new offset, length) of every stretch that both have."""
    for target in new.regions:
        for source in old.regions:
            if source.block != target.block:
                continue
            low = max(source.block_offset, target.block_offset)
            high = min(source.block_offset + source.length, target.block_offset + target.length)
            if low < high:
                yield (
                    source.gpa + low - source.block_offset,
                    target.gpa + low - target.block_offset,
                    high - low,
                )


# Two outputs of one name would leave one of them.
def _check_apart(first: Path, second: Path) -> None:
    if first.resolve() == second.resolve():
        raise OutputError(f"{second}: two outputs of one name")


def find_block(blocks: tuple[RAMBlock, ...], name: str) -> int:
    """Index of the block of this name. Raises OutputError, with the names there are."""
    names = [readable(b.idstr) for b in blocks]
    if name not in names:
        raise OutputError(f"no block {name!r}; the stream has: {', '.join(names)}")
    return names.index(name)


def shared_files(
    blocks: tuple[RAMBlock, ...], given: Iterable[tuple[str, Path]]
) -> Iterator[tuple[int, Path]]:
    """Yield the index of each block whose memory is in a file (x-ignore-shared), and the file.

    Raises:
        OutputError: There is no such block, or the file has another length.
        OSError: There is no such file.
    """
    for name, path in given:
        index = find_block(blocks, name)
        length, size = blocks[index].used_length, path.stat().st_size
        if size != length:
            raise OutputError(f"{path}: {size} bytes, but block {name!r} has {length}")
        yield index, path


def extract(
    source: Source,
    options: ExtractOptions,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
) -> tuple[ExtractReport, int]:
    """Rebuild RAM and write it.

    Args:
        source: The input.
        options: What to write.
        progress: Called with (offset, size or None).
        container: What is around the stream; with a manifest, opened with a digest.
        channels: Recorded beside the main one.

    Returns:
        The account, and the exit status.

    Raises:
        StreamError: The stream is damaged and `partial` was not asked for, or needs what this
            version does not decode. Nothing is left behind.
        OutputError: An output's name is taken, or the stream does not tell the layout.
        OSError: With the path.
    """
    to_pipe = options.output == STANDARD_OUTPUT
    compression = compression_of(options.format, options.output, options.compress)
    standard = StandardOutput(digest=options.manifest is not None) if to_pipe else None
    for path in (options.output, options.manifest):
        if path is not None and path != STANDARD_OUTPUT:
            check_free(path, force=options.force, keep=source.identity)
            if options.all_blocks is None or path.parent.resolve() != options.all_blocks.resolve():
                check_parent(path)
    if options.manifest is not None and options.output is not None:
        _check_apart(options.output, options.manifest)
    stated = None
    if options.layout is not None:
        stated = parse_layout(read_small(options.layout, _MOST_LAYOUT), str(options.layout))
    peeked = _peek(source, options)
    # The manifest has the hash of the file itself, not of what is in it.
    layers = container.layers if container is not None else []
    digest = container.digest if container is not None else None
    if options.manifest is not None and not layers:
        digest = source = DigestSource(source)
    outermost = layers[0].source if layers else source
    decoder = Decoder(options.page_size, strict=not options.partial, max_ram=options.max_ram)
    summary, evidence, devices = Summary(), MapEvidence(), Devices()
    with contextlib.ExitStack() as stack:
        if digest is not None:
            # Whoever closes the inner source does not wait for the thread.
            stack.callback(digest.finish)
        writer = _Writer(options, stack, summary, peeked, source, channels, stated, compression)
        try:
            consumers: list[Consumer] = [summary, evidence, writer]
            if options.format in _WITH_NOTES:
                consumers.append(devices)
            run(source, decoder, consumers, progress, container, channels)
        except (TruncatedError, FormatError, IntegrityError) as error:
            error.advice = error.advice or "--partial writes what is there"
            raise
        if not summary.read and summary.findings.error is not None:
            raise summary.findings.error
        if isinstance(summary.findings.error, (UnsupportedError, LimitError)):
            raise summary.findings.error
        summary.finish()
        _check_whole(summary, options, stated)
        if options.passes is not None:
            _check_pass(summary, options.passes)
        if not writer.files:
            if not summary.blocks:
                raise IntegrityError(summary.end, "the stream has no RAM")
            writer.open(decoder.page_size or DEFAULT_PAGE_SIZE)
        writer.drop_unsent()
        machine = summary.configuration.name if summary.configuration else None
        writer.settle(evidence.evidence(machine), devices.tree)
        kdump = None
        if options.format == "kdump" and writer.map is not None:
            kdump = kdump_plan(
                writer.map,
                writer.notes,
                architecture(devices.tree),
                page_size=decoder.page_size or DEFAULT_PAGE_SIZE,
                cpus=max(1, len([*devices.tree.find("cpu_common[*]")])),
                compression=compression,
                complete=summary.complete,
                utsname=writer.utsname,
            )
        outputs = []
        for i, image in list(writer.files.items()):
            block = None if i is None else summary.blocks[i]
            made = OutputReport(
                "-" if to_pipe else str(image.path),
                image.size,
                None if block is None else readable(block.idstr),
                image.sha256() if options.manifest is not None else None,
                options.format if block is None else "raw",
            )
            if standard is not None or compression is not None or kdump is not None:
                target = standard or stack.enter_context(
                    OutputFile(image.path, force=options.force)
                )
                encode(image, target, compression, kdump, progress)
                image.abort()
                made = replace(
                    made,
                    size=target.size,
                    sha256=target.sha256() if options.manifest is not None else None,
                    compression=compression,
                    content_size=made.size,
                    content_sha256=made.sha256,
                )
                if isinstance(target, OutputFile):
                    writer.files[i] = target
                else:
                    del writer.files[i]
            outputs.append(made)
        hashed = digest.hexdigest() if digest is not None else None
        if options.manifest is not None and hashed is None:
            hashed = whole_digest(outermost)
        report = _report(
            outermost, decoder, summary, options, writer, outputs, hashed, layer_reports(container)
        )
        report = replace(report, channels=_channel_inputs(channels, options))
        for out in writer.files.values():
            out.commit()
        if options.all_blocks is not None:
            text = dumps(_blocks_manifest(report, summary, writer))
            write_text(options.all_blocks / "manifest.json", text + "\n", force=options.force)
        if options.manifest is not None:
            write_text(options.manifest, dumps(report) + "\n", force=options.force)
    code = summary.exit_code
    if not code and writer.map and writer.map.doubts:
        code = EXIT_FINDINGS
    return report, code


# Head and tail of a seekable stream tell the layout before the first page is written.
def _peek(source: Source, options: ExtractOptions) -> Evidence | None:
    if not source.seekable or options.block is not None or options.all_blocks is not None:
        return None
    if options.layout is not None:
        return None
    summary, found = Summary(), MapEvidence()
    try:
        for event in quick_events(source, Decoder(options.page_size, max_ram=options.max_ram)):
            summary.on(event)
            found.on(event)
    except StreamError:
        return None
    return found.evidence(summary.configuration.name if summary.configuration else None)


# Refuse what would be a wrong image, said or not.
def _check_whole(
    summary: Summary, options: ExtractOptions, stated: tuple[Entry, ...] | None
) -> None:
    check_pages(summary, partial=options.partial)
    if CAP_IGNORE_SHARED in summary.capabilities and options.all_blocks is None:
        wanted = [options.block] if options.block else None
        if stated is not None:
            wanted = [entry.block for entry in stated]
        for covered in summary.coverage_blocks():
            name = readable(covered.block.idstr)
            empty = covered.pages_missing == covered.pages
            empty = empty and name not in dict(options.shared_blocks)
            main = wanted is None and _is_ram(summary, covered.block)
            if empty and (main or (wanted is not None and name in wanted)):
                raise shared_memory(name)
    check_complete(summary, "writes", partial=options.partial)


def _check_pass(summary: Summary, number: int) -> None:
    count = summary.coverage.pass_count if summary.coverage is not None else 0
    if number > count:
        words = f"{count} pass" + ("es" if count != 1 else "")
        raise OutputError(f"no pass {number} over RAM: the stream has {words}")


def _channel_inputs(channels: Channels | None, options: ExtractOptions) -> list[ChannelInput]:
    hashed = options.manifest is not None
    found = []
    for channel in channels.list if channels is not None else ():
        layers = channel.opened.container.layers
        source = layers[0].source if layers else channel.opened.source
        digest = whole_digest(source) if hashed else None
        found.append(ChannelInput(channel.name, source.size or channel.end, digest))
    return found


def _is_ram(summary: Summary, block: RAMBlock) -> bool:
    return any(summary.blocks[i] == block for i in ram_blocks(summary.blocks))


def _blocks_manifest(report: ExtractReport, summary: Summary, writer: _Writer) -> BlocksManifest:
    return BlocksManifest(
        schema=BLOCKS_SCHEMA,
        input=report.input,
        machine=report.machine,
        page_size=report.page_size,
        complete=report.complete,
        blocks=[
            BlockFile(
                block.idstr,
                writer.files[i].path.name if i in writer.files else None,
                block.used_length,
                block.pages or PageCounts(),
                block.pages_missing or 0,
                block.idstr_b64,
            )
            for i, block in enumerate(report.ram_blocks)
        ],
    )


def _layout_report(summary: Summary, writer: _Writer) -> LayoutReport | None:
    layout, made = writer.map, writer.plan
    if layout is None or made is None:
        return None
    return LayoutReport(
        layout.decided_by,
        layout.below_4g,
        [
            RegionReport(
                r.gpa,
                r.length,
                readable(summary.blocks[r.block].idstr),
                r.block_offset,
                r.source,
                None if made.format == "kdump" else placed.gpa,
            )
            for r, placed in zip(layout.regions, made.regions, strict=True)
        ],
        list(layout.reasons),
        list(layout.doubts),
        "user" if writer.stated else "inferred",
    )


def _report(
    source: Source,
    decoder: Decoder,
    summary: Summary,
    options: ExtractOptions,
    writer: _Writer,
    outputs: list[OutputReport],
    input_sha256: str | None,
    layers: list[LayerReport],
) -> ExtractReport:
    return ExtractReport(
        schema=EXTRACT_SCHEMA,
        tool=f"vmstream {__version__}",
        arguments=list(options.arguments),
        input=source.name,
        input_size=summary.end if source.size is None else source.size,
        input_sha256=input_sha256,
        complete=summary.complete,
        partial=options.partial,
        machine=summary.machine,
        page_size=decoder.page_size,
        page_size_source=decoder.page_size_source,
        layout=_layout_report(summary, writer),
        outputs=outputs,
        ram_blocks=[block_report(b) for b in summary.coverage_blocks()],
        anomalies=summary.findings.report(),
        layers=layers,
        after_pass=options.passes,
        pass_count=summary.coverage.pass_count if summary.coverage else 0,
        passes_from="wire" if summary.coverage and summary.coverage.rounds else "inferred",
    )
