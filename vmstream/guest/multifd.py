"""Payloads of multifd packets, unpacked: one continuous stream a channel, or blobs of their own."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import zstandard

from vmstream.errors import IntegrityError
from vmstream.stream.events import MultiFDPacket
from vmstream.wire.constants import (
    MULTIFD_COMPRESSION_MASK,
    MULTIFD_PACKET_SIZE,
    MultiFDFlag,
)
from vmstream.wire.layout import ZSTD_BLOCK_HEAD, zstd_block

# Words for the compressions, by the flags of a packet.
COMPRESSIONS = {
    0: "none",
    int(MultiFDFlag.ZLIB): "zlib",
    int(MultiFDFlag.ZSTD): "zstd",
    int(MultiFDFlag.QPL): "qpl",
    int(MultiFDFlag.UADK): "uadk",
    int(MultiFDFlag.QATZIP): "qatzip",
}

# What Z_SYNC_FLUSH writes behind the pages of a packet: an empty block, on a byte.
_SYNC_FLUSH = b"\0\0\xff\xff"

# zlib, gzip, and deflate without either: what a blob of an accelerator can be.
_WBITS = (zlib.MAX_WBITS, zlib.MAX_WBITS + 16, -zlib.MAX_WBITS)


def compression_of(packet: MultiFDPacket) -> str:
    """Word of COMPRESSIONS for a packet; 'unknown' where the flags are of no single one."""
    return COMPRESSIONS.get(int(packet.flags) & MULTIFD_COMPRESSION_MASK, "unknown")


class PayloadReader:
    """Unpack the payloads of one channel; every packet of it must pass, in order.

    Memory:
        One packet of pages, 512 KiB, and the window of the decompressor: 32 KiB for zlib, up to
        128 MiB for zstd.
    """

    def __init__(self) -> None:
        self._buffer = np.zeros(MULTIFD_PACKET_SIZE, np.uint8)
        self._zlib: Any = None
        self._zstd: Any = None
        self._word = ""
        self._broken = False

    def pages(self, packet: MultiFDPacket) -> memoryview:
        """Return the pages with data of a packet, one behind the other.

        Borrowed: from the window of the packet, or valid until the next call.

        Raises:
            IntegrityError: The payload does not unpack to its pages, or one before did not, so
                that nothing behind it can be unpacked.
        """
        word = compression_of(packet)
        if not len(packet.normal) or word == "none":
            return packet.payload
        size = len(packet.normal) * packet.page_size
        context = f"packet {packet.packet_num}"
        if self._broken or word == "unknown" or (self._word or word) != word:
            raise IntegrityError(
                packet.offset,
                "a packet behind one that does not unpack"
                if self._broken
                else "a packet that is compressed in another way than those before",
                context=context,
            )
        self._word = word
        out = self._buffer[:size].data
        try:
            getattr(self, f"_read_{'blobs' if word in ('qpl', 'uadk') else word}")(packet, out)
        except (zlib.error, zstandard.ZstdError, _Wrong) as error:
            self._broken = word in ("zlib", "zstd")
            raise IntegrityError(
                packet.offset,
                f"a payload of {word} that does not unpack to {len(packet.normal)} pages",
                context=context,
                found=str(error),
            ) from error
        return out

    # One stream a channel, of which a packet has what was flushed behind its pages.
    # QEMU v10.1.0 migration/multifd-zlib.c multifd_zlib_recv().
    def _read_zlib(self, packet: MultiFDPacket, out: memoryview) -> None:
        if packet.payload[-4:] != _SYNC_FLUSH:
            raise _Wrong("no flush at its end")
        if self._zlib is None:
            self._zlib = zlib.decompressobj()
        _fill(out, self._zlib.decompress(packet.payload, len(out) + 1))
        if self._zlib.unconsumed_tail:
            raise _Wrong("bytes are left over")

    # QEMU v10.1.0 migration/multifd-zstd.c multifd_zstd_recv(). By blocks, since the library
    # gives whatever a few bytes may stand for, and a block stands for 128 KiB at the most.
    def _read_zstd(self, packet: MultiFDPacket, out: memoryview) -> None:
        at, done, payload = 0, 0, packet.payload
        behind = 0
        if self._zstd is None:
            self._zstd = zstandard.ZstdDecompressor().decompressobj()
            behind = zstandard.frame_header_size(payload)
        while at < len(payload):
            size, _ = zstd_block(payload[behind : behind + ZSTD_BLOCK_HEAD]) or (0, False)
            if not size or behind + size > len(payload):
                raise _Wrong("no whole blocks")
            behind += size
            data = self._zstd.decompress(payload[at:behind])
            at = behind
            _fill(out[done : done + len(data)], data)
            done += len(data)
        if done != len(out):
            raise _Wrong(f"{done} bytes")

    # A length for each page, then the pages, each on its own or as it is.
    # QEMU v10.1.0 migration/multifd-qpl.c, migration/multifd-uadk.c multifd_uadk_recv().
    def _read_blobs(self, packet: MultiFDPacket, out: memoryview) -> None:
        count, size = len(packet.normal), packet.page_size
        if len(packet.payload) < 4 * count:
            raise _Wrong("no room for the lengths")
        at = 4 * count
        for i, length in enumerate(np.frombuffer(packet.payload, ">u4", count).tolist()):
            blob = packet.payload[at : at + length]
            at += length
            page = out[i * size : (i + 1) * size]
            _fill(page, bytes(blob) if length == size else _inflated(blob, size))
        if at != len(packet.payload):
            raise _Wrong("the lengths do not add up to it")

    # All pages together; a library may make it of several members.
    # QEMU v10.1.0 migration/multifd-qatzip.c multifd_qatzip_recv().
    def _read_qatzip(self, packet: MultiFDPacket, out: memoryview) -> None:
        _fill(out, _inflated(packet.payload, len(out)))


class _Wrong(Exception):
    """A payload is not what its packet says."""


def _fill(out: memoryview, data: bytes) -> None:
    if len(data) != len(out):
        raise _Wrong(f"{len(data)} bytes")
    out[:] = data


# Members that inflate to `size` bytes in all, in whatever wrapping the first shows.
def _inflated(blob: memoryview, size: int) -> bytes:
    for wbits in _WBITS:
        out, rest = b"", bytes(blob)
        while rest and len(out) < size:
            engine = zlib.decompressobj(wbits)
            try:
                out += engine.decompress(rest, size - len(out) + 1)
            except zlib.error:
                break
            if not engine.eof:
                break
            rest = engine.unused_data
        if len(out) == size and not rest:
            return out
    raise _Wrong("no pages")
