"""The CPUs of a stream: registers by the names that `info registers` has, out of device state.

Which architecture a `cpu` section is of shows in the names of its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vmstream.guest.devices import DeviceTree, Node

# In wire order. QEMU v10.1.0 target/i386/cpu.h R_EAX, R_ES and so on.
_X86_REGS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_X86_SHOWN = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *_X86_REGS[8:])
_X86_SEGS = ("es", "cs", "ss", "ds", "fs", "gs")

# QEMU v10.1.0 target/i386/cpu.h HF_*_SHIFT, CR0_PE_MASK, VM_MASK, DESC_B_MASK.
_HF_LMA, _HF_CS64, _HF_SMM = 1 << 14, 1 << 15, 1 << 19
_SEGMENT_FLAGS = 0x00FFFF00
_CR0_PE, _EFLAGS_VM, _DESC_B = 1 << 0, 1 << 17, 1 << 22

# QEMU v10.1.0 target/ppc/cpu.h SPR_*.
_PPC_SPRS = {"lr": 8, "ctr": 9, "xer": 1, "dsisr": 18, "dar": 19, "srr0": 26, "srr1": 27,
             "sprg0": 272, "sprg1": 273, "sprg2": 274, "sprg3": 275, "pvr": 287, "lpcr": 318,
             "pidr": 48}  # fmt: skip

_RISCV_REGS = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
    "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4",
    "t5", "t6",
)  # fmt: skip
_RISCV_CSRS = (
    "mhartid", "mstatus", "mip", "mie", "mideleg", "medeleg", "mtvec", "stvec", "mepc", "sepc",
    "mcause", "scause", "mtval", "stval", "mscratch", "sscratch", "satp",
)  # fmt: skip
_RISCV_MODES = {0: "user", 1: "supervisor", 3: "machine"}

# AArch64 system registers by the number that KVM gives them, which TCG uses too.
# QEMU v10.1.0 target/arm/kvm-consts.h CP_REG_ARM64_SYSREG.
_ARM64_SYSREGS = {
    "sctlr_el1": 0xC080, "ttbr0_el1": 0xC100, "ttbr1_el1": 0xC101, "tcr_el1": 0xC102,
    "esr_el1": 0xC290, "far_el1": 0xC300, "mair_el1": 0xC510, "vbar_el1": 0xC600,
    "tpidr_el1": 0xC684, "tpidr_el0": 0xDE82,
}  # fmt: skip
_ARM64_SYSREG = 0x6030_0000_0013_0000


@dataclass(frozen=True, slots=True)
class CPU:
    """One CPU as it was saved.

    Attributes:
        instance_id: Of its section: the index of the CPU.
        architecture: 'x86', 'aarch64', 'ppc64', 'riscv64' or 's390x'.
        groups: Registers by name, in the groups 'general', 'segment', 'control', 'debug', 'system'.
        mode: What the CPU executes, in words.
        flags: Names of the condition and control flags that are set.
        halted: It waits for an interrupt; `None` if the stream does not say.
    """

    instance_id: int
    architecture: str
    groups: dict[str, dict[str, int]]
    mode: str
    flags: tuple[str, ...] = ()
    halted: bool | None = None


@dataclass(slots=True)
class _Fields:
    """Values of the fields of a device and its subsections, by name."""

    nodes: dict[str, Node] = field(default_factory=dict)

    @classmethod
    def of(cls, device: Node) -> _Fields:
        found = cls()
        for node in device.children:
            found.nodes.setdefault(node.name, node)
            if node.type == "subsection":
                for inner in node.children:
                    found.nodes.setdefault(inner.name, inner)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.nodes

    def number(self, name: str) -> int:
        node = self.nodes.get(name)
        value = node.value if node is not None else None
        return int(value) if isinstance(value, int) else 0

    def numbers(self, name: str) -> list[int]:
        node = self.nodes.get(name)
        elements = node.children if node is not None else ()
        return [int(e.value) if isinstance(e.value, int) else 0 for e in elements]


def cpus(tree: DeviceTree) -> Iterator[CPU]:
    """Yield the CPUs, in the order of the stream."""
    halted = {}
    for device in tree.find("cpu_common[*]"):
        halted[_instance(device)] = bool(_Fields.of(device).number("halted"))
    for device in tree.find("cpu[*]"):
        fields = _Fields.of(device)
        for mark, read in _READERS.items():
            if mark in fields:
                yield read(_instance(device), fields, halted.get(_instance(device)))
                break


def _instance(device: Node) -> int:
    return int(device.path.rpartition("[")[2].partition("]")[0])


def _set_flags(value: int, names: dict[str, int]) -> tuple[str, ...]:
    return tuple(name for name, bit in names.items() if value >> bit & 1)


def _x86(instance: int, f: _Fields, halted: bool | None) -> CPU:
    regs = dict(zip(_X86_REGS, f.numbers("env.regs"), strict=False))
    general = {name: regs[name] for name in _X86_SHOWN if name in regs}
    general |= {"rip": f.number("env.eip"), "rflags": f.number("env.eflags")}
    segment: dict[str, int] = {}
    listed = f.nodes["env.segs"].children
    tables = [(name, f.nodes.get(f"env.{name}")) for name in ("ldt", "tr", "gdt", "idt")]
    for name, node in (*zip(_X86_SEGS, listed, strict=False), *tables):
        if node is None:
            continue
        parts = _Fields.of(node)
        if name not in ("gdt", "idt"):
            segment[name] = parts.number("selector")
        segment[f"{name}.base"] = parts.number("base")
        segment[f"{name}.limit"] = parts.number("limit")
        if name not in ("gdt", "idt"):
            # As QEMU shows them; the other bits are of the base. v10.1.0
            # target/i386/cpu-dump.c cpu_x86_dump_seg_cache().
            segment[f"{name}.flags"] = parts.number("flags") & _SEGMENT_FLAGS
    control = {f"cr{n}": f.number(f"env.cr[{n}]") for n in (0, 2, 3, 4)}
    control |= {name: f.number(f"env.{name}") for name in
                ("efer", "star", "lstar", "cstar", "fmask", "kernelgsbase")
                if f"env.{name}" in f}  # fmt: skip
    debug = {f"dr{n}": v for n, v in enumerate(f.numbers("env.dr")) if n not in (4, 5)}
    hflags, eflags = f.number("env.hflags"), general["rflags"]
    size = 64 if hflags & _HF_CS64 else 32 if segment.get("cs.flags", 0) & _DESC_B else 16
    if hflags & _HF_LMA:
        mode = f"long mode, {size}-bit code"
    elif not control["cr0"] & _CR0_PE:
        mode = "real mode"
    elif eflags & _EFLAGS_VM:
        mode = "virtual 8086 mode"
    else:
        mode = f"protected mode, {size}-bit code"
    # As QEMU shows it. v10.1.0 target/i386/cpu.h HF_CPL_MASK.
    mode += f", CPL {hflags & 3}" + (", SMM" if hflags & _HF_SMM else "")
    names = {"OF": 11, "DF": 10, "SF": 7, "ZF": 6, "AF": 4, "PF": 2, "CF": 0, "IF": 9, "TF": 8}
    groups = {"general": general, "segment": segment, "control": control, "debug": debug}
    return CPU(instance, "x86", groups, mode, _set_flags(eflags, names), halted)


def _aarch64(instance: int, f: _Fields, halted: bool | None) -> CPU:
    x = f.numbers("env.xregs")
    general = {f"x{n}": v for n, v in enumerate(x[:31])}
    pstate = f.number("cpsr")
    general |= {"sp": x[31] if len(x) > 31 else 0, "pc": f.number("env.pc"), "pstate": pstate}
    indexes, values = f.numbers("cpreg_vmstate_indexes"), f.numbers("cpreg_vmstate_values")
    there = dict(zip(indexes, values, strict=False))
    system = {
        name: there[_ARM64_SYSREG | code]
        for name, code in _ARM64_SYSREGS.items()
        if _ARM64_SYSREG | code in there
    }
    level = f"EL{pstate >> 2 & 3}{'h' if pstate & 1 else 't'}"
    mode = f"AArch64, {level}" if not pstate & 1 << 4 else "AArch32"
    if f.number("power_state"):
        mode += ", powered off"
    flags = _set_flags(pstate, {"N": 31, "Z": 30, "C": 29, "V": 28})
    return CPU(instance, "aarch64", {"general": general, "system": system}, mode, flags, halted)


def _ppc64(instance: int, f: _Fields, halted: bool | None) -> CPU:
    general = {f"gpr{n}": v for n, v in enumerate(f.numbers("env.gpr")[:32])}
    cr = 0
    for part in f.numbers("env.crf"):
        cr = cr << 4 | part & 0xF
    sprs = f.numbers("env.spr")
    system = {name: sprs[n] for name, n in _PPC_SPRS.items() if n < len(sprs)}
    msr = f.number("env.msr")
    general |= {"nip": f.number("env.nip"), "msr": msr, "cr": cr}
    mode = f"{'64' if msr >> 63 & 1 else '32'}-bit, {'problem' if msr >> 14 & 1 else 'supervisor'}"
    mode += " state, little-endian" if msr & 1 else " state, big-endian"
    return CPU(instance, "ppc64", {"general": general, "system": system}, mode, (), halted)


def _riscv64(instance: int, f: _Fields, halted: bool | None) -> CPU:
    values = f.numbers("env.gpr")[:32]
    general = {f"x{n}/{_RISCV_REGS[n]}": v for n, v in enumerate(values)}
    general |= {"pc": f.number("env.pc")}
    system = {n: f.number(f"env.{n}") for n in _RISCV_CSRS if f"env.{n}" in f}
    priv = f.number("env.priv")
    mode = _RISCV_MODES.get(priv, f"privilege {priv}")
    return CPU(instance, "riscv64", {"general": general, "system": system}, mode, (), halted)


def _s390x(instance: int, f: _Fields, halted: bool | None) -> CPU:
    general = {f"r{n:02}": v for n, v in enumerate(f.numbers("env.regs")[:16])}
    mask = f.number("env.psw.mask")
    general |= {"psw.mask": mask, "psw.addr": f.number("env.psw.addr")}
    control = {f"c{n:02}": v for n, v in enumerate(f.numbers("env.cregs")[:16])}
    system = {"prefix": f.number("env.psa")}
    system |= {f"a{n:02}": v for n, v in enumerate(f.numbers("env.aregs")[:16])}
    # QEMU v10.1.0 target/s390x/cpu.h PSW_MASK_PSTATE, PSW_MASK_64, PSW_MASK_32.
    bits = {0b11: "64-bit", 0b01: "31-bit"}.get(mask >> 31 & 3, "24-bit")
    mode = f"{bits}, {'problem' if mask >> 48 & 1 else 'supervisor'} state"
    groups = {"general": general, "control": control, "system": system}
    return CPU(instance, "s390x", groups, mode, (), halted)


# A field that only this architecture has, and the reader.
_READERS: dict[str, Callable[[int, _Fields, bool | None], CPU]] = {
    "env.segs": _x86,
    "env.xregs": _aarch64,
    "env.crf": _ppc64,
    "env.psw.mask": _s390x,
    "env.gpr": _riscv64,
}
