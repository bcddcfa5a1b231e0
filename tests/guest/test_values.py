"""Values of fields from text: what `get` prints comes back as the bytes it is of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.decoding import BytesSource
from tests.truth import open_fixture
from vmstream.errors import EncodeError
from vmstream.guest.devices import DeviceTree, Node, Section
from vmstream.guest.values import TEXTS, encode
from vmstream.ops.devices import read_devices


def node(kind: str, data: bytes, name: str = "f", **more: Any) -> Node:
    """A field of a device."""
    field = {"name": name, "type": kind, "size": len(data) // more.get("array_len", 1), **more}
    device = {"name": "x", "instance_id": 0, "version": 1, "fields": [field]}
    text = json.dumps({"devices": [device]}).encode()
    (found,) = DeviceTree([Section(b"x", 0, 1, 100, data)], text)[0].children
    assert isinstance(found, Node)
    return found


def encoded(found: Node, text: str) -> bytes:
    ((place, data),) = encode(found, text)
    assert place is found
    return data


@pytest.mark.parametrize(
    "name", ["plain-11.1-q35", "plain-5.2-pc", "aarch64-10.0-virt", "s390x-10.0", "own-ppc64-htab"]
)
def test_every_value_of_a_real_stream(name: str) -> None:
    """Printed and read again it has the same bytes."""
    kinds = set()
    for device in read_devices(BytesSource(open_fixture(name))).tree:
        for found in device.walk():
            value = found.value
            if value is None or found.type in ("ptr-marker", "nullptr"):
                continue
            kinds.add(type(value))
            texts = [value.hex()] if isinstance(value, bytes) else [str(value)]
            if isinstance(value, int) and not isinstance(value, bool):
                texts.append(f"{value:#x}")
            if found.name in TEXTS:
                texts = [found.raw.rstrip(b"\0").decode()]
            for text in texts:
                assert encoded(found, text) == found.raw, found
    assert kinds == {int, bool, bytes}


@pytest.mark.parametrize(
    ("kind", "size", "text", "want"),
    [
        ("uint16", 2, "0xabcd", "abcd"),
        ("int16", 2, "-2", "fffe"),
        ("int32 equal", 4, "7", "00000007"),
        ("uint32 little", 4, "1", "01000000"),
        ("bool", 1, "true", "01"),
        ("bool", 1, "0", "00"),
        ("timer", 8, "0xffffffffffffffff", "f" * 16),
        ("buffer", 3, "0x010203", "010203"),
        ("buffer", 3, "01 02 03", "010203"),
    ],
)
def test_types(kind: str, size: int, text: str, want: str) -> None:
    assert encoded(node(kind, bytes(size)), text).hex() == want


@pytest.mark.parametrize(
    ("kind", "size", "text", "why"),
    [
        ("uint8", 1, "256", "takes 0x0 to 0xff, and not 256"),
        ("uint8", 1, "-1", "takes 0x0"),
        ("int8", 1, "128", "-0x80 to 0x7f"),
        ("uint8", 1, "x", "takes a number"),
        ("uint8", 1, "", "takes a number"),
        ("bool", 1, "2", "takes true or false"),
        ("timer", 8, "-1", "takes 0x0"),
        ("buffer", 3, "0102", "takes 3 bytes in hex, and not 2"),
        ("buffer", 3, "no hex", "takes 3 bytes in hex"),
    ],
)
def test_what_does_not_fit(kind: str, size: int, text: str, why: str) -> None:
    with pytest.raises(EncodeError, match=why):
        encoded(node(kind, bytes(size)), text)


def test_text_is_padded() -> None:
    state = node("buffer", b"running".ljust(100, b"\0"), "runstate")
    assert encoded(state, "paused") == b"paused".ljust(100, b"\0")
    with pytest.raises(EncodeError, match="fewer than 100 bytes"):
        encoded(state, "x" * 100)


def test_an_array_takes_as_many_as_it_has() -> None:
    array = node("uint16", bytes(6), array_len=3)
    assert [d.hex() for _, d in encode(array, "1, 2 0x30")] == ["0001", "0002", "0030"]
    assert [n.offset for n, _ in encode(array, "1 2 3")] == [100, 102, 104]
    for text in ("1 2", "1 2 3 4"):
        with pytest.raises(EncodeError, match="takes 3 values"):
            list(encode(array, text))


def test_what_has_no_value() -> None:
    struct = node("struct", b"\0", struct={"fields": [{"name": "a", "type": "bool", "size": 1}]})
    with pytest.raises(EncodeError, match="no value of its own"):
        list(encode(struct, "1"))
    with pytest.raises(EncodeError, match="no value of its own"):
        list(encode(node("struct", b"0", struct={}), "1"))  # a NULL pointer
