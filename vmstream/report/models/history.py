"""JSON contract of `vmstream history`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport
from vmstream.report.models.pages import PassReport

HISTORY_SCHEMA = "vmstream.history/1"
VERSION_SCHEMA = "vmstream.version/1"


@dataclass(frozen=True, slots=True)
class HistoryPassReport(PassReport):
    """One sweep over RAM, and what it did for all of it.

    Attributes:
        first: Pages that no pass before had sent.
        last: Pages that none behind it sends again: what the guest is left with comes from here.
    """

    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class SentPageReport:
    """A page that was sent several times.

    Attributes:
        block: Name of the block.
        block_offset: In the block, bytes.
        gpa: Guest-physical address, inferred; `None` if it is not known or the block has none.
        times: Records that name it.
        block_b64: The name in full if `block` does not give it back, else `None`.
    """

    block: str
    block_offset: int
    gpa: int | None
    times: int
    block_b64: str | None = None


@dataclass(frozen=True, slots=True)
class SupersededFile:
    """Versions of pages of one block that were replaced, one behind the other.

    Attributes:
        file: Name in the directory.
        block: Name of the block.
        versions: Pages in it.
        size: Of the file, bytes.
        block_b64: The name in full if `block` does not give it back, else `None`.
    """

    file: str
    block: str
    versions: int
    size: int
    block_b64: str | None = None


@dataclass(frozen=True, slots=True)
class SupersededReport:
    """What --superseded wrote.

    Attributes:
        directory: Path.
        index: Name in it of the list of versions.
        versions: Versions in the files.
        zeros: Versions that were left out, since they are zeros.
        files: One for each block that has any.
    """

    directory: str
    index: str
    versions: int
    zeros: int
    files: list[SupersededFile]


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """Document of `vmstream history --json`.

    Attributes:
        schema: 'vmstream.history/1'.
        input: Path, or 'standard input'.
        size: Of the stream, bytes.
        complete: As in the inspect report.
        machine: Machine type, `None` without a configuration section.
        page_size: Target page size, bytes.
        pages: Pages of RAM in all blocks.
        pages_sent: Pages that a record names.
        records: Page records; each makes a version of a page.
        passes: The first 1000.
        pass_count: How many there were.
        top: Pages that were sent most often, and more than once.
        layout_doubts: What speaks against the guest-physical addresses.
        superseded: With --superseded, what was written.
        anomalies: As in the inspect report.
        anomaly_count: How many there were.
    """

    schema: str
    input: str
    size: int
    complete: bool
    machine: str | None
    page_size: int | None
    pages: int
    pages_sent: int
    records: int
    passes: list[HistoryPassReport]
    pass_count: int
    top: list[SentPageReport]
    layout_doubts: list[str]
    superseded: SupersededReport | None
    anomalies: list[AnomalyReport]
    anomaly_count: int


@dataclass(frozen=True, slots=True)
class VersionReport:
    """A line of `vmstream history --page --json`: a version of a page.

    Attributes:
        schema: 'vmstream.version/1'.
        number: From 1, in the order they were sent.
        block: Name of the block.
        block_offset: Of the page in the block, bytes.
        gpa: Guest-physical address of the page, inferred; `None` if --page did not name one.
        kind: 'normal', 'zero', 'xbzrle' or 'compressed'; 'withdrawn' where POSTCOPY_RAM_DISCARD
            makes it as if it had never been sent.
        record_offset: Absolute offset of the page record, multifd packet or command.
        channel: File of the channel that this offset is in; `None` for the stream itself.
        pass_number: Pass that the record is in.
        passes_from: 'inferred' or 'wire', as `source` of a pass.
        wire_bytes: Bytes of the record; `None` in a multifd packet, which has many pages.
        changed: Bytes that are other than in the version before; `None` in the first.
        ranges: The first 64 ranges of them.
        range_count: How many there are.
        data: With --hex, the page as hex, else `None`.
        block_b64: The name in full if `block` does not give it back, else `None`.
    """

    schema: str
    number: int
    block: str
    block_offset: int
    gpa: int | None
    kind: str
    record_offset: int
    channel: str | None
    pass_number: int
    passes_from: str
    wire_bytes: int | None
    changed: int | None
    ranges: list[ByteRange]
    range_count: int
    data: str | None = None
    block_b64: str | None = None


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a page.

    Attributes:
        offset: In the page.
        length: How many.
    """

    offset: int
    length: int
