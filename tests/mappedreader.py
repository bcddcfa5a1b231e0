"""A strict reader of mapped-ram files that shares no code with vmstream: `struct` alone.

    file = MappedFile(path)           # or bytes; `origin` is where "QEVM" stands
    file["pc.ram"].content()          # what QEMU would load
    file["pc.ram"].present            # numbers of the pages that have their bit set
    file["pc.ram"].stale()            # bytes other than zero in places of pages that have not

It takes what QEMU 9.0 to 11.1 writes on a little-endian host of 64 bits, and fails with a
`MappedError` at whatever is not so: places that are not where QEMU puts them, bits behind the last
page, bytes between a bitmap and its pages, page records, a missing EOS or footer. Areas cannot
overlap, since each entry has to stand behind the area before it, and its own places behind it.

From QEMU v10.1.0 migration/ram.c (MappedRamHeader, mapped_ram_setup_ramblock(),
ram_save_file_bmap(), parse_ramblock_mapped_ram()) and migration/savevm.c.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
EOF, START, PART, END, FULL, SUBSECTION, VMDESCRIPTION, CONFIGURATION, COMMAND, FOOTER = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7E,
)  # fmt: skip
MEM_SIZE, EOS = 0x04, 0x10


class MappedError(Exception):
    """The file breaks a rule."""


@dataclass(frozen=True)
class Block:
    """A block of the list; offsets in the file, of shared memory 0."""

    name: str
    length: int
    gpa: int | None
    page_size: int
    bitmap_offset: int
    pages_offset: int
    present: tuple[int, ...]
    data: bytes | mmap.mmap = field(repr=False)

    @property
    def shared(self) -> bool:
        return self.pages_offset == 0

    def place(self, page: int) -> bytes:
        """What stands in the place of a page, there or not."""
        at = self.pages_offset + page * self.page_size
        return self.data[at : at + self.page_size]

    def content(self) -> bytes:
        """The memory: zeros where a page has no bit."""
        made = bytearray(self.length)
        for page in self.present:
            at = page * self.page_size
            made[at : at + self.page_size] = self.place(page)
        return bytes(made)

    def stale(self) -> list[int]:
        """Pages without a bit whose place holds something all the same."""
        there = set(self.present)
        pages = range(0 if self.shared else self.length // self.page_size)
        return [p for p in pages if p not in there and not self._zero(p)]

    def empty(self) -> list[int]:
        """Pages with a bit that hold nothing but zeros."""
        return [p for p in self.present if self._zero(p)]

    def _zero(self, page: int) -> bool:
        return self.place(page).count(0) == self.page_size


class MappedFile:
    """A file whose stream starts at `origin`."""

    def __init__(self, source: Path | bytes, origin: int = 0) -> None:
        if isinstance(source, Path):
            with source.open("rb") as file:
                self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            self.data = source
        self.at = origin
        self.machine = ""
        self.capabilities: list[str] = []
        self.blocks: list[Block] = []
        self.parts = 0
        self._header()
        self._ram()
        self.tail = self.at  # behind the END of ram

    def __getitem__(self, name: str) -> Block:
        return next(b for b in self.blocks if b.name == name)

    # ---- bytes -----------------------------------------------------------------------------

    def _take(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        self._room(size)
        found = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return found

    def _bytes(self, size: int) -> bytes:
        self._room(size)
        self.at += size
        return self.data[self.at - size : self.at]

    def _name(self) -> str:
        (size,) = self._take(">B")
        return self._bytes(size).decode()

    def _room(self, size: int) -> None:
        self._must(self.at + size <= len(self.data), "the file ends")

    def _must(self, holds: bool, rule: str) -> None:
        if not holds:
            raise MappedError(f"at {self.at:#x}: {rule}")

    # ---- the stream ------------------------------------------------------------------------

    def _header(self) -> None:
        self._must(self._bytes(4) == b"QEVM" and self._take(">I") == (3,), "no stream")
        self._must(self._take(">B") == (CONFIGURATION,), "no configuration")
        (size,) = self._take(">I")
        self.machine = self._bytes(size).decode()
        while self.data[self.at] == SUBSECTION:
            self.at += 1
            name, version = self._name(), self._take(">I")
            self._must(version == (1,), f"{name} of version {version}")
            match name:
                case "configuration/capabilities":
                    (count,) = self._take(">I")
                    self.capabilities = [self._name() for _ in range(count)]
                case "configuration/target-page-bits":
                    self._take(">I")
                case "configuration/uuid":
                    self._bytes(16)
                case _:
                    self._must(False, f"subsection {name}")
        self._must("mapped-ram" in self.capabilities, "no capability mapped-ram")

    def _ram(self) -> None:
        self._commands()
        self._must(self._take(">B") == (START,), "no START")
        (section,) = self._take(">I")
        head = self._name(), *self._take(">II")
        self._must(head == ("ram", 0, 4), f"START of {head}")
        self._list()
        self._eos(section)
        while True:
            self._commands()
            (kind,) = self._take(">B")
            self._must(kind in (PART, END), f"item {kind} among the parts of ram")
            self._must(self._take(">I") == (section,), "part of another section")
            self._eos(section)
            if kind == END:
                break
            self.parts += 1
        self._must(self.at < len(self.data) and self.data[self.at] in (FULL, EOF), "no device")

    def _commands(self) -> None:
        while self.at < len(self.data) and self.data[self.at] == COMMAND:
            _, _, size = self._take(">BHH")
            self._bytes(size)

    def _eos(self, section: int) -> None:
        self._must(self._take(">Q") == (EOS,), "no EOS")
        self._must(self._take(">BI") == (FOOTER, section), "no footer")

    def _list(self) -> None:
        (word,) = self._take(">Q")
        self._must(word & 0xFF == MEM_SIZE, "no MEM_SIZE")
        left = word - MEM_SIZE
        while left:
            block = self._block()
            self._must(block.length <= left, "blocks are more than their total")
            left -= block.length
            self.blocks.append(block)
        names = [b.name for b in self.blocks]
        self._must(len(set(names)) == len(names), "two blocks of one name")
        self._must(len({b.page_size for b in self.blocks}) == 1, "pages of several sizes")

    def _block(self) -> Block:
        name, (length,) = self._name(), self._take(">Q")
        gpa = self._take(">Q")[0] if "x-ignore-shared" in self.capabilities else None
        version, page_size, bitmap_at, pages_at = self._take(">IQQQ")
        self._must(version == 1, f"header of version {version}")
        self._must(page_size in (1 << n for n in range(8, 17)), f"pages of {page_size}")
        self._must(length > 0 and length % page_size == 0, f"length {length:#x}")
        if gpa is not None and not bitmap_at and not pages_at:
            return Block(name, length, gpa, page_size, 0, 0, (), self.data)
        count = length // page_size
        bitmap_size = (count + 63) // 64 * 8
        self._must(bitmap_at == self.at, f"bitmap at {bitmap_at:#x}, not behind its header")
        self._must(pages_at % MIB == 0, f"pages at {pages_at:#x}")
        self._must(0 <= pages_at - (bitmap_at + bitmap_size) < MIB, f"pages at {pages_at:#x}")
        bitmap = self._bytes(bitmap_size)
        self._must(
            self._bytes(pages_at - self.at).strip(b"\0") == b"", "bytes between bitmap and pages"
        )
        present = []
        for index, (long,) in enumerate(struct.iter_unpack("<Q", bitmap)):
            while long:
                low = long & -long
                present.append(index * 64 + low.bit_length() - 1)
                long ^= low
        self._must(all(page < count for page in present), "bits behind the last page")
        self._room(length)
        self.at += length
        return Block(name, length, gpa, page_size, bitmap_at, pages_at, tuple(present), self.data)
