"""`vmcoreinfo`, `banner`, the note of an ELF core and drgn, of a Linux guest that QEMU saved."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import drgn
import pytest
from elftools.elf.elffile import ELFFile

import vmstream as library
from tests.commandline import vmstream
from tests.linux import Linux
from tests.qemu import Qemu
from tests.truth import fixture_file
from vmstream.errors import OutputError
from vmstream.integrations.drgn import program
from vmstream.ops.kernel import all_stretches, vmcoreinfo

PAGE, MIB = 4096, 1 << 20


@dataclass
class Captured:
    """A stream, QEMU's dump of the same stopped guest, and what the guest printed."""

    stream: Path
    dump: Path
    banner: str
    device: bool
    truth: dict[int, bytes]  # pages, by guest-physical address


@pytest.fixture(scope="module", params=[True, False], ids=["device", "scan"])
def captured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Captured]:
    directory = tmp_path_factory.mktemp("kernel")
    guest = Linux(modules=["qemu_fw_cfg"], script="cat /proc/version")
    device = ["-device", "vmcoreinfo"] if request.param else []
    args = ["-M", "q35", "-accel", "tcg", "-m", "256M", *device, *guest.args(directory)]
    with Qemu(args) as vm:
        vm.wait_serial(b"ALIVE 1")
        vm.stop()
        vm.qmp("dump-guest-memory", paging=False, protocol="file:guest.elf")
        vm.migrate("exec:cat>guest.out")
        said = re.search(r"(?m)^Linux version .*?(?=\r?$)", vm.path("guest.log").read_text())
        assert said is not None
        gpas = [random.Random(i).randrange(256 * MIB // PAGE) * PAGE for i in range(30)]
        # Below 1 MiB a PC shows ROM where we have the RAM under it.
        truth = {a: b"".join(vm.pmemsave(a, PAGE)) for a in gpas if a >= MIB}
        assert any(any(page) for page in truth.values())
        stream, dump = vm.path("guest.out"), vm.path("guest.elf")
        yield Captured(stream, dump, said[0], request.param, truth)


def notes(path: Path) -> bytes:
    with path.open("rb") as file:
        segments = ELFFile(file).iter_segments("PT_NOTE")
        found: bytes = next(iter(segments)).data()
    return found


@pytest.mark.qemu
@pytest.mark.linux
def test_the_note_and_the_banner(captured: Captured, tmp_path: Path) -> None:
    release = captured.banner.split()[2]
    done = vmstream("vmcoreinfo", captured.stream)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"OSRELEASE={release}\n")
    told = vmstream("vmcoreinfo", captured.stream, "--json").json()
    note = told["note"]
    assert note["source"] == ("device" if captured.device else "inferred")
    assert (note["confirmed"], note["has_head"], told["others"]) == (True, True, [])
    assert note["fields"]["OSRELEASE"] == release
    if captured.device:
        assert done.out.encode() in notes(captured.dump)
        piped = vmstream("vmcoreinfo", "-", "--spool", tmp_path, stdin=captured.stream.read_bytes())
        assert piped.out == done.out
    assert vmstream("banner", captured.stream).out == captured.banner + "\n"
    told = vmstream("banner", captured.stream, "--json").json()
    assert (told["osrelease"], told["source"]) == (release, "inferred")
    with library.open(captured.stream) as stream, stream.memory() as memory:
        first = told["candidates"][0]
        assert memory.read(first["gpa"], len(first["text"])).decode() == captured.banner


@pytest.mark.qemu
@pytest.mark.linux
def test_drgn_opens_dumps_and_the_stream(captured: Captured, tmp_path: Path) -> None:
    core, dumps = tmp_path / "core", []
    for name, form, *more in (
        ("core", "elf"),
        ("zlib", "kdump"),
        *([("zstd", "kdump", "--compress", "zstd")] if captured.device else []),
    ):
        path = tmp_path / name
        done = vmstream("extract-ram", captured.stream, "-o", path, "--format", form, *more)
        assert done.status == 0, done.err
        dumps.append(drgn.Program())
        dumps[-1].set_core_dump(path)
    if captured.device:
        assert notes(core) == notes(captured.dump)
    else:
        assert notes(core).startswith(notes(captured.dump))
        assert b"VMCOREINFO\0\0OSRELEASE=" in notes(core)
    with library.open(captured.stream) as stream, stream.memory() as memory:
        ours = program(stream, memory)
        found = vmcoreinfo(memory, stream_devices(captured.stream)).best
        assert found is not None
        assert found.gpa is not None
        for prog in (*dumps, ours):
            assert prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
            assert prog["VMCOREINFO"].to_bytes_().rstrip(b"\0") == found.note.desc
            for gpa, page in captured.truth.items():
                assert prog.read(gpa, PAGE, physical=True) == page, hex(gpa)
            release = captured.banner.split()[2]
            assert prog["UTS_RELEASE"].string_().decode() == release
            assert prog.read(found.gpa + 24, 10, physical=True) == b"OSRELEASE="
            # By the kernel's page tables, at an address that KASLR moved.
            uts = int(found.fields["SYMBOL(init_uts_ns)"], 16)
            assert release.encode() in prog.read(uts, 400)
        for prog in (dumps[0], ours):
            # By the core's segments, whose virtual addresses are physical ones, as on s390x.
            assert prog.read(found.gpa + 24, 10) == b"OSRELEASE="


def stream_devices(path: Path) -> object:
    with library.open(path) as stream:
        return stream.devices()


def test_a_guest_without_a_kernel(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    done = vmstream("vmcoreinfo", path)
    assert (done.status, done.out) == (1, "")
    assert "the machine has no vmcoreinfo device; no VMCOREINFO in memory" in done.err
    assert vmstream("vmcoreinfo", path, "--json").json()["note"] is None
    done = vmstream("banner", path)
    assert (done.status, done.out) == (1, "")
    assert vmstream("banner", path, "--json").json()["candidates"] == []
    with library.open(path) as stream:
        memory = stream.memory()
        assert sum(s.length for s in all_stretches(memory)) >= memory.map.regions[0].length
        with pytest.raises(OutputError, match="no Linux kernel that drgn could open"):
            program(stream, memory)
