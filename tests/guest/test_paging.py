"""Page tables built by hand in every format, and what must not be found in them.

Linux guests were compared with `gva2gpa` of the monitor: x86 with two to five levels and PAE,
aarch64 with pages of 4 KiB (48 and 52 bits, at EL1 and EL2) and of 16 KiB. Where a kernel may not
read the pages of programs, gva2gpa gives none.
"""

from __future__ import annotations

import random

import pytest

from vmstream.errors import AddressError, UnsupportedError
from vmstream.guest.cpus import CPU
from vmstream.guest.paging import translate

PAGE = 4096
PG, PSE, PAE, LA57, LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10


class Memory:
    """Guest memory with tables in it; each table is taken from the next free page."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 20)
        self.free = 0x10000

    def table(self) -> int:
        self.free += PAGE
        return self.free

    def put(self, at: int, value: int, size: int = 8) -> None:
        self.data[at : at + size] = value.to_bytes(size, "little")

    def get(self, at: int, size: int = 8) -> int:
        return int.from_bytes(self.data[at : at + size], "little")

    def read(self, at: int, length: int) -> bytes:
        if at + length > len(self.data):
            raise AddressError(at, "no RAM")
        return bytes(self.data[at : at + length])

    def map(self, root: int, levels: int, address: int, frame: int, large: int = 0) -> None:
        """Map a page; `large` is the level at which the entry is one of a large page."""
        table = root
        for level in reversed(range(levels)):
            at = table + 8 * (address >> 12 + 9 * level & 0x1FF)
            if level == large:
                self.put(at, frame | 1 | (0x80 if large else 0) | 1 << 63)
                return
            if not self.get(at):
                self.put(at, self.table() | 7)
            table = self.get(at) & ~0xFFF


def x86(cr0: int = PG, cr3: int = 0, cr4: int = PAE, efer: int = LMA) -> CPU:
    return CPU(0, "x86", {"control": {"cr0": cr0, "cr3": cr3, "cr4": cr4, "efer": efer}}, "")


def test_without_paging() -> None:
    assert translate(Memory().read, x86(cr0=1), 0x12345) == (0x12345, 0xCBB)


@pytest.mark.parametrize("levels", [4, 5])
def test_long_mode(levels: int) -> None:
    memory, rng = Memory(), random.Random(levels)
    root = memory.table()
    cpu = x86(cr3=root | 0x18, cr4=PAE | (LA57 if levels == 5 else 0))
    top = 12 + 9 * levels
    mapped = {}
    for i in range(40):
        address = rng.randrange(1 << top - 1) & ~0xFFF
        if i % 2:  # the upper half
            address = (1 << 64) - (1 << top) + (1 << top - 1 | address)
        mapped[address] = rng.randrange(1 << 40) << 12 & ((1 << 52) - 1)
        memory.free = max(memory.free, 0x10000)
        memory.data.extend(bytes(1 << 16))
        memory.map(root, levels, address & (1 << top) - 1, mapped[address])
    for address, frame in mapped.items():
        assert translate(memory.read, cpu, address + 0x123) == (frame + 0x123, PAGE - 0x123)
    for wrong in (1 << top - 1, (1 << 64) - (1 << top) - 1, 1 << 63):
        with pytest.raises(AddressError, match="not canonical"):
            translate(memory.read, cpu, wrong)
    with pytest.raises(AddressError, match="not mapped"):
        translate(memory.read, x86(cr3=memory.table()), 0)


def test_large_pages() -> None:
    memory = Memory()
    root = memory.table()
    cpu = x86(cr3=root)
    memory.map(root, 4, 0x4000_0000, 0x2_0000_0000, large=1)
    memory.map(root, 4, 0x8000_0000_00, 0x40_0000_0000, large=2)
    assert translate(memory.read, cpu, 0x4012_3456) == (0x2_0012_3456, (2 << 20) - 0x123456)
    assert translate(memory.read, cpu, 0x8012_3456_78 & ~0)[0] == (
        0x40_0000_0000 + (0x8012_3456_78 & (1 << 30) - 1)
    )


def test_pae() -> None:
    memory = Memory()
    root = memory.table() + 0x20  # on 32 bytes
    for i in range(4):
        memory.put(root + 8 * i, memory.table() | 1)
    cpu = x86(cr3=root, efer=0)
    memory.map(memory.get(root + 8 * 3) & ~0xFFF, 2, 0xC012_3000, 0x3_4567_8000)
    memory.map(memory.get(root) & ~0xFFF, 2, 0x40_0000, 0x1_2340_0000, large=1)
    assert translate(memory.read, cpu, 0xC012_3ABC) == (0x3_4567_8ABC, 0x544)
    assert translate(memory.read, cpu, 0x41_2345)[0] == 0x1_2341_2345
    with pytest.raises(AddressError, match="over 4 GiB"):
        translate(memory.read, cpu, 1 << 32)
    memory.put(root + 8, 0)
    with pytest.raises(AddressError, match="not mapped"):
        translate(memory.read, cpu, 0x4000_0000)


def test_two_levels() -> None:
    memory = Memory()
    root, table = memory.table(), memory.table()
    memory.put(root + 4 * 0x300, table | 3, 4)
    memory.put(table + 4 * 5, 0xABCD_E000 | 1, 4)
    memory.put(root + 4 * 1, 0x0080_0000 | 0x81 | 3 << 13, 4)  # 4 MiB, at 12 GiB and 8 MiB
    cpu = x86(cr3=root, cr4=PSE, efer=0)
    assert translate(memory.read, cpu, 0xC000_5678) == (0xABCD_E678, 0x988)
    assert translate(memory.read, cpu, 0x0051_2345)[0] == 0x3_0091_2345
    for wrong in (0xC000_6000, 0x8000_0000):
        with pytest.raises(AddressError, match="not mapped"):
            translate(memory.read, cpu, wrong)


def arm(**system: int) -> CPU:
    return CPU(0, "aarch64", {"system": {"sctlr_el1": 1, **system}}, "")


def arm_map(
    memory: Memory,
    root: int,
    bits: int,
    address: int,
    frame: int,
    large: int = 0,
    page: int = 12,
) -> None:
    """As `Memory.map`; tables of a larger page are given room for it."""
    table = root
    for level in reversed(range(-(-(bits - page) // (page - 3)))):
        at = page + level * (page - 3)
        place = table + 8 * (address >> at & (1 << min(page - 3, bits - at)) - 1)
        if level == large:
            memory.put(place, frame | (1 if large else 3) | 1 << 54)
            return
        if not memory.get(place):
            memory.free += 1 << page
            memory.free &= -1 << page
            memory.put(place, memory.free | 3)
        table = memory.get(place) & 0x0000_FFFF_FFFF_F000


@pytest.mark.parametrize("bits", [48, 39, 36])
def test_aarch64(bits: int) -> None:
    memory = Memory()
    low, high = memory.table(), memory.table()
    size = 64 - bits
    cpu = arm(ttbr0_el1=low | 1 << 48, ttbr1_el1=high, tcr_el1=size | size << 16 | 2 << 30)
    arm_map(memory, low, bits, 0x12_3456_7000 & (1 << bits) - 1, 0x4000_1000)
    arm_map(memory, high, bits, 0x20_0000, 0x4020_0000, large=1)
    upper = (1 << 64) - (1 << bits)
    assert translate(memory.read, cpu, 0x12_3456_7010 & (1 << bits) - 1) == (0x4000_1010, 0xFF0)
    assert translate(memory.read, cpu, upper + 0x21_2345)[0] == 0x4021_2345
    for wrong in (0x5000, upper + 0x8000_0000):
        with pytest.raises(AddressError, match="not mapped"):
            translate(memory.read, cpu, wrong)
    with pytest.raises(AddressError, match="outside"):
        translate(memory.read, cpu, 1 << bits)
    with pytest.raises(AddressError, match="outside"):
        translate(memory.read, cpu, upper - 1)


# Values of TG0 and TG1, and of DS: addresses of 52 bits.
@pytest.mark.parametrize(
    ("page", "bits", "lower", "upper", "wide"),
    [(12, 52, 0, 2, 1), (14, 47, 2, 1, 0), (14, 48, 2, 1, 0), (14, 52, 2, 1, 1), (16, 48, 1, 3, 0)],
)
def test_aarch64_pages_and_widths(page: int, bits: int, lower: int, upper: int, wide: int) -> None:
    memory = Memory()
    size = 64 - bits
    # The upper table of 48 bits in pages of 16 KiB has two entries, and stands among others.
    low, high = 0x4000, 0x8000 + (128 if (page, bits) == (14, 48) else 0)
    tcr = size | size << 16 | lower << 14 | upper << 30 | wide << 59
    cpu = arm(ttbr0_el1=low | 1 << 48, ttbr1_el1=high | 1, tcr_el1=tcr)
    user, kernel = 0x12_3456_0000 & -1 << page, 0x7_0000_0000
    top = (1 << 64) - (1 << bits)
    # Bits of a frame's address above the 48th stand where the entry has room.
    out = {12: 1 << 8, 14: 1 << 8, 16: 5 << 12}[page] if wide or page == 16 else 0
    beyond = {12: 1 << 50, 14: 1 << 50, 16: 5 << 48}[page] if out else 0
    arm_map(memory, low, bits, user, 0x4567_0000 | out, page=page)
    arm_map(memory, high, bits, kernel, 0x8_0000_0000 | out, large=1, page=page)
    assert translate(memory.read, cpu, user + 0x10) == (beyond + 0x4567_0010, (1 << page) - 0x10)
    found = translate(memory.read, cpu, top + kernel + 0x12345)
    assert found == (beyond + 0x8_0001_2345, (1 << 2 * page - 3) - 0x12345)
    for wrong in (user + (1 << page), top):
        with pytest.raises(AddressError, match="not mapped"):
            translate(memory.read, cpu, wrong)


E2H, TGE, EL2 = 1 << 34, 1 << 27, 2 << 2


@pytest.mark.parametrize(("pstate", "hcr"), [(EL2, E2H), (0, E2H | TGE)])
def test_aarch64_host_at_el2(pstate: int, hcr: int) -> None:
    """A kernel at EL2, and its programs at EL0, have the registers of EL2."""
    memory = Memory()
    low, high = memory.table(), memory.table()
    system = {"hcr_el2": hcr, "sctlr_el2": 1, "sctlr_el1": 0, "ttbr0_el2": low, "ttbr1_el2": high}
    system["tcr_el2"] = 16 | 16 << 16 | 2 << 30
    cpu = CPU(0, "aarch64", {"general": {"pstate": pstate}, "system": system}, "")
    arm_map(memory, low, 48, 0x1000, 0x4000_1000)
    arm_map(memory, high, 48, 0x20_0000, 0x4020_0000, large=1)
    assert translate(memory.read, cpu, 0x1234)[0] == 0x4000_1234
    assert translate(memory.read, cpu, 0xFFFF_0000_0020_1234)[0] == 0x4020_1234


def test_aarch64_hypervisor_at_el2() -> None:
    """One table, whose TCR has other fields."""
    memory = Memory()
    root = memory.table()
    system = {"sctlr_el2": 1, "ttbr0_el2": root, "tcr_el2": 16 | 1 << 20, "hcr_el2": 1}
    cpu = CPU(0, "aarch64", {"general": {"pstate": EL2 | 1}, "system": system}, "")
    arm_map(memory, root, 48, 0x8000_0000_1000, 0x4000_1000)
    for tag in (0, 0xFF << 56):
        assert translate(memory.read, cpu, tag | 0x8000_0000_1234)[0] == 0x4000_1234
    with pytest.raises(AddressError, match="outside"):
        translate(memory.read, cpu, 0xFFFF_8000_0000_1234)


def test_aarch64_tags_and_tables_that_are_off() -> None:
    memory = Memory()
    low, high = memory.table(), memory.table()
    tcr = 16 | 16 << 16 | 2 << 30
    arm_map(memory, low, 48, 0x1000, 0x4000_1000)
    arm_map(memory, high, 48, 0x1000, 0x4000_2000)
    tables = {"ttbr0_el1": low, "ttbr1_el1": high}
    tagged = arm(**tables, tcr_el1=tcr | 3 << 37)
    assert translate(memory.read, tagged, 0x5A00_0000_0000_1000)[0] == 0x4000_1000
    assert translate(memory.read, tagged, 0x5AFF_0000_0000_1000)[0] == 0x4000_2000
    for off, wrong in ((1 << 7, 0x1000), (1 << 23, 0xFFFF_0000_0000_1000)):
        with pytest.raises(AddressError, match="outside"):
            translate(memory.read, arm(**tables, tcr_el1=tcr | off), wrong)


def test_what_is_not_read() -> None:
    with pytest.raises(AddressError, match="no size"):
        translate(Memory().read, arm(tcr_el1=16 | 3 << 14), 0)
    with pytest.raises(UnsupportedError, match="guest of the guest"):
        translate(Memory().read, arm(hcr_el2=1), 0)
    with pytest.raises(UnsupportedError, match="s390x"):
        translate(Memory().read, CPU(0, "s390x", {}, ""), 0)
    assert translate(Memory().read, arm(sctlr_el1=0), 0x1234)[0] == 0x1234


def test_tables_outside_of_ram() -> None:
    with pytest.raises(AddressError):
        translate(Memory().read, x86(cr3=1 << 40), 0)


def test_random_tables() -> None:
    """Whatever is in them, a walk ends."""
    rng = random.Random(7)
    memory = Memory()
    memory.data[:] = rng.randbytes(len(memory.data))
    for _ in range(500):
        noise = arm(tcr_el1=rng.getrandbits(64), ttbr0_el1=0x1000, ttbr1_el1=0x2000)
        cpu = rng.choice(
            (x86(cr3=0x1000), x86(cr3=0x1000, efer=0), x86(cr3=0x1000, cr4=0, efer=0), noise)
        )
        try:
            physical, left = translate(memory.read, cpu, rng.randrange(1 << 32))
        except AddressError:
            continue
        assert physical >= 0
        assert left > 0
