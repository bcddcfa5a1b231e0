"""JSON contract of `vmstream unpack`, `vmstream build` and of the files between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.anomalies import AnomalyReport
from vmstream.report.models.containers import LayerReport

UNPACK_SCHEMA = "vmstream.unpack/1"
UNPACKED_SCHEMA = "vmstream.unpacked/1"
DEVICE_SCHEMA = "vmstream.device/1"
BUILD_SCHEMA = "vmstream.build/1"


@dataclass(frozen=True, slots=True)
class UnpackedConfiguration:
    """The configuration section.

    Attributes:
        name: Machine type.
        target_page_bits: `None` if the section does not say.
        capabilities: Those that QEMU checks when it loads; `None` if the section has no list.
        uuid: Of the guest, 32 hex digits, with or without dashes; `None` if it has none.
        name_b64: The name in full, if it is not plain UTF-8; then it is what counts.
    """

    name: str
    target_page_bits: int | None
    capabilities: list[str] | None
    uuid: str | None
    name_b64: str | None = None


@dataclass(frozen=True, slots=True)
class UnpackedBlock:
    """A RAM block.

    Attributes:
        idstr: Name.
        used_length: Length, bytes; that of the file.
        file: In `blocks`: its memory, sparse; `None` if it is not in the stream (x-ignore-shared).
        gpa: Address that x-ignore-shared sent, `None` without.
        unsent: [offset, length] of pages that the stream does not have, bytes, ascending. They are
            left out of the new one, too, if they are zeros.
        idstr_b64: The name in full, if it is not plain UTF-8; then it is what counts.
    """

    idstr: str
    used_length: int
    file: str | None
    gpa: int | None
    unsent: list[list[int]]
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class UnpackedSection:
    """A device, or the start, the parts or the end of an iterable section.

    Attributes:
        part: 'start', 'part' or 'end' of an iterable section, or 'device'.
        section_id: As on the wire.
        idstr: Name.
        instance_id: Instance; of a 'part' or 'end' that of its 'start', which alone counts.
        version_id: Version of the state, likewise.
        file: In `devices`: the state of a device, JSON; in `live`: the body of the start or the
            end as it is, or those of all parts one behind the other; `null` for 'ram'.
        described: Of a device: the vmdescription describes it, and has to afterwards.
        lengths: Bytes of each body in a file of `live`.
        idstr_b64: The name in full, if it is not plain UTF-8; then it is what counts.
    """

    part: str
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    file: str | None
    described: bool
    lengths: list[int]
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class UnpackedManifest:
    """`manifest.json` of `vmstream unpack`, and what `vmstream build` is made from.

    Attributes:
        schema: 'vmstream.unpacked/1'.
        page_size: Target page size, bytes.
        footers: Sections have footers: machine types of 2.4 on.
        configuration: `None` if there is none: machine types up to 2.3.
        blocks: The RAM blocks, in the order of the wire.
        sections: Sections and parts, in the order of the wire.
        vmdescription: File with its text; `None` if there is none.
    """

    schema: str
    page_size: int
    footers: bool
    configuration: UnpackedConfiguration | None
    blocks: list[UnpackedBlock]
    sections: list[UnpackedSection]
    vmdescription: str | None


@dataclass(frozen=True, slots=True)
class UnpackReport:
    """Document of `vmstream unpack --json`.

    Attributes:
        schema: 'vmstream.unpack/1'.
        tool: Name and version.
        input: Path, or '-'.
        output: The directory.
        machine: Machine type, `None` if the stream does not say.
        described: Where names of device state come from, as in the devices report.
        blocks: RAM blocks.
        devices: Devices.
        undescribed: Those whose state has no names.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
    """

    schema: str
    tool: str
    input: str
    output: str
    machine: str | None
    described: str
    blocks: int
    devices: int
    undescribed: list[str]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Document of `vmstream build --json`.

    Attributes:
        schema: 'vmstream.build/1'.
        tool: Name and version.
        input: The directory.
        output: Path.
        output_size: Bytes.
        machine: Machine type, `None` if there is no configuration section.
        blocks: RAM blocks.
        devices: Devices.
        vmdescription: 'none', 'kept' or 'changed': what the directory says is other than it said.
    """

    schema: str
    tool: str
    input: str
    output: str
    output_size: int
    machine: str | None
    blocks: int
    devices: int
    vmdescription: str


@dataclass(frozen=True, slots=True)
class DeviceField:
    """A field of device state: it has one of value, values, text, fields and raw.

    Attributes:
        name: As in the vmdescription; of a subsection it is on the wire.
        type: Of the vmdescription; 'subsection' has a frame on the wire.
        version: Of a subsection.
        size: Bytes, where the type does not tell; of an array those of an element.
        count: Elements of an array.
        value: A number, also as text (decimal, or hex with 0x), a truth value, or bytes as hex.
        values: Those of an array; bytes also as hex.
        text: Text that NULs fill up to the size.
        fields: What is inside.
        raw: Bytes that have no type, as hex.
    """

    name: str | None = None
    type: str | None = None
    version: int | None = None
    size: int | None = None
    count: int | None = None
    value: int | bool | str | None = None
    values: list[int | bool | str] | str | None = None
    text: str | None = None
    fields: list[DeviceField] | None = None
    raw: str | None = None
