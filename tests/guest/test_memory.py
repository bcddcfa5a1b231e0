"""RAM images against what the stream writer knows of the memory, through the naive sink below."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tests.decoding import BytesSource, CutSource
from tests.strategies import examples, streams
from tests.streamwriter import RamBlock, StreamWriter
from vmstream.errors import IntegrityError
from vmstream.guest import memory as memory_module
from vmstream.guest.memory import Placement, RAMImage
from vmstream.ops.pipeline import events
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import MultiFDPacket, PageBatch, RAMBlock
from vmstream.transport.sink import OutputFile
from vmstream.transport.source import Source
from vmstream.wire.constants import MultiFDFlag

PAGE = 4096


class Memory:
    """A sink that is a bytearray, does everything a page at a time and watches its callers.

    Bytes that were never written are 0, as in a hole, but `written` knows of them.
    """

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.written = bytearray(size)
        self.zeroed = 0

    def write(self, offset: int, data: memoryview | bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data
        self.written[offset : offset + len(data)] = b"\1" * len(data)

    def write_pages(
        self,
        window: memoryview,
        positions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        size: int,
        stride: int,
    ) -> None:
        assert len(positions) == len(offsets) > 0
        assert (np.diff(offsets) > 0).all()
        assert stride in (size, size + 8)
        for at, offset in zip(positions.tolist(), offsets.tolist(), strict=True):
            assert 0 <= at <= at + size <= len(window)
            self.write(offset, window[at : at + size])

    def read_pages(self, offsets: NDArray[np.int64], pages: NDArray[np.uint8]) -> None:
        assert len(offsets) == len(pages) > 0
        assert (np.diff(offsets) > 0).all()
        for offset, page in zip(offsets.tolist(), pages, strict=True):
            held = self.data[offset : offset + len(page)]
            page[: len(held)] = np.frombuffer(held, np.uint8)

    def zero(self, offset: int, length: int) -> None:
        assert length > 0
        self.zeroed += length
        self.write(offset, bytes(length))


def blocks_of(w: StreamWriter) -> tuple[RAMBlock, ...]:
    return tuple(RAMBlock(name.encode(), len(data)) for name, data in w.blocks.items())


def whole(blocks: Iterable[RAMBlock]) -> tuple[list[Memory], list[Placement]]:
    """A sink for every block."""
    sinks, places = [], []
    for i, block in enumerate(blocks):
        sinks.append(Memory(block.used_length))
        places.append(Placement(i, 0, block.used_length, sinks[-1], 0))
    return sinks, places


def replay(
    w: StreamWriter,
    places: list[Placement],
    source: Source | None = None,
    page_size: int = 0,
    on_fault: Callable[[IntegrityError], None] | None = None,
) -> None:
    """Feed an image as the command does: a batch is written before the next window is asked for."""
    source = BytesSource(bytes(w)) if source is None else source
    image: RAMImage | None = None
    for event in events(source, Decoder(page_size or None, strict=True)):
        if isinstance(event, PageBatch):
            image = image or RAMImage(event.blocks, event.page_size, places, on_fault)
            image.add(event)


def poisoned(w: StreamWriter, seed: int, late_end: bool = False) -> CutSource:
    """Windows of all sizes, each spoilt when the next is given."""
    rng = random.Random(seed)

    def size(_offset: int, _need: int) -> int:
        return rng.choice((1, 9, 100, PAGE, 5 * PAGE, 1 << 20))

    return CutSource(bytes(w), size, back=rng.choice((0, 1, 13)), late_end=late_end)


@given(streams(xbzrle=True, compress=True, fills=True), st.integers(0, 1 << 32), st.booleans())
@settings(max_examples=examples(150))
def test_every_block_is_what_the_writer_says(w: StreamWriter, seed: int, late_end: bool) -> None:
    sinks, places = whole(blocks_of(w))
    # The writer's sizes include those that a probe cannot tell from so few pages.
    replay(w, places, poisoned(w, seed, late_end), w.page_size)
    for sink, (name, content) in zip(sinks, w.blocks.items(), strict=True):
        assert sink.data == content, name


@given(
    streams(page_sizes=(4096,), xbzrle=True, compress=True, fills=True),
    st.integers(0, 1 << 32),
    st.data(),
)
@settings(max_examples=examples(100))
def test_split_placements(w: StreamWriter, seed: int, data: st.DataObject) -> None:
    """Blocks cut in stretches that go to one sink in any order, and some that go nowhere."""
    pieces: list[tuple[int, int, int]] = []
    for i, content in enumerate(w.blocks.values()):
        pages = len(content) // PAGE
        cuts = sorted(data.draw(st.sets(st.integers(1, pages), max_size=3)) | {0, pages})
        pieces += [(i, a * PAGE, b * PAGE) for a, b in itertools.pairwise(cuts)]
    order = data.draw(st.permutations(pieces))
    kept = order[: data.draw(st.integers(0, len(order)))]
    gap = data.draw(st.sampled_from((0, 1, PAGE)))  # the place in the sink is any
    sink = Memory(sum(b - a + gap for _, a, b in kept))
    places, at = [], 0
    for i, a, b in kept:
        places.append(Placement(i, a, b - a, sink, at))
        at += b - a + gap
    replay(w, places, poisoned(w, seed), PAGE)
    contents = list(w.blocks.values())
    for place in places:
        there = sink.data[place.sink_offset : place.sink_offset + place.length]
        want = contents[place.block][place.block_offset :][: place.length]
        assert there == want
        behind = place.sink_offset + place.length
        assert not any(sink.written[behind : behind + gap])


def test_split_at_4_gib(tmp_path: Path) -> None:
    """The placements of a guest with a PCI hole, at true size in a sparse file."""
    low, high, above = 0xC0000000, 0x40000000, 1 << 32
    w = StreamWriter()
    w.header()
    w.configuration("pc-i440fx-10.0")
    w.start(1, "ram", 0, 4)
    total = low + high
    w.raw((total | 4).to_bytes(8, "big") + b"\x03mem" + total.to_bytes(8, "big"))
    w.eos()
    w.footer(1)
    w.ram_id = 1
    marks = [0, low - 2 * PAGE, low - PAGE, low, low + PAGE, total - PAGE]
    with w.ram_part():
        for i, address in enumerate(marks):
            w.raw(w.page_head("mem", address, 0x08) + bytes([i + 1]) * PAGE)
    with w.ram_end():
        pass
    w.eof()
    with OutputFile(tmp_path / "image") as out:
        out.resize(above + high)
        places = [Placement(0, 0, low, out, 0), Placement(0, low, high, out, above)]
        replay(w, places)
        out.commit()
    assert (tmp_path / "image").stat().st_blocks * 512 < 1 << 20
    with (tmp_path / "image").open("rb") as image:
        for i, address in enumerate(marks):
            gpa = address if address < low else address - low + above
            image.seek(gpa)
            assert image.read(PAGE) == bytes([i + 1]) * PAGE
        image.seek(low)
        assert not any(image.read(2 * PAGE))  # the hole begins where the low part ends


def simple(write: Callable[[StreamWriter], None], size: int = 16 * PAGE) -> StreamWriter:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("a", size), RamBlock("b", size)])
    write(w)
    w.eof()
    return w


def run(w: StreamWriter, source: Source | None = None) -> list[Memory]:
    sinks, places = whole(blocks_of(w))
    replay(w, places, source)
    assert [s.data for s in sinks] == list(w.blocks.values())
    return sinks


def test_data_then_zero_then_data() -> None:
    def write(w: StreamWriter) -> None:
        for body in (b"\1" * PAGE, None, b"\2" * PAGE, None, None, b"\3" * PAGE, None):
            with w.ram_part():
                for address in (0, 3 * PAGE, 4 * PAGE):
                    w.zero("a", address) if body is None else w.page("a", address, body)

    w = simple(write)
    a, b = run(w)
    assert not any(a.data)
    assert all(a.written[:PAGE])
    assert not any(b.written)
    # Three times from data to zero; the zeros of a page that has none anyway write nothing.
    assert a.zeroed == 3 * 3 * PAGE


def test_zero_pages_stay_holes() -> None:
    def write(w: StreamWriter) -> None:
        for _ in range(3):
            with w.ram_part():
                for address in range(0, 16 * PAGE, PAGE):
                    w.zero("a", address)

    a, _ = run(simple(write))
    assert not any(a.written)
    assert a.zeroed == 0


def test_a_zero_page_beside_data_only_zeroes_itself() -> None:
    def write(w: StreamWriter) -> None:
        with w.ram_part():
            for address in range(0, 16 * PAGE, PAGE):
                w.page("a", address, bytes([1 + address // PAGE]) * PAGE)
        with w.ram_part():
            for page in (0, 1, 2, 5, 7, 8, 9, 15):
                w.zero("a", page * PAGE)

    a, _ = run(simple(write))
    assert a.zeroed == 8 * PAGE


def test_out_of_order_and_repeated_in_one_batch() -> None:
    """The last record of a page wins, whatever stands between, without a window in between."""

    def write(w: StreamWriter) -> None:
        with w.ram_part():
            for n, page in enumerate((5, 3, 5, 4, 4, 3, 0, 15, 0, 5)):
                w.page("a", page * PAGE, bytes([n + 1]) * PAGE)
                w.page("b", page * PAGE, bytes([n + 101]) * PAGE)
            w.zero("a", 4 * PAGE)  # data, then zero
            w.zero("b", 7 * PAGE)
            w.page("b", 7 * PAGE, b"\xee" * PAGE)  # zero, then data
            w.page("a", 8 * PAGE, b"\1" * PAGE)
            w.zero("a", 8 * PAGE)
            w.page("a", 8 * PAGE, b"\2" * PAGE)

    w = simple(write)
    batches = [e for e in events(BytesSource(bytes(w)), Decoder()) if isinstance(e, PageBatch)]
    assert [len(b) for b in batches] == [26]
    run(w)


def test_zero_after_data_in_one_batch_counts_against_data_before() -> None:
    """A page has data from one part; the next rewrites and zeroes it within one batch."""

    def write(w: StreamWriter) -> None:
        with w.ram_part():
            w.page("a", 2 * PAGE, b"\1" * PAGE)
        with w.ram_part():
            w.page("a", 2 * PAGE, b"\2" * PAGE)
            w.zero("a", 2 * PAGE)
        with w.ram_part():
            w.zero("b", 2 * PAGE)
            w.page("b", 2 * PAGE, b"\3" * PAGE)
            w.zero("b", 2 * PAGE)

    a, b = run(simple(write))
    assert not any(a.data)
    assert not any(b.written)


def test_fill_bytes() -> None:
    """QEMU up to 1.4 sent a page of equal bytes as one byte."""

    def write(w: StreamWriter) -> None:
        with w.ram_part():
            for page, fill in enumerate((0, 1, 0xFF, 0x5A, 0, 0x5A)):
                w.zero("a", page * PAGE, fill)
        with w.ram_part():
            w.zero("a", PAGE)  # a fill is data: it has to be zeroed
            w.zero("a", 2 * PAGE, 0x22)
            w.page("a", 3 * PAGE, b"\4" * PAGE)
            w.zero("a", 4 * PAGE, 0x11)

    a, _ = run(simple(write))
    assert a.zeroed == PAGE


@pytest.mark.parametrize("rest", [1024, 2048, 3072])
@pytest.mark.parametrize("pages", [0, 1, 5])
def test_a_block_that_ends_inside_a_page(pages: int, rest: int) -> None:
    """The last page comes whole, and what is behind the block's end belongs to nobody."""
    size = pages * PAGE + rest
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("a", size), RamBlock("b", 4 * PAGE)])
    want = bytearray(size)

    def record(address: int, value: int, *, page: bool) -> None:
        if page:
            w.page("a", address, bytes([value]) * PAGE)
        else:
            w.zero("a", address, value)
        stop = min(size, address + PAGE)
        want[address:stop] = bytes([value]) * (stop - address)

    end = pages * PAGE
    every = range(0, size, PAGE)
    passes: list[list[tuple[int, int, bool]]] = [
        [(address, 1 + address // PAGE, True) for address in every],
        [(end, 0, False)],
        [(end, 0x77, False)],
        [(end, 0x33, True)],
        [(address, 0, False) for address in every],
        [(address, 9 + address // PAGE, True) for address in every],
    ]
    for until in range(1, len(passes) + 1):
        with w.ram_part():
            for address, value, page in passes[until - 1]:
                record(address, value, page=page)
        memory, neighbour = Memory(size + 2 * PAGE), Memory(4 * PAGE)
        places = [Placement(0, 0, size, memory, 0), Placement(1, 0, 4 * PAGE, neighbour, 0)]
        whole_so_far = BytesSource(bytes(w) + b"\0")
        replay(w, places, whole_so_far, PAGE)
        assert memory.data[:size] == want
        assert not any(memory.written[size:])
        assert not any(neighbour.written)


def test_a_split_block_that_ends_inside_a_page() -> None:
    """Its last stretch is shorter than a page, and stands somewhere else."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("a", 2 * PAGE + 1024)])
    with w.ram_part():
        for i in range(3):
            w.page("a", i * PAGE, bytes([i + 1]) * PAGE)
    w.eof()
    memory = Memory(8 * PAGE)
    places = [
        Placement(0, 0, 2 * PAGE, memory, 4 * PAGE),
        Placement(0, 2 * PAGE, 1024, memory, PAGE),
    ]
    replay(w, places)
    want = bytearray(8 * PAGE)
    want[4 * PAGE : 6 * PAGE] = b"\1" * PAGE + b"\2" * PAGE
    want[PAGE : PAGE + 1024] = b"\3" * 1024
    assert memory.data == want


def big_changes(w: StreamWriter) -> None:
    """Several pages, each in several encodings and orders within one batch."""
    new = bytes(range(256)) * 16
    with w.ram_part():
        w.page("a", 0, b"\1" * PAGE)
        w.page("a", PAGE, b"\1" * PAGE)
        w.zero("a", 2 * PAGE)
        w.xbzrle_to("a", PAGE, b"\1" * 1000 + new[1000:])
        w.xbzrle_to("a", 2 * PAGE, bytes(4095) + b"\xff")
        w.compress_page("a", 3 * PAGE, zlib.compress(new))
        w.xbzrle_to("a", 3 * PAGE, new[:2000] + b"\0" * 2096)
        w.xbzrle_to("a", PAGE, b"\2" * 1000 + new[1000:])
        w.page("a", 3 * PAGE, b"\3" * PAGE)
        w.xbzrle_to("a", 3 * PAGE, b"\4" + b"\3" * 4095)
        w.xbzrle_to("a", 0, b"\5" * 4095 + b"\1")
        w.zero("a", 0)
        w.xbzrle_to("a", PAGE, b"\2" * 999 + new[999:])


def test_changes_in_one_batch() -> None:
    run(simple(big_changes))


def test_more_pages_than_are_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_DECODED", 2 * PAGE)
    run(simple(big_changes))
    rng = random.Random(3)

    def write(w: StreamWriter) -> None:
        with w.ram_part():
            for i in range(16):
                w.compress_page("a", i * PAGE, zlib.compress(rng.randbytes(PAGE)))
        with w.ram_part():
            for i in range(16):
                page = bytearray(w.blocks["a"][i * PAGE : (i + 1) * PAGE])
                page[i * 7 : i * 40] = bytes(i * 33)
                w.xbzrle_to("a", i * PAGE, bytes(page))

    run(simple(write))


def test_a_difference_to_a_block_that_ends_inside_a_page() -> None:
    """What lies behind it in the sink belongs to somebody else."""
    length = 2 * PAGE + 1024
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("a", length), RamBlock("b", PAGE)])
    with w.ram_part():
        w.page("b", 0, b"\7" * PAGE)
        w.page("a", 2 * PAGE, b"\1" * PAGE)
        w.xbzrle("a", 2 * PAGE, b"\xfe\7\4abcd", truth=False)
        w.compress_page("a", 0, zlib.compress(b"\2" * PAGE))
    w.eof()
    sink = Memory(length + PAGE)
    replay(w, [Placement(0, 0, length, sink, 0), Placement(1, 0, PAGE, sink, length)])
    assert sink.data[:PAGE] == b"\2" * PAGE
    assert sink.data[2 * PAGE :] == b"\1" * 1022 + b"ab" + b"\7" * PAGE


BROKEN: list[tuple[str, bytes, bytes]] = [
    # Payload, and what the page of 0x11 is then, behind the token that is illegal.
    ("XBZRLE", b"\0\0", b""),
    ("XBZRLE", b"\1\2ab\0\1c", b"\x11ab"),
    ("XBZRLE", b"\0\5abc", b""),
    ("XBZRLE", b"\1\2ab\3", b"\x11ab"),
    ("XBZRLE", b"\xff\x1f\2ab", b""),
    ("XBZRLE", b"\x80\x80\1a", b""),
    ("XBZRLE", b"\0\x81\x80" + b"a", b""),
    ("XBZRLE", b"\1\1a\xff", b"\x11a"),
    ("COMPRESS_PAGE", b"blob", bytes(PAGE)),
    ("COMPRESS_PAGE", zlib.compress(b"\2" * (PAGE - 1)), b"\2" * (PAGE - 1) + b"\0"),
    ("COMPRESS_PAGE", zlib.compress(b"\2" * (PAGE + 1)), b"\2" * PAGE),
    ("COMPRESS_PAGE", zlib.compress(bytes(1 << 20)), bytes(PAGE)),
    ("COMPRESS_PAGE", zlib.compress(b"\2" * PAGE)[:-1], b"\2" * PAGE),
]


@pytest.mark.parametrize(("kind", "payload", "start"), BROKEN)
def test_pages_that_do_not_decode(kind: str, payload: bytes, start: bytes) -> None:
    def write(w: StreamWriter) -> None:
        with w.ram_part():
            w.page("b", 0, b"\x22" * PAGE)
            w.page("a", 0, b"\x11" * PAGE)
            w.page("a", PAGE, b"\x33" * PAGE)
            if kind == "XBZRLE":
                w.xbzrle("a", 0, payload, truth=False)
                w.xbzrle("a", PAGE, b"\0\1x")
            else:
                w.compress_page("a", 0, payload, truth=False)

    w = simple(write)
    sinks, places = whole(blocks_of(w))
    with pytest.raises(IntegrityError) as caught:
        replay(w, places)
    assert caught.value.offset == w.items_of(kind)[0].offset
    # Otherwise all is written that can be.
    faults: list[IntegrityError] = []
    replay(w, places, on_fault=faults.append)
    assert [f.offset for f in faults] == [w.items_of(kind)[0].offset]
    want = start + b"\x11" * (PAGE - len(start))
    assert sinks[0].data[:PAGE] == want
    assert sinks[0].data[PAGE : 2 * PAGE] == (b"x" if kind == "XBZRLE" else b"3") + b"3" * 4095
    assert sinks[1].data[:PAGE] == b"\x22" * PAGE
    # A block that is not wanted may have any records.
    replay(w, [p for p in places if p.block == 1])


def test_an_encoding_that_nobody_knows() -> None:
    def write(w: StreamWriter) -> None:
        with w.ram_part():
            w.page("a", 0, b"\x11" * PAGE)
            w.xbzrle("a", 0, b"\0\2ab", encoding=2, truth=False)

    w = simple(write)
    sinks, places = whole(blocks_of(w))
    faults: list[IntegrityError] = []
    replay(w, places, on_fault=faults.append)
    assert [f.offset for f in faults] == [w.items_of("XBZRLE")[0].offset]
    assert sinks[0].data[:PAGE] == b"\x11" * PAGE


@given(
    streams(page_sizes=(4096, 1024, 65536), xbzrle=True, compress=True, fills=True, max_pages=40),
    st.integers(0, 1 << 32),
)
@settings(max_examples=examples(25))
def test_into_real_files(
    tmp_path_factory: pytest.TempPathFactory, w: StreamWriter, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("blocks")
    files, places = [], []
    for i, block in enumerate(blocks_of(w)):
        out = OutputFile(directory / str(i))
        out.resize(block.used_length)
        files.append(out)
        places.append(Placement(i, 0, block.used_length, out, 0))
    replay(w, places, poisoned(w, seed), w.page_size)
    for out, content in zip(files, w.blocks.values(), strict=True):
        out.commit()
        assert out.path.read_bytes() == content


def test_flat_space_of_old_versions() -> None:
    """RAM section version 3: no names, one space."""
    w = StreamWriter(footers=False, ram_version=3)
    w.header()
    w.ram_start([RamBlock("", 8 * PAGE)])
    with w.ram_part():
        w.page("", 0, b"\1" * PAGE)
        w.zero("", PAGE, 0x20)
        w.page("", 7 * PAGE, b"\7" * PAGE)
    with w.ram_end():
        w.zero("", 0)
    w.eof()
    run(w)


def test_packets_of_multifd() -> None:
    """The last of a page in a packet wins; zero pages free what was there; no block, no pages."""
    blocks = (RAMBlock(b"a", 6 * PAGE), RAMBlock(b"b", PAGE + 100))
    sinks = [Memory(6 * PAGE), Memory(PAGE + 100)]
    image = RAMImage(
        blocks,
        PAGE,
        [
            Placement(i, 0, b.used_length, s, 0)
            for i, (b, s) in enumerate(zip(blocks, sinks, strict=True))
        ],
    )

    def add(block: int, normal: dict[int, int], zero: Iterable[int] = ()) -> None:
        pages = [bytes([v]) * PAGE for v in normal.values()]
        offsets = [np.array([n * PAGE for n in which], np.uint64) for which in (normal, zero)]
        packet = MultiFDPacket(0, 1, MultiFDFlag(0), 0, 128, block, *offsets, PAGE, memoryview(b""))
        image.add_packet(packet, memoryview(b"".join(pages)))

    add(0, {4: 1, 0: 2, 5: 3}, [1])
    add(0, {2: 4}, [5, 3])
    add(-1, {1: 9}, [0])
    add(1, {1: 5, 0: 6})
    assert [sinks[0].data[n * PAGE] for n in range(6)] == [2, 0, 4, 0, 1, 0]
    assert sinks[0].zeroed == PAGE  # what was never written is zero as it is
    assert bytes(sinks[1].data) == b"\6" * PAGE + b"\5" * 100
    doubled = MultiFDPacket(
        0, 1, MultiFDFlag(0), 0, 128, 0, np.array([PAGE, PAGE], np.uint64), np.zeros(0, np.uint64),
        PAGE, memoryview(b""),
    )  # fmt: skip
    image.add_packet(doubled, memoryview(b"\7" * PAGE + b"\x08" * PAGE))
    assert sinks[0].data[PAGE] == 8
