"""Which pass over RAM a record is in, and the stream up to the end of one.

Passes are those of `RAMCoverage`: an inference, but where multifd's main channel marks them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmstream.guest.coverage import MAX_PASSES
from vmstream.ops.inspect import Summary
from vmstream.stream.events import (
    ChannelEvent,
    Command,
    Event,
    MappedPages,
    MultiFDPacket,
    PageBatch,
)
from vmstream.wire.constants import MigCmd

# The last pass whose end is known.
LAST_PASS = MAX_PASSES - 1


class PassNumbers:
    """Numbers the passes that records are in, from 1.

    Args:
        summary: Fold that takes each event before it is asked for here.
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._number = 0

    def of(self, event: PageBatch | MultiFDPacket | MappedPages) -> int | NDArray[np.int64]:
        """Return the pass of all pages of an event, or that of each record, int64 (n,).

        Each event of pages has to be asked for, in order.
        """
        coverage = self._summary.coverage
        passes = coverage.passes if coverage is not None else []
        before, self._number = self._number, len(passes)
        if before == self._number or not isinstance(event, PageBatch):
            return self._number
        begins = np.array([p.offset for p in passes[before:]], np.uint64)
        return before + np.searchsorted(begins, event.record_offset, side="right")


class UntilPass:
    """Takes away what comes behind a pass.

    Args:
        summary: Fold that takes each event before it is given here.
        last: The pass, from 1 to LAST_PASS.
    """

    def __init__(self, summary: Summary, last: int) -> None:
        self._summary = summary
        self._last = last
        self._over = False

    def cut(self, event: Event) -> Event | None:
        """Return what of an event is in the passes that count; `None` if nothing is."""
        inner = event.event if isinstance(event, ChannelEvent) else event
        if isinstance(inner, Command):
            withdrawn = inner.cmd == MigCmd.POSTCOPY_RAM_DISCARD
            return None if self._over and withdrawn else event
        if not isinstance(inner, (PageBatch, MultiFDPacket, MappedPages)):
            return event
        passes = self._summary.coverage.passes if self._summary.coverage is not None else []
        if self._over or len(passes) <= self._last:
            return None if self._over else event
        self._over = True
        if not isinstance(inner, PageBatch):
            return None
        rows = int(np.searchsorted(inner.record_offset, np.uint64(passes[self._last].offset)))
        if not rows:
            return None
        end = int(inner.record_offset[rows - 1]) + int(inner.size[rows - 1])
        cut = replace(inner, end=end, pages=inner.columns.first(rows))
        return replace(event, event=cut) if isinstance(event, ChannelEvent) else cut
