"""ELF cores in gdb: registers of each CPU as QEMU shows them, memory as pmemsave gives it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.gdbstub import Stub
from tests.guest.test_notes import both, check
from tests.linux import Linux
from tests.qemu import Guest, Qemu
from tests.registers import by_cpu, numbers, x86

GDB = shutil.which("gdb-multiarch") or shutil.which("gdb")

pytestmark = [pytest.mark.qemu, pytest.mark.skipif(GDB is None, reason="no gdb")]

# gdb's names of registers as `info registers` has them; x86 is in tests.registers.
NAMES = {
    "ppc64": {"pc": "nip", "r1": "gpr1", "r31": "gpr31", "lr": "lr", "ctr": "ctr"},
    "s390x": {"r0": "r00", "r9": "r09", "r15": "r15"},
    "riscv64": {"ra": "x1/ra", "sp": "x2/sp", "t6": "x31/t6", "pc": "pc"},
    "aarch64": {"x0": "x0", "x30": "x30", "sp": "sp", "pc": "pc"},
}


def gdb(core: Path, *commands: str) -> str:
    assert GDB is not None
    args = [GDB, "-nx", "-batch", "-ex", "set osabi GNU/Linux", "-ex", f"core-file {core}"]
    for command in commands:
        args += ["-ex", command]
    return subprocess.run(args, capture_output=True, text=True, check=True, timeout=60).stdout


def threads(text: str) -> dict[int, dict[str, int]]:
    """Registers by gdb's names, by the number of the CPU."""
    parts = re.split(r"^Thread \d+ \(LWP (\d+)\):$", text, flags=re.MULTILINE)[1:]
    return {
        int(lwp) - 1: {
            name: int(value, 16)
            for name, value in re.findall(r"^(\w+) +(0x[0-9a-f]+)", body, re.MULTILINE)
        }
        for lwp, body in zip(parts[::2], parts[1::2], strict=True)
    }


def extracted(vm: Qemu, out: Path) -> Path:
    if not vm.path("guest.out").exists():
        vm.migrate("exec:cat>guest.out")
    core = out / "core"
    assert vmstream("extract-ram", vm.path("guest.out"), "-o", core, "--format", "elf").status == 0
    return core


def check_memory(vm: Qemu, core: Path, gpa: int, size: int) -> None:
    out = core.with_name("memory")
    gdb(core, f"dump binary memory {out} {gpa:#x} {gpa + size:#x}")
    assert out.read_bytes() == b"".join(vm.pmemsave(gpa, size))


def check_x86(vm: Qemu, core: Path) -> None:
    texts = by_cpu(vm.registers(all_cpus=True))
    found = threads(gdb(core, "thread apply all info registers"))
    assert found.keys() == texts.keys()
    for number, registers in found.items():
        theirs = x86(texts[number])
        compared = 0
        for name, value in registers.items():
            name = re.sub(r"^e(?=\w\w$)", "r", name).replace("_base", ".base")
            name = {"eflags": "rflags"}.get(name, name)
            if name in theirs:
                assert value == theirs[name], (number, name)
                compared += 1
        assert compared >= 16


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_x86(machine: str, tmp_path: Path) -> None:
    args = ["-M", machine, "-accel", "tcg", "-smp", "2"]
    with Qemu(args, guest=Guest(fill=64, dirty=20), mem=("mem", 16 << 20)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        core = extracted(vm, tmp_path)
        check_x86(vm, core)
        check_memory(vm, core, 0x7C00, 512)
        check_memory(vm, core, 1 << 20, 1 << 20)


@pytest.mark.linux
def test_linux(tmp_path: Path) -> None:
    """CPUs in long mode; the notes are those of QEMU's dump."""
    args = ["-M", "q35", "-accel", "tcg", "-smp", "2", "-m", "256M"]
    with Qemu([*args, *Linux().args(tmp_path)]) as vm:
        vm.wait_serial(b"BOOTED", timeout=180)
        vm.stop()
        check(*both(vm))
        core = extracted(vm, tmp_path)
        check_x86(vm, core)
        check_memory(vm, core, 16 << 20, 1 << 20)


@pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="no gdb-multiarch")
@pytest.mark.parametrize(
    ("arch", "machine", "gpa", "stubs"),
    [
        pytest.param(*case, marks=pytest.mark.qemu(case[0]), id=case[0])
        for case in (
            ("aarch64", "virt,gic-version=2", 0x40000000, range(31)),
            ("riscv64", "virt", 0x80000000, range(1, 32)),
            ("ppc64", "pseries", 0, range(32)),
            ("s390x", "s390-ccw-virtio", 0, range(2, 18)),
        )
    ],
)
def test_others(arch: str, machine: str, gpa: int, stubs: range, tmp_path: Path) -> None:
    args = ["-M", machine, "-m", "256M", "-smp", "2", "-accel", "tcg", "-S"]
    if arch == "aarch64":
        args += ["-cpu", "cortex-a57"]
    pattern = bytes(range(1, 256)) * 16
    args += ["-device", f"loader,file=pattern,addr={gpa + 0x100000:#x},force-raw=on"]
    with Qemu(args, binary=f"qemu-system-{arch}", files={"pattern": pattern}) as vm:
        with Stub(vm) as stub:
            stub.fill(2, stubs)
        texts = by_cpu(vm.registers(all_cpus=True))
        core = extracted(vm, tmp_path)
        found = threads(gdb(core, "thread apply all info registers"))
        assert found.keys() == texts.keys()
        for number, registers in found.items():
            theirs = numbers(texts[number])
            for name, shown in NAMES[arch].items():
                assert registers[name] == theirs[shown], (number, name)
        check_memory(vm, core, gpa + 0x100000, len(pattern))
