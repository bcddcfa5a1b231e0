"""Machines of every kind that the installed QEMU has: what it holds is what we write."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.channels import MainChannel
from tests.commandline import vmstream
from tests.migrations import firmware_of, memory_of
from tests.qemu import Guest, Qemu, check_range, has_machine, userfault_refused
from tests.truth import block_sums

pytestmark = pytest.mark.qemu

MIB = 1 << 20
PAGE = 4096
PATTERN = bytes(range(1, 252)) * 33


def run(*args: str | Path, stdin: bytes | None = None) -> Any:
    """The JSON of a command that has nothing to complain about."""
    done = vmstream(*args, "--json", stdin=stdin)
    assert done.status == 0, done.err
    return done.json()


def captured(vm: Qemu) -> Path:
    vm.migrate("exec:cat>guest.out")
    return vm.path("guest.out")


def inspected_both_ways(stream: Path) -> dict[str, Any]:
    """The report, which a pipe does not change."""
    found: dict[str, Any] = run("inspect", stream)
    piped = run("inspect", "-", stdin=stream.read_bytes())
    assert {**piped, "input": ""} == {**found, "input": ""}
    return found


def extracted_both_ways(stream: Path, directory: Path) -> tuple[Path, dict[str, Path]]:
    """The image and the blocks, which a pipe does not change."""
    data = stream.read_bytes()
    one, two = directory / "file", directory / "pipe"
    for where, source, stdin in ((one, str(stream), None), (two, "-", data)):
        where.mkdir()
        run("extract-ram", source, "-o", where / "image", stdin=stdin)
        run("extract-ram", source, "--all-blocks", where / "all", stdin=stdin)
    account = json.loads((one / "all" / "manifest.json").read_text())
    for block in account["blocks"]:
        assert block["pages_missing"] == 0
    files = {b["idstr"]: b["file"] for b in account["blocks"]}
    for name in ("image", *(f"all/{file}" for file in files.values())):
        assert block_sums(one / name, whole=False) == block_sums(two / name, whole=False)
    return one / "image", {idstr: one / "all" / file for idstr, file in files.items()}


# -- old machine types ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "findings"),
    [
        ("pc-i440fx-2.3", []),
        ("pc-i440fx-2.0", ["header-scan", "no-vmdescription"]),
        # Machine types up to 1.7 lack the setting that turns the vmdescription off.
        ("pc-i440fx-1.4", []),
    ],
)
def test_old_machines(machine: str, findings: list[str], tmp_path: Path) -> None:
    """No configuration section and no footers; with or without a vmdescription."""
    if not has_machine(machine):
        pytest.skip(f"this QEMU has no {machine}")
    args = ["-M", machine, "-accel", "tcg"]
    with Qemu(args, guest=Guest(fill=512, dirty=200), mem=("mem", 16 * MIB)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        stream = captured(vm)
        found = inspected_both_ways(stream)
        assert found["complete"]
        assert found["size"] == found["end_offset"] == stream.stat().st_size
        assert found["machine"] is None
        assert found["footers"] is False
        assert found["features"] == ([] if findings else ["vmdescription"])
        assert [a["code"] for a in found["anomalies"]] == findings
        sizes = {b.idstr: b.used for b in vm.ram_blocks()}
        assert {b["idstr"]: b["used_length"] for b in found["ram_blocks"]} == sizes
        status = vm.query_migrate()["ram"]
        counts = [b["pages"] for b in found["ram_blocks"]]
        assert sum(c["normal"] for c in counts) == status["normal"]
        assert sum(c["zero"] for c in counts) == status["duplicate"]

        image, blocks = extracted_both_ways(stream, tmp_path)
        assert {idstr: p.stat().st_size for idstr, p in blocks.items()} == sizes
        # Machine types up to 3.1 give the block of a backend its path as a name.
        memory = vm.backend.read_bytes()
        assert blocks["/objects/mem"].read_bytes() == memory
        assert image.read_bytes() == memory
        check_range(vm, image, 0, 640 << 10)
        check_range(vm, image, MIB, 15 * MIB)
        assert blocks["pc.bios"].read_bytes() == firmware_of(vm)
        run("extract-ram", stream, "--block", "/objects/mem", "-o", tmp_path / "block")
        assert (tmp_path / "block").read_bytes() == memory


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_suppressed_vmdescription(machine: str, tmp_path: Path) -> None:
    """The device sections found by their footers have the sizes that a description states."""
    frames = []
    for options in ("", ",suppress-vmdesc=on"):
        args = ["-M", f"{machine}{options}", "-accel", "tcg", "-S"]
        with Qemu(args, guest=Guest(fill=256), mem=("mem", 16 * MIB)) as vm:
            vm.cont()
            vm.wait_serial(b"FILLED")
            vm.stop()
            stream = captured(vm)
            found = inspected_both_ways(stream)
            assert found["complete"]
            assert found["footers"]
            assert (found["vmdescription"] is None) == bool(options)
            keys = ("idstr", "instance_id", "version_id", "body_size")
            frames.append([tuple(s[k] for k in keys) for s in found["sections"]
                           if s["section_type"] == "FULL"])  # fmt: skip
            told = {s["framing"] for s in found["sections"] if s["section_type"] == "FULL"}
            assert told == ({"footer-scan"} if options else {"vmdescription"})
            if options:
                assert [a["code"] for a in found["anomalies"]] == ["no-vmdescription"]
                image, blocks = extracted_both_ways(stream, tmp_path)
                assert image.read_bytes() == vm.backend.read_bytes()
                assert blocks["mem"].read_bytes() == vm.backend.read_bytes()
                assert blocks["pc.bios"].read_bytes() == firmware_of(vm)
    assert len(frames[0]) > 20
    assert frames[0] == frames[1]


# -- a snapshot of a guest that runs on -----------------------------------------------------------


def test_background_snapshot(tmp_path: Path) -> None:
    """All pages are of one instant, though the guest changes them while they are written."""
    # Only memory that is not shared can be write protected (QEMU v7.2.0 migration/ram.c
    # ram_write_tracking_compatible()), so it is read from the process.
    args = ["-M", "pc", "-accel", "tcg", "-m", "16M"]
    guest = Guest(fill=768, dirty=768, delay=2000)
    with Qemu(args, guest=guest) as vm:
        vm.wait_serial(b"FILLED")
        # Once the last page changes, all of them have the number of a round.
        last = f"xp /1wx {MIB + (guest.dirty - 1) * PAGE + 2048:#x}"
        before = vm.hmp(last)
        vm._wait(lambda: vm.hmp(last) != before, 30, "a round of the guest")
        said = vm.refuses(background_snapshot=True)
        if said is not None:
            why = userfault_refused()
            assert why is not None, said
            assert "Background-snapshot is not supported by host kernel" in said
            pytest.skip(f"the kernel gives no userfaultfd ({why}), so QEMU: {said}")
        data = captured(vm).read_bytes()
        assert vm.qmp("query-status")["status"] == "running"
        vm.stop()
        later = memory_of(vm)
    stream = tmp_path / "stream"
    stream.write_bytes(data)
    with Qemu(
        args, guest=guest, incoming="exec:cat guest.in", files={"guest.in": stream}
    ) as loaded:
        loaded.wait_loaded()
        truth = memory_of(loaded)
        found = inspected_both_ways(stream)
        assert found["complete"]
        assert "background-snapshot" in found["features"]
        assert [a["severity"] for a in found["anomalies"]] == ["info"]
        assert all(b["pages_resent"] == 0 == b["pages_missing"] for b in found["ram_blocks"])
        image, blocks = extracted_both_ways(stream, tmp_path)
        assert image.read_bytes() == truth
        assert blocks["pc.ram"].read_bytes() == truth
        check_range(loaded, image, 0, 640 << 10)
        check_range(loaded, image, MIB, 15 * MIB)
        assert blocks["pc.bios"].read_bytes() == firmware_of(loaded)
    assert truth != later
    # Pages that the guest was about to change came out of turn.
    order = [r.address for r in MainChannel(data).records if r.block == "pc.ram"]
    assert len(order) == len(set(order)) == 16 * MIB // PAGE
    assert order != sorted(order)
    # The guest writes the number of the round into one page after the other (guest/dirty.S): at any
    # instant those up to some page have this round and the others the one before.
    rounds = [
        struct.unpack_from("<I", truth, MIB + page * PAGE + 2048)[0]
        for page in range(guest.dirty)
        if page & guest.wide not in (3, 5)
    ]
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[0] - rounds[-1] in (0, 1)


# -- other architectures --------------------------------------------------------------------------


def words(*values: int, order: str = "<", size: str = "I") -> bytes:
    return struct.pack(f"{order}{len(values)}{size}", *values)


# Both fill [1 MiB, 1.5 MiB) of RAM with counting words, and then stay where they are.
FILLED = (MIB, 3 * MIB // 2)
AARCH64 = words(
    0xD2A80200,  # movz x0, #0x4010, lsl #16
    0xD2A80301,  # movz x1, #0x4018, lsl #16
    0xD2800022,  # movz x2, #1
    0xF8008402,  # 1: str x2, [x0], #8
    0x91000442,  # add x2, x2, #1
    0xEB01001F,  # cmp x0, x1
    0x54FFFFA1,  # b.ne 1b
    0x14000000,  # b .
)
M68K = words(
    0x207C, 0x0010, 0x0000,  # movea.l #0x100000, a0
    0x7001,                  # moveq #1, d0
    0x20C0,                  # 1: move.l d0, (a0)+
    0x5280,                  # addq.l #1, d0
    0xB1FC, 0x0018, 0x0000,  # cmpa.l #0x180000, a0
    0x66F4,                  # bne.s 1b
    0x60FE,                  # bra.s .
    order=">", size="H",
)  # fmt: skip


# It fills the 8 KiB of SRAM, from data address 0x200 on.
AVR = words(
    0xE0A0,  # ldi r26, 0x00
    0xE0B2,  # ldi r27, 0x02
    0xE001,  # ldi r16, 1
    0x930D,  # 1: st X+, r16
    0x0F0B,  # add r16, r27
    0x32B2,  # cpi r27, 0x22
    0xF7E1,  # brne 1b
    0xCFFF,  # rjmp .
    size="H",
)


def filled(vm: Qemu, machine: Machine) -> None:
    """The program has written its last word."""
    # A low word: that of a doubleword is in front, where the machine is little-endian.
    last = machine.base + FILLED[1] - (8 if machine.arch == "aarch64" else 4)
    vm._wait(lambda: "0x00000000" not in vm.hmp(f"xp /1wx {last:#x}"), 30, "the program's end")


def panicked(vm: Qemu, machine: Machine) -> None:
    """The boot loader has found nothing to boot."""
    vm._wait(
        lambda: vm.qmp("query-status")["status"] == "guest-panicked", 30, "the boot loader's end"
    )


def says(text: bytes) -> Callable[[Qemu, Machine], None]:
    return lambda vm, machine: vm.wait_serial(text)


@dataclass(frozen=True)
class Machine:
    """A machine without an operating system.

    patterns: where PATTERN is put, from the start of RAM; firmware often uses the last MiB
    program:  what to load at guest-physical address 0
    ready:    waits until firmware or program have done something
    places:   other blocks that the CPU can see, and where
    """

    arch: str
    machine: str
    ram: str
    base: int
    ready: Callable[[Qemu, Machine], None]
    size: int = 32 * MIB
    args: tuple[str, ...] = ()
    patterns: tuple[int, ...] = (16 * MIB, 24 * MIB)
    program: bytes = b""
    places: dict[str, int] = field(default_factory=dict)


MACHINES = [
    Machine(
        "aarch64", "virt", "mach-virt.ram", 0x40000000, filled,
        args=("-cpu", "cortex-a57", "-smp", "2"), program=AARCH64,
        places={"virt.flash0": 0, "virt.flash1": 64 * MIB},
    ),
    Machine(
        "ppc64", "pseries", "ppc_spapr.ram", 0, says(b"SLOF"), size=256 * MIB,
        patterns=(64 * MIB,),
    ),
    Machine("s390x", "s390-ccw-virtio", "s390.ram", 0, panicked, args=("-no-shutdown",)),
    Machine(
        "riscv64", "virt", "riscv_virt_board.ram", 0x80000000, says(b"OpenSBI"),
        args=("-smp", "2"),
        places={
            "riscv_virt_board.mrom": 0x1000,
            "virt.flash0": 0x20000000,
            "virt.flash1": 0x22000000,
        },
    ),
    Machine("m68k", "virt", "m68k_virt.ram", 0, filled, program=M68K),
]  # fmt: skip


@pytest.mark.parametrize(
    "machine",
    [pytest.param(m, marks=pytest.mark.qemu(m.arch), id=f"{m.arch}-{m.machine}") for m in MACHINES],
)
def test_other_architectures(machine: Machine, tmp_path: Path) -> None:
    if not has_machine(machine.machine, machine.arch):
        pytest.skip(f"this QEMU has no machine {machine.machine} for {machine.arch}")
    args = ["-M", machine.machine, "-accel", "tcg", "-m", f"{machine.size // MIB}M", *machine.args]
    files: dict[str, bytes | Path] = {"pattern.bin": PATTERN, "program.bin": machine.program}
    loads = [("pattern.bin", machine.base + at) for at in machine.patterns]
    loads += [("program.bin", 0)] if machine.program else []
    for file, at in loads:
        args += ["-device", f"loader,file={file},addr={at:#x},force-raw=on"]
    with Qemu(args, binary=f"qemu-system-{machine.arch}", files=files) as vm:
        machine.ready(vm, machine)
        vm.stop()
        stream = captured(vm)
        found = inspected_both_ways(stream)
        assert found["complete"]
        assert found["machine"].partition("-")[0] == machine.machine.partition("-")[0]
        assert found["page_size"] == PAGE
        assert all(a["severity"] == "info" for a in found["anomalies"])
        sizes = {b.idstr: b.used for b in vm.ram_blocks()}
        assert {b["idstr"]: b["used_length"] for b in found["ram_blocks"]} == sizes

        image, blocks = extracted_both_ways(stream, tmp_path)
        assert image.stat().st_size == machine.base + machine.size
        check_range(vm, image, machine.base, machine.size)
        places = {machine.ram: machine.base, **machine.places}
        # What else there is, is not mapped: data that firmware asks fw_cfg for.
        assert {i for i in blocks if not i.startswith("/rom@")} == places.keys()
        for idstr, gpa in places.items():
            check_range(vm, blocks[idstr], gpa, sizes[idstr], offset=0)
    with image.open("rb") as file:
        for at in machine.patterns:
            file.seek(machine.base + at)
            assert file.read(len(PATTERN)) == PATTERN
        if machine.ready is filled:
            file.seek(machine.base + FILLED[0])
            content = file.read(FILLED[1] - FILLED[0])
            kind = "<Q" if machine.arch == "aarch64" else ">I"
            counts = [n for (n,) in struct.iter_unpack(kind, content)]
            assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize(
    ("arch", "machine", "page_sizes", "places", "loads"),
    [
        pytest.param(
            # 10.0 still has 256, 11.1 has 1024.
            "avr", "mega2560", (256, 1024),
            {"flash": 0, "sram": 0x800200}, {0: AVR, 0x20300: PATTERN},
            marks=pytest.mark.qemu("avr"),
        ),
        pytest.param(
            "arm", "mps2-an385", (1024,),
            {
                "mps.ssram1": 0, "mps.blockram": 0x1000000,
                "mps.ssram23": 0x20000000, "mps.ram": 0x21000000,
            },
            {0x5000: PATTERN, 0x20001400: PATTERN[::-1], 0x21FF0C00: PATTERN},
            marks=pytest.mark.qemu("arm"),
        ),
    ],
)  # fmt: skip
def test_other_page_sizes(
    arch: str,
    machine: str,
    page_sizes: tuple[int, ...],
    places: dict[str, int],
    loads: dict[int, bytes],
    tmp_path: Path,
) -> None:
    """Small boards: pages of less than 4096 bytes, and several blocks in no order we know."""
    files: dict[str, bytes | Path] = {f"{at:x}.bin": data for at, data in loads.items()}
    args = ["-M", machine, "-accel", "tcg", *(["-S"] if arch == "arm" else [])]
    for at in loads:
        args += ["-device", f"loader,file={at:x}.bin,addr={at:#x},force-raw=on"]
    with Qemu(args, binary=f"qemu-system-{arch}", files=files) as vm:
        if arch == "avr":
            vm._wait(lambda: "0x00000000" not in vm.hmp("xp /1wx 0x8021fc"), 30, "the program")
            vm.stop()
        stream = captured(vm)
        found = inspected_both_ways(stream)
        assert found["complete"]
        assert found["page_size"] in page_sizes
        assert found["anomalies"] == []
        sizes = {b.idstr: b.used for b in vm.ram_blocks()}
        assert {b["idstr"]: b["used_length"] for b in found["ram_blocks"]} == sizes
        assert sizes.keys() == places.keys()
        run("extract-ram", stream, "--all-blocks", tmp_path / "all")
        run("extract-ram", "-", "--all-blocks", tmp_path / "piped", stdin=stream.read_bytes())
        account = json.loads((tmp_path / "all" / "manifest.json").read_text())
        for block in account["blocks"]:
            file, idstr = tmp_path / "all" / block["file"], block["idstr"]
            check_range(vm, file, places[idstr], sizes[idstr], offset=0)
            assert (tmp_path / "piped" / block["file"]).read_bytes() == file.read_bytes()
        # Where the blocks are is not in the stream, and no rule is known: no image is made.
        done = vmstream("extract-ram", stream, "-o", tmp_path / "image")
        assert done.status == 2
        assert "--all-blocks" in done.err
        assert not (tmp_path / "image").exists()
