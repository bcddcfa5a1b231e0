"""JSON contract of `vmstream extract-block`."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.anomalies import AnomalyReport
from vmstream.report.models.containers import LayerReport
from vmstream.report.models.live import BlockDeviceReport

EXTRACT_BLOCK_SCHEMA = "vmstream.extract-block/1"


@dataclass(frozen=True, slots=True)
class DiskReport:
    """A disk that was written.

    Attributes:
        path: File.
        size: Of the file, bytes.
        size_source: 'argument', or 'inferred': the end of the last chunk.
        device: What was sent of it.
    """

    path: str
    size: int
    size_source: str
    device: BlockDeviceReport


@dataclass(frozen=True, slots=True)
class ExtractBlockReport:
    """Document of `vmstream extract-block --json`.

    Attributes:
        schema: 'vmstream.extract-block/1'.
        tool: Name and version.
        input: Path, or 'standard input'.
        input_size: Bytes of the input itself, compressed if it is.
        complete: As in the inspect report.
        partial: --partial was given.
        machine: Machine type, `None` without a configuration section.
        outputs: Files written.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
    """

    schema: str
    tool: str
    input: str
    input_size: int
    complete: bool
    partial: bool
    machine: str | None
    outputs: list[DiskReport]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)
