"""The guest-physical map: where the RAM blocks stand in the guest. Inference, and labelled so.

Nothing on the wire maps blocks to addresses. On x86 the RTC's CMOS states the sizes of RAM
below and above 4 GiB (QEMU v10.1.0 hw/i386/pc.c pc_cmos_init()), which firmware leaves alone;
elsewhere, and as a cross-check, there is the rule of the machine type.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations

from vmstream.errors import OutputError
from vmstream.stream.events import RAMBlock

_KIB, _MIB = 1 << 10, 1 << 20
GIB = 1 << 30
_FOUR_GIB = 4 * GIB
_SIXTEEN_MIB = 16 << 20
_CMOS_UNIT = 64 << 10

# Choices of blocks that are tried: 2 to the power of this.
_MOST_BACKENDS = 12

# From here on an AMD guest of machine 7.1 or later has its upper RAM at 1 TiB, and the stream
# does not tell the vendor. QEMU v10.1.0 hw/i386/pc.c pc_memory_init(): AMD_HT_START.
_AMD_HT_START = 0xFD00000000

# Blocks that are no RAM of the machine: firmware and flash. Those with a path in front
# ('0000:00:02.0/vga.vram', '/rom@etc/acpi/tables') belong to a device or to fw_cfg.
_FIRMWARE = re.compile(
    rb"pc\.(bios|rom)|isa-bios|.*\.(rom|mrom|bios|flash\d*|vram)|.*flash\d+|virt\.secure-ram|pvtime"
    rb"|mach-virt\.tag|tpm-ppi|tpm-crb-cmd|vga\.vram|qxl\..*"
)


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a block at a guest-physical address; numbers in bytes.

    `source` says where the address comes from, as `PhysicalMap.decided_by` does; it does not
    make two regions differ.
    """

    gpa: int
    length: int
    block: int
    block_offset: int
    source: str = field(default="machine rule", compare=False)


@dataclass(frozen=True, slots=True)
class PhysicalMap:
    """Where RAM stands.

    Attributes:
        regions: By address, not overlapping.
        below_4g: Bytes of RAM below 4 GiB, `None` where the machine has no such split.
        decided_by: 'user', 'cmos' or 'machine rule'; 'not decided' before the end of a pipe.
        reasons: How it was decided, a sentence each.
        doubts: What speaks against it or was left out, a sentence each.
        family: Family of machine types, 'unknown' if it is none that has a rule.
    """

    regions: tuple[Region, ...]
    below_4g: int | None
    decided_by: str
    reasons: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    family: str = "unknown"

    @property
    def size(self) -> int:
        """Bytes from address 0 to the end of the highest region."""
        return max((r.gpa + r.length for r in self.regions), default=0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a stream tells about its map.

    Attributes:
        machine: Machine type, `None` without a configuration section.
        blocks: The block list.
        cmos: The RTC's 128 bytes of CMOS, `None` if not (yet) known.
        idstrs: Names of the sections seen.
    """

    machine: bytes | None
    blocks: tuple[RAMBlock, ...]
    cmos: bytes | None = None
    idstrs: Collection[bytes] = ()


def ram_blocks(blocks: tuple[RAMBlock, ...]) -> list[int]:
    """Indices of the blocks that can be the machine's RAM, by their names."""
    return [
        i
        for i, b in enumerate(blocks)
        if (b"/" not in b.idstr or b.idstr.startswith(b"/objects/"))
        and not _FIRMWARE.fullmatch(b.idstr)
    ]


def physical_map(evidence: Evidence, below_4g: int | None = None) -> PhysicalMap:
    """Infer the map.

    Args:
        evidence: What the stream tells.
        below_4g: Size of RAM below 4 GiB if the user states it, bytes.

    Raises:
        OutputError: It takes knowledge that the stream does not give.
    """
    blocks = evidence.blocks
    ram = ram_blocks(blocks)
    if not ram:
        raise OutputError(f"no block looks like the machine's RAM; {_offer(blocks)}")
    family = machine_family(evidence)
    if family in _X86:
        return _x86(evidence, family, ram, below_4g)
    if below_4g is not None:
        raise OutputError("--below-4g is for x86 machines")
    base = _BASES.get(family)
    if base is None:
        name = "unknown" if evidence.machine is None else repr(evidence.machine)
        raise OutputError(f"no rule for where machine {name} has its RAM; {_offer(blocks)}")
    if len(ram) > 1:
        raise OutputError(
            f"RAM is made of {len(ram)} blocks, and the stream does not tell their order; "
            + _offer(blocks)
        )
    return PhysicalMap(
        (Region(base, blocks[ram[0]].used_length, ram[0], 0),),
        None,
        "machine rule",
        (f"machine family {family!r} has its RAM at {base:#x}",),
        family=family,
    )


def concatenated(blocks: tuple[RAMBlock, ...], chosen: list[int]) -> PhysicalMap:
    """Put blocks behind one another: a place to keep pages in until the map is known."""
    regions, at = [], 0
    for i in chosen:
        regions.append(Region(at, blocks[i].used_length, i, 0, "not decided"))
        at += blocks[i].used_length
    return PhysicalMap(tuple(regions), None, "not decided", ())


def left_out(block: RAMBlock) -> str:
    """Say that a block of plugged memory is not in the map."""
    return (
        f"block {_text(block)!r} ({block.used_length:#x} bytes) is not in the image: it is "
        "plugged memory, whose address is not known here; place it with --layout, or write it "
        "with --block"
    )


def _text(block: RAMBlock) -> str:
    return block.idstr.decode("utf-8", "backslashreplace")


def _offer(blocks: tuple[RAMBlock, ...]) -> str:
    names = ", ".join(repr(_text(b)) for b in blocks[:8])
    more = ", ..." if len(blocks) > 8 else ""
    return (
        "write one with --block IDSTR or all with --all-blocks DIR, or say where they stand with "
        f"--layout FILE ({names}{more})"
    )


_X86 = ("pc", "q35", "microvm", "isapc")

# Where RAM starts on machines that have it in one piece. QEMU v10.1.0 hw/arm/virt.c,
# hw/riscv/virt.c, hw/m68k/virt.c, hw/ppc/spapr.c, hw/s390x/s390-virtio-ccw.c.
_BASES = {
    "arm virt": 0x40000000,
    "riscv virt": 0x80000000,
    "m68k virt": 0,
    "pseries": 0,
    "s390-ccw-virtio": 0,
}


def machine_family(evidence: Evidence) -> str:
    """Name the family of the machine type, 'unknown' if it is none that is known here."""
    name, idstrs = evidence.machine, {b.idstr for b in evidence.blocks}
    if name is None:
        # Machine types up to 2.3 do not say.
        if any(i.endswith(b"/mch") for i in evidence.idstrs):
            return "q35"
        return "pc" if b"pc.bios" in idstrs or b"pc.ram" in idstrs else "unknown"
    if name in (b"isapc", b"microvm"):
        return name.decode()
    if name.startswith((b"pc-q35", b"q35")):
        return "q35"
    if name.startswith((b"pc-", b"xenfv")):
        return "pc"
    if name.startswith(b"virt-"):
        # m68k has a machine of that name too, without flash and ACPI.
        arm = {b"virt.flash0", b"mach-virt.ram", b"/rom@etc/acpi/tables"} & idstrs
        return "arm virt" if arm else "m68k virt"
    if name == b"virt" and any(i.startswith(b"riscv_virt_board.") for i in idstrs):
        return "riscv virt"
    for family in ("pseries", "s390-ccw-virtio"):
        if name.startswith(family.encode()):
            return family
    return "unknown"


def _x86(evidence: Evidence, family: str, ram: list[int], below_4g: int | None) -> PhysicalMap:
    blocks = evidence.blocks
    reasons: list[str] = []
    doubts: list[str] = []
    stated = _cmos_sizes(evidence.cmos)
    boot = _boot_blocks(blocks, ram, stated, reasons, doubts)
    total = sum(blocks[i].used_length for i in boot)
    ruled = min(total, _rule(family, evidence.machine, total))
    split, decided_by = ruled, "machine rule"
    told = f"the rule of machine family {family!r} puts {ruled:#x} bytes below 4 GiB"
    if below_4g is not None:
        if below_4g > total or below_4g > _FOUR_GIB or below_4g % _CMOS_UNIT:
            raise OutputError(
                f"--below-4g {below_4g:#x}: RAM has {total:#x} bytes; a multiple of 64 KiB up to "
                "that and to 4 GiB"
            )
        split, decided_by, told = below_4g, "user", f"--below-4g {below_4g:#x}"
    elif stated is not None:
        found = _split_of(stated, total)
        if found is None:
            doubts.append(
                f"CMOS states {stated[0]:#x} bytes below and {stated[1]:#x} above 4 GiB, which "
                f"does not fit {total:#x} bytes of RAM blocks"
            )
        else:
            split, decided_by = found, "cmos"
            told = f"CMOS bytes 0x34/0x35 and 0x5b to 0x5d put {found:#x} bytes below 4 GiB"
            if found != ruled:
                reasons.append(f"the machine's rule would be {ruled:#x}")
    reasons.insert(0, told)
    above = total - split
    if above and _FOUR_GIB + above > _AMD_HT_START:
        doubts.append("a guest of this size may have its upper RAM at 1 TiB (AMD, machine 7.1+)")
    regions: list[Region] = []
    at = 0  # in the concatenation of the boot blocks
    for index in boot:
        length = blocks[index].used_length
        low = max(0, min(length, split - at))
        if low:
            regions.append(Region(at, low, index, 0, decided_by))
        if low < length:
            gpa = _FOUR_GIB + at + low - split
            regions.append(Region(gpa, length - low, index, low, decided_by))
        at += length
    return PhysicalMap(tuple(regions), split, decided_by, tuple(reasons), tuple(doubts), family)


# Bytes (below, above) 4 GiB. 0x34/0x35 count 64 KiB above 16 MiB; where they are 0, the bytes for
# older software tell: 0x30/0x31 KiB above 1 MiB, 0x15/0x16 those of the first 640 KiB.
def _cmos_sizes(cmos: bytes | None) -> tuple[int, int] | None:
    if cmos is None or len(cmos) < 0x5E:
        return None
    units, extended, base = (
        int.from_bytes(cmos[at : at + 2], "little") for at in (0x34, 0x30, 0x15)
    )
    above = int.from_bytes(cmos[0x5B:0x5E], "little") * _CMOS_UNIT
    if units:
        return _SIXTEEN_MIB + units * _CMOS_UNIT, above
    below = _MIB + extended * _KIB if extended else base * _KIB
    return min(below, _SIXTEEN_MIB), above


# Bytes below 4 GiB of `total`, if what CMOS states fits it. Of 16 MiB or less all is below,
# whatever the bytes for older software say.
def _split_of(stated: tuple[int, int], total: int) -> int | None:
    below, above = stated
    if not above:
        small = below <= _SIXTEEN_MIB and total <= _SIXTEEN_MIB
        return total if small or 0 <= total - below < _CMOS_UNIT else None
    if below and 0 <= total - below - above < _CMOS_UNIT:
        return below
    return None


# The blocks that make up the RAM the machine was started with, in order.
def _boot_blocks(
    blocks: tuple[RAMBlock, ...],
    ram: list[int],
    stated: tuple[int, int] | None,
    reasons: list[str],
    doubts: list[str],
) -> list[int]:
    if len(ram) == 1:
        return ram
    total = sum(stated) if stated is not None else 0
    chosen = _subset(blocks, ram, total) if total else None
    if chosen is None:
        says = f"CMOS states {total:#x} bytes in all" if total else "CMOS does not state its size"
        raise OutputError(
            f"RAM is made of several of {len(ram)} blocks; {says}, which does not tell which of "
            f"them in what order; {_offer(blocks)}"
        )
    names = ", ".join(_text(blocks[i]) for i in chosen)
    reasons.append(
        f"RAM is made of blocks of one size, taken in stream order: {names}"
        if len(chosen) > 1
        else f"the RAM that CMOS states is block {names}"
    )
    doubts.extend(left_out(blocks[i]) for i in ram if i not in chosen)
    return chosen


# The one choice of blocks that adds up to `total`, if the order is told too: QEMU keeps blocks
# by size, largest first, and in order of creation among equals, so only blocks of one size
# come in a known order (QEMU v10.1.0 system/physmem.c ram_block_add()).
def _subset(blocks: tuple[RAMBlock, ...], ram: list[int], total: int) -> list[int] | None:
    if len(ram) > _MOST_BACKENDS:
        return None
    fits = [
        list(choice)
        for count in range(1, len(ram) + 1)
        for choice in combinations(ram, count)
        if 0 <= sum(blocks[i].used_length for i in choice) - total < _CMOS_UNIT
    ]
    if len(fits) != 1 or len({blocks[i].used_length for i in fits[0]}) > 1:
        return None
    return fits[0]


def _rule(family: str, machine: bytes | None, total: int) -> int:
    """Bytes below 4 GiB by the machine's rule, without max-ram-below-4g."""
    if family == "microvm":
        return 0xC0000000  # QEMU v10.1.0 hw/i386/microvm.c microvm_memory_init()
    if family == "q35":
        # QEMU v10.1.0 hw/i386/pc_q35.c pc_q35_init()
        return 0x80000000 if total >= 0xB0000000 else 0xB0000000
    # QEMU v10.1.0 hw/i386/pc_piix.c pc_init1(); gigabyte_align is off up to 1.7, and on isapc
    # (isapc_machine_options()).
    version = re.match(rb"pc-(?:i440fx-)?(\d+)\.(\d+)", machine or b"")
    old = version is not None and tuple(map(int, version.groups())) <= (1, 7)
    old = old or family == "isapc"
    return 0xE0000000 if old or total < 0xE0000000 else 0xC0000000
