"""Page records found and checked: the hot path.

A record without a name has a fixed size, so a run of one kind is walked by a pattern match in C
(`wire.layout.run_pattern`), and a long run by numpy with the stride of the record. Both look at
every head where the record before it ends, so page contents that look like heads mislead
neither. Records with a name and records of variable size are few in plain streams and take the
scalar path. What was walked becomes columns or runs in `stream.walk`.

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
from vmstream.stream.events import PageBatch, PageColumns, RAMBlock
from vmstream.stream.walk import FEW_RUNS, Walk, cuts_of, gather
from vmstream.wire import grammar
from vmstream.wire.constants import (
    DEFAULT_PAGE_SIZE,
    PAGE_KINDS,
    RAMSaveFlag,
)
from vmstream.wire.layout import (
    RAM_WORD_SIZE,
    ZERO_STRIDE,
    is_legal_flags,
    page_stride,
    run_pattern,
    struct_of,
)

# Bounds the columns of a batch: 30 bytes a record and temporaries of the same order.
MAX_BATCH_RECORDS = 1 << 17

# From here on a run is cheaper by numpy than by the pattern (tests/bench/bench.py).
LONG_RUN = 64

_PAGE = int(RAMSaveFlag.PAGE)
_ZERO = int(RAMSaveFlag.ZERO)
_XBZRLE = int(RAMSaveFlag.XBZRLE)
_COMPRESS_PAGE = int(RAMSaveFlag.COMPRESS_PAGE)
_CONTINUE = int(RAMSaveFlag.CONTINUE)
_PAGE_KINDS = int(PAGE_KINDS)
_read_word = struct_of(grammar.RAM_WORD).unpack_from
_XBZRLE_HEAD = struct_of(grammar.XBZRLE_HEAD)
_COMPRESS_HEAD = struct_of(grammar.COMPRESS_PAGE_HEAD)
_SIZED = {
    _XBZRLE: struct_of(grammar.XBZRLE_RECORD_HEAD),
    _COMPRESS_PAGE: struct_of(grammar.COMPRESS_PAGE_RECORD_HEAD),
}


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
    walk = Walk()
    needed = 0
    try:
        while walk.total < MAX_BATCH_RECORDS:
            if state.current >= 0:
                pos = _fast_runs(
                    walk, view, pos, pattern, stride_page, page_size, modifiers, state.current
                )
                pos = _sized_records(walk, view, pos, page_size, modifiers, state.current)
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
    runs = walk.few_runs(view, base, page_size, state.used_length.tolist())
    pages = runs or walk.columns(view, base, page_size)
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
    walk: Walk,
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
    kinds = {
        page_flags: (stride_page, page_flags, page_size),
        zero_flags: (ZERO_STRIDE, zero_flags, 1),
    }
    total = walk.total
    while total < MAX_BATCH_RECORDS:
        begin, long = pos, _long_run(view, pos, kinds, page_size)
        for match in () if long else pattern.finditer(view, pos):
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
                long = step, kind_flags, size
                break
            start(begin)
            count(n)
            stride(step)
            flags(kind_flags)
            payload(size)
            blocks(block)
            total += n
            if total >= MAX_BATCH_RECORDS:
                break
        if long is None:
            break
        # From its start on, so that all its heads are held.
        step, kind_flags, size = long
        n, limit = 0, MAX_BATCH_RECORDS - total
        for heads, cuts in more_heads(view, begin, step, kind_flags, page_size, limit):
            walk.long.append((total + n, heads, cuts))
            n += len(heads)
        pos = begin + n * step
        walk.total = total
        walk.add(begin, n, step, kind_flags, size, block)
        total = walk.total
    walk.total = total
    return pos


# Stride, flags and payload of the records at `pos`, if there seems to be a long run of them, by
# the head so far on: then the pattern is not needed to find out.
def _long_run(
    view: memoryview, pos: int, kinds: dict[int, tuple[int, int, int]], page_size: int
) -> tuple[int, int, int] | None:
    if pos + RAM_WORD_SIZE > len(view):
        return None
    (head,) = _read_word(view, pos)
    shape = kinds.get(head & (page_size - 1))
    if shape is None:
        return None
    far = pos + FEW_RUNS * shape[0]
    if far + shape[0] > len(view) or _read_word(view, far)[0] != head + FEW_RUNS * page_size:
        return None
    return shape


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
        at = pos + found * stride
        (head,) = _read_word(view, at)
        if head & mask != flags:
            return
        n = _likely_count(view, at, head, stride, page_size, limit - found)
        n = n if n > FEW_RUNS else min(chunk, limit - found)
        heads = gather(view, at, n, stride)
        cuts = cuts_of(heads, page_size)
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


# The longest payload of a kind. QEMU v8.2.7 migration/ram-compress.c
# decompress_data_with_multi_threads() takes at most compressBound(page); v10.1.0 migration/ram.c
# load_xbzrle() at most a page.
def _longest(kind: int, page_size: int) -> int:
    return page_size + (0 if kind == _XBZRLE else page_size // 512 + 64)


# Append nameless records of one kind that state their size from `pos` on; return the position
# behind them. One by one, since each tells where the next is; what breaks a rule is left.
def _sized_records(
    walk: Walk, view: memoryview, pos: int, page_size: int, modifiers: int, block: int
) -> int:
    stop, mask = len(view), page_size - 1
    if pos + RAM_WORD_SIZE > stop:
        return pos
    flags = _read_word(view, pos)[0] & mask
    kind = flags & _PAGE_KINDS
    shape = _SIZED.get(kind)
    if shape is None or flags != kind | modifiers:
        return pos
    size, unpack, most = shape.size, shape.unpack_from, _longest(kind, page_size)
    starts: list[int] = []
    limit = MAX_BATCH_RECORDS - walk.total
    while pos + size <= stop and len(starts) < limit:
        head, *_, length = unpack(view, pos)
        end = pos + size + length
        if head & mask != flags or not 0 < length <= most or end > stop:
            break
        starts.append(pos)
        pos = end
    sizes = [b - a for a, b in pairwise([*starts, pos])]
    count = len(starts)
    walk.start += starts
    walk.stride += sizes
    walk.payload += [s - RAM_WORD_SIZE for s in sizes]
    walk.count += [1] * count
    walk.flags += [flags] * count
    walk.block += [block] * count
    walk.total += count
    return pos


# Append the one record at `pos` and return its size; 0 where a word that is no page record
# stands, minus the bytes it takes where it is not wholly inside the window.
def _one_record(walk: Walk, state: RAMState, view: memoryview, base: int, pos: int) -> int:
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
        most = _longest(kind, state.page_size)
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


# How many records of neighbouring pages there seem to be, by looking at few of them: so that heads
# are gathered at once, and none that is none. It is a guess, and all that are gathered are checked.
def _likely_count(
    view: memoryview, pos: int, head: int, stride: int, page_size: int, limit: int
) -> int:
    low, high = 0, FEW_RUNS
    while high < limit and _read_word(view, pos + high * stride)[0] == head + high * page_size:
        low, high = high, 2 * high
    high = min(high, limit)
    while low and high - low > 1:
        middle = (low + high) // 2
        if _read_word(view, pos + middle * stride)[0] == head + middle * page_size:
            low = middle
        else:
            high = middle
    return low + 1
