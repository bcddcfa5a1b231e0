"""The one place that runs Construct, and turns its errors into ours.

Every function takes the bytes from some offset on and returns a plain value and the number of
bytes it used; `Short` says that the item goes on behind the bytes given.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any

import construct

from vmstream.errors import FormatError, IntegrityError, LimitError, UnsupportedError, quoted
from vmstream.wire import grammar
from vmstream.wire.constants import (
    FOREIGN_MAGICS,
    MAX_CONFIGURATION,
    MAX_RAM_BLOCKS,
    QCOW2_CLUSTER_BITS,
    QCOW2_EXTL2_CLUSTER_BITS,
    QCOW2_MAGIC,
    QCOW2_MAX_SNAPSHOT_EXTRA,
    QEMU_SAVE_MAGIC,
    QEMU_SAVE_PARTIAL,
    QEMU_SAVE_VERSIONS,
    QEMU_VM_FILE_MAGIC,
    QEMU_VM_FILE_VERSION,
    RAM_FLAG_MASK,
    MigCmd,
    Qcow2Compression,
    Qcow2Incompatible,
    SectionType,
)
from vmstream.wire.layout import is_legal_flags

Buffer = bytes | memoryview

LONGEST_SECTION_HEAD = 1 + 4 + 256 + 4 + 4
SHORTEST_SECTION_HEAD = 1 + 4 + 1 + 4 + 4
LONGEST_SNAPSHOT = 40 + QCOW2_MAX_SNAPSHOT_EXTRA + 2 * 0xFFFF
QCOW2_HEADER_SIZE = 112  # the part of it that is read

_NO_ICOUNT = (1 << 64) - 1  # QEMU v10.1.0 block/qcow2-snapshot.c: -1ULL


class Short(Exception):
    """The item is not wholly inside the bytes given; it takes `size` of them at the least."""

    def __init__(self, size: int) -> None:
        self.size = size


@dataclass(frozen=True, slots=True)
class SectionHead:
    """Head of a START or FULL section."""

    section_type: int
    section_id: int
    idstr: bytes
    instance_id: int
    version_id: int


@dataclass(frozen=True, slots=True)
class ConfigurationValues:
    """What the CONFIGURATION section says. `None` where a subsection is absent."""

    name: bytes
    target_page_bits: int | None
    capabilities: tuple[bytes, ...]
    uuid: bytes | None
    subsections: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One entry of the RAM block list; lengths and addresses in bytes."""

    idstr: bytes
    used_length: int
    host_page_size: int | None
    gpa: int | None
    ignored: int | None


@dataclass(frozen=True, slots=True)
class SaveHeader:
    """Header of a libvirt save image.

    Attributes:
        byte_order: 'little' or 'big', of the host that wrote it.
        finished: The save came to its end.
        version: 1 to 3.
        data_length: Bytes of XML and padding behind the header.
        was_running: The guest ran when it was saved.
        format: Number of the format of what is behind the XML.
        cookie_offset: Of the cookie in the XML area, bytes; 0 if there is none.
    """

    byte_order: str
    finished: bool
    version: int
    data_length: int
    was_running: bool
    format: int
    cookie_offset: int


@dataclass(frozen=True, slots=True)
class LzopBlock:
    """Head of a block of an lzop file; sizes in bytes, checksums `None` where absent."""

    size: int
    packed_size: int
    adler32: int | None
    crc32: int | None
    packed_adler32: int | None
    packed_crc32: int | None


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What the header of a qcow2 image says; sizes and offsets in bytes.

    Attributes:
        version: 2 or 3.
        cluster_bits: Binary logarithm of the cluster size.
        size: Of the disk.
        crypt_method: 0 none, 1 AES, 2 LUKS.
        snapshot_count: Entries of the snapshot table.
        snapshots_offset: Where that is.
        incompatible: Feature bits, all of them known.
        compression: How compressed clusters are.
    """

    version: int
    cluster_bits: int
    size: int
    crypt_method: int
    snapshot_count: int
    snapshots_offset: int
    incompatible: Qcow2Incompatible
    compression: Qcow2Compression


@dataclass(frozen=True, slots=True)
class Qcow2Snapshot:
    """One entry of a snapshot table; sizes and offsets in bytes.

    Attributes:
        offset: Of the entry in the image.
        id_str: Identifier, a number in text if QEMU made it.
        name: As given to savevm.
        date_sec: When it was taken, seconds since the epoch.
        date_nsec: Nanoseconds of that.
        vm_clock_nsec: Clock of the guest, nanoseconds.
        vm_state_size: The one that counts of the two there are; 0 for a snapshot of disks alone.
        disk_size: `None` where the entry does not state it.
        icount: Instructions, `None` where they were not counted.
        l1_table_offset: Of the L1 table of the snapshot.
        l1_size: Its entries.
    """

    offset: int
    id_str: bytes
    name: bytes
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    disk_size: int | None
    icount: int | None
    l1_table_offset: int
    l1_size: int


def _run(
    what: construct.Construct, data: Buffer, offset: int, context: str, **params: Any
) -> tuple[Any, int]:
    stream = io.BytesIO(data)
    try:
        found = what.parse_stream(stream, **params)
    except construct.StreamError as exc:
        raise Short(len(data) + 1) from exc
    except construct.ConstructError as exc:
        path = getattr(exc, "path", None) or ""
        raise FormatError(offset, f"malformed {context} {path}".rstrip(), context=context) from exc
    return found, stream.tell()


def file_header(data: Buffer) -> int:
    """Check magic and version; return the size of the header.

    Raises:
        FormatError: This is no migration stream, or one of a version QEMU does not load.
        UnsupportedError: It is something that holds a stream.
    """
    for magic, (what, advice) in FOREIGN_MAGICS.items():
        if bytes(data[: len(magic)]) == magic:
            raise UnsupportedError(0, f"{what}, not a bare migration stream", advice=advice)
    if _is_recovery(bytes(data[:6])):
        raise UnsupportedError(
            0,
            "the stream of a recovered postcopy, which goes on where a broken one ended",
            advice="give the stream from before the break; --partial writes what it has",
        )
    magic = bytes(data[:4])
    if magic != QEMU_VM_FILE_MAGIC[: len(magic)]:
        raise FormatError(
            0,
            "not a migration stream",
            expected=repr(QEMU_VM_FILE_MAGIC),
            found=repr(magic),
            advice="capture one with QMP migrate uri=exec:cat>FILE",
        )
    header, size = _run(grammar.FILE_HEADER, data[:8], 0, "file header")
    if header.version != QEMU_VM_FILE_VERSION:
        raise FormatError(
            4,
            "stream version that QEMU does not load",
            context="file header",
            expected=str(QEMU_VM_FILE_VERSION),
            found=str(header.version),
        )
    return size


# A new connection has no header: it begins with RECV_BITMAP and the name of a block. 3.0 gave that
# another number. QEMU v10.1.0 migration/savevm.c qemu_savevm_send_recv_bitmap(), v3.0.0 likewise.
def _is_recovery(data: bytes) -> bool:
    cmd, length = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:5], "big")
    return (
        len(data) == 6
        and data[0] == SectionType.QEMU_VM_COMMAND
        and cmd in (MigCmd.RECV_BITMAP, MigCmd.POSTCOPY_RESUME)
        and length == 1 + data[5] > 1
    )


def configuration(data: Buffer, offset: int) -> tuple[ConfigurationValues, int]:
    """Parse the CONFIGURATION section with its subsections, which have neither length nor count."""
    context = "configuration"
    if len(data) >= 5:
        length = int.from_bytes(data[1:5], "big")
        if length > MAX_CONFIGURATION // 2:
            raise FormatError(
                offset + 1,
                "machine name of an impossible length",
                context=context,
                found=f"{length} bytes",
            )
    head, pos = _run(grammar.CONFIGURATION, data[:MAX_CONFIGURATION], offset, context)
    values: dict[str, Any] = {}
    names: list[bytes] = []
    while True:
        if pos >= len(data):
            raise Short(pos + 1)
        # 0x05 is no item type, so the byte alone tells. QEMU v10.1.0 migration/vmstate.c
        # vmstate_subsection_load() also asks for the name of the parent.
        if data[pos] != SectionType.QEMU_VM_SUBSECTION:
            break
        if pos > MAX_CONFIGURATION:
            raise LimitError(offset + pos, "configuration section too long", context=context)
        part, used = _run(grammar.SUBSECTION_HEAD, data[pos : pos + 262], offset + pos, context)
        name: bytes = part.name
        body = grammar.CONFIGURATION_SUBSECTIONS.get(name)
        if body is None:
            raise FormatError(
                offset + pos,
                "unknown subsection",
                context=context,
                found=quoted(name),
                advice="its length is not on the wire, so nothing behind it can be framed",
            )
        # QEMU v10.1.0 migration/savevm.c vmstate_configuration: all are of version 1, and
        # migration/vmstate.c vmstate_load_state() refuses any other.
        if part.version_id != 1:
            raise FormatError(
                offset + pos,
                "subsection of an unknown version",
                context=context,
                expected="1",
                found=f"{quoted(name)} version {part.version_id}",
                advice="its length is not on the wire, so nothing behind it can be framed",
            )
        pos += used
        fields, used = _run(body, data[pos : pos + MAX_CONFIGURATION], offset + pos, quoted(name))
        values.update({k: v for k, v in fields.items() if not k.startswith("_")})
        names.append(name)
        pos += used
    return (
        ConfigurationValues(
            name=head.name,
            target_page_bits=values.get("target_page_bits"),
            capabilities=tuple(values.get("capabilities", ())),
            uuid=values.get("uuid"),
            subsections=tuple(names),
        ),
        pos,
    )


def section_head(data: Buffer, offset: int) -> tuple[SectionHead, int]:
    """Parse the head of a START or FULL section."""
    found, size = _run(grammar.SECTION_HEAD, data[:LONGEST_SECTION_HEAD], offset, "section header")
    if not found.idstr:
        raise FormatError(offset + 5, "section without a name", context="section header")
    head = SectionHead(
        found.section_type, found.section_id, found.idstr, found.instance_id, found.version_id
    )
    return head, size


def command(data: Buffer, offset: int) -> tuple[int, bytes, int]:
    """Parse a COMMAND: (cmd, data, size)."""
    found, size = _run(grammar.COMMAND, data[: 5 + 0xFFFF], offset, "command")
    return found.cmd, found.data, size


def command_fields(cmd: int, data: bytes) -> dict[str, int]:
    """Name the numbers in the data of a command; empty where it has none or is malformed."""
    shapes: dict[int, construct.Construct] = {
        MigCmd.PING: grammar.COMMAND_PING,
        MigCmd.POSTCOPY_ADVISE: grammar.COMMAND_POSTCOPY_ADVISE,
        MigCmd.PACKAGED: grammar.COMMAND_PACKAGED,
    }
    shape = shapes.get(cmd)
    if shape is None or len(data) != shape.sizeof():
        return {}
    found = shape.parse(data)
    return {k: v for k, v in found.items() if not k.startswith("_")}


def discarded_ranges(data: bytes) -> tuple[bytes, tuple[tuple[int, int], ...]] | None:
    """Parse the data of POSTCOPY_RAM_DISCARD: the name of a block, and (start, length) in bytes.

    `None` if QEMU would refuse it. QEMU v10.1.0 migration/savevm.c
    loadvm_postcopy_ram_handle_discard().
    """
    try:
        found = grammar.COMMAND_RAM_DISCARD.parse(data)
    except construct.ConstructError:
        return None
    ranges = tuple((r.start, r.length) for r in found.ranges)
    # Version, length, name and NUL, then whole ranges.
    if found.version or not ranges or len(data) != 3 + len(found.idstr) + 16 * len(ranges):
        return None
    return bytes(found.idstr), ranges


# Name, length, address, and the header.
LONGEST_MAPPED_ENTRY = 256 + 8 + 8 + grammar.MAPPED_RAM_HEADER.sizeof()


@dataclass(frozen=True, slots=True)
class MappedEntry:
    """Entry of a block in a mapped-ram list; offsets in the file."""

    block: BlockEntry
    page_size: int
    bitmap_offset: int
    pages_offset: int


def mapped_ram_block(data: Buffer, offset: int, *, ignore_shared: bool) -> tuple[MappedEntry, int]:
    """Parse the entry of a block in a mapped-ram list; return it and its size.

    Args:
        data: Bytes from the entry on.
        offset: Their absolute offset.
        ignore_shared: The capability x-ignore-shared was on: entries have an address.

    Raises:
        Short: The entry goes on behind `data`.
        FormatError: A version that is not known.
    """
    context = "mapped-ram block"
    found, used = _run(
        grammar.RAM_BLOCK,
        data,
        offset,
        context,
        host_page_size=False,
        gpa=ignore_shared,
        ignored=False,
    )
    header, size = _run(grammar.MAPPED_RAM_HEADER, data[used:], offset + used, context)
    # QEMU v10.1.0 migration/ram.c mapped_ram_read_header() takes any up to its own, 1.
    if header.version > 1:
        raise FormatError(
            offset + used,
            f"mapped-ram header of version {header.version}",
            context=context,
            expected="1",
        )
    block = BlockEntry(found.idstr, found.used_length, None, found.gpa, None)
    entry = MappedEntry(block, header.page_size, header.bitmap_offset, header.pages_offset)
    return entry, used + size


def qcow2_header(data: Buffer) -> Qcow2Header:
    """Parse the header of a qcow2 image; the first 112 bytes have all of it that counts.

    Raises:
        Short: `data` ends inside it.
        FormatError: This is no qcow2 image, or QEMU would not open it.
        UnsupportedError: Another version, or features that are not known.
    """
    context = "qcow2 header"
    magic = bytes(data[:4])
    if magic != QCOW2_MAGIC[: len(magic)]:
        raise FormatError(
            0, "not a qcow2 image", context=context, expected=repr(QCOW2_MAGIC),
            found=repr(magic), advice="give the disk image that QEMU's savevm wrote to",
        )  # fmt: skip
    found, used = _run(grammar.QCOW2_HEADER, data, 0, context)
    if found.version not in (2, 3):
        raise UnsupportedError(
            4, "version of qcow2 that is not read here", context=context,
            expected="2 or 3", found=str(found.version),
            advice="convert it with the QEMU that wrote it",
        )  # fmt: skip
    features, compression = 0, 0
    if found.version == 3:
        more, _ = _run(grammar.QCOW2_HEADER_V3, data[used:], used, context)
        features, compression = more.incompatible_features, more.compression_type or 0
        if more.header_length < 104:
            raise FormatError(
                100, "header of an impossible length", context=context,
                expected="104 bytes or more", found=str(more.header_length),
            )  # fmt: skip
    unknown = features & ~sum(Qcow2Incompatible)
    if unknown:
        raise UnsupportedError(
            72, "features that are not known, and change what the image means", context=context,
            found=f"bits {unknown:#x}", advice="a later QEMU wrote it; read it with that one",
        )  # fmt: skip
    incompatible = Qcow2Incompatible(features)
    # QEMU v10.1.0 block/qcow2.c validate_compression_type().
    if (compression != 0) != bool(incompatible & Qcow2Incompatible.COMPRESSION):
        raise FormatError(
            104, "compression type and feature bit disagree", context=context,
            found=f"type {compression}", advice="the header is damaged",
        )  # fmt: skip
    if compression not in list(Qcow2Compression):
        raise UnsupportedError(
            104, "unknown compression type", context=context, found=str(compression),
            advice="a later QEMU wrote it; read it with that one",
        )  # fmt: skip
    extended = bool(incompatible & Qcow2Incompatible.EXTL2)
    bits = QCOW2_EXTL2_CLUSTER_BITS if extended else QCOW2_CLUSTER_BITS
    if found.cluster_bits not in bits:
        raise FormatError(
            20, "impossible cluster size", context=context,
            expected=f"{bits[0]} to {bits[-1]} bits", found=str(found.cluster_bits),
            advice="the header is damaged",
        )  # fmt: skip
    return Qcow2Header(
        found.version, found.cluster_bits, found.size, found.crypt_method, found.nb_snapshots,
        found.snapshots_offset, incompatible, Qcow2Compression(compression),
    )  # fmt: skip


def qcow2_snapshot(data: Buffer, offset: int) -> tuple[Qcow2Snapshot, int]:
    """Parse one entry of a snapshot table, which is padded to a multiple of 8 bytes.

    Raises:
        Short: The entry goes on behind `data`.
        LimitError: It has more extra data than QEMU takes.
    """
    context = "qcow2 snapshot table"
    # Of the extra data, so that none is read that is too much.
    size = int.from_bytes(data[36:40], "big") if len(data) >= 40 else 0
    if size > QCOW2_MAX_SNAPSHOT_EXTRA:
        raise LimitError(
            offset + 36, "too much extra data", context=context,
            expected=f"{QCOW2_MAX_SNAPSHOT_EXTRA} bytes at most", found=str(size),
            advice="the table is damaged, or 'qemu-img check -r all' on a copy can repair it",
        )  # fmt: skip
    found, used = _run(grammar.QCOW2_SNAPSHOT, data, offset, context)
    # QEMU v10.1.0 block/qcow2-snapshot.c qcow2_do_read_snapshots(): each is there if it fits.
    whole = found.extra_data[: len(found.extra_data) // 8 * 8][:24]
    extra: list[int] = list(grammar.QCOW2_SNAPSHOT_EXTRA.parse(whole))
    large, disk_size, icount, *_ = [*extra, None, None, None]
    return (
        Qcow2Snapshot(
            offset, found.id_str, found.name, found.date_sec, found.date_nsec, found.vm_clock_nsec,
            found.vm_state_size if large is None else large, disk_size,
            None if icount in (None, _NO_ICOUNT) else icount,
            found.l1_table_offset, found.l1_size,
        ),
        used,
    )  # fmt: skip


def ram_block_list(
    data: Buffer, offset: int, total: int, *, ignore_shared: bool
) -> tuple[tuple[BlockEntry, ...], int]:
    """Parse the block list of a MEM_SIZE word, in whichever variant adds up.

    Nothing on the wire says which optional words an entry has, so each reading is tried: first
    none, then a huge page size behind some of the lengths (2.9+, postcopy), and the extra byte
    of 4.0 with x-ignore-shared. The one is right whose lengths add up to `total` with a legal
    RAM head behind the list. QEMU v10.1.0 migration/ram.c ram_save_setup(), parse_ramblocks().

    Args:
        data: Bytes from behind the MEM_SIZE word on.
        offset: Their absolute offset.
        total: Sum that the word states, bytes.
        ignore_shared: The capability x-ignore-shared was on: entries have an address.

    Raises:
        Short: The list goes on behind `data`.
        IntegrityError: No reading adds up.
    """
    context = "RAM block list"
    short = 0
    for ignored in (False, True) if ignore_shared else (False,):
        # Depth first over "has a host page size" per entry; each state is where to go on.
        states: list[tuple[int, int, tuple[BlockEntry, ...]]] = [(0, total, ())]
        for _ in range(4 * MAX_RAM_BLOCKS):
            if not states:
                break
            pos, left, blocks = states.pop()
            if left == 0:
                if len(data) < pos + 8:
                    short = max(short, pos + 8)
                    continue
                head = int.from_bytes(data[pos : pos + 8], "big")
                if is_legal_flags(head & RAM_FLAG_MASK):
                    return blocks, pos
                continue
            if len(blocks) >= MAX_RAM_BLOCKS:
                raise LimitError(offset + pos, f"over {MAX_RAM_BLOCKS} RAM blocks", context=context)
            for has_size in (True, False):
                try:
                    found, used = _run(
                        grammar.RAM_BLOCK,
                        data[pos : pos + 290],
                        offset + pos,
                        context,
                        host_page_size=has_size,
                        gpa=ignore_shared,
                        ignored=ignored,
                    )
                except Short:
                    short = max(short, pos + 290)
                    continue
                size = found.host_page_size
                if (
                    not found.idstr
                    or not 0 < found.used_length <= left
                    or (size is not None and (size < 1024 or size & (size - 1)))
                ):
                    continue
                entry = BlockEntry(found.idstr, found.used_length, size, found.gpa, found.ignored)
                states.append((pos + used, left - found.used_length, (*blocks, entry)))
    if short > len(data):
        raise Short(short)
    raise IntegrityError(
        offset,
        "the lengths of the RAM blocks do not add up",
        context=context,
        expected=f"{total:#x} bytes in all",
        advice="a length or the total is damaged",
    )


def save_header(data: Buffer) -> tuple[SaveHeader, int]:
    """Parse the header of a libvirt save image, of either byte order.

    Raises:
        FormatError: It is none.
        UnsupportedError: A version that is not known.
    """
    context = "libvirt header"
    little, size = _run(grammar.save_header("little"), data, 0, context)
    if little.magic not in (QEMU_SAVE_MAGIC, QEMU_SAVE_PARTIAL):
        raise FormatError(
            0,
            "no libvirt save image",
            context=context,
            expected=f"{QEMU_SAVE_MAGIC!r} or {QEMU_SAVE_PARTIAL!r}",
            found=quoted(little.magic),
        )
    # libvirt src/qemu/qemu_saveimage.c qemuSaveImageOpen() swaps where the version is too large.
    for order in ("little", "big"):
        found, size = _run(grammar.save_header(order), data, 0, context)
        if found.version in QEMU_SAVE_VERSIONS:
            header = SaveHeader(
                order,
                found.magic == QEMU_SAVE_MAGIC,
                found.version,
                found.data_length,
                bool(found.was_running),
                found.format,
                found.cookie_offset,
            )
            return header, size
    raise UnsupportedError(
        16,
        "a libvirt save image of a version that is not known",
        context=context,
        expected="1 to 3",
        found=str(little.version),
    )


def lzop_header(data: Buffer, offset: int) -> tuple[int, int, int, int]:
    """Parse the header of an lzop file: (method, flags, checksum, size)."""
    found, size = _run(grammar.LZOP_HEADER, data, offset, "lzop header")
    return found.method, found.flags, found.checksum, size


def lzop_block(data: Buffer, offset: int, flags: int) -> tuple[LzopBlock, int]:
    """Parse the head of a block of an lzop file with these flags."""
    found, size = _run(grammar.LZOP_BLOCK, data, offset, "lzop block", flags=flags)
    return LzopBlock(*(found[f.name] for f in fields(LzopBlock))), size
