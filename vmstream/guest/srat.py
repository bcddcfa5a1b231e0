"""The ACPI table of memory affinity that QEMU makes for the guest: which node has RAM where.

It stands in a RAM block of fw_cfg, which the guest reads and cannot write, so it says what QEMU
told the guest at its last reset. The guest's loader fills in checksums in its own copy: here they
are 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# The block that the tables are in; they take 128 KiB, or a little more.
TABLES = b"/rom@etc/acpi/tables"
MOST_TABLES = 2 << 20

# ACPI 6.5, 5.2.16 System Resource Affinity Table and 5.2.16.2 Memory Affinity Structure: type and
# length; node, 2 bytes, base, length, 4 bytes, flags, 8 bytes.
_SIGNATURE = b"SRAT"
_HEAD, _OLDEST, _NEWEST = 48, 1, 3
_MEMORY = struct.Struct("<BBIHQQIIQ")
_MEMORY_TYPE = 1
_ENABLED, _HOT_PLUGGABLE, _NON_VOLATILE = 1, 2, 4

# What a PC has no RAM at below 1 MiB, and its tables leave out.
_HOLE, _HOLE_END = 0xA0000, 0x100000


@dataclass(frozen=True, slots=True)
class MemoryAffinity:
    """Memory of a node as the guest is told of it; bytes.

    Attributes:
        node: Number of the node.
        gpa: First address.
        length: Bytes.
        plugged: 'no' for RAM, 'hole' for the place of DIMMs, 'nvdimm'.
    """

    node: int
    gpa: int
    length: int
    plugged: str


def memory_affinity(tables: bytes | None) -> tuple[MemoryAffinity, ...]:
    """Read the table out of the tables.

    Args:
        tables: Content of the block, `None` if it is not known.

    Returns:
        Its entries by address, RAM of one node below and above 640 KiB as one; none without a
        table that is whole.
    """
    at = -1
    while tables is not None and (at := tables.find(_SIGNATURE, at + 1)) >= 0:
        length, revision = struct.unpack_from("<IB", tables.ljust(at + 9, b"\0"), at + 4)
        if _HEAD <= length <= len(tables) - at and _OLDEST <= revision <= _NEWEST:
            found = _entries(tables[at + _HEAD : at + length])
            if found is not None:
                return tuple(_joined(sorted(found, key=lambda m: m.gpa)))
    return ()


def _entries(data: bytes) -> list[MemoryAffinity] | None:
    found, at = [], 0
    while at < len(data):
        kind, length = data[at], data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            return None
        if kind == _MEMORY_TYPE and length == _MEMORY.size:
            _, _, node, _, gpa, size, _, flags, _ = _MEMORY.unpack_from(data, at)
            plugged = "nvdimm" if flags & _NON_VOLATILE else "no"
            plugged = "hole" if flags & _HOT_PLUGGABLE else plugged
            if flags & _ENABLED and size and gpa + size < 1 << 63:
                found.append(MemoryAffinity(node, gpa, size, plugged))
        at += length
    return found


def _joined(listed: list[MemoryAffinity]) -> Iterator[MemoryAffinity]:
    if len(listed) > 1:
        low, high = listed[:2]
        same = (low.node, low.plugged) == (high.node, high.plugged)
        if same and (low.gpa, low.length, high.gpa) == (0, _HOLE, _HOLE_END):
            yield MemoryAffinity(low.node, 0, high.gpa + high.length, low.plugged)
            listed = listed[2:]
    yield from listed
