"""Device state as JSON: every type there and back, and what is no such JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.report.test_models import validator
from tests.strategies import examples
from vmstream.errors import EncodeError
from vmstream.guest.devicejson import EMPTY, to_bytes, to_json
from vmstream.guest.devices import DeviceTree, Node, Section


def tree(body: bytes, fields: list[dict[str, Any]], subsections: Any = ()) -> Node:
    described = {"name": "x", "instance_id": 0, "version": 1, "fields": fields}
    if subsections:
        described["subsections"] = subsections
    text = json.dumps({"page_size": 4096, "devices": [described]}).encode()
    [node] = DeviceTree([Section(b"x", 0, 1, 0, body)], text)
    assert isinstance(node, Node)
    return node


def there_and_back(node: Node) -> Any:
    text = to_json(node)
    assert to_bytes(text, "file") == node.raw
    document = json.loads(text)
    if document:
        validator("device").validate(document)
    return document


def test_values_are_as_people_write_them() -> None:
    sizes = [
        ("a", "uint8", 1), ("b", "int16", 2), ("c", "uint64", 8), ("d", "bool", 1),
        ("e", "timer", 8), ("f", "buffer", 3), ("g", "uint32 little", 4), ("h", "int64", 8),
        ("odd", "uint32", 3), ("i", "bool", 1),
    ]  # fmt: skip
    body = bytes.fromhex(
        "07" "fffe" "8000000000000001" "01" "00000000000000ff" "0a0b0c" "01000000"
        "ffffffffffffffff" "010203" "02"
    )  # fmt: skip
    found = there_and_back(tree(body, [{"name": n, "type": t, "size": s} for n, t, s in sizes]))
    assert found == [
        {"name": "a", "type": "uint8", "value": 7},
        {"name": "b", "type": "int16", "value": -2},
        {"name": "c", "type": "uint64", "value": "0x8000000000000001"},
        {"name": "d", "type": "bool", "value": True},
        {"name": "e", "type": "timer", "size": 8, "value": 255},
        {"name": "f", "type": "buffer", "size": 3, "value": "0a0b0c"},
        {"name": "g", "type": "uint32 little", "value": 1},
        {"name": "h", "type": "int64", "value": -1},
        {"name": "odd", "type": "uint32", "size": 3, "value": "010203"},
        {"name": "i", "raw": "02"},
    ]


def test_arrays_structs_and_subsections() -> None:
    inner = {"vmsd_name": "s", "version": 1, "fields": [{"name": "n", "type": "uint8", "size": 1}]}
    fields = [
        {"name": "words", "array_len": 2, "type": "uint16", "size": 2},
        {"name": "few", "array_len": 3, "type": "uint8", "size": 1},
        {"name": "many", "array_len": 20, "type": "uint8", "size": 1},
        {"name": "s", "type": "struct", "struct": inner, "size": 1},
        {"name": "s2", "array_len": 2, "type": "struct", "struct": inner, "size": 1},
    ]
    sub = {"vmsd_name": "x/y", "version": 3, "fields": [{"name": "v", "type": "int8", "size": 1}]}
    body = bytes(range(4 + 3 + 20 + 1 + 2)) + b"\5\3x/y" + (3).to_bytes(4) + b"\xff" + b"rest"
    found = there_and_back(tree(body, fields, [sub]))
    assert found == [
        {"name": "words", "type": "uint16", "count": 2, "values": [1, 0x203]},
        {"name": "few", "type": "uint8", "count": 3, "values": [4, 5, 6]},
        {"name": "many", "type": "uint8", "count": 20, "values": bytes(range(7, 27)).hex()},
        {"name": "s", "type": "struct", "fields": [{"name": "n", "type": "uint8", "value": 27}]},
        {"name": "s2", "type": "array", "fields": [
            {"name": f"s2[{i}]", "type": "struct",
             "fields": [{"name": "n", "type": "uint8", "value": 28 + i}]} for i in range(2)
        ]},
        {"name": "x/y", "type": "subsection", "version": 3,
         "fields": [{"name": "v", "type": "int8", "value": -1}]},
        {"raw": b"rest".hex()},
    ]  # fmt: skip


def test_text() -> None:
    fields = [{"name": "runstate", "type": "buffer", "size": 12}]
    found = there_and_back(tree(b"running".ljust(12, b"\0"), fields))
    assert found == [{"name": "runstate", "type": "buffer", "size": 12, "text": "running"}]
    for odd in (b"x" * 12, b"a\0b".ljust(12, b"\0"), b"\xff".ljust(12, b"\0")):
        [one] = there_and_back(tree(odd, fields))
        assert one["value"] == odd.hex()


@settings(max_examples=examples(60))
@given(st.binary(max_size=60), st.data())
def test_whatever_is_described(body: bytes, data: st.DataObject) -> None:
    """Descriptions that lie, too: the state comes back."""
    kinds = ["uint8", "int32", "bool", "timer", "buffer", "nullptr", "struct", "qtailq", "virtio"]
    one = st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b", "runstate"]), "type": st.sampled_from(kinds),
         "size": st.integers(0, 9)},
        optional={"array_len": st.integers(0, 20), "index": st.integers(0, 3)},
    )  # fmt: skip
    there_and_back(tree(body or b"\0", data.draw(st.lists(one, max_size=9))))


def test_without_names_and_without_state() -> None:
    [node] = DeviceTree([Section(b"x", 0, 1, 0, b"\1\2")], None)
    assert json.loads(to_json(node)) == [{"raw": "0102"}]
    assert to_bytes(EMPTY, "file") == b""


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({}, "has one of"),
        ({"raw": "00", "value": 1}, "has one of"),
        ({"raw": "0"}, "bytes in hex"),
        ({"raw": 5}, "bytes in hex"),
        ({"raw": "00", "vale": 1}, "has one of"),
        ({"value": 1}, "no 'type'"),
        ({"type": "uint8", "value": 256}, "takes 0x0 to 0xff"),
        ({"type": "uint8", "value": "0x"}, "takes a number"),
        ({"type": "bool", "value": 2}, "takes true or false"),
        ({"type": "buffer", "value": "00"}, "'size' is a number"),
        ({"type": "buffer", "size": 2, "value": "00"}, "takes 2 bytes in hex, and not 1"),
        ({"type": "buffer", "size": 1 << 31, "value": "00"}, "and not 1"),
        ({"type": "timer", "size": -1, "value": 0}, "'size' is a number"),
        ({"type": "uint8", "count": 2, "values": [1]}, "list of 2 values, and not 1"),
        ({"type": "uint8", "count": 2, "values": "0011ff"}, "takes 2 bytes"),
        ({"type": "uint16", "count": 2, "values": "0011"}, "takes a list"),
        ({"type": "uint8", "values": []}, "'count' is"),
        ({"type": "subsection", "name": "x", "fields": []}, "'version' is"),
        ({"type": "subsection", "version": 1, "fields": []}, "no 'name'"),
        ({"type": "subsection", "name": "x" * 256, "version": 1, "fields": []}, "subsection"),
        ({"type": "struct", "fields": 5}, "is a list of fields"),
        ({"type": "buffer", "size": 9, "name": "a", "text": "x"}, "is no text"),
        ({"type": "buffer", "size": 2, "name": "runstate", "text": "xyz"}, "fewer than 2"),
        (5, "is an object"),
    ],
)
def test_what_is_none(entry: object, why: str) -> None:
    with pytest.raises(EncodeError, match=why) as caught:
        to_bytes(json.dumps([entry]), "file")
    assert str(caught.value).startswith(("file: ", "subsection"))


@pytest.mark.parametrize(
    "text", ["", "{}", "[", "5", "[" * 100000, "9" * 5000, '[{"raw": "\\ud8"}]']
)
def test_no_json(text: str) -> None:
    with pytest.raises(EncodeError):
        to_bytes(text, "file")


def test_nested_too_deep() -> None:
    entry: Any = {"raw": "00"}
    for _ in range(200):
        entry = {"type": "struct", "fields": [entry]}
    with pytest.raises(EncodeError, match="nested"):
        to_bytes(json.dumps([entry]), "file")
