"""ROM and flash in the map; tests/test_dumps_qemu.py has the same against QEMU."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from vmstream.guest.physical import Evidence, PhysicalMap, Region, physical_map
from vmstream.guest.rom import with_rom
from vmstream.stream.events import RAMBlock

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB


def mapped(machine: str, *named: tuple[str, int], below: int | None = None) -> PhysicalMap:
    blocks = tuple(RAMBlock(name.encode(), size) for name, size in named)
    return with_rom(physical_map(Evidence(machine.encode(), blocks), below), blocks)


def test_pc() -> None:
    """Firmware ends at 4 GiB; below 1 MiB is the RAM that it copies itself to."""
    for machine in ("pc-i440fx-9.0", "pc-q35-9.0"):
        found = mapped(machine, ("pc.ram", 5 * GIB), ("pc.bios", 256 * KIB), ("pc.rom", 128 * KIB))
        assert Region(FOUR_GIB - 256 * KIB, 256 * KIB, 1, 0) in found.regions
        assert len(found.regions) == 3
        assert [r.gpa for r in found.regions] == sorted(r.gpa for r in found.regions)
        assert {r.source for r in found.regions} == {"machine rule"}
        assert not found.doubts


def test_flash() -> None:
    """One below the other."""
    found = mapped(
        "pc-q35-9.0", ("pc.ram", GIB), ("system.flash1", 128 * KIB), ("system.flash0", 4 * MIB),
        ("isa-bios", 128 * KIB),
    )  # fmt: skip
    assert found.regions == (
        Region(0, GIB, 0, 0),
        Region(FOUR_GIB - 4 * MIB - 128 * KIB, 128 * KIB, 1, 0),
        Region(FOUR_GIB - 4 * MIB, 4 * MIB, 2, 0),
    )


def test_isapc() -> None:
    """RAM goes on behind what lies over it; of larger firmware the end is seen."""
    found = mapped("isapc", ("pc.ram", 16 * MIB), ("pc.bios", 256 * KIB), ("pc.rom", 64 * KIB))
    assert found.regions == (
        Region(0, 768 * KIB, 0, 0),
        Region(768 * KIB, 64 * KIB, 2, 0),
        Region(832 * KIB, 64 * KIB, 0, 832 * KIB),
        Region(896 * KIB, 128 * KIB, 1, 128 * KIB),
        Region(MIB, 15 * MIB, 0, MIB),
        Region(FOUR_GIB - 256 * KIB, 256 * KIB, 1, 0),
    )


def test_microvm() -> None:
    found = mapped("microvm", ("microvm.ram", 4 * GIB), ("pc.bios", 64 * KIB))
    assert found.regions == (
        Region(0, 960 * KIB, 0, 0),
        Region(960 * KIB, 64 * KIB, 1, 0),
        Region(MIB, 3 * GIB - MIB, 0, MIB),
        Region(FOUR_GIB - 64 * KIB, 64 * KIB, 1, 0),
        Region(FOUR_GIB, GIB, 0, 3 * GIB),
    )


def test_ram_that_ends_under_it() -> None:
    found = mapped("isapc", ("pc.ram", 960 * KIB), ("pc.bios", 128 * KIB))
    assert found.regions[:2] == (
        Region(0, 896 * KIB, 0, 0),
        Region(896 * KIB, 128 * KIB, 1, 0),
    )
    assert len(found.regions) == 3


def test_virt() -> None:
    found = mapped(
        "virt-9.0", ("mach-virt.ram", GIB), ("virt.flash1", 64 * MIB), ("virt.flash0", 64 * MIB)
    )
    assert found.regions == (
        Region(0, 64 * MIB, 2, 0),
        Region(64 * MIB, 64 * MIB, 1, 0),
        Region(GIB, GIB, 0, 0),
    )
    found = mapped("virt", ("riscv_virt_board.ram", GIB), ("riscv_virt_board.mrom", 60 * KIB))
    assert found.regions == (Region(0x1000, 60 * KIB, 1, 0), Region(2 * GIB, GIB, 0, 0))


def test_machines_without_rom_of_their_own() -> None:
    found = mapped("pseries-9.0", ("ppc_spapr.ram", GIB), ("pc.bios", 256 * KIB))
    assert found.regions == (Region(0, GIB, 0, 0),)


@pytest.mark.parametrize(
    ("name", "size", "below"),
    [
        ("pc.bios", 256 * KIB, 4 * GIB),  # RAM stands there, the user says
        ("pc.bios", 5 * GIB, None),  # it has no room
        ("pc.bios", 1000, None),  # no whole pages
        ("system.flash0", 2 * GIB, None),
    ],
)
def test_what_does_not_fit_is_a_doubt(name: str, size: int, below: int | None) -> None:
    found = mapped("pc-i440fx-9.0", ("pc.ram", 5 * GIB), (name, size), below=below)
    assert all(r.block == 0 for r in found.regions)
    (doubt,) = found.doubts
    assert f"block {name!r} ({size:#x} bytes) does not fit" in doubt


@given(
    machine=st.sampled_from(["isapc", "microvm", "pc-q35-9.0", "virt-9.0"]),
    ram=st.integers(1, 2000),
    sizes=st.lists(st.integers(0, 3 * 64 * KIB), min_size=6, max_size=6),
)
def test_nothing_overlaps(machine: str, ram: int, sizes: list[int]) -> None:
    """Whatever sizes a stream states."""
    names = ("pc.bios", "pc.rom", "system.flash0", "system.flash1", "virt.flash0", "virt.flash1")
    listed = [("mach-virt.ram" if machine == "virt-9.0" else "pc.ram", ram * 4096)]
    listed += [(n, s * 4096 if s % 2 else s) for n, s in zip(names, sizes, strict=True)]
    found = mapped(machine, *listed)
    at = 0
    for region in found.regions:
        assert region.gpa >= at
        assert region.length > 0
        assert region.gpa % 4096 == region.block_offset % 4096 == 0
        assert region.block_offset + region.length <= listed[region.block][1]
        at = region.gpa + region.length


def bridge(vendor_device: str, first: int, registers: str) -> bytes:
    raw = bytearray(256)
    raw[:4] = bytes.fromhex(vendor_device)
    raw[first : first + 7] = bytes.fromhex(registers)
    return bytes(raw)


@pytest.mark.parametrize(("machine", "device", "first"), [
    ("pc-i440fx-9.0", "86803712", 0x59), ("pc-q35-9.0", "8680c029", 0x90),
])  # fmt: skip
def test_pam(machine: str, device: str, first: int) -> None:
    """Registers of the host bridge: 440FX data sheet 290549, 3.2.20; none set is ROM."""
    blocks = tuple(
        RAMBlock(n, s) for n, s in ((b"mem", GIB), (b"pc.bios", 256 * KIB), (b"pc.rom", 128 * KIB))
    )
    bare = physical_map(Evidence(machine.encode(), blocks))

    def low(registers: str) -> list[tuple[int, int, int, int, str]]:
        found = with_rom(bare, blocks, bridge(device, first, registers))
        return [
            (r.gpa, r.length, r.block, r.block_offset, r.source)
            for r in found.regions
            if r.gpa < MIB and r.block
        ]

    assert low("00000000000000") == [
        (0xC0000, 128 * KIB, 2, 0, "device state"),
        (0xE0000, 128 * KIB, 1, 128 * KIB, "device state"),
    ]
    assert low("30333333333333") == low("10111111111111") == []
    # 0xC4000 to 0xC7FFF, and 0xF0000 to 0xFFFFF.
    assert low("00033333333333") == [
        (0xC4000, 16 * KIB, 2, 16 * KIB, "device state"),
        (0xF0000, 64 * KIB, 1, 192 * KIB, "device state"),
    ]
    for unknown in (None, b"", bytes(256), bridge(device, first, "00" * 7)[:first]):
        assert with_rom(bare, blocks, unknown) == with_rom(bare, blocks)
