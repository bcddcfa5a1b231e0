"""JSON contract of `vmstream search`."""

from __future__ import annotations

from dataclasses import dataclass

SEARCH_SCHEMA = "vmstream.search/1"


@dataclass(frozen=True, slots=True)
class HitReport:
    """A line of `vmstream search --json`.

    Attributes:
        schema: 'vmstream.search/1'.
        gpa: Guest-physical address, `None` if it is not known or the block has none.
        block: Name of the block.
        block_offset: In the block, bytes.
        length: Of the match, bytes.
        data: The match as hex, its first 64 bytes.
        block_b64: The name in full if `block` does not give it back, else `None`.
        superseded: A page that the match is in was replaced or withdrawn later in the stream
            (--history).
        record_offset: With --history, absolute offset of the page record, or multifd packet, that
            the page it starts in came with; `None` without, or if the page never came.
        channel: File of the channel that this offset is in; `None` for the stream itself.
    """

    schema: str
    gpa: int | None
    block: str
    block_offset: int
    length: int
    data: str
    block_b64: str | None = None
    superseded: bool = False
    record_offset: int | None = None
    channel: str | None = None
