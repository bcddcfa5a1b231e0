"""Versions of a page as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmstream.errors import printable
from vmstream.report.hexdump import WIDTH, hexdump

if TYPE_CHECKING:
    from vmstream.report.models.history import VersionReport

# Ranges of changed bytes that a line has.
_RANGES = 4


def version_lines(version: VersionReport, before: str | None = None) -> Iterator[str]:
    """Yield a version of a page as text: one line, and with data the rows that changed.

    Args:
        version: The version.
        before: Data of the one before it, as hex.
    """
    if version.number == 1:
        gpa = "" if version.gpa is None else f", guest-physical {version.gpa:#x} (inferred)"
        yield f"page {printable(version.block)}+{version.block_offset:#x}{gpa}"
    told = "withdrawn" if version.kind == "withdrawn" else f"{version.kind} record"
    line = f"{version.number:>4}  pass {version.pass_number}  {told} at {version.record_offset:#x}"
    line += "" if version.channel is None else f" of {printable(version.channel)}"
    line += "" if version.wire_bytes is None else f", {version.wire_bytes} bytes"
    if version.changed is not None:
        line += f"; {version.changed} bytes changed"
        shown = [_range(r.offset, r.length) for r in version.ranges[:_RANGES]]
        more = version.range_count - len(shown)
        line += f" at {', '.join(shown)}" if shown else ""
        line += f" and {more} more ranges" if more else ""
    yield line
    if version.data is not None:
        yield from _rows(
            bytes.fromhex(version.data), None if before is None else bytes.fromhex(before)
        )


def _range(offset: int, length: int) -> str:
    return f"{offset:#x}" if length == 1 else f"{offset:#x}..{offset + length:#x}"


# Rows that are other than before; of a first version all but rows of zeros.
def _rows(data: bytes, before: bytes | None) -> Iterator[str]:
    before = bytes(len(data)) if before is None else before
    for at in range(0, len(data), WIDTH):
        row = data[at : at + WIDTH]
        if row != before[at : at + WIDTH]:
            yield from (f"      {line}" for line in hexdump(row, at))
