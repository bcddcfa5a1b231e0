"""Page records to columns: the hot path.

A record without a name has a fixed size, so a run of one kind is walked by a pattern match in C
(`wire.layout.run_pattern`), and a long run by numpy with the stride of the record. Both look at
every head where the record before it ends, so page contents that look like heads mislead
neither. Heads are gathered afterwards, all runs of a batch at once. Records with a name and
records of variable size are few in plain streams and take the scalar path.

Measured with tests/bench/bench.py; the reasons are in docs/architecture.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import FormatError, IntegrityError, StreamError, quoted
from vmstream.stream.events import PageBatch, PageColumns, RAMBlock, Run
from vmstream.wire import grammar
from vmstream.wire.constants import (
    DEFAULT_PAGE_SIZE,
    PAGE_KINDS,
    RAMSaveFlag,
)
from vmstream.wire.layout import (
    RAM_WORD_SIZE,
    ZERO_STRIDE,
    dtype_of,
    is_legal_flags,
    page_stride,
    run_pattern,
    struct_of,
)

# Bounds the columns of a batch: 30 bytes a record and temporaries of the same order.
MAX_BATCH_RECORDS = 1 << 17

# From here on a run is cheaper by numpy than by the pattern (tests/bench/bench.py).
LONG_RUN = 64

# From this mean length on a batch is cheaper as runs than as columns (tests/bench/bench.py).
_FEW_RUNS = 256

_PAGE = int(RAMSaveFlag.PAGE)
_ZERO = int(RAMSaveFlag.ZERO)
_XBZRLE = int(RAMSaveFlag.XBZRLE)
_COMPRESS_PAGE = int(RAMSaveFlag.COMPRESS_PAGE)
_CONTINUE = int(RAMSaveFlag.CONTINUE)
_PAGE_KINDS = int(PAGE_KINDS)
_KINDS = {int(kind): kind for kind in PAGE_KINDS}
_read_word = struct_of(grammar.RAM_WORD).unpack_from
_HEAD = dtype_of(grammar.RAM_WORD)["head"]
_XBZRLE_HEAD = struct_of(grammar.XBZRLE_HEAD)
_COMPRESS_HEAD = struct_of(grammar.COMPRESS_PAGE_HEAD)


class BadRecord(Exception):
    """A record that contradicts QEMU's rules; `end` is where the next one stands, if known."""

    def __init__(self, error: StreamError, end: int | None = None) -> None:
        self.error = error
        self.end = end


@dataclass(slots=True)
class RAMState:
    """What page records refer to.

    Attributes:
        blocks: The block list.
        page_size: Target page size, bytes.
        flat: RAM section version 3: one space, no names.
        current: Index of the block that CONTINUE means, -1 before the first. It lives on from
            section to section, as in QEMU v10.1.0 migration/ram.c ram_block_from_stream().
        context: Where we are, for errors.
    """

    blocks: tuple[RAMBlock, ...]
    page_size: int = DEFAULT_PAGE_SIZE
    flat: bool = False
    current: int = -1
    context: str = "section 'ram'"
    index: dict[bytes, int] = field(init=False)
    used_length: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.index = {b.idstr: i for i, b in enumerate(self.blocks)}
        self.used_length = np.array([b.used_length for b in self.blocks], np.uint64)
        if self.flat:
            self.current = 0


# Behind the last piece of heads.
_NO_PIECE = (-1, np.zeros(0, np.uint64), np.zeros(0, np.int64))


class _Walk:
    """What was walked: records of one kind and block behind each other, as columns."""

    __slots__ = ("block", "count", "flags", "long", "payload", "start", "stride", "total")

    def __init__(self) -> None:
        self.start: list[int] = []
        self.count: list[int] = []
        self.stride: list[int] = []
        self.flags: list[int] = []
        self.payload: list[int] = []
        self.block: list[int] = []
        # Heads of long ones, which were read to find their ends: (first row, uint64 (n,), cuts).
        self.long: list[tuple[int, NDArray[np.uint64], NDArray[np.int64]]] = []
        self.total = 0

    def add(
        self, start: int, count: int, stride: int, flags: int, payload: int, block: int
    ) -> None:
        self.start.append(start)
        self.count.append(count)
        self.stride.append(stride)
        self.flags.append(flags)
        self.payload.append(payload)
        self.block.append(block)
        self.total += count


def scan_records(
    state: RAMState, view: memoryview, base: int, pos: int
) -> tuple[PageBatch | None, int, int]:
    """Scan page records up to a word that is none, the end of the window, or a full batch.

    Args:
        state: Block table and current block. Updated.
        view: The window.
        base: Absolute offset of its first byte.
        pos: Where a record head stands in `view`.

    Returns:
        The batch or `None`, the position behind it, and the bytes that the next record takes
        from there at the least: 0 where it is wholly inside or no page record.

    Raises:
        BadRecord: The very first record breaks a rule. Records before a bad one are returned
            first, so nothing readable is lost.

    Wire:
        be64 head, then u8 length + idstr unless CONTINUE, then the payload.
        QEMU v10.1.0 migration/ram.c save_page_header(), ram_load_precopy().

    Memory:
        Columns are owned and bounded by MAX_BATCH_RECORDS. Payloads are borrowed from `view`.
    """
    page_size = state.page_size
    stride_page = page_stride(page_size)
    modifiers = 0 if state.flat else _CONTINUE
    pattern = run_pattern(page_size, LONG_RUN, modifiers)
    walk = _Walk()
    needed = 0
    try:
        while walk.total < MAX_BATCH_RECORDS:
            if state.current >= 0:
                pos = _fast_runs(
                    walk, view, pos, pattern, stride_page, page_size, modifiers, state.current
                )
            if walk.total >= MAX_BATCH_RECORDS:
                break
            size = _one_record(walk, state, view, base, pos)
            if size <= 0:
                needed = -size
                break
            pos += size
    except BadRecord:
        if not walk.total:
            raise
    if not walk.total:
        return None, pos, needed
    pages = _few_runs(walk, state, view, base) or _columns(walk, state, view, base)
    batch = PageBatch(
        offset=base + walk.start[0],
        end=base + pos,
        pages=pages,
        blocks=state.blocks,
        page_size=page_size,
        window=view,
        window_offset=base,
    )
    if not isinstance(pages, PageColumns):
        return batch, pos, needed
    if int(pages.block_offset.max()) < min(int(state.used_length[b]) for b in set(walk.block)):
        return batch, pos, needed
    # Some record may be beyond the end of its block, and is if it is not of a longer one.
    beyond = pages.block_offset >= state.used_length[pages.block]
    if not beyond.any():
        return batch, pos, needed
    first = int(np.argmax(beyond))
    record = int(pages.record_offset[first])
    state.current = int(pages.block[first])
    if first == 0:
        block = state.blocks[state.current]
        raise BadRecord(
            IntegrityError(
                record,
                "a page beyond the end of its block",
                context=f"{state.context}, block {quoted(block.idstr)}",
                expected=f"below {block.used_length:#x}",
                found=f"{int(pages.block_offset[0]):#x}",
            ),
            record + int(pages.size[0]),
        )
    return replace(batch, end=record, pages=pages.first(first)), record - base, 0


# Append the runs of nameless records at `pos`; return the position behind them.
def _fast_runs(
    walk: _Walk,
    view: memoryview,
    pos: int,
    pattern: re.Pattern[bytes],
    stride_page: int,
    page_size: int,
    modifiers: int,
    block: int,
) -> int:
    start, count, stride = walk.start.append, walk.count.append, walk.stride.append
    flags, payload, blocks = walk.flags.append, walk.payload.append, walk.block.append
    page_flags, zero_flags = _PAGE | modifiers, _ZERO | modifiers
    total = walk.total
    more = True
    while more and total < MAX_BATCH_RECORDS:
        more = False
        for match in pattern.finditer(view, pos):
            kind = match.lastindex
            if kind == 1:
                step, kind_flags, size = stride_page, page_flags, page_size
            elif kind == 2:
                step, kind_flags, size = ZERO_STRIDE, zero_flags, 1
            else:
                break
            begin, pos = pos, match.end()
            n = (pos - begin) // step
            if n == LONG_RUN:
                # From its start on, so that all its heads are held.
                n, limit, more = 0, MAX_BATCH_RECORDS - total, True
                for heads, cuts in more_heads(view, begin, step, kind_flags, page_size, limit):
                    walk.long.append((total + n, heads, cuts))
                    n += len(heads)
                pos = begin + n * step
            start(begin)
            count(n)
            stride(step)
            flags(kind_flags)
            payload(size)
            blocks(block)
            total += n
            if more or total >= MAX_BATCH_RECORDS:
                break
    walk.total = total
    return pos


def more_heads(
    view: memoryview, pos: int, stride: int, flags: int, page_size: int, limit: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Walk the records of one kind from `pos` on, at most `limit`.

    Yields:
        Heads in host order, uint64 (n,), and the rows whose page is not the one behind that of
        the row before, int64 (k,).
    """
    limit = min(limit, (len(view) - pos) // stride)
    mask = page_size - 1
    found, chunk = 0, 8 * LONG_RUN
    while found < limit:
        n = min(chunk, limit - found)
        heads = _gather(view, pos + found * stride, n, stride)
        if int(heads[0]) & mask != flags:
            return
        cuts = (heads[1:] - heads[:-1] != page_size).nonzero()[0] + 1
        if len(cuts):
            # A head of another kind is no neighbour.
            other = (heads[cuts] & np.uint64(mask)) != flags
            stop = int(other.argmax())
            if other[stop]:
                yield heads[: cuts[stop]], cuts[:stop]
                return
        yield heads, cuts
        found += n
        chunk = min(chunk * 2, 1 << 15)


# Append the one record at `pos` and return its size; 0 where a word that is no page record
# stands, minus the bytes it takes where it is not wholly inside the window.
def _one_record(walk: _Walk, state: RAMState, view: memoryview, base: int, pos: int) -> int:
    left = len(view) - pos
    if left < RAM_WORD_SIZE:
        return -RAM_WORD_SIZE
    (head,) = _read_word(view, pos)
    flags = head & (state.page_size - 1)
    if not is_legal_flags(flags):
        raise BadRecord(
            FormatError(
                base + pos,
                f"illegal RAM flags {flags:#05x}",
                context=state.context,
                expected="one of ZERO, PAGE, XBZRLE, COMPRESS_PAGE with optional CONTINUE, "
                "or EOS or MULTIFD_FLUSH alone",
                advice="damaged, or of another page size (--page-size)",
            )
        )
    if not flags & _PAGE_KINDS:
        return 0
    size = RAM_WORD_SIZE
    block = state.current
    if not state.flat:
        if flags & _CONTINUE:
            if block < 0:
                raise BadRecord(
                    FormatError(base + pos, "CONTINUE before any named page", context=state.context)
                )
        else:
            if left < size + 1:
                return -(size + 1)
            size += 1 + view[pos + size]
            if left < size:
                return -size
            idstr = bytes(view[pos + RAM_WORD_SIZE + 1 : pos + size])
            block = state.index.get(idstr, -1)
            if block < 0:
                raise BadRecord(
                    FormatError(
                        base + pos,
                        "a page of a block that the list does not have",
                        context=state.context,
                        found=quoted(idstr),
                    )
                )
    kind = flags & _PAGE_KINDS
    if kind == _PAGE:
        payload = state.page_size
    elif kind == _ZERO:
        payload = 1
    else:
        shape = _XBZRLE_HEAD if kind == _XBZRLE else _COMPRESS_HEAD
        if left < size + shape.size:
            return -(size + shape.size)
        *_, length = shape.unpack_from(view, pos + size)
        payload = shape.size + length
        # QEMU v8.2.7 migration/ram-compress.c decompress_data_with_multi_threads() takes at
        # most compressBound(page); v10.1.0 migration/ram.c load_xbzrle() at most a page.
        most = state.page_size + (0 if kind == _XBZRLE else state.page_size // 512 + 64)
        if not 0 < length <= most:
            raise BadRecord(
                FormatError(
                    base + pos,
                    f"{RAMSaveFlag(kind).name} payload of {length} bytes",
                    context=state.context,
                    expected=f"1 to {most}",
                )
            )
    size += payload
    if left < size:
        return -size
    state.current = block
    walk.add(pos, 1, size, flags, payload, block)
    return size


# What was walked as runs, unless there are many or one may go beyond the end of its block.
def _few_runs(walk: _Walk, state: RAMState, view: memoryview, base: int) -> tuple[Run, ...] | None:
    most = walk.total // _FEW_RUNS
    if len(walk.start) > most:
        return None
    page_size = state.page_size
    found: list[list[int]] = []  # block, offset, pages, start, stride, flags and payload of each
    pieces = iter(walk.long)
    piece_row, piece, piece_cuts = next(pieces, _NO_PIECE)
    row, neighbour = 0, -1
    alike: list[int] = []
    for start, count, *shape in zip(
        walk.start, walk.count, walk.block, walk.stride, walk.flags, walk.payload, strict=True
    ):
        block, stride, flags, payload = shape
        if shape != alike:
            alike, neighbour = shape, -1
        at, stop = start, row + count
        while row < stop:
            if row == piece_row:
                heads, cuts = piece, piece_cuts
                piece_row, piece, piece_cuts = next(pieces, _NO_PIECE)
            else:
                heads = _gather(view, start, count, stride)
                cuts = (heads[1:] - heads[:-1] != page_size).nonzero()[0] + 1
            if len(found) + len(cuts) > most:
                return None
            edges = [*cuts.tolist(), len(heads)]
            if int(heads[0]) != neighbour:
                edges.insert(0, 0)
            else:
                found[-1][2] += edges[0]
            for first, end in pairwise(edges):
                offset = int(heads[first]) & -page_size
                begin = at + first * stride
                found.append([block, offset, end - first, begin, stride, flags, payload])
            neighbour = int(heads[-1]) + page_size
            row += len(heads)
            at += len(heads) * stride
    lengths = state.used_length.tolist()
    if any(offset + (n - 1) * page_size >= lengths[b] for b, offset, n, *_ in found):
        return None
    return tuple(
        Run(_KINDS[f & _PAGE_KINDS], b, offset, n, base + begin, begin + s - p, s, f)
        for b, offset, n, begin, s, f, p in found
    )


# Heads of records that are evenly spaced, in host order.
def _gather(view: memoryview, pos: int, count: int, stride: int) -> NDArray[np.uint64]:
    wire: NDArray[np.uint64] = np.ndarray((count,), _HEAD, view, pos, (stride,))
    return wire.astype(np.uint64)


# The heads of all that was walked, in host order.
def _heads(walk: _Walk, view: memoryview, position: NDArray[np.int64]) -> NDArray[np.uint64]:
    # A view that starts at every byte, so that heads can be taken from any offset.
    wire: NDArray[np.uint64] = np.ndarray((len(view) - RAM_WORD_SIZE + 1,), _HEAD, view, 0, (1,))
    if not walk.long:
        return wire[position]
    pieces: list[NDArray[np.uint64]] = []
    row = 0
    for first, heads, _ in walk.long:
        pieces += (wire[position[row:first]], heads)
        row = first + len(heads)
    pieces.append(wire[position[row:]])
    return np.concatenate(pieces)


# What was walked as columns: what holds for a stretch is spread over its records.
def _columns(walk: _Walk, state: RAMState, view: memoryview, base: int) -> PageColumns:
    start, count = np.array(walk.start, np.int64), np.array(walk.count, np.int64)
    stride = np.array(walk.stride, np.int64)
    if len(start) == 1:
        position = np.arange(walk.total)
        position *= stride
        position += start
    else:
        before = np.cumsum(count) - count
        position = np.repeat(start - before * stride, count)
        position += np.repeat(stride, count) * np.arange(walk.total)
    heads = _heads(walk, view, position)
    return PageColumns(
        record_offset=(position + base).view(np.uint64),
        size=np.repeat(stride.astype(np.uint32), count),
        flags=np.repeat(np.array(walk.flags, np.uint16), count),
        block=np.repeat(np.array(walk.block, np.int32), count),
        block_offset=heads & np.uint64(~(state.page_size - 1) & 0xFFFFFFFFFFFFFFFF),
        payload_size=np.repeat(np.array(walk.payload, np.uint32), count),
    )
