"""Readers of memory dumps that are not ours: ELF cores with pyelftools, LiME by its description.

Both give ranges: guest-physical address, length, offset in the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from elftools.elf.elffile import ELFFile


class DumpRange(NamedTuple):
    gpa: int
    length: int
    offset: int


def elf_ranges(path: Path) -> list[DumpRange]:
    """The PT_LOADs, in their order."""
    with path.open("rb") as file:
        return [
            DumpRange(s["p_paddr"], s["p_filesz"], s["p_offset"])
            for s in ELFFile(file).iter_segments("PT_LOAD")
        ]


def lime_ranges(path: Path) -> list[DumpRange]:
    """The ranges; they have to follow each other up to the end of the file."""
    found, at, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(32)
            assert head[:4] == b"EMiL"
            version, first, last = struct.unpack("<IQQ", head[4:24])
            assert (version, head[24:]) == (1, bytes(8))
            found.append(DumpRange(first, last - first + 1, at + 32))
            at += 32 + last - first + 1
    assert at == size
    return found


def read_range(path: Path, found: DumpRange, gpa: int, length: int) -> bytes:
    """Bytes of guest-physical memory that a range has."""
    assert found.gpa <= gpa <= gpa + length <= found.gpa + found.length
    with path.open("rb") as file:
        file.seek(found.offset + gpa - found.gpa)
        return file.read(length)
