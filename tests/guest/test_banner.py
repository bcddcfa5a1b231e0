"""The banner of a Linux kernel in memory, and which of several."""

from __future__ import annotations

from tests.guest.test_vmcoreinfo import BASE, Memory
from vmstream.guest.banner import Banners

TEXT = "Linux version {} (root@host) (gcc 12) #1 SMP PREEMPT Debian 1 (2026-11-16)"


def banners(*texts: bytes) -> Banners:
    memory = Memory(bytearray(b"\0".join((b"", *texts, b""))))
    found = Banners()
    at = memory.data.find(b"Linux version ")
    while at >= 0:
        found.add(memory, at)
        at = memory.data.find(b"Linux version ", at + 1)
    return found


def test_the_one_of_the_release_then_whole_ones() -> None:
    old, new = TEXT.format("5.10.0-1-amd64"), TEXT.format("6.1.0-9-amd64")
    found = banners(
        b"Linux version %s (%s)", b"Linux version 6.1.0-9", b"Linux version 6.%d (x) #1 SMP",
        *[old.encode()] * 3, new.encode() + b"\n", new.encode() + b" ",
    )  # fmt: skip
    first, *rest = found.ranked(None)
    assert (first.text, first.release, first.count, first.whole) == (
        new, "6.1.0-9-amd64", 1, True,
    )  # fmt: skip
    assert [(b.text, b.count, b.whole) for b in rest] == [(old, 3, False), (new + " ", 1, False)]
    assert found.ranked("5.10.0-1-amd64")[0].text == old
    assert first.gpa is not None
    assert first.gpa > BASE
    assert banners(b"Linux version ").ranked(None) == []
