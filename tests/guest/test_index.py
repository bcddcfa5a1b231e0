"""The index of pages: places, what goes to the spool, and reads by it."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.decoding import decode
from tests.streamwriter import RamBlock, StreamWriter
from vmstream.errors import IntegrityError, LimitError, TruncatedError
from vmstream.guest.index import PageIndex
from vmstream.stream.events import MappedPages, PageBatch, RAMBlock as Block
from vmstream.transport.spool import Spool

PAGE = 4096


@dataclass
class Bytes:
    """An input over bytes that counts its reads."""

    data: bytes
    reads: list[tuple[int, int]] = field(default_factory=list)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self.reads.append((offset, len(buffer)))
        part = self.data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def writer(**sizes: int) -> StreamWriter:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock(name, size) for name, size in sizes.items()])
    return w


def indexed(w: StreamWriter, *, in_place: bool = True) -> tuple[PageIndex, Bytes, Spool]:
    w.eof()
    source, spool = Bytes(bytes(w)), Spool()
    found = decode(bytes(w))
    batches = found.of(PageBatch)
    index = PageIndex(batches[0].blocks, PAGE, [source if in_place else None], spool)
    for batch in batches:
        index.add(batch)
    return index, source, spool


def read(index: PageIndex, block: int, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xa5" * length)
    index.read_into(block, offset, memoryview(buffer))
    return bytes(buffer)


def test_a_run_is_read_at_once() -> None:
    """Records one behind the other, of pages one behind the other: one read."""
    w = writer(mem=600 * PAGE)
    with w.ram_end():
        for page in range(600):
            w.page("mem", page * PAGE, bytes([page % 251 + 1]) * PAGE)
    index, source, spool = indexed(w)
    assert read(index, 0, 5 * PAGE, 100 * PAGE) == bytes(w.blocks["mem"])[5 * PAGE : 105 * PAGE]
    assert [length for _, length in source.reads] == [99 * 4104 + PAGE]
    assert read(index, 0, 0, 600 * PAGE) == w.blocks["mem"]
    assert len(source.reads) <= 1 + 4  # and by the MiB
    assert spool.stored == 0


def scattered() -> StreamWriter:
    """Each third page comes again, so what counts has gaps; pages of zeros and encoded ones too."""
    rng = random.Random(8)
    w = writer(mem=400 * PAGE)
    with w.ram_part():
        for page in range(400):
            if page % 8 == 7:
                w.zero("mem", page * PAGE)
            else:
                w.page("mem", page * PAGE, rng.randbytes(PAGE))
    with w.ram_end():
        for page in (*range(0, 300, 3), *range(397, 300, -3)):
            w.page("mem", page * PAGE, rng.randbytes(PAGE))
        for page in range(1, 100, 30):
            w.compress_page("mem", page * PAGE, zlib.compress(b"z" * PAGE))
    return w


def test_pages_that_lie_scattered() -> None:
    """What stands close together is read at once."""
    w = scattered()
    index, source, spool = indexed(w)
    assert spool.stored
    assert read(index, 0, 0, 400 * PAGE) == w.blocks["mem"]
    assert len(source.reads) < 40
    assert read(index, 0, PAGE + 5, 300 * PAGE) == w.blocks["mem"][PAGE + 5 :][: 300 * PAGE]
    # In any order, and pages again.
    pages = np.array([random.Random(9).randrange(400) for _ in range(500)])
    got = np.empty((500, PAGE), np.uint8)
    index.read_pages(0, pages, got)
    assert got.tobytes() == b"".join(w.blocks["mem"][p * PAGE : (p + 1) * PAGE] for p in pages)


def test_bytes_that_nobody_asked_for_may_be_lost() -> None:
    """A version that does not count, where the input cannot give it, is no fault."""
    w = scattered()
    index, source, _ = indexed(w)
    lost = w.data.index(w.blocks["mem"][2 * PAGE : 3 * PAGE]) - PAGE + 100  # of page 1, as first

    def read_into(offset: int, buffer: memoryview) -> int:
        if offset <= lost < offset + len(buffer):
            raise IntegrityError(lost, "a cluster that does not unpack")
        return Bytes.read_into(source, offset, buffer)

    source.read_into = read_into  # type: ignore[method-assign]
    assert read(index, 0, 0, 400 * PAGE) == w.blocks["mem"]
    with pytest.raises(IntegrityError, match="cluster"):
        lost += PAGE
        read(index, 0, 0, 400 * PAGE)


def test_any_range() -> None:
    rng = random.Random(5)
    w = writer(a=40 * PAGE, b=7 * PAGE)
    with w.ram_end():
        for _ in range(120):
            name, page = rng.choice([("a", rng.randrange(40)), ("b", rng.randrange(7))])
            if rng.random() < 0.4:
                w.zero(name, page * PAGE)
            else:
                w.page(name, page * PAGE, rng.randbytes(PAGE))
    index, _, _ = indexed(w)
    for _ in range(300):
        block = rng.randrange(2)
        content = w.blocks["ab"[block]]
        offset = rng.randrange(len(content))
        length = rng.randrange(len(content) - offset + 1)
        assert read(index, block, offset, length) == content[offset : offset + length]


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_encoded_goes_to_the_spool(in_place: bool) -> None:
    """Also what a difference is to: a page of the input, of the spool, or zeros."""
    rng = random.Random(6)
    w = writer(mem=8 * PAGE, more=PAGE)
    first, second, third = (rng.randbytes(PAGE) for _ in range(3))
    with w.ram_part():
        w.page("mem", 0, first)
        w.compress_page("mem", PAGE, zlib.compress(second))
        w.zero("mem", 2 * PAGE, 0x77)
        w.page("mem", 3 * PAGE, third)
    with w.ram_end():
        for page in (0, 1, 2, 4):
            old = bytes(w.blocks["mem"][page * PAGE : (page + 1) * PAGE])
            w.xbzrle_to(
                "mem", page * PAGE, old[:100] + bytes(x ^ 1 for x in old[100:200]) + old[200:]
            )
        w.page("more", 0, third)
    index, source, spool = indexed(w, in_place=in_place)
    assert read(index, 0, 0, 8 * PAGE) == w.blocks["mem"]
    assert read(index, 1, 0, PAGE) == third
    assert bool(source.reads) == in_place
    assert 0 < spool.stored <= 9 * PAGE


def test_a_page_takes_its_room_once() -> None:
    """However often it is sent."""
    w = writer(mem=2 * PAGE)
    with w.ram_end():
        w.page("mem", 0, bytes(PAGE - 1) + b"\1")
        for turn in range(200):
            old = w.blocks["mem"][:PAGE]
            w.xbzrle_to("mem", 0, bytes([turn]) * 50 + bytes(old[50:]))
    index, _, spool = indexed(w)
    assert read(index, 0, 0, PAGE) == w.blocks["mem"][:PAGE]
    assert spool.stored <= 2 * PAGE


def test_the_last_version_counts() -> None:
    w = writer(mem=3 * PAGE)
    with w.ram_part():
        for page in range(3):
            w.page("mem", page * PAGE, b"1" * PAGE)
    with w.ram_part():
        w.zero("mem", 0)
        w.compress_page("mem", PAGE, zlib.compress(b"2" * PAGE))
    with w.ram_end():
        w.page("mem", PAGE, b"3" * PAGE)
    index, _, _ = indexed(w)
    assert read(index, 0, 0, 3 * PAGE) == bytes(PAGE) + b"3" * PAGE + b"1" * PAGE
    assert not index.has_data(0, 0, PAGE)
    assert index.has_data(0, PAGE - 1, 2)
    index.discard(0, PAGE, PAGE)
    assert read(index, 0, PAGE, PAGE) == bytes(PAGE)
    assert index.has_data(0, 2 * PAGE, 1)


def test_memory_from_a_file() -> None:
    """Of a block that ends inside a page; what comes later counts."""
    size = 3 * PAGE + 100
    content = random.Random(8).randbytes(size)
    blocks, spool = (Block(b"more", PAGE), Block(b"mem", size)), Spool()
    index = PageIndex(blocks, PAGE, [Bytes(b""), None, Bytes(content)], spool)
    index.take_file(1, 2)
    assert index.from_files == {1}
    assert read(index, 1, 0, size) == content
    assert spool.stored <= PAGE
    index.discard(1, PAGE, PAGE)
    assert read(index, 1, 0, size) == content[:PAGE] + bytes(PAGE) + content[2 * PAGE :]
    assert not index.has_data(0, 0, PAGE)
    index.discard(1, 0, 4 * PAGE)
    assert read(index, 1, 0, size) == bytes(size)


def test_a_block_that_ends_inside_a_page() -> None:
    w = writer(odd=PAGE + 100, more=2 * PAGE - 100)
    with w.ram_end():
        w.page("odd", PAGE, b"z" * PAGE)
        w.page("more", 0, b"m" * PAGE)
    index, _, _ = indexed(w)
    assert read(index, 0, 0, PAGE + 100) == bytes(PAGE) + b"z" * 100
    assert read(index, 1, 0, 2 * PAGE - 100) == b"m" * PAGE + bytes(PAGE - 100)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("length", [6 * PAGE, 5 * PAGE + 9])
def test_mapped_pages(length: int, in_place: bool) -> None:
    """What stands in the place of a page that is not there is not read."""
    data = random.Random(7).randbytes(1000 + 4 * PAGE)
    present = np.array([True, False, True, True])
    source = Bytes(data)
    index = PageIndex((Block(b"m", length),), PAGE, [source if in_place else None], Spool())
    index.add_mapped(
        MappedPages(1000, len(data), 0, 2 * PAGE, PAGE, present, memoryview(data)[1000:])
    )
    index.add_mapped(
        MappedPages(len(data), len(data), 0, 0, PAGE, np.zeros(2, np.bool_), memoryview(b""))
    )
    area = data[1000:]
    want = bytes(2 * PAGE) + area[:PAGE] + bytes(PAGE) + area[2 * PAGE :]
    assert read(index, 0, 0, length) == want[:length]


def test_a_page_that_does_not_decode() -> None:
    w = writer(mem=2 * PAGE)
    with w.ram_end():
        w.page("mem", 0, b"1" * PAGE)
        w.raw(w.page_head("mem", PAGE, 0x100) + (4).to_bytes(4, "big") + b"zlib")
    w.eof()
    source = Bytes(bytes(w))
    (batch,) = decode(bytes(w)).of(PageBatch)
    index = PageIndex(batch.blocks, PAGE, [source], Spool())
    with pytest.raises(IntegrityError, match="does not inflate"):
        index.add(batch)
    faults: list[IntegrityError] = []
    index = PageIndex(batch.blocks, PAGE, [source], Spool(), faults.append)
    index.add(batch)
    assert len(faults) == 1
    assert read(index, 0, 0, 2 * PAGE) == b"1" * PAGE + bytes(PAGE)


def test_an_input_that_became_shorter() -> None:
    w = writer(mem=2 * PAGE)
    with w.ram_end():
        w.page("mem", 0, b"1" * PAGE)
    index, source, _ = indexed(w)
    source.data = source.data[:200]
    for length in (PAGE, 2 * PAGE):
        with pytest.raises(TruncatedError, match="shorter") as caught:
            read(index, 0, 0, length)
        assert caught.value.offset == 200


def test_bounds() -> None:
    blocks = (Block(b"m", 10 * PAGE),)
    with pytest.raises(LimitError, match="--max-ram"):
        PageIndex(blocks, PAGE, [None], Spool(), most_pages=9)
    index = PageIndex(blocks, PAGE, [Bytes(b"")], Spool(), most_pages=10)
    data = memoryview(bytes(PAGE))
    far = MappedPages(1 << 48, (1 << 48) + PAGE, 0, 0, PAGE, np.ones(1, np.bool_), data)
    with pytest.raises(LimitError, match="256 TiB"):
        index.add_mapped(far)
