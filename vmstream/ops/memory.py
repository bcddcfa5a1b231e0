"""Guest memory at any address, without extracting it: an index over a stream, and reads by it."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmstream.container.open import OpenStream
from vmstream.errors import (
    AddressError,
    FormatError,
    IntegrityError,
    LimitError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.guest.index import Input, PageIndex, PageStore, Span, most_pages
from vmstream.guest.physical import PhysicalMap, Region, physical_map
from vmstream.ops.channels import Channels
from vmstream.ops.extract import MapEvidence, find_block, shared_files, tables_block
from vmstream.ops.indexfile import Area, Known, describe, load, save
from vmstream.ops.inspect import Summary
from vmstream.ops.pages import PageFold, check_complete, check_pages, shared_memory
from vmstream.ops.pipeline import Progress, events
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Event, RAMBlock
from vmstream.transport.sink import OutputFile, SavedFile
from vmstream.transport.source import OpenSource, RandomAccess, Source
from vmstream.transport.spool import Spool
from vmstream.wire.constants import CAP_IGNORE_SHARED, DEFAULT_PAGE_SIZE

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How memory is indexed.

    Attributes:
        partial: Take what is there of a damaged stream.
        below_4g: Size of RAM below 4 GiB, bytes, if the user states it.
        spool: Directory for pages that cannot be read from the input.
        max_ram: RAM in bytes that is indexed; `MAX_INDEXED` pages if `None`.
        shared_blocks: Names of blocks whose memory is in a file (x-ignore-shared), and the files.
        index: File that the index is kept in; made if it is not there.
    """

    partial: bool = False
    below_4g: int | None = None
    spool: str | os.PathLike[str] | None = None
    max_ram: int | None = None
    shared_blocks: tuple[tuple[str, Path], ...] = ()
    index: Path | None = None

    @property
    def most_pages(self) -> int:
        """Pages that are indexed."""
        return most_pages(self.max_ram)


class GuestMemory:
    """Memory of a guest as a stream leaves it: the last version of each page.

    A context manager. It reads from the input of its stream, and lives as long as that is open.
    Pages that the stream says nothing of are zeros, as in what `extract-ram` writes.

    Attributes:
        blocks: The RAM blocks, in wire order.
        page_size: Target page size, bytes.
        findings: What was odd in the stream; with `partial`, its faults. Of an index that was kept
            without their `error`.
        exit_code: What they amount to, as a command's exit status.

    Memory:
        8 bytes a page that has data, and 3 bits a page. On disk, the pages that are encoded.
    """

    def __init__(
        self,
        index: PageIndex,
        held: ExitStack,
        known: Known,
        below_4g: int | None,
    ) -> None:
        self.blocks: tuple[RAMBlock, ...] = index.blocks
        self.page_size = index.page_size
        self.findings = known.findings
        self.exit_code = known.exit_code
        self._index = index
        self._open = True
        self._known = known
        self._elsewhere = known.elsewhere
        self._map: PhysicalMap | OutputError
        try:
            self._map = physical_map(replace(known.evidence, tables=self._tables()), below_4g)
        except OutputError as error:
            self._map = error
        self._held = held.pop_all()

    # Read at once: what the input does not give is no reason to have no memory.
    def _tables(self) -> bytes | None:
        at = tables_block(self.blocks)
        if at is not None and at not in self._elsewhere:
            with suppress(StreamError, OSError):
                return self.read_block(self.blocks[at].idstr, 0, self.blocks[at].used_length)
        return None

    @property
    def elsewhere(self) -> frozenset[int]:
        """Blocks whose memory is not in the stream, but in a file (x-ignore-shared)."""
        return frozenset(self._elsewhere)

    @property
    def from_files(self) -> frozenset[int]:
        """Blocks whose memory was taken from a file that was given."""
        return frozenset(self._index.from_files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what was kept on disk. Afterwards nothing can be read."""
        self._open = False
        self._held.close()

    @property
    def has_map(self) -> bool:
        """Whether the stream tells where its blocks stand: `map` does not raise."""
        return isinstance(self._map, PhysicalMap)

    @property
    def map(self) -> PhysicalMap:
        """Where blocks stand in guest-physical memory; inferred, with its reasons.

        Raises:
            OutputError: The stream does not tell.
        """
        if isinstance(self._map, OutputError):
            raise self._map
        return self._map

    def read(self, gpa: int, length: int, *, fill: int | None = None) -> bytes:
        """Return guest-physical memory.

        Args:
            gpa: Guest-physical address, bytes.
            length: Bytes.
            fill: Byte, 0 to 255, that stands for what the guest has no RAM at.

        Raises:
            AddressError: There is no RAM at an address of these, and no `fill`.
            OutputError: The stream does not tell where its blocks stand.
            StreamError: The input is not what it was, or damaged there.
            UnsupportedError: Of memory that the stream leaves to a file (x-ignore-shared).
            ValueError: A negative number, or the memory is closed.
        """
        if fill is None:
            # Before memory is taken for what is not there.
            self._check(_length(gpa), length)
        buffer = bytearray(_length(length))
        self.read_into(gpa, memoryview(buffer), fill=fill)
        return bytes(buffer)

    def read_into(self, gpa: int, buffer: memoryview, *, fill: int | None = None) -> None:
        """Fill a buffer of bytes as `read` does."""
        at = _length(gpa)
        while buffer:
            region, count = self._region(at, len(buffer))
            if region is not None:
                self._read(region.block, region.block_offset + at - region.gpa, buffer[:count])
            elif fill is None:
                raise AddressError(at, self._no_ram(at))
            else:
                buffer[:count] = bytes([fill]) * count
            buffer = buffer[count:]
            at += count

    def read_block(self, idstr: str | bytes, offset: int, length: int) -> bytes:
        """Return memory of one RAM block.

        Args:
            idstr: Name of the block.
            offset: In the block, bytes.
            length: Bytes.

        Raises:
            AddressError: The block does not reach that far.
            OutputError: There is no such block.
            StreamError: As of `read`, and ValueError.
        """
        index = self.block_index(idstr)
        self.check_block(index, offset, length)
        buffer = bytearray(length)
        self._read(index, offset, memoryview(buffer))
        return bytes(buffer)

    def open(self, *, fill: int | None = 0) -> MemoryFile:
        """Return guest-physical memory as a binary file, from address 0 to the end of RAM.

        Args:
            fill: Byte that stands for what the guest has no RAM at, as in an extracted image; with
                `None` reading there raises AddressError.

        Raises:
            OutputError: The stream does not tell where its blocks stand.
        """
        return MemoryFile(self, self.map.size, fill)

    def locate(self, gpa: int) -> tuple[int, int] | None:
        """Return (block, offset in it) of a guest-physical address; `None` if there is no RAM."""
        region, _ = self._region(gpa, 1)
        return None if region is None else (region.block, region.block_offset + gpa - region.gpa)

    def address_of(self, block: int, offset: int) -> int | None:
        """Return the guest-physical address of a place in a block; `None` if it is not known."""
        if isinstance(self._map, PhysicalMap):
            for r in self._map.regions:
                if r.block == block and r.block_offset <= offset < r.block_offset + r.length:
                    return r.gpa + offset - r.block_offset
        return None

    def block_index(self, idstr: str | bytes) -> int:
        """Return the place of a block in `blocks`. Raises OutputError, with the names there are."""
        return find_block(self.blocks, readable(idstr) if isinstance(idstr, bytes) else idstr)

    def check_block(self, index: int, offset: int, length: int) -> None:
        """Raise AddressError unless a range lies in a block."""
        used = self.blocks[index].used_length
        if _length(offset) + _length(length) > used:
            at = max(offset, used)
            name = readable(self.blocks[index].idstr)
            raise AddressError(at, f"offset {at:#x} is not in block {name!r} of {used:#x} bytes")

    def stretches(self, block: int | None = None) -> list[Stretch]:
        """Return what is read in one go: RAM without holes by address, or one block."""
        if block is not None:
            return [Stretch(self, (Region(0, self.blocks[block].used_length, block, 0),))]
        regions = self.map.regions
        cuts = [i for i, (a, b) in enumerate(pairwise(regions), 1) if a.gpa + a.length != b.gpa]
        edges = pairwise([0, *cuts, len(regions)])
        return [Stretch(self, regions[a:b]) for a, b in edges if a < b]

    # The region that an address is in, and how many of `most` bytes are in it; without one, how
    # many are in none.
    def _region(self, gpa: int, most: int) -> tuple[Region | None, int]:
        regions = self.map.regions
        after = bisect_right(regions, gpa, key=_start)
        if after and gpa < (end := regions[after - 1].gpa + regions[after - 1].length):
            return regions[after - 1], min(most, end - gpa)
        return None, min(most, regions[after].gpa - gpa) if after < len(regions) else most

    def _check(self, gpa: int, length: int) -> None:
        stop = gpa + length
        while gpa < stop:
            region, count = self._region(gpa, stop - gpa)
            if region is None:
                raise AddressError(gpa, self._no_ram(gpa))
            gpa += count

    def _no_ram(self, gpa: int) -> str:
        told = ", ".join(f"{r.gpa:#x}..{r.gpa + r.length:#x}" for r in self.map.regions[:8])
        return f"no RAM at address {gpa:#x}; the guest has it at {told}"

    def _read(self, block: int, offset: int, buffer: memoryview) -> None:
        if not self._open:
            raise ValueError("the memory was closed")
        if block in self._elsewhere:
            name = readable(self.blocks[block].idstr)
            raise shared_memory(name)
        self._index.read_into(block, offset, buffer)


class Stretch:
    """Memory without a hole: RAM at adjacent addresses, or one block.

    Attributes:
        regions: What it is made of, in order.
        length: Bytes.
    """

    def __init__(self, memory: GuestMemory, regions: tuple[Region, ...]) -> None:
        self.regions = regions
        self.length = sum(r.length for r in regions)
        self._memory = memory

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer from a place in the stretch on; both lie within it."""
        for region, offset, count in self._parts(at, len(buffer)):
            self._memory._read(region.block, region.block_offset + offset, buffer[:count])
            buffer = buffer[count:]

    def has_data(self, at: int, length: int) -> bool:
        """Whether any page that a range touches may have other bytes than zeros."""
        return any(
            region.block in self._memory._elsewhere
            or self._memory._index.has_data(region.block, region.block_offset + offset, count)
            for region, offset, count in self._parts(at, length)
        )

    def span(self, at: int, length: int) -> Span | None:
        """Return where the pages of a range stand in the input, as `PageIndex.span` does.

        Of a stretch of one region, which is no memory of a file.
        """
        (region,) = self.regions
        return self._memory._index.span(region.block, region.block_offset + at, length)

    def read_span(self, span: Span, buffer: memoryview) -> None:
        """Fill a buffer with a span, as `PageIndex.read_span` does."""
        self._memory._index.read_span(span, buffer)

    def place(self, at: int) -> tuple[int, int]:
        """Return (block, offset in it) of a place in the stretch."""
        region, offset, _ = next(self._parts(at, 1))
        return region.block, region.block_offset + offset

    def address(self, at: int) -> int | None:
        """Return the guest-physical address of a place; `None` if it is not known."""
        return self._memory.address_of(*self.place(at))

    def _parts(self, at: int, length: int) -> Iterator[tuple[Region, int, int]]:
        begin = 0
        for region in self.regions:
            offset = max(at - begin, 0)
            count = min(at + length - begin, region.length) - offset
            if count > 0:
                yield region, offset, count
            begin += region.length


class MemoryFile(io.RawIOBase):
    """Guest-physical memory as a seekable binary file; offset in the file = address."""

    def __init__(self, memory: GuestMemory, size: int, fill: int | None) -> None:
        super().__init__()
        self._memory = memory
        self._size = size
        self._fill = fill
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an address, as of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"no place to seek to: {offset} by {whence}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer; return the bytes there were, fewer only at the end of RAM."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._size - self._at)]
        self._memory.read_into(self._at, view, fill=self._fill)
        self._at += len(view)
        return len(view)

    def readall(self) -> bytes:
        """Read to the end in one go; the base class would, 8 KiB at a time."""
        buffer = bytearray(max(0, self._size - self._at))
        self.readinto(buffer)
        return bytes(buffer)


class Indexer(PageFold[PageIndex]):
    """Fold: makes the index at the first page, and fills it."""

    def __init__(
        self,
        source: Source,
        channels: Channels | None,
        options: MemoryOptions,
        summary: Summary,
        spool: PageStore | None,
        held: ExitStack,
    ) -> None:
        super().__init__(summary, channels, partial=options.partial)
        self._options = options
        # The room that is given is enough for all pages.
        room = spool is not None or options.spool is not None
        self._spool = spool or held.enter_context(Spool(options.spool))
        self._held = held
        others = channels.list if channels is not None else []
        self._inputs = [_in_place(s) for s in (source, *(c.opened.source for c in others))]
        if None in self._inputs and not room:
            raise UnsupportedError(
                0,
                "memory is read where it stands in the input, which is a pipe or compressed",
                advice="save it to a file, unpacked, or give --spool DIR to keep pages in",
            )

    def open(self, page_size: int) -> PageIndex:
        """Make the index."""
        blocks = self._summary.blocks
        index = PageIndex(
            blocks,
            page_size,
            self._inputs,
            self._spool,
            self._page_fault if self._partial else None,
            most_pages=self._options.most_pages,
        )
        for block, path in shared_files(blocks, self._options.shared_blocks):
            file = self._held.enter_context(OpenSource(path))
            self._inputs.append(_in_place(file))
            index.take_file(block, len(self._inputs) - 1)
        return index

    def opened(self, page_size: int) -> PageIndex:
        """Return the index, which is to note that pages are in the input of this event."""
        index = super().opened(page_size)
        index.source = self.source
        return index


# What can be read here and there, beside the windows that are being decoded.
def _in_place(source: Source) -> Input | None:
    return source if source.seekable and isinstance(source, RandomAccess) else None


def index_memory(
    stream: Iterable[Event],
    source: Source,
    options: MemoryOptions,
    channels: Channels | None = None,
    spool: PageStore | None = None,
) -> GuestMemory:
    """Index the memory that a stream leaves its guest with.

    Args:
        stream: All events of the stream.
        source: Where they come from, still open.
        options: How.
        channels: Recorded beside the main one.
        spool: For pages that are encoded or cannot be read in place, in place of one of its own.

    Raises:
        StreamError: The stream is damaged and `partial` was not asked for, pages are missing from
            it that are elsewhere, or it is not seekable and there is no spool.
        LimitError: There is more RAM than is indexed.
        OutputError: A file of shared memory is of another length than its block.
        OSError: The spool cannot be written, or a file not be read.
    """
    summary, evidence = Summary(), MapEvidence()
    with ExitStack() as stack:
        indexer = Indexer(source, channels, options, summary, spool, stack)
        try:
            for event in stream:
                summary.on(event)
                evidence.on(event)
                indexer.on(event)
                _check_fault(summary, options)
        except (TruncatedError, FormatError, IntegrityError) as error:
            if not options.partial:
                error.advice = error.advice or "--partial reads what is there"
            raise
        summary.finish()
        if not summary.blocks:
            raise summary.findings.error or IntegrityError(summary.end, "the stream has no RAM")
        check_pages(summary, partial=options.partial)
        check_complete(summary, "reads", partial=options.partial)
        coverage = summary.coverage
        index = indexer.opened(coverage.page_size if coverage else DEFAULT_PAGE_SIZE)
        known = _known(summary, evidence, index)
        return GuestMemory(index, stack, known, options.below_4g)


def _known(summary: Summary, evidence: MapEvidence, index: PageIndex) -> Known:
    shared = CAP_IGNORE_SHARED in summary.capabilities
    covered = enumerate(summary.coverage_blocks())
    missing = {i for i, b in covered if shared and b.pages and b.pages_missing == b.pages}
    return Known(
        evidence.evidence(summary.configuration.name if summary.configuration else None),
        frozenset(missing - index.from_files),
        tuple(summary.findings.kept),
        summary.findings.exit_code,
    )


def kept_memory(
    opened: OpenStream,
    options: MemoryOptions,
    channels: Channels | None,
    page_size: int | None,
    make: Callable[[PageStore | None], GuestMemory],
) -> GuestMemory:
    """Give memory by the index that `options` name; make it if it is not there.

    Args:
        opened: The stream.
        options: As of `index_memory`.
        channels: Recorded beside the main one.
        page_size: Target page size, bytes, if the user states it.
        make: Reads the stream; given the room for pages, as `index_memory`.

    Raises:
        FormatError: The file is no index.
        IntegrityError: The index is damaged, or of other inputs.
        UnsupportedError: An input is a pipe.
        OSError: The index cannot be read or written.
        StreamError: As of `index_memory`, where it is made.
    """
    path = options.index
    if path is None:
        return make(None)
    others = channels.list if channels is not None else []
    every = [opened, *(c.opened for c in others)]
    given = describe(every, options.shared_blocks)
    if not os.path.lexists(path):
        with OutputFile(path) as out:
            with make(Area(out)) as memory:
                save(out, memory._index, memory._known, given, partial=options.partial)
            out.commit()
    with ExitStack() as held:
        file = held.enter_context(SavedFile(path))
        shared = [held.enter_context(OpenSource(p)) for _, p in options.shared_blocks]
        sources = [*(o.source for o in every), *shared]
        index, known = load(
            file,
            [(_in_place(s), s.size or 0) for s in sources],
            given,
            page_size=page_size,
            partial=options.partial,
            most_pages=options.most_pages,
        )
        return GuestMemory(index, held, known, options.below_4g)


def read_memory(
    opened: OpenStream,
    options: MemoryOptions,
    channels: Channels | None = None,
    *,
    page_size: int | None = None,
    progress: Progress | None = None,
) -> GuestMemory:
    """Read a stream that was opened, and index its memory as `index_memory` does."""

    def make(spool: PageStore | None) -> GuestMemory:
        decoder = Decoder(page_size, strict=not options.partial, max_ram=options.max_ram)
        found = events(opened.source, decoder, progress, opened.container, channels)
        return index_memory(found, opened.source, options, channels, spool)

    return kept_memory(opened, options, channels, page_size, make)


# A fault ends it, unless what is there was asked for and there is something.
def _check_fault(summary: Summary, options: MemoryOptions) -> None:
    error = summary.findings.error
    hopeless = not summary.read or isinstance(error, (UnsupportedError, LimitError))
    if error is not None and (hopeless or not options.partial):
        raise error


def _start(region: Region) -> int:
    return region.gpa


def _length(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number
