"""JSON contract of `vmstream diff`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

DIFF_SCHEMA = "vmstream.diff/1"


@dataclass(frozen=True, slots=True)
class DiffInput:
    """One side of a comparison.

    Attributes:
        input: Path, or '-'.
        kind: 'stream'; of a file of guest-physical memory 'raw', 'elf' or 'lime'.
        machine: Machine type; `None` if it is not stated.
        page_size: Target page size, bytes; `None` if it is not known.
        described: Where names of device state come from, as in the devices report; 'schema' is
            the other side's vmdescription.
        anomalies: As in the inspect report.
    """

    input: str
    kind: str
    machine: str | None
    page_size: int | None
    described: str
    anomalies: list[AnomalyReport]


@dataclass(frozen=True, slots=True)
class DiffFact:
    """What both streams state, and not alike.

    Attributes:
        name: 'machine', 'page size', 'uuid' or 'capabilities'.
        transport: It says how the stream was sent, not what the guest is: it makes no difference.
        a: Of A, `None` if it is not stated.
        b: Of B.
    """

    name: str
    transport: bool
    a: str | None
    b: str | None


@dataclass(frozen=True, slots=True)
class DiffSection:
    """A section that only one has, or that has another version.

    Attributes:
        path: Section with its instance in brackets.
        status: 'removed' (only A has it), 'added' (only B has it) or 'version'.
        version_a: Of A, `None` if it has none.
        version_b: Of B.
        size_a: Bytes of device state; `None` of an iterable section.
        size_b: Of B.
    """

    path: str
    status: str
    version_a: int | None
    version_b: int | None
    size_a: int | None
    size_b: int | None


@dataclass(frozen=True, slots=True)
class DiffField:
    """A field of device state that differs, or that only one has.

    Attributes:
        path: As in the devices report.
        type: Of the vmdescription.
        group: 'clocks' for what goes on by itself while a guest runs, by the name; else `None`.
        a: Number, truth value, or bytes as hex, 64 of them from `at` on; `None` if A does not have
            the field, or it is a NULL pointer.
        b: Of B.
        meaning_a: What it stands for, in words; an inference.
        meaning_b: Of B.
        at: Of bytes: the first one that is shown.
        size_a: Bytes; `None` if A does not have the field.
        size_b: Of B.
        offset_a: In the stream A, bytes.
        offset_b: In the stream B.
    """

    path: str
    type: str
    group: str | None
    a: int | bool | str | None
    b: int | bool | str | None
    meaning_a: str | None
    meaning_b: str | None
    at: int
    size_a: int | None
    size_b: int | None
    offset_a: int | None
    offset_b: int | None


@dataclass(frozen=True, slots=True)
class DiffRegister:
    """A register that differs.

    Attributes:
        cpu: Index of the CPU.
        name: As in the cpus report.
        a: Of A.
        b: Of B.
    """

    cpu: int
    name: str
    a: int | None
    b: int | None


@dataclass(frozen=True, slots=True)
class DiffBlock:
    """RAM of one block.

    Attributes:
        idstr: Name.
        length_a: Of A, `None` if it has no such block, or is no stream.
        length_b: Of B.
        compared: Bytes that both have.
        pages: Pages that differ.
        bytes: Bytes that differ.
        left_out: Why not all of it was compared; `None` if it was.
        idstr_b64: The name in full, if it is not plain UTF-8.
    """

    idstr: str
    length_a: int | None
    length_b: int | None
    compared: int
    pages: int
    bytes: int
    left_out: str | None
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class DiffRun:
    """Pages that differ, one behind the other.

    Attributes:
        block: Index in `blocks`.
        block_offset: Of the first page, bytes.
        gpa: Its guest-physical address, inferred; `None` if it is not known.
        pages: How many.
        bytes: Bytes that differ in them.
    """

    block: int
    block_offset: int
    gpa: int | None
    pages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DiffRow:
    """16 bytes that differ, where they begin at a multiple of 16.

    Attributes:
        block: Index in `blocks`.
        block_offset: Bytes.
        gpa: Guest-physical address, inferred; `None` if it is not known.
        a: Bytes of A, as hex.
        b: Bytes of B.
    """

    block: int
    block_offset: int
    gpa: int | None
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class DiffRange:
    """Guest-physical memory that an image has and the stream's map has not, or the reverse.

    Attributes:
        side: 'a' or 'b': which has it.
        gpa: Address, bytes.
        length: Bytes.
    """

    side: str
    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class DiffRAM:
    """The comparison of RAM.

    Attributes:
        page_size: That pages are counted in, bytes.
        compared: Bytes.
        pages: Pages that differ.
        bytes: Bytes that differ.
        blocks: Of both, in the order of A.
        runs: The first 65,536 runs of pages that differ, block by block.
        run_count: All of them.
        rows: With --hex the first 4096 lines of 16 bytes that differ.
        row_count: All of them; 0 without --hex.
        only_in: What one side alone has by address, against an image.
        doubts: What speaks against the guest-physical addresses, against an image.
    """

    page_size: int
    compared: int
    pages: int
    bytes: int
    blocks: list[DiffBlock]
    runs: list[DiffRun]
    run_count: int
    rows: list[DiffRow]
    row_count: int
    only_in: list[DiffRange]
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class DiffLive:
    """An iterable section other than RAM whose content differs.

    Attributes:
        path: Section, with its instance in brackets.
        by: 'records', their order and data; or 'bytes', of a section that is not decoded.
        sha256_a: Sum of these, of A.
        sha256_b: And of B.
    """

    path: str
    by: str
    sha256_a: str
    sha256_b: str


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Document of `vmstream diff --json`.

    Attributes:
        schema: 'vmstream.diff/1'.
        tool: Name and version.
        a: The first.
        b: The second.
        same: Nothing was found that differs, but for facts of transport and what was ignored.
        facts: What both state of themselves, and not alike.
        sections: Those that one has alone, or in another version.
        registers: Registers that differ, 4096 at the most; they are fields, too.
        register_count: All of them.
        fields: The first 16,384 fields that differ; of sections that both have.
        field_count: All of them.
        clock_count: Those in the group 'clocks'.
        ignored_count: Sections and fields that differ and that --ignore left out.
        devices_compared: Sections of device state that both have; `None` if they were not asked
            for, or one is no stream.
        live: Iterable sections other than RAM that both have, with content that differs.
        live_left_out: Those whose content was not compared; then nothing is said to be the same.
        ram: `None` if it was not asked for.
    """

    schema: str
    tool: str
    a: DiffInput
    b: DiffInput
    same: bool
    facts: list[DiffFact]
    sections: list[DiffSection]
    registers: list[DiffRegister]
    register_count: int
    fields: list[DiffField]
    field_count: int
    clock_count: int
    ignored_count: int
    devices_compared: int | None
    live: list[DiffLive]
    live_left_out: list[str]
    ram: DiffRAM | None
