"""VM state out of the internal snapshots of qcow2 images, in place.

`savevm` writes a stream behind the end of the disk, into clusters that the L1 table of the
snapshot alone refers to. QEMU v10.1.0 docs/interop/qcow2.rst, block/qcow2-snapshot.c.

    image = read_image(source)
    source = VMStateSource(source, image, image.choose("before-update"))
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from vmstream.container.layers import Container, Finding, Layer
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    quoted,
)
from vmstream.transport.source import MAPPED_WINDOW, READ_WINDOW, FileSource, Source, Window
from vmstream.wire import parse
from vmstream.wire.constants import (
    QCOW2_COMPRESSED,
    QCOW2_MAX_L1,
    QCOW2_MAX_SNAPSHOT_TABLE,
    QCOW2_MAX_SNAPSHOTS,
    QCOW2_OFFSET_MASK,
    QCOW2_SECTOR,
    QCOW2_SUBCLUSTERS,
    QCOW2_ZERO,
    Qcow2Compression,
    Qcow2Incompatible,
)

# Most entries of a snapshot table are shorter.
_USUAL_ENTRY = 2048

# L2 tables held, bytes. VM state is read in order, so few do; two are held whatever their size.
_L2_CACHE = 4 << 20

# A window that a zstd frame may ask for, bytes: a cluster has 2 MiB at the most.
_ZSTD_WINDOW = 8 << 20

# Snapshots that a message names.
_NAMED = 20

_FULL_BITMAP = (1 << QCOW2_SUBCLUSTERS) - 1
_ZEROS = memoryview(bytes(1 << 20))

# Bytes of the VM state that come from one place: (where in the file, length, L2 entry). Where is
# `None` for zeros; the entry is 0 but for a compressed cluster.
_Run = tuple[int | None, int, int]


@dataclass(frozen=True, slots=True)
class Qcow2Image:
    """Header and snapshots of an image.

    Attributes:
        header: What counts of the header.
        snapshots: In the order of the table.
        notes: What speaks against what is read, in words.
    """

    header: parse.Qcow2Header
    snapshots: tuple[parse.Qcow2Snapshot, ...]
    notes: tuple[str, ...]

    def choose(self, wanted: str | None = None) -> parse.Qcow2Snapshot:
        """Return the snapshot of a name, else of an id; without either the only one there is.

        Only snapshots with VM state are meant.

        Raises:
            FormatError: No snapshot has VM state.
            OutputError: There is none of that name or id, or more than one.
        """
        usable = [s for s in self.snapshots if s.vm_state_size]
        if not usable:
            raise FormatError(
                60, "no snapshot of this image has VM state", context="qcow2 header",
                found=f"{len(self.snapshots)} snapshots, of disks alone",
                advice="the monitor command savevm makes one that has",
            )  # fmt: skip
        if wanted is None:
            if len(usable) == 1:
                return usable[0]
            raise OutputError(
                f"the image has {len(usable)} snapshots with VM state, and none was named "
                f"(--snapshot): {_listed(usable)}"
            )
        key = wanted.encode("utf-8", "surrogateescape")
        named = [s for s in self.snapshots if s.name == key]
        named = named or [s for s in self.snapshots if s.id_str == key]
        if not named:
            raise OutputError(f"no snapshot {wanted!r}; the image has: {_listed(usable)}")
        chosen = [s for s in named if s.vm_state_size]
        if not chosen:
            raise OutputError(
                f"snapshot {wanted!r} is of disks alone; with VM state there are: {_listed(usable)}"
            )
        if len(chosen) > 1:
            raise OutputError(f"{len(chosen)} snapshots are {wanted!r}: {_listed(chosen)}")
        return chosen[0]


def _listed(snapshots: list[parse.Qcow2Snapshot]) -> str:
    names = [f"{quoted(s.name)} (id {quoted(s.id_str)})" for s in snapshots[:_NAMED]]
    more = len(snapshots) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def read_image(source: Source) -> Qcow2Image:
    """Read the header and the snapshot table.

    Images whose data cannot be read here are listed all the same, with a note.

    Args:
        source: The image, as a file from its start.

    Raises:
        FormatError: This is no qcow2 image, or a damaged one.
        UnsupportedError: It cannot be read here, or not from a pipe.
        TruncatedError: It ends inside the header or the table.
        LimitError: The table is larger than QEMU allows.
    """
    file = _file(source)
    try:
        header = parse.qcow2_header(file.read_at(0, parse.QCOW2_HEADER_SIZE))
    except parse.Short as short:
        raise TruncatedError(
            file.size or 0, "the image ends", context="qcow2 header",
            expected="72 bytes or more", advice="copy the whole image",
        ) from short  # fmt: skip
    return Qcow2Image(header, tuple(_snapshots(file, header)), tuple(_notes(header)))


def open_vm_state(source: Source, container: Container) -> Source:
    """Take a qcow2 image off: add its layer, return the VM state of the snapshot asked for."""
    image = read_image(source)
    snapshot = image.choose(container.snapshot)
    container.snapshot = None
    container.layers.append(Layer("qcow2", source, snapshot=snapshot))
    for note in image.notes:
        container.note(Finding("warning", "container", 0, f"offset 0x0, qcow2 header: {note}"))
    return VMStateSource(source, image, snapshot, container)


# Offsets of an image are places in the file, so it has to be one.
def _file(source: Source) -> FileSource:
    if not isinstance(source, FileSource):
        raise UnsupportedError(
            0, "a qcow2 image is read here and there, which a pipe cannot",
            advice="save it to a file and give that, or --spool DIR",
        )  # fmt: skip
    return source


def _notes(header: parse.Qcow2Header) -> Iterator[str]:
    if header.incompatible & Qcow2Incompatible.DIRTY:
        yield "the image is marked dirty: it is in use, or QEMU ended without closing it"
    if header.incompatible & Qcow2Incompatible.CORRUPT:
        yield "the image is marked corrupt: QEMU found its tables damaged"
    if header.incompatible & Qcow2Incompatible.DATA_FILE:
        yield "the data is in another file: VM state cannot be read"
    if header.crypt_method:
        yield "the image is encrypted: VM state cannot be read"


def _snapshots(file: FileSource, header: parse.Qcow2Header) -> Iterator[parse.Qcow2Snapshot]:
    context = "qcow2 snapshot table"
    begin = header.snapshots_offset
    if not header.snapshot_count:
        return
    if header.snapshot_count > QCOW2_MAX_SNAPSHOTS:
        raise LimitError(
            60, "too many snapshots", context=context, expected=f"{QCOW2_MAX_SNAPSHOTS} at most",
            found=str(header.snapshot_count), advice="the header is damaged",
        )  # fmt: skip
    if not begin or begin % (1 << header.cluster_bits):
        raise FormatError(
            64, "table that does not start at a cluster", context=context,
            found=f"offset {begin:#x}", advice="the header is damaged",
        )  # fmt: skip
    at = begin
    for number in range(header.snapshot_count):
        at = -(-at // 8) * 8
        found = _entry(file, at)
        if found is None:
            raise TruncatedError(
                file.size or 0, "the image ends",
                context=context, expected=f"entry {number} of {header.snapshot_count}",
                advice="copy the whole image",
            )  # fmt: skip
        entry, used = found
        at += used
        if at - begin > QCOW2_MAX_SNAPSHOT_TABLE:
            raise LimitError(
                at, "table too long", context=context,
                expected=f"{QCOW2_MAX_SNAPSHOT_TABLE} bytes at most", advice="it is damaged",
            )  # fmt: skip
        yield entry


def _entry(file: FileSource, at: int) -> tuple[parse.Qcow2Snapshot, int] | None:
    if at >= (file.size or 0):
        return None
    for size in (_USUAL_ENTRY, parse.LONGEST_SNAPSHOT):
        try:
            return parse.qcow2_snapshot(file.read_at(at, size), at)
        except parse.Short:
            pass
    return None


class VMStateSource:
    """The stream in one snapshot of an image, seekable.

    Args:
        source: The image; it is closed with this.
        image: What `read_image` gave.
        snapshot: One of its snapshots.
        container: Bounds how much VM state a file may have.

    **Wire** The stream is at virtual offset V, the disk size rounded up to what an L1 entry
    covers, and read through the L1 table of the snapshot. QEMU v10.1.0 block/qcow2.h
    qcow2_vm_state_offset().

    **Memory** A window of the file, or a buffer of 8 MiB or what is asked for; the L1 entries (32
    MiB at the most), L2 tables of 4 MiB, one cluster of up to 2 MiB.

    Raises:
        UnsupportedError: The image is encrypted, or its data is in another file.
        StreamError: The entry of the snapshot is damaged. Faults behind it are raised by
            `window`, which gives what is in front of them first.
    """

    seekable = True
    origin = 0

    def __init__(
        self,
        source: Source,
        image: Qcow2Image,
        snapshot: parse.Qcow2Snapshot,
        container: Container | None = None,
    ) -> None:
        self._file = _file(source)
        self._container = container or Container()
        self.snapshot = snapshot
        self.name = source.name
        self.identity = source.identity
        self.size: int | None = snapshot.vm_state_size
        self._header = header = image.header
        self._cluster = 1 << header.cluster_bits
        self._extended = bool(header.incompatible & Qcow2Incompatible.EXTL2)
        # An L2 table takes one cluster.
        self._entry_size = 16 if self._extended else 8
        self._reach = self._cluster // self._entry_size * self._cluster
        self._context = f"qcow2 snapshot {quoted(snapshot.name)}"
        self._end = self._file.size or 0
        self._l1 = self._read_l1()
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._buffer = memoryview(bytearray())
        self._inflated: tuple[int, bytes] = 0, b""

    def window(self, offset: int, need: int) -> Window:
        """Read from `offset` on.

        Raises:
            StreamError: A fault of the image inside the first `need` bytes; its offset is one in
                the image, and behind `behind` there is more to read. With a `need` of 0 there is
                none: the window ends at the fault.
        """
        size = self.snapshot.vm_state_size
        if offset >= size:
            return memoryview(b""), offset, True
        need = min(need, size - offset)
        straight = self._straight(offset, need)
        if straight is not None:
            return straight, offset, offset + len(straight) == size
        length = min(size - offset, max(READ_WINDOW, need))
        if len(self._buffer) < length:
            self._buffer = memoryview(bytearray(max(length, READ_WINDOW)))
        done = 0
        try:
            for run in self._runs(offset, offset + length):
                self._read(run, offset + done, self._buffer[done : done + run[1]])
                done += run[1]
        except StreamError as error:
            if done < need:
                error.behind = self._behind(offset + done)
                raise
        return self._buffer[:done].toreadonly(), offset, offset + done == size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on, beside the window; return the bytes there were.

        Raises:
            StreamError: A fault of the image among them; its offset is one in the image.
        """
        done = 0
        for run in self._runs(offset, min(offset + len(buffer), self.snapshot.vm_state_size)):
            self._read(run, offset + done, buffer[done : done + run[1]])
            done += run[1]
        return done

    def close(self) -> None:
        """Close the image."""
        self._file.close()

    # A window of the file itself, which can be mapped, where clusters follow each other for long.
    def _straight(self, offset: int, need: int) -> memoryview | None:
        most = min(self.snapshot.vm_state_size - offset, max(need, 2 * MAPPED_WINDOW))
        try:
            host, length, entry = next(self._runs(offset, offset + most))
        except StreamError:
            return None
        if host is None or entry or length < max(need, READ_WINDOW):
            return None
        view, base, _ = self._file.window(host, need)
        view = view[host - base :][:length]
        # Fewer if the file has become shorter.
        return view if len(view) >= need else None

    # Where reading can go on behind a fault at `offset`: at the next cluster that the tables have.
    def _behind(self, offset: int) -> int:
        size = self.snapshot.vm_state_size
        while True:
            # Without its table nothing is known of what an L1 entry covers.
            step = self._cluster if self._has_table(offset // self._reach) else self._reach
            offset = (offset // step + 1) * step
            if offset >= size:
                return size
            try:
                next(self._runs(offset, size))
            except StreamError:
                continue
            return offset

    def _has_table(self, index: int) -> bool:
        try:
            self._table(index)
        except StreamError:
            return False
        return True

    # The L1 entries of the VM state.
    def _read_l1(self) -> array[int]:
        header, snapshot = self._header, self.snapshot
        if header.crypt_method:
            raise UnsupportedError(
                32, "the image is encrypted", context=self._context,
                found={1: "AES", 2: "LUKS"}.get(header.crypt_method, "an unknown method"),
                advice="load the snapshot in QEMU and migrate to a file",
            )  # fmt: skip
        if header.incompatible & Qcow2Incompatible.DATA_FILE:
            raise UnsupportedError(
                72, "the data of the image is in another file", context=self._context,
                advice="load the snapshot in QEMU and migrate to a file",
            )  # fmt: skip
        # Of the snapshot: the image may have been resized since.
        disk = header.size if snapshot.disk_size is None else snapshot.disk_size
        first = -(-disk // self._reach)
        count = -(-snapshot.vm_state_size // self._reach)
        begin, damaged = snapshot.l1_table_offset, "the snapshot table is damaged"
        if not count:
            raise FormatError(
                snapshot.offset + 32, "a snapshot of disks alone, without VM state",
                context=self._context, advice="'vmstream snapshots' lists those that have it",
            )  # fmt: skip
        if snapshot.l1_size * 8 > QCOW2_MAX_L1:
            raise LimitError(
                snapshot.offset + 8, "L1 table too long", context=self._context,
                expected=f"{QCOW2_MAX_L1 // 8} entries at most", found=str(snapshot.l1_size),
                advice=damaged,
            )  # fmt: skip
        if first + count > snapshot.l1_size:
            raise IntegrityError(
                snapshot.offset + 8, "the VM state goes on behind the L1 table",
                context=self._context, expected=f"{first + count} entries",
                found=str(snapshot.l1_size), advice=damaged,
            )  # fmt: skip
        if not begin or begin % self._cluster:
            raise FormatError(
                snapshot.offset, "L1 table that does not start at a cluster",
                context=self._context, found=f"offset {begin:#x}", advice=damaged,
            )  # fmt: skip
        if begin + snapshot.l1_size * 8 > self._end:
            raise self._cut(begin + snapshot.l1_size * 8, "L1 table")
        # Zero and unallocated clusters take no room, and an entry can be in a table many times, so
        # a small file could have exabytes read. QEMU writes every cluster.
        self._container.check_expansion(
            snapshot.vm_state_size, self._file.stored, snapshot.offset + 40, self._context
        )
        self._l1_offset = begin + first * 8
        return self._words(self._l1_offset, count * 8, "L1 table")

    def _words(self, offset: int, size: int, what: str) -> array[int]:
        data = self._file.read_at(offset, size)
        if len(data) < size:
            raise self._cut(offset + size, what)
        words = array("Q", data)
        if sys.byteorder == "little":
            words.byteswap()
        return words

    def _cut(self, wanted: int, what: str) -> TruncatedError:
        return TruncatedError(
            self._end, "the image ends", context=f"{self._context}, {what}",
            expected=f"bytes up to {wanted:#x}",
            advice="copy the whole image, or an offset in it is damaged",
        )  # fmt: skip

    # The L2 table at an index of `_l1`; `None` where there is none.
    def _table(self, index: int) -> array[int] | None:
        offset = self._l1[index] & QCOW2_OFFSET_MASK
        if not offset:
            return None
        table = self._tables.get(offset)
        if table is not None:
            self._tables.move_to_end(offset)
            return table
        at = self._l1_offset + 8 * index
        if offset % self._cluster:
            raise self._unaligned(at, "L2 table", offset)
        if offset + self._cluster > self._end:
            raise self._cut(offset + self._cluster, "L2 table")
        table = self._tables[offset] = self._words(offset, self._cluster, "L2 table")
        if len(self._tables) > max(2, _L2_CACHE // self._cluster):
            self._tables.popitem(last=False)
        return table

    def _unaligned(self, at: int, what: str, offset: int) -> FormatError:
        return FormatError(
            at, f"{what} that does not start at a cluster", context=self._context,
            found=f"offset {offset:#x}", advice="a table of the image is damaged",
        )  # fmt: skip

    # What the bytes [offset, stop) of the VM state are, in order, as long as can be.
    def _runs(self, offset: int, stop: int) -> Iterator[_Run]:
        while offset < stop:
            index, within = divmod(offset, self._reach)
            table = self._table(index)
            limit = min(stop, (index + 1) * self._reach)
            if table is None:
                yield None, limit - offset, 0
                offset = limit
                continue
            at = (self._l1[index] & QCOW2_OFFSET_MASK) + within // self._cluster * self._entry_size
            run = self._run(table, at, within, limit - offset)
            yield run
            offset += run[1]

    # The run that starts `within` what an L2 table covers; `at` is where its entry is.
    def _run(self, table: array[int], at: int, within: int, most: int) -> _Run:
        number, inside = divmod(within, self._cluster)
        step = self._entry_size // 8
        entry = table[number * step]
        length = self._cluster - inside
        if entry & QCOW2_COMPRESSED:
            # The bitmap of an extended entry says nothing about it.
            return at, min(length, most), entry
        host = entry & QCOW2_OFFSET_MASK
        if host % self._cluster:
            raise self._unaligned(at, "cluster", host)
        if self._extended:
            # Bit 0 has no meaning there: the bitmap tells.
            mask = QCOW2_COMPRESSED | QCOW2_OFFSET_MASK
            bitmap = table[number * step + 1]
            if bitmap != _FULL_BITMAP:
                return self._subclusters(at, host, bitmap, inside, most)
            if not host:
                raise self._invalid(at)
        else:
            mask = QCOW2_COMPRESSED | QCOW2_OFFSET_MASK | QCOW2_ZERO
            if entry & QCOW2_ZERO:
                # QEMU v10.1.0 block/qcow2-cluster.c qcow2_get_host_offset() refuses it too.
                if self._header.version < 3:
                    raise FormatError(
                        at, "zero cluster in an image of version 2", context=self._context,
                        advice="a table of the image is damaged",
                    )  # fmt: skip
                return None, min(length, most), 0
            if not host:
                return None, min(length, most), 0
        following = host
        while length < most:
            number += 1
            following += self._cluster
            if table[number * step] & mask != following or (
                self._extended and table[number * step + 1] != _FULL_BITMAP
            ):
                break
            length += self._cluster
        return self._there(host + inside, min(length, most))

    # A run of subclusters of one kind. QEMU v10.1.0 block/qcow2.h qcow2_get_subcluster_type().
    def _subclusters(self, at: int, host: int, bitmap: int, inside: int, most: int) -> _Run:
        allocated, zero = bitmap & _FULL_BITMAP, bitmap >> QCOW2_SUBCLUSTERS
        if allocated & zero or (allocated and not host):
            raise self._invalid(at)
        size = self._cluster // QCOW2_SUBCLUSTERS
        first = last = inside // size
        kind = allocated >> first & 1
        while last < QCOW2_SUBCLUSTERS and allocated >> last & 1 == kind:
            last += 1
        length = min(last * size - inside, most)
        return self._there(host + inside, length) if kind else (None, length, 0)

    def _invalid(self, at: int) -> FormatError:
        return FormatError(
            at, "L2 entry that contradicts itself", context=self._context,
            advice="a table of the image is damaged",
        )  # fmt: skip

    # As much of a run as the file has.
    def _there(self, host: int, length: int) -> _Run:
        if host >= self._end:
            raise self._cut(host + length, "data cluster")
        return host, min(length, self._end - host), 0

    def _read(self, run: _Run, offset: int, into: memoryview) -> None:
        host, length, entry = run
        if host is None:
            for at in range(0, length, len(_ZEROS)):
                into[at : at + len(_ZEROS)] = _ZEROS[: length - at]
        elif entry:
            inside = offset % self._cluster
            into[:] = self._inflate(host, entry)[inside : inside + length]
        elif self._file.read_into(host, into) < length:
            raise self._cut(host + length, "data cluster")

    # A compressed cluster; `at` is where its L2 entry is. The one read last is held, since a
    # window may have ended inside it.
    def _inflate(self, at: int, entry: int) -> bytes:
        if self._inflated[0] == entry:
            return self._inflated[1]
        # QEMU v10.1.0 block/qcow2-cluster.c qcow2_parse_compressed_l2_entry().
        shift = 62 - (self._header.cluster_bits - 8)
        host = entry & ((1 << shift) - 1)
        sectors = (entry & (QCOW2_COMPRESSED - 1)) >> shift
        if host >= self._end:
            raise self._cut(host + 1, "compressed cluster")
        # Fewer at the end of the file, which need not have the whole last sector.
        packed = self._file.read_at(host, (sectors + 1) * QCOW2_SECTOR - host % QCOW2_SECTOR)
        try:
            if self._header.compression == Qcow2Compression.ZSTD:
                reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
                with reader.stream_reader(packed) as stream:
                    data = stream.read(self._cluster)
            else:
                # QEMU v10.1.0 block/qcow2-threads.c qcow2_zlib_decompress(): raw, 12 bits.
                data = zlib.decompressobj(-12).decompress(packed, self._cluster)
        except (zlib.error, zstandard.ZstdError) as exc:
            raise self._undone(host, at, str(exc)) from exc
        if len(data) < self._cluster:
            if host + len(packed) >= self._end:
                raise self._cut(host + (sectors + 1) * QCOW2_SECTOR, "compressed cluster")
            raise self._undone(host, at, f"{len(data)} bytes")
        self._inflated = entry, data
        return data

    def _undone(self, host: int, at: int, found: str) -> FormatError:
        return FormatError(
            host, "compressed cluster that does not decompress", context=self._context,
            expected=f"{self._cluster} bytes", found=found,
            advice=f"it, or its L2 entry at {at:#x}, is damaged",
        )  # fmt: skip
