"""JSON contract of `vmstream snapshots`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.containers import SnapshotReport

SNAPSHOTS_SCHEMA = "vmstream.snapshots/1"


@dataclass(frozen=True, slots=True)
class SnapshotsReport:
    """Document of `vmstream snapshots --json`.

    Attributes:
        schema: 'vmstream.snapshots/1'.
        input: Path.
        input_size: Of the file, bytes.
        version: Of the qcow2 format, 2 or 3.
        cluster_size: Bytes.
        disk_size: Of the disk as it is now, bytes.
        notes: What speaks against the image, or keeps VM state from being read.
        snapshots: In the order of the table.
    """

    schema: str
    input: str
    input_size: int
    version: int
    cluster_size: int
    disk_size: int
    notes: list[str]
    snapshots: list[SnapshotReport]
