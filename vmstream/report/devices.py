"""Device state and CPUs for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vmstream.errors import printable
from vmstream.report.render import console, size_text

if TYPE_CHECKING:
    from vmstream.report.models.cpus import CPUReport, CPUsReport
    from vmstream.report.models.devices import DevicesReport, NodeReport

_BYTES_SHOWN = 32
_NUMBERS_SHOWN = 16
_COLUMNS = 4


def render_devices(report: DevicesReport, out: Console | None = None) -> None:
    """Print nodes, a line each: what is in another one below it, by its short name."""
    out = out or console()
    root = ""
    for node in report.nodes:
        inside = node.path.startswith(f"{root}/") and bool(root)
        root = root if inside else node.path
        depth = node.path.count("/") - root.count("/")
        name = node.path.rpartition("/")[2] if inside else node.path
        line = Text.assemble("  " * depth, (printable(name), "" if inside else "bold"))
        words = "  ".join(_said(node))
        out.print(line + Text(f"  {printable(words)}" if words else ""))


def _said(node: NodeReport) -> Iterable[str]:
    if node.type in ("device", "subsection"):
        yield f"v{node.version}"
        yield f"{size_text(node.size)} at {node.offset:#x}"
    elif node.type == "nullptr":
        yield "NULL"
    elif isinstance(node.value, list):
        yield f"{len(node.value)} numbers:"
        yield _numbers(node.value)
    elif isinstance(node.value, str):
        yield f"{node.type}, {size_text(node.size)}:"
        yield _bytes(node.value)
    elif isinstance(node.value, bool):
        yield "true" if node.value else "false"
    elif node.value is not None:
        yield str(node.value) if node.type.startswith("int") else f"{node.value:#x}"
    if node.meaning:
        yield f"({node.meaning})"


# Numbers that are alike behind each other are told once.
def _numbers(values: Sequence[int]) -> str:
    runs = [(value, sum(1 for _ in same)) for value, same in groupby(values)]
    shown = [f"{v:#x}" + (f" x{n}" if n > 1 else "") for v, n in runs[:_NUMBERS_SHOWN]]
    return " ".join(shown) + (" ..." if len(runs) > _NUMBERS_SHOWN else "")


def _bytes(text: str) -> str:
    if text and not text.strip("0"):
        return "zeros"
    cut = text[: 2 * _BYTES_SHOWN]
    pairs = " ".join(cut[i : i + 2] for i in range(0, len(cut), 2))
    return pairs + (" ..." if len(cut) < len(text) else "")


def render_cpus(report: CPUsReport, out: Console | None = None) -> None:
    """Print the registers of each CPU."""
    out = out or console()
    for cpu in report.cpus:
        _cpu(out, cpu)


def _cpu(out: Console, cpu: CPUReport) -> None:
    halted = {True: ", halted", False: "", None: ""}[cpu.halted]
    head = (f"CPU#{cpu.instance_id}", "bold")
    out.print(Text.assemble(head, f"  {cpu.architecture}, {cpu.mode}{halted}"))
    if cpu.flags:
        out.print(f"  flags  {' '.join(cpu.flags)}")
    for name, registers in cpu.registers.items():
        if name == "segment":
            _segments(out, registers)
            continue
        wide = max(8, *(len(n) for n in registers), 0)
        # Those of a vector are as wide as the widest of them; fewer fit in a line.
        digits = max((v.bit_length() + 63) // 64 * 16 for v in (*registers.values(), 1))
        columns = max(1, _COLUMNS * 16 // digits)
        words = [f"{n:>{wide}} {v:0{digits}x}" for n, v in registers.items()]
        for at in range(0, len(words), columns):
            out.print(Text("  ".join(words[at : at + columns])))


# A line each: selector, base, limit and flags.
def _segments(out: Console, registers: dict[str, int]) -> None:
    for name in dict.fromkeys(n.partition(".")[0] for n in registers):
        selector = f"{registers[name]:04x}" if name in registers else "    "
        flags = registers.get(f"{name}.flags")
        base, limit = registers[f"{name}.base"], registers[f"{name}.limit"]
        tail = f" {flags:08x}" if flags is not None else ""
        out.print(Text(f"{name:>8} {selector} {base:016x} {limit:08x}{tail}"))
