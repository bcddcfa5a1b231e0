"""`snapshots`: what internal snapshots a qcow2 image has."""

from __future__ import annotations

from datetime import UTC, datetime

from vmstream.container.qcow2 import read_image
from vmstream.errors import EXIT_FINDINGS, EXIT_OK
from vmstream.report.models.containers import SnapshotReport
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.snapshots import SNAPSHOTS_SCHEMA, SnapshotsReport
from vmstream.transport.source import Source
from vmstream.wire.parse import Qcow2Snapshot


def snapshots(source: Source) -> tuple[SnapshotsReport, int]:
    """List the snapshots of an image.

    Returns:
        The report, and the exit status.

    Raises:
        StreamError: This is no qcow2 image, or its header or snapshot table cannot be read.
    """
    image = read_image(source)
    report = SnapshotsReport(
        schema=SNAPSHOTS_SCHEMA,
        input=source.name,
        input_size=source.size or 0,
        version=image.header.version,
        cluster_size=1 << image.header.cluster_bits,
        disk_size=image.header.size,
        notes=list(image.notes),
        snapshots=[snapshot_report(s) for s in image.snapshots],
    )
    return report, EXIT_FINDINGS if image.notes else EXIT_OK


def snapshot_report(found: Qcow2Snapshot) -> SnapshotReport:
    """Account for one snapshot."""
    # 32 bits of seconds end in 2106, so any number is a date.
    date = datetime.fromtimestamp(found.date_sec, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return SnapshotReport(
        id=readable(found.id_str),
        name=readable(found.name),
        date=date,
        date_nsec=found.date_nsec,
        vm_clock_nsec=found.vm_clock_nsec,
        vm_state_size=found.vm_state_size,
        disk_size=found.disk_size,
        icount=found.icount,
        id_b64=in_full(found.id_str),
        name_b64=in_full(found.name),
    )
