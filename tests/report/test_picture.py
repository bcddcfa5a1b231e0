"""Pictures of RAM, read by a decoder that shares nothing with what wrote them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pytest

from vmstream.report.models.rammap import AddressRange, BlockMap, RAMMap
from vmstream.report.picture import VIEWS, block_png, classes, heatmap_png, place_text, png, view_of

PAGE = 4096


@dataclass
class Picture:
    """A palette PNG as its chunks say."""

    width: int
    height: int
    palette: list[tuple[int, ...]]
    rows: list[list[int]]

    def colour(self, x: int, y: int) -> tuple[int, ...]:
        return self.palette[self.rows[y][x]]


def read(data: bytes) -> Picture:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        assert kind not in chunks
        chunks[kind] = body
        at += 12 + length
    assert at == len(data)
    assert [*chunks][:: len(chunks) - 1] == [b"IHDR", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, rest) == (4, 3, [0, 0, 0])
    plte = chunks[b"PLTE"]
    alpha = chunks.get(b"tRNS", b"").ljust(len(plte) // 3, b"\xff")
    palette = [(*plte[3 * i : 3 * i + 3], alpha[i]) for i in range(len(plte) // 3)]
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = 1 + (width + 1) // 2
    assert len(raw) == stride * height
    rows = []
    for y in range(height):
        assert raw[y * stride] == 0
        line = raw[y * stride + 1 : (y + 1) * stride]
        rows.append([n for b in line for n in (b >> 4, b & 15)][:width])
    return Picture(width, height, palette, rows)


def block(name: str, kinds: list[int], *ranges: AddressRange) -> BlockMap:
    count = len(kinds)
    return BlockMap(
        name, count * PAGE, count, list(ranges), np.array(kinds, np.uint8),
        np.arange(count, dtype=np.uint32), np.arange(count, dtype=np.uint16) % 12,
        [kinds.count(k) for k in range(5)],
    )  # fmt: skip


def ram(*blocks: BlockMap, columns: int = 64, passes: int = 11) -> RAMMap:
    return RAMMap(
        PAGE, 1, columns, 1024 // columns, list(blocks), (0, 0),
        [sum(b.counts[k] for b in blocks) for k in range(5)], passes, 99, 1, False,
    )  # fmt: skip


def test_png() -> None:
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (3, 7), (5, 8)):
        pixels = rng.integers(0, 3, (height, width), np.uint8)
        colours = ((1, 2, 3, 255), (4, 5, 6, 0), (7, 8, 9, 100))
        found = read(png(pixels, colours))
        assert (found.width, found.height) == (width, height)
        assert found.rows == pixels.tolist()
        assert found.palette == list(colours)
    assert b"tRNS" not in png(pixels, ((1, 2, 3, 255),) * 3)


def test_a_block_is_a_pixel_a_cell() -> None:
    cells = [k % 5 for k in range(130)]
    made = ram(block("mem", cells))
    view = view_of(made, "kind")
    data, columns, rows = block_png(made, view, made.blocks[0])
    found = read(data)
    assert (columns, rows) == (found.width, found.height) == (64, 3)
    flat = [n for row in found.rows for n in row]
    assert flat[:130] == cells
    assert {found.palette[n][3] for n in flat[130:]} == {0}
    small = ram(block("rom", [1, 2, 0]))
    assert block_png(small, view_of(small, "kind"), small.blocks[0])[1:] == (3, 1)
    empty = ram(block("none", []))
    assert block_png(empty, view_of(empty, "kind"), empty.blocks[0])[1:] == (1, 1)


def test_classes() -> None:
    made = ram(block("mem", [0] * 40))
    view = view_of(made, "times")
    labels = [view.labels[c] for c in classes(made, view, made.blocks[0]).tolist()]
    want = ["never sent", "once", "twice", *["3-4 times"] * 2, *["5-8 times"] * 4]
    want += [*["9-16 times"] * 8, *["17-32 times"] * 16, *["33 times or more"] * 7]
    assert labels == want
    for count in (1, 2, 7, 8, 9, 11, 1000):
        made = ram(block("mem", [0] * 40), passes=count)
        made.blocks[0].last[:] = np.minimum(np.arange(40), count)
        view = view_of(made, "pass")
        assert len(view.labels) == len(view.colours) == 1 + min(count, 8)
        found = classes(made, view, made.blocks[0]).tolist()
        for last, which in zip(made.blocks[0].last.tolist(), found, strict=True):
            label = view.labels[which]
            numbers = [int(n) for n in label.split()[-1].split("-") if n.isdigit()]
            assert (label == "never sent") if not last else numbers[0] <= last <= numbers[-1]


@pytest.mark.parametrize("by", VIEWS)
def test_the_whole_picture(by: str) -> None:
    mem = block("mem", [2] * 64 + [1] * 64 + [4], AddressRange(0x1000, 129 * PAGE, 0))
    made = ram(mem, block("rom", [0, 3]))
    data, width, height = heatmap_png(made, by, "dump\x1b.bin", "pc")
    found = read(data)
    assert (found.width, found.height) == (width, height)
    view = view_of(made, by)
    seen = {n for row in found.rows for n in row}
    assert seen >= {4 + k for k in view.used}
    if by == "kind":
        # Cells are 16 pixels: rows of the first block one below the other.
        blue = next((x, y) for y in range(100, height) for x in range(width)
                    if found.rows[y][x] == 6)  # fmt: skip
        x, y = blue
        assert all(found.rows[y + dy][x + dx] == 6 for dy in (0, 15) for dx in (0, 1023))
        assert all(found.rows[y + 16 + dy][x + dx] == 5 for dy in (0, 15) for dx in (0, 1023))
        assert found.rows[y + 32][x : x + 17] == [8] * 16 + [0]
        assert found.colour(x, y) == (0, 122, 188, 255)
        assert found.colour(0, 0) == (255, 255, 255, 255)


def test_names_and_sizes_are_bounded() -> None:
    many = [block("x" * 255, [k % 5]) for k in range(40)]
    made = ram(*many)
    found = RAMMap(
        made.page_size, 1 << 20, 512, 2, made.blocks, (60000, 1 << 60), made.counts, 0, 0, 0, False
    )
    _, width, height = heatmap_png(found, "kind", "n" * 4000, "m" * 255)
    assert width < 1200
    assert height < 2200


def test_places() -> None:
    b = block("mem", [0] * 8, AddressRange(0, 4 * PAGE, 0), AddressRange(1 << 32, PAGE, 4 * PAGE))
    assert place_text(b, 3 * PAGE) == "0x3000"
    assert place_text(b, 4 * PAGE) == "0x100000000"
    assert place_text(b, 5 * PAGE) == "+0x5000"
