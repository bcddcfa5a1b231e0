"""The scanner finds what a plain walk finds, and what the writer of the stream says is there.

The walk here is Construct alone, record by record, with the grammar and nothing derived from it.
The writer shares no code with vmstream. Page bodies are made of things that look like heads.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import pytest
from construct import Bytes, Construct, If, Int64ub, Struct, Switch, Tell, this
from hypothesis import given, settings

from tests import streamwriter as sw
from tests.decoding import Decoded, decode
from tests.strategies import examples, streams
from tests.streamwriter import StreamWriter
from tests.truth import (
    check_block_bytes,
    fixture_names,
    known_blocks,
    load_manifest,
    open_fixture,
)
from vmstream.stream.events import (
    Command,
    Configuration,
    EndOfStream,
    PageBatch,
    Payload,
    RAMBlockList,
    RAMControl,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.wire import grammar

PAGES = sw.FLAG_ZERO | sw.FLAG_PAGE | sw.FLAG_XBZRLE | sw.FLAG_COMPRESS_PAGE
NAMES = {
    sw.FLAG_ZERO: "ZERO",
    sw.FLAG_PAGE: "PAGE",
    sw.FLAG_XBZRLE: "XBZRLE",
    sw.FLAG_COMPRESS_PAGE: "COMPRESS_PAGE",
}
# (offset, block, block offset, kind, size)
Row = tuple[int, str, int, str, int]


def rows(found: Decoded) -> list[Row]:
    """The records that the scanner found."""
    return [
        (
            int(batch.record_offset[i]),
            batch.blocks[batch.block[i]].idstr.decode(),
            int(batch.block_offset[i]),
            NAMES[int(batch.flags[i]) & PAGES],
            int(batch.size[i]),
        )
        for batch in found.of(PageBatch)
        for i in range(len(batch))
    ]


# ---- the plain walk --------------------------------------------------------------------------


def record_of(page_size: int, *, flat: bool) -> Struct:
    """Any record, as the format document has it."""

    def flags(context: Any) -> int:
        return int(context.head) & (page_size - 1)

    def named(context: Any) -> bool:
        return not flat and bool(flags(context) & PAGES) and not flags(context) & sw.FLAG_CONTINUE

    payloads: dict[int, Construct] = {
        sw.FLAG_ZERO: Bytes(1),
        sw.FLAG_PAGE: Bytes(page_size),
        sw.FLAG_XBZRLE: grammar.XBZRLE_PAYLOAD,
        sw.FLAG_COMPRESS_PAGE: grammar.COMPRESS_PAGE_PAYLOAD,
    }
    return Struct(
        "head" / Int64ub,
        "idstr" / If(named, grammar.COUNTED_STRING),
        "payload" / Switch(lambda c: flags(c) & PAGES, payloads),
        "end" / Tell,
        "flags" / Switch(this.end, {}, default=None),
    )


def walk(data: bytes, bodies: list[int], page_size: int, *, flat: bool = False) -> list[Row]:
    """Walk the RAM sections whose records start at `bodies`, up to the EOS of each."""
    record = record_of(page_size, flat=flat)
    stream = io.BytesIO(data)
    found: list[Row] = []
    block = "ram"
    for body in bodies:
        at = body
        while True:
            stream.seek(at)
            made = record.parse_stream(stream)
            flags = made.head & (page_size - 1)
            if flags == sw.FLAG_EOS:
                break
            if flags & PAGES:
                block = block if made.idstr is None else made.idstr.decode()
                address = made.head & ~(page_size - 1)
                found.append((at, block, address, NAMES[flags & PAGES], made.end - at))
            at = made.end
    return found


def bodies(found: Decoded) -> list[int]:
    """Where the records of each RAM section start."""
    starts = [s.end for s in found.of(SectionStart) if s.idstr == b"ram"]
    lists = {s.offset: s.end for s in found.of(RAMBlockList)}
    return [lists.get(at, at) for at in starts]


@settings(deadline=None, max_examples=examples(50))
@given(streams(xbzrle=True, compress=True, fills=True))
def test_streams_walked(w: StreamWriter) -> None:
    found = decode(w.data)
    assert not found.errors
    assert rows(found) == walk(bytes(w), bodies(found), w.page_size)


SMALL = [
    name
    for name in fixture_names()
    if not name.startswith(("own-big", "big-", "numa-", "mapped-", "interrupted"))
]


@pytest.mark.parametrize("name", SMALL)
def test_fixtures_walked(name: str) -> None:
    data = open_fixture(name)
    found = decode(data)
    # Each walk ends where the section does: at the EOS that the decoder has too.
    ends = [c.offset for c in found.of(RAMControl) if c.flags == sw.FLAG_EOS]
    starts = bodies(found)
    assert len(ends) == len(starts)
    assert rows(found) == walk(data, starts, 4096)


# ---- the writer's word -----------------------------------------------------------------------


def truth(w: StreamWriter) -> list[Row]:
    return [
        (i.offset, i.attrs["block"], i.attrs["address"], i.kind, i.stop - i.offset)
        for i in w.items_of(*NAMES.values())
    ]


def images(found: Decoded, blocks: dict[str, bytearray]) -> dict[str, bytearray]:
    """The content of the blocks when every record is applied in order."""
    made = {name: bytearray(len(content)) for name, content in blocks.items()}
    for batch in found.of(PageBatch):
        size = batch.page_size
        for i in range(len(batch)):
            block = made[batch.blocks[batch.block[i]].idstr.decode()]
            at = int(batch.block_offset[i])
            payload = bytes(batch.payload(i))
            kind = NAMES[int(batch.flags[i]) & PAGES]
            page = bytearray(block[at : at + size])
            if kind == "XBZRLE":
                sw.xbzrle_apply(page, payload[3:])
            elif kind == "COMPRESS_PAGE":
                page[:] = zlib.decompress(payload[4:])
            else:
                page[:] = payload * size if kind == "ZERO" else payload
            block[at : at + size] = page
    return made


@settings(deadline=None, max_examples=examples(50))
@given(streams(xbzrle=True, compress=True, fills=True))
def test_streams_as_written(w: StreamWriter) -> None:
    found = decode(w.data)
    assert rows(found) == truth(w)
    counts = {name: dict.fromkeys(NAMES.values(), 0) for name in w.blocks}
    for _, block, _, kind, _ in rows(found):
        counts[block][kind] += 1
    assert counts == {
        name: {kind: w.counts[name][kind] for kind in NAMES.values()} for name in w.blocks
    }
    assert images(found, w.blocks) == w.blocks


EVENT_OF = {
    "CONFIGURATION": Configuration,
    "START": SectionStart,
    "PART": SectionStart,
    "END": SectionStart,
    "FULL": SectionStart,
    "BLOCKS": RAMBlockList,
    "EOS": RAMControl,
    "MULTIFD_FLUSH": RAMControl,
    "PAYLOAD": Payload,
    "FOOTER": SectionFooter,
    "COMMAND": Command,
    "EOF": EndOfStream,
    "VMDESCRIPTION": VMDescription,
}


@settings(deadline=None, max_examples=examples(50))
@given(streams(xbzrle=True, compress=True))
def test_items_as_written(w: StreamWriter) -> None:
    found = decode(w.data)
    assert not found.errors
    for kind in set(EVENT_OF.values()):
        items = [i for i in w.items if EVENT_OF.get(i.kind) is kind]
        spans = [(e.offset, e.end) for e in found.events if isinstance(e, kind)]
        assert spans == [(i.offset, i.stop) for i in items]
    heads = [
        (s.section_type, s.section_id, s.idstr.decode(), s.instance_id, s.version_id)
        for s in found.of(SectionStart)
        if s.section_type in (sw.SECTION_START, sw.SECTION_FULL)
    ]
    assert heads == [
        (
            sw.SECTION_START if i.kind == "START" else sw.SECTION_FULL,
            i.attrs["section_id"],
            i.attrs["idstr"],
            i.attrs["instance_id"],
            i.attrs["version_id"],
        )
        for i in w.items_of("START", "FULL")
    ]
    assert found.decoder.page_size in (w.page_size, None)


# ---- the truth of real guests ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["plain-5.2-pc", "plain-11.1-q35", "live-10.0-q35", "own-live-q35", "xbzrle-5.2-pc",
     "zlib-5.2-pc", "zlib-xbzrle-5.2-pc", "aarch64-10.0-virt", "s390x-10.0", "old-5.2-pc-1.0",
     "bgsnapshot-11.1-pc"],
)  # fmt: skip
def test_fixtures_make_the_guests_memory(name: str) -> None:
    found = decode(open_fixture(name))
    manifest = load_manifest(name)
    sizes = {b.idstr.decode(): bytearray(b.used_length) for b in found.of(RAMBlockList)[0].blocks}
    made = images(found, sizes)
    checked = [check_block_bytes(manifest, block, made[block]) for block in known_blocks(manifest)]
    assert checked
