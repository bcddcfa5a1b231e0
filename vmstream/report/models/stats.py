"""JSON contract of `vmstream stats`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

STATS_SCHEMA = "vmstream.stats/1"


@dataclass(frozen=True, slots=True)
class WireKindReport:
    """Pages as they were sent in one way.

    Attributes:
        kind: 'normal', 'zero', 'xbzrle', 'compressed' (zlib of its own for each page), 'multifd'
            and what packets are compressed with ('multifd none', 'multifd zlib' and so on),
            'multifd zero', 'mapped-ram'.
        pages: Pages; a page that was sent again counts again.
        wire_bytes: Bytes of the records, with heads and names; of pages in packets without the
            heads of the packets.
        zeros: How many of them are zeros, though they were not sent as such; `None` of those
            that were.
    """

    kind: str
    pages: int
    wire_bytes: int
    zeros: int | None


@dataclass(frozen=True, slots=True)
class WireReport:
    """Pages of RAM on the wire.

    Attributes:
        pages: Pages; a page that was sent again counts again.
        wire_bytes: Bytes for them in the stream and its channels, heads of packets included.
        kinds: By how they were sent, the most bytes first.
        packets: Packets of multifd with pages.
        packet_bytes: Bytes of the heads of those.
    """

    pages: int
    wire_bytes: int
    kinds: list[WireKindReport]
    packets: int
    packet_bytes: int


@dataclass(frozen=True, slots=True)
class ContentReport:
    """What the pages of a block have, as the stream leaves them.

    Attributes:
        idstr: Name of the block.
        pages: Pages of the block.
        sent: Pages that were sent; the other counts are of these.
        zero: Pages of zeros.
        fill: Pages that are one word of 8 bytes again and again.
        low: Other pages with an entropy of their byte values below 4 bits a byte.
        medium: From 4 to below 7.5.
        high: From 7.5 on: compressed, encrypted or random.
        entropy: Mean of all pages that are not zeros, bits a byte, 0 to 8; `None` without any.
        idstr_b64: The name in full if `idstr` does not give it back, else `None`.
    """

    idstr: str
    pages: int
    sent: int
    zero: int
    fill: int
    low: int
    medium: int
    high: int
    entropy: float | None
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Pages that are alike.

    Attributes:
        pages: How many there are.
        block: Name of the block that the first one is in.
        block_offset: Of that page, bytes.
        head: Its first 16 bytes, as hex.
        block_b64: The name in full if `block` does not give it back, else `None`.
    """

    pages: int
    block: str
    block_offset: int
    head: str
    block_b64: str | None = None


@dataclass(frozen=True, slots=True)
class DuplicatesReport:
    """Pages, as the stream leaves them, that another one is equal to; pages of zeros aside.

    Attributes:
        told_by: 'sha256-64': pages are told apart by 64 bits of their SHA-256. Two that are not
            alike would be taken for one with a chance of n * n / 2^65 in n pages.
        pages: Pages that are not zeros.
        distinct: Contents that they have.
        alike: Pages that another one is equal to.
        saved_bytes: Bytes that one copy of each content would save: pages - distinct, in bytes.
        group_count: Contents that more than one page has.
        groups: The largest of them (--top).
    """

    told_by: str
    pages: int
    distinct: int
    alike: int
    saved_bytes: int
    group_count: int
    groups: list[DuplicateReport]


@dataclass(frozen=True, slots=True)
class WhatIfReport:
    """What the pages that were sent would have come to in one encoding.

    Attributes:
        encoding: 'plain', 'zstd' or 'zlib' of multifd, 'compress' (the capability), 'xbzrle'.
        level: Of the codec; `None` of 'plain' and 'xbzrle'.
        cache_size: Of 'xbzrle', bytes, else `None`.
        channels: Of multifd, else `None`.
        pages: Pages that are not zeros; one that was sent again counts again.
        zeros: Pages of zeros, each a record of 9 bytes; those in packets of multifd stay there in
            'zstd' and 'zlib'.
        page_bytes: Bytes of `pages`, unpacked.
        wire_bytes: What all would have been on the wire, heads and names included; without SYNC
            packets.
        saved_bytes: Bytes less than as it was sent; negative if it is more.
        cpu_seconds: CPU time of the codec, measured on this machine; `None` where there is none,
            and of 'xbzrle', of which lengths are worked out and nothing is encoded.
        packets: Packets of multifd, else `None`.
        deltas: Of 'xbzrle', pages that would be sent as a difference, else `None`.
        unchanged: Likewise pages that would not be sent, as they were sent before as they are.
        overflows: Likewise pages with a difference that is longer than the page, sent as they are.
        misses: Likewise pages of later passes that were not in the cache, sent as they are.
    """

    encoding: str
    level: int | None
    cache_size: int | None
    channels: int | None
    pages: int
    zeros: int
    page_bytes: int
    wire_bytes: int
    saved_bytes: int
    cpu_seconds: float | None
    packets: int | None
    deltas: int | None
    unchanged: int | None
    overflows: int | None
    misses: int | None


@dataclass(frozen=True, slots=True)
class StatsReport:
    """Document of `vmstream stats --json`.

    Attributes:
        schema: 'vmstream.stats/1'.
        input: Path, or 'standard input'.
        size: Of the stream, bytes.
        complete: As in the inspect report.
        machine: Machine type, `None` without a configuration section.
        page_size: Target page size, bytes.
        wire: How pages were sent, measured.
        blocks: What pages have in the end, block by block.
        duplicates: Which of them are alike.
        what_if: With --what-if: 'plain', then what was asked for; else empty.
        anomalies: As in the inspect report.
        anomaly_count: How many there were.
    """

    schema: str
    input: str
    size: int
    complete: bool
    machine: str | None
    page_size: int | None
    wire: WireReport
    blocks: list[ContentReport]
    duplicates: DuplicatesReport
    what_if: list[WhatIfReport]
    anomalies: list[AnomalyReport]
    anomaly_count: int
