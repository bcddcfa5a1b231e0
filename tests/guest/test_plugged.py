"""Where memory devices stand; tests/test_dumps_qemu.py has the same against QEMU."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from vmstream.guest.plugged import DeviceMemory, in_order, place
from vmstream.guest.srat import MemoryAffinity
from vmstream.stream.events import RAMBlock

MIB, GIB = 1 << 20, 1 << 30
HOLE = DeviceMemory(4 * GIB, 8 * GIB, "firmware tables")


def blocks(*named: tuple[str, int]) -> tuple[RAMBlock, ...]:
    return tuple(RAMBlock(name.encode(), size) for name, size in named)


def nvdimm(gpa: int, size: int) -> MemoryAffinity:
    return MemoryAffinity(0, gpa, size, "nvdimm")


def test_dimms_fill_the_room_that_is_left() -> None:
    listed = blocks(("d0", GIB), ("nv", 512 * MIB), ("d1", 256 * MIB))
    found = place(listed, [0, 1, 2], HOLE, [nvdimm(4 * GIB + 256 * MIB, 510 * MIB)], {})
    assert [(p.block, p.gpa, p.length, p.source) for p in found.placed] == [
        (1, 4 * GIB + 256 * MIB, 510 * MIB, "firmware tables"),
        (0, 4 * GIB + 766 * MIB, GIB, "machine rule"),
        (2, 4 * GIB, 256 * MIB, "machine rule"),
    ]
    (doubt,) = found.doubts
    assert "d0, d1" in doubt


def test_no_room() -> None:
    for memory in (None, DeviceMemory(4 * GIB, 4 * GIB + 64 * MIB, "firmware tables")):
        found = place(blocks(("d", 128 * MIB)), [0], memory, [], {})
        assert not found.placed
        assert "'d'" in found.doubts[0]
        assert "--layout" in found.doubts[0]


def test_wire() -> None:
    """The offset that x-ignore-shared sends is one in the place for memory devices."""
    listed = (RAMBlock(b"a", GIB, None, GIB), RAMBlock(b"b", GIB, None, 0))
    found = place(listed, [0, 1], HOLE, [], {})
    assert [(p.block, p.gpa, p.source) for p in found.placed] == [
        (0, 5 * GIB, "wire"), (1, 4 * GIB, "wire"),
    ]  # fmt: skip
    assert not found.doubts


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ({"m10": 4, "m9": 2, "m1": 1}, [2, 1, 0]),
        ({"b": 2, "a": 1}, [1, 0]),
        ({"b": 2, "a": 2}, [0, 1]),  # b was made first
    ],
)
def test_order(sizes: dict[str, int], order: list[int]) -> None:
    assert in_order(blocks(*sizes.items()), range(len(sizes))) == order


# -- virtio-mem: QEMU v7.2.0 hw/virtio/virtio-mem.c vmstate_virtio_mem_device ----------------------

UNIT = 2 * MIB


def state(gpa: int, count: int, plugged: set[int], *, early: bool, junk: bytes = b"") -> bytes:
    """The section: the fields that are checked, sizes, and the bitmap in words of 64 bits."""
    size = count * UNIT
    words = [0] * -(-count // 64)
    for bit in plugged:
        words[bit // 64] |= 1 << bit % 64
    numbers = (len(plugged) * UNIT,) if early else (size, len(plugged) * UNIT, size)
    return junk + struct.pack(
        f">QQQI{len(numbers) + len(words)}Q", gpa, size, UNIT, 0, *numbers, *words
    )


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("junk", [b"", bytes(99), struct.pack(">Q", 100 * UNIT) * 3])
def test_virtio_mem(early: bool, junk: bytes) -> None:
    listed = blocks(("0000:00:01.0/m", 100 * UNIT), ("0000:00:02.0/m", 100 * UNIT))
    body = state(5 * GIB, 100, {0, 1, 70, 99}, early=early, junk=junk)
    found = place(listed, [], None, [], {b"0000:00:01.0": body})
    assert [(p.block, p.gpa, p.length, p.block_offset, p.source) for p in found.placed] == [
        (0, 5 * GIB + at * UNIT, n * UNIT, at * UNIT, "device state")
        for at, n in ((0, 2), (70, 1), (99, 1))
    ]
    assert not found.doubts


def test_virtio_mem_without_its_bitmap() -> None:
    listed = blocks(("0000:00:01.0/m", 100 * UNIT))
    body = state(5 * GIB, 100, {1}, early=True)[:40]
    (found,) = place(listed, [], None, [], {b"0000:00:01.0": body}).placed
    assert (found.gpa, found.length) == (5 * GIB, 100 * UNIT)


@given(st.binary(max_size=100), st.integers(1, 1 << 40))
def test_any_state(body: bytes, size: int) -> None:
    listed = blocks(("p/m", size))
    found = place(listed, [], None, [], {b"p": body + struct.pack(">Q", size) + body})
    assert all(p.block_offset + p.length <= size for p in found.placed)
