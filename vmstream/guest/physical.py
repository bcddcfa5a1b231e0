"""The guest-physical map: where the RAM blocks stand in the guest. Inference, and labelled so.

Nothing on the wire maps blocks to addresses. On x86 the RTC's CMOS states the sizes of RAM
below and above 4 GiB (QEMU v10.1.0 hw/i386/pc.c pc_cmos_init()), which firmware leaves alone;
elsewhere, and as a cross-check, there is the rule of the machine type. Of RAM in several blocks the
table of memory affinity tells the order, and of memory devices guest/plugged.py the places.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

from vmstream.errors import OutputError
from vmstream.guest.plugged import DeviceMemory, by_name, in_order, names, place, text
from vmstream.guest.srat import MemoryAffinity, memory_affinity
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
    rb"pc\.(bios|rom)|isa-bios|.*\.(rom|mrom|bios|flash\d*|vram)|.*flash\d+|.*\.secure-ram|pvtime"
    rb"|mach-virt\.(secure-)?tag|tpm-ppi|tpm-crb-cmd|vga\.vram|qxl\..*|.*\.(a15)?sram|.*\.l2lim|firmware"
    rb"|zynqmp\.ocm_ram_bank_\d|sram A|xram\[\d\]|homer-chip\d+-memory"
)

# Names that machines give to their RAM if the user gives them none: there are no nodes then.
_DEFAULT = re.compile(
    rb"(pc|microvm|mach-virt|riscv_virt_board|m68k_virt|ppc_spapr|loongarch)\.ram"
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
        decided_by: 'user', 'cmos', 'firmware tables' or 'machine rule', for RAM; 'not decided'
            before the end of a pipe. Of a region also 'wire' and 'device state'.
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
        tables: Content of the block of ACPI tables, `None` if not (yet) known.
        virtio_mem: State of each virtio-mem device, by its path.
        northbridge: PCI configuration of the host bridge of a PC, `None` if not (yet) known.
    """

    machine: bytes | None
    blocks: tuple[RAMBlock, ...]
    cmos: bytes | None = None
    idstrs: Collection[bytes] = ()
    tables: bytes | None = None
    virtio_mem: Mapping[bytes, bytes] = field(default_factory=dict)
    northbridge: bytes | None = None


def ram_blocks(blocks: tuple[RAMBlock, ...], *, pluggable: bool = False) -> list[int]:
    """Indices of the blocks that can be the machine's RAM, by their names.

    Args:
        blocks: The block list.
        pluggable: Those of devices, too, that can be memory of the guest (virtio-mem).
    """
    found = []
    for i, block in enumerate(blocks):
        path, slash, name = block.idstr.rpartition(b"/")
        device = slash and path != b"/objects"
        if device and (not pluggable or path.startswith(b"/rom@")):
            continue
        if not _FIRMWARE.fullmatch(name):
            found.append(i)
    return found


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
    affinity = memory_affinity(evidence.tables)
    if family in _X86:
        found, boot = _x86(evidence, family, ram, affinity, below_4g)
    elif below_4g is not None:
        raise OutputError("--below-4g is for x86 machines")
    else:
        found, boot = _elsewhere(evidence, family, ram, affinity)
    if found.decided_by != "user":
        found = _checked(found, affinity)
    return _with_plugged(found, evidence, affinity, [i for i in ram if i not in boot])


def extended(
    layout: PhysicalMap, blocks: tuple[RAMBlock, ...], wanted: Collection[int]
) -> PhysicalMap:
    """Put what of blocks a map leaves out behind it: a place for pages until the map is known."""
    regions, at = list(layout.regions), -(-layout.size // GIB) * GIB
    for i in wanted:
        for begin, length in _missing(layout, i, blocks[i].used_length):
            regions.append(Region(at, length, i, begin, "not decided"))
            at += -(-length // _MIB) * _MIB
    return replace(layout, regions=tuple(regions))


# (offset, length) of what of a block is in no region.
def _missing(layout: PhysicalMap, block: int, used: int) -> Iterator[tuple[int, int]]:
    at = 0
    for begin, length in _spans(
        [(r.block_offset, r.length) for r in layout.regions if r.block == block]
    ):
        if at < begin:
            yield at, begin - at
        at = max(at, begin + length)
    if at < used:
        yield at, used - at


def concatenated(blocks: tuple[RAMBlock, ...], chosen: list[int]) -> PhysicalMap:
    """Put blocks behind one another: a place to keep pages in until the map is known."""
    regions, at = [], 0
    for i in chosen:
        regions.append(Region(at, blocks[i].used_length, i, 0, "not decided"))
        at += blocks[i].used_length
    return PhysicalMap(tuple(regions), None, "not decided", ())


def _offer(blocks: tuple[RAMBlock, ...]) -> str:
    listed = ", ".join(repr(text(b)) for b in blocks[:8])
    more = ", ..." if len(blocks) > 8 else ""
    return (
        "write one with --block IDSTR or all with --all-blocks DIR, or say where they stand with "
        f"--layout FILE ({listed}{more})"
    )


_X86 = ("pc", "q35", "microvm", "isapc")

# (address, bytes) of the windows that RAM fills, one after the other; no bytes: all that is left.
# QEMU v10.1.0 hw/arm/virt.c, sbsa-ref.c, vexpress.c, raspi.c, cubieboard.c, xlnx-zcu102.c;
# hw/riscv/virt.c, sifive_u.c, spike.c; hw/m68k/virt.c; hw/ppc/spapr.c, pnv.c, mac_oldworld.c,
# mac_newworld.c, pegasos2.c; hw/s390x/s390-virtio-ccw.c; hw/hppa/machine.c;
# hw/loongarch/virt.c VIRT_LOWMEM_SIZE, VIRT_HIGHMEM_BASE.
_WINDOWS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "arm virt": ((0x40000000, None),),
    "riscv virt": ((0x80000000, None),),
    "m68k virt": ((0, None),),
    "pseries": ((0, None),),
    "s390-ccw-virtio": ((0, None),),
    "loongarch virt": ((0, 0x10000000), (0x80000000, None)),
    "sbsa-ref": ((0x10000000000, None),),
    "vexpress-a9": ((0x60000000, None),),
    "vexpress-a15": ((0x80000000, None),),
    "raspi": ((0, None),),
    "cubieboard": ((0x40000000, None),),
    "xlnx-zcu102": ((0, 0x80000000), (0x800000000, None)),
    "sifive_u": ((0x80000000, None),),
    "spike": ((0x80000000, None),),
    "powernv": ((0, None),),
    "g3beige": ((0, None),),
    "mac99": ((0, None),),
    "pegasos2": ((0, None),),
    "hppa": ((0, None),),
}

# Names of machines of the last ones, where they differ.
_NAMES = {
    re.compile(rb"raspi(0|1ap|2b|3ap|3b)"): "raspi",
    re.compile(rb"powernv(8|9|10|11|)"): "powernv",
    re.compile(rb"hppa|B160L|C3700"): "hppa",
}

# Behind RAM, at the next GiB, machines have their place for memory devices. QEMU v10.1.0
# hw/i386/pc.c pc_get_device_memory_range(), hw/arm/virt.c virt_set_memmap(), hw/ppc/spapr.h
# SPAPR_DEVICE_MEM_ALIGN, hw/loongarch/virt.c virt_init().
_PLUGGABLE = ("pc", "q35", "arm virt", "pseries", "loongarch virt")


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
    # LoongArch has that name as well, with versions in QEMU 11.1.
    loongarch = b"loongarch_pch_pic" in evidence.idstrs or b"loongarch.ram" in idstrs
    if loongarch and name.startswith(b"virt"):
        return "loongarch virt"
    if name.startswith(b"virt-"):
        # m68k has a machine of that name too, without flash and ACPI.
        arm = {b"virt.flash0", b"mach-virt.ram", b"/rom@etc/acpi/tables"} & idstrs
        return "arm virt" if arm else "m68k virt"
    if name == b"virt" and any(i.startswith(b"riscv_virt_board.") for i in idstrs):
        return "riscv virt"
    for family in ("pseries", "s390-ccw-virtio"):
        if name.startswith(family.encode()):
            return family
    for pattern, family in _NAMES.items():
        if pattern.fullmatch(name):
            return family
    known = name.decode("ascii", "replace")
    return known if known in _WINDOWS else "unknown"


def _elsewhere(
    evidence: Evidence, family: str, ram: list[int], affinity: Sequence[MemoryAffinity]
) -> tuple[PhysicalMap, list[int]]:
    blocks = evidence.blocks
    windows = _WINDOWS.get(family)
    if windows is None:
        name = "unknown" if evidence.machine is None else repr(evidence.machine)
        raise OutputError(f"no rule for where machine {name} has its RAM; {_offer(blocks)}")
    reasons = [f"machine family {family!r} has its RAM at {windows[0][0]:#x}"]
    doubts: list[str] = []
    boot = _boot_blocks(blocks, ram, affinity, None, reasons, doubts)
    regions, window, at = [], 0, 0
    for index in boot:
        done, length = 0, blocks[index].used_length
        while done < length:
            base, size = windows[window]
            part = length - done if size is None else min(length - done, size - at)
            if part:
                regions.append(Region(base + at, part, index, done))
                done, at = done + part, at + part
            if done < length:
                window, at = window + 1, 0
    if len(windows) > 1:
        told = ", ".join(f"{base:#x}" for base, _ in windows)
        reasons[0] = f"machine family {family!r} has its RAM at {told}, what fits into each"
    found = PhysicalMap(tuple(regions), None, "machine rule", tuple(reasons), tuple(doubts), family)
    return found, boot


def _x86(
    evidence: Evidence,
    family: str,
    ram: list[int],
    affinity: Sequence[MemoryAffinity],
    below_4g: int | None,
) -> tuple[PhysicalMap, list[int]]:
    blocks = evidence.blocks
    reasons: list[str] = []
    doubts: list[str] = []
    stated = _cmos_sizes(evidence.cmos)
    boot = _boot_blocks(blocks, ram, affinity, stated or (0, 0), reasons, doubts)
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
        fits = _split_of(stated, total)
        if fits is None:
            doubts.append(
                f"CMOS states {stated[0]:#x} bytes below and {stated[1]:#x} above 4 GiB, which "
                f"does not fit {total:#x} bytes of RAM blocks"
            )
        else:
            split, decided_by = fits, "cmos"
            told = f"CMOS bytes 0x34/0x35 and 0x5b to 0x5d put {fits:#x} bytes below 4 GiB"
            if fits != ruled:
                reasons.append(f"the machine's rule would be {ruled:#x}")
    reasons.insert(0, told)
    above, high = total - split, _FOUR_GIB
    listed = [m.gpa for m in affinity if m.plugged == "no" and m.gpa >= _FOUR_GIB]
    if above and listed and listed[0] != high:
        high = listed[0]
        reasons.append(f"the guest's tables have its upper RAM at {high:#x}")
    elif above and not listed and _FOUR_GIB + above > _AMD_HT_START:
        doubts.append("a guest of this size may have its upper RAM at 1 TiB (AMD, machine 7.1+)")
    regions: list[Region] = []
    at = 0  # in the concatenation of the boot blocks
    for index in boot:
        length = blocks[index].used_length
        low = max(0, min(length, split - at))
        if low:
            regions.append(Region(at, low, index, 0, decided_by))
        if low < length:
            gpa = high + at + low - split
            regions.append(Region(gpa, length - low, index, low, decided_by))
        at += length
    found = PhysicalMap(tuple(regions), split, decided_by, tuple(reasons), tuple(doubts), family)
    return found, boot


# The guest's tables list its RAM, too: they are made from what the machine has, at each reset.
def _checked(found: PhysicalMap, affinity: Sequence[MemoryAffinity]) -> PhysicalMap:
    listed = _spans([(m.gpa, m.length) for m in affinity if m.plugged == "no"])
    if not listed or listed == _spans([(r.gpa, r.length) for r in found.regions]):
        return found
    told = ", ".join(f"{gpa:#x}..{gpa + length:#x}" for gpa, length in listed[:8])
    return replace(found, doubts=(*found.doubts, f"the guest's tables have its RAM at {told}"))


# (address, length), neighbours joined.
def _spans(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for gpa, length in sorted(stretches):
        if found and sum(found[-1]) == gpa:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((gpa, length))
    return found


def _with_plugged(
    layout: PhysicalMap, evidence: Evidence, affinity: Sequence[MemoryAffinity], dimms: list[int]
) -> PhysicalMap:
    end, memory = layout.size, None
    hole = next((m for m in affinity if m.plugged == "hole" and m.gpa >= end), None)
    if hole is not None:
        memory = DeviceMemory(hole.gpa, hole.gpa + hole.length, "firmware tables")
    elif layout.family in _PLUGGABLE:
        floor = max(end, _FOUR_GIB) if layout.family in _X86 else end
        memory = DeviceMemory(-(-floor // GIB) * GIB, 1 << 62, "machine rule")
    found = place(evidence.blocks, dimms, memory, affinity, evidence.virtio_mem)
    regions, doubts = list(layout.regions), [*layout.doubts, *found.doubts]
    for p in sorted(found.placed, key=lambda p: (p.source == "machine rule", p.gpa)):
        stop = p.gpa + p.length
        if any(r.gpa < stop and p.gpa < r.gpa + r.length for r in regions):
            name = text(evidence.blocks[p.block])
            doubts.append(f"block {name!r} is left out: at {p.gpa:#x} stands another one")
        else:
            regions.append(Region(p.gpa, p.length, p.block, p.block_offset, p.source))
    regions.sort(key=lambda r: r.gpa)
    reasons = (*layout.reasons, *found.reasons)
    return replace(layout, regions=tuple(regions), reasons=reasons, doubts=tuple(doubts))


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
    affinity: Sequence[MemoryAffinity],
    stated: tuple[int, int] | None,
    reasons: list[str],
    doubts: list[str],
) -> list[int]:
    if len(ram) == 1:
        return ram
    total = sum(stated) if stated is not None else 0
    default = [i for i in ram if _DEFAULT.fullmatch(blocks[i].idstr)]
    if len(default) == 1 and (not total or _is(blocks, default, total)):
        reasons.append(f"block {names(blocks, default)} has the name of the machine's own RAM")
        return default
    nodes: dict[int, int] = {}
    for entry in affinity:
        if entry.plugged == "no":
            nodes[entry.node] = nodes.get(entry.node, 0) + entry.length
    # Without backends for the nodes they are parts of one block.
    for sizes in (list(nodes.values()), [sum(nodes.values())]):
        chosen = _of_sizes(blocks, ram, sizes, doubts)
        if chosen:
            told = f"the guest's tables list nodes of the sizes of blocks {names(blocks, chosen)}"
            reasons.append(told)
            return chosen
    if total:
        chosen = _subset(blocks, ram, total)
    else:
        chosen = by_name(blocks, ram) if stated is None and _numbered(blocks, ram) else []
    if not chosen:
        says = f"CMOS states {total:#x} bytes in all" if total else "nothing states its size"
        raise OutputError(
            f"RAM is made of several of {len(ram)} blocks; {says}, which does not tell which of "
            f"them in what order; {_offer(blocks)}"
        )
    if len(chosen) == 1:
        reasons.append(f"the RAM that CMOS states is block {names(blocks, chosen)}")
        return chosen
    reasons.append(f"RAM is made of blocks, in this order: {names(blocks, chosen)}")
    _check_order(blocks, chosen, doubts, sizes_told=False)
    return chosen


def _is(blocks: tuple[RAMBlock, ...], chosen: Sequence[int], total: int) -> bool:
    return 0 <= sum(blocks[i].used_length for i in chosen) - total < _CMOS_UNIT


# Nodes of the machine are numbered, and so are the names of their backends, commonly.
def _numbered(blocks: tuple[RAMBlock, ...], chosen: Sequence[int]) -> bool:
    found = [re.fullmatch(rb"(.*?)(\d+)", blocks[i].idstr) for i in by_name(blocks, chosen)]
    parts = [(m[1], int(m[2])) for m in found if m]
    steps = [b[0] == a[0] and b[1] == a[1] + 1 for a, b in pairwise(parts)]
    return len(parts) == len(chosen) and all(steps)


# In whatever order backends were made, their numbers are more likely those of the nodes.
def _nodes_in_order(blocks: tuple[RAMBlock, ...], chosen: Sequence[int]) -> list[int]:
    order = by_name if _numbered(blocks, chosen) else in_order
    return order(blocks, chosen)


# Blocks of these sizes, in this order; of equal ones that which comes first.
def _of_sizes(
    blocks: tuple[RAMBlock, ...], ram: list[int], sizes: list[int], doubts: list[str]
) -> list[int]:
    left, chosen = _nodes_in_order(blocks, ram), []
    for size in sizes:
        fits = [i for i in left if blocks[i].used_length == size]
        if not fits:
            return []
        left.remove(fits[0])
        chosen.append(fits[0])
    alike = [i for i in left if blocks[i].used_length in sizes]
    if alike:
        doubts.append(
            f"blocks {names(blocks, alike)} have the size of a node, too: taken for DIMMs"
        )
    _check_order(blocks, chosen, doubts, sizes_told=True)
    return chosen


# x-ignore-shared sends where a block is in its container, which all nodes are in. QEMU v7.2.0
# hw/core/numa.c numa_init_memdev_container().
def _check_order(
    blocks: tuple[RAMBlock, ...], chosen: list[int], doubts: list[str], *, sizes_told: bool
) -> None:
    if all(blocks[i].gpa is not None for i in chosen):
        chosen.sort(key=lambda i: blocks[i].gpa or 0)
        at = 0
        for i in chosen:
            if blocks[i].gpa != at:
                break
            at += blocks[i].used_length
        else:
            return
    lengths = [blocks[i].used_length for i in chosen]
    unsure = [i for i in chosen if lengths.count(blocks[i].used_length) > 1 or not sizes_told]
    if len(unsure) > 1:
        doubts.append(
            f"nothing tells the order of blocks {names(blocks, unsure)}: taken as named or listed"
        )


# The one choice of blocks that adds up to `total`.
def _subset(blocks: tuple[RAMBlock, ...], ram: list[int], total: int) -> list[int]:
    if len(ram) > _MOST_BACKENDS:
        return []
    fits = [
        list(choice)
        for count in range(1, len(ram) + 1)
        for choice in combinations(ram, count)
        if _is(blocks, choice, total)
    ]
    if len(fits) != 1:
        return []
    (found,) = fits
    one_size = len({blocks[i].used_length for i in found}) == 1
    return _nodes_in_order(blocks, found) if one_size or _numbered(blocks, found) else []


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
