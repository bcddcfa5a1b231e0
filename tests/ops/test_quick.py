"""The quick look: what it tells is what reading it all tells, from head and tail alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import BytesSource, assert_tiles
from tests.ops.test_extract import pipe_of
from tests.strategies import examples, streams
from tests.streamwriter import Device, Field, RamBlock, StreamWriter
from tests.truth import fixture_file, fixture_names, open_fixture
from vmstream.errors import UnsupportedError
from vmstream.ops.inspect import inspect
from vmstream.ops.quick import quick_events
from vmstream.report.models.inspect import InspectReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event, Gap, PageBatch
from vmstream.transport.source import OpenSource, Window

PAGE = 4096

# Without footers nor a description there is nothing to find the tail by; the rest has no tail, or
# is of a kind that takes reading it whole.
NOT_FOUND = {"old-5.2-pc-i440fx-2.1", "own-old-pc-2.1"}
FOUND = [
    name
    for name in fixture_names()
    if name not in NOT_FOUND and not name.startswith(("interrupted", "mapped", "postcopy"))
]


class Counted(BytesSource):
    """A source that knows how much was asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[tuple[int, int]] = []

    def window(self, offset: int, need: int) -> Window:
        self.asked.append((offset, need))
        stop = offset + need
        return memoryview(self.data)[offset:stop], offset, stop >= len(self.data)


def events_of(data: bytes) -> list[Event]:
    return list(quick_events(BytesSource(data), Decoder()))


def devices(report: InspectReport) -> list[dict[str, Any]]:
    """The device sections. How their ends were found may be told otherwise."""
    found = []
    for section in report.sections:
        if section.section_type == "FULL":
            told = dataclasses.asdict(section)
            told["framing"] = told["framing"].removesuffix(", confirmed")
            found.append(told)
    return found


@pytest.mark.parametrize("name", FOUND)
def test_the_same_as_reading_it_whole(name: str) -> None:
    data = open_fixture(name)
    quick, quick_code = inspect(BytesSource(data), quick=True)
    full, code = inspect(BytesSource(data))
    assert quick.quick
    assert quick_code in (0, code)
    for known in (
        "machine", "uuid", "capabilities", "footers", "vmdescription", "ram_version", "ram_total",
        "end_offset", "size", "complete",
    ):  # fmt: skip
        assert getattr(quick, known) == getattr(full, known), known
    assert devices(quick) == devices(full)
    assert [(b.idstr, b.used_length) for b in quick.ram_blocks] == [
        (b.idstr, b.used_length) for b in full.ram_blocks
    ]
    for block in quick.ram_blocks:
        # What was not counted is not 0.
        assert block.pages is None
        assert block.pages_missing is None
        assert block.pages_resent is None
        assert block.wire_bytes is None


@pytest.mark.parametrize("name", ["own-big-q35", "own-live-q35", "plain-11.1-pc"])
def test_little_is_read(name: str) -> None:
    data = open_fixture(name)
    source = Counted(data)
    found = list(quick_events(source, Decoder()))
    gaps = [e for e in found if isinstance(e, Gap)]
    assert [g.reason for g in gaps] == ["not read"]
    assert gaps[0].end - gaps[0].offset > len(data) - (1 << 20)
    assert sum(need for _, need in source.asked) < 2 << 20
    # Nothing of the middle.
    low, high = gaps[0].offset + (64 << 10), len(data) - (1 << 20) - PAGE
    assert not [o for o, n in source.asked if o + n > low and o < high]
    assert not any(isinstance(e, PageBatch) for e in found)


@pytest.mark.parametrize("name", fixture_names())
def test_the_events_tile(name: str) -> None:
    data = open_fixture(name)
    assert_tiles(events_of(data), len(data))


@pytest.mark.parametrize("name", sorted(NOT_FOUND))
def test_no_tail_to_be_found(name: str) -> None:
    report, code = inspect(BytesSource(open_fixture(name)), quick=True)
    assert code == 1
    assert not report.complete
    assert [a.code for a in report.anomalies] == ["quick-end-not-found"]
    assert "--quick" in report.anomalies[0].message


@pytest.mark.parametrize("name", fixture_names("interrupted*"))
def test_interrupted_streams_have_no_tail(name: str) -> None:
    report, code = inspect(BytesSource(open_fixture(name)), quick=True)
    assert code != 0
    assert not report.complete
    assert report.ram_blocks
    assert report.machine is not None


def test_cut_in_the_head() -> None:
    for size in (10, 40, 120):
        report, code = inspect(BytesSource(open_fixture("plain-7.2-pc")[:size]), quick=True)
        assert code == 3
        assert not report.complete


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    data = open_fixture("plain-7.2-pc")
    with pipe_of(data) as source, pytest.raises(UnsupportedError, match="--quick") as caught:
        inspect(source, quick=True)
    assert caught.value.exit_code == 4
    with OpenSource(fixture_file("plain-7.2-pc", tmp_path)) as file:
        report, code = inspect(file, quick=True)
    assert code == 0
    assert report.complete


@given(streams(vmdescription=True), st.integers(0, 200))
@settings(max_examples=examples(60))
def test_never_something_else(w: StreamWriter, padding: int) -> None:
    """Lookalikes everywhere: either the tail is found as it is, or it is said that it is not."""
    if padding:
        w.padding(padding)
    data = bytes(w)
    quick, _ = inspect(BytesSource(data), page_size=w.page_size, quick=True)
    full, _ = inspect(BytesSource(data), page_size=w.page_size)
    assert_tiles(events_of(data), len(data))
    if any(a.code == "quick-end-not-found" for a in quick.anomalies):
        assert not quick.complete
        return
    assert devices(quick) == devices(full)
    assert quick.end_offset == full.end_offset
    # A stream without END of RAM may be complete; the quick look cannot tell, and must not.
    assert quick.vmdescription == full.vmdescription


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("where", ["page", "device"])
def test_a_tail_that_is_none(where: str, described: bool) -> None:
    """Footer of RAM and head of the first device, in a page and in another device's state.

    A guest that runs QEMU itself has such pages. To say that it cannot be told is right, too.
    """
    fake = sw.footer(1) + sw.section_header(sw.SECTION_FULL, 2, "timer", 0, 2) + bytes(40)
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 2 * PAGE)])
    with w.ram_part():
        w.page("mem", 0, (fake if where == "page" else b"").ljust(PAGE, b"\x7e"))
        w.zero("mem", PAGE)
    with w.ram_end():
        pass
    w.device(Device("timer", 0, 2, [Field("ticks", "int64", bytes(8))]))
    # Without a description a body that holds what its end looks like cannot be told apart.
    held = fake if where == "device" and described else b""
    w.device(Device("other", 0, 1, [Field("x", "buffer", held + b"\x7e" * 9)]))
    w.eof()
    if described:
        w.vmdescription()
    quick, _ = inspect(BytesSource(bytes(w)), quick=True)
    full, code = inspect(BytesSource(bytes(w)))
    assert code == 0
    assert len(devices(full)) == 2
    if any(a.code == "quick-end-not-found" for a in quick.anomalies):
        assert not quick.complete
        return
    assert devices(quick) == devices(full)


@pytest.mark.parametrize("name", ["plain-7.2-pc", "own-old-pc-2.3"])
def test_the_gap_is_between_head_and_devices(name: str) -> None:
    data = open_fixture(name)
    found = events_of(data)
    kinds = [type(e).__name__ for e in found if not isinstance(e, Anomaly)]
    at = kinds.index("Gap")
    assert kinds[0] == "FileHeader"
    assert "RAMBlockList" in kinds[:at]
    assert kinds[at + 1] == "SectionStart"
    assert kinds[-2:] == ["EndOfStream", "VMDescription"]
