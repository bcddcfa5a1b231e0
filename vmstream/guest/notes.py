"""Notes of an ELF core about the CPUs, as QEMU's dump-guest-memory writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from vmstream.guest.cpus import CPU, cpus
from vmstream.guest.devices import DeviceTree, Node

_NT_PRSTATUS = 1
_FP_VALID = 1  # as QEMU sets it; a note with those registers is not made here
_QEMU_VERSION = 1

# Of a segment in device state. QEMU v10.1.0 target/i386/machine.c vmstate_segment.
_SEGMENT_PARTS = ("selector", "limit", "flags", "base")

# QEMU v10.1.0 target/i386/arch_dump.c x86_64_user_regs_struct, QEMUCPUState.
_X86_64_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi",
)  # fmt: skip
_STATE_REGS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
_STATE_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_WIRE_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


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


def cpu_notes(tree: DeviceTree) -> list[Note]:
    """Return NT_PRSTATUS of each CPU and, on x86, QEMU's own note of each behind them.

    Empty for an architecture that is not known here. QEMU v10.1.0 dump/dump.c write_elf64_notes().
    """
    found = list(cpus(tree))
    nodes = {d.path: d for d in tree.find("cpu[*]")}
    status = [Note("CORE", _NT_PRSTATUS, desc) for desc in _statuses(found)]
    states = [
        Note("QEMU", 0, _state(cpu, nodes[f"cpu[{cpu.instance_id}]"]))
        for cpu in found
        if cpu.architecture == "x86"
    ]
    return status + states


def _statuses(found: list[CPU]) -> Iterator[bytes]:
    for cpu in found:
        if cpu.architecture == "x86":
            yield _x86_64(cpu)
        elif cpu.architecture == "aarch64":
            yield _aarch64(cpu)


# Of a CPU that is not in 64-bit mode too, since the file is of x86_64. QEMU has the smaller
# structure of i386 then, and makes the file one of EM_386.
def _x86_64(cpu: CPU) -> bytes:
    regs, segs = cpu.groups["general"], cpu.groups["segment"]
    values = [regs[name] for name in _X86_64_REGS]
    values += [0, regs["rip"], segs["cs"], regs["rflags"], regs["rsp"], segs["ss"]]
    values += [segs["fs.base"], segs["gs.base"], *(segs[s] for s in ("ds", "es", "fs", "gs"))]
    return struct.pack("<32xI76x27Q8x", cpu.instance_id + 1, *values)


# QEMU v10.1.0 target/arm/arch_dump.c struct aarch64_elf_prstatus.
def _aarch64(cpu: CPU) -> bytes:
    regs = cpu.groups["general"]
    values = [regs.get(f"x{n}", 0) for n in range(31)]
    values += [regs["sp"], regs["pc"], regs["pstate"]]
    return struct.pack("<32xI76x34QI4x", cpu.instance_id + 1, *values, _FP_VALID)


def _state(cpu: CPU, device: Node) -> bytes:
    regs, control = cpu.groups["general"], cpu.groups["control"]
    there = {n.name: n for n in device.children}
    segments = dict(zip(_WIRE_SEGMENTS, there["env.segs"].children, strict=False))
    segments |= {name: there[f"env.{name}"] for name in ("ldt", "tr", "gdt", "idt")}
    body = struct.pack("<18Q", *(regs[name] for name in _STATE_REGS))
    for name in _STATE_SEGMENTS:
        parts = {c.name: c.value for c in segments[name].children}
        selector, limit, flags, base = (int(parts[p] or 0) for p in _SEGMENT_PARTS)
        body += struct.pack("<III4xQ", selector, limit, flags, base)
    body += struct.pack("<5Q", *(control.get(f"cr{n}", 0) for n in range(5)))
    body += struct.pack("<Q", control.get("kernelgsbase", 0))
    return struct.pack("<II", _QEMU_VERSION, 8 + len(body)) + body
