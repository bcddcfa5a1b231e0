"""`history --page` and `--superseded`: what pages were before a later record replaced them.

One page is followed in memory, as a block of that one page would be extracted; the versions of all
pages are read by an index that is watched, as `search --history` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmstream.container.open import OpenStream
from vmstream.errors import AddressError, LimitError, OutputError
from vmstream.guest.coverage import kind_of
from vmstream.guest.index import PageIndex
from vmstream.guest.memory import Placement, RAMImage
from vmstream.guest.multifd import compression_of
from vmstream.guest.physical import PhysicalMap
from vmstream.ops.channels import Channels
from vmstream.ops.convergence import History
from vmstream.ops.extract import BytesSink, find_block
from vmstream.ops.inspect import Summary
from vmstream.ops.memory import Indexer, MemoryOptions
from vmstream.ops.pages import PageFold
from vmstream.ops.passes import PassNumbers
from vmstream.ops.pipeline import Progress, run
from vmstream.report.jsonout import dumps
from vmstream.report.models.history import (
    VERSION_SCHEMA,
    ByteRange,
    HistoryReport,
    SupersededFile,
    SupersededReport,
    VersionReport,
)
from vmstream.report.models.names import in_full, readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    ChannelEvent,
    Event,
    MappedPages,
    MultiFDPacket,
    PageBatch,
    PageColumns,
    RAMBlock,
    RAMBlockList,
)
from vmstream.transport.directory import MANIFEST, OutputDirectory
from vmstream.transport.sink import OutputFile, safe_names
from vmstream.transport.source import Source

# Ranges of changed bytes that a report has.
MOST_RANGES = 64

# Versions that are written if nobody says otherwise, bytes.
MOST_SUPERSEDED = 16 << 30

# Replaced versions that are read at a time, bytes.
_STEP = 1 << 20

# A record: number of its input from 1 on, above its offset.
_OFFSET_BITS = 48

INDEX = "index.csv"
_COLUMNS = "file,file_offset,block_offset,gpa,version,pass,record_offset,channel\n"

_Numbers = NDArray[np.int64]


def page_of(text: str) -> tuple[str | None, int]:
    """Read what --page names: an address, or IDSTR+OFFSET.

    Returns:
        Name of the block and offset in it, bytes; `None` and a guest-physical address.

    Raises:
        ValueError: It is neither.
    """
    name, plus, offset = text.rpartition("+")
    return (name if plus else None), _number(offset)


def _number(text: str) -> int:
    if not re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", text):
        raise ValueError(f"{text!r} is no number: 4096, 0x1000")
    return int(text, 0) if text[:2] in ("0x", "0X") else int(text)


def page_versions(
    opened: OpenStream,
    block: str | int,
    offset: int,
    found: Callable[[VersionReport], None],
    *,
    gpa: int | None = None,
    channels: Channels | None = None,
    page_size: int | None = None,
    max_ram: int | None = None,
    with_data: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Give each version of a page, in the order they were sent.

    Args:
        opened: The stream.
        block: Name of the block, or its index.
        offset: In the block, bytes; the page that it is in counts.
        found: Takes each version, as soon as it is known.
        gpa: The address of that, if it is known.
        channels: Recorded beside the main one.
        page_size: Target page size in bytes, to overrule what the stream shows.
        max_ram: RAM in bytes that a block list may state.
        with_data: Versions have their bytes.
        progress: Called with (offset, size or None).

    Returns:
        What else is in the stream, with its findings.

    Raises:
        OutputError: There is no such block.
        AddressError: The block does not reach that far.
        StreamError: The input is no migration stream at all.

    Memory:
        Two pages.
    """
    summary = Summary()
    names = [c.name for c in channels.list] if channels is not None else []
    fold = _Page(summary, channels, names, block, offset, gpa, found, with_data=with_data)
    decoder = Decoder(page_size, max_ram=max_ram)
    run(opened.source, decoder, [summary, fold], progress, opened.container, channels)
    if summary.findings.error is not None and not summary.read:
        raise summary.findings.error
    fold.flush()
    summary.finish()
    return summary


class _Page(PageFold[RAMImage]):
    """Fold: follows one page."""

    def __init__(
        self,
        summary: Summary,
        channels: Channels | None,
        names: list[str],
        block: str | int,
        offset: int,
        gpa: int | None,
        found: Callable[[VersionReport], None],
        *,
        with_data: bool,
    ) -> None:
        super().__init__(summary, channels, partial=True)
        self._names = names
        self._wanted = block
        self._offset = offset
        self._gpa = gpa
        self._found = found
        self._with_data = with_data
        self._passes = PassNumbers(summary)
        self._block = -1
        self._page = 0
        self._size = 0
        self._sink = BytesSink(0)
        self._event: Event | None = None
        self._pass: int | _Numbers = 0
        self._pending: VersionReport | None = None
        self._previous: bytes | None = None
        self._count = 0

    def on(self, event: Event) -> None:
        inner = event.event if isinstance(event, ChannelEvent) else event
        self._event = inner
        if isinstance(inner, RAMBlockList):
            self._find(inner.blocks)
        if isinstance(inner, (PageBatch, MultiFDPacket, MappedPages)):
            self._pass = self._passes.of(inner)
            self._size = inner.page_size
            if not self._touches(inner):
                return
            self.opened(self._size)
            self.source = event.channel + 1 if isinstance(event, ChannelEvent) else 0
            if isinstance(inner, MappedPages):
                self._mapped(inner)
        super().on(event)

    def _find(self, blocks: tuple[RAMBlock, ...]) -> None:
        wanted = self._wanted
        self._block = find_block(blocks, wanted) if isinstance(wanted, str) else wanted
        used = blocks[self._block].used_length
        if not 0 <= self._offset < used:
            name = readable(blocks[self._block].idstr)
            what = f"offset {self._offset:#x} is not in block {name!r} of {used:#x} bytes"
            raise AddressError(self._offset, what)

    # Whether an event may have the page; most have not, and are passed over.
    def _touches(self, event: PageBatch | MultiFDPacket | MappedPages) -> bool:
        at = self._offset // self._size * self._size
        if isinstance(event, MultiFDPacket):
            return event.block == self._block
        if isinstance(event, MappedPages):
            end = event.block_offset + len(event.present) * self._size
            return event.block == self._block and event.block_offset <= at < end
        if isinstance(event.pages, PageColumns):
            return bool(((event.block_offset == at) & (event.block == self._block)).any())
        return any(
            r.block == self._block and r.block_offset <= at < r.block_offset + r.pages * self._size
            for r in event.pages
        )

    def open(self, page_size: int) -> RAMImage:
        """Make room for the page."""
        self._page = self._offset // page_size
        self._sink = BytesSink(page_size)
        place = Placement(self._block, self._page * page_size, page_size, self._sink, 0)
        image = RAMImage(self._summary.blocks, page_size, [place], self._page_fault)
        image.before = self._before
        return image

    # The page of a mapped-ram file has one version.
    def _mapped(self, event: MappedPages) -> None:
        row = self._page - event.block_offset // self._size
        if event.present[row]:
            offset = event.end - len(event.data) + row * self._size
            self._begin("normal", offset, int(self._pass), self._size)
        else:
            self._begin("zero", event.offset, int(self._pass), 0)

    # Pages are about to change: what is there is a version that is whole.
    def _before(self, block: int, page: _Numbers, rows: _Numbers | None) -> None:
        at = int(np.searchsorted(page, self._page))
        if block != self._block or at == len(page) or int(page[at]) != self._page:
            return
        event = self._event
        if rows is None or not isinstance(event, (PageBatch, MultiFDPacket)):
            if self._count:
                offset = event.offset if event is not None else 0
                self._begin("withdrawn", offset, int(np.max(self._pass)), None)
            return
        row = int(rows[at])
        if isinstance(event, MultiFDPacket):
            word = "compressed" if compression_of(event) != "none" else "normal"
            kind = word if row < len(event.normal) else "zero"
            self._begin(kind, event.offset, int(self._pass), None)
            return
        number = self._pass if isinstance(self._pass, int) else int(self._pass[row])
        kind, size = kind_of(int(event.flags[row])), int(event.size[row])
        self._begin(kind, int(event.record_offset[row]), number, size)

    def _begin(self, kind: str, offset: int, number: int, wire_bytes: int | None) -> None:
        self.flush()
        self._count += 1
        block = self._summary.blocks[self._block]
        coverage = self._summary.coverage
        self._pending = VersionReport(
            schema=VERSION_SCHEMA,
            number=self._count,
            block=readable(block.idstr),
            block_offset=self._page * self._size,
            gpa=None if self._gpa is None else self._gpa - self._offset % self._size,
            kind=kind,
            record_offset=offset,
            channel=self._names[self.source - 1] if self.source else None,
            pass_number=number,
            passes_from="wire" if coverage is not None and coverage.rounds else "inferred",
            wire_bytes=wire_bytes,
            changed=None,
            ranges=[],
            range_count=0,
            block_b64=in_full(block.idstr),
        )

    def flush(self) -> None:
        """Give the version that the page has, if it was not given."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        # What stands behind the end of a block in its last page is no memory.
        used = self._summary.blocks[self._block].used_length - self._page * self._size
        data = bytes(self._sink.content[:used])
        if self._previous is not None:
            changed, count, ranges = differences(self._previous, data)
            pending = replace(pending, changed=changed, range_count=count, ranges=ranges)
        if self._with_data:
            pending = replace(pending, data=data.hex())
        self._previous = data
        self._found(pending)


def differences(one: bytes, other: bytes) -> tuple[int, int, list[ByteRange]]:
    """Return how many bytes of two pages differ, in how many ranges, and the first of those."""
    same = np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)
    edges = np.flatnonzero(np.diff(np.concatenate(([True], same, [True]))))
    begins, ends = edges[::2], edges[1::2]
    shown = zip(begins[:MOST_RANGES].tolist(), ends[:MOST_RANGES].tolist(), strict=True)
    return (
        int(np.count_nonzero(~same)),
        len(begins),
        [ByteRange(begin, end - begin) for begin, end in shown],
    )


# -- versions of all pages ---------------------------------------------------------------------


def write_superseded(
    opened: OpenStream,
    history: History,
    directory: Path,
    *,
    options: MemoryOptions,
    channels: Channels | None = None,
    page_size: int | None = None,
    most: int = MOST_SUPERSEDED,
    force: bool = False,
    progress: Progress | None = None,
) -> HistoryReport:
    """Write the versions of pages that were replaced or withdrawn, for carving.

    A file for each block that has any, one version behind the other in the order they were
    replaced, those of neighbouring pages side by side; a list of them (index.csv), and
    manifest.json. Versions of zeros are left out.

    Args:
        opened: The stream, opened anew.
        history: What a walk over it found.
        directory: Where to; it must not exist, or be empty.
        options: How pages are kept that cannot be read in place.
        channels: Recorded beside the main one, opened anew.
        page_size: Target page size in bytes, to overrule what the stream shows.
        most: Bytes that are written.
        force: Replace files in the directory.
        progress: Called with (offset, size or None).

    Returns:
        The document, with what was written.

    Raises:
        LimitError: There is more. Nothing is written.
        OutputError: The directory is not free.
        OSError: With the path.
        StreamError: As of `read_memory`.

    Memory:
        As to index memory, 15 bytes a page more, and 1 MiB of versions.
    """
    size = history.report.page_size or 0
    if history.superseded * size > most:
        raise LimitError(
            0,
            f"{history.superseded} versions of pages were replaced, {history.superseded * size} "
            f"bytes, of which {most} may be written",
            advice="--max-superseded SIZE raises that",
        )
    summary = Summary()
    with ExitStack() as held, OutputDirectory(directory, force=force) as out:
        writer = _Writer(held, out, history, most)
        fold = _Replay(
            opened.source, channels, replace(options, partial=True), summary, held, writer
        )
        decoder = Decoder(page_size, max_ram=options.max_ram)
        run(opened.source, decoder, [summary, fold], progress, opened.container, channels)
        report = replace(history.report, superseded=writer.finish(directory))
        out.write("", MANIFEST, (dumps(report) + "\n").encode())
        out.commit()
    return report


class _Replay(Indexer):
    """Fold: an index, watched."""

    def __init__(
        self,
        source: Source,
        channels: Channels | None,
        options: MemoryOptions,
        summary: Summary,
        held: ExitStack,
        writer: _Writer,
    ) -> None:
        super().__init__(source, channels, options, summary, None, held)
        self._writer = writer
        self._passes = PassNumbers(summary)

    def open(self, page_size: int) -> PageIndex:
        """Make the index."""
        index = super().open(page_size)
        self._writer.watch(index)
        return index

    def on(self, event: Event) -> None:
        """Take one event."""
        inner = event.event if isinstance(event, ChannelEvent) else event
        if isinstance(inner, (PageBatch, MultiFDPacket, MappedPages)):
            self._writer.passes = self._passes.of(inner)
        self._writer.offsets = inner.record_offset if isinstance(inner, PageBatch) else inner.offset
        super().on(event)


class _Writer:
    """Writes versions of pages as they are replaced.

    Attributes:
        offsets: Of the records that are being added, or of the packet.
        passes: That they are in.
    """

    def __init__(self, held: ExitStack, out: OutputDirectory, history: History, most: int) -> None:
        self.offsets: int | NDArray[np.uint64] = 0
        self.passes: int | _Numbers = 0
        self._held = held
        self._out = out
        self._map = history.map
        self._left = most
        self._list = held.enter_context(out.file("", INDEX))
        self._list.write(0, _COLUMNS.encode())
        self._listed = len(_COLUMNS)
        self._files: dict[int, OutputFile] = {}
        self._written: dict[int, int] = {}
        self._zeros = 0
        self._blocks: tuple[RAMBlock, ...] = ()

    def watch(self, index: PageIndex) -> None:
        """Write what this index is about to forget."""
        self._index = index
        self._blocks = index.blocks
        self._names = safe_names((b.idstr for b in index.blocks), ".raw")
        counts = [-(-b.used_length // index.page_size) for b in index.blocks]
        # Of the version that each page has: its record, 0 without one, its number and its pass.
        self._records = [np.zeros(n, np.uint64) for n in counts]
        self._numbers = [np.zeros(n, np.uint32) for n in counts]
        self._in_pass = [np.zeros(n, np.uint16) for n in counts]
        self._step = max(1, _STEP // index.page_size)
        self._buffer = np.empty((self._step, index.page_size), np.uint8)
        index.watch(self._before)

    # Pages are about to change, by the records in these rows of the event.
    def _before(self, block: int, page: _Numbers, rows: _Numbers | None) -> None:
        records = self._records[block]
        known = page[records[page] != 0]
        data = self._index.may_have_data(block, known)
        self._zeros += int(np.count_nonzero(~data))
        known = known[data]
        for at in range(0, len(known), self._step):
            self._write(block, known[at : at + self._step])
        if rows is None:
            records[page] = 0
            return
        offset = self.offsets if isinstance(self.offsets, int) else self.offsets[rows]
        source = np.uint64((self._index.source + 1) << _OFFSET_BITS)
        records[page] = np.asarray(offset, np.uint64) | source
        self._numbers[block][page] += 1
        passes = self.passes if isinstance(self.passes, int) else self.passes[rows]
        self._in_pass[block][page] = passes

    def _write(self, block: int, page: _Numbers) -> None:
        size = self._index.page_size
        length = len(page) * size
        if length > self._left:
            raise LimitError(0, "more versions of pages than before: has the input changed?")
        self._left -= length
        if block not in self._files:
            out = self._out.file("", self._names[block])
            self._files[block], self._written[block] = self._held.enter_context(out), 0
        pages, at = self._buffer[: len(page)], self._written[block]
        self._index.read_pages(block, page, pages)
        self._files[block].write(at, pages.reshape(-1).data)
        self._written[block] = at + length
        self._note(block, page, at)

    # Lines of the list, 1.2 us each.
    def _note(self, block: int, page: _Numbers, at: int) -> None:
        size, name = self._index.page_size, self._names[block]
        records = self._records[block][page]
        columns = (
            range(at, at + len(page) * size, size),
            (page * size).tolist(),
            _addresses(self._map, block, page * size),
            self._numbers[block][page].tolist(),
            self._in_pass[block][page].tolist(),
            (records & np.uint64((1 << _OFFSET_BITS) - 1)).tolist(),
            (records >> np.uint64(_OFFSET_BITS)).tolist(),
        )
        lines = [
            f"{name},{a},{b},{'' if c < 0 else c},{d},{e},{f},{g - 1}\n"
            for a, b, c, d, e, f, g in zip(*columns, strict=True)
        ]
        text = "".join(lines).encode()
        self._list.write(self._listed, text)
        self._listed += len(text)

    def finish(self, directory: Path) -> SupersededReport:
        """Finish the files, and say what is in them."""
        size = self._index.page_size if self._files else 1
        self._list.commit()
        for out in self._files.values():
            out.commit()
        return SupersededReport(
            str(directory),
            INDEX,
            sum(self._written.values()) // size,
            self._zeros,
            [
                SupersededFile(
                    self._names[block],
                    readable(idstr := self._blocks[block].idstr),
                    written // size,
                    written,
                    in_full(idstr),
                )
                for block, written in sorted(self._written.items())
            ],
        )


# Guest-physical addresses of places in a block, -1 where there is none.
def _addresses(found: PhysicalMap | OutputError, block: int, offset: _Numbers) -> list[int]:
    gpa = np.full(len(offset), -1, np.int64)
    for r in found.regions if isinstance(found, PhysicalMap) else ():
        if r.block == block:
            inside = (r.block_offset <= offset) & (offset < r.block_offset + r.length)
            gpa[inside] = offset[inside] + (r.gpa - r.block_offset)
    return gpa.tolist()
