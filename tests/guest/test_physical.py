"""Where RAM stands in the guest: the numbers are QEMU's, typed in.

QEMU v10.1.0 hw/i386/pc_piix.c pc_init1(), pc_q35.c pc_q35_init(), microvm.c
microvm_memory_init(), pc.c pc_cmos_init(); hw/arm/virt.c, hw/riscv/virt.c, hw/m68k/virt.c.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from vmstream.errors import EXIT_USAGE, OutputError
from vmstream.guest.physical import (
    Evidence,
    PhysicalMap,
    Region,
    concatenated,
    physical_map,
    ram_blocks,
)
from vmstream.ops.extract import moves
from vmstream.stream.events import RAMBlock

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNIT = 64 * KIB
HOLE_END = 0x1_0000_0000

FIRMWARE = (
    ("/rom@etc/acpi/tables", 0x20000),
    ("pc.bios", 0x40000),
    ("pc.rom", 0x20000),
    ("0000:00:02.0/vga.vram", 16 * MIB),
    ("0000:00:03.0/virtio-net-pci.rom", 0x40000),
    ("/rom@etc/table-loader", 0x1000),
)


def blocks(*named: tuple[str, int]) -> tuple[RAMBlock, ...]:
    return tuple(RAMBlock(name.encode(), size) for name, size in named)


def guest(size: int, name: str = "pc.ram") -> tuple[RAMBlock, ...]:
    """The blocks of an x86 guest with this much RAM."""
    return blocks((name, size), *FIRMWARE)


def cmos(below: int, above: int = 0) -> bytes:
    """What pc_cmos_init() writes: 0x34/0x35 and 0x5b to 0x5d, in units of 64 KiB; for older
    software 0x15/0x16, 0x17/0x18 and 0x30/0x31, in KiB."""
    raw = bytearray(range(128))
    base, extended = min(below // KIB, 640), min(max(0, below - MIB) // KIB, 65535)
    for at, value in ((0x15, base), (0x17, extended), (0x30, extended)):
        raw[at : at + 2] = value.to_bytes(2, "little")
    low = max(0, below - 16 * MIB) // UNIT
    high = above // UNIT
    raw[0x34], raw[0x35] = low & 0xFF, low >> 8
    raw[0x5B], raw[0x5C], raw[0x5D] = high & 0xFF, high >> 8 & 0xFF, high >> 16 & 0xFF
    return bytes(raw)


def split(machine: str | None, size: int, cmos: bytes | None = None) -> PhysicalMap:
    name = None if machine is None else machine.encode()
    return physical_map(Evidence(name, guest(size), cmos))


def check_split(found: PhysicalMap, size: int, below: int) -> None:
    """Offset 0 at address 0 up to the hole, the rest from 4 GiB on."""
    want = [Region(0, below, 0, 0)]
    if below < size:
        want.append(Region(HOLE_END, size - below, 0, below))
    assert list(found.regions) == want
    assert found.below_4g == below
    assert found.size == (size if below == size else HOLE_END + size - below)


PC_SPLIT, PC_LIMIT = 0xC0000000, 0xE0000000  # 3 GiB, 3.5 GiB
Q35_SPLIT, Q35_LIMIT = 0x80000000, 0xB0000000  # 2 GiB, 2.75 GiB


@pytest.mark.parametrize(
    ("machine", "size", "below"),
    [
        ("pc-i440fx-10.0", 128 * MIB, 128 * MIB),
        ("pc-i440fx-10.0", 3 * GIB, 3 * GIB),
        ("pc-i440fx-10.0", 3200 * MIB, 3200 * MIB),
        ("pc-i440fx-10.0", PC_LIMIT - UNIT, PC_LIMIT - UNIT),
        ("pc-i440fx-10.0", PC_LIMIT, PC_SPLIT),
        ("pc-i440fx-10.0", PC_LIMIT + UNIT, PC_SPLIT),
        ("pc-i440fx-10.0", 4 * GIB, PC_SPLIT),
        ("pc-i440fx-10.0", 5 * GIB, PC_SPLIT),
        ("pc-i440fx-2.0", PC_LIMIT, PC_SPLIT),
        ("pc-i440fx-2.0", 4 * GIB, PC_SPLIT),
        # gigabyte_align came with 2.0.
        ("pc-i440fx-1.7", PC_LIMIT, PC_LIMIT),
        ("pc-i440fx-1.7", PC_LIMIT + UNIT, PC_LIMIT),
        ("pc-i440fx-1.7", 4 * GIB, 3584 * MIB),
        ("pc-i440fx-1.4", 4 * GIB, 3584 * MIB),
        ("pc-1.3", 4 * GIB, 3584 * MIB),
        ("pc-1.0", 4 * GIB, 3584 * MIB),
        ("pc-0.12", 4 * GIB, 3584 * MIB),
        ("pc-i440fx-rhel7.6.0", 4 * GIB, PC_SPLIT),
        ("pc-i440fx-9.0+pve0", 4 * GIB, PC_SPLIT),
        ("pc-i440fx-jammy", 4 * GIB, PC_SPLIT),
        ("isapc", PC_LIMIT - UNIT, PC_LIMIT - UNIT),
        # isapc has no gigabyte_align: QEMU v7.2.0 hw/i386/pc_piix.c isapc_machine_options().
        ("isapc", PC_LIMIT + UNIT, PC_LIMIT),
        ("isapc", 4 * GIB, PC_LIMIT),
        ("pc-q35-10.0", Q35_SPLIT, Q35_SPLIT),
        ("pc-q35-10.0", Q35_LIMIT - UNIT, Q35_LIMIT - UNIT),
        ("pc-q35-10.0", Q35_LIMIT, Q35_SPLIT),
        ("pc-q35-10.0", 2816 * MIB, Q35_SPLIT),
        ("pc-q35-10.0", 5 * GIB, Q35_SPLIT),
        ("pc-q35-2.4", 4 * GIB, Q35_SPLIT),
        ("pc-q35-rhel9.2.0", 4 * GIB, Q35_SPLIT),
        ("microvm", 3 * GIB - UNIT, 3 * GIB - UNIT),
        ("microvm", 3 * GIB, 3 * GIB),
        ("microvm", 3 * GIB + UNIT, 3 * GIB),
        ("microvm", 5 * GIB, 3 * GIB),
    ],
)
def test_rules(machine: str, size: int, below: int) -> None:
    found = split(machine, size)
    check_split(found, size, below)
    assert found.decided_by == "machine rule"
    assert not found.doubts
    assert f"{below:#x} bytes below 4 GiB" in found.reasons[0]
    # CMOS that says the same changes nothing but who decided.
    agreed = split(machine, size, cmos(below, size - below))
    assert agreed.regions == found.regions
    assert agreed.decided_by == "cmos"
    assert len(agreed.reasons) == 1
    assert not agreed.doubts


@pytest.mark.parametrize(
    ("machine", "size", "below"),
    [
        # max-ram-below-4g=1G, 2G, 3.75G; a q35 with it; a machine that this file has no rule for.
        ("pc-i440fx-10.0", 5 * GIB, 1 * GIB),
        ("pc-i440fx-10.0", 2 * GIB, 1 * GIB),
        ("pc-i440fx-10.0", 4 * GIB, 3840 * MIB),
        ("pc-q35-10.0", 5 * GIB, 3 * GIB),
        ("pc-q35-10.0", 4 * GIB, 0xB0000000),
        ("pc-i440fx-1.7", 4 * GIB, PC_SPLIT),
        ("microvm", 4 * GIB, 2 * GIB),
        ("isapc", 1 * GIB, 512 * MIB),
    ],
)
def test_cmos_overrules_the_machine(machine: str, size: int, below: int) -> None:
    found = split(machine, size, cmos(below, size - below))
    check_split(found, size, below)
    assert found.decided_by == "cmos"
    assert any("the machine's rule would be" in reason for reason in found.reasons)
    assert not found.doubts


def test_cmos_of_a_small_guest_is_zero() -> None:
    """Up to 16 MiB nothing is stated in 0x34/0x35."""
    for size in (1 * MIB, 15 * MIB, 16 * MIB):
        found = split("pc-i440fx-10.0", size, cmos(size))
        check_split(found, size, size)
        assert found.decided_by == "cmos"
        assert not found.doubts


@pytest.mark.parametrize(
    "raw",
    [
        cmos(128 * MIB, 0),  # less than there is
        cmos(3 * GIB, 3 * GIB),  # more
        cmos(0, 5 * GIB),  # all above, nothing below
        cmos(0, 0),  # never filled in
        b"\xff" * 128,
        cmos(3 * GIB, 2 * GIB - UNIT),
    ],
)
def test_cmos_that_does_not_fit_is_a_doubt(raw: bytes) -> None:
    found = split("pc-i440fx-10.0", 5 * GIB, raw)
    check_split(found, 5 * GIB, PC_SPLIT)
    assert found.decided_by == "machine rule"
    assert len(found.doubts) == 1
    assert "does not fit 0x140000000 bytes" in found.doubts[0]


@pytest.mark.parametrize("size", [512 * KIB, 2 * MIB, 8 * MIB, 15 * MIB + 64 * KIB, 16 * MIB])
@pytest.mark.parametrize("plugged", [8 * MIB + 128 * KIB, 64 * MIB, 2 * GIB])
def test_the_ram_of_a_small_guest_is_told_from_other_blocks(size: int, plugged: int) -> None:
    """0x30/0x31 state what 0x34/0x35 are too coarse for."""
    found, index = split_of_two(size, plugged)
    # Where memory devices are, behind 4 GiB.
    want = [Region(0, size, index, 0), Region(4 * GIB, plugged, 1 - index, 0)]
    assert list(found.regions) == want
    assert [r.source for r in found.regions] == ["cmos", "machine rule"]
    assert found.decided_by == "cmos"
    assert any("block mem" in reason for reason in found.reasons)
    assert not found.doubts


def split_of_two(size: int, plugged: int) -> tuple[PhysicalMap, int]:
    """The map of a guest with plugged memory, and the index of its RAM; the largest comes first."""
    listed = sorted((("mem", size), ("nv", plugged)), key=lambda b: -b[1])
    evidence = Evidence(b"pc-q35-7.2", blocks(*listed, *FIRMWARE), cmos(size))
    return physical_map(evidence), listed.index(("mem", size))


def test_old_bytes_alone_refuse_nothing() -> None:
    """Of one block of 16 MiB or less, all is below: a guest may have changed 0x30/0x31."""
    for junk in (b"\0\0", b"\x12\x34", b"\xff\xff"):
        raw = bytearray(cmos(8 * MIB))
        raw[0x30:0x32] = junk
        found = split("pc-i440fx-10.0", 8 * MIB, bytes(raw))
        check_split(found, 8 * MIB, 8 * MIB)
        assert not found.doubts


@pytest.mark.parametrize("below", [16 * MIB, 8 * MIB])
def test_a_split_at_or_below_16_mib(below: int) -> None:
    """max-ram-below-4g=16M."""
    found = split("pc-q35-7.2", GIB, cmos(below, GIB - below))
    check_split(found, GIB, below)
    assert found.decided_by == "cmos"


def test_regions_say_where_their_address_comes_from() -> None:
    def sources(found: PhysicalMap) -> set[str]:
        return {r.source for r in found.regions}

    assert sources(split("pc-q35-9.0", 5 * GIB)) == {"machine rule"}
    assert sources(split("pc-q35-9.0", 5 * GIB, cmos(2 * GIB, 3 * GIB))) == {"cmos"}
    user = physical_map(Evidence(b"pc-q35-9.0", guest(5 * GIB)), GIB)
    assert sources(user) == {"user"}
    virt = physical_map(Evidence(b"virt-9.0", blocks(("mach-virt.ram", GIB))))
    assert sources(virt) == {"machine rule"}
    assert sources(concatenated(guest(GIB), [0])) == {"not decided"}
    # It is no part of what a region is: the image of a pipe stays where it is.
    assert Region(0, GIB, 0, 0, "cmos") == Region(0, GIB, 0, 0)


def test_cmos_too_short_is_none() -> None:
    assert split("pc-q35-9.0", GIB, cmos(GIB)[:64]) == split("pc-q35-9.0", GIB)


@pytest.mark.parametrize("size", [GIB + 4 * KIB, 5 * GIB + 60 * KIB, 3 * MIB + 4 * KIB])
def test_sizes_that_are_no_multiple_of_the_unit(size: int) -> None:
    """CMOS counts 64 KiB; what is less is cut off there, but not from the image."""
    below = min(size, PC_SPLIT)
    found = split("pc-i440fx-10.0", size, cmos(below, size - below))
    check_split(found, size, below)
    assert found.decided_by == "cmos"


# -- the user decides ---------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["pc-i440fx-10.0", "pc-q35-10.0", "microvm", "isapc"])
@pytest.mark.parametrize("below", [UNIT, 1 * GIB, 0xE0000000, 4 * GIB])
def test_below_4g(machine: str, below: int) -> None:
    evidence = Evidence(machine.encode(), guest(5 * GIB), cmos(3 * GIB, 2 * GIB))
    found = physical_map(evidence, below)
    check_split(found, 5 * GIB, below)
    assert found.decided_by == "user"
    assert found.reasons[0] == f"--below-4g {below:#x}"


def test_below_4g_of_a_small_guest() -> None:
    found = physical_map(Evidence(b"pc-i440fx-10.0", guest(GIB)), GIB)
    check_split(found, GIB, GIB)


@pytest.mark.parametrize(
    ("size", "below"),
    [
        (GIB, GIB + UNIT),  # more than there is
        (8 * GIB, 4 * GIB + UNIT),  # over 4 GiB
        (5 * GIB, 3 * GIB + 4 * KIB),  # odd
        (5 * GIB, 1),
    ],
)
def test_below_4g_refused(size: int, below: int) -> None:
    with pytest.raises(OutputError, match=f"--below-4g {below:#x}") as caught:
        physical_map(Evidence(b"pc-i440fx-10.0", guest(size)), below)
    assert f"{size:#x}" in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE == 2


@pytest.mark.parametrize("machine", [b"virt-9.0", b"pseries-9.0", b"s390-ccw-virtio-9.0", b"sun4m"])
def test_below_4g_is_for_x86(machine: bytes) -> None:
    with pytest.raises(OutputError, match="x86"):
        physical_map(Evidence(machine, blocks(("mem", GIB))), GIB)


# -- several blocks -----------------------------------------------------------------------------


def test_numa_backends_of_one_size() -> None:
    """Equal sizes stay in order of creation: that of the nodes. A node may straddle the hole."""
    nodes = blocks(("n0", 2 * GIB), ("n1", 2 * GIB), ("n2", 2 * GIB), *FIRMWARE)
    found = physical_map(Evidence(b"pc-i440fx-10.0", nodes, cmos(3 * GIB, 3 * GIB)))
    assert list(found.regions) == [
        Region(0, 2 * GIB, 0, 0),
        Region(2 * GIB, 1 * GIB, 1, 0),
        Region(4 * GIB, 1 * GIB, 1, 1 * GIB),
        Region(5 * GIB, 2 * GIB, 2, 0),
    ]
    assert found.size == 7 * GIB
    assert "n0, n1, n2" in " ".join(found.reasons)
    (doubt,) = found.doubts
    assert "order of blocks n0, n1, n2" in doubt


def test_numa_backends_below_the_hole() -> None:
    nodes = blocks(("n0", 16 * MIB), ("n1", 16 * MIB), *FIRMWARE)
    found = physical_map(Evidence(b"pc-i440fx-10.0", nodes, cmos(32 * MIB)))
    assert list(found.regions) == [
        Region(0, 16 * MIB, 0, 0),
        Region(16 * MIB, 16 * MIB, 1, 0),
    ]


@pytest.mark.parametrize("first", [True, False])
def test_a_dimm(first: bool) -> None:
    """Behind RAM, at the next GiB; not below 4 GiB."""
    dimm = ("dimm0", 3 * GIB if first else 512 * MIB)
    for size, at in ((1 * GIB, 4 * GIB), (5 * GIB + 512 * MIB, 8 * GIB)):
        listed = sorted((dimm, ("mem", size)), key=lambda b: -b[1])
        below = min(size, 2 * GIB)
        evidence = Evidence(b"pc-q35-9.0", blocks(*listed, *FIRMWARE), cmos(below, size - below))
        found = physical_map(evidence)
        index = listed.index(dimm)
        assert found.regions[-1] == Region(at, dimm[1], index, 0)
        assert found.regions[-1].source == "machine rule"
        assert {r.block for r in found.regions[:-1]} == {1 - index}
        assert not found.doubts


def test_no_place_for_a_dimm() -> None:
    listed = blocks(("microvm.ram", GIB), ("dimm0", GIB), *FIRMWARE)
    found = physical_map(Evidence(b"microvm", listed, cmos(GIB)))
    assert list(found.regions) == [Region(0, GIB, 0, 0)]
    (doubt,) = found.doubts
    assert "'dimm0'" in doubt
    assert "--block" in doubt


def test_nodes_and_a_dimm() -> None:
    listed = blocks(("d0", 128 * MIB), ("n0", 16 * MIB), ("n1", 16 * MIB), *FIRMWARE)
    found = physical_map(Evidence(b"pc-i440fx-10.0", listed, cmos(32 * MIB)))
    assert [(r.gpa, r.block) for r in found.regions] == [(0, 1), (16 * MIB, 2), (4 * GIB, 0)]
    (doubt,) = found.doubts
    assert "order of blocks n0, n1" in doubt


def test_nodes_of_several_sizes() -> None:
    """Taken by their numbers, with a doubt; QEMU lists the largest first."""
    listed = blocks(("n1", 2 * GIB), ("n2", GIB), ("n0", 512 * MIB), *FIRMWARE)
    found = physical_map(Evidence(b"pc-i440fx-10.0", listed, cmos(3 * GIB, 512 * MIB)))
    assert [(r.gpa, r.block) for r in found.regions] == [
        (0, 2), (512 * MIB, 0), (2560 * MIB, 1), (4 * GIB, 1),
    ]  # fmt: skip
    assert "order of blocks n0, n1, n2" in found.doubts[0]
    other = physical_map(Evidence(b"pseries-9.0", listed[:3]))
    assert [(r.gpa, r.block) for r in other.regions] == [(0, 2), (512 * MIB, 0), (2560 * MIB, 1)]
    assert len(other.doubts) == 1


def srat(*entries: tuple[int, int, int, int]) -> bytes:
    """Tables of which one has these (node, address, length, flags): ACPI 6.5, 5.2.16.2."""
    body = b"".join(
        struct.pack("<BBIHQQIIQ", 1, 40, node, 0, gpa, size, 0, flags, 0)
        for node, gpa, size, flags in entries
    )
    head = struct.pack("<4sIBB30x8x", b"SRAT", 48 + len(body), 1, 0)
    return b"FACS".ljust(64, b"\0") + head + body + bytes(100)


LOW = ((0, 0, 0xA0000, 1), (0, MIB, 511 * MIB, 1))


def test_tables_tell_the_nodes() -> None:
    """Which sizes stand in which order, whatever the names are."""
    listed = blocks(("x", 2 * GIB), ("y", GIB), ("z", 512 * MIB), ("dimm", 512 * MIB), *FIRMWARE)
    tables = srat(
        *LOW, (1, 512 * MIB, 2 * GIB, 1), (2, 2560 * MIB, 512 * MIB, 1), (2, 4 * GIB, 512 * MIB, 1),
        (0, 0, 0, 0), (2, 16 * GIB, 8 * GIB, 3),
    )  # fmt: skip
    evidence = Evidence(b"pc-i440fx-10.0", listed, cmos(3 * GIB, 512 * MIB), tables=tables)
    found = physical_map(evidence)
    assert [(r.gpa, r.block, r.source) for r in found.regions] == [
        (0, 2, "cmos"), (512 * MIB, 0, "cmos"), (2560 * MIB, 1, "cmos"), (4 * GIB, 1, "cmos"),
        (16 * GIB, 3, "machine rule"),
    ]  # fmt: skip
    # Two blocks have the size of node 0.
    assert "have the size of a node, too" in found.doubts[0]


def test_tables_that_disagree_are_a_doubt() -> None:
    evidence = Evidence(b"pc-q35-9.0", guest(GIB), cmos(GIB), tables=srat(*LOW))
    (doubt,) = physical_map(evidence).doubts
    assert "0x0..0x20000000" in doubt


def test_tables_tell_of_ram_at_a_tebibyte() -> None:
    size = 0xFD00000000
    high = 1 << 40
    tables = srat((0, 0, 2 * GIB, 1), (0, high, size - 2 * GIB, 1))
    evidence = Evidence(b"pc-q35-9.0", guest(size), cmos(2 * GIB, size - 2 * GIB), tables=tables)
    found = physical_map(evidence)
    assert list(found.regions) == [
        Region(0, 2 * GIB, 0, 0), Region(high, size - 2 * GIB, 0, 2 * GIB)
    ]  # fmt: skip
    assert not found.doubts


def test_ignored_shared_memory_states_the_order() -> None:
    listed = (
        RAMBlock(b"b", GIB, None, GIB), RAMBlock(b"a", GIB, None, 0), RAMBlock(b"c", GIB, None, 0)
    )  # fmt: skip
    tables = srat(*LOW, (0, 512 * MIB, 512 * MIB, 1), (1, GIB, GIB, 1), (0, 4 * GIB, GIB, 3))
    found = physical_map(Evidence(b"pc-q35-9.0", listed, cmos(2 * GIB), tables=tables))
    assert [(r.gpa, r.block, r.source) for r in found.regions] == [
        (0, 1, "cmos"), (GIB, 0, "cmos"), (4 * GIB, 2, "wire"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "stated"),
    [
        ((1 * GIB, 1 * GIB), cmos(1 * GIB)),  # one of two
        ((1 * GIB, 1 * GIB, 1 * GIB), cmos(2 * GIB)),  # two of three
        ((4 * GIB, 2 * GIB, 2 * GIB), cmos(3 * GIB, 1 * GIB)),  # the one, or the two
        ((2 * GIB, 1 * GIB), cmos(128 * MIB)),  # none fits
        ((2 * GIB, 2 * GIB), cmos(0)),  # not stated
        ((2 * GIB, 2 * GIB), None),
        ((GIB,) * 13, cmos(3 * GIB, 10 * GIB)),  # more than are tried
    ],
)
def test_ambiguous_sizes_are_refused(sizes: tuple[int, ...], stated: bytes | None) -> None:
    listed = blocks(*((f"m{i}", size) for i, size in enumerate(sizes)), *FIRMWARE)
    with pytest.raises(OutputError, match="RAM is made of several") as caught:
        physical_map(Evidence(b"pc-i440fx-10.0", listed, stated))
    assert "--block" in str(caught.value)
    assert "'m0', 'm1'" in str(caught.value)


def test_old_canonical_paths_are_ram() -> None:
    """Backends of machine types up to 3.1 are named '/objects/ID'."""
    listed = blocks(("/objects/m0", GIB), *FIRMWARE)
    found = physical_map(Evidence(b"pc-i440fx-3.1", listed))
    assert list(found.regions) == [Region(0, GIB, 0, 0)]


@pytest.mark.parametrize("name", ["tpm-ppi", "tpm-crb-cmd"])
@pytest.mark.parametrize("stated", [None, cmos(3 * GIB, 2 * GIB)])
def test_a_tpm_is_no_ram(name: str, stated: bytes | None) -> None:
    """A TPM has RAM blocks of a page, without a path: QEMU hw/tpm/tpm_ppi.c and tpm_crb.c."""
    listed = blocks(("pc.ram", 5 * GIB), *FIRMWARE, (name, 0x1000))
    found = physical_map(Evidence(b"pc-q35-8.2", listed, stated), None if stated else 3 * GIB)
    assert {r.block for r in found.regions} == {0}
    assert found.below_4g == 3 * GIB
    assert not found.doubts


@pytest.mark.parametrize(
    "name",
    [
        "pc.bios", "pc.rom", "isa-bios", "system.flash0", "system.flash1", "virt.flash0",
        "virt.flash1", "vga.vram", "0000:00:02.0/vga.vram", "/rom@etc/acpi/tables",
        "/rom@etc/table-loader", "riscv_virt_board.mrom", "virt.secure-ram", "mach-virt.tag",
        "0000:00:03.0/virtio-net-pci.rom", "pvtime",
    ],
)  # fmt: skip
def test_firmware_is_no_ram(name: str) -> None:
    listed = blocks((name, 64 * MIB), ("pc.ram", GIB), (name + "x/y", 64 * MIB))
    assert ram_blocks(listed) == [1]


@pytest.mark.parametrize(
    "name",
    ["pc.ram", "mem", "ram-node0", "mach-virt.ram", "microvm.ram", "s390.ram", "ppc_spapr.ram",
     "/objects/m0", "dimm-backend", "romulus", "flash"],
)  # fmt: skip
def test_ram_is_ram(name: str) -> None:
    assert ram_blocks(blocks((name, GIB), ("pc.bios", 0x40000))) == [0]


# -- other machines -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "base", "listed"),
    [
        ("virt-10.0", 0x40000000, [("mach-virt.ram", 5 * GIB), ("virt.flash0", 64 * MIB)]),
        ("virt-2.8", 0x40000000, [("mach-virt.ram", GIB)]),
        ("virt-10.0", 0x40000000, [("mem", GIB), ("/rom@etc/acpi/tables", 0x20000)]),
        ("virt", 0x80000000, [("riscv_virt_board.ram", GIB), ("riscv_virt_board.mrom", 0xF000)]),
        ("virt", 0x80000000, [("mem", GIB), ("riscv_virt_board.mrom", 0xF000)]),
        ("pseries-10.0", 0, [("ppc_spapr.ram", 5 * GIB)]),
        ("pseries-2.12-sxxm", 0, [("mem", GIB)]),
        ("s390-ccw-virtio-10.0", 0, [("s390.ram", 5 * GIB)]),
    ],
)
def test_bases(machine: str, base: int, listed: list[tuple[str, int]]) -> None:
    found = physical_map(Evidence(machine.encode(), blocks(*listed)))
    size = listed[0][1]
    assert list(found.regions) == [Region(base, size, 0, 0)]
    assert found.below_4g is None
    assert found.decided_by == "machine rule"
    assert found.size == base + size
    assert f"{base:#x}" in found.reasons[0]


@pytest.mark.parametrize("machine", ["virt-7.2", "virt-10.0"])
@pytest.mark.parametrize("name", ["m68k_virt.ram", "mem"])
def test_m68k_has_a_virt_too(machine: str, name: str) -> None:
    """Its names are ARM's, 'virt-7.2', but its RAM is at 0."""
    evidence = Evidence(
        machine.encode(), blocks((name, 128 * MIB)), None, [b"goldfish_pic", b"m68k-irqc"]
    )
    try:
        found = physical_map(evidence)
    except OutputError:
        return
    assert list(found.regions) == [Region(0, 128 * MIB, 0, 0)]


@pytest.mark.parametrize(
    ("machine", "listed"),
    [
        ("sun4m", [("sun4m.ram", GIB)]),
        ("none", [("mem", GIB)]),
        ("mps2-an385", [("mps.ram", GIB)]),
        ("", [("mem", GIB)]),
        (None, [("mem", GIB)]),
        (None, [("s390.ram", GIB)]),
    ],
)
def test_unknown_machines_are_refused(machine: str | None, listed: list[tuple[str, int]]) -> None:
    name = None if machine is None else machine.encode()
    with pytest.raises(OutputError, match="no rule for where machine") as caught:
        physical_map(Evidence(name, blocks(*listed, ("other", MIB))))
    assert f"{listed[0][0]!r}" in str(caught.value)
    assert "'other'" in str(caught.value)
    assert "--all-blocks" in str(caught.value)


def test_windows() -> None:
    """RAM in pieces: QEMU hw/loongarch/virt.c, hw/arm/xlnx-zcu102.c."""
    for machine in (b"virt", b"virt-11.1"):
        listed = blocks(("loongarch.ram", GIB), ("virt.flash0", 16 * MIB))
        found = physical_map(Evidence(machine, listed))
        want = [Region(0, 256 * MIB, 0, 0), Region(2 * GIB, 768 * MIB, 0, 256 * MIB)]
        assert list(found.regions) == want
    found = physical_map(Evidence(b"xlnx-zcu102", blocks(("ddr-ram", 4 * GIB))))
    assert list(found.regions) == [
        Region(0, 2 * GIB, 0, 0), Region(32 * GIB, 2 * GIB, 0, 2 * GIB)
    ]  # fmt: skip


def test_several_blocks_elsewhere_are_refused() -> None:
    """QEMU up to 4.2 cut the RAM of s390 into blocks."""
    listed = blocks(("s390.ram", GIB), ("s390.ram.1", GIB))
    with pytest.raises(OutputError, match="made of several of 2 blocks") as caught:
        physical_map(Evidence(b"s390-ccw-virtio-3.1", listed))
    assert "'s390.ram', 's390.ram.1'" in str(caught.value)


def test_no_ram_at_all() -> None:
    with pytest.raises(OutputError, match=r"no block looks like .*'pc.bios'"):
        physical_map(Evidence(b"pc-q35-9.0", blocks(("pc.bios", 0x40000))))


def test_the_offer_of_names_is_short_and_readable() -> None:
    listed = (RAMBlock(b"a\xff\n", MIB), *blocks(*((f"b{i}", MIB) for i in range(20))))
    with pytest.raises(OutputError) as caught:
        physical_map(Evidence(b"sun4m", listed))
    assert "\n" not in str(caught.value)
    assert "'b6', ...)" in str(caught.value)


@pytest.mark.parametrize(
    ("idstrs", "below"),
    [
        ([b"0000:00:00.0/I440FX", b"timer"], PC_SPLIT),
        ([], PC_SPLIT),
        ([b"0000:00:00.0/mch"], Q35_SPLIT),
    ],
)
def test_machines_that_do_not_say(idstrs: list[bytes], below: int) -> None:
    """No configuration section before 2.4: the sections tell."""
    found = physical_map(Evidence(None, guest(5 * GIB), None, idstrs))
    check_split(found, 5 * GIB, below)


def test_amd_guests_of_a_tebibyte() -> None:
    """From 7.1 on upper RAM of an AMD guest that would end above 0xfd00000000 is at 1 TiB."""
    limit = 0xFD00000000
    at_limit = limit - HOLE_END + PC_SPLIT
    assert not split("pc-i440fx-10.0", at_limit).doubts
    assert "1 TiB" in split("pc-i440fx-10.0", at_limit + UNIT).doubts[0]


# -- properties ---------------------------------------------------------------------------------


@given(
    st.sampled_from(["pc-i440fx-10.0", "pc-i440fx-1.7", "pc-q35-10.0", "microvm", "isapc"]),
    st.integers(1, 2 * 1024 * GIB // UNIT).map(lambda n: n * UNIT),
    st.integers(0, 1 << 17).map(lambda n: n * UNIT),
)
def test_every_byte_has_one_place(machine: str, size: int, below: int) -> None:
    below = min(size, 4 * GIB, below)
    maps = [split(machine, size), split(machine, size, cmos(below, size - below))]
    if below:
        maps.append(physical_map(Evidence(machine.encode(), guest(size)), below))
    for found in maps:
        covered = at = 0
        for region in found.regions:
            assert region.length > 0
            assert region.gpa >= at
            assert region.block_offset == covered
            assert region.gpa + region.length <= HOLE_END or region.gpa == HOLE_END
            at, covered = region.gpa + region.length, covered + region.length
        assert covered == size
        assert found.below_4g == min(size, found.below_4g or 0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=4),
    st.integers(0, 200),
    st.integers(0, 200),
)
def test_moves(lengths: list[int], one: int, other: int) -> None:
    """Moving the pieces of one map gives what the other map would have written."""
    listed = blocks(*((f"b{i}", n) for i, n in enumerate(lengths)))
    contents = [bytes(range(1 + i, 1 + i + n)) for i, n in enumerate(lengths)]

    def laid_out(split: int) -> PhysicalMap:
        regions, at = [], 0
        for i, n in enumerate(lengths):
            low = max(0, min(n, split - at))
            if low:
                regions.append(Region(at, low, i, 0))
            if low < n:
                regions.append(Region(1000 + at + low - split, n - low, i, low))
            at += n
        return PhysicalMap(tuple(regions), split, "test", ())

    def written(layout: PhysicalMap) -> bytes:
        image = bytearray(layout.size)
        for r in layout.regions:
            content = contents[r.block][r.block_offset :][: r.length]
            image[r.gpa : r.gpa + r.length] = content
        return bytes(image)

    new = laid_out(other)
    for old in (laid_out(one), concatenated(listed, list(range(len(listed))))):
        source, image = written(old), bytearray(new.size)
        for begin, to, length in moves(old, new):
            image[to : to + length] = source[begin : begin + length]
        assert image == written(new)


def test_concatenated() -> None:
    listed = blocks(("a", MIB), ("b", GIB), ("c", KIB))
    found = concatenated(listed, [2, 0])
    assert list(found.regions) == [Region(0, KIB, 2, 0), Region(KIB, MIB, 0, 0)]
    assert found.size == MIB + KIB
