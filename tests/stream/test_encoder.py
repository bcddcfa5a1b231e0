"""What events say is all there is: made anew from their fields they are the stream again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from tests.decoding import CutSource, decode
from tests.strategies import corrupted_streams, cut_streams, examples, live_streams, streams
from tests.streamwriter import StreamWriter
from tests.truth import fixture_names, open_fixture
from vmstream.errors import EncodeError
from vmstream.stream.encoder import Encoder
from vmstream.stream.events import Anomaly, Event, Gap, LiveRecord, MappedBlock, MappedPages
from vmstream.wire.live import BitmapBits, BitmapComplete, BitmapStart

NAMED = (BitmapStart, BitmapBits, BitmapComplete)
BARE = [name for name in fixture_names() if not name.startswith("libvirt-")]


def assert_made_anew(data: bytes, events: list[Event]) -> int:
    """Each event is its own bytes; return how many bytes are in gaps."""
    encoder, gaps = Encoder(), 0
    for event in events:
        raw = data[event.offset : event.end]
        if isinstance(event, Gap):
            gaps += len(raw)
        elif isinstance(event, LiveRecord) and isinstance(event.record, NAMED):
            # QEMU leaves out names that are those of the record before; these streams do not. That
            # of a real QEMU is compared below.
            encoder.encode(event)
        else:
            assert bytes(encoder.encode(event)) == raw, event
    return gaps


@pytest.mark.parametrize("name", BARE)
def test_every_event_is_made_anew_from_what_it_says(name: str) -> None:
    data = open_fixture(name)
    encoder, made, left_out, mapped = Encoder(), 0, 0, False
    for event in decode(data).events:
        raw = data[event.offset : event.end]
        if isinstance(event, (Gap, MappedBlock, MappedPages)):
            with pytest.raises(EncodeError):
                encoder.encode(event)
            mapped = mapped or not isinstance(event, Gap)
            left_out += len(raw)
            continue
        assert bytes(encoder.encode(event)) == raw, event
        made += not isinstance(event, Anomaly)
    assert made > 3
    assert mapped or left_out < len(data) // 2


@settings(max_examples=examples(60))
@given(
    streams(fills=True, xbzrle=True, compress=True) | live_streams(),
    st.sampled_from((0, 1, 5000)),
)
def test_any_stream_is_made_anew(writer: StreamWriter, window: int) -> None:
    """In windows of any size, which cut batches and payloads."""
    data = bytes(writer)
    source = CutSource(data, lambda offset, need: need + window) if window else None
    found = decode(data, source)
    assert not found.errors
    assert assert_made_anew(data, found.events) == 0


@settings(max_examples=examples(60))
@given(corrupted_streams(), st.booleans())
def test_of_a_damaged_one_all_that_is_read(data: bytes, cut: bool) -> None:
    assert_made_anew(data, decode(data, CutSource(data) if cut else None).events)


@settings(max_examples=examples(60))
@given(cut_streams())
def test_of_a_cut_one_all_that_is_read(cut: tuple[StreamWriter, int]) -> None:
    data = bytes(cut[0])[: cut[1]]
    assert_made_anew(data, decode(data).events)
