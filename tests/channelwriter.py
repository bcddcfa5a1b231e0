"""Build channels beside the main one byte by byte: multifd packets. Shares no code with vmstream.

c = ChannelWriter(0, compression="zlib")
c.init()
c.sync(0)
c.packet(2, "pc.ram", {0x1000: body}, zero=[0x2000])
bytes(c)
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence

import zstandard

MAGIC = 0x11223344
PACKET_BYTES = 512 << 10
SYNC = 1
DEVICE_STATE = 0x40
FLAGS = {"none": 0, "zlib": 2, "zstd": 4, "qpl": 8, "uadk": 16, "qatzip": 32}
HEAD = 320  # of a packet, up to its offsets


class ChannelWriter:
    """Accumulates one channel; `packets` are the offsets of its packets.

    With `old` SYNC packets are those of QEMU before 9.0: they state room for pages.
    """

    def __init__(
        self,
        channel_id: int = 0,
        *,
        uuid: bytes = bytes(16),
        page_size: int = 4096,
        compression: str = "none",
        old: bool = False,
    ) -> None:
        self.data = bytearray()
        self.packets: list[int] = []
        self.channel_id = channel_id
        self.uuid = uuid
        self.page_size = page_size
        self.compression = compression
        self.old = old
        self._zlib = zlib.compressobj()
        self._zstd = zstandard.ZstdCompressor().compressobj()

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def init(self, *, version: int = 1) -> None:
        self.data += struct.pack(">II16sB39x", MAGIC, version, self.uuid, self.channel_id)

    def payload(self, pages: Sequence[bytes]) -> bytes:
        """The pages of one packet, compressed as QEMU does."""
        whole = b"".join(pages)
        match self.compression if pages else "none":
            case "zlib":
                return self._zlib.compress(whole) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
            case "zstd":
                packed = self._zstd.compress(whole)
                return packed + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            case "qpl" | "uadk" as word:
                blobs = []
                for page in pages:
                    engine = zlib.compressobj(wbits=-15 if word == "qpl" else 15)
                    blob = engine.compress(page) + engine.flush()
                    blobs.append(blob if len(blob) < len(page) else page)
                return struct.pack(f">{len(blobs)}I", *map(len, blobs)) + b"".join(blobs)
            case "qatzip":
                # As the library may: a member for each 64 KiB.
                return b"".join(
                    gzip.compress(whole[at : at + (64 << 10)])
                    for at in range(0, len(whole), 64 << 10)
                )
        return whole

    def packet(
        self,
        number: int,
        block: str = "",
        normal: dict[int, bytes] | None = None,
        zero: Sequence[int] = (),
        *,
        flags: int = 0,
        alloc: int | None = None,
        counts: tuple[int, int] | None = None,
        size: int | None = None,
        payload: bytes | None = None,
        version: int = 1,
    ) -> None:
        """A packet; the odd arguments lie about what is in it."""
        normal = normal or {}
        room = PACKET_BYTES // self.page_size
        payload = self.payload(list(normal.values())) if payload is None else payload
        offsets = [*normal, *zero]
        self.packets.append(len(self.data))
        self.data += struct.pack(
            ">IIIIIIQI28x256s",
            MAGIC,
            version,
            flags | (FLAGS[self.compression] if normal else 0),
            room if alloc is None else alloc,
            len(normal) if counts is None else counts[0],
            len(payload) if size is None else size,
            number,
            len(zero) if counts is None else counts[1],
            block.encode(),
        )
        self.data += struct.pack(f">{len(offsets)}Q", *offsets)
        self.data += bytes(8 * (room - len(offsets))) + payload

    def sync(self, number: int) -> None:
        """A SYNC packet without pages."""
        self.packet(number, flags=SYNC, alloc=None if self.old else 0)

    def device_state(self, idstr: str, instance_id: int, payload: bytes) -> None:
        self.packets.append(len(self.data))
        self.data += struct.pack(
            ">III256sII", MAGIC, 1, DEVICE_STATE, idstr.encode(), instance_id, len(payload)
        )
        self.data += payload
