"""JSON contract: RAM blocks, passes and page records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Page records on the wire, by kind; a page sent twice counts twice."""

    normal: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0


@dataclass(frozen=True, slots=True)
class RAMBlockReport:
    """One RAM block.

    Attributes:
        idstr: Name.
        idstr_b64: The name in full, if it is not plain UTF-8.
        used_length: Length, bytes.
        host_page_size: Backing page size that the stream states, bytes.
        gpa: Address that x-ignore-shared sent, relative to the block's container.
        pages: Records by kind.
        wire_bytes: Bytes of these records, heads and names included.
        pages_missing: Pages that no record names.
        pages_resent: Pages that more than one record names.
    """

    idstr: str
    used_length: int
    pages: PageCounts | None = None
    wire_bytes: int | None = None
    pages_missing: int | None = None
    pages_resent: int | None = None
    host_page_size: int | None = None
    gpa: int | None = None
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class PassReport:
    """One sweep over RAM.

    Attributes:
        source: 'inferred', from where the page order starts over, or 'wire', where MULTIFD_FLUSH
            words say so.
    """

    number: int
    offset: int
    pages: PageCounts
    wire_bytes: int
    source: str = "inferred"
