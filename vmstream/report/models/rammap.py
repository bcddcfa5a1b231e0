"""The map of RAM that `heatmap` and `report` draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What the last record of a page was, by its number in a map: the higher of two is drawn where a
# cell has both; but a page that was never sent is told before zeros.
PAGE_KINDS = ("never sent", "zero", "normal", "compressed", "xbzrle")


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Where a stretch of a block stands in guest-physical memory; bytes."""

    gpa: int
    length: int
    block_offset: int


@dataclass(frozen=True, slots=True, eq=False)
class BlockMap:
    """One RAM block, in cells of so many pages each; the last may have fewer.

    Attributes:
        idstr: Name, readable.
        used_length: Bytes.
        pages: Target pages.
        ranges: Where it stands, if that is known; the first few.
        kinds: The most telling kind of the pages of each cell, as PAGE_KINDS, uint8 (cells,).
        times: Records that name the page of a cell that most do, uint32 (cells,).
        last: The latest pass that sent a page of a cell, 0 for none, uint16 (cells,).
        counts: Pages by kind, as PAGE_KINDS.
    """

    idstr: str
    used_length: int
    pages: int
    ranges: list[AddressRange]
    kinds: NDArray[np.uint8]
    times: NDArray[np.uint32]
    last: NDArray[np.uint16]
    counts: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class RAMMap:
    """RAM of a guest as cells in rows, as they are drawn.

    Attributes:
        page_size: Target page size, bytes.
        pages_per_cell: A power of two.
        columns: Cells in a row.
        cell: Width and height of a cell, pixels.
        blocks: The largest first, MAX_BLOCKS of them.
        left_out: Number of blocks that are not among them, and their bytes.
        counts: Pages of all blocks by kind, as PAGE_KINDS.
        pass_count: Passes that are told apart.
        most_times: Records that name the page that most do.
        resent: Pages that more than one record names.
        mapped: Pages stand in mapped-ram areas, which have one version of each.
    """

    page_size: int
    pages_per_cell: int
    columns: int
    cell: int
    blocks: list[BlockMap]
    left_out: tuple[int, int]
    counts: list[int]
    pass_count: int
    most_times: int
    resent: int
    mapped: bool
