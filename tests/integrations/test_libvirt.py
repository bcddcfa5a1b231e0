"""`capture --libvirt` of a real domain: RAM as it was, and the domain as it was, however it ends.

The end of the file has what a libvirt is not easily brought to, with a binding that is none.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.commandline import COMMAND, Run, environment, no_leftovers, vmstream
from tests.libvirtd import Libvirtd
from tests.qemu import Guest
from tests.report.test_models import validator
from vmstream.errors import OutputError
from vmstream.integrations.libvirt import DomainOptions, capture_domain

MIB = 1 << 20
SIZE = 16 * MIB
LARGE = 64 * MIB




@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    # The daemon may be another user, and is to write into files that the command makes.
    before = os.umask(0)
    with Libvirtd() as daemon:
        yield daemon
    os.umask(before)


@pytest.fixture(scope="module")
def busy(daemon: Libvirtd) -> None:
    daemon.domain("busy", Guest(fill=768, dirty=768), SIZE)


@pytest.fixture
def domain(daemon: Libvirtd, busy: None) -> Any:
    return daemon.connection.lookupByName("busy")


@pytest.fixture(scope="module")
def large(daemon: Libvirtd) -> Any:
    """So that a capture takes a while."""
    large = daemon.domain("large", Guest(fill=768, dirty=768), LARGE)
    with daemon.backend("large").open("r+b") as file:
        file.seek(SIZE)
        file.write(os.urandom(MIB) * (LARGE // MIB - 24))
    return large


@pytest.fixture
def place(daemon: Libvirtd) -> Iterator[Path]:
    """A directory that the daemon may enter."""
    place = daemon.directory / "out"
    place.mkdir()
    yield place
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def capture(daemon: Libvirtd, name: str, *args: str | Path) -> Run:
    return vmstream("capture", "--libvirt", name, "--connect", daemon.uri, *args)


def runs_on(daemon: Libvirtd, domain: Any) -> bool:
    """It is said to run, and the guest writes to its memory."""
    before = daemon.memory(domain, SIZE)
    until = time.monotonic() + 20
    while (same := daemon.memory(domain, SIZE) == before) and time.monotonic() < until:
        time.sleep(0.02)
    return domain.state()[0] == daemon.api.VIR_DOMAIN_RUNNING and not same


def extracted(path: Path) -> bytes:
    out = path.with_name("ram")
    run = vmstream("extract-ram", path, "--block", "pc.ram", "-o", out, "--force")
    assert run.status == 0, run.err
    return out.read_bytes()


def configuration(domain: Any) -> str:
    """What is left of a snapshot would be seen here: overlays of disks."""
    text: str = domain.XMLDesc(0)
    return text


@pytest.mark.qemu
@pytest.mark.libvirt
def test_stopped_and_left_so(daemon: Libvirtd, domain: Any, place: Path) -> None:
    """Memory of the moment, which libvirt loads; and then the domain can go on."""
    before = configuration(domain)
    out, manifest = place / "guest.save", place / "guest.json"
    run = capture(daemon, "busy", "-o", out, "--stop", "--verify", "--manifest", manifest)
    assert (run.status, run.err) == (0, "")
    assert "captured stopped; the guest was running and is paused\n" in run.out
    assert "verified: complete, no findings" in run.out
    assert domain.state()[0] == daemon.api.VIR_DOMAIN_PAUSED
    held = daemon.memory(domain, SIZE)
    assert extracted(out) == held
    account = json.loads(manifest.read_text())
    validator("capture").validate(account)
    total = subprocess.run(["sha256sum", out], capture_output=True, text=True, check=True).stdout
    assert account["output_sha256"] == total.split()[0]
    assert account["output_size"] == out.stat().st_size
    assert (account["name"], account["uuid"]) == ("busy", domain.UUIDString())
    assert (account["format"], account["qmp"], account["uri"]) == ("libvirt-raw", None, daemon.uri)
    # The stream is what is behind header and XML.
    stream = out.read_bytes()[-account["stream_size"] :]
    assert stream.startswith(b"QEVM")
    (place / "stream").write_bytes(stream)
    total = subprocess.run(
        ["sha256sum", place / "stream"], capture_output=True, text=True, check=True
    ).stdout
    assert account["stream_sha256"] == total.split()[0]

    # Paused, it is the same behind a capture that fails.
    run = capture(daemon, "busy", "-o", place / "again")
    assert run.status == 2
    assert "paused due to previous migration; virsh resume" in run.err
    domain.resume()
    assert runs_on(daemon, domain)
    assert configuration(domain) == before
    assert domain.snapshotNum() == 0
    assert no_leftovers(place)

    # The image is one of libvirt's own: it makes the domain of it.
    domain.destroy()
    daemon.connection.restoreFlags(str(out), None, daemon.api.VIR_DOMAIN_SAVE_PAUSED)
    again = daemon.connection.lookupByName("busy")
    assert daemon.memory(again, SIZE) == held
    again.resume()
    assert runs_on(daemon, again)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_it_goes_on(daemon: Libvirtd, domain: Any, place: Path) -> None:
    before = configuration(domain)
    for options, said in (([], "captured stopped; "), (["--live", "--passes", "2"], "live, ")):
        out = place / "out"
        run = capture(daemon, domain.UUIDString(), "-o", out, "--force", "--verify", *options)
        assert (run.status, run.err) == (0, "")
        assert said in run.out
        assert "the guest was running and is running\n" in run.out
        assert "verified: complete, no findings" in run.out
        assert runs_on(daemon, domain)
    assert configuration(domain) == before
    assert domain.snapshotNum() == 0


@pytest.mark.qemu
@pytest.mark.libvirt
def test_a_domain_that_does_not_run_stays_so(daemon: Libvirtd, domain: Any, place: Path) -> None:
    domain.suspend()
    held = daemon.memory(domain, SIZE)
    run = capture(daemon, str(domain.ID()), "-o", place / "out", "--live")
    assert run.status == 0, run.err
    assert "was paused and is paused" in run.out
    assert domain.state()[0] == daemon.api.VIR_DOMAIN_PAUSED
    assert daemon.memory(domain, SIZE) == held == extracted(place / "out")
    domain.resume()


def started(daemon: Libvirtd, domain: Any, *args: str | Path) -> subprocess.Popen[bytes]:
    command = ["capture", "--libvirt", domain.name(), "--connect", daemon.uri, *map(str, args)]
    return subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, env=environment())


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.qemu
@pytest.mark.libvirt
@pytest.mark.parametrize("mode", ["--stopped", "--live", "--stop"])
def test_interrupted(mode: str, daemon: Libvirtd, large: Any, place: Path) -> None:
    number = signal.SIGTERM if mode == "--live" else signal.SIGINT
    process = started(daemon, large, "-o", place / "out", mode)
    with daemon.stalled():
        assert [p.suffix for p in place.iterdir()] == [".part"]
        wait(lambda: large.jobStats()["type"] == daemon.api.VIR_DOMAIN_JOB_UNBOUNDED)
        running = large.state()[0] == daemon.api.VIR_DOMAIN_RUNNING
        assert running == (mode == "--live")
        process.send_signal(number)
        time.sleep(0.2)  # and if it takes longer, the job may complete, but ends the same for us
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, b"")
    assert list(place.iterdir()) == []
    assert large.jobStats()["type"] == daemon.api.VIR_DOMAIN_JOB_NONE
    assert runs_on(daemon, large)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_killed(daemon: Libvirtd, large: Any, place: Path) -> None:
    """Libvirt brings its job to an end, and the domain goes on."""
    process = started(daemon, large, "-o", place / "out")
    with daemon.stalled():
        process.kill()
        process.communicate()
        assert large.state()[0] == daemon.api.VIR_DOMAIN_PAUSED
        other = capture(daemon, "large", "-o", place / "other")
        assert other.status == 2
        assert "a job of the domain 'large' goes on already" in other.err
    assert [p.suffix for p in place.iterdir()] == [".part"]
    wait(lambda: bool(large.state()[0] == daemon.api.VIR_DOMAIN_RUNNING))
    assert runs_on(daemon, large)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_the_output_fails(daemon: Libvirtd, large: Any, place: Path) -> None:
    """What writes for libvirt may write no more than a MiB; a full disk ends like this."""
    daemon.limit_files(MIB)
    run = capture(daemon, "large", "-o", place / "out")
    daemon.limit_files("unlimited")
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("vmstream: libvirt: ")
    assert ".part" not in run.err
    assert list(place.iterdir()) == []
    assert runs_on(daemon, large)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_refusals(daemon: Libvirtd, domain: Any, place: Path) -> None:
    out = place / "out"
    run = capture(daemon, "nobody's", "-o", out)
    assert run.status == 2
    assert 'has no domain "nobody\'s"' in run.err
    run = vmstream("capture", "--libvirt", "x", "--connect", "qemu+unix:///session?socket=no", "-o", out)
    assert run.status == 2
    assert "libvirt: Failed to connect socket to 'no'" in run.err
    out.write_bytes(b"mine")
    run = capture(daemon, "busy", "-o", out)
    assert run.status == 2
    assert "--force" in run.err
    assert out.read_bytes() == b"mine"
    if os.getuid() == 0:  # and the daemon is somebody else
        closed = place / "closed"
        closed.touch()
        closed.unlink()
        os.umask(0o077)
        run = capture(daemon, "busy", "-o", closed)
        os.umask(0)
        assert run.status == 2
        assert f"{closed}': Permission denied; libvirt's daemon, which may be another" in run.err
    assert [p.name for p in place.iterdir()] == ["out"]
    assert runs_on(daemon, domain)
