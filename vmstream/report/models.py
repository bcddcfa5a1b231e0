"""The JSON contract: dataclasses that `docs/schema/*.json` is generated from.

Offsets, lengths and addresses are bytes. Within a major number of a schema, fields are only
added. A name from the stream that is not plain UTF-8 comes twice: readable, and in full as
base64 beside it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

INSPECT_SCHEMA = "vmstream.inspect/1"
RECORDS_SCHEMA = "vmstream.records/1"
BLOCKS_SCHEMA = "vmstream.blocks/1"
EXTRACT_SCHEMA = "vmstream.extract-ram/1"
EXTRACT_BLOCK_SCHEMA = "vmstream.extract-block/1"
LAYOUT_SCHEMA = "vmstream.layout/1"
SNAPSHOTS_SCHEMA = "vmstream.snapshots/1"
DEVICES_SCHEMA = "vmstream.devices/1"
CMDLINE_SCHEMA = "vmstream.cmdline/1"
CPUS_SCHEMA = "vmstream.cpus/1"
SEARCH_SCHEMA = "vmstream.search/1"
VMCOREINFO_SCHEMA = "vmstream.vmcoreinfo/1"
BANNER_SCHEMA = "vmstream.banner/1"
REWRITE_SCHEMA = "vmstream.rewrite/1"
CONVERT_SCHEMA = "vmstream.convert/1"
UNPACK_SCHEMA = "vmstream.unpack/1"
UNPACKED_SCHEMA = "vmstream.unpacked/1"
DEVICE_SCHEMA = "vmstream.device/1"
BUILD_SCHEMA = "vmstream.build/1"
HISTORY_SCHEMA = "vmstream.history/1"
VERSION_SCHEMA = "vmstream.version/1"
VERIFY_SCHEMA = "vmstream.verify/1"
CHECK_SCHEMA = "vmstream.check/1"
DIAGNOSE_SCHEMA = "vmstream.diagnose/1"
DIFF_SCHEMA = "vmstream.diff/1"
CAPTURE_SCHEMA = "vmstream.capture/1"
RECEIVE_SCHEMA = "vmstream.receive/1"


def readable(name: bytes) -> str:
    """Name as text: UTF-8, with what is none as backslash escapes."""
    return name.decode("utf-8", "backslashreplace")


def full(name: str, name_b64: str | None) -> bytes:
    """Name that `readable` and `in_full` gave. Raises ValueError if the base64 is none."""
    return name.encode() if name_b64 is None else base64.b64decode(name_b64, validate=True)


def in_full(name: bytes) -> str | None:
    """Base64 of a name that `readable` does not give back, else `None`."""
    text = readable(name)
    return None if text.encode() == name else base64.b64encode(name).decode()


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


@dataclass(frozen=True, slots=True)
class SectionReport:
    """One section: a device, or an iterable section with all its parts.

    Attributes:
        section_id: Number that its parts and footers carry.
        section_type: 'START' for an iterable section, 'FULL' for a device.
        idstr: Name.
        idstr_b64: The name in full, if it is not plain UTF-8.
        instance_id: Instance.
        version_id: Version of its state.
        offset: Of its first byte, the section type.
        size: Bytes on the wire, headers and footers included, summed over the parts.
        body_offset: Of the first byte of state.
        body_size: Bytes of state, summed over the parts.
        parts: START, PARTs and END, or 1.
        ended: Its END was seen; `None` for a device.
        packaged: It stands in a PACKAGED command.
        framing: How the end of the state was found: 'records' and 'vmdescription' are stated by
            the stream, 'footer-scan' and 'header-scan' are inferred, 'footer-scan, confirmed'
            agrees with the vmdescription that came later, 'none' is not found.
    """

    section_id: int
    section_type: str
    idstr: str
    instance_id: int
    version_id: int
    offset: int
    size: int
    body_offset: int
    body_size: int
    parts: int
    framing: str
    ended: bool | None = None
    packaged: bool = False
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class CommandReport:
    """One COMMAND.

    Attributes:
        cmd: Number.
        name: QEMU's name, 'unknown' for a number it does not have.
        length: Bytes of data.
        fields: The numbers in the data, by name.
    """

    offset: int
    cmd: int
    name: str
    length: int
    fields: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VMDescriptionReport:
    """The vmdescription: where its frame stands and what it has."""

    offset: int
    size: int
    page_size: int | None
    devices: int


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


@dataclass(frozen=True, slots=True)
class DeviceStateReport:
    """Device state that travelled in multifd channels.

    Attributes:
        idstr: Name of the device.
        instance_id: Instance.
        packets: How many.
        size: Bytes of state, summed.
        idstr_b64: The name in full, if it is not plain UTF-8.
    """

    idstr: str
    instance_id: int
    packets: int
    size: int
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """A channel beside the main one.

    Attributes:
        name: Its file.
        kind: 'multifd' or 'preempt'.
        channel_id: Number that a multifd channel states.
        size: Bytes of the channel that were read.
        packets: Of multifd, how many.
        syncs: How many of those end a generation.
        compression: Of multifd: 'none', 'zlib', 'zstd', 'qpl', 'uadk' or 'qatzip'; more than one
            if the packets disagree.
        pages: Pages on the channel, by kind; 'compressed' those in compressed packets.
        device_states: The first 1000 devices with state on the channel.
    """

    name: str
    kind: str
    channel_id: int | None
    size: int
    packets: int
    syncs: int
    compression: list[str]
    pages: PageCounts
    device_states: list[DeviceStateReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SaveImageReport:
    """What the header and the XML of a libvirt save image say.

    Attributes:
        version: 1 to 3.
        byte_order: 'little' or 'big', of the host that wrote it.
        finished: The save came to its end.
        was_running: The guest ran when it was saved.
        format: 'raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse' or 'unknown (N)', as the
            header states it; the layers tell what was found.
        name: Name of the domain, `None` if the XML does not tell.
        xml_size: Bytes of the domain XML.
        cookie_size: Bytes of the cookie, `None` if there is none.
        stream_offset: In the image, of the stream or of what it is compressed with.
    """

    version: int
    byte_order: str
    finished: bool
    was_running: bool
    format: str
    name: str | None
    xml_size: int
    cookie_size: int | None
    stream_offset: int


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """One internal snapshot of a qcow2 image.

    Attributes:
        id: Identifier, a number in text if QEMU made it.
        id_b64: The identifier in full, if it is not plain UTF-8.
        name: As given to savevm.
        name_b64: The name in full, if it is not plain UTF-8.
        date: When it was taken, by the clock of the host: UTC, ISO 8601, to the second.
        date_nsec: Nanoseconds of that.
        vm_clock_nsec: Clock of the guest, nanoseconds since it was started.
        vm_state_size: Length of the stream in it, bytes; 0 if it is of disks alone.
        disk_size: Size of the disk when it was taken, bytes; `None` if it is not stated.
        icount: Instructions executed, `None` if they were not counted.
    """

    id: str
    name: str
    date: str
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    disk_size: int | None
    icount: int | None
    id_b64: str | None = None
    name_b64: str | None = None


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer around the stream.

    Attributes:
        kind: 'libvirt', 'qcow2', 'gzip', 'bzip2', 'xz', 'zstd', 'lz4' or 'lzop', or
            'offset' for other bytes in front of a stream.
        size: Bytes of the layer, header and all; `None` if it was not read to its end.
        libvirt: `None` for any other kind.
        snapshot: That of a qcow2 image whose VM state was read; `None` for any other kind.
    """

    kind: str
    size: int | None
    libvirt: SaveImageReport | None = None
    snapshot: SnapshotReport | None = None


@dataclass(frozen=True, slots=True)
class BlockDeviceReport:
    """A disk in a block migration.

    Attributes:
        device: Name.
        device_b64: The name in full, if it is not plain UTF-8.
        chunks: Records with data, of 1 MiB each.
        zero_chunks: Records that say that a MiB is zero.
        resent: Records of a chunk that was sent before; the last one counts.
        missing: Chunks below `end` that no record has: an incremental migration leaves them to
            the image below.
        end: Of the last chunk, bytes. The size of the disk is not in the stream: it is this, or up
            to a MiB less, since the last chunk is padded.
    """

    device: str
    chunks: int
    zero_chunks: int
    resent: int
    missing: int
    end: int
    device_b64: str | None = None


@dataclass(frozen=True, slots=True)
class DirtyBitmapReport:
    """A dirty bitmap of a block node.

    Attributes:
        node: Name of the node, or of the device that has it, or its alias.
        node_b64: The name in full, if it is not plain UTF-8.
        name: Of the bitmap, or its alias.
        name_b64: The name in full, if it is not plain UTF-8.
        granularity: Bytes of the disk for each bit.
        enabled: It records writes.
        persistent: It is stored in the image.
        complete: The stream says that all bits were sent.
        length: Bytes of the disk that bits were sent of; once complete, the size of the disk.
        bits_set: Bits that are set.
        ranges: Dirty ranges as [start, length], bytes, ascending; of all bitmaps the first 65536.
        range_count: How many there are.
    """

    node: str
    name: str
    granularity: int
    enabled: bool
    persistent: bool
    complete: bool
    length: int
    bits_set: int
    ranges: list[list[int]]
    range_count: int
    node_b64: str | None = None
    name_b64: str | None = None


@dataclass(frozen=True, slots=True)
class HTABReport:
    """The hash page table of a pseries guest.

    Attributes:
        htab_shift: Binary logarithm of its size in bytes; `None` if there is none.
        radix: The guest has none: it uses radix page tables.
        valid: Valid entries sent; one that is sent twice counts twice.
        invalid: Invalid entries sent, likewise.
    """

    htab_shift: int | None
    radix: bool
    valid: int
    invalid: int


@dataclass(frozen=True, slots=True)
class StorageReport:
    """Storage attributes or storage keys of an s390 guest: a byte for each page of 4096 bytes.

    Attributes:
        pages: Values sent; one that is sent twice counts twice.
        ranges: [guest-physical address, pages], neighbours joined; the first 4096.
        range_count: How many there are.
    """

    pages: int
    ranges: list[list[int]]
    range_count: int


@dataclass(frozen=True, slots=True)
class VFIOReport:
    """A VFIO device: how much state it sent, which it alone understands.

    Attributes:
        idstr: Name of the section.
        idstr_b64: The name in full, if it is not plain UTF-8.
        instance_id: Its instance.
        records: Stretches of state.
        size: Bytes of state.
    """

    idstr: str
    instance_id: int
    records: int
    size: int
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class LiveReport:
    """What is in iterable sections other than RAM, and in the storage keys of s390.

    Attributes:
        block_devices: Disks of a block migration, in the order they come.
        dirty_bitmaps: In wire order.
        htab: `None` if there is none.
        storage_attributes: `None` if there are none.
        storage_keys: `None` if there are none.
        vfio: Devices whose state is in iterable sections.
        pbs_state_size: Bytes of state of Proxmox Backup, `None` if there is none.
    """

    block_devices: list[BlockDeviceReport]
    dirty_bitmaps: list[DirtyBitmapReport]
    htab: HTABReport | None
    storage_attributes: StorageReport | None
    storage_keys: StorageReport | None
    vfio: list[VFIOReport]
    pbs_state_size: int | None


@dataclass(frozen=True, slots=True)
class InspectReport:
    """Document of `vmstream inspect --json`.

    Attributes:
        schema: 'vmstream.inspect/1'.
        input: Path, or 'standard input'.
        container: Kind of the outermost layer around the stream, 'raw' if there is none.
        size: Bytes of the stream, unpacked; of a bare stream those of the input.
        complete: The end of the stream was seen, and of every iterable section that needs one,
            and nothing was found damaged.
        end_offset: Offset behind the last byte of the stream, without padding.
        quick: Only head and tail were read; page counts are `None`.
        machine: Machine type, `None` without a configuration section.
        uuid: UUID of the guest, if the stream has it.
        page_size: Target page size, bytes.
        page_size_source: 'argument', 'target-page-bits', 'mapped-ram', 'multifd', 'probe',
            'vmdescription' or 'default'.
        capabilities: Those that the configuration section lists.
        features: What else the stream shows of the QEMU that wrote it.
        footers: Sections have footers; `None` if no section told.
        vmdescription: `None` if there is none.
        ram_version: Version of the RAM section.
        ram_total: Sum of the block lengths as the stream states it, bytes.
        ram_blocks: In wire order.
        passes: The first 1000 of them.
        pass_count: How many there are.
        sections: In wire order.
        commands: The first 1000 of them.
        command_count: How many there are.
        anomalies: The first 1000 of them.
        anomaly_count: How many there are.
        layers: What is around the stream, the outermost first; empty for a bare stream.
        channels: Those that were read beside the main one; pages of theirs are counted with the
            blocks and passes.
        live: What is in iterable sections other than RAM; `None` after a quick look, and if there
            are none that are decoded.
    """

    schema: str
    input: str
    container: str
    size: int
    complete: bool
    end_offset: int | None
    quick: bool
    machine: str | None
    uuid: str | None
    page_size: int | None
    page_size_source: str | None
    capabilities: list[str]
    features: list[str]
    footers: bool | None
    vmdescription: VMDescriptionReport | None
    ram_version: int | None
    ram_total: int | None
    ram_blocks: list[RAMBlockReport]
    passes: list[PassReport]
    pass_count: int
    sections: list[SectionReport]
    commands: list[CommandReport]
    command_count: int
    anomalies: list[AnomalyReport]
    anomaly_count: int
    layers: list[LayerReport] = field(default_factory=list)
    channels: list[ChannelReport] = field(default_factory=list)
    live: LiveReport | None = None


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


@dataclass(frozen=True, slots=True)
class DiskReport:
    """A disk that was written.

    Attributes:
        path: File.
        size: Of the file, bytes.
        size_source: 'argument', or 'inferred': the end of the last chunk.
        device: What was sent of it.
    """

    path: str
    size: int
    size_source: str
    device: BlockDeviceReport


@dataclass(frozen=True, slots=True)
class ExtractBlockReport:
    """Document of `vmstream extract-block --json`.

    Attributes:
        schema: 'vmstream.extract-block/1'.
        tool: Name and version.
        input: Path, or 'standard input'.
        input_size: Bytes of the input itself, compressed if it is.
        complete: As in the inspect report.
        partial: --partial was given.
        machine: Machine type, `None` without a configuration section.
        outputs: Files written.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
    """

    schema: str
    tool: str
    input: str
    input_size: int
    complete: bool
    partial: bool
    machine: str | None
    outputs: list[DiskReport]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SnapshotsReport:
    """Document of `vmstream snapshots --json`.

    Attributes:
        schema: 'vmstream.snapshots/1'.
        input: Path.
        input_size: Of the file, bytes.
        version: Of the qcow2 format, 2 or 3.
        cluster_size: Bytes.
        disk_size: Of the disk as it is now, bytes.
        notes: What speaks against the image, or keeps VM state from being read.
        snapshots: In the order of the table.
    """

    schema: str
    input: str
    input_size: int
    version: int
    cluster_size: int
    disk_size: int
    notes: list[str]
    snapshots: list[SnapshotReport]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A device, or something in its state.

    Attributes:
        path: Section with its instance in brackets, and the names below, joined by '/'.
        type: Of the vmdescription; 'device', 'struct', 'array', 'subsection', or 'raw' for bytes
            that it does not name, 'ambiguous' for those that a schema of -dump-vmstate does not
            settle.
        offset: Of its first byte in the stream.
        size: Bytes.
        version: Of a device or subsection.
        value: Number, truth value, or bytes in hex; numbers of an array as a list; null for what
            has entries of its own and for a NULL pointer.
        meaning: What the value stands for, in words; an inference.
    """

    path: str
    type: str
    offset: int
    size: int
    version: int | None
    value: int | bool | str | list[int] | None
    meaning: str | None = None


@dataclass(frozen=True, slots=True)
class DevicesReport:
    """Document of `vmstream devices --json`.

    Attributes:
        schema: 'vmstream.devices/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        described: Where the names come from: the vmdescription of the 'stream', that of another
            one ('schema', inferred), what `qemu -dump-vmstate` wrote ('dump-vmstate', inferred,
            types too), or 'none': then all state is raw.
        nodes: In the order of the stream, each ahead of what is in it.
        anomalies: As in the inspect report.
    """

    schema: str
    input: str
    machine: str | None
    described: str
    nodes: list[NodeReport]
    anomalies: list[AnomalyReport]


@dataclass(frozen=True, slots=True)
class CPUReport:
    """One CPU.

    Attributes:
        instance_id: Index of the CPU.
        architecture: 'x86', 'aarch64', 'ppc64', 'riscv64', 's390x', 'arm', 'ppc' or 'riscv32'.
        mode: What it executes, in words.
        flags: Condition and control flags that are set.
        halted: It waits for an interrupt; `None` if the stream does not say.
        registers: By group, then by name.
    """

    instance_id: int
    architecture: str
    mode: str
    flags: list[str]
    halted: bool | None
    registers: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class CPUsReport:
    """Document of `vmstream cpus --json`.

    Attributes:
        schema: 'vmstream.cpus/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        cpus: In the order of the stream.
        anomalies: As in the inspect report.
    """

    schema: str
    input: str
    machine: str | None
    cpus: list[CPUReport]
    anomalies: list[AnomalyReport]


@dataclass(frozen=True, slots=True)
class ArgumentReport:
    """An option of a command line.

    Attributes:
        words: The option, and its value if it takes one.
        source: 'wire' if the stream states it, 'inferred' if it follows from names and state.
        reason: What tells it.
    """

    words: list[str]
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class CmdlineReport:
    """Document of `vmstream cmdline --json`.

    Attributes:
        schema: 'vmstream.cmdline/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        emulator: Name of the program; inferred.
        arguments: In order.
        not_stated: What the stream cannot tell, a sentence each.
        unknown: Names of the sections that stand for no device that is known.
        notes: Where more is to be found, a sentence each.
        anomalies: As in the inspect report.
    """

    schema: str
    input: str
    machine: str | None
    emulator: str
    arguments: list[ArgumentReport]
    not_stated: list[str]
    unknown: list[str]
    notes: list[str]
    anomalies: list[AnomalyReport]


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


@dataclass(frozen=True, slots=True)
class KernelNoteReport:
    """A VMCOREINFO note.

    Attributes:
        source: 'device', where the state of QEMU's vmcoreinfo device points to it, or 'inferred',
            where memory was searched for it.
        confirmed: The kernel's own name stands in memory where the note says.
        gpa: Guest-physical address of the note, `None` if it is not known.
        size: Bytes that the device's state gives, or that head and text take.
        has_head: The head of an ELF note stands in front of the text in memory.
        fields: The lines, by what is left of '='.
    """

    source: str
    confirmed: bool
    gpa: int | None
    size: int
    has_head: bool
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class VMCoreInfoReport:
    """Document of `vmstream vmcoreinfo --json`.

    Attributes:
        schema: 'vmstream.vmcoreinfo/1'.
        input: Path, or '-'.
        note: That of the guest's kernel, `None` if there is none.
        others: Further ones in memory: of kernels before it, of guests of the guest, of files.
        reasons: How it was decided, a sentence each.
    """

    schema: str
    input: str
    note: KernelNoteReport | None
    others: list[KernelNoteReport]
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class BannerCandidate:
    """A text that looks like the banner of a kernel.

    Attributes:
        text: The banner.
        release: What it says of the release.
        gpa: Guest-physical address of the first of them, `None` if it is not known.
        count: How often it stands in memory.
        whole: It ends as in a kernel's image, not as in a log.
    """

    text: str
    release: str
    gpa: int | None
    count: int
    whole: bool


@dataclass(frozen=True, slots=True)
class BannerReport:
    """Document of `vmstream banner --json`.

    Attributes:
        schema: 'vmstream.banner/1'.
        input: Path, or '-'.
        banner: Of the guest's kernel, `None` if there is none.
        source: 'inferred': found by searching memory.
        osrelease: Release by the kernel's VMCOREINFO, `None` without one.
        candidates: All texts, the chosen one first.
    """

    schema: str
    input: str
    banner: str | None
    source: str
    osrelease: str | None
    candidates: list[BannerCandidate]


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """A stretch of the input that is another one in the output.

    Attributes:
        what: For people: what it changes.
        offset: In the input, bytes.
        end: Behind the last byte that went; `offset` for what was put in.
        output_offset: In the output, bytes.
        length: Bytes that came.
    """

    what: str
    offset: int
    end: int
    output_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RewriteReport:
    """Document of `vmstream rewrite --json`.

    Attributes:
        schema: 'vmstream.rewrite/1'.
        tool: Name and version.
        input: Path, or 'standard input'.
        input_size: Of the stream, bytes, without what is around it.
        output: Path; `None` with --dry-run.
        output_size: Bytes.
        machine: Machine type of the input, `None` without a configuration section.
        change_count: How many changes there are.
        changes: The first 4096 of them, by place.
        doubts: What speaks against the guest-physical addresses of --patch-ram, which are inferred.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
    """

    schema: str
    tool: str
    input: str
    input_size: int
    output: str | None
    output_size: int
    machine: str | None
    change_count: int
    changes: list[ChangeReport]
    doubts: list[str]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ConvertReport(RewriteReport):
    """Document of `vmstream convert --json`: 'vmstream.convert/1', and as in the rewrite report.

    `output_size` is that of the file. Offsets of changes in the output are those in the stream
    unpacked, or in a save image that is not compressed.

    Attributes:
        to: 'stream', 'mapped-ram', or 'libvirt:' and the format.
        compression: 'gzip', 'zstd' and so on; `None` for none.
        capabilities: Those that the destination has to have set, as the stream states.
        stream_offset: Where the stream begins in the output, bytes.
        stream_size: Its length, bytes, before it is compressed.
        channels: The channels that were given.
    """

    to: str = "stream"
    compression: str | None = None
    capabilities: list[str] = field(default_factory=list)
    stream_offset: int = 0
    stream_size: int = 0
    channels: list[ChannelInput] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UnpackedConfiguration:
    """The configuration section.

    Attributes:
        name: Machine type.
        target_page_bits: `None` if the section does not say.
        capabilities: Those that QEMU checks when it loads; `None` if the section has no list.
        uuid: Of the guest, 32 hex digits, with or without dashes; `None` if it has none.
        name_b64: The name in full, if it is not plain UTF-8; then it is what counts.
    """

    name: str
    target_page_bits: int | None
    capabilities: list[str] | None
    uuid: str | None
    name_b64: str | None = None


@dataclass(frozen=True, slots=True)
class UnpackedBlock:
    """A RAM block.

    Attributes:
        idstr: Name.
        used_length: Length, bytes; that of the file.
        file: In `blocks`: its memory, sparse; `None` if it is not in the stream (x-ignore-shared).
        gpa: Address that x-ignore-shared sent, `None` without.
        unsent: [offset, length] of pages that the stream does not have, bytes, ascending. They are
            left out of the new one, too, if they are zeros.
        idstr_b64: The name in full, if it is not plain UTF-8; then it is what counts.
    """

    idstr: str
    used_length: int
    file: str | None
    gpa: int | None
    unsent: list[list[int]]
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class UnpackedSection:
    """A device, or the start, the parts or the end of an iterable section.

    Attributes:
        part: 'start', 'part' or 'end' of an iterable section, or 'device'.
        section_id: As on the wire.
        idstr: Name.
        instance_id: Instance; of a 'part' or 'end' that of its 'start', which alone counts.
        version_id: Version of the state, likewise.
        file: In `devices`: the state of a device, JSON; in `live`: the body of the start or the
            end as it is, or those of all parts one behind the other; `null` for 'ram'.
        described: Of a device: the vmdescription describes it, and has to afterwards.
        lengths: Bytes of each body in a file of `live`.
        idstr_b64: The name in full, if it is not plain UTF-8; then it is what counts.
    """

    part: str
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    file: str | None
    described: bool
    lengths: list[int]
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class UnpackedManifest:
    """`manifest.json` of `vmstream unpack`, and what `vmstream build` is made from.

    Attributes:
        schema: 'vmstream.unpacked/1'.
        page_size: Target page size, bytes.
        footers: Sections have footers: machine types of 2.4 on.
        configuration: `None` if there is none: machine types up to 2.3.
        blocks: The RAM blocks, in the order of the wire.
        sections: Sections and parts, in the order of the wire.
        vmdescription: File with its text; `None` if there is none.
    """

    schema: str
    page_size: int
    footers: bool
    configuration: UnpackedConfiguration | None
    blocks: list[UnpackedBlock]
    sections: list[UnpackedSection]
    vmdescription: str | None


@dataclass(frozen=True, slots=True)
class UnpackReport:
    """Document of `vmstream unpack --json`.

    Attributes:
        schema: 'vmstream.unpack/1'.
        tool: Name and version.
        input: Path, or '-'.
        output: The directory.
        machine: Machine type, `None` if the stream does not say.
        described: Where names of device state come from, as in the devices report.
        blocks: RAM blocks.
        devices: Devices.
        undescribed: Those whose state has no names.
        anomalies: As in the inspect report.
        layers: As in the inspect report.
    """

    schema: str
    tool: str
    input: str
    output: str
    machine: str | None
    described: str
    blocks: int
    devices: int
    undescribed: list[str]
    anomalies: list[AnomalyReport]
    layers: list[LayerReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Document of `vmstream build --json`.

    Attributes:
        schema: 'vmstream.build/1'.
        tool: Name and version.
        input: The directory.
        output: Path.
        output_size: Bytes.
        machine: Machine type, `None` if there is no configuration section.
        blocks: RAM blocks.
        devices: Devices.
        vmdescription: 'none', 'kept' or 'changed': what the directory says is other than it said.
    """

    schema: str
    tool: str
    input: str
    output: str
    output_size: int
    machine: str | None
    blocks: int
    devices: int
    vmdescription: str


@dataclass(frozen=True, slots=True)
class SettingReport:
    """What was set for a capture, and set back.

    Attributes:
        kind: 'capability' or 'parameter'.
        name: QEMU's.
        before: Its value before and after the capture.
        during: Its value during the capture.
    """

    kind: str
    name: str
    before: bool | int | str
    during: bool | int | str


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """Document of `vmstream capture --json`, and what `--manifest` writes.

    Attributes:
        schema: 'vmstream.capture/1'.
        tool: Name and version.
        qmp: Path of the monitor's socket.
        output: Path, '-' for standard output.
        output_size: Bytes.
        output_sha256: Of the file, `None` unless it was asked for.
        stream_size: Bytes of the stream, before it was compressed.
        stream_sha256: Of the stream, `None` unless it was asked for.
        format: 'plain', 'zstd' or 'mapped-ram'.
        mode: 'stopped', 'live' or 'background-snapshot'.
        qemu: Version of the QEMU, with that of the package.
        machine: Machine type.
        name: Of the guest, `None` if it has none.
        uuid: Of the guest.
        started: When, UTC, ISO 8601.
        total_time_ms: How long the migration took, milliseconds, as QEMU says.
        downtime_ms: How long QEMU itself stopped the guest, milliseconds, as QEMU says.
        passes: Passes over RAM, as QEMU counts.
        status_before: QEMU's word for the state of the guest.
        status_after: That behind the capture.
        settings: What was set.
        troubles: What could not be put back, in QEMU's words.
        complete: As `inspect` says, `None` unless `--verify` was given.
        anomalies: What `inspect` found.
    """

    schema: str
    tool: str
    qmp: str
    output: str
    output_size: int
    output_sha256: str | None
    stream_size: int
    stream_sha256: str | None
    format: str
    mode: str
    qemu: str
    machine: str
    name: str | None
    uuid: str
    started: str
    total_time_ms: int | None
    downtime_ms: int | None
    passes: int | None
    status_before: str
    status_after: str
    settings: list[SettingReport]
    troubles: list[str]
    complete: bool | None
    anomalies: list[AnomalyReport]


@dataclass(frozen=True, slots=True)
class ReceivedChannel:
    """A connection that was recorded.

    Attributes:
        file: In the directory.
        kind: 'main', 'multifd' or 'other'.
        size: Bytes.
        sha256: Of the file.
    """

    file: str
    kind: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReceiveReport:
    """Document of `vmstream receive --json`.

    Attributes:
        schema: 'vmstream.receive/1'.
        tool: Name and version.
        listen: The address, with its port.
        output: The directory.
        channels: The main one first.
        return_path: The source asked for answers.
        pings: PINGs that were answered.
        shut: SHUT was sent, for which the source waits.
        machine: Machine type, `None` if the stream does not state it.
        complete: As `inspect` says.
        anomalies: What `inspect` found.
    """

    schema: str
    tool: str
    listen: str
    output: str
    channels: list[ReceivedChannel]
    return_path: bool
    pings: int
    shut: bool
    machine: str | None
    complete: bool
    anomalies: list[AnomalyReport]


@dataclass(frozen=True, slots=True)
class DeviceField:
    """A field of device state: it has one of value, values, text, fields and raw.

    Attributes:
        name: As in the vmdescription; of a subsection it is on the wire.
        type: Of the vmdescription; 'subsection' has a frame on the wire.
        version: Of a subsection.
        size: Bytes, where the type does not tell; of an array those of an element.
        count: Elements of an array.
        value: A number, also as text (decimal, or hex with 0x), a truth value, or bytes as hex.
        values: Those of an array; bytes also as hex.
        text: Text that NULs fill up to the size.
        fields: What is inside.
        raw: Bytes that have no type, as hex.
    """

    name: str | None = None
    type: str | None = None
    version: int | None = None
    size: int | None = None
    count: int | None = None
    value: int | bool | str | None = None
    values: list[int | bool | str] | str | None = None
    text: str | None = None
    fields: list[DeviceField] | None = None
    raw: str | None = None


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
        live_left_out: Iterable sections that both have and whose content was not compared.
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
    live_left_out: list[str]
    ram: DiffRAM | None


@dataclass(frozen=True, slots=True)
class FindingReport:
    """What `vmstream verify` found.

    Attributes:
        severity: 'error', 'warning' or 'info'.
        code: Stable, as of the anomalies of other reports.
        offset: In the stream, or in the file `channel`; bytes.
        message: What it is here, for people.
        meaning: What the code means.
        advice: What to do.
        channel: File of the channel that the offset is in; `None` for the stream itself.
    """

    severity: str
    code: str
    offset: int
    message: str
    meaning: str
    advice: str
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file that a manifest names.

    Attributes:
        path: As in the manifest.
        sha256: As in the manifest; `None` if it has none.
        found: SHA-256 that the file has; `None` if it was not read.
        same: They are the same.
    """

    path: str
    sha256: str | None
    found: str | None
    same: bool


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Document of `vmstream verify --json`.

    Attributes:
        schema: 'vmstream.verify/1'.
        input: Path, or 'standard input'.
        size: Of the stream, bytes, unpacked.
        verdict: 'sound'; 'doubtful', with warnings alone; 'truncated', sound up to where it is cut
            off; 'corrupt'; 'unsupported'; or 'limit', of a bound that the user can raise.
        complete: As in the inspect report.
        machine: Machine type, `None` without a configuration section.
        pages: Page records, of all channels; each was decoded.
        sections: How many, parts apart.
        findings: The first 1000, in the order of the stream.
        finding_count: How many there were.
        manifest: The input first, then the files of a manifest; empty without --manifest.
    """

    schema: str
    input: str
    size: int
    verdict: str
    complete: bool
    machine: str | None
    pages: int
    sections: int
    findings: list[FindingReport]
    finding_count: int
    manifest: list[HashedFile]


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """What speaks against loading a stream.

    Attributes:
        effect: 'refused', QEMU will not load it; 'doubt'; or 'info'.
        code: Stable.
        offset: In the stream, bytes, where the cause stands.
        section: Section, with its instance in brackets; `None` of the configuration.
        message: What it is, for people.
        source: 'wire', both sides are stated; or 'inferred'.
        qemu: The messages of QEMU, in order; empty if it says nothing.
        advice: What to do.
    """

    effect: str
    code: str
    offset: int
    section: str | None
    message: str
    source: str
    qemu: list[str]
    advice: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Document of `vmstream check --json`.

    Attributes:
        schema: 'vmstream.check/1'.
        input: Path, or 'standard input'.
        against: File of the destination.
        against_kind: 'dump-vmstate' or 'stream'.
        machine: Machine type of the stream; `None` if it does not say.
        destination_machine: Of the destination; `None` if its file does not say.
        verdict: 'loads', 'doubtful' or 'refused'.
        findings: What speaks against it.
        not_checked: What the destination's file does not tell, in sentences.
    """

    schema: str
    input: str
    against: str
    against_kind: str
    machine: str | None
    destination_machine: str | None
    verdict: str
    findings: list[CheckFinding]
    not_checked: list[str]


@dataclass(frozen=True, slots=True)
class CauseReport:
    """A message of QEMU, and its cause in the stream.

    Attributes:
        line: Number of the line in the log, from 1.
        text: The line.
        code: Stable.
        offset: In the stream, bytes, of what QEMU speaks of; `None` if no place is known.
        section: Section, with its instance in brackets; `None` if it is of none.
        field: Name of the field, if it is told.
        cause: What it means here.
        advice: What to do.
    """

    line: int
    text: str
    code: str
    offset: int | None
    section: str | None
    field: str | None
    cause: str
    advice: str


@dataclass(frozen=True, slots=True)
class DiagnoseReport:
    """Document of `vmstream diagnose --json`.

    Attributes:
        schema: 'vmstream.diagnose/1'.
        input: Path, or 'standard input'.
        causes: The messages that are known, in the order of the log; the first 1000.
    """

    schema: str
    input: str
    causes: list[CauseReport]


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
