"""The library's front door: an open stream, its head known, its events to iterate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

from vmstream.container.layers import Layer
from vmstream.container.open import MAX_LAYERS, OpenStream
from vmstream.errors import OutputError, UnsupportedError
from vmstream.guest.devices import DeviceTree
from vmstream.guest.index import PageStore
from vmstream.ops.channels import Channels
from vmstream.ops.devices import read_devices
from vmstream.ops.memory import GuestMemory, MemoryOptions, index_memory, kept_memory
from vmstream.ops.pipeline import events
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Configuration,
    Event,
    LiveRecord,
    MappedPages,
    PageBatch,
    Payload,
    RAMBlock,
    RAMBlockList,
    RAMControl,
)
from vmstream.wire.constants import RAMSaveFlag

# Events, and bytes of other sections, that are read ahead to find the head of a stream.
_LONGEST_HEAD = 1000
_LARGEST_HEAD = 1 << 20


class Stream:
    """A migration stream, read once in order; a context manager and an iterator of events.

    Attributes:
        machine: Machine type; `None` if the stream does not say.
        page_size: Target page size, bytes; `None` if nothing up to the first page told it.
        blocks: The RAM blocks, in wire order.
        layers: What is around the stream, the outermost first; none for a bare stream.
        channels: Files of the other channels; `ChannelEvent.channel` is a place in it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        page_size: int | None = None,
        strict: bool = False,
        snapshot: str | None = None,
        channels: Sequence[str | os.PathLike[str]] = (),
        max_ram: int | None = None,
        max_layers: int = MAX_LAYERS,
    ) -> None:
        self._open = partial(
            OpenStream, path, snapshot=snapshot, max_ram=max_ram, max_layers=max_layers
        )
        self._opened = self._open()
        self._channels: Channels | None = None
        self.channels: tuple[str, ...] = ()
        self.layers: tuple[Layer, ...] = tuple(self._opened.container.layers)
        self._decoder = Decoder(page_size, strict=strict, max_ram=max_ram)
        self._ahead: list[Event] = []
        self._max_ram = max_ram
        self._stated = page_size
        self._taken = False
        self._memory: GuestMemory | None = None
        self.machine: str | None = None
        self.blocks: tuple[RAMBlock, ...] = ()
        try:
            if channels:
                self._channels = Channels(channels, self._opened.identity, max_ram=max_ram)
                self.channels = tuple(c.name for c in self._channels.list)
            self._events = events(
                self._opened.source,
                self._decoder,
                container=self._opened.container,
                channels=self._channels,
            )
            self._read_head()
        except BaseException:
            self.close()
            raise

    @property
    def page_size(self) -> int | None:
        """Target page size, bytes."""
        return self._decoder.page_size

    def devices(self) -> DeviceTree:
        """Read the device sections, as a tree of names and values.

        Of an input that can be sought in head and tail are read; the events stay as they are.

        Raises:
            UnsupportedError: The input is a pipe or compressed: it can be read once, in order.
        """
        if not self._opened.source.seekable:
            raise UnsupportedError(
                0,
                "device state by name takes an input to seek in, or one that is read for it alone",
                advice="vmstream.ops.devices.read_devices() reads a pipe",
            )
        # Opened anew: windows of one source are valid until the next.
        with self._open() as opened:
            return read_devices(opened.source, container=opened.container).tree

    def __iter__(self) -> Iterator[Event]:
        """Yield the events, each byte of the input in exactly one.

        A `PageBatch`, `Payload` or `LiveRecord` borrows its bytes: they are valid until the next
        event.
        """
        self._taken = True
        while self._ahead:
            yield self._ahead.pop(0)
        yield from self._events

    def memory(
        self,
        *,
        partial: bool = False,
        below_4g: int | None = None,
        spool: str | os.PathLike[str] | None = None,
        shared_blocks: Mapping[str, str | os.PathLike[str]] | None = None,
        index: str | os.PathLike[str] | None = None,
    ) -> GuestMemory:
        """Return guest memory, to be read at any address while the stream is open.

        It reads the whole stream once, in place of iterating over it, and notes where the last
        version of each page stands: 8 bytes a page. Pages that are encoded (zlib, XBZRLE, packets
        of multifd that are compressed) are kept in a temporary file without a name.

        Args:
            partial: Take what is there of a damaged stream.
            below_4g: Size of RAM below 4 GiB in bytes, to overrule what the stream shows (x86).
            spool: Directory for that file; needed for a pipe and for compressed input, of which
                all pages are kept there.
            shared_blocks: Names of blocks whose memory the stream leaves to a file
                (x-ignore-shared), and the files.
            index: File to keep the index in, with the pages that are encoded. It is made if it is
                not there; else the stream is not read again.

        Raises:
            StreamError: The stream is damaged, and `partial` was not asked for; or it is not what
                it was when the index was made.
            UnsupportedError: Pages are on channels that were not given, or the input cannot be
                sought in and there is no `spool`.
            LimitError: There is more RAM than 1 TiB, or `max_ram`.
            OutputError: Events of the stream were taken before, or a file of shared memory is of
                another length than its block.
            OSError: The input cannot be read, or the temporary file not be written.

        Example:
            >>> with vmstream.open("dump.bin") as stream, stream.memory() as memory:
            ...     print(memory.read(0x7C00, 16).hex(" "))
        """
        if self._taken:
            raise OutputError("events of this stream were taken already: open it again")
        shared = tuple((name, Path(path)) for name, path in (shared_blocks or {}).items())
        kept = None if index is None else Path(index)
        options = MemoryOptions(partial, below_4g, spool, self._max_ram, shared, kept)

        def make(store: PageStore | None) -> GuestMemory:
            return index_memory(self, self._opened.source, options, self._channels, store)

        self._memory = kept_memory(self._opened, options, self._channels, self._stated, make)
        return self._memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the input, the channels, and the memory."""
        if self._memory is not None:
            self._memory.close()
        if self._channels is not None:
            self._channels.close()
        self._opened.close()

    # Everything up to the first page: kept to be handed out again. Only the last event may
    # still borrow from the window, as no other was asked for behind it.
    def _read_head(self) -> None:
        kept = 0
        for event in islice(self._events, _LONGEST_HEAD):
            if isinstance(event, (LiveRecord, Payload)):
                kept += len(event.data)
                if self.blocks or kept > _LARGEST_HEAD:
                    self._ahead.append(event)
                    return
                event = replace(event, data=memoryview(bytes(event.data)))
            self._ahead.append(event)
            if isinstance(event, Configuration):
                self.machine = readable(event.name)
            elif isinstance(event, RAMBlockList):
                self.blocks = event.blocks
            elif isinstance(event, (PageBatch, MappedPages)) or (
                isinstance(event, RAMControl)
                and event.flags == RAMSaveFlag.EOS
                and self.page_size is not None
            ):
                return


def open(  # noqa: A001
    path: str | os.PathLike[str],
    *,
    page_size: int | None = None,
    strict: bool = False,
    snapshot: str | None = None,
    channels: Sequence[str | os.PathLike[str]] = (),
    max_ram: int | None = None,
    max_layers: int = MAX_LAYERS,
) -> Stream:
    """Open a migration stream: a file, or standard input for '-'.

    It may be compressed, or stand in a libvirt save image or a snapshot of a qcow2 image.

    Args:
        path: Where it is.
        page_size: Target page size in bytes, to overrule what the stream shows.
        strict: Raise the first fault. Otherwise it becomes an `Anomaly` event, and what can be
            read behind it is.
        snapshot: Name or id of the snapshot, if a qcow2 image has several.
        channels: Files of the channels of multifd or postcopy-preempt that were recorded beside
            this one, or directories of them. What is in them comes as `ChannelEvent`, where it
            belongs.
        max_ram: Bytes of RAM that the stream may state, and that any input may unpack to; by
            default 4 TiB of RAM, and 8 GiB unpacked. What is larger and not 1000 times as large
            as the input may be unpacked in any case.
        max_layers: Containers, one in another, that are taken off.

    Raises:
        OSError: It cannot be opened.
        StreamError: With `strict`, the head is damaged; of what is around the stream, always.

    Example:
        >>> with vmstream.open("dump.bin") as stream:
        ...     print(stream.machine, stream.page_size, [b.idstr for b in stream.blocks])
        ...     pages = sum(len(e) for e in stream if isinstance(e, vmstream.PageBatch))
    """
    return Stream(
        path,
        page_size=page_size,
        strict=strict,
        snapshot=snapshot,
        channels=channels,
        max_ram=max_ram,
        max_layers=max_layers,
    )
