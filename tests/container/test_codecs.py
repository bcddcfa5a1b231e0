"""Each format: whole, cut at every offset, damaged at every byte, several members, padding."""

from __future__ import annotations

import bz2
import lzma
import random
import struct
import sys
import zlib

import pytest
import zstandard

from tests.containers import LZ4_BLOCK as BLOCK, MISSING, PACK, lz4_legacy
from tests.decoding import BytesSource, CutSource
from tests.strategies import some
from vmstream.container import codecs
from vmstream.container.codecs import MAX_ZSTD_WINDOW, optional_package
from vmstream.container.layers import Container
from vmstream.container.lzop import lzop
from vmstream.container.open import kind_of
from vmstream.container.packed import MOST, PackedInput, UnpackedSource
from vmstream.errors import (
    FormatError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)

KINDS = list(PACK)
NOISE = random.Random(1).randbytes(700)
TEXT = b"".join(b"line %d\n" % i for i in range(300))
MIXED = TEXT + NOISE + bytes(5000)


def unpack(
    data: bytes, kind: str, cut: bool = False
) -> tuple[bytes, StreamError | None, Container]:
    """What comes out, the error behind it, and what was noted."""
    container = Container()
    codec = lzop if kind == "lzop" else getattr(codecs, kind)
    source = UnpackedSource(
        CutSource(data) if cut else BytesSource(data),
        kind,
        codec,
        lambda head: kind_of(head) == kind,
        container,
    )
    out, error = b"", None
    while True:
        try:
            view, base, at_end = source.window(len(out), 1)
        except StreamError as exc:
            assert error is None, "told twice"
            error = exc
            continue
        out += view[len(out) - base :]
        if at_end:
            assert source.size == len(out)
            return out, error, container


def test_the_extras_are_installed() -> None:
    if MISSING:
        pytest.skip(f"no package for {', '.join(MISSING)}: pip install '.[dev]'")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"x", MIXED, bytes(3 * MOST + 5), NOISE * 2000])
def test_whole(kind: str, content: bytes) -> None:
    for cut in (False, True):
        out, error, container = unpack(PACK[kind](content), kind, cut)
        assert (error, container.take_findings()) == (None, [])
        assert out == content


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind: str) -> None:
    """Never a shorter good file, and the end of the input is where the error points."""
    data = PACK[kind](MIXED)
    for stop in some(range(1, len(data))):
        out, error, _ = unpack(data[:stop], kind)
        assert isinstance(error, TruncatedError), stop
        assert error.offset == stop
        assert kind in str(error)
        assert MIXED.startswith(out)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_front_of_a_cut_is_there(kind: str) -> None:
    content = random.Random(2).randbytes(3 << 20)
    data = PACK[kind](content)
    out, error, _ = unpack(data[:-1000], kind)
    assert isinstance(error, TruncatedError)
    assert len(out) > (1 << 20)
    assert content.startswith(out)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_anywhere(kind: str) -> None:
    """One of our errors, or the content: not all bytes of a header have a sum."""
    content = TEXT + NOISE
    data = PACK[kind](content)
    right = 0
    for at in some(range(len(data))):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        out, error, container = unpack(bytes(damaged), kind)
        if error is None and not container.take_findings():
            assert out == content, at
            right += 1
        elif error is not None:
            assert 0 <= error.offset <= len(data)
    assert right < 30


@pytest.mark.parametrize("kind", KINDS)
def test_noise(kind: str) -> None:
    """Behind the magic of the format."""
    dice = random.Random(3)
    head = PACK[kind](b"x")[:12]
    for size in range(200):
        _, error, _ = unpack(head[: dice.randrange(4, 13)] + dice.randbytes(size), kind)
        assert error is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zeros", [0, 4, 512, 300_000])
def test_members_and_padding(kind: str, zeros: int) -> None:
    data = PACK[kind](TEXT) + PACK[kind](b"") + bytes(zeros) + PACK[kind](NOISE) + bytes(zeros)
    for cut in (False, True):
        out, error, container = unpack(data, kind, cut)
        assert (out, error, container.take_findings()) == (TEXT + NOISE, None, [])


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_member_is_cut(kind: str) -> None:
    first, second = PACK[kind](TEXT), PACK[kind](NOISE)
    # From where on it is told from other bytes behind the first.
    for keep in range(10, len(second), 37):
        out, error, _ = unpack(first + second[:keep], kind)
        assert isinstance(error, TruncatedError)
        assert out.startswith(TEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_other_bytes_behind(kind: str) -> None:
    data = PACK[kind](TEXT)
    out, error, container = unpack(data + bytes(7) + b"stale" * 100_000, kind)
    assert (out, error) == (TEXT, None)
    (finding,) = container.take_findings()
    assert (finding.severity, finding.code) == ("warning", "trailing")
    assert finding.offset == len(data) + 7
    assert "500000 bytes" in finding.message


def test_many_small_members() -> None:
    """As bgzip writes them."""
    parts = [TEXT[i : i + 40] for i in range(0, len(TEXT), 40)] * 20
    for kind in KINDS:
        out, error, _ = unpack(b"".join(map(PACK[kind], parts)), kind)
        assert (out, error) == (b"".join(parts), None)


# -- zstd -----------------------------------------------------------------------------------------


def skippable(size: int, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, size) + bytes(size)


def test_zstd_skippable_frames() -> None:
    frame = PACK["zstd"](TEXT)
    data = skippable(4) + frame + skippable(1 << 20, 15) + frame + skippable(0)
    assert kind_of(memoryview(data)) == "zstd"
    out, error, _ = unpack(data, "zstd")
    assert (out, error) == (TEXT * 2, None)
    out, error, _ = unpack(frame + skippable(100)[:-1], "zstd")
    assert out == TEXT
    assert isinstance(error, TruncatedError)


def test_zstd_without_checksum_or_size() -> None:
    engine = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    data = engine.compress(MIXED) + engine.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    data += engine.compress(TEXT) + engine.flush()
    out, error, _ = unpack(data, "zstd")
    assert (out, error) == (MIXED + TEXT, None)
    for stop in some(range(4, len(data))):
        assert isinstance(unpack(data[:stop], "zstd")[1], TruncatedError)


def test_zstd_window_is_bounded() -> None:
    # RFC 8878 section 3.1.1.1.2: descriptor 0, then 1 << 10 + exponent.
    head = b"\x28\xb5\x2f\xfd\x00"
    for exponent, allowed in ((17, True), (18, False), (31, False)):
        data = head + bytes([exponent << 3]) + b"\1\0\0"
        _, error, _ = unpack(data, "zstd")
        assert (error is None) == allowed
        assert allowed or isinstance(error, LimitError)
    assert MAX_ZSTD_WINDOW == 1 << 27


def test_zstd_blocks() -> None:
    head = b"\x28\xb5\x2f\xfd\x00\x58"
    for word in (3 << 1 | 1, (128 * 1024 + 1) << 3 | 1):
        _, error, _ = unpack(head + word.to_bytes(3, "little") + bytes(200_000), "zstd")
        assert isinstance(error, FormatError)
        assert error.offset == len(head)


def test_a_bomb_comes_in_pieces() -> None:
    """A call of a codec gives no more than MOST bytes, however little it was given."""
    bombs = {
        "zstd": b"\x28\xb5\x2f\xfd\x00\x58"
        + b"".join(((128 * 1024) << 3 | 2 | last).to_bytes(3, "little") + b"\0"
                   for last in [0] * 1000 + [1]),
        "gzip": PACK["gzip"](bytes(64 << 20)),
        "bzip2": bz2.compress(bytes(64 << 20)),
        "xz": lzma.compress(bytes(64 << 20)),
    }  # fmt: skip
    if "lz4" in PACK:
        bombs["lz4"] = PACK["lz4"](bytes(64 << 20))
    for kind, data in bombs.items():
        total = 0
        for piece in getattr(codecs, kind)(PackedInput(BytesSource(data), kind)):
            assert len(piece) <= MOST
            total += len(piece)
        assert total >= 64 << 20


# -- the rest -------------------------------------------------------------------------------------


def test_xz_memory_is_bounded() -> None:
    data = bytearray(
        lzma.compress(b"x" * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}])
    )
    # Block header: size, flags, then the filter with its dictionary size in one byte.
    assert data[14:16] == b"\x21\x01"
    data[16] = 36  # 1 GiB; lzma itself would take 10 GiB to compress with that
    data[20:24] = struct.pack("<I", zlib.crc32(data[12:20]))
    _, error, _ = unpack(bytes(data), "xz")
    assert isinstance(error, LimitError)
    assert error.exit_code == 5


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'vmstream\[lz4\]'"):
        optional_package("lz4.frame", "lz4", "lz4")
    _, error, _ = unpack(b"\x04\x22\x4d\x18" + bytes(100), "lz4")
    assert isinstance(error, UnsupportedError)


# -- lz4 -l ---------------------------------------------------------------------------------------

# Made by `printf 'vmstream legacy lz4 vmstream legacy lz4\n' | lz4 -l` of lz4 1.9.4, in hex.
BY_THE_TOOL = "02214c181e000000fb05766d73747265616d206c6567616379206c7a3420140050206c7a340a"
LEGACY = b"\x02\x21\x4c\x18"


def test_lz4_legacy_by_the_tool() -> None:
    data = bytes.fromhex(BY_THE_TOOL)
    assert kind_of(memoryview(data)) == "lz4"
    out, error, container = unpack(data, "lz4")
    assert (out, error) == (b"vmstream legacy lz4 vmstream legacy lz4\n", None)
    assert lz4_legacy(out) == data
    (finding,) = container.take_findings()
    assert (finding.severity, finding.code, finding.offset) == ("info", "no-end-mark", len(data))
    assert "a short one" in finding.message


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 12345])
def test_lz4_legacy(size: int) -> None:
    content = (MIXED * (size // len(MIXED) + 1))[:size]
    data = lz4_legacy(content)
    for cut in (False, True):
        out, error, container = unpack(data, "lz4", cut)
        assert (error, len(out)) == (None, size)
        assert out == content
        (finding,) = container.take_findings()
        assert ("a full one" in finding.message) == (size % BLOCK == 0)


def test_lz4_legacy_cut_anywhere() -> None:
    """Between two blocks a cut cannot be told, and that is said."""
    data = lz4_legacy(TEXT + NOISE, 1000)
    between, at = {len(LEGACY)}, len(LEGACY)
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        between.add(at)
    assert len(between) > 3
    for stop in some(range(4, len(data))):
        out, error, container = unpack(data[:stop], "lz4")
        assert (TEXT + NOISE).startswith(out)
        if stop in between:
            assert error is None
            assert [f.code for f in container.take_findings()] == ["no-end-mark"]
        else:
            assert isinstance(error, TruncatedError), stop
            assert error.offset == stop
            assert container.take_findings() == []


def test_lz4_legacy_among_frames() -> None:
    parts = [
        lz4_legacy(TEXT),
        PACK["lz4"](NOISE),
        lz4_legacy(b""),
        lz4_legacy(MIXED),
        PACK["lz4"](TEXT),
    ]
    out, error, container = unpack(b"".join(parts), "lz4")
    assert (out, error) == (TEXT + NOISE + MIXED + TEXT, None)
    assert container.take_findings() == []
    out, error, container = unpack(b"".join(parts[:4]) + bytes(512), "lz4")
    assert (out, error) == (TEXT + NOISE + MIXED, None)
    assert [f.code for f in container.take_findings()] == ["no-end-mark"]


def test_lz4_legacy_damage() -> None:
    content = TEXT + NOISE
    data = lz4_legacy(content)
    for at in some(range(len(data))):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        out, error, _ = unpack(bytes(damaged), "lz4") if at > 3 else (b"", None, None)
        # It has no sums, so that what is unpacked may be wrong, but never more than a block.
        assert len(out) <= BLOCK
        assert error is None or 0 <= error.offset <= len(data)
    _, error, _ = unpack(LEGACY + b"\xff\xff\xff\x7f" + bytes(100), "lz4")
    assert isinstance(error, FormatError)


def test_a_lz4_legacy_bomb_comes_in_pieces() -> None:
    data = lz4_legacy(bytes(64 << 20))
    pieces = [len(p) for p in codecs.lz4(PackedInput(BytesSource(data), "lz4"))]
    assert (sum(pieces), max(pieces)) == (64 << 20, MOST)
