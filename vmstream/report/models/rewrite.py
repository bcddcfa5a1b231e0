"""JSON contract of `vmstream rewrite` and `vmstream convert`."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.anomalies import AnomalyReport
from vmstream.report.models.containers import LayerReport
from vmstream.report.models.extract import ChannelInput

REWRITE_SCHEMA = "vmstream.rewrite/1"
CONVERT_SCHEMA = "vmstream.convert/1"


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """A stretch of the input that is another one in the output.

    Attributes:
        what: For people: what it changes.
        offset: In the input, bytes.
        end: Behind the last byte that went; `offset` for what was put in.
        output_offset: In the output, bytes.
        length: Bytes that came.
    """

    what: str
    offset: int
    end: int
    output_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RewriteReport:
    """Document of `vmstream rewrite --json`.

    Attributes:
        schema: 'vmstream.rewrite/1'.
        tool: Name and version.
        input: Path, or 'standard input'.
        input_size: Of the stream, bytes, without what is around it.
        output: Path; `None` with --dry-run.
        output_size: Bytes.
        machine: Machine type of the input, `None` without a configuration section.
        change_count: How many changes there are.
        changes: The first 4096 of them, by place.
        doubts: What speaks against the guest-physical addresses of --patch-ram, which are inferred.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
    """

    schema: str
    tool: str
    input: str
    input_size: int
    output: str | None
    output_size: int
    machine: str | None
    change_count: int
    changes: list[ChangeReport]
    doubts: list[str]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ConvertReport(RewriteReport):
    """Document of `vmstream convert --json`: 'vmstream.convert/1', and as in the rewrite report.

    `output_size` is that of the file. Offsets of changes in the output are those in the stream
    unpacked, or in a save image that is not compressed.

    Attributes:
        to: 'stream', 'mapped-ram', or 'libvirt:' and the format.
        compression: 'gzip', 'zstd' and so on; `None` for none.
        capabilities: Those that the destination has to have set, as the stream states.
        stream_offset: Where the stream begins in the output, bytes.
        stream_size: Its length, bytes, before it is compressed.
        channels: The channels that were given.
    """

    to: str = "stream"
    compression: str | None = None
    capabilities: list[str] = field(default_factory=list)
    stream_offset: int = 0
    stream_size: int = 0
    channels: list[ChannelInput] = field(default_factory=list)
