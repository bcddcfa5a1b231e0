"""Maps and dumps against a real QEMU: `info mtree -f`, and what `dump-guest-memory` writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tests.commandline import vmstream
from tests.dumps import DumpRange, elf_ranges, lime_ranges, read_range
from tests.kdumps import Kdump
from tests.qemu import Guest, Qemu, check_range, has_machine
from tests.truth import block_sums
from vmstream.guest.physical import Evidence, physical_map
from vmstream.stream.events import RAMBlock

pytestmark = pytest.mark.qemu

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB


def regions_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report["layout"]["regions"]
    return found


def extracted(stream: Path, out: Path, *args: str | Path, status: int = 0) -> dict[str, Any]:
    done = vmstream("extract-ram", stream, "-o", out, *args, "--json")
    assert done.status == status, done.err
    found: dict[str, Any] = done.json()
    return found


# -- dumps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A machine, and what of QEMU's dump is no RAM of ours.

    ranges:  the guest's RAM
    others:  (address, length) where the machine shows firmware or video memory; below RAM's end
             QEMU has the ROM and we the RAM that it lies over
    number:  e_machine in QEMU's dump, if it is not ours: the CPU is not in 64-bit mode
    """

    arch: str
    args: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    number: str
    ours: str
    little: bool = True
    others: tuple[tuple[int, int], ...] = ()
    says: bytes = b""


MACHINES = {
    "pc": Machine(
        "x86_64", ("-M", "pc", "-device", "VGA"), ((0, 32 * MIB),), "EM_386", "EM_386",
        others=((0xFD000000, 16 * MIB), (0xFFFC0000, 256 * KIB)), says=b"FILLED",
    ),
    "q35": Machine(
        "x86_64", ("-M", "q35"), ((0, 32 * MIB),), "EM_386", "EM_386",
        others=((0xFFFC0000, 256 * KIB),), says=b"FILLED",
    ),
    "isapc": Machine(
        "x86_64", ("-M", "isapc", "-cpu", "486"), ((0, 32 * MIB),), "EM_386", "EM_386",
        # No chipset that could put RAM there: the BIOS stays.
        others=((0xC0000, 128 * KIB), (0xE0000, 128 * KIB), (0xFFFE0000, 128 * KIB)),
        says=b"FILLED",
    ),
    "microvm": Machine(
        "x86_64", ("-M", "microvm", "-m", "32M"), ((0, 32 * MIB),), "EM_386", "EM_386",
        others=((0xF0000, 64 * KIB), (0xFFFF0000, 64 * KIB)),
    ),
    "split": Machine(
        "x86_64", ("-M", "pc,max-ram-below-4g=16M"),
        ((0, 16 * MIB), (FOUR_GIB, 16 * MIB)), "EM_386", "EM_386",
        others=((0xFFFC0000, 256 * KIB),), says=b"FILLED",
    ),
    "aarch64": Machine(
        "aarch64", ("-M", "virt", "-cpu", "cortex-a57", "-m", "32M"),
        ((0x40000000, 32 * MIB),), "EM_AARCH64", "EM_AARCH64",
    ),
    "riscv64": Machine(
        "riscv64", ("-M", "virt", "-m", "32M"), ((0x80000000, 32 * MIB),), "EM_RISCV", "EM_RISCV",
        others=((0x1000, 60 * KIB),), says=b"OpenSBI",
    ),
    "ppc64": Machine(
        "ppc64", ("-M", "pseries", "-m", "256M"), ((0, 256 * MIB),), "EM_PPC64", "EM_PPC64",
        little=False, says=b"SLOF",
    ),
    "s390x": Machine(
        "s390x", ("-M", "s390-ccw-virtio", "-m", "32M", "-no-shutdown"), ((0, 32 * MIB),),
        "EM_S390", "EM_S390", little=False,
    ),
}  # fmt: skip

FLASH = (
    "-drive", "if=pflash,format=raw,file=flash0", "-drive", "if=pflash,format=raw,file=flash1",
)  # fmt: skip
LOADED = "loader,file=pattern,addr=0,force-raw=on"
PATTERN = bytes(range(1, 252)) * 33


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.qemu(m.arch)) for n, m in MACHINES.items()]
)
def test_dump_guest_memory(name: str, tmp_path: Path) -> None:
    """A PT_LOAD of QEMU's has the bytes that ours has at its addresses."""
    machine = MACHINES[name]
    guest, mem = None, None
    args = [*machine.args, "-accel", "tcg"]
    if machine.says == b"FILLED":
        guest, mem = Guest(fill=512), ("mem", 32 * MIB)
    else:
        at = sum(machine.ranges[-1]) // 2 + machine.ranges[-1][0] // 2
        args += ["-device", f"loader,file=pattern,addr={at:#x},force-raw=on"]
    with Qemu(
        args, binary=f"qemu-system-{machine.arch}", guest=guest, mem=mem,
        files={"pattern": PATTERN},
    ) as vm:  # fmt: skip
        if machine.says:
            vm.wait_serial(machine.says)
        vm.stop()
        vm.qmp("dump-guest-memory", paging=False, protocol="file:guest.elf")
        vm.qmp("dump-guest-memory", paging=False, protocol="file:guest.kdump", format="kdump-zlib")
        vm.migrate("exec:cat>guest.out")
        theirs, stream = vm.path("guest.elf"), vm.path("guest.out")
        elf, lime = tmp_path / "elf", tmp_path / "lime"
        extracted(stream, elf, "--format", "elf")
        extracted(stream, lime, "--format", "lime")
        for path, number in ((theirs, machine.number), (elf, machine.ours)):
            with path.open("rb") as file:
                head = ELFFile(file)
                assert head["e_machine"] == number
                assert (head.little_endian, head.elfclass) == (machine.little, 64)
                assert head["e_type"] == "ET_CORE"
        ours, limes = elf_ranges(elf), lime_ranges(lime)
        for ranges in (ours, limes):
            assert [(r.gpa, r.length) for r in ranges] == list(machine.ranges)
        compared, others = 0, []
        for theirs_is in elf_ranges(theirs):
            gpa, length = theirs_is.gpa, theirs_is.length
            if (gpa, length) in machine.others:
                others.append((gpa, length))
                continue
            data = read_range(theirs, theirs_is, gpa, length)
            for path, ranges in ((elf, ours), (lime, limes)):
                assert read_range(path, around(ranges, gpa), gpa, length) == data, hex(gpa)
            compared += length
        assert others == list(machine.others)
        # Of all RAM, but 128 KiB of video memory and what firmware lies over.
        whole = sum(length for _, length in machine.ranges)
        assert whole - 512 * KIB < compared <= whole
        if not guest:
            assert read_range(elf, around(ours, at), at, len(PATTERN)) == PATTERN
        check_kdump(machine, vm.path("guest.kdump"), stream, elf, tmp_path / "kdump")


def check_kdump(machine: Machine, theirs_is: Path, stream: Path, elf: Path, path: Path) -> None:
    """Ours says what QEMU's says, but of firmware, and has the bytes of the ELF core."""
    extracted(stream, path, "--format", "kdump")
    ours, theirs = Kdump(path), Kdump(theirs_is)
    assert ours.order == theirs.order == ("<" if machine.little else ">")
    differ = {"machine"}  # which QEMU does not know of most
    if machine.others:
        differ |= {"max_mapnr", "max_mapnr_64", "bitmap_blocks"}
    if machine.number == machine.ours:
        assert theirs.notes.startswith(ours.notes)
    if ours.notes != theirs.notes:
        differ |= {"size_note", "offset_note", "sub_hdr_size"}
    assert {k: v for k, v in ours.header.items() if k not in differ} == {
        k: v for k, v in theirs.header.items() if k not in differ
    }
    assert ours.header["machine"] == machine.arch
    assert ours.header["max_mapnr_64"] * ours.header["block_size"] == sum(machine.ranges[-1])
    ranges, whole = elf_ranges(elf), 0
    for gpa, data in ours.stretches():
        assert read_range(elf, around(ranges, gpa), gpa, len(data)) == data, hex(gpa)
        whole += len(data)
    assert whole == sum(length for _, length in machine.ranges)
    # As many that shrink, but for the firmware's.
    if not machine.others:
        assert dict(ours.pages()) == dict(theirs.pages())


def around(ranges: list[DumpRange], gpa: int) -> DumpRange:
    (found,) = [r for r in ranges if r.gpa <= gpa < r.gpa + r.length]
    return found


@pytest.mark.parametrize(
    ("arch", "args", "mapped"),
    [
        # Before firmware runs there is ROM below 1 MiB, too.
        (
            "x86_64",
            ("-M", "pc"),
            {
                "pc.rom": [(0xC0000, 128 * KIB)],
                "pc.bios": [(0xE0000, 128 * KIB), (0xFFFC0000, 256 * KIB)],
            },
        ),
        (
            "x86_64",
            ("-M", "isapc", "-cpu", "486"),
            {
                "pc.rom": [(0xC0000, 128 * KIB)],
                "pc.bios": [(0xE0000, 128 * KIB), (0xFFFE0000, 128 * KIB)],
            },
        ),
        ("x86_64", ("-M", "microvm"), {"pc.bios": [(0xF0000, 64 * KIB), (0xFFFF0000, 64 * KIB)]}),
        (
            "x86_64",
            ("-M", "q35", *FLASH),
            {
                "system.flash0": [(0xFFE20000, 1920 * KIB)],
                "system.flash1": [(0xFFE00000, 128 * KIB)],
                "isa-bios": [(0xE0000, 128 * KIB)],
                "pc.rom": [(0xC0000, 128 * KIB)],
            },
        ),
        pytest.param(
            "aarch64",
            ("-M", "virt", "-cpu", "cortex-a57", "-device", LOADED),
            {"virt.flash0": [(0, 64 * MIB)], "virt.flash1": [(64 * MIB, 64 * MIB)]},
            marks=pytest.mark.qemu("aarch64"),
        ),
        pytest.param(
            "riscv64",
            ("-M", "virt"),
            {
                "riscv_virt_board.mrom": [(0x1000, 60 * KIB)],
                "virt.flash0": [(0x20000000, 32 * MIB)],
                "virt.flash1": [(0x22000000, 32 * MIB)],
            },
            marks=pytest.mark.qemu("riscv64"),
        ),
    ],
    ids=["pc", "isapc", "microvm", "flash", "aarch64", "riscv64"],
)
@pytest.mark.parametrize("form", ["raw", "elf"])
def test_rom(
    arch: str,
    args: tuple[str, ...],
    mapped: dict[str, list[tuple[int, int]]],
    form: str,
    tmp_path: Path,
) -> None:
    """What the CPU sees at firmware's addresses."""
    files: dict[str, bytes | Path] = {
        "flash0": PATTERN.ljust(1920 * KIB, b"0"), "flash1": PATTERN[::-1].ljust(128 * KIB, b"1"),
        "pattern": PATTERN,
    }  # fmt: skip
    with Qemu(
        [*args, "-accel", "tcg", "-m", "32M", "-S"], binary=f"qemu-system-{arch}", files=files
    ) as vm:
        vm.migrate("exec:cat>guest.out")
        stream, out = vm.path("guest.out"), tmp_path / "out"
        found = extracted(stream, out, "--rom", "--format", form)
        piped = vmstream(
            "extract-ram", "-", "-o", tmp_path / "piped", "--rom", "--format", form,
            stdin=stream.read_bytes(),
        )  # fmt: skip
        assert piped.status == 0
        assert block_sums(out, whole=False) == block_sums(tmp_path / "piped", whole=False)
        regions: dict[str, list[tuple[int, int]]] = {}
        for region in found["layout"]["regions"]:
            regions.setdefault(region["idstr"], []).append((region["gpa"], region["length"]))
            if region["idstr"] in mapped:
                check_range(vm, out, region["gpa"], region["length"], offset=region["file_offset"])
        assert {name: at for name, at in regions.items() if name in mapped} == mapped
        assert len(regions) == len(mapped) + 1
        # RAM around it is where it was.
        bare = extracted(stream, tmp_path / "bare")
        (ram,) = bare["layout"]["regions"]
        kept = sum(length for _, length in regions[ram["idstr"]])
        over = [n for places in mapped.values() for gpa, n in places if gpa < MIB]
        assert kept == ram["length"] - (sum(over) if arch == "x86_64" else 0)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_rom_of_a_guest_that_ran(machine: str, tmp_path: Path) -> None:
    """Firmware copied itself to RAM; where it left ROM in place, the registers say so."""
    with Qemu(["-M", machine, "-accel", "tcg", "-m", "32M"], guest=Guest(fill=256)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        image = tmp_path / "image"
        found = extracted(vm.path("guest.out"), image, "--rom")
        low = [r["source"] for r in regions_of(found) if r["gpa"] < MIB and r["idstr"] != "pc.ram"]
        assert set(low) <= {"device state"}
        check_range(vm, image, 0xC0000, 256 * KIB)


# -- maps ------------------------------------------------------------------------------------------


def tree(vm: Qemu, block: str) -> list[tuple[int, int, int]]:
    """(address, length, offset in the block) of what a CPU sees of a block, as QEMU maps it."""
    text = vm.hmp("info mtree -f")
    # Address spaces differ in devices, not in RAM.
    found = set()
    for line in text.splitlines():
        match = re.match(
            rf"\s+([0-9a-f]{{16}})-([0-9a-f]{{16}}) \(prio -?\d+, (?:ram|nv-ram)\): "
            rf"{re.escape(block)}"
            r"(?: @([0-9a-f]{16}))?(?: KVM)?$",
            line,
        )
        if match:
            low, high, offset = (int(n or "0", 16) for n in match.groups())
            found.add((low, high - low + 1, offset))
    return sorted(found)


MAPS = [("x86_64", "pc", "pc.ram", size) for size in (16 * MIB, 3 * GIB, 3584 * MIB, 5 * GIB)] + [
    ("x86_64", "pc-i440fx-1.7", "pc.ram", 4 * GIB),
    ("x86_64", "pc,max-ram-below-4g=1G", "pc.ram", 2 * GIB),
    ("x86_64", "q35", "pc.ram", 2752 * MIB),
    ("x86_64", "q35", "pc.ram", 2816 * MIB),
    ("x86_64", "q35", "pc.ram", 5 * GIB),
    ("x86_64", "pc-q35-2.4", "pc.ram", 4 * GIB),
    ("x86_64", "microvm", "microvm.ram", 3 * GIB),
    ("x86_64", "microvm", "microvm.ram", 4 * GIB),
    ("x86_64", "isapc", "pc.ram", 3584 * MIB),
    ("x86_64", "isapc", "pc.ram", 4 * GIB),
    ("aarch64", "virt", "mach-virt.ram", 5 * GIB),
    ("riscv64", "virt", "riscv_virt_board.ram", 5 * GIB),
    ("ppc64", "pseries", "ppc_spapr.ram", 5 * GIB),
    ("s390x", "s390-ccw-virtio", "s390.ram", 5 * GIB),
    ("aarch64", "sbsa-ref", "sbsa-ref.ram", 2 * GIB),
    ("aarch64", "xlnx-zcu102", "ddr-ram", 4 * GIB),
    ("arm", "vexpress-a9", "vexpress.highmem", GIB),
    ("arm", "vexpress-a15", "vexpress.highmem", GIB),
    ("arm", "cubieboard", "cubieboard.ram", GIB),
    ("riscv64", "sifive_u", "riscv.sifive.u.ram", GIB),
    ("riscv64", "spike", "riscv.spike.ram", GIB),
    ("ppc64", "powernv9", "pnv.ram", GIB),
    ("ppc", "g3beige", "ppc_heathrow.ram", 512 * MIB),
    ("ppc", "mac99", "ppc_core99.ram", 512 * MIB),
    ("ppc", "pegasos2", "pegasos2.ram", 512 * MIB),
    ("hppa", "hppa", "ram", 512 * MIB),
]


@pytest.mark.parametrize(
    ("arch", "machine", "block", "size"),
    [
        pytest.param(*m, marks=pytest.mark.qemu(m[0]), id=f"{m[0]}-{m[1]}-{m[3] // MIB}M")
        for m in MAPS
    ],
)
def test_map(arch: str, machine: str, block: str, size: int, tmp_path: Path) -> None:
    """What QEMU maps is where our regions have it; the rule alone says the same."""
    base, _, option = machine.partition(",")
    if not has_machine(base, arch):
        pytest.skip(f"this QEMU has no {base}")
    args = ["-M", machine, "-accel", "tcg", "-m", f"{size // MIB}M", "-S"]
    with Qemu(args, binary=f"qemu-system-{arch}") as vm:
        mapped = tree(vm, block)
        vm.migrate("exec:cat>guest.out")
        found = extracted(vm.path("guest.out"), tmp_path / "image")
    assert mapped
    regions = [
        (r["gpa"], r["length"], r["block_offset"], r["source"]) for r in found["layout"]["regions"]
    ]
    decided = "cmos" if arch == "x86_64" else "machine rule"
    check_regions(regions, mapped, size, decided)
    if option:
        return  # which the rule of the machine does not know
    # Machine types up to 2.3 do not say their name.
    name = (found["machine"] or base).encode()
    blocks = tuple(RAMBlock(b["idstr"].encode(), b["used_length"]) for b in found["ram_blocks"])
    ruled = physical_map(Evidence(name, blocks)).regions
    check_regions(
        [(r.gpa, r.length, r.block_offset, r.source) for r in ruled], mapped, size, "machine rule"
    )


def check_regions(
    regions: list[tuple[int, int, int, str]],
    mapped: list[tuple[int, int, int]],
    size: int,
    source: str,
) -> None:
    assert sum(length for _, length, _, _ in regions) == size
    assert {told for _, _, _, told in regions} == {source}
    for gpa, length, offset in mapped:
        (outer,) = [r for r in regions if r[0] <= gpa and gpa + length <= r[0] + r[1]]
        assert outer[2] + gpa - outer[0] == offset, hex(gpa)
    # What is not mapped of RAM lies under video memory and firmware, below 1 MiB on a PC.
    hidden = size - sum(length for _, length, _ in mapped)
    assert 0 <= hidden <= 384 * KIB


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("size", [8 * MIB, 16 * MIB])
def test_a_small_guest_with_an_nvdimm(machine: str, size: int, tmp_path: Path) -> None:
    """Of two blocks, CMOS tells which is the RAM, if that is 16 MiB or less, too."""
    args = ["-M", f"{machine},nvdimm=on", "-accel", "tcg"]
    args += ["-m", f"{size // MIB}M,slots=2,maxmem=2G"]
    args += ["-object", "memory-backend-ram,id=nv,size=64M", "-device", "nvdimm,memdev=nv"]
    with Qemu(args, guest=Guest(fill=256)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        image = tmp_path / "image"
        found = extracted(vm.path("guest.out"), image)
        assert [(r["gpa"], r["length"], r["idstr"], r["source"]) for r in regions_of(found)] == [
            (0, size, "pc.ram", "cmos"),
            (FOUR_GIB, 64 * MIB, "nv", "firmware tables"),
        ]
        check_range(vm, image, 0, 640 * KIB)
        check_range(vm, image, MIB, size - MIB)
        check_range(vm, image, FOUR_GIB, 64 * MIB)
        # The user can say where it is: QEMU plugs it behind RAM, at the next GiB behind 4 GiB.
        (tmp_path / "lay").write_text(
            f'[{{"gpa": 0, "length": {size}, "block": "pc.ram"}},'
            f' {{"gpa": {FOUR_GIB}, "length": {64 * MIB}, "block": "nv"}}]'
        )
        placed = tmp_path / "placed"
        extracted(vm.path("guest.out"), placed, "--layout", tmp_path / "lay")
        check_range(vm, placed, MIB, size - MIB)
        check_range(vm, placed, FOUR_GIB, 64 * MIB)


HOTPLUG = ("-m", "64M,slots=4,maxmem=4G")


def ram(*named: tuple[str, int]) -> list[str]:
    """Backends, in this order; sizes in MiB."""
    options = [f"memory-backend-ram,id={name},size={size}M" for name, size in named]
    return [word for option in options for word in ("-object", option)]


def nodes(*named: str) -> list[str]:
    return [word for name in named for word in ("-numa", f"node,memdev={name}")]


# (architecture, arguments, sources of regions that are not of RAM at the start, doubts)
SEVERAL: dict[str, tuple[str, list[str], dict[str, str], list[str]]] = {
    "dimms": (
        "x86_64",
        ["-M", "pc", *HOTPLUG, *ram(("a", 128), ("b", 64), ("c", 128)),
         *(w for n in "abc" for w in ("-device", f"pc-dimm,memdev={n}"))],
        dict.fromkeys("abc", "machine rule"), ["order of the DIMMs a, b, c"],
    ),
    # The label of an NVDIMM is not mapped.
    "nvdimms": (
        "x86_64",
        ["-M", "q35,nvdimm=on", *HOTPLUG, *ram(("nv", 64), ("d", 32), ("nw", 128)),
         "-device", "nvdimm,memdev=nv,label-size=2M", "-device", "pc-dimm,memdev=d",
         "-device", "nvdimm,memdev=nw"],
        {"nv": "firmware tables", "nw": "firmware tables", "d": "machine rule"}, [],
    ),
    "virtio-mem": (
        "x86_64",
        ["-M", "q35", "-m", "64M,maxmem=4G", *ram(("one", 128), ("two", 128)),
         "-device", "virtio-mem-pci,memdev=one,memaddr=0x140000000",
         "-device", "virtio-mem-pci,memdev=two"],
        {"one": "device state", "two": "device state"}, [],
    ),
    "nodes": (
        "x86_64",
        ["-M", "pc,max-ram-below-4g=96M", "-m", "112M", *ram(("x", 64), ("y", 16), ("z", 32)),
         *nodes("z", "x", "y")],
        {}, [],
    ),
    "alike": (
        "x86_64",
        ["-M", "q35", "-m", "64M", *ram(("n1", 32), ("n0", 32)), *nodes("n0", "n1")],
        {}, ["order of blocks n0, n1"],
    ),
    "aarch64": (
        "aarch64",
        ["-M", "virt", "-cpu", "cortex-a57", "-m", "112M", *ram(("x", 64), ("y", 16), ("z", 32)),
         *nodes("z", "x", "y")],
        {}, [],
    ),
    "ppc64": (
        "ppc64",
        ["-M", "pseries", "-m", "1G", *ram(("n1", 512), ("n2", 256), ("n0", 256)),
         *nodes("n0", "n1", "n2")],
        {}, ["order of blocks n0, n1, n2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.qemu(c[0])) for n, c in SEVERAL.items()]
)
def test_several_blocks(name: str, tmp_path: Path) -> None:
    """Nodes and memory devices are where `info mtree -f` has them; a pipe changes nothing."""
    arch, args, others, doubts = SEVERAL[name]
    with Qemu([*args, "-accel", "tcg", "-S"], binary=f"qemu-system-{arch}") as vm:
        named = {args[i + 1].split("id=")[1].split(",")[0] for i, a in enumerate(args)
                 if a == "-object"}  # fmt: skip
        mapped = {block: tree(vm, block) for block in named}
        vm.migrate("exec:cat>guest.out")
        stream, image = vm.path("guest.out"), tmp_path / "image"
        found = extracted(stream, image, status=1 if doubts else 0)
        piped = vmstream(
            "extract-ram", "-", "-o", tmp_path / "piped", "--json", stdin=stream.read_bytes()
        )
    assert piped.json()["layout"] == found["layout"]
    assert block_sums(image, whole=False) == block_sums(tmp_path / "piped", whole=False)
    assert len(found["layout"]["doubts"]) == len(doubts)
    for doubt, words in zip(found["layout"]["doubts"], doubts, strict=True):
        assert words in doubt
    regions: dict[str, list[tuple[int, int, int]]] = {}
    for region in regions_of(found):
        block = region["idstr"].rpartition("/")[2]
        regions.setdefault(block, []).append(
            (region["gpa"], region["length"], region["block_offset"])
        )
        if block in others:
            assert region["source"] == others[block]
    # Nothing of virtio-mem is plugged before the guest asks for it.
    unplugged = {b for b, source in others.items() if source == "device state"}
    for block in named - unplugged:
        check_mapped(regions[block], mapped[block])
    assert unplugged.isdisjoint(regions)


def check_mapped(regions: list[tuple[int, int, int]], mapped: list[tuple[int, int, int]]) -> None:
    assert mapped
    for gpa, length, offset in mapped:
        (outer,) = [r for r in regions if r[0] <= gpa and gpa + length <= r[0] + r[1]]
        assert outer[2] + gpa - outer[0] == offset, hex(gpa)
    hidden = sum(r[1] for r in regions) - sum(m[1] for m in mapped)
    assert 0 <= hidden <= 384 * KIB
