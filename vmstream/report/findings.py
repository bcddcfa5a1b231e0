"""What `verify`, `check` and `diagnose` found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from vmstream.errors import printable
from vmstream.report.render import console, size_text

if TYPE_CHECKING:
    from vmstream.report.models.check import CheckReport
    from vmstream.report.models.diagnose import DiagnoseReport
    from vmstream.report.models.verify import VerifyReport

_COLOURS = {
    "sound": "green",
    "loads": "green",
    "doubtful": "yellow",
    "warning": "yellow",
    "doubt": "yellow",
    "info": "",
}


def _style(word: str) -> str:
    return f"bold {_COLOURS.get(word, 'red')}".strip()


def _lines(out: Console, **said: str) -> None:
    for name, text in said.items():
        for line in text.splitlines():
            out.print(f"    {name:<8} {printable(line)}")


def render_verify(report: VerifyReport, out: Console | None = None) -> None:
    """Print a verify report: the verdict, then a paragraph for each finding."""
    out = out or console()
    out.print(f"{printable(report.input)}: {report.verdict}", style=_style(report.verdict))
    out.print(
        f"{size_text(report.size)}, {report.sections} sections, {report.pages:,} page records, "
        f"each decoded; machine {printable(report.machine or 'not stated')}"
    )
    for file in report.manifest:
        state = "same" if file.same else "differs" if file.found else "not compared"
        out.print(f"manifest     {printable(file.path)}: {state}")
    if not report.findings:
        out.print("findings     none")
    for finding in report.findings:
        out.print(
            f"{finding.severity}: {printable(finding.message)}", style=_style(finding.severity)
        )
        where = {"in": finding.channel} if finding.channel else {}
        _lines(out, **where, code=finding.code, means=finding.meaning, do=finding.advice)
    if (left := report.finding_count - len(report.findings)) > 0:
        out.print(f"... and {left:,} more")


def render_check(report: CheckReport, out: Console | None = None) -> None:
    """Print a check report: the verdict, then a paragraph for each finding."""
    out = out or console()
    words = {"loads": "would load", "doubtful": "doubtful", "refused": "would not load"}
    verdict = words[report.verdict]
    out.print(f"{printable(report.input)}: {verdict}", style=_style(report.verdict))
    machines = (report.machine, report.destination_machine)
    mine, its = (printable(m or "not stated") for m in machines)
    out.print(f"machine {mine}; destination {its}, by {printable(report.against)}")
    if not report.findings:
        out.print("findings     none")
    for finding in report.findings:
        place = f"offset {finding.offset:#x}: {printable(finding.message)}"
        out.print(f"{finding.effect}: {place}", style=_style(finding.effect))
        _lines(out, source=finding.source, qemu="\n".join(finding.qemu), do=finding.advice)
    for text in report.not_checked:
        out.print(f"not checked: {printable(text)}")


def render_diagnose(report: DiagnoseReport, out: Console | None = None) -> None:
    """Print a diagnose report: a paragraph for each message that is known."""
    out = out or console()
    for cause in report.causes:
        out.print(f"line {cause.line}: {printable(cause.text)}", style="bold")
        where = [f"offset {cause.offset:#x}"] if cause.offset is not None else []
        where += [w for w in (cause.section, cause.field) if w]
        place = {"at": ", ".join(where)} if where else {}
        _lines(out, **place, cause=cause.cause, do=cause.advice)
    if not report.causes:
        out.print("no message of a migration that is known")
