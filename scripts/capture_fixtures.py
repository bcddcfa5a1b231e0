#!/usr/bin/env python3
"""Capture this repository's own fixtures from the installed QEMU, each with its truth.

    python scripts/capture_fixtures.py                      # all, into tests/fixtures
    python scripts/capture_fixtures.py --only own-live-q35  # one of them
    python scripts/capture_fixtures.py --list
    python scripts/capture_fixtures.py --out somewhere

Needs qemu-system-x86_64 on PATH (any version; 7.2 made the files in the repository), for two
captures also those of s390x and ppc64, the Python packages of the test suite, and about a minute.
No root, no KVM, no network.

The guest is the boot sector tests/fixtures/guest/dirty.S: it fills memory from 1 MiB, says FILLED
on the serial port, and then keeps changing pages. For each capture NAME two files are written:
NAME.qevm.zst, the stream, and NAME.json, what is true about the guest (keys: see
tests/fixtures/README.md). No code of vmstream takes part: the content of a RAM block is read from
the file behind it or from the memory of the QEMU process, guest-physical memory is what QEMU's own
`pmemsave` writes, and registers are the text of `info registers`.

Captures are not byte for byte repeatable (clocks and the guest's progress differ); the manifest is
always that of the stream beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.qemu import Guest, Qemu, QemuError, find_qemu
from tests.truth import FIXTURES, BlockSums, block_sums, range_sha256, sums_of_bytes

MIB = 1 << 20
GIB = 1 << 30
FOUR_GIB = 4 * GIB
LIVE_PASSES = 4
# Where the loader puts PATTERN in the big guest: on both sides of the PCI hole and at both ends of
# the memory above 4 GiB, so that a wrong mapping of block offsets to addresses shows.
BIG_ADDRESSES = (0x0200_0000, 0xBF00_0000, 0x1_0000_0000, 0x1_4000_1000, 0x1_7FFF_F000)
PATTERN = b"".join(hashlib.sha256(b"vmstream %d" % i).digest() for i in range(128))


USUAL_GUEST = Guest(fill=512, dirty=200)


@dataclass(frozen=True)
class Case:
    """One capture. `mem` is the id of a file-backed RAM block, None leaves RAM to the machine."""

    name: str
    shows: str
    machine: str
    size: int = 16 * MIB
    mem: str | None = "mem"
    cpus: int = 1
    guest: Guest | None = USUAL_GUEST
    load: Sequence[int] = ()
    args: Sequence[str] = ()
    live: bool = False
    parameters: dict[str, int] = field(default_factory=dict)
    arch: str = "x86_64"
    program: bytes = b""  # a file program.bin, for `args`
    facts: dict[str, Any] = field(default_factory=dict)  # more that is true about the guest


# The short PSW of an IPL, and at 64 KiB a program that gives the key 0x30 to 100 pages (SSKE in a
# loop), and then goes round.
KEYS_PROGRAM = bytes.fromhex("0008000080010000").ljust(0x10000, b"\0") + bytes.fromhex(
    "a7180030 a7280000 a7380064 b22b0012 a72a1000 a736fffc a7f40000"
)


def htab_program(groups: Sequence[int]) -> bytes:
    """Firmware that enters a page into each of these groups of the hash page table (H_ENTER)."""
    code = b""
    for group in groups:
        values = {3: 0x08, 4: 0, 5: group, 6: 1, 7: group << 12 & 0x7000 | 0x10}  # V; R, M
        for register, value in values.items():
            code += (0x38000000 | register << 21 | value).to_bytes(4, "big")  # li
        code += bytes.fromhex("44000022")  # sc 1
    return bytes(0x100) + code + bytes.fromhex("48000000")  # b .


GROUPS = (0x8, 0x10, 0x18, 0x400, 0x7FF8)

SLOW = {"max-bandwidth": 4 * MIB, "downtime-limit": 1}

CASES = (
    Case(
        "own-plain-q35",
        "a stopped guest with two CPUs, one pass; block name mem; guest-physical truth",
        "q35",
        cpus=2,
        guest=Guest(fill=512, dirty=200, seed=201),
    ),
    Case(
        "own-plain-pc",
        "a stopped guest, one pass; pc.ram allocated by the machine; guest-physical truth",
        "pc",
        mem=None,
        guest=Guest(fill=512, dirty=200, seed=202),
    ),
    Case(
        "own-live-q35",
        "running guest, several passes; truth is what the same QEMU holds after loading the stream",
        "q35",
        # More pages than QEMU's TLB has slots: 7.2 sees a write again only after an eviction.
        guest=Guest(fill=768, dirty=768, seed=203),
        live=True,
        parameters=SLOW,
    ),
    Case(
        "own-big-pc",
        "5 GiB in one block, nearly all zero: 3 GiB below the PCI hole, the rest from 4 GiB",
        "pc",
        size=5 * GIB,
        guest=Guest(fill=64, dirty=8, seed=204),
        load=BIG_ADDRESSES,
    ),
    Case(
        "own-big-q35",
        "5 GiB in one block, nearly all zero: 2 GiB below the PCI hole, the rest from 4 GiB",
        "q35",
        size=5 * GIB,
        guest=Guest(fill=64, dirty=8, seed=205),
        load=(0x0200_0000, 0x7F00_0000, 0x1_0000_0000, 0x1_4000_1000, 0x1_BFFF_F000),
    ),
    Case(
        "own-microvm",
        "the microvm machine: few devices, no disk",
        "microvm",
        guest=None,
        load=(0x0020_0000, 0x00F0_0000),
    ),
    Case(
        "own-isapc",
        "a machine without PCI",
        "isapc",
        mem=None,
        guest=Guest(fill=256, dirty=50, seed=206),
    ),
    Case(
        "own-old-pc-2.3",
        "machine type pc-i440fx-2.3: no configuration section and no section footers",
        "pc-i440fx-2.3",
        mem=None,
        guest=Guest(fill=256, dirty=50, seed=207),
    ),
    Case(
        "own-old-pc-2.1",
        "machine type pc-i440fx-2.1: no configuration section, footers or vmdescription",
        "pc-i440fx-2.1",
        mem=None,
        guest=Guest(fill=256, dirty=50, seed=208),
    ),
    Case(
        "own-novmdesc-pc",
        "suppress-vmdesc=on: no vmdescription at the end",
        "pc,suppress-vmdesc=on",
        mem="pc.ram",
        guest=Guest(fill=256, dirty=50, seed=209),
    ),
    Case(
        "own-s390x-keys",
        "s390: a guest that uses storage keys (section s390-skeys)",
        "s390-ccw-virtio",
        guest=None,
        arch="s390x",
        args=["-kernel", "program.bin"],
        program=KEYS_PROGRAM,
        facts={"storage_keys": {"pages": 4096, "first": 100, "key": 0x30}},
    ),
    Case(
        "own-ppc64-htab",
        "pseries: a guest with entries in its hash page table (section spapr/htab)",
        "pseries",
        size=256 * MIB,
        guest=None,
        arch="ppc64",
        args=["-cpu", "power8", "-bios", "program.bin"],
        program=htab_program(GROUPS),
        facts={"htab": {"groups": list(GROUPS)}},
    ),
)


def low_size(case: Case) -> int:
    """How much of the RAM lies below 4 GiB (hw/i386/pc_piix.c, pc_q35.c and microvm.c)."""
    if case.machine.startswith(("q35", "pc-q35")):
        limit, split = 0xB000_0000, 0x8000_0000
    else:
        limit, split = 0xE000_0000, 0xC000_0000
    return split if case.size >= limit else case.size


def arguments(case: Case) -> list[str]:
    args = ["-M", case.machine, "-accel", "tcg"]
    if case.mem is None:
        args += ["-m", f"{case.size // MIB}M"]
    if case.cpus > 1:
        args += ["-smp", str(case.cpus)]
    for address in case.load:
        args += ["-device", f"loader,file=pattern.bin,addr={address:#x},force-raw=on"]
    return [*args, *case.args]


def start(case: Case, incoming: str | None = None, files: dict[str, Any] | None = None) -> Qemu:
    return Qemu(
        arguments(case),
        guest=case.guest,
        mem=None if case.mem is None else (case.mem, case.size),
        incoming=incoming,
        binary=f"qemu-system-{case.arch}",
        files={
            **({"pattern.bin": PATTERN} if case.load else {}),
            **({"program.bin": case.program} if case.program else {}),
            **(files or {}),
        },
    )


# -- truth ------------------------------------------------------------------------------------


def entry(sums: BlockSums, how: str) -> dict[str, Any]:
    return {
        "size": sums.size,
        "sha256": sums.sha256,
        "nonzero_pages": sums.nonzero_pages,
        "nonzero_sha256": sums.nonzero_sha256,
        "how": how,
    }


def take_blocks(vm: Qemu, case: Case, main: str) -> dict[str, dict[str, Any]]:
    """Content of every block that the stopped QEMU lets us find. `main` says whose file it is."""
    found: dict[str, dict[str, Any]] = {}
    # Before 10.0 only these addresses tell where a block is: RAM at 0, the firmware below 4 GiB.
    places = {}
    for block in vm.ram_blocks():
        at = 0 if block.idstr == (case.mem or "pc.ram") else FOUR_GIB - block.used
        place = vm.gpa2hva(at)
        if place is not None and place[0] == block.idstr:
            places[block.idstr] = place[1]
    for block in vm.ram_blocks():
        hva = block.hva or places.get(block.idstr)
        if block.idstr == case.mem:
            found[block.idstr] = entry(block_sums(vm.backend), main)
        elif hva is not None:
            way = "info ramblock" if block.hva else "gpa2hva"
            sums = sums_of_bytes(vm.process_memory(hva, block.used))
            how = f"memory of the stopped QEMU process at the address '{way}' shows"
            found[block.idstr] = entry(sums, how)
        else:
            found[block.idstr] = {"size": block.used, "how": "not taken"}
    return found


def take_pmemsave(vm: Qemu, case: Case) -> list[dict[str, Any]]:
    """Hashes of guest-physical ranges; `block` and `offset` where a block holds just the same.

    [640 KiB, 1 MiB) is apart: there the machine may show ROM or nothing in place of RAM, and the
    range around it then equals no block.
    """
    low = low_size(case)
    ranges = [(0, low, 0), (0, 0xA0000, 0), (0xA0000, 0x60000, 0xA0000), (MIB, low - MIB, MIB)]
    if case.size > low:
        ranges.append((FOUR_GIB, case.size - low, low))
    taken = []
    for gpa, size, offset in ranges:
        digest = hashlib.sha256()
        for chunk in vm.pmemsave(gpa, size):
            digest.update(chunk)
        one: dict[str, Any] = {"gpa": gpa, "size": size, "sha256": digest.hexdigest()}
        if block_range_sha256(vm, case, offset, size) == one["sha256"]:
            one["block"] = case.mem or "pc.ram"
            one["offset"] = offset
        elif offset >= MIB:
            raise QemuError(f"{case.name}: [{gpa:#x}, +{size:#x}) is not block {offset:#x}")
        taken.append(one)
    return taken


def block_range_sha256(vm: Qemu, case: Case, offset: int, size: int) -> str:
    """Hash of a range of the main block, taken another way than by pmemsave."""
    if case.mem is not None:
        return range_sha256(vm.backend, offset, size)
    place = vm.gpa2hva(0)
    assert place is not None
    return hashlib.sha256(vm.process_memory(place[1] + offset, size)).hexdigest()


def take_truth(vm: Qemu, case: Case, main: str) -> dict[str, Any]:
    return {
        "blocks": take_blocks(vm, case, main),
        **({"pmemsave": take_pmemsave(vm, case)} if case.arch == "x86_64" else {}),
        **case.facts,
        "registers": vm.registers(all_cpus=case.cpus > 1),
    }


# -- captures ---------------------------------------------------------------------------------


def capture_stopped(case: Case, out: Path) -> dict[str, Any]:
    with start(case) as vm:
        settle(vm, case)
        vm.stop()
        truth = take_truth(vm, case, "the shared memory-backend-file of the stopped QEMU")
        status = vm.migrate("exec:cat>guest.out")
        return {**head(vm, case), **pack(vm, case, out), **truth, "query_migrate": status}


def capture_live(case: Case, out: Path) -> dict[str, Any]:
    """A migration of a running guest.

    TCG of 7.2 and older misses some dirty pages of a running guest: the source's memory after the
    end is not what it sent. So the truth is the memory of a second QEMU that loaded the stream.
    """
    with start(case) as vm:
        settle(vm, case)
        vm.set_parameters(**case.parameters)
        vm.migrate("exec:cat>guest.out", wait=False)
        vm.wait_passes(LIVE_PASSES)
        vm.set_parameters(max_bandwidth=GIB, downtime_limit=10000)
        status = vm.wait_migration()
        result = {**head(vm, case), **pack(vm, case, out), "query_migrate": status}
        registers = vm.registers()
        same = block_sums(vm.backend)
        stream = vm.path("guest.out")
        with start(case, "exec:cat guest.in", {"guest.in": stream}) as loaded:
            loaded.wait_loaded()
            truth = take_truth(
                loaded,
                case,
                "the shared memory-backend-file of a QEMU that loaded the stream with -S",
            )
            result["destination_command"] = loaded.command
    if truth["registers"] != registers:
        raise QemuError(f"{case.name}: source and destination have other registers")
    assert case.mem is not None
    equal = truth["blocks"][case.mem]["sha256"] == same.sha256
    result["note"] = (
        "the guest ran; after some passes max-bandwidth and downtime-limit were raised and the "
        f"migration ended. The source's own memory was {'the same' if equal else 'not the same'}"
    )
    return {**result, **truth}


def settle(vm: Qemu, case: Case) -> None:
    """Wait until the guest has something worth a capture."""
    if case.guest is not None:
        vm.wait_serial(b"FILLED")
    else:
        time.sleep(1)  # let the firmware run


def head(vm: Qemu, case: Case) -> dict[str, Any]:
    guest = case.guest
    return {
        "name": case.name,
        "shows": case.shows,
        "qemu": vm.version(),
        "arch": case.arch,
        "command": vm.command,
        "guest": guest and {"image": "guest/dirty.img", "settings": guest.settings()},
        "capabilities": {},
        "parameters": case.parameters,
        "migrate": "exec:cat>guest.out",
    }


def pack(vm: Qemu, case: Case, out: Path) -> dict[str, Any]:
    """Write NAME.qevm.zst; returns the manifest's `files`."""
    path = vm.path("guest.out")
    data = path.read_bytes()
    packed = zstandard.ZstdCompressor(level=19).compress(data)
    name = f"{case.name}.qevm.zst"
    (out / name).write_bytes(packed)
    return {
        "files": [
            {
                "file": name,
                "role": "stream",
                "size": len(data),
                "allocated": path.stat().st_blocks * 512,
                "sha256": hashlib.sha256(data).hexdigest(),
                "compressed_size": len(packed),
            }
        ]
    }


# The order of the keys in a manifest.
KEYS = [
    "name",
    "files",
    "shows",
    "qemu",
    "arch",
    "command",
    "destination_command",
    "guest",
    "capabilities",
    "parameters",
    "migrate",
    "blocks",
    "pmemsave",
    "storage_keys",
    "htab",
    "query_migrate",
    "registers",
    "note",
]


def capture(case: Case, out: Path) -> None:
    began = time.monotonic()
    manifest = (capture_live if case.live else capture_stopped)(case, out)
    ordered = {key: manifest[key] for key in KEYS if key in manifest}
    (out / f"{case.name}.json").write_text(json.dumps(ordered, indent=1) + "\n")
    made = manifest["files"][0]
    print(
        f"{case.name}: {made['size']:,} bytes, {made['compressed_size']:,} compressed, "
        f"{time.monotonic() - began:.1f} s",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FIXTURES)
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--list", action="store_true", help="show the captures and stop")
    options = parser.parse_args()
    if options.list:
        for case in CASES:
            print(f"{case.name:20} {case.shows}")
        return 0
    unknown = set(options.only or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no capture named {', '.join(sorted(unknown))}")
    missing = {
        f"qemu-system-{case.arch}"
        for case in CASES
        if (not options.only or case.name in options.only) and find_qemu(case.arch) is None
    }
    if missing:
        print(f"not on PATH: {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        try:
            capture(case, options.out)
        except QemuError as error:
            failed = True
            print(f"{case.name}: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
