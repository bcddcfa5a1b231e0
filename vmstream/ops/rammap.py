"""`heatmap`, and the map in a report: what was sent of each page, in cells that fit a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmstream.container.open import OpenStream
from vmstream.errors import LimitError, OutputError, UnsupportedError
from vmstream.guest.coverage import KINDS, columns_of
from vmstream.guest.index import MAX_INDEXED, most_pages
from vmstream.guest.multifd import compression_of
from vmstream.guest.physical import PhysicalMap
from vmstream.ops.channels import Channels
from vmstream.ops.convergence import ACPITables, Sent, map_of
from vmstream.ops.extract import MapEvidence
from vmstream.ops.inspect import Summary
from vmstream.ops.pipeline import Consumer, Findings, Progress, run
from vmstream.report.models.names import readable
from vmstream.report.models.rammap import PAGE_KINDS, AddressRange, BlockMap, RAMMap
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    ChannelEvent,
    Command,
    Event,
    MappedPages,
    MultiFDPacket,
    PageBatch,
    PageColumns,
    RAMBlock,
)
from vmstream.wire.constants import DEFAULT_PAGE_SIZE, MigCmd

# Of a picture, in pixels: its rows are as wide, and those of all blocks as high together.
WIDTH = 1024
MOST_HEIGHT = 640
# A row of cells is no wider than its block; widths and heights of a cell that are tried.
_CELLS = (16, 8, 4, 2)
# Blocks that are drawn, and stretches of one that are told.
MAX_BLOCKS = 40
_MOST_RANGES = 8
# Pages that are looked at at a time; a multiple of the pages in any cell.
_AT_ONCE = 1 << 22

_NEVER, _ZERO, _NORMAL, _COMPRESSED = (
    PAGE_KINDS.index(kind) for kind in ("never sent", "zero", "normal", "compressed")
)
_KIND_OF_COLUMN = np.array([PAGE_KINDS.index(kind) for kind in KINDS], np.uint8)


class LastKinds:
    """Fold: of which kind the last record of each page was, how often it was sent, and when.

    Args:
        summary: Fold that takes each event before this one.
        most_pages: Pages that are looked at.

    Attributes:
        sent: Times and passes.
        kinds: Of each block the kind of each page, as PAGE_KINDS, uint8 (pages,).
        mapped: Pages stood in mapped-ram areas.

    Raises:
        LimitError: There are more pages, when the first one comes.

    Memory:
        7 bytes a page that is sent.
    """

    def __init__(self, summary: Summary, most_pages: int = MAX_INDEXED) -> None:
        self.sent = Sent(summary, most_pages)
        self.kinds: list[NDArray[np.uint8]] = []
        self.mapped = False
        self.page_size = DEFAULT_PAGE_SIZE
        self._summary = summary

    def on(self, event: Event) -> None:
        """Take one event."""
        self.sent.on(event)
        if not self.kinds and self.sent.times:
            self.kinds = [np.zeros(len(times), np.uint8) for times in self.sent.times]
        inner = event.event if isinstance(event, ChannelEvent) else event
        if isinstance(inner, PageBatch):
            self.page_size = inner.page_size
            self._add(inner)
        elif isinstance(inner, MultiFDPacket):
            if inner.block >= 0:
                self.page_size = inner.page_size
                packed = compression_of(inner) != "none"
                kinds = self.kinds[inner.block]
                kinds[_pages(inner.normal, inner)] = _COMPRESSED if packed else _NORMAL
                kinds[_pages(inner.zero, inner)] = _ZERO
        elif isinstance(inner, MappedPages):
            self.mapped, self.page_size = True, inner.page_size
            first = inner.block_offset // inner.page_size
            stretch = self.kinds[inner.block][first : first + len(inner.present)]
            stretch[:] = np.where(inner.present, np.uint8(_NORMAL), np.uint8(_ZERO))
        elif isinstance(inner, Command) and inner.cmd == MigCmd.POSTCOPY_RAM_DISCARD:
            for block, start, length in self._summary.discarded(inner) or ():
                if self.kinds:
                    size = self.page_size
                    self.kinds[block][start // size : (start + length) // size] = _NEVER

    def _add(self, batch: PageBatch) -> None:
        if not isinstance(batch.pages, PageColumns):
            kinds = _KIND_OF_COLUMN[columns_of(np.array([r.flags for r in batch.pages], np.uint16))]
            for r, kind in zip(batch.pages, kinds.tolist(), strict=True):
                first = r.block_offset // batch.page_size
                self.kinds[r.block][first : first + r.pages] = kind
            return
        kinds = _KIND_OF_COLUMN[columns_of(batch.flags)]
        page = _pages(batch.block_offset, batch)
        block = batch.block
        for index in np.unique(block).tolist():
            mine = block == index
            # Of a page that comes twice the later record counts: it is assigned last.
            self.kinds[index][page[mine]] = kinds[mine]


def _pages(offset: NDArray[np.uint64], event: PageBatch | MultiFDPacket) -> NDArray[np.int64]:
    return (offset // np.uint64(event.page_size)).view(np.int64)


@dataclass(frozen=True, slots=True)
class Grid:
    """How pages become cells, as in `RAMMap`."""

    pages_per_cell: int
    columns: int
    cell: int


def grid(pages: Sequence[int]) -> Grid:
    """Return the largest cells, of as few pages as can be, that all blocks fit a picture with.

    Args:
        pages: Of each block that is drawn.
    """
    pages_per_cell = 1
    while True:
        # Cells of several pages are as small as can be: the picture then shows most.
        for cell in _CELLS if pages_per_cell == 1 else _CELLS[-1:]:
            columns = WIDTH // cell
            rows = sum(-(-n // (pages_per_cell * columns)) for n in pages)
            if rows * cell <= MOST_HEIGHT:
                return Grid(pages_per_cell, columns, cell)
        pages_per_cell *= 2


def ram_map(summary: Summary, seen: LastKinds, found: PhysicalMap | OutputError) -> RAMMap:
    """Make the map of what a walk saw.

    Args:
        summary: Of the whole stream.
        seen: Likewise.
        found: Where blocks stand, if that is known.

    Memory:
        Cells, which are bounded.
    """
    blocks = summary.blocks
    covered = summary.coverage_blocks()
    by_size = sorted(range(len(blocks)), key=lambda i: -blocks[i].used_length)
    drawn, rest = by_size[:MAX_BLOCKS], by_size[MAX_BLOCKS:]
    made = grid([covered[i].pages for i in drawn])
    maps = [
        _block_map(blocks[i], covered[i].pages, i, seen, found, made.pages_per_cell) for i in drawn
    ]
    counts = [b.counts for b in maps]
    counts += [_counts(seen.kinds[i] if seen.kinds else None, covered[i].pages) for i in rest]
    times = seen.sent.times
    return RAMMap(
        page_size=summary.coverage.page_size if summary.coverage else DEFAULT_PAGE_SIZE,
        pages_per_cell=made.pages_per_cell,
        columns=made.columns,
        cell=made.cell,
        blocks=maps,
        left_out=(len(rest), sum(blocks[i].used_length for i in rest)),
        counts=[sum(n) for n in zip(*counts, strict=True)] or [0] * len(PAGE_KINDS),
        pass_count=len(summary.coverage.passes) if summary.coverage else 0,
        most_times=max((int(t.max(initial=0)) for t in times), default=0),
        resent=sum(b.resent.count() for b in covered),
        mapped=seen.mapped,
    )


def _block_map(
    block: RAMBlock,
    pages: int,
    index: int,
    seen: LastKinds,
    found: PhysicalMap | OutputError,
    step: int,
) -> BlockMap:
    cells = -(-pages // step)
    kinds = np.zeros(cells, np.uint8)
    times, last = np.zeros(cells, np.uint32), np.zeros(cells, np.uint16)
    if seen.kinds:
        for at in range(0, pages, _AT_ONCE):
            here = slice(at // step, -(-min(at + _AT_ONCE, pages) // step))
            part = slice(at, at + _AT_ONCE)
            firsts = np.arange(0, min(_AT_ONCE, pages - at), step)
            high = np.maximum.reduceat(seen.kinds[index][part], firsts)
            low = np.minimum.reduceat(seen.kinds[index][part], firsts)
            kinds[here] = np.where((high == _ZERO) & (low == _NEVER), np.uint8(_NEVER), high)
            times[here] = np.maximum.reduceat(seen.sent.times[index][part], firsts)
            last[here] = np.maximum.reduceat(seen.sent.last[index][part], firsts)
    regions = found.regions if isinstance(found, PhysicalMap) else ()
    ranges = [AddressRange(r.gpa, r.length, r.block_offset) for r in regions if r.block == index]
    return BlockMap(
        readable(block.idstr), block.used_length, pages, ranges[:_MOST_RANGES],
        kinds, times, last, _counts(seen.kinds[index] if seen.kinds else None, pages),
    )  # fmt: skip


def _counts(kinds: NDArray[np.uint8] | None, pages: int) -> list[int]:
    if kinds is None:
        return [pages, *[0] * (len(PAGE_KINDS) - 1)]
    counts = np.zeros(len(PAGE_KINDS), np.int64)
    for at in range(0, pages, _AT_ONCE):
        counts += np.bincount(kinds[at : at + _AT_ONCE], minlength=len(PAGE_KINDS))
    return [int(n) for n in counts]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a walk for the map found.

    Attributes:
        map: The map.
        machine: Machine type, readable; `None` if the stream does not say.
        findings: Of the stream.
        exit_code: The exit status.
    """

    map: RAMMap
    machine: str | None
    findings: Findings
    exit_code: int

    @property
    def remark(self) -> str | None:
        """Why times and passes show nothing; `None` if they do."""
        if self.map.mapped:
            return "a mapped-ram file has one version of each page: times and passes are all alike"
        if not self.map.resent and any(self.map.counts[1:]):
            return "no page was sent a second time: times and passes are all alike"
        return None


def read_map(
    opened: OpenStream,
    channels: Channels | None = None,
    *,
    page_size: int | None = None,
    below_4g: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> Mapped:
    """Read a stream, as far as it goes, for the map of its RAM.

    Args:
        opened: The stream.
        channels: Recorded beside the main one.
        page_size: Target page size in bytes, to overrule what the stream shows.
        below_4g: Size of RAM below 4 GiB, bytes, if the user states it.
        max_ram: RAM in bytes that is looked at; MAX_INDEXED pages if `None`.
        progress: Called with (offset, size or None).

    Raises:
        StreamError: The input is no migration stream at all, or not one that is read here.
        OutputError: It has no RAM.
        LimitError: There is more RAM than is looked at.
    """
    summary, evidence = Summary(), MapEvidence()
    seen = LastKinds(summary, most_pages(max_ram))
    tables = ACPITables(summary, channels)
    folds: list[Consumer] = [summary, evidence, seen, tables]
    run(
        opened.source,
        Decoder(page_size, max_ram=max_ram),
        folds,
        progress,
        opened.container,
        channels,
    )
    error = summary.findings.error
    if error is not None and (
        not summary.read or isinstance(error, (UnsupportedError, LimitError))
    ):
        raise error
    if not summary.blocks:
        raise error or OutputError(f"{opened.source.name}: no RAM to draw: it has no block list")
    summary.finish()
    found = map_of(summary, evidence, tables, below_4g)
    made = ram_map(summary, seen, found)
    return Mapped(made, summary.machine, summary.findings, summary.exit_code)
