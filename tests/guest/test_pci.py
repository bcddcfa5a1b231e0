"""Configuration space in words: as QEMU's `info pci` has it, and of bytes that are hostile."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, strategies as st

from tests.guest.test_devices import tree_of
from tests.qemu import Qemu
from vmstream.guest import pci

DEVICES = ["-M", "q35", "-m", "32M", "-device", "pcie-root-port,id=rp,chassis=1,addr=4,port=9",
           "-device", "virtio-rng-pci,bus=rp,vectors=3", "-device", "e1000e,addr=5,romfile=",
           "-device", "VGA,addr=6", "-device", "qemu-xhci,addr=7"]  # fmt: skip


# Of every device, by device and function, what QEMU prints: identity, buses, bases.
def listed(text: str) -> dict[str, list[str]]:
    found = {}
    for part in re.split(r"(?m)^  (?=Bus)", text)[1:]:
        head = re.match(r"Bus +(\d+), device +(\d+), function (\d):", part)
        assert head is not None
        if head[1] == "0":
            words = re.findall(r"PCI device ([0-9a-f]{4}:[0-9a-f]{4})", part)
            words += [f"secondary {n} to {n}" for n in re.findall(r"secondary bus (\d+)", part)]
            bars = re.findall(r"BAR([0-5]): (I/O|\d+ bit.*?) at 0x([0-9a-f]+)", part)
            words += [f"BAR{n}{' io' * (kind == 'I/O')} {int(at, 16):#x}" for n, kind, at in bars]
            found[f"{int(head[2]):02x}.{head[3]}"] = words
    return found


@pytest.mark.qemu
def test_as_info_pci() -> None:
    with Qemu([*DEVICES, "-accel", "tcg"]) as vm:
        # Firmware gives buses and bases.
        while not re.search(r"secondary bus 1\.[^$]*BAR5: (?!.*0xf{16})", vm.hmp("info pci")):
            time.sleep(0.1)
        vm.stop()
        truth = listed(vm.hmp("info pci"))
        vm.migrate("exec:cat>guest.out")
        data = vm.path("guest.out").read_bytes()
    said, behind = {}, []
    for device in tree_of(data):
        path = re.match(r"0000:00:([0-9a-f]{2}\.\d)(:00.0)?/", device.name)
        config = next((n for n in device.walk() if n.type == "pci config"), None)
        if path is None or config is None:
            continue
        words = (pci.said(config.raw) or "").split(", ")
        if path[2]:
            behind = words
        else:
            said[path[1]] = words
    assert len(truth) > 7
    assert said.keys() == truth.keys()
    for slot, words in truth.items():
        assert set(words) <= set(said[slot])
        bases = [w for w in said[slot] if w.startswith("BAR")]
        assert bases == [w for w in words if w.startswith("BAR")]
    # QEMU v10.1.0 hw/net/e1000e.c e1000e_pci_realize() has them at these places.
    intel = said["05.0"]
    for name, at in (("PM", 0xC8), ("MSI", 0xD0), ("PCIe", 0xE0), ("MSI-X", 0xA0)):
        assert any(w.startswith(f"{name} at {at:#x}") for w in intel)
    assert any(w.startswith("PCIe at") for w in said["04.0"])
    assert any(re.fullmatch(r"MSI-X at 0x\w+ off \(3 vectors\)", w) for w in behind)


def config(*chain: tuple[int, bytes]) -> bytearray:
    data = bytearray(256)
    data[0x34] = chain[0][0] if chain else 0
    for (at, body), (following, _) in zip(chain, [*chain[1:], (0, b"")], strict=True):
        data[at : at + 2 + len(body) - 1] = body[:1] + bytes([following]) + body[1:]
    return data


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x05\x81\x00" + bytes.fromhex("0010e0fe0000000041000000"),
         "MSI at 0x50 on to 0xfee01000 data 0x41"),
        (b"\x05\x01\x00" + bytes.fromhex("0010e0fe41000000"),
         "MSI at 0x50 on to 0xfee01000 data 0x41"),
        (b"\x11\x07\x80", "MSI-X at 0x50 on (8 vectors)"),
        (b"\x11\x07\xc0", "MSI-X at 0x50 masked (8 vectors)"),
        (b"\x01\x03\x00\x03\x00", "PM at 0x50 D3"),
        (b"\x77\x00\x00", "capability 0x77 at 0x50"),
    ],
)  # fmt: skip
def test_capabilities(body: bytes, words: str) -> None:
    said = pci.said(bytes(config((0x50, body))))
    assert said is not None
    assert said.endswith(", " + words)


def test_a_list_that_is_a_ring() -> None:
    data = config((0x40, b"\x01\0\0"), (0x60, b"\x05\0\0"))
    data[0x61] = 0x40
    assert list(pci.capabilities(bytes(data))) == [0x40, 0x60]
    assert list(pci.capabilities(bytes(data), 0x05)) == [0x60]


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    assert (pci.said(data) is None) == (len(data) < pci.HEADER)
