"""The vocabulary itself: what a batch of pages offers, and that events are values."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings

from tests.decoding import COLUMNS, decode
from tests.strategies import examples, streams
from tests.streamwriter import RamBlock, StreamWriter
from vmstream.stream import events, walk
from vmstream.stream.events import Event, PageBatch, PageColumns, RAMBlock, Run
from vmstream.stream.scanner import RAMState, scan_records
from vmstream.wire.constants import RAMSaveFlag

PAGE = 4096
DTYPES = {
    "record_offset": np.uint64,
    "size": np.uint32,
    "flags": np.uint16,
    "block": np.int32,
    "block_offset": np.uint64,
    "payload_size": np.uint32,
}
KIND = {
    "ZERO": RAMSaveFlag.ZERO,
    "PAGE": RAMSaveFlag.PAGE,
    "XBZRLE": RAMSaveFlag.XBZRLE,
    "COMPRESS_PAGE": RAMSaveFlag.COMPRESS_PAGE,
}


def batch_of(w: StreamWriter, base: int = 1000) -> PageBatch:
    """The records in `w`, which has nothing else, as a batch at `base`.

    Scanned as columns and as runs, which must say the same.
    """
    blocks = tuple(RAMBlock(name.encode(), len(content)) for name, content in w.blocks.items())
    found: list[PageBatch] = []
    with pytest.MonkeyPatch.context() as patch:
        for few in (1, 1 << 40):
            patch.setattr(walk, "FEW_RUNS", few)
            state = RAMState(blocks, w.page_size)
            batch, pos, needed = scan_records(state, memoryview(bytes(w)), base, 0)
            assert batch is not None
            assert (pos, needed) == (len(w.data), 8)
            found.append(batch)
    runs, columns = found
    assert isinstance(runs.pages, tuple)
    assert isinstance(columns.pages, PageColumns)
    assert runs.runs() == columns.runs()
    assert len(runs) == len(columns)
    for name, dtype in DTYPES.items():
        assert getattr(runs, name).dtype == dtype
        assert getattr(runs, name).tolist() == getattr(columns, name).tolist()
    assert runs.fills().tolist() == columns.fills().tolist()
    assert runs.detach().runs() == columns.detach().runs()
    return columns


def writer(**sizes: int) -> StreamWriter:
    w = StreamWriter()
    w.blocks = {name: bytearray(pages * PAGE) for name, pages in sizes.items()}
    w.counts = {name: Counter() for name in sizes}
    w.touched = {name: set() for name in sizes}
    return w


def mixed() -> StreamWriter:
    w = writer(a=64, b=64)
    w.page("a", 0, b"\1" * PAGE)
    for i in range(1, 4):
        w.page("a", i * PAGE, bytes([i]) * PAGE)
    w.page("a", 5 * PAGE, b"\5" * PAGE)  # page 4 is left out
    w.zero("a", 6 * PAGE)
    w.zero("a", 7 * PAGE, 0x77)
    w.zero("a", 8 * PAGE, named=True)
    w.zero("b", 9 * PAGE)
    w.zero("b", 10 * PAGE)
    w.xbzrle("b", 11 * PAGE, b"\0\2AB")
    w.xbzrle("b", 12 * PAGE, b"\0\2AB")
    w.xbzrle("b", 13 * PAGE, b"\0\3ABC")
    w.compress_page("b", 14 * PAGE, b"blob", truth=False)
    w.page("b", 15 * PAGE, b"\6" * PAGE)
    w.page("b", 16 * PAGE, b"\7" * PAGE)
    w.page("b", 16 * PAGE, b"\x08" * PAGE)
    w.page("b", 15 * PAGE, b"\x09" * PAGE)
    return w


def test_columns() -> None:
    w = mixed()
    batch = batch_of(w)
    assert len(batch) == len(w.items)
    assert (batch.offset, batch.end) == (1000, 1000 + len(w.data))
    for name, dtype in DTYPES.items():
        column = getattr(batch, name)
        assert column.dtype == dtype
        assert column.dtype.isnative
        assert column.shape == (len(batch),)
    assert batch.record_offset.tolist() == [1000 + i.offset for i in w.items]
    assert batch.size.tolist() == [i.stop - i.offset for i in w.items]
    assert batch.block_offset.tolist() == [i.attrs["address"] for i in w.items]
    assert [batch.blocks[b].idstr.decode() for b in batch.block] == [
        i.attrs["block"] for i in w.items
    ]
    assert batch.payload_size.tolist() == [i.stop - i.attrs["body"] for i in w.items]
    want = [KIND[i.kind] | (0 if i.attrs["named"] else RAMSaveFlag.CONTINUE) for i in w.items]
    assert batch.flags.tolist() == want


def test_payload() -> None:
    w = mixed()
    batch = batch_of(w)
    for i, item in enumerate(w.items):
        assert batch.payload(i) == w.data[item.attrs["body"] : item.stop]


def test_runs() -> None:
    page, zero, xbzrle = RAMSaveFlag.PAGE, RAMSaveFlag.ZERO, RAMSaveFlag.XBZRLE
    found = [(r.kind, r.block, r.block_offset // PAGE, r.pages) for r in batch_of(mixed()).runs()]
    assert found == [
        (page, 0, 0, 1),  # with its name, so of another size
        (page, 0, 1, 3),
        (page, 0, 5, 1),
        (zero, 0, 6, 2),
        (zero, 0, 8, 1),
        (zero, 1, 9, 1),
        (zero, 1, 10, 1),
        (xbzrle, 1, 11, 2),
        (xbzrle, 1, 13, 1),
        (RAMSaveFlag.COMPRESS_PAGE, 1, 14, 1),
        (page, 1, 15, 2),
        (page, 1, 16, 1),
        (page, 1, 15, 1),
    ]


def check_runs(batch: PageBatch) -> None:
    """Runs are maximal, cover the batch in order, and point at the payloads."""
    at = 0
    before: tuple[Any, ...] = ()
    for run in batch.runs():
        assert isinstance(run, Run)
        assert run.pages > 0
        for i in range(run.pages):
            assert int(batch.flags[at + i]) & ~0x20 == run.kind
            assert batch.block[at + i] == run.block
            assert batch.block_offset[at + i] == run.block_offset + i * batch.page_size
            assert batch.record_offset[at + i] == run.record_offset + i * run.stride
            begin = run.payload + i * run.stride
            size = int(batch.payload_size[at + i])
            assert batch.window[begin : begin + size] == batch.payload(at + i)
            assert size == batch.payload_size[at]
        like = (run.kind, run.block, run.stride, int(batch.payload_size[at]))
        assert (*like, run.block_offset) != before
        before = (*like, run.block_offset + run.pages * batch.page_size)
        at += run.pages
    assert at == len(batch)


def test_runs_are_maximal() -> None:
    check_runs(batch_of(mixed()))
    check_runs(batch_of(mixed()).detach())


@settings(max_examples=examples(40), deadline=None)
@given(streams(xbzrle=True, compress=True, fills=True))
def test_runs_of_any_stream(w: StreamWriter) -> None:
    for batch in decode(w.data).of(PageBatch):
        check_runs(batch)
        fills = [int(batch.payload(i)[0]) for i in np.flatnonzero(batch.flags & 2).tolist()]
        assert batch.fills().tolist() == fills


def test_runs_of_records_that_are_as_long_by_chance() -> None:
    """One with its name and one without, whose payloads make up for the difference."""
    w = writer(a=4)
    w.compress_page("a", 0, b"blob", truth=False)
    w.compress_page("a", PAGE, b"blob" + b"xx", truth=False)
    assert len({i.stop - i.offset for i in w.items}) == 1
    check_runs(batch_of(w))
    w = writer(a=4)
    w.xbzrle("a", 0, b"\0\3ABC", named=True)
    w.xbzrle("a", PAGE, b"\0\5ABCDE")
    check_runs(batch_of(w))


def test_fills() -> None:
    batch = batch_of(mixed())
    assert batch.fills().tolist() == [0, 0x77, 0, 0, 0]
    assert batch.fills().dtype == np.uint8
    w = writer(a=4)
    w.page("a", 0, bytes(PAGE))
    assert batch_of(w).fills().tolist() == []


def test_detach_outlives_the_window() -> None:
    w = mixed()
    raw = bytearray(w.data)
    blocks = (RAMBlock(b"a", 64 * PAGE), RAMBlock(b"b", 64 * PAGE))
    batch, _, _ = scan_records(RAMState(blocks, PAGE), memoryview(raw), 0, 0)
    assert batch is not None
    copy = batch.detach()
    raw[:] = b"\xa5" * len(raw)
    assert copy.window == w.data
    assert copy.window_offset == copy.offset == batch.offset
    assert len(copy.window) == copy.end - copy.offset
    for name in COLUMNS:
        # Columns never borrowed from the window.
        assert np.array_equal(getattr(copy, name), getattr(batch, name))
    assert [i.attrs["address"] for i in w.items] == batch.block_offset.tolist()
    assert copy.payload(1) == w.data[w.items[1].attrs["body"] : w.items[1].stop]
    assert batch.payload(1) == b"\xa5" * PAGE
    assert copy.runs()[1].payload == batch.runs()[1].payload


def test_detach_copies_no_more_than_the_batch() -> None:
    w = writer(a=4)
    w.zero("a", 0)
    w.zero("a", PAGE)
    raw = b"before" + bytes(w.data) + b"behind"
    state = RAMState((RAMBlock(b"a", 4 * PAGE),), PAGE)
    batch, _, _ = scan_records(state, memoryview(raw), 94, 6)
    assert batch is not None
    assert (batch.offset, batch.window_offset) == (100, 94)
    assert batch.detach().window == w.data


def test_a_single_record() -> None:
    w = writer(a=1)
    w.page("a", 0, b"x" * PAGE)
    batch = batch_of(w)
    (run,) = batch.runs()
    assert (run.pages, run.payload, run.stride) == (1, 10, 10 + PAGE)


def test_empty_batch_has_no_runs() -> None:
    batch = batch_of(mixed())
    none = dataclasses.replace(batch, pages=batch.columns.first(0))
    assert len(none) == 0
    assert none.runs() == []
    assert none.fills().tolist() == []


def test_events_are_values() -> None:
    kinds = get_args(Event)
    assert len(kinds) == 21
    for kind in kinds:
        if kind is events.ChannelEvent:
            continue
        names = [f.name for f in dataclasses.fields(kind)]
        assert names[:2] == ["offset", "end"]
        assert kind.__dataclass_params__.frozen
        assert hasattr(kind, "__slots__") or kind is PageBatch
    footer = events.SectionFooter(1, 6, 7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        footer.offset = 2  # type: ignore[misc]
    assert footer == events.SectionFooter(1, 6, 7)
    beside = events.ChannelEvent(2, footer)
    assert (beside.offset, beside.end) == (1, 6)
    assert hasattr(events.ChannelEvent, "__slots__")


def test_bytes_are_not_printed() -> None:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("a", 2 * PAGE)])
    with w.ram_part():
        w.page("a", 0, random.Random(1).randbytes(PAGE))
    w.live_section("START", 9, b"body", "other")
    w.eof()
    assert all(len(repr(e)) < 1500 for e in decode(w.data).events)
