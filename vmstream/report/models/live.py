"""JSON contract: live sections other than RAM."""

from __future__ import annotations

from dataclasses import dataclass


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
