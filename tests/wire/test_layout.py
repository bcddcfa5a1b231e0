"""Derived layouts: sizes, the letter that struct and numpy read differently, runs and flags."""

from __future__ import annotations

import random
import re
import struct

import numpy as np
import pytest
import zstandard
from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Struct
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.strategies import examples, fake_heads, lookalikes
from vmstream.wire import grammar, layout
from vmstream.wire.constants import TARGET_PAGE_SIZES
from vmstream.wire.layout import ZSTD_BLOCK, ZSTD_BLOCK_HEAD, zstd_block

PAGE_SIZES = sorted(TARGET_PAGE_SIZES)
EVERY = Struct(
    "a" / Int8ub,
    "b" / Int16ub,
    "c" / Int32ub,
    "d" / Int64ub,
    "e" / Bytes(5),
    "f" / Const(7, Int32ub),
)
RAW = struct.pack(">BHIQ5sI", 1, 2, 3, 4, b"bytes", 7)


def test_struct_of() -> None:
    made = layout.struct_of(EVERY)
    assert made.size == len(RAW) == EVERY.sizeof()
    assert made.unpack(RAW) == (1, 2, 3, 4, b"bytes", 7)
    assert layout.struct_of(EVERY) is made


def test_dtype_of() -> None:
    made = layout.dtype_of(EVERY)
    assert made == np.dtype(
        [("a", ">u1"), ("b", ">u2"), ("c", ">u4"), ("d", ">u8"), ("e", "V5"), ("f", ">u4")]
    )
    row = np.frombuffer(RAW, made)[0]
    assert [int(row[k]) for k in "abcdf"] == [1, 2, 3, 4, 7]
    assert bytes(row["e"]) == b"bytes"


def test_int32_is_four_bytes_though_numpy_reads_its_letter_as_eight() -> None:
    # Construct's format of Int32ub is '>L'.
    assert Int32ub.fmtstr == ">L"
    assert struct.calcsize(">L") == 4
    assert np.dtype(">L").itemsize == 8
    made = layout.dtype_of(Struct("id" / Int32ub, "next" / Int32ub))
    assert made.itemsize == 8
    assert made["next"].itemsize == 4
    assert made.fields is not None
    assert made.fields["next"][1] == 4
    assert layout.dtype_of(grammar.SECTION_FOOTER).itemsize == 5


@pytest.mark.parametrize(
    "shape",
    [
        grammar.RAM_WORD,
        grammar.ZERO_RECORD,
        grammar.page_record(1024),
        grammar.page_record(65536),
        grammar.SECTION_FOOTER,
        grammar.SECTION_PART_HEAD,
        grammar.VMDESCRIPTION_HEAD,
        grammar.XBZRLE_HEAD,
        grammar.COMPRESS_PAGE_HEAD,
    ],
)
def test_grammar_struct_and_dtype_read_the_same(shape: Struct) -> None:
    raw = random.Random(shape.sizeof()).randbytes(shape.sizeof())
    want = [v for k, v in shape.parse(raw).items() if not k.startswith("_")]
    assert list(layout.struct_of(shape).unpack(raw)) == want
    row = np.frombuffer(raw, layout.dtype_of(shape))[0]
    names = layout.dtype_of(shape).names
    assert names is not None
    assert [bytes(row[n]) if row[n].dtype.kind == "V" else int(row[n]) for n in names] == want


@pytest.mark.parametrize("shape", [Struct("s" / grammar.COUNTED_STRING), grammar.SECTION_HEAD])
def test_no_layout_without_a_fixed_size(shape: Struct) -> None:
    for derive in (layout.struct_of, layout.dtype_of):
        with pytest.raises(TypeError, match="no fixed layout"):
            derive(shape)


def test_strides() -> None:
    assert layout.RAM_WORD_SIZE == 8
    assert layout.ZERO_STRIDE == 9
    assert [layout.page_stride(s) for s in PAGE_SIZES] == [8 + s for s in PAGE_SIZES]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_split_head(page_size: int) -> None:
    for head in (0, 0x28, 3 * page_size | 0x22, 0xFFFFFFFFFFFFFFFF):
        offset, flags = layout.split_head(head, page_size)
        assert offset | flags == head
        assert offset % page_size == 0
        assert flags < page_size


# ---- runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("modifiers", [0, sw.FLAG_CONTINUE])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pattern_takes_a_head_for_what_it_is(page_size: int, modifiers: int) -> None:
    """Every value of the low 16 bits of a head."""
    pattern = layout.run_pattern(page_size, 4, modifiers)
    record = bytearray(8 + page_size)
    record[2:6] = b"\x12\x00\xff\x0a"  # any byte may stand there, a newline too
    wrong = []
    for low in range(1 << 16):
        record[6:8] = low.to_bytes(2, "big")
        match = pattern.match(record)
        assert match is not None
        flags = low & (page_size - 1)
        want = {sw.FLAG_PAGE | modifiers: 1, sw.FLAG_ZERO | modifiers: 2}.get(flags, 3)
        if match.lastindex != want:
            wrong.append(low)
    assert wrong == []


def walk(data: bytes, pos: int, page_size: int, modifiers: int, longest: int) -> tuple[int, int]:
    """(alternative, end) of the run at `pos`, one head after the other."""
    kinds = {sw.FLAG_PAGE | modifiers: (1, 8 + page_size), sw.FLAG_ZERO | modifiers: (2, 9)}
    found, count = 3, 0
    while count < longest:
        flags = int.from_bytes(data[pos : pos + 8], "big") & (page_size - 1)
        kind, size = kinds.get(flags, (3, 0))
        if kind == 3 or pos + size > len(data) or (count and kind != found):
            break
        found, pos, count = kind, pos + size, count + 1
    return found, pos


@settings(deadline=None, max_examples=examples(100))
@given(
    st.sampled_from(PAGE_SIZES),
    st.sampled_from((0, sw.FLAG_CONTINUE)),
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from(("page", "page", "zero", "other")), st.integers(1, 12))),
    st.integers(0, 1 << 32),
)
def test_runs_are_those_of_a_plain_walk(
    page_size: int, modifiers: int, longest: int, plan: list[tuple[str, int]], seed: int
) -> None:
    rng = random.Random(seed)
    looks = lookalikes(["pc.ram"], 1, page_size)
    data = bytearray()
    for kind, count in plan:
        for _ in range(count if page_size < 16384 else min(count, 3)):
            offset = rng.randrange(1 << 20) * page_size
            if kind == "page":
                body = fake_heads(rng, looks, page_size)
                data += sw.be64(offset | sw.FLAG_PAGE | modifiers) + body
            elif kind == "zero":
                data += sw.be64(offset | sw.FLAG_ZERO | modifiers) + b"\n"
            else:
                data += sw.be64(offset | sw.FLAG_PAGE | (modifiers ^ sw.FLAG_CONTINUE))
    data += rng.randbytes(rng.randrange(8))
    if rng.random() < 0.5:
        del data[rng.randrange(len(data) + 1) :]
    pattern = layout.run_pattern(page_size, longest, modifiers)
    # Not only where records stand: the pattern must be right at any place.
    for pos in {0, *(rng.randrange(len(data) + 1) for _ in range(8))}:
        at = pos
        while True:
            match = pattern.match(memoryview(data), at)
            assert match is not None
            assert (match.lastindex, match.end()) == walk(
                bytes(data), at, page_size, modifiers, longest
            )
            if match.lastindex == 3:
                break
            at = match.end()


@pytest.mark.parametrize("page_size", [1024, 4096, 65536])
def test_pattern_does_not_take_a_record_that_is_cut(page_size: int) -> None:
    pattern = layout.run_pattern(page_size, 64, sw.FLAG_CONTINUE)
    page = sw.be64(sw.FLAG_PAGE | sw.FLAG_CONTINUE) + b"\n" * page_size
    zero = sw.be64(sw.FLAG_ZERO | sw.FLAG_CONTINUE) + b"\n"
    for record in (page, zero):
        for count in (1, 2, 64):
            data = record * count
            match = pattern.match(data)
            assert match is not None and match.end() == len(data)
            match = pattern.match(data[:-1])
            assert match is not None and match.end() == len(data) - len(record)
        match = pattern.match(record * 65)
        assert match is not None and match.end() == 64 * len(record)


def test_patterns_are_compiled_once() -> None:
    assert layout.run_pattern(4096, 64, 0x20) is layout.run_pattern(4096, 64, 0x20)
    assert isinstance(layout.run_pattern(4096, 64, 0x20), re.Pattern)


# ---- flags -----------------------------------------------------------------------------------


def test_legal_flags() -> None:
    """One kind, CONTINUE only beside ZERO, PAGE, XBZRLE and COMPRESS_PAGE."""
    pages = {0x002, 0x008, 0x040, 0x100}
    words = {0x004, 0x010, 0x080, 0x200}
    legal = pages | {p | 0x020 for p in pages} | words
    assert {f for f in range(0x1000) if layout.is_legal_flags(f)} == legal


def test_zstd_blocks() -> None:
    """The blocks of a frame lead from its header to its end, and each is what the library takes."""
    data = random.Random(4).randbytes(300_000) + bytes(500_000)
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    at = zstandard.frame_header_size(frame)
    engine = zstandard.ZstdDecompressor().decompressobj()
    out = [engine.decompress(frame[:at])]
    last = False
    while not last:
        block = zstd_block(frame[at : at + ZSTD_BLOCK_HEAD])
        assert block is not None
        size, last = block
        out.append(engine.decompress(frame[at : at + size]))
        at += size
    assert at == len(frame) - 4
    assert b"".join(out) == data
    assert max(map(len, out)) <= ZSTD_BLOCK
    assert zstd_block(b"\x06\0\0") is None  # the reserved kind
    assert zstd_block(b"\x0c\0\x10") is None  # over 128 KiB
    assert zstd_block(b"\0\0") is None
