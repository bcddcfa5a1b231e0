"""The same events however the input is cut, with every window spoilt once the next one is given."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.decoding import BytesSource, CutSource, assert_tiles, decode, facts
from tests.strategies import corrupted_streams, cut_streams, examples, live_streams, streams
from tests.streamwriter import Device, Field, StreamWriter, simple_stream
from tests.truth import open_fixture
from vmstream.stream import scanner
from vmstream.stream.events import Anomaly


def cuts(data: bytes, seed: int) -> dict[str, Any]:
    """Sources that cut the same input in different places."""
    rng = random.Random(seed)
    # A byte at a time, but for inputs where that would take seconds.
    least = max(1, len(data) >> 10)
    return {
        "least": CutSource(data, lambda offset, need: least),
        "least, late end": CutSource(data, lambda offset, need: least, late_end=True),
        "with bytes before": CutSource(data, back=rng.randrange(1, 5000)),
        "random": CutSource(data, lambda offset, need: rng.choice((1, 9, 100, 5000, 1 << 17))),
        "half": CutSource(data, lambda offset, need: max(need, (len(data) - offset) // 2)),
        "whole, late end": CutSource(data, lambda offset, need: len(data), late_end=True),
    }


def same(data: bytes, seed: int = 0, **kwargs: Any) -> None:
    """Every cut gives the events of the whole."""
    whole = decode(data, **kwargs)
    assert_tiles(whole.events, len(data))
    want = facts(whole.events)
    strict = decode(data, strict=True, **kwargs)
    for name, source in cuts(data, seed).items():
        found = decode(data, source, **kwargs)
        assert facts(found.events) == want, name
        assert found.decoder.page_size == whole.decoder.page_size, name
        assert found.decoder.page_size_source == whole.decoder.page_size_source, name
        assert found.decoder.footers == whole.decoder.footers, name
    found = decode(data, cuts(data, seed)["least"], strict=True, **kwargs)
    assert facts(found.events) == facts(strict.events)
    assert str(found.error) == str(strict.error)
    # And a window that moves with every event.
    for source in (BytesSource(data), *list(cuts(data, seed).values())[:3]):
        assert facts(decode(data, source, restless=True, **kwargs).events) == want


@settings(deadline=None, max_examples=examples(40))
@given(streams(max_pages=24, xbzrle=True, compress=True, fills=True), st.integers(0, 1 << 32))
def test_streams(w: StreamWriter, seed: int) -> None:
    same(bytes(w), seed)


@settings(deadline=None, max_examples=examples(40))
@given(streams(max_pages=12, announce="any"), st.integers(0, 1 << 32))
def test_streams_whose_page_size_comes_last(w: StreamWriter, seed: int) -> None:
    same(bytes(w), seed)


@settings(deadline=None, max_examples=examples(30))
@given(live_streams(), st.integers(0, 1 << 32))
def test_iterable_sections(w: StreamWriter, seed: int) -> None:
    """Whole, cut, and with a byte changed."""
    rng = random.Random(seed)
    data = bytes(w)
    same(data, seed)
    same(data[: rng.randrange(len(data))], seed)
    item = rng.choice(w.items_of("LIVE"))
    at = rng.randrange(item.offset, item.stop)
    same(data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :], seed)


@settings(deadline=None, max_examples=examples(40))
@given(cut_streams(), st.integers(0, 1 << 32))
def test_cut_streams(cut: tuple[StreamWriter, int], seed: int) -> None:
    w, length = cut
    same(bytes(w.data[:length]), seed)


@settings(deadline=None, max_examples=examples(25))
@given(corrupted_streams(), st.integers(0, 1 << 32))
def test_corrupted_streams(data: bytes, seed: int) -> None:
    same(data, seed)


DEVICES = (
    Device("timer", fields=[Field("t", "int64", b"\x7e\0\0\0\2\4" * 4)]),
    Device("cpu", 1, fields=[Field("x", "buffer", b"\0\6\0\0\0\2{}")]),
)


def small(**kwargs: Any) -> StreamWriter:
    w = simple_stream(
        {"pc.ram": {0: b"\x28" * 1024, 1024: b"", 2048: b"\x10" * 1024}, "b": {0: b""}},
        page_size=1024,
        devices=DEVICES,
        **kwargs,
    )
    w.padding(70)
    return w


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("vmdescription", [True, False])
def test_byte_by_byte(footers: bool, vmdescription: bool) -> None:
    """A window that grows one byte at a time, and never has one more than it must."""
    w = small(footers=footers, vmdescription=vmdescription)
    same(bytes(w))


@pytest.mark.parametrize("restless", [False, True])
def test_cut_at_each_item(restless: bool) -> None:
    """A window that ends with an item, or a byte before or behind that."""
    w = small()
    data = bytes(w)
    want = facts(decode(data).events)
    edges = [edge for item in w.items for edge in (item.offset, item.stop)]
    for shift in (-1, 0, 1):

        def size(offset: int, need: int, shift: int = shift) -> int:
            return min((e + shift - offset for e in edges if e + shift > offset), default=1)

        source = CutSource(data, size)
        assert facts(decode(data, source, restless=restless).events) == want
        assert source.windows > 2


@pytest.mark.parametrize("limit", [1, 3, 64, 100])
def test_batches_of_any_size(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    data = open_fixture("aarch64-10.0-virt")
    want = facts(decode(data).events)
    monkeypatch.setattr(scanner, "MAX_BATCH_RECORDS", limit)
    if limit == 1:
        data = bytes(small())
        monkeypatch.undo()
        want = facts(decode(data).events)
        monkeypatch.setattr(scanner, "MAX_BATCH_RECORDS", limit)
    assert facts(decode(data).events) == want


@pytest.mark.parametrize(
    "name",
    ["own-microvm", "aarch64-10.0-virt", "s390x-10.0", "old-5.2-pc-i440fx-2.1",
     "multifd-11.1-pc.ch0", "multifd-7.2-pc.ch0", "postcopy-11.1-pc.ch0", "novmdesc-11.1-pc"],
)  # fmt: skip
def test_fixtures(name: str) -> None:
    data = open_fixture(name)
    want = facts(decode(data).events)
    rng = random.Random(name)
    sources = [
        CutSource(data, lambda offset, need: 4097, late_end=True),
        CutSource(data, lambda offset, need: rng.choice((50, 7000, 300_000)), back=50),
    ]
    for source in sources:
        assert facts(decode(data, source).events) == want
    data = open_fixture("own-microvm")
    assert facts(decode(data, CutSource(data)).events) == facts(decode(data).events)


def test_findings_do_not_depend_on_the_cut() -> None:
    data = bytes(small()) + b"garbage"
    for source in cuts(data, 1).values():
        found = decode(data, source)
        assert [a.code for a in found.of(Anomaly)] == ["trailing"]
