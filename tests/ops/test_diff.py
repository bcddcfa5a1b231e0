"""What is compared beside RAM, and what is an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import streamwriter as sw
from tests.ops.test_extract import simple
from tests.ops.test_live import stream as live_stream
from tests.truth import fixture_file
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError, StreamError, UnsupportedError
from vmstream.ops.diff import DiffOptions, diff
from vmstream.ops.rewrite import RewriteOptions, rewrite
from vmstream.report.models.diff import DiffReport


def found(a: Path, b: Path, **options: Any) -> DiffReport:
    with OpenStream(a) as one, OpenStream(b) as two:
        report, status = diff(one, two, DiffOptions(**options))
    assert status == 0
    return report


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def edited(path: Path, **options: Any) -> Path:
    out = path.with_name("edited")
    with OpenStream(path) as opened:
        rewrite(opened.source, RewriteOptions(output=out, force=True, **options))
    return out


def test_fields_by_name(real: Path) -> None:
    other = edited(
        real, sets=(("timer[0]/cpu_clock_offset", "77"), ("cpu[0]/env.regs[2]", "0x1234"))
    )
    report = found(real, other, ram=False)
    assert [(f.path, f.group, f.b) for f in report.fields] == [
        ("timer[0]/cpu_clock_offset", "clocks", 77),
        ("cpu[0]/env.regs[2]", None, 0x1234),
    ]
    assert [(r.cpu, r.name, r.b) for r in report.registers] == [(0, "rdx", 0x1234)]
    assert (report.field_count, report.clock_count, report.same) == (2, 1, False)
    assert report.ram is None
    report = found(real, other, ram=False, ignore=("timer", "cpu/env.regs[2]"))
    assert (report.field_count, report.ignored_count) == (0, 2)
    report = found(real, other, ignore=("timer", "cpu"))
    assert report.same
    assert report.ram is not None
    assert report.ram.pages == 0


def test_names_come_from_the_other_side(real: Path) -> None:
    bare = edited(real, strip_vmdescription=True)
    assert found(real, bare).same
    assert found(bare, real).a.described == "schema"


def test_two_images_and_no_devices_of_one(real: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(8192))
    with pytest.raises(OutputError, match="neither"):
        found(tmp_path / "raw", tmp_path / "raw")
    with pytest.raises(OutputError, match="--devices-only"):
        found(real, tmp_path / "raw", ram=False)
    (tmp_path / "kdump").write_bytes(b"KDUMP   " + bytes(100))
    with pytest.raises(UnsupportedError):
        found(real, tmp_path / "kdump")


def test_a_short_image_is_different(real: Path, tmp_path: Path) -> None:
    w = simple(mem=16)
    (tmp_path / "s").write_bytes(bytes(w))
    (tmp_path / "raw").write_bytes(bytes(15 * 4096))
    report = found(tmp_path / "s", tmp_path / "raw")
    assert not report.same
    assert report.ram is not None
    assert [(r.side, r.gpa, r.length) for r in report.ram.only_in] == [("a", 15 * 4096, 4096)]
    # Longer is no difference: it does not say that there is RAM.
    (tmp_path / "raw").write_bytes(bytes(17 * 4096))
    assert found(tmp_path / "raw", tmp_path / "s").same


def test_damage_has_its_input_in_the_error(real: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(real.read_bytes()[:100_000])
    for options in ({}, {"ram": False}):
        with pytest.raises(StreamError, match="cut"):
            found(real, tmp_path / "cut", **options)


BITS = [sw.bitmap_start("disk", "b"), sw.bitmap_end()]
DONE = [sw.bitmap_complete("disk", "b"), sw.bitmap_end()]


def part(bits: bytes) -> list[sw.LiveBytes]:
    return [sw.bitmap_bits(0, 2048, bits, "disk", "b"), sw.bitmap_end()]


def test_dirty_bitmaps_by_their_records(tmp_path: Path) -> None:
    """However they are spread over parts of the section."""
    a, b, c = (tmp_path / name for name in "abc")
    one = [sw.bitmap_bits(2048, 2048, None, "disk", "b"), sw.bitmap_end()]
    a.write_bytes(live_stream("dirty-bitmap", BITS, part(b"\1\0"), one, DONE).data)
    b.write_bytes(live_stream("dirty-bitmap", BITS, part(b"\1\0")[:1] + one, DONE).data)
    c.write_bytes(live_stream("dirty-bitmap", BITS, part(b"\3\0"), one, DONE).data)
    for ram in (True, False):
        assert found(a, b, ram=ram).same
        report = found(a, c, ram=ram)
        assert not report.same
        assert [(x.path, x.by) for x in report.live] == [("dirty-bitmap[0]", "records")]
    report = found(a, c, ignore=("dirty-bitmap",))
    assert (report.same, report.ignored_count) == (True, 1)


def test_sections_that_are_not_decoded_by_their_bytes(tmp_path: Path) -> None:
    paths = []
    for i, body in enumerate((b"abc", b"abc", b"abd")):
        paths.append(tmp_path / str(i))
        records = [("live-end", body)]
        paths[-1].write_bytes(live_stream("what", records, records).data)
    assert found(paths[0], paths[1]).same
    report = found(paths[0], paths[2])
    assert [(x.path, x.by) for x in report.live] == [("what[0]", "bytes")]
    assert not report.same


@pytest.mark.parametrize("name", ["dirtybitmap-10.0-pc", "blockmig-5.2-pc"])
def test_a_real_one_is_like_itself(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    report = found(path, path, ram=False)
    assert (report.same, report.live, report.live_left_out) == (True, [], [])
