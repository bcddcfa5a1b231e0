"""Damage of every kind: what can be read is, what QEMU would refuse is refused, nothing escapes.

A lenient decoder never raises; a strict one raises StreamError (of which LimitError is one) and
nothing else. Both give out everything in front of the fault first.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import BytesSource, Decoded, assert_tiles, decode, facts
from tests.strategies import corrupted_streams, cut_streams, examples, live_streams, some
from tests.streamwriter import Device, Field, Item, RamBlock, StreamWriter, Subsection
from tests.truth import fixture_names, open_fixture
from vmstream.errors import (
    FormatError,
    IntegrityError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.ops.inspect import inspect
from vmstream.ops.records import Records
from vmstream.stream.events import (
    Anomaly,
    Configuration,
    EndOfStream,
    Gap,
    LiveRecord,
    Padding,
    PageBatch,
    Payload,
    RAMBlockList,
    SectionStart,
    VMDescription,
)

PAGE = 1024


def hold(data: bytes | bytearray) -> Decoded:
    """What is promised for any bytes; returns the lenient result."""
    found = decode(data)  # which fails if anything but a StreamError comes of it
    assert_tiles(found.events, len(data))
    strict = decode(data, strict=True)
    if found.errors:
        assert isinstance(strict.error, StreamError)
        assert str(strict.error) == str(found.errors[0])
        assert 0 <= found.errors[0].offset <= len(data)
    else:
        assert strict.error is None
    # A strict decoder has given out what a lenient one gives out before its first error.
    told = facts(strict.events)
    if strict.error is None:
        assert told == facts(found.events)
    else:
        first = next(i for i, e in enumerate(found.events) if isinstance(e, Anomaly) and e.error)
        assert told == facts(found.events[:first])
    return found


# ---- a small stream with everything ----------------------------------------------------------


def small(
    *, footers: bool = True, vmdescription: bool = True, package: bool = False
) -> StreamWriter:
    w = StreamWriter(PAGE, footers=footers)
    w.header()
    w.configuration("pc", page_bits=10, capabilities=["x"], uuid=bytes(range(16)))
    w.ping(1)
    w.ram_start([RamBlock("pc.ram", 8 * PAGE), RamBlock("b", 2 * PAGE)])
    if footers:
        w.live_section("START", 2, b"one", "other")
    with w.ram_part():
        w.page("pc.ram", 0, b"\x5a" * PAGE)
        w.zero("pc.ram", PAGE)
        w.zero("pc.ram", 2 * PAGE)
        w.page("pc.ram", 3 * PAGE, sw.be64(0x428) * (PAGE // 8))
    with w.ram_part():
        w.zero("b", 0)
        w.xbzrle("pc.ram", 0, b"\0\2AB")
        w.multifd_flush()
        w.compress_page("pc.ram", 5 * PAGE, b"some blob", truth=False)
    if package:
        nested = StreamWriter()
        nested.device(Device("cpu", fields=[Field("x", "buffer", b"regs")], section_id=8))
        w.packaged(nested)
    w.switchover_start()
    with w.ram_end():
        w.zero("pc.ram", 7 * PAGE)
    if footers:
        w.live_section("END", 2, b"two")
    w.device(Device("timer", version=2, fields=[Field("t", "int64", b"\x11" * 24)]))
    w.device(
        Device(
            "net",
            1,
            fields=[Field("a", "uint32", b"\x22" * 12, array_len=3)],
            subsections=[Subsection("net/s", 1, [Field("b", "uint8", b"\x33")])],
        )
    )
    w.eof()
    if vmdescription:
        w.vmdescription()
    return w


VARIANTS = [
    {},
    {"vmdescription": False},
    {"package": True},
    {"footers": False},
    {"footers": False, "vmdescription": False},
]


def unframed(facts: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Without how the ends of bodies were found, which a cut changes."""
    return [f[:4] + f[5:] if f[0] == "Payload" else f for f in facts if f[0] != "Anomaly"]


# Bytes behind an item that must be there to know that it has ended.
LOOK_AHEAD = {Configuration: 1, RAMBlockList: 8, Payload: 5}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_truncated_at_every_offset(variant: dict[str, bool]) -> None:
    w = small(**variant)
    data = bytes(w)
    whole = decode(data)
    assert not whole.errors
    eof = w.items_of("EOF")[0].stop
    records = {r for b in whole.of(PageBatch) for r in (b.record_offset + b.size).tolist()}
    # Inside a page, and inside the description, one place is as good as another.
    inside = [range(i.attrs["body"] + 16, i.stop - 16) for i in w.items_of("PAGE")]
    inside.append(range(eof + 16, len(data) - 16))
    for cut in sorted({*some(range(len(data))), eof}):
        if cut % 31 and any(cut in r for r in inside):
            continue
        found = hold(data[:cut])
        # Behind EOF the stream is whole, but for a vmdescription that is cut.
        if cut == eof:
            assert not found.errors
            assert found.of(EndOfStream)
            continue
        if not variant.get("footers", True) and not variant.get("vmdescription", True):
            if cut > w.items_of("FULL")[0].stop:
                # Nothing frames the device state, so a last byte of 0 passes for the end.
                assert len(found.errors) == (data[cut - 1] != 0)
                continue
        elif variant == {"footers": False} and cut > w.items_of("FULL")[0].stop:
            # The description that was to frame it is cut off.
            assert len(found.errors) <= 1
            continue
        (error,) = found.errors
        assert type(error) is TruncatedError, (hex(cut), error)
        assert error.offset == cut
        # Everything in front of the cut is there: whole events, and whole records.
        before = [
            e
            for e in whole.events
            if not isinstance(e, PageBatch) and e.end + LOOK_AHEAD.get(type(e), 0) <= cut
        ]
        told = unframed(facts(found.events))
        for fact in unframed(facts(before)):
            assert fact in told, (hex(cut), fact)
        got = {r for b in found.of(PageBatch) for r in (b.record_offset + b.size).tolist()}
        assert got == {r for r in records if r <= cut}


@pytest.mark.parametrize("name", ["own-microvm", "old-5.2-pc-1.0", "postcopy-11.1-pc.ch0"])
def test_fixtures_truncated(name: str) -> None:
    data = open_fixture(name)
    whole = decode(data)
    rng = random.Random(name)
    for _ in range(25):
        cut = rng.randrange(8, len(data))
        found = hold(data[:cut])
        rows = sum(len(b) for b in found.of(PageBatch))
        ends = [b.record_offset + b.size <= cut for b in whole.of(PageBatch)]
        assert rows == sum(int(e.sum()) for e in ends)


@settings(deadline=None, max_examples=examples(80))
@given(cut_streams())
def test_any_stream_truncated(cut: tuple[StreamWriter, int]) -> None:
    w, length = cut
    found = hold(w.data[:length])
    if found.decoder.page_size not in (None, w.page_size):
        # Cut in the first page, whose contents look like heads: nothing shows its real size.
        first = w.items_of("PAGE")[0]
        assert length < first.stop + 265
        return
    records = [i for i in w.items_of("ZERO", "PAGE") if i.stop <= length]
    assert sum(len(b) for b in found.of(PageBatch)) == len(records)


# ---- flipped bits ----------------------------------------------------------------------------


def heads(w: StreamWriter) -> list[Item]:
    return w.items_of("ZERO", "PAGE", "XBZRLE", "COMPRESS_PAGE", "EOS", "MULTIFD_FLUSH")


@pytest.mark.parametrize("variant", [{}, {"footers": False}], ids=str)
def test_every_bit_of_every_head(variant: dict[str, bool]) -> None:
    """A head that is changed is refused, or is another legal head."""
    w = small(**variant)
    passed = 0
    for item in heads(w):
        for bit in some(range(64)):
            data = bytearray(w.data)
            data[item.offset + bit // 8] ^= 0x80 >> bit % 8
            found = hold(data)
            if not found.errors:
                passed += 1
                # It still is a page of the same size on the wire, so inside its block.
                assert item.kind in ("ZERO", "PAGE", "XBZRLE", "COMPRESS_PAGE")
                assert bit in range(64 - 13, 64 - 10), (item, bit)
    # Offsets of other pages of a block are as legal as the right one.
    assert passed < len(heads(w)) * 3


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_byte_outside_of_pages(variant: dict[str, bool]) -> None:
    """Each byte of the framing changed in a few ways, and everything in front of it kept."""
    w = small(**variant)
    data = bytes(w)
    pages = {at for i in w.items_of("PAGE") for at in range(i.attrs["body"], i.stop)}
    # A part of the description is enough of it.
    text = range(w.items_of("EOF")[0].stop + 5, len(data))
    rng = random.Random(7)
    for at in some(range(len(data))):
        if at in pages or (at in text and at % 7):
            continue
        for value in (data[at] ^ 1 << rng.randrange(8), rng.choice((0, 4, 8, 0x7E, 0xFF))):
            if value != data[at]:
                found = hold(data[:at] + bytes([value]) + data[at + 1 :])
                item = next(i for i in w.items if i.offset <= at < i.stop)
                before = [i for i in heads(w)[:-1] if i.stop <= item.offset]
                pages_before = [i for i in before if i.kind not in ("EOS", "MULTIFD_FLUSH")]
                assert sum(len(b) for b in found.of(PageBatch)) >= len(pages_before)


@settings(deadline=None, max_examples=examples(150))
@given(corrupted_streams())
def test_corrupted_streams(data: bytes) -> None:
    hold(data)


@settings(deadline=None, max_examples=examples(100))
@given(st.integers(0, 1 << 32), st.sampled_from(VARIANTS))
def test_shuffled_streams(seed: int, variant: dict[str, bool]) -> None:
    """Items left out, repeated, or in another order."""
    rng = random.Random(seed)
    w = small(**variant)
    pieces = [bytes(w.data[i.offset : i.stop]) for i in w.items if i.kind != "PACKAGE"]
    for _ in range(rng.randrange(1, 4)):
        at, to = rng.randrange(1, len(pieces)), rng.randrange(1, len(pieces))
        if rng.random() < 0.5:
            pieces.insert(to, pieces[at])
        else:
            pieces.insert(to, pieces.pop(at))
    hold(b"".join(pieces))


@pytest.mark.parametrize(
    "name", [n for n in fixture_names() if n.startswith(("own-microvm", "old"))]
)
def test_mutated_fixtures(name: str) -> None:
    data = open_fixture(name)
    rng = random.Random(name)
    tail = data.rindex(b"\0\6")
    for _ in range(25):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            low = rng.choice((0, tail - 60_000, tail))
            at = rng.randrange(max(0, low), len(data))
            changed[at] = rng.choice((0, 1, 4, 6, 0x7B, 0x7E, 0xFF, changed[at] ^ 1 << at % 8))
        hold(changed)


@settings(deadline=None, max_examples=examples(200))
@given(st.binary(max_size=300), st.sampled_from((0, 8, 60, 100, 130)))
def test_any_bytes_behind_a_good_start(data: bytes, keep: int) -> None:
    hold(bytes(small())[:keep] + data)


# ---- iterable sections other than RAM ----------------------------------------------------------


def reported(data: bytes) -> None:
    """Whatever it is, the reports can be made of it."""
    with contextlib.suppress(StreamError):
        inspect(BytesSource(data))
    assert all(item.end >= item.offset for item in Records(BytesSource(data)))


@settings(deadline=None, max_examples=examples(80))
@given(live_streams(), st.integers(0, 1 << 32))
def test_damaged_iterable_sections(w: StreamWriter, seed: int) -> None:
    """Bytes of records changed, left out, or put in: in heads, where it hurts, and in data."""
    rng = random.Random(seed)
    data = bytearray(w.data)
    for item in rng.choices(w.items_of("LIVE", "START", "PART", "END", "FOOTER"), k=3):
        at = rng.randrange(item.offset, min(item.stop, item.offset + 24))
        way = rng.randrange(3)
        if way == 0:
            data[at] = rng.choice((0, 1, 2, 8, 0x7E, 0xFF, rng.randrange(256)))
        elif way == 1:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        if at >= len(data):
            break
    hold(data)
    reported(bytes(data))


@settings(deadline=None, max_examples=examples(60))
@given(live_streams(), st.integers(0, 1 << 32))
def test_iterable_sections_truncated(w: StreamWriter, seed: int) -> None:
    item = random.Random(seed).choice(w.items_of("LIVE"))
    cut = random.Random(seed).randrange(item.offset, item.stop)
    found = hold(w.data[:cut])
    (error,) = found.errors
    assert type(error) is TruncatedError
    assert error.offset == cut
    whole = [i for i in w.items_of("LIVE") if i.stop <= cut]
    assert len([e for e in found.of(LiveRecord) if e.final]) == len(whole)
    reported(bytes(w.data[:cut]))


@pytest.mark.parametrize("name", ["blockmig-5.2-pc", "s390x-10.0", "ppc64-10.0-pseries"])
def test_damage_in_real_iterable_sections(name: str) -> None:
    """A word of each record changed: RAM and the devices are there all the same."""
    data = open_fixture(name)
    whole = decode(data)
    pages = sum(len(b) for b in whole.of(PageBatch))
    for record in whole.of(LiveRecord):
        for at, bit in ((0, 0x80), (record.end - len(record.data) - record.offset - 1, 0x40)):
            changed = bytearray(data)
            changed[record.offset + at] ^= bit
            found = hold(changed)
            assert len(found.errors) <= 1
            assert sum(len(b) for b in found.of(PageBatch)) == pages
            assert found.of(EndOfStream)
            assert len(found.of(SectionStart)) == len(whole.of(SectionStart))


# ---- what QEMU's rules catch -----------------------------------------------------------------


def patched(w: StreamWriter, offset: int, raw: bytes) -> bytes:
    return bytes(w.data[:offset]) + raw + bytes(w.data[offset + len(raw) :])


def caught(data: bytes, kind: type[StreamError], offset: int, word: str) -> None:
    """The first error is of this class, is at this place, and says this."""
    found = hold(data)
    assert found.errors
    error = found.errors[0]
    assert type(error) is kind, error
    assert error.offset == offset, error
    assert word in str(error)


def named(w: StreamWriter, kind: str) -> Item:
    return next(i for i in w.items_of(kind) if i.attrs["named"])


@pytest.mark.parametrize("flags", [0x18, 0x38, 0x0A, 0x2A, 0x48, 0x108, 0x09, 0x00, 0x20, 0x01])
def test_flags_that_do_not_go_together(flags: int) -> None:
    w = small()
    for item in w.items_of("PAGE", "ZERO"):
        head = sw.be64(item.attrs["address"] | flags)
        caught(patched(w, item.offset, head), FormatError, item.offset, "flags")


@pytest.mark.parametrize("page_bits", [11, 12, 16])
def test_bits_that_are_no_flags(page_bits: int) -> None:
    """Between the highest flag and the page size every bit is illegal."""
    size = 1 << page_bits
    w = StreamWriter(size)
    w.header()
    w.configuration(page_bits=page_bits)
    w.ram_start([RamBlock("pc.ram", 8 * size)])
    with w.ram_part():
        for i in range(4):
            w.page("pc.ram", i * size, b"\x5a" * size)
            w.zero("pc.ram", i * size)
    for item in w.items_of("PAGE", "ZERO"):
        for bit in range(10, page_bits):
            data = bytearray(w.data)
            data[item.offset + 7 - bit // 8] ^= 1 << bit % 8
            caught(bytes(data), FormatError, item.offset, "flags")


@pytest.mark.parametrize("offset", [8 * PAGE, 9 * PAGE, 1 << 32, 0xFFFFFFFFFFFFFC00])
def test_an_address_beyond_the_block(offset: int) -> None:
    w = small()
    for item in w.items_of("PAGE", "ZERO", "XBZRLE", "COMPRESS_PAGE"):
        flags = w.data[item.offset + 7] | (w.data[item.offset + 6] & 3) << 8
        data = patched(w, item.offset, sw.be64(offset | flags))
        caught(data, IntegrityError, item.offset, "beyond")


@pytest.mark.parametrize("change", [1, -1, PAGE, -PAGE, 1 << 40])
def test_a_block_length_in_the_list(change: int) -> None:
    w = small()
    blocks = w.items_of("BLOCKS")[0]
    for index, name in enumerate((b"\6pc.ram", b"\1b")):
        at = w.data.index(name, blocks.offset) + len(name)
        length = (8, 2)[index] * PAGE + change
        if length > 0:
            data = patched(w, at, sw.be64(length))
            caught(data, IntegrityError, blocks.offset + 8, "add up")
    total = patched(w, blocks.offset, sw.be64((10 * PAGE + PAGE) | sw.FLAG_MEM_SIZE))
    caught(total, IntegrityError, blocks.offset + 8, "add up")


def test_continue_before_any_name() -> None:
    w = StreamWriter(PAGE)
    w.header()
    w.configuration(page_bits=10)
    w.ram_start([RamBlock("pc.ram", 8 * PAGE)])
    with w.ram_part():
        item = w.zero("pc.ram", 0, named=False)
    caught(bytes(w), FormatError, item.offset, "CONTINUE")


@pytest.mark.parametrize("name", [b"pc.rom", b"PC.ram", b"pc.ra\0", b"\xff" * 6])
def test_a_block_that_is_not_listed(name: bytes) -> None:
    w = small()
    item = named(w, "PAGE")
    caught(patched(w, item.offset + 9, name), FormatError, item.offset, "block")


def test_a_block_name_of_another_length() -> None:
    w = small()
    item = named(w, "PAGE")
    for length in (0, 5, 7, 255):
        caught(patched(w, item.offset + 8, bytes([length])), FormatError, item.offset, "block")


def test_a_footer_with_another_id() -> None:
    w = small()
    of_ram = [i for i in w.items_of("FOOTER") if i.attrs["section_id"] == 1]
    for item in of_ram[1:]:
        for section_id in (0, 2, 0x101, 0x80000001):
            data = patched(w, item.offset + 1, sw.be32(section_id))
            caught(data, FormatError, item.offset, "footer")


def test_an_id_of_a_part() -> None:
    w = small()
    for item in w.items_of("PART", "END"):
        data = patched(w, item.offset + 1, sw.be32(0x77))
        # Behind a body that is not decoded a footer counts only with an item behind it.
        if not [i for i in w.items_of("PAYLOAD") if i.stop + 5 == item.offset]:
            caught(data, FormatError, item.offset, "not started")


def test_an_id_of_a_part_behind_a_body_that_is_not_decoded() -> None:
    """Then the body seems to go on, maybe through all of RAM: that must not go unsaid."""
    w = small()
    body = w.items_of("PAYLOAD")[0]
    item = w.items_of("PART")[0]
    assert body.stop + 5 == item.offset
    found = hold(patched(w, item.offset + 1, sw.be32(0x77)))
    assert found.of(Anomaly)


def test_end_is_missing() -> None:
    """Section START without END: the devices are taken, and the finding is the report's."""
    w = StreamWriter(PAGE)
    w.header()
    w.configuration(page_bits=10)
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    with w.ram_part():
        w.zero("pc.ram", 0)
    w.device(Device("timer", fields=[Field("t", "int64", bytes(24))]))
    w.eof()
    w.vmdescription()
    found = hold(w.data)
    kinds = [s.section_type for s in found.of(SectionStart)]
    assert kinds == [sw.SECTION_START, sw.SECTION_PART, sw.SECTION_FULL]
    assert found.of(EndOfStream)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.get("footers", True)], ids=str)
def test_eof_is_missing(variant: dict[str, bool]) -> None:
    w = small(**variant)
    at = w.items_of("EOF")[0].offset
    found = hold(w.data[:at] + w.data[at + 1 :])
    assert found.errors
    if not variant.get("vmdescription", True):
        assert type(found.errors[0]) is TruncatedError
        assert found.errors[0].offset == at


def test_hook_is_not_taken_for_an_end() -> None:
    w = small()
    item = w.items_of("MULTIFD_FLUSH")[0]
    caught(patched(w, item.offset, sw.be64(sw.FLAG_HOOK)), UnsupportedError, item.offset, "HOOK")


def test_duplicate_blocks() -> None:
    """Two blocks of one name: pages of the second could not be told from those of the first."""
    w = StreamWriter(PAGE)
    w.header()
    w.configuration(page_bits=10)
    w.ram_start([RamBlock("a", 2 * PAGE), RamBlock("a", 4 * PAGE)])
    with w.ram_part():
        w.zero("a", 3 * PAGE)
        w.zero("a", PAGE)
    hold(w.data)


# ---- the vmdescription -----------------------------------------------------------------------


def described(text: bytes, behind: bytes = b"") -> tuple[StreamWriter, Decoded]:
    w = small(vmdescription=False)
    w.vmdescription(text=text)
    return w, hold(bytes(w) + behind)


def long_text(w: StreamWriter, length: int) -> bytes:
    """The description of the devices in exactly `length` bytes."""
    description = sw.describe(w.devices, PAGE)
    spare = length - len(json.dumps({"filler": "", **description}))
    text = json.dumps({"filler": "x" * spare, **description}).encode()
    assert len(text) == length
    return text


LENGTHS = [0x600, 0x67B, 0x606, 0x0700, 0x7B00, 0x7B06, 0x7B7B, 0x10000, 0x10006, 0x1007B, 0x60000,
           0x60006, 0x6007B, 0x600, 0x67B00, 0x7B0006]  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS, ids=hex)
def test_a_description_of_any_length(length: int) -> None:
    """Whatever bytes its length has, and whatever stands behind it."""
    w = small(vmdescription=False)
    item = w.vmdescription(text=long_text(w, length))
    for behind in (b"", bytes(1), bytes(70), bytes(3 << 20)):
        found = hold(bytes(w) + behind)
        assert not found.of(Anomaly)
        (event,) = found.of(VMDescription)
        assert (event.offset, event.end) == (item.offset, item.stop)
        assert [(p.offset, p.end) for p in found.of(Padding)] == [
            (item.stop, item.stop + len(behind)) for _ in (1,) if behind
        ]
        tail = [p.framing for p in found.of(Payload)][-2:]
        assert tail == ["vmdescription"] * 2


@pytest.mark.parametrize(
    "behind",
    [b"x", b"\0x", bytes(300) + b"x", b"}", b"{}", b"\0\6", b"\0\6\0\0\0\2{}", b"\xff" * 5000,
     bytes(2 << 20) + b"garbage" + bytes(2 << 20), b"QEVM\0\0\0\3"],
    ids=lambda b: repr(b[:20]),
)  # fmt: skip
def test_garbage_behind_a_description(behind: bytes) -> None:
    w = small()
    found = hold(bytes(w) + behind)
    assert not found.errors
    assert len(found.of(VMDescription)) == 1
    assert {a.code for a in found.of(Anomaly)} == {"trailing"}
    assert all(a.severity == "warning" for a in found.of(Anomaly))
    assert found.of(Anomaly)[0].offset >= len(w.data)


@pytest.mark.parametrize("depth", [10, 100, 300, 490, 500, 1000, 10_000, 300_000])
@pytest.mark.parametrize("shape", ["list", "dict", "struct", "subsections"])
def test_a_deep_description(depth: int, shape: str) -> None:
    opening, closing = {
        "list": ("[", "]"),
        "dict": ('{"a": ', "}"),
        "struct": ('{"fields": [{"name": "f", "size": 1, "struct": ', "}]}"),
        "subsections": ('{"vmsd_name": "s", "subsections": [', "]}"),
    }[shape]
    deep = opening * depth + '{"vmsd_name": "s"}' + closing * depth
    timer = sw.json_text(Device("timer", fields=[Field("t", "int64", bytes(24))]).describe())
    key = {"struct": "fields", "subsections": "subsections"}.get(shape)
    if key is None:
        text = b'{"configuration": %s, "devices": [%s]}' % (deep.encode(), timer)
    else:
        inner = b'"%s": [%s]' % (key.encode(), deep.encode())
        if shape == "struct":
            inner = b'"fields": [{"name": "a", "size": 3, "struct": %s}]' % deep.encode()
        device = b'{"name": "timer", "instance_id": 0, %s}' % inner
        text = b'{"devices": [%s]}' % device
    w, found = described(text)
    bodies = w.items_of("PAYLOAD")[-2:]
    assert [(p.offset, p.end) for p in found.of(Payload)][-2:] == [
        (i.offset, i.stop) for i in bodies
    ]
    assert found.of(EndOfStream)


SIZES = ["-1", "-99999999999", "1.5", "1e999", "-1e999", "NaN", '"4"', "null", "true", "[]", "{}",
         str(1 << 47), str(1 << 63), str(1 << 64), "1" + "0" * 5000]  # fmt: skip


@pytest.mark.parametrize(
    "key", ["size", "array_len", "instance_id", "version", "page_size", "name"]
)
@pytest.mark.parametrize("value", SIZES, ids=lambda v: v[:12])
def test_hostile_numbers(key: str, value: str) -> None:
    w = small(vmdescription=False)
    text = json.dumps(sw.describe(w.devices, PAGE))
    old = {
        "size": '"size": 4',
        "array_len": '"array_len": 3',
        "instance_id": '"instance_id": 1',
        "version": '"version": 2',
        "page_size": '"page_size": 1024',
        "name": '"name": "net"',
    }[key]
    assert text.count(old) == 1, text
    _, found = described(text.replace(old, f'"{key}": {value}').encode())
    # The footers frame what the description does not.
    bodies = [(i.offset, i.stop) for i in w.items_of("PAYLOAD")]
    assert [(p.offset, p.end) for p in found.of(Payload)] == bodies
    assert found.of(EndOfStream)


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("size", [0, 1, 11, 13, 1000, 1 << 30, (1 << 48) - 1])
def test_sizes_that_are_not_those_of_the_bytes(size: int, footers: bool) -> None:
    w = small(footers=footers, vmdescription=False)
    text = json.dumps(sw.describe(w.devices, PAGE))
    w.vmdescription(text=text.replace('"size": 4', f'"size": {size}').encode())
    found = hold(bytes(w))
    bodies = [(i.offset, i.stop) for i in w.items_of("PAYLOAD")]
    if footers:
        assert [(p.offset, p.end) for p in found.of(Payload)] == bodies
        assert [a.code for a in found.of(Anomaly)] == ["vmdescription-size"]
    else:
        assert found.errors
        assert found.of(VMDescription)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_many_fake_frames(count: int) -> None:
    """In the state of a device, in front of the real one."""
    fakes = {
        "parses": sw.u8(0) + sw.u8(6) + sw.be32(14) + b'{"devices":[]}',
        "does not": sw.u8(0) + sw.u8(6) + sw.be32(6) + b"{nope}",
        "points far": sw.u8(0) + sw.u8(6) + sw.be32(0x00067B00) + b"{",
    }
    for fake in fakes.values():
        w = StreamWriter(PAGE)
        w.header()
        w.configuration(page_bits=10)
        w.ram_start([RamBlock("pc.ram", PAGE)])
        with w.ram_end():
            w.zero("pc.ram", 0)
        w.device(Device("disk", fields=[Field("cache", "buffer", fake * count)]))
        w.device(Device("timer", fields=[Field("t", "int64", bytes(24))]))
        w.eof()
        item = w.vmdescription()
        found = hold(w.data)
        assert not found.of(Anomaly)
        assert found.of(VMDescription)[0].offset == item.offset


def test_a_fake_frame_where_none_is() -> None:
    """A description is suppressed, but the state of a device holds what looks like one."""
    fake = sw.u8(0) + sw.u8(6) + sw.be32(14) + b'{"devices":[]}'
    w = StreamWriter(PAGE)
    w.header()
    w.configuration(page_bits=10)
    w.ram_start([RamBlock("pc.ram", PAGE)])
    with w.ram_end():
        w.zero("pc.ram", 0)
    w.device(Device("timer", fields=[Field("t", "int64", bytes(24))]))
    w.device(Device("disk", fields=[Field("cache", "buffer", b"x" * 50 + fake + b"y" * 50)]))
    w.device(Device("later", fields=[Field("t", "int64", bytes(24))]))
    w.eof()
    found = hold(w.data)
    # With footers everything is found where it is, whatever the disk holds.
    bodies = [(i.offset, i.stop) for i in w.items_of("PAYLOAD")]
    assert [(p.offset, p.end) for p in found.of(Payload)] == bodies
    assert not found.errors


@pytest.mark.parametrize("vmdescription", [True, False])
@pytest.mark.parametrize("footers", [True, False])
def test_a_device_name_of_any_length(footers: bool, vmdescription: bool) -> None:
    """A head that reaches into what is behind it, the end of the stream too."""
    w = small(footers=footers, vmdescription=vmdescription)
    for item in w.items_of("FULL"):
        for length in (*range(0, 250, 5), *range(3, 40), 253, 254, 255):
            hold(patched(w, item.offset + 5, bytes([length])))


def test_gaps_say_why() -> None:
    found = hold(bytes(small())[:300])
    assert all(g.reason for g in found.of(Gap))


@settings(deadline=None, max_examples=examples(100))
@given(st.integers(0, 1 << 32), st.booleans())
def test_damaged_descriptions(seed: int, footers: bool) -> None:
    rng = random.Random(seed)
    w = small(footers=footers)
    item = w.items_of("VMDESCRIPTION")[0]
    data = bytearray(w.data)
    for _ in range(rng.randrange(1, 5)):
        data[rng.randrange(item.offset + 1, item.stop)] = rng.choice(b'{}[]":,0\x00\xff9e-')
    found = hold(data)
    if footers:
        bodies = [(i.offset, i.stop) for i in w.items_of("PAYLOAD")]
        assert [(p.offset, p.end) for p in found.of(Payload)] == bodies
