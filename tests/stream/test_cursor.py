"""The place in the input."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

from vmstream.errors import TruncatedError
from vmstream.stream.cursor import NEED_DATA, Cursor, NeedData, SansIO, Steps
from vmstream.stream.events import Gap, Padding

DATA = bytes(range(100))
T = TypeVar("T")


def at(offset: int, stop: int) -> Cursor:
    cursor = Cursor()
    cursor.offset, cursor.base = offset, offset
    cursor.view, cursor.at_end = memoryview(DATA[offset:stop]), stop == len(DATA)
    return cursor


def result(steps: Generator[NeedData, None, T], cursor: Cursor, grow: int) -> tuple[T, list[int]]:
    """Run a reader, giving `grow` bytes more each time it asks; also what it asked for."""
    asked = []
    while True:
        try:
            assert next(steps) is NEED_DATA
        except StopIteration as stop:
            return stop.value, asked
        asked.append(cursor.need)
        end = min(len(DATA), cursor.base + len(cursor.view) + grow)
        cursor.view = memoryview(DATA[cursor.offset : end])
        cursor.base, cursor.at_end = cursor.offset, end == len(DATA)


def test_want_asks_until_it_is_there() -> None:
    cursor = at(10, 13)
    assert result(cursor.want(3), cursor, 1) == (3, [])
    assert result(cursor.want(5), cursor, 1) == (5, [5, 5])
    assert bytes(cursor.rest()) == DATA[10:15]


def test_want_gives_what_there_is_at_the_end() -> None:
    cursor = at(90, 95)
    assert result(cursor.want(50), cursor, 3) == (10, [50, 50])


def test_have_says_what_is_missing() -> None:
    cursor = at(90, 100)
    with pytest.raises(TruncatedError) as caught:
        result(cursor.have(14, "a thing"), cursor, 0)
    assert caught.value.offset == 100
    assert caught.value.context == "a thing"
    assert "4 bytes more" in str(caught.value)


def test_take_moves() -> None:
    cursor = at(10, 30)
    assert cursor.take(4) == (10, 14)
    assert (cursor.offset, cursor.place, cursor.left()) == (14, 4, 16)
    assert bytes(cursor.rest()) == DATA[14:30]
    assert cursor.ends("x").offset == 30


class Halves(SansIO):
    """Takes ten bytes, and leaves the rest."""

    def _stream(self) -> Steps:
        yield from self._in.have(10, "ten")
        yield Padding(*self._in.take(10))
        yield from self._drain("the rest")


@pytest.mark.parametrize("window", [1, 7, 100])
def test_a_decoder(window: int) -> None:
    """It asks for what it needs, and the rest is one gap, however it is cut."""
    decoder = Halves(Cursor(), strict=False)
    events = []
    while (event := decoder.next_event()) is not None:
        if event is NEED_DATA:
            begin = decoder.offset
            stop = begin + max(window, decoder.need)
            decoder.supply(memoryview(DATA)[begin:stop], begin, stop >= len(DATA))
        else:
            events.append(event)
    assert events == [Padding(0, 10), Gap(10, len(DATA), "the rest")]


def test_lost_bytes_are_left_out() -> None:
    cursor = at(10, 30)
    cursor.lost = 40
    assert cursor.skip_lost() == (10, 40)
    assert (cursor.offset, cursor.left(), cursor.at_end, cursor.lost) == (40, 0, False, None)
