"""Streams made plain, loaded by the QEMU that is installed: it holds what the first one held.

The truth is memory and registers of a QEMU that loaded the capture itself with -S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import vmstream as library
from tests.commandline import vmstream
from tests.mappedreader import MappedFile
from tests.migrations import BUSY, MACHINE, MIB, SIZE, memory_of, multifd, postcopy
from tests.qemu import Qemu

pytestmark = pytest.mark.qemu


@dataclass(frozen=True)
class Source:
    """A capture, and what a QEMU with this block of RAM holds that loaded it."""

    path: Path
    channels: list[Path]
    block: str
    ram: bytes
    registers: str

    def qemu(self, path: Path, incoming: str = "exec:cat guest.in") -> Qemu:
        """A destination with the same command line."""
        args = MACHINE if self.block == "mem" else [*MACHINE, "-m", f"{SIZE // MIB}M"]
        mem = ("mem", SIZE) if self.block == "mem" else None
        files: dict[str, bytes | Path] = {"guest.in": path}
        return Qemu(args, guest=BUSY, mem=mem, incoming=incoming, files=files)

    def check(self, vm: Qemu, changes: dict[int, bytes] | None = None) -> None:
        """It holds the memory and registers, and the guest goes on with its work."""
        vm.wait_loaded()
        ram = bytearray(self.ram)
        for at, data in (changes or {}).items():
            ram[at : at + len(data)] = data
        assert memory_of(vm) == ram
        if changes is None:
            assert vm.registers() == self.registers
        vm.cont()
        vm._wait(lambda: memory_of(vm) != ram, 30, "the guest to write")


def busy(directory: Path, **capabilities: bool) -> Source:
    """A guest that writes, sent in several passes."""
    with Qemu(MACHINE, guest=BUSY, mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(**capabilities)
        vm.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
        vm.migrate("exec:cat>guest.out", wait=False)
        vm.wait_passes(3)
        vm.set_parameters(max_bandwidth=1 << 40, downtime_limit=10000)
        vm.wait_migration()
        vm.path("guest.out").rename(directory / "main")
    with Qemu(
        MACHINE,
        guest=BUSY,
        mem=("mem", SIZE),
        incoming="defer",
        files={"guest.in": directory / "main"},
    ) as vm:
        vm.set_capabilities(**capabilities)
        vm.qmp("migrate-incoming", uri="exec:cat guest.in")
        vm.wait_loaded()
        return Source(directory / "main", [], "mem", memory_of(vm), vm.registers())


def recorded_multifd(directory: Path) -> Source:
    found = multifd(directory, "zstd", 2, live=True)
    return Source(found.main, found.others, "mem", found.truth["mem"], found.registers)


def recorded_postcopy(directory: Path) -> Source:
    found = postcopy(directory, preempt=True, live=True)
    return Source(found.main, found.others, "pc.ram", found.truth["pc.ram"], found.registers)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "xbzrle": lambda d: busy(d, xbzrle=True),
    "zlib": lambda d: busy(d, compress=True),
    "multifd": recorded_multifd,
    "postcopy": recorded_postcopy,
}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Take a capture, once."""

    @cache
    def made(name: str) -> Source:
        return SOURCES[name](tmp_path_factory.mktemp(name))

    return made


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, capture: Callable[[str], Source]) -> Source:
    return capture(request.param)


def converted(source: Source, out: Path, *args: str | Path) -> None:
    channels = [word for c in source.channels for word in ("--channel", str(c))]
    run = vmstream("convert", source.path, out, *channels, *args)
    assert run.status == 0, run.err


def test_plain(source: Source, tmp_path: Path) -> None:
    """From a file, and compressed; the destination needs no capability."""
    converted(source, tmp_path / "out.zst")
    run = vmstream("inspect", "--json", tmp_path / "out.zst")
    assert run.status == 0, run.err
    assert not {"xbzrle", "compress", "multifd", "postcopy"} & set(run.json()["features"])
    assert run.json()["pass_count"] == 1
    with source.qemu(tmp_path / "out.zst", "exec:zstd -dc guest.in") as vm:
        source.check(vm)


def test_mapped_ram(source: Source, tmp_path: Path) -> None:
    """Read back by a reader of the tests' own, whole and by the rules of the format."""
    converted(source, tmp_path / "out", "--to", "mapped-ram")
    block = MappedFile(tmp_path / "out")[source.block]
    assert block.content() == source.ram
    assert not block.stale()
    # And what we make of that is a stream of old again.
    run = vmstream("convert", tmp_path / "out", tmp_path / "plain")
    assert run.status == 0, run.err
    with source.qemu(tmp_path / "plain") as vm:
        source.check(vm)


def test_save_image(capture: Callable[[str], Source], tmp_path: Path) -> None:
    source = capture("xbzrle")
    (tmp_path / "xml").write_text("<domain type='qemu'>\n  <name>guest</name>\n</domain>\n")
    converted(source, tmp_path / "out", "--to", "libvirt:raw", "--xml", tmp_path / "xml")
    run = vmstream("inspect", "--json", tmp_path / "out")
    offset = run.json()["layers"][0]["libvirt"]["stream_offset"]
    with source.qemu(tmp_path / "out", f"exec:tail -c +{offset + 1} guest.in") as vm:
        source.check(vm)


def test_edits_and_squash(capture: Callable[[str], Source], tmp_path: Path) -> None:
    """A page that was changed, and a register, in a stream where each page is once."""
    source = capture("xbzrle")
    at = 12 * MIB + 100
    args = ("--patch-ram", f"{at:#x}=hex:{b'patched'.hex()}", "--set", "cpu[0]/env.regs[3]=0x1234")
    run = vmstream("rewrite", source.path, "-o", tmp_path / "out", "--squash", *args)
    assert run.status == 0, run.err
    assert (tmp_path / "out").stat().st_size < source.path.stat().st_size
    with source.qemu(tmp_path / "out") as vm:
        vm.wait_loaded()
        assert "BX=00001234" in vm.registers() or "BX=0000000000001234" in vm.registers()
        source.check(vm, {at: b"patched"})


def test_a_vmdescription_for_postcopy(capture: Callable[[str], Source], tmp_path: Path) -> None:
    """That of another stream of the machine, which describes the sections of this one."""
    source = capture("postcopy")
    args = [*MACHINE, "-m", f"{SIZE // MIB}M"]
    with Qemu(args, guest=BUSY) as vm:
        vm.wait_serial(b"FILLED")
        vm.migrate("exec:cat>guest.out")
        vm.path("guest.out").rename(tmp_path / "other")
    converted(source, tmp_path / "out", "--schema", tmp_path / "other")
    with library.open(tmp_path / "out") as stream:
        assert [n.value for n in stream.devices().find("cpu[0]/env.eip")]  # by name
    with source.qemu(tmp_path / "out") as vm:
        source.check(vm)
