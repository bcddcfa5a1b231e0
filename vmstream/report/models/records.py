"""JSON contract of `vmstream records`."""

from __future__ import annotations

from dataclasses import dataclass

RECORDS_SCHEMA = "vmstream.records/1"


@dataclass(frozen=True, slots=True)
class RecordReport:
    """One line of `vmstream records --json`.

    Attributes:
        schema: 'vmstream.records/1'.
        type: 'header', 'configuration', 'section', 'ram-blocks', 'pages', 'ram-control',
            'live', 'payload', 'footer', 'command', 'eof', 'vmdescription', 'padding', 'gap' or
            'anomaly'; of a channel also 'channel', 'packet' and 'device-state'.
        offset: Of the first byte.
        end: Of the first byte behind it; that of `offset` for an anomaly.
        fields: What the item says, by type.
        channel: File of the channel that it is in; `None` for the stream itself.
    """

    schema: str
    type: str
    offset: int
    end: int
    fields: dict[str, object]
    channel: str | None = None
