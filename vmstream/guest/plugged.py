"""Memory devices: at which addresses DIMMs, NVDIMMs and virtio-mem have their blocks.

A stream states the address of a virtio-mem device, in its state. It has none of a DIMM, which has
no state at all: there are the tables that the guest got, which list NVDIMMs and the place where
QEMU puts memory devices, and the rule by which it fills that place.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vmstream.guest.srat import MemoryAffinity
from vmstream.stream.events import RAMBlock

# What backends of memory are aligned to, unless their pages are larger. QEMU v7.2.0
# include/qemu/osdep.h QEMU_VMALLOC_ALIGN.
_ALIGNMENT = 2 << 20

# Runs of plugged blocks of one virtio-mem device that become regions of their own.
_MOST_RUNS = 1024

# QEMU v7.2.0 hw/virtio/virtio-mem.c vmstate_virtio_mem_sanity_checks: address, bytes of the
# region, bytes of a block, node. Behind it usable size, size, requested size and the bitmap; in
# the section that comes ahead of RAM from 8.1 on (virtio-mem-device-early) size and bitmap alone.
_VIRTIO_MEM = struct.Struct(">QQQI")
_SIZES = ((0, 8), (8, 24))  # (where the size is, where the bitmap is) behind it
_SMALLEST_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Placed:
    """A stretch of a block at an address; numbers in bytes."""

    block: int
    gpa: int
    length: int
    block_offset: int
    source: str


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Where a machine puts memory devices: [base, end), and how that is known."""

    base: int
    end: int
    source: str


@dataclass(slots=True)
class Found:
    """Places, and what there is to say of them, a sentence each."""

    placed: list[Placed] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def place(
    blocks: tuple[RAMBlock, ...],
    dimms: Sequence[int],
    memory: DeviceMemory | None,
    affinity: Sequence[MemoryAffinity],
    virtio_mem: Mapping[bytes, bytes],
) -> Found:
    """Say where blocks of memory devices stand.

    Args:
        blocks: The block list.
        dimms: Indices of the blocks of DIMMs and NVDIMMs.
        memory: Where they can be; `None` if the machine has no such place.
        affinity: What the guest's tables say.
        virtio_mem: State of each virtio-mem device, by its path.
    """
    found = Found()
    for i, block in enumerate(blocks):
        path, slash, _ = block.idstr.rpartition(b"/")
        if slash and path in virtio_mem:
            _place_virtio_mem(found, i, block, virtio_mem[path])
    left = _wire(found, blocks, in_order(blocks, dimms), memory)
    left = _nvdimms(found, blocks, left, affinity)
    left = _first_fit(found, blocks, left, memory)
    found.doubts.extend(left_out(blocks[i]) for i in left)
    return found


def left_out(block: RAMBlock) -> str:
    """Say that a block of plugged memory is not in the map."""
    return (
        f"block {text(block)!r} ({block.used_length:#x} bytes) is not in the image: it is "
        "plugged memory, whose address is not known here; place it with --layout, or write it "
        "with --block"
    )


def text(block: RAMBlock) -> str:
    """Return a block's name for a message."""
    return block.idstr.decode("utf-8", "backslashreplace")


def names(blocks: tuple[RAMBlock, ...], chosen: Sequence[int]) -> str:
    """Return names of blocks for a message."""
    return ", ".join(text(blocks[i]) for i in chosen[:8]) + (", ..." if len(chosen) > 8 else "")


def in_order(blocks: tuple[RAMBlock, ...], chosen: Sequence[int]) -> list[int]:
    """Return blocks in the order in which they were likely made: by the numbers in their names.

    QEMU lists blocks by size, the largest first, and in order of creation among equals (QEMU
    v7.2.0 softmmu/physmem.c ram_block_add()). If the names contradict that, the list counts.
    """
    listed, named = sorted(chosen), by_name(blocks, chosen)
    last: dict[int, int] = {}
    for i in named:
        if last.get(blocks[i].used_length, -1) > i:
            return listed
        last[blocks[i].used_length] = i
    return named


def by_name(blocks: tuple[RAMBlock, ...], chosen: Sequence[int]) -> list[int]:
    """Return blocks by their names, numbers in them as such."""
    return sorted(
        sorted(chosen), key=lambda i: [(len(n), n) for n in re.split(rb"(\d+)", blocks[i].idstr)]
    )


# -- virtio-mem ------------------------------------------------------------------------------------


def _place_virtio_mem(found: Found, index: int, block: RAMBlock, body: bytes) -> None:
    at = _sanity(body, block.used_length)
    if at is None:
        return
    gpa, length, unit, _ = _VIRTIO_MEM.unpack_from(body, at)
    runs = _runs(body[at + _VIRTIO_MEM.size :], length // unit, unit)
    found.placed.extend(
        Placed(index, gpa + start, size, start, "device state") for start, size in runs
    )
    plugged = sum(size for _, size in runs)
    found.reasons.append(
        f"the state of the virtio-mem device of block {text(block)!r} has it at {gpa:#x}, "
        f"with {plugged:#x} bytes plugged"
    )


# Where the numbers are among fields of the transport, whose sizes nothing states: the length of
# the block is one of them.
def _sanity(body: bytes, length: int) -> int | None:
    pattern = re.escape(struct.pack(">Q", length))
    for match in re.finditer(pattern, body):
        at = match.start() - 8
        if at >= 0 and at + _VIRTIO_MEM.size <= len(body):
            gpa, _, unit, _ = _VIRTIO_MEM.unpack_from(body, at)
            power = unit >= _SMALLEST_BLOCK and not unit & (unit - 1)
            if power and gpa and not gpa % unit and not length % unit and gpa + length < 1 << 62:
                return at
    return None


# (offset, length) of what is plugged; all of it if the bitmap is not found.
def _runs(data: bytes, count: int, unit: int) -> list[tuple[int, int]]:
    whole = [(0, count * unit)]
    for size_at, bits_at in _SIZES:
        words = data[bits_at : bits_at + -(-count // 64) * 8]
        if len(words) < -(-count // 64) * 8:
            continue
        little = np.frombuffer(words, ">u8").astype("<u8").view(np.uint8)
        bits = np.unpackbits(little, bitorder="little")
        size = int.from_bytes(data[size_at : size_at + 8], "big")
        if not bits[count:].any() and int(bits.sum()) * unit == size:
            edges = np.flatnonzero(np.diff(bits[:count], prepend=0, append=0)).tolist()
            pairs = list(zip(edges[::2], edges[1::2], strict=True))
            if len(pairs) <= _MOST_RUNS:
                return [(a * unit, (b - a) * unit) for a, b in pairs]
            return whole
    return whole


# -- DIMMs -----------------------------------------------------------------------------------------


# x-ignore-shared sends where a block is in its container, which is the place for memory devices.
# QEMU v7.2.0 hw/mem/memory-device.c memory_device_plug().
def _wire(
    found: Found, blocks: tuple[RAMBlock, ...], dimms: list[int], memory: DeviceMemory | None
) -> list[int]:
    if memory is None:
        return dimms
    left = []
    for i in dimms:
        gpa = blocks[i].gpa
        if gpa is None or not _fits(found, blocks[i], memory.base + gpa, memory.end):
            left.append(i)
            continue
        found.placed.append(Placed(i, memory.base + gpa, blocks[i].used_length, 0, "wire"))
        found.reasons.append(
            f"the block list has block {text(blocks[i])!r} at {gpa:#x} of the place for memory "
            f"devices, which starts at {memory.base:#x} ({memory.source})"
        )
    return left


def _fits(found: Found, block: RAMBlock, gpa: int, end: int) -> bool:
    stop = gpa + block.used_length
    return stop <= end and not any(p.gpa < stop and gpa < p.gpa + p.length for p in found.placed)


# The label at the end of an NVDIMM is not mapped, so a block may be larger than its entry.
def _nvdimms(
    found: Found,
    blocks: tuple[RAMBlock, ...],
    dimms: list[int],
    affinity: Sequence[MemoryAffinity],
) -> list[int]:
    left = list(dimms)
    entries = [m for m in affinity if m.plugged == "nvdimm"]
    # The entry that fits least blocks first.
    for entry in sorted(entries, key=lambda m: (-m.length, m.gpa)):
        larger = [i for i in left if blocks[i].used_length >= entry.length]
        nearest = min((blocks[i].used_length for i in larger), default=0)
        fits = [i for i in larger if blocks[i].used_length == nearest]
        if not fits:
            continue
        if len(fits) > 1:
            found.doubts.append(
                f"the guest's tables have an NVDIMM of {entry.length:#x} bytes at {entry.gpa:#x}, "
                f"and blocks of one size could be it: {names(blocks, fits)}; the first is taken"
            )
        left.remove(fits[0])
        found.placed.append(Placed(fits[0], entry.gpa, entry.length, 0, "firmware tables"))
        found.reasons.append(
            f"the guest's tables have an NVDIMM of the size of block {text(blocks[fits[0]])!r} "
            f"at {entry.gpa:#x}"
        )
    return left


# QEMU v7.2.0 hw/mem/memory-device.c memory_device_get_free_addr(): the first place that fits.
def _first_fit(
    found: Found, blocks: tuple[RAMBlock, ...], dimms: list[int], memory: DeviceMemory | None
) -> list[int]:
    if memory is None:
        return dimms
    placed, left = [], []
    for i in dimms:
        align = max(_ALIGNMENT, blocks[i].host_page_size or 0)
        gpa = memory.base
        for other in sorted(found.placed, key=lambda p: p.gpa):
            if other.gpa < gpa + blocks[i].used_length and gpa < other.gpa + other.length:
                gpa = -(-(other.gpa + other.length) // align) * align
        if _fits(found, blocks[i], gpa, memory.end):
            found.placed.append(Placed(i, gpa, blocks[i].used_length, 0, "machine rule"))
            placed.append(i)
        else:
            left.append(i)
    if placed:
        found.reasons.append(
            f"DIMMs are put where QEMU finds the first room for them from {memory.base:#x} on "
            f"({memory.source}): {names(blocks, placed)}"
        )
    if len(placed) > 1:
        found.doubts.append(
            f"no table tells the order of the DIMMs {names(blocks, placed)}: they are taken as "
            "plugged in this order, none unplugged since and none at an address of the user's; "
            "--layout overrules it"
        )
    return left
