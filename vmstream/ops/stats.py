"""`stats`: how pages were sent, what they have in them, and what else they could have come to.

The stream is read once, into an index of memory. Each version of a page is looked at when it
comes, through the index, so that it is unpacked whatever it was sent as; and the last ones once
more at the end, for what they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmstream.container.open import OpenStream
from vmstream.errors import LimitError, UnsupportedError
from vmstream.guest.content import CLASSES, ZERO, classify, nonzero
from vmstream.guest.coverage import BlockCoverage, kind_of
from vmstream.guest.index import PageIndex
from vmstream.guest.multifd import compression_of
from vmstream.ops.channels import Channels
from vmstream.ops.inspect import Summary
from vmstream.ops.memory import Indexer, MemoryOptions
from vmstream.ops.pages import check_pages
from vmstream.ops.passes import PassNumbers
from vmstream.ops.pipeline import Progress, run
from vmstream.ops.whatif import CHANNELS, Encoding, Versions, Wanted, encodings
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.stats import (
    STATS_SCHEMA,
    ContentReport,
    DuplicateReport,
    DuplicatesReport,
    StatsReport,
    WireKindReport,
    WireReport,
)
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import ChannelEvent, Event, MappedPages, MultiFDPacket, PageBatch
from vmstream.transport.compress import in_order
from vmstream.wire.constants import DEFAULT_PAGE_SIZE, RAMSaveFlag

# Pages that are looked at at a time, bytes: those that are sent, and those that are there.
_SENT_AT_ONCE = 4 << 20
_LEFT_AT_ONCE = 1 << 20

# Bytes of a page that a report shows.
_SHOWN = 16

_ZERO, _PAGE = int(RAMSaveFlag.ZERO), int(RAMSaveFlag.PAGE)

_Numbers = NDArray[np.int64]
_Pages = NDArray[np.uint8]


@dataclass(slots=True)
class _Kind:
    pages: int = 0
    wire_bytes: int = 0
    zeros: int = 0


class Stats(Indexer):
    """Fold: the index of memory, and what each version of a page is.

    Args:
        opened: The stream.
        channels: Recorded beside the main one.
        options: How pages are kept that cannot be read in place.
        summary: Fold that takes each event before this one.
        held: What the spool lives as long as.
        wanted: Encodings to measure.
        count: Channels that pages would go to.

    Attributes:
        encodings: Those that were asked for, from the first page on.
        packets: Packets of multifd with pages.
        packet_bytes: Bytes of their heads.

    Memory:
        As to index memory; 4 MiB of pages in hand, twice as many with XBZRLE, and what encodings
        have waiting.
    """

    def __init__(
        self,
        opened: OpenStream,
        channels: Channels | None,
        options: MemoryOptions,
        summary: Summary,
        held: ExitStack,
        wanted: Sequence[Wanted] = (),
        count: int = CHANNELS,
    ) -> None:
        super().__init__(opened.source, channels, options, summary, None, held)
        self._passes = PassNumbers(summary)
        self._wanted = wanted
        # Packets stay on the channels that they are on; those of multifd come first in the list.
        others = channels.list if channels is not None else []
        self._count = sum(c.kind == "multifd" for c in others) or count
        self._stack = held
        self._kinds: dict[str, _Kind] = {}
        self.encodings: list[Encoding] = []
        self.packets = 0
        self.packet_bytes = 0

    def open(self, page_size: int) -> PageIndex:
        """Make the index, and what measures."""
        index = super().open(page_size)
        if self._wanted:
            self.encodings = encodings(self._wanted, index.blocks, page_size, self._count)
            for one in self.encodings:
                self._stack.callback(one.close)
        return index

    def on(self, event: Event) -> None:
        """Take one event."""
        inner = event.event if isinstance(event, ChannelEvent) else event
        if not isinstance(inner, (PageBatch, MultiFDPacket, MappedPages)):
            super().on(event)
            return
        passes = self._passes.of(inner)
        if isinstance(inner, PageBatch):
            for rows in _pieces(inner):
                part = replace(inner, pages=inner.columns.part(rows))
                number = passes if isinstance(passes, int) else passes[rows]
                self._batch(part, _again(event, part), number)
        elif isinstance(inner, MultiFDPacket):
            self._packets(inner, event, passes)
        else:
            self._mapped(inner, event, passes)

    def _batch(self, part: PageBatch, event: Event, passes: int | _Numbers) -> None:
        block, flags = int(part.block[0]), part.flags
        page = (part.block_offset // np.uint64(part.page_size)).view(np.int64)
        given = None
        if not self._summary.blocks[block].used_length % part.page_size:
            given = _as_sent(part)
        data = self._versions(part.page_size, block, page, passes, event, None, given)
        for flag in np.unique(flags).tolist():
            mine = flags == flag
            bytes_ = int(part.size[mine].sum(dtype=np.int64))
            zeros = int(np.count_nonzero(mine & ~data))
            self._add(kind_of(flag), int(np.count_nonzero(mine)), bytes_, zeros)

    def _packets(self, packet: MultiFDPacket, event: Event, passes: int | _Numbers) -> None:
        normal, zero = len(packet.normal), len(packet.zero)
        if packet.block < 0 or not normal + zero:
            super().on(event)
            return
        offset = np.concatenate((packet.normal, packet.zero))
        page = (offset // np.uint64(packet.page_size)).view(np.int64)
        channel = event.channel if isinstance(event, ChannelEvent) else 0
        data = self._versions(packet.page_size, packet.block, page, passes, event, channel)
        self.packets += 1
        payload = len(packet.payload)
        self.packet_bytes += packet.end - packet.offset - payload
        zeros = int(np.count_nonzero(~data[:normal]))
        if normal:
            self._add(f"multifd {compression_of(packet)}", normal, payload, zeros)
        if zero:
            self._add("multifd zero", zero, 0, 0)

    def _mapped(self, event: MappedPages, whole: Event, passes: int | _Numbers) -> None:
        size, step = event.page_size, max(1, _SENT_AT_ONCE // event.page_size)
        first = event.block_offset // size
        super().on(whole)
        for at in range(0, len(event.present), step):
            present = event.present[at : at + step]
            page = first + at + np.arange(len(present))
            data = self._versions(size, event.block, page, passes, None, None)
            count = int(np.count_nonzero(present))
            zeros = int(np.count_nonzero(present & ~data))
            if count:
                self._add("mapped-ram", count, count * size, zeros)
            if count < len(present):
                self._add("zero", len(present) - count, 0, 0)

    # Look at versions of distinct pages, and index them by the event, if they are not yet; `given`
    # is what they have, if that is known without the index. Return which are no zeros.
    def _versions(
        self,
        size: int,
        block: int,
        page: _Numbers,
        passes: int | _Numbers,
        event: Event | None,
        channel: int | None,
        given: tuple[NDArray[np.bool_], _Pages] | None = None,
    ) -> NDArray[np.bool_]:
        index = self.opened(size)
        numbers = np.full(len(page), passes) if isinstance(passes, int) else passes
        for one in self.encodings:
            one.ahead(index, block, page, numbers)
        if event is not None:
            super().on(event)
        data, pages = given or _with_data(index, block, page)
        if self.encodings:
            versions = Versions(block, page, data, pages, numbers, channel)
            for one in self.encodings:
                one.take(versions)
        return data

    def _add(self, kind: str, pages: int, wire_bytes: int, zeros: int) -> None:
        seen = self._kinds.setdefault(kind, _Kind())
        seen.pages += pages
        seen.wire_bytes += wire_bytes
        seen.zeros += zeros

    def wire(self) -> WireReport:
        """Return how pages were sent."""
        kinds = sorted(self._kinds.items(), key=lambda k: -k[1].wire_bytes)
        return WireReport(
            sum(k.pages for _, k in kinds),
            sum(k.wire_bytes for _, k in kinds) + self.packet_bytes,
            [
                WireKindReport(
                    name, k.pages, k.wire_bytes, None if name.endswith("zero") else k.zeros
                )
                for name, k in kinds
            ],
            self.packets,
            self.packet_bytes,
        )


# The same event of the same channel, with other pages.
def _again(event: Event, part: PageBatch) -> Event:
    return replace(event, event=part) if isinstance(event, ChannelEvent) else part


# Which of these pages have data, and those that have.
def _with_data(index: PageIndex, block: int, page: _Numbers) -> tuple[NDArray[np.bool_], _Pages]:
    data = index.may_have_data(block, page)
    some = page[data]
    pages = np.empty((len(some), index.page_size), np.uint8)
    if len(some):
        index.read_pages(block, some, pages)
    return _without_zeros(data, pages)


# The same of records that have their pages as they are, from the window: half the time. `None` if
# there are others.
def _as_sent(batch: PageBatch) -> tuple[NDArray[np.bool_], _Pages] | None:
    size = batch.page_size
    data = (batch.flags & _PAGE) != 0
    if np.count_nonzero(batch.flags & _ZERO) + np.count_nonzero(data) < len(data):
        return None
    if batch.fills().any():
        return None
    if not data.any():
        return data, np.empty((0, size), np.uint8)
    end = (batch.record_offset[data] + batch.size[data]).view(np.int64) - batch.window_offset
    # The pages that begin at each byte.
    window = np.frombuffer(batch.window, np.uint8)
    every: _Pages = np.ndarray((len(window) - size + 1, size), np.uint8, window.data, 0, (1, 1))
    return _without_zeros(data, every[end - size])


def _without_zeros(data: NDArray[np.bool_], pages: _Pages) -> tuple[NDArray[np.bool_], _Pages]:
    there = nonzero(pages)
    if not there.all():
        data[data] = there
        pages = pages[there]
    return data, pages


# Rows of a batch that are of one block, name no page twice, and have no more data than is taken
# in hand.
def _pieces(batch: PageBatch) -> Iterator[slice]:
    heavy = (batch.flags & _ZERO) == 0
    heavy[~heavy] = batch.fills() != 0
    step = max(1, _SENT_AT_ONCE // batch.page_size)
    piece = np.cumsum(heavy) // step
    cuts = np.flatnonzero((np.diff(piece) != 0) | (np.diff(batch.block) != 0)) + 1
    edges = [0, *cuts.tolist(), len(batch)]
    for begin, end in pairwise(edges):
        at = begin
        while at < end:
            offset = batch.block_offset[at:end]
            stop = end
            if not (np.diff(offset.view(np.int64)) > 0).all():
                _, first = np.unique(offset, return_index=True)
                if len(first) < len(offset):
                    again = np.ones(len(offset), np.bool_)
                    again[first] = False
                    stop = at + int(np.argmax(again))
            yield slice(at, stop)
            at = stop


# -- what pages have in the end ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Left:
    """Pages of a block as they are in the end; `page` are the numbers of those with data."""

    block: int
    zeros: int
    page: _Numbers
    pages: _Pages


@dataclass(frozen=True, slots=True)
class _Look:
    """What they have: how many are of each class, sum of entropies, a hash of each with data."""

    left: _Left
    counts: _Numbers
    bits: float
    hashes: NDArray[np.uint64]


def _left(
    index: PageIndex, blocks: Sequence[BlockCoverage], progress: Progress | None
) -> Iterator[_Left]:
    step = max(1, _LEFT_AT_ONCE // index.page_size)
    done, total = 0, sum(b.pages for b in blocks) * index.page_size
    for number, block in enumerate(blocks):
        for at in range(0, block.sent.pages, step):
            stop = min(at + step, block.sent.pages)
            page = at + np.flatnonzero(block.sent.members(at, stop))
            data, pages = _with_data(index, number, page)
            yield _Left(number, len(page) - len(pages), page[data], pages)
            done += (stop - at) * index.page_size
            if progress is not None:
                progress(done, total)


# By thread: hashing does without Python's lock.
def _look(left: _Left) -> _Look:
    kinds, bits = classify(left.pages)
    counts = np.bincount(kinds, minlength=len(CLASSES))
    counts[ZERO] += left.zeros
    flat, size = left.pages.reshape(-1).data, left.pages.shape[1]
    digests = [
        hashlib.sha256(flat[at : at + size]).digest()[:8] for at in range(0, len(flat), size)
    ]
    return _Look(left, counts, float(bits.sum()), np.frombuffer(b"".join(digests), np.uint64))


def _content(
    index: PageIndex, blocks: Sequence[BlockCoverage], top: int, progress: Progress | None
) -> tuple[list[ContentReport], DuplicatesReport]:
    counts = np.zeros((len(blocks), len(CLASSES)), np.int64)
    bits = np.zeros(len(blocks))
    bases = np.cumsum([0, *(b.pages for b in blocks)])
    hashes: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
    places: list[_Numbers] = [np.zeros(0, np.int64)]
    for look in in_order(_look, _left(index, blocks, progress)):
        block = look.left.block
        counts[block] += look.counts
        bits[block] += look.bits
        hashes.append(look.hashes)
        places.append(bases[block] + look.left.page)
    reports = []
    for covered, told, total in zip(blocks, counts.tolist(), bits.tolist(), strict=True):
        zero, fill, low, medium, high = told
        sent, idstr = sum(told), covered.block.idstr
        mean = round(total / (sent - zero), 3) if sent > zero else None
        reports.append(
            ContentReport(
                readable(idstr), covered.pages, sent, zero, fill, low, medium, high, mean,
                in_full(idstr),
            )
        )  # fmt: skip
    return reports, _duplicates(index, bases, np.concatenate(hashes), np.concatenate(places), top)


def _duplicates(
    index: PageIndex, bases: _Numbers, hashes: NDArray[np.uint64], places: _Numbers, top: int
) -> DuplicatesReport:
    ordered = np.sort(hashes)
    new = np.ones(len(ordered), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.flatnonzero(new)
    counts = np.diff(first, append=len(ordered))
    many = np.flatnonzero(counts > 1)
    best = many[np.argsort(-counts[many], kind="stable")][:top]
    # Where the first page of each stands.
    rows = np.flatnonzero(np.isin(hashes, ordered[first[best]]))
    found, at = np.unique(hashes[rows], return_index=True)
    where = dict(zip(found.tolist(), places[rows[at]].tolist(), strict=True))
    groups = [
        _group(index, bases, where[value], count)
        for value, count in zip(ordered[first[best]].tolist(), counts[best].tolist(), strict=True)
    ]
    return DuplicatesReport(
        told_by="sha256-64",
        pages=len(hashes),
        distinct=len(first),
        alike=int(counts[many].sum()),
        saved_bytes=(len(hashes) - len(first)) * index.page_size,
        group_count=len(many),
        groups=groups,
    )


def _group(index: PageIndex, bases: _Numbers, place: int, count: int) -> DuplicateReport:
    block = int(np.searchsorted(bases, place, side="right")) - 1
    page = place - int(bases[block])
    content = np.empty((1, index.page_size), np.uint8)
    index.read_pages(block, np.array([page]), content)
    idstr = index.blocks[block].idstr
    return DuplicateReport(
        count,
        readable(idstr),
        page * index.page_size,
        content[0, :_SHOWN].tobytes().hex(),
        in_full(idstr),
    )


# -- the document ------------------------------------------------------------------------------


def read_stats(
    opened: OpenStream,
    channels: Channels | None = None,
    *,
    wanted: Sequence[Wanted] = (),
    count: int = CHANNELS,
    top: int = 5,
    spool: str | None = None,
    page_size: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
    looking: Progress | None = None,
) -> tuple[StatsReport, int]:
    """Read a stream, as far as it goes, and measure its pages.

    Args:
        opened: The stream.
        channels: Recorded beside the main one.
        wanted: Encodings to measure.
        count: Channels of multifd that pages would go to; those of a stream that has some stay.
        top: So many of the largest groups of pages that are alike.
        spool: Directory for pages that cannot be read from the input.
        page_size: Target page size in bytes, to overrule what the stream shows.
        max_ram: RAM in bytes that is indexed; as of `MemoryOptions`.
        progress: Called with (offset, size or None) while the stream is read.
        looking: Called with (bytes of RAM that are done, those there are) behind that.

    Returns:
        The document, and the exit status.

    Raises:
        StreamError: The input is no migration stream at all, or not one that is read here.
        UnsupportedError: It is a pipe or compressed and there is no spool, or its pages are on
            channels that were not given.
        LimitError: There is more RAM than is indexed.
        OutputError: A cache is smaller than a page.
        OSError: The spool cannot be written.

    Memory:
        As to index memory, and 32 bytes for each page that is not zeros.
    """
    summary = Summary()
    decoder = Decoder(page_size, max_ram=max_ram)
    options = MemoryOptions(partial=True, spool=spool, max_ram=max_ram)
    with ExitStack() as held:
        stats = Stats(opened, channels, options, summary, held, wanted, count)
        run(opened.source, decoder, [summary, stats], progress, opened.container, channels)
        error = summary.findings.error
        if error is not None and (
            not summary.read or isinstance(error, (UnsupportedError, LimitError))
        ):
            raise error
        summary.finish()
        check_pages(summary, partial=True)
        coverage, wire = summary.coverage, stats.wire()
        blocks = summary.coverage_blocks()
        index = stats.opened(coverage.page_size if coverage else DEFAULT_PAGE_SIZE)
        content, duplicates = _content(index, blocks, top, looking)
        report = StatsReport(
            schema=STATS_SCHEMA,
            input=opened.source.name,
            size=summary.end if opened.source.size is None else opened.source.size,
            complete=summary.complete,
            machine=summary.machine,
            page_size=coverage.page_size if coverage is not None else None,
            wire=wire,
            blocks=content,
            duplicates=duplicates,
            what_if=[one.finish(wire.wire_bytes) for one in stats.encodings],
            anomalies=summary.findings.report(),
            anomaly_count=summary.findings.count,
        )
    return report, summary.exit_code
