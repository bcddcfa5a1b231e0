"""The account of a stream against what its manifest, its writer and its own bytes say."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import BytesSource
from tests.strategies import corrupted_streams, cut_streams, examples, streams
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, simple_stream
from tests.truth import fixture_names, load_manifest, open_fixture
from vmstream.errors import FormatError, StreamError, TruncatedError, UnsupportedError
from vmstream.ops import inspect as inspect_module
from vmstream.ops.inspect import inspect
from vmstream.report.models.inspect import INSPECT_SCHEMA, InspectReport, SectionReport

PAGE = 4096
WHOLE = [
    n
    for n in fixture_names()
    if not n.startswith(("interrupted", "mapped-", "multifd", "postcopy"))
]
# Threads compress, and QEMU counts what they did in another way.
OTHER_COUNTS = {"zlib-5.2-pc", "zlib-xbzrle-5.2-pc"}
NO_FOOTERS = {"own-old-pc-2.1", "old-5.2-pc-i440fx-2.1"}


def look(data: bytes, **kwargs: Any) -> InspectReport:
    report, _ = inspect(BytesSource(bytes(data), "name"), **kwargs)
    return report


@cache
def account(name: str, quick: bool = False) -> tuple[InspectReport, int]:
    """That of a fixture."""
    return inspect(BytesSource(open_fixture(name), name), quick=quick)


def anomalies(report: InspectReport) -> list[tuple[str, str]]:
    return [(a.severity, a.code) for a in report.anomalies]


def machine(manifest: dict[str, Any]) -> str | None:
    """The canonical name of what stands behind -M; None where the stream does not say it."""
    command = manifest["command"]
    name = command[command.index("-M") + 1].split(",")[0]
    version = ".".join(manifest["qemu"].split(".")[:2])
    if re.fullmatch(r"pc-(i440fx-)?[12]\.[0123]", name):
        return None  # no configuration section before 2.4
    alias = {"pc": "pc-i440fx", "q35": "pc-q35", "pseries": "pseries"}.get(name)
    if name == "virt" and manifest["arch"] == "aarch64":
        alias = "virt"
    if name == "s390-ccw-virtio":
        alias = name
    return f"{alias}-{version}" if alias else name


# ---- real streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_fixtures(name: str) -> None:
    manifest = load_manifest(name)
    report, code = account(name)
    assert (code, report.complete) == (0, True)
    assert {a.severity for a in report.anomalies} <= {"info"}
    assert (report.schema, report.input, report.container) == (INSPECT_SCHEMA, name, "raw")
    assert report.size == report.end_offset == manifest["files"][0]["size"]
    assert report.machine == machine(manifest)
    assert report.capabilities == [
        c for c, on in manifest["capabilities"].items() if on and c == "x-ignore-shared"
    ]
    assert report.page_size == 4096
    # RAM
    sizes = {b.idstr: b.used_length for b in report.ram_blocks}
    assert sizes == {n: b["size"] for n, b in manifest["blocks"].items()}
    assert report.ram_total == sum(sizes.values())
    assert report.ram_version == 4
    absent = manifest.get("not_in_stream", [])
    for block in report.ram_blocks:
        assert block.pages is not None
        assert block.pages_missing == (block.used_length // 4096 if block.idstr in absent else 0)
    totals = {
        kind: sum(getattr(b.pages, kind) for b in report.ram_blocks)
        for kind in ("normal", "zero", "xbzrle", "compressed")
    }
    counters = manifest["query_migrate"]["ram"]
    if name not in OTHER_COUNTS:
        assert totals["normal"] == counters["normal"]
        assert totals["zero"] == counters["duplicate"]
    assert (totals["xbzrle"] > 0) == ("xbzrle" in report.features) == ("xbzrle" in name)
    assert (totals["compressed"] > 0) == ("compress" in report.features) == name.startswith("zlib")
    # Passes and sections account for the same bytes as the blocks do.
    passes = {kind: sum(getattr(p.pages, kind) for p in report.passes) for kind in totals}
    assert passes == totals
    wire = sum(b.wire_bytes or 0 for b in report.ram_blocks)
    assert sum(p.wire_bytes for p in report.passes) == wire
    (ram,) = [s for s in report.sections if s.idstr == "ram"]
    assert ram.body_size > wire
    if name.startswith("plain-"):
        assert report.pass_count == 1
        assert all(b.pages_resent == 0 for b in report.ram_blocks)
    if name.startswith(("live-", "own-live-")):
        assert 2 <= report.pass_count <= counters["dirty-sync-count"]
        assert any(b.pages_resent for b in report.ram_blocks)


def description(data: bytes) -> dict[str, Any] | None:
    """The JSON at the end of a stream."""
    at = data.rfind(b"\0\6")
    length = int.from_bytes(data[at + 2 : at + 6], "big")
    if at < 0 or at + 6 + length != len(data):
        return None
    found: dict[str, Any] = json.loads(data[at + 6 :])
    return found


def state_size(vmsd: dict[str, Any]) -> int:
    """Bytes that a description stands for."""
    size: int = sum(f["size"] * f.get("array_len", 1) for f in vmsd.get("fields", []))
    for sub in vmsd.get("subsections", []):
        size += 6 + len(sub["vmsd_name"]) + state_size(sub)
    return size


@pytest.mark.parametrize("name", WHOLE)
def test_device_sections(name: str) -> None:
    data = open_fixture(name)
    report, _ = account(name)
    tree = description(data)
    devices = [s for s in report.sections if s.section_type == "FULL"]
    assert (report.vmdescription is None) == (tree is None)
    if tree is None:
        told = "header-scan" if name in NO_FOOTERS else "footer-scan"
        assert {s.framing for s in devices} == {told}
    else:
        assert [(s.idstr, s.instance_id) for s in devices] == [
            (d["name"], d["instance_id"]) for d in tree["devices"]
        ]
        stated = [state_size(d) for d in tree["devices"]]
        for device, size in zip(devices, stated, strict=True):
            assert device.framing in ("vmdescription", "footer-scan")
            if device.framing == "vmdescription":
                assert device.body_size == size
        # QEMU gets few of the sizes wrong.
        assert sum(s.framing == "footer-scan" for s in devices) <= 2
    check_adjacent(devices, footers=report.footers is True)
    end = len(data) if tree is None else report.vmdescription.offset  # type: ignore[union-attr]
    assert devices[-1].offset + devices[-1].size == end - 1


def check_adjacent(devices: list[SectionReport], *, footers: bool) -> None:
    """Sections lie side by side, each with its head, its body and its footer."""
    assert len(devices) > 5
    for before, after in pairwise(devices):
        assert before.offset + before.size == after.offset
    for s in devices:
        assert s.body_offset == s.offset + 1 + 4 + 1 + len(s.idstr) + 4 + 4
        assert s.size == s.body_offset - s.offset + s.body_size + 5 * footers
        assert (s.parts, s.ended, s.packaged) == (1, None, False)


@pytest.mark.parametrize("name", WHOLE)
def test_all_sections_account_for_all_bytes(name: str) -> None:
    report, _ = account(name)
    rest = 8 + 1  # the file header and EOF
    if report.machine is not None:
        rest += 1 + 4 + len(report.machine)
        subsections = {
            "capabilities": (report.capabilities, 4 + sum(1 + len(c) for c in report.capabilities)),
            "uuid": (report.uuid, 16),
            "target-page-bits": (report.page_size_source == "target-page-bits", 4),
        }
        for sub, (there, size) in subsections.items():
            rest += (1 + 1 + len(f"configuration/{sub}") + 4 + size) if there else 0
    rest += sum(5 + c.length for c in report.commands)
    rest += report.vmdescription.size if report.vmdescription else 0
    assert sum(s.size for s in report.sections) + rest == report.size


QUICK_FAILS = NO_FOOTERS | {"postcopy-11.1-pc.ch0", "postcopy-preempt-11.1-pc.ch0"}
SAME = ("machine", "uuid", "capabilities", "footers", "vmdescription", "ram_version", "ram_total",
        "complete", "end_offset", "size")  # fmt: skip


@pytest.mark.parametrize(
    "name", [n for n in fixture_names() if not n.startswith(("interrupted", "mapped"))]
)
def test_quick_agrees(name: str) -> None:
    (full, _), (quick, _) = account(name), account(name, quick=True)
    assert quick.quick
    assert not full.quick
    assert [(b.idstr, b.used_length, b.gpa) for b in quick.ram_blocks] == [
        (b.idstr, b.used_length, b.gpa) for b in full.ram_blocks
    ]
    assert all(b.pages is None and b.pages_missing is None for b in quick.ram_blocks)
    if name in QUICK_FAILS:
        assert quick.machine == full.machine
        assert not quick.complete
        assert anomalies(quick) == [("warning", "quick-end-not-found")]
        return
    for key in SAME:
        assert getattr(quick, key) == getattr(full, key), key
    assert set(quick.features) <= set(full.features)

    def devices(report: InspectReport) -> list[SectionReport]:
        return [s for s in report.sections if s.section_type == "FULL"]

    assert devices(quick) == devices(full)
    live = [(s.section_id, s.idstr, s.offset) for s in full.sections if s.section_type == "START"]
    assert [
        (s.section_id, s.idstr, s.offset) for s in quick.sections if s.section_type == "START"
    ] == live
    assert not {a.severity for a in quick.anomalies} & {"error", "warning"}


@pytest.mark.parametrize("name", [n for n in fixture_names() if n.startswith("interrupted")])
def test_interrupted(name: str) -> None:
    data, manifest = open_fixture(name), load_manifest(name)
    report, code = inspect(BytesSource(data))
    assert (code, report.complete, report.end_offset) == (TruncatedError.exit_code, False, None)
    assert anomalies(report)[0] == ("error", "truncated")
    assert report.anomalies[0].offset == len(data)
    assert report.machine == machine(manifest)
    assert report.ram_total == sum(b.used_length for b in report.ram_blocks)
    assert sum(b.pages.normal for b in report.ram_blocks if b.pages) > 200
    quick = look(data, quick=True)
    assert not quick.complete
    assert quick.machine == report.machine


def test_mapped_ram() -> None:
    report, code = inspect(BytesSource(open_fixture("mapped-10.0-pc")))
    assert (code, report.complete) == (0, True)
    assert report.capabilities == ["mapped-ram"]
    assert report.page_size_source == "mapped-ram"
    assert "mapped-ram" in report.features
    truth = load_manifest("mapped-10.0-pc")["blocks"]
    for block in report.ram_blocks:
        pages = block.pages
        assert pages is not None
        assert (pages.normal + pages.zero) * 4096 == block.used_length
        assert pages.normal >= truth[block.idstr].get("nonzero_pages", 0)
        assert block.wire_bytes == pages.normal * 4096
    assert report.pass_count == 1
    quick, code = inspect(BytesSource(open_fixture("mapped-10.0-pc")), quick=True)
    assert (code, quick.complete) == (0, True)
    assert [s.idstr for s in quick.sections] == [s.idstr for s in report.sections]


@pytest.mark.parametrize("name", ["multifd-11.1-pc.ch0", "multifd-7.2-pc.ch0"])
def test_multifd(name: str) -> None:
    """The pages are elsewhere, and that is said."""
    report, code = inspect(BytesSource(open_fixture(name)))
    assert code == 1
    assert ("warning", "pages-elsewhere") in anomalies(report)
    assert sum(b.pages_missing or 0 for b in report.ram_blocks) > 0


def test_postcopy() -> None:
    report, code = inspect(BytesSource(open_fixture("postcopy-11.1-pc.ch0")))
    assert (code, report.complete) == (0, True)
    assert {"postcopy-ram", "return-path", "postcopy, switched over"} <= set(report.features)
    names = [c.name for c in report.commands]
    assert names[:3] == ["OPEN_RETURN_PATH", "PING", "POSTCOPY_ADVISE"]
    assert report.commands[1].fields == {"value": 1}
    assert names.count("PACKAGED") == 1
    packaged = [s for s in report.sections if s.packaged]
    assert len(packaged) > 20
    for before, after in pairwise(packaged):
        assert before.offset + before.size == after.offset
    assert all(b.pages_missing == 0 for b in report.ram_blocks)


def test_uuid() -> None:
    report = look(open_fixture("uuid-11.1-pc"))
    command = load_manifest("uuid-11.1-pc")["command"]
    assert report.uuid == command[command.index("-uuid") + 1]


# ---- made streams ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=examples(30))
@given(streams(xbzrle=True, compress=True, fills=True))
def test_streams(w: StreamWriter) -> None:
    report = look(bytes(w))
    assert [(b.idstr, b.used_length) for b in report.ram_blocks] == [
        (name, len(content)) for name, content in w.blocks.items()
    ]
    for block in report.ram_blocks:
        counts = w.counts[block.idstr]
        pages = block.pages
        assert pages is not None
        assert (pages.normal, pages.zero, pages.xbzrle, pages.compressed) == (
            counts["PAGE"], counts["ZERO"], counts["XBZRLE"], counts["COMPRESS_PAGE"],
        )  # fmt: skip
        assert block.pages_missing == block.used_length // w.page_size - len(w.touched[block.idstr])
    assert len(report.sections) == len(w.items_of("START", "FULL"))
    assert report.command_count == len(w.items_of("COMMAND"))
    assert not [a for a in report.anomalies if a.severity == "error"]
    json.dumps(dataclasses.asdict(report))


@settings(deadline=None, max_examples=examples(80))
@given(corrupted_streams() | cut_streams().map(lambda c: bytes(c[0].data[: c[1]])), st.booleans())
def test_any_damage(data: bytes, quick: bool) -> None:
    """An account or a StreamError, and every account can be written down."""
    try:
        report, code = inspect(BytesSource(data), quick=quick)
    except StreamError:
        return
    json.dumps(dataclasses.asdict(report))
    assert code in (0, 1, 3, 4, 5)
    if code == 0:
        assert report.complete
    if {"error"} & {a.severity for a in report.anomalies}:
        assert code >= 3
        assert not report.complete


def test_something_else_raises() -> None:
    for data in (b"", b"\0" * 100, b"ELF"):
        for quick in (False, True):
            with pytest.raises((FormatError, TruncatedError)):
                inspect(BytesSource(data), quick=quick)
    with pytest.raises(UnsupportedError, match="libvirt"):
        inspect(BytesSource(b"LibvirtQemudSave" + bytes(100)))


def started(**kwargs: Any) -> StreamWriter:
    w = StreamWriter(**kwargs)
    w.header()
    w.configuration("pc")
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    return w


def test_end_of_a_section_is_missing() -> None:
    w = started()
    w.live_section("START", 7, b"", "other")
    with w.ram_part():
        w.zero("pc.ram", 0)
        w.zero("pc.ram", PAGE)
        w.page("pc.ram", 0, b"x" * PAGE)
    w.eof()
    report, code = inspect(BytesSource(bytes(w)))
    assert (code, report.complete) == (1, False)
    codes = [(a.code, a.offset) for a in report.anomalies if a.code == "no-end"]
    assert codes == [("no-end", i.offset) for i in w.items_of("START")]
    assert [s.ended for s in report.sections] == [False, False]


def test_a_background_snapshot() -> None:
    w = started()
    with w.ram_part():
        w.zero("pc.ram", PAGE)
        w.zero("pc.ram", 0)
    w.eof()
    report, code = inspect(BytesSource(bytes(w)))
    assert (code, report.complete) == (0, True)
    assert "background-snapshot" in report.features
    assert ("info", "no-ram-end") in anomalies(report)


def test_missing_pages() -> None:
    w = simple_stream({"pc.ram": {0: b"x" * PAGE}}, sizes={"pc.ram": 4 * PAGE})
    report, code = inspect(BytesSource(bytes(w)))
    assert (code, report.complete) == (1, True)
    assert anomalies(report) == [("warning", "pages-missing")]
    assert "pc.ram: 3" in report.anomalies[0].message
    # Discarded memory of virtio-mem is not sent either, and that is as it should be.
    w = started()
    w.device(Device("0000:00:02.0/virtio-mem-early", fields=[Field("x", "uint8", b"1")]))
    with w.ram_end():
        w.page("pc.ram", 0, b"x" * PAGE)
    w.eof()
    report, code = inspect(BytesSource(bytes(w)))
    assert code == 0
    assert ("info", "unplugged") in anomalies(report)


def test_an_early_section_is_confirmed() -> None:
    w = StreamWriter()
    w.header()
    w.device(Device("early", fields=[Field("x", "buffer", b"\x44" * 9)]))
    w.ram_start([RamBlock("pc.ram", PAGE)], section_id=9)
    with w.ram_end():
        w.zero("pc.ram", 0)
    w.device(Device("timer", fields=[Field("t", "int64", bytes(8))]))
    w.eof()
    w.vmdescription()
    framings = {s.idstr: s.framing for s in look(bytes(w)).sections}
    assert framings == {
        "early": "footer-scan, confirmed",
        "ram": "records",
        "timer": "vmdescription",
    }


def test_early_sections_of_one_name_are_confirmed_in_order() -> None:
    w = StreamWriter()
    w.header()
    for size in (9, 5):
        w.device(Device("early", fields=[Field("x", "buffer", b"\x44" * size)]))
    w.ram_start([RamBlock("pc.ram", PAGE)], section_id=9)
    with w.ram_end():
        w.zero("pc.ram", 0)
    w.eof()
    w.vmdescription()
    early = look(bytes(w)).sections[:2]
    assert [(s.body_size, s.framing) for s in early] == [
        (9, "footer-scan, confirmed"),
        (5, "footer-scan, confirmed"),
    ]


def test_sections_with_parts() -> None:
    w = started()
    w.live_section("START", 7, b"abc", "other", 3)
    with w.ram_part():
        w.zero("pc.ram", 0)
    w.live_section("PART", 7, b"")
    w.live_section("PART", 7, b"defg")
    with w.ram_end():
        w.zero("pc.ram", PAGE)
    w.live_section("END", 7, b"h")
    w.eof()
    ram, other = look(bytes(w)).sections
    assert (other.parts, other.body_size, other.ended, other.version_id) == (4, 8, True, 3)
    assert other.size == 8 + (1 + 4 + 6 + 8) + 3 * 5 + 4 * 5
    assert other.framing == "footer-scan"
    assert (ram.parts, ram.ended, ram.framing) == (3, True, "records")
    items = [
        i for i in w.items if i.attrs.get("section_id") == 1 or i.kind in ("BLOCKS", "ZERO", "EOS")
    ]
    assert ram.size == sum(i.stop - i.offset for i in items)


def test_names_that_are_no_text() -> None:
    w = StreamWriter()
    w.header()
    w.configuration("pc")
    w.start(1, "ram", 0, 4)
    w.raw(sw.be64(PAGE | sw.FLAG_MEM_SIZE) + sw.cstr8(b"a\xff\x00") + sw.be64(PAGE))
    w.eos()
    w.footer(1)
    w.end(1)
    w.raw(sw.be64(sw.FLAG_ZERO) + sw.cstr8(b"a\xff\x00") + b"\0")
    w.eos()
    w.footer(1)
    w.eof()
    (block,) = look(bytes(w)).ram_blocks
    assert block.idstr == "a\\xff\x00"
    assert block.idstr_b64 == "Yf8A"
    assert block.pages_missing == 0


def test_a_wrong_page_size_is_told() -> None:
    w = simple_stream({"pc.ram": {i * 16384: b"" for i in range(4)}}, page_size=16384)
    data = bytes(w).replace(sw.subsection("configuration/target-page-bits", 1, sw.be32(14)), b"")
    report, code = inspect(BytesSource(data))
    assert code == 3
    assert ("error", "integrity") in anomalies(report)
    report, code = inspect(BytesSource(data), page_size=16384)
    assert (code, report.page_size, report.page_size_source) == (0, 16384, "argument")


def test_commands_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_module, "MAX_COMMANDS", 3)
    monkeypatch.setattr(inspect_module, "MAX_SECTIONS", 2)
    w = StreamWriter()
    w.header()
    for i in range(5):
        w.ping(i)
    w.ram_start([RamBlock("pc.ram", PAGE)])
    for i in range(10, 15):
        w.live_section("START", i, b"", "other")
    report = look(bytes(w))
    assert (len(report.commands), report.command_count) == (3, 5)
    assert len(report.sections) == 2
    assert [a for a in report.anomalies if a.code == "many-sections"]


def test_findings_kept_are_bounded() -> None:
    w = started()
    with w.ram_part():
        for i in range(1500):
            w.zero("pc.ram", (2 + i) * PAGE)
    report, code = inspect(BytesSource(bytes(w)))
    assert code == 3
    assert len(report.anomalies) == 1000
    assert report.anomaly_count > 1500


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ["x" * 255, "x" * 256, "x" * 3000, "\udc80", "ü" * 200, ""])
def test_device_names_of_the_description(name: str, quick: bool) -> None:
    """A description can name what no section can be called."""
    w = started()
    with w.ram_part():
        w.zero("pc.ram", 0)
    with w.ram_end():
        w.zero("pc.ram", PAGE)
    w.device(Device("timer", fields=[Field("t", "int64", bytes(8))]))
    w.eof()
    described = sw.describe([Device(name, fields=[Field("t", "int64", bytes(8))]), *w.devices])
    w.vmdescription(described)
    report, code = inspect(BytesSource(bytes(w)), quick=quick)
    assert report.machine == "pc"
    assert code in (0, 1)


def test_quick_takes_a_file() -> None:
    class Pipe(BytesSource):
        seekable = False

    with pytest.raises(UnsupportedError, match="quick"):
        inspect(Pipe(bytes(simple_stream())), quick=True)


def test_progress() -> None:
    told: list[tuple[int, int | None]] = []
    data = bytes(simple_stream())
    inspect(BytesSource(data), progress=lambda at, size: told.append((at, size)))
    assert told[0] == (0, len(data))
    assert [at for at, _ in told] == sorted(at for at, _ in told)


def test_size_of_a_pipe() -> None:
    class Pipe(BytesSource):
        seekable = False

        def __init__(self, data: bytes) -> None:
            super().__init__(data, "pipe")
            self.size = None

    data = bytes(simple_stream()) + bytes(5000)
    report, _ = inspect(Pipe(data))
    assert report.size == len(data)
    assert report.end_offset == len(data) - 5000
