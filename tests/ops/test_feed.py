"""The loop over one source: windows in, events out, and faults of what is around it."""

from __future__ import annotations

import pytest

from tests.decoding import BytesSource, CutSource
from tests.streamwriter import simple_stream
from vmstream.container.layers import Container, Finding
from vmstream.errors import TruncatedError
from vmstream.ops.feed import feed, noted
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly
from vmstream.transport.source import Window

DATA = bytes(simple_stream())


class Failing(BytesSource):
    """A layer that is cut at half of the stream: said once, then the end of the input."""

    def __init__(self) -> None:
        super().__init__(DATA[: len(DATA) // 2])
        self.said = False

    def window(self, offset: int, need: int) -> Window:
        if offset + need > len(self.data) and not self.said:
            self.said = True
            raise TruncatedError(77, "the layer ends", context="gzip layer")
        return memoryview(self.data)[offset:], offset, self.said


def test_progress() -> None:
    seen: list[tuple[int, int | None]] = []
    events = list(feed(CutSource(DATA), Decoder(), lambda *at: seen.append(at)))
    assert events[-1].end == len(DATA)
    offsets = [offset for offset, _ in seen]
    assert offsets == sorted(offsets)
    assert (offsets[0], {size for _, size in seen}) == (0, {len(DATA)})


def test_fault_of_a_layer() -> None:
    found = list(feed(Failing(), Decoder()))
    errors = [e.error for e in found if isinstance(e, Anomaly)]
    # The cause comes ahead of what it does to the stream.
    assert isinstance(errors[0], TruncatedError)
    assert errors[0].offset == 77
    assert len(errors) == 2
    with pytest.raises(TruncatedError, match="gzip layer"):
        list(feed(Failing(), Decoder(strict=True)))


def test_findings_of_a_container() -> None:
    container = Container()
    container.note(Finding("info", "odd", 5, "something"))
    first, *rest = feed(BytesSource(DATA), Decoder(), container=container)
    assert first == Anomaly(5, 5, "info", "odd", "something")
    assert not [e for e in rest if isinstance(e, Anomaly)]
    assert list(noted(container)) == list(noted(None)) == []
