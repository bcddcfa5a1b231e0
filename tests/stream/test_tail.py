"""The part without lengths: finding the vmdescription, guessing footers, framing the sections."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import assert_tiles, decode
from tests.strategies import examples
from tests.streamwriter import Device, Field, StreamWriter, Subsection
from tests.truth import open_fixture
from vmstream.errors import FormatError, IntegrityError, LimitError, StreamError, TruncatedError
from vmstream.stream.events import (
    Anomaly,
    Command,
    EndOfStream,
    Event,
    Gap,
    Padding,
    Payload,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.stream.tail import (
    _HEADS_AT_A_TIME,
    FOOTER_SIZE,
    MAX_FRAMES_TRIED,
    Tail,
    describe,
    find_footer,
    find_heads,
    find_vmdescriptions,
    frame_tail,
    has_footer,
    plausible_item,
)
from vmstream.wire import vmsd
from vmstream.wire.parse import SectionHead

BASE = 0x1_0000_0000
SMALL = {"page_size": 4096, "devices": []}
TEXT = json.dumps(SMALL).encode()


def frame(text: bytes = TEXT, length: int | None = None) -> bytes:
    return b"\0\6" + sw.be32(len(text) if length is None else length) + text


def padded_text(length: int) -> bytes:
    """A description of exactly `length` bytes."""
    text = b'{"x": "' + b"y" * (length - len(TEXT) - 9) + b'", ' + TEXT[1:]
    assert len(text) == length
    return text


def found(data: bytes) -> tuple[int, int] | None:
    """Where the frame stands that is the likeliest."""
    frame = next(find_vmdescriptions(memoryview(data)), None)
    return None if frame is None else (frame.eof, frame.end)


# ---- the frame -------------------------------------------------------------------------------


def test_find_vmdescription() -> None:
    data = b"\4device\x7e" + frame()
    assert found(data) == (8, len(data))
    (got,) = find_vmdescriptions(memoryview(data))
    assert got.layout.page_size == 4096


@pytest.mark.parametrize(
    "length",
    [0x7B, 0x67B, 0x600, 0x601, 0x606, 0x100, 0x7B00, 0x7B06, 0x7B7B, 0x10000, 0x10006, 0x60006,
     0x6007B, 0x067B00, 0x7B0006],
    ids=hex,
)  # fmt: skip
def test_lengths_with_bytes_that_look_like_a_frame(length: int) -> None:
    text = padded_text(length)
    for before in (b"", b"\0", b"\0\6", b"\0\6\0", b"\0\6\0\0\0", b"\6\0\6\0\0\6\0\0\0\6"):
        data = before + frame(text)
        assert found(data) == (len(before), len(data))


@pytest.mark.parametrize("padding", [1, 3, 4096, 4 << 20])
def test_padding_and_garbage_behind_the_frame(padding: int) -> None:
    data = b"xx" + frame()
    assert found(data + bytes(padding)) == (2, len(data))
    assert found(data + b"\0\6\0{}" * (padding // 6)) == (2, len(data))


def test_the_last_frame_counts() -> None:
    one = frame()
    data = one + b"state" + one
    assert found(data) == (len(one) + 5, 2 * len(one) + 5)
    assert [f.eof for f in find_vmdescriptions(memoryview(data))] == [len(one) + 5, 0]


@pytest.mark.parametrize("fakes", [1, MAX_FRAMES_TRIED - 1, MAX_FRAMES_TRIED, 100, 5000])
@pytest.mark.parametrize(
    "fake",
    [
        frame(b"{}"),
        frame(b"{not json}"),
        frame(b'{"devices": 1}'),
        frame(b"{" + b"x" * 20, length=2),
        b"\0\6\0\0\0\0{",
        b"\0\6\xff\xff\xff\xff{}",
        b"\0\6\0\0\0\2{x",
    ],
)
def test_fake_frames_before_the_real_one(fake: bytes, fakes: int) -> None:
    data = fake * fakes + frame()
    assert found(data) == (len(fake) * fakes, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\6",
        b"\0\6\0\0\0\0",
        b"\0\6\0\0\0\0{",
        b"\0\6\0\0\0\1{",
        frame()[:-1],
        frame(TEXT, len(TEXT) + 1),
        frame(TEXT, len(TEXT) - 1),
        frame(TEXT, 0xFFFFFFFF),
        b"\1\6" + frame()[2:],
        frame(b" " + TEXT),
        frame(b"[]"),
    ],
)
def test_no_frame(data: bytes) -> None:
    assert found(data) is None


@settings(deadline=None, max_examples=examples(200))
@given(st.binary(max_size=200))
def test_no_frame_in_anything(data: bytes) -> None:
    assert found(data) is None
    assert found(data + frame()) == (len(data), len(data) + len(frame()))


# ---- plausibility ----------------------------------------------------------------------------

HEADER = sw.section_header(sw.SECTION_FULL, 9, "timer", 0, 2)
PLAUSIBLE = [
    HEADER,
    sw.section_header(sw.SECTION_START, 0xFFFFFFFE, "x" * 255, 0xFFFFFFFE, 65535),
    b"\x08\0\x0b\0\0",
    b"\x08\0\x3f\0\0",
    b"\0\6\0\0\0\2{}",
]
IMPLAUSIBLE = [
    b"\5\1x\0\0\0\1",
    b"\6\0\0\0\2{}",
    b"\7\0\0\0\1x",
    b"\x7e\0\0\0\7",
    b"\xff" * 20,
    b"\x08\0\x40\0\0",
    b"\x08\xff\xff\0\0",
    b"\0\1\0\0",
    b"\0\7",
    bytes(9) + b"\7",
    sw.section_header(sw.SECTION_FULL, 9, "", 0, 2),
    sw.section_header(sw.SECTION_FULL, 9, "timer\n", 0, 2),
    sw.section_header(sw.SECTION_FULL, 9, "timer", 0, 65536),
    b"\4\0\0\0\1\3ab\xff" + bytes(8),
]


def plausible(data: bytes, *, at_end: bool, live: bool = False) -> bool | None:
    return plausible_item(memoryview(b"\xa5" + data), 1, live=live, at_end=at_end)


@pytest.mark.parametrize("data", PLAUSIBLE, ids=repr)
def test_plausible(data: bytes) -> None:
    assert plausible(data, at_end=False) is True
    assert plausible(data + b"\xa5" * 300, at_end=False) is True
    # Cut short it is not denied; where the input ends it is taken.
    for cut in range(len(data)):
        assert plausible(data[:cut], at_end=False) is not False
        assert plausible(data[:cut], at_end=True) is True


@pytest.mark.parametrize("data", IMPLAUSIBLE, ids=repr)
def test_implausible(data: bytes) -> None:
    for at_end in (False, True):
        assert plausible(data, at_end=at_end) is False


@pytest.mark.parametrize("data", [b"\2\0\0\0\7", b"\3\0\0\0\x08", b"\2\xff\xff\xff\xff"])
def test_parts_among_live_sections_alone(data: bytes) -> None:
    for cut in range(1, len(data) + 1):
        assert plausible(data[:cut], at_end=False, live=True) is not False
        assert plausible(data[:cut], at_end=True, live=True) is True
        assert plausible(data[:cut], at_end=False) is False


def test_padding_behind_the_end_is_long_or_all_there_is() -> None:
    assert plausible(bytes(4), at_end=False) is None
    assert plausible(bytes(4), at_end=True) is True
    assert plausible(bytes(5000) + b"\7", at_end=False) is True


def test_zeros_behind_a_byte_of_7e_are_no_end() -> None:
    """The clock of section 0 ends in 0x7e, and zeros follow: seen in a stream of QEMU 7.2."""
    clock = bytes.fromhex("00000000 128fc37e 00000000 00000000 00000000 072652b9")
    cpu = sw.section_header(sw.SECTION_FULL, 4, "cpu_common", 0, 1)
    data = memoryview(clock + b"\x7e\0\0\0\0" + cpu + bytes(8))
    assert find_footer(data, 0, 0, live=False, at_end=True) == (len(clock), True)
    # Where none is better, garbage may stand behind the end.
    data = memoryview(clock)
    assert find_footer(data, 0, 0, live=False, at_end=True) == (7, True)
    assert find_footer(data, 0, 0, live=True, at_end=True)[1] is False


def test_nothing_there() -> None:
    assert plausible(b"", at_end=False) is None
    assert plausible(b"", at_end=True) is True


@settings(deadline=None, max_examples=examples(200))
@given(st.binary(max_size=300), st.integers(0, 300))
def test_plausible_does_not_change_its_mind(data: bytes, cut: int) -> None:
    """What is told from a part of the bytes is told from all of them."""
    for live in (False, True):
        early = plausible(data[:cut], at_end=False, live=live)
        if early is not None:
            assert plausible(data, at_end=False, live=live) is early


# ---- footers ---------------------------------------------------------------------------------

MARK = sw.footer(7)


def test_has_footer() -> None:
    data = memoryview(b"ab" + MARK)
    assert has_footer(data, 2, 7)
    assert not has_footer(data, 2, 8)
    assert not has_footer(data, 1, 7)
    assert not has_footer(data, 4, 7)
    assert not has_footer(data, 1 << 70, 7)
    assert not has_footer(data[:-1], 2, 7)
    assert has_footer(memoryview(sw.footer(0xFFFFFFFE)), 0, 0xFFFFFFFE)


def test_find_footer() -> None:
    data = b"body" + MARK + HEADER
    for start in range(5):
        assert find_footer(memoryview(data), start, 7, live=False, at_end=True) == (4, True)
    assert find_footer(memoryview(data), 5, 7, live=False, at_end=True)[1] is False


@pytest.mark.parametrize("section_id", [0, 0x7E, 0x2E2E2E2E, 0x5B285C0A, 0x7E7E7E7E, 0xFFFFFFFF])
def test_ids_that_mean_something_to_a_pattern(section_id: int) -> None:
    data = b"body\x7e" + sw.footer(section_id) + HEADER
    assert find_footer(memoryview(data), 0, section_id, live=False, at_end=True)[1] is True


def test_the_first_plausible_footer_counts() -> None:
    data = MARK + b"\5" + MARK + HEADER + MARK + HEADER
    assert find_footer(memoryview(data), 0, 7, live=False, at_end=True) == (6, True)


def test_footers_that_overlap() -> None:
    mark = sw.footer(0x7E000000)
    data = b"\x7e\x7e\0\0\0" + mark[:0] + b"\x7e\x7e\0\0\0" + HEADER
    assert find_footer(memoryview(data), 0, 0x7E000000, live=False, at_end=True) == (5, True)


def test_where_to_look_again() -> None:
    data = b"b" * 100 + MARK + HEADER
    for cut in range(len(data)):
        at, done = find_footer(memoryview(data[:cut]), 0, 7, live=False, at_end=False)
        assert not done or cut >= 105
        # Nothing that could be part of the footer is passed over.
        assert at <= 100
        assert at >= min(100, cut - FOOTER_SIZE + 1)
        if not done:
            assert find_footer(memoryview(data), at, 7, live=False, at_end=True) == (100, True)


def test_describe() -> None:
    plain = describe(SectionHead(4, 12, b"timer", 0, 1))
    assert plain.startswith("section 12 ")
    assert "timer" in plain
    assert "instance" not in plain
    assert "instance 0x1f" in describe(SectionHead(4, 12, b"a\xff", 31, 1))


# ---- framing ---------------------------------------------------------------------------------

DEVICES = (
    Device("timer", version=2, fields=[Field("t", "int64", b"\x11" * 24)]),
    Device("empty"),
    Device(
        "0000:00:02.0/net",
        fields=[Field("a", "uint64", bytes(24), array_len=3)],
        subsections=[Subsection("net/s", 1, [Field("b", "buffer", b"\x7e\0\0\0\5")])],
    ),
    Device("slirp", version=4, old_style=b"old style"),
)


def written(
    devices: tuple[Device, ...] = DEVICES,
    *,
    footers: bool = True,
    vmdescription: bool = True,
    **kwargs: Any,
) -> StreamWriter:
    w = StreamWriter(footers=footers)
    for device in devices:
        w.device(device)
    w.eof()
    if vmdescription:
        w.vmdescription(**kwargs)
    return w


def framed(
    data: bytes, *, footers: bool | None = True, strict: bool = False, **kwargs: Any
) -> list[Event]:
    """The events of a tail; lenient ones cover it whole."""
    tail = Tail(memoryview(data), BASE, footers, strict=strict, **kwargs)
    events = list(frame_tail(tail))
    shifted = [e for e in events if not isinstance(e, Anomaly)]
    at = BASE
    for event in shifted:
        assert event.offset == at
        at = event.end
    assert at == BASE + len(data) + tail.zeros
    return events


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [e for e in events if isinstance(e, kind)]


def errors(events: list[Event]) -> list[StreamError]:
    return [a.error for a in of(events, Anomaly) if a.error is not None]


def fault(data: bytes, kind: type[StreamError], offset: int, **kwargs: Any) -> list[Event]:
    """Frame what has a fault at `offset`, in both ways."""
    events = framed(data, **kwargs)
    (error,) = errors(events)
    assert type(error) is kind, error
    assert error.offset == BASE + offset
    with pytest.raises(kind) as caught:
        framed(data, strict=True, **kwargs)
    assert str(caught.value) == str(error)
    return events


def check(w: StreamWriter, framing: str, **kwargs: Any) -> list[Event]:
    """Every section of `w` is found where it is."""
    data = bytes(w)
    events = framed(data, **kwargs)
    assert not errors(events)
    bodies = [(BASE + i.offset, BASE + i.stop) for i in w.items_of("PAYLOAD")]
    assert [(p.offset, p.end) for p in of(events, Payload)] == bodies
    assert {p.framing for p in of(events, Payload)} == {framing}
    assert [bytes(p.data) for p in of(events, Payload)] == [
        data[i.offset : i.stop] for i in w.items_of("PAYLOAD")
    ]
    heads = [(i.attrs["section_id"], i.attrs["idstr"].encode()) for i in w.items_of("FULL")]
    assert [(s.section_id, s.idstr) for s in of(events, SectionStart)] == heads
    assert len(of(events, SectionFooter)) == len(w.items_of("FOOTER"))
    assert len(of(events, EndOfStream)) == 1
    assert of(events, EndOfStream)[0].inferred == (framing == "header-scan")
    assert len(of(events, VMDescription)) == len(w.items_of("VMDESCRIPTION"))
    return events


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("style", ["6.0", "qjson"])
def test_with_a_description(footers: bool, known: bool, style: str) -> None:
    w = written(footers=footers, style=style)
    events = check(w, "vmdescription", footers=footers if known else None)
    assert not of(events, Anomaly)
    assert of(events, VMDescription)[0].text == w.items[-1].attrs["text"]


@pytest.mark.parametrize("known", [True, None])
def test_without_a_description(known: bool | None) -> None:
    events = check(written(vmdescription=False), "footer-scan", footers=known)
    assert not of(events, Anomaly)


def test_no_devices_at_all() -> None:
    for vmdescription in (True, False):
        data = bytes(written((), vmdescription=vmdescription))
        assert len(framed(data)) == 1 + vmdescription


def test_devices_of_the_same_name_and_instance() -> None:
    """Nothing forbids it, and the machine isapc has two IDE controllers like that."""
    twins = tuple(
        Device("isa-ide", fields=[Field("x", "buffer", b"\x33" * size)]) for size in (570, 58, 7)
    )
    for footers in (True, False):
        events = check(written(twins, footers=footers), "vmdescription", footers=footers)
        assert not of(events, Anomaly)


def test_instances_have_their_own_sizes() -> None:
    cpus = tuple(
        Device("cpu", i, fields=[Field("x", "buffer", bytes(size))])
        for i, size in enumerate((5, 50, 1))
    )
    check(written(cpus), "vmdescription")


def test_commands_between_devices() -> None:
    w = StreamWriter()
    w.device(DEVICES[0])
    w.switchover_start()
    w.device(DEVICES[1])
    w.ping(7)
    w.eof()
    w.vmdescription()
    events = check(w, "vmdescription")
    assert [c.cmd for c in of(events, Command)] == [sw.CMD_SWITCHOVER_START, sw.CMD_PING]


def test_a_body_of_lookalikes() -> None:
    """With a description nothing in a body misleads."""
    for footers in (True, False):
        w = StreamWriter(footers=footers)
        look = sw.footer(2) + sw.u8(0) + frame() + HEADER
        w.device(Device("a", fields=[Field("x", "buffer", look * 3)]))
        w.device(Device("b", fields=[Field("x", "buffer", b"\x08\0\1\0\0")]))
        w.eof()
        w.vmdescription()
        check(w, "vmdescription", footers=footers)


LIE = Field("f", "struct", b"\x22" * 40, size=1, extra={"struct": {"fields": []}})
ARRAY = Field(
    "f", "struct", b"\x22" * 40, array_len=4, size=9, extra={"struct": {"fields": [], "version": 1}}
)
WRONG = Field("f", "buffer", b"\x22" * 40, size=41)


@pytest.mark.parametrize(
    ("field", "severity"), [(LIE, "info"), (ARRAY, "info"), (WRONG, "warning")]
)
def test_a_size_that_differs(field: Field, severity: str) -> None:
    """The footer is believed, and the difference told; QEMU is known for some of them."""
    w = written((DEVICES[0], Device("liar", fields=[field]), DEVICES[1]))
    events = framed(bytes(w))
    (told,) = of(events, Anomaly)
    assert (told.severity, told.code, told.error) == (severity, "vmdescription-size", None)
    assert told.offset == BASE + w.items_of("PAYLOAD")[1].offset
    assert "behind 40" in told.message
    framings = [p.framing for p in of(events, Payload)]
    assert framings == ["vmdescription", "footer-scan", "vmdescription"]
    assert [p.end - p.offset for p in of(events, Payload)] == [24, 40, 0]


def test_a_size_that_differs_without_footers() -> None:
    short = Field("f", "buffer", b"\x22" * 40, size=39)
    w = written((DEVICES[0], Device("liar", fields=[short]), DEVICES[1]), footers=False)
    body = w.items_of("PAYLOAD")[1]
    events = fault(bytes(w), IntegrityError, body.offset, footers=False)
    # What comes behind the description is framed again.
    (gap,) = of(events, Gap)
    assert (gap.offset, gap.end) == (BASE + body.offset, BASE + w.items_of("EOF")[0].offset)
    assert of(events, EndOfStream)
    assert of(events, VMDescription)


def test_a_device_that_is_not_described() -> None:
    w = written()
    w.data.clear()
    w.items.clear()
    for device in DEVICES:
        w.device(device)
    w.eof()
    w.vmdescription(sw.describe(DEVICES[:2]))
    framings = [p.framing for p in of(framed(bytes(w)), Payload)]
    assert framings == ["vmdescription"] * 2 + ["footer-scan"] * 2


@pytest.mark.parametrize("size", [1 << 47, (1 << 48) - 1])
def test_a_size_beyond_everything(size: int) -> None:
    field = Field("f", "buffer", b"abc", size=size, array_len=(1 << 48) - 1)
    for footers in (True, False):
        w = written((Device("huge", fields=[field]),), footers=footers)
        events = framed(bytes(w), footers=footers)
        assert len(of(events, VMDescription)) == 1


def test_neither_footers_nor_a_description() -> None:
    (told,) = of(check(bare(DEVICES), "header-scan", footers=False), Anomaly)
    assert (told.severity, told.code) == ("info", "header-scan")
    assert "3 follow" in told.message
    # Ids that QEMU left out, and sections of a higher priority, whose ids are not the lowest.
    check(bare(numbered(0, 4, 5, 40)), "header-scan", footers=False)
    check(bare(numbered(52, 60, 0, 4)), "header-scan", footers=None)
    check(bare(numbered(12, 9, 20, 0, 30)), "header-scan", footers=False)


def bare(devices: tuple[Device, ...]) -> StreamWriter:
    return written(devices, footers=False, vmdescription=False)


def numbered(*ids: int, body: bytes = b"state") -> tuple[Device, ...]:
    return tuple(Device(f"d{i}", section_id=i, old_style=body) for i in ids)


@pytest.mark.parametrize(
    "devices",
    [
        numbered(7),
        numbered(1, 2, 2, 3),
        numbered(0, 5, 3, 9),
        numbered(1, 2, body=bytes(sw.section_header(4, 2, "d2", 0, 0))),
        numbered(1, body=sw.section_header(4, 9, "d\x01", 0, 0)),
        numbered(1, body=sw.section_header(4, 9, "dev", 0, 1 << 16)),
        numbered(1, body=sw.section_header(4, 1 << 16, "dev", 0, 0)),
        numbered(1, body=sw.section_header(4, 9, "d" * 200, 0, 0)[:-2]),
        # One header in another.
        numbered(1, body=sw.section_header(4, 9, "dev", 0, 4) + HEADER[1:]),
    ],
    ids=range(9),
)  # fmt: skip
def test_headers_that_contradict_each_other_or_are_none(devices: tuple[Device, ...]) -> None:
    w = bare(devices)
    events = framed(bytes(w), footers=False)
    assert not errors(events)
    (gap,) = of(events, Gap)
    first = w.items_of("PAYLOAD")[0]
    assert (gap.offset, gap.end) == (BASE + first.offset, BASE + len(w.data) - 1)
    (told,) = of(events, Anomaly)
    assert (told.severity, told.code) == ("info", "unframed")
    assert ("ambiguous" in told.message) == (len(find_heads_of(w)) > 1)
    (end,) = of(events, EndOfStream)
    assert end.inferred


def find_heads_of(w: StreamWriter) -> list[tuple[int, int]]:
    return list(find_heads(memoryview(bytes(w))))


@pytest.mark.parametrize("name", ["devices-11.1-q35", "old-5.2-pc-1.0", "s390x-10.0", "own-isapc"])
def test_headers_alone_tell_what_real_descriptions_do(name: str) -> None:
    """Real device sections without what an old machine type does not write."""
    data, kept, truth, begun = open_fixture(name), bytearray(), [], False
    for event in decode(data).events:
        begun = begun or (isinstance(event, SectionStart) and event.section_type == 4)
        if begun and isinstance(event, SectionStart | Payload | EndOfStream):
            kept += data[event.offset : event.end]
            if isinstance(event, Payload):
                truth.append((event.section_id, bytes(event.data)))
    events = framed(bytes(kept), footers=False)
    assert [(p.section_id, bytes(p.data)) for p in of(events, Payload)] == truth
    assert len(truth) > 10


@pytest.mark.parametrize("size", [_HEADS_AT_A_TIME, 3 * _HEADS_AT_A_TIME])
def test_headers_over_the_stretches_they_are_looked_for_in(size: int) -> None:
    head = sw.section_header(4, 0x1234, "n" * 255, 7, 3)
    for shift in (-len(head), -len(head) + 1, -6, -1, 0, 1):
        data = bytes(size + shift) + head + bytes(3)
        assert list(find_heads(memoryview(data))) == [(size + shift, 0x1234)]
    for pattern in (b"\4", b"\4\0\0\0\1\2AA", b"\4\0\0AB\xffA"):
        found = list(find_heads(memoryview(pattern * (size // len(pattern)))))
        assert not found or pattern == b"\4\0\0\0\1\2AA"


def test_neither_and_no_end() -> None:
    data = bytes(written(footers=False, vmdescription=False))[:-1] + b"\1"
    events = fault(data, TruncatedError, len(data), footers=False)
    assert not of(events, EndOfStream)


@pytest.mark.parametrize("zeros", [0, 1, 100])
def test_padding(zeros: int) -> None:
    """Zeros may be held, not held, or both."""
    w = written()
    for held in (0, 1, 50):
        events = framed(bytes(w) + bytes(held), zeros=zeros)
        assert not of(events, Anomaly)
        end = BASE + len(w.data)
        wanted = [Padding(end, end + held + zeros)] if held + zeros else []
        assert of(events, Padding) == wanted


@pytest.mark.parametrize("garbage", [b"x", b"\0\0x", b"x\0\0", bytes(range(256)), frame()[:-1]])
@pytest.mark.parametrize("vmdescription", [True, False])
def test_garbage_behind_the_end(garbage: bytes, vmdescription: bool) -> None:
    w = written(vmdescription=vmdescription)
    if not vmdescription:
        # The last footer is taken for one because the end or zeros follow EOF.
        garbage = b"\0" + garbage
    events = framed(bytes(w) + garbage)
    (told,) = of(events, Anomaly)
    assert (told.severity, told.code) == ("warning", "trailing")
    assert told.offset == BASE + len(w.data)
    (gap,) = of(events, Gap)
    assert (gap.offset, gap.end) == (BASE + len(w.data), BASE + len(w.data) + len(garbage))


def test_the_end_comes_too_early() -> None:
    """EOF in the place of a section, but a description further on."""
    w = written()
    at = w.items_of("FULL")[2].offset
    w.data[at] = 0
    events = fault(bytes(w), IntegrityError, at)
    (gap,) = of(events, Gap)
    assert gap.end == BASE + w.items_of("EOF")[0].offset
    assert of(events, VMDescription)


@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6, 7, 0x7E, 0xFF])
def test_an_item_that_cannot_be(kind: int) -> None:
    w = written()
    at = w.items_of("FULL")[1].offset
    w.data[at] = kind
    # The footer before it is no longer followed by an item, but the description frames it.
    fault(bytes(w), FormatError, at)


def test_a_section_without_a_name() -> None:
    w = StreamWriter()
    w.full(1, "")
    w.eof()
    fault(bytes(w), FormatError, 5)


def test_truncated_everywhere() -> None:
    w = written()
    data = bytes(w)
    complete = {0, w.items_of("EOF")[0].stop, len(data)}
    for cut in range(1, len(data) + 1):
        part = data[:cut]
        if cut in complete:
            assert not errors(framed(part))
            continue
        events = fault(part, TruncatedError, cut)
        # Every section whose footer is there was given out.
        whole = [i for i in w.items_of("FOOTER") if i.stop <= cut]
        assert len(of(events, SectionFooter)) == len(whole)


def test_truncated_where_more_would_not_be_held() -> None:
    """Held bytes that end before the input does are a limit, not a truncation."""
    data = bytes(written())[:-30]
    fault(data, LimitError, 0, at_end=False)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[]",
        b"",
        b"not json",
        b'{"devices": [{}]}',
        b"{" * 50_000,
        b"[" * 200_000 + b"]" * 200_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_damaged_description(text: bytes) -> None:
    w = written(text=text)
    at = w.items_of("VMDESCRIPTION")[0].offset
    events = fault(bytes(w), FormatError, at)
    assert {p.framing for p in of(events, Payload)} == {"footer-scan"}
    assert len(of(events, Payload)) == len(DEVICES)
    assert of(events, EndOfStream)
    assert not of(events, VMDescription)


@pytest.mark.parametrize("length", [0, 1, 300, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_description_of_another_length(length: int) -> None:
    w = written(length=length)
    at = w.items_of("VMDESCRIPTION")[0].offset
    size = len(w.data) - at - 5
    if length > size:
        fault(bytes(w), TruncatedError, len(w.data))
    else:
        fault(bytes(w), FormatError, at)


def test_a_package_has_no_end() -> None:
    w = StreamWriter()
    w.postcopy_listen()
    for device in DEVICES:
        w.device(device)
    w.postcopy_run()
    events = framed(bytes(w), packaged=True)
    assert not of(events, Anomaly)
    assert all(s.packaged for s in of(events, SectionStart))
    assert not of(events, EndOfStream)
    assert not of(events, Gap)


def test_a_vmdescription_in_a_package_means_nothing() -> None:
    w = StreamWriter()
    w.device(Device("a", fields=[Field("x", "buffer", frame())]))
    events = framed(bytes(w), packaged=True)
    assert [p.end - p.offset for p in of(events, Payload)] == [len(frame())]


def test_a_package_without_footers() -> None:
    w = StreamWriter(footers=False)
    w.device(DEVICES[0])
    events = framed(bytes(w), packaged=True, footers=False)
    assert not errors(events)
    assert [a.code for a in of(events, Anomaly)] == ["unframed"]
    assert not of(events, EndOfStream)


@pytest.mark.parametrize("depth", [100, 200, 300, 400, 430, 440, 450, 460, 470, 480, 490, 2000])
@pytest.mark.parametrize("form", ["subsections", "struct"])
def test_a_lie_in_a_deep_description(depth: int, form: str) -> None:
    """However deep it is: a description is either read or refused."""
    if form == "subsections":
        opening, closing = '{"vmsd_name": "s", "subsections": [', "]}"
    else:
        opening, closing = '{"fields": [{"size": 5, "struct": ', "}]}"
    body = opening * depth + "{}" + closing * depth
    if form == "struct":
        body = '"fields": [{"name": "x", "size": 5, "struct": ' + body + "}]"
    else:
        body = '"subsections": [' + body + "]"
    text = '{"devices": [{"name": "timer", "instance_id": 0, ' + body + "}]}"
    w = written((DEVICES[0],), text=text.encode())
    # Nothing in the description fits the bytes, so it is asked whether it may lie.
    for strict in (False, True):
        try:
            framed(bytes(w), strict=strict)
        except StreamError:
            assert strict


@settings(deadline=None, max_examples=examples(150))
@given(st.integers(0, 1 << 32), st.booleans(), st.sampled_from((True, False, None)))
def test_damaged_tails(seed: int, vmdescription: bool, footers: bool | None) -> None:
    rng = random.Random(seed)
    data = bytearray(written(footers=footers is not False, vmdescription=vmdescription).data)
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.choice((0, 4, 6, 0x7E, 0xFF, rng.randrange(256)))
    del data[rng.randrange(len(data)) + 1 :]
    events = framed(bytes(data), footers=footers)
    faults = errors(events)
    if faults:
        with pytest.raises(type(faults[0])) as caught:
            framed(bytes(data), footers=footers, strict=True)
        assert str(caught.value) == str(faults[0])
    else:
        framed(bytes(data), footers=footers, strict=True)


def test_frames_tried_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bytes] = []

    def refuse(text: bytes) -> None:
        tried.append(text)
        raise ValueError

    monkeypatch.setattr(vmsd, "load", refuse)
    assert list(find_vmdescriptions(memoryview(frame() * 1000))) == []
    assert len(tried) == MAX_FRAMES_TRIED


def test_a_tail_that_starts_at_zero_tiles() -> None:
    data = bytes(written())
    assert_tiles(frame_tail(Tail(memoryview(data), 0, True)), len(data))
