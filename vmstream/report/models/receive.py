"""JSON contract of `vmstream receive`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

RECEIVE_SCHEMA = "vmstream.receive/1"


@dataclass(frozen=True, slots=True)
class ReceivedChannel:
    """A connection that was recorded.

    Attributes:
        file: In the directory.
        kind: 'main', 'multifd' or 'other'.
        size: Bytes.
        sha256: Of the file.
    """

    file: str
    kind: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReceiveReport:
    """Document of `vmstream receive --json`.

    Attributes:
        schema: 'vmstream.receive/1'.
        tool: Name and version.
        listen: The address, with its port.
        output: The directory.
        channels: The main one first.
        return_path: The source asked for answers.
        pings: PINGs that were answered.
        shut: SHUT was sent, for which the source waits.
        machine: Machine type, `None` if the stream does not state it.
        complete: As `inspect` says.
        anomalies: What `inspect` found.
    """

    schema: str
    tool: str
    listen: str
    output: str
    channels: list[ReceivedChannel]
    return_path: bool
    pings: int
    shut: bool
    machine: str | None
    complete: bool
    anomalies: list[AnomalyReport]
