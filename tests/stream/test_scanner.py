"""The scanner alone: records to columns, where runs break, and what it refuses."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.strategies import examples, lookalikes, page_body
from tests.streamwriter import Item, StreamWriter
from vmstream.errors import FormatError, IntegrityError
from vmstream.stream import scanner, walk
from vmstream.stream.events import PageBatch, RAMBlock
from vmstream.stream.scanner import (
    LONG_RUN,
    BadRecord,
    RAMState,
    scan_records,
)
from vmstream.wire.constants import TARGET_PAGE_SIZES

PAGE = 4096
KIND = {"ZERO": 0x002, "PAGE": 0x008, "XBZRLE": 0x040, "COMPRESS_PAGE": 0x100}
Row = tuple[int, int, int, bytes, int]


def records(page_size: int = PAGE, pages: int = 1 << 16, **kwargs: int) -> StreamWriter:
    """A writer for records alone, of the blocks 'a' and 'b'."""
    w = StreamWriter(page_size, **kwargs)  # type: ignore[arg-type]
    for name in ("a", "b"):
        w._new_block(name, 0)
    w.sizes = pages * page_size  # type: ignore[attr-defined]
    return w


def state_of(w: StreamWriter) -> RAMState:
    size = w.sizes  # type: ignore[attr-defined]
    if w.ram_version == 3:
        return RAMState((RAMBlock(b"ram", size),), w.page_size, flat=True)
    return RAMState((RAMBlock(b"a", size), RAMBlock(b"b", size)), w.page_size)


def rows(batches: list[PageBatch]) -> list[Row]:
    return [
        (offset, size, flags & ~0x20, b.blocks[block].idstr, at)
        for b in batches
        for offset, size, flags, block, at in zip(
            b.record_offset.tolist(),
            b.size.tolist(),
            b.flags.tolist(),
            b.block.tolist(),
            b.block_offset.tolist(),
            strict=True,
        )
    ]


def truth(items: list[Item], name: bytes | None = None, base: int = 0) -> list[Row]:
    return [
        (
            base + i.offset,
            i.stop - i.offset,
            KIND[i.kind],
            name or i.attrs["block"].encode(),
            i.attrs["address"],
        )
        for i in items
        if i.kind in KIND
    ]


def scan_all(
    state: RAMState, data: bytes, base: int = 0, pos: int = 0
) -> tuple[list[PageBatch], int, int]:
    """Scan again and again until nothing more comes of it."""
    batches: list[PageBatch] = []
    view = memoryview(data)
    while True:
        batch, pos, needed = scan_records(state, view, base, pos)
        if batch is None:
            return batches, pos, needed
        batches.append(batch)
        assert batch.end == base + pos
        assert batch.window is view or batch.window == view


def check(w: StreamWriter, behind: bytes = b"") -> list[PageBatch]:
    """All records of `w` are found; `behind` is left, and the scan says why."""
    name = b"ram" if w.ram_version == 3 else None
    with pytest.MonkeyPatch.context() as patch:
        for few in (1, 1 << 40, walk.FEW_RUNS):
            # As runs wherever they can be, as columns, and as usual.
            patch.setattr(walk, "FEW_RUNS", few)
            batches, pos, needed = scan_all(state_of(w), bytes(w) + behind, base=7000)
            assert rows(batches) == truth(w.items, name, base=7000)
            assert pos == len(w.data)
            if not behind:
                assert needed == 8
    return batches


@pytest.mark.parametrize("page_size", sorted(TARGET_PAGE_SIZES))
@pytest.mark.parametrize("kind", ["zero", "page"])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 127, 128, 129, 320, 321, 1500])
def test_runs_of_one_kind(page_size: int, kind: str, count: int) -> None:
    if kind == "page" and page_size * count > 8 << 20:
        count = LONG_RUN + 2
    w = records(page_size)
    body = sw.be64(0x28) * (page_size // 8)
    for i in range(count):
        if kind == "zero":
            w.zero("a", i * page_size)
        else:
            w.page("a", i * page_size, body)
    (batch,) = check(w, behind=sw.be64(sw.FLAG_EOS))
    assert len(batch) == count


@pytest.mark.parametrize("page_size", [1024, PAGE, 65536])
@pytest.mark.parametrize(
    "breaker", ["name", "switch", "switch back", "xbzrle", "compress", "other kind", "same name"]
)
@pytest.mark.parametrize(
    "at", [0, 1, 2, LONG_RUN - 1, LONG_RUN, LONG_RUN + 1, LONG_RUN + 256, 2 * LONG_RUN]
)
def test_something_else_inside_a_long_run(page_size: int, breaker: str, at: int) -> None:
    kind = "page" if page_size == 1024 else "zero"
    w = records(page_size)

    def one(i: int, named: bool | None = None, block: str = "a") -> None:
        if kind == "zero":
            w.zero(block, i * page_size, named=named)
        else:
            w.page(block, i * page_size, b"\x22" * page_size, named=named)

    for i in range(3 * LONG_RUN + 256):
        if i != at:
            one(i, named=None)
        elif breaker == "name":
            one(i, named=True)
        elif breaker == "same name":
            one(i, named=True)
            one(i, named=True)
        elif breaker == "switch":
            one(i, block="b")
        elif breaker == "switch back":
            one(i, block="b")
            one(i, block="a")
        elif breaker == "xbzrle":
            w.xbzrle("a", i * page_size, b"\0\1x", truth=False)
        elif breaker == "compress":
            w.compress_page("a", i * page_size, b"blob", truth=False)
        elif kind == "zero":
            w.page("a", i * page_size, b"\x22" * page_size)
        else:
            w.zero("a", i * page_size)
    check(w, behind=sw.be64(sw.FLAG_EOS))


@pytest.mark.parametrize(
    "word", [sw.FLAG_EOS, sw.FLAG_MULTIFD_FLUSH, sw.FLAG_MEM_SIZE | 0x1000, sw.FLAG_HOOK]
)
@pytest.mark.parametrize("count", [0, 1, LONG_RUN - 1, LONG_RUN, LONG_RUN + 300])
def test_a_word_that_is_no_page_ends_a_run(word: int, count: int) -> None:
    w = records()
    for i in range(count):
        w.zero("a", i * PAGE)
    batches, pos, needed = scan_all(state_of(w), bytes(w) + sw.be64(word) + bytes(w))
    assert rows(batches) == truth(w.items)
    assert (pos, needed) == (len(w.data), 0)


@pytest.mark.parametrize("kind", ["zero", "page", "xbzrle", "compress", "named zero"])
@pytest.mark.parametrize("count", [1, 5, LONG_RUN + 4])
def test_window_end_at_every_byte(kind: str, count: int) -> None:
    """A record that is cut is left, with word of how much it takes; then it is found whole."""
    page_size = 1024
    w = records(page_size)
    w.zero("a", 0)
    for i in range(count):
        address = i * page_size
        if kind == "zero":
            w.zero("a", address)
        elif kind == "named zero":
            w.zero("a", address, named=True)
        elif kind == "page":
            w.page("a", address, b"\x28" * page_size)
        elif kind == "xbzrle":
            w.xbzrle("a", address, b"\0\2ab", truth=False)
        else:
            w.compress_page("a", address, b"blob", truth=False)
    data = bytes(w)
    starts = [i.offset for i in w.items] + [len(data)]
    last = w.items[-1].offset
    step = 37 if kind == "page" else 1
    for cut in [*range(last, len(data), step), *range(min(last, 60)), *starts[:-1]]:
        state = state_of(w)
        batches, pos, needed = scan_all(state, data[:cut])
        whole = max(s for s in starts if s <= cut)
        assert pos == whole
        assert rows(batches) == [r for r in truth(w.items) if r[0] + r[1] <= cut]
        # It asks for more than there is, and never for more than the record takes.
        index = starts.index(whole)
        assert cut - whole < needed <= starts[index + 1] - whole
        more, pos, _ = scan_all(state, data, pos=pos)
        assert rows(batches + more) == truth(w.items)
        assert pos == len(data)


def test_needed_grows_to_the_whole_record() -> None:
    w = records()
    w.page("a", 0, bytes(PAGE))
    data = bytes(w)
    needed, asked = 8, []
    while needed < len(data):
        asked.append(needed)
        _, _, needed = scan_records(state_of(w), memoryview(data[:needed]), 0, 0)
    assert asked == [8, 9, 10]
    assert needed == len(data)


@pytest.mark.parametrize("limit", [1, 2, LONG_RUN - 1, LONG_RUN, LONG_RUN + 1, 500])
def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(scanner, "MAX_BATCH_RECORDS", limit)
    w = records()
    for i in range(600):
        w.zero("a", i * PAGE)
    for i in range(20):
        w.page("b", i * PAGE, b"\x22" * PAGE)
        w.zero("a", i * PAGE)
    batches = check(w, behind=sw.be64(sw.FLAG_EOS))
    # One match of the pattern may go over it.
    assert max(len(b) for b in batches) <= limit + LONG_RUN
    assert len(batches) > 1


def test_a_full_batch_goes_on_where_it_ended() -> None:
    w = records(1024, pages=1 << 18)
    for i in range(scanner.MAX_BATCH_RECORDS + 5):
        w.data += sw.be64(i * 1024 | 0x22) + b"\0"
    data = sw.be64(0x02) + b"\1a\0" + bytes(w.data) + sw.be64(sw.FLAG_EOS)
    batches, pos, needed = scan_all(state_of(w), data)
    assert [len(b) for b in batches] == [scanner.MAX_BATCH_RECORDS, 6]
    assert (pos, needed) == (len(data) - 8, 0)
    offsets = np.concatenate([b.block_offset for b in batches])
    assert offsets[0] == 0
    assert np.array_equal(offsets[1:], np.arange(len(offsets) - 1) * np.uint64(1024))


def test_the_block_lives_on() -> None:
    """CONTINUE means the block of the record before, in whatever call that was seen."""
    w = records()
    w.zero("b", 0)
    state = state_of(w)
    scan_all(state, bytes(w))
    assert state.current == 1
    batches, _, _ = scan_all(state, sw.be64(0x1022) + b"\0")
    assert rows(batches) == [(0, 9, 2, b"b", 0x1000)]


def test_flat_space_has_no_names() -> None:
    w = records(ram_version=3)
    for i in range(LONG_RUN + 8):
        w.page("", i * PAGE, b"\x28" * PAGE)
        if i % 3 == 0:
            w.zero("", i * PAGE, 0xFF)
    check(w, behind=sw.be64(sw.FLAG_EOS))


@settings(deadline=None, max_examples=examples(120))
@given(
    st.sampled_from((1024, 4096, 65536)),
    st.lists(
        st.tuples(
            st.sampled_from(("ZERO", "ZERO", "PAGE", "PAGE", "XBZRLE", "COMPRESS_PAGE")),
            st.sampled_from("aab"),
            st.sampled_from((None, None, None, True)),
            st.sampled_from((1, 1, 2, 5, LONG_RUN, LONG_RUN + 30)),
        ),
        max_size=12,
    ),
    st.integers(0, 1 << 32),
)
def test_any_records(
    page_size: int, plan: list[tuple[str, str, bool | None, int]], seed: int
) -> None:
    rng = random.Random(seed)
    looks = lookalikes(["a", "b"], 1, page_size)
    w = records(page_size)
    for kind, block, named, count in plan:
        body = page_body("fake", rng.randrange(1 << 30), page_size, looks)
        for _ in range(count if kind == "ZERO" or page_size < 65536 else min(count, 3)):
            address = rng.randrange(1 << 16) * page_size
            if kind == "ZERO":
                w.zero(block, address, rng.randrange(256), named=named)
            elif kind == "PAGE":
                w.page(block, address, body, named=named)
            elif kind == "XBZRLE":
                length = rng.randrange(1, page_size + 1) & 0xFFFF or 1
                w.xbzrle(block, address, body[:length], named=named, truth=False)
            else:
                w.compress_page(block, address, body[:100], named=named, truth=False)
    check(w, behind=sw.be64(sw.FLAG_EOS))
    check(w)


# ---- what breaks the rules -------------------------------------------------------------------


def bad(data: bytes, state: RAMState | None = None, *, before: int = 0) -> BadRecord:
    """The fault of `data`; `before` records are given out first."""
    state = state or state_of(records())
    batches: list[PageBatch] = []
    pos = 0
    with pytest.raises(BadRecord) as caught:
        while True:
            batch, pos, needed = scan_records(state, memoryview(data), 500, pos)
            assert batch is not None
            assert needed == 0 or not batches
            batches.append(batch)
    assert sum(len(b) for b in batches) == before
    return caught.value


NAMED = sw.be64(0x02) + b"\1a\0"


@pytest.mark.parametrize("before", [0, 1, LONG_RUN, LONG_RUN + 7])
def test_illegal_flags(before: int) -> None:
    good = NAMED + (sw.be64(0x22) + b"\0") * before
    for flags in (0x00, 0x01, 0x20, 0x0A, 0x18, 0x30, 0x148, 0x0C, 0x208, 0x3FF):
        fault = bad(good + sw.be64(0x5000 | flags) + bytes(PAGE), before=before + 1)
        assert isinstance(fault.error, FormatError)
        assert fault.error.offset == 500 + len(good)
        assert f"{flags:#05x}" in fault.error.what
        assert fault.end is None


@pytest.mark.parametrize("flags", [0x402, 0x408, 0x822, 0x828, 0xC08, 0x440, 0x500, 0x410])
def test_bits_between_the_flags_and_the_page_size(flags: int) -> None:
    """QEMU's flags are all bits below the page size, and no flag is above 0x200."""
    data = NAMED + sw.be64(0x5000 | flags) + b"\1a" + bytes(2 * PAGE)
    fault = bad(data, before=1)
    assert isinstance(fault.error, FormatError)
    assert fault.error.offset == 500 + len(NAMED)


def test_continue_first() -> None:
    fault = bad(sw.be64(0x22) + b"\0")
    assert isinstance(fault.error, FormatError)
    assert "CONTINUE" in fault.error.what
    assert fault.error.offset == 500


@pytest.mark.parametrize("name", [b"", b"c", b"aa", b"A", b"a\0", b"\xff" * 255])
def test_unknown_block(name: bytes) -> None:
    fault = bad(NAMED + sw.be64(0x08) + sw.cstr8(name) + bytes(PAGE), before=1)
    assert isinstance(fault.error, FormatError)
    assert name.decode("ascii", "replace").strip("\0\ufffd") in fault.error.found
    assert fault.error.offset == 500 + len(NAMED)


@pytest.mark.parametrize("before", [0, 1, LONG_RUN - 1, LONG_RUN, 400])
@pytest.mark.parametrize("offset", [8 * PAGE, 9 * PAGE, 1 << 40, 0xFFFFFFFFFFFFF000])
def test_beyond_the_block(before: int, offset: int) -> None:
    state = RAMState((RAMBlock(b"a", 8 * PAGE), RAMBlock(b"b", 1 << 50)), PAGE)
    good = NAMED + (sw.be64(0x7022) + b"\0") * before
    data = good + sw.be64(offset | 0x22) + b"\0" + sw.be64(0x22) + b"\0"
    fault = bad(data, state, before=before + 1)
    assert isinstance(fault.error, IntegrityError)
    assert fault.error.offset == 500 + len(good)
    assert f"{offset:#x}" in fault.error.found
    # Its size is known, so the next record is too.
    assert fault.end == 500 + len(good) + 9
    batches, pos, _ = scan_all(state, data, pos=len(good) + 9)
    assert rows(batches)[0][3:] == (b"a", 0)
    assert pos == len(data)


def test_beyond_a_block_that_ends_inside_a_page() -> None:
    state = RAMState((RAMBlock(b"a", PAGE + 1),), PAGE)
    batches, _, _ = scan_all(state, sw.be64(0x1002) + b"\1a\0")
    assert rows(batches) == [(0, 11, 2, b"a", PAGE)]
    assert isinstance(bad(sw.be64(0x2002) + b"\1a\0", state).error, IntegrityError)


def test_beyond_the_block_of_its_own_name() -> None:
    """The block that counts is that of the record, not of those around it."""
    state = RAMState((RAMBlock(b"a", 8 * PAGE), RAMBlock(b"b", 2 * PAGE)), PAGE)
    data = sw.be64(0x7002) + b"\1a\0" + sw.be64(0x2002) + b"\1b\0" + sw.be64(0x1022) + b"\0"
    fault = bad(data, state, before=1)
    assert "block" in fault.error.context
    assert "'b'" in fault.error.context
    batches, _, _ = scan_all(state, data, pos=22)
    assert rows(batches)[0][3:] == (b"b", PAGE)


@pytest.mark.parametrize(
    ("head", "ok", "wrong"),
    [
        (sw.be64(0x40) + b"\1a\1", (1, PAGE), (0, PAGE + 1, 0xFFFF)),
        (sw.be64(0x100) + b"\1a", (1, PAGE), (0, PAGE + 200, 0xFFFFFFFF)),
    ],
)
def test_payload_lengths(head: bytes, ok: tuple[int, ...], wrong: tuple[int, ...]) -> None:
    pack = sw.be16 if head[7] == 0x40 else sw.be32
    for length in ok:
        batches, _, _ = scan_all(state_of(records()), head + pack(length) + bytes(length))
        assert batches[0].payload_size.tolist() == [len(head) - 10 + len(pack(0)) + length]
    for length in wrong:
        fault = bad(head + pack(length) + bytes(8))
        assert isinstance(fault.error, FormatError)
        assert f"{length} bytes" in fault.error.what
