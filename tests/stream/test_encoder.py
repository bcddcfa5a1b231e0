"""What events say is all there is: made anew from their fields they are the stream again."""

from __future__ import annotations

import pytest

from tests.decoding import decode
from tests.truth import fixture_names, open_fixture
from vmstream.errors import EncodeError
from vmstream.stream.encoder import Encoder
from vmstream.stream.events import Anomaly, Gap, MappedBlock, MappedPages

BARE = [name for name in fixture_names() if not name.startswith("libvirt-")]


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
