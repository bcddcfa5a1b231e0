"""Streams made of edited files, loaded by the QEMU that is installed: it holds what was edited."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.qemu import Guest, Qemu, check_range, has_machine

pytestmark = pytest.mark.qemu

MIB = 1 << 20
SIZE = 16 * MIB
ARGS = ["-M", "pc-q35-7.2", "-accel", "tcg"]
# Above what the guest of the tests fills.
UNTOUCHED = 12 * MIB


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busy guest, sent in several passes with xbzrle."""
    if not has_machine("pc-q35-7.2"):
        pytest.skip("no pc-q35-7.2")
    path = tmp_path_factory.mktemp("unpack") / "guest.out"
    with Qemu(ARGS, guest=Guest(fill=768, dirty=768), mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(xbzrle=True)
        vm.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
        vm.migrate("exec:cat>guest.out", wait=False)
        vm.wait_passes(3)
        vm.set_parameters(max_bandwidth=1 << 40, downtime_limit=10000)
        vm.wait_migration()
        vm.path("guest.out").rename(path)
    return path


def loaded(path: Path, args: list[str] | None = None) -> Qemu:
    """A QEMU that is to load a stream; not started yet."""
    return Qemu(
        ARGS if args is None else args,
        guest=Guest(),
        mem=("mem", SIZE),
        incoming="exec:cat guest.in",
        files={"guest.in": path},
    )


@pytest.fixture(scope="module")
def truth(captured: Path) -> tuple[bytes, str]:
    """RAM and registers of a QEMU that loaded the stream as it is."""
    with loaded(captured) as vm:
        vm.wait_loaded()
        return vm.backend.read_bytes(), vm.registers()


@pytest.fixture
def directory(captured: Path, tmp_path: Path) -> Path:
    run = vmstream("unpack", captured, tmp_path / "dir")
    assert (run.status, run.err) == (0, "")
    return tmp_path / "dir"


def built(directory: Path) -> Path:
    out = directory.parent / "out"
    run = vmstream("build", "--from-dir", directory, "-o", out)
    assert (run.status, run.err) == (0, "")
    return out


def test_unedited(directory: Path, captured: Path, truth: tuple[bytes, str]) -> None:
    """The smallest stream of that state, and the guest lives on: it goes on writing to RAM."""
    out = built(directory)
    assert out.stat().st_size < captured.stat().st_size * 2 / 3
    with loaded(out) as vm:
        vm.wait_loaded()
        assert (vm.backend.read_bytes(), vm.registers()) == truth
        before = vm.backend.read_bytes()
        vm.cont()
        vm._wait(lambda: vm.backend.read_bytes() != before, 60, "the guest writes to RAM")


def test_a_register_and_a_byte(directory: Path, truth: tuple[bytes, str]) -> None:
    """Edited as text, and with a write into the file of a block."""
    [cpu] = (directory / "devices").glob("*-cpu.json")
    text = re.sub(r'("name": "env.eip", .*"value": )[^}]+}', r"\g<1>31749}", cpu.read_text())
    text = re.sub(
        r'("name": "env.regs", .*"values": \[)((?:[^,]+, ){3})[^,]+',
        r'\g<1>\g<2>"0x1122334455667788"',
        text,
    )
    assert text != cpu.read_text()
    cpu.write_text(text)
    ram = bytearray(truth[0])
    with (directory / "blocks" / "mem.raw").open("r+b") as file:
        for at, data in ((UNTOUCHED + 5, b"words"), (2 * MIB, b"\xa5" * 5000)):
            file.seek(at)
            file.write(data)
            ram[at : at + len(data)] = data
    with loaded(built(directory)) as vm:
        vm.wait_loaded()
        assert vm.backend.read_bytes() == ram
        (directory / "image").write_bytes(ram)
        check_range(vm, directory / "image", MIB, SIZE - MIB)
        registers = vm.registers()
    assert re.search(r"\b[ER]BX=(11223344)?55667788\b", registers)
    assert re.search(r"\b[ER]IP=0*7c05\b", registers)
    changed = {a for a, b in zip(registers.split(), truth[1].split(), strict=True) if a != b}
    assert {re.split("=", word)[0][-2:] for word in changed} == {"BX", "IP"}


def test_another_machine_without_a_device(directory: Path, truth: tuple[bytes, str]) -> None:
    """As the manifest says: a name, and a device less, which QEMU 7.2 does not miss."""
    if not has_machine("pc-q35-7.1"):
        pytest.skip("no pc-q35-7.1")
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["configuration"]["name"] = "pc-q35-7.1"
    kept = [s for s in manifest["sections"] if s["idstr"] != "pcspk"]
    assert len(kept) == len(manifest["sections"]) - 1
    manifest["sections"] = kept
    path.write_text(json.dumps(manifest))
    out = built(directory)
    devices = vmstream("inspect", "--json", out).json()
    assert devices["machine"] == "pc-q35-7.1"
    assert devices["vmdescription"]["devices"] == len([s for s in kept if s["part"] == "device"])
    with loaded(out, ["-M", "pc-q35-7.1", *ARGS[2:]]) as vm:
        vm.wait_loaded()
        assert (vm.backend.read_bytes(), vm.registers()) == truth
