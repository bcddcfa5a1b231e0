"""Windows from a source into a decoder, its events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmstream.container.layers import Container
from vmstream.errors import StreamError
from vmstream.stream.cursor import NEED_DATA, SansIO
from vmstream.stream.events import Anomaly, Event, fault
from vmstream.transport.source import Source

Progress = Callable[[int, int | None], None]


def feed(
    source: Source,
    decoder: SansIO,
    progress: Progress | None = None,
    container: Container | None = None,
) -> Iterator[Event]:
    """Yield the events of one source, in order.

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
