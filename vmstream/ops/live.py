"""Folds over iterable sections other than RAM: what their records amount to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vmstream.errors import LimitError, StreamError, quoted
from vmstream.ops.pipeline import Findings
from vmstream.report.models.live import (
    BlockDeviceReport,
    DirtyBitmapReport,
    HTABReport,
    LiveReport,
    StorageReport,
    VFIOReport,
)
from vmstream.report.models.names import in_full, readable
from vmstream.stream.events import Anomaly, Event, LiveRecord, Payload, SectionStart
from vmstream.wire import live, parse
from vmstream.wire.constants import (
    BLK_MIG_BLOCK_SIZE,
    MAX_BLOCK_DEVICES,
    S390_PAGE_SIZE,
)

# What a stream can make the report hold: dirty ranges in all, ranges of storage attributes or keys.
MAX_DIRTY_RANGES = 1 << 16
MAX_STORAGE_RANGES = 4096

# Which chunks of the disks were sent is kept in bitmaps of this many bytes each, 32 GiB of disk, as
# the disk needs them: 512 TiB of disks in all.
_BITMAP_SIZE = 4096
_MAX_BITMAPS = 1 << 14

_SKEYS = b"s390-skeys"


class _Ranges:
    """Ranges [start, length] as they come, neighbours joined, the first of them kept."""

    def __init__(self) -> None:
        self.kept: list[list[int]] = []
        self.count = 0
        self._end: int | None = None

    def add(self, start: int, length: int, keep: bool) -> bool:
        """Add a range; return whether it is a new one in the list."""
        joined = start == self._end
        self._end = start + length
        if joined:
            if len(self.kept) == self.count:
                self.kept[-1][1] += length
            return False
        if keep and len(self.kept) == self.count:
            self.kept.append([start, length])
        self.count += 1
        return len(self.kept) == self.count


@dataclass(slots=True)
class DiskSummary:
    """What was sent of a disk; the fields are those of `BlockDeviceReport`."""

    chunks: int = 0
    zero_chunks: int = 0
    resent: int = 0
    end: int = 0
    sent: dict[int, bytearray] = field(default_factory=dict)

    def report(self, device: bytes) -> BlockDeviceReport:
        """Account for it."""
        sent = self.chunks + self.zero_chunks - self.resent
        return BlockDeviceReport(
            readable(device),
            self.chunks,
            self.zero_chunks,
            self.resent,
            self.end // BLK_MIG_BLOCK_SIZE - sent,
            self.end,
            in_full(device),
        )


class Disks:
    """The chunks of a block migration, by device.

    Attributes:
        devices: By name, in the order they come.
        again: The chunk that was added last had been sent before.
        percent: The last progress that was stated on the way, `None` if there was none.
    """

    def __init__(self) -> None:
        self.devices: dict[bytes, DiskSummary] = {}
        self.again = False
        self.percent: int | None = None
        self._bitmaps = 0

    def add(self, offset: int, chunk: live.BlockChunk) -> None:
        """Take a chunk, at an offset of the stream.

        Raises:
            LimitError: More disks than a guest has.
        """
        disk = self.devices.get(chunk.device)
        if disk is None:
            if len(self.devices) >= MAX_BLOCK_DEVICES:
                raise LimitError(offset, f"over {MAX_BLOCK_DEVICES} disks")
            disk = self.devices[chunk.device] = DiskSummary()
        page, bit = divmod(chunk.device_offset // BLK_MIG_BLOCK_SIZE, 8 * _BITMAP_SIZE)
        sent = disk.sent.get(page)
        if sent is None:
            if self._bitmaps >= _MAX_BITMAPS:
                raise LimitError(offset, "over 512 TiB of disks")
            self._bitmaps += 1
            sent = disk.sent[page] = bytearray(_BITMAP_SIZE)
        mask = 1 << bit % 8
        self.again = bool(sent[bit // 8] & mask)
        sent[bit // 8] |= mask
        disk.resent += self.again
        disk.zero_chunks += chunk.zero
        disk.chunks += not chunk.zero
        disk.end = max(disk.end, chunk.device_offset + BLK_MIG_BLOCK_SIZE)

    @property
    def cut_short(self) -> bool:
        """Whether the progress says that the disks go on behind the last chunks.

        What it counts of a disk stops at the start of its last chunk. QEMU v7.2.0 migration/block.c
        mig_save_device_bulk(), blk_mig_save_bulked_block(). The disks are at most as long as their
        chunks, so it must come to the percentage below, or is higher.
        """
        total = sum(disk.end for disk in self.devices.values())
        if self.percent is None or not total:
            return False
        counted = total - len(self.devices) * BLK_MIG_BLOCK_SIZE
        return self.percent < 100 * counted // total

    def report(self) -> list[BlockDeviceReport]:
        """Account for them."""
        return [disk.report(device) for device, disk in self.devices.items()]


@dataclass(slots=True)
class _Bitmap:
    start: live.BitmapStart
    complete: bool = False
    in_order: bool = True
    length: int = 0
    bits_set: int = 0
    ranges: _Ranges = field(default_factory=_Ranges)


@dataclass(slots=True)
class _VFIO:
    start: SectionStart
    records: int = 0
    size: int = 0


class _Storage:
    """Storage attributes or keys: which pages have some."""

    def __init__(self) -> None:
        self.pages = 0
        self._ranges = _Ranges()

    def add(self, values: live.StorageValues) -> None:
        self.pages += values.count
        if values.count:
            keep = len(self._ranges.kept) < MAX_STORAGE_RANGES
            self._ranges.add(values.gpa // S390_PAGE_SIZE, values.count, keep)

    def report(self) -> StorageReport:
        ranges = [[page * S390_PAGE_SIZE, count] for page, count in self._ranges.kept]
        return StorageReport(self.pages, ranges, self._ranges.count)


class LiveSummary:
    """Fold: everything that `inspect` tells of iterable sections other than RAM.

    Args:
        findings: Where what is odd is noted.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._seen = False
        self._disks = Disks()
        self._too_many = False
        self._bitmaps: dict[tuple[bytes, bytes], _Bitmap] = {}
        self._ranges_kept = 0
        self._htab_shift: int | None = None
        self._htab_entries = [0, 0]
        self._attributes: _Storage | None = None
        self._keys: _Storage | None = None
        self._vfio: dict[int, _VFIO] = {}
        self._pbs_state: int | None = None
        self._start: SectionStart | None = None

    @property
    def has_bitmaps(self) -> bool:
        """Whether a dirty bitmap came."""
        return bool(self._bitmaps)

    def on(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, LiveRecord):
            self._seen = True
            self._record(event)
        elif isinstance(event, SectionStart):
            self._start = event
        elif isinstance(event, Payload) and self._is_keys(event):
            self._read_keys(event)

    # They are a plain section, which comes whole: the description frames it, or its footer.
    def _is_keys(self, event: Payload) -> bool:
        start = self._start
        if start is None or start.idstr != _SKEYS:
            return False
        return event.final and event.offset == start.end

    def _note(self, severity: str, code: str, offset: int, message: str) -> None:
        self._findings.on(Anomaly(offset, offset, severity, code, message))

    def _record(self, event: LiveRecord) -> None:
        match event.record:
            case live.BlockChunk():
                self._chunk(event.offset, event.record)
            case live.BlockProgress() as progress if progress.percent < 100:
                # 100 is what END says in any case.
                self._disks.percent = progress.percent
            case live.BitmapStart() as start:
                self._bitmaps[start.node, start.name] = _Bitmap(start)
            case live.BitmapBits() as bits:
                self._bits(event.offset, bits, event.data)
            case live.BitmapComplete() as complete:
                self._bitmaps[complete.node, complete.name].complete = True
            case live.HTABHead() as head:
                self._htab_shift = head.htab_shift or self._htab_shift
            case live.HTABChunk() as entries:
                self._htab_entries[0] += entries.n_valid
                self._htab_entries[1] += entries.n_invalid
            case live.StorageValues() as values if event.final:
                self._attributes = self._attributes or _Storage()
                self._attributes.add(values)
            case live.StorageDone():
                self._attributes = self._attributes or _Storage()
            case live.VFIOData() | live.VFIOTag() if self._start is not None:
                device = self._vfio.setdefault(event.section_id, _VFIO(self._start))
                if isinstance(event.record, live.VFIOData):
                    device.records += event.final
                    device.size += len(event.data)
            case live.BackupState() as state:
                self._pbs_state = state.size

    def _chunk(self, offset: int, chunk: live.BlockChunk) -> None:
        try:
            self._disks.add(offset, chunk)
        except LimitError as error:
            if not self._too_many:
                self._note("info", "many-disks", offset, f"{error}: the rest is not listed")
            self._too_many = True

    def _bits(self, offset: int, record: live.BitmapBits, data: memoryview) -> None:
        bitmap = self._bitmaps[record.node, record.name]
        # QEMU v10.1.0 migration/block-dirty-bitmap.c bulk_phase_send_chunk().
        if bitmap.in_order and record.disk_offset != bitmap.length:
            bitmap.in_order = False
            self._note(
                "warning",
                "bitmap-order",
                offset,
                f"offset {offset:#x}: bits of dirty bitmap {quoted(record.name)} are not in order: "
                "they are counted as they come",
            )
        end = record.disk_offset + record.length
        bitmap.length = max(bitmap.length, end)
        if record.zeroes:
            return
        size = bitmap.start.granularity
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        bits = bits[: -(-record.length // size)]
        bitmap.bits_set += int(np.count_nonzero(bits))
        edges = np.flatnonzero(np.diff(bits, prepend=0, append=0)).tolist()
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            begin = record.disk_offset + first * size
            length = min(end, record.disk_offset + last * size) - begin
            keep = self._ranges_kept < MAX_DIRTY_RANGES
            self._ranges_kept += bitmap.ranges.add(begin, length, keep)

    def _read_keys(self, event: Payload) -> None:
        found, pos = _Storage(), 0
        try:
            while True:
                at = event.offset + pos
                item = live.storage_record(event.data[pos : pos + 16], at, keys=True)
                pos += item.head + item.size
                if pos > len(event.data) or item.last:
                    break
                if isinstance(item.record, live.StorageValues):
                    found.add(item.record)
        except parse.Short:
            pos = -1
        except StreamError as error:
            self._note("warning", "storage-keys", error.offset, str(error))
            return
        if pos == len(event.data):
            self._keys = found
            return
        self._note(
            "warning",
            "storage-keys",
            event.offset,
            f"offset {event.offset:#x}: {len(event.data)} bytes that do not read as storage keys",
        )

    # ---- behind the last event -----------------------------------------------------------

    def finish(self) -> None:
        """Add the findings that take the whole stream."""
        for disk in self._disks.report():
            if disk.missing:
                self._note(
                    "warning",
                    "chunks-missing",
                    0,
                    f"disk {disk.device!r}: {disk.missing} MiB in front of its last chunk were "
                    "never sent: an incremental migration leaves them to the image below, and so "
                    "does damage",
                )
        if self._disks.cut_short:
            self._note(
                "warning",
                "chunks-missing",
                0,
                f"the block migration ended at {self._disks.percent} percent: the last chunks of a "
                "disk were never sent",
            )

    def report(self) -> LiveReport | None:
        """Make the part of the document; `None` if there is nothing to tell."""
        if not self._seen and self._keys is None:
            return None
        shift = self._htab_shift
        return LiveReport(
            block_devices=self._disks.report(),
            dirty_bitmaps=[_bitmap_report(b) for b in self._bitmaps.values()],
            htab=None
            if shift is None
            else HTABReport(None if shift < 0 else shift, shift < 0, *self._htab_entries),
            storage_attributes=self._attributes.report() if self._attributes else None,
            storage_keys=self._keys.report() if self._keys else None,
            vfio=[
                VFIOReport(
                    readable(v.start.idstr),
                    v.start.instance_id,
                    v.records,
                    v.size,
                    in_full(v.start.idstr),
                )
                for v in self._vfio.values()
            ],
            pbs_state_size=self._pbs_state,
        )


def _bitmap_report(bitmap: _Bitmap) -> DirtyBitmapReport:
    start = bitmap.start
    return DirtyBitmapReport(
        node=readable(start.node),
        name=readable(start.name),
        granularity=start.granularity,
        enabled=start.enabled,
        persistent=start.persistent,
        complete=bitmap.complete,
        length=bitmap.length,
        bits_set=bitmap.bits_set,
        ranges=bitmap.ranges.kept,
        range_count=bitmap.ranges.count,
        node_b64=in_full(start.node),
        name_b64=in_full(start.name),
    )
