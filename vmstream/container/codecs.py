"""Unpack gzip, bzip2, xz, zstd and lz4: generators that give one member, in bounded pieces.

The decompressors of the libraries return quietly where their input ends, so each generator asks
for the end mark of the format and raises TruncatedError where that is missing.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Protocol

import zstandard

from vmstream.container.packed import MOST, PackedInput
from vmstream.errors import FormatError, IntegrityError, LimitError, UnsupportedError
from vmstream.wire.layout import ZSTD_BLOCK, ZSTD_BLOCK_HEAD, zstd_block

# What a file may make us hold: 'xz -9' takes 65 MiB, 'zstd --ultra -22' 128 MiB.
MAX_MEMORY = 256 << 20
MAX_ZSTD_WINDOW = 128 << 20

_FIRST_SLICE = 2 << 10

_ZSTD_BLOCKS = MOST // ZSTD_BLOCK
_ZSTD_HEAD = 18
# lz4 v1.10.0 programs/lz4io.c LEGACY_BLOCKSIZE and what that packs to at the most, lib/lz4.h
# LZ4_COMPRESSBOUND(); the magics of a frame and of a legacy one, and of those to be skipped.
_LZ4_LEGACY_BLOCK = 8 << 20
_LZ4_LONGEST = _LZ4_LEGACY_BLOCK + _LZ4_LEGACY_BLOCK // 255 + 16
_LZ4_MAGICS = frozenset((0x184D2204, 0x184C2102, *range(0x184D2A50, 0x184D2A60)))
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_SKIPPABLE = b"\x2a\x4d\x18"


def optional_package(module: str, kind: str, extra: str) -> ModuleType:
    """Import what unpacks a format that few need.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            0,
            f"{kind} data takes a package that is not installed",
            context=f"{kind} layer",
            advice=f"pip install 'vmstream[{extra}]'",
        ) from error


class _Engine(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, max_length: int = ...) -> bytes: ...


# One member, by a decompressor with the interface of the standard library's. It copies what it is
# given behind the end of the member, so it is given little until the member is known to be long.
def _member(
    data: PackedInput, engine: _Engine, errors: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    given = _FIRST_SLICE
    while not engine.eof:
        view = data.some()[:given] if engine.needs_input else memoryview(b"")
        if engine.needs_input and not view:
            raise data.ends()
        try:
            out = engine.decompress(view, MOST)
        except errors as error:
            raise data.damaged(*_words(error)) from error
        data.offset += len(view)
        given *= 2
        if out:
            yield out
    data.offset -= len(engine.unused_data or b"")


# What a library says, and whose fault it is.
def _words(error: Exception) -> tuple[str, type[FormatError | IntegrityError | LimitError]]:
    text = str(error)
    if "check" in text:
        return text, IntegrityError
    if "emory" in text:
        return f"it takes more than {MAX_MEMORY >> 20} MiB of memory to unpack", LimitError
    return f"damaged ({text})", FormatError


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    # Output may be left inside when all input was taken.
    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._full

    def decompress(self, data: Any, max_length: int = MOST) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail or data, max_length)
        self._full = len(out) == max_length
        return out


def gzip(data: PackedInput) -> Iterator[bytes]:
    """Unpack one gzip member."""
    return _member(data, _Gzip(), (zlib.error,))


def bzip2(data: PackedInput) -> Iterator[bytes]:
    """Unpack one bzip2 stream."""
    return _member(data, bz2.BZ2Decompressor(), (OSError, ValueError))


def xz(data: PackedInput) -> Iterator[bytes]:
    """Unpack one xz stream."""
    engine = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
    return _member(data, engine, (lzma.LZMAError,))


def lz4(data: PackedInput) -> Iterator[bytes]:
    """Unpack one lz4 frame, or one of the legacy format."""
    frame = optional_package("lz4.frame", "lz4", "lz4")
    if data.peek(4) == LZ4_LEGACY_MAGIC:
        return _lz4_legacy(data)
    return _member(data, frame.LZ4FrameDecompressor(), (RuntimeError, ValueError))


# What 'lz4 -l' writes: blocks of up to 8 MiB, unpacked, each behind its size, and neither sums nor
# an end mark. lz4 v1.10.0 programs/lz4io.c LZ4IO_decodeLegacyStream(): the magic of another frame
# in the place of a size ends it, and so does the end of the file.
def _lz4_legacy(data: PackedInput) -> Iterator[bytes]:
    block = optional_package("lz4.block", "lz4", "lz4")
    data.have(4)
    data.offset += 4
    full = True
    while head := data.peek(4):
        size = int.from_bytes(head, "little")
        if len(head) == 4 and size > _LZ4_LONGEST:
            if size not in _LZ4_MAGICS:
                raise data.damaged(f"a block of {size} bytes")
            return
        if not any(head):
            # Padding. No block packs to nothing.
            break
        packed = data.have(4 + size)[4:]
        try:
            out = memoryview(block.decompress(packed, uncompressed_size=_LZ4_LEGACY_BLOCK))
        except (block.LZ4BlockError, ValueError, MemoryError) as error:
            raise data.damaged(f"damaged ({error})") from error
        data.offset += 4 + size
        full = len(out) == _LZ4_LEGACY_BLOCK
        for at in range(0, len(out), MOST):
            yield bytes(out[at : at + MOST])
    data.unmarked = (
        "the last block is a full one" if full else "the last block is a short one, as it should be"
    )


def zstd(data: PackedInput) -> Iterator[bytes]:
    """Unpack one zstd frame, or skip a skippable one.

    The frame is cut between blocks, so that a call of the library gives MOST bytes at the most:
    it takes no bound of its own, and a few bytes of input can stand for gigabytes.
    """
    head = data.peek(_ZSTD_HEAD)
    if bytes(head[1:4]) == _SKIPPABLE:
        size = int.from_bytes(data.have(8)[4:8], "little")
        data.skip(8 + size)
        return
    try:
        used = zstandard.frame_header_size(head)
        frame = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        if "not enough" in str(error) or "Src size" in str(error):
            raise data.ends() from error
        raise data.damaged(*_words(error)) from error
    if frame.window_size > MAX_ZSTD_WINDOW:
        raise data.damaged(
            f"a window of {frame.window_size} bytes, over {MAX_ZSTD_WINDOW >> 20} MiB", LimitError
        )
    engine = zstandard.ZstdDecompressor().decompressobj()
    _unpack_zstd(data, engine, used)
    last = False
    while not last:
        size, last = _zstd_blocks(data)
        out = _unpack_zstd(data, engine, size)
        if out:
            yield out
    if frame.has_checksum:
        data.have(4)
        out = _unpack_zstd(data, engine, 4)
        if out:
            yield out
    if not engine.eof:
        raise data.damaged("the last block does not end the frame")


# Bytes of the next whole blocks, and whether they end the frame.
def _zstd_blocks(data: PackedInput) -> tuple[int, bool]:
    view = data.some()
    size = 0
    for _ in range(_ZSTD_BLOCKS):
        if size + ZSTD_BLOCK_HEAD > len(view):
            if size:
                break
            view = data.have(ZSTD_BLOCK_HEAD)
        block = zstd_block(view[size : size + ZSTD_BLOCK_HEAD])
        if block is None:
            data.offset += size
            raise data.damaged("no block")
        length, last = block
        if size + length > len(view):
            if size:
                break
            view = data.have(length)
        size += length
        if last:
            return size, True
    return size, False


def _unpack_zstd(data: PackedInput, engine: Any, size: int) -> bytes:
    try:
        out: bytes = engine.decompress(data.have(size))
    except zstandard.ZstdError as error:
        raise data.damaged(*_words(error)) from error
    data.offset += size
    return out
