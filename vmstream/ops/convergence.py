"""`history`: how often pages were sent, and what each pass over RAM did."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmstream.container.open import OpenStream
from vmstream.errors import AddressError, LimitError, OutputError, UnsupportedError
from vmstream.guest.coverage import MAX_PASSES
from vmstream.guest.index import MAX_INDEXED, most_pages
from vmstream.guest.memory import Placement, RAMImage
from vmstream.guest.physical import PhysicalMap, physical_map
from vmstream.ops.channels import Channels
from vmstream.ops.extract import BytesSink, MapEvidence, tables_block
from vmstream.ops.inspect import Summary, page_counts
from vmstream.ops.pages import PageFold
from vmstream.ops.passes import PassNumbers
from vmstream.ops.pipeline import Consumer, Progress, run
from vmstream.report.models.history import (
    HISTORY_SCHEMA,
    HistoryPassReport,
    HistoryReport,
    SentPageReport,
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
)

# Pages that are looked at at a time.
_AT_ONCE = 1 << 20

_Numbers = NDArray[np.int64]


class Sent:
    """Fold: how often each page was sent, and which passes sent it first and last.

    Args:
        summary: Fold that takes each event before this one.
        most_pages: Pages that are counted.

    Attributes:
        times: Of each block, records that name each page, uint32 (pages,).
        last: Likewise the pass of the last one, uint16; 0 of a page that was not sent.
        first: By pass, pages that it sent for the first time.

    Raises:
        LimitError: There are more pages, when the first one comes.

    Memory:
        6 bytes a page that is sent.
    """

    def __init__(self, summary: Summary, most_pages: int = MAX_INDEXED) -> None:
        self.times: list[NDArray[np.uint32]] = []
        self.last: list[NDArray[np.uint16]] = []
        self.first: dict[int, int] = {}
        self._summary = summary
        self._most_pages = most_pages
        self._numbers = PassNumbers(summary)
        self._size = 0

    def on(self, event: Event) -> None:
        """Take one event."""
        inner = event.event if isinstance(event, ChannelEvent) else event
        if not isinstance(inner, (PageBatch, MultiFDPacket, MappedPages)):
            return
        if not self.times:
            self._open(inner.page_size)
        number = self._numbers.of(inner)
        if isinstance(inner, MappedPages):
            first = inner.block_offset // self._size
            self._add_range(inner.block, first, first + len(inner.present), int(number))
        elif isinstance(inner, MultiFDPacket):
            if inner.block >= 0:
                offset = np.concatenate((inner.normal, inner.zero))
                self._add(inner.block, offset, number)
        elif isinstance(number, int) and not isinstance(inner.pages, PageColumns):
            for r in inner.pages:
                first = r.block_offset // self._size
                self._add_range(r.block, first, first + r.pages, number)
        else:
            self._add_batch(inner, number)

    def _open(self, size: int) -> None:
        self._size = size
        counts = [-(-b.used_length // size) for b in self._summary.blocks]
        if sum(counts) > self._most_pages:
            raise LimitError(
                0,
                f"{sum(counts)} pages of RAM, of which {self._most_pages} can be counted",
                advice="--max-ram raises that",
            )
        # Untouched pages of these take no memory.
        self.times = [np.zeros(n, np.uint32) for n in counts]
        self.last = [np.zeros(n, np.uint16) for n in counts]

    def _add_batch(self, batch: PageBatch, number: int | _Numbers) -> None:
        block = batch.block
        for index in np.unique(block).tolist():
            mine = block == index
            if mine.all():
                self._add(index, batch.block_offset, number)
            else:
                passes = number if isinstance(number, int) else number[mine]
                self._add(index, batch.block_offset[mine], passes)

    def _add_range(self, block: int, first: int, stop: int, number: int) -> None:
        times = self.times[block][first:stop]
        self._count_first(number, int(np.count_nonzero(times == 0)))
        times += 1
        self.last[block][first:stop] = number

    def _add(self, block: int, offset: NDArray[np.uint64], number: int | _Numbers) -> None:
        page = (offset // np.uint64(self._size)).view(np.int64)
        times = self.times[block]
        fresh = times[page] == 0
        if (np.diff(page) > 0).all():
            times[page] += 1
        else:
            # A page may come twice within the batch.
            once = np.zeros(len(page), np.bool_)
            once[np.unique(page, return_index=True)[1]] = True
            fresh &= once
            np.add.at(times, page, 1)
        if isinstance(number, int):
            self._count_first(number, int(np.count_nonzero(fresh)))
        else:
            found = np.unique(number[fresh], return_counts=True)
            for which, count in zip(*(column.tolist() for column in found), strict=True):
                self._count_first(which, count)
        self.last[block][page] = number

    def _count_first(self, number: int, count: int) -> None:
        self.first[number] = self.first.get(number, 0) + count

    def top(self, count: int) -> list[tuple[int, int, int]]:
        """Return (block, offset in it, times) of the pages sent most often, and more than once."""
        found: list[tuple[int, int, int]] = []
        for block, times in enumerate(self.times if count else ()):
            least = 1
            if len(times) > count:
                least = max(1, int(np.partition(times, len(times) - count)[-count]) - 1)
            pages = np.flatnonzero(times > least)
            # Of those that were sent as often as the last of them, the lowest.
            pages = pages[np.argsort(-times[pages].astype(np.int64), kind="stable")][:count]
            found += [(block, p * self._size, int(times[p])) for p in pages.tolist()]
        return sorted(found, key=lambda page: -page[2])[:count]

    def last_counts(self) -> list[int]:
        """Return how many pages each pass sent for the last time, by its number."""
        counts = np.zeros(MAX_PASSES + 1, np.int64)
        for last in self.last:
            for at in range(0, len(last), _AT_ONCE):
                counts += np.bincount(last[at : at + _AT_ONCE], minlength=len(counts))
        return [int(n) for n in counts]


class ACPITables(PageFold[RAMImage]):
    """Fold: the content of the block of ACPI tables, for the guest-physical map.

    Args:
        summary: Fold that takes each event before this one.
        channels: Recorded beside the main one.

    Attributes:
        sink: The content; `None` if there is no such block.
    """

    def __init__(self, summary: Summary, channels: Channels | None) -> None:
        super().__init__(summary, channels, partial=True)
        self.sink: BytesSink | None = None

    def on(self, event: Event) -> None:
        """Take one event, if there is such a block and pages of it."""
        inner = event.event if isinstance(event, ChannelEvent) else event
        at = tables_block(self._summary.blocks)
        if at is None:
            return
        if isinstance(inner, PageBatch):
            if isinstance(inner.pages, PageColumns):
                if not (inner.block == at).any():
                    return
            elif all(r.block != at for r in inner.pages):
                return
        # Packets of multifd are unpacked by what came before them on their channel.
        elif isinstance(inner, MappedPages) and inner.block != at:
            return
        super().on(event)

    def open(self, page_size: int) -> RAMImage:
        """Make the room for it."""
        blocks, places = self._summary.blocks, []
        if (at := tables_block(blocks)) is not None:
            length = -(-blocks[at].used_length // page_size) * page_size
            self.sink = BytesSink(length)
            places.append(Placement(at, 0, length, self.sink, 0))
        return RAMImage(blocks, page_size, places, self._page_fault)


class History:
    """What a walk over a stream found.

    Attributes:
        report: The document.
        exit_code: The exit status.
        map: The guest-physical map; why there is none if it is not known.
        superseded: Versions of pages that were sent again.
    """

    def __init__(self, report: HistoryReport, code: int, found: PhysicalMap | OutputError) -> None:
        self.report = report
        self.exit_code = code
        self.map = found

    @property
    def superseded(self) -> int:
        """Versions of pages that a later record replaced."""
        return self.report.records - self.report.pages_sent

    def locate(self, gpa: int) -> tuple[int, int]:
        """Return (block, offset in it) of a guest-physical address.

        Raises:
            AddressError: There is no RAM.
            OutputError: The stream does not tell where its blocks stand.
        """
        if isinstance(self.map, OutputError):
            raise self.map
        for r in self.map.regions:
            if r.gpa <= gpa < r.gpa + r.length:
                return r.block, r.block_offset + gpa - r.gpa
        raise AddressError(gpa, f"no RAM at address {gpa:#x}")


def read_history(
    opened: OpenStream,
    channels: Channels | None = None,
    *,
    top: int = 10,
    page_size: int | None = None,
    below_4g: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> History:
    """Read a stream, as far as it goes, and account for its passes and its pages.

    Args:
        opened: The stream.
        channels: Recorded beside the main one.
        top: So many of the pages that were sent most often.
        page_size: Target page size in bytes, to overrule what the stream shows.
        below_4g: Size of RAM below 4 GiB, bytes, if the user states it.
        max_ram: RAM in bytes that is counted; MAX_INDEXED pages if `None`.
        progress: Called with (offset, size or None).

    Raises:
        StreamError: The input is no migration stream at all, or not one that is read here.
        LimitError: There is more RAM than is counted.
    """
    decoder = Decoder(page_size, max_ram=max_ram)
    summary, evidence = Summary(), MapEvidence()
    sent = Sent(summary, most_pages(max_ram))
    tables = ACPITables(summary, channels)
    folds: list[Consumer] = [summary, evidence, sent, tables]
    run(opened.source, decoder, folds, progress, opened.container, channels)
    error = summary.findings.error
    if error is not None and (
        not summary.read or isinstance(error, (UnsupportedError, LimitError))
    ):
        raise error
    summary.finish()
    found = map_of(summary, evidence, tables, below_4g)
    return History(_report(opened, summary, sent, found, top), summary.exit_code, found)


def map_of(
    summary: Summary, evidence: MapEvidence, tables: ACPITables, below_4g: int | None
) -> PhysicalMap | OutputError:
    """Return the guest-physical map that a walk found; why there is none if it is not known."""
    machine = summary.configuration.name if summary.configuration else None
    content = bytes(tables.sink.content) if tables.sink is not None else None
    try:
        return physical_map(evidence.evidence(machine, content), below_4g)
    except OutputError as error:
        return error


def address_of(found: PhysicalMap | OutputError, block: int, offset: int) -> int | None:
    """Return the guest-physical address of a place in a block; `None` if it is not known."""
    for r in found.regions if isinstance(found, PhysicalMap) else ():
        if r.block == block and r.block_offset <= offset < r.block_offset + r.length:
            return r.gpa + offset - r.block_offset
    return None


def pass_reports(summary: Summary, sent: Sent) -> list[HistoryPassReport]:
    """Account for the passes, the first MAX_PASSES of them."""
    coverage, last = summary.coverage, sent.last_counts()
    passes = coverage.passes if coverage is not None else []
    told_by = "wire" if coverage is not None and coverage.rounds else "inferred"
    return [
        HistoryPassReport(
            i, p.offset, page_counts(p.records), p.wire_bytes, told_by,
            sent.first.get(i, 0), last[i],
        )
        for i, p in enumerate(passes, 1)
    ]  # fmt: skip


def _report(
    opened: OpenStream,
    summary: Summary,
    sent: Sent,
    found: PhysicalMap | OutputError,
    top: int,
) -> HistoryReport:
    coverage = summary.coverage
    blocks = summary.coverage_blocks()
    size = opened.source.size
    return HistoryReport(
        schema=HISTORY_SCHEMA,
        input=opened.source.name,
        size=summary.end if size is None else size,
        complete=summary.complete,
        machine=summary.machine,
        page_size=coverage.page_size if coverage is not None else None,
        pages=sum(b.pages for b in blocks),
        pages_sent=sum(int(np.count_nonzero(times)) for times in sent.times),
        records=sum(int(times.sum(dtype=np.int64)) for times in sent.times),
        passes=pass_reports(summary, sent),
        pass_count=coverage.pass_count if coverage is not None else 0,
        top=[
            SentPageReport(
                readable(idstr := summary.blocks[block].idstr),
                offset,
                address_of(found, block, offset),
                times,
                in_full(idstr),
            )
            for block, offset, times in sent.top(top)
        ],
        layout_doubts=list(found.doubts) if isinstance(found, PhysicalMap) else [str(found)],
        superseded=None,
        anomalies=summary.findings.report(),
        anomaly_count=summary.findings.count,
    )  # fmt: skip
