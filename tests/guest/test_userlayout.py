"""The map that a user states: what is taken, and what is wrong with what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmstream.errors import EXIT_USAGE, OutputError
from vmstream.guest.physical import Evidence, PhysicalMap, Region
from vmstream.guest.userlayout import MOST_ENTRIES, Entry, parse_layout, user_map
from vmstream.stream.events import RAMBlock

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30
BLOCKS = (
    RAMBlock(b"n0", GIB),
    RAMBlock(b"n1", GIB),
    RAMBlock(b"dimm", 16 * MIB),
    RAMBlock(b"0000:00:02.0/vga.vram", 16 * MIB),
    RAMBlock(b"odd\xff", 3 * PAGE + 100),
)


def entry(gpa: Any, length: Any, block: Any = "n0", block_offset: Any = 0) -> dict[str, Any]:
    return {"gpa": gpa, "length": length, "block": block, "block_offset": block_offset}


def parsed(*entries: object) -> tuple[Entry, ...]:
    return parse_layout(json.dumps(entries).encode(), "lay.json")


def mapped(*entries: object, page_size: int = PAGE) -> PhysicalMap:
    evidence = Evidence(b"pc-q35-9.0", BLOCKS)
    return user_map(parsed(*entries), "lay.json", evidence, page_size)


def test_numbers() -> None:
    """JSON has no hexadecimal numbers."""
    assert parsed(entry("0x1000", "8192"), {"gpa": 0, "length": 4096, "block": "n1"}) == (
        Entry(4096, 8192, "n0", 0),
        Entry(0, 4096, "n1", 0),
    )


def test_map() -> None:
    """Any order, any blocks, and a stretch of one at two addresses."""
    found = mapped(
        entry(4 * GIB, GIB // 2, "n0", GIB // 2),
        entry(0, GIB // 2),
        entry(GIB, 16 * MIB, "0000:00:02.0/vga.vram"),
        entry(GIB // 2, GIB // 2, "n0"),
        entry(2 * GIB, 3 * PAGE + 100, r"odd\xff"),
    )
    assert found.regions == (
        Region(0, GIB // 2, 0, 0),
        Region(GIB // 2, GIB // 2, 0, 0),
        Region(GIB, 16 * MIB, 3, 0),
        Region(2 * GIB, 3 * PAGE + 100, 4, 0),
        Region(4 * GIB, GIB // 2, 0, GIB // 2),
    )
    assert {r.source for r in found.regions} == {"user"}
    assert (found.decided_by, found.below_4g, found.family) == ("user", None, "q35")
    assert found.reasons[0] == "regions as lay.json states them: 5"
    # What could be RAM and is left out is said; a device's memory is not.
    assert found.reasons[1:] == (
        "block 'n1' (0x40000000 bytes) is not among them",
        "block 'dimm' (0x1000000 bytes) is not among them",
    )
    assert not found.doubts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\xff", "no JSON"),
        (b"{}", "has to be a list"),
        (b"[]", "has to be a list"),
        (b"7", "has to be a list"),
        (b"[1]", "entry 0: is no object"),
        (json.dumps([entry(0, PAGE), {"length": 1}]).encode(), "entry 1: has no 'gpa'"),
        (b'[{"gpa":0,"block":"n0"}]', "entry 0: has no 'length'"),
        (b'[{"gpa":0,"length":1}]', "entry 0: has no 'block'"),
        (b'[{"gpa":0,"length":1,"block":"n0","idstr":"x"}]', "entry 0: unknown field 'idstr'"),
        (json.dumps([entry(0, 1)] * (MOST_ENTRIES + 1)).encode(), "4097 entries, 4096 at the most"),
    ],
)  # fmt: skip
def test_files_that_are_no_layout(text: bytes, message: str) -> None:
    with pytest.raises(OutputError) as caught:
        parse_layout(text, "lay.json")
    assert str(caught.value).startswith("lay.json: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry(-1, PAGE), "gpa -1 is no number of bytes"),
        (entry(0, 1.5), "length 1.5 is no number of bytes"),
        (entry(0, True), "length True is no number"),
        (entry(0, None), "length None is no number"),
        (entry(0, "0x"), "length '0x' is no number"),
        (entry(0, "1k"), "length '1k' is no number"),
        (entry(0, "-4096"), "length '-4096' is no number"),
        (entry(0, 0), "length is 0"),
        (entry(0, PAGE, 7), "block 7 is no name"),
        (entry(0, PAGE, "n0", []), r"block_offset \[\] is no number"),
        (entry((1 << 63) - PAGE, 2 * PAGE), "ends beyond 2"),
        (entry(0, PAGE, "n2"), r"no block 'n2'; the stream has: n0, n1, dimm, .*odd\\xff"),
        (entry(0, GIB + PAGE), "ends at 0x40001000 of block 'n0', which has 0x40000000 bytes"),
        (entry(0, PAGE, "n0", GIB), "ends at 0x40001000 of block 'n0'"),
        (entry(1, PAGE), "gpa 0x1 is no multiple of the page size, 4096"),
        (entry(0, PAGE, "n0", 100), "block_offset 0x64 is no multiple"),
        (entry(0, 100), "length 0x64 is no multiple"),
        (entry(0, 2 * PAGE + 100, r"odd\xff"), "length 0x2064 is no multiple"),
        (entry(3 * GIB + PAGE, PAGE), "0xc0001000..0xc0002000 overlaps 0xc0000000..0xc0100000"),
    ],
)
def test_entries_that_are_wrong(wrong: dict[str, Any], message: str) -> None:
    """The entry is named, whatever stands around it."""
    with pytest.raises(OutputError, match=message) as caught:
        mapped(entry(3 * GIB, MIB, "n1"), wrong, entry(5 * GIB, MIB, "n1", MIB))
    assert "entry 1" in str(caught.value)
    assert "entry 2" not in str(caught.value)


def test_an_overlap_names_both() -> None:
    with pytest.raises(OutputError, match=r"lay.json: entry 0: .* of entry 2"):
        mapped(entry(MIB, MIB), entry(8 * MIB, MIB, "n1"), entry(0, MIB + PAGE, "n1"))


def test_the_page_size_is_that_of_the_target() -> None:
    listed = (entry(1024, 1024), entry(GIB, 4096, "n0", 4096))
    assert len(mapped(*listed, page_size=1024).regions) == 2
    with pytest.raises(OutputError, match="entry 0: gpa 0x400 is no multiple"):
        mapped(*listed)
