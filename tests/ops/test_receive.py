"""`receive` as the destination of a real QEMU, and of what is none."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, no_leftovers, vmstream
from tests.migrations import CALM, MACHINE, MIB, SIZE
from tests.qemu import Qemu
from tests.report.test_models import validator
from vmstream.errors import OutputError
from vmstream.ops.receive import _Follower

WAYS = {"plain": None, "none": "none", "zlib": "zlib", "zstd": "zstd"}


def receiver(directory: Path, *options: str) -> subprocess.Popen[str]:
    """A receiver that listens at `sock` in a directory, and has said so."""
    process, address = listening("unix:sock", directory, *options)
    assert address == "unix:sock"
    return process


def listening(address: str, directory: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A receiver, and the address that it says it listens at."""
    process = subprocess.Popen(
        [*COMMAND, "receive", "--listen", address, "-o", "rec", *options],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("listening on "), said
    return process, said.removeprefix("listening on ").rstrip("\n")


def connected(directory: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(directory / "sock"))
    return made


@pytest.mark.qemu
def test_a_migration(tmp_path: Path) -> None:
    """With answers, and with channels; the source completes, and what came is its memory."""
    with Qemu(MACHINE, guest=CALM, mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        for way, method in WAYS.items():
            directory = tmp_path / way
            directory.mkdir()
            where = "tcp:127.0.0.1:0" if way == "plain" else "unix:sock"
            process, address = listening(where, directory, "--json", "--timeout", "60")
            vm.set_capabilities(return_path=method != "zlib", multifd=method is not None)
            if method is not None:
                vm.set_parameters(multifd_channels=2, multifd_compression=method)
            vm.stop()
            vm.migrate(address.replace("sock", str(directory / "sock")))
            out, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
            check(directory, method, vm.backend.read_bytes(), out)
            vm.cont()
        switched_to_postcopy(vm, tmp_path)


def switched_to_postcopy(vm: Qemu, directory: Path) -> None:
    """Nobody asks for pages; they come, as does the answer that is waited for."""
    process = receiver(directory, "--json", "--timeout", "60")
    vm.set_capabilities(multifd=False, return_path=True, postcopy_ram=True)
    vm.set_parameters(max_bandwidth=MIB)
    vm.stop()
    vm.migrate(f"unix:{directory / 'sock'}", wait=False)
    vm._wait(lambda: vm.query_migrate().get("ram", {}).get("transferred", 0) > MIB, 30, "MiB")
    vm.qmp("migrate-start-postcopy")
    vm.set_parameters(max_bandwidth=1 << 40)
    assert vm.wait_migration()["status"] == "completed"
    out, err = process.communicate(timeout=60)
    report = json.loads(out)
    assert (process.returncode, err) == (0, "")
    assert (report["complete"], report["shut"]) == (True, True)
    assert report["pings"] == 4
    run = vmstream("extract-ram", directory / "rec" / "main.bin", "--block", "mem", "-o",
                   directory / "ram")  # fmt: skip
    assert run.status == 0, run.err
    assert (directory / "ram").read_bytes() == vm.backend.read_bytes()


def check(directory: Path, method: str | None, truth: bytes, out: str) -> None:

    report = json.loads(out)
    validator("receive").validate(report)
    files = [c["file"] for c in report["channels"]]
    assert files == ["main.bin", *(["ch0.bin", "ch1.bin"] if method else [])]
    assert sorted(p.name for p in (directory / "rec").iterdir()) == sorted(files)
    assert not (directory / "sock").exists()
    assert report["complete"] is True
    assert report["anomalies"] == []
    assert report["return_path"] is report["shut"] is (method != "zlib")
    assert report["pings"] == (method != "zlib")
    rec = directory / "rec"
    channels = [w for f in files[1:] for w in ("--channel", rec / f)]
    run = vmstream("extract-ram", rec / "main.bin", *channels, "--block", "mem", "-o", rec / "ram")
    assert run.status == 0, run.err
    assert (rec / "ram").read_bytes() == truth


@pytest.mark.qemu
def test_a_source_that_gives_up(tmp_path: Path) -> None:
    """What came is kept, and said to be cut."""
    with Qemu(MACHINE, guest=CALM, mem=("mem", SIZE)) as vm:
        vm.wait_serial(b"FILLED")
        process = receiver(tmp_path)
        vm.set_parameters(max_bandwidth=MIB)
        vm.migrate(f"unix:{tmp_path / 'sock'}", wait=False)
        vm._wait(lambda: vm.query_migrate().get("ram", {}).get("transferred", 0) > MIB, 30, "MiB")
        vm.qmp("migrate_cancel")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "NOT complete" in out
    assert "vmstream: error: " in err
    assert (tmp_path / "rec" / "main.bin").stat().st_size > MIB // 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x16\x03\x01" + bytes(30), "speaks TLS"),
        (b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n", "nothing came for 1 s"),
    ],
)
def test_no_migration(data: bytes, said: str, tmp_path: Path) -> None:
    process = receiver(tmp_path, "--timeout", "1")
    with connected(tmp_path) as other:
        other.sendall(data)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in err
    assert [p.name for p in tmp_path.iterdir()] == []
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_free_port_is_named(host: str, tmp_path: Path) -> None:
    """Once it is, a source can connect there."""
    if host == "[::1]":
        try:
            socket.create_server((host.strip("[]"), 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6: {error}")
    process, address = listening(f"tcp:{host}:0", tmp_path, "--timeout", "60")
    kind, _, rest = address.partition(":")
    named, _, port = rest.rpartition(":")
    assert (kind, named) == ("tcp", host)
    with socket.create_connection((named.strip("[]"), int(port))) as other:
        other.sendall(b"QEVM\0\0\0\3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert (tmp_path / "rec" / "main.bin").read_bytes() == b"QEVM\0\0\0\3"


def test_interrupted(tmp_path: Path) -> None:
    process = receiver(tmp_path)
    with connected(tmp_path) as other:
        other.sendall(b"QEVM\0\0\0\3")
        while not list(tmp_path.glob(".vmstream-*.part/.vmstream-*.part")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_the_switchover_is_allowed_if_that_is_waited_for() -> None:
    start = b"QEVM\0\0\0\3" + b"\x08\0\1\0\0"
    assert _Follower(switchover_ack=True).take(start) == bytes.fromhex("00070000")
    assert _Follower().take(start) == b""


def test_answers_and_postcopy() -> None:
    """The main channel may come byte by byte."""
    follower = _Follower()
    start = b"QEVM\0\0\0\3" + b"\x08\0\1\0\0" + b"\x08\0\2\0\4\0\0\0\x07"
    answers = [follower.take(start[i : i + 1]) for i in range(len(start))]
    assert [a for a in answers if a] == [bytes.fromhex("00020004 00000007")]
    assert follower.return_path
    advise = b"\x08\0\3\0\x10" + bytes(6) + b"\x10\0" + bytes(6) + b"\x10\0"
    assert follower.take(advise) == b""
    package = b"\x08\0\2\0\4\0\0\0\3" + b"\x04\0\0\0\x09\3dev" + bytes(8)
    package += b"\x7e\0\0\0\x09" + b"\x08\0\2\0\4\0\0\0\x42"
    packaged = b"\x08\0\7\0\4" + len(package).to_bytes(4, "big")
    answer = follower.take(packaged + package + b"\x08\0\2\0\4\0\0\0\4")
    assert answer == b"".join(bytes.fromhex(f"00020004 000000{n:02x}") for n in (3, 0x42, 4))
    with pytest.raises(OutputError, match="goes on with a postcopy migration"):
        follower.take(b"\x08\0\x0a\0\4\3mem")
