"""mapped-ram: every page of a block once, by its bit; stale bytes are no data."""

from __future__ import annotations

import dataclasses
import io
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import BytesSource, CutSource, Decoded, assert_tiles, decode, owned
from tests.strategies import examples
from tests.streamwriter import StreamWriter
from tests.truth import open_fixture
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.guest.memory import Placement, RAMImage
from vmstream.ops.pipeline import events
from vmstream.stream import mapped as mapped_module
from vmstream.stream.decoder import NEED_DATA, Decoder
from vmstream.stream.events import Anomaly, Event, Gap, MappedBlock, MappedPages, RAMBlockList
from vmstream.transport.source import PipeSource

PAGE = 4096


@dataclass
class Block:
    """A block, what is wrong with its header, and where it came to stand."""

    name: str
    pages: int
    present: dict[int, bytes]
    stale: dict[int, bytes] = field(default_factory=dict)
    gap: int = 100
    version: int = 1
    page_size: int = PAGE
    bitmap_shift: int = 0
    pages_shift: int = 0
    gpa: int | None = None
    left_out: bool = False
    entry: int = 0
    area: int = 0


def mapped(
    blocks: Sequence[Block],
    *,
    origin: int = 0,
    total: int | None = None,
    long: int = 8,
    big: bool = False,
) -> bytes:
    """A stream at `origin` of a file, of which the bytes from there on are returned.

    `long` is the size of a long on the host that wrote it, `big` its order.
    """
    shared = any(b.gpa is not None for b in blocks)
    w = StreamWriter()
    w.header()
    w.configuration(
        "pc-q35-9.0", capabilities=["mapped-ram", *(["x-ignore-shared"] if shared else [])]
    )
    w.start(2, "ram", 0, 4)
    data = bytearray(w.data)
    length = sum(b.pages * b.page_size for b in blocks)
    data += sw.be64((length if total is None else total) | 4)
    for block in blocks:
        block.entry = len(data)
        size = block.page_size
        data += sw.cstr8(block.name) + sw.be64(block.pages * size)
        if block.gpa is not None:
            data += sw.be64(block.gpa)
        if block.left_out:
            data += struct.pack(">IQQQ", block.version, size, 0, 0)
            continue
        bitmap_at = len(data) + 28
        longs = [0] * -(-block.pages // (8 * long))
        for page in block.present:
            longs[page // (8 * long)] |= 1 << page % (8 * long)
        shape = {4: "I", 8: "Q"}[long]
        bits = struct.pack(f"{'>' if big else '<'}{len(longs)}{shape}", *longs)
        pages_at = bitmap_at + len(bits) + block.gap
        data += struct.pack(
            ">IQQQ",
            block.version,
            size,
            origin + bitmap_at + block.bitmap_shift,
            origin + pages_at + block.pages_shift,
        )
        data += bits + bytes(block.gap)
        block.area = len(data)
        area = bytearray(block.pages * size)
        for page, body in {**block.stale, **block.present}.items():
            area[page * size : page * size + len(body)] = body
        data += area
    w2 = StreamWriter()
    w2.raw(bytes(data))
    w2.eos()
    tail = bytes(w2.data)
    return tail + sw.footer(2) + b"\x03\0\0\0\2" + sw.be64(sw.FLAG_EOS) + sw.footer(2) + b"\0"


def image_of(data: bytes, *, source: object = None, origin: int = 0) -> list[bytearray]:
    """RAM as an image of every block gets it."""

    class Sink:
        def __init__(self, size: int) -> None:
            self.data = bytearray(size)

        def write(self, offset: int, data: memoryview | bytes) -> None:
            self.data[offset : offset + len(data)] = data

    sinks: list[Sink] = []
    image: RAMImage | None = None
    given = source or BytesSource(data)
    given.origin = origin  # type: ignore[attr-defined]
    for event in events(given, Decoder(strict=True)):  # type: ignore[arg-type]
        if isinstance(event, RAMBlockList):
            sinks = [Sink(b.used_length) for b in event.blocks]
            places = [
                Placement(i, 0, b.used_length, sinks[i], 0)  # type: ignore[arg-type]
                for i, b in enumerate(event.blocks)
            ]
            image = RAMImage(event.blocks, PAGE, places)
        elif isinstance(event, MappedPages):
            assert image is not None
            image.add_mapped(event)
    return [s.data for s in sinks]


def truth(block: Block) -> bytes:
    whole = bytearray(block.pages * block.page_size)
    for page, body in block.present.items():
        whole[page * block.page_size : page * block.page_size + len(body)] = body
    return bytes(whole)


def body(seed: int, size: int = PAGE) -> bytes:
    return random.Random(seed).randbytes(size)


SIMPLE = [
    Block("mem", 70, {i: body(i) for i in (0, 1, 5, 63, 64, 69)}, {2: body(90), 68: body(91)}),
    Block("pc.bios", 3, {}),
    Block("/rom@x", 1, {0: body(7)}, gap=0),
    Block("big", 600, {599: body(8)}, {i: body(92) for i in range(0, 500, 7)}),
]


def test_simple() -> None:
    data = mapped(SIMPLE)
    found = decode(data)
    assert not found.errors
    assert_tiles(found.events, len(data))
    assert found.decoder.page_size == PAGE
    assert found.decoder.page_size_source == "mapped-ram"
    (listed,) = found.of(RAMBlockList)
    assert [(b.idstr.decode(), b.used_length // PAGE) for b in listed.blocks] == [
        (b.name, b.pages) for b in SIMPLE
    ]
    heads = found.of(MappedBlock)
    assert [(h.offset, h.end) for h in heads] == [(b.entry, b.area) for b in SIMPLE]
    for index, block in enumerate(SIMPLE):
        stretches = [e for e in found.of(MappedPages) if e.block == index]
        present = [p for e in stretches for p in e.present.tolist()]
        assert present == [i in block.present for i in range(block.pages)]
    assert image_of(data) == [truth(b) for b in SIMPLE]


def test_what_is_not_there_is_not_read() -> None:
    """599 pages, 2.3 MiB, in front of the one that is."""
    (skipped,) = [e for e in decode(mapped(SIMPLE)).of(MappedPages) if e.block == 3 and not e.data]
    assert len(skipped.present) == 599
    assert not skipped.present.any()


@pytest.mark.parametrize("origin", [1, 92, 65536 + 92])
def test_inside_a_longer_file(origin: int) -> None:
    """Offsets are those of the file, as in an image of libvirt."""
    data = mapped(SIMPLE, origin=origin)
    assert image_of(data, origin=origin) == [truth(b) for b in SIMPLE]
    assert decode(data).errors


def test_shared_blocks_have_an_address() -> None:
    blocks = [
        Block("mem", 2, {1: body(1)}, gpa=0),
        Block("pc.bios", 1, {0: body(2)}, gpa=0xFFFC0000),
    ]
    found = decode(mapped(blocks))
    assert not found.errors
    assert [b.gpa for b in found.of(RAMBlockList)[0].blocks] == [0, 0xFFFC0000]


@pytest.mark.parametrize("origin", [0, 0x3000])
def test_shared_blocks_that_are_left_out(origin: int) -> None:
    """QEMU 11.1 writes their headers with offsets of 0, and the next entry behind them."""
    blocks = [
        Block("mem", 2, {}, gpa=0, left_out=True),
        Block("pc.bios", 2, {1: body(2)}, gpa=0xFFFC0000),
        Block("more", 3, {}, gpa=0, left_out=True),
    ]
    data = mapped(blocks, origin=origin)
    assert image_of(data, origin=origin) == [truth(b) for b in blocks]
    if origin:
        return
    found = decode(data)
    assert not found.errors
    assert_tiles(found.events, len(data))
    assert [b.used_length for b in found.of(RAMBlockList)[0].blocks] == [8192, 8192, 12288]
    assert {p.block for p in found.of(MappedPages)} == {1}
    heads = found.of(MappedBlock)
    assert [h.end == h.bitmap_offset for h in heads] == [True, False, True]
    for cut in range(len(data) - 1):
        if cut % 7 == 0:
            assert_tiles(decode(data[:cut]).events, cut)
            assert decode(data[:cut]).errors
    # Without the capability such a header is wrong.
    one = mapped([Block("mem", 2, {}, left_out=True)])
    assert isinstance(decode(one).errors[0], IntegrityError)


@settings(deadline=None, max_examples=examples(40))
@given(
    st.lists(
        st.tuples(
            st.integers(1, 400),
            st.sets(st.integers(0, 399), max_size=40),
            st.sets(st.integers(0, 399), max_size=10),
            st.integers(0, 200),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1 << 32),
)
def test_any_bitmap(parts: list[tuple[int, set[int], set[int], int]], seed: int) -> None:
    """However the input is cut into windows."""
    rng = random.Random(seed)
    blocks = [
        Block(
            f"b{i}",
            pages,
            {p: body(p) for p in present if p < pages},
            {p: body(p + 1000) for p in stale - present if p < pages},
            gap,
        )
        for i, (pages, present, stale, gap) in enumerate(parts)
    ]
    data = mapped(blocks)

    def size(_offset: int, _need: int) -> int:
        return rng.choice((1, 9, 5000, 1 << 20))

    source = CutSource(data, size, back=rng.choice((0, 1, 13)))
    assert image_of(data, source=source) == [truth(b) for b in blocks]


BROKEN: dict[str, tuple[dict[str, object], type[StreamError]]] = {
    "version": ({"version": 2}, FormatError),
    "page size": ({"page_size": 4095}, IntegrityError),
    "bitmap in front": ({"bitmap_shift": -1}, IntegrityError),
    "bitmap far behind": ({"bitmap_shift": 1 << 62}, IntegrityError),
    "pages in the bitmap": ({"pages_shift": -105}, IntegrityError),
    "pages far behind": ({"pages_shift": 1 << 40}, TruncatedError),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("which", [0, 1])
def test_headers_that_do_not_add_up(name: str, which: int) -> None:
    change, error = BROKEN[name]
    blocks = [Block("a", 3, {0: body(1)}), Block("b", 3, {2: body(2)})]
    for key, value in change.items():
        setattr(blocks[which], key, value)
    data = mapped(blocks, total=6 * PAGE)
    found = decode(data)
    assert_tiles(found.events, len(data))
    assert type(found.errors[0]) is error
    if error is not TruncatedError:
        assert blocks[which].entry <= found.errors[0].offset < blocks[which].area


def test_a_total_that_does_not_fit() -> None:
    for total, error in ((PAGE, IntegrityError), (5 * PAGE, StreamError), (1 << 62, LimitError)):
        data = mapped([Block("a", 3, {0: body(1)})], total=total)
        found = decode(data)
        assert_tiles(found.events, len(data))
        assert isinstance(found.errors[0], error)


def test_a_bitmap_without_end() -> None:
    """A small file can state a block of a pebibyte."""
    data = bytearray(mapped([Block("a", 3, {0: body(1)})], total=1 << 49))
    at = data.index(b"\1a") + 2
    data[at : at + 8] = sw.be64(1 << 49)
    data[at + 28 : at + 36] = sw.be64(1 << 45)
    assert isinstance(decode(data).errors[0], LimitError)


def test_pages_as_records_are_illegal() -> None:
    data = mapped([Block("a", 1, {})])
    at = data.rindex(b"\x03\0\0\0\2") + 5
    found = decode(data[:at] + sw.be64(0x22) + b"\0" + data[at:])
    assert isinstance(found.errors[0], FormatError)
    assert found.errors[0].offset == at


def test_cut_anywhere() -> None:
    data = mapped(SIMPLE[:3])
    rng = random.Random(1)
    for cut in sorted({*range(0, 400, 3), *(rng.randrange(len(data)) for _ in range(60))}):
        found = decode(data[:cut])
        assert_tiles(found.events, cut)
        assert found.errors
        assert isinstance(found.errors[0], TruncatedError)


def test_a_fixture_cut_and_damaged() -> None:
    data = open_fixture("mapped-10.0-pc")
    rng = random.Random(2)
    for _ in range(12):
        cut = rng.randrange(len(data))
        found: Decoded = decode(data[:cut])
        assert_tiles(found.events, cut)
        assert found.errors
    for at in [*range(0x5B, 0x8B), 0x100000 - 1]:
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        assert_tiles(decode(changed).events, len(data))


# -- the order of the host ------------------------------------------------------------------------
# No such file was at hand: they are built here, as QEMU v10.1.0 migration/ram.c
# ram_save_file_bmap() writes the longs of its host.

ORDERS = [(8, False), (4, False), (8, True), (4, True)]


def order_findings(found: Decoded) -> list[tuple[str, str]]:
    return [(a.severity, a.message) for a in found.of(Anomaly) if a.code == "bitmap-order"]


@pytest.mark.parametrize(("long", "big"), ORDERS)
def test_orders_told_by_the_last_page(long: int, big: bool) -> None:
    data = mapped(SIMPLE, long=long, big=big)
    found = decode(data)
    assert not found.errors
    assert_tiles(found.events, len(data))
    assert image_of(data) == [truth(b) for b in SIMPLE]
    findings = order_findings(found)
    assert len(findings) == big
    for severity, message in findings:
        assert severity == "info"
        assert f"big-endian, longs of {long} bytes" in message
        assert "bits behind the last page" in message


# Whole longs: no bit can be behind the last page. As the RAM of a guest without small blocks.
FULL = [
    Block("s390.ram", 640, {i: body(i % 9 + 1) for i in range(640) if i % 64 < 40 - i // 64}),
    Block("zero", 64, {}),
]


@pytest.mark.parametrize(("long", "big"), ORDERS)
def test_orders_told_by_the_pages(long: int, big: bool) -> None:
    data = mapped(FULL, long=long, big=big)
    found = decode(data)
    assert not found.errors
    assert image_of(data) == [truth(b) for b in FULL]
    findings = order_findings(found)
    assert len(findings) == big
    for severity, message in findings:
        assert severity == "info"
        assert f"longs of {long} bytes" in message
        assert "0 contradict it" in message


@pytest.mark.parametrize(("long", "big"), ORDERS)
def test_some_stale_pages_do_not_matter(long: int, big: bool) -> None:
    stale = {i: body(7) for i in range(60, 640, 128)}
    blocks = [dataclasses.replace(FULL[0], stale=stale)]
    data = mapped(blocks, long=long, big=big)
    assert image_of(data) == [truth(b) for b in blocks]
    assert [s for s, _ in order_findings(decode(data))] == ["info"] * big


@pytest.mark.parametrize("big", [False, True])
def test_no_evidence_is_little_endian(big: bool) -> None:
    """Bits that read the same either way, and none at all."""
    same = {i: body(i + 1) for i in range(64)}
    blocks = [Block("a", 64, same), Block("b", 128, {}), Block("c", 3, {})]
    data = mapped(blocks, big=big)
    assert image_of(data) == [truth(b) for b in blocks]
    assert order_findings(decode(data)) == []


def test_pages_that_agree_with_no_order() -> None:
    """As many are stale as are there, where big-endian would have them: a warning, no guess."""
    present = {i: body(i + 1) for i in range(8)}
    # Big-endian, the bits would be those of these pages.
    stale = {i: body(i + 1) for i in range(56, 64)}
    blocks = [Block("a", 64, {**present, 0: bytes(PAGE), 1: bytes(PAGE)}, stale)]
    data = mapped(blocks)
    assert image_of(data) == [truth(b) for b in blocks]
    ((severity, message),) = order_findings(decode(data))
    assert severity == "warning"
    assert "little-endian (inferred)" in message


def test_bits_behind_the_last_page_in_any_order() -> None:
    data = bytearray(mapped([Block("a", 3, {0: body(1)})]))
    at = data.index(b"\1" + bytes(7), data.index(b"\1a") + 30)
    data[at : at + 8] = b"\xff" * 8
    ((severity, message),) = order_findings(decode(data))
    assert severity == "warning"
    assert "in every order" in message


def test_a_bitmap_of_4_byte_longs_needs_no_more_room() -> None:
    """32 pages are one long there; the pages may begin right behind it."""
    for big in (False, True):
        blocks = [Block("a", 32, {3: body(1), 4: body(2)}, gap=0)]
        data = mapped(blocks, long=4, big=big)
        assert not decode(data).errors
        assert image_of(data) == [truth(b) for b in blocks]


def test_long_bitmaps_are_unpacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_module, "_AT_ONCE", 128)
    for big in (False, True):
        data = mapped(SIMPLE, big=big)
        found = decode(data)
        assert_tiles(found.events, len(data))
        assert max(len(e.present) for e in found.of(MappedPages)) <= 128
        assert image_of(data) == [truth(b) for b in SIMPLE]


# -- what cannot be sought in ---------------------------------------------------------------------


def piped(data: bytes) -> list[Event]:
    class Raw(io.BytesIO):
        def fileno(self) -> int:
            raise io.UnsupportedOperation

    source = PipeSource(Raw(data), "pipe")  # type: ignore[arg-type]
    return [owned(e) for e in events(source, Decoder())]


def test_a_pipe() -> None:
    """What stands in front of the first page area, and then the reason."""
    data = mapped(SIMPLE)
    found = piped(data)
    assert_tiles(found, len(data))
    (listed,) = [e for e in found if isinstance(e, RAMBlockList)]
    assert [(b.idstr, b.used_length) for b in listed.blocks] == [(b"mem", 70 * PAGE)]
    assert listed.total == sum(b.pages for b in SIMPLE) * PAGE
    (error,) = [e.error for e in found if isinstance(e, Anomaly)]
    assert isinstance(error, UnsupportedError)
    assert "--spool DIR" in str(error)
    assert isinstance(found[-1], Gap)


def test_a_pipe_that_is_cut_anywhere_in_front() -> None:
    data = mapped(SIMPLE)
    for stop in range(8, SIMPLE[0].area + 100):
        found = piped(data[:stop])
        assert_tiles(found, stop)
        assert len([e for e in found if isinstance(e, Anomaly)]) == 1


def test_a_strict_decoder_refuses_a_pipe() -> None:
    decoder = Decoder(strict=True)
    decoder.seekable = False
    data = mapped(SIMPLE)
    with pytest.raises(UnsupportedError, match="takes an input to seek in"):
        while (event := decoder.next_event()) is not None:
            if event is NEED_DATA:
                decoder.supply(memoryview(data), 0, True)
