"""Disks of a block migration: exact, sparse, whole or not there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.commandline import no_leftovers
from tests.decoding import BytesSource, CutSource
from tests.strategies import examples
from tests.streamwriter import Device, Field, RamBlock, StreamWriter
from tests.truth import block_sums, data_extents, fixture_file, load_manifest, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import FormatError, IntegrityError, LimitError, OutputError, TruncatedError
from vmstream.ops import live as ops_live
from vmstream.ops.extract_block import BlockOptions, extract_block
from vmstream.report.models.extract_block import ExtractBlockReport
from vmstream.transport.source import Source

PAGE = 4096
MIB = 1 << 20


def run(source: Source | bytes, **options: Any) -> tuple[ExtractBlockReport, int]:
    if isinstance(source, bytes):
        source = BytesSource(source)
    return extract_block(source, BlockOptions(**options))


def stream(*chunks: sw.LiveBytes, end: bool = True, footers: bool = True) -> StreamWriter:
    """A stream whose section block has these chunks, two in each part."""
    w = StreamWriter(footers=footers)
    w.header()
    w.configuration()
    w.live_records("START", 9, [sw.block_end()], "block")
    w.ram_start([RamBlock("mem", PAGE)])
    for at in range(0, len(chunks), 2):
        w.live_records("PART", 9, [*chunks[at : at + 2], sw.block_progress(99), sw.block_end()])
        with w.ram_part():
            w.page("mem", 0, b"\x5a" * PAGE)
    if end:
        w.live_records("END", 9, [sw.block_progress(100), sw.block_end()])
    with w.ram_end():
        pass
    w.device(Device("timer", 0, 2, [Field("ticks", "int64", bytes(8))]))
    w.eof()
    w.vmdescription()
    return w


def random_chunk(rng: random.Random) -> bytes | None:
    """A MiB: none, of zeros, or with some pages that are not."""
    if rng.random() < 0.3:
        return None
    chunk = bytearray(MIB)
    for _ in range(rng.choice((0, 1, 5, 256))):
        page = rng.randrange(256) * PAGE
        chunk[page + rng.randrange(PAGE)] = rng.randrange(1, 256)
    return bytes(chunk)


# ---- what is written ----------------------------------------------------------------------------


def check_disks(directory: Path, report: ExtractBlockReport, code: int) -> None:
    disks = load_manifest("blockmig-5.2-pc")["disks"]
    assert code == 0
    assert {o.device.device for o in report.outputs} == disks.keys()
    for output in report.outputs:
        want = disks[output.device.device]
        path = directory / f"{output.device.device}.raw"
        assert output.path == str(path)
        found = block_sums(path)
        assert (found.size, output.size, output.size_source) == (want["size"],) * 2 + ("inferred",)
        assert found.sha256 == want["sha256"]
        # Zeros are holes, though they were sent as data.
        with path.open("rb") as file:
            stored = sum(b - a for a, b in data_extents(file.fileno(), found.size))
        assert stored == want["nonzero_pages"] * PAGE
    assert report.complete
    assert not report.anomalies
    assert no_leftovers(directory)


def test_a_real_block_migration(tmp_path: Path) -> None:
    with OpenStream(fixture_file("blockmig-5.2-pc", tmp_path)) as opened:
        report, code = run(opened.source, directory=tmp_path / "d")
    check_disks(tmp_path / "d", report, code)


def test_it_does_not_matter_how_it_is_cut(tmp_path: Path) -> None:
    source = CutSource(open_fixture("blockmig-5.2-pc"), lambda _o, _n: 70_001, late_end=True)
    check_disks(tmp_path / "d", *run(source, directory=tmp_path / "d"))


def test_one_disk(tmp_path: Path) -> None:
    data = open_fixture("blockmig-5.2-pc")
    report, code = run(data, device="vdisk", output=tmp_path / "x")
    assert code == 0
    (output,) = report.outputs
    assert output.device.device == "vdisk"
    want = load_manifest("blockmig-5.2-pc")["disks"]["vdisk"]
    assert block_sums(tmp_path / "x").sha256 == want["sha256"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@settings(deadline=None, max_examples=examples(12))
@given(st.integers(0, 1 << 32), st.booleans())
def test_the_last_copy_counts(
    tmp_path_factory: pytest.TempPathFactory, seed: int, footers: bool
) -> None:
    rng = random.Random(seed)
    disks = {name: bytearray() for name in ("a", "b")}
    chunks = []
    for _ in range(rng.randrange(1, 9)):
        name, place, chunk = rng.choice("ab"), rng.randrange(4) * MIB, random_chunk(rng)
        chunks.append(sw.block_chunk(name, place, chunk))
        disk = disks[name]
        disk.extend(bytes(max(0, place + MIB - len(disk))))
        disk[place : place + MIB] = chunk or bytes(MIB)
    tmp_path = tmp_path_factory.mktemp("disks")
    report, _ = run(bytes(stream(*chunks, footers=footers)), directory=tmp_path / "d")
    written = {o.device.device: Path(o.path).read_bytes() for o in report.outputs}
    assert written == {name: bytes(disk) for name, disk in disks.items() if disk}


def test_zero_chunks_are_holes(tmp_path: Path) -> None:
    chunks = [
        sw.block_chunk("d", 0, b"\1" * MIB),
        sw.block_chunk("d", 3 * MIB, None),
        sw.block_chunk("d", 1 * MIB, None),
        sw.block_chunk("d", 2 * MIB, None),
    ]
    report, code = run(bytes(stream(*chunks)), device="d", output=tmp_path / "x")
    assert code == 0
    assert (tmp_path / "x").stat().st_size == 4 * MIB == report.outputs[0].size
    assert (tmp_path / "x").stat().st_blocks * 512 <= MIB + 65536
    assert (report.outputs[0].device.chunks, report.outputs[0].device.zero_chunks) == (1, 3)


def test_the_size_can_be_stated(tmp_path: Path) -> None:
    data = bytes(stream(sw.block_chunk("d", 0, b"\1" * MIB), sw.block_chunk("d", MIB, b"\2" * MIB)))
    for size in (MIB + 512, 2 * MIB, 3 * MIB + 1):
        report, code = run(data, device="d", output=tmp_path / "x", size=size, force=True)
        # Of the end of a disk of that size nothing was sent.
        assert code == (size > 2 * MIB)
        assert [a.code for a in report.anomalies] == ["chunks-missing"] * code
        assert (report.outputs[0].size, report.outputs[0].size_source) == (size, "argument")
        want = (b"\1" * MIB + b"\2" * MIB).ljust(size, b"\0")[:size]
        assert (tmp_path / "x").read_bytes() == want
    for size in (1, MIB):
        with pytest.raises(OutputError, match="larger"):
            run(data, device="d", output=tmp_path / "y", size=size)
    with pytest.raises(OutputError, match="no disk has"):
        run(data, device="d", output=tmp_path / "y", size=1 << 63)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_chunks_that_were_never_sent(tmp_path: Path) -> None:
    data = bytes(stream(sw.block_chunk("d", 4 * MIB, b"\1" * MIB)))
    report, code = run(data, device="d", output=tmp_path / "x")
    assert code == 1
    assert report.outputs[0].device.missing == 4
    assert [a.code for a in report.anomalies] == ["chunks-missing"]
    assert (tmp_path / "x").read_bytes() == bytes(4 * MIB) + b"\1" * MIB


def test_hostile_names(tmp_path: Path) -> None:
    names = ["../../x", "..", "", "a", "A", b"\xff", b"\xfe", "/etc/passwd", ".hidden"]
    chunks = [sw.block_chunk(name, 0, bytes([i + 1]) * MIB) for i, name in enumerate(names)]
    report, code = run(bytes(stream(*chunks)), directory=tmp_path / "d")
    assert code == 0
    written = [Path(o.path) for o in report.outputs]
    assert {p.parent for p in written} == {tmp_path / "d"}
    assert {p.name for p in (tmp_path / "d").iterdir()} == {p.name for p in written}
    assert len({p.name.lower() for p in written}) == len(names)
    for i, path in enumerate(written):
        assert not path.name.startswith(".")
        assert path.read_bytes() == bytes([i + 1]) * MIB


# ---- what is refused ----------------------------------------------------------------------------


def refused(tmp_path: Path, data: bytes, kind: type[Exception], match: str, **options: Any) -> None:
    for way in ({"directory": tmp_path / "d"}, {"device": "d", "output": tmp_path / "x"}):
        with pytest.raises(kind, match=match):
            run(data, **way, **options)
        assert not list(tmp_path.iterdir())


ONE = sw.block_chunk("d", 0, b"\1" * MIB)


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    data = bytes(stream(ONE, sw.block_chunk("e", 0, None)))
    with pytest.raises(OutputError, match=r"no disk 'x'; the stream has: d, e"):
        run(data, device="x", output=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_no_disks(tmp_path: Path) -> None:
    refused(tmp_path, open_fixture("plain-7.2-pc"), OutputError, "no disks")


def test_damage(tmp_path: Path) -> None:
    w = stream(ONE, sw.block_chunk("d", MIB, b"\2" * MIB))
    data = bytearray(bytes(w))
    second = w.items_of("LIVE")[2]
    data[second.offset + 7] = 0x40
    refused(tmp_path, bytes(data), FormatError, "--partial")
    report, code = run(bytes(data), device="d", output=tmp_path / "x", partial=True)
    assert code == 3
    assert not report.complete
    assert report.partial
    assert (tmp_path / "x").read_bytes() == b"\1" * MIB


def test_truncation(tmp_path: Path) -> None:
    w = stream(ONE, sw.block_chunk("d", MIB, b"\2" * MIB))
    data = bytes(w)[: w.items_of("LIVE")[2].stop - 1]
    refused(tmp_path, data, TruncatedError, "--partial")
    report, code = run(data, directory=tmp_path / "d", partial=True)
    assert code == 3
    assert report.outputs[0].size == MIB


def test_a_block_migration_without_its_end(tmp_path: Path) -> None:
    data = bytes(stream(ONE, end=False))
    refused(tmp_path, data, IntegrityError, "did not end")
    _, code = run(data, device="d", output=tmp_path / "x", partial=True)
    assert code == 1
    assert (tmp_path / "x").read_bytes() == b"\1" * MIB


@pytest.mark.parametrize("partial", [False, True])
def test_too_many_disks(partial: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_live, "MAX_BLOCK_DEVICES", 2)
    data = bytes(stream(*[sw.block_chunk(f"d{i}", 0, None) for i in range(3)]))
    refused(tmp_path, data, LimitError, "disks", partial=partial)


def test_two_disks_that_read_alike(tmp_path: Path) -> None:
    data = bytes(stream(sw.block_chunk(b"\xff", 0, None), sw.block_chunk("\\xff", 0, None)))
    with pytest.raises(OutputError, match="two disks"):
        run(data, device="\\xff", output=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken(tmp_path: Path) -> None:
    data = bytes(stream(ONE))
    (tmp_path / "d").mkdir()
    for path in (tmp_path / "x", tmp_path / "d" / "d.raw"):
        path.write_bytes(b"mine")
    for way in ({"directory": tmp_path / "d"}, {"device": "d", "output": tmp_path / "x"}):
        with pytest.raises(OutputError, match="exists"):
            run(data, **way)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "d" / "d.raw").read_bytes() == b"mine"
    run(data, directory=tmp_path / "d", force=True)
    assert (tmp_path / "d" / "d.raw").read_bytes() == b"\1" * MIB
    with pytest.raises(OSError, match="No such file"):
        run(data, device="d", output=tmp_path / "none" / "x")


def test_the_input_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(bytes(stream(ONE)))
    with OpenStream(path) as opened, pytest.raises(OutputError, match="is the input"):
        run(opened.source, device="d", output=path, force=True)
    (tmp_path / "d.raw").hardlink_to(path)
    with OpenStream(path) as opened, pytest.raises(OutputError, match="is the input"):
        run(opened.source, directory=tmp_path, force=True)
    assert path.read_bytes() == bytes(stream(ONE))
    assert no_leftovers(tmp_path)
