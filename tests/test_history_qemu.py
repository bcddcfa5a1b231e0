"""A guest that counts in pages that are known, sent by the installed QEMU in several passes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.ops.test_history import Version, records
from tests.ops.test_passes import PAGE, content_after, passes_of
from tests.qemu import Guest, Qemu

pytestmark = pytest.mark.qemu

MIB = 1 << 20
# Every page of these counts: guest/dirty.S, `work1`.
COUNTING = 0x106
_COUNTER, _ROUND = 64 + 4 * 6, 2048


def sent(capabilities: tuple[str, ...]) -> tuple[bytes, bytes]:
    """The stream, and RAM of the guest that loaded it."""
    args = ["-M", "q35", "-accel", "tcg"]
    guest, mem = Guest(fill=768, dirty=768), ("mem", 16 * MIB)
    with Qemu(args, guest=guest, mem=mem) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(**dict.fromkeys(capabilities, True))
        vm.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
        vm.migrate("exec:cat>guest.out", wait=False)
        vm.wait_passes(3)
        vm.set_parameters(max_bandwidth=1 << 30, downtime_limit=10000)
        vm.wait_migration()
        stream = vm.path("guest.out").read_bytes()
    files = {"guest.in": stream}
    with Qemu(args, guest=guest, mem=mem, incoming="exec:cat guest.in", files=files) as loaded:
        loaded.wait_loaded()
        ram = loaded.backend.read_bytes()
    return stream, ram


@pytest.mark.parametrize("capabilities", [(), ("xbzrle",)], ids=["plain", "xbzrle"])
def test_a_guest_that_counts(capabilities: tuple[str, ...], tmp_path: Path) -> None:
    stream, ram = sent(capabilities)
    (tmp_path / "stream").write_bytes(stream)
    versions = list(records(stream, PAGE))
    check_versions(tmp_path / "stream", versions, ram)
    check_passes(tmp_path / "stream", versions, ram)


def check_versions(path: Path, versions: list[Version], ram: bytes) -> None:
    for page in (COUNTING, 0x102, 0x103, 0x105):
        run = vmstream("history", path, "--page", hex(page * PAGE), "--hex", "--json")
        assert run.status == 0, run.err
        found = run.lines()
        want = [v for v in versions if v[1:3] == ("mem", page)]
        assert len(want) >= 2
        assert [(v["record_offset"], v["data"]) for v in found] == [
            (v[0], v[3].hex()) for v in want
        ]
        # The truth that QEMU itself made of it.
        assert bytes.fromhex(found[-1]["data"]) == ram[page * PAGE :][:PAGE]
    found = vmstream("history", path, "--page", hex(COUNTING * PAGE), "--hex", "--json").lines()
    counts = [struct.unpack_from("<I", bytes.fromhex(v["data"]), _ROUND)[0] for v in found]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    # What changed is what the guest counts in, and nothing else.
    touched = {*range(_COUNTER, _COUNTER + 4), *range(_ROUND, _ROUND + 4), PAGE - 1}
    for v in found[1:]:
        assert {i for r in v["ranges"] for i in range(r["offset"], r["offset"] + r["length"])} <= (
            touched
        )


def check_passes(path: Path, versions: list[Version], ram: bytes) -> None:
    count = passes_of(versions)[-1]
    told = vmstream("history", path, "--json").json()
    assert told["pass_count"] == count >= 2
    out = path.with_name("ram")
    for number in (1, 2, count):
        run = vmstream(
            "extract-ram", path, "--pass", number, "--block", "mem", "-o", out, "--force"
        )
        assert run.status == 0, run.err
        assert out.read_bytes() == content_after(versions, number, "mem", 16 * MIB)
    assert out.read_bytes() == ram
