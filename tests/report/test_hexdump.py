"""Lines of memory."""

from __future__ import annotations

from vmstream.report.hexdump import hexdump, hit_line
from vmstream.report.models.search import SEARCH_SCHEMA, HitReport


def test_lines() -> None:
    data = b"\xfa\x31\xc0\x8e" + b"Hello, |world|\x7f\x80\n"
    assert list(hexdump(data, 0x7C00)) == [
        "000000007c00  fa 31 c0 8e 48 65 6c 6c  6f 2c 20 7c 77 6f 72 6c  |.1..Hello, |worl|",
        "000000007c10  64 7c 7f 80 0a                                    |d|...|",
    ]
    assert list(hexdump(b"", 5)) == []
    (line,) = hexdump(bytes(9), 1 << 50)
    assert line == "4000000000000  00 00 00 00 00 00 00 00  00                       |.........|"


def test_hits() -> None:
    hit = HitReport(SEARCH_SCHEMA, 0x1234, "pc.ram", 0x34, 4, b"a\x1b[m".hex())
    assert hit_line(hit) == "000000001234  pc.ram+0x34  |a.[m|"
    hit = HitReport(SEARCH_SCHEMA, None, "\x1b[2J", 0, 99, b"abc".hex())
    assert hit_line(hit) == r"------------  \x1b[2J+0x0  |abc|..."
