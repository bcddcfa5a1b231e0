"""JSON contract of `vmstream extract-ram`: the report, the manifest and the layout file."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.anomalies import AnomalyReport
from vmstream.report.models.containers import LayerReport
from vmstream.report.models.pages import PageCounts, RAMBlockReport

BLOCKS_SCHEMA = "vmstream.blocks/1"
EXTRACT_SCHEMA = "vmstream.extract-ram/1"
LAYOUT_SCHEMA = "vmstream.layout/1"


@dataclass(frozen=True, slots=True)
class BlockFile:
    """One block of `extract-ram --all-blocks`.

    Attributes:
        idstr: Name in the stream.
        idstr_b64: The name in full, if it is not plain UTF-8.
        file: File name in the directory; `None` if the stream has no pages of it.
        size: Length, bytes.
        pages: Records on the wire, by kind.
        pages_missing: Pages that no record names; zeros in the file.
    """

    idstr: str
    file: str | None
    size: int
    pages: PageCounts
    pages_missing: int
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class BlocksManifest:
    """`manifest.json` beside the files of `extract-ram --all-blocks`.

    Attributes:
        schema: 'vmstream.blocks/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        page_size: Target page size, bytes.
        complete: As in the inspect report.
        blocks: In wire order.
    """

    schema: str
    input: str
    machine: str | None
    page_size: int | None
    complete: bool
    blocks: list[BlockFile]


@dataclass(frozen=True, slots=True)
class RegionReport:
    """A stretch of a block at a guest-physical address, bytes.

    Attributes:
        source: Where the address comes from: 'user' (--layout, --below-4g), 'cmos' (device state
            of the RTC) or 'machine rule'.
        file_offset: Where its bytes stand in the file that was written, before it is compressed;
            in a raw image the address. `None` in a kdump file.
    """

    gpa: int
    length: int
    idstr: str
    block_offset: int
    source: str = "machine rule"
    file_offset: int | None = None


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """The guest-physical map of an image: inference, unless the user states it.

    Attributes:
        decided_by: 'user', 'cmos' or 'machine rule'.
        below_4g: Bytes of RAM below 4 GiB, `None` where the machine has no split.
        regions: By address.
        reasons: How it was decided.
        doubts: What speaks against it, or was left out.
        source: 'inferred'; 'user' where --layout states all of it.
    """

    decided_by: str
    below_4g: int | None
    regions: list[RegionReport]
    reasons: list[str]
    doubts: list[str]
    source: str = "inferred"


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """An entry of the file that `extract-ram --layout` reads, which is a list of them.

    Numbers are bytes; as a string they may be hexadecimal ("0x100000000").

    Attributes:
        gpa: Guest-physical address.
        length: How much of the block stands there.
        block: Name of the block, as reports give it.
        block_offset: Where in the block the stretch begins.
    """

    gpa: int | str
    length: int | str
    block: str
    block_offset: int | str = 0


@dataclass(frozen=True, slots=True)
class OutputReport:
    """A file that was written; `sha256` with --manifest.

    Attributes:
        path: File, or '-' for standard output.
        size: Of the file, bytes.
        format: 'raw', 'lime', 'elf' or 'kdump'.
        compression: 'gzip' or 'zstd' of the whole file, 'zlib' or 'zstd' of the pages of a kdump
            file; `None` without.
        content_size: Of what was compressed, bytes; of a kdump file, the guest-physical image.
        content_sha256: Of the same, with --manifest.
    """

    path: str
    size: int
    idstr: str | None
    sha256: str | None = None
    format: str = "raw"
    compression: str | None = None
    content_size: int | None = None
    content_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelInput:
    """A channel that was read; `sha256` of its file, with --manifest."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """Document of `vmstream extract-ram --json`, and of its `--manifest`.

    Attributes:
        schema: 'vmstream.extract-ram/1'.
        tool: Name and version.
        arguments: As given on the command line, in the manifest.
        input: Path, or 'standard input'.
        input_size: Bytes of the input itself, compressed if it is.
        input_sha256: Of the input itself, with --manifest.
        complete: As in the inspect report.
        partial: --partial was given.
        machine: Machine type, `None` without a configuration section.
        page_size: Target page size, bytes.
        page_size_source: As in the inspect report.
        layout: `None` unless a guest-physical image was written.
        outputs: Files written.
        ram_blocks: As in the inspect report.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
        channels: Read beside the main one.
        after_pass: With --pass, the pass behind which RAM is as it was written; `None` for the end.
        pass_count: Passes over RAM, as in the inspect report.
        passes_from: 'inferred' or 'wire', as in the inspect report.
    """

    schema: str
    tool: str
    arguments: list[str]
    input: str
    input_size: int
    input_sha256: str | None
    complete: bool
    partial: bool
    machine: str | None
    page_size: int | None
    page_size_source: str | None
    layout: LayoutReport | None
    outputs: list[OutputReport]
    ram_blocks: list[RAMBlockReport]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)
    channels: list[ChannelInput] = field(default_factory=list)
    after_pass: int | None = None
    pass_count: int = 0
    passes_from: str = "inferred"
