"""The state of virtio devices: against QEMU's own account of them, and shapes built by hand."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from tests.guest.test_devices import covered, field, one, tree_of
from tests.qemu import Qemu
from vmstream.guest.devices import Node
from vmstream.guest.meaning import meaning
from vmstream.guest.virtio import describe
from vmstream.wire.vmsd import body_size


def within(node: Node, name: str) -> Node:
    return next(n for n in node.walk() if n.name == name)


# Of x-query-virtio-status: 'VIRTIO_NET_F_MAC: ...' or 'VIRTIO_F_VERSION_1: ...'.
def names(listed: list[str]) -> set[str]:
    prefix = r"VIRTIO_(?:CONFIG_S_|(?:[A-Z]+_)?F_)"
    return {re.sub(prefix, "", text.partition(":")[0]) for text in listed}


def said(node: Node) -> set[str]:
    return set(str(meaning(node)).split("|")) - {"none", "reset"}


def compare(virtio: Node, status: dict[str, Any], queues: list[dict[str, Any]]) -> None:
    assert said(within(virtio, "status")) == names(status["status"]["statuses"])
    wide = within(within(virtio, "virtio/64bit_features"), "guest_features")
    features = status["guest-features"]
    assert said(wide) == names(features["transports"] + features.get("dev-features", []))
    assert within(virtio, "queues").value == len(queues)
    for ring, truth in zip(within(virtio, "vq").children, queues, strict=True):
        there = {c.name: c.value for c in ring.children}
        assert there["vring.num"] == truth["vring-num"]
        assert there["vring.desc"] == truth["vring-desc"]
        assert there["last_avail_idx"] == truth["last-avail-idx"]


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_as_qemu_tells(machine: str) -> None:
    """SeaBIOS drives the disks: their queues and features are negotiated."""
    args = ["-M", machine, "-accel", "tcg", "-m", "32M"]
    root = "bus=pci.0" if machine == "pc" else "bus=rp"
    if machine == "q35":
        args += ["-device", "pcie-root-port,id=rp,chassis=1"]
    args += [
        "-drive", "file=d.img,format=raw,if=none,id=d", "-device", f"virtio-blk-pci,drive=d,{root}",
        "-device", "virtio-scsi-pci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-device", "virtio-balloon-pci", "-device", "virtio-net-pci,mac=52:54:00:01:02:03",
    ]  # fmt: skip
    with Qemu(args, files={"d.img": bytes(1 << 20)}) as vm:
        vm._wait(lambda: any(driven(vm)), 20, "a driver")
        vm.stop()
        truth = {}
        for device in vm.qmp("x-query-virtio"):
            status = vm.qmp("x-query-virtio-status", path=device["path"])
            truth[status["name"]] = (
                status,
                [
                    vm.qmp("x-query-virtio-queue-status", path=device["path"], queue=n)
                    for n in range(status["num-vqs"])
                ],
            )
        vm.migrate("exec:cat>guest.out")
        data = vm.path("guest.out").read_bytes()
    found = {}
    for device in tree_of(data):
        for node in device.walk():
            if node.type == "virtio":
                assert not any(n.type == "raw" for n in node.walk())
                covered(node, data)
                found[device.path.rpartition("/")[2].partition("[")[0]] = node
    found["virtio-serial"] = found.pop("virtio-console")
    assert found.keys() == truth.keys()
    for name, (status, queues) in truth.items():
        compare(found[name], status, queues)
    assert within(found["virtio-blk"], "capacity").value == 2048
    assert meaning(within(within(found["virtio-net"], "device"), "mac")) == "52:54:00:01:02:03"


def driven(vm: Qemu) -> list[str]:
    paths = [d["path"] for d in vm.qmp("x-query-virtio") if d["name"] == "virtio-blk"]
    listed: list[str] = []
    for path in paths:
        listed += [
            s
            for s in vm.qmp("x-query-virtio-status", path=path)["status"]["statuses"]
            if "DRIVER_OK" in s
        ]
    return listed


@pytest.mark.qemu("aarch64")
def test_mmio() -> None:
    args = ["-M", "virt", "-accel", "tcg", "-cpu", "cortex-a57", "-m", "16M"]
    with Qemu([*args, "-device", "virtio-rng-device"], binary="qemu-system-aarch64") as vm:
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        data = vm.path("guest.out").read_bytes()
    (node,) = (n for d in tree_of(data) for n in d.walk() if n.type == "virtio")
    covered(node, data)
    assert within(node, "queues").value == 1
    assert within(node, "vring.align").value == 4096
    assert meaning(within(node, "status")) == "reset"


# -- shapes ---------------------------------------------------------------------------------------


def mmio(specific: bytes = b"", *, features: int = 0, tail: bytes = b"") -> bytes:
    return (
        bytes(12) + b"\x0f\0\0\0" + features.to_bytes(4) + (4).to_bytes(4) + b"\1\0\0\0"
        + (1).to_bytes(4) + (256).to_bytes(4) + (4096).to_bytes(4) + (0x1000).to_bytes(8)
        + (7).to_bytes(2) + specific + tail
    )  # fmt: skip


def sub(name: str, body: bytes) -> bytes:
    return b"\5" + bytes([len(name)]) + name.encode() + (1).to_bytes(4) + body


def virtio(data: bytes, name: str = "virtio-x") -> Node:
    node = one([field(name, "virtio", len(data))], data).children[0]
    covered(node, bytes(100) + data)
    return node


def test_iommu() -> None:
    """A domain with a mapping and an endpoint, as put_gtree() and put_qlist() write them."""
    mapping = (0x1000).to_bytes(8) + (0x1FFF).to_bytes(8) + (0x7000).to_bytes(8) + (3).to_bytes(4)
    domain = (
        (5).to_bytes(4) + (1).to_bytes(4) + b"\1" + mapping + b"\0" + b"\1" + (24).to_bytes(4)
        + b"\0" + b"\0"
    )  # fmt: skip
    trees = (1).to_bytes(4) + b"\1" + (5).to_bytes(8) + domain + b"\0" + b"\1"
    data = mmio(trees, tail=sub("virtio/started", b"\1"))
    made = describe(memoryview(data), "virtio-mmio@0/virtio-iommu")
    assert made is not None
    assert body_size(made) == len(data)
    text = data[: len(data)]
    node = Node("x", "a/virtio-iommu/x", "virtio", 0, len(text), None, memoryview(text))
    covered(node, text)
    assert within(node, "domains[0].key").value == 5
    assert within(node, "high").value == 0x1FFF
    assert within(node, "phys_addr").value == 0x7000
    assert within(within(node, "endpoint_list"), "id").value == 24
    assert within(node, "config.bypass").value == 1
    # A count that is not so: the bytes as they are.
    wrong = data.replace(trees, (9).to_bytes(4) + trees[4:])
    node = Node("x", "a/virtio-iommu/x", "virtio", 0, len(wrong), None, memoryview(wrong))
    assert within(node, "unknown").size == len(trees)


def test_subsections() -> None:
    tail = sub("virtio/device_endian", b"\2") + sub("virtio/64bit_features", (1 << 32).to_bytes(8))
    node = virtio(mmio(b"abc", tail=tail))
    assert within(node, "unknown").raw == b"abc"
    assert within(node, "device_endian").value == 2
    assert meaning(within(node, "virtio/64bit_features").children[0]) == "VERSION_1"
    # One that nothing is known of goes on to the next.
    node = virtio(mmio(tail=sub("virtio/new", b"12345") + sub("virtio/broken", b"\1")))
    assert within(within(node, "virtio/new"), "unknown").raw == b"12345"
    assert within(node, "broken").value is True
    # No subsection: bytes that look like the head of one.
    node = virtio(mmio(b"\5\x0dvirtio/broken"))
    assert within(node, "unknown").size == 15


def test_what_it_is_not() -> None:
    for data in (b"", b"abc", bytes(40), mmio()[:-1], bytes(12) + b"\xff" * 60):
        assert describe(memoryview(data), "x") is None
        (node,) = one([field("v", "virtio", len(data))], data).children
        assert node.raw == data
        assert node.children == ()
        assert node.value == data


def test_any_bytes() -> None:
    rng = random.Random(1)
    whole = mmio(b"abc", tail=sub("virtio/64bit_features", bytes(8)) + sub("virtio/started", b"\1"))
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 5, 0xFF, rng.randrange(256)))
        data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data
        virtio(bytes(data), rng.choice(("virtio-net", "virtio-iommu", "virtio-balloon")))
