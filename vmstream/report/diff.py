"""What `diff` found, for people."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vmstream.errors import printable
from vmstream.report.hexdump import hexdump
from vmstream.report.render import console, size_text

if TYPE_CHECKING:
    from vmstream.report.models.diff import DiffField, DiffInput, DiffRAM, DiffReport

_FIELDS_AT_A_GLANCE = 40
_PATHS_AT_A_GLANCE = 6
_RUNS_AT_A_GLANCE = 20
_BYTES_SHOWN = 16


def render_diff(report: DiffReport, out: Console | None = None) -> None:
    """Print the account of a comparison."""
    out = out or console()
    for letter, side in (("A", report.a), ("B", report.b)):
        out.print(Text.assemble((f"{letter} {printable(side.input)}", "bold"), f": {_kind(side)}"))
    for fact in report.facts:
        note = "  (how it was sent; no difference)" if fact.transport else ""
        values = (value or "not stated" for value in (fact.a, fact.b))
        _row(out, fact.name, f"{' -> '.join(values)}{note}")
    _devices(out, report)
    if report.ram is not None:
        _ram(out, report.ram)
    verdict = ("the same", "green") if report.same else ("different", "red")
    out.print(Text.assemble(("result       ", "bold"), verdict))


def _kind(side: DiffInput) -> str:
    if side.kind == "stream":
        return f"migration stream, {printable(side.machine or 'machine not stated')}"
    names = {"raw": "guest-physical image", "elf": "ELF core", "lime": "LiME file"}
    return names[side.kind]


def _row(out: Console, name: str, text: str) -> None:
    out.print(Text.assemble((f"{name:<13}", "bold"), printable(text)))


def _devices(out: Console, report: DiffReport) -> None:
    if report.devices_compared is None:
        if (report.a.kind, report.b.kind) != ("stream", "stream"):
            _row(out, "devices", "not compared: an image has memory alone")
        return
    for s in report.sections:
        versions = {"removed": f"v{s.version_a}, only in A", "added": f"v{s.version_b}, only in B"}
        told = versions.get(s.status, f"v{s.version_a} -> v{s.version_b}")
        _row(out, "section", f"{s.path} {told}")
    for live in report.live:
        _row(out, "section", f"{live.path}: its {live.by} differ")
    if report.live_left_out:
        shown = ", ".join(report.live_left_out)
        _row(out, "not compared", f"what is in {shown}")
    for cpu, found in groupby(report.registers, lambda r: r.cpu):
        _row(out, "registers", f"of CPU {cpu}")
        for r in found:
            out.print(Text(f"  {printable(r.name):<12} {_number(r.a)} -> {_number(r.b)}"))
    if report.register_count > len(report.registers):
        out.print(f"  ... {report.register_count - len(report.registers):,} more")
    told = f"{report.field_count:,} fields differ" if report.field_count else "no field differs"
    ignored = f", {report.ignored_count:,} that do are ignored" if report.ignored_count else ""
    _row(out, "devices", f"{told} in {report.devices_compared:,} sections that both have{ignored}")
    fields = [f for f in report.fields if f.group is None]
    if report.registers:  # of which the CPUs' sections would only tell once more
        fields.sort(key=lambda f: f.path.startswith("cpu["))
    for one in fields[:_FIELDS_AT_A_GLANCE]:
        out.print(Text(printable(f"  {one.path}  {_change(one)}")))
    hidden = report.field_count - report.clock_count - min(len(fields), _FIELDS_AT_A_GLANCE)
    if hidden:
        out.print(f"  ... {hidden:,} more; --json lists them")
    if report.clock_count:
        paths = [f.path for f in report.fields if f.group == "clocks"]
        more = ", ..." if len(paths) > _PATHS_AT_A_GLANCE else ""
        shown = ", ".join(paths[:_PATHS_AT_A_GLANCE]) + more
        _row(out, "clocks", f"{report.clock_count:,} of these fields by their names: {shown}")


def _change(found: DiffField) -> str:
    if found.size_a is None or found.size_b is None:
        if found.size_b is None:
            return f"only in A: {size_text(found.size_a or 0)} {_value(found.a)}"
        return f"only in B: {size_text(found.size_b)} {_value(found.b)}"
    words = [
        f"{_value(value)} ({said})" if said else _value(value)
        for value, said in ((found.a, found.meaning_a), (found.b, found.meaning_b))
    ]
    place = f"from byte {found.at} on: " if found.at else ""
    same = found.size_a == found.size_b
    sizes = "" if same else f", {found.size_a} -> {found.size_b} bytes"
    return f"{place}{' -> '.join(words)}{sizes}"


def _value(value: int | bool | str | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _number(value)
    cut = value[: 2 * _BYTES_SHOWN]
    return " ".join(cut[i : i + 2] for i in range(0, len(cut), 2)) + (" ..." * (cut != value))


def _number(value: int | None) -> str:
    return "not there" if value is None else f"{value:#x}"


def _ram(out: Console, ram: DiffRAM) -> None:
    pages = (
        f"{ram.pages:,} pages differ, in {ram.bytes:,} bytes" if ram.pages else "no page differs"
    )
    _row(out, "RAM", f"{pages}; {size_text(ram.compared)} compared, pages of {ram.page_size}")
    for doubt in ram.doubts:
        _row(out, "doubt", doubt)
    for number, block in enumerate(ram.blocks):
        told = [f"{block.pages:,} pages, {block.bytes:,} bytes"] if block.pages else []
        if block.left_out is not None:
            told.append(block.left_out)
            lengths = [x for x in (block.length_a, block.length_b) if x is not None]
            told.append(
                f"{' -> '.join(f'{x:#x}' for x in lengths)} bytes, {block.compared:#x} compared"
            )
        if not told:
            continue
        out.print(Text(printable(f"  {block.idstr}  {'; '.join(told)}")))
        runs = [r for r in ram.runs if r.block == number]
        for r in runs[:_RUNS_AT_A_GLANCE]:
            length = r.pages * ram.page_size
            place = "" if r.gpa is None else f"  gpa {r.gpa:#x}..{r.gpa + length:#x}"
            span = f"{r.block_offset:#x}..{r.block_offset + length:#x}"
            out.print(f"    {span}{place}  pages {r.pages:,}, bytes {r.bytes:,}")
        if len(runs) > _RUNS_AT_A_GLANCE:
            out.print(f"    ... {len(runs) - _RUNS_AT_A_GLANCE:,} more runs; --json lists them")
        for line in _dump(ram, number):
            out.print(Text(line))
    if ram.row_count > len(ram.rows):
        out.print(f"  ... {ram.row_count - len(ram.rows):,} more lines of 16 bytes differ")
    for part in ram.only_in:
        span = f"{part.gpa:#x}..{part.gpa + part.length:#x}"
        out.print(f"  only {part.side.upper()} has memory at {span}")


# By guest-physical address where it is known, else by the offset in the block.
def _dump(ram: DiffRAM, block: int) -> Iterator[str]:
    for row in ram.rows:
        if row.block == block:
            at = row.block_offset if row.gpa is None else row.gpa
            for sign, text in (("-", row.a), ("+", row.b)):
                yield f"    {sign}{next(hexdump(bytes.fromhex(text), at))}"
