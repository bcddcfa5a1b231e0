"""ROM and flash in the guest-physical map: where a machine has them after a reset.

Below 1 MiB a PC's chipset has RAM or ROM as firmware sets it, and all firmware copies itself to RAM
there: so it is RAM in our map. isapc and microvm have no such chipset.
"""

from __future__ import annotations

from dataclasses import replace

from vmstream.guest.physical import GIB, PhysicalMap, Region
from vmstream.stream.events import RAMBlock

_PAGE = 4096
_FOUR_GIB = 4 * GIB
_MIB = 1 << 20

# Of the firmware, what is seen below 1 MiB. QEMU v7.2.0 hw/i386/x86.c x86_bios_rom_init().
_ISA_BIOS = 128 << 10

# QEMU v7.2.0 hw/i386/pc.c pc_memory_init(): PC_ROM_MIN_VGA.
_OPTION_ROM = 0xC0000

# QEMU v7.2.0 hw/arm/virt.c base_memmap: VIRT_FLASH, cut in two; hw/riscv/virt.c virt_memmap:
# VIRT_MROM, VIRT_FLASH.
_FIXED: dict[str, dict[bytes, int]] = {
    "arm virt": {b"virt.flash0": 0, b"virt.flash1": 0x4000000},
    "riscv virt": {
        b"riscv_virt_board.mrom": 0x1000,
        b"virt.flash0": 0x20000000,
        b"virt.flash1": 0x22000000,
    },
}


def with_rom(layout: PhysicalMap, blocks: tuple[RAMBlock, ...]) -> PhysicalMap:
    """Add ROM and flash to a map.

    Args:
        layout: The map, with the family of its machine.
        blocks: The block list.

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
    if layout.family in ("pc", "q35", "isapc", "microvm"):
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
    if layout.family in ("isapc", "microvm"):
        for rom in _below_1m(layout.family, index, blocks):
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


def _below_1m(family: str, index: dict[bytes, int], blocks: tuple[RAMBlock, ...]) -> list[Region]:
    found = []
    bios = index.get(b"pc.bios")
    if bios is not None:
        used = blocks[bios].used_length
        length = min(used, _ISA_BIOS)
        if length and not used % _PAGE:
            found.append(Region(_MIB - length, length, bios, used - length))
    option = index.get(b"pc.rom")
    if option is not None and family == "isapc":
        length = blocks[option].used_length
        if 0 < length <= _ISA_BIOS and not length % _PAGE:
            found.append(Region(_OPTION_ROM, length, option, 0))
    return found


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
