"""Iterable sections other than RAM, decoded by the formats of their handlers.

Such a body has no length, but its records end it, so it needs neither footer nor description. A
handler is known by name and version; what is not known here is framed by its footer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from vmstream.errors import FormatError, IntegrityError, LimitError
from vmstream.stream.cursor import Cursor, NeedData
from vmstream.stream.events import Event, LiveRecord
from vmstream.stream.tail import describe
from vmstream.wire import live, parse
from vmstream.wire.constants import HASH_PTE_SIZE, MAX_BITMAPS, SectionType
from vmstream.wire.live import Item

# Data of a record up to this size is given whole, with its record; QEMU sends larger ones nowhere,
# but the sizes of some are 64 bits wide.
_MOST_AT_ONCE = 1 << 20


class LiveReader(Protocol):
    """Reads the records of one section, and keeps what later ones refer to."""

    def begin(self, section_type: int) -> None:
        """Be told that a START, PART or END begins."""
        ...

    def read(self, data: memoryview, offset: int) -> Item:
        """Parse the record at the start of `data`. Raises parse.Short if it goes on behind it."""
        ...


class _Block:
    def begin(self, section_type: int) -> None:
        pass

    def read(self, data: memoryview, offset: int) -> Item:
        return live.block_record(data, offset)


class _DirtyBitmaps:
    def __init__(self) -> None:
        self._node: bytes | None = None
        self._name: bytes | None = None
        self._granularity: dict[tuple[bytes, bytes], int] = {}

    # Names go on from part to part: QEMU v10.1.0 migration/block-dirty-bitmap.c DBMSaveState
    # prev_bs and prev_bitmap.
    def begin(self, section_type: int) -> None:
        pass

    def read(self, data: memoryview, offset: int) -> Item:
        item = live.bitmap_record(data, offset, self._node, self._name)
        record = item.record
        if not isinstance(record, (live.BitmapStart, live.BitmapBits, live.BitmapComplete)):
            return item
        key = record.node, record.name
        if isinstance(record, live.BitmapStart):
            if key in self._granularity:
                raise IntegrityError(
                    offset, "a bitmap that was started before", context="dirty bitmaps"
                )
            if len(self._granularity) >= MAX_BITMAPS:
                raise LimitError(offset, f"over {MAX_BITMAPS} dirty bitmaps")
            self._granularity[key] = record.granularity
        elif key not in self._granularity:
            raise IntegrityError(
                offset, "a chunk of a bitmap that was not started", context="dirty bitmaps"
            )
        elif isinstance(record, live.BitmapBits) and not record.zeroes:
            self._check_size(record, item.size, offset)
        self._node, self._name = key
        return item

    # Whole words of 4 or 8 bytes, as wide as long was where it was written, padded to four of
    # them. QEMU v10.1.0 migration/block-dirty-bitmap.c send_bitmap_bits() and
    # dirty_bitmap_load_bits().
    def _check_size(self, record: live.BitmapBits, size: int, offset: int) -> None:
        bits = -(-record.length // self._granularity[record.node, record.name])
        least, most = -(-bits // 8), -(-bits // 256) * 32
        if not least <= size <= most:
            raise IntegrityError(
                offset,
                f"{size} bytes for {bits} bits of a dirty bitmap",
                context="dirty bitmaps",
                expected=f"{least} to {most}",
            )


class _HashPageTable:
    def __init__(self) -> None:
        self._entries: int | None = None
        self._start = False
        self._first = True

    def begin(self, section_type: int) -> None:
        self._start = section_type == SectionType.QEMU_VM_SECTION_START
        self._first = True

    def read(self, data: memoryview, offset: int) -> Item:
        if not self._first:
            return live.htab_chunk(data, offset, self._entries)
        item = live.htab_head(data, offset, start=self._start)
        self._first = False
        if isinstance(item.record, live.HTABHead) and item.record.htab_shift > 0:
            self._entries = (1 << item.record.htab_shift) // HASH_PTE_SIZE
        return item


class _StorageAttributes:
    def begin(self, section_type: int) -> None:
        pass

    def read(self, data: memoryview, offset: int) -> Item:
        return live.storage_record(data, offset)


class _VFIO:
    def __init__(self) -> None:
        self._set_up = False

    def begin(self, section_type: int) -> None:
        self._set_up = False

    def read(self, data: memoryview, offset: int) -> Item:
        item = live.vfio_record(data, offset)
        if self._set_up and not isinstance(item.record, live.BodyEnd):
            raise FormatError(
                offset, "DEV_SETUP_STATE without END_OF_STATE behind it", context="VFIO device"
            )
        self._set_up = item.record == _SETUP
        return item


_SETUP = live.VFIOTag("DEV_SETUP_STATE")


class _BackupState:
    def __init__(self) -> None:
        self._start = False

    def begin(self, section_type: int) -> None:
        self._start = section_type == SectionType.QEMU_VM_SECTION_START

    def read(self, data: memoryview, offset: int) -> Item:
        if not self._start:
            raise FormatError(offset, "more than a START", context="state of Proxmox Backup")
        return live.backup_state(data)


_READERS: dict[tuple[bytes, int], Callable[[], LiveReader]] = {
    (b"block", 1): _Block,
    (b"spapr/htab", 1): _HashPageTable,
    (b"s390-storage_attributes", 0): _StorageAttributes,
    (b"pbs-state", 1): _BackupState,
    # Behind the path of the device, if its bus gives one.
    (b"vfio", 1): _VFIO,
}


class LiveHandlers:
    """The handlers that are known, for one stream."""

    def __init__(self) -> None:
        # One for all, as in QEMU, so that there is one bound on them: v10.1.0
        # migration/block-dirty-bitmap.c dbm_state.
        self._bitmaps = _DirtyBitmaps()

    def reader(self, head: parse.SectionHead) -> LiveReader | None:
        """Return the reader of an iterable section, `None` if its handler is not known here."""
        name = head.idstr
        if name.endswith(b"/vfio"):
            name = b"vfio"
        if (name, head.version_id) == (b"dirty-bitmap", 1):
            return self._bitmaps
        made = _READERS.get((name, head.version_id))
        return made() if made is not None else None


def live_body(
    cursor: Cursor, reader: LiveReader, head: parse.SectionHead, section_type: int
) -> Generator[Event | NeedData, None, bool]:
    """Read the body of a START, PART or END.

    Returns:
        Whether it goes on with what has no length on the wire.

    Raises:
        FormatError: Bytes contradict the format of the handler.
    """
    context = describe(head)
    reader.begin(section_type)
    while True:
        try:
            item = reader.read(cursor.rest(), cursor.offset)
        except parse.Short as short:
            yield from cursor.have(short.size, context)
            continue
        record, first, left = item.record, item.head, item.size
        while True:
            # Long data is given as it comes: at least a byte, so that no event is empty.
            least = first + (left if item.size <= _MOST_AT_ONCE else min(left, 1))
            yield from cursor.have(least, context)
            size = min(left, cursor.left() - first)
            left -= size
            data = cursor.rest()[first : first + size]
            yield LiveRecord(
                *cursor.take(first + size), head.section_id, record, data, final=not left
            )
            if not left:
                break
            first = 0
        if item.opaque or item.last:
            return item.opaque
