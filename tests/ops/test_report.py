"""What a page shows, against the commands that tell the same, and its bounds."""

from __future__ import annotations

import struct
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from tests import streamwriter as sw
from tests.report.test_html import document
from tests.strategies import corrupted_streams, examples
from tests.streamwriter import Device, Field, StreamWriter, simple_stream
from tests.truth import channel_names, fixture_file
from vmstream.container.open import OpenStream
from vmstream.errors import FormatError, VmstreamError
from vmstream.ops import report as module
from vmstream.ops.channels import Channels
from vmstream.ops.convergence import read_history
from vmstream.ops.devices import cpus_report, devices_report, read_devices
from vmstream.ops.report import read_report
from vmstream.ops.verify import verify
from vmstream.report.html import page
from vmstream.report.models.report import FieldReport, StreamReport

PAGE = 4096
GIB = 1 << 30


def run(path: Path, **options: int) -> tuple[StreamReport, int]:
    with OpenStream(path) as opened:
        return read_report(opened, **options)


def write(path: Path, w: StreamWriter) -> Path:
    path.write_bytes(bytes(w))
    return path


def flat(fields: list[FieldReport], path: str = "") -> list[tuple[str, FieldReport]]:
    found = []
    for f in fields:
        here = f"{path}/{f.name}" if path else f.name
        found += [(here, f), *flat(f.fields, here)]
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_file("own-live-q35", tmp_path_factory.mktemp("report"))


def test_it_tells_what_other_commands_tell(live: Path) -> None:
    report, code = run(live)
    assert (code, report.verdict, report.findings, report.no_cpus) == (0, "sound", [], None)
    with OpenStream(live) as opened:
        assert report.passes == read_history(opened).report.passes
        found = read_devices(opened.source)
        assert report.cpus == cpus_report(opened.source, found).cpus
        nodes = {
            (n.offset, n.size, n.type, n.path.rpartition("/")[2]): n
            for n in devices_report(opened.source, found, found.tree).nodes
        }
    compared = 0
    for path, f in flat(report.devices):
        if f.type == "zeros":
            continue
        node = nodes[f.offset, f.size, f.type, f.name.rpartition("/")[2]]
        assert f.meaning == node.meaning
        if f.value is not None and not f.cut:
            assert f.value == node.value, path
            compared += 1
    assert compared > 500
    assert [d.name for d in report.devices] == [d.name for d in found.tree]
    assert report.map is not None
    assert report.map.counts[0] == 0


def test_the_extents_are_the_stream(live: Path) -> None:
    extents = run(live)[0].extents
    assert extents[0].offset == 0
    assert extents[-1].end == live.stat().st_size
    assert all(a.end == b.offset for a, b in pairwise(extents))
    data = live.read_bytes()
    for e in extents:
        if e.kind == "device":
            name = e.name.partition("[")[0].encode()
            assert data[e.offset] == sw.SECTION_FULL
            assert data[e.offset + 5 :][: 1 + len(name)] == bytes([len(name)]) + name
            assert data[e.end - 5] == sw.SECTION_FOOTER
    (ram,) = [e for e in extents if e.kind == "ram"]
    assert data[ram.offset] == sw.SECTION_START
    assert [e.kind for e in extents[-2:]] == ["frame", "description"]


def test_many_extents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Path) -> None:
    monkeypatch.setattr(module, "MOST_EXTENTS", 5)
    extents = run(live)[0].extents
    assert len(extents) == 5
    assert (extents[-1].name, extents[-1].end) == ("and more", live.stat().st_size)


def test_damage(live: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(live.read_bytes()[: 5 << 20])
    report, code = run(cut)
    assert (code, report.verdict) == (3, "truncated")
    with OpenStream(cut) as opened:
        told = verify(opened.source)[0]
    assert report.findings == told.findings
    assert report.finding_count == 1
    assert report.no_cpus is not None
    assert report.passes
    (tmp_path / "none").write_bytes(b"no stream")
    with pytest.raises(FormatError):
        run(tmp_path / "none")
    report, code = run(live, max_ram=1 << 20)
    assert (code, report.verdict, report.map) == (5, "limit", None)


def test_channels(tmp_path: Path) -> None:
    path = fixture_file("multifd-zstd-11.1-pc.ch0", tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names("multifd-zstd-11.1-pc.ch0")]
    with OpenStream(path) as opened, Channels(others, opened.identity) as channels:
        report, code = read_report(opened, channels)
    assert (code, report.verdict) == (0, "sound")
    assert {p.source for p in report.passes} == {"wire"}
    assert b"multifd" in page(report)


def test_fields_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {"vmsd_name": "q", "version": 1, "fields": [
        {"name": "a", "type": "uint32", "size": 4}, {"name": "b", "type": "uint32", "size": 4},
    ]}  # fmt: skip
    elements = bytes(8) + b"\0\0\0\1" + bytes(4) + bytes(16)
    device = Device("dev", fields=[
        Field("q", "struct", elements, array_len=4, extra={"struct": inner}),
        Field("long", "buffer", bytes(range(256)) * 8),
    ])  # fmt: skip
    path = write(tmp_path / "s", simple_stream(devices=[device]))
    (found,) = run(path)[0].devices
    told = dict(flat([found]))
    assert told["dev[0]/q/q[1]/a"].value == 1
    assert {f.until for f in told.values() if f.type == "zeros"} == {"q[3]"}
    assert len([p for p in told if p.startswith("dev[0]/q/q[0]")]) == 3
    assert told["dev[0]/long"].value == bytes(range(32)).hex()
    assert told["dev[0]/long"].cut
    monkeypatch.setattr(module, "_MOST_OF_DEVICE", 3)
    (found,) = run(path)[0].devices
    assert len(flat([found])) <= 3
    assert sum(f.left_out for _, f in flat([found])) > 0


@given(corrupted_streams())
@settings(max_examples=examples(100))
def test_whatever_a_stream_is_there_is_a_page_or_an_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        path.write_bytes(data)
        try:
            report, code = run(path)
        except VmstreamError:
            return
    assert code or report.inspect.complete
    document(page(report))


def test_a_guest_of_64_gib(tmp_path: Path) -> None:
    """Pages all over it in three passes, as little alike as can be: a page of HTML stays small."""
    pages, rng = 64 * GIB // PAGE, np.random.default_rng(1)
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.start(1, "ram", 0, 4)
    w.raw(struct.pack(">Q", 64 * GIB | sw.FLAG_MEM_SIZE) + b"\3mem" + struct.pack(">Q", 64 * GIB))
    record = np.dtype([("head", ">u8"), ("fill", "u1")])
    for _ in range(3):
        chosen = np.unique(np.append(rng.integers(0, pages, 60_000), 0))
        made = np.zeros(len(chosen), record)
        made["head"] = chosen.astype(np.uint64) * np.uint64(PAGE) | np.uint64(
            sw.FLAG_ZERO | sw.FLAG_CONTINUE
        )
        first = struct.pack(">Q", int(chosen[0]) * PAGE | sw.FLAG_ZERO) + b"\3mem\0"
        w.raw(first + made[1:].tobytes())
    w.eos()
    w.footer(1)
    w.end(1)
    w.eos()
    w.footer(1)
    w.eof()
    path = write(tmp_path / "s", w)
    report, code = run(path)
    assert report.map is not None
    assert report.map.blocks[0].pages == pages
    assert report.map.pass_count == 3
    assert report.map.resent > 100
    # Pages were never sent, and the stream has no description.
    assert code == 1
    assert 20_000 < len(page(report)) < 1_000_000
