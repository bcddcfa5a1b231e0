"""The table of memory affinity; tests/test_dumps_qemu.py has it from QEMU."""

from __future__ import annotations

import struct

from hypothesis import given, strategies as st

from vmstream.guest.srat import MemoryAffinity, memory_affinity

MIB, GIB = 1 << 20, 1 << 30


def entry(node: int, gpa: int, size: int, flags: int) -> bytes:
    """Type 1: ACPI 6.5, 5.2.16.2."""
    return struct.pack("<BBIHQQIIQ", 1, 40, node, 0, gpa, size, 0, flags, 0)


def table(body: bytes) -> bytes:
    return struct.pack("<4sIBB30x8x", b"SRAT", 48 + len(body), 1, 0) + body


CPU = bytes([0, 16]) + bytes(14)


def test_entries() -> None:
    body = CPU + entry(1, GIB, GIB, 1) + entry(0, 0, 0xA0000, 1) + entry(0, MIB, 1023 * MIB, 1)
    body += entry(0, 0, 0, 0) + entry(1, 6 * GIB, MIB, 5) + entry(1, 4 * GIB, 2 * GIB, 3)
    assert memory_affinity(b"DSDTSRAT" + table(body) + bytes(50)) == (
        MemoryAffinity(0, 0, GIB, "no"),
        MemoryAffinity(1, GIB, GIB, "no"),
        MemoryAffinity(1, 4 * GIB, 2 * GIB, "hole"),
        MemoryAffinity(1, 6 * GIB, MIB, "nvdimm"),
    )


def test_no_table() -> None:
    whole = table(entry(0, 0, GIB, 1))
    assert len(memory_affinity(whole)) == 1
    for data in (None, b"", b"SRAT", bytes(4096), whole[:-1], table(b"\x01"), table(b"\x01\x00")):
        assert memory_affinity(data) == ()


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    for found in memory_affinity(table(body)) + memory_affinity(b"SRAT" + body):
        assert 0 < found.length
        assert found.gpa + found.length < 1 << 63
