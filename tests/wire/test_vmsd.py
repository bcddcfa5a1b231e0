"""Sizes from a vmdescription, and descriptions that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.strategies import devices, examples
from tests.streamwriter import Device, Field, Subsection
from tests.truth import fixture_names, load_manifest, open_fixture
from vmstream.wire import vmsd
from vmstream.wire.constants import MAX_VMDESCRIPTION


def load(tree: Any) -> vmsd.VMDescriptionLayout:
    return vmsd.load(json.dumps(tree).encode())


def one(**device: Any) -> vmsd.DeviceLayout:
    """The layout of a description's only device."""
    described = {"name": "timer", "instance_id": 0, **device}
    (layout,) = load({"page_size": 4096, "devices": [described]}).devices
    return layout


def test_field_size() -> None:
    assert vmsd.field_size({"name": "a", "size": 4}) == 4
    assert vmsd.field_size({"name": "a", "size": 4, "array_len": 6}) == 24
    assert vmsd.field_size({"name": "a", "size": 4, "index": 6}) == 4
    assert vmsd.field_size({"name": "a", "size": 4, "array_len": 0}) == 0


def test_top_fields() -> None:
    fields = [{"name": "a", "size": 4, "array_len": 2}, {"size": 1}, {"name": "c", "size": 3}]
    assert list(vmsd.top_fields({"fields": fields})) == [("a", 0, 8), ("", 8, 1), ("c", 9, 3)]
    assert list(vmsd.top_fields({})) == []


def test_subsections_count_with_their_frames() -> None:
    inner = {"vmsd_name": "timer/a/b", "version": 1, "fields": [{"name": "x", "size": 2}]}
    sub = {"vmsd_name": "timer/a", "version": 1, "fields": [], "subsections": [inner]}
    device = one(fields=[{"name": "x", "size": 10}], subsections=[sub])
    assert device.size == 10 + (1 + 1 + 7 + 4) + (1 + 1 + 9 + 4) + 2


def test_a_struct_counts_once() -> None:
    nested = {"vmsd_name": "n", "fields": [{"name": "y", "size": 99}]}
    field = {"name": "s", "type": "struct", "struct": nested, "size": 7, "array_len": 3}
    assert one(fields=[field]).size == 21


def test_nothing_but_a_name_is_no_bytes() -> None:
    assert one().size == 0


def test_names_are_bytes() -> None:
    assert one(name="ünï").idstr == "ünï".encode()
    (device,) = vmsd.load(b'{"devices": [{"name": "\xff\x80", "instance_id": 0}]}').devices
    assert device.idstr == b"\xff\x80"


@pytest.mark.parametrize(("stated", "want"), [(5, 5), (-1, 0xFFFFFFFF), (-(2**31), 0x80000000)])
def test_instance_id_is_unsigned(stated: int, want: int) -> None:
    assert one(instance_id=stated).instance_id == want


def test_page_size_may_be_absent() -> None:
    assert load({"devices": []}) == vmsd.VMDescriptionLayout(None, ())
    assert load({"page_size": 65536, "devices": []}).page_size == 65536
    assert load({"page_size": None, "devices": []}).page_size is None


@settings(deadline=None, max_examples=examples(60))
@given(devices(max_devices=7), st.sampled_from(("6.0", "qjson")))
def test_sizes_are_those_of_the_writer(found: list[Device], style: str) -> None:
    layout = vmsd.load(sw.json_text(sw.describe(found, 8192), style))
    assert layout.page_size == 8192
    assert [(d.idstr.decode(), d.instance_id, d.size) for d in layout.devices] == [
        (d.name, d.instance_id, len(d.payload())) for d in found
    ]


def test_duplicate_keys_as_qemu_writes_them_do_not_disturb() -> None:
    text = (
        b'{"devices": [{"name": "q", "instance_id": 0, "fields": [{"name": "list", '
        b'"type": "qtailq", "vmsd_name": "e", "fields": [{"name": "x", "size": 4}], '
        b'"vmsd_name": "e", "fields": [{"name": "x", "size": 4}], "size": 11}]}]}'
    )
    assert vmsd.load(text).devices[0].size == 11


# ---- descriptions that are not to be trusted ---------------------------------------------------


def test_may_lie() -> None:
    inner = {"vmsd_name": "i", "fields": [{"name": "x", "size": 4}]}
    plain = {"fields": [{"name": "a", "size": 1}, {"name": "s", "struct": inner, "size": 4}]}
    null = {"fields": [{"name": "s", "struct": {"fields": []}, "size": 1}]}
    array = {"fields": [{"name": "s", "struct": inner, "array_len": 8, "size": 4}]}
    assert not vmsd.may_lie(plain)
    assert not vmsd.may_lie({})
    assert vmsd.may_lie(null)
    assert vmsd.may_lie(array)
    assert vmsd.may_lie({"fields": [{"name": "s", "struct": array, "size": 32}]})
    assert vmsd.may_lie({"fields": [], "subsections": [plain, null]})
    assert not vmsd.may_lie({"fields": [], "subsections": [plain]})


BAD_SIZES = [-1, 1.0, 1.5, 1 << 48, 10**400, "4", None, True, [], {}, float("nan"), float("inf")]


@pytest.mark.parametrize("size", [0, 1, 128, 4095, 3 << 11, 1 << 25])
def test_impossible_page_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="page size"):
        load({"page_size": size, "devices": []})


@pytest.mark.parametrize("size", BAD_SIZES, ids=repr)
@pytest.mark.parametrize("key", ["size", "array_len", "page_size"])
def test_hostile_sizes(key: str, size: Any) -> None:
    if key == "page_size":
        if size is None:
            return
        tree: dict[str, Any] = {"page_size": size, "devices": []}
    else:
        field = {"name": "a", "size": 1, key: size}
        tree = {"devices": [{"name": "d", "instance_id": 0, "fields": [field]}]}
    with pytest.raises(ValueError):
        load(tree)


@pytest.mark.parametrize("instance", [None, [], {}, "x", float("nan"), float("inf"), 1e300])
def test_hostile_instance_ids(instance: Any) -> None:
    try:
        assert 0 <= one(instance_id=instance).instance_id < 1 << 32
    except ValueError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"devices"',
        b"{}",
        b'{"devices": {}}',
        b'{"devices": "abc"}',
        b'{"devices": [1]}',
        b'{"devices": ["name"]}',
        b'{"devices": [{}]}',
        b'{"devices": [{"name": "a"}]}',
        b'{"devices": [{"instance_id": 1}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": {}}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": [1]}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": ["size"]}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": [["size"]]}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": [{}]}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": null}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "subsections": [{}]}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "subsections": [[]]}]}',
        b'{"devices": [{"name": "\\ud800", "instance_id": 0}]}',
        b'{"devices": []} trailing',
        b'{"devices": [], "x": \xff}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_no_description(text: bytes) -> None:
    with pytest.raises(ValueError):
        vmsd.load(text)


@pytest.mark.parametrize("depth", [10, 400, 600, 2_000, 100_000, 1_000_000])
@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("[", "]"),
        ('{"a": ', "}"),
        ('{"vmsd_name": "s", "subsections": [', "]}"),
        ('{"vmsd_name": "s", "fields": [{"name": "f", "size": 1, "struct": ', "}]}"),
    ],
)
def test_deep_nesting(depth: int, opening: str, closing: str) -> None:
    core = '{"vmsd_name": "s"}' if "vmsd_name" in opening else "{}"
    deep = opening * depth + core + closing * depth
    for key in ("configuration", "fields", "subsections"):
        text = '{"devices": [{"name": "d", "instance_id": 0, "' + key + '": [' + deep + "]}]}"
        if key == "configuration":
            text = '{"configuration": ' + deep + ', "devices": []}'
        try:
            found = vmsd.load(text.encode())
            for device in found.devices:
                vmsd.may_lie(device.description)
        except ValueError:
            assert depth >= 10


def test_too_long() -> None:
    with pytest.raises(ValueError, match="MiB"):
        vmsd.load(b'{"devices": []}' + b" " * MAX_VMDESCRIPTION)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            (
                "devices", "name", "instance_id", "fields", "subsections", "vmsd_name", "size",
                "array_len", "struct", "page_size",
            )
        ),
        inner,
        max_size=6,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(deadline=None, max_examples=examples(120))
@given(json_values, json_values)
def test_any_json_is_a_description_or_a_value_error(tree: Any, device: Any) -> None:
    for text in (tree, {"devices": tree}, {"devices": [device]}):
        try:
            found = load(text)
        except ValueError:
            continue
        assert all(d.size >= 0 for d in found.devices)
        for d in found.devices:
            vmsd.may_lie(d.description)
            list(vmsd.top_fields(d.description))


# ---- real ones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in fixture_names() if n.startswith(("plain-", "aarch64", "s390x", "ppc64"))]
)
def test_real_descriptions(name: str) -> None:
    data = open_fixture(name)
    layout = vmsd.load(data[data.rindex(b"\0\6") + 6 :])
    assert layout.page_size == 4096
    sizes = {(d.idstr, d.instance_id): d.size for d in layout.devices}
    assert len(sizes) == len(layout.devices) > 10
    assert (b"timer", 0) in sizes
    if load_manifest(name)["arch"] == "x86_64":
        # Three int64 and 8 unused bytes less one: a field list known by heart.
        assert sizes[(b"timer", 0)] == 24
        assert sizes[(b"cpu_common", 0)] >= 8


def test_writers_fields_describe_themselves() -> None:
    device = Device(
        "x",
        fields=[Field("a", "uint64", bytes(24), array_len=3)],
        subsections=[Subsection("x/s", 1, [Field("b", "uint8", b"1")])],
    )
    layout = load(sw.describe([device]))
    assert layout.devices[0].size == 24 + 6 + 3 + 1 == len(device.payload())
