"""What `stats` prints."""

from __future__ import annotations

import io
from dataclasses import replace

from vmstream.report.models.stats import (
    ContentReport,
    DuplicateReport,
    DuplicatesReport,
    StatsReport,
    WhatIfReport,
    WireKindReport,
    WireReport,
)
from vmstream.report.render import console
from vmstream.report.stats import render_stats

PLAIN = WhatIfReport(
    "plain", None, None, None, 10, 5, 40960, 41000, -1000, None, None, None, None, None, None
)
REPORT = StatsReport(
    "vmstream.stats/1", "a\nb", 50000, True, "pc", 4096,
    WireReport(
        15, 40000,
        [WireKindReport("multifd zlib", 10, 30000, 1), WireKindReport("zero", 5, 45, None)],
        2, 9955,
    ),
    [
        ContentReport("m\ne", 20, 15, 6, 1, 2, 3, 3, 4.5),
        ContentReport("rom", 2, 2, 2, 0, 0, 0, 0, None),
    ],
    DuplicatesReport("sha256-64", 9, 7, 3, 8192, 1, [DuplicateReport(3, "m\ne", 4096, "00ff")]),
    [], [], 0,
)  # fmt: skip


def text(report: StatsReport) -> list[str]:
    out = io.StringIO()
    render_stats(report, console(out))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_text() -> None:
    lines = text(REPORT)
    assert lines[0] == r"a\nb: migration stream, 48.83 KiB, complete"
    cells = [" ".join(line.split()) for line in lines]
    assert r"m\ne 20 5 6 1 2 3 3 4.50" in cells
    assert "multifd zlib 10 30,000 75.0% 1" in cells
    assert "zero 5 45 0.1%" in cells
    assert "heads of 2 packets 9,955 24.9%" in cells
    assert "rom 2 0 2 0 0 0 0 -" in cells
    assert any("3 of 9 pages" in line and "would save 8 KiB" in line for line in lines)
    assert r"m\ne+0x1000 3 00ff" in cells
    assert not any("what if" in line for line in lines)


def test_what_if() -> None:
    zstd = replace(
        PLAIN, encoding="zstd", level=3, channels=1, packets=4, wire_bytes=10000,
        saved_bytes=30000, cpu_seconds=0.5,
    )  # fmt: skip
    quick = replace(zstd, encoding="compress", channels=None, cpu_seconds=0.0)
    xbzrle = replace(
        PLAIN, encoding="xbzrle", cache_size=1 << 20, deltas=1, unchanged=2, overflows=3, misses=4
    )
    lines = text(replace(REPORT, what_if=[PLAIN, zstd, quick, xbzrle]))
    cells = [" ".join(line.split()) for line in lines]
    assert "plain 41,000 102.5% -1,000" in cells
    assert "multifd zstd level 3, 1 channel 10,000 25.0% 30,000 0.50 s 0" in cells
    assert "compress level 3 10,000 25.0% 30,000 0.00 s -" in cells
    assert (
        "  xbzrle, cache 1 MiB: 1 pages as differences, 2 not sent as nothing changed, "
        "3 with too much changed, 4 not in the cache"
    ) in lines


def test_many_blocks() -> None:
    blocks = [replace(REPORT.blocks[0], idstr=f"b{i:02}", pages=i) for i in range(20)]
    lines = text(replace(REPORT, blocks=blocks))
    assert "  ... and 8 smaller blocks (--json)" in lines
    shown = [line.split()[0] for line in lines if line.startswith("  b") and "block" not in line]
    assert shown == [f"b{i:02}" for i in range(8, 20)]
