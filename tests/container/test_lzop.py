"""Files of lzop: every combination of sums, old headers, and what is refused."""

from __future__ import annotations

import struct

import pytest

from tests.container.test_codecs import MIXED, NOISE, TEXT, unpack
from tests.containers import LZOP_MAGIC, lzop
from vmstream.errors import FormatError, IntegrityError, LimitError, UnsupportedError

pytest.importorskip("lzallright")


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x100, 0x200, 0x303, 0x1001, 0x3000003])
@pytest.mark.parametrize("version", [0x0900, 0x0940, 0x1040])
def test_sums(flags: int, version: int) -> None:
    data = lzop(MIXED, flags=flags, version=version, block=1024, name=b"a name")
    assert unpack(data, "lzop")[:2] == (MIXED, None)


def test_extra_field_and_methods() -> None:
    for method in (1, 2, 3):
        data = lzop(TEXT, method=method, extra=b"extra" * 50_000)
        assert unpack(data, "lzop")[:2] == (TEXT, None)


def test_stored_blocks() -> None:
    data = lzop(NOISE)
    assert NOISE in data
    assert unpack(data, "lzop")[:2] == (NOISE, None)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"method": 4}, UnsupportedError),
        ({"method": 0}, UnsupportedError),
        ({"flags": 0x400}, UnsupportedError),
    ],
)
def test_not_read(changes: dict[str, int], error: type[Exception]) -> None:
    out, found, _ = unpack(lzop(TEXT, **changes), "lzop")
    assert (out, type(found)) == (b"", error)


def test_header_sum() -> None:
    data = bytearray(lzop(TEXT))
    data[20] ^= 1
    out, error, _ = unpack(bytes(data), "lzop")
    assert (out, type(error)) == (b"", IntegrityError)


@pytest.mark.parametrize("flags", [1, 0x100, 2, 0x200])
def test_sum_of_a_block(flags: int) -> None:
    """What is in front of the block is there; the error is at the block."""
    first = len(lzop(TEXT, flags=flags)) - 4
    data = bytearray(lzop(TEXT * 2, flags=flags, block=len(TEXT)))
    data[first + 8] ^= 1
    out, error, _ = unpack(bytes(data), "lzop")
    assert (out, type(error)) == (TEXT, IntegrityError)
    assert error is not None
    assert error.offset == first


def test_impossible_blocks() -> None:
    head = lzop(b"", flags=0)[:-4]
    assert head.startswith(LZOP_MAGIC)
    for size, packed, error in (
        (100, 101, FormatError),
        (100, 0, FormatError),
        ((1 << 20) + 1, 10, LimitError),
        (0xFFFFFFFF, 10, LimitError),
        (100, 50, FormatError),
    ):
        data = head + struct.pack(">II", size, packed) + b"\xff" * 5000
        out, found, _ = unpack(data, "lzop")
        assert (out, type(found)) == (b"", error), (size, packed)


def test_a_block_of_another_size() -> None:
    """LZO itself has an end mark, so a block can be shorter or longer than it is said to be."""
    data = bytearray(lzop(bytes(1000), flags=0))
    at = len(lzop(b"", flags=0)) - 4
    for size in (999, 1001, 5000):
        data[at : at + 4] = struct.pack(">I", size)
        out, error, _ = unpack(bytes(data), "lzop")
        assert (out, type(error)) == (b"", FormatError)
