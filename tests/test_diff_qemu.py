"""Two captures of one guest: the pages that it wrote between them, and its registers.

The truth are the two states of the file that is the guest's RAM, and `info registers`.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.qemu import Guest, Qemu
from tests.registers import x86

pytestmark = pytest.mark.qemu

PAGE = 4096
SIZE = 16 << 20


def test_two_captures_of_one_guest(tmp_path: Path) -> None:
    registers = []
    guest = Guest(fill=512, dirty=100)
    with Qemu(["-M", "q35", "-accel", "tcg"], guest=guest, mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        for name in "ab":
            vm.stop()
            shutil.copyfile(vm.backend, tmp_path / f"{name}.ram")
            registers.append(x86(vm.registers()))
            vm.migrate("exec:cat>guest.out")
            shutil.copyfile(vm.path("guest.out"), tmp_path / f"{name}.bin")
            if name == "a":
                before = vm.backend.read_bytes()
                vm.cont()
                vm._wait(lambda b=before: vm.backend.read_bytes() != b, 30, "the guest to write")
                time.sleep(0.2)
        vm.qmp("dump-guest-memory", paging=False, protocol="file:guest.elf")
        shutil.copyfile(vm.path("guest.elf"), tmp_path / "b.elf")
    a, b = (tmp_path / f"{n}.bin" for n in "ab")
    rams = [(tmp_path / f"{n}.ram").read_bytes() for n in "ab"]
    pages = [
        p for p in range(SIZE // PAGE) if len({r[p * PAGE : (p + 1) * PAGE] for r in rams}) == 2
    ]
    assert pages

    run = vmstream("diff", a, b, "--json")
    assert run.status == 1
    found = run.json()
    mem = [b["idstr"] for b in found["ram"]["blocks"]].index("mem")
    runs = [r for r in found["ram"]["runs"] if r["block"] == mem]
    assert [r["gpa"] // PAGE + i for r in runs for i in range(r["pages"])] == pages
    assert sum(r["bytes"] for r in runs) == sum(x != y for x, y in zip(*rams, strict=True))

    told = {r["name"]: (r["a"], r["b"]) for r in found["registers"]}
    names = [n for n in registers[0] if n in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rip")]
    assert names
    changed = {
        n: tuple(r[n] for r in registers) for n in names if registers[0][n] != registers[1][n]
    }
    assert {n: told[n] for n in told if n in names} == changed

    for image in ("a.ram", "b.ram"):
        run = vmstream("diff", a, tmp_path / image, "--json")
        assert run.status == (0 if image == "a.ram" else 1)
        assert run.json()["ram"]["pages"] == (0 if image == "a.ram" else len(pages))
    # QEMU's own core has ROM as well, and memory that PAM hides from the CPU; RAM above is equal.
    found = vmstream("diff", b, tmp_path / "b.elf", "--json").json()
    assert found["b"]["kind"] == "elf"
    assert all(r["gpa"] < 1 << 20 for r in found["ram"]["runs"])
    assert all(r["side"] == "b" or r["gpa"] < 1 << 20 for r in found["ram"]["only_in"])
