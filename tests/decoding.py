"""Drive the decoder in tests: sources that cut the input in awkward places, events made owned.

    found = decode(data)                      # lenient, the whole input in one window
    found = decode(data, strict=True)         # found.error is the StreamError, if one was raised
    found = decode(data, CutSource(data))     # windows as small as the decoder lets them be

The events are owned copies, so they can be kept and compared; `facts(found.events)` is what they
say in a form that does not depend on how the input was cut.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from vmstream.errors import StreamError
from vmstream.stream.decoder import NEED_DATA, Decoder
from vmstream.stream.events import Anomaly, Event, LiveRecord, MappedPages, PageBatch, Payload
from vmstream.transport.source import Source, Window

POISON = 0xA5
COLUMNS = ("record_offset", "size", "flags", "block", "block_offset", "payload_size")

T = TypeVar("T")


class BytesSource:
    """A source over bytes that gives everything at once."""

    seekable = True
    identity: tuple[int, int] | None = None
    origin = 0

    def __init__(self, data: bytes, name: str = "bytes") -> None:
        self.data = data
        self.name = name
        self.size: int | None = len(data)

    def window(self, offset: int, need: int) -> Window:
        assert need > 0
        return memoryview(self.data)[offset:], offset, True

    def close(self) -> None:
        pass


class CutSource(BytesSource):
    """A source that ends its windows where it is told, and spoils a window when it gives the next.

    sizes:    (offset, need) -> bytes from `offset` on; `need` are given whatever it says
    back:     how many bytes before `offset` a window has too
    late_end: the end of the input is told only by a window that falls short of what was asked
              for, as with a pipe whose last byte fills the buffer
    """

    def __init__(
        self,
        data: bytes,
        sizes: Callable[[int, int], int] = lambda offset, need: need,
        *,
        back: int = 0,
        late_end: bool = False,
    ) -> None:
        super().__init__(data)
        self.sizes = sizes
        self.back = back
        self.late_end = late_end
        self.windows = 0
        self._held = bytearray()

    def window(self, offset: int, need: int) -> Window:
        assert need > 0
        self._held[:] = bytes([POISON]) * len(self._held)
        self.windows += 1
        base = max(0, offset - self.back)
        stop = offset + max(need, self.sizes(offset, need))
        self._held = bytearray(self.data[base:stop])
        at_end = stop > len(self.data) or (stop == len(self.data) and not self.late_end)
        return memoryview(self._held).toreadonly(), base, at_end


@dataclass
class Decoded:
    """What came of decoding."""

    events: list[Event]
    error: StreamError | None
    decoder: Decoder

    @property
    def errors(self) -> list[StreamError]:
        """The errors in the anomalies, and the one that was raised."""
        told = [a.error for a in self.of(Anomaly) if a.error is not None]
        return told if self.error is None else [*told, self.error]

    def of(self, kind: type[T]) -> list[T]:
        return [e for e in self.events if isinstance(e, kind)]


def owned(event: Event) -> Event:
    """The event with a copy of the bytes it borrows."""
    if isinstance(event, (PageBatch, MappedPages)):
        return event.detach()
    if isinstance(event, (LiveRecord, Payload)):
        return dataclasses.replace(event, data=memoryview(bytes(event.data)))
    return event


def decode(
    data: bytes | bytearray,
    source: Source | None = None,
    *,
    strict: bool = False,
    page_size: int | None = None,
    max_ram: int | None = None,
    restless: bool = False,
) -> Decoded:
    """Decode a whole input.

    With `restless` the window is taken away behind every event, and what is left of it is given
    anew in another place: a decoder that keeps bytes or positions between events fails.
    """
    data = bytes(data)
    source = BytesSource(data) if source is None else source
    decoder = Decoder(page_size, strict=strict, max_ram=max_ram)
    found = Decoded([], None, decoder)
    moved = bytearray()
    end, at_end = 0, False
    try:
        while (event := decoder.next_event()) is not None:
            if event is NEED_DATA:
                view, base, at_end = source.window(decoder.offset, decoder.need)
                end = base + len(view)
                decoder.supply(view, base, at_end)
                continue
            kept = owned(event)  # type: ignore[arg-type]
            if isinstance(kept, PageBatch):
                assert kept.window == data[kept.offset : kept.end]
            elif isinstance(kept, Payload) or (isinstance(kept, MappedPages) and len(kept.data)):
                assert kept.data == data[kept.offset : kept.end]
            elif isinstance(kept, LiveRecord):
                assert kept.data == data[kept.end - len(kept.data) : kept.end]
            found.events.append(kept)
            if restless:
                moved[:] = bytes([POISON]) * len(moved)
                moved = bytearray(data[decoder.offset : end])
                decoder.supply(memoryview(moved).toreadonly(), decoder.offset, at_end)
    except StreamError as error:
        assert strict, "a lenient decoder raised"
        found.error = error
    return found


def assert_tiles(events: Iterable[Event], size: int) -> None:
    """The ranges of the events are adjacent, start at 0 and end at `size`."""
    at = 0
    for event in events:
        if isinstance(event, Anomaly):
            assert event.offset == event.end
            assert 0 <= event.offset <= size
            continue
        assert event.offset == at, f"{type(event).__name__} at {event.offset:#x}, not {at:#x}"
        # A body without bytes is a body all the same.
        assert event.end > at or isinstance(event, Payload), event
        at = event.end
    assert at == size


def facts(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """What the events say, with adjacent page batches and stretches of a payload made one."""
    told: list[tuple[Any, ...]] = []
    for kind, group in itertools.groupby(events, _mergeable):
        if kind is PageBatch:
            told.append(_pages([e for e in group if isinstance(e, PageBatch)]))
        elif kind is None:
            told += [_plain(e) for e in group]
        else:
            told += _bodies([e for e in group if isinstance(e, (LiveRecord, Payload))])
    return told


def _mergeable(event: Event) -> object:
    if isinstance(event, PageBatch):
        return PageBatch
    if isinstance(event, LiveRecord):
        return LiveRecord, event.section_id
    return (Payload, event.section_id, event.framing) if isinstance(event, Payload) else None


def _pages(batches: list[PageBatch]) -> tuple[Any, ...]:
    columns = [np.concatenate([getattr(b, c) for b in batches]).tobytes() for c in COLUMNS]
    first = batches[0]
    return ("PageBatch", first.offset, batches[-1].end, first.page_size, first.blocks, *columns)


def _bodies(stretches: Sequence[LiveRecord | Payload]) -> list[tuple[Any, ...]]:
    bodies: list[tuple[Any, ...]] = []
    data, begin = b"", stretches[0].offset
    for stretch in stretches:
        data += stretch.data
        if stretch.final or stretch is stretches[-1]:
            what = stretch.record if isinstance(stretch, LiveRecord) else stretch.framing
            kind = type(stretch).__name__
            bodies.append((kind, begin, stretch.end, stretch.section_id, what, data))
            data, begin = b"", stretch.end
    return bodies


def _plain(event: Event) -> tuple[Any, ...]:
    if isinstance(event, Anomaly):
        kind = type(event.error).__name__ if event.error else ""
        return ("Anomaly", event.offset, event.severity, event.code, event.message, kind)
    values = (getattr(event, f.name) for f in dataclasses.fields(event))
    return (type(event).__name__, *values)
