"""The one loop: windows from a source into the decoder, events to every consumer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EXIT_OK, StreamError
from vmstream.report.models import AnomalyReport
from vmstream.stream.decoder import NEED_DATA, Decoder
from vmstream.stream.events import Anomaly, Event, fault
from vmstream.transport.source import Source

Progress = Callable[[int, int | None], None]


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
) -> Iterator[Event]:
    """Yield the events of a source, in order.

    Args:
        source: The input.
        decoder: A fresh decoder.
        progress: Called with (offset, size or None) at each window.
        container: What is around the stream; its findings come as anomalies.

    Raises:
        StreamError: The bytes are at fault, of the stream or of what is around it, and the
            decoder is strict.
    """
    yield from noted(container)
    decoder.origin = source.origin
    decoder.seekable = source.seekable
    while (event := decoder.next_event()) is not None:
        if event is NEED_DATA:
            if progress is not None:
                progress(decoder.offset, source.size)
            try:
                window = source.window(decoder.offset, decoder.need)
            except StreamError as error:
                if decoder.strict:
                    raise
                # Ahead of what the end of the input makes of the stream: it is the cause.
                yield fault(error)
                if error.behind is not None:
                    view, base, _ = source.window(decoder.offset, 0)
                    decoder.supply(view, base, at_end=True, lost=error.behind)
                    continue
                window = source.window(decoder.offset, decoder.need)
            decoder.supply(*window)
            yield from noted(container)
        else:
            yield event  # type: ignore[misc]


def noted(container: Container | None) -> Iterator[Anomaly]:
    """Yield the findings of a container that are new."""
    for f in container.take_findings() if container is not None else ():
        yield Anomaly(f.offset, f.offset, f.severity, f.code, f.message)


def run(
    source: Source,
    decoder: Decoder,
    consumers: Sequence[Consumer],
    progress: Progress | None = None,
    container: Container | None = None,
) -> None:
    """Hand every event of the source to every consumer."""
    for event in events(source, decoder, progress, container):
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
        return [AnomalyReport(a.offset, a.severity, a.code, a.message) for a in self.kept]

    @property
    def exit_code(self) -> int:
        """Exit status: that of the first error, else 1 with warnings, else 0."""
        if self.error is not None:
            return self.error.exit_code
        return EXIT_FINDINGS if self._warned else EXIT_OK
