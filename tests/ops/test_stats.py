"""What pages have and how they were sent, against what the writer of a stream knows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings

from tests.channelwriter import ChannelWriter
from tests.guest.test_content import bits_of, class_of
from tests.ops.test_channels import small
from tests.ops.test_extract import withdrawn
from tests.strategies import corrupted_streams, examples, streams
from tests.streamwriter import RamBlock, StreamWriter
from tests.test_streamwriter import all_kinds
from tests.truth import channel_names, fixture_file, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import (
    EXIT_FINDINGS,
    FormatError,
    LimitError,
    UnsupportedError,
    VmstreamError,
)
from vmstream.ops import stats as module
from vmstream.ops.channels import Channels
from vmstream.ops.stats import read_stats
from vmstream.ops.whatif import Wanted
from vmstream.report.models.stats import StatsReport

PAGE = 4096
KINDS = {"normal": "PAGE", "zero": "ZERO", "xbzrle": "XBZRLE", "compressed": "COMPRESS_PAGE"}
ALL = [Wanted("zstd", 1), Wanted("compress", 1), Wanted("xbzrle", 1 << 20)]


def run(path: Path, others: list[Path] | None = None, **options: Any) -> tuple[StatsReport, int]:
    with OpenStream(path) as opened:
        if others is None:
            return read_stats(opened, **options)
        with Channels(others, opened.identity) as channels:
            return read_stats(opened, channels, **options)


def written(w: StreamWriter, directory: Path) -> Path:
    path = directory / "stream"
    path.write_bytes(bytes(w))
    return path


def pages_of(w: StreamWriter) -> Iterator[tuple[str, int, bytes]]:
    """Pages that were sent, as they are in the end; the last of a block is filled up."""
    for name, content in w.blocks.items():
        for address in sorted(w.touched[name]):
            yield (
                name,
                address,
                bytes(content[address : address + w.page_size]).ljust(w.page_size, b"\0"),
            )


def check(report: StatsReport, w: StreamWriter) -> None:
    """Hold a report against the truth."""
    pages = list(pages_of(w))
    sent = sum((Counter(c) for c in w.counts.values()), Counter[str]())
    got = {KINDS[k.kind]: k.pages for k in report.wire.kinds}
    assert got == {k: n for k, n in sent.items() if k in KINDS.values()}
    assert report.wire.pages == sum(got.values())
    for block in report.blocks:
        mine = [content for name, _, content in pages if name == block.idstr]
        told = Counter(map(class_of, mine))
        assert block.sent == len(mine)
        assert {c: getattr(block, c) for c in told} == dict(told)
        assert block.zero + block.fill + block.low + block.medium + block.high == len(mine)
        bits = [bits_of(p) for p in mine if any(p)]
        want = sum(bits) / len(bits) if bits else None
        assert block.entropy == (want if want is None else pytest.approx(want, abs=1e-3))
    alike = Counter(content for _, _, content in pages if any(content))
    found = report.duplicates
    assert found.pages == alike.total()
    assert found.distinct == len(alike)
    assert found.group_count == sum(n > 1 for n in alike.values())
    assert found.alike == sum(n for n in alike.values() if n > 1)
    assert found.saved_bytes == (alike.total() - len(alike)) * w.page_size
    for group in found.groups:
        first = next(c for n, a, c in pages if (n, a) == (group.block, group.block_offset))
        assert alike[first] == group.pages > 1
        assert first[:16].hex() == group.head
        assert first not in [c for n, a, c in pages if n == group.block and a < group.block_offset]
    counts = [g.pages for g in found.groups]
    assert counts == sorted((n for n in alike.values() if n > 1), reverse=True)[: len(counts)]
    assert report.what_if == [] or {i.pages + i.zeros for i in report.what_if} == {
        report.wire.pages
    }


def test_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = all_kinds(3)
    path = written(w, tmp_path)
    report, code = run(path, wanted=ALL, top=1000)
    assert code == EXIT_FINDINGS  # of all pages some were not sent
    check(report, w)
    assert report.duplicates.groups
    # However few pages are taken in hand at a time.
    monkeypatch.setattr(module, "_SENT_AT_ONCE", 3 * PAGE)
    monkeypatch.setattr(module, "_LEFT_AT_ONCE", 2 * PAGE)
    again, _ = run(path, wanted=ALL, top=1000)
    assert [i.wire_bytes for i in again.what_if] == [i.wire_bytes for i in report.what_if]
    assert again.wire == report.wire
    assert again.blocks == report.blocks
    assert again.duplicates == report.duplicates


@settings(max_examples=examples(60))
@given(w=streams(xbzrle=True, compress=True, fills=True, footers=True, vmdescription=True))
def test_any_stream(w: StreamWriter, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pages of any size, sent again in one part, of blocks that end inside one, with fill bytes."""
    path = written(w, tmp_path_factory.mktemp("any"))
    # One of zeros alone, with pages missing, is taken for the main channel of multifd.
    assume(any(set(c) - {"ZERO"} for c in w.counts.values()))
    report, _ = run(path, wanted=ALL, top=10)
    check(report, w)


@settings(max_examples=examples(60))
@given(data=corrupted_streams())
def test_any_damage(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A report or an error of ours, and nothing is counted that was not sent."""
    path = tmp_path_factory.mktemp("damaged") / "stream"
    path.write_bytes(data)
    try:
        report, _ = run(path, wanted=ALL, max_ram=1 << 30)
    except VmstreamError:
        return
    assert sum(b.sent for b in report.blocks) <= report.wire.pages
    assert {i.pages + i.zeros for i in report.what_if} <= {report.wire.pages}


def test_groups(tmp_path: Path) -> None:
    """The first page of each group by block and address, whatever the order they came in."""
    rng = random.Random(5)
    contents = [rng.randbytes(PAGE) for _ in range(3)]
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 16 * PAGE), RamBlock("rom", 4 * PAGE)])
    with w.ram_end():
        w.page("rom", 0, contents[0])
        w.page("pc.ram", 9 * PAGE, contents[0])
        for page, which in enumerate((2, 1, 0, 1, 2, 1)):
            w.page("pc.ram", page * PAGE, contents[which])
        w.page("pc.ram", 15 * PAGE, bytes(PAGE))
    w.eof()
    w.vmdescription()
    report, _ = run(written(w, tmp_path))
    groups = [(g.pages, g.block, g.block_offset) for g in report.duplicates.groups]
    assert groups == [(3, "pc.ram", PAGE), (3, "pc.ram", 2 * PAGE), (2, "pc.ram", 0)]
    (kind,) = report.wire.kinds
    assert (kind.kind, kind.pages, kind.zeros) == ("normal", 9, 1)
    assert report.wire.wire_bytes == 9 * (8 + PAGE) + 4 + 7
    assert run(written(w, tmp_path), top=1)[0].duplicates.groups == report.duplicates.groups[:1]
    assert run(written(w, tmp_path), top=0)[0].duplicates.group_count == 3


@pytest.mark.parametrize("name", ["multifd-7.2-pc.ch0", "multifd-11.1-pc.ch0"])
def test_multifd(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names(name)]
    report, code = run(path, others, wanted=ALL)
    assert code == 0
    kinds = {k.kind: k for k in report.wire.kinds}
    assert set(kinds) == {"multifd none", "zero" if "7.2" in name else "multifd zero"}
    normal = kinds["multifd none"]
    assert normal.wire_bytes == normal.pages * PAGE
    assert report.wire.packet_bytes == report.wire.packets * (320 + 8 * 128)
    assert report.wire.wire_bytes < sum(p.stat().st_size for p in (path, *others))
    with pytest.raises(UnsupportedError, match="channel"):
        run(path)


def test_packets_of_one_channel(tmp_path: Path) -> None:
    channel = ChannelWriter(0)
    channel.init()
    channel.sync(0)
    pages = {0: b"\1" * PAGE, PAGE: b"\1" * PAGE, 2 * PAGE: bytes(PAGE)}
    channel.packet(1, "pc.ram", pages, zero=[3 * PAGE])
    channel.sync(2)
    main = small(tmp_path, channel)
    report, _ = run(main, [tmp_path / "ch0"], wanted=[Wanted("zlib", 1)], count=7)
    kinds = {k.kind: (k.pages, k.wire_bytes, k.zeros) for k in report.wire.kinds}
    assert kinds == {"multifd none": (3, 3 * PAGE, 1), "multifd zero": (1, 0, None)}
    assert (report.blocks[0].fill, report.blocks[0].zero) == (2, 2)
    assert report.what_if[1].channels == 1
    assert report.what_if[1].packets == 1


def test_a_channel_that_is_not_of_multifd(tmp_path: Path) -> None:
    """Postcopy with preempt: what it sends on the second channel are records like others."""
    name = "postcopy-preempt-11.1-pc.ch0"
    path = fixture_file(name, tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names(name)]
    report, code = run(path, others, wanted=[Wanted("zlib", 1)], count=3)
    assert code == 0
    assert report.what_if[1].channels == 3
    assert {k.kind for k in report.wire.kinds} == {"normal", "zero"}
    # But that each channel has the name of a block in its first record of it.
    assert 0 <= report.what_if[0].saved_bytes < 20
    assert all(b.sent == b.pages for b in report.blocks)


def test_mapped_ram(tmp_path: Path) -> None:
    report, code = run(fixture_file("mapped-10.0-pc", tmp_path), wanted=ALL)
    assert code == 0
    kinds = {k.kind: k for k in report.wire.kinds}
    assert set(kinds) == {"mapped-ram", "zero"}
    assert kinds["mapped-ram"].wire_bytes == kinds["mapped-ram"].pages * PAGE
    assert sum(b.zero for b in report.blocks) == kinds["zero"].pages + (
        kinds["mapped-ram"].zeros or 0
    )
    # One pass, and nothing for XBZRLE to do.
    plain, *_, xbzrle = report.what_if
    assert xbzrle.wire_bytes == plain.wire_bytes


def test_withdrawn_pages_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(bytes(withdrawn((2 * PAGE, 3 * PAGE), again=(3,))))
    report, _ = run(tmp_path / "stream")
    assert [(b.idstr, b.sent, b.fill) for b in report.blocks] == [
        ("mem", 6, 6),
        ("pc.bios", 1, 0),
    ]


def test_a_cut_stream_as_far_as_it_goes(tmp_path: Path) -> None:
    data = open_fixture("own-live-q35")
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    report, code = run(path, wanted=ALL)
    assert code == 3
    assert not report.complete
    assert 4000 < report.wire.pages < 6000
    assert {i.pages + i.zeros for i in report.what_if} == {report.wire.pages}


def test_without_the_end(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    with w.ram_part():
        w.page("pc.ram", 0, bytes(PAGE))
        for page in range(4):
            w.zero("pc.ram", page * PAGE)
    w.eof()
    w.vmdescription()
    report, code = run(written(w, tmp_path), wanted=ALL)
    assert code == EXIT_FINDINGS
    assert not report.complete
    assert report.blocks[0].entropy is None
    assert report.duplicates.pages == 0
    assert report.duplicates.groups == []
    assert {i.wire_bytes for i in report.what_if} == {5 * 9 + 7}


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no stream at all\n" * 99)
    with pytest.raises(FormatError):
        run(tmp_path / "text")
    path = fixture_file("own-plain-pc", tmp_path)
    with pytest.raises(LimitError, match="--max-ram"):
        run(path, max_ram=1 << 20)
