"""The map of RAM as a PNG picture, without a library for either."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import printable
from vmstream.report.font import HEIGHT, WIDTH, text_pixels
from vmstream.report.models.rammap import PAGE_KINDS, BlockMap, RAMMap

# What a picture can show of each page.
VIEWS = ("kind", "times", "pass")

# Red, green, blue and, in a page of HTML, opacity: what is usual lets the page shine through, so
# that it is quiet on white and on black. The hues are those of Okabe and Ito, which people who
# see few colours can tell apart, too.
Colour = tuple[int, int, int, int]
_KIND_COLOURS: tuple[Colour, ...] = (
    (204, 121, 167, 255), (128, 144, 164, 64), (0, 122, 188, 255), (0, 158, 115, 255),
    (230, 159, 0, 255),
)  # fmt: skip
_NEVER, _ONCE = _KIND_COLOURS[0], (128, 144, 164, 64)
# From few to many: ColorBrewer's YlOrRd.
_TIMES_COLOURS: tuple[Colour, ...] = (
    _NEVER, _ONCE, (254, 217, 118, 255), (254, 178, 76, 255), (253, 141, 60, 255),
    (252, 78, 42, 255), (227, 26, 28, 255), (177, 0, 38, 255),
)  # fmt: skip
_TIMES_LABELS = (
    "never sent", "once", "twice", "3-4 times", "5-8 times", "9-16 times", "17-32 times",
    "33 times or more",
)  # fmt: skip
# From the second to the last: viridis, without its darkest.
_PASS_COLOURS: tuple[Colour, ...] = (
    (70, 51, 127, 255), (54, 92, 141, 255), (39, 127, 142, 255),
    (31, 161, 135, 255), (74, 194, 109, 255), (160, 218, 57, 255), (253, 231, 37, 255),
)  # fmt: skip

_MARGIN, _GUTTER, _GAP = 24, 78, 18
_LINE = HEIGHT + 5
# A block of less than a row is a bar as long as it is, and as high as this.
BAR = 10
_SWATCH = 10
_MOST_NAME = 60

_Pixels = NDArray[np.uint8]
_BACK, _TEXT, _MUTED, _EDGE, _FIRST = range(5)
_INK: tuple[Colour, ...] = (
    (255, 255, 255, 255), (27, 31, 36, 255), (95, 104, 117, 255), (196, 203, 212, 255),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """What a picture tells of each cell: which of some classes it is in.

    Attributes:
        name: One of VIEWS.
        title: What the classes are of.
        labels: Of each class.
        colours: Of each class.
        used: Classes that a cell of the map is in.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    colours: tuple[Colour, ...]
    used: tuple[int, ...] = field(default=())


def view_of(ram: RAMMap, name: str) -> View:
    """Return a view of a map."""
    labels: tuple[str, ...]
    colours: tuple[Colour, ...]
    if name == "kind":
        title, labels, colours = "the last record of each page", PAGE_KINDS, _KIND_COLOURS
    elif name == "times":
        title, labels = "how often each page was sent", _TIMES_LABELS
        colours = _TIMES_COLOURS
    else:
        title, count = "the last pass that sent each page", max(1, ram.pass_count)
        steps = min(count, 1 + len(_PASS_COLOURS))
        begins = [-(-i * count // steps) + 1 for i in range(steps + 1)]
        labels = ("never sent", *(_span(a, b - 1) for a, b in pairwise(begins)))
        at = np.linspace(0, len(_PASS_COLOURS) - 1, steps - 1).round().astype(int)
        colours = (_NEVER, _ONCE, *(_PASS_COLOURS[i] for i in at.tolist()))
    view = View(name, title, labels, colours)
    counts = np.zeros(len(labels), np.int64)
    for block in ram.blocks:
        counts += np.bincount(classes(ram, view, block), minlength=len(labels))
    return View(name, title, view.labels, view.colours, tuple(np.flatnonzero(counts).tolist()))


def _span(first: int, last: int) -> str:
    return f"pass {first}" if first == last else f"passes {first}-{last}"


def classes(ram: RAMMap, view: View, block: BlockMap) -> _Pixels:
    """Return the class of each cell of a block, uint8 (cells,)."""
    if view.name == "kind":
        return block.kinds
    if view.name == "times":
        times = block.times.astype(np.float64)
        doubled = 1 + np.ceil(np.log2(np.maximum(times, 1)))
        found = np.where(times > 0, np.minimum(doubled, len(view.labels) - 1), 0)
        return found.astype(np.uint8)
    count, steps = max(1, ram.pass_count), len(view.labels) - 1
    last = block.last.astype(np.int64)
    return np.where(last > 0, 1 + (last - 1) * steps // count, 0).astype(np.uint8)


def block_png(ram: RAMMap, view: View, block: BlockMap) -> tuple[bytes, int, int]:
    """Return a picture of a block with a pixel a cell, and its columns and rows.

    What of the last row is behind the block can be seen through.
    """
    outside = len(view.labels)
    pixels = _rows(ram, classes(ram, view, block), outside)
    rows, columns = pixels.shape
    return png(pixels, (*view.colours, (0, 0, 0, 0))), columns, rows


def heatmap_png(ram: RAMMap, by: str, name: str, machine: str | None) -> tuple[bytes, int, int]:
    """Draw a map with its legend, and the names and addresses of the blocks.

    Args:
        ram: The map.
        by: One of VIEWS.
        name: Of the stream.
        machine: Machine type.

    Returns:
        The PNG, its width and its height, in pixels.
    """
    view = view_of(ram, by)
    sheet = _Sheet(2 * _MARGIN + _GUTTER + ram.columns * ram.cell)
    left = _MARGIN + _GUTTER
    room = ram.columns * ram.cell // WIDTH
    of = f", {printable(machine)}" if machine else ""
    words = f"{_cut(printable(name), 64)}{of}"
    sheet.text(left, _MARGIN, words, bold=True)
    size = ram.page_size * ram.pages_per_cell
    pages = "a page" if ram.pages_per_cell == 1 else f"{ram.pages_per_cell:,} pages"
    told = f"by {view.title}; a cell is {pages}, {size_text(size)}"
    told += f", a row {size_text(size * ram.columns)}"
    sheet.text(left, _MARGIN + _LINE, told[:room], _MUTED)
    top = sheet.legend(left, _MARGIN + 2 * _LINE + 8, ram, view) + _LINE + 10
    edge = left
    for block in ram.blocks:
        cells = classes(ram, view, block)
        small = len(cells) <= ram.columns
        label = _label(block)[:room]
        wide = max(len(label) * WIDTH, min(len(cells), ram.columns) * ram.cell)
        # Blocks of less than a row stand beside each other.
        if edge > left and edge + wide > left + ram.columns * ram.cell:
            edge, top = left, top + _LINE + BAR + _GAP
        sheet.text(edge, top, label, _TEXT)
        sheet.cells(edge, top + _LINE, _rows(ram, cells, -1), ram.cell, BAR if small else ram.cell)
        if small:
            edge += wide + 2 * _GAP
            continue
        sheet.scale(left, top + _LINE, block, ram, -(-len(cells) // ram.columns))
        top += _LINE + -(-len(cells) // ram.columns) * ram.cell + _GAP
    if edge > left:
        top += _LINE + BAR + _GAP
    if ram.left_out[0]:
        count, total = ram.left_out
        sheet.text(left, top, f"and {count:,} blocks of {size_text(total)} in all", _MUTED)
    return sheet.png(view.colours)


# Cells in rows; what is behind the last is `outside`, or background where that is -1.
def _rows(ram: RAMMap, cells: _Pixels, outside: int) -> _Pixels:
    columns = max(1, min(ram.columns, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    shift = _FIRST if outside < 0 else 0
    pixels = np.full(rows * columns, _BACK if outside < 0 else outside, np.uint8)
    pixels[: len(cells)] = cells + np.uint8(shift)
    return pixels.reshape(rows, columns)


def _label(block: BlockMap) -> str:
    words = [_cut(printable(block.idstr), _MOST_NAME), size_text(block.used_length)]
    words += [f"{r.gpa:#x}..{r.gpa + r.length:#x}" for r in block.ranges[:2]]
    return "  ".join(words) + ("  ..." if len(block.ranges) > 2 else "")


def place_text(block: BlockMap, offset: int) -> str:
    """Return the guest-physical address of a place in a block, or its offset with a plus sign."""
    for r in block.ranges:
        if r.block_offset <= offset < r.block_offset + r.length:
            return f"{r.gpa + offset - r.block_offset:#x}"
    return f"+{offset:#x}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def size_text(size: int) -> str:
    """Bytes in the unit that reads best."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size:,} bytes" if unit == "bytes" else f"{value:.4g} {unit}"


class _Sheet:
    """A picture that grows downwards."""

    def __init__(self, width: int) -> None:
        self._pixels = np.full((0, width), _BACK, np.uint8)

    # Room down to a line.
    def _grow(self, bottom: int) -> None:
        height, width = self._pixels.shape
        if bottom > height:
            more = np.full((bottom - height, width), _BACK, np.uint8)
            self._pixels = np.concatenate((self._pixels, more))

    def text(self, x: int, y: int, words: str, ink: int = _TEXT, *, bold: bool = False) -> None:
        self._grow(y + HEIGHT)
        shown = text_pixels(words)[:, : self._pixels.shape[1] - x - 1]
        for shift in (0, 1) if bold else (0,):
            self._pixels[y : y + HEIGHT, x + shift : x + shift + shown.shape[1]][shown] = ink

    def box(self, x: int, y: int, width: int, height: int, ink: int) -> None:
        self._grow(y + height)
        self._pixels[y : y + height, x : x + width] = ink

    # The classes that there are, in a line; where it ends.
    def legend(self, x: int, y: int, ram: RAMMap, view: View) -> int:
        for index in view.used:
            words = view.labels[index]
            if view.name == "kind":
                words += f" {ram.counts[index]:,}"
            self.box(x - 1, y, _SWATCH + 2, _SWATCH + 2, _EDGE)
            self.box(x, y + 1, _SWATCH, _SWATCH, _FIRST + index)
            self.text(x + _SWATCH + 6, y, words, _TEXT)
            x += _SWATCH + 6 + (len(words) + 3) * WIDTH
        return y

    def cells(self, x: int, y: int, pixels: _Pixels, wide: int, high: int) -> None:
        drawn = np.repeat(np.repeat(pixels, high, axis=0), wide, axis=1)
        height, width = drawn.shape
        self._grow(y + height)
        self._pixels[y : y + height, x : x + width] = drawn

    # Addresses of rows beside them, or offsets in the block where there is none.
    def scale(self, left: int, y: int, block: BlockMap, ram: RAMMap, rows: int) -> None:
        step = 1
        while step * ram.cell < 3 * HEIGHT:
            step *= 2
        for row in range(0, rows, step):
            offset = row * ram.columns * ram.pages_per_cell * ram.page_size
            words = place_text(block, offset)
            at = left - 10 - len(words) * WIDTH
            self.text(max(0, at), y + row * ram.cell - HEIGHT // 2 + 1, words, _MUTED)
            self.box(left - 7, y + row * ram.cell, 4, 1, _EDGE)

    def png(self, colours: Sequence[Colour]) -> tuple[bytes, int, int]:
        self._grow(self._pixels.shape[0] + _MARGIN)
        height, width = self._pixels.shape
        solid = [_on_white(c) for c in (*_INK, *colours)]
        return png(self._pixels, solid), width, height


def _on_white(colour: Colour) -> Colour:
    share = colour[3] / 255
    red, green, blue = (round(c * share + 255 * (1 - share)) for c in colour[:3])
    return red, green, blue, 255


def png(pixels: _Pixels, palette: Sequence[Colour]) -> bytes:
    """Encode a picture.

    Args:
        pixels: Places in the palette, uint8 (height, width).
        palette: 16 colours at the most.

    Wire:
        Four bits a pixel, no filter. PNG (Third Edition), 11.2.2 and 11.3.1.1.
    """
    height, width = pixels.shape
    even = np.zeros((height, 1 + (width + 1) // 2), np.uint8)
    even[:, 1:] = pixels[:, ::2] << 4
    even[:, 1 : 1 + width // 2] |= pixels[:, 1::2]
    head = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    parts = [(b"IHDR", head), (b"PLTE", bytes(c for colour in palette for c in colour[:3]))]
    if any(colour[3] < 255 for colour in palette):
        parts.append((b"tRNS", bytes(colour[3] for colour in palette)))
    parts += [(b"IDAT", zlib.compress(even.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
