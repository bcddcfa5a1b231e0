"""Two memories, compared: runs, sums and rows, against a comparison of the bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.ops.test_extract import simple
from tests.streamwriter import StreamWriter
from vmstream.container.open import OpenStream
from vmstream.guest.imagefile import Range
from vmstream.guest.imageranges import Image
from vmstream.ops.diffram import MAX_ROWS, compare, two_streams, with_image
from vmstream.ops.memory import MemoryOptions, read_memory
from vmstream.report.models.diff import DiffRAM
from vmstream.transport.source import OpenSource, RandomAccess

PAGE = 4096
PAGES = 600


def stream(seed: int, changed: dict[int, bytes], *, shuffled: bool = False) -> StreamWriter:
    """A guest with data, and with changes at addresses; in order or not."""
    rng = random.Random(seed)
    content = {p: rng.randbytes(PAGE) for p in range(0, PAGES, 2)}
    for at, data in changed.items():
        page = bytearray(content.get(at // PAGE, bytes(PAGE)))
        page[at % PAGE : at % PAGE + len(data)] = data
        content[at // PAGE] = bytes(page)

    def pages(w: StreamWriter) -> None:
        order = sorted(content)
        if shuffled:
            rng.shuffle(order)
        for page in order:
            w.page("mem", page * PAGE, content[page])

    return simple(pages, mem=PAGES)


def compared(directory: Path, a: StreamWriter, b: StreamWriter, *, rows: bool = False) -> DiffRAM:
    (directory / "a").write_bytes(bytes(a))
    (directory / "b").write_bytes(bytes(b))
    with (
        OpenStream(directory / "a") as one,
        OpenStream(directory / "b") as two,
        read_memory(one, MemoryOptions()) as ours,
        read_memory(two, MemoryOptions()) as theirs,
    ):
        return compare(two_streams(ours, theirs), PAGE, rows=rows)


def truth(a: bytes, b: bytes) -> tuple[list[int], int]:
    """Pages that differ, and bytes."""
    pages = [p for p in range(PAGES) if a[p * PAGE :][:PAGE] != b[p * PAGE :][:PAGE]]
    return pages, sum(x != y for x, y in zip(a, b, strict=True))


# In pages with data, at both ends of a page, over its border, in a page of zeros.
CHANGES = {
    0: b"\1" * 10, 4 * PAGE - 1: b"ab", 256 * PAGE + 7: b"x" * 5000, 301 * PAGE: b"new",
    511 * PAGE + 4000: b"z" * 300, (PAGES - 1) * PAGE + 4095: b"!",
}  # fmt: skip


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_pages_and_bytes(tmp_path: Path, shuffled: bool, rows: bool, zeros: bool) -> None:
    """By spans of the inputs or by pages; where both have the same pages, and where not."""
    changes = {at: d for at, d in CHANGES.items() if zeros or (at // PAGE) % 2 == 0}
    # None of these goes over into a page of zeros.
    changes = {at: d[: PAGE - at % PAGE] for at, d in changes.items()}
    a, b = stream(1, {}), stream(1, changes, shuffled=shuffled)
    found = compared(tmp_path, a, b, rows=rows)
    pages, changed = truth(bytes(a.blocks["mem"]), bytes(b.blocks["mem"]))
    assert (found.pages, found.bytes) == (len(pages), changed)
    assert found.compared == PAGES * PAGE
    listed = [r.block_offset // PAGE + i for r in found.runs for i in range(r.pages)]
    assert listed == pages
    assert sum(r.bytes for r in found.runs) == changed
    assert found.run_count == len(found.runs)
    assert all(r.gpa == r.block_offset for r in found.runs)
    assert bool(found.rows) == rows
    for row in found.rows:
        span = slice(row.block_offset, row.block_offset + 16)
        assert bytes.fromhex(row.a) == a.blocks["mem"][span]
        assert bytes.fromhex(row.b) == b.blocks["mem"][span]
        assert row.a != row.b


def test_a_run_goes_over_pieces_and_rows_are_bounded(tmp_path: Path) -> None:
    changes = {p * PAGE: b"\xff\0" * (PAGE // 2) for p in range(100, 400)}
    found = compared(tmp_path, stream(1, {}), stream(1, changes), rows=True)
    assert [(r.block_offset // PAGE, r.pages) for r in found.runs] == [(100, 300)]
    assert len(found.rows) == MAX_ROWS
    assert found.row_count == 300 * PAGE // 16


def test_blocks_of_one_side_and_of_another_length(tmp_path: Path) -> None:
    found = compared(tmp_path, simple(mem=16, old=1), simple(mem=32, new=1))
    told = {b.idstr: (b.length_a, b.length_b, b.compared, b.left_out) for b in found.blocks}
    assert told == {
        "mem": (16 * PAGE, 32 * PAGE, 16 * PAGE, "of another length"),
        "old": (PAGE, None, 0, "only in A"),
        "new": (None, PAGE, 0, "only in B"),
    }


def test_an_image_by_address(tmp_path: Path) -> None:
    w = stream(1, {})
    data = bytearray(w.blocks["mem"])
    data[5 * PAGE + 3] ^= 1
    (tmp_path / "s").write_bytes(bytes(w))
    (tmp_path / "i").write_bytes(bytes(data[4 * PAGE :]))
    image = Image("elf", (Range(4 * PAGE, len(data) - 4 * PAGE, 0),))
    with (
        OpenStream(tmp_path / "s") as opened,
        read_memory(opened, MemoryOptions()) as memory,
        OpenSource(tmp_path / "i") as file,
    ):
        assert isinstance(file, RandomAccess)
        these = with_image(memory, image, file, first=True)
        found = compare(these, PAGE)
    assert [(r.gpa, r.pages, r.bytes) for r in found.runs] == [(5 * PAGE, 1, 1)]
    assert [(r.side, r.gpa, r.length) for r in found.only_in] == [("a", 0, 4 * PAGE)]
    assert these.unequal
