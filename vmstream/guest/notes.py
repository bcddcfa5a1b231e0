"""Notes of an ELF core about the CPUs, as QEMU's dump-guest-memory writes them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vmstream.guest.cpus import CPU, cpus
from vmstream.guest.devices import DeviceTree, Node

# Linux include/uapi/linux/elf.h.
_NT_PRSTATUS, _NT_PRFPREG = 1, 2
_NT_PPC_VMX, _NT_PPC_SPE, _NT_PPC_VSX = 0x100, 0x101, 0x102
_NT_S390_TIMER, _NT_S390_TODCMP, _NT_S390_TODPREG, _NT_S390_CTRS = 0x301, 0x302, 0x303, 0x304
_NT_S390_PREFIX, _NT_S390_VXRS_LOW, _NT_S390_VXRS_HIGH = 0x305, 0x309, 0x30A
_NT_S390_GS_CB = 0x30B
_NT_ARM_SVE = 0x405

_FP_VALID = 1
_QEMU_VERSION = 1
_LOW = (1 << 64) - 1

# Of a segment in device state. QEMU v10.1.0 target/i386/machine.c vmstate_segment.
_SEGMENT_PARTS = ("selector", "limit", "flags", "base")

# QEMU v10.1.0 target/i386/arch_dump.c x86_64_user_regs_struct, x86_user_regs_struct, QEMUCPUState.
_X86_64_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi",
)  # fmt: skip
_I386_REGS = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rax")
_STATE_REGS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
_STATE_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_WIRE_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")

_LPCR_ILE, _SCTLR_EE, _MSTATUS_UBE = 1 << 25, 1 << 25, 1 << 6
# In quadwords, of which QEMU saves as many for any CPU. v10.1.0 target/arm/cpu.h ARM_MAX_VQ.
_SVE_MOST, _SVE_HEAD, _SVE_REGS = 16, 16, 1


class Note(NamedTuple):
    """A note of an ELF file.

    Attributes:
        name: Of its owner, without NUL.
        type: Number.
        desc: Its bytes.
    """

    name: str
    type: int
    desc: bytes


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an ELF header says of a machine; `number` is 0 where it is not known."""

    number: int
    big_endian: bool = False


def architecture(tree: DeviceTree) -> Architecture | None:
    """Say what QEMU's header of a core has for the CPUs; `None` if nothing names their registers.

    The first CPU decides. QEMU v10.1.0 target/*/arch_dump.c cpu_get_dump_info().
    """
    first = next(cpus(tree), None)
    if first is None or first.architecture not in _NOTES:
        return None
    return _architecture(first)


def _architecture(cpu: CPU) -> Architecture:
    system = cpu.groups.get("system", {})
    if cpu.architecture == "x86":
        return Architecture(62 if cpu.mode.startswith("long mode") else 3)
    if cpu.architecture == "aarch64":
        return Architecture(183, bool(system.get("sctlr_el1", 0) & _SCTLR_EE))
    if cpu.architecture == "ppc64":
        # Of interrupt handlers, so that of the kernel.
        return Architecture(21, not system.get("lpcr", 0) & _LPCR_ILE)
    if cpu.architecture == "riscv64":
        return Architecture(243, bool(system.get("mstatus", 0) & _MSTATUS_UBE))
    return Architecture(22, big_endian=True)


def cpu_notes(tree: DeviceTree) -> list[Note]:
    """Return the notes about each CPU and, on x86, QEMU's own note of each behind them all.

    Empty for an architecture whose notes are not known here, as those of 32 bits but i386. QEMU
    v10.1.0 dump/dump.c write_elf64_notes().
    """
    found = [cpu for cpu in cpus(tree) if cpu.architecture in _NOTES]
    if not found:
        return []
    head = _architecture(found[0])
    try:
        return _notes(tree, found, head)
    except (KeyError, TypeError, ValueError, OverflowError, struct.error):
        # Fields that no QEMU has so: a wrong description.
        return []


def _notes(tree: DeviceTree, found: list[CPU], head: Architecture) -> list[Note]:
    pack = _Pack(">" if head.big_endian else "<")
    notes = [
        note for cpu in found for note in _NOTES[cpu.architecture](cpu, pack, wide=head.number != 3)
    ]
    nodes = {d.path: d for d in tree.find("cpu[*]")}
    return notes + [
        Note("QEMU", 0, _state(cpu, nodes[f"cpu[{cpu.instance_id}]"]))
        for cpu in found
        if cpu.architecture == "x86"
    ]


# struct.pack in the byte order of a file.
@dataclass(frozen=True, slots=True)
class _Pack:
    order: str

    def __call__(self, layout: str, *values: int) -> bytes:
        return struct.pack(self.order + layout, *values)

    # A number of 128 bits, or a multiple of it.
    def wide(self, value: int, size: int = 16) -> bytes:
        return value.to_bytes(size, "little" if self.order == "<" else "big")


def _x86(cpu: CPU, pack: _Pack, *, wide: bool) -> Iterator[Note]:
    regs, segs, number = cpu.groups["general"], cpu.groups["segment"], cpu.instance_id + 1
    if wide:
        values = [regs.get(name, 0) for name in _X86_64_REGS]
        values += [0, regs["rip"], segs["cs"], regs["rflags"], regs["rsp"], segs["ss"]]
        values += [segs["fs.base"], segs["gs.base"], *(segs[s] for s in ("ds", "es", "fs", "gs"))]
        desc = pack("32xI76x27Q8x", number, *values)
    else:
        values = [regs[name] for name in _I386_REGS] + [segs[s] for s in ("ds", "es", "fs", "gs")]
        values += [0, regs["rip"], segs["cs"], regs["rflags"], regs["rsp"], segs["ss"]]
        desc = pack("24xI44x17I4x", number, *(value & 0xFFFFFFFF for value in values))
    yield Note("CORE", _NT_PRSTATUS, desc)


# QEMU v10.1.0 target/arm/arch_dump.c struct aarch64_elf_prstatus, aarch64_user_vfp_state,
# aarch64_user_sve_header.
def _aarch64(cpu: CPU, pack: _Pack, *, wide: bool) -> Iterator[Note]:
    del wide
    regs, floats = cpu.groups["general"], cpu.groups.get("float", {})
    if "psr" in regs:
        # QEMU moves the registers of all modes to where AArch64 has them.
        return
    values = [regs.get(f"x{n}", 0) for n in range(31)]
    values += [regs["sp"], regs["pc"], regs["pstate"]]
    desc = pack("32xI76x34QI4x", cpu.instance_id + 1, *values, _FP_VALID)
    yield Note("CORE", _NT_PRSTATUS, desc)
    if not floats:
        return
    control = floats.get("fpsr", 0), floats.get("fpcr", 0)
    desc = b"".join(pack.wide(floats[f"q{n:02}"]) for n in range(32)) + pack("II8x", *control)
    yield Note("CORE", _NT_PRFPREG, desc)
    vectors = cpu.groups["vector"]
    if not vectors:
        return
    # Bytes of a vector. Not on the wire is which lengths the CPU has: all, as of `-cpu max`.
    size = 16 * _sve_length(cpu)
    body = b"".join(_sve(pack, vectors[f"z{n:02}"], size, 8) for n in range(32))
    body += b"".join(_sve(pack, vectors[f"p{n:02}"], size // 8, 2) for n in range(16))
    body += _sve(pack, vectors["ffr"], size // 8, 2)
    body += bytes(-len(body) % 16) + pack("II8x", *control)
    total, most = _SVE_HEAD + len(body), _sve_size(16 * _SVE_MOST)
    head = pack("IIHHHH", total, most, size, 16 * _SVE_MOST, _SVE_REGS, 0)
    yield Note("LINUX", _NT_ARM_SVE, head + body)


# A register of SVE in words, the lowest first.
def _sve(pack: _Pack, value: int, size: int, word: int) -> bytes:
    parts = (value >> 8 * at & (1 << 8 * word) - 1 for at in range(0, size, word))
    return b"".join(pack({8: "Q", 2: "H"}[word], part) for part in parts)


# Of the whole note: 32 vectors, 16 predicates and FFR, FPSR and FPCR.
def _sve_size(vector: int) -> int:
    body = 32 * vector + 17 * (vector // 8)
    return _SVE_HEAD + body + -body % 16 + 16


# In quadwords, as ZCR_ELx limits it at the level that the CPU is at. QEMU v10.1.0
# target/arm/helper.c sve_vqm1_for_el().
def _sve_length(cpu: CPU) -> int:
    system, level = cpu.groups["system"], cpu.groups["general"]["pstate"] >> 2 & 3
    limits = [system[f"zcr_el{n}"] & 15 for n in (1, 2, 3) if n >= level and f"zcr_el{n}" in system]
    return 1 + min(limits, default=0)


# QEMU v10.1.0 target/ppc/arch_dump.c struct PPCElfPrstatus and those behind it. v7.2.0 leaves the
# number of the CPU at 0.
def _ppc64(cpu: CPU, pack: _Pack, *, wide: bool) -> Iterator[Note]:
    del wide
    regs, system, floats, vectors = (
        cpu.groups[name] for name in ("general", "system", "float", "vector")
    )
    values = [regs[f"gpr{n}"] for n in range(32)] + [regs["nip"], regs["msr"], 0]
    values += [system["ctr"], system["lr"], system["xer"], regs["cr"]]
    yield Note("CORE", _NT_PRSTATUS, pack("32xI76x39Q80x", cpu.instance_id + 1, *values))
    values = [floats.get(f"fpr{n}", 0) for n in range(32)] + [floats["fpscr"]]
    yield Note("CORE", _NT_PRFPREG, pack("33Q", *values))
    altivec = b"".join(pack.wide(vectors.get(f"vr{n}", 0)) for n in range(32))
    yield Note("CORE", _NT_PPC_VMX, altivec + pack("12xI16x", vectors["vscr"]))
    lower = [vectors.get(f"vsr{n}", 0) & _LOW for n in range(32)]
    yield Note("CORE", _NT_PPC_VSX, pack("32Q", *lower))
    # No POWER processor has SPE.
    yield Note("CORE", _NT_PPC_SPE, pack("128xQI", 0, 0))


# QEMU v10.1.0 target/riscv/arch_dump.c struct riscv64_elf_prstatus.
def _riscv64(cpu: CPU, pack: _Pack, *, wide: bool) -> Iterator[Note]:
    del wide
    regs = dict(cpu.groups["general"])
    pc = regs.pop("pc")
    desc = pack("32xI76x32Q8x", cpu.instance_id + 1, pc, *list(regs.values())[1:])
    yield Note("CORE", _NT_PRSTATUS, desc)


# QEMU v10.1.0 target/s390x/arch_dump.c note_core, note_linux. v7.2.0 has the number of the CPU in
# the byte order of its host.
def _s390x(cpu: CPU, pack: _Pack, *, wide: bool) -> Iterator[Note]:
    del wide
    regs, system, floats, vectors = (
        cpu.groups[name] for name in ("general", "system", "float", "vector")
    )
    values = [regs["psw.mask"], regs["psw.addr"], *(regs[f"r{n:02}"] for n in range(16))]
    values += [system[f"a{n:02}"] for n in range(16)]
    yield Note("CORE", _NT_PRSTATUS, pack("32xI76x18Q16I16x", cpu.instance_id + 1, *values))
    values = [floats.get(f"f{n:02}", 0) for n in range(16)]
    yield Note("CORE", _NT_PRFPREG, pack("I4x16Q", system.get("fpc", 0), *values))
    yield Note("LINUX", _NT_S390_PREFIX, pack("I", system["prefix"] & 0xFFFFFFFF))
    control = cpu.groups["control"].values()
    yield Note("LINUX", _NT_S390_CTRS, pack("16Q", *control))
    yield Note("LINUX", _NT_S390_TIMER, pack("Q", system["cputm"]))
    yield Note("LINUX", _NT_S390_TODCMP, pack("Q", system["ckc"]))
    yield Note("LINUX", _NT_S390_TODPREG, pack("I", system["todpr"]))
    values = [vectors.get(f"v{n:02}", 0) & _LOW for n in range(16)]
    yield Note("LINUX", _NT_S390_VXRS_LOW, pack("16Q", *values))
    upper = b"".join(pack.wide(vectors.get(f"v{n}", 0)) for n in range(16, 32))
    yield Note("LINUX", _NT_S390_VXRS_HIGH, upper)
    values = [system.get(f"gs{n}", 0) for n in range(4)]
    yield Note("LINUX", _NT_S390_GS_CB, pack("4Q", *values))


def _state(cpu: CPU, device: Node) -> bytes:
    regs, control = cpu.groups["general"], cpu.groups["control"]
    there = {n.name: n for n in device.children}
    segments = dict(zip(_WIRE_SEGMENTS, there["env.segs"].children, strict=False))
    segments |= {name: there[f"env.{name}"] for name in ("ldt", "tr", "gdt", "idt")}
    body = struct.pack("<18Q", *(regs.get(name, 0) for name in _STATE_REGS))
    for name in _STATE_SEGMENTS:
        parts = {c.name: c.value for c in segments[name].children}
        selector, limit, flags, base = (int(parts[p] or 0) for p in _SEGMENT_PARTS)
        body += struct.pack("<III4xQ", selector, limit, flags, base)
    body += struct.pack("<5Q", *(control.get(f"cr{n}", 0) for n in range(5)))
    body += struct.pack("<Q", control.get("kernelgsbase", 0))
    return struct.pack("<II", _QEMU_VERSION, 8 + len(body)) + body


_NOTES: Mapping[str, Callable[..., Iterator[Note]]] = {
    "x86": _x86,
    "aarch64": _aarch64,
    "ppc64": _ppc64,
    "riscv64": _riscv64,
    "s390x": _s390x,
}
