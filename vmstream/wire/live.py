"""Records of iterable sections other than RAM, as plain values.

Each function takes the bytes from some offset on and returns an `Item`; `Short` says that the
record goes on behind the bytes given. They are many, and of a few bytes each, so they are read with
layouts derived from the grammar, as page records are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from vmstream.errors import FormatError, IntegrityError
from vmstream.wire import grammar
from vmstream.wire.constants import (
    BDRV_MAX_LENGTH,
    BDRV_SECTOR_BITS,
    BDRV_SECTOR_SIZE,
    BLK_MIG_BLOCK_SIZE,
    HASH_PTE_SIZE,
    HTAB_SHIFTS,
    MAX_BITMAP_BUFFER,
    S390_PAGE_SIZE,
    BlkMigFlag,
    DirtyBitmapMigFlag,
    DirtyBitmapStartFlag,
    StattrFlag,
    VFIOMigFlag,
)
from vmstream.wire.layout import struct_of
from vmstream.wire.parse import Buffer, Short

_WORD = struct_of(grammar.LIVE_WORD)
_BITMAP_FLAGS = struct_of(grammar.DIRTY_BITMAP_FLAGS)
_BITMAP_START = struct_of(grammar.DIRTY_BITMAP_START)
_BITMAP_BITS = struct_of(grammar.DIRTY_BITMAP_BITS)
_HTAB_HEAD = struct_of(grammar.HTAB_HEAD)
_HTAB_CHUNK = struct_of(grammar.HTAB_CHUNK)


@dataclass(frozen=True, slots=True)
class BlockChunk:
    """A MiB of a disk; its bytes are the data, unless it is zero.

    Attributes:
        device: Name of the block device.
        device_offset: Where it stands there, bytes.
        zero: All of it is zero, and no data follows.
    """

    kind: ClassVar[str] = "block-chunk"
    device: bytes
    device_offset: int
    zero: bool


@dataclass(frozen=True, slots=True)
class BlockProgress:
    """How much of all disks was sent, percent."""

    kind: ClassVar[str] = "block-progress"
    percent: int


@dataclass(frozen=True, slots=True)
class BitmapStart:
    """A dirty bitmap: its node (or alias), its name, and what it is like.

    Attributes:
        node: Name of the block node, or of the device that has it.
        name: Of the bitmap.
        granularity: Bytes of the disk for each bit.
        enabled: It records writes.
        persistent: It is stored in the image.
    """

    kind: ClassVar[str] = "bitmap-start"
    node: bytes
    name: bytes
    granularity: int
    enabled: bool
    persistent: bool


@dataclass(frozen=True, slots=True)
class BitmapBits:
    """Bits of a dirty bitmap; they are the data, the lowest bit of a byte first.

    Attributes:
        node: As in BitmapStart.
        name: As in BitmapStart.
        disk_offset: First byte of the disk that they are of.
        length: Bytes of the disk that they are of.
        zeroes: None is set, and no data follows.
    """

    kind: ClassVar[str] = "bitmap-bits"
    node: bytes
    name: bytes
    disk_offset: int
    length: int
    zeroes: bool


@dataclass(frozen=True, slots=True)
class BitmapComplete:
    """All bits of a dirty bitmap were sent."""

    kind: ClassVar[str] = "bitmap-complete"
    node: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class HTABHead:
    """What stands first in each part of a hash page table.

    Attributes:
        htab_shift: Binary logarithm of its size in bytes; 0 where entries follow, -1 where the
            guest has none (radix).
    """

    kind: ClassVar[str] = "htab-head"
    htab_shift: int


@dataclass(frozen=True, slots=True)
class HTABChunk:
    """Entries of the hash page table: valid ones, which are the data, then invalid ones."""

    kind: ClassVar[str] = "htab-chunk"
    index: int
    n_valid: int
    n_invalid: int


@dataclass(frozen=True, slots=True)
class StorageValues:
    """Storage attributes or keys, a byte for each page; they are the data.

    Attributes:
        gpa: Guest-physical address of the first page.
        count: Pages.
    """

    kind: ClassVar[str] = "storage-values"
    gpa: int
    count: int


@dataclass(frozen=True, slots=True)
class StorageDone:
    """The last storage attributes were sent."""

    kind: ClassVar[str] = "storage-done"


@dataclass(frozen=True, slots=True)
class VFIOTag:
    """A tag of a VFIO device: 'DEV_SETUP_STATE', 'END_OF_STATE', ..."""

    kind: ClassVar[str] = "vfio-tag"
    tag: str


@dataclass(frozen=True, slots=True)
class VFIOData:
    """State of a VFIO device, which it alone understands; it is the data."""

    kind: ClassVar[str] = "vfio-data"
    size: int


@dataclass(frozen=True, slots=True)
class BackupState:
    """State of Proxmox Backup; it is the data."""

    kind: ClassVar[str] = "pbs-state"
    size: int


@dataclass(frozen=True, slots=True)
class BodyEnd:
    """The mark that ends the records of a section or part."""

    kind: ClassVar[str] = "live-end"


Record = (
    BlockChunk
    | BlockProgress
    | BitmapStart
    | BitmapBits
    | BitmapComplete
    | HTABHead
    | HTABChunk
    | StorageValues
    | StorageDone
    | VFIOTag
    | VFIOData
    | BackupState
    | BodyEnd
)


# The words that `vmstream records --kind` takes for them.
KINDS: tuple[str, ...] = tuple(
    record.kind
    for record in (
        BlockChunk, BlockProgress, BitmapStart, BitmapBits, BitmapComplete, HTABHead, HTABChunk,
        StorageValues, StorageDone, VFIOTag, VFIOData, BackupState, BodyEnd,
    )
)  # fmt: skip


class Item(NamedTuple):
    """A record and its extent.

    `head` bytes, then `size` bytes of data. `last`: the body ends behind it. `opaque`: what is
    behind it, up to the footer, has no length on the wire.
    """

    record: Record
    head: int
    size: int = 0
    last: bool = False
    opaque: bool = False


def _unpack(layout: struct.Struct, data: Buffer, pos: int) -> tuple[int, ...]:
    if len(data) < pos + layout.size:
        raise Short(pos + layout.size)
    return layout.unpack_from(data, pos)


# A counted string at `pos`, and where it ends.
def _counted(data: Buffer, pos: int) -> tuple[bytes, int]:
    if len(data) <= pos:
        raise Short(pos + 1)
    end = pos + 1 + data[pos]
    if len(data) < end:
        raise Short(end)
    return bytes(data[pos + 1 : end]), end


# As plain numbers: these are read by the million.
_CHUNK, _ZERO = int(BlkMigFlag.DEVICE_BLOCK), int(BlkMigFlag.ZERO_BLOCK)


def block_record(data: Buffer, offset: int) -> Item:
    """Parse a record of block migration.

    QEMU v9.0.4 migration/block.c block_load().

    Raises:
        FormatError: Flags that no QEMU writes, or a chunk where none can be.
    """
    context = "block migration"
    (word,) = _unpack(_WORD, data, 0)
    sector, flags = word >> BDRV_SECTOR_BITS, word & (BDRV_SECTOR_SIZE - 1)
    if flags == BlkMigFlag.EOS and not sector:
        return Item(BodyEnd(), _WORD.size, last=True)
    if flags == BlkMigFlag.PROGRESS and sector <= 100:
        return Item(BlockProgress(sector), _WORD.size)
    if flags & ~_ZERO != _CHUNK:
        raise FormatError(
            offset,
            f"illegal block migration word {word:#x}",
            context=context,
            expected="DEVICE_BLOCK, PROGRESS or EOS",
        )
    # blk_mig_save_bulked_block() and mig_save_device_dirty() go by whole chunks.
    at = sector << BDRV_SECTOR_BITS
    if at % BLK_MIG_BLOCK_SIZE or at > BDRV_MAX_LENGTH:
        raise FormatError(
            offset,
            f"a chunk at {at:#x} of a disk",
            context=context,
            expected="a multiple of 1 MiB, below 8 EiB",
        )
    device, end = _counted(data, _WORD.size)
    zero = flags != _CHUNK
    return Item(BlockChunk(device, at, zero), end, 0 if zero else BLK_MIG_BLOCK_SIZE)


_BITMAP_NAMES = int(DirtyBitmapMigFlag.DEVICE_NAME | DirtyBitmapMigFlag.BITMAP_NAME)


def bitmap_record(data: Buffer, offset: int, node: bytes | None, name: bytes | None) -> Item:
    """Parse a chunk of the dirty bitmaps.

    QEMU v10.1.0 migration/block-dirty-bitmap.c dirty_bitmap_load_header().

    Args:
        data: Bytes from the chunk on.
        offset: Their absolute offset.
        node: Node of the chunk before, `None` if there is none: a chunk need not repeat it.
        name: Likewise the name of the bitmap.

    Raises:
        FormatError: Flags that no QEMU writes, or values that it refuses.
    """
    context = "dirty bitmaps"
    (flags,) = _unpack(_BITMAP_FLAGS, data, 0)
    if flags == DirtyBitmapMigFlag.EOS:
        return Item(BodyEnd(), _BITMAP_FLAGS.size, last=True)
    kind = flags & ~_BITMAP_NAMES
    pos = _BITMAP_FLAGS.size
    if kind & ~int(DirtyBitmapMigFlag.ZEROES) not in (
        DirtyBitmapMigFlag.START,
        DirtyBitmapMigFlag.COMPLETE,
        DirtyBitmapMigFlag.BITS,
    ) or (kind & DirtyBitmapMigFlag.ZEROES and not kind & DirtyBitmapMigFlag.BITS):
        raise FormatError(
            offset,
            f"illegal flags {flags:#04x}",
            context=context,
            expected="one of START, COMPLETE, BITS and EOS",
        )
    if flags & DirtyBitmapMigFlag.DEVICE_NAME:
        node, pos = _counted(data, pos)
    if flags & DirtyBitmapMigFlag.BITMAP_NAME:
        name, pos = _counted(data, pos)
    if not node or not name:
        raise FormatError(offset, "a chunk of no bitmap: it has no name", context=context)
    if kind == DirtyBitmapMigFlag.COMPLETE:
        return Item(BitmapComplete(node, name), pos)
    if kind == DirtyBitmapMigFlag.START:
        granularity, how = _unpack(_BITMAP_START, data, pos)
        # QEMU v10.1.0 block/dirty-bitmap.c bdrv_create_dirty_bitmap().
        if granularity < BDRV_SECTOR_SIZE or granularity & (granularity - 1):
            raise FormatError(
                offset + pos,
                f"a granularity of {granularity} bytes",
                context=context,
                expected="a power of two from 512 on",
            )
        if how & ~sum(DirtyBitmapStartFlag):
            raise FormatError(offset + pos + 4, f"illegal flags {how:#04x}", context=context)
        enabled = bool(how & DirtyBitmapStartFlag.ENABLED)
        persistent = bool(how & DirtyBitmapStartFlag.PERSISTENT)
        start = BitmapStart(node, name, granularity, enabled, persistent)
        return Item(start, pos + _BITMAP_START.size)
    first, count = _unpack(_BITMAP_BITS, data, pos)
    pos += _BITMAP_BITS.size
    begin, length = first << BDRV_SECTOR_BITS, count << BDRV_SECTOR_BITS
    if not length or begin + length > BDRV_MAX_LENGTH:
        raise FormatError(
            offset,
            f"bits of {length:#x} bytes at {begin:#x} of a disk",
            context=context,
            expected="some bytes below 8 EiB",
        )
    zeroes = bool(kind & DirtyBitmapMigFlag.ZEROES)
    size = 0
    if not zeroes:
        (size,) = _unpack(_WORD, data, pos)
        if size > MAX_BITMAP_BUFFER:
            raise FormatError(
                offset + pos,
                f"{size} bytes of bits",
                context=context,
                expected=f"at most {MAX_BITMAP_BUFFER}",
            )
        pos += _WORD.size
    return Item(BitmapBits(node, name, begin, length, zeroes), pos, size)


def htab_head(data: Buffer, offset: int, *, start: bool) -> Item:
    """Parse what stands first in a part of the hash page table.

    QEMU v10.1.0 hw/ppc/spapr.c htab_save_setup(), htab_save_iterate(), htab_load().

    Args:
        data: Bytes from the body on.
        offset: Their absolute offset.
        start: The part is a START, which has the size and nothing else.

    Raises:
        FormatError: A size that no table has.
    """
    (shift,) = _unpack(_HTAB_HEAD, data, 0)
    if shift != -1 and (shift not in HTAB_SHIFTS if start else shift != 0):
        raise FormatError(
            offset,
            f"hash page table of shift {shift}",
            context="hash page table",
            expected=f"{HTAB_SHIFTS[0]} to {HTAB_SHIFTS[-1]}, or -1" if start else "0 or -1",
        )
    return Item(HTABHead(shift), _HTAB_HEAD.size, last=shift != 0)


def htab_chunk(data: Buffer, offset: int, entries: int | None) -> Item:
    """Parse a chunk of the hash page table.

    Args:
        data: Bytes from the chunk on.
        offset: Their absolute offset.
        entries: Entries that the table has; `None` if its size is not known.

    Raises:
        IntegrityError: Entries beyond the end of the table.
    """
    index, valid, invalid = _unpack(_HTAB_CHUNK, data, 0)
    if not (index or valid or invalid):
        return Item(BodyEnd(), _HTAB_CHUNK.size, last=True)
    if entries is not None and index + valid + invalid > entries:
        raise IntegrityError(
            offset,
            f"entries {index} to {index + valid + invalid} of the hash page table",
            context="hash page table",
            expected=f"at most {entries}",
        )
    return Item(HTABChunk(index, valid, invalid), _HTAB_CHUNK.size, valid * HASH_PTE_SIZE)


def storage_record(data: Buffer, offset: int, *, keys: bool = False) -> Item:
    """Parse a record of s390 storage attributes, or of storage keys.

    QEMU v10.1.0 hw/s390x/s390-stattrib.c cmma_load(), hw/s390x/s390-skeys.c
    s390_storage_keys_load().

    Raises:
        FormatError: Flags that no QEMU writes, or pages beyond the address space.
        IntegrityError: The QEMU that wrote it could not read them all, and says so.
    """
    context = "storage keys" if keys else "storage attributes"
    (word,) = _unpack(_WORD, data, 0)
    gpa, flags = word & -S390_PAGE_SIZE, word & (S390_PAGE_SIZE - 1)
    if flags == StattrFlag.EOS:
        return Item(BodyEnd(), _WORD.size, last=True)
    if flags == StattrFlag.DONE and not keys:
        return Item(StorageDone(), _WORD.size)
    if flags == StattrFlag.ERROR:
        raise IntegrityError(
            offset, "they are incomplete: the QEMU that wrote them says so", context=context
        )
    if flags != StattrFlag.MORE:
        raise FormatError(offset, f"illegal word {word:#x}", context=context)
    (count,) = _unpack(_WORD, data, _WORD.size)
    if gpa + count * S390_PAGE_SIZE > 1 << 64:
        raise FormatError(
            offset, f"{count:#x} pages at {gpa:#x}, beyond the address space", context=context
        )
    return Item(StorageValues(gpa, count), 2 * _WORD.size, count)


_VFIO_TAGS = {int(tag): tag.name for tag in VFIOMigFlag}
_VFIO_ENDS = {VFIOMigFlag.DEV_INIT_DATA_SENT, VFIOMigFlag.DEV_CONFIG_LOAD_READY}


def vfio_record(data: Buffer, offset: int) -> Item:
    """Parse a record of a VFIO device.

    QEMU v10.1.0 hw/vfio/migration.c vfio_load_state().

    Raises:
        FormatError: An unknown tag.
    """
    (word,) = _unpack(_WORD, data, 0)
    if word == VFIOMigFlag.END_OF_STATE:
        return Item(BodyEnd(), _WORD.size, last=True)
    if word == VFIOMigFlag.DEV_DATA_STATE:
        (size,) = _unpack(_WORD, data, _WORD.size)
        return Item(VFIOData(size), 2 * _WORD.size, size)
    if word not in _VFIO_TAGS:
        raise FormatError(offset, f"unknown tag {word:#x}", context="VFIO device")
    # The configuration of the device is a vmstate, which has no length. It stands in the END of
    # 5.2; since 6.0 it is a section of its own.
    return Item(
        VFIOTag(_VFIO_TAGS[word]),
        _WORD.size,
        last=word in _VFIO_ENDS,
        opaque=word == VFIOMigFlag.DEV_CONFIG_STATE,
    )


def backup_state(data: Buffer) -> Item:
    """Parse the size of the state of Proxmox Backup, which is all there is in front of it."""
    (size,) = _unpack(_WORD, data, 0)
    return Item(BackupState(size), _WORD.size, size, last=True)
