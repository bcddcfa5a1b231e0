"""JSON contract: what the stream has that a reader of it should know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """A finding. 'error' makes the exit status 3 to 5, 'warning' 1, 'info' none.

    Attributes:
        channel: File of the channel that the offset is in; `None` for the stream itself.
    """

    offset: int
    severity: str
    code: str
    message: str
    channel: str | None = None
