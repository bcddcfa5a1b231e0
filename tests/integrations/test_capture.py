"""`capture` of a real QEMU: RAM as it was, and the guest as it was, however the capture ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import COMMAND, environment, no_leftovers, vmstream
from tests.qemu import Guest, Qemu, userfault_refused
from tests.report.test_models import validator

pytestmark = pytest.mark.qemu

MIB = 1 << 20
SIZE = 16 * MIB
SOCKET = ["-qmp", "unix:capture.qmp,server=on,wait=off"]
BUSY = Guest(fill=768, dirty=768)


@pytest.fixture(scope="module")
def guest() -> Iterator[Qemu]:
    args = ["-M", "pc", "-accel", "tcg", "-name", "busy", *SOCKET]
    with Qemu(args, guest=BUSY, mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        # Settings of somebody else's, one of which a capture cannot do with.
        vm.set_capabilities(multifd=True, auto_converge=True)
        vm.set_parameters(max_bandwidth=3 * MIB, multifd_channels=3)
        yield vm


@pytest.fixture(scope="module")
def large() -> Iterator[Qemu]:
    """So that a capture takes a while."""
    args = ["-M", "pc", "-accel", "tcg", *SOCKET]
    with Qemu(args, guest=BUSY, mem=("mem", 256 * MIB)) as vm:
        vm.wait_serial(b"FILLED")
        with vm.backend.open("r+b") as file:
            file.seek(SIZE)
            file.write(os.urandom(MIB) * 200)
        yield vm


def capture(vm: Qemu, *args: str | Path) -> Any:
    return vmstream("capture", "--qmp", vm.path("capture.qmp"), *args)


def settings(vm: Qemu) -> Any:
    return vm.qmp("query-migrate-capabilities"), vm.qmp("query-migrate-parameters")


def runs_on(vm: Qemu) -> bool:
    """The guest writes to its memory."""

    def memory() -> bytes:
        with vm.backend.open("rb") as file:
            return file.read(SIZE)

    before = memory()
    until = time.monotonic() + 20
    while memory() == before and time.monotonic() < until:
        time.sleep(0.02)
    return vm.qmp("query-status")["status"] == "running" and memory() != before


def extracted(path: Path, directory: Path) -> bytes:
    out = directory / "ram"
    run = vmstream("extract-ram", path, "--block", "mem", "-o", out, "--force")
    assert run.status == 0, run.err
    return out.read_bytes()


def test_stopped(guest: Qemu, tmp_path: Path) -> None:
    """Memory of the moment, since the guest is left stopped here; then it can go on."""
    before = settings(guest)
    out, manifest = tmp_path / "dump.bin", tmp_path / "dump.json"
    run = capture(guest, "-o", out, "--stop", "--verify", "--manifest", manifest)
    assert (run.status, run.err) == (0, "")
    assert "the guest was running and is postmigrate" in run.out
    assert "verified: complete, no findings" in run.out
    assert settings(guest) == before
    assert guest.qmp("query-status")["status"] == "postmigrate"
    assert extracted(out, tmp_path) == guest.backend.read_bytes()
    guest.cont()
    assert runs_on(guest)
    account = json.loads(manifest.read_text())
    validator("capture").validate(account)
    total = subprocess.run(["sha256sum", out], capture_output=True, text=True, check=True).stdout
    assert account["output_sha256"] == account["stream_sha256"] == total.split()[0]
    assert account["output_size"] == out.stat().st_size
    assert (account["name"], account["complete"]) == ("busy", True)
    assert account["qemu"].startswith(guest.version().split()[0])
    set_for_it = {s["name"]: (s["before"], s["during"]) for s in account["settings"]}
    assert set_for_it["multifd"] == (True, False)
    assert set_for_it["max-bandwidth"] == (3 * MIB, 1 << 40)
    assert "auto-converge" not in set_for_it


def test_it_goes_on(guest: Qemu, tmp_path: Path) -> None:
    """Each way to write, and what comes is a whole stream."""
    before = settings(guest)
    packed = tmp_path / "dump.zst"
    run = capture(guest, "-o", packed, "--zstd", "--json")
    assert run.status == 0, run.err
    assert settings(guest) == before
    assert runs_on(guest)
    plain = subprocess.run(["zstd", "-dc", packed], capture_output=True, check=True).stdout
    assert run.json()["stream_size"] == len(plain)
    (tmp_path / "plain").write_bytes(plain)
    total = subprocess.run(["sha256sum", tmp_path / "plain"], capture_output=True, text=True)
    assert run.json()["stream_sha256"] == total.stdout.split()[0]
    assert extracted(packed, tmp_path) == extracted(tmp_path / "plain", tmp_path)

    live = tmp_path / "live.bin"
    guest.set_parameters(downtime_limit=1)
    run = capture(guest, "-o", live, "--live", "--passes", "4", "--json")
    guest.set_parameters(downtime_limit=300)
    assert run.status == 0, run.err
    assert settings(guest) == before
    assert runs_on(guest)
    assert run.json()["status_after"] == "running"
    assert run.json()["passes"] >= 2
    assert vmstream("inspect", live).status == 0

    piped = subprocess.run(
        [
            *COMMAND,
            "capture",
            "--qmp",
            str(guest.path("capture.qmp")),
            "-o",
            "-",
            "--live",
            "--xbzrle",
        ],
        capture_output=True,
        env=environment(),
    )
    assert piped.returncode == 0
    assert b"running and is running" in piped.stderr
    assert vmstream("inspect", "-", stdin=piped.stdout).status == 0


def test_a_guest_that_does_not_run_stays_so(guest: Qemu, tmp_path: Path) -> None:
    guest.stop()
    run = capture(guest, "-o", tmp_path / "out")
    assert run.status == 0, run.err
    assert "was paused and is postmigrate" in run.out
    assert not guest.qmp("query-status")["running"]
    assert extracted(tmp_path / "out", tmp_path) == guest.backend.read_bytes()
    guest.cont()


def test_background_snapshot(tmp_path: Path) -> None:
    args = ["-M", "pc", "-accel", "tcg", "-m", "16M", *SOCKET]
    with Qemu(args, guest=BUSY) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(auto_converge=True, return_path=True)  # which QEMU refuses beside it
        before = settings(vm)
        run = capture(vm, "-o", tmp_path / "out", "--background-snapshot", "--verify")
        if userfault_refused() is not None:
            assert run.status == 2
            assert "QEMU refuses migrate-set-capabilities: Background-snapshot is not" in run.err
            assert no_leftovers(tmp_path)
        else:
            assert (run.status, run.err) == (0, "")
            assert "verified: complete" in run.out
        assert settings(vm) == before
        assert vm.qmp("query-status")["status"] == "running"


def started(vm: Qemu, *args: str | Path, **more: Any) -> subprocess.Popen[bytes]:
    """A capture that is at it."""
    process = subprocess.Popen(
        [*COMMAND, "capture", "--qmp", str(vm.path("capture.qmp")), *map(str, args)],
        stderr=subprocess.PIPE,
        env=environment(),
        **more,
    )

    def active() -> bool:
        assert process.poll() is None, process.communicate()
        return vm.query_migrate().get("status") == "active"

    vm._wait(active, 30, "migration")
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_interrupted(number: signal.Signals, large: Qemu, tmp_path: Path) -> None:
    before = settings(large)
    process = started(large, "-o", tmp_path / "out")
    process.send_signal(signal.SIGSTOP)
    assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    assert not large.qmp("query-status")["running"]
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert err == b""
    assert list(tmp_path.iterdir()) == []
    assert large.query_migrate()["status"] in ("cancelled", "failed")
    assert settings(large) == before
    assert runs_on(large)
    # And it can be captured again.
    if number == signal.SIGTERM:
        assert capture(large, "-o", tmp_path / "out", "--verify").status == 0


def test_interrupted_while_nobody_reads(guest: Qemu) -> None:
    """The guest is paused, and QEMU waits for a pipe that is full."""
    before = settings(guest)
    process = started(guest, "-o", "-", stdout=subprocess.PIPE)
    time.sleep(0.3)
    assert not guest.qmp("query-status")["running"]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    process.communicate()
    assert process.returncode == 130
    assert settings(guest) == before
    assert runs_on(guest)


def test_disk_full(guest: Qemu, tmp_path: Path) -> None:
    before = settings(guest)
    done = subprocess.run(
        [*COMMAND, "capture", "--qmp", guest.path("capture.qmp"), "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB)),
    )
    assert done.returncode == 6
    assert done.stderr == f"vmstream: {tmp_path / 'out'}: File too large\n"
    assert list(tmp_path.iterdir()) == []
    assert settings(guest) == before
    assert runs_on(guest)


def test_a_closed_pipe(guest: Qemu) -> None:
    before = settings(guest)
    process = started(guest, "-o", "-", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    process.stderr.close()
    assert settings(guest) == before
    assert runs_on(guest)


@pytest.mark.parametrize("mode", ["--stopped", "--live"])
def test_killed(mode: str, large: Qemu, tmp_path: Path) -> None:
    """With all of its process group, in the middle."""
    before = settings(large)
    process = started(large, "-o", tmp_path / "out", mode, start_new_session=True)
    assert large.qmp("query-status")["running"] == (mode == "--live")
    assert settings(large) != before
    os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)  # the end of who holds standard error
    assert err == b"vmstream: the capture was killed; the guest was put back\n"
    assert large.query_migrate()["status"] in ("cancelled", "failed")
    assert settings(large) == before
    assert runs_on(large)
    assert list(tmp_path.iterdir()) == []


def test_refusals(guest: Qemu, tmp_path: Path) -> None:
    before = settings(guest)
    out = tmp_path / "out"
    run = capture(guest, "-o", out, "--mapped-ram")
    if "mapped-ram" not in {c["capability"] for c in before[0]}:
        assert (run.status, run.out) == (2, "")
        assert "has no capability mapped-ram, which came with 9.0" in run.err
    out.write_bytes(b"mine")
    run = capture(guest, "-o", out)
    assert run.status == 2
    assert "--force" in run.err
    assert out.read_bytes() == b"mine"
    guest.set_capabilities(multifd=False)
    guest.set_parameters(max_bandwidth=4096)
    guest.migrate("exec:cat>/dev/null", wait=False)
    run = capture(guest, "-o", tmp_path / "other")
    assert run.status == 2
    assert "a migration of this guest goes on already (" in run.err
    guest.qmp("migrate_cancel")
    guest._wait(lambda: guest.query_migrate()["status"] == "cancelled", 30, "cancel")
    guest.set_capabilities(multifd=True)
    guest.set_parameters(max_bandwidth=3 * MIB)
    assert settings(guest) == before
    assert runs_on(guest)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_device_that_cannot_migrate(tmp_path: Path) -> None:
    """QEMU's words, and the guest as it was."""
    args = ["-M", "pc", "-accel", "tcg", "-m", "16M", "-device", "nvme,serial=1", *SOCKET]
    with Qemu(args) as vm:
        before = settings(vm)
        run = capture(vm, "-o", tmp_path / "out")
        assert run.status == 2
        assert run.err.startswith("vmstream: QEMU refuses migrate: ")
        assert "non-migratable device" in run.err
        assert list(tmp_path.iterdir()) == []
        assert vm.qmp("query-status")["status"] == "running"
        assert settings(vm) == before
