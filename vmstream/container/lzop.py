"""Unpack and pack files of lzop, block by block; a package is needed for LZO itself alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from vmstream.container.codecs import optional_package
from vmstream.container.packed import PackedInput
from vmstream.errors import IntegrityError, LimitError, UnsupportedError
from vmstream.wire import build, parse
from vmstream.wire.constants import LZOP_MAGIC, LZOP_METHODS, MAX_LZOP_BLOCK, LzopFlag
from vmstream.wire.parse import LzopBlock

# No header is longer: 41 bytes of numbers and a name of 255.
_LONGEST_HEADER = 512
_BLOCK_HEAD = 24

# What lzop itself writes, in its blocks.
_FLAGS = LzopFlag.OS_UNIX | LzopFlag.STDIN | LzopFlag.STDOUT | LzopFlag.ADLER32_D
_BLOCK = 256 << 10

LZOP_HEAD = build.lzop_header(_FLAGS)
LZOP_END = bytes(4)


def lzop(data: PackedInput) -> Iterator[bytes]:
    """Unpack one member of an lzop file, checking every sum that it has."""
    package = optional_package("lzallright", "lzop", "lzo")
    flags = _header(data)
    while True:
        if not any(data.have(4)):
            data.offset += 4
            return
        try:
            block, size = parse.lzop_block(data.peek(_BLOCK_HEAD), data.offset, flags)
        except parse.Short:
            raise data.ends() from None
        if block.size > MAX_LZOP_BLOCK:
            raise data.damaged(f"a block of {block.size} bytes", LimitError)
        if not 0 < block.packed_size <= block.size:
            raise data.damaged(f"a block of {block.size} bytes in {block.packed_size}")
        packed = bytes(data.have(size + block.packed_size)[size:])
        _check(data, packed, block.packed_adler32, block.packed_crc32)
        out = packed if block.packed_size == block.size else _lzo(data, package, packed, block.size)
        _check(data, out, block.adler32, block.crc32)
        data.offset += size + block.packed_size
        yield out


# Move behind the header; return its flags.
def _header(data: PackedInput) -> int:
    view = data.peek(_LONGEST_HEADER)
    try:
        method, flags, checksum, size = parse.lzop_header(view, data.offset)
    except parse.Short:
        raise data.ends() from None
    covered = bytes(view[len(LZOP_MAGIC) : size - 4])
    sum_of = zlib.crc32 if flags & LzopFlag.HEADER_CRC32 else zlib.adler32
    if sum_of(covered) != checksum:
        raise data.damaged("the header does not have its checksum", IntegrityError)
    if method not in LZOP_METHODS or flags & (LzopFlag.FILTER | LzopFlag.MULTIPART):
        raise data.damaged(f"method {method} with flags {flags:#x} is not read", UnsupportedError)
    data.offset += size
    if flags & LzopFlag.EXTRA_FIELD:
        length = int.from_bytes(data.have(4), "big")
        data.skip(4 + length + 4)
    return flags


def _lzo(data: PackedInput, package: Any, packed: bytes, size: int) -> bytes:
    try:
        out: bytes = package.LZOCompressor.decompress(packed, size)
    except package.LZOError:
        # Without the error, which may hold all that was unpacked.
        raise data.damaged("damaged LZO block") from None
    if len(out) != size:
        raise data.damaged(f"a block of {len(out)} bytes instead of {size}")
    return out


def _check(data: PackedInput, block: bytes, adler32: int | None, crc32: int | None) -> None:
    for name, sum_of, stated in (
        ("Adler-32", zlib.adler32, adler32),
        ("CRC-32", zlib.crc32, crc32),
    ):
        if stated is not None and sum_of(block) != stated:
            raise data.damaged(f"a block does not have its {name}", IntegrityError)


def lzop_blocks(data: bytearray | memoryview) -> bytes:
    """Make blocks of an lzop file of this, between LZOP_HEAD and LZOP_END.

    They are stored, as lzop does with what does not shrink: the one package for LZO packs some
    15 MB/s, and one thread at a time.
    """
    view = memoryview(data)
    made = bytearray()
    for at in range(0, len(view), _BLOCK):
        part = view[at : at + _BLOCK]
        head = LzopBlock(len(part), len(part), zlib.adler32(part), None, None, None)
        made += build.lzop_block(head, _FLAGS)
        made += part
    return bytes(made)
