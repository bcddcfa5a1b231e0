"""JSON contract of `vmstream cmdline`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

CMDLINE_SCHEMA = "vmstream.cmdline/1"


@dataclass(frozen=True, slots=True)
class ArgumentReport:
    """An option of a command line.

    Attributes:
        words: The option, and its value if it takes one.
        source: 'wire' if the stream states it, 'inferred' if it follows from names and state.
        reason: What tells it.
    """

    words: list[str]
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class CmdlineReport:
    """Document of `vmstream cmdline --json`.

    Attributes:
        schema: 'vmstream.cmdline/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        emulator: Name of the program; inferred.
        arguments: In order.
        not_stated: What the stream cannot tell, a sentence each.
        unknown: Names of the sections that stand for no device that is known.
        notes: Where more is to be found, a sentence each.
        anomalies: As in the inspect report.
    """

    schema: str
    input: str
    machine: str | None
    emulator: str
    arguments: list[ArgumentReport]
    not_stated: list[str]
    unknown: list[str]
    notes: list[str]
    anomalies: list[AnomalyReport]
