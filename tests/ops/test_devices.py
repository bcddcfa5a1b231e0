"""Device sections out of a stream: from head and tail, from a pipe, with another's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vmstream
from tests.commandline import no_leftovers
from tests.decoding import BytesSource
from tests.ops.test_extract import pipe_of
from tests.registers import x86
from tests.streamwriter import simple_stream
from tests.truth import FIXTURES, fixture_file, fixture_names, load_manifest, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError, StreamError
from vmstream.guest.devices import DeviceTree, Section
from vmstream.ops.devices import (
    Devices,
    cpus_report,
    devices_report,
    find,
    numbers_of,
    plain_values,
    read_devices,
    with_schema,
)
from vmstream.report.jsonout import dumps


class Watched(BytesSource):
    """A source that counts the bytes that were asked for."""

    asked = 0

    def window(self, offset: int, need: int) -> tuple[memoryview, int, bool]:
        size = max(need, 1 << 20)
        self.asked += size
        view = memoryview(self.data)[offset : offset + size]
        return view, offset, offset + size >= len(self.data)


def read(name: str) -> Devices:
    return read_devices(BytesSource(open_fixture(name)))


@pytest.mark.parametrize("name", fixture_names("[np]*"))
def test_however_it_is_read(name: str) -> None:
    """A file by its ends and a pipe as a whole say the same."""
    data = open_fixture(name)
    whole = read(name)
    with pipe_of(data) as source:
        piped = read_devices(source)
    assert (piped.machine, piped.text) == (whole.machine, whole.text)
    assert [(d.path, d.offset, d.raw) for d in piped.tree] == [
        (d.path, d.offset, d.raw) for d in whole.tree
    ]
    assert len(whole.tree) > 5


def test_a_large_stream_is_not_read() -> None:
    data = open_fixture("big-10.0-q35")
    source = Watched(data)
    assert read_devices(source).text is not None
    assert source.asked < len(data) // 2


def test_containers(tmp_path: Path) -> None:
    for name in ("postcopy-11.1-pc.ch0", "mapped-10.0-pc"):
        with OpenStream(fixture_file(name, tmp_path)) as opened:
            found = read_devices(opened.source, container=opened.container)
        assert any(d.path == "cpu[0]" for d in found.tree), name


def test_report() -> None:
    found = read("plain-11.1-q35")
    source = BytesSource(b"", "x")
    report = devices_report(source, found, found.tree)
    assert (report.described, report.machine) == ("stream", "pc-q35-11.1")
    nodes = {n.path: n for n in report.nodes}
    assert len(nodes) == len(report.nodes)
    assert nodes["cpu[0]/env.eip"].value == 0x7D46
    assert nodes["cpu[0]/env.regs"].value == [0x2C, 0x1F10, 0x29, 0xAC, 0x7C00, 0, 0x7DD6, 0x1AD000,
                                              *[0] * 8]  # fmt: skip
    assert "cpu[0]/env.regs[1]" not in nodes
    assert nodes["globalstate[0]/runstate"].meaning == "paused"
    assert nodes["timer[0]/unused"].value == "00" * 8
    assert nodes["cpu[0]"].version == 12
    assert json.loads(dumps(report))["nodes"]
    brief = devices_report(source, found, found.tree, deep=False)
    assert {n.type for n in brief.nodes} == {"device"}


def test_plain_values() -> None:
    found = read("plain-11.1-q35")
    (eip,) = find(found, "cpu[0]/env.eip", "x")
    assert plain_values([eip]) == [("cpu[0]/env.eip", "32070")]
    assert plain_values([eip], as_hex=True) == [("cpu[0]/env.eip", "0x7d46")]
    (regs,) = find(found, "cpu[0]/env.regs", "x")
    assert plain_values([regs])[0][1].startswith("44 7952 41 172 ")
    assert plain_values(find(found, "cpu[0]/env.regs[1]", "x")) == [("cpu[0]/env.regs[1]", "7952")]
    assert plain_values(find(found, "globalstate/runstate", "x"))[0][1] == "paused"
    (timer,) = find(found, "timer", "x")
    assert dict(plain_values([timer])).keys() == {
        "timer[0]/cpu_ticks_offset", "timer[0]/unused", "timer[0]/cpu_clock_offset",
    }  # fmt: skip
    bools = {v for p, v in plain_values(find(found, "hpet", "x")) if p.endswith("running")}
    assert bools <= {"true", "false"}
    assert numbers_of(timer) is None


def test_names_that_are_not_there() -> None:
    found = read("plain-11.1-q35")
    with pytest.raises(OutputError, match=r"there is cpu\[0\]/env.regs, "):
        find(found, "cpu[0]/nothing", "x")
    with pytest.raises(OutputError, match=r"'nothing'; there is "):
        find(found, "nothing", "x")


def test_schema() -> None:
    found = read("novmdesc-11.1-pc")
    assert found.described == "none"
    with pytest.raises(OutputError, match="--schema"):
        cpus_report(BytesSource(b""), found)
    with_schema(found, BytesSource(open_fixture("plain-11.1-pc"), "plain"), None)
    assert found.described == "schema"
    assert [a.code for a in found.findings.kept] == ["schema"]
    assert "inferred" in found.findings.kept[0].message
    report = cpus_report(BytesSource(b""), found)
    assert report.cpus[0].registers["general"]["rip"] == 0x7D4A
    assert found.exit_code == 0
    # What has a description needs no other.
    plain = read("plain-11.1-q35")
    with_schema(plain, BytesSource(open_fixture("plain-11.1-pc")), None)
    assert plain.described == "stream"
    with pytest.raises(OutputError, match="no vmdescription"):
        with_schema(read("novmdesc-11.1-pc"), BytesSource(open_fixture("novmdesc-11.1-pc")), None)


def test_schema_of_dump_vmstate(tmp_path: Path) -> None:
    packed = FIXTURES / "dump-vmstate-11.1-pc.json.zst"
    found = read("novmdesc-11.1-pc")
    with OpenStream(packed) as other:
        with_schema(found, other.source, other.container)
    assert found.described == "dump-vmstate"
    (said,) = found.findings.kept
    assert "not settled in" in said.message
    assert "no names in" in said.message
    assert found.exit_code == 0
    # The same names as by the vmdescription of another stream.
    known = read("novmdesc-11.1-pc")
    with_schema(known, BytesSource(open_fixture("plain-11.1-pc")), None)
    for path in ("mc146818rtc/cmos_data", "vmcoreinfo", "i8259[1]/*", "0000:00:00.0/I440FX/**"):
        values = [(n.path, n.offset, n.size) for n in known.tree.find(path) if not n.children]
        assert values == [(n.path, n.offset, n.size) for n in found.tree.find(path)
                          if not n.children], path  # fmt: skip
    with pytest.raises(OutputError, match="which has no registers"):
        cpus_report(BytesSource(b""), found)
    report = devices_report(BytesSource(b""), found, found.tree)
    assert "ambiguous" in {n.type for n in report.nodes}
    # Postcopy.
    with OpenStream(fixture_file("postcopy-11.1-pc.ch0", tmp_path)) as opened:
        packaged = read_devices(opened.source, container=opened.container)
    with OpenStream(packed) as other:
        with_schema(packaged, other.source, other.container)
    assert plain_values(find(packaged, "mc146818rtc/cmos_index", "x"))
    for text in (b"{", b'{"x": 1}', b'  {"vmschkmachine": {"Name": "x"}}', b"{" + bytes(99)):
        with pytest.raises(OutputError, match=r"other\.json: no schema"):
            with_schema(read("novmdesc-11.1-pc"), BytesSource(text, "other.json"), None)


def test_damaged_streams(tmp_path: Path) -> None:
    data = open_fixture("plain-7.2-pc")
    for size in (0, 5, 100, 100_000, len(data) - 60_000, len(data) - 100):
        try:
            found = read_devices(BytesSource(data[:size]))
        except StreamError:
            assert size <= 100_000
            continue
        assert found.exit_code == 3
        for device in found.tree:
            assert sum(n.size for n in device.children) in (0, device.size)
    with pytest.raises(StreamError):
        read_devices(BytesSource(b"hello, world\n"))
    assert no_leftovers(tmp_path)


def test_no_devices() -> None:
    found = read_devices(BytesSource(bytes(simple_stream())))
    assert len(found.tree) == 0
    with pytest.raises(OutputError, match="no cpu section"):
        cpus_report(BytesSource(b""), found)
    with pytest.raises(OutputError, match="no device"):
        find(found, "*", "x")


def test_api(tmp_path: Path) -> None:
    with vmstream.open(fixture_file("plain-11.1-q35", tmp_path)) as stream:
        tree = stream.devices()
        (pc,) = tree.find("cpu[0]/env.eip")
        assert pc.value == 0x7D46
        # The events are there all the same.
        assert sum(1 for _ in stream) > 10


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("own-old-pc-2.1", "own-old-pc-2.3"),
        ("own-old-pc-2.1", "plain-7.2-pc"),
        ("old-5.2-pc-i440fx-2.1", "plain-5.2-pc"),
    ],
)
def test_schema_for_an_old_machine_type(name: str, schema: str) -> None:
    """Its sections have headers alone, and no subsections that are newer than it."""
    found = read(name)
    assert [a.code for a in found.findings.kept] == ["header-scan"]
    with_schema(found, BytesSource(open_fixture(schema), "schema"), None)
    assert len(found.tree.undescribed) <= 1
    (cpu,) = cpus_report(BytesSource(b""), found).cpus
    theirs = x86(load_manifest(name)["registers"])
    mine = {name: value for group in cpu.registers.values() for name, value in group.items()}
    known = mine.keys() & theirs.keys()
    assert len(known) > 30
    assert {r: mine[r] & 0xFFFFFFFF for r in known} == {r: theirs[r] & 0xFFFFFFFF for r in known}
    # What is left out is not made up: the bytes are covered, and nothing is raw.
    for device in found.tree:
        if device.path not in found.tree.undescribed:
            assert sum(n.size for n in device.children) == device.size
            assert "raw" not in {n.type for n in device.walk()}, device.path


def test_a_schema_of_other_subsections() -> None:
    def vmsd(name: str, *subs: dict[str, Any]) -> dict[str, Any]:
        fields = [{"name": "a", "type": "uint8", "size": 1}]
        return {"vmsd_name": name, "version": 1, "fields": fields, "subsections": subs}

    inner = vmsd("s", vmsd("s/x"))
    described = vmsd("d", vmsd("d/y"), vmsd("d/z")) | {"name": "d", "instance_id": 0}
    described["fields"].append({"name": "s", "type": "struct", "size": 11, "struct": inner})
    text = json.dumps({"devices": [described]}).encode()
    x, y, z = (b"\5\3" + name + b"\0\0\0\1\7" for name in (b"s/x", b"d/y", b"d/z"))
    for body in (b"12" + x + y + z, b"12", b"12" + x, b"12" + z, b"12" + x + z, b"12" + y):
        tree = DeviceTree([Section(b"d", 0, 1, 0, body)], text, borrowed=True)
        assert not tree.undescribed
        names = [n.name for n in tree[0].walk()]
        assert [n in names for n in ("s/x", "d/y", "d/z")] == [p in body for p in (x, y, z)]
        assert "raw" not in {n.type for n in tree[0].walk()}
    for rest in (b"3", z + y, y[:-2] + b"\2\7", y[:-1], b"\5\3d/w\0\0\0\1\7"):
        section = Section(b"d", 0, 1, 0, b"12" + rest)
        assert DeviceTree([section], text, borrowed=True).undescribed
