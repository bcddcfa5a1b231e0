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


def notes_of(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes of a little-endian ELF64 core."""
    (table,) = struct.unpack_from("<Q", data, 32)
    (count,) = struct.unpack_from("<H", data, 56)
    for i in range(count):
        kind, _, at, _, _, size, *_ = struct.unpack_from("<IIQQQQQQ", data, table + 56 * i)
        end = at + size
        while kind == PT_NOTE and at < end:
            name_size, desc_size, note = struct.unpack_from("<III", data, at)
            name = data[at + 12 : at + 12 + name_size].rstrip(b"\0")
            at += 12 + (name_size + 3 & ~3)
            yield name, note, data[at : at + desc_size]
            at += desc_size + 3 & ~3


def both(vm: Qemu) -> tuple[list[tuple[bytes, int, bytes]], list[tuple[bytes, int, bytes]]]:
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
    assert len(ours) == 2 * cpus
    assert ours == theirs


@pytest.mark.qemu("aarch64")
def test_aarch64(tmp_path: Path) -> None:
    args = ["-M", "virt", "-cpu", "cortex-a57", "-accel", "tcg", "-m", "64M", "-smp", "2"]
    with Qemu(args, binary="qemu-system-aarch64") as vm:
        ours, theirs = both(vm)
    assert len(ours) == 2
    assert ours == [note for note in theirs if note[:2] == (b"CORE", 1)]


def test_other_architectures() -> None:
    """Nothing is made up for what is not known."""
    for name in ("riscv64-10.0-virt", "s390x-10.0", "ppc64-10.0-pseries", "novmdesc-11.1-pc"):
        assert cpu_notes(tree_of(open_fixture(name))) == []


def test_long_mode() -> None:
    """The layout goes by the first CPU. That of Linux guests of 7.2 and 11.1 was QEMU's."""
    tree = tree_of(open_fixture("plain-11.1-q35"))
    short = cpu_notes(tree)
    assert [(n.name, n.type, len(n.desc)) for n in short] == [
        (b"CORE", 1, 144), (b"CORE", 1, 144), (b"QEMU", 0, 440), (b"QEMU", 0, 440),
    ]  # fmt: skip
    assert struct.unpack_from("<II", short[2].desc) == (1, 440)
    (efer,) = tree.find("cpu[0]/env.efer")
    body = bytearray(tree._sections[[d.path for d in tree].index("cpu[0]")].body)
    at = efer.offset - tree[[d.path for d in tree].index("cpu[0]")].offset
    body[at : at + 8] = (1 << 10).to_bytes(8, "big")
    sections = [
        s if d.path != "cpu[0]" else type(s)(s.idstr, 0, s.version_id, s.offset, bytes(body))
        for s, d in zip(tree._sections, tree, strict=True)
    ]
    long = cpu_notes(type(tree)(sections, tree._text))
    assert [len(n.desc) for n in long] == [336, 336, 440, 440]
    # The instruction pointer is the 17th of the registers.
    assert struct.unpack_from("<Q", long[0].desc, 112 + 16 * 8)[0] == 0x7D46
