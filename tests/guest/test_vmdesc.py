"""A vmdescription that is changed: the rest stays to the byte, and sizes still add up."""

from __future__ import annotations

import json

import pytest

from tests.decoding import BytesSource
from tests.streamwriter import Device, Field, Subsection, describe, json_text
from tests.truth import fixture_names, open_fixture
from vmstream.errors import EncodeError
from vmstream.guest.devices import DeviceTree, Node, Section
from vmstream.guest.vmdesc import Document
from vmstream.ops.devices import read_devices
from vmstream.wire.parse import ConfigurationValues
from vmstream.wire.vmsd import load

STYLES = ("6.0", "qjson")
DEEP = Subsection("d/s/deep", 1, [Field("v", "uint16", bytes(2))])
INNER = Subsection("d/s", 1, [Field("u", "uint8", bytes(1))], [DEEP])


def struct(name: str, data: bytes, inner: Subsection, **more: int) -> Field:
    """A struct with one field and a subsection."""
    field = Field("a", "uint8", data)
    body = data + inner.payload()
    described = {
        "vmsd_name": "d",
        "version": 1,
        "fields": [field.describe()],
        "subsections": [inner.describe()],
    }
    return Field(name, "struct", body, extra={"struct": described}, **more)


def document(devices: list[Device], style: str = "6.0") -> tuple[Document, list[Node], bytes]:
    text = json_text(describe(devices), style)
    sections = [Section(d.name.encode(), d.instance_id, d.version, 0, d.payload()) for d in devices]
    tree = DeviceTree(sections, text)
    return Document(tree.document, text), list(tree), text


@pytest.mark.parametrize("name", [n for n in fixture_names() if "interrupted" not in n])
def test_real_ones_come_out_as_they_went_in(name: str) -> None:
    found = read_devices(BytesSource(open_fixture(name)))
    if found.text is None:
        with pytest.raises(ValueError):
            _ = found.tree.document
        return
    made = Document(found.tree.document, found.text)
    assert made.text() == found.text
    assert not made.changed


@pytest.mark.parametrize("style", STYLES)
def test_of_two_devices_of_one_name_one_goes(style: str) -> None:
    twins = [Device("ide", 0, 1, [Field("a", "uint8", b"\1")]) for _ in range(2)]
    kept = Device("z", 3, 1, [Field("a", "uint8", b"\1")])
    made, nodes, _ = document([*twins, kept], style)
    made.drop_device(nodes[1].description)
    assert made.changed
    assert made.text() == json_text(describe([twins[0], kept]), style)


@pytest.mark.parametrize("style", STYLES)
def test_sizes_of_structs_around_a_subsection(style: str) -> None:
    outer = struct("f", b"\1", INNER)
    made, (device,), _ = document([Device("d", 0, 1, [outer])], style)
    deep = next(n for n in device.walk() if n.name == "d/s/deep")
    made.drop_subsection(device.description, deep.description)
    less = Subsection("d/s", 1, INNER.fields)
    want = Device("d", 0, 1, [struct("f", b"\1", less)])
    assert made.text() == json_text(describe([want]), style)
    (layout,) = load(made.text()).devices
    assert layout.size == device.size - deep.size
    # The last one takes the key with it.
    made.drop_subsection(device.description, device.children[0].children[1].description)
    assert b"subsections" not in made.text()


def test_elements_of_a_list_keep_their_keys() -> None:
    """Each brings the keys of a vmsd into one object."""
    body = b"\1" + b"\7" + INNER.payload() + b"\1" + b"\7" + INNER.payload() + b"\0"
    vmsd = json.dumps(
        {
            "vmsd_name": "e",
            "version": 1,
            "fields": [{"name": "a", "type": "uint8", "size": 1}],
            "subsections": [INNER.describe()],
        }
    )[1:-1]
    text = (
        f'{{"devices": [{{"name": "d", "instance_id": 0, "version": 1, "fields": [{{"name": "l", '
        f'"type": "qtailq", "size": {len(body)}, {vmsd}, {vmsd}}}]}}]}}'
    ).encode()
    tree = DeviceTree([Section(b"d", 0, 1, 0, body)], text)
    made = Document(tree.document, text)
    assert made.text() == text
    subsections = [n for n in tree[0].walk() if n.name == "d/s"]
    assert len(subsections) == 2
    made.drop_subsection(tree[0].description, subsections[1].description)
    out = made.text()
    assert out.count(b'"d/s"') == 1
    assert out.count(b'"vmsd_name": "e"') == 2
    assert out.index(b'"d/s"') < out.rindex(b'"vmsd_name": "e"')
    assert load(out).devices[0].size == len(body) - subsections[1].size


def test_elements_of_an_array_share_one_description() -> None:
    one = struct("f", b"\1", Subsection("d/s", 1, INNER.fields))
    both = Field("f", "struct", one.data * 2, array_len=2, extra=one.extra)
    made, (device,), text = document([Device("d", 0, 1, [both])])
    sub = next(n for n in device.walk() if n.type == "subsection")
    with pytest.raises(EncodeError, match="share its description"):
        made.drop_subsection(device.description, sub.description)
    assert made.text() == text


def test_what_is_not_described() -> None:
    made, (device,), _ = document([Device("d", 0, 1, [Field("a", "uint8", b"\1")])])
    with pytest.raises(EncodeError, match="does not have it"):
        made.drop_subsection(device.description, {"vmsd_name": "x"})


@pytest.mark.parametrize("name", ["uuid-11.1-pc", "mapped-10.0-pc", "aarch64-10.0-virt"])
def test_the_configuration_is_described_as_qemu_does(name: str) -> None:
    """From the values of one real stream the description of another is made."""
    others = [read_devices(BytesSource(open_fixture(n))) for n in ("plain-11.1-pc", name)]
    stream, want = (json.loads(o.text or b"") for o in others)
    plain = others[0]
    assert plain.text is not None
    values = {
        "uuid-11.1-pc": ConfigurationValues(
            b"pc-i440fx-11.1", None, (), bytes(16), (b"configuration/uuid",)
        ),
        "mapped-10.0-pc": ConfigurationValues(
            b"pc-i440fx-10.0", None, (b"mapped-ram",), None, (b"configuration/capabilities",)
        ),
        "aarch64-10.0-virt": ConfigurationValues(
            b"virt-10.0", 12, (), None, (b"configuration/target-page-bits",)
        ),
    }[name]
    made = Document(plain.tree.document, plain.text)
    made.configure(values)
    found = json.loads(made.text())
    assert found["configuration"] == want["configuration"]
    assert found["devices"] == stream["devices"]


def test_what_a_state_does_not_have_goes() -> None:
    """A subsection is there where its frame is; those of elements of an array stay."""
    leaf = {"vmsd_name": "s/b", "version": 1, "fields": [{"name": "n", "type": "int8", "size": 1}]}
    inner = {"vmsd_name": "s", "version": 1, "fields": [], "subsections": [leaf]}
    framed = b"\5\3s/b" + (1).to_bytes(4, "big") + b"x"
    device = {
        "name": "d",
        "instance_id": 0,
        "fields": [{"name": "s", "type": "struct", "struct": inner, "size": len(framed)}],
        "subsections": [leaf],
    }
    text = json.dumps({"page_size": 4096, "devices": [device]}, separators=(", ", ": ")).encode()
    for body, left in ((framed * 2, 2), (framed, 1), (b"", 0), (b"x", -1), (framed + b"x", -1)):
        tree = DeviceTree([], text).document
        document = Document(tree, text)
        assert document.fit(tree["devices"][0], body) == (left >= 0)
        assert document.changed == (left in (0, 1))
        made = document.text()
        assert made.count(b"s/b") == (left if left >= 0 else 2)
        if left >= 0:
            assert load(made).devices[0].size == len(body)
