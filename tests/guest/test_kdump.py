"""Plans of kdump files: frames, headers, bitmaps; what a hostile VMCOREINFO says."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.kdumps import UTSNAME, Kdump, unflattened
from vmstream.guest.kdump import Flattened, KdumpPlan, bitmap_parts, kdump_plan
from vmstream.guest.notes import Note
from vmstream.guest.physical import PhysicalMap, Region

GIB = 1 << 30


def a_map(*ranges: tuple[int, int], family: str = "pc") -> PhysicalMap:
    return PhysicalMap(
        tuple(Region(gpa, length, 0, 0) for gpa, length in ranges),
        None,
        "machine rule",
        (),
        family=family,
    )


def whole(plan: KdumpPlan) -> Kdump:
    """The file, with pages of zeros."""
    data = bytearray(plan.data + plan.block_size)
    data[: len(plan.head)] = plan.head
    for at, bits in bitmap_parts(plan):
        for bitmap in plan.bitmaps:
            data[bitmap + at : bitmap + at + len(bits)] = bits
    return Kdump(bytes(data))


def made(layout: PhysicalMap, *notes: Note, **options: Any) -> Kdump:
    return whole(kdump_plan(layout, notes, **{"page_size": 4096, **options}))


def info(text: str) -> Note:
    return Note("VMCOREINFO", 0, text.encode())


@pytest.mark.parametrize(
    ("ranges", "frames"),
    [
        ([(0, 8192)], [0, 1]),
        ([(4096, 4096), (16384, 4096)], [1, 4]),
        # RAM in part of a frame; two ranges in one.
        ([(100, 1)], [0]),
        ([(4095, 2)], [0, 1]),
        ([(0, 10), (4000, 200), (8191, 1)], [0, 1]),
        ([(1 << 40, 4096)], [1 << 28]),
        ([], []),
        ([(5, 0)], []),
    ],
)
def test_frames(ranges: list[tuple[int, int]], frames: list[int]) -> None:
    plan = kdump_plan(a_map(*ranges), page_size=4096)
    found = [first + i for first, count in plan.frames for i in range(count)]
    assert found == frames
    if frames and frames[-1] < 1 << 20:
        kdump = whole(plan)
        assert kdump.frames == frames
        assert kdump.header["max_mapnr_64"] == frames[-1] + 1


def test_bits_of_a_large_guest() -> None:
    """Bitmaps come in parts; none for a gap."""
    first, last = (64 * GIB) // 4096 - 3, (1 << 40) // 4096
    plan = kdump_plan(a_map((first * 4096, 5 * 4096), (last * 4096, 4096)), page_size=4096)
    found = [
        8 * (at + i) + bit
        for at, bits in bitmap_parts(plan)
        for i, byte in enumerate(bits)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    ]
    assert found == [*range(first, first + 5), last]
    assert [at for at, _ in bitmap_parts(plan)] == [1 << 20, 2 << 20, 32 << 20]


@pytest.mark.parametrize(
    ("family", "order", "machine", "block", "phys_base"),
    [
        ("q35", "<", "x86_64", 4096, 0),
        ("arm virt", "<", "aarch64", 65536, GIB),
        ("riscv virt", "<", "riscv64", 4096, 0),
        ("pseries", ">", "ppc64", 65536, 0),
        ("s390-ccw-virtio", ">", "s390x", 4096, 0),
        ("", "<", "", 8192, 0),
    ],
)
def test_headers(family: str, order: str, machine: str, block: int, phys_base: int) -> None:
    layout = a_map((GIB, GIB), family=family)
    kdump = made(layout, page_size=8192, cpus=3, compression="zstd", complete=False)
    header = kdump.header
    assert kdump.order == order
    assert (header["machine"], header["block_size"]) == (machine, block)
    assert (header["phys_base"], header["nr_cpus"]) == (phys_base, 3)
    assert (header["status"], header["dump_level"]) == (0x28, 1)
    assert header["max_mapnr"] == header["max_mapnr_64"] == 2 * GIB // block
    assert (header["sysname"], header["release"]) == ("", "")
    assert (header["offset_note"], header["size_vmcoreinfo"]) == (0, 0)


def test_vmcoreinfo() -> None:
    text = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nNUMBER(phys_base)=-16777216\n"
    notes = (Note("CORE", 1, b"123"), info(text))
    kdump = made(a_map((0, 1 << 20)), *notes)
    assert kdump.vmcoreinfo == text.encode()
    assert kdump.header["phys_base"] == 2**64 - 0x1000000
    assert (kdump.header["sysname"], kdump.header["release"]) == ("Linux", "6.1.0-test")
    assert kdump.notes[:20] == struct.pack("<III", 5, 3, 1) + b"CORE\0\0\0\0"
    assert kdump.notes.endswith(text.encode().ljust(-(-len(text) // 4) * 4, b"\0"))


@pytest.mark.parametrize(
    ("family", "text", "block", "phys_base"),
    [
        ("arm virt", "PAGESIZE=4096\nNUMBER(PHYS_OFFSET)=0x80000000\n", 4096, 0x80000000),
        ("arm virt", "PAGESIZE=16384\n", 16384, GIB),
        ("q35", "NUMBER(phys_base)=4194304\n", 4096, 0x400000),
        # Hostile.
        ("q35", "PAGESIZE=5000\n", 4096, 0),
        ("q35", "PAGESIZE=0\n", 4096, 0),
        ("q35", "PAGESIZE=1073741824\nOSRELEASE=" + "x" * 500, 4096, 0),
        ("arm virt", "PAGESIZE=" + "9" * 5000 + "\n", 65536, GIB),
        ("q35", "NUMBER(phys_base)=" + "9" * 60 + "\n", 4096, (10**24 - 1) % 2**64),
        ("q35", "xPAGESIZE=65536\nNUMBER(phys_base)=zz\nPAGESIZE", 4096, 0),
    ],
)
def test_what_vmcoreinfo_says(family: str, text: str, block: int, phys_base: int) -> None:
    kdump = made(a_map((GIB, 1 << 20), family=family), info(text))
    assert kdump.header["block_size"] == block
    assert kdump.header["phys_base"] == phys_base
    assert kdump.vmcoreinfo == text.encode()


def test_utsname() -> None:
    """That of the kernel is taken as it is."""
    names = ("Linux", "host", "6.1", "#1 SMP", "x86_64", "(none)")
    packed = b"".join(name.encode().ljust(65, b"\0") for name in names)
    header = made(a_map((0, 1 << 20)), info("OSRELEASE=6.1\n"), utsname=packed).header
    assert tuple(header[name] for name in UTSNAME) == names


def test_many_notes() -> None:
    """More notes than a block of the sub header."""
    notes = tuple(Note("CORE", 1, bytes([i]) * 336) for i in range(64))
    kdump = made(a_map((0, 1 << 20)), *notes, info("OSRELEASE=1\n"))
    assert kdump.header["sub_hdr_size"] == 6
    assert kdump.vmcoreinfo == b"OSRELEASE=1\n"
    assert kdump.notes.count(b"CORE\0") == 64


def test_flattened() -> None:
    out = bytearray()
    flat = Flattened(out.extend)
    flat.write(4, b"efgh")
    flat.write(0, memoryview(b"abcd"))
    flat.write(10, b"k")
    flat.finish()
    assert unflattened(bytes(out)) == b"abcdefgh\0\0k"
