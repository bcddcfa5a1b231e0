"""Words for values: PCI headers, clocks, timers."""

from __future__ import annotations

import re
import time

import pytest

from tests.guest.test_devices import field, one, tree_of
from tests.qemu import Qemu
from tests.truth import fixture_names, load_manifest, open_fixture
from vmstream.guest.devices import Node
from vmstream.guest.meaning import meaning


def value(kind: str, data: bytes, name: str = "v") -> Node:
    return one([field(name, kind, len(data))], data).children[0]


def test_timers() -> None:
    assert meaning(value("timer", b"\xff" * 8)) == "not armed"
    assert meaning(value("timer", b"\0" * 8)) is None
    assert meaning(value("uint64", b"\xff" * 8)) is None


def test_pci_header() -> None:
    header = bytearray(256)
    header[0:4] = b"\xf4\x1a\x00\x10"
    header[4] = 0b111
    header[8:12] = b"\3\0\0\2"
    header[16:20] = b"\x01\xc0\0\0"  # io
    header[20:24] = b"\0\x10\xbf\xfe"
    header[32:40] = b"\x0c\0\0\0\x80\0\0\0"  # 64 bits, prefetchable
    assert meaning(value("pci config", bytes(header))) == (
        "1af4:1000, class 0200, revision 03, io, memory, bus-master, BAR0 io 0xc000, "
        "BAR1 0xfebf1000, BAR4 0x8000000000"
    )
    header[14] = 1  # a bridge has two
    assert "BAR4" not in str(meaning(value("pci config", bytes(header))))
    assert meaning(value("pci config", bytes(10))) is None


def test_run_state() -> None:
    assert meaning(value("buffer", b"paused\0\0\0", "runstate")) == "paused"
    assert meaning(value("buffer", b"\xff\0", "runstate")) is None
    for name in ("plain-5.2-pc", "plain-11.1-pc"):
        (node,) = tree_of(open_fixture(name)).find("globalstate/runstate")
        assert meaning(node) in ("running", "paused"), name


CMOS = bytes.fromhex("090035000000022311262602008000000000f000068002003c2f00020010ff") + bytes(97)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({0x32: 0x20}, "2026-11-23 00:35:09"),
        ({0x32: 0x20, 4: 0x23}, "2026-11-23 23:35:09"),
        ({0x32: 20, 11: 0x06, 0: 9, 2: 35, 7: 23, 8: 11, 9: 26}, "2026-11-23 00:35:09"),  # binary
        ({0x32: 0x20, 11: 0, 4: 0x81}, "2026-11-23 13:35:09"),  # 12 hours, after noon
        ({0x32: 0x20, 11: 0, 4: 0x12}, "2026-11-23 00:35:09"),
        ({0x32: 0x20, 8: 0x13}, None),
        ({0x32: 0x20, 7: 0}, None),
    ],
    ids=str,
)
def test_clock(changes: dict[int, int], said: str | None) -> None:
    data = bytearray(CMOS)
    for at, byte in changes.items():
        data[at] = byte
    assert meaning(value("buffer", bytes(data), "cmos_data")) == said
    assert meaning(value("buffer", bytes(data[:40]), "cmos_data")) is None


def test_fixtures() -> None:
    """Every PCI device has an identity, every clock of a PC a time of the capture's year."""
    seen = 0
    for name in fixture_names("plain-*"):
        for device in tree_of(open_fixture(name)):
            for node in device.walk():
                if node.type == "pci config":
                    assert str(meaning(node)).startswith("8086:")
                    seen += 1
                if node.name == "cmos_data":
                    assert str(meaning(node)).startswith("20"), load_manifest(name)["qemu"]
    assert seen > 20


@pytest.mark.qemu
def test_apic() -> None:
    """The local vector table as `info lapic` has it."""
    with Qemu(["-M", "pc", "-accel", "tcg", "-m", "16M"]) as vm:
        time.sleep(1)
        vm.stop()
        truth = vm.hmp("info lapic")
        vm.migrate("exec:cat>guest.out")
        data = vm.path("guest.out").read_bytes()
    (apic,) = tree_of(data).find("apic[0]")
    words = {n.name: str(meaning(n)) for n in apic.children}
    assert words["apicbase"] == "base 0xfee00000, BSP, enabled"
    assert words["isr"] == words["irr"] == "none"
    for name, there in (
        ("LVT0", "LINT0"),
        ("LVT1", "LINT1"),
        ("LVTT", "timer"),
        ("LVTERR", "error"),
    ):
        line = re.search(rf"^{name}\s.*$", truth, re.MULTILINE)
        (said,) = (w for w in words["lvt"].split(", ") if w.startswith(f"{there} "))
        assert line is not None
        assert ("masked" in said) == ("masked" in line[0])
        assert re.search(said.split()[1], line[0], re.IGNORECASE)
