"""The oracle itself on trial: what StreamWriter writes, QEMU must load, and to the same memory."""

from __future__ import annotations

import json
import random
import zlib

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests import streamwriter as sw
from tests.qemu import Qemu, find_qemu
from tests.strategies import (
    BODY_KINDS,
    corrupted_streams,
    cut_streams,
    examples,
    page_body,
    streams,
)
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, Subsection, simple_stream
from tests.truth import has_truth, load_manifest, open_fixture, sums_of_bytes

MIB = 1 << 20

pytestmark = pytest.mark.qemu
PAGE = 4096

needs_qemu = pytest.mark.skipif(find_qemu() is None, reason="no qemu-system-x86_64 on PATH")


def load_into_qemu(stream: bytes, size: int, **capabilities: bool) -> tuple[bytes, str]:
    """Load a stream with the RAM block "mem" into the machine without devices; memory, messages."""
    machine = Qemu(["-M", "none"], mem=("mem", size), incoming="defer", files={"guest.in": stream})
    with machine as vm:
        if capabilities:
            vm.set_capabilities(**capabilities)
        vm.qmp("migrate-incoming", uri="exec:cat guest.in")
        vm.wait_loaded()
        return vm.backend.read_bytes(), vm.errors()


def all_kinds(seed: int, size: int = 2 * MIB, compress: bool = True) -> StreamWriter:
    """Every kind of record, several passes.

    No page twice in one PART: QEMU inflates in threads that it waits for only at the end of a
    section, so there the order of a COMPRESS_PAGE and another record of the same page is open.
    """
    rng = random.Random(seed)
    looks = [sw.be64(sw.FLAG_EOS) + sw.footer(1), sw.be64(sw.FLAG_PAGE) + sw.cstr8("mem")]
    w = StreamWriter()
    w.header()
    w.configuration("none")
    w.ram_start([RamBlock("mem", size)])
    for _ in range(4):
        with w.ram_part():
            for index in rng.sample(range(size // PAGE), 200):
                address = index * PAGE
                body = page_body(rng.choice(BODY_KINDS), rng.randrange(1 << 30), PAGE, looks)
                named = rng.choice((None, True))
                kind = rng.choice(("zero", "page", "xbzrle", "compress"))
                if kind == "zero":
                    w.zero("mem", address, named=named)
                elif kind == "compress" and compress:
                    w.compress_page("mem", address, zlib.compress(body), named=named)
                elif kind == "xbzrle" and address in w.touched["mem"]:
                    at = rng.randrange(PAGE)
                    new = w.blocks["mem"][address : address + PAGE]
                    new[at : at + 200] = body[at : at + 200]
                    w.xbzrle_to("mem", address, bytes(new), named=named)
                else:
                    w.page("mem", address, body, named=named)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    return w


@needs_qemu
def test_qemu_loads_what_we_write() -> None:
    w = all_kinds(1)
    assert set(w.counts["mem"]) == {"ZERO", "PAGE", "XBZRLE", "COMPRESS_PAGE"}
    try:
        memory, messages = load_into_qemu(bytes(w), 2 * MIB, compress=True)
    except Exception as error:  # 9.1 and later have no such capability
        if "compress" not in str(error):
            raise
        w = all_kinds(1, compress=False)
        memory, messages = load_into_qemu(bytes(w), 2 * MIB)
    assert memory == w.blocks["mem"]
    assert messages == ""


def test_truth_holds_for_a_real_stream() -> None:
    """Replaying the records of a real stream by their offsets gives back its bytes and its RAM."""
    data = open_fixture("own-plain-pc")
    manifest = load_manifest("own-plain-pc")
    w = StreamWriter()
    w.header()
    length = int.from_bytes(data[9:13], "big")
    w.configuration(data[13 : 13 + length].decode())
    at = w.offset
    assert data[at] == sw.SECTION_START
    section_id = int.from_bytes(data[at + 1 : at + 5], "big")
    sizes = {name: entry["size"] for name, entry in manifest["blocks"].items()}
    # The stream's order of blocks is not the manifest's: read the names from the list.
    at += len(sw.section_header(sw.SECTION_START, section_id, "ram", 0, 4)) + 8
    blocks: list[RamBlock] = []
    while len(blocks) < len(sizes):
        name = data[at + 1 : at + 1 + data[at]].decode()
        blocks.append(RamBlock(name, sizes[name]))
        at += 1 + len(name) + 8
    w.ram_start(blocks, section_id=section_id)
    while data[w.offset] == sw.SECTION_PART:
        with w.ram_part():
            replay(w, data)
    with w.ram_end():
        replay(w, data)
    assert data[: w.offset] == w.data
    assert w.offset > 2 * MIB
    for name, content in w.blocks.items():
        if has_truth(manifest, name):
            want = manifest["blocks"][name]
            assert sums_of_bytes(content).sha256 == want["sha256"], name


def replay(w: StreamWriter, data: bytes) -> None:
    """Write the records that stand in `data` at the writer's place, up to EOS."""
    while True:
        at = w.offset
        word = int.from_bytes(data[at : at + 8], "big")
        address, flags = word & ~(PAGE - 1), word & (PAGE - 1)
        if flags == sw.FLAG_EOS:
            return
        at += 8
        block = w.last_block or ""
        if not flags & sw.FLAG_CONTINUE:
            block = data[at + 1 : at + 1 + data[at]].decode()
            at += 1 + data[at]
        if flags & sw.FLAG_ZERO:
            w.zero(block, address, data[at])
        else:
            w.page(block, address, data[at : at + PAGE])


@pytest.mark.parametrize(
    ("name", "style"),
    [("plain-5.2-pc", "qjson"), ("plain-7.2-pc", "6.0"), ("plain-11.1-pc", "6.0")],
)
def test_json_is_printed_as_qemu_does(name: str, style: str) -> None:
    data = open_fixture(name)
    text = data[data.rindex(b"\0\x06") + 6 :]
    if style == "6.0":
        assert sw.json_text(json.loads(text), style) == text
    else:
        parsed = json.loads(text, object_pairs_hook=PairsDict)
        assert sw.json_text(parsed, style) == text


class PairsDict(dict[str, object]):
    """A dict that still knows its duplicate keys, which the JSON of QEMU has."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def items(self) -> list[tuple[str, object]]:  # type: ignore[override]
        return self.pairs


def test_items_lie_side_by_side() -> None:
    w = simple_stream(
        {"pc.ram": {0: b"x" * PAGE, PAGE: b""}, "b": {PAGE: b"y" * PAGE}},
        devices=[
            Device(
                "0000:00:02.0/vga",
                fields=[Field("a", "uint32", bytes(8), array_len=2)],
                subsections=[Subsection("vga/x", 1, [Field("b", "bool", b"\1")])],
            ),
            Device("slirp", version=4, old_style=b"abc"),
        ],
    )
    at = 0
    for item in w.items:
        assert item.offset == at
        at = item.stop
    assert at == len(w.data)
    assert {name: dict(counts) for name, counts in w.counts.items()} == {
        "pc.ram": {"PAGE": 1, "ZERO": 1},
        "b": {"PAGE": 1},
    }
    assert w.description is not None
    assert w.description["devices"][0]["vmsd_name"] == "vga"
    assert w.description["devices"][0]["fields"][0]["size"] == 4


def test_nested_items_are_shifted() -> None:
    inner = StreamWriter()
    inner.postcopy_listen()
    inner.device(Device("timer", fields=[Field("t", "int64", bytes(8))], section_id=7))
    inner.postcopy_run()
    outer = StreamWriter()
    outer.header()
    package = outer.packaged(inner)
    assert outer.data[package.offset : package.stop] == inner.data
    full = outer.items_of("FULL")[0]
    assert outer.data[full.offset] == sw.SECTION_FULL


@given(st.data(), st.integers(0, 1 << 30))
def test_xbzrle_round_trip(data: st.DataObject, seed: int) -> None:
    rng = random.Random(seed)
    old = rng.randbytes(PAGE)
    new = bytearray(old)
    for _ in range(data.draw(st.integers(0, 8))):
        at = rng.randrange(PAGE)
        size = rng.choice((1, 2, 127, 128, 129, 4000))
        new[at : at + size] = rng.randbytes(min(size, PAGE - at))
    page = bytearray(old)
    sw.xbzrle_apply(page, sw.xbzrle_encode(old, bytes(new)))
    assert page == new


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(xbzrle=True, compress=True, fills=True))
def test_random_streams_are_consistent(w: StreamWriter) -> None:
    assert w.data.startswith(b"QEVM\0\0\0\3")
    at = 0
    for item in w.items:
        assert item.offset == at
        at = item.stop
    assert at == len(w.data)
    assert all(len(content) % w.page_size == 0 for content in w.blocks.values())


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cut_streams(), corrupted_streams())
def test_broken_streams_are_made(cut: tuple[StreamWriter, int], corrupted: bytes) -> None:
    writer, length = cut
    assert 0 <= length < len(writer.data)
    assert corrupted
