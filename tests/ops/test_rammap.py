"""The map of RAM against a plain replay of the records."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import streamwriter as sw
from tests.mappedreader import MappedFile
from tests.ops.test_extract import simple, withdrawn
from tests.ops.test_history import records
from tests.ops.test_passes import PAGE, SEVERAL, passes_of
from tests.streamwriter import RamBlock, StreamWriter
from tests.truth import channel_names, fixture_file, load_manifest, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import FormatError, LimitError, OutputError
from vmstream.ops import rammap
from vmstream.ops.channels import Channels
from vmstream.ops.rammap import MAX_BLOCKS, MOST_HEIGHT, WIDTH, Mapped, grid, read_map
from vmstream.report.models.rammap import PAGE_KINDS, BlockMap, RAMMap

KIND = {sw.FLAG_ZERO: "zero", sw.FLAG_PAGE: "normal", sw.FLAG_XBZRLE: "xbzrle"}


def run(path: Path, **options: int) -> Mapped:
    with OpenStream(path) as opened:
        return read_map(opened, **options)


def write(path: Path, w: StreamWriter) -> Path:
    path.write_bytes(bytes(w))
    return path


def block_of(ram: RAMMap, name: str) -> BlockMap:
    (found,) = [b for b in ram.blocks if b.idstr == name]
    return found


def words(cells: np.ndarray) -> list[str]:
    return [PAGE_KINDS[c] for c in cells.tolist()]


@pytest.mark.parametrize("name", SEVERAL)
def test_fixtures(name: str, tmp_path: Path) -> None:
    data = open_fixture(name)
    versions = list(records(data, PAGE))
    kinds, last, times = {}, {}, Counter()
    for (offset, block, page, _), in_pass in zip(versions, passes_of(versions), strict=True):
        flags = struct.unpack_from(">Q", data, offset)[0] & (PAGE - 1) & ~sw.FLAG_CONTINUE
        kinds[block, page], last[block, page] = KIND[flags], in_pass
        times[block, page] += 1
    found = run(fixture_file(name, tmp_path))
    assert (found.exit_code, found.remark) == (0, None)
    ram = found.map
    assert ram.pages_per_cell == 1
    assert sum(b.pages for b in ram.blocks) == len(kinds)
    for b in ram.blocks:
        pages = range(b.pages)
        assert words(b.kinds) == [kinds[b.idstr, p] for p in pages]
        assert b.times.tolist() == [times[b.idstr, p] for p in pages]
        assert b.last.tolist() == [last[b.idstr, p] for p in pages]
    told = Counter(kinds.values())
    assert ram.counts == [told[kind] for kind in PAGE_KINDS]
    assert ram.most_times == max(times.values())
    assert ram.resent == sum(n > 1 for n in times.values())
    assert ram.pass_count == max(last.values())
    assert [b.used_length for b in ram.blocks] == sorted(
        (b.used_length for b in ram.blocks), reverse=True
    )
    (mem,) = block_of(ram, "mem").ranges
    assert (mem.gpa, mem.length, mem.block_offset) == (0, 16 << 20, 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("multifd-11.1-pc", "normal"),
        ("multifd-zlib-10.0-q35", "compressed"),
    ],
)
def test_multifd(name: str, kind: str, tmp_path: Path) -> None:
    """By what was not zero in the blocks when the migration was over."""
    path = fixture_file(f"{name}.ch0", tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names(f"{name}.ch0")]
    with OpenStream(path) as opened, Channels(others, opened.identity) as channels:
        found = read_map(opened, channels)
    # Among others, that the channels unpack: ACPI tables are looked at for the addresses.
    assert found.exit_code == 0
    truth = load_manifest(name)["blocks"]
    for b in found.map.blocks:
        data = truth[b.idstr]["nonzero_pages"]
        told = dict(zip(PAGE_KINDS, b.counts, strict=True))
        assert told == dict.fromkeys(PAGE_KINDS, 0) | {kind: data, "zero": b.pages - data}


def test_mapped_ram(tmp_path: Path) -> None:
    path = fixture_file("mapped-10.0-pc", tmp_path)
    found = run(path)
    assert found.remark is not None
    assert "mapped-ram" in found.remark
    truth = MappedFile(path)
    for b in found.map.blocks:
        present = set(truth[b.idstr].present)
        assert words(b.kinds) == ["normal" if p in present else "zero" for p in range(b.pages)]
        assert set(b.times.tolist()) == {1}


def test_withdrawn_pages_are_not_there(tmp_path: Path) -> None:
    w = withdrawn((PAGE, 2 * PAGE), (7 * PAGE, PAGE), again=(7,))
    ram = run(write(tmp_path / "s", w)).map
    want = ["normal", "never sent", "never sent", *["normal"] * 5]
    assert words(block_of(ram, "mem").kinds) == want
    assert block_of(ram, "mem").times.tolist() == [1] * 7 + [2]


def test_cells_of_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most telling page of a cell: never sent before zero, data before both."""
    monkeypatch.setattr(rammap, "WIDTH", 64)
    monkeypatch.setattr(rammap, "MOST_HEIGHT", 16)
    monkeypatch.setattr(rammap, "_AT_ONCE", 64)
    step, pages = 8, 1000
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("small", PAGE), RamBlock("mem", (pages + 1) * PAGE)])
    with w.ram_part():
        for page in range(3 * step - 1):
            w.zero("mem", page * PAGE)
        w.page("mem", 4 * step * PAGE, b"\1" * PAGE)
        w.zero("mem", pages * PAGE)
    with w.ram_part():
        w.page("mem", (step + 1) * PAGE, b"\1" * PAGE)
        w.zero("mem", (step + 2) * PAGE)
    with w.ram_end():
        w.xbzrle("mem", (step + 1) * PAGE, b"\0\1\2")
    w.eof()
    found = run(write(tmp_path / "s", w))
    assert found.map.pages_per_cell == step
    b = block_of(found.map, "mem")
    assert len(b.kinds) == pages // step + 1
    assert words(b.kinds[:6]) == [
        "zero", "xbzrle", "never sent", "never sent", "normal", "never sent"
    ]  # fmt: skip
    assert words(b.kinds[-2:]) == ["never sent", "zero"]
    assert b.times[:6].tolist() == [1, 3, 1, 0, 1, 0]
    assert b.last[:6].tolist() == [1, 3, 1, 0, 1, 0]
    assert b.counts == [pages + 1 - 3 * step - 1, 3 * step - 1, 1, 0, 1]
    assert found.map.counts[0] == b.counts[0] + 1


def test_grid() -> None:
    for pages in ([], [0], [1], [4096, 64, 1], [1 << 24], [1 << 24] * 40, [1] * 40, [1 << 36]):
        made = grid(pages)
        rows = [-(-n // (made.pages_per_cell * made.columns)) for n in pages]
        assert sum(rows) * made.cell <= MOST_HEIGHT
        assert made.columns * made.cell == WIDTH
        assert made.pages_per_cell == 1 or made.cell == 2


def test_more_blocks_than_are_drawn(tmp_path: Path) -> None:
    sizes = {f"b{i}": i + 1 for i in range(MAX_BLOCKS + 3)}
    ram = run(write(tmp_path / "s", simple(**sizes))).map
    assert len(ram.blocks) == MAX_BLOCKS
    assert ram.left_out == (3, 6 * PAGE)
    assert ram.counts == [0, sum(sizes.values()), 0, 0, 0]


def test_damage_and_limits(tmp_path: Path) -> None:
    path = fixture_file("own-live-q35", tmp_path)
    (tmp_path / "cut").write_bytes(path.read_bytes()[: 1 << 20])
    cut = run(tmp_path / "cut")
    assert cut.exit_code == 3
    assert cut.map.counts[0] > 0
    assert sum(cut.map.counts) == sum(b.pages for b in cut.map.blocks)
    with pytest.raises(LimitError):
        run(path, max_ram=1 << 20)
    (tmp_path / "none").write_bytes(b"no stream at all")
    with pytest.raises(FormatError):
        run(tmp_path / "none")
    w = StreamWriter()
    w.header()
    w.eof()
    with pytest.raises(OutputError, match="no RAM to draw"):
        run(write(tmp_path / "empty", w))
