"""Reports as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmstream.report.models.records import RecordReport


def record(item: RecordReport) -> str:
    """One line of JSON; the fields stand beside type and offsets."""
    head = {
        "schema": item.schema,
        "type": item.type,
        "offset": item.offset,
        "end": item.end,
        "channel": item.channel,
    }
    return json.dumps(head | item.fields)


def dumps(report: Any, *, indent: int | None = 2) -> str:
    """JSON text of a report dataclass or a dict."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        report = dataclasses.asdict(report)
    return json.dumps(report, indent=indent)
