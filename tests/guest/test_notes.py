"""Notes about CPUs, byte for byte those of QEMU's dump-guest-memory for the same stopped guest."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.decoding import BytesSource
from tests.gdbstub import Stub
from tests.guest.test_devices import tree_of
from tests.qemu import Guest, Qemu
from tests.registers import by_cpu, numbers, wide, x86
from tests.truth import open_fixture
from vmstream.guest.cpus import CPU, cpus
from vmstream.guest.devices import DeviceTree
from vmstream.guest.notes import Architecture, architecture, cpu_notes
from vmstream.ops.devices import read_devices

PT_NOTE = 4
# Where the number of the CPU is in NT_PRSTATUS of 64 bits. Of ppc64 and s390x it is what QEMU has
# since 10.0; 7.2 leaves it out or has it in the byte order of its host.
PID = slice(32, 36)


@dataclass(frozen=True)
class Core:
    """Head and notes of an ELF64 core."""

    architecture: Architecture
    notes: list[tuple[str, int, bytes]]


def core_of(data: bytes) -> Core:
    order = ">" if data[5] == 2 else "<"
    (number,) = struct.unpack_from(order + "H", data, 18)
    return Core(Architecture(number, order == ">"), list(_notes(data, order)))


def _notes(data: bytes, order: str) -> Iterator[tuple[str, int, bytes]]:
    (table,) = struct.unpack_from(order + "Q", data, 32)
    (count,) = struct.unpack_from(order + "H", data, 56)
    for i in range(count):
        kind, _, at, _, _, size, *_ = struct.unpack_from(order + "IIQQQQQQ", data, table + 56 * i)
        end = at + size
        while kind == PT_NOTE and at < end:
            name_size, desc_size, note = struct.unpack_from(order + "III", data, at)
            name = data[at + 12 : at + 12 + name_size].rstrip(b"\0").decode()
            at += 12 + (name_size + 3 & ~3)
            yield name, note, data[at : at + desc_size]
            at += desc_size + 3 & ~3


def both(vm: Qemu) -> tuple[DeviceTree, Core]:
    """Our devices, and QEMU's core."""
    dump = vm.path("guest.elf")
    vm.qmp("dump-guest-memory", paging=False, protocol=f"file:{dump}")
    vm.migrate("exec:cat>guest.out")
    found = read_devices(BytesSource(vm.path("guest.out").read_bytes()))
    with dump.open("rb") as file:
        return found.tree, core_of(file.read(1 << 20))


def check(tree: DeviceTree, core: Core) -> None:
    assert architecture(tree) == core.architecture
    ours, theirs = [tuple(note) for note in cpu_notes(tree)], core.notes
    if core.architecture.number in (21, 22):
        order = ">" if core.architecture.big_endian else "<"
        pids = [struct.unpack(order + "I", d[PID])[0] for n, t, d in ours if (n, t) == ("CORE", 1)]
        assert pids == [*range(1, len(pids) + 1)]
        ours, theirs = ([_without_pid(note) for note in notes] for notes in (ours, theirs))
    assert [note[:2] for note in ours] == [note[:2] for note in theirs]
    assert ours == theirs


def _without_pid(note: tuple[str, int, bytes]) -> tuple[str, int, bytes]:
    name, kind, desc = note
    return (name, kind, desc[:32] + desc[36:]) if (name, kind) == ("CORE", 1) else note


# Machine, and the numbers that QEMU's gdbstub gives to general, float and vector registers.
@dataclass(frozen=True)
class Filled:
    arch: str
    args: tuple[str, ...]
    numbers: tuple[int, ...]


FILLED = {
    "aarch64": Filled(
        "aarch64", ("-M", "virt", "-cpu", "cortex-a57"), (*range(31), *range(34, 68))
    ),
    "sve": Filled("aarch64", ("-M", "virt", "-cpu", "max"), (*range(31), *range(34, 85))),
    "riscv64": Filled("riscv64", ("-M", "virt"), (*range(1, 65),)),
    "ppc64": Filled("ppc64", ("-M", "pseries", "-m", "256M"), (*range(65), *range(66, 137))),
    "s390x": Filled("s390x", ("-M", "s390-ccw-virtio", "-no-shutdown"), (*range(1, 83),)),
    "x86": Filled("x86_64", ("-M", "q35"), (*range(17), *range(33, 66))),
    "i386": Filled("i386", ("-M", "pc"), (*range(9), *range(25, 50))),
    "486": Filled("x86_64", ("-M", "isapc", "-cpu", "486"), (*range(17), *range(33, 49))),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.qemu(f.arch)) for n, f in FILLED.items()]
)
def test_every_register(name: str) -> None:
    """Notes and registers of two CPUs (one where there can be no more) that are full of noise."""
    machine = FILLED[name]
    count = 1 if name == "486" else 2
    args = [*machine.args, "-accel", "tcg", "-smp", str(count), "-S"]
    if "-m" not in args:
        args += ["-m", "32M"]
    with Qemu(args, binary=f"qemu-system-{machine.arch}") as vm:
        with Stub(vm) as stub:
            assert stub.fill(count, machine.numbers) > count * 30
        texts = by_cpu(vm.registers(all_cpus=True))
        tree, core = both(vm)
    check(tree, core)
    found = list(cpus(tree))
    assert [cpu.instance_id for cpu in found] == [*range(count)]
    for cpu in found:
        compare(cpu, texts[cpu.instance_id])


def compare(cpu: CPU, text: str) -> None:
    theirs = (x86(text) if cpu.architecture == "x86" else numbers(text)) | wide(text)
    mine = {name: value for group in cpu.groups.values() for name, value in group.items()}
    # x86 CPUs that are not in 64-bit mode are shown by the lower halves.
    narrow = cpu.architecture == "x86" and "RAX=" not in text
    # QEMU 7.2 shows 0 for mideleg as long as a CPU has not run.
    shared = mine.keys() & theirs.keys() - {"mideleg"}
    for name in shared:
        mask = 0xFFFFFFFF if narrow and name in cpu.groups["general"] else -1
        assert mine[name] & mask == theirs[name] & mask, (cpu.instance_id, name)
    assert len(shared) > 30


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_a_pc_that_runs(machine: str) -> None:
    args = ["-M", machine, "-accel", "tcg", "-smp", "3"]
    with Qemu(args, guest=Guest(fill=64, dirty=20), mem=("mem", 16 << 20)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        check(*both(vm))


@pytest.mark.qemu("ppc64")
def test_a_little_endian_kernel() -> None:
    """The byte order of interrupt handlers is that of head and notes.

    QEMU 7.2 asks HID0, which the hypervisor sets, of a pseries guest too, and stays big-endian: its
    notes are turned around here.
    """
    ile = 1 << 25
    args = ["-M", "pseries", "-m", "256M", "-accel", "tcg", "-S"]
    with Qemu(args, binary="qemu-system-ppc64") as vm:
        with Stub(vm) as stub:
            shown = re.search(r"LPCR ([0-9a-f]{16})", vm.registers())
            assert shown is not None
            before = int(shown[1], 16)
            (number,) = [
                n for n in range(137, 600) if int.from_bytes(stub.read(n), "big") == before
            ]
            assert stub.ask(f"P{number:x}={before | ile:016x}") == "OK"
            stub.fill(1, FILLED["ppc64"].numbers)
        tree, core = both(vm)
    assert architecture(tree) == Architecture(21)
    words = {1: "28I39Q10Q", 2: "33Q", 0x100: "64Q4I4I", 0x102: "32Q", 0x101: "32IQI"}
    order = ">" if core.architecture.big_endian else "<"
    ours = cpu_notes(tree)
    assert [note.type for note in ours] == [kind for _, kind, _ in core.notes] == [*words][:5]
    for mine, (_, kind, desc) in zip(ours, core.notes, strict=True):
        left, right = (
            list(struct.unpack(o + words[kind], d)) for o, d in (("<", mine.desc), (order, desc))
        )
        if kind == 1:
            left[8] = right[8] = 0
        elif kind == 0x100 and order == ">":
            # Halves of a register change places; VSCR does not.
            left[:64] = [left[i ^ 1] for i in range(64)]
        assert left == right, hex(kind)


def test_without_names() -> None:
    """Nothing is made up for what is not known."""
    tree = tree_of(open_fixture("novmdesc-11.1-pc"))
    assert cpu_notes(tree) == []
    assert architecture(tree) is None


@pytest.mark.qemu("arm")
def test_arm() -> None:
    """A CPU of 32 bits has other registers, and no notes here."""
    args = ["-M", "virt", "-cpu", "cortex-a15", "-m", "32M", "-accel", "tcg", "-S"]
    with Qemu(args, binary="qemu-system-arm") as vm:
        with Stub(vm) as stub:
            stub.fill(1, range(15))
        text = vm.registers()
        vm.migrate("exec:cat>guest.out")
        tree = read_devices(BytesSource(vm.path("guest.out").read_bytes())).tree
    (cpu,) = cpus(tree)
    assert cpu.architecture == "arm"
    general = cpu.groups["general"]
    theirs = {n.lower(): int(v, 16) for n, v in re.findall(r"(R\d\d)=([0-9a-f]{8})", text)}
    assert len(theirs) == 16
    assert {f"r{int(n[1:])}": v for n, v in theirs.items()}.items() <= general.items()
    assert f"PSR={general['psr']:08x}" in text
    assert cpu_notes(tree) == []


def test_a_wrong_description() -> None:
    """Fields that are missing cost the notes, not the file."""
    data = open_fixture("s390x-10.0")
    assert len(cpu_notes(tree_of(data))) >= 10
    assert cpu_notes(tree_of(data.replace(b"env.cputm", b"env.xputm"))) == []
