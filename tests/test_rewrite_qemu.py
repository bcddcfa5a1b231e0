"""Edited streams, loaded by the QEMU that is installed: it holds what was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vmstream as library
from tests.commandline import vmstream
from tests.linux import Linux
from tests.qemu import Guest, Qemu, check_range, has_machine
from vmstream.wire.constants import RAMSaveFlag

pytestmark = pytest.mark.qemu

MIB = 1 << 20
PAGE = 4096
SIZE = 16 * MIB
ARGS = ["-M", "pc-q35-7.2", "-accel", "tcg"]
RNG = ["-device", "virtio-rng-pci,id=rng"]
# Above what the guest of the tests fills.
UNTOUCHED = 12 * MIB


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busy guest with a device that can be left out, sent in several passes with xbzrle."""
    if not has_machine("pc-q35-7.2"):
        pytest.skip("no pc-q35-7.2")
    path = tmp_path_factory.mktemp("rewrite") / "guest.out"
    with Qemu([*ARGS, *RNG], guest=Guest(fill=768, dirty=768), mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(xbzrle=True)
        vm.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
        vm.migrate("exec:cat>guest.out", wait=False)
        vm.wait_passes(3)
        vm.set_parameters(max_bandwidth=1 << 40, downtime_limit=10000)
        vm.wait_migration()
        vm.path("guest.out").rename(path)
    return path


def loaded(path: Path, args: list[str] | None = None, block: str = "mem") -> Qemu:
    """A QEMU that is to load a stream; not started yet."""
    return Qemu(
        [*ARGS, *RNG] if args is None else args,
        guest=Guest(),
        mem=(block, SIZE),
        incoming="exec:cat guest.in",
        files={"guest.in": path},
    )


@pytest.fixture(scope="module")
def truth(captured: Path) -> tuple[bytes, str]:
    """RAM and registers of a QEMU that loaded the stream as it is."""
    with loaded(captured) as vm:
        vm.wait_loaded()
        return vm.backend.read_bytes(), vm.registers()


def last_kinds(path: Path) -> dict[int, RAMSaveFlag]:
    """How each page of the block 'mem' was sent last."""
    found = {}
    with library.open(path) as stream:
        index = [b.idstr for b in stream.blocks].index(b"mem")
        for event in stream:
            for run in event.runs() if isinstance(event, library.PageBatch) else ():
                for i in range(run.pages if run.block == index else 0):
                    found[run.block_offset + i * PAGE] = run.kind
    return found


def rewritten(path: Path, out: Path, *args: str) -> dict[str, object]:
    run = vmstream("rewrite", path, "-o", out, "--json", *args)
    assert run.status == 0, run.err
    report: dict[str, object] = run.json()
    check_untouched(path.read_bytes(), out.read_bytes(), report["changes"])
    return report


def check_untouched(old: bytes, new: bytes, changes: object) -> None:
    """All but what the report names is as it was."""
    assert isinstance(changes, list)
    at = to = 0
    for c in changes:
        assert old[at : c["offset"]] == new[to : c["output_offset"]]
        assert c["output_offset"] - to == c["offset"] - at
        at, to = c["end"], c["output_offset"] + c["length"]
    assert old[at:] == new[to:]


def test_registers_and_pages(captured: Path, truth: tuple[bytes, str], tmp_path: Path) -> None:
    kinds = last_kinds(captured)
    pages = {
        kind: next(at for at, k in kinds.items() if k == kind and at >= MIB)
        for kind in (RAMSaveFlag.ZERO, RAMSaveFlag.PAGE, RAMSaveFlag.XBZRLE)
    }
    ram = bytearray(truth[0])
    args = [
        "--set",
        "cpu[0]/env.eip=0x7c05",
        "--set",
        "cpu[0]/env.regs[3]=0x1122334455667788",
    ]
    content = tmp_path / "content"
    content.write_bytes(bytes(range(250)) * 30)  # of several pages
    ram[UNTOUCHED + 100 : UNTOUCHED + 100 + 7500] = content.read_bytes()
    args += ["--patch-ram", f"{UNTOUCHED + 100:#x}={content}"]
    for number, at in enumerate(pages.values(), 1):
        data = bytes([number]) * 33
        ram[at + 7 : at + 40] = data
        args += ["--patch-ram", f"mem+{at + 7}=hex:{data.hex()}"]
    report = rewritten(captured, tmp_path / "out", *args)
    told = str(report["changes"])
    assert "ZERO record -> PAGE" in told
    assert "XBZRLE record -> PAGE" in told
    with loaded(tmp_path / "out") as vm:
        vm.wait_loaded()
        assert vm.backend.read_bytes() == ram
        (tmp_path / "image").write_bytes(ram)
        check_range(vm, tmp_path / "image", MIB, SIZE - MIB)
        registers = vm.registers()
    # EBX and EIP; all else is as it was.
    assert re.search(r"\b[ER]BX=(11223344)?55667788\b", registers)
    assert re.search(r"\b[ER]IP=0*7c05\b", registers)
    changed = {a for a, b in zip(registers.split(), truth[1].split(), strict=True) if a != b}
    assert {re.split("=", word)[0][-2:] for word in changed} == {"BX", "IP"}


def test_another_machine_type(captured: Path, truth: tuple[bytes, str], tmp_path: Path) -> None:
    """The device differs between the two, so that it goes."""
    if not has_machine("pc-q35-7.1"):
        pytest.skip("no pc-q35-7.1")
    args = ("--set", "configuration.name=pc-q35-7.1", "--drop-section", "**/virtio-rng")
    rewritten(captured, tmp_path / "out", *args)
    with loaded(tmp_path / "out", ["-M", "pc-q35-7.1", *ARGS[2:]]) as vm:
        vm.wait_loaded()
        assert (vm.backend.read_bytes(), vm.registers()) == truth


def test_a_section_is_dropped(captured: Path, truth: tuple[bytes, str], tmp_path: Path) -> None:
    """A destination without the device refuses the stream, and loads what is left of it."""
    with pytest.raises(Exception, match=r"QEMU ended|QMP closed"), loaded(captured, ARGS) as vm:
        vm.wait_loaded()
    rewritten(captured, tmp_path / "out", "--drop-section", "**/virtio-rng")
    with loaded(tmp_path / "out", ARGS) as vm:
        vm.wait_loaded()
        assert (vm.backend.read_bytes(), vm.registers()) == truth
    run = vmstream("inspect", "--json", tmp_path / "out")
    assert run.status == 0, run.err
    names = [s["idstr"] for s in run.json()["sections"]]
    assert not [n for n in names if n.endswith("virtio-rng")]


def test_a_block_is_renamed(captured: Path, truth: tuple[bytes, str], tmp_path: Path) -> None:
    rewritten(captured, tmp_path / "out", "--rename-block", "mem=another-name")
    with loaded(tmp_path / "out", block="another-name") as vm:
        vm.wait_loaded()
        assert (vm.backend.read_bytes(), vm.registers()) == truth


def test_a_vmdescription_goes_and_comes(
    captured: Path, truth: tuple[bytes, str], tmp_path: Path
) -> None:
    rewritten(captured, tmp_path / "without", "--strip-vmdescription")
    with loaded(tmp_path / "without") as vm:
        vm.wait_loaded()
        assert (vm.backend.read_bytes(), vm.registers()) == truth
    rewritten(tmp_path / "without", tmp_path / "with", "--add-vmdescription", str(captured))
    assert (tmp_path / "with").read_bytes() == captured.read_bytes()


@pytest.mark.linux
def test_a_linux_lives_on(tmp_path: Path) -> None:
    """Converted as it was; then its shell says something else, as the text is changed in RAM."""
    args = ["-M", "q35", "-accel", "tcg", "-m", "256M", *Linux().args(tmp_path)]
    with Qemu(args) as vm:
        vm.wait_serial(b"ALIVE 2")
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        vm.path("guest.out").rename(tmp_path / "in")
        count = vm.path("guest.log").read_bytes().count(b"ALIVE")
        place = vm.gpa2hva(MIB)
        assert place is not None
        (tmp_path / "ram").write_bytes(vm.process_memory(place[1] - MIB, 256 * MIB))
        registers = vm.registers()
    run = vmstream("convert", tmp_path / "in", tmp_path / "plain")
    assert run.status == 0, run.err
    with Qemu(args, incoming="exec:cat guest.in", files={"guest.in": tmp_path / "plain"}) as vm:
        vm.wait_loaded()
        check_range(vm, tmp_path / "ram", MIB, 255 * MIB)
        assert vm.registers() == registers
        vm.cont()
        vm.wait_serial(f"ALIVE {count + 2}".encode())

    found = vmstream("search", "--json", tmp_path / "in", "ALIVE")
    patches = [f"--patch-ram={hit['gpa']:#x}=hex:{b'STILL'.hex()}" for hit in found.lines()]
    assert patches
    rewritten(tmp_path / "in", tmp_path / "out", *patches, "--drop-section", "globalstate")
    with Qemu(args, incoming="exec:cat guest.in", files={"guest.in": tmp_path / "out"}) as vm:
        vm.wait_loaded()
        vm.cont()
        vm.wait_serial(f"STILL {count + 2}".encode())
        assert b"ALIVE" not in vm.path("guest.log").read_bytes()
