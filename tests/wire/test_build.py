"""What is built is what a real QEMU wrote; what does not fit is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from tests.containers import LZOP_MAGIC, open_image, save_image
from tests.decoding import decode
from tests.truth import open_fixture
from vmstream.errors import EncodeError
from vmstream.stream.events import MappedBlock, MappedPages, RAMBlockList
from vmstream.wire import build, parse
from vmstream.wire.constants import LzopFlag
from vmstream.wire.live import BodyEnd
from vmstream.wire.parse import (
    BlockEntry,
    ConfigurationValues,
    LzopBlock,
    MappedEntry,
    SectionHead,
)


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


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("finished", [False, True])
def test_save_header(order: str, finished: bool) -> None:
    magic = b"LibvirtQemudSave" if finished else b"LibvirtQemudPart"
    raw = save_image(b"", magic=magic, number=5, order={"little": "<", "big": ">"}[order])
    header, size = parse.save_header(raw)
    assert (header.byte_order, header.finished, header.format) == (order, finished, 5)
    assert build.save_header(header) == raw[:size]


# Written by lzop 1.04, for libvirt 11.3.
def test_lzop_header_and_blocks() -> None:
    data = open_image("libvirt-11.3-lzop")
    at = data.index(LZOP_MAGIC)
    flags = LzopFlag.OS_UNIX | LzopFlag.STDIN | LzopFlag.STDOUT | LzopFlag.ADLER32_D
    method, stated, _, size = parse.lzop_header(data[at:], 0)
    assert (method, stated) == (1, flags)
    # But for the second of its making.
    made = bytearray(build.lzop_header(flags))
    mtime = slice(size - 13, size - 9)
    made[mtime] = data[at:][mtime]
    assert made[: size - 4] == data[at:][: size - 4]
    at += size
    for _ in range(3):
        block, head = parse.lzop_block(data[at:], 0, flags)
        assert build.lzop_block(block, flags) == data[at : at + head]
        at += head + block.packed_size


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x100, 0x200, 0x303])
def test_lzop_blocks(flags: int) -> None:
    sums = [8 if flags & bit else None for bit in (1, 0x100, 2, 0x200)]
    block = LzopBlock(4096, 9, *sums)
    made = build.lzop_block(block, LzopFlag(flags))
    assert parse.lzop_block(made, 0, flags) == (block, len(made))
