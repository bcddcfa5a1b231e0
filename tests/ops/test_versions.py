"""Versions of pages against a plain replay of the records."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.ops.test_convergence import run as read
from tests.ops.test_extract import simple, withdrawn
from tests.ops.test_history import Version, records
from tests.ops.test_passes import PAGE, SEVERAL, passes_of
from tests.streamwriter import StreamWriter
from tests.truth import channel_names, fixture_file, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import AddressError, LimitError, OutputError
from vmstream.ops.channels import Channels
from vmstream.ops.memory import MemoryOptions
from vmstream.ops.versions import differences, page_of, page_versions, write_superseded
from vmstream.report.models.history import HistoryReport, VersionReport


def versions_of(path: Path, block: str, offset: int, **options: int) -> list[VersionReport]:
    found: list[VersionReport] = []
    with OpenStream(path) as opened:
        page_versions(opened, block, offset, found.append, with_data=True, **options)
    return found


def superseded(path: Path, directory: Path, **options: int) -> HistoryReport:
    history = read(path)
    with OpenStream(path) as opened:
        return write_superseded(
            opened, history, directory, options=MemoryOptions(spool=path.parent), **options
        )


def check_pages(path: Path, versions: list[Version], pages: list[tuple[str, int]]) -> None:
    """Versions of these pages are what the replay says, with offset, pass and difference."""
    passes = passes_of(versions)
    for block, page in pages:
        found = versions_of(path, block, page * PAGE + 17)
        mine = [(v, n) for v, n in zip(versions, passes, strict=True) if v[1:3] == (block, page)]
        assert [(v.record_offset, v.pass_number) for v in found] == [(v[0], n) for v, n in mine]
        before = None
        for v, ((_, _, _, content), _) in zip(found, mine, strict=True):
            assert bytes.fromhex(v.data or "") == content
            if before is None:
                assert v.changed is None
            else:
                where = [i for i in range(PAGE) if content[i] != before[i]]
                assert v.changed == len(where)
                told = [i for r in v.ranges for i in range(r.offset, r.offset + r.length)]
                assert told == where[: len(told)]
                assert v.range_count > 64 or told == where
            before = content


def check_superseded(directory: Path, versions: list[Version], report: HistoryReport) -> None:
    """What is written are all versions that the replay has replaced, but those of zeros."""
    numbers: dict[tuple[str, int], int] = {}
    passes = passes_of(versions)
    replaced: dict[tuple[str, int, int], tuple[int, int, bytes]] = {}
    for (offset, block, page, content), in_pass in zip(versions, passes, strict=True):
        number = numbers[block, page] = numbers.get((block, page), 0) + 1
        replaced[block, page, number] = offset, in_pass, content
    for (block, page), number in numbers.items():
        del replaced[block, page, number]
    assert report.superseded is not None
    names = {f.file: f.block for f in report.superseded.files}
    files = {name: (directory / name).read_bytes() for name in names}
    assert {p.name for p in directory.iterdir()} == {*names, "index.csv", "manifest.json"}
    with (directory / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report.superseded.versions
    assert sum(map(len, files.values())) == PAGE * len(rows)
    for row in rows:
        key = names[row["file"]], int(row["block_offset"]) // PAGE, int(row["version"])
        offset, in_pass, content = replaced.pop(key)
        assert (int(row["record_offset"]), int(row["pass"])) == (offset, in_pass)
        at = int(row["file_offset"])
        assert files[row["file"]][at : at + PAGE] == content
    assert len(replaced) == report.superseded.zeros
    assert not any(any(content) for _, _, content in replaced.values())
    assert json.loads((directory / "manifest.json").read_text())["superseded"]["index"]


@pytest.mark.parametrize("name", SEVERAL)
def test_fixtures(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    versions = list(records(open_fixture(name), PAGE))
    pages = [("mem", p) for p in (7, 0x101, 0x102, 0x103, 0x105, 0x180, 0x285, 0x300)]
    check_pages(path, versions, [*pages, ("pc.bios", 0)])
    report = superseded(path, tmp_path / "old")
    check_superseded(tmp_path / "old", versions, report)
    with (tmp_path / "old" / "index.csv").open(newline="") as file:
        assert all(r["gpa"] == r["block_offset"] for r in csv.DictReader(file))


def test_multifd(tmp_path: Path) -> None:
    """The last of the versions is what the guest is left with; offsets are those of channels."""
    path = fixture_file("multifd-zstd-11.1-pc.ch0", tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names("multifd-zstd-11.1-pc.ch0")]
    found: list[VersionReport] = []
    with OpenStream(path) as opened, Channels(others, opened.identity) as channels:
        page_versions(
            opened, "mem", 0x101000, found.append, channels=channels, with_data=True
        )  # fmt: skip
    assert len(found) > 1
    assert {v.kind for v in found} <= {"compressed", "zero"}
    assert all(v.channel is not None for v in found)
    assert [v.pass_number for v in found] == sorted({v.pass_number for v in found})
    assert all(v.changed and v.changed < 16 for v in found[1:-1])


def test_withdrawn(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(withdrawn((PAGE, 2 * PAGE), again=(1,))))
    found = versions_of(tmp_path / "s", "mem", PAGE)
    assert [(v.kind, v.changed) for v in found] == [
        ("normal", None), ("withdrawn", PAGE), ("normal", PAGE),
    ]  # fmt: skip
    report = superseded(tmp_path / "s", tmp_path / "old").superseded
    assert report is not None
    assert report.versions == 2
    assert (tmp_path / "old" / "mem.raw").read_bytes() == b"\2" * PAGE + b"\3" * PAGE


def test_mapped_ram(tmp_path: Path) -> None:
    path = fixture_file("mapped-10.0-pc", tmp_path)
    block = read(path).report
    assert block.records == block.pages_sent
    (one,) = versions_of(path, "pc.ram" if b"pc.ram" in path.read_bytes()[:4096] else "mem", 0x7C00)
    at = one.record_offset
    assert path.read_bytes()[at : at + PAGE].hex() == one.data
    assert one.data is not None
    assert one.data.endswith("55aa" + "00" * 0x200) or "55aa" in one.data


def hostile(name: str) -> StreamWriter:
    return simple(
        lambda w: w.page("mem", 0, b"\1" * PAGE),
        lambda w: w.page(name, 0, b"\1" * PAGE),
        lambda w: w.page("mem", 0, b"\2" * PAGE),
        lambda w: w.page(name, 0, b"\2" * PAGE),
        mem=1,
        **{name: 1},
    )


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(hostile("../../x,y")))
    superseded(tmp_path / "s", tmp_path / "old")
    assert {p.name for p in tmp_path.iterdir()} == {"s", "old"}
    assert {p.suffix for p in (tmp_path / "old").iterdir()} == {".raw", ".csv", ".json"}
    with pytest.raises(OutputError, match="not empty"):
        superseded(tmp_path / "s", tmp_path / "old")
    superseded(tmp_path / "s", tmp_path / "old", force=True)
    with pytest.raises(LimitError, match="--max-superseded"):
        superseded(tmp_path / "s", tmp_path / "new", most=2 * PAGE - 1)
    assert not (tmp_path / "new").exists()


def test_pages_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(bytes(hostile("x")))
    with pytest.raises(OutputError, match="no block 'y'"):
        versions_of(path, "y", 0)
    with pytest.raises(AddressError):
        versions_of(path, "x", PAGE)


def test_what_a_page_is_named_by() -> None:
    assert page_of("0x1000") == (None, 4096)
    assert page_of("4096") == (None, 4096)
    assert page_of("/rom@etc/acpi/tables+0x10") == ("/rom@etc/acpi/tables", 16)
    assert page_of("a+b+1") == ("a+b", 1)
    for wrong in ("", "mem", "mem+", "-1", "0x", "mem+x", "1_0"):
        with pytest.raises(ValueError, match="is no number"):
            page_of(wrong)


def test_differences() -> None:
    assert differences(b"abc", b"abc") == (0, 0, [])
    count, ranges, shown = differences(b"abcdef", b"xbcxxf")
    assert (count, ranges) == (3, 2)
    assert [(r.offset, r.length) for r in shown] == [(0, 1), (3, 2)]
    count, ranges, shown = differences(bytes(4096), bytes([0, 1] * 2048))
    assert (count, ranges, len(shown)) == (2048, 2048, 64)
