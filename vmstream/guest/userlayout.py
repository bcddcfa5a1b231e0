"""A guest-physical map that the user states: a file for `extract-ram --layout`.

It overrules all that is inferred, so what it says is checked against the block list of the stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from vmstream.errors import OutputError
from vmstream.guest.physical import Evidence, PhysicalMap, Region, machine_family, ram_blocks
from vmstream.stream.events import RAMBlock

# Regions are listed in reports, and each is a range of a LiME or ELF file.
MOST_ENTRIES = 4096

# Addresses are offsets in a raw image, and files have offsets of 63 bits.
_MOST_BYTES = 1 << 63

_FIELDS = ("gpa", "length", "block", "block_offset")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the file, by itself; numbers in bytes."""

    gpa: int
    length: int
    block: str
    block_offset: int


def parse_layout(text: bytes, name: str) -> tuple[Entry, ...]:
    """Read the file.

    Args:
        text: Its content.
        name: Its name, for errors.

    Raises:
        OutputError: It is no list of entries; which entry is wrong, and how.
    """
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{name}: no JSON: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise OutputError(f"{name}: has to be a list of entries with {', '.join(_FIELDS)}")
    if len(listed) > MOST_ENTRIES:
        raise OutputError(f"{name}: {len(listed)} entries, {MOST_ENTRIES} at the most")
    return tuple(_entry(item, f"{name}: entry {i}") for i, item in enumerate(listed))


def user_map(
    entries: tuple[Entry, ...], name: str, evidence: Evidence, page_size: int
) -> PhysicalMap:
    """Check a layout against the blocks, and make a map of it.

    Args:
        entries: As `parse_layout` gives them.
        name: Name of the file, for errors.
        evidence: What the stream tells; only blocks and machine are used.
        page_size: Target page size, bytes.

    Raises:
        OutputError: An entry names no block or more than there is of it, cuts a page, or stands
            where another one does.
    """
    blocks = evidence.blocks
    regions: list[tuple[Region, str]] = []
    for i, entry in enumerate(entries):
        where = f"{name}: entry {i}"
        index = _block(entry, blocks, where)
        used = blocks[index].used_length
        end = entry.block_offset + entry.length
        if end > used:
            raise OutputError(
                f"{where}: ends at {end:#x} of block {entry.block!r}, which has {used:#x} bytes"
            )
        for field in ("gpa", "block_offset", "length"):
            value = getattr(entry, field)
            # A block may end inside a page.
            if value % page_size and not (field == "length" and end == used):
                raise OutputError(
                    f"{where}: {field} {value:#x} is no multiple of the page size, {page_size}"
                )
        region = Region(entry.gpa, entry.length, index, entry.block_offset, "user")
        regions.append((region, where))
    regions.sort(key=lambda pair: pair[0].gpa)
    for (low, first), (high, second) in pairwise(regions):
        if low.gpa + low.length > high.gpa:
            raise OutputError(
                f"{second}: {high.gpa:#x}..{high.gpa + high.length:#x} overlaps "
                f"{low.gpa:#x}..{low.gpa + low.length:#x} of {first.rpartition(': ')[2]}"
            )
    return PhysicalMap(
        tuple(region for region, _ in regions),
        None,
        "user",
        (f"regions as {name} states them: {len(entries)}", *_not_in(evidence.blocks, regions)),
        family=machine_family(evidence),
    )


def _not_in(blocks: tuple[RAMBlock, ...], regions: list[tuple[Region, str]]) -> Iterator[str]:
    placed = {region.block for region, _ in regions}
    for i in ram_blocks(blocks):
        if i not in placed:
            block = blocks[i]
            name = block.idstr.decode("utf-8", "backslashreplace")
            yield f"block {name!r} ({block.used_length:#x} bytes) is not among them"


def _entry(item: object, where: str) -> Entry:
    if not isinstance(item, dict):
        raise OutputError(f"{where}: is no object with {', '.join(_FIELDS)}")
    if unknown := sorted(set(item) - set(_FIELDS)):
        raise OutputError(f"{where}: unknown field {unknown[0]!r}")
    for field in _FIELDS[:3]:
        if field not in item:
            raise OutputError(f"{where}: has no {field!r}")
    block = item["block"]
    if not isinstance(block, str):
        raise OutputError(f"{where}: block {block!r} is no name")
    entry = Entry(
        _number(item["gpa"], "gpa", where),
        _number(item["length"], "length", where),
        block,
        _number(item.get("block_offset", 0), "block_offset", where),
    )
    if not entry.length:
        raise OutputError(f"{where}: length is 0")
    if entry.gpa + entry.length > _MOST_BYTES:
        raise OutputError(f"{where}: ends beyond 2^63")
    return entry


# JSON has no hexadecimal numbers, which is what addresses are written in.
def _number(value: object, field: str, where: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}", value):
        value = int(value, 16 if value.startswith("0x") else 10)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OutputError(f"{where}: {field} {value!r} is no number of bytes")
    return value


def _block(entry: Entry, blocks: tuple[RAMBlock, ...], where: str) -> int:
    names = [b.idstr.decode("utf-8", "backslashreplace") for b in blocks]
    if entry.block not in names:
        raise OutputError(f"{where}: no block {entry.block!r}; the stream has: {', '.join(names)}")
    return names.index(entry.block)
