"""Notes about CPUs, byte for byte those of QEMU's dump-guest-memory for the same stopped guest."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.decoding import BytesSource
from tests.guest.test_devices import tree_of
from tests.qemu import Guest, Qemu
from tests.truth import open_fixture
from vmstream.guest.notes import cpu_notes
from vmstream.ops.devices import read_devices

PT_NOTE = 4

# struct elf_prstatus of both: the number of the CPU, then the registers, by their places.
X86_64, I386 = "<32xI76x27Q8x", "<24xI44x17I4x"
WIDE = {
    "pid": 0,
    "ax": 11,
    "bx": 6,
    "cx": 12,
    "dx": 13,
    "si": 14,
    "di": 15,
    "bp": 5,
    "ip": 17,
    "cs": 18,
    "flags": 19,
    "sp": 20,
    "ss": 21,
    "ds": 24,
    "es": 25,
    "fs": 26,
    "gs": 27,
}
NARROW = {
    "pid": 0,
    "bx": 1,
    "cx": 2,
    "dx": 3,
    "si": 4,
    "di": 5,
    "bp": 6,
    "ax": 7,
    "ds": 8,
    "es": 9,
    "fs": 10,
    "gs": 11,
    "ip": 13,
    "cs": 14,
    "flags": 15,
    "sp": 16,
    "ss": 17,
}


def notes_of(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """The notes of a little-endian ELF64 core."""
    (table,) = struct.unpack_from("<Q", data, 32)
    (count,) = struct.unpack_from("<H", data, 56)
    for i in range(count):
        kind, _, at, _, _, size, *_ = struct.unpack_from("<IIQQQQQQ", data, table + 56 * i)
        end = at + size
        while kind == PT_NOTE and at < end:
            name_size, desc_size, note = struct.unpack_from("<III", data, at)
            name = data[at + 12 : at + 12 + name_size].rstrip(b"\0").decode()
            at += 12 + (name_size + 3 & ~3)
            yield name, note, data[at : at + desc_size]
            at += desc_size + 3 & ~3


def both(vm: Qemu) -> tuple[list[tuple[str, int, bytes]], list[tuple[str, int, bytes]]]:
    """Ours, and QEMU's."""
    vm.stop()
    dump = vm.path("guest.elf")
    vm.qmp("dump-guest-memory", paging=False, protocol=f"file:{dump}")
    vm.migrate("exec:cat>guest.out")
    found = read_devices(BytesSource(vm.path("guest.out").read_bytes()))
    with dump.open("rb") as file:
        theirs = list(notes_of(file.read(1 << 20)))
    return [tuple(note) for note in cpu_notes(found.tree)], theirs


@pytest.mark.qemu
@pytest.mark.parametrize("cpus", [1, 3])
def test_x86(cpus: int) -> None:
    args = ["-M", "q35", "-accel", "tcg", "-smp", str(cpus)]
    with Qemu(args, guest=Guest(fill=64, dirty=20), mem=("mem", 16 << 20)) as vm:
        vm.wait_serial(b"FILLED")
        ours, theirs = both(vm)
    assert len(ours) == len(theirs) == 2 * cpus
    assert ours[cpus:] == theirs[cpus:]
    # The guest is not in 64-bit mode, and QEMU's notes have the structure of i386 then.
    for mine, its in zip(ours[:cpus], theirs[:cpus], strict=True):
        assert mine[:2] == its[:2] == ("CORE", 1)
        wide, narrow = struct.unpack(X86_64, mine[2]), struct.unpack(I386, its[2])
        assert {n: wide[i] for n, i in WIDE.items()} == {n: narrow[i] for n, i in NARROW.items()}


@pytest.mark.qemu("aarch64")
def test_aarch64(tmp_path: Path) -> None:
    args = ["-M", "virt", "-cpu", "cortex-a57", "-accel", "tcg", "-m", "64M", "-smp", "2"]
    with Qemu(args, binary="qemu-system-aarch64") as vm:
        ours, theirs = both(vm)
    assert len(ours) == 2
    assert ours == [note for note in theirs if note[:2] == ("CORE", 1)]


def test_other_architectures() -> None:
    """Nothing is made up for what is not known."""
    for name in ("riscv64-10.0-virt", "s390x-10.0", "ppc64-10.0-pseries", "novmdesc-11.1-pc"):
        assert cpu_notes(tree_of(open_fixture(name))) == []


def test_layout() -> None:
    """Sizes and places; those of Linux guests of 7.2 and 11.1 were byte for byte QEMU's."""
    notes = cpu_notes(tree_of(open_fixture("plain-11.1-q35")))
    assert [(n.name, n.type, len(n.desc)) for n in notes] == [
        ("CORE", 1, 336), ("CORE", 1, 336), ("QEMU", 0, 440), ("QEMU", 0, 440),
    ]  # fmt: skip
    assert struct.unpack_from("<II", notes[2].desc) == (1, 440)
    assert struct.unpack(X86_64, notes[0].desc)[WIDE["ip"]] == 0x7D46
