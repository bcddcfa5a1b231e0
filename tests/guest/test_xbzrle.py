"""XBZRLE in bulk against a decoder that does as QEMU's does, a byte at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.strategies import examples
from tests.streamwriter import uleb14, xbzrle_encode
from vmstream.guest import xbzrle as xbzrle_module
from vmstream.guest.xbzrle import DeltaCache, apply_deltas, delta_lengths

PAGE = 4096


def decode(payload: bytes, page: bytearray) -> bool:
    """QEMU v10.1.0 migration/xbzrle.c xbzrle_decode_buffer(), with its checks in its order."""
    source = at = 0

    def count() -> int | None:
        nonlocal source
        low = payload[source]
        source += 1
        if low < 0x80:
            return low
        high = payload[source]
        source += 1
        return None if high & 0x80 else low & 0x7F | high << 7

    while source < len(payload):
        for replace in (False, True):
            if len(payload) - source < 2:
                return False
            begins = source == 0
            number = count()
            if number is None or (not number and (replace or not begins)):
                return False
            if at + number > len(page):
                return False
            if replace:
                if source + number > len(payload):
                    return False
                page[at : at + number] = payload[source : source + number]
                source += number
            at += number
    return True


def check(payloads: Sequence[bytes], page_size: int = PAGE, seed: int = 1, tail: int = 0) -> None:
    """As many in step as there are, a few one by one, and each one by one."""
    for few in (0, 2, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xbzrle_module, "_FEW", few)
            check_once(payloads, page_size, seed, tail)


def check_once(payloads: Sequence[bytes], page_size: int, seed: int, tail: int) -> None:
    rng = random.Random(seed)
    window, begin = bytearray(b"head"), []
    for payload in payloads:
        window += rng.randbytes(rng.randrange(4))
        begin.append(len(window))
        window += payload
    window += rng.randbytes(tail)
    old = [rng.randbytes(page_size) for _ in payloads]
    pages = np.frombuffer(b"".join(old), np.uint8).reshape(-1, page_size).copy()
    length = np.array([len(p) for p in payloads])
    legal = apply_deltas(memoryview(bytes(window)), np.array(begin), length, pages)
    for i, payload in enumerate(payloads):
        want = bytearray(old[i])
        assert legal[i] == decode(payload, want), payload[:40].hex()
        if legal[i]:
            assert pages[i].tobytes() == want


tokens = st.lists(
    st.tuples(st.integers(0, 300) | st.integers(1, 6), st.integers(1, 300) | st.integers(1, 6)),
    min_size=1,
    max_size=60,
)


def payload_of(parts: Sequence[tuple[int, int]], seed: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(uleb14(same) + uleb14(new) + rng.randbytes(new) for same, new in parts)


@settings(deadline=None, max_examples=examples(150))
@given(st.lists(tokens, min_size=1, max_size=12), st.integers(0, 1 << 32), st.integers(0, 5))
def test_any_tokens(parts: list[list[tuple[int, int]]], seed: int, tail: int) -> None:
    """Legal or not: zero counts, beyond the page."""
    check([payload_of(p, seed) for p in parts], seed=seed, tail=tail)


@settings(deadline=None, max_examples=examples(150))
@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20), st.integers(0, 5))
def test_any_bytes(payloads: list[bytes], tail: int) -> None:
    check(payloads, 256, tail=tail)


@settings(deadline=None, max_examples=examples(60))
@given(tokens, st.data())
def test_cut_and_changed(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    payload = bytearray(payload_of(parts, 1))
    cut = data.draw(st.integers(1, len(payload)))
    at = data.draw(st.integers(0, len(payload) - 1))
    changed = payload.copy()
    changed[at] ^= data.draw(st.integers(1, 255))
    check([bytes(payload[:cut]), bytes(changed), bytes(payload)])


@pytest.mark.parametrize("replaced", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 23, 24, 25, 127, 128, 1000])
@pytest.mark.parametrize("same", [1, 2, 127, 128])
def test_lengths(same: int, replaced: int) -> None:
    count = PAGE // (same + replaced)
    whole = payload_of([(same, replaced)] * count, 5)
    check([whole, whole[: len(whole) // 2], whole + b"\1\1x", payload_of([(same, replaced)], 6)])


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_pages_in_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xbzrle_module, "PAGES_AT_ONCE", at_once)
    rng = random.Random(at_once)
    payloads = []
    for i in range(40):
        old = rng.randbytes(PAGE)
        new = bytearray(old)
        for _ in range(rng.randrange(1, 3 * i + 2)):
            new[rng.randrange(PAGE)] ^= 0xFF
        payloads.append(xbzrle_encode(old, bytes(new)))
    check(payloads)


def test_nothing() -> None:
    none = np.zeros(0, np.int64)
    assert not len(apply_deltas(memoryview(b""), none, none, np.zeros((0, PAGE), np.uint8)))


def test_a_few_long_payloads_are_not_walked_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step costs as much for two pages as for a hundred; most PARTs of a small guest are so."""
    walked: list[int] = []
    stride = xbzrle_module._stride

    def counting(
        packed: np.ndarray, rows: list[np.ndarray], move: xbzrle_module._Mover
    ) -> np.ndarray:
        walked.append(len(rows[0]))
        return stride(packed, rows, move)

    monkeypatch.setattr(xbzrle_module, "_stride", counting)
    payloads = [b"\5\3abc"] * 100 + [b"\2\1x" * 500] * 2
    window = b"".join(payloads)
    length = np.array([len(p) for p in payloads])
    pages = np.zeros((len(payloads), PAGE), np.uint8)
    assert apply_deltas(memoryview(window), np.cumsum(length) - length, length, pages).all()
    assert walked == []
    assert bytes(pages[50, :10]) == b"\0\0\0\0\0abc\0\0"
    assert bytes(pages[101, :1500]) == b"\0\0x" * 500


# -- lengths, and the cache ----------------------------------------------------------------------


def encoded_length(old: bytes, new: bytes) -> int:
    """QEMU v7.2.0 migration/xbzrle.c xbzrle_encode_buffer(), with its checks in its order."""
    out = at = 0
    size = len(new)
    while at < size:
        if out + 2 > size:
            return -1
        same = at
        while at < size and old[at] == new[at]:
            at += 1
        if at - same == size:
            return 0
        if at == size:
            return out
        out += len(uleb14(at - same))
        literal = at
        if out + 2 > size:
            return -1
        while at < size and old[at] != new[at]:
            at += 1
        out += len(uleb14(at - literal))
        if out + at - literal > size:
            return -1
        out += at - literal
    return out


def edited(rng: random.Random, old: bytes) -> bytes:
    """A page with changes of one of many looks, up to all of it."""
    new = bytearray(old)
    kind = rng.randrange(6)
    if kind == 0:
        return old
    if kind == 1:
        return bytes(b ^ 0xFF for b in old)
    if kind == 2:
        # Every so many bytes: the payload is about as long as the page.
        for at in range(rng.randrange(3), len(new), rng.choice((2, 3, 4, 5))):
            new[at] ^= 1
        for at in range(rng.randrange(len(new)), rng.randrange(len(new) + 1)):
            new[at] = old[at]
        return bytes(new)
    for _ in range(rng.randrange(1, 40)):
        begin = rng.choice((0, len(new) - 1, rng.randrange(len(new))))
        for at in range(begin, min(len(new), begin + rng.choice((1, 2, 8, 127, 128, 129, 2000)))):
            new[at] ^= 1
    return bytes(new)


@pytest.mark.parametrize("size", [1024, 4096])
def test_lengths_of_an_encoder(size: int) -> None:
    rng = random.Random(size)
    old = [rng.randbytes(size) for _ in range(300)]
    new = [edited(rng, page) for page in old]
    # Payloads as long as a page, and a little more or less; ended by bytes that differ or do not.
    for literal in range(size - 8, size + 1):
        for at in (0, 1, 3):
            page = bytearray(old[0])
            for i in range(at, min(size, at + literal)):
                page[i] ^= 1
            old.append(old[0])
            new.append(bytes(page))
    arrays = [np.frombuffer(b"".join(p), np.uint8).reshape(-1, size) for p in (old, new)]
    found = delta_lengths(*arrays).tolist()
    want = [encoded_length(a, b) for a, b in zip(old, new, strict=True)]
    assert found == want
    assert {-1, 0} < set(want)
    assert size in want
    # What is not too long is what the writer of the tests makes, too.
    for a, b, length in zip(old, new, want, strict=True):
        if length > 0:
            assert len(xbzrle_encode(a, b)) == length


def test_no_lengths() -> None:
    assert not len(delta_lengths(*np.zeros((2, 0, 4096), np.uint8)))


def cached(slots: int, sent: list[tuple[int, int]]) -> list[bool]:
    """QEMU v7.2.0 migration/page_cache.c cache_is_cached(), cache_insert(), page by page."""
    items: dict[int, tuple[int, int]] = {}
    found = []
    for page, age in sent:
        held = items.get(page % slots)
        found.append(held is not None and held[0] == page)
        if held is None or held[0] == page or held[1] + 2 <= age:
            items[page % slots] = page, age
    return found


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_cache(slots: int) -> None:
    rng = random.Random(slots)
    sent = [
        (rng.choice((5, rng.randrange(100))), age)
        for age in range(2, 9)
        for _ in range(rng.randrange(80))
    ]
    cache, found, at = DeltaCache(slots), [], 0
    while at < len(sent):
        part = sent[at : at + rng.randrange(1, 50)]
        at += len(part)
        page, rounds = np.array(part).T
        found += cache.send(page, rounds).tolist()
    assert found == cached(slots, sent)
    assert True in found
    assert False in found
