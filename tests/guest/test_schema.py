"""The static description of -dump-vmstate, over real state and over bodies of each shape."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard

from tests.decoding import BytesSource
from tests.qemu import Qemu
from tests.truth import FIXTURES, open_fixture
from vmstream.guest.devices import DeviceTree, Node, Section
from vmstream.guest.schema import StaticSchema
from vmstream.ops.devices import read_devices


def dump_of_11_1() -> bytes:
    packed = (FIXTURES / "dump-vmstate-11.1-pc.json.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 21)


def values_of(node: Node) -> Iterator[Node]:
    """What has no parts; an array of numbers is one."""
    if not node.children or node.type == "array":
        yield node
    else:
        for child in node.children:
            yield from values_of(child)


def base(node: Node) -> str:
    """Its name without the index: an array has one entry in one description, many in the other."""
    return node.name.partition("[")[0]


def compare(data: bytes, dump: bytes) -> tuple[int, int]:
    """Bytes named and not settled. Each name stands where the stream's own description has it."""
    found = read_devices(BytesSource(data))
    inferred = DeviceTree(found.tree.sections, None, static=StaticSchema.load(dump))
    lost = set(inferred.undescribed)
    named = unsettled = 0
    for device, truth in zip(inferred, found.tree, strict=True):
        there = {(n.offset, n.size, base(n)): n for n in truth.walk()}
        nodes = list(values_of(device)) if device.path not in lost else []
        assert sum(n.size for n in nodes) <= device.size
        for node in nodes:
            if node.type == "ambiguous":
                unsettled += node.size
                continue
            same = there[node.offset, node.size, base(node)]
            if isinstance(same.value, int) and isinstance(node.value, int) and same.value >= 0:
                assert node.value == same.value, node.path
            named += node.size
    return named, unsettled


@pytest.mark.parametrize("name", ["plain-11.1-pc", "plain-11.1-q35", "devices-11.1-q35"])
def test_what_is_named_is_right(name: str) -> None:
    named, unsettled = compare(open_fixture(name), dump_of_11_1())
    assert named > 1500
    assert unsettled


@pytest.mark.qemu
def test_of_the_same_qemu() -> None:
    with Qemu(["-M", "pc", "-accel", "tcg", "-m", "16M"]) as vm:
        vm.stop()
        vm.migrate("exec:cat>out")
        data = vm.path("out").read_bytes()
    with Qemu(["-M", "pc,suppress-vmdesc=on", "-accel", "tcg", "-m", "16M"]) as vm:
        subprocess.run(
            ["qemu-system-x86_64", "-M", "pc", "-dump-vmstate", str(vm.path("x.json"))], check=True
        )
        dump = vm.path("x.json").read_bytes()
        vm.stop()
        vm.migrate("exec:cat>out")
        bare = read_devices(BytesSource(vm.path("out").read_bytes()))
    named, _ = compare(data, dump)
    assert named > 200
    assert bare.text is None
    bare.static = StaticSchema.load(dump)
    assert len(bare.tree.undescribed) < len(bare.tree) // 2


@pytest.mark.parametrize(
    ("arch", "machine"),
    [
        pytest.param("aarch64", "virt", marks=pytest.mark.qemu("aarch64")),
        pytest.param("s390x", "s390-ccw-virtio", marks=pytest.mark.qemu("s390x")),
        pytest.param("riscv64", "virt", marks=pytest.mark.qemu("riscv64")),
    ],
)
def test_of_other_architectures(arch: str, machine: str) -> None:
    binary = f"qemu-system-{arch}"
    args = ["-M", machine, "-accel", "tcg", "-m", "64M", "-S"]
    with Qemu(args, binary=binary) as vm:
        dump = vm.path("x.json")
        subprocess.run([binary, "-M", machine, "-dump-vmstate", str(dump)], check=True)
        vm.migrate("exec:cat>out")
        named, _ = compare(vm.path("out").read_bytes(), dump.read_bytes())
    # That of 7.2 has no lengths of arrays, which leaves little that is settled.
    assert named > 10


# ---- shapes ------------------------------------------------------------------------------------


def f(name: str, size: int, *, exists: bool = False, version: int = 0, **more: Any) -> Any:
    return {"field": name, "version_id": version, "field_exists": exists, "size": size, **more}


def vmsd(name: str, *fields: Any, version: int = 2, subs: Any = ()) -> dict[str, Any]:
    head = {"name": name, "version_id": version, "minimum_version_id": 1}
    return {**head, "Fields": list(fields), "Subsections": list(subs)}


def device(description: Any, body: bytes, *, version: int = 2, counted: bool = True) -> Node | None:
    kinds = {"kind": {"Name": "kind", "Description": description}}
    if counted:
        kinds["other"] = {"Name": "other", "Description": vmsd("other", f("a", 1, num=2))}
    static = StaticSchema.load(json.dumps(kinds).encode())
    tree = DeviceTree([Section(b"0000:00:01.0/x", 0, version, 0, body)], None, static=static)
    if tree.undescribed:
        return None
    (made,) = tree
    assert isinstance(made, Node)
    return made


def said(node: Node | None) -> list[tuple[str, str, object]]:
    assert node is not None
    return [(n.name, n.type, n.value) for n in node.children]


def test_values() -> None:
    made = device(vmsd("x", f("a", 1), f("b", 2, num=2), f("c", 3)), bytes(range(8)))
    assert said(made) == [("a", "uint8", 0), ("b", "array", None), ("c", "buffer", b"\5\6\7")]
    assert device(vmsd("x", f("a", 1)), b"12", version=3) is None
    assert device(vmsd("y", f("a", 1)), b"1") is None
    assert device(vmsd("x", f("a", 1, num=1)), b"12") is None


def test_versions_and_conditions() -> None:
    newer = vmsd("x", f("a", 1, num=1), f("b", 4, version=2))
    assert said(device(newer, b"\1", version=1)) == [("a", "uint8", 1)]
    assert len(said(device(newer, b"\1\0\0\0\2"))) == 2
    either = vmsd("x", f("a", 1), f("b", 1, exists=True), f("c", 2, exists=True), f("d", 1))
    assert [n for n, _, _ in said(device(either, b"1234"))] == ["a", "c", "d"]
    both = vmsd("x", f("a", 1), f("b", 2, exists=True), f("c", 2, exists=True), f("d", 1))
    assert said(device(both, b"1234")) == [
        ("a", "uint8", 0x31),
        ("ambiguous@0x1", "ambiguous", b"23"),
        ("d", "uint8", 0x34),
    ]


def test_structs_subsections_and_lengths() -> None:
    inner = vmsd("s", f("v", 1), f("v", 1))
    sub = vmsd("x/y", f("w", 2))
    made = device(
        vmsd("x", f("s", 24, num=2, Description=inner), subs=[sub]),
        b"\1\2\3\4" + b"\5\3x/y\0\0\0\7\0\x2a",
    )
    assert made is not None
    values = {n.path.partition("/x[0]/")[2]: n.value for n in made.walk() if not n.children}
    assert values == {"s[0]/v[0]": 1, "s[0]/v[1]": 2, "s[1]/v[0]": 3, "s[1]/v[1]": 4, "x/y/w": 42}
    assert [n.version for n in made.children][-1] == 7
    # Without lengths any of them may be an array, with them one that fits with none is not.
    two = vmsd("x", f("a", 1), f("b", 1))
    assert [t for _, t, _ in said(device(two, b"123", counted=False))] == ["ambiguous"]
    assert [n for n, _, _ in said(device(two, b"12", counted=False))] == ["a", "b"]
    # State of any size: alone it is what there is, with others nothing is settled.
    assert said(device(vmsd("x", f("virtio", 0)), b"123")) == [("virtio", "buffer", b"123")]
    assert said(device(vmsd("x", f("a", 1), f("o", 0)), b"123"))[0][1] == "ambiguous"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"{}", b"[]", b"7", b'{"a": 1}', b'{"a": {"Description": 3}}', b"\xff",
        b'{"vmschkmachine": 5}', b"[" * 100_000,
        b'{"a": {"Description": {"name": {}}}', b'{"a":' * 9999,
    ],
    ids=range(12),
)  # fmt: skip
def test_files_that_are_none(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        StaticSchema.load(text)


@pytest.mark.parametrize(
    "fields",
    [
        [f("a", -1)], [f("a", 1 << 60)], [f("a", 1, num=-3)], [1, 2], "no", [{}], None, 7,
        [f("a", 1, version="x")], [f("a", 1, Description=3)], [f("a", True)],
        [f("a", 0, Description={"name": "s", "version_id": 1, "Fields": 5})],
    ],
    ids=range(12),
)  # fmt: skip
def test_descriptions_that_lie(fields: Any) -> None:
    description = {"name": "x", "version_id": 2, "minimum_version_id": 1, "Fields": fields}
    assert device(description, b"12345") is None


@pytest.mark.parametrize("counted", [True, False])
def test_too_many_layouts(counted: bool) -> None:
    """2^2000 of them, lengths that nobody has, nesting: a result all the same, and soon."""
    body = bytes(20_000)
    many = vmsd("x", *(f(f"a{i}", 1 + i % 8, exists=True) for i in range(2000)))
    assert said(device(many, body[:3000], counted=counted))[0][1] == "ambiguous"
    long = vmsd("x", f("s", 1, num=1 << 40, Description=vmsd("s", f("a", 0))), f("b", 1))
    assert device(long, body, counted=counted) is not None
    deep: dict[str, Any] = vmsd("s", f("a", 1))
    for _ in range(60):
        deep = vmsd("x", f("s", 1, Description=deep))
    assert device(deep, b"1", counted=counted) is None
    inner = vmsd("s", f("t", 1, Description=vmsd("t", f("a", 1))))
    loops = vmsd("x", f("s", 1, Description=inner))
    assert said(device(loops, body, counted=counted))[0][1] == "ambiguous"


def test_an_array_of_structs_may_be_empty() -> None:
    inner = vmsd("s", f("v", 1), f("w", 1))
    two = vmsd("x", f("n", 1), f("s", 8, Description=inner), f("m", 2))
    assert said(device(two, b"12345", counted=False))[0][0] == "ambiguous@0x0"
    fixed = vmsd("x", f("n", 1, num=1), f("s", 8, Description=inner), f("m", 2, num=1))
    assert said(device(fixed, b"123")) == [("n", "uint8", 0x31), ("m", "uint16", 0x3233)]


def test_kinds_and_sections_without_end() -> None:
    kinds = {
        str(i): {"Description": vmsd("x", f("a", 1, num=1), f("b", i, num=1))} for i in range(500)
    }
    static = StaticSchema.load(json.dumps(kinds).encode())
    described = static.describe(b"x", 2, b"12")
    assert described is not None
    assert described["fields"][0]["type"] == "ambiguous"
    static = StaticSchema.load(json.dumps({"1": kinds["1"]}).encode())
    settled = 0
    for _ in range(1 << 17):
        described = static.describe(b"x", 2, b"12")
        assert described is not None
        settled += described["fields"][0]["type"] != "ambiguous"
    assert 1000 < settled < 1 << 17
