"""JSON contract of `vmstream check`."""

from __future__ import annotations

from dataclasses import dataclass

CHECK_SCHEMA = "vmstream.check/1"


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """What speaks against loading a stream.

    Attributes:
        effect: 'refused', QEMU will not load it; 'doubt'; or 'info'.
        code: Stable.
        offset: In the stream, bytes, where the cause stands.
        section: Section, with its instance in brackets; `None` of the configuration.
        message: What it is, for people.
        source: 'wire', both sides are stated; or 'inferred'.
        qemu: The messages of QEMU, in order; empty if it says nothing.
        advice: What to do.
    """

    effect: str
    code: str
    offset: int
    section: str | None
    message: str
    source: str
    qemu: list[str]
    advice: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Document of `vmstream check --json`.

    Attributes:
        schema: 'vmstream.check/1'.
        input: Path, or 'standard input'.
        against: File of the destination.
        against_kind: 'dump-vmstate' or 'stream'.
        machine: Machine type of the stream; `None` if it does not say.
        destination_machine: Of the destination; `None` if its file does not say.
        verdict: 'loads', 'doubtful' or 'refused'.
        findings: What speaks against it.
        not_checked: What the destination's file does not tell, in sentences.
    """

    schema: str
    input: str
    against: str
    against_kind: str
    machine: str | None
    destination_machine: str | None
    verdict: str
    findings: list[CheckFinding]
    not_checked: list[str]
