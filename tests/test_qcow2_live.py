"""Snapshots that the installed QEMU makes, and clusters of every kind that its tools write."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.qemu import Guest, Qemu
from vmstream.container.qcow2 import VMStateSource, read_image
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.inspect import inspect
from vmstream.transport.source import OpenSource

pytestmark = pytest.mark.qemu

MIB = 1 << 20
FORMATS = [
    "",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "compat=0.10",
    "compression_type=zstd,lazy_refcounts=on",
]


def img(*args: str | Path) -> str:
    if shutil.which("qemu-img") is None:
        pytest.skip("no qemu-img on PATH")
    done = subprocess.run(["qemu-img", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def create(path: Path, options: str, size: str) -> None:
    img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, size)


@pytest.mark.parametrize("options", FORMATS)
def test_savevm(options: str, tmp_path: Path) -> None:
    """Two snapshots of a guest that ran on between them: each is the memory it had then."""
    disk = tmp_path / "disk.qcow2"
    # It boots from the image: savevm refuses a disk of another format beside it.
    (tmp_path / "boot").write_bytes(Guest(fill=512, dirty=200).image())
    more = ["-o", options] if options else []
    img("convert", "-q", "-f", "raw", "-O", "qcow2", *more, tmp_path / "boot", disk)
    img("resize", "-q", disk, "3M" if "512" in options else "40M")
    args = ["-M", "q35", "-accel", "tcg", "-drive", "file=disk.qcow2,if=ide,format=qcow2"]
    truth: dict[str, bytes] = {}
    with Qemu(args, mem=("mem", 16 * MIB), files={"disk.qcow2": disk}) as vm:
        vm.wait_serial(b"FILLED")
        for name in ("first", "second"):
            vm.stop()
            truth[name] = vm.backend.read_bytes()
            assert vm.hmp(f"savevm {name}").strip() == ""
            # In use, and nothing of it is locked against reading.
            while_in_use = vmstream("snapshots", "--json", vm.path("disk.qcow2")).json()
            assert [s["name"] for s in while_in_use["snapshots"]] == list(truth)
            vm.cont()
            time.sleep(0.3)
        vm.qmp("quit")
        deadline = time.monotonic() + 20
        while vm.path("guest.qmp").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.copyfile(vm.path("disk.qcow2"), disk)
    assert truth["first"] != truth["second"]
    told = json.loads(img("info", "--output=json", disk))["snapshots"]
    run = vmstream("snapshots", "--json", disk)
    assert (run.status, run.err) == (0, "")
    listed = run.json()["snapshots"]
    for ours, theirs in zip(listed, told, strict=True):
        assert (ours["id"], ours["name"]) == (theirs["id"], theirs["name"])
        assert ours["vm_state_size"] == theirs["vm-state-size"] > 2 * MIB
        clock = theirs["vm-clock-sec"] * 10**9 + theirs["vm-clock-nsec"]
        assert ours["vm_clock_nsec"] == clock
        assert ours["date_nsec"] == theirs["date-nsec"]
    for name, memory in truth.items():
        out = tmp_path / name
        with OpenSource(disk) as source:
            image = read_image(source)
            stream = VMStateSource(source, image, image.choose(name))
            report, code = inspect(stream)
            assert (code, report.complete, report.anomalies) == (0, True, [])
            assert report.end_offset == stream.size
            extract(stream, ExtractOptions(output=out, block="mem"))
        assert out.read_bytes() == memory


def as_vm_state(path: Path, size: int) -> bytes:
    """The disk of a snapshot: its clusters are mapped as those of VM state are."""
    with OpenSource(path) as source:
        image = read_image(source)
        (snapshot,) = image.snapshots
        snapshot = dataclasses.replace(snapshot, disk_size=0, vm_state_size=size)
        stream = VMStateSource(source, image, snapshot)
        parts, offset, end = [], 0, False
        while not end:
            view, _, end = stream.window(offset, 1)
            parts.append(bytes(view))
            offset += len(view)
    return b"".join(parts)


@pytest.mark.parametrize(
    "options",
    [
        "compression_type=zlib",
        "compression_type=zlib,cluster_size=4k",
        "compression_type=zlib,cluster_size=2M",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=4k",
        "compression_type=zstd,cluster_size=2M",
        "compression_type=zstd,extended_l2=on",
    ],
)
def test_clusters_that_qemu_compressed(options: str, tmp_path: Path) -> None:
    rng = random.Random(9)
    parts = [rng.randbytes(65536), b"text that compresses " * 20_000, bytes(300_000)]
    raw = b"".join(rng.choice(parts) for _ in range(60))
    raw += bytes(-len(raw) % 512)
    (tmp_path / "raw").write_bytes(raw)
    disk = tmp_path / "disk"
    img("convert", "-q", "-c", "-O", "qcow2", "-o", options, tmp_path / "raw", disk)
    img("snapshot", "-c", "s", disk)
    assert as_vm_state(disk, len(raw)) == raw


@pytest.mark.parametrize("options", ["extended_l2=on", "extended_l2=on,cluster_size=16k", ""])
def test_pieces_that_qemu_wrote(options: str, tmp_path: Path) -> None:
    """Parts of clusters, zeros written, clusters thrown away: as qemu-img reads it."""
    if shutil.which("qemu-io") is None:
        pytest.skip("no qemu-io on PATH")
    disk, size = tmp_path / "disk", 4 * MIB
    create(disk, options, str(size))
    rng = random.Random(4)
    commands = []
    for _ in range(150):
        at, length = rng.randrange(0, size - 65536, 512), rng.randrange(512, 65536, 512)
        kind = rng.choice(
            [f"write -P {rng.randrange(1, 256)}", "write -z", "write -z -u", "discard"]
        )
        commands += ["-c", f"{kind} {at} {length}"]
    subprocess.run(
        ["qemu-io", "-f", "qcow2", *commands, str(disk)], check=True, capture_output=True
    )
    img("convert", "-O", "raw", disk, tmp_path / "raw")
    img("snapshot", "-c", "s", disk)
    assert as_vm_state(disk, size) == (tmp_path / "raw").read_bytes()
