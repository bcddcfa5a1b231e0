"""`capture --libvirt` of a real domain: RAM as it was, and the domain as it was, however it ends.

The end of the file has what a libvirt is not easily brought to, with a binding that is none.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

import vmstream
from tests.commandline import COMMAND, environment, no_leftovers
from tests.containers import save_image
from tests.libvirtd import Libvirtd
from tests.qemu import Guest
from tests.report.test_models import validator
from vmstream.errors import OutputError
from vmstream.integrations.libvirt import DomainOptions, capture_domain

MIB = 1 << 20
SIZE = 48 * MIB
# What the guest may write to.
GUEST = 16 * MIB


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    # The daemon may be another user, and is to write into files that the command makes.
    before = os.umask(0)
    with Libvirtd() as daemon:
        yield daemon
    os.umask(before)


@pytest.fixture(scope="module")
def busy(daemon: Libvirtd) -> None:
    """With more in memory than pipes take, so that a job can be met while it goes on."""
    daemon.domain("busy", Guest(fill=768, dirty=768), SIZE)
    with daemon.backend("busy").open("r+b") as file:
        file.seek(GUEST)
        file.write(os.urandom(MIB) * 24)


@pytest.fixture
def domain(daemon: Libvirtd, busy: None) -> Any:
    return daemon.connection.lookupByName("busy")


@pytest.fixture
def place(daemon: Libvirtd) -> Iterator[Path]:
    """A directory that the daemon may enter."""
    place = daemon.directory / "out"
    place.mkdir()
    yield place
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def options(daemon: Libvirtd, output: Path, domain: str = "busy", **more: Any) -> DomainOptions:
    return DomainOptions(domain, output, daemon.uri, **more)


def started(
    daemon: Libvirtd, domain: Any, *args: str | Path, **more: Any
) -> subprocess.Popen[bytes]:
    """A process of its own; one of `tests.forkserver` would not have our umask."""
    command = ["capture", "--libvirt", domain.name(), "--connect", daemon.uri, *map(str, args)]
    return subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, env=environment(), **more)


def runs_on(daemon: Libvirtd, domain: Any) -> bool:
    """It is said to run, and the guest writes to its memory."""
    before = daemon.memory(domain, GUEST)
    until = time.monotonic() + 20
    while (same := daemon.memory(domain, GUEST) == before) and time.monotonic() < until:
        time.sleep(0.02)
    return domain.state()[0] == daemon.api.VIR_DOMAIN_RUNNING and not same


def ram(path: Path) -> bytes:
    with vmstream.open(path) as stream, stream.memory() as memory:
        return memory.read_block("pc.ram", 0, SIZE)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.qemu
@pytest.mark.libvirt
def test_stopped_and_left_so(daemon: Libvirtd, domain: Any, place: Path) -> None:
    """Memory of the moment, which libvirt loads; and then the domain can go on."""
    before = domain.XMLDesc(0)
    out, manifest = place / "guest.save", place / "guest.json"
    process = started(
        daemon, domain, "-o", out, "--stop", "--verify", "--manifest", manifest,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"captured stopped; the guest was running and is paused\n" in said
    assert b"verified: complete, no findings" in said
    assert domain.state()[0] == daemon.api.VIR_DOMAIN_PAUSED
    held = daemon.memory(domain, SIZE)
    assert ram(out) == held
    account = json.loads(manifest.read_text())
    validator("capture").validate(account)
    image = out.read_bytes()
    assert (account["output_size"], account["output_sha256"]) == (len(image), sha256(image))
    # The stream is what is behind header and XML.
    stream = image[-account["stream_size"] :]
    assert stream.startswith(b"QEVM")
    assert account["stream_sha256"] == sha256(stream)
    assert (account["name"], account["uuid"]) == ("busy", domain.UUIDString())
    assert (account["format"], account["qmp"], account["uri"]) == ("libvirt-raw", None, daemon.uri)

    # Paused, it is the same behind a capture that fails.
    with pytest.raises(OutputError, match="paused due to previous migration; virsh resume"):
        capture_domain(options(daemon, place / "again"))
    domain.resume()
    assert runs_on(daemon, domain)
    # An overlay of a disk would be seen here.
    assert domain.XMLDesc(0) == before
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
    before = domain.XMLDesc(0)
    out = place / "out"
    seen: list[tuple[int, int]] = []
    for live, name in ((False, "busy"), (True, domain.UUIDString())):
        report, status = capture_domain(
            options(daemon, out, name, live=live, passes=2, verify=True, force=True),
            lambda done, total: seen.append((done, total)),
        )
        assert (status, report.complete, report.anomalies) == (0, True, [])
        assert report.mode == ("live" if live else "stopped")
        assert (report.status_before, report.status_after) == ("running", "running")
        assert runs_on(daemon, domain)
    assert all(0 < done <= total for done, total in seen)
    assert domain.XMLDesc(0) == before
    assert domain.snapshotNum() == 0


@pytest.mark.qemu
@pytest.mark.libvirt
def test_a_domain_that_does_not_run_stays_so(daemon: Libvirtd, domain: Any, place: Path) -> None:
    domain.suspend()
    held = daemon.memory(domain, SIZE)
    report, _ = capture_domain(options(daemon, place / "out", str(domain.ID()), live=True))
    assert (report.status_before, report.status_after) == ("paused", "paused")
    assert domain.state()[0] == daemon.api.VIR_DOMAIN_PAUSED
    assert daemon.memory(domain, SIZE) == held == ram(place / "out")
    domain.resume()


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.qemu
@pytest.mark.libvirt
@pytest.mark.parametrize("mode", ["--live", "--stop"])
def test_interrupted(mode: str, daemon: Libvirtd, domain: Any, place: Path) -> None:
    number = signal.SIGTERM if mode == "--live" else signal.SIGINT
    process = started(daemon, domain, "-o", place / "out", mode)
    with daemon.stalled():
        assert [p.suffix for p in place.iterdir()] == [".part"]
        wait(lambda: domain.jobStats()["type"] == daemon.api.VIR_DOMAIN_JOB_UNBOUNDED)
        running = domain.state()[0] == daemon.api.VIR_DOMAIN_RUNNING
        assert running == (mode == "--live")
        process.send_signal(number)
        time.sleep(0.2)  # and if it takes longer, the job may complete, but ends the same for us
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, b"")
    assert list(place.iterdir()) == []
    assert domain.jobStats()["type"] == daemon.api.VIR_DOMAIN_JOB_NONE
    assert runs_on(daemon, domain)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_killed(daemon: Libvirtd, domain: Any, place: Path) -> None:
    """Libvirt brings its job to an end, and the domain goes on."""
    process = started(daemon, domain, "-o", place / "out")
    with daemon.stalled():
        process.kill()
        process.communicate()
        assert domain.state()[0] == daemon.api.VIR_DOMAIN_PAUSED
        with pytest.raises(OutputError, match="a job of the domain 'busy' goes on already"):
            capture_domain(options(daemon, place / "other"))
    assert [p.suffix for p in place.iterdir()] == [".part"]
    wait(lambda: bool(domain.state()[0] == daemon.api.VIR_DOMAIN_RUNNING))
    assert runs_on(daemon, domain)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_the_output_fails(daemon: Libvirtd, domain: Any, place: Path) -> None:
    """What writes for libvirt may write no more than a MiB; a full disk ends like this."""
    daemon.limit_files(MIB)
    with pytest.raises(OutputError, match=r"libvirt: .*fatal signal") as caught:
        capture_domain(options(daemon, place / "out"))
    daemon.limit_files("unlimited")
    assert ".part" not in str(caught.value)
    assert list(place.iterdir()) == []
    assert runs_on(daemon, domain)


@pytest.mark.qemu
@pytest.mark.libvirt
def test_refusals(daemon: Libvirtd, domain: Any, place: Path) -> None:
    out = place / "out"
    with pytest.raises(OutputError, match="has no domain 'nobody': `virsh -c "):
        capture_domain(options(daemon, out, "nobody"))
    with pytest.raises(OutputError, match="libvirt: Failed to connect socket to '/no'"):
        capture_domain(DomainOptions("busy", out, "qemu+unix:///session?socket=/no"))
    with pytest.raises(OutputError, match="is a connection to TEST, not to QEMU"):
        capture_domain(DomainOptions("test", out, "test:///default"))
    if os.getuid() == 0:  # and the daemon is somebody else
        os.umask(0o077)
        with pytest.raises(OutputError, match="out': Permission denied; libvirt's daemon, which"):
            capture_domain(options(daemon, out))
        os.umask(0)
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--force"):
        capture_domain(options(daemon, out))
    assert out.read_bytes() == b"mine"
    assert [p.name for p in place.iterdir()] == ["out"]
    assert runs_on(daemon, domain)


# -- a binding that is none -----------------------------------------------------------------------


class FakeError(Exception):
    def __init__(self, text: str, code: int = 0, number: int = 0) -> None:
        super().__init__(text)
        self.get_error_code = lambda: code
        self.get_int1 = lambda: number


NO_DOMAIN, SYSTEM_ERROR, SNAPSHOT, LIVE, NO_METADATA, COMPLETED = 42, 38, 6, 256, 16, 1
IMAGE = save_image(b"QEVM\0\0\0\x03\0")


class Fake:
    """A connection, and the domain 'guest', whose job is `self.job`."""

    uri = "qemu:///system"
    said = "QEMU"
    number = 1
    image = IMAGE

    def __init__(self) -> None:
        self.log: list[str] = []
        self.aborted = threading.Event()

    def open(self, uri: str | None) -> Fake:
        self.log.append(f"open {uri}")
        return self

    def lookupByName(self, name: str) -> Fake:  # noqa: N802
        if name != "guest":
            raise FakeError("no domain", NO_DOMAIN)
        return self

    def lookupByUUIDString(self, name: str) -> Fake:  # noqa: N802
        raise FakeError("no domain", NO_DOMAIN)

    def state(self) -> list[int]:
        return [self.number, 0]

    def jobStats(self, flags: int = 0) -> dict[str, int]:  # noqa: N802
        return {"type": 0}

    def suspend(self) -> None:
        self.log.append("suspend")
        self.number = 3

    def resume(self) -> None:
        self.log.append("resume")
        self.number = 1

    def abortJob(self) -> None:  # noqa: N802
        self.aborted.set()

    def snapshotCreateXML(self, xml: str, flags: int) -> None:  # noqa: N802
        self.log.append(f"snapshot {flags}")
        memory = ElementTree.fromstring(xml).find("memory")  # noqa: S314 (our own)
        assert memory is not None
        self.job(Path(memory.get("file", "")))

    def job(self, path: Path) -> None:
        path.write_bytes(self.image)

    def module(self) -> ModuleType:
        module = ModuleType("libvirt")
        module.__dict__.update(
            open=self.open,
            libvirtError=FakeError,
            registerErrorHandler=lambda handler, context: None,
            VIR_ERR_NO_DOMAIN=NO_DOMAIN,
            VIR_ERR_INVALID_ARG=8,
            VIR_ERR_SYSTEM_ERROR=SYSTEM_ERROR,
            VIR_DOMAIN_JOB_NONE=0,
            VIR_DOMAIN_JOB_OPERATION_SNAPSHOT=SNAPSHOT,
            VIR_DOMAIN_JOB_STATS_COMPLETED=COMPLETED,
            VIR_DOMAIN_SNAPSHOT_CREATE_LIVE=LIVE,
            VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA=NO_METADATA,
        )
        return module

    getURI = lambda self: self.uri  # noqa: E731, N815
    getType = lambda self: self.said  # noqa: E731, N815
    getLibVersion = lambda self: 11_003_000  # noqa: E731, N815
    name = lambda self: "guest"  # noqa: E731
    UUIDString = lambda self: "0"  # noqa: E731
    close = lambda self: self.log.append("close")  # noqa: E731
    XMLDesc = lambda self, flags: "<domain><os><type machine='pc-q35-9.2'/></os></domain>"  # noqa: E731


def faked(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> Fake:
    monkeypatch.setitem(sys.modules, "libvirt", fake.module())
    return fake


def test_a_fake_is_captured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Or the rest would show nothing."""
    fake = faked(monkeypatch, Fake())
    report, status = capture_domain(DomainOptions("guest", tmp_path / "out", live=True))
    assert (status, report.libvirt, report.machine) == (0, "11.3.0", "pc-q35-9.2")
    assert fake.log == ["open None", f"snapshot {LIVE | NO_METADATA}", "close"]
    assert (tmp_path / "out").read_bytes() == IMAGE


def test_a_compressed_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As libvirt's configuration may want it: the stream is measured unpacked."""
    stream = b"QEVM" + bytes(100_000)
    fake = faked(monkeypatch, Fake())
    fake.image = save_image(gzip.compress(stream), number=1)
    report, _ = capture_domain(DomainOptions("guest", tmp_path / "out", digest=True))
    assert (report.format, report.output_size) == ("libvirt-gzip", len(fake.image))
    assert (report.stream_size, report.stream_sha256) == (len(stream), sha256(stream))


def refused(fake: Fake, monkeypatch: pytest.MonkeyPatch, output: Path, **more: Any) -> str:
    faked(monkeypatch, fake)
    with pytest.raises(OutputError) as caught:
        capture_domain(DomainOptions("guest", output, **more))
    assert list(output.parent.iterdir()) == []
    assert fake.log[-1] == "close"
    return str(caught.value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"uri": "qemu+ssh://me@far/system"}, "on far: run vmstream there"),
        ({"said": "LXC"}, "a connection to LXC, not to QEMU"),
        ({"number": 5}, "is shut off: only one that runs"),
        ({"number": 7}, "is pmsuspended: only"),
        ({"image": b""}, "nothing came: its daemon sees another file system"),
        ({"image": b"LibvirtQemudPart" + IMAGE[16:]}, "no finished save image"),
        ({"image": IMAGE[:30]}, "libvirt's job completed, but"),
        ({"image": b"QEVM"}, "no finished save image"),
    ],
)
def test_what_is_no_capture(
    made: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake()
    fake.__dict__.update(made)
    assert said in refused(fake, monkeypatch, tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EACCES, "in /tmp the kernel"), (errno.ENOENT, "in a container"), (errno.EIO, None)],
)
def test_what_libvirt_says(
    number: int, advice: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the name that was given, and what to do."""

    class Failing(Fake):
        def job(self, path: Path) -> None:
            assert path.suffix == ".part"
            self.number = 3  # as libvirt left it: we have it go on
            raise FakeError(f"Failed to create file '{path}': no", SYSTEM_ERROR, number)

    fake = Failing()
    said = refused(fake, monkeypatch, tmp_path / "out", stop=True)
    assert said.startswith(f"libvirt: Failed to create file '{tmp_path / 'out'}': no")
    assert advice in said if advice else ";" not in said
    assert fake.log[1:] == ["suspend", f"snapshot {NO_METADATA}", "resume", "close"]


def test_what_cannot_be_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stuck(Fake):
        def job(self, path: Path) -> None:
            super().job(path)
            self.number = 3

        def resume(self) -> None:
            raise FakeError("no lock")

    faked(monkeypatch, Stuck())
    told: list[str] = []
    report, status = capture_domain(DomainOptions("guest", tmp_path / "out"), tell=told.append)
    assert status == 1
    assert report.troubles == told == ["the domain, which ran: no lock"]


def test_the_job_is_aborted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ours, that is: first there is one of somebody else."""

    class Long(Fake):
        asked = 0

        def jobStats(self, flags: int = 0) -> dict[str, int]:  # noqa: N802
            self.asked += 1
            if self.asked == 1:
                return {"type": 0}
            if self.asked == 2:
                os.kill(os.getpid(), signal.SIGINT)
            assert not self.aborted.is_set()
            return {"type": 2, "operation": SNAPSHOT if self.asked > 4 else 5}

        def job(self, path: Path) -> None:
            path.write_bytes(b"LibvirtQemudPart")
            assert self.aborted.wait(20)
            raise FakeError("operation aborted")

    fake = faked(monkeypatch, Long())
    with pytest.raises(KeyboardInterrupt):
        capture_domain(DomainOptions("guest", tmp_path / "out"))
    assert fake.asked == 5
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_goes_on_already(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Migrating(Fake):
        def jobStats(self, flags: int = 0) -> dict[str, int]:  # noqa: N802
            return {"type": 2, "operation": 5}

    assert "goes on already" in refused(Migrating(), monkeypatch, tmp_path / "out")


def test_a_live_capture_comes_to_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Never(Fake):
        asked = 0

        def jobStats(self, flags: int = 0) -> dict[str, int]:  # noqa: N802
            self.asked += 1
            if self.asked == 1 or flags:
                return {"type": 0}
            return {"type": 2, "operation": SNAPSHOT, "memory_iteration": self.asked}

        def suspend(self) -> None:
            super().suspend()
            self.aborted.set()

        def job(self, path: Path) -> None:
            assert self.aborted.wait(20)
            super().job(path)

    fake = faked(monkeypatch, Never())
    report, _ = capture_domain(DomainOptions("guest", tmp_path / "out", live=True, passes=3))
    assert fake.asked == 5  # with the job before, and that which is complete
    assert fake.log[2:] == ["suspend", "resume", "close"]
    assert report.status_after == "running"


def test_no_binding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(OutputError, match=r"pip install 'vmstream\[libvirt\]'.* python3-libvirt"):
        capture_domain(DomainOptions("guest", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
