"""The compressed kdump format ("diskdump"): what crash, drgn and makedumpfile read.

A header, a sub header with notes, two bitmaps of page frames, a descriptor for each frame that is
in the file, and the pages, each compressed on its own. makedumpfile.git diskdump_mod.h, and QEMU
v10.1.0 dump/dump.c create_kdump_vmcore().
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmstream.guest.imagefile import ARCHITECTURES, joined, note_segment
from vmstream.guest.notes import Architecture, Note
from vmstream.guest.physical import PhysicalMap

# Bits of a page's flags and of the status of a file, makedumpfile.git diskdump_mod.h
# DUMP_DH_COMPRESSED_*. Zstandard since makedumpfile 1.7.1; QEMU does not write it.
FLAGS = {None: 0, "zlib": 0x1, "zstd": 0x20}
_INCOMPLETE = 0x8

_VERSION = 6
_DUMP_LEVEL = 1  # QEMU v10.1.0 include/system/dump.h DUMP_LEVEL

# struct disk_dump_header: signature, header_version, utsname, timestamp with its padding, status,
# block_size, sub_hdr_size, bitmap_blocks, max_mapnr, total_ram_blocks, device_blocks,
# written_blocks, current_cpu, nr_cpus.
_HEADER = "8sI390s22x10I"
# struct new_utsname: sysname, nodename, release, version, machine, domainname.
_UTSNAME = struct.Struct("65s65s65s65s65s65s")
# struct kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn, then offset and size of
# vmcoreinfo, of notes and of eraseinfo, start_pfn_64, end_pfn_64, max_mapnr_64.
_SUB_HEADER = "QII11Q"

# makedumpfile.git makedumpfile.h struct makedumpfile_header, makedumpfile_data_header.
_FLAT_HEADER, _FLAT_SIZE = struct.Struct(">16sqq"), 4096
_FLAT_RECORD = struct.Struct(">qq")

# By e_machine: the name in utsname, and the page size QEMU takes where it cannot be known: that of
# QEMU v10.1.0 target/*/arch_dump.c cpu_get_dump_info().
_MACHINES = {
    3: ("x86_64", 4096),  # an x86 CPU that is not in 64-bit mode, in a file with 64-bit headers
    4: ("m68k", 4096),
    21: ("ppc64", 65536),
    22: ("s390x", 4096),
    62: ("x86_64", 4096),
    183: ("aarch64", 65536),
    243: ("riscv64", 4096),
}

_LARGEST_BLOCK = 1 << 18
# Frames whose bits are made at a time.
_BITS_AT_A_TIME = 1 << 23


@dataclass(frozen=True, slots=True)
class KdumpPlan:
    """What a file is made of; numbers in bytes.

    Attributes:
        block_size: Of a page frame.
        frames: (first, count) of page frames in the file, ascending, apart from each other.
        head: Content from 0 on: headers and notes.
        bitmaps: Offsets of the two bitmaps, which are alike.
        descriptors: Offset of the page descriptors.
        data: Offset of the pages: one of zeros, which all such frames share, then the others.
        descriptor: dtype of a descriptor: offset, size, flags, page_flags.
    """

    block_size: int
    frames: tuple[tuple[int, int], ...]
    head: bytes
    bitmaps: tuple[int, int]
    descriptors: int
    data: int
    descriptor: np.dtype[np.void]


def kdump_plan(
    layout: PhysicalMap,
    notes: Sequence[Note] = (),
    architecture: Architecture | None = None,
    *,
    page_size: int,
    cpus: int = 0,
    compression: str | None = "zlib",
    complete: bool = True,
    utsname: bytes = b"",
) -> KdumpPlan:
    """Say what the file of a map is made of.

    Args:
        layout: The map. A frame that is RAM in part is in the file.
        notes: In this order; VMCOREINFO tells page size, kernel and `phys_base`.
        architecture: As the CPUs tell; that of the machine if `None`.
        page_size: Of the target, for a machine that is not known.
        cpus: How many there are.
        compression: One of FLAGS.
        complete: The stream was whole.
        utsname: `struct new_utsname` of the guest's kernel, if it is known.
    """
    architecture = architecture or ARCHITECTURES.get(layout.family, Architecture(0))
    machine, block = _MACHINES.get(architecture.number, ("", page_size))
    order: Literal["<", ">"] = ">" if architecture.big_endian else "<"
    header, sub = struct.Struct(order + _HEADER), struct.Struct(order + _SUB_HEADER)
    told = next((note.desc for note in notes if note.name == "VMCOREINFO"), b"")
    stated = _stated(rb"PAGESIZE=(\d+)", told, 10) or 0
    if 4096 <= stated <= _LARGEST_BLOCK and not stated & (stated - 1):
        block = stated
    frames = _frames(layout, block)
    end = sum(frames[-1]) if frames else 0

    packed = note_segment(notes, big_endian=architecture.big_endian)
    notes_at = block + sub.size
    sub_blocks = -(-(sub.size + len(packed)) // block)
    bitmap_blocks = -(-end // (8 * block))
    bitmap_at = (1 + sub_blocks) * block
    descriptors = bitmap_at + 2 * bitmap_blocks * block

    if not utsname:
        release = re.search(rb"^OSRELEASE=(.*)$", told, re.MULTILINE)
        utsname = _UTSNAME.pack(
            b"Linux" if told else b"", b"", release[1][:64] if release else b"", b"",
            machine.encode(), b"",
        )  # fmt: skip
    head = header.pack(
        b"KDUMP   ", _VERSION,
        utsname,
        FLAGS[compression] | (0 if complete else _INCOMPLETE), block, sub_blocks,
        2 * bitmap_blocks, min(end, 0xFFFFFFFF), 0, 0, 0, 0, cpus,
    ).ljust(block, b"\0")  # fmt: skip
    head += sub.pack(
        _phys_base(architecture, layout, told), _DUMP_LEVEL, 0, 0, 0,
        # Its bytes stand once in a file: in the note.
        notes_at + packed.index(told) if told else 0, len(told),
        notes_at if packed else 0, len(packed), 0, 0, 0, 0, end,
    )  # fmt: skip
    descriptor = np.dtype(
        [("offset", "u8"), ("size", "u4"), ("flags", "u4"), ("page_flags", "u8")]
    ).newbyteorder(order)
    return KdumpPlan(
        block,
        frames,
        (head + packed).ljust(bitmap_at, b"\0"),
        (bitmap_at, bitmap_at + bitmap_blocks * block),
        descriptors,
        descriptors + descriptor.itemsize * sum(count for _, count in frames),
        descriptor,
    )


def bitmap_parts(plan: KdumpPlan) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, content) of what of a bitmap is not zero, 1 MiB at the most each.

    A frame is the bit `frame % 8`, counted from the lowest, of byte `frame // 8`.
    """
    part = -1
    bits: NDArray[np.bool_] = np.zeros(0, np.bool_)
    for first, count in plan.frames:
        end = first + count
        while first < end:
            if first // _BITS_AT_A_TIME != part:
                if part >= 0:
                    packed = np.packbits(bits, bitorder="little")
                    yield part * _BITS_AT_A_TIME // 8, packed.tobytes()
                part = first // _BITS_AT_A_TIME
                bits = np.zeros(_BITS_AT_A_TIME, np.bool_)
            base = part * _BITS_AT_A_TIME
            stop = min(end - base, _BITS_AT_A_TIME)
            bits[first - base : stop] = True
            first = base + stop
    if part >= 0:
        base = part * _BITS_AT_A_TIME // 8
        last = plan.bitmaps[1] - plan.bitmaps[0] - base
        yield base, np.packbits(bits, bitorder="little")[:last].tobytes()


class Flattened:
    """makedumpfile's flattened format: writes at any offset as records of a stream.

    Args:
        append: Called with bytes, in order.
    """

    def __init__(self, append: Callable[[memoryview | bytes], None]) -> None:
        self._append = append
        append(_FLAT_HEADER.pack(b"makedumpfile", 1, 1).ljust(_FLAT_SIZE, b"\0"))

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Say what stands at an offset of the file."""
        self._append(_FLAT_RECORD.pack(offset, len(data)))
        self._append(data)

    def finish(self) -> None:
        """Say that this was all."""
        self._append(_FLAT_RECORD.pack(-1, -1))


# Ranges of addresses as frames; what touches the same frame is joined.
def _frames(layout: PhysicalMap, block: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for gpa, length in joined(layout):
        first, end = gpa // block, -(-(gpa + length) // block)
        if found and first <= sum(found[-1]):
            first = found.pop()[0]
        found.append((first, end - first))
    return tuple(found)


# QEMU takes the number for a hexadecimal one (v10.1.0 dump/dump.c vmcoreinfo_update_phys_base());
# on x86 Linux writes a decimal one, with a sign. Without VMCOREINFO QEMU has 0, and on ARM where
# RAM begins, target/arm/arch_dump.c cpu_get_dump_info().
def _phys_base(architecture: Architecture, layout: PhysicalMap, vmcoreinfo: bytes) -> int:
    if architecture.number in (3, 62):
        found = _stated(rb"NUMBER\(phys_base\)=(-?\d+)", vmcoreinfo, 10)
        return (found or 0) & (2**64 - 1)
    if architecture.number == 183:
        found = _stated(rb"NUMBER\(PHYS_OFFSET\)=(0x[0-9a-fA-F]+)", vmcoreinfo, 16)
        lowest = min((r.gpa for r in layout.regions if r.length), default=0)
        return lowest if found is None else found & (2**64 - 1)
    return 0


def _stated(line: bytes, vmcoreinfo: bytes, base: int) -> int | None:
    found = re.search(rb"^" + line + rb"$", vmcoreinfo, re.MULTILINE)
    return int(found[1][:24], base) if found else None
