"""JSON contract of `vmstream diagnose`."""

from __future__ import annotations

from dataclasses import dataclass

DIAGNOSE_SCHEMA = "vmstream.diagnose/1"


@dataclass(frozen=True, slots=True)
class CauseReport:
    """A message of QEMU, and its cause in the stream.

    Attributes:
        line: Number of the line in the log, from 1.
        text: The line.
        code: Stable.
        offset: In the stream, bytes, of what QEMU speaks of; `None` if no place is known.
        section: Section, with its instance in brackets; `None` if it is of none.
        field: Name of the field, if it is told.
        cause: What it means here.
        advice: What to do.
    """

    line: int
    text: str
    code: str
    offset: int | None
    section: str | None
    field: str | None
    cause: str
    advice: str


@dataclass(frozen=True, slots=True)
class DiagnoseReport:
    """Document of `vmstream diagnose --json`.

    Attributes:
        schema: 'vmstream.diagnose/1'.
        input: Path, or 'standard input'.
        causes: The messages that are known, in the order of the log; the first 1000.
    """

    schema: str
    input: str
    causes: list[CauseReport]
