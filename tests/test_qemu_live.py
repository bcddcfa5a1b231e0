"""Against the QEMU that is installed: what it holds is what we write, and it can pipe into us."""

from __future__ import annotations

import json
import random
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmstream as library
from tests.commandline import ROOT, vmstream
from tests.ops.test_extract import Replay
from tests.qemu import FINISHED, Guest, Qemu, check_range, has_machine
from tests.truth import block_sums

pytestmark = pytest.mark.qemu

MIB, GIB = 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB
PAGE = 4096
PATTERN = bytes(range(1, 252)) * 33


@pytest.fixture(scope="module")
def stopped() -> Iterator[Qemu]:
    """A q35 guest with two CPUs and a file behind its RAM, stopped while it changes pages."""
    args = ["-M", "q35", "-accel", "tcg", "-smp", "2"]
    with Qemu(args, guest=Guest(fill=512, dirty=200), mem=("mem", 16 * MIB)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        yield vm


@pytest.fixture(scope="module")
def captured(stopped: Qemu) -> Path:
    stopped.migrate("exec:cat>guest.out")
    return stopped.path("guest.out")


def inspected(path: Path) -> dict[str, Any]:
    run = vmstream("inspect", "--json", path)
    assert run.status == 0, run.err
    found: dict[str, Any] = run.json()
    return found


# -- a stopped guest ------------------------------------------------------------------------------


def test_blocks(stopped: Qemu, captured: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", captured, "--all-blocks", tmp_path)
    assert (run.status, run.err) == (0, "")
    assert (tmp_path / "mem.raw").read_bytes() == stopped.backend.read_bytes()
    sizes = {b.idstr: b.used for b in stopped.ram_blocks()}
    account = json.loads((tmp_path / "manifest.json").read_text())
    for block in account["blocks"]:
        assert block["size"] == sizes[block["idstr"]] == (tmp_path / block["file"]).stat().st_size
    # The firmware, by another way: from the memory of the process.
    bios = next(b for b in account["blocks"] if b["idstr"] == "pc.bios")
    place = stopped.gpa2hva(FOUR_GIB - bios["size"])
    assert place is not None
    assert place[0] == "pc.bios"
    there = stopped.process_memory(place[1], bios["size"])
    assert (tmp_path / bios["file"]).read_bytes() == there


def test_image(stopped: Qemu, captured: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", captured, "-o", tmp_path / "image")
    assert (run.status, run.err) == (0, "")
    assert (tmp_path / "image").stat().st_size == 16 * MIB
    check_range(stopped, tmp_path / "image", 0, 640 << 10)
    check_range(stopped, tmp_path / "image", MIB, 15 * MIB)


def test_memory(stopped: Qemu, captured: Path) -> None:
    """Read in place at any address, as the CPU sees it there."""
    rng = random.Random(11)
    with library.open(captured) as stream, stream.memory() as memory:
        assert memory.exit_code == 0
        for gpa, size in ((0, 640 << 10), (MIB, 15 * MIB)):
            seen = b"".join(stopped.pmemsave(gpa, size))
            assert memory.read(gpa, size) == seen
            for _ in range(200):
                at = rng.randrange(size)
                length = rng.randrange(min(3 * PAGE, size - at) + 1)
                assert memory.read(gpa + at, length) == seen[at : at + length]
    raw = vmstream("hexdump", captured, "--phys", "0x7c00", "-n", "512")
    (boot,) = stopped.pmemsave(0x7C00, 512)
    assert bytes.fromhex("".join(line[14:62] for line in raw.out.splitlines())) == boot
    run = vmstream("search", captured, "--hex", boot[:64].hex(), "--json")
    assert run.status == 0
    assert 0x7C00 in [hit["gpa"] for hit in run.lines()]


def test_the_report(stopped: Qemu, captured: Path) -> None:
    found = inspected(captured)
    assert found["complete"]
    assert found["machine"].startswith("pc-q35-")
    assert found["size"] == found["end_offset"] == captured.stat().st_size
    migrated = {b["idstr"]: b["used_length"] for b in found["ram_blocks"]}
    known = {b.idstr: b.used for b in stopped.ram_blocks()}
    assert migrated.items() <= known.items()
    assert {"mem", "pc.bios"} <= migrated.keys()
    cpus = [s["instance_id"] for s in found["sections"] if s["idstr"] == "cpu"]
    assert cpus == [0, 1]
    assert all(b["pages_missing"] == 0 for b in found["ram_blocks"])
    # QEMU counts the records itself.
    status = stopped.query_migrate()["ram"]
    counts = [b["pages"] for b in found["ram_blocks"]]
    assert sum(c["normal"] for c in counts) == status["normal"]
    assert sum(c["zero"] for c in counts) == status["duplicate"]


def test_quick(captured: Path) -> None:
    quick = vmstream("inspect", "--quick", "--json", captured).json()
    full = inspected(captured)
    assert quick["complete"]
    for key in ("machine", "end_offset", "footers", "vmdescription", "ram_total"):
        assert quick[key] == full[key]
    assert [s for s in quick["sections"] if s["section_type"] == "FULL"] == [
        s for s in full["sections"] if s["section_type"] == "FULL"
    ]


# -- straight from QEMU ---------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[Qemu]:
    """Another such guest: a guest that has migrated must run before it can again."""
    with Qemu(
        ["-M", "q35", "-accel", "tcg"], guest=Guest(fill=400, seed=9), mem=("mem", 16 * MIB)
    ) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        yield vm


def pipe_into(vm: Qemu, *args: str, tee: str = "") -> str:
    """Migrate into `vmstream ARGS`, as the documentation shows; what it printed."""
    command = shlex.join([sys.executable, "-m", "vmstream", *args])
    line = f"PYTHONPATH={shlex.quote(str(ROOT))} {command} >guest.text 2>guest.tool"
    line = f"{line}; echo $? >guest.status"
    vm.migrate(f"exec:tee {tee} | ({line})" if tee else f"exec:{line}")
    status = vm.path("guest.status")
    vm._wait(lambda: status.exists() and status.read_text() != "", 60, "end of the command")
    assert vm.path("guest.tool").read_text() == ""
    assert status.read_text() == "0\n"
    status.unlink()
    return vm.path("guest.text").read_text()


def test_inspect_while_migrating(fresh: Qemu) -> None:
    """The report is that of the very same bytes in a file."""
    piped = json.loads(pipe_into(fresh, "inspect", "--json", "-", tee="guest.out"))
    file = inspected(fresh.path("guest.out"))
    assert piped.pop("input") == "standard input"
    assert file.pop("input") == str(fresh.path("guest.out"))
    assert piped == file
    assert piped["complete"]


def test_two_migrations_of_one_guest(fresh: Qemu) -> None:
    """The clocks go on, and RAM is cut in parts by them; the rest is the same."""
    piped = json.loads(pipe_into(fresh, "inspect", "--json", "-"))
    fresh.cont()
    fresh.stop()
    fresh.migrate("exec:cat>guest.again")
    file = inspected(fresh.path("guest.again"))
    for key in ("machine", "page_size", "page_size_source", "features", "capabilities", "footers",
                "ram_version", "ram_total", "complete", "command_count", "anomalies"):  # fmt: skip
        assert piped[key] == file[key], key
    for key in ("idstr", "used_length", "pages_missing", "pages_resent"):
        assert [b[key] for b in piped["ram_blocks"]] == [b[key] for b in file["ram_blocks"]], key
    for key in ("section_id", "idstr", "instance_id", "version_id"):
        assert [s[key] for s in piped["sections"]] == [s[key] for s in file["sections"]], key


def test_extract_while_migrating(fresh: Qemu, tmp_path: Path) -> None:
    image = tmp_path / "image"
    text = pipe_into(fresh, "extract-ram", "-", "-o", str(image))
    assert f"{image}: guest-physical image, 16 MiB" in text
    assert image.read_bytes() == fresh.backend.read_bytes()


# -- cut off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5000, 654_321, 2_000_000])
def test_a_reader_that_goes_away(size: int, tmp_path: Path) -> None:
    args = ["-M", "q35", "-accel", "tcg"]
    with Qemu(args, guest=Guest(fill=768, seed=size), mem=("mem", 16 * MIB)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        vm.migrate(f"exec:head -c {size} >guest.out", wait=False)
        vm._wait(lambda: vm.query_migrate().get("status") in FINISHED, 60, "end of migration")
        stream = tmp_path / "cut"
        stream.write_bytes(vm.path("guest.out").read_bytes())
        memory = vm.backend.read_bytes()
    assert stream.stat().st_size == size
    run = vmstream("inspect", stream)
    assert run.status == 3
    assert "not complete" in run.out
    run = vmstream("extract-ram", stream, "-o", tmp_path / "x")
    assert run.status == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut"]
    run = vmstream("extract-ram", stream, "-o", tmp_path / "x", "--partial")
    assert run.status == 3
    if size < 200:  # not even the list of blocks
        assert sorted(p.name for p in tmp_path.iterdir()) == ["cut"]
        return
    image = (tmp_path / "x").read_bytes()
    assert len(image) == len(memory)
    sent = Replay.of(stream.read_bytes()).pages["mem"]
    assert sent or size < 5000
    assert f"block mem lacks {4096 - len(sent):,} pages" in run.err
    for at in range(0, len(image), PAGE):
        page = image[at : at + PAGE]
        assert page == (memory[at : at + PAGE] if at in sent else bytes(PAGE)), hex(at)


# -- where RAM is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "size", "below"),
    [
        ("pc", 5 * GIB, 3 * GIB),
        ("q35", 5 * GIB, 2 * GIB),
        ("pc,max-ram-below-4g=1G", 2 * GIB, 1 * GIB),
        ("q35,max-ram-below-4g=3G", 4 * GIB, 2 * GIB),
        ("pc-i440fx-1.7", 4 * GIB, 3584 * MIB),
        ("microvm", 4 * GIB, 3 * GIB),
    ],
)
def test_a_guest_over_4_gib(machine: str, size: int, below: int, tmp_path: Path) -> None:
    """Nearly all zero; patterns on both sides of the hole and at the ends, put there by QEMU."""
    if "pc-i440fx-1.7" in machine and not has_machine(machine):
        pytest.skip(f"this QEMU has no {machine}")
    end = FOUR_GIB + size - below
    marks = [32 * MIB, below - 3 * MIB, FOUR_GIB, FOUR_GIB + MIB, end - 3 * MIB]
    args = ["-M", machine, "-accel", "tcg", "-m", f"{size // MIB}M"]
    for mark in marks:
        args += ["-device", f"loader,file=pattern.bin,addr={mark:#x},force-raw=on"]
    guest = None if machine == "microvm" else Guest(fill=64, dirty=8)
    image, piped = tmp_path / "image", tmp_path / "piped"
    with Qemu(args, guest=guest, files={"pattern.bin": PATTERN}) as vm:
        if guest is not None:
            vm.wait_serial(b"FILLED")
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        run = vmstream("extract-ram", vm.path("guest.out"), "-o", image, "--json")
        assert run.status == 0, run.err
        layout = run.json()["layout"]
        assert layout["below_4g"] == below
        assert layout["decided_by"] == "cmos"
        assert image.stat().st_size == end
        for mark in marks:
            begin = mark - mark % (2 * MIB)
            check_range(vm, image, begin, min(4 * MIB, end - begin))
        check_range(vm, image, 2 * MIB, 30 * MIB)
        check_range(vm, image, below - 16 * MIB, 16 * MIB)
        stream = vm.path("guest.out").read_bytes()
    run = vmstream("extract-ram", "-", "-o", piped, "--json", stdin=stream)
    assert run.status == 0, run.err
    assert run.json()["layout"] == layout
    assert block_sums(piped, whole=False) == block_sums(image, whole=False)
    with image.open("rb") as file:
        for mark in marks:
            file.seek(mark)
            assert file.read(len(PATTERN)) == PATTERN


# -- pages in other encodings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "kinds"),
    [
        (["xbzrle"], {"xbzrle"}),
        (["compress"], {"compressed"}),
        (["compress", "xbzrle"], {"compressed", "xbzrle"}),
    ],
)
def test_encoded_pages(capabilities: list[str], kinds: set[str], tmp_path: Path) -> None:
    """A running guest: the truth is what the same QEMU holds when it has loaded the stream."""
    args = ["-M", "pc", "-accel", "tcg"]
    guest, mem = Guest(fill=512, dirty=300), ("mem", 16 * MIB)
    image = tmp_path / "mem.raw"
    with Qemu(args, guest=guest, mem=mem) as vm:
        if "compress" in capabilities and int(vm.version().split(".")[0]) >= 9:
            pytest.skip("this QEMU has no 'compress'")
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(**dict.fromkeys(capabilities, True))
        vm.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
        vm.migrate("exec:cat>guest.out", wait=False)
        vm.wait_passes(3)
        vm.set_parameters(max_bandwidth=GIB, downtime_limit=10000)
        vm.wait_migration()
        stream = vm.path("guest.out").read_bytes()
    # The decompression threads of a destination are started by the capability alone.
    args += ["-global", "migration.x-compress=on"] if "compress" in capabilities else []
    (tmp_path / "stream").write_bytes(stream)
    with Qemu(
        args, guest=guest, mem=mem, incoming="exec:cat guest.in", files={"guest.in": stream}
    ) as loaded:
        loaded.wait_loaded()
        truth = block_sums(loaded.backend)
    run = vmstream("extract-ram", tmp_path / "stream", "--block", "mem", "-o", image, "--json")
    assert run.status == 0, run.err
    assert block_sums(image) == truth
    (block,) = [b for b in run.json()["ram_blocks"] if b["idstr"] == "mem"]
    assert {k for k in ("xbzrle", "compressed") if block["pages"][k]} == kinds
    run = vmstream("extract-ram", "-", "--block", "mem", "-o", tmp_path / "piped", stdin=stream)
    assert run.status == 0, run.err
    assert block_sums(tmp_path / "piped") == truth


def test_shared_memory_from_its_file(tmp_path: Path) -> None:
    """x-ignore-shared: the file of the backend and the stream make the image that the CPU sees."""
    args = ["-M", "pc", "-accel", "tcg"]
    with Qemu(args, guest=Guest(fill=256, dirty=50), mem=("mem", 16 * MIB)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        vm.set_capabilities(x_ignore_shared=True)
        vm.migrate("exec:cat>guest.out")
        image = tmp_path / "image"
        run = vmstream(
            "extract-ram", vm.path("guest.out"), "-o", image,
            "--shared-block", f"mem={vm.backend}",
        )  # fmt: skip
        assert run.status == 0, run.err
        check_range(vm, image, MIB, 15 * MIB)
        run = vmstream(
            "hexdump", vm.path("guest.out"), "--phys", "0x7de0", "-n", "32",
            "--shared-block", f"mem={vm.backend}",
        )  # fmt: skip
        assert run.status == 0, run.err
        shown = bytes.fromhex("".join(line[14:62] for line in run.out.splitlines()))
        assert shown == image.read_bytes()[0x7DE0:0x7E00] != bytes(32)
