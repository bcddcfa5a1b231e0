"""`cmdline`: QEMU loads the stream with the command line that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.decoding import BytesSource
from tests.ops.test_extract import pipe_of
from tests.qemu import Qemu
from tests.streamwriter import simple_stream
from tests.truth import fixture_file, fixture_names, load_manifest, open_fixture
from vmstream.container.layers import Container
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError, StreamError
from vmstream.ops.cmdline import cmdline_report, read_stated, shell_lines, told
from vmstream.report import models

DISK = ["-drive", "file=d.img,format=raw,if=none,id=d"]
NET = ["-netdev", "user,id=n"]
MACHINES: dict[str, tuple[str, list[str], list[str]]] = {
    "pc": ("x86_64", ["-M", "pc", "-m", "32M", "-smp", "2", *DISK, *NET,
        "-device", "virtio-blk-pci,drive=d,addr=5,num-queues=3",
        "-device", "virtio-net-pci,netdev=n,mac=52:54:00:01:02:03", "-device", "virtio-rng-pci",
        "-device", "virtio-scsi-pci,id=s", "-device", "virtio-balloon-pci",
        "-device", "virtio-serial-pci,max_ports=7", "-device", "VGA,vgamem_mb=8",
        "-device", "e1000,romfile=", "-uuid", "00112233-4455-6677-8899-aabbccddeeff"], []),
    "backend": ("x86_64", ["-m", "32M", "-object", "memory-backend-ram,id=my.ram,size=32M",
        "-M", "pc,memory-backend=my.ram,hpet=off", "-device", "cirrus-vga"], []),
    "dimm": ("x86_64", ["-M", "pc", "-m", "32M,slots=2,maxmem=2G",
        "-object", "memory-backend-ram,id=m1,size=128M", "-device", "pc-dimm,memdev=m1"], []),
    "q35": ("x86_64", ["-M", "q35", "-m", "32M", *DISK,
        "-device", "pcie-root-port,id=rp,chassis=3,addr=4",
        "-device", "virtio-scsi-pci,bus=rp,id=s",
        "-device", "scsi-hd,drive=d,bus=s.0,lun=2", "-device", "qemu-xhci,id=x,addr=7",
        "-device", "usb-tablet,bus=x.0", "-device", "usb-kbd,bus=x.0",
        "-device", "virtio-keyboard-pci", "-device", "virtio-gpu-pci"], []),
    "ahci": ("x86_64", ["-M", "q35", "-m", "32M", *DISK, "-device", "ide-hd,drive=d,bus=ide.2",
        "-device", "ide-cd,bus=ide.4", "-device", "qxl-vga" ], []),
    "microvm": ("x86_64", ["-M", "microvm", "-m", "32M", *DISK, *NET,
        "-device", "virtio-blk-device,drive=d", "-device", "virtio-net-device,netdev=n"], []),
    "virt": ("aarch64", ["-M", "virt,gic-version=3", "-cpu", "cortex-a57", "-m", "32M", "-smp", "2",
        *DISK, "-device", "virtio-blk-device,drive=d", "-device", "virtio-rng-pci"],
        ["-cpu", "cortex-a57"]),
}  # fmt: skip


def report_of(data: bytes) -> models.CmdlineReport:
    source = BytesSource(data, "dump.bin")
    return cmdline_report(source, read_stated(source), Container())


def arguments(report: models.CmdlineReport, *without: str) -> list[str]:
    return [w for a in report.arguments if a.words[0] not in without for w in a.words]


@pytest.mark.qemu("aarch64")
@pytest.mark.parametrize("name", MACHINES)
def test_qemu_loads_it(name: str) -> None:
    arch, args, completed = MACHINES[name]
    binary, files = f"qemu-system-{arch}", {"d.img": bytes(1 << 20)}
    with Qemu([*args, "-accel", "tcg"], binary=binary, files=files) as vm:
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        data = vm.path("guest.out").read_bytes()
    report = report_of(data)
    assert not report.unknown
    assert report.emulator == binary
    made = arguments(report, "-nodefaults", "-serial", "-incoming")
    with Qemu(
        [*made, *completed, "-accel", "tcg"],
        binary=binary,
        files={"guest.out": data},
        incoming="exec:cat guest.out",
    ) as vm:
        vm.wait_loaded()
        assert vm.qmp("query-status")["status"] == "paused", vm.errors()


def wanted(words: Sequence[str], option: str) -> list[str]:
    return [b for a, b in pairwise(words) if a == option]


def test_what_fixtures_say() -> None:
    """Machine and CPUs of every stream of which the command is known."""
    seen = 0
    for name in fixture_names("plain-*"):
        report = report_of(open_fixture(name))
        command = load_manifest(name)["command"]
        command = command.split() if isinstance(command, str) else command
        words = arguments(report)
        kind = wanted(command, "-M")[0].partition(",")[0]
        assert kind in wanted(words, "-machine")[0]
        cpus = wanted(command, "-smp")
        assert wanted(words, "-smp") == [cpus[0] if cpus else "1"]
        assert wanted(words, "-m") == [wanted(command, "-m")[0]]
        assert not report.unknown, name
        seen += 1
    assert seen > 4


def test_sources() -> None:
    report = report_of(open_fixture("plain-11.1-pc"))
    sources = {a.words[0]: a.source for a in report.arguments}
    assert (sources["-machine"], sources["-m"], sources["-smp"]) == ("wire",) * 3
    assert any("-cpu" in line for line in report.not_stated)
    text = list(shell_lines(report))
    assert text[0] == "qemu-system-x86_64 \\"
    assert text[-1] == "-incoming 'exec:cat dump.bin'"
    assert all(line.endswith(" \\") for line in text[:-1])
    assert any(line.startswith("not stated: ") for line in told(report))


def test_pipe_and_container(tmp_path: Path) -> None:
    data = open_fixture("plain-11.1-pc")
    with pipe_of(data) as source:
        piped = cmdline_report(source, read_stated(source), Container())
    assert piped.arguments[:-1] == report_of(data).arguments[:-1]
    assert piped.arguments[-1].words == ["-incoming", "defer"]
    with OpenStream(fixture_file("mapped-10.0-pc", tmp_path)) as opened:
        found = read_stated(opened.source, container=opened.container)
        report = cmdline_report(opened.source, found, opened.container)
    assert any("mapped-ram" in line for line in report.not_stated)


def test_nothing_to_go_by() -> None:
    with pytest.raises(StreamError):
        report_of(b"hello, world\n")
    cut = report_of(open_fixture("plain-11.1-pc")[:300_000])
    assert cut.machine == "pc-i440fx-11.1"
    assert cut.anomalies


def test_names_that_are_no_words() -> None:
    """What a stream states cannot leave its word in the shell, or its option in QEMU."""
    data = bytes(simple_stream())
    try:
        report = report_of(data)
    except OutputError:
        return
    assert report.arguments[-1].words[0] == "-incoming"
