"""Virtual addresses: a walk through the page tables that a CPU's own registers point to.

x86 with two levels, PAE, four and five levels (Intel SDM volume 3, chapter 5); aarch64 with pages
of 4 KiB (Arm ARM, D8.2). Permissions do not matter to somebody who looks.
"""

from __future__ import annotations

from collections.abc import Callable

from vmstream.errors import AddressError, UnsupportedError
from vmstream.guest.cpus import CPU

Read = Callable[[int, int], bytes]

_PAGE_BITS, _TABLE_BITS = 12, 9
_PRESENT, _LARGE = 1 << 0, 1 << 7
_CR0_PG, _CR4_PSE, _CR4_PAE, _CR4_LA57, _EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ARM_ADDRESS = 0x0000_FFFF_FFFF_F000


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
    system = cpu.groups["system"]
    if not system.get("sctlr_el1", 0) & 1:
        return address, (1 << _PAGE_BITS) - (address & 0xFFF)
    tcr, upper = system.get("tcr_el1", 0), address >> 55 & 1
    granule = tcr >> 30 & 3 if upper else tcr >> 14 & 3
    if granule != (2 if upper else 0):
        raise UnsupportedError(0, "page tables with pages other than 4 KiB", advice="use --phys")
    bits = 64 - (tcr >> (16 if upper else 0) & 0x3F)
    rest = (
        address >> bits if not upper else ~(address & (1 << 64) - 1) >> bits & (1 << 64 - bits) - 1
    )
    if rest:
        raise _unmapped(address, "outside of what the tables cover")
    table = system.get("ttbr1_el1" if upper else "ttbr0_el1", 0) & _ARM_ADDRESS
    levels = -(-(bits - _PAGE_BITS) // _TABLE_BITS)
    for level in reversed(range(levels)):
        at = _PAGE_BITS + level * _TABLE_BITS
        wide = min(bits, at + _TABLE_BITS) - at
        entry = _entry(read, table + 8 * (address >> at & (1 << wide) - 1))
        if not entry & 1 or (not level and not entry & 2):
            raise _unmapped(address, "not mapped")
        if not level or not entry & 2:
            return _found(entry & _ARM_ADDRESS, address, at)
        table = entry & _ARM_ADDRESS
    raise _unmapped(address, "no tables")
