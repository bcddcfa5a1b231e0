"""What all that keeps pages shares: which events have them, and what becomes of broken ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from vmstream.errors import IntegrityError, UnsupportedError
from vmstream.guest.multifd import PayloadReader
from vmstream.ops.channels import Channels
from vmstream.ops.inspect import Summary
from vmstream.stream.events import (
    ChannelEvent,
    Command,
    Event,
    MappedPages,
    MultiFDPacket,
    PageBatch,
    fault,
)
from vmstream.wire.constants import MigCmd


class Keeper(Protocol):
    """What pages are handed to."""

    def add(self, batch: PageBatch) -> None:
        """Take page records."""
        ...

    def add_mapped(self, event: MappedPages) -> None:
        """Take a stretch of a mapped-ram page area."""
        ...

    def add_packet(self, packet: MultiFDPacket, pages: memoryview) -> None:
        """Take a packet of multifd, and its pages with data one behind the other."""
        ...

    def discard(self, block: int, start: int, length: int) -> None:
        """Make a range of a block as if it had never been sent; bytes, on page boundaries."""
        ...


_Keeper = TypeVar("_Keeper", bound=Keeper)


class PageFold(ABC, Generic[_Keeper]):
    """Fold: hands the pages of all channels to a keeper, which is made at the first page.

    Args:
        summary: Fold that takes each event before this one.
        channels: Recorded beside the main one.
        partial: A broken page becomes a finding. Without it, it is raised.
    """

    def __init__(self, summary: Summary, channels: Channels | None, *, partial: bool) -> None:
        self._summary = summary
        self._channels = channels
        self._partial = partial
        self._readers: dict[int, PayloadReader] = {}
        self.keeper: _Keeper | None = None
        # Number of the input that an event is of: 0 for the main channel.
        self.source = 0

    @abstractmethod
    def open(self, page_size: int) -> _Keeper:
        """Make the keeper, and return it."""

    def on(self, event: Event) -> None:
        """Take one event."""
        self.source = 0
        if isinstance(event, ChannelEvent):
            self.source, event = event.channel + 1, event.event
        if isinstance(event, PageBatch):
            self.opened(event.page_size).add(event)
        elif isinstance(event, MappedPages):
            self.opened(event.page_size).add_mapped(event)
        elif isinstance(event, MultiFDPacket):
            self._packet(event)
        elif isinstance(event, Command) and event.cmd == MigCmd.POSTCOPY_RAM_DISCARD:
            self._discard(event)

    def opened(self, page_size: int) -> _Keeper:
        """Return the keeper."""
        if self.keeper is None:
            self.keeper = self.open(page_size)
        return self.keeper

    def _packet(self, packet: MultiFDPacket) -> None:
        reader = self._readers.setdefault(self.source, PayloadReader())
        try:
            pages = reader.pages(packet)
        except IntegrityError as error:
            if self._channels is not None:
                self._channels.named(self.source - 1, error)
            self._broken(error)
            packet, pages = replace(packet, normal=packet.normal[:0]), memoryview(b"")
        self.opened(packet.page_size).add_packet(packet, pages)

    def _discard(self, event: Command) -> None:
        ranges = self._summary.discarded(event)
        if ranges is None:
            self._broken(
                IntegrityError(
                    event.offset,
                    "pages are withdrawn that there are not",
                    context="POSTCOPY_RAM_DISCARD",
                )
            )
        if self.keeper is not None:
            for block, start, length in ranges or ():
                self.keeper.discard(block, start, length)

    def _broken(self, error: IntegrityError) -> None:
        if not self._partial:
            raise error
        self._page_fault(error)

    def _page_fault(self, error: IntegrityError) -> None:
        self._summary.findings.on(fault(error))


def check_pages(summary: Summary, *, partial: bool) -> None:
    """Refuse a stream whose pages are elsewhere.

    Raises:
        UnsupportedError: They are on channels that were not given, or were withdrawn and not sent
            again, and `partial` was not asked for.
    """
    elsewhere = summary.pages_elsewhere() or ("" if partial else summary.pages_withdrawn())
    if elsewhere:
        raise UnsupportedError(0, elsewhere)


def check_complete(summary: Summary, what: str, *, partial: bool) -> None:
    """Refuse a stream that is not complete, unless `partial` was asked for.

    Args:
        summary: Of the whole stream.
        what: "reads" or "writes": what --partial does.
        partial: It was asked for.

    Raises:
        StreamError: The first fault, or that the end of a section is missing.
    """
    if not summary.complete and not partial:
        raise summary.findings.error or IntegrityError(
            summary.end,
            "the stream is not complete: no END of an iterable section",
            advice=f"--partial {what} what is there",
        )


def shared_memory(name: str) -> UnsupportedError:
    """Say that the memory of a block is in a file (x-ignore-shared), which was not given."""
    return UnsupportedError(
        0,
        f"block {name!r} is shared memory (x-ignore-shared): its pages are not in the stream",
        advice=f"give the file behind it: --shared-block {name}=FILE",
    )
