"""A place in packed data, and how an error of a codec reaches whoever reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest

from tests.decoding import BytesSource, CutSource
from vmstream.container.layers import Container, ShiftedSource
from vmstream.container.packed import SLICE, PackedInput, UnpackedSource
from vmstream.errors import FormatError, IntegrityError, StreamError, TruncatedError
from vmstream.transport.source import PipeSource, Source

DATA = bytes(range(256)) * 4


def sources(data: bytes) -> list[Source]:
    class Raw(io.BytesIO):
        def fileno(self) -> int:
            raise io.UnsupportedOperation

    return [
        BytesSource(data),
        CutSource(data),
        CutSource(data, late_end=True),
        PipeSource(Raw(data), "pipe"),  # type: ignore[arg-type]
    ]


def test_peek_and_have() -> None:
    for source in sources(DATA):
        data = PackedInput(source, "gzip")
        assert bytes(data.peek(4)) == DATA[:4]
        assert bytes(data.have(10)) == DATA[:10]
        data.skip(1000)
        assert data.offset == 1000
        assert bytes(data.peek(100)) == DATA[1000:]
        with pytest.raises(TruncatedError, match="gzip data ends before its end mark") as caught:
            data.have(25)
        assert caught.value.offset == 1024
        assert data.offset == 1000
        data.skip(24)
        assert (bytes(data.some()), bytes(data.peek(1))) == (b"", b"")
        with pytest.raises(TruncatedError):
            data.skip(1)


def test_from_an_offset_on() -> None:
    data = PackedInput(BytesSource(DATA), "xz", 100)
    assert bytes(data.have(3)) == DATA[100:103]
    assert data.damaged("what").offset == 100


def test_some_is_bounded() -> None:
    data = PackedInput(BytesSource(bytes(3 * SLICE)), "xz")
    assert len(data.some()) == SLICE
    data.drain()
    assert data.offset == 3 * SLICE


def test_zeros() -> None:
    for source in sources(bytes(300) + b"x" + bytes(700)):
        data = PackedInput(source, "xz")
        assert data.skip_zeros()
        assert data.offset == 300
        data.skip(1)
        assert not data.skip_zeros()
        assert data.offset == 1001


def unpacked(
    codec: Callable[[PackedInput], Iterator[bytes]], source: Source | None = None
) -> UnpackedSource:
    return UnpackedSource(
        source or BytesSource(DATA), "test", codec, lambda head: False, Container()
    )


def failing(data: PackedInput) -> Iterator[bytes]:
    yield b"a" * 100
    data.skip(10)
    yield b"b" * 100
    raise data.damaged("wrong", IntegrityError)


def test_what_was_read_comes_before_the_error() -> None:
    source = unpacked(failing)
    assert not source.seekable
    view, base, at_end = source.window(0, 1)
    assert (bytes(view), base, at_end) == (b"a" * 100 + b"b" * 100, 0, False)
    view, base, at_end = source.window(50, 150)
    assert (bytes(view)[50 - base :], at_end) == (b"a" * 50 + b"b" * 100, False)
    with pytest.raises(IntegrityError, match="test data: wrong") as caught:
        source.window(50, 151)
    assert caught.value.offset == 10
    view, base, at_end = source.window(50, 151)
    assert (len(view) + base, at_end) == (200, True)
    assert source.window(200, 1)[2]
    assert source.size == 200


def test_the_rest_is_read_behind_an_error() -> None:
    """As of a bare stream: sizes and sums are of the whole input."""
    inner = CutSource(DATA)
    source = unpacked(failing, inner)
    with pytest.raises(IntegrityError):
        source.window(0, 1000)
    before = inner.windows
    source.window(0, 1000)
    assert inner.windows - before > 900


def test_an_error_at_once() -> None:
    def codec(data: PackedInput) -> Iterator[bytes]:
        raise data.damaged("at once")
        yield b""

    source = unpacked(codec)
    with pytest.raises(FormatError):
        source.window(0, 1)
    assert bytes(source.window(0, 1)[0]) == b""


def test_an_error_of_the_layer_around() -> None:
    """It comes as it is, with its own offset."""

    def outer(data: PackedInput) -> Iterator[bytes]:
        yield b"x" * 64
        raise data.damaged("outer", IntegrityError)

    def inner(data: PackedInput) -> Iterator[bytes]:
        while view := data.some():
            data.offset += len(view)
            yield bytes(view)

    source = unpacked(inner, unpacked(outer))
    assert bytes(source.window(0, 64)[0]) == b"x" * 64
    with pytest.raises(StreamError, match="outer"):
        source.window(0, 65)
    assert source.window(0, 65)[2]


def test_offsets_behind_a_header() -> None:
    """Those of the layer that has the header."""

    def codec(data: PackedInput) -> Iterator[bytes]:
        assert bytes(data.have(2)) == DATA[200:202]
        yield b"x"
        raise data.damaged("here")

    source = unpacked(codec, ShiftedSource(BytesSource(DATA), 200))
    with pytest.raises(FormatError) as caught:
        source.window(0, 2)
    assert caught.value.offset == 200


def test_an_error_of_the_disk_passes() -> None:
    class Broken(BytesSource):
        def window(self, offset: int, need: int) -> tuple[memoryview, int, bool]:
            raise OSError(5, "Input/output error", "disk")

    def codec(data: PackedInput) -> Iterator[bytes]:
        yield bytes(data.some())

    with pytest.raises(OSError, match="disk"):
        unpacked(codec, Broken(DATA)).window(0, 1)
