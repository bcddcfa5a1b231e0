"""The page size from the records, and where the record behind a damaged one stands."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.strategies import examples
from tests.streamwriter import StreamWriter
from vmstream.stream.events import RAMBlock
from vmstream.stream.probe import next_record, probe_page_size
from vmstream.stream.scanner import LONG_RUN, RAMState
from vmstream.wire.constants import TARGET_PAGE_SIZES

PAGE = 4096


def records(page_size: int = PAGE, ram_version: int = 4) -> StreamWriter:
    """A writer for records alone, of the blocks 'a' and 'b'."""
    w = StreamWriter(page_size, ram_version=ram_version)
    for name in ("a", "b"):
        w._new_block(name, 0)
    return w


@pytest.mark.parametrize("page_size", sorted(TARGET_PAGE_SIZES))
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zeros", [0, 1, 3, 2 * LONG_RUN + 5])
def test_probe(page_size: int, flat: bool, zeros: int) -> None:
    body = random.Random(page_size).randbytes(page_size)
    w = records(page_size, ram_version=3 if flat else 4)
    for i in range(zeros):
        w.zero("a", i * page_size)
    w.page("a", zeros * page_size, body)
    followers = {
        "eos": sw.be64(sw.FLAG_EOS) + sw.footer(1),
        "page": w.page_head("a", (zeros + 1) * page_size, sw.FLAG_PAGE) + body,
    }
    if not flat:
        followers["named"] = sw.be64(sw.FLAG_ZERO) + b"\1b\0"
    for behind in followers.values():
        # Less than a page of the usual size behind it would prove nothing.
        view = memoryview(b"...." + bytes(w) + behind + bytes(5000))
        assert probe_page_size(view, 4, {b"a", b"b"}, flat=flat) == page_size


def test_probe_does_not_take_an_unknown_name() -> None:
    w = records()
    w.page("a", 0, b"\xff" * PAGE)
    view = memoryview(bytes(w) + sw.be64(sw.FLAG_ZERO) + b"\1z\0")
    assert probe_page_size(view, 0, {b"a"}, flat=False) is None


def test_probe_prefers_the_usual_size() -> None:
    """Page contents that look like heads everywhere fit every size."""
    w = records()
    w.page("a", 0, sw.be64(0x28) * 512)
    view = memoryview(bytes(w) + sw.be64(0x1028) * 20000)
    assert probe_page_size(view, 0, {b"a"}, flat=False) == PAGE


def test_probe_of_zero_pages_alone() -> None:
    def probe(*offsets: int) -> int | None:
        raw = sw.be64(offsets[0] | 0x02) + b"\1a\0"
        raw += b"".join(sw.be64(o | 0x22) + b"\0" for o in offsets[1:]) + sw.be64(sw.FLAG_EOS)
        return probe_page_size(memoryview(raw), 0, {b"a"}, flat=False)

    assert probe(0, 0x1000, 0x2000) is None
    assert probe(0, 0x400, 0x800) == 1024
    assert probe(0, 0x800, 0x1000) == 2048


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 7, sw.be64(sw.FLAG_EOS), sw.be64(0x08), sw.be64(sw.FLAG_ZERO) + b"\1"]
)
def test_probe_of_too_little(data: bytes) -> None:
    assert probe_page_size(memoryview(data), 0, {b"a"}, flat=False) is None


@settings(deadline=None, max_examples=examples(200))
@given(st.binary(max_size=300), st.booleans())
def test_probe_of_anything(data: bytes, flat: bool) -> None:
    found = probe_page_size(memoryview(data), 0, {b"a"}, flat=flat)
    assert found is None or found in TARGET_PAGE_SIZES


def test_the_record_behind_a_damaged_one() -> None:
    """Found where only one of the two sizes leads to two legal heads in a row."""
    state = RAMState((RAMBlock(b"a", 64 * PAGE),), PAGE, current=0)
    for kind, size in (("page", 8 + PAGE), ("zero", 9)):
        w = records()
        w.zero("a", 0)
        at = len(w.data)
        if kind == "page":
            w.page("a", PAGE, b"\xff" * PAGE)
        else:
            w.zero("a", PAGE)
        for i in range(2, 6):
            w.page("a", i * PAGE, b"\xff" * PAGE)
        w.data[at : at + 8] = b"\xff" * 8
        assert next_record(state, memoryview(bytes(w)), at) == at + size
    # Neither leads anywhere.
    assert next_record(state, memoryview(b"\xff" * 3 * PAGE), 0) is None
