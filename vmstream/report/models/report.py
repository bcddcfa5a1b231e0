"""What `vmstream report` shows: an account of a stream that is bounded, whatever the stream is."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.cpus import CPUReport
from vmstream.report.models.history import HistoryPassReport
from vmstream.report.models.inspect import InspectReport
from vmstream.report.models.rammap import RAMMap
from vmstream.report.models.verify import FindingReport


@dataclass(frozen=True, slots=True)
class ExtentReport:
    """Adjacent bytes of the stream that belong together.

    Attributes:
        kind: 'ram', 'live' (another iterable section), 'device', 'description', 'gap' or 'frame'.
        name: Of the section with its instance, or what it is.
        offset: Of the first byte.
        end: Behind the last.
    """

    kind: str
    name: str
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class FieldReport:
    """A field of device state, or what is in it.

    Attributes:
        name: As in the description; of fields behind each other that are all zeros, the first.
        type: Of the description; 'zeros' of such fields, and `until` is the name of the last.
        offset: In the stream.
        size: Bytes.
        value: Number, truth value, numbers of an array, or bytes as hex; those of long ones are
            the first few.
        cut: There are more.
        meaning: What the value means.
        fields: What is inside.
        left_out: Fields that are inside and not in `fields`, as far as they were counted.
        version: Of a device or a subsection.
        until: See `type`.
    """

    name: str
    type: str
    offset: int
    size: int
    value: int | str | list[int] | None = None
    cut: bool = False
    meaning: str | None = None
    fields: list[FieldReport] = field(default_factory=list)
    left_out: int = 0
    version: int | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StreamReport:
    """All that a page tells.

    Attributes:
        inspect: The account of `inspect`.
        verdict: As of `verify`.
        findings: As of `verify`, the gravest first; the first of them.
        finding_count: How many there were.
        passes: As of `history`.
        map: RAM; `None` without a block list.
        doubts: What speaks against the addresses in it.
        extents: The stream from its first byte to its last.
        devices: State by name, each with what is in it.
        described: Where the names come from: 'stream' or 'none'.
        cpus: Registers; the first of them.
        cpu_count: How many CPUs there are.
        no_cpus: Why there are none; `None` if there are.
        made_by: Version of vmstream.
    """

    inspect: InspectReport
    verdict: str
    findings: list[FindingReport]
    finding_count: int
    passes: list[HistoryPassReport]
    map: RAMMap | None
    doubts: list[str]
    extents: list[ExtentReport]
    devices: list[FieldReport]
    described: str
    cpus: list[CPUReport]
    cpu_count: int
    no_cpus: str | None
    made_by: str
