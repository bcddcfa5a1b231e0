"""Channels beside the main one, against packets built by hand and real recordings."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.channelwriter import ChannelWriter
from tests.decoding import BytesSource, CutSource, assert_tiles
from tests.streamwriter import FLAG_CONTINUE, FLAG_PAGE, FLAG_ZERO, be64, cstr8
from tests.truth import fixture_names, load_manifest, open_fixture
from vmstream.errors import (
    FormatError,
    IntegrityError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.ops.feed import feed
from vmstream.stream.channel import (
    CHANNEL_HEAD,
    MultiFDDecoder,
    PreemptDecoder,
    channel_head,
    channel_page_size,
    kind_of_channel,
)
from vmstream.stream.events import (
    Anomaly,
    ChannelHead,
    DeviceState,
    Event,
    Gap,
    MultiFDPacket,
    PageBatch,
    RAMBlock,
    RAMControl,
)
from vmstream.transport.source import Source
from vmstream.wire.constants import TARGET_PAGE_SIZES, MultiFDFlag

BLOCKS = (RAMBlock(b"pc.ram", 1 << 20), RAMBlock(b"b", 8192))
CHANNELS = [f"{n.removesuffix('.ch0')}.ch{i}" for n in fixture_names("multifd-*") for i in (1, 2)]


def blocks_of(name: str) -> tuple[RAMBlock, ...]:
    blocks = load_manifest(name)["blocks"]
    return tuple(RAMBlock(n.encode(), b["size"]) for n, b in blocks.items())


def owned(event: Event) -> Event:
    if isinstance(event, (MultiFDPacket, PageBatch)):
        return event.detach()
    if isinstance(event, DeviceState):
        data = memoryview(bytes(event.data))
        return DeviceState(
            event.offset, event.end, event.idstr, event.instance_id, data, event.final
        )
    return event


def read(
    data: bytes,
    source: Source | None = None,
    *,
    blocks: tuple[RAMBlock, ...] = BLOCKS,
    page_size: int = 4096,
    strict: bool = False,
) -> list[Event]:
    reader = MultiFDDecoder(blocks, page_size, strict=strict)
    events = [owned(e) for e in feed(source or BytesSource(data), reader)]
    assert_tiles(events, len(data))
    return events


def told(event: Event) -> tuple[object, ...]:
    if isinstance(event, MultiFDPacket):
        return (event.offset, event.end, event.flags, event.packet_num, event.block,
                event.normal.tolist(), event.zero.tolist(), bytes(event.payload))  # fmt: skip
    return (type(event), event.offset, event.end)


def page(value: int, size: int = 4096) -> bytes:
    return bytes([value]) * size


def small(**options: object) -> ChannelWriter:
    w = ChannelWriter(3, uuid=bytes(range(16)), **options)  # type: ignore[arg-type]
    w.init()
    w.sync(0)
    w.packet(2, "pc.ram", {0x1000: page(1), 0x3000: page(2)}, [0x2000, 0x4000])
    w.packet(5, "b", zero=[0x1000])
    w.sync(7)
    return w


def test_packets() -> None:
    w = small()
    head, first, pages, zero, last = read(bytes(w))
    assert head == ChannelHead(0, 64, 3, bytes(range(16)))
    assert isinstance(first, MultiFDPacket)
    assert (first.flags, first.packet_num, first.block) == (MultiFDFlag.SYNC, 0, -1)
    assert isinstance(pages, MultiFDPacket)
    assert (pages.flags, pages.packet_num, pages.block, pages.page_size) == (0, 2, 0, 4096)
    assert pages.normal.tolist() == [0x1000, 0x3000]
    assert pages.zero.tolist() == [0x2000, 0x4000]
    assert pages.normal.dtype == np.uint64
    assert bytes(pages.payload) == page(1) + page(2)
    assert isinstance(zero, MultiFDPacket)
    assert (zero.block, zero.zero.tolist(), len(zero.payload)) == (1, [0x1000], 0)
    assert isinstance(last, MultiFDPacket)
    assert last.end == len(w.data)
    assert [e.offset for e in (first, pages, zero, last)] == w.packets


@pytest.mark.parametrize("seed", range(4))
def test_however_it_is_cut(seed: int) -> None:
    w = small()
    w.device_state("0000:00:03.0/vfio", 1, b"x" * 3000)
    data = bytes(w)
    rng = random.Random(seed)
    source = CutSource(data, lambda _, need: need + rng.choice((0, 1, 700)), back=seed % 2 * 9)
    assert [told(e) for e in read(data, source)] == [told(e) for e in read(data)]


@pytest.mark.parametrize("name", CHANNELS)
def test_real_channels(name: str) -> None:
    data = open_fixture(name)
    assert kind_of_channel(data[:CHANNEL_HEAD]) == "multifd"
    assert channel_page_size(data[:CHANNEL_HEAD]) == 4096
    assert channel_head(data[:64]) == (int(name[-1]) - 1, bytes(16))
    events = read(data, blocks=blocks_of(name), strict=True)
    packets = [e for e in events if isinstance(e, MultiFDPacket)]
    assert len(packets) == len(events) - 1
    numbers = [p.packet_num for p in packets]
    assert numbers == sorted(numbers)
    assert any(len(p.zero) for p in packets) == ("7.2" not in name)


def test_device_state_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstream.stream.channel._STRETCH", 1000)
    w = ChannelWriter()
    w.init()
    w.device_state("0000:00:03.0/vfio", 2, bytes(range(250)) * 10)
    w.device_state("empty", 0, b"")
    w.sync(0)
    found = read(bytes(w), strict=True)
    parts = [e for e in found if isinstance(e, DeviceState)]
    assert b"".join(p.data for p in parts[:-1]) == bytes(range(250)) * 10
    assert [p.final for p in parts] == [False, False, True, True]
    assert {(p.idstr, p.instance_id) for p in parts[:-1]} == {(b"0000:00:03.0/vfio", 2)}
    assert (parts[-1].idstr, len(parts[-1].data)) == (b"empty", 0)


# ---- what kind of file it is -------------------------------------------------------------------


@pytest.mark.parametrize("size", TARGET_PAGE_SIZES)
@pytest.mark.parametrize("old", [False, True])
def test_page_size(size: int, old: bool) -> None:
    w = ChannelWriter(page_size=size, old=old)
    w.init()
    w.sync(0)
    w.packet(1, "pc.ram", {0: page(1, size)})
    assert channel_page_size(bytes(w)[:CHANNEL_HEAD]) == size
    assert channel_page_size(bytes(w)[:300]) is None


def test_page_size_behind_device_state() -> None:
    w = ChannelWriter()
    w.init()
    w.device_state("x", 0, b"y" * 2000)
    assert channel_page_size(bytes(w)[:CHANNEL_HEAD]) is None


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (bytes(small()), "multifd"),
        (be64(0x1000 | FLAG_PAGE) + cstr8("pc.ram") + page(1), "preempt"),
        (be64(FLAG_ZERO) + cstr8("pc.ram") + b"\0", "preempt"),
        (be64(0x10), "preempt"),
        (be64(0x10) + b"\0", None),
        (be64(0x1000 | FLAG_PAGE | FLAG_CONTINUE) + cstr8("pc.ram"), None),
        (be64(0x1000 | FLAG_PAGE) + b"\3a\0b", None),
        (be64(0x1000 | FLAG_PAGE) + b"\0", None),
        (be64(0x1000 | FLAG_PAGE) + b"\2\xff\xfe", None),
        (b"QEVM\0\0\0\3\1", None),
        (b"hello, world", None),
        (b"\0" * 100, None),
        (b"", None),
    ],
)
def test_kinds(head: bytes, kind: str | None) -> None:
    assert kind_of_channel(head) == kind


def test_heads_that_are_refused() -> None:
    data = bytes(small())
    with pytest.raises(TruncatedError) as cut:
        channel_head(data[:63])
    assert cut.value.offset == 63
    with pytest.raises(FormatError, match="no multifd channel"):
        channel_head(b"\1" + data[1:64])
    w = ChannelWriter()
    w.init(version=2)
    with pytest.raises(FormatError, match="version 1"):
        channel_head(bytes(w))
    # QEMU 3.1: the first packet is 25 bytes long.
    with pytest.raises(UnsupportedError, match=r"before QEMU 4\.0"):
        channel_head(data[:25] + data[64:200])


# ---- damage ------------------------------------------------------------------------------------


def broken(**options: object) -> list[Event]:
    """A packet with these lies in front of a good one."""
    w = ChannelWriter(compression=str(options.pop("compression", "none")))
    w.init()
    w.packet(0, str(options.pop("block", "pc.ram")), options.pop("normal", {0: page(1)}), **options)  # type: ignore[arg-type]
    w.packet(1, "pc.ram", {0x1000: page(2)})
    data = bytes(w)
    found = read(data)
    (error,) = [e.error for e in found if isinstance(e, Anomaly)]
    assert error is not None
    reader = MultiFDDecoder(BLOCKS, 4096, strict=True)
    with pytest.raises(StreamError) as raised:
        list(feed(BytesSource(data), reader))
    assert str(raised.value) == str(error)
    return found


@pytest.mark.parametrize(
    "lie",
    [
        {"version": 2},
        {"flags": 0x80},
        {"alloc": 129},
        {"counts": (129, 0)},
        {"counts": (100, 29)},
        {"counts": (1, 0xFFFFFFFF)},
        {"size": 4095},
        {"size": 0xFFFFFFFF},
        {"compression": "zstd", "size": (1 << 20) + 1},
    ],
    ids=str,
)
def test_a_head_that_is_no_packet(lie: dict[str, object]) -> None:
    """Nothing says where the next one is, so the rest is a gap."""
    found = broken(**lie)
    assert [type(e) for e in found] == [ChannelHead, Anomaly, Gap]
    assert isinstance(found[1], Anomaly)
    assert isinstance(found[1].error, FormatError)
    assert found[1].offset == 64


@pytest.mark.parametrize(
    "lie",
    [
        {"block": "other"},
        {"normal": {1 << 20: page(1)}},
        {"normal": {0x1001: page(1)}},
        {"normal": {}, "zero": [1 << 63]},
        {"block": "b", "normal": {0x2000: page(1)}},
    ],
    ids=str,
)
def test_pages_that_are_not_there(lie: dict[str, object]) -> None:
    """The packet counts for nothing, the next one does."""
    found = broken(**lie)
    assert [type(e) for e in found] == [ChannelHead, Anomaly, MultiFDPacket, MultiFDPacket]
    assert isinstance(found[1], Anomaly)
    assert isinstance(found[1].error, IntegrityError)
    bad, good = found[2:]
    assert isinstance(bad, MultiFDPacket)
    assert isinstance(good, MultiFDPacket)
    assert (bad.block, len(bad.zero)) == (-1, 0)
    assert (good.block, good.normal.tolist()) == (0, [0x1000])


def test_a_size_that_is_left_over() -> None:
    """Before 9.0 a packet without data keeps the size of one before it."""
    w = ChannelWriter()
    w.init()
    w.packet(0, "pc.ram", size=524288, flags=1)
    w.packet(1, "pc.ram", {0: page(1)})
    assert [type(e) for e in read(bytes(w), strict=True)][1:] == [MultiFDPacket] * 2


def test_truncated_at_every_offset() -> None:
    w = small()
    w.device_state("0000:00:03.0/vfio", 1, b"x" * 40)
    data = bytes(w)
    whole = read(data)
    starts = {e.offset for e in whole} | {len(data)}
    inside = range(w.packets[1] + 1400, w.packets[2] - 20)
    for size in range(len(data)):
        if size in inside and size % 97:
            continue
        found = read(data[:size])
        errors = [e.error for e in found if isinstance(e, Anomaly)]
        if size in starts and size:
            assert not errors
        else:
            assert [type(e) for e in errors] == [TruncatedError], size
        good = [e for e in found if not isinstance(e, (Anomaly, Gap))]
        assert [told(e) for e in good] == [told(e) for e in whole if e.end <= size]


def test_flipped_bytes() -> None:
    """Only our errors come of them, and the events tile."""
    data = bytearray(small().data)
    rng = random.Random(5)
    for _ in range(300):
        at = rng.choice((rng.randrange(200), rng.randrange(len(data))))
        kept, data[at] = data[at], rng.randrange(256)
        read(bytes(data))
        data[at] = kept


# ---- postcopy-preempt --------------------------------------------------------------------------


def bare(data: bytes, *, strict: bool = False, source: Source | None = None) -> list[Event]:
    reader = PreemptDecoder(BLOCKS, 4096, strict=strict)
    events = [owned(e) for e in feed(source or BytesSource(data), reader)]
    assert_tiles(events, len(data))
    return events


PREEMPT = (
    be64(0x1000 | FLAG_PAGE) + cstr8("pc.ram") + page(1)
    + be64(0x2000 | FLAG_PAGE | FLAG_CONTINUE) + page(2)
    + be64(FLAG_ZERO) + cstr8("b") + b"\0"
)  # fmt: skip
EOS = be64(0x10)


@pytest.mark.parametrize("end", [b"", EOS], ids=["11.1", "7.2"])
def test_preempt(end: bytes) -> None:
    """It ends with the connection, or with EOS."""
    events = bare(PREEMPT + end, strict=True)
    batches = [e for e in events if isinstance(e, PageBatch)]
    rows = [(int(b), int(o)) for e in batches for b, o in zip(e.block, e.block_offset, strict=True)]
    assert rows == [(0, 0x1000), (0, 0x2000), (1, 0)]
    assert [type(e) for e in events if not isinstance(e, PageBatch)] == [RAMControl] * bool(end)
    cut = CutSource(PREEMPT + end)
    again = [e for e in bare(PREEMPT + end, source=cut) if isinstance(e, PageBatch)]
    assert b"".join(e.window for e in again) == PREEMPT


def test_preempt_cut_and_damaged() -> None:
    for size in (1, 7, 12, 100, len(PREEMPT) - 1):
        found = bare(PREEMPT[:size])
        assert [type(e.error) for e in found if isinstance(e, Anomaly)] == [TruncatedError]
        with pytest.raises(TruncatedError):
            bare(PREEMPT[:size], strict=True)
    assert bare(b"") == []
    found = bare(PREEMPT + be64(0x40 | 0x08) + page(3))
    assert [type(e.error) for e in found if isinstance(e, Anomaly)] == [FormatError]
    assert isinstance(found[-1], Gap)
