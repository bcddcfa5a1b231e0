"""Coverage against a set and a dict: which pages came, how often, in how many passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests import streamwriter as sw
from tests.decoding import decode
from tests.strategies import examples, streams
from tests.streamwriter import StreamWriter
from tests.truth import load_manifest, open_fixture
from vmstream.guest import coverage as coverage_module
from vmstream.guest.coverage import KINDS, PageBitmap, RAMCoverage, unsent
from vmstream.stream.events import MultiFDPacket, PageBatch, PageColumns, RAMBlock, Run
from vmstream.wire.constants import PAGE_KINDS, MultiFDFlag, RAMSaveFlag

PAGE = 4096
FLAGS = {"normal": 0x08, "zero": 0x02, "xbzrle": 0x40, "compressed": 0x100}


def numbers(pages: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(pages, np.int64)


# ---- the bitmap ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1000])
def test_an_empty_bitmap(size: int) -> None:
    bitmap = PageBitmap(size)
    assert bitmap.pages == size
    assert bitmap.count() == 0
    assert not bitmap.any(0, size)
    assert bitmap.members(0, size).tolist() == [False] * size
    bitmap.add_range(0, size)
    assert bitmap.count() == size
    assert bitmap.members(0, size).tolist() == [True] * size


@settings(deadline=None, max_examples=examples(50))
@given(st.integers(0, 70), st.integers(0, 70), st.booleans())
def test_ranges_at_any_bit(first: int, stop: int, full: bool) -> None:
    bitmap = PageBitmap(70)
    if full:
        bitmap.add_range(0, 70)
        bitmap.discard_range(first, stop)
    else:
        bitmap.add_range(first, stop)
    inside = set(range(first, stop))
    want = [(page in inside) != full for page in range(70)]
    assert bitmap.members(0, 70).tolist() == want
    assert bitmap.count() == sum(want)
    assert bitmap.data == np.packbits(want, bitorder="little").tobytes()
    assert bitmap.data.readonly


SIZE = 203
page_numbers = st.integers(0, SIZE - 1)


class BitmapIsASet(RuleBasedStateMachine):
    """Any history of a bitmap, beside that of a set."""

    def __init__(self) -> None:
        super().__init__()
        self.bitmap = PageBitmap(SIZE)
        self.truth: set[int] = set()

    @rule(pages=st.lists(page_numbers, max_size=40))
    def add(self, pages: list[int]) -> None:
        self.bitmap.add(numbers(pages))
        self.truth |= set(pages)

    @rule(pages=st.lists(page_numbers, max_size=40, unique=True).map(sorted))
    def add_in_order(self, pages: list[int]) -> None:
        self.bitmap.add(numbers(pages))
        self.truth |= set(pages)

    @rule(first=page_numbers, count=st.integers(0, 80))
    def add_run(self, first: int, count: int) -> None:
        pages = list(range(first, min(first + count, SIZE)))
        self.bitmap.add(numbers(pages))
        self.truth |= set(pages)

    @rule(first=page_numbers, stop=st.integers(0, SIZE))
    def add_range(self, first: int, stop: int) -> None:
        self.bitmap.add_range(first, stop)
        self.truth |= set(range(first, stop))

    @rule(first=page_numbers, stop=st.integers(0, SIZE))
    def discard_range(self, first: int, stop: int) -> None:
        self.bitmap.discard_range(first, stop)
        self.truth -= set(range(first, stop))

    @rule(pages=st.lists(page_numbers, min_size=1, max_size=40))
    def test(self, pages: list[int]) -> None:
        assert self.bitmap.test(numbers(pages)).tolist() == [p in self.truth for p in pages]

    @rule(first=page_numbers, count=st.integers(0, SIZE))
    def members(self, first: int, count: int) -> None:
        stop = min(first + count, SIZE)
        inside = [p in self.truth for p in range(first, stop)]
        assert self.bitmap.members(first, stop).tolist() == inside
        assert self.bitmap.any(first, stop) == any(inside)

    @precondition(lambda self: self.truth)
    @invariant()
    def count(self) -> None:
        assert self.bitmap.count() == len(self.truth)


BitmapIsASet.TestCase.settings = settings(
    max_examples=examples(60), stateful_step_count=30, deadline=None
)
TestBitmapIsASet = BitmapIsASet.TestCase


def test_a_large_bitmap() -> None:
    bitmap = PageBitmap(1 << 24)
    bitmap.add_range(5, (1 << 24) - 3)
    assert bitmap.count() == (1 << 24) - 8
    bitmap.add(numbers([(1 << 24) - 1, 0]))
    assert bitmap.test(numbers([0, 1, 5, (1 << 24) - 2, (1 << 24) - 1])).tolist() == [
        True, False, True, False, True,
    ]  # fmt: skip


# ---- the fold --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    block: int
    page: int
    kind: str = "normal"
    size: int = 8 + PAGE
    fill: int = 0


def batch_of(
    records: Sequence[Record],
    blocks: tuple[RAMBlock, ...],
    page_size: int,
    offset: int,
    *,
    as_runs: bool = False,
) -> PageBatch:
    size = np.array([r.size for r in records], np.uint32)
    ends = offset + np.cumsum(size, dtype=np.uint64)
    window = b"".join(bytes(r.size - 1) + bytes([r.fill]) for r in records)
    columns = PageColumns(
        record_offset=ends - size,
        size=size,
        flags=np.array([FLAGS[r.kind] | 0x20 * (i % 2) for i, r in enumerate(records)], np.uint16),
        block=np.array([r.block for r in records], np.int32),
        block_offset=np.array([r.page * page_size for r in records], np.uint64),
        payload_size=size - 8,
    )
    return PageBatch(
        offset=offset,
        end=int(ends[-1]),
        pages=runs_of(records, page_size, offset) if as_runs else columns,
        blocks=blocks,
        page_size=page_size,
        window=memoryview(window),
        window_offset=offset,
    )


def runs_of(records: Sequence[Record], page_size: int, offset: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    at = before = 0
    for record in records:
        flags = FLAGS[record.kind]
        same = (flags, record.block, record.page * page_size, record.size, before)
        last = runs[-1] if runs else None
        if last and same == (
            last.flags,
            last.block,
            last.block_offset + last.pages * page_size,
            last.stride,
            last.stride,
        ):
            runs[-1] = last._replace(pages=last.pages + 1)
        else:
            runs.append(
                Run(
                    kind=RAMSaveFlag(flags & int(PAGE_KINDS)),
                    block=record.block,
                    block_offset=record.page * page_size,
                    pages=1,
                    record_offset=offset + at,
                    payload=at + (record.size - 1 if record.kind == "zero" else 8),
                    stride=record.size,
                    flags=flags,
                )
            )
        at += record.size
        before = record.size
    return tuple(runs)


class Truth:
    """The same account, record by record."""

    def __init__(self) -> None:
        self.times: Counter[tuple[int, int]] = Counter()
        self.kinds: Counter[tuple[int, str]] = Counter()
        self.wire: Counter[int] = Counter()
        self.passes: list[tuple[int, Counter[str], int]] = []
        self.last = (-1, -1)
        self.offset = 0
        self.filled: list[int] = []
        self.out_of_place: list[int] = []
        self._last: list[tuple[int, int]] = []

    def add(self, record: Record) -> None:
        key = (record.block, record.page)
        if not self.passes or (key <= self.last and key in self.times):
            self.passes.append((self.offset, Counter(), 0))
        start, kinds, wire = self.passes[-1]
        kinds[record.kind] += 1
        self.passes[-1] = (start, kinds, wire + record.size)
        self.times[key] += 1
        self.kinds[record.block, record.kind] += 1
        self.wire[record.block] += record.size
        self.last = key
        if record.kind == "zero" and record.fill:
            self.filled.append(self.offset)
        # One that stands in the middle of five neighbours, but is not the middle one.
        self._last = [*self._last[-4:], ((record.block << 44) + record.page, self.offset)]
        if len(self._last) == 5:
            (first, _), *_ = self._last
            steps = [key - first for key, _ in self._last]
            if steps[:2] + steps[3:] == [0, 1, 3, 4] and steps[2] != 2:
                self.out_of_place.append(self._last[2][1])
        self.offset += record.size


def compare(found: RAMCoverage, truth: Truth) -> None:
    for index, block in enumerate(found.blocks):
        sent = {page for b, page in truth.times if b == index}
        resent = {page for (b, page), n in truth.times.items() if b == index and n > 1}
        everything = np.arange(block.pages)
        assert set(np.flatnonzero(block.sent.test(everything)).tolist()) == sent
        assert set(np.flatnonzero(block.resent.test(everything)).tolist()) == resent
        assert block.pages_missing == block.pages - len(sent)
        assert dict(zip(KINDS, block.records.tolist(), strict=True)) == {
            kind: truth.kinds[index, kind] for kind in KINDS
        }
        assert block.wire_bytes == truth.wire[index]
    assert found.filled == len(truth.filled)
    assert found.first_filled == (truth.filled or [0])[0]
    assert found.out_of_place == len(truth.out_of_place)
    assert found.first_out_of_place == (truth.out_of_place or [0])[0]
    assert found.pass_count == len(truth.passes)
    assert [
        (p.offset, dict(zip(KINDS, p.records.tolist(), strict=True)), p.wire_bytes)
        for p in found.passes
    ] == [(o, {k: kinds[k] for k in KINDS}, w) for o, kinds, w in truth.passes]


def account(records: Sequence[Record], cuts: Sequence[int], pages: int, page_size: int) -> None:
    """Add records in batches cut at `cuts`, of either form, and compare."""
    blocks = tuple(RAMBlock(b"%d" % i, pages * page_size) for i in range(3))
    edges = sorted({0, len(records), *(c for c in cuts if c < len(records))})
    for runs in ((False, False), (True, True), (True, False), (False, True)):
        found, truth = RAMCoverage(blocks, page_size), Truth()
        for i, (begin, end) in enumerate(pairwise(edges)):
            part = records[begin:end]
            found.add(batch_of(part, blocks, page_size, truth.offset, as_runs=runs[i % 2]))
            for record in part:
                truth.add(record)
        compare(found, truth)


any_records = st.lists(
    st.builds(
        Record,
        st.integers(0, 2),
        st.integers(0, 20),
        st.sampled_from(KINDS),
        st.sampled_from((9, 9, 4104)) | st.integers(9, 5000),
        st.sampled_from((0, 0, 0, 255)),
    ),
    min_size=1,
    max_size=60,
)
cuts = st.lists(st.integers(1, 60), max_size=6)


@settings(deadline=None, max_examples=examples(120))
@given(any_records, cuts, st.sampled_from((1024, 4096, 65536)))
def test_any_records(records: list[Record], cuts: list[int], page_size: int) -> None:
    account(records, cuts, 21, page_size)


@settings(deadline=None, max_examples=examples(100))
@given(st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=6), cuts)
def test_scans_in_order(scans: list[set[int]], cuts: list[int]) -> None:
    """What QEMU does: up through the blocks, over and over."""
    records = [Record(block, page) for scan in scans for block in range(3) for page in sorted(scan)]
    if records:
        account(records, cuts, 41, PAGE)


@settings(deadline=None, max_examples=examples(100))
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 80), st.integers(1, 30), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(1, 200), max_size=6),
)
def test_long_runs(stretches: list[tuple[int, int, int, bool]], cuts: list[int]) -> None:
    """Runs over each other, in any order, with an odd page here and there."""
    records = [
        Record(block, page, "zero" if zero else "normal", 9 if zero else 4104)
        for block, first, count, zero in stretches
        for page in range(first, first + count)
    ]
    account(records, cuts, 111, PAGE)


def test_passes_of_a_live_migration() -> None:
    every = [Record(b, p) for b in range(2) for p in range(4)]
    dirty = [Record(0, 2), Record(1, 0), Record(1, 3)]
    found = RAMCoverage((RAMBlock(b"a", 4 * PAGE), RAMBlock(b"b", 4 * PAGE)), PAGE)
    offset = 0
    for scan in (every, dirty, dirty[1:], dirty[:1]):
        batch = batch_of(scan, found_blocks(found), PAGE, offset)
        offset = batch.end
        found.add(batch)
    assert found.pass_count == 4
    assert [int(p.records.sum()) for p in found.passes] == [8, 3, 2, 1]
    assert [b.resent.count() for b in found.blocks] == [1, 2]
    assert [b.pages_missing for b in found.blocks] == [0, 0]


def found_blocks(found: RAMCoverage) -> tuple[RAMBlock, ...]:
    return tuple(b.block for b in found.blocks)


def test_a_background_snapshot_is_one_pass() -> None:
    """Pages in no order, but each once."""
    order = [7, 3, 0, 6, 1, 5, 2, 4]
    found = RAMCoverage((RAMBlock(b"a", 8 * PAGE),), PAGE)
    for begin in range(0, 8, 3):
        records = [Record(0, p) for p in order[begin : begin + 3]]
        found.add(batch_of(records, found_blocks(found), PAGE, begin))
    assert found.pass_count == 1
    assert found.blocks[0].pages_missing == 0
    assert found.blocks[0].resent.count() == 0


def test_the_same_page_again_and_again() -> None:
    account([Record(0, 5)] * 7, [2], 21, PAGE)


def test_passes_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_module, "MAX_PASSES", 3)
    found = RAMCoverage((RAMBlock(b"a", PAGE),), PAGE)
    for i in range(10):
        found.add(batch_of([Record(0, 0, size=10)], found_blocks(found), PAGE, i * 10))
    assert found.pass_count == 10
    assert len(found.passes) == 3
    # What comes after is counted with the last of them.
    assert [p.wire_bytes for p in found.passes] == [10, 10, 80]


def test_a_block_that_ends_inside_a_page() -> None:
    found = RAMCoverage((RAMBlock(b"a", PAGE + 1), RAMBlock(b"b", 1)), PAGE)
    assert [b.pages for b in found.blocks] == [2, 1]
    assert [b.pages_missing for b in found.blocks] == [2, 1]


def test_a_block_of_a_tebibyte() -> None:
    found = RAMCoverage((RAMBlock(b"a", 1 << 40), RAMBlock(b"b", PAGE)), PAGE)
    last = (1 << 28) - 1
    records = [Record(0, last), Record(1, 0), Record(0, last)]
    found.add(batch_of(records, found_blocks(found), PAGE, 0))
    assert found.blocks[0].pages_missing == last
    assert found.blocks[0].resent.count() == 1
    assert found.pass_count == 2


@settings(deadline=None, max_examples=examples(40))
@given(streams(xbzrle=True, compress=True))
def test_streams(w: StreamWriter) -> None:
    batches = decode(w.data).of(PageBatch)
    if not batches:
        return
    found = RAMCoverage(batches[0].blocks, w.page_size)
    for batch in batches:
        found.add(batch)
    names = {"ZERO": "zero", "PAGE": "normal", "XBZRLE": "xbzrle", "COMPRESS_PAGE": "compressed"}
    for block in found.blocks:
        name = block.block.idstr.decode()
        counts = Counter({names[k]: n for k, n in w.counts[name].items()})
        assert dict(zip(KINDS, block.records.tolist(), strict=True)) == {
            k: counts[k] for k in KINDS
        }
        touched = {a // w.page_size for a in w.touched[name]}
        assert block.pages_missing == block.pages - len(touched)
        records = [i for i in w.items if i.attrs.get("block") == name and i.kind in names]
        times = Counter(i.attrs["address"] for i in records)
        assert block.resent.count() == sum(n > 1 for n in times.values())
        assert block.wire_bytes == sum(i.stop - i.offset for i in records)


@pytest.mark.parametrize("name", ["live-10.0-q35", "own-live-q35", "live-11.1-pc", "xbzrle-5.2-pc"])
def test_passes_are_those_that_qemu_counts(name: str) -> None:
    batches = decode(open_fixture(name)).of(PageBatch)
    found = RAMCoverage(batches[0].blocks, PAGE)
    for batch in batches:
        found.add(batch)
    # It counts scans of the dirty log, and the last may have found nothing.
    synced = load_manifest(name)["query_migrate"]["ram"]["dirty-sync-count"]
    assert synced - 2 <= found.pass_count <= synced
    assert all(b.pages_missing == 0 for b in found.blocks)


@pytest.mark.parametrize("cut", range(1, 8))
@pytest.mark.parametrize("page", [0, 2, 3, 5, 6, 7, 20])
def test_a_page_out_of_place(page: int, cut: int) -> None:
    """A head with a flipped bit, inside a scan; wherever the batch is cut."""
    records = [Record(1, p) for p in (1, 2, 3, page, *range(5, 16))]
    account(records, [cut], 21, PAGE)
    found = RAMCoverage((RAMBlock(b"a", 21 * PAGE), RAMBlock(b"b", 21 * PAGE)), PAGE)
    found.add(batch_of(records, found_blocks(found), PAGE, 0))
    assert found.out_of_place == 1
    assert found.first_out_of_place == 3 * (8 + PAGE)


def test_pages_in_place() -> None:
    """What a migration does is not taken for damage: gaps, other blocks, scans that start over."""
    scans: list[list[int]] = [[0, 1, 2, 5, 6, 9], [2, 6, 7], [], [3], [3], [4, 5]]
    records = [Record(b, p) for scan in scans for b in (0, 2) for p in scan]
    found = RAMCoverage(tuple(RAMBlock(b"%d" % i, 21 * PAGE) for i in range(3)), PAGE)
    found.add(batch_of(records, found_blocks(found), PAGE, 0))
    assert (found.out_of_place, found.filled) == (0, 0)


def test_words_for_kinds() -> None:
    assert KINDS == tuple(FLAGS)
    assert list(FLAGS.values()) == [
        sw.FLAG_PAGE,
        sw.FLAG_ZERO,
        sw.FLAG_XBZRLE,
        sw.FLAG_COMPRESS_PAGE,
    ]


def packet(normal: list[int], zero: list[int], size: int = 1000) -> MultiFDPacket:
    pages = [np.array(which, np.uint64) * np.uint64(PAGE) for which in (normal, zero)]
    return MultiFDPacket(0, size, MultiFDFlag(0), 0, 128, 0, *pages, PAGE, memoryview(b""))


def test_packets_of_multifd() -> None:
    coverage = RAMCoverage((RAMBlock(b"a", 16 * PAGE),), PAGE)
    coverage.generation = 0
    coverage.add_packet(packet([3, 1], [9, 0]), 50, compressed=False)
    coverage.add_packet(packet([], [2]), 50, compressed=True)
    coverage.add_packet(packet([1], []), 50, compressed=True)
    (block,) = coverage.blocks
    assert block.records.tolist() == [2, 3, 0, 1]
    assert block.wire_bytes == 3000
    assert block.pages_missing == 16 - 5
    assert block.resent.members(0, 16).nonzero()[0].tolist() == [1]
    assert (coverage.pass_count, coverage.passes[0].offset) == (1, 50)


@pytest.mark.parametrize(
    ("rounds", "starts"),
    [(True, [100, 200, 300, 400]), (False, [100, 300])],
    ids=["MULTIFD_FLUSH", "each section"],
)
def test_passes_of_generations(rounds: bool, starts: list[int]) -> None:
    """A generation is a pass where the wire says so; else where it starts over."""
    coverage = RAMCoverage((RAMBlock(b"a", 16 * PAGE),), PAGE)
    coverage.rounds = rounds
    for generation, pages in enumerate(([2, 0, 1], [3, 8], [1, 2], [4, 15])):
        coverage.generation = 2 * generation  # others have no pages
        for page in pages:
            coverage.add_packet(packet([page], []), 100 * (generation + 1), compressed=False)
    assert [p.offset for p in coverage.passes] == starts
    assert sum(int(p.records.sum()) for p in coverage.passes) == 9


def test_blocks_of_which_nothing_came() -> None:
    """They are accounted for, and nothing is held: they may state terabytes."""
    first, second = unsent((RAMBlock(b"a", 1 << 62), RAMBlock(b"b", 5000)), 4096)
    assert (first.pages, first.pages_missing) == (1 << 50, 1 << 50)
    assert (second.pages, second.pages_missing, second.resent.count()) == (2, 2, 0)
