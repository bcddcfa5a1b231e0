"""JSON contract of `vmstream devices`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

DEVICES_SCHEMA = "vmstream.devices/1"


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A device, or something in its state.

    Attributes:
        path: Section with its instance in brackets, and the names below, joined by '/'.
        type: Of the vmdescription; 'device', 'struct', 'array', 'subsection', or 'raw' for bytes
            that it does not name, 'ambiguous' for those that a schema of -dump-vmstate does not
            settle.
        offset: Of its first byte in the stream.
        size: Bytes.
        version: Of a device or subsection.
        value: Number, truth value, or bytes in hex; numbers of an array as a list; null for what
            has entries of its own and for a NULL pointer.
        meaning: What the value stands for, in words; an inference.
    """

    path: str
    type: str
    offset: int
    size: int
    version: int | None
    value: int | bool | str | list[int] | None
    meaning: str | None = None


@dataclass(frozen=True, slots=True)
class DevicesReport:
    """Document of `vmstream devices --json`.

    Attributes:
        schema: 'vmstream.devices/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        described: Where the names come from: the vmdescription of the 'stream', that of another
            one ('schema', inferred), what `qemu -dump-vmstate` wrote ('dump-vmstate', inferred,
            types too), or 'none': then all state is raw.
        nodes: In the order of the stream, each ahead of what is in it.
        anomalies: As in the inspect report.
    """

    schema: str
    input: str
    machine: str | None
    described: str
    nodes: list[NodeReport]
    anomalies: list[AnomalyReport]
