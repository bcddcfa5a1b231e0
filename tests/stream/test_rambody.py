"""RAM sections, and who decides the page size."""

from __future__ import annotations

import pytest

from tests.decoding import decode
from tests.streamwriter import RamBlock, StreamWriter
from vmstream.errors import FormatError, IntegrityError, UnsupportedError
from vmstream.stream.cursor import Cursor
from vmstream.stream.events import PageBatch, RAMBlockList
from vmstream.stream.rambody import RAMReader

PAGE = 4096


def test_the_first_to_decide_wins() -> None:
    reader = RAMReader(Cursor(), None, strict=True)
    assert (reader.page_size, reader.page_size_source) == (None, None)
    reader.assume_page_size()  # nothing was read yet, so there is nothing to assume
    assert reader.page_size is None
    reader.decide_page_size(16384, "target-page-bits")
    reader.decide_page_size(4096, "probe")
    assert (reader.page_size, reader.page_size_source) == (16384, "target-page-bits")


def test_the_caller_decides_before_all() -> None:
    reader = RAMReader(Cursor(), 1024, strict=True)
    reader.decide_page_size(4096, "target-page-bits")
    assert (reader.page_size, reader.page_size_source) == (1024, "argument")


def test_version_3_is_one_flat_space() -> None:
    w = StreamWriter(ram_version=3)
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("", 4 * PAGE)])
    with w.ram_part():
        w.page("", PAGE, b"\x11" * PAGE)
        w.zero("", 0)
    found = decode(bytes(w))
    (listed,) = found.of(RAMBlockList)
    assert [(b.idstr, b.used_length) for b in listed.blocks] == [(b"ram", 4 * PAGE)]
    offsets = [o for batch in found.of(PageBatch) for o in batch.block_offset.tolist()]
    assert offsets == [PAGE, 0]


@pytest.mark.parametrize("version", [0, 2, 5])
def test_other_versions_are_refused(version: int) -> None:
    w = StreamWriter()
    w.header()
    w.start(1, "ram", 0, version)
    w.eos()
    (error, *_) = decode(bytes(w)).errors
    assert isinstance(error, UnsupportedError)
    assert f"version {version}" in str(error)


def test_no_block_list() -> None:
    w = StreamWriter()
    w.header()
    w.start(1, "ram", 0, 4)
    w.eos()
    (error, *_) = decode(bytes(w)).errors
    assert isinstance(error, FormatError)
    assert "MEM_SIZE" in str(error)


def test_a_total_that_the_blocks_do_not_make() -> None:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("mem", 4 * PAGE)], total=5 * PAGE)
    w.padding(400)
    (error, *_) = decode(bytes(w)).errors
    assert isinstance(error, IntegrityError)
