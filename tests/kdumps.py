"""A reader of compressed kdump files that is not ours, flattened ones too.

Written from makedumpfile's diskdump_mod.h and IMPLEMENTATION; it shares nothing with vmstream.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

UTSNAME = ("sysname", "nodename", "release", "version", "machine", "domainname")
HEADER = (
    "status", "block_size", "sub_hdr_size", "bitmap_blocks", "max_mapnr", "total_ram_blocks",
    "device_blocks", "written_blocks", "current_cpu", "nr_cpus",
)  # fmt: skip
SUB_HEADER = (
    ("phys_base", 8), ("dump_level", 4), ("split", 4), ("start_pfn", 8), ("end_pfn", 8),
    ("offset_vmcoreinfo", 8), ("size_vmcoreinfo", 8), ("offset_note", 8), ("size_note", 8),
    ("offset_eraseinfo", 8), ("size_eraseinfo", 8), ("start_pfn_64", 8), ("end_pfn_64", 8),
    ("max_mapnr_64", 8),
)  # fmt: skip


def unflattened(data: bytes) -> bytes:
    """The file that a flattened one is made into, as by `makedumpfile -R`."""
    assert data[:16] == b"makedumpfile\0\0\0\0"
    assert struct.unpack(">qq", data[16:32]) == (1, 1)
    assert not any(data[32:4096])
    made, at = bytearray(), 4096
    while True:
        offset, size = struct.unpack(">qq", data[at : at + 16])
        at += 16
        if offset == -1:
            assert size == -1
            break
        assert offset >= 0 and size > 0
        made.extend(bytes(max(0, offset + size - len(made))))
        made[offset : offset + size] = data[at : at + size]
        at += size
    assert at == len(data)
    return bytes(made)


class Kdump:
    """One file, checked while it is read.

    Attributes:
        header: Numbers of both headers and the strings of utsname, by name.
        order: '<' or '>'.
        notes: The bytes of the notes.
        vmcoreinfo: Likewise.
        frames: Page frames in the file, ascending; the second bitmap is the same.
    """

    def __init__(self, source: Path | bytes) -> None:
        data = source if isinstance(source, bytes) else source.read_bytes()
        if data.startswith(b"makedumpfile"):
            data = unflattened(data)
        self.data = data
        assert data[:8] == b"KDUMP   "
        self.order = "<" if data[8:12] == b"\6\0\0\0" else ">"
        self.header: dict[str, Any] = {"header_version": self._int(8, 4)}
        assert self.header["header_version"] == 6
        for i, name in enumerate(UTSNAME):
            text = data[12 + 65 * i : 77 + 65 * i]
            assert not text.rstrip(b"\0").count(0)
            self.header[name] = text.rstrip(b"\0").decode()
        assert not any(data[402:424])
        for i, name in enumerate(HEADER):
            self.header[name] = self._int(424 + 4 * i, 4)
        block = self.header["block_size"]
        at = block
        for name, size in SUB_HEADER:
            self.header[name] = self._int(at, size)
            at += size
        self.notes = self._part("note")
        self.vmcoreinfo = self._part("vmcoreinfo")
        length = self.header["bitmap_blocks"] // 2 * block
        bitmap = (1 + self.header["sub_hdr_size"]) * block
        first = data[bitmap : bitmap + length]
        assert first == data[bitmap + length : bitmap + 2 * length]
        self.frames = [
            8 * i + bit
            for i, byte in enumerate(first)
            if byte
            for bit in range(8)
            if byte >> bit & 1
        ]
        self._table = bitmap + 2 * length
        self.flags: dict[int, int] = {}

    def _int(self, at: int, size: int) -> int:
        code = {4: "I", 8: "Q"}[size]
        found: int = struct.unpack(self.order + code, self.data[at : at + size])[0]
        return found

    def _part(self, name: str) -> bytes:
        at, size = self.header[f"offset_{name}"], self.header[f"size_{name}"]
        assert at + size <= len(self.data)
        return self.data[at : at + size]

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """(frame, content) of each; every descriptor has to hold, and all of the data is used."""
        block, zeros = self.header["block_size"], self._table + 24 * len(self.frames)
        used = {zeros: block}
        for i, frame in enumerate(self.frames):
            offset, size, flags, page_flags = struct.unpack(
                self.order + "QIIQ", self.data[self._table + 24 * i : self._table + 24 * i + 24]
            )
            assert page_flags == 0 and offset >= zeros
            self.flags[flags] = self.flags.get(flags, 0) + 1
            used[offset] = size
            packed = self.data[offset : offset + size]
            if flags == 0:
                page = packed
            elif flags == 1:
                page = zlib.decompress(packed)
            else:
                assert flags == 0x20
                page = zstandard.ZstdDecompressor().decompress(packed)
            assert len(page) == block
            assert not flags or size < block
            yield frame, page
        at = zeros
        for offset, size in sorted(used.items()):
            assert offset == at
            at += size
        assert at == len(self.data)

    def stretches(self) -> Iterator[tuple[int, bytes]]:
        """(address, content) of frames that follow each other, 1 MiB at the most."""
        block = self.header["block_size"]
        first, held = -1, bytearray()
        for frame, page in self.pages():
            if held and (first + len(held) // block != frame or len(held) >= 1 << 20):
                yield first * block, bytes(held)
                held.clear()
            if not held:
                first = frame
            held += page
        if held:
            yield first * block, bytes(held)
