"""Channels beside the main one: the packets of multifd, the bare page records of postcopy-preempt.

Each is a stream of its own, with offsets of its own. What they share with the main channel, the
block list and the page size, their reader is told.
"""

from __future__ import annotations

import numpy as np

from vmstream.errors import (
    FormatError,
    IntegrityError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    quoted,
)
from vmstream.stream.cursor import Cursor, SansIO, Steps
from vmstream.stream.events import (
    ChannelHead,
    DeviceState,
    MultiFDPacket,
    RAMBlock,
    fault,
)
from vmstream.stream.rambody import RAMReader
from vmstream.wire import grammar
from vmstream.wire.constants import (
    MULTIFD_COMPRESSION_MASK,
    MULTIFD_MAGIC,
    MULTIFD_PACKET_SIZE,
    MULTIFD_VERSION,
    RAM_FLAG_MASK,
    TARGET_PAGE_SIZES,
    MultiFDFlag,
    RAMSaveFlag,
)
from vmstream.wire.layout import RAM_WORD_SIZE, struct_of

_INIT = struct_of(grammar.MULTIFD_INIT)
_PACKET = struct_of(grammar.MULTIFD_PACKET)
_DEVICE_STATE = struct_of(grammar.MULTIFD_DEVICE_STATE)
_COMMON = 12  # magic, version and flags, which both kinds of packet begin with
_OFFSET_SIZE = 8
_KNOWN_FLAGS = int(MultiFDFlag.SYNC | MultiFDFlag.DEVICE_STATE) | MULTIFD_COMPRESSION_MASK
_NO_OFFSETS = np.zeros(0, np.uint64)

# Enough of a channel to tell the page size: two packet heads of the smallest one.
CHANNEL_HEAD = _INIT.size + 2 * _PACKET.size + MULTIFD_PACKET_SIZE // 256 * _OFFSET_SIZE

# A stretch of device state.
_STRETCH = 8 << 20


def kind_of_channel(head: bytes) -> str | None:
    """Tell what the first bytes are of: 'multifd', 'preempt', or `None` for no such channel.

    A preempt channel has no mark: it begins with a page record that names its block. That of
    QEMU 7.2 is EOS alone if no page was asked for.
    """
    if head[:4] == MULTIFD_MAGIC:
        return "multifd"
    if head == RAMSaveFlag.EOS.to_bytes(RAM_WORD_SIZE, "big"):
        return "preempt"
    if len(head) <= RAM_WORD_SIZE:
        return None
    flags = int.from_bytes(head[:RAM_WORD_SIZE], "big") & RAM_FLAG_MASK
    name = head[RAM_WORD_SIZE + 1 : RAM_WORD_SIZE + 1 + head[RAM_WORD_SIZE]]
    named = flags in (RAMSaveFlag.PAGE, RAMSaveFlag.ZERO) and name.isascii()
    return "preempt" if named and name.decode().isprintable() and name else None


def channel_head(head: bytes) -> tuple[int, bytes]:
    """Parse the first packet of a multifd channel: its number, and the UUID of the guest.

    Raises:
        StreamError: It is cut, or of a version that is not known.
    """
    if len(head) < _INIT.size:
        raise TruncatedError(len(head), "the input ends", context="first packet of a channel")
    magic, version, uuid, channel_id, _ = _INIT.unpack_from(head)
    if magic != MULTIFD_MAGIC or version != MULTIFD_VERSION:
        raise FormatError(
            0,
            "no multifd channel",
            context="first packet of a channel",
            expected=f"{MULTIFD_MAGIC.hex()} and version {MULTIFD_VERSION}",
            found=head[:8].hex(),
        )
    # The first packet had no padding then. QEMU v3.1.0 migration/ram.c MultiFDInit_t.
    if head[25:29] == MULTIFD_MAGIC:
        raise UnsupportedError(0, "a channel of x-multifd, as it was before QEMU 4.0")
    return channel_id, uuid


def channel_page_size(head: bytes) -> int | None:
    """Target page size in bytes, by the first CHANNEL_HEAD bytes of a multifd channel.

    A packet has room for the offsets of MULTIFD_PACKET_SIZE bytes of pages, so its size tells.
    Since 9.0 one without pages does not say how many that are; another packet stands behind it.
    """
    if len(head) < _INIT.size + _PACKET.size:
        return None
    _, _, flags, alloc, *_ = _PACKET.unpack_from(head, _INIT.size)
    if flags & MultiFDFlag.DEVICE_STATE:
        return None
    for size in TARGET_PAGE_SIZES:
        room = MULTIFD_PACKET_SIZE // size
        behind = _INIT.size + _PACKET.size + room * _OFFSET_SIZE
        if alloc == room or (not alloc and head[behind : behind + 4] == MULTIFD_MAGIC):
            return size
    return None


class MultiFDDecoder(SansIO):
    """Decode one multifd channel.

    Args:
        blocks: The block list of the main channel.
        page_size: Target page size, bytes.
        strict: Raise the first fault.
    """

    def __init__(self, blocks: tuple[RAMBlock, ...], page_size: int, *, strict: bool) -> None:
        super().__init__(Cursor(), strict=strict)
        self._blocks = blocks
        self._page_size = page_size
        self._index = {b.idstr: i for i, b in enumerate(blocks)}
        self._room = MULTIFD_PACKET_SIZE // page_size
        self._head_size = _PACKET.size + self._room * _OFFSET_SIZE

    def _stream(self) -> Steps:
        try:
            yield from self._in.have(_INIT.size, "first packet")
            found = channel_head(bytes(self._in.rest()[: _INIT.size]))
            yield ChannelHead(*self._in.take(_INIT.size), *found)
            while (yield from self._in.want(_COMMON)):
                yield from self._packet()
        except StreamError as error:
            if self.strict:
                raise
            yield fault(error)
        yield from self._drain("incomplete, or not readable")

    def _packet(self) -> Steps:
        yield from self._in.have(_COMMON, "packet")
        words = self._in.rest()[:_COMMON]
        version, flags = (int.from_bytes(words[at : at + 4], "big") for at in (4, 8))
        if words[:4] != MULTIFD_MAGIC or version != MULTIFD_VERSION or flags & ~_KNOWN_FLAGS:
            raise FormatError(
                self._in.offset,
                "no packet",
                context="packet",
                expected=f"{MULTIFD_MAGIC.hex()}, version {MULTIFD_VERSION} and known flags",
                found=words.hex(),
                advice="damaged, or of another page size (--page-size)",
            )
        if flags & MultiFDFlag.DEVICE_STATE:
            yield from self._device_state()
            return
        yield from self._in.have(self._head_size, "packet")
        head = self._in.rest()[: self._head_size]
        (_, _, _, alloc, normal, size, packet_num, zero, _, name) = _PACKET.unpack_from(head)
        # QEMU v10.1.0 migration/multifd.c multifd_ram_unfill_packet() takes no more pages than a
        # packet has room for.
        if alloc > self._room or normal + zero > self._room:
            raise FormatError(
                self._in.offset,
                f"a packet with room for {alloc} pages, {normal} with data and {zero} zero",
                context="packet",
                expected=f"at most {self._room} of {self._page_size} bytes",
                advice="damaged, or of another page size (--page-size)",
            )
        # Before 9.0 the size may be left from an earlier packet where no page has data.
        size = self._payload_size(flags, normal, size) if normal else 0
        yield from self._in.have(self._head_size + size, f"payload of packet {packet_num}")
        offsets = np.frombuffer(self._in.rest(), ">u8", normal + zero, _PACKET.size).astype(
            np.uint64
        )
        payload = self._in.rest()[self._head_size : self._head_size + size]
        error = self._check(name.rstrip(b"\0"), offsets) if normal + zero else None
        if error is not None:
            if self.strict:
                raise error
            yield fault(error)
        counts = normal + zero > 0 and error is None
        # What cannot be placed goes to the decompressor all the same: it is one stream.
        yield MultiFDPacket(
            *self._in.take(self._head_size + size),
            MultiFDFlag(flags),
            packet_num,
            alloc,
            self._index[name.rstrip(b"\0")] if counts else -1,
            offsets[:normal],
            offsets[normal:] if counts else _NO_OFFSETS,
            self._page_size,
            payload,
        )

    # QEMU v10.1.0 migration/multifd-nocomp.c multifd_nocomp_recv() wants the exact size; the
    # others have a buffer.
    def _payload_size(self, flags: int, normal: int, size: int) -> int:
        whole = normal * self._page_size
        compressed = flags & MULTIFD_COMPRESSION_MASK
        if size > 2 * MULTIFD_PACKET_SIZE or (not compressed and size != whole):
            raise FormatError(
                self._in.offset,
                f"a payload of {size} bytes for {normal} pages",
                context="packet",
                expected=f"at most {2 * MULTIFD_PACKET_SIZE}" if compressed else str(whole),
            )
        return size

    # QEMU v10.1.0 migration/multifd-nocomp.c multifd_ram_unfill_packet().
    def _check(self, name: bytes, offsets: np.ndarray) -> IntegrityError | None:
        index = self._index.get(name)
        if index is None:
            return IntegrityError(
                self._in.offset,
                "a packet of a block that the list does not have",
                context="packet",
                found=quoted(name),
            )
        length = self._blocks[index].used_length
        wrong = (offsets >= length) | (offsets % self._page_size != 0)
        if not wrong.any():
            return None
        return IntegrityError(
            self._in.offset,
            "a page that is not in its block",
            context=f"packet, block {quoted(name)}",
            expected=f"below {length:#x}, on a page",
            found=f"{int(offsets[int(np.argmax(wrong))]):#x}",
        )

    # QEMU v10.1.0 migration/multifd-device-state.c.
    def _device_state(self) -> Steps:
        yield from self._in.have(_DEVICE_STATE.size, "device state")
        head = _DEVICE_STATE.unpack_from(self._in.rest())
        idstr, instance_id, left = head[3].rstrip(b"\0"), head[4], head[5]
        skip = _DEVICE_STATE.size
        while True:
            size = min(left, _STRETCH)
            yield from self._in.have(skip + size, f"device state of {quoted(idstr)}")
            data = self._in.rest()[skip : skip + size]
            left -= size
            yield DeviceState(*self._in.take(skip + size), idstr, instance_id, data, left == 0)
            skip = 0
            if not left:
                return


class PreemptDecoder(SansIO):
    """Decode the channel of postcopy-preempt: page records and nothing else.

    Args:
        blocks: The block list of the main channel.
        page_size: Target page size, bytes.
        strict: Raise the first fault.
    """

    def __init__(self, blocks: tuple[RAMBlock, ...], page_size: int, *, strict: bool) -> None:
        super().__init__(Cursor(), strict=strict)
        self._blocks = blocks
        self._ram = RAMReader(self._in, page_size, strict=strict)

    def _stream(self) -> Steps:
        try:
            yield from self._ram.bare(self._blocks, "postcopy-preempt channel")
        except StreamError as error:
            if self.strict:
                raise
            yield fault(error)
        yield from self._drain("incomplete, or not readable")
