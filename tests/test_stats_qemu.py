"""What `stats --what-if` says of a plain stream, against what the installed QEMU then wrote.

One stopped guest is sent several times: as it is, and in each encoding. A running guest is sent
with XBZRLE, which is to come out as it was sent.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import vmstream
from tests.qemu import Guest, Qemu

pytestmark = pytest.mark.qemu

MIB = 1 << 20
MACHINE = ["-M", "q35", "-accel", "tcg"]
MEMORY = ("mem", 16 * MIB)
BUSY = Guest(fill=1500, dirty=768)
CHANNELS = 2


@contextmanager
def listening(directory: Path) -> Iterator[tuple[str, list[Path]]]:
    """Take whatever comes on any number of connections; the first one is the main channel."""
    made: list[Path] = []
    pumps: list[threading.Thread] = []

    def pump(connection: socket.socket, path: Path) -> None:
        with connection, path.open("wb") as out:
            while data := connection.recv(1 << 20):
                out.write(data)

    def accept() -> None:
        for number in range(1 + CHANNELS):
            connection, _ = server.accept()
            made.append(directory / f"ch{number}")
            pumps.append(threading.Thread(target=pump, args=(connection, made[-1]), daemon=True))
            pumps[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield f"tcp:127.0.0.1:{server.getsockname()[1]}", made
        for thread in (acceptor, *pumps):
            thread.join(60)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The streams of one stopped guest, by encoding: the main channel, then the others."""
    directory = tmp_path_factory.mktemp("sent")
    found = {"plain": [directory / "plain"]}
    with Qemu(MACHINE, guest=BUSY, mem=MEMORY) as vm:
        if not vm.version().startswith("7."):
            pytest.skip(f"packets are formed as QEMU 7.2 does, and this is {vm.version()}")
        vm.wait_serial(b"FILLED")
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        found["plain"][0].write_bytes(vm.path("guest.out").read_bytes())
    # A guest is not sent twice, so the others are what loaded it and never ran.
    files = {"guest.in": found["plain"][0]}
    for name in ("compress", "zlib", "zstd"):
        (made := directory / name).mkdir()
        with Qemu(MACHINE, guest=BUSY, mem=MEMORY, incoming="exec:cat guest.in", files=files) as vm:
            vm.wait_loaded()
            vm.set_parameters(max_bandwidth=1 << 40)
            if name == "compress":
                vm.set_capabilities(compress=True)
                vm.migrate("exec:cat>guest.out")
                found[name] = [made / "main"]
                found[name][0].write_bytes(vm.path("guest.out").read_bytes())
                continue
            vm.set_capabilities(multifd=True)
            vm.set_parameters(multifd_compression=name, multifd_channels=CHANNELS)
            with listening(made) as (uri, found[name]):
                vm.migrate(uri)
    return found


def stats(paths: list[Path], what_if: str) -> dict[str, Any]:
    channels = [word for p in paths[1:] for word in ("--channel", p)]
    run = vmstream("stats", paths[0], *channels, "--what-if", what_if, "--json")
    assert run.status == 0, run.err
    found: dict[str, Any] = run.json()
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["encoding"]: item for item in found["what_if"]}


def test_a_stopped_guest(sent: dict[str, list[Path]]) -> None:
    found = stats(sent["plain"], "zstd,zlib,compress,xbzrle")
    said = by_name(found)
    sizes = {name: stats(paths, name) for name, paths in sent.items() if name != "plain"}
    assert said["plain"]["wire_bytes"] == found["wire"]["wire_bytes"]
    # One pass, so nothing for XBZRLE to do.
    assert said["xbzrle"]["wire_bytes"] == found["wire"]["wire_bytes"]
    # A page of the loader's may differ; measured: the same to the byte.
    real = sizes["compress"]["wire"]["wire_bytes"]
    assert said["compress"]["wire_bytes"] == pytest.approx(real, rel=0.005)
    # QEMU 7.2 ends packets with each part, too; measured: 0.3% less than that.
    real = sizes["zlib"]["wire"]["wire_bytes"]
    assert said["zlib"]["wire_bytes"] == pytest.approx(real, rel=0.02)
    # Another release of the library; measured: 1.5.7 makes 6% less of it than 1.5.4.
    real = sizes["zstd"]["wire"]["wire_bytes"]
    assert said["zstd"]["wire_bytes"] == pytest.approx(real, rel=0.12)
    # And none of these is near to another by chance.
    assert found["wire"]["wire_bytes"] > 4 * real
    # Packets as QEMU made them come to the same bytes again, if zlib is the same.
    again = by_name(sizes["zlib"])["zlib"]
    assert again["saved_bytes"] == pytest.approx(0, abs=0.01 * again["wire_bytes"])
    assert again["packets"] == sizes["zlib"]["wire"]["packets"]
    # Whatever the encoding was, the pages are the same.
    plain = {b["idstr"]: b for b in found["blocks"]}["mem"]
    for other in sizes.values():
        assert {b["idstr"]: b for b in other["blocks"]}["mem"] == plain


def test_a_running_guest(tmp_path: Path) -> None:
    """What QEMU sent with XBZRLE comes out as it was sent: hits, misses and lengths."""
    with Qemu(MACHINE, guest=Guest(fill=768, dirty=768), mem=MEMORY) as vm:
        vm.wait_serial(b"FILLED")
        vm.set_capabilities(xbzrle=True)
        vm.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
        # It converges, as differences are small.
        vm.migrate("exec:cat>guest.out")
        counted = vm.query_migrate()["xbzrle-cache"]
        (tmp_path / "stream").write_bytes(vm.path("guest.out").read_bytes())
    found = stats([tmp_path / "stream"], "xbzrle")
    said = by_name(found)["xbzrle"]
    kinds = {k["kind"]: k for k in found["wire"]["kinds"]}
    in_vain = sum(k["zeros"] or 0 for k in kinds.values())
    # A page that turned into zeros when QEMU had looked at it is sent whole, and not looked up.
    assert abs(said["deltas"] - kinds["xbzrle"]["pages"]) <= in_vain
    assert said["deltas"] > 100
    assert abs(said["misses"] - counted["cache-miss"]) <= in_vain
    assert abs(said["overflows"] - counted["overflow"]) <= in_vain
    assert abs(said["saved_bytes"]) <= 2 * in_vain * 4096
