"""Device state as a tree: every byte of every fixture, and descriptions of each shape."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.decoding import decode
from tests.truth import fixture_names, open_fixture
from vmstream.guest.devices import DeviceTree, Node, Section
from vmstream.stream.events import Payload, SectionStart, VMDescription


def tree_of(data: bytes, text: bytes | None = None) -> DeviceTree:
    """The devices of a stream, put together by hand."""
    sections: list[Section] = []
    start: SectionStart | None = None
    for event in decode(data).events:
        if isinstance(event, SectionStart):
            start = event if event.section_type == 4 else None
        elif isinstance(event, Payload) and start is not None:
            sections.append(
                Section(
                    start.idstr, start.instance_id, start.version_id, event.offset,
                    bytes(event.data),
                )
            )  # fmt: skip
        elif isinstance(event, VMDescription):
            text = event.text
    return DeviceTree(sections, text)


def covered(node: Node, data: bytes) -> None:
    """The leaves below a node are its bytes, in order, but for the frames of subsections."""
    at = node.offset
    for child in node.children:
        if node.type == "subsection" and child is node.children[0]:
            frame = b"\5" + bytes([len(node.name)]) + node.name.encode()
            assert data[at : at + len(frame)] == frame
            at += len(frame) + 4
        assert child.offset == at, child.path
        at += child.size
        covered(child, data)
    if node.children:
        assert at == node.offset + node.size, node.path
    else:
        assert node.raw == data[node.offset : node.offset + node.size]


# What is raw although there is a description: the ends of lists, and arrays with NULL pointers that
# QEMU 7.2 describes by their first element.
RAW = {"qemu-s390-flic", "s390_css", "0000:00:07.0/nvme"}


@pytest.mark.parametrize("name", fixture_names())
def test_every_byte_of_every_fixture(name: str) -> None:
    data = open_fixture(name)
    tree = tree_of(data)
    paths = []
    for device in tree:
        covered(device, data)
        for node in device.walk():
            paths.append(node.path)
            assert node.value is None or not node.children
    assert len(paths) == len(set(paths))
    if not any(tree.undescribed):
        raw = {d.path.rpartition("[")[0] for d in tree for n in d.walk() if n.type == "raw"}
        assert raw <= RAW


# ---- shapes ------------------------------------------------------------------------------------


def one(fields: Sequence[Mapping[str, Any]], body: bytes, **more: Any) -> Node:
    description = {"name": "x", "instance_id": 0, "version": 1, "fields": fields, **more}
    text = json.dumps({"page_size": 4096, "devices": [description]}).encode()
    (device,) = DeviceTree([Section(b"x", 0, 1, 100, body)], text)
    assert isinstance(device, Node)
    return device


def said(node: Node) -> list[tuple[str, str, object]]:
    return [(n.name, n.type, n.value) for n in node.children]


def field(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size, **more}


def test_values() -> None:
    device = one(
        [
            field("a", "uint8", 1),
            field("b", "int16", 2),
            field("c", "uint32 equal", 4),
            field("d", "int32 le", 4),
            field("e", "bool", 1),
            field("f", "timer", 8),
            field("g", "buffer", 3),
            field("h", "whatever", 2),
            field("i", "uint8", 0),
            field("j", "uint32", 2),
        ],
        b"\xff" + b"\xff\xfe" + b"\0\0\1\0" + b"\xff\xff\xff\xff" + b"\2" + b"\0" * 7 + b"\5"
        + b"abc" + b"\1\2" + b"\3\4",
    )  # fmt: skip
    assert said(device) == [
        ("a", "uint8", 255),
        ("b", "int16", -2),
        ("c", "uint32 equal", 256),
        ("d", "int32 le", -1),
        ("e", "bool", True),
        ("f", "timer", 5),
        ("g", "buffer", b"abc"),
        ("h", "whatever", b"\1\2"),
        ("i", "uint8", b""),
        ("j", "uint32", b"\3\4"),  # another size than its type
    ]
    assert [n.offset for n in device.children][:4] == [100, 101, 103, 107]


def test_arrays() -> None:
    inner = {"vmsd_name": "s", "version": 1, "fields": [field("v", "uint8", 1)]}
    device = one(
        [
            field("n", "uint16", 2, array_len=3),
            field("s", "struct", 1, array_len=2, struct=inner),
            field("i", "uint8", 1, index=4),
            field("i", "uint8", 1, index=5),
        ],
        bytes(range(10)),
    )
    assert said(device) == [
        ("n", "array", None),
        ("s", "array", None),
        ("i[4]", "uint8", 8),
        ("i[5]", "uint8", 9),
    ]
    assert [(n.path, n.value) for n in device.children[0].children] == [
        ("x[0]/n[0]", 0x0001),
        ("x[0]/n[1]", 0x0203),
        ("x[0]/n[2]", 0x0405),
    ]
    assert [n.path for n in device.children[1].walk()][-1] == "x[0]/s[1]/v"


def test_null_pointers() -> None:
    """By a type of their own (10.0), by markers (11.0), or as a struct without fields (2.9)."""
    inner = {"vmsd_name": "s", "version": 1, "fields": [field("v", "uint8", 1)]}
    runs = one(
        [
            field("css", "nullptr", 1, array_len=2),
            field("css", "struct", 1, struct=inner),
            field("css", "nullptr", 1),
        ],
        b"00\x0700"[:4],
    )
    assert [n.name for n in runs.children] == ["css[0]", "css[1]", "css[2]", "css[3]"]
    assert [n.type for n in runs.children] == ["nullptr", "nullptr", "struct", "nullptr"]
    assert runs.children[2].children[0].value == 7
    marked = one(
        [
            field("q", "ptr-marker", 1),
            field("q", "struct", 1, struct=inner),
            field("q", "ptr-marker", 1),
        ],
        b"1\x090",
    )
    assert [(n.name, n.type) for n in marked.children] == [
        ("q[0].marker", "ptr-marker"),
        ("q[0]", "struct"),
        ("q[1]", "nullptr"),
    ]
    old = one(
        [field("p", "struct", 1, struct={"vmsd_name": "s", "version": 1, "fields": []})], b"0"
    )
    assert said(old) == [("p", "nullptr", None)]


def test_inline_structs_and_lists() -> None:
    fields = [field("v", "uint8", 1)]
    device = one(
        [field("t", "tmp", 1, vmsd_name="t", version=1, fields=fields), field("l", "qlist", 1)],
        b"\6\0",
    )
    assert device.children[0].children[0].path == "x[0]/t/v"
    assert [n.name for n in device.children[1].children] == ["l.end"]
    # Keys of a list come once for each element.
    keys = '"vmsd_name": "e", "version": 1, "fields": [{"name": "v", "type": "uint8", "size": 1}]'
    text = (
        '{"devices": [{"name": "x", "instance_id": 0, "version": 1, "fields": '
        f'[{{"name": "l", "type": "qtailq", {keys}, {keys}, "size": 5}}]}}]}}'
    )
    (node,) = DeviceTree([Section(b"x", 0, 1, 0, b"\1\x0a\1\x0b\0")], text.encode())
    (items,) = node.children
    assert [(n.name, n.type) for n in items.children] == [
        ("l[0].marker", "ptr-marker"),
        ("l[0]", "struct"),
        ("l[1].marker", "ptr-marker"),
        ("l[1]", "struct"),
        ("l.end", "ptr-marker"),
    ]
    assert [n.children[0].value for n in items.children if n.type == "struct"] == [10, 11]


def test_subsections() -> None:
    sub = {"vmsd_name": "x/s", "version": 1, "fields": [field("v", "uint8", 1)]}
    device = one([field("a", "uint8", 1)], b"\1" + b"\5\3x/s\0\0\0\7" + b"\x2a", subsections=[sub])
    section = device.children[1]
    assert (section.type, section.version, section.children[0].value) == ("subsection", 7, 42)
    assert section.path == "x[0]/x/s"
    # What is described but not there is not made up.
    wrong = one([field("a", "uint8", 1)], b"\1" + b"\5\3x/t\0\0\0\7" + b"\x2a", subsections=[sub])
    assert [n.type for n in wrong.children] == ["uint8", "raw"]


@pytest.mark.parametrize(
    "fields",
    [
        [field("a", "uint32", 4), field("b", "uint32", 4)],
        [field("a", "uint32", -4)],
        [{"name": "a"}],
        [field("a", "uint8", 1, array_len="x")],
        [field("a", "uint8", 1 << 50)],
        "no list",
        [1, 2],
        [field("a", "struct", 5, struct=7)],
        [field("a", "qlist", 5)],
    ],
    ids=str,
)
def test_descriptions_that_lie(fields: Any) -> None:
    """What does not fit is raw, and all is there."""
    device = one(fields, b"12345")
    for node in device.walk():
        assert node.value is None or node.size <= 5
    covered(device, bytes(100) + b"12345")


@pytest.mark.parametrize("length", [0, 1, (1 << 48) - 1])
@pytest.mark.parametrize("times", [1, 2])
def test_elements_without_bytes(times: int, length: int) -> None:
    """As many as are stated, they are not made."""
    device = one(
        [field("a", "uint8", 0, array_len=length)] * times + [field("b", "uint8", 1)], b"7"
    )
    nodes = list(device.walk())
    assert len(nodes) < 10
    assert nodes[-1].value == 0x37
    assert len({n.path for n in nodes}) == len(nodes)
    covered(device, bytes(100) + b"7")


def test_more_elements_than_anybody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstream.guest.devices.MAX_ELEMENTS", 3)
    for times in (1, 2):
        device = one([field("a", "uint8", 1, array_len=4)] * times, b"1234" * times)
        assert [n.type for n in device.walk() if n.type != "array"][1:] == ["raw"] * times
        covered(device, bytes(100) + b"1234" * times)


def test_nested_too_deep() -> None:
    f = field("v", "uint8", 1)
    for _ in range(300):
        f = field("s", "struct", 1, struct={"vmsd_name": "s", "version": 1, "fields": [f]})
    nodes = list(one([f], b"\1").walk())
    assert nodes[-1].type == "raw"
    assert len(nodes) < 100


def test_random_descriptions() -> None:
    """Of a real stream, with bytes of the description or of the state changed."""
    data = open_fixture("own-microvm")
    tree = tree_of(data)
    text = next(e.text for e in decode(data).of(VMDescription))
    rng = random.Random(4)
    for _ in range(100):
        copy = bytearray(text)
        for _ in range(3):
            copy[rng.randrange(len(copy))] = rng.randrange(32, 127)
        sections = [
            Section(b, 0, 1, 0, rng.randbytes(rng.randrange(300)))
            for b in (b"timer", b"cpu", b"fw_cfg")
        ]
        for device in DeviceTree(sections, bytes(copy)):
            assert sum(n.size for n in device.children) in (0, device.size)
            for node in device.walk():
                assert node.size <= device.size
    assert len(tree) > 5


# ---- names -------------------------------------------------------------------------------------


def test_find() -> None:
    tree = tree_of(open_fixture("plain-11.1-q35"))
    (pc,) = tree.find("cpu[0]/env.eip")
    assert pc.value == 0x7D46
    assert [n.path for n in tree.find("cpu[*]/env.eip")] == ["cpu[0]/env.eip", "cpu[1]/env.eip"]
    assert [n.path for n in tree.find("cpu/env.eip")] == ["cpu[0]/env.eip", "cpu[1]/env.eip"]
    assert [n.path for n in tree.find("*/env.cr[3]")] == ["cpu[0]/env.cr[3]", "cpu[1]/env.cr[3]"]
    assert [n.path for n in tree.find("timer")] == ["timer[0]"]
    assert [n.path for n in tree.find("**/ich9_ahci")] == ["0000:00:1f.2/ich9_ahci[0]"]
    assert {n.name for n in tree.find("i8259[?]/irr")} == {"irr"}
    assert not list(tree.find("cpu[0]/nothing"))
    assert [n.path for n in tree[:2]] == [tree[0].path, tree[1].path]


def test_two_of_one_name() -> None:
    """isapc of 7.2 has two isa-ide of instance 0."""
    paths = [d.path for d in tree_of(open_fixture("own-isapc"))]
    assert {"isa-ide[0]", "isa-ide[0]#2"} <= set(paths)


def test_the_description_of_another_stream() -> None:
    data = open_fixture("novmdesc-11.1-pc")
    plain = next(e.text for e in decode(open_fixture("plain-11.1-pc")).of(VMDescription))
    assert all(n.type in ("device", "raw") for d in tree_of(data) for n in d.walk())
    sections = tree_of(data).sections
    tree = DeviceTree(sections, plain, borrowed=True)
    assert not tree.undescribed
    for device in tree:
        covered(device, data)
    # One of another size does not count.
    short = [Section(s.idstr, s.instance_id, s.version_id, s.offset, s.body[:-1]) for s in sections]
    assert len(DeviceTree(short, plain, borrowed=True).undescribed) > 20
    newer = [Section(s.idstr, s.instance_id, 99, s.offset, s.body) for s in sections]
    assert len(DeviceTree(newer, plain, borrowed=True).undescribed) > 20


@pytest.mark.parametrize("keyed", [False, True])
def test_trees(keyed: bool) -> None:
    """As put_gtree() writes them: a count, then a marker, a key and a value each, then 0."""
    vmsd = '"vmsd_name": "v", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}]'
    key = '"vmsd_name": "k", "version": 1, "fields": [{"name": "k", "type": "uint16", "size": 2}]'
    one_key = b"\0\7" if keyed else (7).to_bytes(8)
    body = (2).to_bytes(4) + (b"\1" + one_key + b"\x2a") * 2 + b"\0"
    objects = ", ".join(([key] if keyed else []) + [vmsd])
    tree = f'{{"name": "t", "type": "gtree", "size": {len(body)}, {objects}, {objects}}}'
    text = '{"page_size": 4096, "devices": [{"name": "x", "instance_id": 0, "version": 1, '
    text += f'"fields": [{tree}]}}]}}'
    (device,) = DeviceTree([Section(b"x", 0, 1, 0, body)], text.encode())
    covered(device, body)
    nodes = {n.path: n for n in device.walk()}
    assert nodes["x[0]/t.count"].value == 2
    assert nodes["x[0]/t[1]/a"].value == 42
    there = nodes["x[0]/t[1].key/k" if keyed else "x[0]/t[1].key"]
    assert there.value == 7
    assert "raw" not in {n.type for n in device.walk()}
