"""Counts of passes and pages against a plain replay of the records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.ops.test_extract import simple
from tests.ops.test_history import records
from tests.ops.test_passes import PAGE, SEVERAL, passes_of
from tests.streamwriter import RamBlock, StreamWriter
from tests.truth import channel_names, fixture_file, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import AddressError, LimitError, OutputError
from vmstream.ops.channels import Channels
from vmstream.ops.convergence import History, read_history


def run(path: Path, **options: int) -> History:
    with OpenStream(path) as opened:
        return read_history(opened, **options)


@pytest.mark.parametrize("name", SEVERAL)
def test_fixtures(name: str, tmp_path: Path) -> None:
    versions = list(records(open_fixture(name), PAGE))
    passes = passes_of(versions)
    keys = [v[1:3] for v in versions]
    first = dict(zip(reversed(keys), reversed(passes), strict=True))
    last = dict(zip(keys, passes, strict=True))
    times = Counter(keys)
    found = run(fixture_file(name, tmp_path), top=500)
    report = found.report
    assert found.exit_code == 0
    assert report.records == len(versions)
    assert report.pages_sent == len(times)
    assert found.superseded == len(versions) - len(times)
    assert [p.number for p in report.passes] == [*range(1, passes[-1] + 1)]
    for p in report.passes:
        pages = p.pages.normal + p.pages.zero + p.pages.xbzrle
        assert pages == passes.count(p.number)
        assert p.first == sum(n == p.number for n in first.values())
        assert p.last == sum(n == p.number for n in last.values())
        assert versions[passes.index(p.number)][0] == p.offset
    order = [*dict.fromkeys(block for block, _ in keys)]
    want = sorted(
        ((block, page * PAGE, n) for (block, page), n in times.items() if n > 1),
        key=lambda p: (-p[2], order.index(p[0]), p[1]),
    )[:500]
    assert [(p.block, p.block_offset, p.times) for p in report.top] == want
    assert all(p.gpa == p.block_offset for p in report.top if p.block == "mem")
    assert found.locate(0x100ABC) == (order.index("mem"), 0x100ABC)
    with pytest.raises(AddressError):
        found.locate(1 << 40)


def test_multifd(tmp_path: Path) -> None:
    """Rounds that the wire marks; packets count, page by page."""
    path = fixture_file("multifd-11.1-pc.ch0", tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names("multifd-11.1-pc.ch0")]
    with OpenStream(path) as opened, Channels(others, opened.identity) as channels:
        report = read_history(opened, channels).report
    assert {p.source for p in report.passes} == {"wire"}
    assert report.records == sum(p.pages.normal + p.pages.zero for p in report.passes)
    assert report.pages == report.pages_sent == sum(p.first for p in report.passes)
    assert report.pages == sum(p.last for p in report.passes)


def test_multifd_that_is_packed(tmp_path: Path) -> None:
    """What channels unpack to goes on from packet to packet, of whatever block they are."""
    path = fixture_file("multifd-zlib-10.0-q35.ch0", tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names("multifd-zlib-10.0-q35.ch0")]
    with OpenStream(path) as opened, Channels(others, opened.identity) as channels:
        assert read_history(opened, channels).report.anomalies == []


def test_pages_that_come_twice_in_a_batch(tmp_path: Path) -> None:

    def several(w: StreamWriter) -> None:
        w.page("mem", PAGE, b"\1" * PAGE)
        w.zero("mem", 0)
        w.zero("mem", PAGE)
        w.zero("mem", 0)
        w.page("mem", PAGE, b"\1" * PAGE)

    w = simple(several, mem=4)
    (tmp_path / "s").write_bytes(bytes(w))
    report = run(tmp_path / "s").report
    assert [(p.block_offset, p.times) for p in report.top] == [(PAGE, 4), (0, 3)]
    assert [p.first for p in report.passes] == [4, 0, 0, 0]
    assert [p.last for p in report.passes] == [2, 0, 0, 2]


def test_limits_and_damage(tmp_path: Path) -> None:
    path = fixture_file("own-live-q35", tmp_path)
    assert run(path, top=0).report.top == []
    with pytest.raises(LimitError):
        run(path, max_ram=1 << 20)
    (tmp_path / "cut").write_bytes(path.read_bytes()[: 5 << 20])
    cut = run(tmp_path / "cut")
    assert cut.exit_code == 3
    assert not cut.report.complete
    assert cut.report.pass_count == 2


def test_no_map(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("nobody-knows-1.0")
    w.ram_start([RamBlock("mem", PAGE)])
    with w.ram_end():
        w.page("mem", 0, b"\1" * PAGE)
    w.eof()
    w.vmdescription()
    (tmp_path / "s").write_bytes(bytes(w))
    found = run(tmp_path / "s")
    with pytest.raises(OutputError):
        found.locate(0)
