"""JSON contract of `vmstream capture`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

CAPTURE_SCHEMA = "vmstream.capture/1"


@dataclass(frozen=True, slots=True)
class SettingReport:
    """What was set for a capture, and set back.

    Attributes:
        kind: 'capability' or 'parameter'.
        name: QEMU's.
        before: Its value before and after the capture.
        during: Its value during the capture.
    """

    kind: str
    name: str
    before: bool | int | str
    during: bool | int | str


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """Document of `vmstream capture --json`, and what `--manifest` writes.

    Attributes:
        schema: 'vmstream.capture/1'.
        tool: Name and version.
        qmp: Path of the monitor's socket; `None` with libvirt.
        uri: URI of the connection to libvirt; `None` with QMP.
        libvirt: Version of the libvirt; `None` with QMP.
        output: Path, '-' for standard output.
        output_size: Bytes.
        output_sha256: Of the file, `None` unless it was asked for.
        stream_size: Bytes of the stream, before it was compressed.
        stream_sha256: Of the stream, `None` unless it was asked for.
        format: 'plain', 'zstd' or 'mapped-ram'; of libvirt's save image 'libvirt-raw',
            'libvirt-zstd' and so on.
        mode: 'stopped', 'live' or 'background-snapshot'.
        qemu: Version of the QEMU, with that of the package; `None` with libvirt, which does not
            tell which one runs.
        machine: Machine type.
        name: Of the guest, `None` if it has none.
        uuid: Of the guest.
        started: When, UTC, ISO 8601.
        total_time_ms: How long the migration took, milliseconds, as QEMU says.
        downtime_ms: How long QEMU itself stopped the guest, milliseconds, as QEMU says.
        passes: Passes over RAM, as QEMU counts.
        status_before: The word of QEMU, or of libvirt, for the state of the guest.
        status_after: That behind the capture.
        settings: What was set.
        troubles: What could not be put back, in the words of QEMU or libvirt.
        complete: As `inspect` says, `None` unless `--verify` was given.
        anomalies: What `inspect` found.
    """

    schema: str
    tool: str
    qmp: str | None
    uri: str | None
    libvirt: str | None
    output: str
    output_size: int
    output_sha256: str | None
    stream_size: int
    stream_sha256: str | None
    format: str
    mode: str
    qemu: str | None
    machine: str
    name: str | None
    uuid: str
    started: str
    total_time_ms: int | None
    downtime_ms: int | None
    passes: int | None
    status_before: str
    status_after: str
    settings: list[SettingReport]
    troubles: list[str]
    complete: bool | None
    anomalies: list[AnomalyReport]
