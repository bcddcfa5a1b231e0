"""JSON contract of `vmstream inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.anomalies import AnomalyReport
from vmstream.report.models.channels import ChannelReport
from vmstream.report.models.containers import LayerReport
from vmstream.report.models.live import LiveReport
from vmstream.report.models.pages import PassReport, RAMBlockReport

INSPECT_SCHEMA = "vmstream.inspect/1"


@dataclass(frozen=True, slots=True)
class SectionReport:
    """One section: a device, or an iterable section with all its parts.

    Attributes:
        section_id: Number that its parts and footers carry.
        section_type: 'START' for an iterable section, 'FULL' for a device.
        idstr: Name.
        idstr_b64: The name in full, if it is not plain UTF-8.
        instance_id: Instance.
        version_id: Version of its state.
        offset: Of its first byte, the section type.
        size: Bytes on the wire, headers and footers included, summed over the parts.
        body_offset: Of the first byte of state.
        body_size: Bytes of state, summed over the parts.
        parts: START, PARTs and END, or 1.
        ended: Its END was seen; `None` for a device.
        packaged: It stands in a PACKAGED command.
        framing: How the end of the state was found: 'records' and 'vmdescription' are stated by
            the stream, 'footer-scan' and 'header-scan' are inferred, 'footer-scan, confirmed'
            agrees with the vmdescription that came later, 'none' is not found.
    """

    section_id: int
    section_type: str
    idstr: str
    instance_id: int
    version_id: int
    offset: int
    size: int
    body_offset: int
    body_size: int
    parts: int
    framing: str
    ended: bool | None = None
    packaged: bool = False
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class CommandReport:
    """One COMMAND.

    Attributes:
        cmd: Number.
        name: QEMU's name, 'unknown' for a number it does not have.
        length: Bytes of data.
        fields: The numbers in the data, by name.
    """

    offset: int
    cmd: int
    name: str
    length: int
    fields: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VMDescriptionReport:
    """The vmdescription: where its frame stands and what it has."""

    offset: int
    size: int
    page_size: int | None
    devices: int


@dataclass(frozen=True, slots=True)
class InspectReport:
    """Document of `vmstream inspect --json`.

    Attributes:
        schema: 'vmstream.inspect/1'.
        input: Path, or 'standard input'.
        container: Kind of the outermost layer around the stream, 'raw' if there is none.
        size: Bytes of the stream, unpacked; of a bare stream those of the input.
        complete: The end of the stream was seen, and of every iterable section that needs one,
            and nothing was found damaged.
        end_offset: Offset behind the last byte of the stream, without padding.
        quick: Only head and tail were read; page counts are `None`.
        machine: Machine type, `None` without a configuration section.
        uuid: UUID of the guest, if the stream has it.
        page_size: Target page size, bytes.
        page_size_source: 'argument', 'target-page-bits', 'mapped-ram', 'multifd', 'probe',
            'vmdescription' or 'default'.
        capabilities: Those that the configuration section lists.
        features: What else the stream shows of the QEMU that wrote it.
        footers: Sections have footers; `None` if no section told.
        vmdescription: `None` if there is none.
        ram_version: Version of the RAM section.
        ram_total: Sum of the block lengths as the stream states it, bytes.
        ram_blocks: In wire order.
        passes: The first 1000 of them.
        pass_count: How many there are.
        sections: In wire order.
        commands: The first 1000 of them.
        command_count: How many there are.
        anomalies: The first 1000 of them.
        anomaly_count: How many there are.
        layers: What is around the stream, the outermost first; empty for a bare stream.
        channels: Those that were read beside the main one; pages of theirs are counted with the
            blocks and passes.
        live: What is in iterable sections other than RAM; `None` after a quick look, and if there
            are none that are decoded.
    """

    schema: str
    input: str
    container: str
    size: int
    complete: bool
    end_offset: int | None
    quick: bool
    machine: str | None
    uuid: str | None
    page_size: int | None
    page_size_source: str | None
    capabilities: list[str]
    features: list[str]
    footers: bool | None
    vmdescription: VMDescriptionReport | None
    ram_version: int | None
    ram_total: int | None
    ram_blocks: list[RAMBlockReport]
    passes: list[PassReport]
    pass_count: int
    sections: list[SectionReport]
    commands: list[CommandReport]
    command_count: int
    anomalies: list[AnomalyReport]
    anomaly_count: int
    layers: list[LayerReport] = field(default_factory=list)
    channels: list[ChannelReport] = field(default_factory=list)
    live: LiveReport | None = None
