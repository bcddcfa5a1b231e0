"""`cmdline`: QEMU loads the stream with the command line that is made of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.decoding import BytesSource
from tests.ops.test_extract import pipe_of
from tests.qemu import Qemu
from tests.streamwriter import Device, RamBlock, StreamWriter
from tests.truth import fixture_file, fixture_names, load_manifest, open_fixture
from vmstream.container.layers import Container
from vmstream.container.open import OpenStream
from vmstream.errors import StreamError
from vmstream.ops.cmdline import cmdline_report, read_stated, shell_lines, told
from vmstream.report.models.cmdline import CmdlineReport

DISK = ["-drive", "file=d.img,format=raw,if=none,id=d"]
NET = ["-netdev", "user,id=n"]
# Emulator, options, what has to be given beside the command that is made, and devices it has.
MACHINES: dict[str, tuple[str, list[str], list[str], set[str]]] = {
    "pc": ("x86_64", ["-M", "pc", "-m", "32M", "-smp", "2", *DISK, *NET,
        "-device", "virtio-blk-pci,drive=d,addr=5,num-queues=3",
        "-device", "virtio-net-pci,netdev=n,mac=52:54:00:01:02:03", "-device", "virtio-rng-pci",
        "-device", "virtio-scsi-pci,id=s,num_queues=3", "-device", "virtio-balloon-pci",
        "-device", "virtio-serial-pci,max_ports=7", "-device", "VGA,vgamem_mb=8",
        "-device", "e1000,romfile=", "-uuid", "00112233-4455-6677-8899-aabbccddeeff"], [],
        {"virtio-scsi-pci,bus=pci.0,addr=04.0,vectors=6,num_queues=3"}),
    "backend": ("x86_64", ["-m", "32M", "-object", "memory-backend-ram,id=my.ram,size=32M",
        "-M", "pc,memory-backend=my.ram,hpet=off", "-device", "cirrus-vga", "-S",
        "-drive", "if=pflash,format=raw,file=d.img"], [], set()),
    "dimms": ("x86_64", ["-M", "pc,nvdimm=on", "-m", "32M,slots=3,maxmem=2G",
        "-object", "memory-backend-ram,id=m1,size=128M", "-device", "nvdimm,memdev=m1",
        "-object", "memory-backend-ram,id=m2,size=128M", "-device", "pc-dimm,memdev=m2"], [],
        {"nvdimm,memdev=m1,addr=0x100000000,slot=0", "pc-dimm,memdev=m2,addr=0x108000000,slot=1"}),
    "virtio-mem": ("x86_64", ["-M", "q35", "-m", "32M,slots=1,maxmem=1G",
        "-object", "memory-backend-ram,id=m1,size=256M", "-device", "virtio-mem-pci,memdev=m1"],
        [], {"virtio-mem-pci,bus=pcie.0,addr=01.0,memdev=m1"}),
    "q35": ("x86_64", ["-M", "q35", "-m", "32M,slots=5,maxmem=1G", "-smp", "1,maxcpus=3", *DISK,
        "-device", "pcie-root-port,id=rp,chassis=3,addr=4,port=16,slot=5,multifunction=on",
        "-device", "pcie-root-port,id=rp2,chassis=4,addr=4.1,port=17",
        "-device", "virtio-scsi-pci,bus=rp,id=s", "-device", "virtio-rng-pci,disable-legacy=on",
        "-device", "scsi-hd,drive=d,bus=s.0,lun=2", "-device", "qemu-xhci,id=x,addr=7,p2=15,p3=15",
        "-device", "usb-tablet,bus=x.0", "-device", "usb-kbd,bus=x.0",
        "-device", "virtio-serial-pci,bus=rp2,id=v", "-device", "virtconsole,bus=v.0",
        "-device", "virtserialport,bus=v.0,nr=3", "-device", "virtio-keyboard-pci",
        "-device", "virtio-vga"], [],
        {"pcie-root-port,id=bridge0,bus=pcie.0,addr=04.0,chassis=1,port=16,slot=5,multifunction=on",
         "qemu-xhci,id=bus0,bus=pcie.0,addr=07.0,p2=15,p3=15", "virtserialport,bus=bus2.0,nr=3",
         "virtconsole,bus=bus2.0,nr=0", "virtio-vga,bus=pcie.0,addr=03.0,vectors=3"}),
    "ahci": ("x86_64", ["-M", "q35,usb=on", "-m", "32M", *DISK,
        "-device", "ide-hd,drive=d,bus=ide.2,serial=abc", "-device", "ide-cd,bus=ide.4",
        "-device", "qxl-vga,ram_size_mb=32", "-device", "ahci,id=a",
        "-device", "ide-cd,bus=a.5", "-device", "usb-tablet"], [],
        {"ide-hd,bus=ide.2,serial=abc,drive=disk0", "ide-cd,bus=ide.4", "ide-cd,bus=bus1.5",
         "ich9-usb-uhci3,bus=pcie.0,addr=1d.2,multifunction=on,masterbus=bus0.0,firstport=4",
         "usb-tablet,bus=bus0.0,port=1"}),
    "ide": ("x86_64", ["-M", "pc", "-m", "32M", *DISK, "-device", "ide-hd,drive=d,bus=ide.0,unit=1",
        "-device", "ide-cd,bus=ide.1,unit=0", "-device", "usb-ehci,id=e",
        "-drive", "driver=null-co,read-zeroes=on,size=1M,if=none,id=u",
        "-device", "usb-storage,bus=e.0,drive=u"], [],
        {"ide-hd,bus=ide.0,unit=1,serial=QM00002,drive=disk0", "ide-cd,bus=ide.1,unit=0",
         "usb-storage,bus=bus0.0,port=1,drive=disk1"}),
    "microvm": ("x86_64", ["-M", "microvm", "-m", "32M", *DISK, *NET,
        "-device", "virtio-blk-device,drive=d", "-device", "virtio-net-device,netdev=n",
        "-device", "virtio-serial-device", "-device", "virtconsole"], [], set()),
    "virt": ("aarch64", ["-M", "virt,gic-version=3", "-cpu", "cortex-a57", "-m", "32M", "-smp", "2",
        *DISK, "-device", "virtio-blk-device,drive=d", "-device", "virtio-rng-device"],
        ["-cpu", "cortex-a57"], set()),
    "pseries": ("ppc64", ["-M", "pseries", "-m", "256M", *DISK, "-device", "spapr-vscsi,id=s",
        "-device", "scsi-hd,drive=d,bus=s.0", "-device", "qemu-xhci", "-device", "usb-kbd",
        *NET, "-device", "spapr-vlan,netdev=n"], [],
        {"spapr-vscsi,id=bus1,reg=0x71000002", "usb-kbd,bus=bus0.0,port=1"}),
    "s390x": ("s390x", ["-M", "s390-ccw-virtio", "-m", "32M", "-S", *DISK, *NET,
        "-device", "virtio-blk-ccw,drive=d,devno=fe.0.0012", "-device", "virtio-scsi-ccw,id=s",
        "-device", "virtio-net-ccw,netdev=n", "-device", "virtio-serial-ccw",
        "-device", "virtserialport,nr=2"], [],
        {"virtio-blk-ccw,devno=fe.0.0012,num-queues=1,drive=disk0",
         "virtserialport,bus=bus0.0,nr=2"}),
}  # fmt: skip


def report_of(data: bytes) -> CmdlineReport:
    source = BytesSource(data, "dump.bin")
    return cmdline_report(source, read_stated(source), Container())


def arguments(report: CmdlineReport, *without: str) -> list[str]:
    return [w for a in report.arguments if a.words[0] not in without for w in a.words]


def saved(vm: Qemu) -> bytes:
    vm.stop()
    vm.migrate("exec:cat>guest.saved")
    return vm.path("guest.saved").read_bytes()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.qemu(m[0])) for n, m in MACHINES.items()]
)
def test_qemu_loads_it(name: str) -> None:
    """And what it then has makes the same command."""
    arch, args, completed, devices = MACHINES[name]
    binary, files = f"qemu-system-{arch}", {"d.img": bytes(1 << 20)}
    with Qemu([*args, "-accel", "tcg"], binary=binary, files=files) as vm:
        if devices and arch == "x86_64":
            vm._wait(lambda: "0x0" in vm.hmp("info pic"), 10, "a guest")
            time.sleep(0.4)  # firmware looks for disks
        data = saved(vm)
    report = report_of(data)
    assert not report.unknown
    assert report.emulator == binary
    assert devices <= set(wanted(arguments(report), "-device"))
    made = arguments(report, "-nodefaults", "-serial", "-incoming")
    with Qemu(
        [*made, *completed, "-accel", "tcg"],
        binary=binary,
        files={"guest.out": data},
        incoming="exec:cat guest.out",
    ) as vm:
        vm.wait_loaded()
        assert vm.qmp("query-status")["status"] in ("paused", "prelaunch"), vm.errors()
        again = saved(vm)
    assert arguments(report_of(again), "-incoming") == arguments(report, "-incoming")


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
    evil = "$(reboot)';\n,x=y"
    writer = StreamWriter()
    writer.header()
    writer.configuration(evil)
    writer.ram_start([RamBlock(evil, 1 << 20)])
    with writer.ram_end():
        pass
    for name in (f"0000:00:04.0/{evil}", "0000:00:05.0/qxl", f"{evil}/virtio-net"):
        writer.device(Device(name, old_style=b"x"))
    writer.eof()
    writer.vmdescription()
    report = report_of(bytes(writer))
    words = [w for a in report.arguments for w in a.words]
    shown = "\n".join(shell_lines(report)).replace("\\\n", "")
    assert "\n" not in shown
    assert shlex.split(shown) == [report.emulator, *(w.replace("\n", "?") for w in words)]
    assert words[words.index("-machine") + 1] == evil.replace(",", ",,")
    (backend,) = wanted(words, "-object")
    assert f"id={evil.replace(',', ',,')},size=" in backend
    assert sorted(report.unknown) == [f"{evil}/virtio-net", f"0000:00:04.0/{evil}"]
