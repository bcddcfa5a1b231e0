"""What `check` predicts is what QEMU says when it loads, and `diagnose` explains its log."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.qemu import Guest, Qemu, QemuError, has_machine

pytestmark = pytest.mark.qemu

MIB = 1 << 20
MACHINE = ["-M", "pc-q35-7.2", "-accel", "tcg"]
RNG = ["-device", "virtio-rng-pci,id=rng"]


@dataclass(frozen=True)
class Captured:
    """A stream, what the QEMU wrote of itself, and a directory."""

    stream: Path
    dump: Path
    directory: Path


def written(args: list[str], path: Path, mib: int = 16) -> Path:
    with Qemu(args, guest=Guest(fill=64), mem=("mem", mib * MIB)) as vm:
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        vm.path("guest.out").rename(path)
    return path


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    if not has_machine("pc-q35-7.2"):
        pytest.skip("no pc-q35-7.2")
    directory = tmp_path_factory.mktemp("check")
    stream = written([*MACHINE, *RNG], directory / "guest.out")
    command = ["qemu-system-x86_64", *MACHINE, "-nodefaults", "-display", "none"]
    subprocess.run([*command, "-dump-vmstate", directory / "dest.json"], check=True)
    return Captured(stream, directory / "dest.json", directory)


def log_of(stream: Path, args: list[str], mib: int = 16) -> str:
    """What the QEMU says that is to load a stream; empty if it does."""
    vm = Qemu(
        args,
        guest=Guest(fill=64),
        mem=("mem", mib * MIB),
        incoming="exec:cat guest.in",
        files={"guest.in": stream},
    )
    try:
        vm.start()
        vm.wait_loaded()
    except (QemuError, OSError, ValueError):
        return vm.errors()
    finally:
        log = vm.path("guest.err")
        text = log.read_text() if log.exists() else ""
        vm.close()
    return text


def predicted(stream: Path, against: Path) -> tuple[int, str, list[str], list[str]]:
    run = vmstream("check", "--json", stream, "--against", against)
    assert run.err == ""
    report = run.json()
    refused = [f for f in report["findings"] if f["effect"] == "refused"]
    lines = [line for f in refused[:1] for line in f["qemu"]]
    return run.status, report["verdict"], [f["code"] for f in refused], lines


def explained(stream: Path, log: str, code: str) -> dict[str, object]:
    run = vmstream("diagnose", "--json", stream, "--log", "-", stdin=log.encode())
    assert run.status == 0, run.err
    causes: list[dict[str, object]] = run.json()["causes"]
    return next(c for c in causes if c["code"] == code)


def said(log: str) -> list[str]:
    return [line.split(": ", 1)[1] for line in log.splitlines() if line.startswith("qemu-")]


def rewritten(source: Path, out: Path, *args: str) -> Path:
    if not out.exists():
        run = vmstream("rewrite", source, "-o", out, *args)
        assert run.status == 0, run.err
    return out


def test_accepted(captured: Captured) -> None:
    assert predicted(captured.stream, captured.dump)[:3] == (0, "loads", [])
    assert predicted(captured.stream, captured.stream)[:3] == (0, "loads", [])
    assert log_of(captured.stream, [*MACHINE, *RNG]) == ""


def test_another_machine(captured: Captured) -> None:
    args = ("--set", "configuration.name=pc-q35-9.9")
    stream = rewritten(captured.stream, captured.directory / "renamed", *args)
    status, verdict, codes, lines = predicted(stream, captured.dump)
    assert (status, verdict, codes) == (1, "refused", ["machine"])
    log = log_of(stream, [*MACHINE, *RNG])
    assert said(log) == lines
    cause = explained(stream, log, "machine")
    name = b"pc-q35-9.9"
    at = cause["offset"]
    assert isinstance(at, int)
    assert stream.read_bytes()[at : at + len(name)] == name


def test_a_missing_device(captured: Captured) -> None:
    other = written(MACHINE, captured.directory / "without")
    status, verdict, codes, lines = predicted(captured.stream, other)
    assert (status, verdict, codes) == (1, "refused", ["section"])
    log = log_of(captured.stream, MACHINE)
    assert said(log) == lines
    cause = explained(captured.stream, log, "section")
    at = cause["offset"]
    assert isinstance(at, int)
    head = captured.stream.read_bytes()[at:]
    name = str(cause["section"]).removesuffix("[0]").encode()
    assert name.endswith(b"/virtio-rng")
    assert (head[0], head[6 : 6 + len(name)]) == (4, name)


def test_another_size_of_ram(captured: Captured) -> None:
    other = written([*MACHINE, *RNG], captured.directory / "larger", 32)
    status, verdict, codes, lines = predicted(captured.stream, other)
    assert (status, verdict, codes[0]) == (1, "refused", "ram-length")
    log = log_of(captured.stream, [*MACHINE, *RNG], 32)
    assert said(log) == lines
    cause = explained(captured.stream, log, "ram-length")
    at = cause["offset"]
    assert isinstance(at, int)
    assert captured.stream.read_bytes()[at : at + 8] == (16 * MIB).to_bytes(8, "big")


def test_a_newer_section(captured: Captured) -> None:
    """And what `rewrite` cannot make: its version is changed in place."""
    data = bytearray(captured.stream.read_bytes())
    name = b"\x07serial\x00" if data.find(b"\x07serial\x00") > 0 else b"\x06serial"
    at = data.rindex(name) + len(name) + 4 - (name[-1] == 0)
    data[at : at + 4] = (99).to_bytes(4, "big")
    stream = captured.directory / "newer"
    stream.write_bytes(data)
    status, verdict, codes, lines = predicted(stream, captured.dump)
    assert (status, verdict, codes) == (1, "refused", ["version"])
    log = log_of(stream, [*MACHINE, *RNG])
    assert said(log) == lines
    assert explained(stream, log, "version")["offset"] == at
