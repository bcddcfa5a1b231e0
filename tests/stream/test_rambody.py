"""RAM sections, and who decides the page size."""

from __future__ import annotations

import pytest

from tests.decoding import CutSource, assert_tiles, decode, facts
from tests.streamwriter import RamBlock, StreamWriter
from vmstream.errors import FormatError, IntegrityError, UnsupportedError
from vmstream.stream import rambody
from vmstream.stream.cursor import Cursor
from vmstream.stream.events import Anomaly, PageBatch, RAMBlockList
from vmstream.stream.rambody import RAMReader

PAGE = 4096


def test_the_first_to_decide_wins() -> None:
    reader = RAMReader(Cursor(), None, strict=True)
    assert (reader.page_size, reader.page_size_source) == (None, None)
    reader.assume_page_size()  # nothing was read yet, so there is nothing to assume
    assert reader.page_size is None
    reader.decide_page_size(16384, "target-page-bits")
    reader.decide_page_size(4096, "probe")
    assert (reader.page_size, reader.page_size_source) == (16384, "target-page-bits")


def test_the_caller_decides_before_all() -> None:
    reader = RAMReader(Cursor(), 1024, strict=True)
    reader.decide_page_size(4096, "target-page-bits")
    assert (reader.page_size, reader.page_size_source) == (1024, "argument")


def test_version_3_is_one_flat_space() -> None:
    w = StreamWriter(ram_version=3)
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("", 4 * PAGE)])
    with w.ram_part():
        w.page("", PAGE, b"\x11" * PAGE)
        w.zero("", 0)
    found = decode(bytes(w))
    (listed,) = found.of(RAMBlockList)
    assert [(b.idstr, b.used_length) for b in listed.blocks] == [(b"ram", 4 * PAGE)]
    offsets = [o for batch in found.of(PageBatch) for o in batch.block_offset.tolist()]
    assert offsets == [PAGE, 0]


@pytest.mark.parametrize("version", [0, 2, 5])
def test_other_versions_are_refused(version: int) -> None:
    w = StreamWriter()
    w.header()
    w.start(1, "ram", 0, version)
    w.eos()
    (error, *_) = decode(bytes(w)).errors
    assert isinstance(error, UnsupportedError)
    assert f"version {version}" in str(error)


def test_no_block_list() -> None:
    w = StreamWriter()
    w.header()
    w.start(1, "ram", 0, 4)
    w.eos()
    (error, *_) = decode(bytes(w)).errors
    assert isinstance(error, FormatError)
    assert "MEM_SIZE" in str(error)


def test_a_total_that_the_blocks_do_not_make() -> None:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("mem", 4 * PAGE)], total=5 * PAGE)
    w.padding(400)
    (error, *_) = decode(bytes(w)).errors
    assert isinstance(error, IntegrityError)


@pytest.mark.parametrize("zeros", [1000, 1138, 1139, 1140, 5000])
@pytest.mark.parametrize("page_size", [1024, 4096])
def test_zero_pages_before_the_page_size_is_known(
    monkeypatch: pytest.MonkeyPatch, page_size: int, zeros: int
) -> None:
    """They are looked through once, a stretch at a time; a record may lie across its end."""
    looked: list[int] = []
    real = rambody.probe_page_size

    def probe(view: memoryview, pos: int, idstrs: set[bytes], *, flat: bool) -> int | None:
        looked.append(len(view) - pos)
        return real(view, pos, idstrs, flat=flat)

    monkeypatch.setattr(rambody, "_PROBE_SIZE", 10_240)
    monkeypatch.setattr(rambody, "probe_page_size", probe)
    w = StreamWriter(page_size)
    w.header()
    w.ram_start([RamBlock("mem", 6000 * page_size)])
    with w.ram_part():
        for i in range(zeros):
            w.zero("mem", i * page_size)
        for i in range(zeros, zeros + 8):
            w.page("mem", i * page_size, bytes([i & 0xFF]) * page_size)
    with w.ram_end():
        pass
    w.eof()
    data = bytes(w)
    found = decode(data)
    # One look a stretch, and one more where a record lies across its end.
    assert len(looked) <= 2 * (zeros * 9 // 10_240 + 2)
    assert_tiles(found.events, len(data))
    assert not [a for a in found.of(Anomaly) if a.severity == "error"]
    batches = found.of(PageBatch)
    assert {b.page_size for b in batches} == {page_size}
    offsets = [o for b in batches for o in b.block_offset.tolist()]
    assert offsets == [i * page_size for i in range(zeros + 8)]
    for step in (1500, 10_239, 10_241):
        cut = decode(data, CutSource(data, lambda offset, need, step=step: step))
        assert facts(cut.events) == facts(found.events)
