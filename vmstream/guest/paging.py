"""Virtual addresses: a walk through the page tables that a CPU's own registers point to.

x86 with two levels, PAE, four and five levels (Intel SDM volume 3, chapter 5); aarch64 (Arm ARM,
D8.2). Permissions do not matter to somebody who looks.
"""

from __future__ import annotations

from collections.abc import Callable

from vmstream.errors import AddressError, UnsupportedError
from vmstream.guest.cpus import CPU, exception_level, in_host

Read = Callable[[int, int], bytes]

_PAGE_BITS, _TABLE_BITS = 12, 9
_PRESENT, _LARGE = 1 << 0, 1 << 7
_CR0_PG, _CR4_PSE, _CR4_PAE, _CR4_LA57, _EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ARM_TABLE = 0x0000_FFFF_FFFF_FFFE
_ARM_HCR_VM = 1 << 0
# Bits of a page by TG0 and TG1 of TCR_ELx, and the level of the largest block, counted from the
# pages, where addresses have up to 48 bits.
_ARM_TG0, _ARM_TG1 = {0: 12, 1: 16, 2: 14}, {1: 14, 2: 12, 3: 16}
_ARM_BLOCK = {12: 2, 14: 1, 16: 2}


def translate(read: Read, cpu: CPU, address: int) -> tuple[int, int]:
    """Return the guest-physical address of a virtual one, and the bytes left in its page.

    Args:
        read: Reads guest-physical memory: (address, length) to bytes.
        cpu: The CPU whose tables count.
        address: The virtual address.

    Raises:
        AddressError: Nothing is mapped there.
        UnsupportedError: The CPU's tables are of a kind that is not read here.
    """
    if cpu.architecture == "x86":
        return _x86(read, cpu, address)
    if cpu.architecture == "aarch64" and not cpu.mode.startswith("AArch32"):
        return _aarch64(read, cpu, address)
    raise UnsupportedError(0, f"page tables of {cpu.architecture}", advice="use --phys")


def _unmapped(address: int, why: str) -> AddressError:
    return AddressError(address, f"virtual address {address:#x}: {why}")


def _entry(read: Read, at: int, size: int = 8) -> int:
    return int.from_bytes(read(at, size), "little")


def _found(frame: int, address: int, bits: int) -> tuple[int, int]:
    size = 1 << bits
    return frame & -size | address & (size - 1), size - (address & (size - 1))


def _x86(read: Read, cpu: CPU, address: int) -> tuple[int, int]:
    control = cpu.groups["control"]
    cr3, cr4 = control["cr3"], control["cr4"]
    if not control["cr0"] & _CR0_PG:
        return address, (1 << _PAGE_BITS) - (address & 0xFFF)
    if control.get("efer", 0) & _EFER_LMA:
        levels = 5 if cr4 & _CR4_LA57 else 4
        bits = _PAGE_BITS + levels * _TABLE_BITS
        if address >> bits - 1 not in (0, (1 << 65 - bits) - 1):
            raise _unmapped(address, "not canonical")
        return _walk(read, address, cr3 & _ADDRESS, levels)
    if address >> 32:
        raise _unmapped(address, "over 4 GiB, and the CPU is not in 64-bit mode")
    if cr4 & _CR4_PAE:
        entry = _entry(read, (cr3 & 0xFFFFFFE0) + 8 * (address >> 30))
        if not entry & _PRESENT:
            raise _unmapped(address, "not mapped")
        return _walk(read, address, entry & _ADDRESS, 2)
    entry = _entry(read, (cr3 & 0xFFFFF000) + 4 * (address >> 22), 4)
    if not entry & _PRESENT:
        raise _unmapped(address, "not mapped")
    if entry & _LARGE and cr4 & _CR4_PSE:
        # Bits 13 to 20 are those above 4 GiB.
        return _found(entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32, address, 22)
    entry = _entry(read, (entry & 0xFFFFF000) + 4 * (address >> 12 & 0x3FF), 4)
    if not entry & _PRESENT:
        raise _unmapped(address, "not mapped")
    return _found(entry & 0xFFFFF000, address, _PAGE_BITS)


def _walk(read: Read, address: int, table: int, levels: int) -> tuple[int, int]:
    for level in reversed(range(levels)):
        bits = _PAGE_BITS + level * _TABLE_BITS
        entry = _entry(read, table + 8 * (address >> bits & 0x1FF))
        if not entry & _PRESENT:
            raise _unmapped(address, "not mapped")
        if not level or (entry & _LARGE and level < 3):
            return _found(entry & _ADDRESS, address, bits)
        table = entry & _ADDRESS
    raise AssertionError("unreachable")


def _aarch64(read: Read, cpu: CPU, address: int) -> tuple[int, int]:
    system, level, host = cpu.groups["system"], exception_level(cpu), in_host(cpu)
    if level < 2 and not host and system.get("hcr_el2", 0) & _ARM_HCR_VM:
        raise UnsupportedError(0, "the CPU runs a guest of the guest", advice="use --phys")
    regime = 2 if host else max(level, 1)
    tcr = system.get(f"tcr_el{regime}", 0)
    if not system.get(f"sctlr_el{regime}", 0) & 1:
        return address, (1 << _PAGE_BITS) - (address & 0xFFF)
    # Two tables, for the lower and the upper half, or one.
    two = regime == 1 or host
    upper = address >> 55 & 1 if two else 0
    at_ignore, at_wide = (37 + upper, 59) if two else (20, 32)
    if tcr >> at_ignore & 1:
        address = address & (1 << 56) - 1 | upper * 0xFF << 56
    page = (_ARM_TG1 if upper else _ARM_TG0).get(tcr >> (30 if upper else 14) & 3)
    bits = 64 - (tcr >> 16 * upper & 0x3F)
    if address >> bits != upper * ((1 << 64 - bits) - 1) or (two and tcr >> 7 + 16 * upper & 1):
        raise _unmapped(address, "outside of what the tables cover")
    if page is None:
        raise _unmapped(address, "TCR has no size of pages")
    return _arm_walk(
        read, address, system.get(f"ttbr{upper}_el{regime}", 0), page, bits, tcr >> at_wide & 1
    )


# `wide`: addresses of 52 bits with pages of 4 and 16 KiB, by TCR_ELx.DS.
def _arm_walk(
    read: Read, address: int, base: int, page: int, bits: int, wide: int
) -> tuple[int, int]:
    index_bits = page - 3
    levels = -(-(bits - page) // index_bits)
    table = base & _ARM_TABLE
    if wide or page == 16:
        table = table & ~0x3F | (base >> 2 & 0xF) << 48
    for level in reversed(range(levels)):
        at = page + level * index_bits
        count = min(bits - at, index_bits)
        # A table is aligned to its size.
        table &= -8 << count
        entry = _entry(read, table + 8 * (address >> at & (1 << count) - 1))
        block = level and not entry & 2
        if not entry & 1 or not (level or entry & 2) or (block and level > _ARM_BLOCK[page] + wide):
            raise _unmapped(address, "not mapped")
        out = entry & (1 << 48) - (1 << page)
        if page == 16:
            out |= (entry >> 12 & 0xF) << 48
        elif wide:
            out |= entry & 3 << 48 | (entry >> 8 & 3) << 50
        if block or not level:
            return _found(out, address, at)
        table = out
    raise _unmapped(address, "no tables")
