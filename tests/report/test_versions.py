"""Versions of a page as text."""

from __future__ import annotations

from dataclasses import replace

from vmstream.report.models.history import ByteRange, VersionReport
from vmstream.report.versions import version_lines

FIRST = VersionReport(
    "vmstream.version/1", 1, "a\nb", 0x1000, 0x2000, "normal", 0x30, None, 1, "inferred", 4104,
    None, [], 0, (b"\1" + bytes(31)).hex(),
)  # fmt: skip


def test_lines() -> None:
    head, line, row = version_lines(FIRST)
    assert head == "page a\\nb+0x1000, guest-physical 0x2000 (inferred)"
    assert line == "   1  pass 1  normal record at 0x30, 4104 bytes"
    assert row.startswith("      000000000000  01 00 ")
    ranges = [ByteRange(16, 1), ByteRange(20, 2)]
    second = replace(
        FIRST, number=2, kind="zero", channel="c", wire_bytes=None, changed=3, ranges=ranges,
        range_count=9, data=bytes(32).hex(),
    )  # fmt: skip
    line, row = version_lines(second, FIRST.data)
    assert line == (
        "   2  pass 1  zero record at 0x30 of c; 3 bytes changed at 0x10, 0x14..0x16 "
        "and 7 more ranges"
    )
    assert row.startswith("      000000000000  00 00 ")
    (line,) = version_lines(replace(second, kind="withdrawn", data=None, changed=None))
    assert line == "   2  pass 1  withdrawn at 0x30 of c"
