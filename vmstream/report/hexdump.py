"""Memory as people read it: an address, hex, and ASCII."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmstream.errors import printable

if TYPE_CHECKING:
    from vmstream.report.models.search import HitReport

# Bytes of a line.
WIDTH = 16

_PRINTABLE = bytes(c if 0x20 <= c < 0x7F else ord(".") for c in range(256))
_HALF = WIDTH // 2
_HEX_WIDTH = 3 * WIDTH


def hexdump(data: bytes, address: int) -> Iterator[str]:
    """Yield lines of 16 bytes, the first at `address`.

    Example:
        000000007c00  fa 31 c0 8e d8 8e c0 8e  d0 bc 00 7c fb fc 88 16  |.1.........|....|
    """
    for at in range(0, len(data), WIDTH):
        row = data[at : at + WIDTH]
        shown = f"{row[:_HALF].hex(' ')}  {row[_HALF:].hex(' ')}"
        text = row.translate(_PRINTABLE).decode("ascii")
        yield f"{address + at:012x}  {shown:<{_HEX_WIDTH}}  |{text}|"


def hit_line(hit: HitReport) -> str:
    """One hit of `search` as a line of text: address, block and offset, what is there.

    With the record that it came with, if that is known.
    """
    gpa = "-" * 12 if hit.gpa is None else f"{hit.gpa:012x}"
    text = bytes.fromhex(hit.data).translate(_PRINTABLE).decode("ascii")
    more = "..." if hit.length > len(text) else ""
    record = ""
    if hit.record_offset is not None:
        record = f"  record {hit.record_offset:#x}"
        record += "" if hit.channel is None else f" of {printable(hit.channel)}"
        record += ", superseded" if hit.superseded else ""
    return f"{gpa}  {printable(hit.block)}+{hit.block_offset:#x}  |{text}|{more}{record}"
