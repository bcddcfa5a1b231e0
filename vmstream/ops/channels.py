"""Channels beside the main one: their files, and where what is in them belongs.

Nothing on the wire ties a packet of multifd to a place in the main channel but SYNC packets. Each
channel has one wherever the main channel has a mark: a MULTIFD_FLUSH word or, where there are
none (machine types up to 8.0), the EOS word of each part of 'ram'. What is between two of them is a
generation; it is handed on when the main channel has come to its mark.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from vmstream.container.open import OpenStream
from vmstream.errors import FormatError, IntegrityError, StreamError, TruncatedError
from vmstream.guest.multifd import compression_of
from vmstream.ops.feed import feed
from vmstream.report.models.channels import ChannelReport, DeviceStateReport
from vmstream.report.models.names import in_full, readable
from vmstream.report.models.pages import PageCounts
from vmstream.stream.channel import (
    CHANNEL_HEAD,
    MultiFDDecoder,
    PreemptDecoder,
    channel_head,
    channel_page_size,
    kind_of_channel,
)
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Anomaly,
    ChannelEvent,
    Command,
    Configuration,
    DeviceState,
    Event,
    MultiFDPacket,
    PageBatch,
    RAMBlock,
    RAMBlockList,
    RAMControl,
    fault,
)
from vmstream.wire.constants import (
    DEFAULT_PAGE_SIZE,
    QEMU_VM_FILE_MAGIC,
    MigCmd,
    MultiFDFlag,
    RAMSaveFlag,
)


@dataclass(slots=True)
class Channel:
    """One channel and how far it was read.

    Attributes:
        name: Its file, as it was given.
        opened: The file, without what is around the channel.
        kind: 'multifd' or 'preempt'.
        channel_id: Number that a multifd channel states.
        uuid: Of the guest, 16 bytes, as a multifd channel states.
    """

    name: str
    opened: OpenStream
    kind: str
    channel_id: int | None = None
    uuid: bytes = b""
    page_size: int | None = None
    events: Iterator[Event] = field(default_factory=lambda: iter(()))
    place: int = -1
    held: Event | None = None
    end: int = 0  # of what was read
    syncs: int = 0
    over: bool = True
    damaged: bool = False


class Channels:
    """The channels of one migration, in the order of their numbers; a context manager.

    Args:
        paths: Their files, in any order, and directories: what in those is a channel is one.
        main: Device and inode of the main channel's file.
        max_ram: Bytes that a compressed file may unpack to, as of `OpenStream`.

    Attributes:
        list: The channels, those of multifd first.

    Raises:
        OSError: A file cannot be opened.
        StreamError: A file that was named is no channel.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        main: tuple[int, int] | None = None,
        *,
        max_ram: int | None = None,
    ) -> None:
        self._max_ram = max_ram
        self.list: list[Channel] = []
        self._passed_over: list[tuple[str, str]] = []
        self._rounds: bool | None = None
        self._blocks: tuple[RAMBlock, ...] = ()
        self._packets = 0
        self._highest = -1
        self._has_next = False  # the number that the first packet of one more channel would have
        self._old = False  # of a QEMU before 9.0
        try:
            for path in paths:
                if os.path.isdir(path):
                    self._add_directory(Path(path), main)
                else:
                    self._add(os.fspath(path))
        except BaseException:
            self.close()
            raise
        self.list.sort(key=lambda c: (c.kind, c.channel_id or 0))
        for place, channel in enumerate(self.list):
            channel.place = place

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for channel in self.list:
            channel.opened.close()

    def named(self, place: int, error: StreamError) -> None:
        """Say in an error which channel it is of."""
        name = f"channel {self.list[place].name}"
        error.context = f"{name}, {error.context}" if error.context else name

    def _add_directory(self, path: Path, main: tuple[int, int] | None) -> None:
        for inner in sorted(path.iterdir()):
            if not inner.is_file():
                continue
            status = inner.stat()
            if (status.st_dev, status.st_ino) != main and not self._add(str(inner), strict=False):
                self._passed_over.append((inner.name, "no channel"))

    # Open one file; false if it is no channel and need not be.
    def _add(self, path: str, *, strict: bool = True) -> bool:
        try:
            opened = OpenStream(path, max_ram=self._max_ram)
        except StreamError:
            if strict:
                raise
            return False
        try:
            view, base, _ = opened.source.window(0, CHANNEL_HEAD)
            head = bytes(view[-base:][:CHANNEL_HEAD])
            kind = kind_of_channel(head)
            if kind is not None:
                channel = Channel(path, opened, kind)
                if kind == "multifd":
                    channel.channel_id, channel.uuid = channel_head(head)
                    channel.page_size = channel_page_size(head)
                self.list.append(channel)
                return True
        except StreamError as error:
            opened.close()
            error.context = f"channel {path}, {error.context}"
            raise
        opened.close()
        if strict and head:
            is_main = head[:4] == QEMU_VM_FILE_MAGIC
            raise FormatError(
                0,
                "a main channel" if is_main else "no channel of multifd or postcopy-preempt",
                context=f"channel {path}",
                found=head[:8].hex(),
                advice="give the main channel as STREAM and the others with --channel",
            )
        if strict:
            self._passed_over.append((path, "empty"))
        return False

    # ---- what is known before the first byte of the main channel --------------------------

    def check(self) -> Iterator[StreamError | Anomaly]:
        """Yield what is wrong with the set of channels."""
        for name, why in self._passed_over:
            yield Anomaly(0, 0, "info", "no-channel", f"{name}: {why}, passed over")
        multifd = self._multifd()
        by_id: dict[int, Channel] = {}
        for channel in multifd:
            number = channel.channel_id or 0
            first = by_id.setdefault(number, channel)
            if first is not channel:
                yield IntegrityError(
                    0,
                    f"two files are channel {number}",
                    context=f"channel {channel.name}",
                    found=first.name,
                    advice="give the channels of one migration, each once",
                )
            elif channel.uuid != multifd[0].uuid:
                yield _another_guest(channel, multifd[0].uuid)
        missing = sorted(set(range(max(by_id, default=-1) + 1)) - by_id.keys())
        if missing:
            yield IntegrityError(
                0,
                f"channel {', '.join(map(str, missing))} of multifd is missing",
                context="multifd",
                found=", ".join(f"{n} in {c.name}" for n, c in sorted(by_id.items())),
                advice="give it with --channel; --partial does without its pages",
            )

    # ---- alongside the main channel --------------------------------------------------------

    def behind(self, event: Event, decoder: Decoder) -> Iterator[ChannelEvent | Anomaly]:
        """Yield what belongs behind an event of the main channel.

        Raises:
            StreamError: A channel is damaged, and the decoder is strict.
        """
        if isinstance(event, RAMControl):
            if event.flags == RAMSaveFlag.MULTIFD_FLUSH:
                self._rounds = True
            elif self._rounds is None:
                # A START of 'ram' without the word: QEMU v8.1.0 migration/ram.c ram_save_setup()
                # writes it unless each section ends a generation.
                self._rounds = False
            if self._rounds == (event.flags == RAMSaveFlag.MULTIFD_FLUSH):
                yield from self._merge(decoder.strict, to_sync=True)
        elif isinstance(event, RAMBlockList):
            self._begin(event.blocks, decoder)
        elif isinstance(event, Configuration) and event.uuid is not None:
            for channel in self.list:
                if channel.kind == "multifd" and channel.uuid != event.uuid:
                    error = _another_guest(channel, event.uuid)
                    if decoder.strict:
                        raise error
                    yield fault(error)
        elif isinstance(event, Command) and event.cmd == MigCmd.PACKAGED:
            # Pages of postcopy are newer than any that multifd has sent.
            yield from self._merge(decoder.strict, to_sync=False)

    def rest(self, decoder: Decoder) -> Iterator[ChannelEvent | Anomaly]:
        """Yield what is left when the main channel is over: of a last generation, or of preempt."""
        yield from self._merge(decoder.strict, to_sync=False)
        size = decoder.page_size or DEFAULT_PAGE_SIZE
        for channel in self.list:
            if channel.kind == "preempt" and self._blocks:
                reader = PreemptDecoder(self._blocks, size, strict=decoder.strict)
                channel.events = feed(
                    channel.opened.source, reader, container=channel.opened.container
                )
                channel.over = False
                while (found := self._next(channel)) is not None:
                    yield from self._hand_on(channel, found)
        if self._is_incomplete() and not any(c.damaged for c in self.list):
            error = IntegrityError(
                0,
                f"channel {1 + max(c.channel_id or 0 for c in self.list)} of multifd is missing, "
                "perhaps others too",
                context="multifd",
                expected=f"{self._highest + 1} packets",
                found=str(self._packets),
                advice="give it with --channel; --partial does without its pages",
            )
            if decoder.strict:
                raise error
            yield fault(error)

    # The source numbers packets over all channels. Since 9.0 it does as it sends them, so that each
    # number is there. Before, a SYNC can take the number of a packet that waits, and both have it;
    # and what waits when all is over is not sent, one packet a channel (QEMU v7.2.0
    # migration/multifd.c multifd_send_sync_main(), multifd_send_thread()). But the first SYNC of
    # each channel has the number of the channel, and a channel has a packet for each SYNC.
    def _is_incomplete(self) -> bool:
        absent = self._highest + 1 - self._packets
        if not self._old:
            return absent > 0
        syncs = min((c.syncs for c in self._multifd()), default=0)
        return not self._has_next and absent >= max(1, syncs - 1)

    def _begin(self, blocks: tuple[RAMBlock, ...], decoder: Decoder) -> None:
        self._blocks = blocks
        multifd = self._multifd()
        for channel in multifd:
            if channel.page_size is not None:
                decoder.decide_page_size(channel.page_size, "multifd")
        for channel in multifd:
            size = decoder.page_size or DEFAULT_PAGE_SIZE
            reader = MultiFDDecoder(blocks, size, strict=decoder.strict)
            channel.events = feed(channel.opened.source, reader, container=channel.opened.container)
            channel.over = False

    # Hand on the packets of all channels in the order in which they were made: of one generation,
    # SYNC packets last, or all that there are.
    def _merge(self, strict: bool, *, to_sync: bool) -> Iterator[ChannelEvent | Anomaly]:
        waiting = [c for c in self.list if not c.over]
        while waiting:
            for channel in waiting:
                if channel.held is None and self._next(channel) is None and to_sync:
                    yield from self._cut(channel, strict)
            waiting = [c for c in waiting if c.held is not None]
            if not waiting:
                return
            channel = min(waiting, key=_order)
            event, channel.held = channel.held, None
            if isinstance(event, MultiFDPacket):
                self._count(channel, event)
                if to_sync and event.flags & MultiFDFlag.SYNC:
                    waiting.remove(channel)
            if event is not None:
                yield from self._hand_on(channel, event)

    def _count(self, channel: Channel, packet: MultiFDPacket) -> None:
        self._packets += 1
        self._highest = max(self._highest, packet.packet_num)
        self._has_next |= packet.packet_num == len(self._multifd())
        if packet.flags & MultiFDFlag.SYNC:
            channel.syncs += 1
            self._old |= packet.pages_alloc > 0

    def _multifd(self) -> list[Channel]:
        return [c for c in self.list if c.kind == "multifd"]

    def _next(self, channel: Channel) -> Event | None:
        try:
            channel.held = next(channel.events, None)
        except StreamError as error:
            self.named(channel.place, error)
            raise
        channel.over = channel.held is None
        channel.end = channel.end if channel.held is None else channel.held.end
        return channel.held

    def _hand_on(self, channel: Channel, event: Event) -> Iterator[ChannelEvent | Anomaly]:
        if not isinstance(event, Anomaly):
            yield ChannelEvent(channel.place, event)
            return
        if event.error is not None:
            channel.damaged = True
            self.named(channel.place, event.error)
            event = fault(event.error)
        yield replace(event, channel=channel.name)

    # A channel that is over where the main channel has another mark.
    def _cut(self, channel: Channel, strict: bool) -> Iterator[ChannelEvent | Anomaly]:
        if channel.damaged:
            return
        error = TruncatedError(channel.end, "the channel ends before the main channel does")
        self.named(channel.place, error)
        if strict:
            raise error
        channel.damaged = True
        yield replace(fault(error), channel=channel.name)


class ChannelCounts:
    """Fold: what one channel has.

    Attributes:
        packets: Of multifd.
        syncs: How many of them end a generation.
        compressions: Words for how they are compressed.
        end: Bytes read.
    """

    MAX_DEVICES = 1000

    def __init__(self) -> None:
        self.packets = 0
        self.syncs = 0
        self.compressions: dict[str, None] = {}
        self.end = 0
        self._normal = self._zero = self._compressed = 0
        self._devices: dict[tuple[bytes, int], tuple[int, int]] = {}

    def on(self, event: Event) -> None:
        """Take one event of the channel."""
        self.end = max(self.end, event.end)
        if isinstance(event, MultiFDPacket):
            self.packets += 1
            self.syncs += bool(event.flags & MultiFDFlag.SYNC)
            self._zero += len(event.zero)
            if len(event.normal):
                word = compression_of(event)
                self.compressions[word] = None
                if word == "none":
                    self._normal += len(event.normal)
                else:
                    self._compressed += len(event.normal)
        elif isinstance(event, DeviceState):
            key = event.idstr, event.instance_id
            if key in self._devices or len(self._devices) < self.MAX_DEVICES:
                packets, size = self._devices.get(key, (0, 0))
                self._devices[key] = packets + event.final, size + len(event.data)
        elif isinstance(event, PageBatch):
            zero = int(np.count_nonzero(event.flags & np.uint16(RAMSaveFlag.ZERO)))
            self._zero += zero
            self._normal += len(event) - zero

    def report(self, channel: Channel) -> ChannelReport:
        """Account for the channel."""
        return ChannelReport(
            channel.name,
            channel.kind,
            channel.channel_id,
            self.end,
            self.packets,
            self.syncs,
            list(self.compressions),
            PageCounts(self._normal, self._zero, 0, self._compressed),
            [
                DeviceStateReport(readable(name), instance, packets, size, in_full(name))
                for (name, instance), (packets, size) in self._devices.items()
            ],
        )


def _another_guest(channel: Channel, uuid: bytes) -> IntegrityError:
    return IntegrityError(
        8,
        "of another guest",
        context=f"channel {channel.name}",
        expected=f"UUID {uuid.hex()}",
        found=channel.uuid.hex(),
    )


# Packets by their numbers; what is not one comes first, a SYNC packet last.
def _order(channel: Channel) -> tuple[bool, int, int]:
    event = channel.held
    if not isinstance(event, MultiFDPacket):
        return False, -1, channel.place
    return bool(event.flags & MultiFDFlag.SYNC), event.packet_num, channel.place
