"""What `stats` measured, for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vmstream.errors import printable
from vmstream.report.render import _add, _row, _table, console, render_findings, size_text

if TYPE_CHECKING:
    from vmstream.report.models.stats import ContentReport, StatsReport, WhatIfReport

# Blocks that have a row; of more the largest.
_BLOCKS_AT_A_GLANCE = 12


def render_stats(report: StatsReport, out: Console | None = None) -> None:
    """Print what pages were sent as, what they have, and what they would have come to."""
    out = out or console()
    state = ("complete", "green") if report.complete else ("not complete", "red")
    what = f": migration stream, {size_text(report.size)}, "
    out.print(Text.assemble((printable(report.input), "bold"), what, state))
    _wire(out, report)
    _content(out, report.blocks)
    _duplicates(out, report)
    if report.what_if:
        _what_if(out, report)
    render_findings(report.anomalies, console(sys.stderr))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _wire(out: Console, report: StatsReport) -> None:
    wire = report.wire
    size = report.page_size or "?"
    _row(out, "sent", f"{wire.pages:,} pages of {size} bytes in {size_text(wire.wire_bytes)}")
    table = _table("  as", ">pages", ">on the wire", ">share", ">zeros among them")
    for kind in wire.kinds:
        zeros = "" if kind.zeros is None else f"{kind.zeros:,}"
        share = _share(kind.wire_bytes, wire.wire_bytes)
        _add(table, f"  {kind.kind}", f"{kind.pages:,}", f"{kind.wire_bytes:,}", share, zeros)
    if wire.packets:
        share = _share(wire.packet_bytes, wire.wire_bytes)
        _add(table, f"  heads of {wire.packets:,} packets", "", f"{wire.packet_bytes:,}", share, "")
    out.print(table)


def _content(out: Console, blocks: list[ContentReport]) -> None:
    _row(
        out,
        "in the end",
        "what the last version of each page has; classes by the entropy of its bytes",
    )
    table = _table(
        "  block", ">pages", ">not sent", ">zero", ">fill", ">low <4", ">medium", ">high >=7.5",
        ">bits/byte",
    )  # fmt: skip
    shown = sorted(blocks, key=lambda b: -b.pages)[:_BLOCKS_AT_A_GLANCE]
    for b in blocks:
        if b in shown:
            bits = "-" if b.entropy is None else f"{b.entropy:.2f}"
            numbers = (b.pages, b.pages - b.sent, b.zero, b.fill, b.low, b.medium, b.high)
            _add(table, f"  {printable(b.idstr)}", *(f"{n:,}" for n in numbers), bits)
    out.print(table)
    if len(blocks) > len(shown):
        out.print(f"  ... and {len(blocks) - len(shown)} smaller blocks (--json)")


def _duplicates(out: Console, report: StatsReport) -> None:
    found = report.duplicates
    _row(
        out,
        "alike",
        f"{found.alike:,} of {found.pages:,} pages that are not zeros equal another one, told by "
        f"64 bits of SHA-256; one copy of each would save {size_text(found.saved_bytes)}",
    )
    if found.groups:
        table = _table("  first of them", ">pages", "begins with")
        for group in found.groups:
            where = f"  {printable(group.block)}+{group.block_offset:#x}"
            _add(table, where, f"{group.pages:,}", group.head)
        out.print(table)


def _what_if(out: Console, report: StatsReport) -> None:
    _row(
        out,
        "what if",
        "estimates: each version of the pages that were sent, encoded anew here; passes and "
        "packets inferred",
    )
    sent = report.wire.wire_bytes
    table = _table(
        "  encoding", ">on the wire", ">of what was sent", ">saved", ">CPU here", ">MB/s of a CPU"
    )
    _add(table, "  as it was sent", f"{sent:,}", "100.0%", "", "", "")
    for item in report.what_if:
        share = _share(item.wire_bytes, sent)
        cpu = rate = ""
        if item.cpu_seconds is not None:
            cpu = f"{item.cpu_seconds:.2f} s"
            rate = f"{item.page_bytes / item.cpu_seconds / 1e6:,.0f}" if item.cpu_seconds else "-"
        saved = f"{item.saved_bytes:,}"
        _add(table, f"  {_name(item)}", f"{item.wire_bytes:,}", share, saved, cpu, rate)
    out.print(table)
    for item in report.what_if:
        if item.encoding == "xbzrle":
            out.print(
                f"  {_name(item)}: {item.deltas:,} pages as differences, {item.unchanged:,} not "
                f"sent as nothing changed, {item.overflows:,} with too much changed, "
                f"{item.misses:,} not in the cache"
            )


def _name(item: WhatIfReport) -> str:
    if item.encoding == "xbzrle":
        return f"xbzrle, cache {size_text(item.cache_size or 0)}"
    if item.channels is not None:
        plural = "s" if item.channels != 1 else ""
        return f"multifd {item.encoding} level {item.level}, {item.channels} channel{plural}"
    return item.encoding if item.level is None else f"{item.encoding} level {item.level}"
