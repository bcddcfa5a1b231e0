"""A comparison as text."""

from __future__ import annotations

import io

from vmstream.report.diff import render_diff
from vmstream.report.models.diff import (
    DiffBlock,
    DiffFact,
    DiffField,
    DiffInput,
    DiffLive,
    DiffRAM,
    DiffRange,
    DiffRegister,
    DiffReport,
    DiffRow,
    DiffRun,
    DiffSection,
)
from vmstream.report.render import console


def test_all_that_can_be_told() -> None:
    def field(path: str, group: str | None, a: object, b: object) -> DiffField:
        sizes = tuple(None if x == "none" else 4 for x in (a, b))
        values = (None if x == "none" else x for x in (a, b))
        return DiffField(path, "x", group, *values, None, "on", 0, *sizes, 1, 1)  # type: ignore[arg-type]

    report = DiffReport(
        "s", "t",
        DiffInput("a\x1b", "stream", "pc", 4096, "stream", []),
        DiffInput("b", "stream", None, 4096, "stream", []),
        False,
        [DiffFact("machine", False, "pc", None), DiffFact("capabilities", True, None, "xbzrle")],
        [
            DiffSection("s[0]", "added", None, 2, None, 9),
            DiffSection("v[0]", "version", 1, 2, 9, 9),
        ],
        [DiffRegister(0, "rip", 16, 17)], 1,
        [
            field("cpu[0]/eip", None, 1, 2), field("d/n", None, 1, 2),
            field("d/t", "clocks", 1, 2), field("d/o", None, "none", "00"),
        ],
        4, 1, 2, 5, [DiffLive("dirty-bitmap[0]", "records", "a", "b")], ["block[0]"],
        DiffRAM(
            4096, 8192, 1, 3,
            [
                DiffBlock("mem", 8192, 8192, 8192, 1, 3, None),
                DiffBlock("x", 1, None, 0, 0, 0, "only in A"),
            ],
            [DiffRun(0, 4096, 0x5000, 1, 3)], 1,
            [DiffRow(0, 4096, 0x5000, "61" * 16, "62" * 16)], 2,
            [DiffRange("b", 0x9000, 16)], ["who knows"],
        ),
    )  # fmt: skip
    out = io.StringIO()
    render_diff(report, console(out))
    assert out.getvalue().splitlines() == [
        "A a\\x1b: migration stream, pc",
        "B b: migration stream, machine not stated",
        "machine      pc -> not stated",
        "capabilities not stated -> xbzrle  (how it was sent; no difference)",
        "section      s[0] v2, only in B",
        "section      v[0] v1 -> v2",
        "section      dirty-bitmap[0]: its records differ",
        "not compared what is in block[0]",
        "registers    of CPU 0",
        "  rip          0x10 -> 0x11",
        "devices      4 fields differ in 5 sections that both have, 2 that do are ignored",
        "  d/n  0x1 -> 0x2 (on)",
        "  d/o  only in B: 4 bytes 00",
        "  cpu[0]/eip  0x1 -> 0x2 (on)",
        "clocks       1 of these fields by their names: d/t",
        "RAM          1 pages differ, in 3 bytes; 8 KiB compared, pages of 4096",
        "doubt        who knows",
        "  mem  1 pages, 3 bytes",
        "    0x1000..0x2000  gpa 0x5000..0x6000  pages 1, bytes 3",
        "    -000000005000  " + "61 " * 8 + " " + "61 " * 8 + " |aaaaaaaaaaaaaaaa|",
        "    +000000005000  " + "62 " * 8 + " " + "62 " * 8 + " |bbbbbbbbbbbbbbbb|",
        "  x  only in A; 0x1 bytes, 0x0 compared",
        "  ... 1 more lines of 16 bytes differ",
        "  only B has memory at 0x9000..0x9010",
        "result       different",
    ]
