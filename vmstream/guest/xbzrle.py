"""XBZRLE: pages as differences from what they were, applied to many pages at once.

QEMU v10.1.0 migration/xbzrle.c xbzrle_decode_buffer(): a payload is a list of tokens, each the
bytes to leave as they are, the bytes to replace, and those bytes. Counts take one byte, or two
from 128 on. All payloads are walked in step, a token of each at a time, so the work per token is a
few numpy calls for thousands of pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Numbers = NDArray[np.int64]

# Pages walked together. The bytes that a step looks at, a cache line or two for each, are to fit
# the second-level cache.
PAGES_AT_ONCE = 2048

# So few payloads are walked one by one: a token takes half a microsecond, a step of all some 40.
_FEW = 64

# What lies between two pages, or payloads, that are walked together: lines at the same place of
# each 4096 bytes would share one set of the cache. Measured: 2 to 5 times as slow without.
_APART = 64


def apply_deltas(
    window: memoryview, begin: _Numbers, length: _Numbers, pages: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Apply XBZRLE payloads to pages.

    Args:
        window: Where the payloads are.
        begin: Of the token list of each, in `window`, int64 (n,).
        length: Bytes of it, int64 (n,).
        pages: What the pages were, uint8 (n, page size), contiguous. Changed in place.

    Returns:
        Which payloads obey QEMU's rules, bool (n,). The others have changed their pages up to
        the token that does not, as in QEMU.
    """
    valid = np.ones(len(begin), np.bool_)
    size = pages.shape[1]
    # Of similar length, so that few are left over at the end of a walk.
    order = np.argsort(length, kind="stable")
    for at in range(0, len(order), PAGES_AT_ONCE):
        rows = order[at : at + PAGES_AT_ONCE]
        apart = np.empty((len(rows), size + _APART), np.uint8)
        apart[:, :size] = pages[rows]
        valid[rows] = _walk(*_pack(window, begin[rows], length[rows]), apart, size)
        pages[rows] = apart[:, :size]
    return valid


# The payloads apart from each other, and where each begins and ends there.
def _pack(
    window: memoryview, begin: _Numbers, length: _Numbers
) -> tuple[NDArray[np.uint8], _Numbers, _Numbers]:
    room = length + _APART
    place = np.cumsum(room) - room
    packed = np.zeros(int(room.sum()), np.uint8)
    target = packed.data
    for at, first, count in zip(place.tolist(), begin.tolist(), length.tolist(), strict=True):
        target[at : at + count] = window[first : first + count]
    return packed, place, place + length


# Apply the payloads to the pages, each in its row; return which are legal.
def _walk(
    packed: NDArray[np.uint8],
    place: _Numbers,
    end: _Numbers,
    pages: NDArray[np.uint8],
    size: int,
) -> NDArray[np.bool_]:
    move = _Mover(packed, pages.reshape(-1))
    valid = np.ones(len(pages), np.bool_)
    # Of the payloads still walked: which, where in `packed`, its end, where in the pages, its end.
    which = np.arange(len(pages))
    to = which * pages.shape[1]
    walked = [which, place, end, to, to + size]
    first = True
    while len(walked[0]) > _FEW:
        which, place, end, to, stop = walked
        same, source, legal = _count(packed, place)
        replaced, source, legal_too = _count(packed, source)
        to = to + same
        place = source + replaced
        after = to + replaced
        # A literal is a byte at least, so a count that is cut off is beyond the end, too.
        fits = legal & legal_too & (place <= end) & (after <= stop) & (replaced > 0)
        if not first:
            fits &= same > 0
        first = False
        if not fits.all():
            valid[which[~fits]] = False
            which, place, end, after, stop, source, to, replaced = (
                c[fits] for c in (which, place, end, after, stop, source, to, replaced)
            )
        if len(which):
            move(source, to, replaced)
        walked = [which, place, end, after, stop]
        going = place < end
        if not going.all():
            walked = [c[going] for c in walked]
            if len(walked[0]) <= _FEW:
                break
        zero = _stride(packed, walked, move)
        if zero.any():
            valid[walked[0][zero]] = False
            walked = [c[~zero] for c in walked]
    buffers = packed.data, pages.reshape(-1).data
    for row, *where in zip(*(c.tolist() for c in walked), strict=True):
        valid[row] = _walk_one(*buffers, *where, first=first)
    return valid


# Apply the rest of one payload, from `place` up to `end`; return whether it is legal.
def _walk_one(
    packed: memoryview, pages: memoryview, place: int, end: int, to: int, stop: int, *, first: bool
) -> bool:
    while place < end:
        same, replaced = packed[place], packed[place + 1]
        place += 1
        if same > 127:
            if replaced > 127:
                return False
            same, replaced = same & 127 | replaced << 7, packed[place + 1]
            place += 1
        place += 1
        if replaced > 127:
            high = packed[place]
            if high > 127:
                return False
            replaced = replaced & 127 | high << 7
            place += 1
        to += same
        behind, after = place + replaced, to + replaced
        if not replaced or behind > end or after > stop or not (same or first):
            return False
        pages[to:after] = packed[place:behind]
        place, to, first = behind, after, False
    return True


# Walk on while counts take one byte and are so small that no end can be near: then nothing of a
# token needs a look but that it is not 0. Returns which had one that is. Most steps of payloads
# with many tokens are taken here, at a quarter of the cost.
def _stride(packed: NDArray[np.uint8], walked: list[_Numbers], move: _Mover) -> NDArray[np.bool_]:
    which, place, end, to, stop = walked
    least = np.ones(len(which), np.uint8)
    steps, most = 0, 0
    while len(which):
        same, replaced = packed[place], packed[place + 1]
        if not steps or (same | replaced).max() > most:
            most = int((same | replaced).max())
            if most > 127:
                break
            # At least a byte is left of each, for the careful step to come.
            left, room = int((end - place).min()) - 1, int((stop - to).min())
            steps = min(left // (2 + most), room // (2 * most + 1))
            if steps <= 0:
                break
        steps -= 1
        np.minimum(least, same, out=least)
        np.minimum(least, replaced, out=least)
        to += same
        place += 2
        move(place, to, replaced)
        place += replaced
        to += replaced
    zero: NDArray[np.bool_] = least == 0
    return zero


# A count at each place: its value, the place behind it, whether it is legal.
def _count(
    packed: NDArray[np.uint8], place: _Numbers
) -> tuple[_Numbers, _Numbers, NDArray[np.bool_]]:
    low, high = packed[place].astype(np.int64), packed[place + 1].astype(np.int64)
    two = low >= 0x80
    return np.where(two, low & 0x7F | high << 7, low), place + 1 + two, ~two | (high < 0x80)


# The numbers of a kind that start at each byte of a buffer.
def _everywhere(data: NDArray[np.uint8], kind: str) -> NDArray[Any]:
    size = np.dtype(kind).itemsize
    return np.ndarray((max(0, len(data) - size + 1),), kind, data.data, 0, (1,))


class _Mover:
    """Copy many short stretches from one buffer to another."""

    def __init__(self, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        self._views = [
            (np.dtype(kind).itemsize, _everywhere(source, kind), _everywhere(target, kind))
            for kind in ("<u8", "<u4", "<u2", "u1")
        ]

    def __call__(self, source: _Numbers, to: _Numbers, count: _Numbers | NDArray[np.uint8]) -> None:
        least, most = int(count.min()), int(count.max())
        if most >= 16:
            long = count >= 16
            self._blocks(source[long], to[long], count[long].astype(np.int64))
            source, to, count = source[~long], to[~long], count[~long]
        if most < 4:
            # Single bytes need not be aligned, which is worth more than fewer moves.
            _, origin, target = self._views[-1]
            for i in range(most):
                if i == least:
                    more = count > i
                    source, to, count = source[more], to[more], count[more]
                    least = int(count.min())
                target[to + i if i else to] = origin[source + i if i else source]
            return
        # By the largest number that fits, and once more up to the end: they may overlap.
        for size, origin, target in self._views:
            if least >= size and most < 2 * size:
                mine: Any = slice(None)
            else:
                mine = np.flatnonzero((count >= size) & (count < 2 * size))
                if not len(mine):
                    continue
            at, where = source[mine], to[mine]
            target[where] = origin[at]
            if size > 1:
                rest = count[mine] - size
                target[where + rest] = origin[at + rest]

    # Stretches of 16 bytes or more, by eights, of which the last ends where the stretch does.
    def _blocks(self, source: _Numbers, to: _Numbers, count: _Numbers) -> None:
        blocks = -(-count // 8)
        step = np.arange(int(blocks.sum())) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        step *= 8
        np.minimum(step, np.repeat(count - 8, blocks), out=step)
        _, origin, target = self._views[0]
        target[np.repeat(to, blocks) + step] = origin[np.repeat(source, blocks) + step]


def delta_lengths(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> _Numbers:
    """Return how long the payloads are that QEMU would make of pages.

    A payload has a token for each run of bytes that differ: how many stay as they are in front
    of it, how many it has, and those. What stays as it is behind the last one is not said.

    Args:
        old: What the pages were, uint8 (n, page size).
        new: What they are, likewise.

    Returns:
        int64 (n,), bytes; 0 if nothing has changed, -1 where the payload would be longer than the
        page (QEMU v10.1.0 migration/xbzrle.c xbzrle_encode_buffer()).

    Memory:
        Two bytes for each of a page, and 16 for each run.
    """
    count, size = new.shape
    # A column in front and one behind, so that each run has an edge where it begins and ends.
    differs = np.zeros((count, size + 2), np.bool_)
    np.not_equal(old, new, out=differs[:, 1:-1])
    edges = np.flatnonzero(differs[:, 1:] != differs[:, :-1])
    begin, end = edges[::2], edges[1::2]
    page = begin // (size + 1)
    first = np.ones(len(page), np.bool_)
    first[1:] = page[1:] != page[:-1]
    before = np.empty_like(begin)
    before[1:] = end[:-1]
    before[first] = page[first] * (size + 1)
    same, replaced = begin - before, end - begin
    # Counts of 128 and more take a second byte.
    token = replaced + 2 + (same >= 0x80) + (replaced >= 0x80)
    length = np.bincount(page, token, count).astype(np.int64)
    # The encoder wants room for two more bytes as long as it is not at the end of the page.
    room = np.where(differs[:, size], length, length + 2)
    length[(room > size) & (length > 0)] = -1
    return length


class DeltaCache:
    """Which pages QEMU's XBZRLE cache has: one for each slot, by address.

    QEMU v10.1.0 migration/page_cache.c. What a page in it has is what was sent of it last, so
    the cache is all places and no pages here.

    Args:
        slots: Pages that it has room for, a power of two.

    Memory:
        16 bytes a slot that is used.
    """

    # Rounds for which a page that was used is not replaced by another
    # (page_cache.c CACHED_PAGE_LIFETIME).
    _LIFETIME = 2

    def __init__(self, slots: int) -> None:
        self._mask = slots - 1
        # Pages from 1 on, 0 for none; and the round they were used in last.
        self._pages = np.zeros(slots, np.int64)
        self._rounds = np.zeros(slots, np.int64)

    def send(self, page: _Numbers, rounds: _Numbers) -> NDArray[np.bool_]:
        """Look up pages that are sent one after the other; those that are not there are put in.

        Args:
            page: Numbers by address, int64 (n,).
            rounds: In which each is sent, int64 (n,).

        Returns:
            Which were there, bool (n,).
        """
        slot, hits = page & self._mask, np.zeros(len(page), np.bool_)
        left = np.arange(len(page))
        while len(left):
            # Of each slot the first of those that are left: these do not meddle with each other.
            _, turn = np.unique(slot[left], return_index=True)
            rows = left[turn]
            at, number, now = slot[rows], page[rows] + 1, rounds[rows]
            held = self._pages[at]
            hits[rows] = held == number
            taken = (held == 0) | (held == number) | (self._rounds[at] + self._LIFETIME <= now)
            self._pages[at[taken]] = number[taken]
            self._rounds[at[taken]] = now[taken]
            left = np.delete(left, turn)
        return hits
