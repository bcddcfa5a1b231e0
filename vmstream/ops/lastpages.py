"""Memory as a stream leaves it, page by page in the order of the blocks: what is written anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmstream.guest.coverage import BlockCoverage
from vmstream.ops.memory import GuestMemory
from vmstream.ops.pipeline import Progress
from vmstream.stream.events import RAMBlock
from vmstream.stream.writer import StreamWriter

# Bytes that are given at a time, and what of them is looked at for pages without data.
_AT_ONCE = 1 << 20


class Pages(Protocol):
    """Where writers of RAM take it from.

    Attributes:
        blocks: The block list.
        page_size: Target page size, bytes.
    """

    @property
    def blocks(self) -> tuple[RAMBlock, ...]:
        """The block list."""
        ...

    @property
    def page_size(self) -> int:
        """Target page size, bytes."""
        ...

    def pages(self, block: int) -> Iterator[tuple[int, NDArray[np.uint8] | int]]:
        """Yield the pages of a block, ascending; what is not given was never sent.

        Yields:
            Offset in the block, bytes, and pages from there on, uint8 (n, page size), borrowed
            until the next are asked for; or how many pages of zeros. Pages with data can be zeros,
            too. What stands behind the end of a block in its last page is zeros.
        """
        ...


class LastPages:
    """The last version of each page that a stream has sent.

    Args:
        memory: Its memory.
        coverage: Which pages were sent, of each block; of all if `None`.
        progress: Called with (bytes of RAM that are done, those there are).

    Attributes:
        changed: By block, pages that are other than in the stream, by number, and what makes them.

    Raises:
        StreamError: The input is not what it was, when pages are asked for.

    Memory:
        1 MiB.
    """

    def __init__(
        self,
        memory: GuestMemory,
        coverage: list[BlockCoverage] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._memory = memory
        self._progress = progress
        self._coverage = coverage
        self._step = max(1, _AT_ONCE // memory.page_size)
        self._buffer = np.empty((self._step, memory.page_size), np.uint8)
        self.changed: Mapping[int, Mapping[int, Callable[[], bytes]]] = {}

    @property
    def blocks(self) -> tuple[RAMBlock, ...]:
        """The block list."""
        return self._memory.blocks

    @property
    def page_size(self) -> int:
        """Target page size, bytes."""
        return self._memory.page_size

    def pages(self, block: int) -> Iterator[tuple[int, NDArray[np.uint8] | int]]:
        """Yield the pages of a block, as `Pages` says; of shared memory there are none."""
        if block in self._memory.elsewhere:
            return
        size, lengths = self.page_size, [b.used_length for b in self.blocks]
        before, total = sum(lengths[:block]), sum(lengths)
        zeros, zeros_from = 0, 0
        for first, stop in self._sent(block):
            if self._progress is not None:
                self._progress(before + first * size, total)
            if zeros and zeros_from + zeros != first:
                yield zeros_from * size, zeros
                zeros = 0
            got = self._read(block, first, stop)
            if got is None:
                zeros_from = zeros_from if zeros else first
                zeros += stop - first
                continue
            if zeros:
                yield zeros_from * size, zeros
                zeros = 0
            yield first * size, got
        if zeros:
            yield zeros_from * size, zeros

    # Runs of pages that were sent, of a MiB at the most, by number.
    def _sent(self, block: int) -> Iterator[tuple[int, int]]:
        count = -(-self.blocks[block].used_length // self.page_size)
        for first in range(0, count, self._step):
            stop = min(first + self._step, count)
            if self._coverage is None:
                yield first, stop
                continue
            sent = self._coverage[block].sent.members(first, stop)
            if sent.all():
                yield first, stop
                continue
            cuts = (np.flatnonzero(sent[1:] != sent[:-1]) + 1).tolist()
            for a, b in pairwise([0, *cuts, stop - first]):
                if sent[a]:
                    yield first + a, first + b

    # `None` if all of them are zeros.
    def _read(self, block: int, first: int, stop: int) -> NDArray[np.uint8] | None:
        size, used = self.page_size, self.blocks[block].used_length
        changed = self.changed.get(block, {})
        mine = [p for p in range(first, stop) if p in changed] if changed else []
        stretch = self._memory.stretches(block)[0]
        length = min(stop * size, used) - first * size
        if not mine and not stretch.has_data(first * size, length):
            return None
        pages = self._buffer[: stop - first]
        flat = pages.reshape(-1)
        stretch.read_into(first * size, flat[:length].data)
        flat[length:] = 0
        for page in mine:
            pages[page - first] = np.frombuffer(changed[page](), np.uint8)
        return pages


def write_pages(pages: Pages, out: StreamWriter, progress: Progress | None = None) -> None:
    """Write all pages as records, into a part of 'ram' that is open.

    Args:
        pages: What is written.
        out: Where to; its block list is theirs, but for names.
        progress: Called with (bytes of RAM that are done, those there are).
    """
    before, total = 0, sum(b.used_length for b in pages.blocks)
    for number, block in enumerate(pages.blocks):
        for offset, run in pages.pages(number):
            if isinstance(run, int):
                out.zero_pages(number, offset, run)
            else:
                out.pages(number, offset, run)
            if progress is not None:
                progress(before + offset, total)
        before += block.used_length
