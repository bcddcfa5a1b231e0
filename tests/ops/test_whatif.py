"""What pages would have come to, against streams of QEMU and a replay page by page."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from tests import streamwriter as sw
from tests.ops.test_history import Version, records
from tests.ops.test_passes import passes_of
from tests.truth import channel_names, fixture_file, load_manifest, open_fixture
from vmstream.cli.options import byte_size
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError
from vmstream.ops.channels import Channels
from vmstream.ops.stats import read_stats
from vmstream.ops.whatif import Compressed, Wanted, encodings
from vmstream.report.models.stats import StatsReport, WhatIfReport

PAGE = 4096


def run(name: str, directory: Path, *what_if: str, count: int = 2) -> StatsReport:
    path = fixture_file(name, directory)
    others = [fixture_file(n, directory) for n in channel_names(name)] if ".ch" in name else []
    wanted = [Wanted.read(text, byte_size) for text in what_if]
    with OpenStream(path) as opened:
        if not others:
            return read_stats(opened, wanted=wanted, count=count)[0]
        with Channels(others, opened.identity) as channels:
            return read_stats(opened, channels, wanted=wanted, count=count)[0]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("zstd", "zstd", 1),
        ("zstd:20", "zstd", 20),
        ("zlib:0", "zlib", 0),
        ("compress:9", "compress", 9),
        ("xbzrle", "xbzrle", 64 << 20),
        ("xbzrle:1g", "xbzrle", 1 << 30),
        ("xbzrle:4096", "xbzrle", 4096),
    ],
)
def test_wanted(text: str, name: str, value: int) -> None:
    assert Wanted.read(text, byte_size) == Wanted(name, value)


@pytest.mark.parametrize(
    "text",
    ["", "lz4", "zstd:", "zstd:21", "zlib:10", "zlib:-1", "zlib:1.5", "zlib:²", "compress:x",
     "xbzrle:3M", "xbzrle:0", "plain", "ZSTD"],
)  # fmt: skip
def test_not_wanted(text: str) -> None:
    with pytest.raises(ValueError, match=r"is none|has no level"):
        Wanted.read(text, byte_size)


# -- what QEMU wrote comes out again ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["own-live-q35", "own-plain-pc", "live-5.2-pc"])
def test_plain(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path, "xbzrle")
    in_vain = sum(k.zeros or 0 for k in report.wire.kinds)
    # A page that became zeros when QEMU had looked at it would be a record of 9 bytes.
    assert report.what_if[0].wire_bytes == report.wire.wire_bytes - in_vain * (PAGE - 1)
    assert report.what_if[0].saved_bytes == in_vain * (PAGE - 1)


def test_xbzrle_of_qemu(tmp_path: Path) -> None:
    """What QEMU 5.2 sent of a guest that ran: the same hits, misses, lengths, to the byte."""
    report = run("xbzrle-5.2-pc", tmp_path, "xbzrle")
    in_vain = sum(k.zeros or 0 for k in report.wire.kinds)
    sent = {k.kind: k.pages for k in report.wire.kinds}
    found = report.what_if[1]
    assert found.deltas == sent["xbzrle"] > 2000
    assert found.misses
    assert found.overflows
    # QEMU does not send what has not changed, so there is nothing of it.
    assert found.unchanged == 0
    assert found.wire_bytes == report.wire.wire_bytes - in_vain * (PAGE - 1)


def test_compress_of_qemu(tmp_path: Path) -> None:
    report = run("zlib-5.2-pc", tmp_path, "compress", "compress:9")
    assert report.what_if[1].wire_bytes == pytest.approx(report.wire.wire_bytes, rel=0.01)
    if "ng" not in zlib.ZLIB_RUNTIME_VERSION:
        assert report.what_if[1].wire_bytes == report.wire.wire_bytes
    assert report.what_if[2].level == 9
    assert report.what_if[2].wire_bytes < report.what_if[1].wire_bytes


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("multifd-zlib-10.0-q35.ch0", "zlib"), ("multifd-zstd-11.1-pc.ch0", "zstd")],
)
def test_multifd_of_qemu(name: str, encoding: str, tmp_path: Path) -> None:
    """Packets stay on their channels, so each of these is the stream that QEMU made."""
    report = run(name, tmp_path, encoding, "xbzrle")
    found = report.what_if[1]
    assert found.channels == 2
    assert found.packets == report.wire.packets
    # To the byte with the same release of the library; zstd makes other things of the same later.
    assert found.wire_bytes == pytest.approx(report.wire.wire_bytes, rel=0.05)
    if encoding == "zlib" and "ng" not in zlib.ZLIB_RUNTIME_VERSION:
        assert found.wire_bytes == report.wire.wire_bytes
    assert found.cpu_seconds is not None
    assert found.cpu_seconds > 0


# -- a replay --------------------------------------------------------------------------------------


@lru_cache
def versions_of(name: str) -> tuple[list[Version], list[int]]:
    """The versions of pages, and the pass of each."""
    versions = list(records(open_fixture(name), PAGE))
    return versions, passes_of(versions)


def replayed(name: str, cache: int) -> tuple[int, Counter[str]]:
    """Bytes, and what becomes of pages, as QEMU v7.2.0 migration/ram.c sends versions of pages."""
    versions, passes = versions_of(name)
    sizes = {b: e["size"] for b, e in load_manifest(name)["blocks"].items()}
    base, bases = 0, {}
    for block in dict.fromkeys(v[1] for v in versions):
        bases[block] = base
        base += -(-sizes[block] // (256 << 10)) * (256 << 10) // PAGE
    slots: dict[int, tuple[int, int, bytes]] = {}
    total, told, last = 0, Counter[str](), ""
    for (_, block, page, content), number in zip(versions, passes, strict=True):
        address = bases[block] + page
        size = 8 + (1 + len(block) if block != last else 0)
        held = slots.get(slot := address % (cache // PAGE))
        hit = number > 1 and held is not None and held[0] == address
        if number > 1 and (held is None or held[0] == address or held[1] + 2 <= number):
            slots[slot] = address, number, content
        if not any(content):
            size += 1
        elif hit and held is not None:
            payload = sw.xbzrle_encode(held[2], content)
            if not payload:
                told["unchanged"] += 1
                continue
            # No page of these is so near to the bound that how it is counted mattered.
            assert not 4000 < len(payload) < PAGE
            size += PAGE if len(payload) > PAGE else 3 + len(payload)
            told["overflows" if len(payload) > PAGE else "deltas"] += 1
        else:
            told["misses"] += number > 1
            size += PAGE
        total, last = total + size, block
    return total, told


@pytest.mark.parametrize("cache", ["64M", "1M", "4K"])
def test_xbzrle_replay(cache: str, tmp_path: Path) -> None:
    report = run("own-live-q35", tmp_path, f"xbzrle:{cache}")
    found = report.what_if[1]
    total, told = replayed("own-live-q35", byte_size(cache))
    assert told["misses"]
    assert told["deltas"]
    got = Counter(
        deltas=found.deltas, unchanged=found.unchanged, overflows=found.overflows,
        misses=found.misses,
    )  # fmt: skip
    assert +got == +told
    assert found.wire_bytes == total
    assert found.cache_size == byte_size(cache)


def by_hand(name: str, channels: int) -> tuple[int, int]:
    """Packets and bytes of multifd with zlib, page by page."""
    versions, passes = versions_of(name)
    packers = [zlib.compressobj(1) for _ in range(channels)]
    packets: list[list[bytes]] = []
    total, of, last = 0, None, ""
    for (_, block, _, content), number in zip(versions, passes, strict=True):
        if not any(content):
            total += 9 + (1 + len(block) if block != last else 0)
            last = block
            continue
        if of != (block, number) or len(packets[-1]) == 128:
            packets.append([])
            of = block, number
        packets[-1].append(content)
    for i, pages in enumerate(packets):
        packer = packers[i % channels]
        total += sum(len(packer.compress(p)) for p in pages)
        total += len(packer.flush(zlib.Z_SYNC_FLUSH)) + 320 + 8 * 128
    return len(packets), total


@pytest.mark.parametrize("channels", [1, 3])
def test_packets(channels: int, tmp_path: Path) -> None:
    found = run("own-live-q35", tmp_path, "zlib", count=channels).what_if[1]
    assert (found.packets, found.wire_bytes) == by_hand("own-live-q35", channels)
    assert found.channels == channels


# -- edges -----------------------------------------------------------------------------------------


def finished(wanted: Sequence[str]) -> list[WhatIfReport]:
    made = encodings([Wanted.read(w, byte_size) for w in wanted], (), PAGE, 2)
    return [one.finish(100) for one in made]


def test_no_pages() -> None:
    for report in finished(["zstd", "zlib", "compress", "xbzrle"]):
        assert (report.pages, report.wire_bytes, report.saved_bytes) == (0, 0, 100)


def test_a_cache_without_room() -> None:
    with pytest.raises(OutputError, match="no room for a page"):
        encodings([Wanted("xbzrle", 4096)], (), 65536, 2)


def test_given_up() -> None:
    """Threads end with what they have begun."""
    one = Compressed(Wanted("zlib", 9), (), PAGE, 2)
    rng = np.random.default_rng(1)
    for lane in one._lanes:
        for _ in range(4):
            lane.give([rng.integers(0, 256, 1 << 19, np.uint8).data])
    one.close()
    assert all(lane._pool._shutdown for lane in one._lanes)
