"""Memory does not grow with the length of a stream: gigabytes go through a pipe, made on the fly.

The peak is that of the kernel's books (ru_maxrss), taken by a small process in between: a process
begins with the peak of the one that it was forked from, and pytest is no small one.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.commandline import COMMAND, ROOT, environment

LIMIT = 150 << 20
PAGE = 4096
MIB = 1 << 20
SECTION = b"\x7e" + struct.pack(">I", 2)
FOOTER_7 = b"\x7e" + struct.pack(">I", 7)
EOS = struct.pack(">Q", 0x10)

# Runs a command with our standard input and output, and tells its status and peak.
WATCH = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "wb"))
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([process.returncode, usage.ru_maxrss * 1024]))
"""


def stream(
    size: int, *, pages: int, zeros: int, passes: int = 1, device: bool = True
) -> Iterator[bytes]:
    """A stream of about `size` bytes: runs of `pages` PAGE and `zeros` ZERO records in turns."""
    cycle = pages * (PAGE + 8) + zeros * 9
    cycles = max(1, size // cycle // passes)
    total = (1 + cycles * (pages + zeros)) * PAGE
    machine = b"pc-q35-9.0"
    yield b"QEVM" + struct.pack(">I", 3) + b"\7" + struct.pack(">I", len(machine)) + machine
    yield b"\1" + struct.pack(">I", 2) + b"\3ram" + struct.pack(">II", 0, 4)
    yield struct.pack(">Q", total | 4) + b"\3mem" + struct.pack(">Q", total) + EOS + SECTION
    yield b"\2" + struct.pack(">I", 2)
    yield struct.pack(">Q", 8) + b"\3mem" + b"\1" * PAGE
    data = np.zeros(pages, np.dtype([("head", ">u8"), ("body", "u1", (PAGE,))]))
    data["body"] = np.random.default_rng(1).integers(1, 255, (pages, PAGE), np.uint8)
    empty = np.zeros(zeros, np.dtype([("head", ">u8"), ("fill", "u1")]))
    step = np.uint64(PAGE)
    for _ in range(passes):
        at = 1
        for _ in range(cycles):
            data["head"] = np.arange(at, at + pages, dtype=np.uint64) * step | np.uint64(0x28)
            yield data.tobytes()
            at += pages
            empty["head"] = np.arange(at, at + zeros, dtype=np.uint64) * step | np.uint64(0x22)
            yield empty.tobytes()
            at += zeros
    yield EOS + SECTION + b"\3" + struct.pack(">I", 2) + EOS + SECTION
    if device:
        yield b"\4" + struct.pack(">I", 5) + b"\5timer" + struct.pack(">II", 0, 2) + bytes(24)
        yield b"\x7e" + struct.pack(">I", 5)
    yield b"\0"


def peak(args: list[str], stdin: object, out: Path) -> tuple[int, int]:
    """Exit status and peak of memory of `vmstream ARGS`; its output goes into a file."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(out), *COMMAND, *args],
        stdin=stdin,  # type: ignore[arg-type]
        stdout=subprocess.PIPE,
        env=environment(),
        check=True,
    )
    status, most = json.loads(done.stdout)
    return status, most


def through_a_pipe(
    args: list[str], size: int, shape: dict[str, int] | str, out: Path
) -> tuple[int, int]:
    command = [sys.executable, "-m", "tests.test_memory_bound", str(size), json.dumps(shape)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment()
    ) as writer:
        assert writer.stdout is not None
        found = peak(args, writer.stdout, out)
        writer.stdout.close()
    return found


MIXED = {"pages": 4000, "zeros": 20000}


@pytest.mark.parametrize("command", ["inspect", "records"])
def test_two_gib_through_a_pipe(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, most = through_a_pipe([command, "--json", "-"], 2 << 30, MIXED, out)
    assert status == 0
    assert most < LIMIT, f"{most / MIB:.0f} MiB"
    lines = out.read_text()
    if command == "inspect":
        found = json.loads(lines)
        assert found["complete"]
        assert found["size"] > 1.9 * (1 << 30)
        assert found["ram_blocks"][0]["pages_missing"] == 0
    else:
        runs = [json.loads(line) for line in lines.splitlines()]
        assert sum(r["count"] for r in runs if r["type"] == "pages") > 2_000_000


def test_short_runs(tmp_path: Path) -> None:
    """The most records that a window can have, each a run of its own."""
    out = tmp_path / "out"
    shape = {"pages": 1, "zeros": 1}
    status, most = through_a_pipe(["inspect", "--json", "-"], 128 * MIB, shape, out)
    assert status == 0
    assert most < LIMIT, f"{most / MIB:.0f} MiB"


def test_extract_a_gib_from_a_pipe(tmp_path: Path) -> None:
    """Every page is data, and comes four times."""
    image, account = tmp_path / "image", tmp_path / "account"
    shape = {"pages": 4096, "zeros": 0, "passes": 4}
    args = ["extract-ram", "-", "-o", str(image), "--manifest", str(account)]
    try:
        status, most = through_a_pipe(args, 1 << 30, shape, tmp_path / "out")
        assert status == 0
        assert most < LIMIT, f"{most / MIB:.0f} MiB"
        assert image.stat().st_size > 240 * MIB
        told = json.loads(account.read_text())
        assert told["input_size"] > 0.9 * (1 << 30)
        assert told["ram_blocks"][0]["pages_missing"] == 0
    finally:
        image.unlink(missing_ok=True)


def live_stream(what: str, size: int) -> Iterator[bytes]:
    """A stream of `size` bytes of one iterable section: chunks of disks, or one record."""
    yield b"QEVM" + struct.pack(">I", 3) + b"\1" + struct.pack(">I", 7)
    if what == "disks":
        yield b"\5block" + struct.pack(">IIQ", 0, 1, 2) + FOOTER_7 + b"\2" + struct.pack(">I", 7)
        for i in range(size // MIB):
            # Places far apart, in turns on many disks, and the same ones again.
            place = (i * 7919 % 1000) << 30
            yield struct.pack(">Q", place | 1) + b"\2d%d" % (i % 10) + bytes([i % 251]) * MIB
        yield struct.pack(">Q", 2) + FOOTER_7
        yield b"\3" + struct.pack(">IQ", 7, 2) + FOOTER_7
    else:
        yield b"\4vfio" + struct.pack(">II", 0, 1)
        yield struct.pack(">QQ", 0xFFFFFFFFEF100003, 0xFFFFFFFFEF100001) + FOOTER_7
        yield b"\3" + struct.pack(">IQQ", 7, 0xFFFFFFFFEF100004, size)
        for _ in range(size // MIB):
            yield b"\x33" * MIB
        yield struct.pack(">Q", 0xFFFFFFFFEF100001) + FOOTER_7
    yield b"\0"


@pytest.mark.parametrize("what", ["disks", "vfio"])
@pytest.mark.parametrize("command", ["inspect", "records"])
def test_a_gib_of_an_iterable_section(command: str, what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, most = through_a_pipe([command, "--json", "-"], 1 << 30, what, out)
    assert status == (command == "inspect" and what == "disks")  # chunks are missing
    assert most < LIMIT, f"{most / MIB:.0f} MiB"
    if command == "inspect":
        found = json.loads(out.read_text())
        assert found["complete"]
        (section,) = found["sections"]
        assert (section["framing"], section["body_size"] >> 30) == ("records", 1)


def test_disks_from_a_pipe(tmp_path: Path) -> None:
    try:
        args = ["extract-block", "-", "--all", str(tmp_path / "d"), "--json"]
        status, most = through_a_pipe(args, 1 << 30, "disks", tmp_path / "out")
        assert status == 1
        assert most < LIMIT, f"{most / MIB:.0f} MiB"
        outputs = json.loads((tmp_path / "out").read_text())["outputs"]
        assert len(outputs) == 10
        assert all(Path(o["path"]).stat().st_size > 500 << 30 for o in outputs)
    finally:
        for path in (tmp_path / "d").glob("*"):
            path.unlink()


def file_peak(args: list[str], tmp_path: Path, **shape: int) -> int:
    path, image = tmp_path / "stream", tmp_path / "image"
    try:
        with path.open("wb") as file:
            for piece in stream(512 * MIB, pages=4096, zeros=0, passes=4, **shape):
                file.write(piece)
        args = [str(image) if arg == "IMAGE" else arg for arg in args]
        status, most = peak([*args, str(path)], subprocess.DEVNULL, tmp_path / "out")
    finally:
        path.unlink(missing_ok=True)
        image.unlink(missing_ok=True)
    assert status == 0
    return most


@pytest.mark.parametrize("args", [["inspect", "--json"], ["extract-ram", "-o", "IMAGE"]])
def test_a_file(args: list[str], tmp_path: Path) -> None:
    """What of a file is mapped does not pile up."""
    most = file_peak(args, tmp_path)
    assert most < LIMIT, f"{most / MIB:.0f} MiB"


def test_a_file_whose_device_sections_are_not_found(tmp_path: Path) -> None:
    """The layout is looked for in the last 64 MiB, which are mapped and copied."""
    most = file_peak(["extract-ram", "-o", "IMAGE"], tmp_path, device=False)
    assert most < LIMIT + (128 << 20), f"{most / MIB:.0f} MiB"


def test_device_state_that_does_not_end(tmp_path: Path) -> None:
    """A stated bound, not the size of the input: here 600 MiB behind the first device section."""
    path = tmp_path / "stream"
    head = b"".join(stream(1, pages=1, zeros=1, device=False))[:-1]
    try:
        with path.open("wb") as file:
            file.write(head + b"\4" + struct.pack(">I", 9) + b"\3dev" + struct.pack(">II", 0, 1))
            for _ in range(600):
                file.write(b"\x11" * MIB)
        status, most = peak(["inspect", "--json", str(path)], subprocess.DEVNULL, tmp_path / "o")
    finally:
        path.unlink(missing_ok=True)
    assert status in (3, 5)
    # README.md: 256 MiB of device sections beside the rest; twice, while they are gathered.
    assert most < LIMIT + (512 << 20), f"{most / MIB:.0f} MiB"


@pytest.mark.parametrize(
    "command",
    [
        ["hexdump", "--phys", "0", "-n", "64M", "--raw"],
        ["search", "no such text"],
        ["search", "--regex", "no such (text|bytes)"],
    ],
    ids=lambda c: " ".join(c[:2]),
)
def test_memory_in_place(command: list[str], tmp_path: Path) -> None:
    """8 bytes a page, whatever is read of it: 1 GiB of data, among 1 GiB of zeros."""
    path = tmp_path / "s"
    name, *options = command
    try:
        with path.open("wb") as file:
            file.writelines(stream(1 << 30, pages=1000, zeros=1000))
        status, most = peak([name, str(path), *options], subprocess.DEVNULL, tmp_path / "out")
    finally:
        path.unlink(missing_ok=True)
    assert status == 0
    assert most < LIMIT, f"{most / MIB:.0f} MiB"


if __name__ == "__main__":
    shape = json.loads(sys.argv[2])
    size = int(sys.argv[1])
    for piece in live_stream(shape, size) if isinstance(shape, str) else stream(size, **shape):
        sys.stdout.buffer.write(piece)
