"""Where records stand when that is not known: the page size, and what follows damage.

Both are inference, by which sizes of a record put legal heads behind it.
"""

from __future__ import annotations

import numpy as np

from vmstream.stream.scanner import LONG_RUN, RAMState, more_heads
from vmstream.wire import grammar
from vmstream.wire.constants import (
    DEFAULT_PAGE_SIZE,
    PAGE_KINDS,
    RAM_FLAG_MASK,
    RAM_LOW_FLAG_MASK,
    TARGET_PAGE_SIZES,
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

_PAGE = int(RAMSaveFlag.PAGE)
_ZERO = int(RAMSaveFlag.ZERO)
_CONTINUE = int(RAMSaveFlag.CONTINUE)
_PAGE_KINDS = int(PAGE_KINDS)
_read_word = struct_of(grammar.RAM_WORD).unpack_from


def probe_page_size(view: memoryview, pos: int, idstrs: set[bytes], *, flat: bool) -> int | None:
    """Find the target page size from the records at `pos`, or `None` if none of them tells.

    The head behind the first PAGE record must be a legal one; only one page size puts it
    there, unless page contents look like heads, when the usual size wins.

    Args:
        view: The window.
        pos: Where a record head stands in it.
        idstrs: Names of the RAM blocks.
        flat: RAM section version 3.
    """
    smallest, modifiers = min(TARGET_PAGE_SIZES), 0 if flat else _CONTINUE
    zeros = run_pattern(smallest, LONG_RUN, modifiers)
    offsets = 0
    while pos + RAM_WORD_SIZE <= len(view):
        match = zeros.match(view, pos)
        if match and match.lastindex == 2:
            # The heads of this match, and those of what goes on behind it.
            flags = _ZERO | modifiers
            for heads, _ in more_heads(view, pos, ZERO_STRIDE, flags, smallest, len(view)):
                offsets |= int(np.bitwise_or.reduce(heads)) & ~RAM_LOW_FLAG_MASK
                pos += len(heads) * ZERO_STRIDE
            continue
        (head,) = _read_word(view, pos)
        flags = head & RAM_FLAG_MASK
        sizes: tuple[int, ...] = TARGET_PAGE_SIZES
        if not is_legal_flags(flags):
            # With pages of 256 bytes the upper two are bits of the offset.
            flags, sizes = head & RAM_LOW_FLAG_MASK, (smallest,)
        if not is_legal_flags(flags) or not flags & _PAGE_KINDS:
            break
        offsets |= head & ~RAM_FLAG_MASK
        pos += RAM_WORD_SIZE
        if not (flags & _CONTINUE or flat):
            if pos >= len(view):
                break
            pos += 1 + view[pos]
        if flags & _PAGE:
            if pos + DEFAULT_PAGE_SIZE + RAM_WORD_SIZE >= len(view):
                break  # cut off: any smaller size could only fit by chance
            fits = [
                size
                for size in sizes
                if not offsets & (size - 1) and _head_at(view, pos + size, size, idstrs, flat)
            ]
            return fits[0] if fits else None
        if not flags & _ZERO:
            break
        pos += 1
    # Nothing but offsets tells: one that is no multiple of 4096 shows a smaller page.
    small = [s for s in TARGET_PAGE_SIZES if s < DEFAULT_PAGE_SIZE and not offsets & (s - 1)]
    return max(small) if offsets & (DEFAULT_PAGE_SIZE - 1) and small else None


def next_record(state: RAMState, view: memoryview, pos: int) -> int | None:
    """Find where the record behind a damaged one stands, or `None` if that is not plain.

    A damaged head was that of a ZERO or a PAGE record; behind only one of the two sizes there
    are two legal heads in a row.
    """
    idstrs = set(state.index)
    found = [
        pos + size
        for size in (ZERO_STRIDE, page_stride(state.page_size))
        if _follows(state, view, pos + size, idstrs, 2)
    ]
    return found[0] if len(found) == 1 else None


# Whether `count` heads that fit the block list stand from `pos` on, or an end before.
def _follows(state: RAMState, view: memoryview, pos: int, idstrs: set[bytes], count: int) -> bool:
    if not _head_at(view, pos, state.page_size, idstrs, state.flat):
        return False
    (head,) = _read_word(view, pos)
    flags, offset = head & (state.page_size - 1), head & -state.page_size
    if not flags & _PAGE_KINDS or count == 1:
        return True
    if flags & _CONTINUE and offset >= int(state.used_length[max(state.current, 0)]):
        return False
    if flags & ~(_CONTINUE | _ZERO | _PAGE) or not flags & _CONTINUE:
        return True
    size = ZERO_STRIDE if flags & _ZERO else page_stride(state.page_size)
    return _follows(state, view, pos + size, idstrs, count - 1)


# Whether a word that may follow a page record of this size stands at `pos`.
def _head_at(view: memoryview, pos: int, page_size: int, idstrs: set[bytes], flat: bool) -> bool:
    if pos + RAM_WORD_SIZE + 1 > len(view):
        return False
    (head,) = _read_word(view, pos)
    flags = head & (page_size - 1)
    if not is_legal_flags(flags) or flags & RAMSaveFlag.MEM_SIZE or head >> 56:
        return False
    if not flags & _PAGE_KINDS:
        return bool(head == flags)
    if flags & _CONTINUE or flat:
        return True
    at = pos + RAM_WORD_SIZE + 1
    return bytes(view[at : at + view[at - 1]]) in idstrs
