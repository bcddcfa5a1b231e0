"""`stats --what-if`: what the pages of a stream would have come to in another encoding.

Each encoding is given the versions of pages as they were sent, unpacked. It measures with the
codecs themselves, or, for XBZRLE, by the length that QEMU's encoder would make.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import OutputError
from vmstream.guest.index import PageIndex
from vmstream.guest.xbzrle import DeltaCache, delta_lengths
from vmstream.report.models.stats import WhatIfReport
from vmstream.stream.events import RAMBlock
from vmstream.transport.compress import PacketStream, page_codec
from vmstream.wire.constants import MULTIFD_PACKET_SIZE
from vmstream.wire.grammar import MULTIFD_PACKET
from vmstream.wire.layout import struct_of

ENCODINGS = ("zstd", "zlib", "compress", "xbzrle")

# QEMU v7.2.0 migration/migration.c DEFAULT_MIGRATE_*: all levels are 1.
_LEVEL = 1
_LEVELS = {"zstd": 20, "zlib": 9, "compress": 9}
_CACHE = 64 << 20

# Channels of multifd if nobody says otherwise, as DEFAULT_MIGRATE_MULTIFD_CHANNELS.
CHANNELS = 2

# Of a record: the word of 64 bits; behind it the fill byte of zeros, the length of a zlib page,
# or what an XBZRLE page has in front of its payload.
_WORD, _FILL, _LENGTH, _XBZRLE_HEAD = 8, 1, 4, 3

# Packets that wait for each thread.
_AHEAD = 4

_Numbers = NDArray[np.int64]
_Pages = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An encoding that was asked for.

    Attributes:
        name: One of ENCODINGS.
        value: Its level, or of XBZRLE the size of the cache, bytes.
    """

    name: str
    value: int

    @classmethod
    def read(cls, text: str, size_of: Callable[[str], int]) -> Wanted:
        """Read 'zstd', 'zstd:3', 'xbzrle:128M'.

        Args:
            text: What was given.
            size_of: Reads a size in bytes.

        Raises:
            ValueError: It is none of these.
        """
        name, colon, value = text.partition(":")
        if name not in ENCODINGS:
            raise ValueError(f"{text!r} is none of {', '.join(ENCODINGS)}")
        if name == "xbzrle":
            size = size_of(value) if colon else _CACHE
            if size <= 0 or size & (size - 1):
                raise ValueError(f"a cache of {value} is none: QEMU takes powers of two")
            return cls(name, size)
        most = _LEVELS[name]
        if colon and not (value.isdecimal() and value.isascii() and int(value) <= most):
            raise ValueError(f"{name} has no level {value!r}: 0 to {most}")
        return cls(name, int(value) if colon else _LEVEL)


@dataclass(frozen=True, slots=True, eq=False)
class Versions:
    """Versions of pages of one block, as they were sent one behind the other.

    Attributes:
        block: Index of the block.
        page: Numbers in the block, int64 (n,), no two alike.
        data: Which have other bytes than zeros, bool (n,).
        pages: Those that have, uint8 (m, page size). Not changed any more, so it may be kept.
        passes: Pass over RAM of each, from 1, int64 (n,).
        channel: Of multifd whose packet it is; `None` for records.
    """

    block: int
    page: _Numbers
    data: NDArray[np.bool_]
    pages: _Pages
    passes: _Numbers
    channel: int | None


class Encoding(ABC):
    """Counts what pages come to.

    Args:
        wanted: What was asked for.
        blocks: The block list.
        page_size: Bytes.
    """

    def __init__(self, wanted: Wanted, blocks: tuple[RAMBlock, ...], page_size: int) -> None:
        self._wanted = wanted
        self._blocks = blocks
        self._size = page_size
        self._last = -1
        self.pages = 0
        self.zeros = 0
        self.wire_bytes = 0

    def ahead(  # noqa: B027  most need nothing of what was before
        self, index: PageIndex, block: int, page: _Numbers, passes: _Numbers
    ) -> None:
        """Look at what pages are before the next versions come, which `take` is given next."""

    @abstractmethod
    def take(self, versions: Versions) -> None:
        """Take versions of pages."""

    @abstractmethod
    def finish(self, sent: int) -> WhatIfReport:
        """Return what they came to; `sent` is what they were on the wire, bytes."""

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Give up, if it was not finished."""

    # The words of records, and the name where the block is another than of the one before.
    def _heads(self, block: int, records: int) -> int:
        if not records:
            return 0
        name = 0 if block == self._last else 1 + len(self._blocks[block].idstr)
        self._last = block
        return name + _WORD * records

    def _count(self, versions: Versions) -> tuple[int, int]:
        data = len(versions.pages)
        zeros = len(versions.page) - data
        self.pages += data
        self.zeros += zeros
        return data, zeros

    def _report(self, sent: int) -> WhatIfReport:
        return WhatIfReport(
            self._wanted.name, None, None, None, self.pages, self.zeros, self.pages * self._size,
            self.wire_bytes, sent - self.wire_bytes, None, None, None, None, None, None,
        )  # fmt: skip


class Plain(Encoding):
    """Page records without any encoding."""

    def __init__(self, blocks: tuple[RAMBlock, ...], page_size: int) -> None:
        super().__init__(Wanted("plain", 0), blocks, page_size)

    def take(self, versions: Versions) -> None:
        """Take versions of pages."""
        data, zeros = self._count(versions)
        heads = self._heads(versions.block, data + zeros)
        self.wire_bytes += heads + data * self._size + zeros * _FILL

    def finish(self, sent: int) -> WhatIfReport:
        """Return what they came to."""
        return self._report(sent)


class Compressed(Encoding):
    """Pages through a codec, on threads.

    'zstd' and 'zlib' are those of multifd: packets of pages with data, of one block and pass, go
    to channels in turn, each of which is one stream; pages of zeros are records of the main
    channel, as up to QEMU 8.2. Packets of a stream that is multifd stay as they are, on theirs.
    'compress' is the capability of QEMU up to 8.2: each page is a stream of zlib, in a record.

    Args:
        wanted: What was asked for.
        blocks: The block list.
        page_size: Bytes.
        channels: How many.

    Memory:
        `_AHEAD` packets of 512 KiB a channel, and what the pieces that they are of have besides.
    """

    def __init__(
        self, wanted: Wanted, blocks: tuple[RAMBlock, ...], page_size: int, channels: int
    ) -> None:
        super().__init__(wanted, blocks, page_size)
        self._packets = wanted.name != "compress"
        self._room = max(1, MULTIFD_PACKET_SIZE // page_size)
        # What a packet has in front of its payload.
        self._head = struct_of(MULTIFD_PACKET).size + 8 * self._room
        # Pages of their own are given to all CPUs.
        count = channels if self._packets else len(os.sched_getaffinity(0))
        self._lanes = [_Lane(self._packer()) for _ in range(count)]
        self._parts: list[_Pages] = []
        self._waiting = 0
        self._of = (-1, -1)
        self._sent = 0

    def _packer(self) -> Callable[[Sequence[memoryview]], int]:
        name, level = self._wanted.name, self._wanted.value
        if self._packets:
            return PacketStream(name, level).add
        codec, size = page_codec("zlib", self._size, level), self._size

        def alone(parts: Sequence[memoryview]) -> int:
            return sum(
                len(codec(p[at : at + size])) for p in parts for at in range(0, len(p), size)
            )

        return alone

    def take(self, versions: Versions) -> None:
        """Take versions of pages."""
        data, zeros = self._count(versions)
        if self._packets and versions.channel is not None:
            self._send(versions.channel % len(self._lanes), [versions.pages] if data else [])
            return
        pages, rows = versions.pages, versions.passes[versions.data]
        self.wire_bytes += zeros * _FILL
        if not self._packets:
            if versions.block != self._last and versions.data[0]:
                # QEMU v7.2.0 migration/ram.c save_compress_page() leaves the first one as it is.
                self.wire_bytes += self._size
                pages, rows = pages[1:], rows[1:]
            self.wire_bytes += len(pages) * _LENGTH
        self.wire_bytes += self._heads(versions.block, zeros if self._packets else data + zeros)
        self._gather(versions.block, pages, rows)

    def _gather(self, block: int, pages: _Pages, rows: _Numbers) -> None:
        # A packet is of one block, and ends with the pass.
        cuts = (np.flatnonzero(np.diff(rows)) + 1).tolist()
        for first, stop in pairwise([0, *cuts, len(rows)] if len(rows) else []):
            if (of := (block, int(rows[first]))) != self._of:
                self._flush()
                self._of = of
            while first < stop:
                count = min(stop - first, self._room - self._waiting)
                self._parts.append(pages[first : first + count])
                self._waiting += count
                first += count
                if self._waiting == self._room:
                    self._flush()

    def _flush(self) -> None:
        if self._parts:
            self._send(self._sent % len(self._lanes), self._parts)
        self._parts, self._waiting = [], 0

    def _send(self, lane: int, parts: list[_Pages]) -> None:
        self._sent += 1
        if parts:
            self._lanes[lane].give([p.reshape(-1).data for p in parts])

    def finish(self, sent: int) -> WhatIfReport:
        """Return what they came to. Raises what the codec did."""
        self._flush()
        for lane in self._lanes:
            lane.finish()
        self.wire_bytes += sum(lane.size for lane in self._lanes)
        if self._packets:
            self.wire_bytes += self._sent * self._head
        return replace(
            self._report(sent),
            level=self._wanted.value,
            cpu_seconds=round(sum(lane.seconds for lane in self._lanes), 3),
            channels=len(self._lanes) if self._packets else None,
            packets=self._sent if self._packets else None,
        )

    def close(self) -> None:
        """End the threads; what they did not begin is left."""
        for lane in self._lanes:
            lane.close()


class _Lane:
    """A thread that compresses, in the order that it was given."""

    def __init__(self, work: Callable[[Sequence[memoryview]], int]) -> None:
        self.size = 0
        self.seconds = 0.0
        self._work = work
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[tuple[int, float]]] = deque()

    def give(self, parts: Sequence[memoryview]) -> None:
        self._waiting.append(self._pool.submit(self._measure, parts))
        self._take(_AHEAD)

    def finish(self) -> None:
        self._take(0)
        self._pool.shutdown()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _take(self, most: int) -> None:
        while len(self._waiting) > most:
            size, seconds = self._waiting.popleft().result()
            self.size += size
            self.seconds += seconds

    # Of this thread, so that others that take the CPU do not count.
    def _measure(self, parts: Sequence[memoryview]) -> tuple[int, float]:
        begin = time.thread_time()
        return self._work(parts), time.thread_time() - begin


class XBZRLE(Encoding):
    """Differences to what was sent before, of pages that are in the cache.

    QEMU v10.1.0 migration/ram.c save_xbzrle_page(): the cache is used from the second pass on, a
    page that is not in it is put in and sent as it is, one that has not changed is not sent.
    Addresses in the cache are those of QEMU's RAM, which are not on the wire: the blocks are
    taken to stand in the order of the list, each aligned as QEMU does.

    Args:
        wanted: What was asked for.
        blocks: The block list.
        page_size: Bytes.

    Raises:
        OutputError: The cache is smaller than a page.
    """

    def __init__(self, wanted: Wanted, blocks: tuple[RAMBlock, ...], page_size: int) -> None:
        super().__init__(wanted, blocks, page_size)
        slots = wanted.value // page_size
        if not slots:
            raise OutputError(f"a cache of {wanted.value} bytes has no room for a page")
        self._cache = DeltaCache(slots)
        self._bases, base = [], 0
        for block in blocks:
            self._bases.append(base)
            # QEMU v10.1.0 system/physmem.c find_ram_offset(): to a word of the dirty bitmap.
            base += -(-block.used_length // (64 * page_size)) * 64
        self._hits = np.zeros(0, np.bool_)
        self._before = np.zeros((0, page_size), np.uint8)
        self._missed = self._overflowed = self._unchanged = self._encoded = 0

    def ahead(self, index: PageIndex, block: int, page: _Numbers, passes: _Numbers) -> None:
        """Look up pages in the cache, and read what those were that are there."""
        self._hits = np.zeros(len(page), np.bool_)
        later = passes > 1
        self._hits[later] = self._cache.send(page[later] + self._bases[block], passes[later])
        self._before = np.empty((int(np.count_nonzero(self._hits)), self._size), np.uint8)
        if len(self._before):
            index.read_pages(block, page[self._hits], self._before)

    def take(self, versions: Versions) -> None:
        """Take versions of pages."""
        data, zeros = self._count(versions)
        hits = self._hits & versions.data
        lengths = delta_lengths(
            self._before[versions.data[self._hits]], versions.pages[hits[versions.data]]
        )
        unchanged = int(np.count_nonzero(lengths == 0))
        encoded = lengths[lengths > 0]
        self._overflowed += int(np.count_nonzero(lengths < 0))
        self._unchanged += unchanged
        self._encoded += len(encoded)
        self._missed += int(np.count_nonzero((versions.passes > 1) & versions.data & ~hits))
        plain = data - unchanged - len(encoded)
        self.wire_bytes += self._heads(versions.block, data + zeros - unchanged)
        self.wire_bytes += zeros * _FILL + plain * self._size
        self.wire_bytes += len(encoded) * _XBZRLE_HEAD + int(encoded.sum())

    def finish(self, sent: int) -> WhatIfReport:
        """Return what they came to."""
        return replace(
            self._report(sent),
            cache_size=self._wanted.value,
            deltas=self._encoded,
            unchanged=self._unchanged,
            overflows=self._overflowed,
            misses=self._missed,
        )


def encodings(
    wanted: Sequence[Wanted], blocks: tuple[RAMBlock, ...], page_size: int, channels: int
) -> list[Encoding]:
    """Make what was asked for, behind `Plain`.

    Raises:
        OutputError: A cache is smaller than a page.
    """
    made: list[Encoding] = [Plain(blocks, page_size)]
    for one in wanted:
        if one.name == "xbzrle":
            made.append(XBZRLE(one, blocks, page_size))
        else:
            made.append(Compressed(one, blocks, page_size, channels))
    return made
