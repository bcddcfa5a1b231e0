"""The section state machine: what each item becomes, who decides page size and footers, faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import streamwriter as sw
from tests.decoding import BytesSource, CutSource, Decoded, assert_tiles, decode, facts, owned
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, Subsection
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.ops import pipeline
from vmstream.stream import decoder as decoder_module
from vmstream.stream.decoder import NEED_DATA, Decoder
from vmstream.stream.events import (
    Anomaly,
    Command,
    Configuration,
    EndOfStream,
    Event,
    FileHeader,
    Gap,
    Padding,
    PageBatch,
    Payload,
    RAMBlock,
    RAMBlockList,
    RAMControl,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.wire.constants import RAMSaveFlag

PAGE = 4096
BODY = random.Random(1).randbytes(PAGE)
TIMER = Device("timer", version=2, fields=[Field("t", "int64", b"\x11" * 24)])


def begun(
    page_size: int = PAGE, *, footers: bool = True, configuration: bool = True, **config: Any
) -> StreamWriter:
    """A stream up to the first section."""
    w = StreamWriter(page_size, footers=footers)
    w.header()
    if configuration:
        w.configuration(**config)
    return w


@contextmanager
def stream(devices: tuple[Device, ...] = (TIMER,), **kwargs: Any) -> Iterator[StreamWriter]:
    """A whole stream around what is written inside, between START and END of ram."""
    w = begun(**kwargs)
    w.ram_start([RamBlock("pc.ram", 16 * w.page_size), RamBlock("b", 4 * w.page_size)])
    yield w
    with w.ram_end():
        pass
    for device in devices:
        w.device(device)
    w.eof()
    w.vmdescription()


def check(w: StreamWriter | bytes, **kwargs: Any) -> Decoded:
    """Decode in both ways, which agree in the first fault, and in any pieces."""
    data = bytes(w)
    found = decode(data, **kwargs)
    assert_tiles(found.events, len(data))
    strict = decode(data, strict=True, **kwargs)
    if found.errors:
        assert strict.error is not None
        assert type(strict.error) is type(found.errors[0])
        assert str(strict.error) == str(found.errors[0])
    else:
        assert strict.error is None
        assert facts(strict.events) == facts(found.events)
    pieces = decode(data, CutSource(data), **kwargs)
    assert facts(pieces.events) == facts(found.events)
    return found


def fault(w: StreamWriter | bytes, kind: type[StreamError], offset: int, **kwargs: Any) -> Decoded:
    """Decode a stream whose only fault is at `offset`."""
    found = check(w, **kwargs)
    (error,) = found.errors
    assert type(error) is kind, error
    assert error.offset == offset, error
    assert f"offset {offset:#x}" in str(error)
    return found


# ---- every item ------------------------------------------------------------------------------


def test_every_item() -> None:
    uuid = bytes(range(16))
    w = begun(machine="pc-q35-10.0", page_bits=12, capabilities=["validate-uuid"], uuid=uuid)
    w.open_return_path()
    w.ping(1)
    w.device(Device("early", 3, 1, [Field("x", "buffer", b"early body")], section_id=40))
    w.ram_start([RamBlock("pc.ram", 4 * PAGE), RamBlock("b", PAGE)], section_id=2)
    w.live_section("START", 3, b"dirty", "x-bitmap")
    with w.ram_part():
        w.page("pc.ram", 0, BODY)
        w.zero("pc.ram", PAGE)
        w.multifd_flush()
        w.zero("b", 0)
    w.live_section("PART", 3, b"")
    w.switchover_start()
    with w.ram_end():
        pass
    w.live_section("END", 3, b"done")
    nested = StreamWriter()
    nested.postcopy_listen()
    nested.device(Device("cpu", 1, 12, [Field("x", "buffer", b"regs")], section_id=9))
    w.packaged(nested)
    w.device(TIMER)
    w.eof()
    w.vmdescription()
    w.padding(100)
    found = check(w)
    assert not found.of(Anomaly)
    at = {id(i): (i.offset, i.stop) for i in w.items}

    def span(kind: str, n: int = 0) -> tuple[int, int]:
        return at[id(w.items_of(kind)[n])]

    assert found.of(FileHeader) == [FileHeader(0, 8)]
    assert found.of(Configuration) == [
        Configuration(
            *span("CONFIGURATION"),
            name=b"pc-q35-10.0",
            target_page_bits=12,
            capabilities=(b"validate-uuid",),
            uuid=uuid,
            subsections=(
                b"configuration/target-page-bits",
                b"configuration/capabilities",
                b"configuration/uuid",
            ),
        )
    ]
    assert found.of(RAMBlockList) == [
        RAMBlockList(
            *span("BLOCKS"), 5 * PAGE, (RAMBlock(b"pc.ram", 4 * PAGE), RAMBlock(b"b", PAGE))
        )
    ]
    ram: Any = (2, b"ram", 0, 4)
    bitmap: Any = (3, b"x-bitmap", 0, 1)
    assert found.of(SectionStart) == [
        SectionStart(*span("FULL", 0), 4, 40, b"early", 3, 1),
        SectionStart(*span("START", 0), 1, *ram),
        SectionStart(*span("START", 1), 1, *bitmap),
        SectionStart(*span("PART", 0), 2, *ram),
        SectionStart(*span("PART", 1), 2, *bitmap),
        SectionStart(*span("END", 0), 3, *ram),
        SectionStart(*span("END", 1), 3, *bitmap),
        SectionStart(*span("FULL", 1), 4, 9, b"cpu", 1, 12, packaged=True),
        SectionStart(
            *span("FULL", 2), 4, w.items_of("FULL")[2].attrs["section_id"], b"timer", 0, 2
        ),
    ]
    controls = [(i.offset, i.stop, i.kind) for i in w.items_of("EOS", "MULTIFD_FLUSH")]
    assert [(e.offset, e.end, e.flags.name) for e in found.of(RAMControl)] == controls
    bodies = [(e.offset, e.end, bytes(e.data)) for e in found.of(Payload)]
    assert bodies == [
        (i.offset, i.stop, bytes(w.data[i.offset : i.stop])) for i in w.items_of("PAYLOAD")
    ]
    assert [e.framing for e in found.of(Payload)] == ["footer-scan"] * 5 + ["vmdescription"]
    assert [e.section_id for e in found.of(SectionFooter)] == [
        i.attrs["section_id"] for i in w.items_of("FOOTER")
    ]
    commands = [(i.offset, i.stop, i.attrs["command"], i.attrs["payload"])
                for i in w.items_of("COMMAND")]  # fmt: skip
    assert [(e.offset, e.end, e.cmd, e.data) for e in found.of(Command)] == commands
    assert found.of(EndOfStream) == [EndOfStream(*span("EOF"))]
    (description,) = found.of(VMDescription)
    assert (description.offset, description.end) == span("VMDESCRIPTION")
    assert description.text == w.items_of("VMDESCRIPTION")[0].attrs["text"]
    assert description.layout is not None
    assert found.of(Padding) == [Padding(*span("PADDING"))]
    assert not found.of(Gap)
    assert sum(len(b) for b in found.of(PageBatch)) == 3
    assert found.decoder.offset == len(w.data)
    assert found.decoder.next_event() is None


def test_the_loop() -> None:
    """NEED_DATA comes until a window is given; behind the end nothing does."""
    with stream() as w:
        pass
    decoder = Decoder()
    assert (decoder.offset, decoder.need) == (0, 1)
    assert decoder.next_event() is NEED_DATA
    assert repr(NEED_DATA) == "NEED_DATA"
    assert decoder.need == 8
    assert decoder.next_event() is NEED_DATA
    decoder.supply(memoryview(b"QEV"), 0, at_end=False)
    assert decoder.next_event() is NEED_DATA
    decoder.supply(memoryview(bytes(w)), 0, at_end=True)
    count = 0
    while decoder.next_event() is not None:
        count += 1
    assert count > 10
    assert decoder.next_event() is None


@pytest.mark.parametrize("data", [b"", b"Q", b"QEVM", b"QEVM\0\0\0", b"QEVM\0\0\0\3"])
def test_nothing_but_a_start(data: bytes) -> None:
    found = check(data)
    (error,) = found.errors
    assert isinstance(error, TruncatedError)
    assert error.offset == (0 if not data else len(data))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"R", FormatError),
        (b"QEVN\0\0\0\3", FormatError),
        (b"QEVM\0\0\0\2more", FormatError),
        (b"\x1f\x8b\x08\0" * 5, UnsupportedError),
        (b"LibvirtQemudSave\2\0\0\0", UnsupportedError),
    ],
)
def test_something_else(data: bytes, kind: type[StreamError]) -> None:
    found = check(data)
    (error,) = found.errors
    assert type(error) is kind
    assert found.of(Gap) == [Gap(0, len(data), found.of(Gap)[0].reason)]


# ---- configuration ---------------------------------------------------------------------------


def test_without_configuration() -> None:
    with stream(configuration=False) as w, w.ram_part():
        w.page("pc.ram", 0, BODY)
    found = check(w)
    assert not found.errors
    assert not found.of(Configuration)
    assert found.decoder.page_size == PAGE


def test_configuration_is_cut() -> None:
    w = begun(uuid=bytes(16), capabilities=["x-ignore-shared"])
    end = len(w.data)
    for cut in range(9, end + 1):
        fault(bytes(w)[:cut], TruncatedError, cut)


def test_configuration_with_an_unknown_subsection() -> None:
    w = begun(subsections=sw.subsection("configuration/later", 1, b"abc"))
    at = w.data.index(b"\5\x13configuration/later")
    found = fault(bytes(w) + bytes(50), FormatError, at)
    assert [type(e) for e in found.events] == [FileHeader, Anomaly, Gap]


def test_configuration_of_many_subsections_is_bounded() -> None:
    many = sw.subsection("configuration/uuid", 1, bytes(16)) * 6000
    data = bytes(begun(subsections=many)) + b"\1"
    found = decode(data)
    assert [type(e) for e in found.errors] == [LimitError]
    assert_tiles(found.events, len(data))


# ---- page size -------------------------------------------------------------------------------


def pages(w: StreamWriter, zeros: int = 1, count: int = 4) -> None:
    with w.ram_part():
        for i in range(zeros):
            w.zero("pc.ram", i * w.page_size)
        for i in range(zeros, count):
            w.page("pc.ram", i * w.page_size, random.Random(i).randbytes(w.page_size))


@pytest.mark.parametrize("page_size", [1024, 4096, 16384, 65536])
@pytest.mark.parametrize("source", ["argument", "target-page-bits", "probe"])
def test_page_size(page_size: int, source: str) -> None:
    bits = page_size.bit_length() - 1
    config: dict[str, Any] = {"page_bits": bits} if source == "target-page-bits" else {}
    with stream(page_size=page_size, **config) as w:
        pages(w, count=12)
    found = check(w, page_size=page_size if source == "argument" else None)
    assert not found.of(Anomaly)
    assert (found.decoder.page_size, found.decoder.page_size_source) == (page_size, source)
    assert sum(len(b) for b in found.of(PageBatch)) == 12
    assert {b.page_size for b in found.of(PageBatch)} == {page_size}


def test_page_size_that_nothing_before_the_end_tells() -> None:
    with stream() as w:
        pages(w, zeros=4)
    found = check(w)
    assert not found.errors
    assert (found.decoder.page_size, found.decoder.page_size_source) == (PAGE, "vmdescription")


def test_page_size_that_nothing_tells() -> None:
    with stream() as w:
        pages(w, zeros=4)
    found = check(bytes(w)[: w.items_of("EOF")[0].stop])
    assert not found.errors
    assert (found.decoder.page_size, found.decoder.page_size_source) == (PAGE, "default")


def test_page_size_behind_very_many_zero_pages() -> None:
    """However large the window is, and however late the first page with content."""
    w = begun(16384)
    count = (2 << 20) // 9
    # Written by hand: the writer would hold a block of this size.
    total = (count + 8) * w.page_size
    w.start(1, "ram", 0, 4)
    w.raw(sw.be64(total | sw.FLAG_MEM_SIZE) + RamBlock("pc.ram", total).entry())
    w.eos()
    w.footer(1)
    with w.ram_part():
        w.raw(sw.be64(0x02) + b"\6pc.ram\0")
        w.raw(b"".join(sw.be64(i * w.page_size | 0x22) + b"\0" for i in range(1, count)))
        w.raw(sw.be64(count * w.page_size | 0x28) + random.Random(1).randbytes(w.page_size))
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    data = bytes(w)
    whole = decode(data)
    parts = decode(data, CutSource(data, lambda offset, need: max(need, 1 << 16)))
    assert facts(whole.events) == facts(parts.events)
    assert_tiles(whole.events, len(data))
    # It is read right, or what was read wrong is said.
    rows = sum(len(b) for b in whole.of(PageBatch))
    assert whole.errors or rows == count + 1


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_page_size_of_a_stream_without_pages(page_size: int) -> None:
    with stream(page_size=page_size) as w, w.ram_part():
        w.multifd_flush()
    found = check(w)
    assert not found.errors
    assert found.decoder.page_size == page_size
    assert found.decoder.page_size_source == "vmdescription"


def test_page_size_of_zero_pages_that_lie_closer() -> None:
    with stream(page_size=1024) as w:
        pages(w, zeros=4)
    found = check(w)
    assert not found.errors
    assert (found.decoder.page_size, found.decoder.page_size_source) == (1024, "probe")


def test_the_vmdescription_has_the_last_word_on_page_size() -> None:
    with stream(page_size=16384) as w:
        pages(w, zeros=4)
    found = fault(w, IntegrityError, w.items_of("VMDESCRIPTION")[0].offset)
    (error,) = found.errors
    assert error.expected == "16384"
    assert "default" in error.found
    assert "--page-size 16384" in error.advice
    # The description is there all the same.
    assert len(found.of(VMDescription)) == 1


def test_a_wrong_argument_is_found_out() -> None:
    with stream() as w:
        pages(w, zeros=4)
    found = fault(w, IntegrityError, w.items_of("VMDESCRIPTION")[0].offset, page_size=1024)
    assert "argument" in found.errors[0].found


@pytest.mark.parametrize("bits", [0, 7, 25, 64, 0xFFFFFFFF])
def test_impossible_page_bits(bits: int) -> None:
    w = begun()
    w.data.clear()
    w.header()
    w.configuration(subsections=sw.subsection("configuration/target-page-bits", 1, sw.be32(bits)))
    w.ram_start([RamBlock("pc.ram", PAGE)])
    fault(w, FormatError, 8)


# ---- footers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("footers", [True, False])
def test_the_first_section_tells_of_footers(footers: bool) -> None:
    with stream(footers=footers) as w:
        pages(w)
    found = check(w)
    assert not found.errors
    assert found.decoder.footers is footers
    assert len(found.of(SectionFooter)) == (4 if footers else 0)


def test_footers_are_not_known_before() -> None:
    w = begun()
    w.start(1, "ram", 0, 4)
    assert check(w).decoder.footers is None


@pytest.mark.parametrize(
    "footer", [b"\x7e\0\0\0\2", b"\x7f\0\0\0\1", b"\2\0\0\0\1", b"\0\x7e\0\0\0", b"\x7e\1\0\0\0"]
)
@pytest.mark.parametrize("which", ["part", "end"])
def test_a_footer_is_missing(footer: bytes, which: str) -> None:
    with stream() as w:
        pages(w)
    item = w.items_of("FOOTER")[1 if which == "part" else 2]
    w.data[item.offset : item.stop] = footer
    found = check(w)
    error = found.errors[0]
    assert isinstance(error, FormatError)
    assert error.offset == item.offset
    assert "footer" in error.what
    assert footer.hex() in error.found
    # All before it is there.
    assert sum(len(b) for b in found.of(PageBatch)) == 4


def test_the_first_footer_has_another_id() -> None:
    """Then there are none, and its first byte is no item."""
    with stream() as w:
        pages(w)
    item = w.items_of("FOOTER")[0]
    w.data[item.stop - 1] ^= 1
    found = check(w)
    assert isinstance(found.errors[0], FormatError)
    assert found.errors[0].offset == item.offset


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_input_ends_in_a_footer(left: int, which: int) -> None:
    with stream() as w:
        pages(w)
    cut = w.items_of("FOOTER")[which].offset + left
    fault(bytes(w)[:cut], TruncatedError, cut)


# ---- sections that are not decoded -----------------------------------------------------------


def test_lookalike_footers_in_a_body() -> None:
    """Only one that an item follows ends a body."""
    mark = sw.footer(7)
    near = [mark, mark + b"\x05", mark + b"\x7e", mark + b"\x08\xff\xff"]
    near += [mark + b"\4\0\0\0\1\0", mark + b"\4\0\0\0\1\3\xffab\0\0\0\0\0\0\0\0", mark + b"\0\1"]
    body = b"x".join(near) + b"\x7e\0\0\0"
    w = begun()
    w.ram_start([RamBlock("pc.ram", PAGE)])
    w.live_section("START", 7, body, "other")
    w.live_section("PART", 7, body)
    w.live_section("END", 7, b"")
    with w.ram_end():
        w.zero("pc.ram", 0)
    w.eof()
    w.vmdescription()
    found = check(w)
    assert not found.errors
    assert [bytes(p.data) for p in found.of(Payload)] == [body, body, b""]
    assert all(p.final for p in found.of(Payload))


@pytest.mark.parametrize(
    "behind",
    [
        sw.u8(sw.SECTION_PART) + sw.be32(1),
        sw.u8(sw.SECTION_END) + sw.be32(7),
        sw.section_header(sw.SECTION_START, 8, "more", 0, 1),
        sw.section_header(sw.SECTION_FULL, 8, "x" * 255, 0xFFFFFFFE, 65535),
        sw.u8(sw.COMMAND) + sw.be16(11) + sw.be16(0),
        sw.u8(sw.EOF) + sw.u8(sw.VMDESCRIPTION) + sw.be32(2) + b"{}",
        sw.u8(sw.EOF),
        sw.u8(sw.EOF) + bytes(100),
        b"",
    ],
)
@pytest.mark.parametrize("size", [0, 5, 10_000])
def test_items_that_end_a_body(behind: bytes, size: int) -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", PAGE)])
    w.live_section("START", 7, b"x" * size, "other")
    at = w.items_of("PAYLOAD")[0]
    for data in (bytes(w) + behind, bytes(w) + behind[:1]):
        found = decode(data, CutSource(data, late_end=True))
        bodies = [f for f in facts(found.events) if f[0] == "Payload"]
        assert bodies[0][1:3] == (at.offset, at.stop)
        assert [p.final for p in found.of(Payload) if p.section_id == 7][-1]
        assert len(found.of(SectionFooter)) >= 2


def test_an_early_section_is_framed_at_once() -> None:
    """virtio-mem sends its state before RAM; the description at the end comes too late."""
    w = begun()
    w.device(Device("virtio-mem-early", fields=[Field("x", "buffer", b"\x04" * 300)]))
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)], section_id=9)
    w.device(Device("second-early", fields=[Field("x", "buffer", b"\x00" * 30)]))
    with w.ram_end():
        w.page("pc.ram", 0, BODY)
    w.device(TIMER)
    w.eof()
    w.vmdescription()
    found = check(w)
    assert not found.errors
    assert [(p.framing, len(p.data)) for p in found.of(Payload)] == [
        ("footer-scan", 300),
        ("footer-scan", 30),
        ("vmdescription", 24),
    ]


def test_a_body_of_unknown_length_without_footers() -> None:
    w = begun(footers=False, configuration=False)
    w.ram_start([RamBlock("pc.ram", PAGE)])
    w.live_section("START", 7, b"body", "other")
    at = w.items_of("PAYLOAD")[0].offset
    found = fault(bytes(w) + bytes(40), UnsupportedError, at)
    assert "unknown length" in found.errors[0].what


def test_a_body_without_an_end() -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", PAGE)])
    w.start(7, "other", 0, 1)
    w.payload(b"\x7e\0\0\0" * 5000)
    found = fault(w, TruncatedError, len(w.data))
    assert "other" in found.errors[0].context


def test_a_full_section_called_ram_is_opaque() -> None:
    w = begun()
    w.full(5, "ram", 0, 4)
    w.payload(b"not ram")
    w.footer(5)
    w.ram_start([RamBlock("pc.ram", PAGE)])
    found = decode(bytes(w))
    assert [bytes(p.data) for p in found.of(Payload)] == [b"not ram"]
    assert len(found.of(RAMBlockList)) == 1


# ---- commands --------------------------------------------------------------------------------


def test_every_command_number() -> None:
    w = begun()
    for cmd in (*range(13), 63, 64, 0xFFFF):
        if cmd != sw.CMD_PACKAGED:
            w.command(cmd, b"\x7e" * (cmd % 7))
    w.ram_start([RamBlock("pc.ram", PAGE)])
    found = decode(bytes(w))
    assert [(c.cmd, len(c.data)) for c in found.of(Command)] == [
        (i.attrs["command"], len(i.attrs["payload"])) for i in w.items_of("COMMAND")
    ]


def test_a_command_is_cut() -> None:
    w = begun()
    w.command(sw.CMD_POSTCOPY_ADVISE, bytes(16))
    begin = w.items_of("COMMAND")[0].offset
    for cut in range(begin + 1, len(w.data)):
        fault(bytes(w)[:cut], TruncatedError, cut)


def package() -> StreamWriter:
    nested = StreamWriter()
    nested.postcopy_listen()
    nested.device(Device("cpu", 1, 12, [Field("x", "buffer", b"r" * 50)], [Subsection("cpu/y", 1)]))
    nested.device(Device("timer", fields=[Field("t", "int64", bytes(8))], section_id=7))
    nested.ping(3)
    nested.postcopy_run()
    return nested


def test_package() -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    w.postcopy_advise()
    w.ram_discard("pc.ram", [(0, PAGE)])
    w.packaged(package())
    w.ping(4)
    with w.ram_end():
        w.page("pc.ram", 0, BODY)
    w.eof()
    found = check(w)
    assert not found.errors
    assert [(s.idstr, s.packaged) for s in found.of(SectionStart)] == [
        (b"ram", False),
        (b"cpu", True),
        (b"timer", True),
        (b"ram", False),
    ]
    inner = [i for i in w.items if i.kind == "PAYLOAD"]
    assert [(p.offset, p.end) for p in found.of(Payload)] == [(i.offset, i.stop) for i in inner]
    assert len(found.of(Command)) == len(w.items_of("COMMAND"))
    assert found.of(EndOfStream)


def test_package_is_cut() -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    item = w.packaged(package())
    for cut in range(item.offset, item.stop):
        found = fault(bytes(w)[:cut], TruncatedError, cut)
        # Whole sections before the cut are given out.
        whole = [i for i in w.items_of("FOOTER") if i.stop <= cut]
        assert len(found.of(SectionFooter)) == len(whole)


def test_package_too_large() -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    w.packaged(b"abc", length=0xFFFFFFFF)
    fault(w, LimitError, len(w.data) - 3)


def test_package_with_something_else_in_it() -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    item = w.packaged(b"\x09 what is this")
    with w.ram_end():
        w.page("pc.ram", 0, BODY)
    w.eof()
    found = fault(w, FormatError, item.offset)
    # A package has a length, so what is behind it can be read.
    assert len(found.of(PageBatch)) == 1
    assert found.of(EndOfStream)


def test_packaged_command_without_a_length() -> None:
    w = begun()
    w.command(sw.CMD_PACKAGED, b"\0\0")
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    found = decode(bytes(w))
    assert found.of(RAMBlockList)


# ---- RAM -------------------------------------------------------------------------------------


def test_ram_version_3() -> None:
    w = StreamWriter(footers=False, ram_version=3)
    w.header()
    w.ram_start([RamBlock("", 64 * PAGE)])
    with w.ram_part():
        for i in range(20):
            w.page("", i * PAGE, random.Random(i).randbytes(PAGE))
            w.zero("", (20 + i) * PAGE, 0x55)
    with w.ram_end():
        pass
    w.eof()
    found = check(w)
    assert not found.errors
    assert found.of(RAMBlockList)[0].blocks == (RAMBlock(b"ram", 64 * PAGE),)
    rows = [int(o) for b in found.of(PageBatch) for o in b.block_offset]
    assert rows == [i.attrs["address"] for i in w.items_of("PAGE", "ZERO")]


@pytest.mark.parametrize("version", [0, 1, 2, 5, 0xFFFFFFFF])
def test_other_ram_versions(version: int) -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", PAGE)], version_id=version)
    fault(w, UnsupportedError, w.items_of("START")[0].stop)


def test_hook() -> None:
    with stream() as w, w.ram_part():
        w.page("pc.ram", 0, BODY)
        w.hook()
    found = fault(w, UnsupportedError, w.items_of("HOOK")[0].offset)
    assert "RDMA" in found.errors[0].what


def test_ignore_shared() -> None:
    w = begun(capabilities=["x-ignore-shared"])
    w.ram_start([RamBlock("mem", 16 * PAGE, gpa=0), RamBlock("pc.bios", PAGE, gpa=0xFFFC0000)])
    with w.ram_end():
        w.page("pc.bios", 0, BODY)
    w.eof()
    found = check(w)
    assert not found.errors
    assert [b.gpa for b in found.of(RAMBlockList)[0].blocks] == [0, 0xFFFC0000]


def test_huge_pages() -> None:
    w = begun()
    w.postcopy_advise(0x201000)
    w.ram_start([RamBlock("mem", 4 << 20, page_size=2 << 20), RamBlock("pc.bios", PAGE)])
    with w.ram_end():
        w.zero("mem", 0)
    w.eof()
    found = check(w)
    assert not found.errors
    assert [b.host_page_size for b in found.of(RAMBlockList)[0].blocks] == [2 << 20, None]


@pytest.mark.parametrize("word", [0, 0x10, 0x1008, 0x1001, 0x1024])
def test_a_block_list_must_come_first(word: int) -> None:
    w = begun()
    w.start(1, "ram", 0, 4)
    w.raw(sw.be64(word) + bytes(100))
    fault(w, FormatError, w.items_of("START")[0].stop)


@pytest.mark.parametrize("word", [0x1010, 0x1200, 0x4004, 0x4, 0xFFFFFFFFFFFFF010])
def test_words_that_do_not_belong(word: int) -> None:
    """MEM_SIZE again, or an address beside EOS or MULTIFD_FLUSH."""
    with stream() as w, w.ram_part():
        w.page("pc.ram", 0, BODY)
        item = w.raw(sw.be64(word))
    found = check(w)
    assert isinstance(found.errors[0], FormatError)
    assert found.errors[0].offset == item.offset


def test_continue_lives_on_from_section_to_section() -> None:
    with stream() as w:
        with w.ram_part():
            w.zero("pc.ram", 0)
            w.zero("b", 0)
        w.switchover_start()
        with w.ram_part():
            w.zero("b", PAGE, named=False)
        with w.ram_part():
            w.zero("b", 2 * PAGE, named=False)
    found = check(w)
    assert not found.errors
    assert [int(b) for batch in found.of(PageBatch) for b in batch.block] == [0, 1, 1, 1]


def test_a_part_of_nothing() -> None:
    with stream() as w:
        item = w.part(77)
        w.payload(b"body")
    found = check(w)
    error = found.errors[0]
    assert isinstance(error, FormatError)
    assert error.offset == item.offset
    assert "77" in error.what
    assert error.expected == "1"


def test_a_part_before_any_start() -> None:
    w = begun()
    w.part(1)
    fault(w, FormatError, w.items_of("PART")[0].offset)


@pytest.mark.parametrize("kind", [k for k in range(256) if k not in (0, 1, 2, 3, 4, 8)])
def test_unknown_items(kind: int) -> None:
    w = begun()
    w.ram_start([RamBlock("pc.ram", PAGE)])
    data = bytes(w) + bytes([kind]) * 30
    found = decode(data)
    (error,) = found.errors
    assert isinstance(error, FormatError)
    assert error.offset == len(w.data)
    assert f"{kind:#04x}" in error.what
    assert found.of(Gap)[-1].offset == len(w.data)
    assert_tiles(found.events, len(data))


# ---- going on behind a fault -----------------------------------------------------------------


def broken(change: Callable[[StreamWriter], Any]) -> StreamWriter:
    """Three PARTs, the second with a fault in the middle."""
    with stream() as w:
        pages(w)
        with w.ram_part():
            w.page("pc.ram", 8 * PAGE, BODY)
            change(w)
            w.page("pc.ram", 9 * PAGE, BODY)
        pages(w)
    return w


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.raw(sw.be64(0x7018)),
        lambda w: w.raw(sw.be64(0x08) + b"\5wrong" + BODY),
        lambda w: w.raw(sw.be64(0x148) + BODY),
        lambda w: w.raw(b"garbage" * 50),
        lambda w: w.xbzrle("pc.ram", 0, b"", truth=False),
    ],
)
def test_the_next_part_is_read(change: Callable[[StreamWriter], Any]) -> None:
    w = broken(change)
    found = check(w)
    (error,) = found.errors
    assert isinstance(error, FormatError)
    (gap,) = found.of(Gap)
    assert gap.offset == error.offset
    # Up to the next record if that is plain, else to the footer.
    second = w.items_of("FOOTER")[2]
    behind = [i for i in w.items_of("PAGE") if gap.offset < i.offset < second.offset][-1]
    assert gap.end in (behind.offset, second.offset)
    pages = 4 + 1 + (gap.end == behind.offset) + 4
    assert sum(len(b) for b in found.of(PageBatch)) == pages
    assert [e.offset for e in found.of(SectionFooter)] == [i.offset for i in w.items_of("FOOTER")]
    assert len(found.of(VMDescription)) == 1


def test_a_page_that_belongs_nowhere_is_left_out() -> None:
    w = broken(lambda w: w.page("pc.ram", 16 * PAGE, BODY))
    found = check(w)
    (error,) = found.errors
    assert isinstance(error, IntegrityError)
    (gap,) = found.of(Gap)
    wrong = next(i for i in w.items_of("PAGE") if i.attrs["address"] == 16 * PAGE)
    assert (gap.offset, gap.end) == (wrong.offset, wrong.stop)
    assert sum(len(b) for b in found.of(PageBatch)) == 4 + 2 + 4


def test_many_pages_that_belong_nowhere() -> None:
    def change(w: StreamWriter) -> None:
        for i in range(12, 24):
            w.page("pc.ram", i * PAGE, BODY)

    w = broken(change)
    found = check(w)
    assert len(found.errors) == 8
    assert sum(len(b) for b in found.of(PageBatch)) == 4 + 6 + 4


def test_a_fault_without_footers_ends_it() -> None:
    with stream(footers=False, configuration=False) as w:
        pages(w)
        with w.ram_part():
            item = w.raw(sw.be64(0x7018))
        pages(w)
    found = fault(w, FormatError, item.offset)
    assert isinstance(found.events[-1], Gap)
    assert found.events[-1].offset == item.offset


# ---- bounds ----------------------------------------------------------------------------------


def test_too_many_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "_MAX_LIVE", 5)
    w = begun()
    w.ram_start([RamBlock("pc.ram", PAGE)])
    for i in range(10, 20):
        w.live_section("START", i, b"", "other")
    found = decode(bytes(w))
    assert [type(e) for e in found.errors] == [LimitError]
    assert_tiles(found.events, len(w.data))


@pytest.mark.parametrize("total", [(1 << 44) + 4096, 1 << 62, (1 << 64) - 4096])
def test_more_ram_than_there_can_be(total: int) -> None:
    w = begun()
    w.start(1, "ram", 0, 4)
    at = w.raw(sw.be64(total | sw.FLAG_MEM_SIZE) + RamBlock("pc.ram", total).entry()).offset
    w.eos()
    fault(w, LimitError, at)


def pieces(data: bytes) -> CutSource:
    return CutSource(data, lambda offset, need: 64)


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_too_much_device_state(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(decoder_module, "MAX_DEVICE_TAIL", limit)
    big = Device("big", fields=[Field("x", "buffer", b"\xaa" * 20000)])
    with stream(devices=(TIMER, big), page_bits=12) as w:
        pages(w)
    data = bytes(w)
    found = decode(data, pieces(data))
    assert isinstance(found.errors[0], LimitError)
    assert_tiles(found.events, len(w.data))
    assert isinstance(decode(data, pieces(data), strict=True).error, LimitError)


def test_device_state_just_under_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with stream(page_bits=12) as w:
        pages(w)
    tail = len(w.data) - w.items_of("FULL")[0].offset
    monkeypatch.setattr(decoder_module, "MAX_DEVICE_TAIL", tail)
    for source in (None, CutSource(bytes(w))):
        found = decode(bytes(w), source)
        assert not found.of(Anomaly)
        assert len(found.of(VMDescription)) == 1


@pytest.mark.parametrize("zeros", [1, 60, 64, 65, 5000, 1 << 20])
@pytest.mark.parametrize("behind", [b"", b"x", b"x" * 500, b"x" + bytes(9000) + b"y"])
def test_padding_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch, zeros: int, behind: bytes
) -> None:
    """Padding is not held, so it may be longer than what is."""
    monkeypatch.setattr(decoder_module, "MAX_DEVICE_TAIL", 4096)
    with stream(page_bits=12) as w:
        pages(w)
    end = len(w.data)
    data = bytes(w) + bytes(zeros) + behind
    found = decode(data, CutSource(data, lambda offset, need: 640))
    assert_tiles(found.events, len(data))
    assert len(found.of(VMDescription)) == 1
    assert not found.errors
    if behind:
        # The bytes that are no zeros are told of where they are, or with the zeros before them.
        assert [e for e in found.of(Gap) if e.offset <= end + zeros < e.end]
        assert {a.code for a in found.of(Anomaly)} == {"trailing"}
        assert min(a.offset for a in found.of(Anomaly)) <= end + zeros
    else:
        assert found.of(Padding) == [Padding(end, end + zeros)]
        assert not found.of(Anomaly)


@pytest.mark.parametrize("flags", [0x08, 0x02])
def test_flags_are_kept_as_they_are(flags: int) -> None:
    with stream() as w, w.ram_part():
        w.data += sw.be64(flags) + b"\6pc.ram" + (BODY if flags == 0x08 else b"\0")
    found = check(w)
    assert found.of(PageBatch)[0].flags.tolist() == [flags]
    assert RAMSaveFlag(flags) in (RAMSaveFlag.PAGE, RAMSaveFlag.ZERO)


# -- bytes that cannot be had ---------------------------------------------------------------------


class Holes(BytesSource):
    """A source that tells of stretches that it cannot read."""

    def __init__(self, data: bytes, *holes: tuple[int, int]) -> None:
        super().__init__(data)
        self.whole, self.holes, self.told = data, sorted(holes), 0

    def window(self, offset: int, need: int) -> tuple[memoryview, int, bool]:
        for begin, end in self.holes:
            if offset < end and offset + need > begin:
                self.told += 1
                error = FormatError(begin, "a hole")
                error.behind = end
                raise error
            if offset < begin or (not need and offset < end):
                return memoryview(self.whole)[offset : max(offset, begin)], offset, False
        return memoryview(self.whole)[offset:], offset, True


def with_holes(data: bytes, *holes: tuple[int, int]) -> list[Event]:
    found = [owned(e) for e in pipeline.events(Holes(data, *holes), Decoder())]
    assert_tiles([e for e in found if not isinstance(e, Anomaly)], len(data))
    for event in found:
        # Of what cannot be read nothing is given but gaps.
        if not isinstance(event, (Gap, Anomaly)):
            assert not any(event.offset < end and event.end > begin for begin, end in holes)
    return found


def alike(second: int) -> tuple[bytes, dict[str, bytearray]]:
    """Two blocks whose pages are told apart by the names alone, as far as addresses go."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("a", 40 * 4096), RamBlock("b", second * 4096)])
    for first in range(0, 40, 5):
        with w.ram_part():
            for page in range(first, first + 5):
                w.page("a", page * 4096, b"a%3d" % page * 1024)
    for first in range(0, second, 5):
        with w.ram_part():
            for page in range(first, first + 5):
                w.page("b", page * 4096, b"b%3d" % page * 1024)
    with w.ram_end():
        pass
    w.device(Device("timer", fields=[Field("x", "buffer", bytes(range(40)))]))
    w.eof()
    w.vmdescription()
    return bytes(w), w.blocks


@pytest.mark.parametrize("second", [10, 40])
def test_holes_anywhere(second: int) -> None:
    """No page lands in a block that is not its own, and what is behind is read."""
    data, blocks = alike(second)
    dice = random.Random(11)
    read = []
    for _ in range(150):
        begin = dice.randrange(len(data))
        hole = begin, min(len(data), begin + dice.choice((1, 100, 5000, 70_000)))
        found = with_holes(data, hole)
        pages = 0
        for batch in (e for e in found if isinstance(e, PageBatch)):
            for i in range(len(batch)):
                name = batch.blocks[int(batch.block[i])].idstr.decode()
                at = int(batch.block_offset[i])
                assert bytes(batch.payload(i)) == blocks[name][at : at + 4096]
                pages += 1
        read.append(pages)
        assert next(e.error for e in found if isinstance(e, Anomaly)) is not None
    assert sum(read) / len(read) > (0.55 if second == 10 else 0.4) * (40 + second)


def test_several_holes() -> None:
    data, _ = alike(10)
    begin = data.index(b"a 12")
    found = with_holes(data, (begin, begin + 10), (begin + 60_000, begin + 60_010))
    errors = [e for e in found if isinstance(e, Anomaly) and e.error is not None]
    assert [str(e.error.what) for e in errors if e.error] == ["a hole", "a hole"]
    assert any(isinstance(e, VMDescription) for e in found)


def test_a_hole_among_the_devices() -> None:
    """RAM is whole; what the devices are is not known without their description."""
    data, _ = alike(10)
    begin = data.index(bytes(range(40)))
    found = with_holes(data, (begin + 3, begin + 8))
    assert sum(len(e) for e in found if isinstance(e, PageBatch)) == 50
    assert isinstance(found[-1], Gap)


def test_a_strict_decoder_is_not_told_of_holes() -> None:
    data, _ = alike(10)
    with pytest.raises(FormatError, match="a hole"):
        list(pipeline.events(Holes(data, (5000, 5001)), Decoder(strict=True)))
