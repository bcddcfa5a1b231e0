"""Files of guest-physical memory: where RAM stands in them, and what they have in front of it.

A plan says both for a map, before the first page is written: pages go to their place as they come.
The bytes of the heads are written last.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmstream.guest.notes import Architecture, Note
from vmstream.guest.physical import PhysicalMap, Region

FORMATS = ("raw", "lime", "elf", "kdump")

# Magic, version, first and last address, 8 reserved bytes. Whatever the guest's byte order, all
# readers take little-endian. LiME src/lime.h lime_mem_range_header.
_LIME_HEAD = struct.Struct("<IIQQ8x")
_LIME_MAGIC, _LIME_VERSION = 0x4C694D45, 1

# System V ABI, "Object Files": ELF Header, Program Header, Note Section.
_EHDR, _PHDR, _NHDR = "16sHHIQQQIHHHHHH", "IIQQQQQQ", "III"
_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4

# RAM starts at a multiple of this, as large as pages are on any machine, so that heads of the
# usual size can still grow when notes come: then nothing has to move.
_ELF_ALIGNMENT = 64 << 10


# By machine family, where no CPU tells. The numbers are those of the System V ABI, as QEMU v7.2.0
# include/elf.h has them, and the byte order is that after a reset.
ARCHITECTURES = {
    "pc": Architecture(62),
    "q35": Architecture(62),
    "microvm": Architecture(62),
    "isapc": Architecture(62),
    "arm virt": Architecture(183),
    "riscv virt": Architecture(243),
    "m68k virt": Architecture(4, big_endian=True),
    "pseries": Architecture(21, big_endian=True),
    "s390-ccw-virtio": Architecture(22, big_endian=True),
    "powernv": Architecture(21, big_endian=True),
    "loongarch virt": Architecture(258),
    "hppa": Architecture(15, big_endian=True),
    **dict.fromkeys(("g3beige", "mac99", "pegasos2"), Architecture(20, big_endian=True)),
    **dict.fromkeys(("sifive_u", "spike"), Architecture(243)),
    **dict.fromkeys(
        ("sbsa-ref", "xlnx-zcu102", "vexpress-a9", "vexpress-a15", "raspi", "cubieboard"),
        Architecture(183),
    ),
}


@dataclass(frozen=True, slots=True)
class Range:
    """Guest-physical addresses that follow each other, and where their bytes stand in the file."""

    gpa: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file of a map is made of; numbers in bytes.

    Attributes:
        format: One of FORMATS; a kdump file is made of a raw image (guest/kdump.py).
        regions: Those of the map, with the offset in the file for the address.
        heads: (offset, content) of all that is not RAM.
        size: Of the file.
    """

    format: str
    regions: tuple[Region, ...]
    heads: tuple[tuple[int, bytes], ...]
    size: int


def plan(
    form: str,
    layout: PhysicalMap,
    notes: Sequence[Note] = (),
    architecture: Architecture | None = None,
) -> Plan:
    """Say what the file of a map is made of.

    Args:
        form: One of FORMATS.
        layout: The map.
        notes: For an ELF core, in this order.
        architecture: For an ELF core, as the CPUs tell; that of the machine if `None`.
    """
    if form in ("raw", "kdump"):
        return Plan(form, layout.regions, (), layout.size)
    if form == "lime":
        return _lime(layout)
    return _elf(layout, notes, architecture or ARCHITECTURES.get(layout.family, Architecture(0)))


def joined(layout: PhysicalMap) -> list[tuple[int, int]]:
    """(address, length) of what the map has, neighbours joined; ascending."""
    found: list[tuple[int, int]] = []
    for region in sorted(layout.regions, key=lambda r: r.gpa):
        if found and sum(found[-1]) == region.gpa:
            found[-1] = (found[-1][0], found[-1][1] + region.length)
        elif region.length:
            found.append((region.gpa, region.length))
    return found


def _lime(layout: PhysicalMap) -> Plan:
    ranges, heads, at = [], [], 0
    for gpa, length in joined(layout):
        heads.append((at, _LIME_HEAD.pack(_LIME_MAGIC, _LIME_VERSION, gpa, gpa + length - 1)))
        at += _LIME_HEAD.size
        ranges.append(Range(gpa, length, at))
        at += length
    return Plan("lime", _in_file(layout, ranges), tuple(heads), at)


def _elf(layout: PhysicalMap, notes: Sequence[Note], architecture: Architecture) -> Plan:
    order = ">" if architecture.big_endian else "<"
    ehdr, phdr = struct.Struct(order + _EHDR), struct.Struct(order + _PHDR)
    content = note_segment(notes, big_endian=architecture.big_endian)
    stretches = joined(layout)
    count = len(stretches) + bool(content)
    # As crash wants it, netdump.c is_netdump(): the header of the notes is the first, they stand
    # in front of RAM, and p_align is 0, else it takes that for the page size of a netdump. QEMU
    # does so, too (v7.2.0 dump/dump.c write_elf64_load()).
    notes_at = ehdr.size + phdr.size * count
    at = _aligned(notes_at + len(content), _ELF_ALIGNMENT)
    table = []
    if content:
        table.append(phdr.pack(_PT_NOTE, 0, notes_at, 0, 0, len(content), len(content), 4))
    ranges = []
    for gpa, length in stretches:
        ranges.append(Range(gpa, length, at))
        # gdb reads by p_vaddr, which QEMU gives the physical address, too.
        table.append(phdr.pack(_PT_LOAD, 0, at, gpa, gpa, length, length, 0))
        at = _aligned(at + length, _ELF_ALIGNMENT)
    identity = b"\x7fELF" + bytes((2, 2 if architecture.big_endian else 1, 1))
    head = ehdr.pack(
        identity, _ET_CORE, architecture.number, 1, 0, ehdr.size, 0, 0, ehdr.size,
        phdr.size, count, 0, 0, 0,
    )  # fmt: skip
    size = max((r.offset + r.length for r in ranges), default=notes_at + len(content))
    head += b"".join(table) + content
    return Plan("elf", _in_file(layout, ranges), ((0, head),), size)


def note_segment(notes: Sequence[Note], *, big_endian: bool) -> bytes:
    """Pack notes as a PT_NOTE segment has them: name and content are padded to 4 bytes each."""
    head = struct.Struct((">" if big_endian else "<") + _NHDR)
    made = bytearray()
    for name, kind, content in notes:
        named = name.encode() + b"\0"
        made += head.pack(len(named), len(content), kind)
        for part in (named, content):
            made += part.ljust(_aligned(len(part), 4), b"\0")
    return bytes(made)


# The regions of a map at their places in the file. One without bytes is nowhere.
def _in_file(layout: PhysicalMap, ranges: list[Range]) -> tuple[Region, ...]:
    begins = [r.gpa for r in ranges]
    placed = []
    for region in layout.regions:
        at = 0
        if region.length:
            part = ranges[bisect_right(begins, region.gpa) - 1]
            at = part.offset + region.gpa - part.gpa
        placed.append(replace(region, gpa=at))
    return tuple(placed)


def _aligned(value: int, unit: int) -> int:
    return -(-value // unit) * unit
