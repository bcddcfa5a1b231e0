"""Reports as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


def dumps(report: Any, *, indent: int | None = 2) -> str:
    """JSON text of a report dataclass or a dict."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        report = dataclasses.asdict(report)
    return json.dumps(report, indent=indent)
