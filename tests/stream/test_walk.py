"""Columns and runs of the same records say the same; few long runs are held as runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.strategies import examples
from vmstream.stream.events import PageBatch, PageColumns, RAMBlock
from vmstream.stream.scanner import RAMState, scan_records
from vmstream.stream.walk import FEW_RUNS, gather

PAGE = 1024
BLOCKS = (RAMBlock(b"a", PAGE << 20), RAMBlock(b"b", PAGE << 20))

# Kind, first page, pages, and the step from page to page.
Stretch = tuple[str, int, int, int]


def wire(stretches: list[Stretch]) -> bytes:
    """Records without names, behind one of block 'a' that has its name."""
    data = [sw.be64(0x02) + b"\1a\0"]
    for kind, first, count, step in stretches:
        for page in range(first, first + count * step, step):
            head = page * PAGE
            data.append(
                sw.be64(head | 0x28) + bytes(PAGE)
                if kind == "page"
                else sw.be64(head | 0x22) + b"\0"
            )
    return b"".join(data)


def scan(data: bytes) -> PageBatch:
    batch, pos, _ = scan_records(RAMState(BLOCKS, PAGE), memoryview(data), 0, 0)
    assert batch is not None
    assert pos == len(data)
    return batch


@pytest.mark.parametrize("kind", ["page", "zero"])
@pytest.mark.parametrize("count", [FEW_RUNS, 2 * FEW_RUNS, 2 * FEW_RUNS + 1, 3000])
def test_few_long_runs(kind: str, count: int) -> None:
    """The named record is a run of its own, so two of them are few from 512 records on."""
    batch = scan(wire([(kind, 1, count - 1, 1)]))
    assert isinstance(batch.pages, tuple) == (count >= 2 * FEW_RUNS)
    assert [r.pages for r in batch.runs()] == [1, count - 1]


@pytest.mark.parametrize("step", [2, 3])
def test_a_long_stretch_of_pages_that_are_no_neighbours(step: int) -> None:
    batch = scan(wire([("zero", 1, 2000, step)]))
    assert isinstance(batch.pages, PageColumns)
    assert len(batch.runs()) == 2001


def test_beyond_the_block_is_left_to_the_columns() -> None:
    """The rule is applied in one place."""
    state = RAMState((RAMBlock(b"a", 1000 * PAGE),), PAGE)
    batch, pos, needed = scan_records(state, memoryview(wire([("zero", 1, 3000, 1)])), 0, 0)
    assert batch is not None
    assert isinstance(batch.pages, PageColumns)
    assert len(batch) == 1000
    assert (pos, needed) == (batch.end, 0)


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("page", "zero")),
            st.integers(0, 5000),
            st.sampled_from((1, 2, 63, 64, 65, 200, 600, 1100)),
            st.sampled_from((1, 1, 1, 1, 2)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_both_forms(stretches: list[Stretch]) -> None:
    data = wire(stretches)
    batch = scan(data)
    pages = [0] + [p for _, f, n, s in stretches for p in range(f, f + n * s, s)]
    assert (batch.block_offset // PAGE).tolist() == pages
    size = [11] + [9 if k == "zero" else 8 + PAGE for k, _, n, _ in stretches for _ in range(n)]
    assert batch.size.tolist() == size
    assert batch.record_offset.tolist() == [0, *np.cumsum(size[:-1]).tolist()]
    as_columns = PageBatch(
        0, batch.end, batch.columns, BLOCKS, PAGE, batch.window, batch.window_offset
    )
    assert as_columns.runs() == batch.runs()
    assert as_columns.fills().tolist() == batch.fills().tolist()


def test_gather() -> None:
    data = memoryview(b"".join(b"x" + sw.be64(i << 40) + b"yz" for i in range(5)))
    assert gather(data, 1, 5, 11).tolist() == [i << 40 for i in range(5)]
    assert gather(data, 12, 1, 11).tolist() == [1 << 40]
