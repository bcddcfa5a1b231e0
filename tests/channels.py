"""What the connections of a migration carry, read in plain Python and without vmstream.

It is the oracle for captures of QEMU 7.2: streams with section footers and pages of 4096 bytes.

    main = MainChannel(main_bytes)
    multifd_memory(main, [MultifdChannel(b) for b in others])    # {block: content}
    postcopy_memory(main, urgent_records)                        # preempt: page records alone

From QEMU v7.2.0 migration/ram.c (ram_save_setup(), ram_save_page(), save_zero_page_to_file()),
migration/multifd.h (MultiFDInit_t, MultiFDPacket_t), migration/multifd-zlib.c, multifd-zstd.c.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import zstandard

PAGE = 4096
ZERO, RAW, EOS, CONTINUE = 0x02, 0x08, 0x10, 0x20
INIT_SIZE = 64
PACKET = struct.Struct(">IIIIIIQ")
NAME_OFFSET, PAGES_OFFSET = 64, 320
SYNC, METHODS = 1, {0: "none", 2: "zlib", 4: "zstd"}


@dataclass(frozen=True)
class Record:
    """A page record; `body` is None for a page of zeros. `generation` counts the EOS before it."""

    generation: int
    block: str
    address: int
    body: bytes | None


@dataclass(frozen=True)
class Discard:
    """A range that postcopy withdraws, behind so many records."""

    records: int
    block: str
    start: int
    length: int


class RecordReader:
    """Page records of one channel, which remembers the block that CONTINUE means."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.block = ""

    def read(self, at: int, generation: int = 0) -> tuple[Record | None, int]:
        """The record at `at` and where the next one is; None is an EOS."""
        (word,) = struct.unpack_from(">Q", self.data, at)
        address, flags = word & ~(PAGE - 1), word & (PAGE - 1)
        at += 8
        if flags == EOS:
            return None, at
        if not flags & CONTINUE:
            length = self.data[at]
            self.block = self.data[at + 1 : at + 1 + length].decode()
            at += 1 + length
        assert flags & ~CONTINUE in (ZERO, RAW), hex(flags)
        size = 1 if flags & ZERO else PAGE
        body = self.data[at : at + size]
        assert len(body) == size
        if flags & ZERO:
            assert body == b"\0"
        return Record(generation, self.block, address, None if flags & ZERO else body), at + size


def urgent_records(data: bytes) -> list[Record]:
    """The second channel of postcopy-preempt: page records, and an EOS towards a 7.2."""
    reader, at, found = RecordReader(data), 0, []
    while at < len(data):
        record, at = reader.read(at)
        if record is None:
            assert at == len(data)
            break
        found.append(record)
    return found


@dataclass
class MainChannel:
    """The RAM sections of a main channel, and what postcopy withdraws.

    blocks:  name to size
    records: in the order of the wire
    markers: how many RAM sections have ended
    """

    data: bytes
    blocks: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    discards: list[Discard] = field(default_factory=list)
    markers: int = 0

    def __post_init__(self) -> None:
        data = self.data
        at = data.index(b"\x03ram" + struct.pack(">II", 0, 4)) + 12
        (total,) = struct.unpack_from(">Q", data, at)
        assert total & (PAGE - 1) == 4  # RAM_SAVE_FLAG_MEM_SIZE
        at += 8
        while sum(self.blocks.values()) < total - 4:
            name = data[at + 1 : at + 1 + data[at]].decode()
            at += 1 + data[at]
            (self.blocks[name],) = struct.unpack_from(">Q", data, at)
            at += 8
        reader = RecordReader(data)
        at = self._section(reader, at)
        while data[at] in (2, 3, 8):  # PART, END, COMMAND; behind that is device state
            at = self._command(at) if data[at] == 8 else self._section(reader, at + 5)

    def _section(self, reader: RecordReader, at: int) -> int:
        """Read a body and its footer; where the next item is."""
        while True:
            record, at = reader.read(at, self.markers)
            if record is None:
                break
            self.records.append(record)
        self.markers += 1
        assert self.data[at] == 0x7E
        return at + 5

    def _command(self, at: int) -> int:
        number, length = struct.unpack_from(">HH", self.data, at + 1)
        body = self.data[at + 5 : at + 5 + length]
        at += 5 + length
        if number == 7:  # PACKAGED: device state
            at += struct.unpack(">I", body)[0]
        if number == 6:  # POSTCOPY_RAM_DISCARD
            name = body[2 : 2 + body[1]].decode()
            for start, size in struct.iter_unpack(">QQ", body[3 + body[1] :]):
                self.discards.append(Discard(len(self.records), name, start, size))
        return at


@dataclass(frozen=True)
class Packet:
    """A multifd packet with its pages unpacked."""

    generation: int
    number: int
    method: str
    block: str
    pages: list[tuple[int, bytes]]


class MultifdChannel:
    """One multifd connection. `packets` in order, `syncs` how many said SYNC."""

    def __init__(self, data: bytes) -> None:
        magic, version = struct.unpack_from(">II", data)
        assert (magic, version) == (0x11223344, 1)
        self.id = data[24]
        self.packets: list[Packet] = []
        self.syncs = 0
        self._zlib = zlib.decompressobj()
        self._zstd = zstandard.ZstdDecompressor().decompressobj()
        for packet in self._read(data):
            self.packets.append(packet)

    def _read(self, data: bytes) -> Iterator[Packet]:
        at = INIT_SIZE
        while at < len(data):
            head = PACKET.unpack_from(data, at)
            magic, version, flags, capacity, count, size, number = head
            assert (magic, version, capacity) == (0x11223344, 1, 128)
            name = data[at + NAME_OFFSET : at + PAGES_OFFSET].rstrip(b"\0").decode()
            offsets = struct.unpack_from(f">{count}Q", data, at + PAGES_OFFSET)
            at += PAGES_OFFSET + 8 * capacity
            # Without pages nothing follows, whatever size an earlier packet has left in the field.
            payload = data[at : at + size] if count else b""
            assert len(payload) == (size if count else 0)
            at += len(payload)
            method = METHODS[flags & ~SYNC]
            raw = self._unpacked(method, payload)
            assert len(raw) == count * PAGE
            pages = [(o, raw[i * PAGE : (i + 1) * PAGE]) for i, o in enumerate(offsets)]
            yield Packet(self.syncs, number, method, name, pages)
            self.syncs += flags & SYNC

    def _unpacked(self, method: str, payload: bytes) -> bytes:
        """One stream of zlib or zstd goes on through all packets of a channel."""
        if method == "none" or not payload:
            return payload
        unpacker = self._zlib if method == "zlib" else self._zstd
        return unpacker.decompress(payload)


def multifd_memory(
    main: MainChannel, channels: Sequence[MultifdChannel]
) -> dict[str, bytes] | None:
    """The blocks, or None if the channels do not tell what the last content of a page is.

    QEMU 7.2 syncs the channels behind every RAM section. In between it sends a page once, but for
    the last one of a full packet: multifd_queue_page() may look at the packet when its thread is
    done with it, takes the page for one of another block and queues it again (fixed in 8.0 by
    ddbe628c97 "multifd: Fix a race on reading MultiFDPages_t.block"). If a guest has changed the
    page in between, it depends on the threads of the destination which of the two is the last.
    """
    assert {c.syncs for c in channels} == {main.markers}
    memory = {name: bytearray(size) for name, size in main.blocks.items()}
    for generation in range(main.markers):
        pages: dict[tuple[str, int], bytes] = {}
        for record in main.records:
            if record.generation == generation:
                assert record.body is None
                assert (record.block, record.address) not in pages
                pages[record.block, record.address] = bytes(PAGE)
        for packet in (p for c in channels for p in c.packets if p.generation == generation):
            for address, body in packet.pages:
                if pages.setdefault((packet.block, address), body) != body:
                    return None
        for (block, address), body in pages.items():
            memory[block][address : address + PAGE] = body
    return {name: bytes(content) for name, content in memory.items()}


def postcopy_memory(main: MainChannel, urgent: Sequence[Record] = ()) -> dict[str, bytes]:
    """The blocks behind a postcopy migration: what was withdrawn has come again, and once."""
    memory = {name: bytearray(size) for name, size in main.blocks.items()}
    assert len({d.records for d in main.discards}) == 1  # all of them at the switch
    at = main.discards[0].records
    gone = {(d.block, a) for d in main.discards for a in range(d.start, d.start + d.length, PAGE)}
    for record in main.records[:at]:
        memory[record.block][record.address : record.address + PAGE] = record.body or bytes(PAGE)
    again = [*main.records[at:], *urgent]
    places = [(r.block, r.address) for r in again]
    assert len(places) == len(set(places))
    assert gone <= set(places)
    for record in again:
        memory[record.block][record.address : record.address + PAGE] = record.body or bytes(PAGE)
    return {name: bytes(content) for name, content in memory.items()}
