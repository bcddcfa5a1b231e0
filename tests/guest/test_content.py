"""Classes and entropy of pages, against counts by Python."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from tests.strategies import BODY_KINDS, lookalikes, page_body
from vmstream.guest.content import (
    CLASSES,
    HIGH_FROM,
    MEDIUM_FROM,
    classify,
    entropy,
    filled,
    nonzero,
)


def bits_of(page: bytes) -> float:
    shares = [n / len(page) for n in Counter(page).values()]
    return abs(-sum(p * math.log2(p) for p in shares))


def class_of(page: bytes) -> str:
    if not any(page):
        return "zero"
    if page == page[:8] * (len(page) // 8):
        return "fill"
    bits = bits_of(page)
    return "low" if bits < MEDIUM_FROM else "medium" if bits < HIGH_FROM else "high"


def pages_of(size: int) -> list[bytes]:
    rng = random.Random(size)
    looks = lookalikes(["mem"], 1, size)
    pages = [
        page_body(k, rng.randrange(1 << 30), size, looks)
        for k in BODY_KINDS * (2 if size > 4096 else 8)
    ]
    # At the edges of what is looked at first, and of the page.
    for at in (0, 63, 64, size - 1):
        for fill in (bytes(8), b"\xcc" * 8, b"pattern!"):
            page = bytearray(fill * (size // 8))
            page[at] ^= 1
            pages += [fill * (size // 8), bytes(page)]
    # So many values, each equally often: 3, 4 and 8 bits exactly; and text.
    pages += [bytes(range(n)) * (size // n) for n in (8, 16, 256)]
    pages.append((b"the quick brown fox jumps over the lazy dog; " * size)[:size])
    pages.append(bytes(rng.choices(range(200), k=size)))
    return pages


@pytest.mark.parametrize("size", [1024, 4096, 65536])
def test_classes(size: int) -> None:
    pages = pages_of(size)
    array = np.frombuffer(b"".join(pages), np.uint8).reshape(-1, size)
    kinds, bits = classify(array)
    assert [CLASSES[k] for k in kinds.tolist()] == [class_of(p) for p in pages]
    assert set(kinds.tolist()) == set(range(len(CLASSES)))
    np.testing.assert_allclose(bits, [bits_of(p) for p in pages], atol=1e-9)
    assert bits.min() >= 0
    assert nonzero(array).tolist() == [any(p) for p in pages]
    assert filled(array).tolist() == [p == p[:8] * (size // 8) for p in pages]


def test_more_pages_than_are_counted_at_a_time() -> None:
    pages = np.random.default_rng(1).integers(0, 256, (700, 1024), np.uint8)
    # No value spills over to the page beside it.
    pages[::3] = 0
    pages[1::3] = 255
    bits = entropy(pages)
    assert not bits[::3].any()
    assert not bits[1::3].any()
    assert bits[2::3] == pytest.approx([bits_of(p.tobytes()) for p in pages[2::3]])


def test_no_pages() -> None:
    kinds, bits = classify(np.zeros((0, 4096), np.uint8))
    assert len(kinds) == len(bits) == 0
