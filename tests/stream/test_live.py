"""Iterable sections other than RAM: read by their records, wherever they stand, damaged or not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import CutSource, Decoded, assert_tiles, decode, facts
from tests.strategies import LIVE_IDS, examples, live_streams
from tests.streamwriter import Device, Field, RamBlock, StreamWriter
from tests.truth import open_fixture
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.stream import live as stream_live
from vmstream.stream.events import (
    EndOfStream,
    Gap,
    LiveRecord,
    PageBatch,
    Payload,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.stream.live import LiveHandlers
from vmstream.wire import live, parse
from vmstream.wire.constants import MAX_BITMAPS

PAGE = 1024


def begun(*, footers: bool = True) -> StreamWriter:
    w = StreamWriter(PAGE, footers=footers)
    w.header()
    w.configuration(page_bits=10)
    return w


def ended(w: StreamWriter) -> bytes:
    """RAM with two pages, a device, and the end."""
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    with w.ram_part():
        w.page("pc.ram", PAGE, b"\x5a" * PAGE)
    with w.ram_end():
        w.zero("pc.ram", 0)
    w.device(Device("timer", fields=[Field("t", "int64", b"\1" * 8)]))
    w.eof()
    w.vmdescription()
    return bytes(w)


def records(found: Decoded) -> list[tuple[int, int, str]]:
    return [(e.offset, e.end, e.record.kind) for e in found.of(LiveRecord)]


def check(w: StreamWriter, found: Decoded) -> None:
    """What was written was read, record for record, and nothing was guessed."""
    assert_tiles(found.events, len(w.data))
    assert not found.errors
    assert not found.of(Gap)
    want = [(i.offset, i.stop, i.attrs["record"]) for i in w.items_of("LIVE")]
    assert records(found) == want
    ids = [i.attrs["section_id"] for i in w.items_of("LIVE")]
    assert [e.section_id for e in found.of(LiveRecord)] == ids
    assert {p.framing for p in found.of(Payload)} <= {"vmdescription"}
    assert len(found.of(SectionFooter)) == len(w.items_of("FOOTER"))
    assert found.of(VMDescription)


@settings(deadline=None, max_examples=examples(80))
@given(live_streams())
def test_every_record(w: StreamWriter) -> None:
    """With footers and without: a body ends where its records do."""
    check(w, decode(bytes(w)))


@settings(deadline=None, max_examples=examples(10))
@given(live_streams(disks=True))
def test_every_record_with_disks(w: StreamWriter) -> None:
    check(w, decode(bytes(w)))


@pytest.mark.parametrize(
    ("name", "idstr", "kinds"),
    [
        ("blockmig-5.2-pc", b"block", {"block-chunk", "block-progress", "live-end"}),
        (
            "dirtybitmap-10.0-pc",
            b"dirty-bitmap",
            {"bitmap-start", "bitmap-bits", "bitmap-complete", "live-end"},
        ),
        ("ppc64-10.0-pseries", b"spapr/htab", {"htab-head", "live-end"}),
        ("s390x-10.0", b"s390-storage_attributes", {"storage-done", "live-end"}),
    ],
)
def test_real_streams(name: str, idstr: bytes, kinds: set[str]) -> None:
    found = decode(open_fixture(name), strict=True)
    assert found.error is None
    assert {e.record.kind for e in found.of(LiveRecord)} == kinds
    ids = {e.section_id for e in found.of(LiveRecord)}
    assert {s.idstr for s in found.of(SectionStart) if s.section_id in ids} == {idstr}
    # As many bodies as there are parts, and each has its end mark (or, of a table, its head).
    parts = sum(s.section_id in ids for s in found.of(SectionStart))
    ends = sum(e.record.kind == "live-end" for e in found.of(LiveRecord))
    assert ends + (idstr == b"spapr/htab") == parts
    assert not [p for p in found.of(Payload) if p.section_id in ids]


def test_handlers() -> None:
    def head(idstr: bytes, version: int = 1) -> parse.SectionHead:
        return parse.SectionHead(1, 7, idstr, 0, version)

    handlers = LiveHandlers()
    for name in (b"block", b"spapr/htab", b"pbs-state", b"vfio", b"00:1/vfio"):
        assert handlers.reader(head(name)) is not None
        assert handlers.reader(head(name)) is not handlers.reader(head(name))
        # Another version has another format, which is not known.
        assert handlers.reader(head(name, 2)) is None
    assert handlers.reader(head(b"s390-storage_attributes", 0)) is not None
    assert handlers.reader(head(b"dirty-bitmap", 2)) is None
    for name in (b"ram", b"xvfio", b"vfio/x", b"slirp", b"a/block"):
        assert handlers.reader(head(name)) is None


# ---- what is not decoded ------------------------------------------------------------------------


def test_an_unknown_handler_is_framed_by_its_footers() -> None:
    w = begun()
    w.live_section("START", 5, b"any thing", "block", version_id=2)
    w.live_section("PART", 5, b"at all")
    found = decode(ended(w))
    assert [(p.framing, bytes(p.data)) for p in found.of(Payload)][:2] == [
        ("footer-scan", b"any thing"),
        ("footer-scan", b"at all"),
    ]
    assert not found.errors


def test_a_plain_section_of_such_a_name_is_no_such_section() -> None:
    w = begun()
    w.full(5, "0000:00:02.0/vfio", 0, 1)
    w.payload(b"configuration")
    w.footer(5)
    found = decode(ended(w))
    assert not found.of(LiveRecord)
    assert bytes(found.of(Payload)[0].data) == b"configuration"


def test_the_configuration_of_a_vfio_device_has_no_length() -> None:
    """As in the END of 5.2: what follows the tag is framed by the footer, and named as inferred."""
    w = begun()
    w.live_records("START", 5, [sw.vfio_tag(3), sw.vfio_tag(1)], "0000:00:03.0/vfio")
    w.end(5)
    at = w.offset
    w.raw(sw.vfio_data(b"abc")[1] + sw.vfio_tag(2)[1])
    w.payload(b"\x7e\0\0\0\5 a vmstate" + sw.vfio_tag(1)[1])
    w.footer(5)
    found = decode(ended(w))
    assert not found.errors
    assert records(found)[2:] == [(at, at + 19, "vfio-data"), (at + 19, at + 27, "vfio-tag")]
    assert next((p.framing, p.section_id) for p in found.of(Payload)) == ("footer-scan", 5)
    bare = begun(footers=False)
    bare.ram_start([RamBlock("pc.ram", PAGE)])
    bare.live_records("START", 5, [sw.vfio_tag(3), sw.vfio_tag(1)], "vfio")
    bare.live_records("END", 5, [sw.vfio_tag(2)])
    bare.raw(b"a vmstate")
    assert isinstance(decode(bytes(bare)).errors[0], UnsupportedError)


# ---- long data ----------------------------------------------------------------------------------


def test_long_data_goes_by_in_stretches() -> None:
    """Sizes are 64 bits wide: nothing asks for it whole."""
    state = random.Random(5).randbytes(5 << 20)
    w = begun()
    w.live_records("START", 5, [sw.vfio_tag(3), sw.vfio_tag(1)], "vfio")
    w.live_records("END", 5, [sw.vfio_data(state), sw.vfio_data(b"more"), sw.vfio_tag(1)])
    data = ended(w)
    check(w, decode(data))
    wants: list[int] = []
    source = CutSource(data, lambda _offset, need: wants.append(need) or 300_000)  # type: ignore[func-returns-value]
    found = decode(data, source)
    stretches = [e for e in found.of(LiveRecord) if e.record == live.VFIOData(5 << 20)]
    assert len(stretches) > 10
    assert [e.final for e in stretches] == [False] * (len(stretches) - 1) + [True]
    assert b"".join(e.data for e in stretches) == state
    assert max(wants) < 1 << 20
    assert facts(found.events) == facts(decode(data).events)


def test_a_size_that_cannot_be() -> None:
    w = begun()
    w.start(5, "pbs-state", 0, 1)
    at = w.offset
    w.raw(sw.pbs_state(b"x" * 4000, size=(1 << 64) - 1)[1])
    found = decode(bytes(w))
    (error,) = found.errors
    assert isinstance(error, TruncatedError)
    assert error.offset == len(w.data)
    assert_tiles(found.events, len(w.data))
    (record,) = found.of(LiveRecord)
    assert (record.offset, record.final, len(record.data)) == (at, False, 4000)


# ---- damage ------------------------------------------------------------------------------------


DAMAGE: list[tuple[str, list[sw.LiveBytes], bytes, type[StreamError]]] = [
    ("block", [], sw.be64(0x40), FormatError),
    ("block", [sw.block_chunk("vda", 0, None)], sw.be64(0x202), FormatError),
    ("dirty-bitmap", [], sw.bitmap_bits(0, 8, b"\1", "n", "x")[1], IntegrityError),
    ("dirty-bitmap", [], sw.bitmap_bits(0, 1 << 20, b"\1", "n", "b")[1], IntegrityError),
    ("dirty-bitmap", [], sw.bitmap_bits(0, 8, b"\1" * 33, "n", "b")[1], IntegrityError),
    ("dirty-bitmap", [], sw.bitmap_start("n", "b")[1], IntegrityError),
    ("spapr/htab", [sw.htab_head(0)], sw.htab_chunk(1 << 20, [])[1], IntegrityError),
    ("spapr/htab", [], sw.htab_head(20)[1], FormatError),
    ("s390-storage_attributes", [], sw.storage_error()[1], IntegrityError),
    ("s390-storage_attributes", [sw.storage_done()], sw.be64(0x20), FormatError),
    ("0000:00:03.0/vfio", [sw.vfio_tag(3)], sw.vfio_data(b"x")[1], FormatError),
    ("0000:00:03.0/vfio", [sw.vfio_data(b"x")], sw.be64(7), FormatError),
    ("pbs-state", [], b"\0", FormatError),
]
FIRST: dict[str, list[sw.LiveBytes]] = {
    "block": [sw.block_end()],
    "dirty-bitmap": [sw.bitmap_start("n", "b", 512), sw.bitmap_end()],
    "spapr/htab": [sw.htab_head(18)],
    "s390-storage_attributes": [sw.storage_end()],
    "0000:00:03.0/vfio": [sw.vfio_tag(3), sw.vfio_tag(1)],
    "pbs-state": [sw.pbs_state(b"{}")],
}


@pytest.mark.parametrize(("name", "before", "wrong", "kind"), DAMAGE)
def test_a_fault_costs_its_own_part_and_nothing_else(
    name: str, before: list[sw.LiveBytes], wrong: bytes, kind: type[StreamError]
) -> None:
    w = begun()
    section_id, version = LIVE_IDS[name], 0 if name.startswith("s390") else 1
    w.live_records("START", section_id, FIRST[name], name, version)
    w.part(section_id)
    for record, raw in before:
        w._add("LIVE", raw, record=record, section_id=section_id)
    at = w.offset
    w.raw(wrong + b"some rest")
    gap = (at, w.offset)
    w.footer(section_id)
    data = ended(w)
    found = decode(data)
    assert_tiles(found.events, len(data))
    (error,) = found.errors
    assert type(error) is kind
    assert error.offset == at
    assert [(g.offset, g.end) for g in found.of(Gap)] == [gap]
    # All that was in front of it, and all that is behind.
    assert records(found) == [(i.offset, i.stop, i.attrs["record"]) for i in w.items_of("LIVE")]
    assert sum(len(b) for b in found.of(PageBatch)) == 2
    assert found.of(EndOfStream)
    strict = decode(data, strict=True)
    assert str(strict.error) == str(error)


def test_a_fault_in_the_first_section() -> None:
    """No footer has told yet that there are some."""
    w = begun()
    w.start(LIVE_IDS["block"], "block", 0, 1)
    at = w.offset
    w.raw(b"not a word of it")
    w.footer(LIVE_IDS["block"])
    found = decode(ended(w))
    (error,) = found.errors
    assert (type(error), error.offset) == (FormatError, at)
    assert found.decoder.footers
    assert sum(len(b) for b in found.of(PageBatch)) == 2


def test_a_fault_without_footers_costs_the_rest() -> None:
    w = begun(footers=False)
    w.ram_start([RamBlock("pc.ram", PAGE)])
    w.live_records("START", 5, [sw.block_end()], "block")
    w.part(5)
    at = w.offset
    w.raw(sw.be64(0x40) + bytes(100))
    found = decode(bytes(w))
    assert found.errors[0].offset == at
    assert found.of(Gap)[0].offset == at
    assert_tiles(found.events, len(w.data))


def test_bitmaps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BITMAPS >= 4096
    monkeypatch.setattr(stream_live, "MAX_BITMAPS", 3)
    w = begun()
    w.live_records("START", 5, [sw.bitmap_start("n", f"b{i}") for i in range(4)], "dirty-bitmap")
    found = decode(bytes(w))
    assert isinstance(found.errors[0], LimitError)
    assert len(found.of(LiveRecord)) == 3
    # Other sections of that name have no more to give.
    w = begun()
    for i in range(4):
        w.live_records("START", i, [sw.bitmap_start("n", f"b{i}"), sw.bitmap_end()], "dirty-bitmap")
    found = decode(bytes(w))
    assert isinstance(found.errors[0], LimitError)
    assert [e.record.kind for e in found.of(LiveRecord)].count("bitmap-start") == 3


def test_names_of_bitmaps_go_on_from_part_to_part() -> None:
    w = begun()
    starts = [sw.bitmap_start("n", "a", 512), sw.bitmap_start(None, "b", 512), sw.bitmap_end()]
    w.live_records("START", 5, starts, "dirty-bitmap")
    w.live_records("PART", 5, [sw.bitmap_bits(0, 8, b"\1"), sw.bitmap_end()])
    w.live_records("PART", 5, [sw.bitmap_bits(0, 8, None, None, "a"), sw.bitmap_end()])
    w.live_records("END", 5, [sw.bitmap_complete(), sw.bitmap_end()])
    found = decode(ended(w))
    check(w, found)
    said = [e.record for e in found.of(LiveRecord) if e.record.kind.startswith("bitmap-")]
    names = [r.name for r in said if not isinstance(r, live.BodyEnd) and hasattr(r, "name")]
    assert names == [b"a", b"b", b"b", b"a", b"a"]


@settings(deadline=None, max_examples=examples(25))
@given(live_streams(), st.integers(0, 1 << 32))
def test_however_the_input_is_cut(w: StreamWriter, seed: int) -> None:
    data = bytes(w)
    rng = random.Random(seed)
    want = facts(decode(data).events)
    for late_end in (False, True):
        source = CutSource(data, lambda _o, _n: rng.choice((1, 9, 100)), late_end=late_end)
        assert facts(decode(data, source, restless=late_end).events) == want
