"""Layouts derived from the grammar, for what is too many for Construct.

`dtype_of` and `struct_of` turn a fixed-size Construct `Struct` into a numpy dtype and a
`struct.Struct`, so that a number or a shape is written once, in `wire.grammar`.
"""

from __future__ import annotations

import re
import struct
from functools import cache

import numpy as np
from construct import Bytes, Const, Construct, Default, FormatField, Renamed

from vmstream.wire import constants, grammar
from vmstream.wire.constants import RAM_FLAG_MASK, RAMSaveFlag


def _format_of(field: Construct) -> str:
    # These wrap the field that has the layout.
    while isinstance(field, (Renamed, Const, Default)):
        field = field.subcon
    if isinstance(field, FormatField):
        return str(field.fmtstr[1:])
    if isinstance(field, Bytes):
        return f"{field.length}s"
    raise TypeError(f"no fixed layout: {field!r}")


@cache
def struct_of(grammar_struct: Construct) -> struct.Struct:
    """Return the `struct.Struct` of a fixed-size Construct Struct, big-endian, packed."""
    made = struct.Struct(">" + "".join(_format_of(f) for f in grammar_struct.subcons))
    assert made.size == grammar_struct.sizeof()
    return made


@cache
def dtype_of(grammar_struct: Construct) -> np.dtype[np.void]:
    """Return the numpy dtype of a fixed-size Construct Struct, big-endian, packed."""
    fields: list[tuple[str, str]] = []
    for field in grammar_struct.subcons:
        code = _format_of(field)
        # struct's ">L" is 4 bytes, numpy's is 8: go by the size, never by the letter.
        kind = f"V{field.sizeof()}" if code.endswith("s") else f">u{struct.calcsize('>' + code)}"
        fields.append((field.name, kind))
    made = np.dtype(fields)
    assert made.itemsize == grammar_struct.sizeof()
    return made


RAM_WORD_SIZE: int = grammar.RAM_WORD.sizeof()
ZERO_STRIDE: int = grammar.ZERO_RECORD.sizeof()


@cache
def page_stride(page_size: int) -> int:
    """Bytes from one CONTINUE PAGE record to the next."""
    return int(grammar.page_record(page_size).sizeof())


@cache
def run_pattern(page_size: int, longest: int, modifiers: int) -> re.Pattern[bytes]:
    """Compile a pattern that matches a run of records of one kind at a position.

    Group 1 is a run of PAGE records, group 2 a run of ZERO records, 1 to `longest` of them;
    the third alternative matches nothing, where neither kind stands. A match is the exact
    walk, not a guess: each record is looked at where the one before it ends, and page bodies
    are stepped over by their size.

    Args:
        page_size: Target page size, bytes.
        longest: Most records in one match. It bounds what the engine keeps to back off.
        modifiers: Flags beside the kind: CONTINUE, or none in RAM section version 3.
    """

    # The flags are the low ten bits of the head, so they are the whole last byte and part of the
    # byte before it; what else that byte may hold are block offset bits of this page size.
    def head(kind: RAMSaveFlag) -> bytes:
        flags = int(kind) | modifiers
        below = (page_size - 1) >> 8
        high = [v for v in range(256) if v & below == flags >> 8]
        chars = b"".join(re.escape(bytes([v])) for v in high)
        return b".{6}[" + chars + b"]" + re.escape(bytes([flags & 0xFF]))

    page = head(RAMSaveFlag.PAGE) + b".{%d}" % (page_stride(page_size) - RAM_WORD_SIZE)
    zero = head(RAMSaveFlag.ZERO) + b".{%d}" % (ZERO_STRIDE - RAM_WORD_SIZE)
    # No possessive quantifiers: Python 3.11.0 to 3.11.4 get them wrong (gh-106052).
    text = b"((?:%s){1,%d})|((?:%s){1,%d})|()" % (page, longest, zero, longest)
    return re.compile(text, re.DOTALL)


def split_head(head: int, page_size: int) -> tuple[int, int]:
    """Split a RAM head into (block offset or total, flags)."""
    return head & -page_size, head & (page_size - 1)


def is_legal_flags(flags: int) -> bool:
    """Whether QEMU's loader accepts these flags: one kind, CONTINUE only on page records.

    QEMU v10.1.0 migration/ram.c ram_load_precopy(): the switch over `flags & ~CONTINUE`.
    """
    # Plain ints: ~ of a flag gives the other flags alone, and unknown bits must count.
    kind = flags & ~int(RAMSaveFlag.CONTINUE)
    if kind & (kind - 1) or not kind & RAM_FLAG_MASK or kind == RAMSaveFlag.FULL:
        return False
    return kind == flags or bool(kind & constants.PAGE_KINDS)


# RFC 8878 section 3.1.1: the head of a block, and what a block has at the most, unpacked too.
ZSTD_BLOCK_HEAD = 3
ZSTD_BLOCK = 128 << 10
_ZSTD_RLE, _ZSTD_RESERVED = 1, 3


def zstd_block(head: bytes | memoryview) -> tuple[int, bool] | None:
    """Bytes of a block of a zstd frame with its head, and whether it is the last; `None` if none.

    Args:
        head: Its first ZSTD_BLOCK_HEAD bytes; fewer are no block.
    """
    word = int.from_bytes(head, "little")
    kind, length = word >> 1 & 3, word >> 3
    if len(head) < ZSTD_BLOCK_HEAD or kind == _ZSTD_RESERVED or length > ZSTD_BLOCK:
        return None
    return ZSTD_BLOCK_HEAD + (1 if kind == _ZSTD_RLE else length), bool(word & 1)
