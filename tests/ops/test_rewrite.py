"""The command as a whole: a copy without edits, and what an input must be."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.commandline import no_leftovers
from tests.decoding import BytesSource
from tests.strategies import corrupted_streams, examples
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, simple_stream
from tests.truth import fixture_file, fixture_names, open_fixture, qcow2_file
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError, StreamError
from vmstream.ops.edits import RewriteOptions
from vmstream.ops.rewrite import rewrite
from vmstream.report.models.rewrite import RewriteReport


def rewritten(path: Path, **options: Any) -> tuple[RewriteReport, int]:
    """Rewrite a file into one beside it, named 'out'."""
    options.setdefault("output", path.parent / "out")
    with OpenStream(path, snapshot=options.pop("snapshot", None)) as opened:
        return rewrite(opened.source, RewriteOptions(force=True, **options), None, opened.container)


@pytest.mark.parametrize("name", fixture_names(long=True))
def test_without_edits_a_copy(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    report, _ = rewritten(path)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert (report.change_count, report.changes) == (0, [])
    assert report.output_size == report.input_size == path.stat().st_size
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("name", ["plain-7.2-pc", "live-5.2-pc", "postcopy-11.1-pc.ch0"])
def test_of_a_damaged_one_too(name: str, tmp_path: Path) -> None:
    data, rng = open_fixture(name), random.Random(name)
    for _ in range(4):
        cut = data[: rng.randrange(9, len(data))]
        (tmp_path / "cut").write_bytes(cut)
        _, code = rewritten(tmp_path / "cut")
        assert code == 3
        assert (tmp_path / "out").read_bytes() == cut


@settings(max_examples=examples(60))
@given(corrupted_streams())
def test_whatever_it_is(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("rewrite") / "in"
    path.write_bytes(data)
    try:
        rewritten(path)
    except StreamError:
        assert not (path.parent / "out").exists()  # no stream at all
    else:
        out = (path.parent / "out").read_bytes()
        # A stream behind other bytes comes alone.
        assert data.endswith(out)
        assert len(out) == len(data) or not data.startswith(b"QEVM")


def test_what_is_around_a_stream_goes(tmp_path: Path) -> None:
    path = qcow2_file("savevm-10.0-q35", tmp_path)
    report, code = rewritten(path, snapshot="first")
    assert code == 0
    assert [la.kind for la in report.layers] == ["qcow2"]
    assert (tmp_path / "out").read_bytes()[:8] == b"QEVM\0\0\0\3"
    # And what is left is a stream.
    assert rewritten(tmp_path / "out", output=tmp_path / "again")[1] == 0


def test_an_input_that_cannot_be_sought_in(tmp_path: Path) -> None:
    """Is copied first, to where there is room for as much; nothing is left of the copy."""
    data = bytes(simple_stream())
    rewrite(BytesSource(data), RewriteOptions(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError, match="nowhere"):
        rewrite(BytesSource(data), RewriteOptions(tmp_path / "x", spool=str(tmp_path / "nowhere")))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_no_stream(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"no stream at all")
    with pytest.raises(StreamError, match="0x0"):
        rewritten(tmp_path / "in")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_names_that_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(simple_stream()))
    with pytest.raises(OutputError, match="is the input"):
        rewritten(path, output=path)
    (tmp_path / "out").write_bytes(b"mine")
    with OpenStream(path) as opened, pytest.raises(OutputError, match="exists"):
        rewrite(opened.source, RewriteOptions(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_nothing_is_written_without_an_output(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(simple_stream()))
    report, code = rewritten(path, output=None, sets=(("configuration.name", "x"),))
    assert (code, report.output, report.change_count) == (0, None, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("footers", [True, False])
def test_without_footers_the_description_is_missed(footers: bool, tmp_path: Path) -> None:
    """As of machine types up to 2.3."""
    w = StreamWriter(footers=footers)
    w.header()
    w.ram_start([RamBlock("mem", 4096)])
    with w.ram_end():
        w.zero("mem", 0)
    w.device(Device("dev", fields=(Field("a", "uint32", bytes(4)),)))
    w.eof()
    w.vmdescription()
    path = tmp_path / "in"
    path.write_bytes(w.data)
    report, status = rewritten(path, output=tmp_path / "out", strip_vmdescription=True)
    codes = [a.code for a in report.anomalies if a.severity == "warning"]
    assert (codes, status) == (([], 0) if footers else (["stripped-unframed"], 1))
    assert (tmp_path / "out").stat().st_size < len(w.data)
