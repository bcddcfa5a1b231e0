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
from vmstream.guest.xbzrle import apply_deltas

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
