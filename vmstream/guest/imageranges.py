"""Where guest-physical memory stands in a file that somebody made of it.

Files of other tools are read, too: ELF cores of QEMU's dump-guest-memory, LiME files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from vmstream.errors import FormatError, TruncatedError, UnsupportedError
from vmstream.guest.imagefile import Range

# Headers that a file may have; a LiME file has one for each range.
MAX_RANGES = 1 << 16

_ELF, _LIME = b"\x7fELF", b"EMiL"
_LIME_HEAD = struct.Struct("<IIQQ8x")
_LIME_VERSION = 1
_PT_LOAD = 1
# System V ABI, "Object Files": e_phoff, e_phentsize and e_phnum of a header without its identity;
# type, place, physical address and bytes in the file of a program header. By EI_CLASS.
_ELF_HEAD = {1: ("HHIIIIIHHHHHH", 4), 2: ("HHIQQQIHHHHHH", 4)}
_PROGRAM = {1: ("IIIIIIII", (0, 1, 3, 4)), 2: ("IIQQQQQQ", (0, 2, 4, 5))}
_IDENTITY = 16
_ORDERS = {1: "<", 2: ">"}
# There are more program headers than the field can say.
_PN_XNUM = 0xFFFF

# What is memory too, by its first bytes, but not here.
_OTHERS = {
    b"KDUMP   ": "a kdump file",
    b"DISKDUMP": "a kdump file",
    b"makedumpfile": "a kdump file",
}

_Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Image:
    """What a file of guest-physical memory has.

    Attributes:
        format: 'raw', 'elf' or 'lime'.
        ranges: Addresses and where their bytes are in the file, ascending, none twice.
    """

    format: str
    ranges: tuple[Range, ...]


def image_ranges(read: _Read, size: int) -> Image:
    """Tell what a file is by its first bytes, and where memory stands in it.

    What has no magic is a raw image: the offset is the address.

    Args:
        read: Gives so many bytes at an offset, fewer only at the end.
        size: Of the file, bytes.

    Raises:
        FormatError: Its headers contradict themselves, or there is no memory in it.
        TruncatedError: It is shorter than they say.
        UnsupportedError: It is of a kind, or of a size, that is not read here.
    """
    head = read(0, _IDENTITY)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise UnsupportedError(
                0,
                f"{what}, whose pages are compressed",
                advice="make a raw image or ELF core of it",
            )
    if head.startswith(_ELF):
        return Image("elf", _apart(_elf(read, size, head), size))
    if head.startswith(_LIME):
        return Image("lime", _apart(_lime(read, size), size))
    return Image("raw", (Range(0, size, 0),))


def _elf(read: _Read, size: int, identity: bytes) -> list[Range]:
    kind, order = identity[4:5], identity[5:6]
    if not kind or kind[0] not in _ELF_HEAD or not order or order[0] not in _ORDERS:
        raise FormatError(4, "an ELF file of no class or byte order", found=identity[4:6].hex())
    layout, at_offset = _ELF_HEAD[kind[0]]
    head = struct.Struct(_ORDERS[order[0]] + layout)
    fields = head.unpack(_exactly(read, _IDENTITY, head.size))
    at, entry, count = fields[at_offset], fields[8], fields[9]
    program = struct.Struct(_ORDERS[order[0]] + _PROGRAM[kind[0]][0])
    if count == _PN_XNUM:
        raise UnsupportedError(_IDENTITY, f"an ELF file with {_PN_XNUM} program headers or more")
    if count and entry != program.size:
        raise FormatError(
            _IDENTITY, f"program headers of {entry} bytes", expected=str(program.size)
        )
    table = _exactly(read, at, entry * count)
    found: list[Range] = []
    for number in range(count):
        values = program.unpack_from(table, number * entry)
        segment, offset, gpa, length = (values[i] for i in _PROGRAM[kind[0]][1])
        if segment == _PT_LOAD and length:
            found.append(Range(gpa, length, offset))
    return found


def _lime(read: _Read, size: int) -> list[Range]:
    found: list[Range] = []
    at = 0
    while at < size:
        magic, version, first, last = _LIME_HEAD.unpack(_exactly(read, at, _LIME_HEAD.size))
        if magic != int.from_bytes(_LIME, "little"):
            raise FormatError(at, "no LiME header where one has to be", found=f"{magic:#x}")
        if version != _LIME_VERSION:
            raise UnsupportedError(at, f"a LiME file of version {version}")
        if last < first:
            raise FormatError(at, "a LiME range that ends before it begins")
        if len(found) == MAX_RANGES:
            raise UnsupportedError(at, f"a LiME file of more than {MAX_RANGES} ranges")
        at += _LIME_HEAD.size
        found.append(Range(first, last - first + 1, at))
        at += last - first + 1
    return found


# By address, each once: a core of dump-guest-memory with paging has memory once for each virtual
# address of it.
def _apart(found: list[Range], size: int) -> tuple[Range, ...]:
    made: list[Range] = []
    end = 0
    for part in sorted(found, key=lambda r: (r.gpa, r.offset)):
        if part.offset + part.length > size:
            raise TruncatedError(
                size,
                f"the file ends within the memory at {part.gpa:#x}",
                expected=f"{part.offset + part.length - size} more bytes",
            )
        skip = max(0, end - part.gpa)
        if skip < part.length:
            made.append(Range(part.gpa + skip, part.length - skip, part.offset + skip))
            end = part.gpa + part.length
    if not made:
        raise FormatError(0, "no memory in it")
    return tuple(made)


def _exactly(read: _Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) < length:
        raise TruncatedError(
            offset + len(data), "the input ends", expected=f"{length - len(data)} more bytes"
        )
    return data
