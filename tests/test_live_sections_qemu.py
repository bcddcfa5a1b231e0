"""Block migration and dirty bitmaps of the QEMU that is installed: we read what it holds."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import no_leftovers, vmstream
from tests.qemu import Qemu

pytestmark = pytest.mark.qemu

MIB = 1 << 20
RAW_SIZE = 5 * MIB + 3 * 512  # the last chunk is for the most part padding
QCOW_SIZE = 9 * MIB + 65536


def content(size: int, seed: int) -> bytes:
    """Random bytes with stretches of zeros, some of them whole chunks."""
    rng = random.Random(seed)
    data = bytearray(size)
    for _ in range(6):
        at = rng.randrange(0, size - 200_000) & ~511
        data[at : at + 200_000] = rng.randbytes(200_000)
    data[-512:] = rng.randbytes(512)
    return bytes(data)


def as_qcow2(data: bytes, directory: Path) -> Path:
    raw, image = directory / "made.raw", directory / "made.qcow2"
    raw.write_bytes(data)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image],
        check=True,
        capture_output=True,
    )
    raw.unlink()
    return image


@contextmanager
def guest(
    machine: str, tmp_path: Path, *, started: bool = False
) -> Iterator[tuple[Qemu, dict[str, bytes]]]:
    """A guest without an operating system and with two disks; what is on them."""
    disks = {"one": content(RAW_SIZE, 1), "two": content(QCOW_SIZE, 2)}
    files: dict[str, bytes | Path] = {
        "one.raw": disks["one"],
        "two.qcow2": as_qcow2(disks["two"], tmp_path),
    }
    args = ["-M", machine, "-accel", "tcg", "-m", "8M"]
    args += ["-drive", "file=one.raw,format=raw,if=none,id=one"]
    args += ["-device", "virtio-blk-pci,drive=one"]
    args += ["-drive", "file=two.qcow2,format=qcow2,if=none,id=two,node-name=two-node"]
    args += ["-device", "virtio-blk-pci,drive=two"]
    with Qemu(args if started else [*args, "-S"], files=files) as vm:
        (tmp_path / "made.qcow2").unlink()
        yield vm, disks


def write(vm: Qemu, disks: dict[str, bytes], name: str, at: int, data: int, length: int) -> None:
    """Write to a disk as the guest would, and note it. qemu-io talks to standard output."""
    assert vm.hmp(f'qemu-io {name} "write -P {data} {at} {length}"') == ""
    disk = disks[name]
    disks[name] = disk[:at] + bytes([data]) * length + disk[at + length :]


def live(stream: Path) -> Any:
    run = vmstream("inspect", "--json", stream)
    assert run.status == 0, run.err
    found = run.json()
    assert found["complete"]
    assert found["anomalies"] == []
    for section in found["sections"]:
        if section["section_type"] == "START":
            assert section["framing"] == "records"
    return found["live"]


def check_disks(stream: Path, disks: dict[str, bytes], directory: Path) -> list[dict[str, Any]]:
    """Every disk, and one at a time, to its size."""
    run = vmstream("extract-block", stream, "--all", directory, "--json")
    assert run.status == 0, run.err
    outputs: list[dict[str, Any]] = run.json()["outputs"]
    assert {o["device"]["device"] for o in outputs} == disks.keys()
    for output in outputs:
        name = output["device"]["device"]
        size = len(disks[name])
        assert output["size"] == -(-size // MIB) * MIB
        assert Path(output["path"]).read_bytes()[:size] == disks[name], name
        one = directory / "one-disk"
        run = vmstream(
            "extract-block", stream, "--device", name, "--size", str(size), "-o", one, "--force"
        )
        assert run.status == 0, run.err
        assert one.read_bytes() == disks[name], name
    assert no_leftovers(directory)
    return outputs


# -- block migration ------------------------------------------------------------------------------


# Enough for all chunks to be read in the first iteration: else QEMU 7.2 may end before it has sent
# the last of them.
AT_ONCE = 1 << 34


# Machine type 2.3 has no footers, and 2.1 no vmdescription either: the records alone end a body.
@pytest.mark.parametrize("machine", ["q35", "pc", "pc-i440fx-2.3"])
def test_disks_of_a_stopped_guest(machine: str, tmp_path: Path) -> None:
    with guest(machine, tmp_path) as (vm, disks):
        vm.set_capabilities(block=True)
        vm.set_parameters(max_bandwidth=AT_ONCE)
        vm.migrate("exec:cat>guest.out")
        outputs = check_disks(vm.path("guest.out"), disks, tmp_path / "d")
        found = live(vm.path("guest.out"))
    for output in outputs:
        device = output["device"]
        assert device["chunks"] == -(-len(disks[device["device"]]) // MIB)
        assert (device["zero_chunks"], device["missing"]) == (0, 0)
    assert found["block_devices"] == [o["device"] for o in outputs]


def test_disks_without_any_frames(tmp_path: Path) -> None:
    with guest("pc-i440fx-2.1", tmp_path) as (vm, disks):
        vm.set_capabilities(block=True)
        vm.set_parameters(max_bandwidth=AT_ONCE)
        vm.migrate("exec:cat>guest.out")
        check_disks(vm.path("guest.out"), disks, tmp_path / "d")


def test_a_migration_that_ends_too_early(tmp_path: Path) -> None:
    """Whatever QEMU leaves out at the default bandwidth, it is told where the size is known."""
    with guest("q35", tmp_path) as (vm, disks):
        vm.set_capabilities(block=True)
        vm.migrate("exec:cat>guest.out")
        for name, disk in disks.items():
            run = vmstream(
                "extract-block", vm.path("guest.out"), "--json",
                "--device", name, "--size", str(len(disk)), "-o", tmp_path / name,
            )  # fmt: skip
            (output,) = run.json()["outputs"]
            end = min(output["device"]["end"], len(disk))
            data = (tmp_path / name).read_bytes()
            assert data == disk[:end].ljust(len(disk), b"\0")
            codes = {a["code"] for a in run.json()["anomalies"]}
            assert run.status == bool(codes)
            assert codes <= {"chunks-missing"}
            assert end == len(disk) or codes


def test_zero_blocks(tmp_path: Path) -> None:
    with guest("q35", tmp_path) as (vm, disks):
        # The unwritten ends of both disks, and a chunk in the middle.
        write(vm, disks, "two", 3 * MIB, 0, 2 * MIB)
        vm.set_capabilities(block=True, zero_blocks=True)
        vm.set_parameters(max_bandwidth=AT_ONCE)
        vm.migrate("exec:cat>guest.out")
        outputs = check_disks(vm.path("guest.out"), disks, tmp_path / "d")
    (two,) = [o["device"] for o in outputs if o["device"]["device"] == "two"]
    zero = sum(not any(disks["two"][at : at + MIB]) for at in range(0, QCOW_SIZE, MIB))
    assert two["zero_chunks"] == zero >= 2


def test_a_disk_that_changes_while_it_is_sent(tmp_path: Path) -> None:
    """Chunks are sent again, some of zeros by then; the last copy counts."""
    with guest("q35", tmp_path) as (vm, disks):
        vm.set_capabilities(block=True, zero_blocks=True)
        vm.set_parameters(max_bandwidth=4 * MIB)
        vm.migrate("exec:cat>guest.out", wait=False)
        stream = vm.path("guest.out")
        vm._wait(lambda: stream.exists() and stream.stat().st_size > 8 * MIB, 60, "8 MiB")
        write(vm, disks, "one", 0, 0x55, 2 * MIB)
        write(vm, disks, "one", 2 * MIB, 0, 2 * MIB)
        write(vm, disks, "two", MIB + 4096, 0xAA, 65536)
        vm.set_parameters(max_bandwidth=AT_ONCE)
        vm.wait_migration()
        outputs = check_disks(stream, disks, tmp_path / "d")
    assert sum(o["device"]["resent"] for o in outputs) >= 1


def test_an_incremental_migration(tmp_path: Path) -> None:
    """What is in the image below is not sent: a warning, and holes."""
    with guest("q35", tmp_path) as (vm, _):
        vm.qmp("blockdev-snapshot-sync", device="two", snapshot_file="top.qcow2", format="qcow2")
        vm.hmp('qemu-io two "write -P 17 4194304 65536"')
        vm.set_capabilities(block=True)
        vm.set_parameters(block_incremental=True, max_bandwidth=AT_ONCE)
        vm.migrate("exec:cat>guest.out")
        run = vmstream("extract-block", vm.path("guest.out"), "--all", tmp_path / "d", "--json")
    assert run.status == 1
    assert "never sent" in run.json()["anomalies"][0]["message"]
    found = {o["device"]["device"]: o for o in run.json()["outputs"]}
    assert found["one"]["device"]["missing"] == 0
    assert found["two"]["device"]["missing"] > 0
    data = (tmp_path / "d" / "two.raw").read_bytes()
    assert data[4 * MIB : 4 * MIB + 65536] == bytes([17]) * 65536
    assert not any(data[: 4 * MIB])


# -- dirty bitmaps --------------------------------------------------------------------------------


def digest(bitmap: dict[str, Any], bits: bytes) -> str:
    """As QEMU hashes a bitmap: its words, which are of 64 bits here."""
    count = -(-bitmap["length"] // bitmap["granularity"])
    size = -(-count // 64) * 8
    assert not any(bits[size:])
    return hashlib.sha256(bits[:size].ljust(size, b"\0")).hexdigest()


def bits_of(bitmap: dict[str, Any]) -> bytes:
    """The bits that the ranges of a report stand for."""
    size = bitmap["granularity"]
    number = 0
    for begin, length in bitmap["ranges"]:
        assert begin % size == 0
        bits = -(-length // size)
        number |= ((1 << bits) - 1) << begin // size
    return number.to_bytes(-(-bitmap["length"] // size // 8) + 9, "little")


@pytest.mark.parametrize("machine", ["q35", "pc-i440fx-2.3"])
def test_dirty_bitmaps(machine: str, tmp_path: Path) -> None:
    want: dict[str, tuple[str, int]] = {}
    with guest(machine, tmp_path) as (vm, disks):
        for name, granularity, disabled in (
            ("fine", 512, False),
            ("usual", 65536, False),
            ("coarse", 4 * MIB, False),
            ("off", 4096, True),
        ):
            vm.qmp(
                "block-dirty-bitmap-add", node="two-node", name=name, granularity=granularity,
                disabled=disabled,
            )  # fmt: skip
        vm.qmp("block-dirty-bitmap-add", node="two-node", name="kept", persistent=True)
        rng = random.Random(3)
        for _ in range(200):
            at = rng.randrange(QCOW_SIZE - 20480) & ~511
            write(vm, disks, "two", at, rng.randrange(256), rng.randrange(1, 40) * 512)
        write(vm, disks, "two", QCOW_SIZE - 512, 1, 512)
        (node,) = [n for n in vm.qmp("query-named-block-nodes") if n["node-name"] == "two-node"]
        for bitmap in node["dirty-bitmaps"]:
            sha256 = vm.qmp(
                "x-debug-block-dirty-bitmap-sha256", node="two-node", name=bitmap["name"]
            )["sha256"]
            want[bitmap["name"]] = sha256, bitmap["count"]
        vm.set_capabilities(dirty_bitmaps=True)
        vm.migrate("exec:cat>guest.out")
        stream = tmp_path / "stream"
        stream.write_bytes(vm.path("guest.out").read_bytes())
    found = {b["name"]: b for b in live(stream)["dirty_bitmaps"]}
    assert found.keys() == want.keys() == {"fine", "usual", "coarse", "off", "kept"}
    bits: dict[str, bytearray] = {name: bytearray() for name in found}
    for item in vmstream("records", "--json", "--kind", "bitmap-bits", stream).lines():
        part = bytes.fromhex(item["data"])
        place = item["disk_offset"] // found[item["name"]]["granularity"] // 8
        assert len(bits[item["name"]]) <= place
        bits[item["name"]] = bits[item["name"]].ljust(place, b"\0") + part
    for name, bitmap in found.items():
        sha256, dirty = want[name]
        # QEMU names the device where there is one.
        assert bitmap["node"] == "two"
        assert (bitmap["length"], bitmap["complete"]) == (QCOW_SIZE, True)
        assert (bitmap["enabled"], bitmap["persistent"]) == (name != "off", name == "kept")
        assert bitmap["bits_set"] * bitmap["granularity"] == dirty
        assert (dirty > 0) == (name != "off")
        assert digest(bitmap, bits_of(bitmap)) == sha256, name
        assert digest(bitmap, bytes(bits[name])) == sha256, name
    assert found["fine"]["range_count"] > 100
