"""How much RAM may be stated: in bytes, and fewer of them where pages are small."""

from __future__ import annotations

import struct

import pytest

from tests.decoding import decode
from tests.streamwriter import RamBlock, StreamWriter, simple_stream
from vmstream.errors import LimitError
from vmstream.stream.events import RAMBlockList
from vmstream.stream.limits import check_ram
from vmstream.wire.constants import MAX_RAM

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("total", "page_size", "allowed"),
    [
        (GIB, None, True),
        (GIB + 1, None, False),
        (GIB, 4096, True),
        (GIB, 65536, True),
        (GIB + 4096, 65536, False),
        (GIB // 4, 1024, True),
        (GIB // 4 + 1024, 1024, False),
        (GIB // 16, 256, True),
        (GIB, 256, False),
    ],
)
def test_bytes_and_pages(total: int, page_size: int | None, allowed: bool) -> None:
    if allowed:
        check_ram(GIB, total, page_size, 7, "here")
        return
    with pytest.raises(LimitError, match="offset 0x7, here: RAM of") as caught:
        check_ram(GIB, total, page_size, 7, "here")
    # What the advice names is enough.
    size = int(caught.value.advice.split()[1].removesuffix("M")) << 20
    check_ram(size, total, page_size, 7, "here")


def listed(total: int, bits: int | None = None) -> bytes:
    w = StreamWriter()
    w.header()
    w.configuration(page_bits=bits)
    w.start(1, "ram", 0, 4)
    # By hand: the writer holds the memory of its blocks.
    w.raw(struct.pack(">Q", total | 4) + b"\x03mem" + struct.pack(">QQ", total, 0x10))
    w.footer(1)
    return bytes(w)


def test_a_block_list() -> None:
    for total, bits, most, allowed in (
        (MAX_RAM, None, None, True),
        (MAX_RAM + 4096, None, None, False),
        (MAX_RAM + 4096, None, 2 * MAX_RAM, True),
        (GIB, None, GIB - 4096, False),
        (MAX_RAM >> 4, 8, None, True),
        (MAX_RAM >> 3, 8, None, False),
    ):
        found = decode(listed(total, bits), max_ram=most)
        lists = [e for e in found.events if isinstance(e, RAMBlockList)]
        assert bool(lists) == allowed, (total, bits, most)
        told = [e for e in found.errors if isinstance(e, LimitError)]
        assert bool(told) == (not allowed)
        assert all("--max-ram" in str(e) for e in told)


def test_the_page_size_comes_late() -> None:
    """A probe finds small pages behind a list that was allowed for larger ones."""
    w = StreamWriter(page_size=1024)
    w.header()
    w.configuration()
    w.ram_start([RamBlock("mem", MIB)])
    with w.ram_part():
        for i in range(8):
            w.page("mem", i * 1024, bytes([i + 1]) * 1024)
    data = bytes(w)
    assert not any(isinstance(e, LimitError) for e in decode(data).errors)
    errors = decode(data, max_ram=MIB).errors
    assert isinstance(errors[0], LimitError)
    assert "in pages of 1024 bytes" in str(errors[0])


def test_a_description_with_small_pages() -> None:
    data = bytes(simple_stream({"mem": {0: b"x" * 4096}}))
    # Of the same length, and the only one that the description states.
    small = data.replace(b'"page_size": 4096', b'"page_size":  256')
    assert small != data
    assert not any(isinstance(e, LimitError) for e in decode(small).errors)
    found = decode(small, max_ram=8192)
    assert isinstance(found.errors[-1], LimitError)
