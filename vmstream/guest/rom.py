"""ROM and flash in the guest-physical map: where a machine has them after a reset.

Below 1 MiB a PC's chipset has RAM or ROM as firmware sets it: registers of the host bridge say
which. Where its state is not known it is RAM in our map, since all firmware copies itself to RAM
there. isapc and microvm have no such chipset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vmstream.guest.physical import GIB, PhysicalMap, Region
from vmstream.stream.events import RAMBlock

_PAGE = 4096
_FOUR_GIB = 4 * GIB
_MIB = 1 << 20
_STATE = "device state"
_PC = ("pc", "q35", "isapc", "microvm")

# Of the firmware, what is seen below 1 MiB. QEMU v7.2.0 hw/i386/x86.c x86_bios_rom_init().
_ISA_BIOS = 128 << 10

# QEMU v7.2.0 hw/i386/pc.c pc_memory_init(): PC_ROM_MIN_VGA.
_OPTION_ROM = 0xC0000

# Vendor and device of a host bridge, and its first PAM register: two bits for each segment, of
# which none is set where reads go to PCI, and so to ROM. QEMU v7.2.0 hw/pci-host/pam.c
# pam_update(), include/hw/pci-host/i440fx.h I440FX_PAM, q35.h MCH_HOST_BRIDGE_PAM0.
_PAM = {bytes.fromhex("86803712"): 0x59, bytes.fromhex("8680c029"): 0x90}

# QEMU v7.2.0 hw/arm/virt.c base_memmap: VIRT_FLASH, cut in two; hw/riscv/virt.c virt_memmap:
# VIRT_MROM, VIRT_FLASH.
_FIXED: dict[str, dict[bytes, int]] = {
    "arm virt": {b"virt.flash0": 0, b"virt.flash1": 0x4000000},
    "loongarch virt": {b"virt.flash0": 0x1C000000, b"virt.flash1": 0x1D000000},
    "riscv virt": {
        b"riscv_virt_board.mrom": 0x1000,
        b"virt.flash0": 0x20000000,
        b"virt.flash1": 0x22000000,
    },
}


def with_rom(
    layout: PhysicalMap, blocks: tuple[RAMBlock, ...], northbridge: bytes | None = None
) -> PhysicalMap:
    """Add ROM and flash to a map.

    Args:
        layout: The map, with the family of its machine.
        blocks: The block list.
        northbridge: PCI configuration of the host bridge, if it is known.

    Returns:
        The map with them. One that is in the way of RAM is left out, with a doubt.
    """
    index = {b.idstr: i for i, b in reversed(list(enumerate(blocks)))}
    fixed = _FIXED.get(layout.family, {})
    roms = [
        Region(gpa, blocks[index[name]].used_length, index[name], 0)
        for name, gpa in fixed.items()
        if name in index
    ]
    if layout.family in _PC:
        roms = _below_4g(index, blocks)
    regions, doubts = list(layout.regions), list(layout.doubts)
    for rom in roms:
        end = rom.gpa + rom.length
        odd = rom.gpa < 0 or rom.gpa % _PAGE or rom.length % _PAGE
        if odd or any(r.gpa < end and rom.gpa < r.gpa + r.length for r in regions):
            name = blocks[rom.block].idstr.decode("utf-8", "backslashreplace")
            doubts.append(f"block {name!r} ({rom.length:#x} bytes) does not fit where ROM is")
        elif rom.length:
            regions.append(rom)
    low = []
    if layout.family in _PC:
        low = list(_below_1m(layout.family, index, blocks))
    if layout.family in ("pc", "q35"):
        shown = _segments(northbridge)
        low = [part for rom in low for part in _within(rom, shown)]
    for rom in low:
        regions = [part for r in regions for part in _around(r, rom)] + [rom]
    regions.sort(key=lambda r: r.gpa)
    return replace(layout, regions=tuple(regions), doubts=tuple(doubts))


# Firmware ends at 4 GiB; flash devices are stacked below each other. QEMU v7.2.0
# hw/i386/pc_sysfw.c pc_system_flash_map().
def _below_4g(index: dict[bytes, int], blocks: tuple[RAMBlock, ...]) -> list[Region]:
    found, end = [], _FOUR_GIB
    for name in (b"pc.bios", b"system.flash0", b"system.flash1"):
        if name in index:
            length = blocks[index[name]].used_length
            end -= length
            found.append(Region(end, length, index[name], 0))
    return found


# Of firmware in flash there is a copy, or the end of the flash itself. QEMU v10.1.0
# hw/i386/pc_sysfw.c pc_isa_bios_init(), x86_isa_bios_init().
def _below_1m(
    family: str, index: dict[bytes, int], blocks: tuple[RAMBlock, ...]
) -> Iterator[Region]:
    for name in (b"pc.bios", b"isa-bios", b"system.flash0"):
        bios = index.get(name)
        used = 0 if bios is None else blocks[bios].used_length
        length = min(used, _ISA_BIOS)
        if bios is not None and length and not used % _PAGE:
            yield Region(_MIB - length, length, bios, used - length)
            break
    option = index.get(b"pc.rom")
    if option is not None and family in ("pc", "q35", "isapc"):
        length = blocks[option].used_length
        if 0 < length <= _ISA_BIOS and not length % _PAGE:
            yield Region(_OPTION_ROM, length, option, 0)


# (address, end) of what is ROM by the registers: one for the last 64 KiB, twelve for 16 KiB each.
def _segments(northbridge: bytes | None) -> list[tuple[int, int]]:
    first = _PAM.get(northbridge[:4]) if northbridge is not None else None
    if northbridge is None or first is None or len(northbridge) < first + 7:
        return []
    places = [(0xF0000, 0x100000)]
    places += [(at, at + 0x4000) for at in range(0xC0000, 0xF0000, 0x4000)]
    found: list[tuple[int, int]] = []
    for i, place in enumerate(places):
        bits = northbridge[first + (i + 1) // 2] >> (0 if i & 1 else 4) & 3
        if not bits:
            found.append(place)
    found.sort()
    joined: list[tuple[int, int]] = []
    for low, high in found:
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def _within(rom: Region, shown: list[tuple[int, int]]) -> Iterator[Region]:
    for begin, end in shown:
        low, high = max(begin, rom.gpa), min(end, rom.gpa + rom.length)
        if low < high:
            yield Region(low, high - low, rom.block, rom.block_offset + low - rom.gpa, _STATE)


# What of a region is not under `over`.
def _around(region: Region, over: Region) -> list[Region]:
    parts = []
    end, over_end = region.gpa + region.length, over.gpa + over.length
    low, high = min(end, over.gpa), max(region.gpa, over_end)
    if region.gpa < low:
        parts.append(replace(region, length=low - region.gpa))
    if high < end:
        skipped = high - region.gpa
        parts.append(
            replace(
                region,
                gpa=high,
                length=end - high,
                block_offset=region.block_offset + skipped,
            )
        )
    return parts
