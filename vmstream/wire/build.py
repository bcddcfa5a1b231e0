"""Values to bytes: what `wire.parse` and `wire.live` read, built from the same grammar.

A value that does not fit its field is an `EncodeError` that names it; nothing is cut or wrapped.
"""

from __future__ import annotations

import zlib
from typing import Any

import construct

from vmstream.errors import EncodeError, quoted
from vmstream.wire import grammar
from vmstream.wire.constants import (
    BDRV_SECTOR_BITS,
    LZOP_MAGIC,
    QEMU_SAVE_MAGIC,
    QEMU_SAVE_PARTIAL,
    BlkMigFlag,
    DirtyBitmapMigFlag,
    DirtyBitmapStartFlag,
    LzopFlag,
    MigCmd,
    RAMSaveFlag,
    SectionType,
    StattrFlag,
    VFIOMigFlag,
)
from vmstream.wire.live import (
    BackupState,
    BitmapBits,
    BitmapComplete,
    BitmapStart,
    BlockChunk,
    BlockProgress,
    BodyEnd,
    HTABChunk,
    HTABHead,
    Record,
    StorageDone,
    StorageValues,
    VFIOData,
    VFIOTag,
)
from vmstream.wire.parse import (
    BlockEntry,
    ConfigurationValues,
    LzopBlock,
    MappedEntry,
    SaveHeader,
    SectionHead,
)


def _build(what: construct.Construct, value: Any, context: str, **params: Any) -> bytes:
    try:
        return bytes(what.build(value, **params))
    except construct.ConstructError as exc:
        raise EncodeError(f"{context}: {str(exc).strip().splitlines()[-1]}") from exc


def file_header(version: int = 3) -> bytes:
    """Magic and version."""
    return _build(grammar.FILE_HEADER, {"version": version}, "file header")


def configuration(values: ConfigurationValues) -> bytes:
    """Build the CONFIGURATION section, its subsections in their order."""
    made = _build(grammar.CONFIGURATION, {"name": values.name}, "configuration")
    for name in values.subsections:
        shape = grammar.CONFIGURATION_SUBSECTIONS.get(name)
        if shape is None:
            raise EncodeError(f"configuration: no subsection {name!r} is known")
        made += subsection_head(name, 1)
        body = {f.name: getattr(values, f.name) for f in shape.subcons}
        made += _build(shape, body, name.decode())
    return made


def subsection_head(name: bytes, version_id: int) -> bytes:
    """What stands in front of the fields of a subsection."""
    head = {"name": name, "version_id": version_id}
    return _build(grammar.SUBSECTION_HEAD, head, f"subsection {quoted(name)}")


def section_head(head: SectionHead) -> bytes:
    """Head of a START or FULL section."""
    value = {name: getattr(head, name) for name in SectionHead.__slots__}
    return _build(grammar.SECTION_HEAD, value, "section header")


def section_part(kind: int, section_id: int) -> bytes:
    """Head of a PART or END."""
    value = {"section_type": kind, "section_id": section_id}
    return _build(grammar.SECTION_PART_HEAD, value, "section part")


def section_footer(section_id: int) -> bytes:
    """Footer of a section or part."""
    value = {"section_type": SectionType.QEMU_VM_SECTION_FOOTER, "section_id": section_id}
    return _build(grammar.SECTION_FOOTER, value, "section footer")


def command(cmd: int, data: bytes) -> bytes:
    """A COMMAND."""
    return _build(grammar.COMMAND, {"cmd": cmd, "data": data}, "command")


def packaged(length: int) -> bytes:
    """The command PACKAGED, which so many bytes follow."""
    data = _build(grammar.COMMAND_PACKAGED, {"length": length}, "PACKAGED")
    return command(MigCmd.PACKAGED, data)


def ram_discard(idstr: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    """The command POSTCOPY_RAM_DISCARD, with (start, length) of each range in bytes."""
    listed = [{"start": start, "length": length} for start, length in ranges]
    value = {"version": 0, "idstr": idstr, "nil": 0, "ranges": listed}
    data = _build(grammar.COMMAND_RAM_DISCARD, value, "POSTCOPY_RAM_DISCARD")
    return command(MigCmd.POSTCOPY_RAM_DISCARD, data)


def vmdescription(text: bytes) -> bytes:
    """The VMDESCRIPTION frame."""
    return _build(grammar.VMDESCRIPTION, {"json": text}, "vmdescription")


def ram_word(offset: int, flags: int) -> bytes:
    """A RAM head: a block offset or total with flags."""
    return _build(grammar.RAM_WORD, {"head": offset | flags}, "RAM word")


def ram_block(entry: BlockEntry) -> bytes:
    """An entry of the block list; what is `None` is left out."""
    value = {name: getattr(entry, name) for name in BlockEntry.__slots__}
    return _build(
        grammar.RAM_BLOCK,
        value,
        "RAM block list",
        host_page_size=entry.host_page_size is not None,
        gpa=entry.gpa is not None,
        ignored=entry.ignored is not None,
    )


def mapped_ram_block(entry: MappedEntry) -> bytes:
    """Entry of a block in a mapped-ram list, with its header."""
    header = {
        "version": 1,
        "page_size": entry.page_size,
        "bitmap_offset": entry.bitmap_offset,
        "pages_offset": entry.pages_offset,
    }
    return ram_block(entry.block) + _build(grammar.MAPPED_RAM_HEADER, header, "mapped-ram block")


def counted(name: bytes) -> bytes:
    """A counted string."""
    return _build(grammar.COUNTED_STRING, name, "counted string")


def _word(value: int) -> bytes:
    return _build(grammar.LIVE_WORD, {"word": value}, "word")


_VFIO_TAGS = {tag.name: tag for tag in VFIOMigFlag}


def live_record(record: Record, size: int, previous: tuple[bytes, bytes] | None = None) -> bytes:
    """Build the head of a record of an iterable section other than RAM; its data follows.

    BodyEnd is not of these: what it is depends on the section.

    Args:
        record: What it says.
        size: Bytes of data behind it.
        previous: Node and name of the bitmap of the record before; a name that is the same is
            left out, as QEMU does. QEMU v10.1.0 migration/block-dirty-bitmap.c
            send_bitmap_header().
    """
    match record:
        case BlockChunk():
            flags = BlkMigFlag.DEVICE_BLOCK | (BlkMigFlag.ZERO_BLOCK if record.zero else 0)
            return _word(record.device_offset | flags) + counted(record.device)
        case BlockProgress():
            return _word(record.percent << BDRV_SECTOR_BITS | BlkMigFlag.PROGRESS)
        case BitmapStart() | BitmapBits() | BitmapComplete():
            return _bitmap(record, size, previous)
        case HTABHead():
            return _build(grammar.HTAB_HEAD, {"htab_shift": record.htab_shift}, "HTAB")
        case HTABChunk():
            value = {name: getattr(record, name) for name in HTABChunk.__slots__}
            return _build(grammar.HTAB_CHUNK, value, "HTAB")
        case StorageValues():
            return _word(record.gpa | StattrFlag.MORE) + _word(record.count)
        case StorageDone():
            return _word(StattrFlag.DONE)
        case VFIOTag():
            return _word(_VFIO_TAGS[record.tag])
        case VFIOData():
            return _word(VFIOMigFlag.DEV_DATA_STATE) + _word(record.size)
        case BackupState():
            return _word(record.size)
        case BodyEnd():
            raise EncodeError("the end of a body is the section's")


def _bitmap(
    record: BitmapStart | BitmapBits | BitmapComplete,
    size: int,
    previous: tuple[bytes, bytes] | None,
) -> bytes:
    node, name = previous or (b"", b"")
    same_node, same_name = node == record.node, node == record.node and name == record.name
    flags, body = DirtyBitmapMigFlag.COMPLETE, b""
    if isinstance(record, BitmapStart):
        flags = DirtyBitmapMigFlag.START
        how = DirtyBitmapStartFlag.ENABLED if record.enabled else DirtyBitmapStartFlag(0)
        how |= DirtyBitmapStartFlag.PERSISTENT if record.persistent else 0
        value = {"granularity": record.granularity, "flags": how}
        body = _build(grammar.DIRTY_BITMAP_START, value, "dirty bitmaps")
    elif isinstance(record, BitmapBits):
        flags = DirtyBitmapMigFlag.BITS
        value = {
            "start_sector": record.disk_offset >> BDRV_SECTOR_BITS,
            "nr_sectors": record.length >> BDRV_SECTOR_BITS,
        }
        body = _build(grammar.DIRTY_BITMAP_BITS, value, "dirty bitmaps")
        if record.zeroes:
            flags |= DirtyBitmapMigFlag.ZEROES
        else:
            body += _word(size)
    names = b""
    if not same_node:
        flags |= DirtyBitmapMigFlag.DEVICE_NAME
        names += counted(record.node)
    if not same_name:
        flags |= DirtyBitmapMigFlag.BITMAP_NAME
        names += counted(record.name)
    return _build(grammar.DIRTY_BITMAP_FLAGS, {"flags": flags}, "dirty bitmaps") + names + body


# What ends the body of an iterable section, by its name; RAM's own is a RAM word.
BODY_ENDS: dict[bytes, bytes] = {
    b"ram": ram_word(0, RAMSaveFlag.EOS),
    b"block": _word(BlkMigFlag.EOS),
    b"dirty-bitmap": bytes([DirtyBitmapMigFlag.EOS]),
    b"s390-storage_attributes": _word(StattrFlag.EOS),
    b"s390-skeys": _word(StattrFlag.EOS),
    b"spapr/htab": bytes(grammar.HTAB_CHUNK.sizeof()),
}
VFIO_END = _word(VFIOMigFlag.END_OF_STATE)


def save_header(header: SaveHeader) -> bytes:
    """Header of a libvirt save image."""
    value = {name: getattr(header, name) for name in SaveHeader.__slots__}
    value["magic"] = QEMU_SAVE_MAGIC if header.finished else QEMU_SAVE_PARTIAL
    return _build(grammar.save_header(header.byte_order), value, "libvirt header")


def lzop_header(flags: LzopFlag) -> bytes:
    """Header of an lzop file of version 1.040, as `lzop` makes it of standard input."""
    value = {
        "version": 0x1040,
        "library_version": 0x20A0,
        "version_needed": 0x0940,
        "method": 1,
        "level": 5,
        "flags": flags,
        "filter": None,
        "mode": 0,
        "mtime_low": 0,
        "mtime_high": 0,
        "name": b"",
        "checksum": 0,
    }
    made = _build(grammar.LZOP_HEADER, value, "lzop header")[:-4]
    return made + zlib.adler32(made[len(LZOP_MAGIC) :]).to_bytes(4, "big")


def lzop_block(block: LzopBlock, flags: LzopFlag) -> bytes:
    """Head of a block of an lzop file with these flags."""
    value = {name: getattr(block, name) for name in LzopBlock.__slots__}
    return _build(grammar.LZOP_BLOCK, value, "lzop block", flags=flags)
