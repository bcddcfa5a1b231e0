"""Searching versions of pages that were replaced, against a plain replay of the records.

The replay here goes record by record, with struct alone, and keeps each page as it then is.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, reject, settings, strategies as st

from tests import streamwriter as sw
from tests.channelwriter import ChannelWriter
from tests.decoding import decode
from tests.ops.test_channels import small
from tests.ops.test_extract import simple, withdrawn
from tests.strategies import examples, streams
from tests.streamwriter import RamBlock, StreamWriter
from tests.truth import fixture_file, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import IntegrityError, UnsupportedError
from vmstream.ops import history as module
from vmstream.ops.channels import Channels
from vmstream.ops.history import HistorySeen, check_file, search_history
from vmstream.ops.memory import MemoryOptions, read_memory
from vmstream.ops.search import Needle, expression, literal, search
from vmstream.report.models.search import HitReport
from vmstream.stream.events import RAMBlockList, SectionStart

PAGE = 4096
PAGES = sw.FLAG_ZERO | sw.FLAG_PAGE | sw.FLAG_XBZRLE | sw.FLAG_COMPRESS_PAGE

# Block, offset in it, length, offset of the record.
Place = tuple[str, int, int, int | None]

# Offset of the record, block, page, its bytes from then on.
Version = tuple[int, str, int, bytes]


def run(
    path: Path, needle: Needle, *, others: list[Path] | None = None, **options: Any
) -> tuple[list[HitReport], HistorySeen]:
    """Search a file's past; also that the last versions are what a plain search finds."""
    hits: list[HitReport] = []
    settings = MemoryOptions(options.pop("partial", False), spool=options.pop("spool", None))

    def channels() -> Channels | None:
        return Channels(others) if others else None

    with (
        OpenStream(path) as opened,
        OpenStream(path) as again,
        read_memory(opened, settings, channels()) as memory,
    ):
        seen = search_history(
            again, memory, needle, hits.append,
            options=settings, channels=channels(), **options,
        )  # fmt: skip
        if options.get("limit") is None:
            plain = list(search(memory, needle, block=options.get("block")))
            last = [h for h in hits if not h.superseded]
            assert hits[len(hits) - len(last) :] == last
            assert [place(h)[:3] for h in plain] == [place(h)[:3] for h in last]
            assert [h.gpa for h in plain] == [h.gpa for h in last]
    return hits, seen


def place(hit: HitReport) -> Place:
    return hit.block, hit.block_offset, hit.length, hit.record_offset


def past(hits: list[HitReport]) -> list[Place]:
    return sorted(place(h) for h in hits if h.superseded)


# ---- the replay ------------------------------------------------------------------------------


def records(data: bytes, page_size: int) -> Iterator[Version]:
    """The versions that the records of a stream make, in order."""
    found = decode(data)
    assert not found.errors
    lists = {e.offset: e.end for e in found.of(RAMBlockList)}
    pages: dict[tuple[str, int], bytes] = {}
    block = ""
    for start in found.of(SectionStart):
        if start.idstr != b"ram":
            continue
        at = lists.get(start.end, start.end)
        while True:
            (word,) = struct.unpack_from(">Q", data, at)
            offset, address, flags = at, word & -page_size, word & (page_size - 1)
            at += 8
            if flags & sw.FLAG_EOS:
                break
            if not flags & PAGES:
                continue
            if start.version_id == 3:
                block = "ram"
            elif not flags & sw.FLAG_CONTINUE:
                block = data[at + 1 : at + 1 + data[at]].decode()
                at += 1 + data[at]
            key = block, address // page_size
            if flags & sw.FLAG_ZERO:
                pages[key] = data[at : at + 1] * page_size
                at += 1
            elif flags & sw.FLAG_PAGE:
                pages[key] = data[at : at + page_size]
                at += page_size
            elif flags & sw.FLAG_XBZRLE:
                (length,) = struct.unpack_from(">H", data, at + 1)
                page = bytearray(pages.get(key, bytes(page_size)))
                sw.xbzrle_apply(page, data[at + 3 : at + 3 + length])
                pages[key] = bytes(page)
                at += 3 + length
            else:
                (length,) = struct.unpack_from(">I", data, at)
                pages[key] = zlib.decompress(data[at + 4 : at + 4 + length])
                at += 4 + length
            yield offset, *key, pages[key]


def replay(
    versions: Iterable[Version],
    pattern: bytes,
    page_size: int = PAGE,
    used: dict[str, int] | None = None,
) -> list[Place]:
    """Where a text stands in versions that were replaced, with the neighbours sent with them."""
    now: dict[tuple[str, int], tuple[int, int, bytes]] = {}
    found: set[Place] = set()
    reach = -(-(len(pattern) - 1) // page_size)
    # So that the look-ups below are for those who can have it.
    can = re.compile(b"|".join({re.escape(pattern[:1]), re.escape(pattern[-1:])}))
    for number, (offset, block, page, content) in enumerate(versions):
        old = now.get((block, page))
        if old is not None and can.search(old[2]):
            run = [page]
            for step in (-1, 1):
                for _ in range(reach):
                    inner = run[0] if step < 0 else run[-1]
                    other = now.get((block, inner + step))
                    if other is None or other[0] != now[block, inner][0] + step:
                        break
                    run.insert(0 if step < 0 else len(run), inner + step)
            whole = b"".join(now[block, p][2] for p in run)
            if used:
                whole = whole[: used[block] - run[0] * page_size]
            for i, start in enumerate(run):
                at = i * page_size
                while (at := whole.find(pattern, at)) >= 0 and at < (i + 1) * page_size:
                    where = run[0] * page_size + at
                    last = (where + len(pattern) - 1) // page_size
                    if start <= page <= last:
                        found.add((block, where, len(pattern), now[block, start][1]))
                    at += len(pattern)
        now[block, page] = number, offset, content
    return sorted(found)


LIVE = [
    "live-5.2-pc", "live-10.0-q35", "live-11.1-pc", "own-live-q35", "xbzrle-5.2-pc",
    "zlib-xbzrle-5.2-pc",
]  # fmt: skip


@pytest.mark.parametrize("name", LIVE)
def test_fixtures(name: str, tmp_path: Path) -> None:
    """Texts that pages of the past have, some across two of them."""
    path, data = fixture_file(name, tmp_path), open_fixture(name)
    rng = random.Random(name)
    versions = list(records(data, PAGE))
    main = max((v[1] for v in versions), key=lambda b: sum(v[1] == b for v in versions[:5000]))
    again = [
        (i, v) for i, v in enumerate(versions[:-1])
        if v[1] == main and i > len(versions) // 3 and any(v[3])
    ]  # fmt: skip
    texts = [b"FILLED"]
    for i, (_, block, page, content) in rng.sample(again, 40):
        at = rng.randrange(PAGE - 16)
        texts.append(content[at : at + rng.randrange(4, 16)])
        after = versions[i + 1]
        if after[1:3] == (block, page + 1):
            texts.append(content[-6:] + after[3][:6])
    # Not what fills pages.
    texts = sorted({t for t in texts if len(set(t)) > 3}, key=lambda t: (t != b"FILLED", t))[:3]
    total = 0
    for text in texts:
        want = replay(versions, text)
        hits, seen = run(path, literal(text), block=main)
        assert past(hits) == [p for p in want if p[0] == main]
        assert seen.superseded == len(versions) - len({v[1:3] for v in versions})
        total += len(want)
        assert past(run(path, expression(re.escape(text)), block=main)[0]) == past(hits)
        last = {v[1:3]: v[0] for v in versions}
        for hit in hits:
            if not hit.superseded:
                assert hit.record_offset == last[hit.block, hit.block_offset // PAGE]
    assert total


@given(streams(xbzrle=True, compress=True, fills=True), st.data())
@settings(max_examples=examples(30), deadline=None)
def test_streams(
    tmp_path_factory: pytest.TempPathFactory, w: StreamWriter, data: st.DataObject
) -> None:
    """All kinds of records, pages many times in a batch, in few bytes of buffer."""
    path = tmp_path_factory.mktemp("history") / "s"
    path.write_bytes(bytes(w))
    used = {name: len(block) for name, block in w.blocks.items()}
    pattern = data.draw(st.sampled_from([b"\0\0\0\0\0\0\0\x08", b"\xff\xff", b"QEVM", b"\x01"]))
    versions = list(records(bytes(w), w.page_size))
    assume(versions)
    want = replay(versions, pattern, w.page_size, used)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEP", data.draw(st.sampled_from([1, 3 * w.page_size, 1 << 20])))
        for name in used:
            try:
                hits, _ = run(path, literal(pattern), block=name, partial=True)
            except UnsupportedError:
                reject()  # a block without pages: they are on other channels
            assert past(hits) == [p for p in want if p[0] == name]


# ---- by hand -----------------------------------------------------------------------------------


def past_of(w: StreamWriter, needle: Needle, directory: Path, **options: Any) -> list[Place]:
    (directory / "s").write_bytes(bytes(w))
    return past(run(directory / "s", needle, **options)[0])


def body(text: bytes, at: int = 0) -> bytes:
    return (bytes(at) + text).ljust(PAGE, b"\0")


def offsets(w: StreamWriter, kind: str, address: int) -> list[int]:
    return [i.offset for i in w.items_of(kind) if i.attrs["address"] == address]


def test_zero_records_replace_data_and_are_replaced(tmp_path: Path) -> None:
    w = simple(
        lambda w: w.page("mem", PAGE, body(b"needle", 8)),
        lambda w: w.zero("mem", PAGE),
        lambda w: w.page("mem", PAGE, body(b"needle", 8)),
        mem=4,
    )
    (first, last) = offsets(w, "PAGE", PAGE)
    hits, seen = run_of(w, literal(b"needle"), tmp_path)
    assert [(h.gpa, h.superseded, h.record_offset) for h in hits] == [
        (PAGE + 8, True, first),
        (PAGE + 8, False, last),
    ]
    assert seen == HistorySeen(3, False)
    # Zeros that were there: the whole page twice, and around the text.
    zeros = past_of(w, literal(bytes(PAGE)), tmp_path)
    assert zeros == [("mem", PAGE, PAGE, o) for o in offsets(w, "ZERO", PAGE)]


def run_of(
    w: StreamWriter, needle: Needle, directory: Path, **options: Any
) -> tuple[list[HitReport], HistorySeen]:
    (directory / "s").write_bytes(bytes(w))
    return run(directory / "s", needle, **options)


def test_each_version_in_a_batch(tmp_path: Path) -> None:
    """A page many times in one part, as PAGE, XBZRLE and zlib records."""

    def write(w: StreamWriter) -> None:
        for i in range(20):
            w.page("mem", 0, body(b"version %04d" % (3 * i)))
            w.xbzrle_to("mem", 0, body(b"version %04d" % (3 * i + 1)))
            w.compress_page("mem", 0, zlib.compress(body(b"version %04d" % (3 * i + 2))))

    w = simple(write, mem=2)
    hits, seen = run_of(w, expression(rb"version \d+"), tmp_path)
    assert [bytes.fromhex(h.data) for h in hits] == [b"version %04d" % i for i in range(60)]
    assert [h.superseded for h in hits] == [True] * 59 + [False]
    told = sorted(
        i.offset for i in w.items_of("PAGE", "XBZRLE", "COMPRESS_PAGE") if i.attrs["address"] == 0
    )
    assert [h.record_offset for h in hits] == told
    assert seen.superseded == 60


def test_into_the_next_page(tmp_path: Path) -> None:
    """If its record came right behind, whichever of the two is replaced, and once."""

    def pair(w: StreamWriter) -> None:
        w.page("mem", 0, body(b"nee", PAGE - 3))
        w.page("mem", PAGE, body(b"dle"))

    for again in ((0,), (PAGE,), (0, PAGE), (PAGE, 0)):

        def replaced(w: StreamWriter, again: tuple[int, ...] = again) -> None:
            for address in again:
                w.page("mem", address, body(b"x", 9))

        w = simple(pair, replaced, mem=4)
        want = [("mem", PAGE - 3, 6, offsets(w, "PAGE", 0)[0])]
        assert past_of(w, literal(b"needle"), tmp_path) == want, again
        assert past_of(w, expression(b"n[e]+dle"), tmp_path) == want, again
    # Sent apart, nobody knows whether they ever stood side by side.
    w = simple(
        lambda w: w.page("mem", 0, body(b"nee", PAGE - 3)),
        lambda w: (w.zero("mem", 3 * PAGE), w.page("mem", PAGE, body(b"dle"))),
        lambda w: w.zero("mem", 0),
        mem=4,
    )
    assert past_of(w, literal(b"needle"), tmp_path) == []


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_over_three_pages(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found once, though two of them are replaced, in one go or in two."""
    monkeypatch.setattr(module, "_STEP", step)
    text = random.Random(1).randbytes(PAGE + 20)
    whole = bytes(PAGE - 10) + text + bytes(PAGE - 10)

    def triple(w: StreamWriter) -> None:
        for at in range(0, 3 * PAGE, PAGE):
            w.page("mem", at, whole[at : at + PAGE])

    w = simple(triple, lambda w: (w.zero("mem", 0), w.zero("mem", 2 * PAGE)), mem=4)
    want = [("mem", PAGE - 10, len(text), offsets(w, "PAGE", 0)[0])]
    assert past_of(w, literal(text), tmp_path) == want
    assert past_of(w, expression(re.escape(text)), tmp_path) == want


def test_the_last_page_of_a_block_may_be_a_part_of_one(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", PAGE + 100), RamBlock("rest", PAGE - 100)])
    with w.ram_end():
        for text in (b"abcdef", b"ghijkl"):
            w.page("mem", 0, bytes(PAGE))
            w.page("mem", PAGE, body(text, 96))
        w.zero("rest", 0)
    w.eof()
    assert past_of(w, literal(b"abcd"), tmp_path, block="mem") == [
        ("mem", PAGE + 96, 4, offsets(w, "PAGE", PAGE)[0])
    ]
    assert past_of(w, literal(b"abcde"), tmp_path, block="mem") == []


def test_withdrawn_pages(tmp_path: Path) -> None:
    w = withdrawn((PAGE, 2 * PAGE), again=(PAGE,))
    hits = past_of(w, literal(b"\x02\x02"), tmp_path, partial=True)
    assert [h[1] for h in hits] == list(range(PAGE, 2 * PAGE, 2))
    assert {h[3] for h in hits} == {offsets(w, "PAGE", PAGE)[0]}
    # Once: a page that is gone is not replaced.
    hits = past_of(w, literal(b"\x03" * PAGE), tmp_path, partial=True)
    assert hits == [("mem", 2 * PAGE, PAGE, offsets(w, "PAGE", 2 * PAGE)[0])]


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_packets(compression: str, tmp_path: Path) -> None:
    """Their hits name channel and packet; a match may cross pages of one packet."""
    c = ChannelWriter(compression=compression)
    c.init()
    c.sync(0)
    c.packet(1, "pc.ram", {0: body(b"nee", PAGE - 3), PAGE: body(b"dle")}, zero=[2 * PAGE])
    c.packet(2, "pc.ram", {PAGE: body(b"new needle")}, zero=[0])
    c.sync(3)
    main, channel = small(tmp_path, c), tmp_path / "ch0"
    hits, seen = run(main, literal(b"needle"), others=[channel], block="pc.ram")
    assert [(h.block_offset, h.record_offset, h.superseded, h.channel) for h in hits] == [
        (PAGE - 3, c.packets[1], True, str(channel)),
        (PAGE + 4, c.packets[2], False, str(channel)),
    ]
    assert seen.superseded == 2


def test_limit(tmp_path: Path) -> None:
    w = simple(*(lambda w, i=i: w.page("mem", 0, body(b"n%d" % i)) for i in range(5)), mem=1)
    hits, _ = run_of(w, expression(rb"n\d"), tmp_path)
    assert len(hits) == 5
    for limit in (1, 4, 5, 9):
        assert run_of(w, expression(rb"n\d"), tmp_path, limit=limit)[0] == hits[:limit]


def test_what_is_not_in_the_map_is_searched_by_its_name(tmp_path: Path) -> None:
    def write(w: StreamWriter) -> None:
        for text in (b"old", b"new"):
            w.page("pc.bios", 0, body(text))

    w = simple(write, **{"mem": 4, "pc.bios": 1})
    assert past_of(w, literal(b"old"), tmp_path) == []
    (hit,) = past_of(w, literal(b"old"), tmp_path, block="pc.bios")
    assert hit[:2] == ("pc.bios", 0)


def test_compressed_input(tmp_path: Path) -> None:
    w = simple(lambda w: w.page("mem", 0, body(b"needle")), lambda w: w.zero("mem", 0), mem=4)
    (tmp_path / "s.gz").write_bytes(gzip.compress(bytes(w)))
    (hit,) = run(tmp_path / "s.gz", literal(b"needle"), spool=tmp_path)[0]
    assert place(hit) == ("mem", 0, 6, offsets(w, "PAGE", 0)[0])


def test_a_broken_page(tmp_path: Path) -> None:
    """What could be decoded of it is a version, too."""

    def write(w: StreamWriter) -> None:
        w.page("mem", 0, body(b"needle"))
        w.compress_page("mem", 0, zlib.compress(body(b"needle"))[:20], truth=False)
        w.zero("mem", 0)

    w = simple(write, mem=2)
    with pytest.raises(IntegrityError):
        run_of(w, literal(b"needle"), tmp_path)
    assert past_of(w, literal(b"needle"), tmp_path, partial=True)[0][3] == offsets(w, "PAGE", 0)[0]


def test_one_version_of_each(tmp_path: Path) -> None:
    for name, remark in (("plain-7.2-pc", "no page was sent"), ("mapped-10.0-pc", "mapped-ram")):
        hits, seen = run(fixture_file(name, tmp_path), literal(b"SeaBIOS"))
        assert hits
        assert not any(h.superseded for h in hits)
        assert remark in (seen.remark or "")


def test_pages_many_times_in_a_batch_take_no_time(tmp_path: Path) -> None:
    """10,000 records of one page, in steps of one."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", PAGE)])
    w.part(w.ram_id)
    head = sw.be64(sw.FLAG_ZERO) + sw.cstr8("mem") + b"\0"
    w.raw(head + (sw.be64(sw.FLAG_ZERO | sw.FLAG_CONTINUE) + b"\0") * 10_000)
    w.eos()
    w.footer(w.ram_id)
    with w.ram_end():
        pass
    w.eof()
    begin = time.process_time()
    hits, seen = run_of(w, literal(b"needle"), tmp_path, block="mem")
    assert (hits, seen.superseded) == ([], 10_000)
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("path", ["-", "fifo", "/dev/null"])
def test_pipes_are_refused(path: str, tmp_path: Path) -> None:
    if path == "fifo":
        path = str(tmp_path / "fifo")
        os.mkfifo(path)
    with pytest.raises(UnsupportedError, match="twice") as caught:
        check_file(path)
    assert "save it to a file" in (caught.value.advice or "")
    check_file(__file__)
