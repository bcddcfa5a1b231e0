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
_HF_LMA, _HF_CS64, _HF_SMM, _HF_INHIBIT_IRQ = 1 << 14, 1 << 15, 1 << 19, 1 << 3
_A20 = 1 << 20
_SEGMENT_FLAGS = 0x00FFFF00
_CR0_PE, _EFLAGS_VM, _DESC_B, _XCR0_AVX = 1 << 0, 1 << 17, 1 << 22, 1 << 2
# Words of 64 bits in one of 128.
_HALVES = 2

# QEMU v10.1.0 target/ppc/cpu.h SPR_*.
_PPC_SPRS = {"lr": 8, "ctr": 9, "xer": 1, "dsisr": 18, "dar": 19, "sdr1": 25, "srr0": 26,
             "srr1": 27, "cfar": 28, "pidr": 48, "vrsave": 256, "sprg0": 272, "sprg1": 273,
             "sprg2": 274, "sprg3": 275, "sprg4": 276, "sprg5": 277, "sprg6": 278, "sprg7": 279,
             "pvr": 287, "hsrr0": 314, "hsrr1": 315, "lpcr": 318, "ptcr": 464,
             "hid0": 1008}  # fmt: skip

_RISCV_REGS = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
    "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4",
    "t5", "t6",
)  # fmt: skip
_RISCV_FLOATS = (
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2",
    "fa3", "fa4", "fa5", "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9",
    "fs10", "fs11", "ft8", "ft9", "ft10", "ft11",
)  # fmt: skip
_RISCV_CSRS = (
    "mhartid", "mstatus", "hstatus", "vsstatus", "mip", "mie", "mideleg", "hideleg", "medeleg",
    "hedeleg", "mtvec", "stvec", "vstvec", "mepc", "sepc", "vsepc", "mcause", "scause", "vscause",
    "mtval", "stval", "htval", "mtval2", "mscratch", "sscratch", "satp",
)  # fmt: skip
# Extension state is dirty: XS, FS or VS is 3. QEMU v10.1.0 target/riscv/csr.c add_status_sd(),
# read_hstatus().
_RISCV_VSXL = 3 << 32
_RISCV_DIRTY = (3 << 15, 3 << 13, 3 << 9)
_RISCV_MODES = {0: "user", 1: "supervisor", 3: "machine"}

# AArch64 system registers by the number that KVM gives them, which TCG uses too.
# QEMU v10.1.0 target/arm/kvm-consts.h CP_REG_ARM64_SYSREG.
_ARM64_SYSREGS = {
    "sctlr_el1": 0xC080, "ttbr0_el1": 0xC100, "ttbr1_el1": 0xC101, "tcr_el1": 0xC102,
    "esr_el1": 0xC290, "far_el1": 0xC300, "mair_el1": 0xC510, "vbar_el1": 0xC600,
    "tpidr_el1": 0xC684, "tpidr_el0": 0xDE82, "zcr_el1": 0xC090, "zcr_el2": 0xE090,
    "zcr_el3": 0xF090,
}  # fmt: skip
_ARM64_SYSREG = 0x6030_0000_0013_0000
# ID_AA64ZFR0_EL1, which each CPU of Armv8 has.
_ARM64_ID = _ARM64_SYSREG | 0xC024
_PSTATE_NRW, _PSTATE_T = 1 << 4, 1 << 5
_ARM_MODES = {0: "usr", 1: "fiq", 2: "irq", 3: "svc", 6: "mon", 7: "abt", 10: "hyp", 11: "und",
              15: "sys"}  # fmt: skip
# Of 64 bits in the largest register.
_SVE_WORDS = 32
# Bits of FPSCR. QEMU v7.2.0 target/arm/cpu.h FPSR_MASK, FPCR_MASK.
_FPSR, _FPCR = 0xF800_009F, 0x07FF_9F00


# Bytes of a vector register of AVX-512.
_WIDEST = 64


@dataclass(frozen=True, slots=True)
class CPU:
    """One CPU as it was saved.

    Attributes:
        instance_id: Of its section: the index of the CPU.
        architecture: 'x86', 'aarch64', 'ppc64', 'riscv64' or 's390x'; or a CPU of 32 bits, 'arm',
            'ppc' or 'riscv32'.
        groups: Registers by name, in the groups 'general', 'segment', 'control', 'debug', 'system',
            'float' and 'vector'. One of more than 64 bits is a number, too.
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
        return _number(node) if node is not None else 0

    def numbers(self, name: str) -> list[int]:
        node = self.nodes.get(name)
        return [_number(e) for e in node.children] if node is not None else []

    def inside(self, name: str) -> _Fields:
        """Those in a struct or subsection; none if it is not there."""
        node = self.nodes.get(name)
        return _Fields({n.name: n for n in node.children} if node is not None else {})


# A value; of bytes, as of a vector register, the big-endian number that they are.
def _number(node: Node) -> int:
    value = node.value
    if isinstance(value, bytes):
        return int.from_bytes(value, "big") if len(value) <= _WIDEST else 0
    return int(value) if value is not None else 0


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
    mode += ", interrupts inhibited" if hflags & _HF_INHIBIT_IRQ else ""
    mode += ", A20 off" if "env.a20_mask" in f and not f.number("env.a20_mask") & _A20 else ""
    names = {"OF": 11, "DF": 10, "SF": 7, "ZF": 6, "AF": 4, "PF": 2, "CF": 0, "IF": 9, "TF": 8}
    groups = {"general": general, "segment": segment, "control": control, "debug": debug}
    groups |= {"float": _x87(f), "vector": _sse(f)}
    return CPU(instance, "x86", groups, mode, _set_flags(eflags, names), halted)


# Data registers by their place, not by the top of the stack, as `info registers` has them.
# QEMU v10.1.0 target/i386/machine.c cpu_pre_save(), vmstate_fpreg.
def _x87(f: _Fields) -> dict[str, int]:
    found = {"fcw": f.number("env.fpuc"), "fsw": f.number("env.fpus_vmstate"),
             "ftw": f.number("env.fptag_vmstate"), "mxcsr": f.number("env.mxcsr")}  # fmt: skip
    registers = f.nodes.get("env.fpregs")
    for n, register in enumerate(registers.children if registers is not None else ()):
        parts = _Fields.of(register).inside("tmp")
        found[f"fpr{n}"] = parts.number("tmp_exp") << 64 | parts.number("tmp_mant")
    return found


# Fields of one name: the lower 128 bits of each register, from version 12 of the section on those
# above them, which count once the guest lets AVX be used. QEMU v10.1.0 target/i386/machine.c
# VMSTATE_XMM_REGS, VMSTATE_YMMH_REGS_VARS.
def _sse(f: _Fields) -> dict[str, int]:
    rows = []
    for name in ("env.xmm_regs", "env.xmm_regs[0]", "env.xmm_regs[1]"):
        node = f.nodes.get(name)
        if node is not None:
            parts = [[_number(part) for part in register.children] for register in node.children]
            rows.append([p[1] << 64 | p[0] if len(p) == _HALVES else 0 for p in parts])
    if not rows:
        return {}
    if len(rows) < _HALVES or not f.number("env.xcr0") & _XCR0_AVX:
        return {f"xmm{n:02}": low for n, low in enumerate(rows[0])}
    both = enumerate(zip(*rows, strict=False))
    return {f"ymm{n:02}": high << 128 | low for n, (low, high) in both}


def _aarch64(instance: int, f: _Fields, halted: bool | None) -> CPU:
    x = f.numbers("env.xregs")
    pstate, pc = f.number("cpsr"), f.number("env.pc")
    indexes, values = f.numbers("cpreg_vmstate_indexes"), f.numbers("cpreg_vmstate_values")
    there = dict(zip(indexes, values, strict=False))
    system = {
        name: there[_ARM64_SYSREG | code]
        for name, code in _ARM64_SYSREGS.items()
        if _ARM64_SYSREG | code in there
    }
    architecture = "aarch64"
    if pstate & _PSTATE_NRW:
        # One that can do more came here from code that has left something in the registers.
        if _ARM64_ID not in there or not (any(x) or pc):
            architecture, system = "arm", {}
        general = {f"r{n}": v for n, v in enumerate(f.numbers("env.regs")[:16])}
        general["psr"] = pstate
        mode = f"AArch32, {_ARM_MODES.get(pstate & 0xF, 'unknown')} mode"
        mode += ", Thumb" if pstate & _PSTATE_T else ""
    else:
        general = {f"x{n}": v for n, v in enumerate(x[:31])}
        general |= {"sp": x[31] if len(x) > 31 else 0, "pc": pc, "pstate": pstate}
        mode = f"AArch64, EL{pstate >> 2 & 3}{'h' if pstate & 1 else 't'}"
    if f.number("power_state"):
        mode += ", powered off"
    flags = _set_flags(pstate, {"N": 31, "Z": 30, "C": 29, "V": 28})
    groups = {"general": general, "system": system} | _arm_floats(f)
    return CPU(instance, architecture, groups, mode, flags, halted)


# Registers of SVE have their lower 128 bits among those of floating point. QEMU v10.1.0
# target/arm/machine.c vmstate_vfp, vmstate_sve.
def _arm_floats(f: _Fields) -> dict[str, dict[str, int]]:
    floats: dict[str, int] = {}
    for n in range(32):
        low = f.numbers(f"env.vfp.zregs[{n}].d")
        if len(low) == _HALVES:
            floats[f"q{n:02}"] = low[1] << 64 | low[0]
    if not floats:
        return {}
    if "fpscr" in f:
        fpscr = f.number("fpscr")
        floats |= {"fpsr": fpscr & _FPSR, "fpcr": fpscr & _FPCR}
    vectors: dict[str, int] = {}
    sve = f.inside("cpu/sve")
    for kind, field_name in (("z", "env.vfp.zregs"), ("p", "env.vfp.pregs")):
        node = sve.nodes.get(field_name)
        for n, register in enumerate(node.children if node is not None else ()):
            words = [_number(c) for part in register.children[:1] for c in part.children]
            value = sum(word << 64 * i for i, word in enumerate(words[:_SVE_WORDS]))
            if kind == "z":
                value = value << 128 | floats.get(f"q{n:02}", 0)
            vectors[f"{kind}{n:02}" if (kind, n) != ("p", 16) else "ffr"] = value
    return {"float": floats, "vector": vectors}


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
    # Registers 0 to 31 of VSX are those of floating point and what is below them; the others are
    # those of Altivec. QEMU v10.1.0 target/ppc/machine.c vmstate_fpu, vmstate_vsx, vmstate_altivec.
    fpu, altivec, vsx = (f.inside(f"cpu/{name}") for name in ("fpu", "altivec", "vsx"))
    floats = fpu.numbers("env.vsr") or f.numbers("env.fpr")
    lower = vsx.numbers("env.vsr") or [0] * len(floats)
    scalars = {f"fpr{n}": v for n, v in enumerate(floats)} | {"fpscr": fpu.number("env.fpscr")}
    vectors = {f"vsr{n}": v << 64 | w for n, (v, w) in enumerate(zip(floats, lower, strict=False))}
    # Their halves are in the order of the host's memory: the lower one first, where that is
    # little-endian. put_avr() there.
    for n, value in enumerate(altivec.numbers("env.vsr") or f.numbers("env.avr")):
        vectors[f"vr{n}"] = (value & (1 << 64) - 1) << 64 | value >> 64
    vectors["vscr"] = altivec.number("vscr")
    groups = {"general": general, "system": system, "float": scalars, "vector": vectors}
    # A field for the upper halves of registers, which those of 64 bits need none for.
    architecture = "ppc" if "env.gprh" in f else "ppc64"
    return CPU(instance, architecture, groups, mode, (), halted)


def _riscv64(instance: int, f: _Fields, halted: bool | None) -> CPU:
    values = f.numbers("env.gpr")[:32]
    general = {f"x{n}/{_RISCV_REGS[n]}": v for n, v in enumerate(values)}
    general |= {"pc": f.number("env.pc")}
    system = {n: f.number(f"env.{n}") for n in _RISCV_CSRS if f"env.{n}" in f}
    wide = f.number("env.misa_mxl") != 1
    # As they read: the highest bit says that something is dirty, VSXL that there are 64 bits.
    if any(system.get("mstatus", 0) & bits == bits for bits in _RISCV_DIRTY):
        system["mstatus"] |= 1 << (63 if wide else 31)
    if wide and "hstatus" in system:
        system["hstatus"] = system["hstatus"] & ~_RISCV_VSXL | 2 << 32
    floats = {f"f{n}/{_RISCV_FLOATS[n]}": v for n, v in enumerate(f.numbers("env.fpr")[:32])}
    priv = f.number("env.priv")
    mode = _RISCV_MODES.get(priv, f"privilege {priv}")
    if f.number("env.virt") or f.number("env.virt_enabled"):
        mode = f"virtual {mode}"
    groups = {"general": general, "system": system, "float": floats}
    return CPU(instance, "riscv64" if wide else "riscv32", groups, mode, (), halted)


def _s390x(instance: int, f: _Fields, halted: bool | None) -> CPU:
    general = {f"r{n:02}": v for n, v in enumerate(f.numbers("env.regs")[:16])}
    mask = f.number("env.psw.mask")
    general |= {"psw.mask": mask, "psw.addr": f.number("env.psw.addr")}
    control = {f"c{n:02}": v for n, v in enumerate(f.numbers("env.cregs")[:16])}
    system = {"prefix": f.number("env.psa")}
    names = ("todpr", "cputm", "ckc", "gbea", "pp", "fpc")
    system |= {name: f.number(f"env.{name}") for name in names if f"env.{name}" in f}
    system |= {f"a{n:02}": v for n, v in enumerate(f.numbers("env.aregs")[:16])}
    system |= {f"gs{n}": v for n, v in enumerate(f.numbers("env.gscb"))}
    # A register of floating point is the upper half of a vector's.
    halves = [[f"env.vregs[{n}][{half}]" for half in (0, 1)] for n in range(32)]
    floats = {f"f{n:02}": f.number(high) for n, (high, _) in enumerate(halves[:16]) if high in f}
    vectors = {
        f"v{n:02}": f.number(high) << 64 | f.number(low)
        for n, (high, low) in enumerate(halves)
        if high in f and low in f
    }
    # QEMU v10.1.0 target/s390x/cpu.h PSW_MASK_PSTATE, PSW_MASK_64, PSW_MASK_32.
    bits = {0b11: "64-bit", 0b01: "31-bit"}.get(mask >> 31 & 3, "24-bit")
    mode = f"{bits}, {'problem' if mask >> 48 & 1 else 'supervisor'} state"
    groups = {"general": general, "control": control, "system": system}
    groups |= {"float": floats, "vector": vectors}
    return CPU(instance, "s390x", groups, mode, (), halted)


# A field that only this architecture has, and the reader.
_READERS: dict[str, Callable[[int, _Fields, bool | None], CPU]] = {
    "env.segs": _x86,
    "env.xregs": _aarch64,
    "env.crf": _ppc64,
    "env.psw.mask": _s390x,
    "env.gpr": _riscv64,
}
