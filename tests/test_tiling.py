"""Every byte belongs to exactly one event: of real streams, made ones, cut ones, damaged ones."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st

from tests.decoding import assert_tiles, decode
from tests.strategies import corrupted_streams, cut_streams, examples, live_streams, streams
from tests.streamwriter import StreamWriter, simple_stream
from tests.truth import fixture_names, load_manifest, open_fixture
from vmstream.stream.events import Anomaly, Gap, PageBatch

# Whatever else is in a fixture, these can be read to the end without a fault.
NOT_WHOLE = {"interrupted-11.1-pc", "interrupted-pipe-11.1-pc", "interrupted-stopped-11.1-q35",
             }  # fmt: skip


def tiles(data: bytes) -> None:
    """Lenient decoding covers all; strict decoding covers what is before its error."""
    assert_tiles(decode(data).events, len(data))
    strict = decode(data, strict=True)
    at = 0
    for event in strict.events:
        if not isinstance(event, Anomaly):
            assert event.offset == at
            at = event.end
    assert at == len(data) if strict.error is None else at <= len(data)


def rows_tile(batch: PageBatch) -> None:
    """The records of a batch lie side by side, and fill it."""
    ends = batch.record_offset + batch.size
    assert batch.record_offset[0] == batch.offset
    assert ends[-1] == batch.end
    assert (ends[:-1] == batch.record_offset[1:]).all()
    assert (batch.payload_size < batch.size).all()


@pytest.mark.parametrize("name", fixture_names(long=True))
def test_fixtures(name: str) -> None:
    data = open_fixture(name)
    files = {f["file"]: f["size"] for f in load_manifest(name)["files"]}
    assert files[f"{name}.qevm.zst"] == len(data)
    found = decode(data)
    assert_tiles(found.events, len(data))
    for batch in found.of(PageBatch):
        rows_tile(batch)
    assert bool(found.errors) == (name in NOT_WHOLE)
    if name not in NOT_WHOLE:
        assert not found.of(Gap)


@pytest.mark.parametrize(
    "name",
    ["plain-7.2-pc", "old-5.2-pc-i440fx-2.1", "xbzrle-5.2-pc", "blockmig-5.2-pc", "s390x-10.0"],
)
def test_fixtures_cut_and_damaged(name: str) -> None:
    data = open_fixture(name)
    rng = random.Random(name)
    for _ in range(12):
        cut = data[: rng.randrange(len(data))]
        assert_tiles(decode(cut).events, len(cut))
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        assert_tiles(decode(changed).events, len(data))


@settings(deadline=None, max_examples=examples(60))
@given(streams(xbzrle=True, compress=True, fills=True, announce="any"))
def test_streams(w: StreamWriter) -> None:
    tiles(bytes(w))


@settings(deadline=None, max_examples=examples(60))
@given(cut_streams())
def test_cut_streams(cut: tuple[StreamWriter, int]) -> None:
    w, length = cut
    tiles(bytes(w.data[:length]))


@settings(deadline=None, max_examples=examples(100))
@given(corrupted_streams())
def test_corrupted_streams(data: bytes) -> None:
    tiles(data)


@settings(deadline=None, max_examples=examples(60))
@given(live_streams(), st.integers(0, 1 << 32))
def test_iterable_sections(w: StreamWriter, seed: int) -> None:
    """Whole, cut, and with some bytes changed."""
    rng = random.Random(seed)
    data = bytes(w)
    tiles(data)
    tiles(data[: rng.randrange(len(data))])
    changed = bytearray(data)
    for item in rng.choices(w.items_of("LIVE"), k=3):
        changed[rng.randrange(item.offset, item.stop)] = rng.randrange(256)
    tiles(bytes(changed))


@settings(deadline=None, max_examples=examples(60))
@given(streams(max_pages=12), st.binary(max_size=40), st.sampled_from((0, 1, 63, 64, 65, 5000)))
def test_something_behind_the_stream(w: StreamWriter, behind: bytes, zeros: int) -> None:
    tiles(bytes(w) + bytes(zeros) + behind)


@settings(deadline=None, max_examples=examples(100))
@given(st.binary(max_size=200), st.sampled_from((b"", b"QEVM\0\0\0\3", b"QEVM\0\0\0\3\7")))
def test_any_bytes(data: bytes, head: bytes) -> None:
    tiles(head + data)


@settings(deadline=None, max_examples=examples(60))
@given(st.integers(0, 1 << 32))
def test_stretches_of_other_streams(seed: int) -> None:
    """Pieces of legal streams in any order are no legal stream, and full of plausible items."""
    rng = random.Random(seed)
    made = [bytes(simple_stream(page_size=1024)), bytes(simple_stream(footers=False))]
    data = made[0][: rng.randrange(40, 200)]
    for _ in range(rng.randrange(1, 8)):
        other = rng.choice(made)
        at = rng.randrange(len(other))
        data += other[at : at + rng.randrange(1, 300)]
    tiles(data)
