"""What is built is what a real QEMU wrote; what does not fit is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from tests.decoding import decode
from tests.truth import open_fixture
from vmstream.errors import EncodeError
from vmstream.stream.events import MappedBlock, MappedPages, RAMBlockList
from vmstream.wire import build
from vmstream.wire.live import BodyEnd
from vmstream.wire.parse import BlockEntry, ConfigurationValues, MappedEntry, SectionHead


def test_entries_of_mapped_ram_and_their_bitmaps() -> None:
    data = open_fixture("mapped-10.0-pc")
    found = decode(data)
    blocks = found.of(RAMBlockList)[0].blocks
    seen = 0
    for event in found.of(MappedBlock):
        block = blocks[event.block]
        entry = BlockEntry(block.idstr, block.used_length, None, None, None)
        made = build.mapped_ram_block(
            MappedEntry(entry, event.page_size, event.bitmap_offset, event.end)
        )
        assert data[event.offset : event.offset + len(made)] == made
        present = np.concatenate(
            [p.present for p in found.of(MappedPages) if p.block == event.block]
        )
        bits = np.packbits(present, bitorder="little").tobytes()
        assert data[event.bitmap_offset :][: len(bits)] == bits
        seen += 1
    assert seen == len(blocks) > 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: build.section_head(SectionHead(4, 1 << 32, b"cpu", 0, 1)), "section header"),
        (lambda: build.section_head(SectionHead(4, 0, b"x" * 256, 0, 1)), "section header"),
        (lambda: build.command(7, bytes(1 << 16)), "command"),
        (lambda: build.ram_word(1 << 64, 0), "RAM word"),
        (lambda: build.configuration(ConfigurationValues(b"", None, (), None, (b"x",))), "no subs"),
        (
            lambda: build.configuration(
                ConfigurationValues(b"pc", None, (), b"short", (b"configuration/uuid",))
            ),
            "configuration/uuid",
        ),
        (lambda: build.live_record(BodyEnd(), 0), "the section's"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, match: str) -> None:
    assert callable(make)
    with pytest.raises(EncodeError, match=match):
        make()
