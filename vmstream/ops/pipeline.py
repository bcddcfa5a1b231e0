"""The one loop: windows from a source into the decoder, events to every consumer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EXIT_OK, StreamError
from vmstream.ops.channels import Channels
from vmstream.ops.feed import Progress, feed, noted
from vmstream.report.models.anomalies import AnomalyReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event, fault
from vmstream.transport.source import Source

__all__ = ["Consumer", "Findings", "Progress", "events", "noted", "run"]


class Consumer(Protocol):
    """A fold over events."""

    def on(self, event: Event) -> None:
        """Take one event. Borrowed bytes in it are valid until this returns."""
        ...


def events(
    source: Source,
    decoder: Decoder,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
) -> Iterator[Event]:
    """Yield the events of a source, in order, and those of other channels where they belong.

    Args:
        source: The input.
        decoder: A fresh decoder.
        progress: Called with (offset, size or None) at each window.
        container: What is around the stream; its findings come as anomalies.
        channels: Recorded beside the main one.

    Raises:
        StreamError: The bytes are at fault, of the stream or of what is around it, or a channel is
            missing, and the decoder is strict.
    """
    decoder.origin = source.origin
    decoder.seekable = source.seekable
    main = feed(source, decoder, progress, container)
    if channels is None:
        yield from main
        return
    for wrong in channels.check():
        if isinstance(wrong, StreamError) and decoder.strict:
            raise wrong
        yield fault(wrong) if isinstance(wrong, StreamError) else wrong
    for event in main:
        yield event
        yield from channels.behind(event, decoder)
    yield from channels.rest(decoder)


def run(
    source: Source,
    decoder: Decoder,
    consumers: Sequence[Consumer],
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
) -> None:
    """Hand every event of the source, and of other channels, to every consumer."""
    for event in events(source, decoder, progress, container, channels):
        for consumer in consumers:
            consumer.on(event)


class Findings:
    """Fold: the anomalies, and the exit status they amount to.

    Attributes:
        kept: The first MAX_KEPT of them.
        count: How many there were.
        error: The first error among them.
    """

    MAX_KEPT = 1000

    def __init__(self) -> None:
        self.kept: list[Anomaly] = []
        self.count = 0
        self.error: StreamError | None = None
        self._warned = False

    def on(self, event: Event) -> None:
        """Keep an anomaly."""
        if not isinstance(event, Anomaly):
            return
        self.count += 1
        if len(self.kept) < self.MAX_KEPT:
            self.kept.append(event)
        self._warned = self._warned or event.severity == "warning"
        if self.error is None:
            self.error = event.error

    def report(self) -> list[AnomalyReport]:
        """Return what was kept, for a document."""
        return [
            AnomalyReport(a.offset, a.severity, a.code, a.message, a.channel) for a in self.kept
        ]

    @property
    def exit_code(self) -> int:
        """Exit status: that of the first error, else 1 with warnings, else 0."""
        if self.error is not None:
            return self.error.exit_code
        return EXIT_FINDINGS if self._warned else EXIT_OK
