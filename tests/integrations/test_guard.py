"""The guard of a capture that is killed: the guest is put back from wherever it was."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import environment
from tests.integrations.test_capture import BUSY, SIZE, SOCKET, runs_on, settings
from tests.qemu import Qemu
from vmstream.integrations import guard
from vmstream.integrations.guard import NAME, Changes
from vmstream.integrations.qmp import Monitor, RefusedError

PUT_BACK = "vmstream: the capture was killed; the guest was put back\n"

# A capture that ends behind a command to QEMU, or when it sums up what it has.
KILLED = """
import os, sys
from vmstream.cli.main import main
from vmstream.integrations.qmp import Monitor
from vmstream.transport.sink import OutputFile
real, (last, *args) = Monitor.run, sys.argv[1:]
def run(self, command, **arguments):
    try:
        return real(self, command, **arguments)
    finally:
        if command == last:
            os.kill(os.getpid(), 9)
Monitor.run = run
if last == "sha256":
    OutputFile.sha256 = lambda self: os.kill(os.getpid(), 9)
main(args)
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Qemu]:
    args = ["-M", "pc", "-accel", "tcg", *SOCKET]
    with Qemu(args, guest=BUSY, mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(multifd=True)
        yield vm


def killed(vm: Qemu, behind: str, *args: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, behind, "capture", "--qmp", vm.path("capture.qmp"), *args],
        capture_output=True, text=True, timeout=120, env=environment(),
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr


@pytest.mark.qemu
@pytest.mark.parametrize("behind", ["migrate-set-capabilities", "getfd", "migrate", "cont"])
def test_wherever_it_is_killed(behind: str, guest: Qemu, tmp_path: Path) -> None:
    before = settings(guest)
    assert killed(guest, behind, "-o", tmp_path / "out") == PUT_BACK
    assert settings(guest) == before
    assert runs_on(guest)
    assert list(tmp_path.iterdir()) == []
    with Monitor(guest.path("capture.qmp")) as monitor, pytest.raises(RefusedError, match="named"):
        monitor.run("closefd", fdname=NAME)


@pytest.mark.qemu
def test_left_stopped_only_behind_a_file(guest: Qemu, tmp_path: Path) -> None:
    before = settings(guest)
    options = ["-o", tmp_path / "out", "--manifest", tmp_path / "manifest"]
    assert killed(guest, "sha256", *options, "--stop") == PUT_BACK
    assert settings(guest) == before
    assert runs_on(guest)
    # All had been put back: nothing to say.
    assert killed(guest, "sha256", *options) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.qemu
def test_before_anything_and_without_qemu(tmp_path: Path) -> None:
    with Qemu(["-M", "none", *SOCKET]) as vm:
        assert killed(vm, "query-status", "-o", tmp_path / "out") == ""
        assert list(tmp_path.iterdir()) == []


def test_nobody_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """QEMU ended, too: the file goes, and no other one, and nothing is to be said."""
    part, other = tmp_path / "part", tmp_path / "other"
    part.touch()
    other.touch()
    changes = Changes(str(tmp_path / "no.qmp"), str(part), resume=True)
    told = {name: getattr(changes, name) for name in Changes.__slots__}
    monkeypatch.setattr(guard, "last_told", lambda: told)
    monkeypatch.setattr(guard, "end_within", lambda seconds: None)
    guard.main()
    assert list(tmp_path.iterdir()) == [other]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "no.qmp"))
    listening.listen()
    monkeypatch.setattr(guard, "_GREETING_TIMEOUT", 0.1)
    guard.main()
    listening.close()
    err = capfd.readouterr().err
    assert err.startswith("vmstream: the capture was killed; nothing could be put back: ")
    monkeypatch.setattr(guard, "last_told", lambda: None)
    guard.main()
