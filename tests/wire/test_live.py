"""Records of iterable sections, against bytes of a writer that shares no code with the reader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, get_args

import pytest

from tests import streamwriter as sw
from vmstream.errors import FormatError, IntegrityError
from vmstream.wire import live
from vmstream.wire.live import Item
from vmstream.wire.parse import Short

MIB = 1 << 20
AT = 0x5000

Parse = Callable[[bytes], Item]


def block(data: bytes) -> Item:
    return live.block_record(data, AT)


def bitmap(data: bytes) -> Item:
    return live.bitmap_record(data, AT, b"node", b"name")


def storage(data: bytes) -> Item:
    return live.storage_record(data, AT)


def keys(data: bytes) -> Item:
    return live.storage_record(data, AT, keys=True)


def vfio(data: bytes) -> Item:
    return live.vfio_record(data, AT)


def chunk(data: bytes) -> Item:
    return live.htab_chunk(data, AT, 1 << 14)


def head(data: bytes) -> Item:
    return live.htab_head(data, AT, start=False)


def start(data: bytes) -> Item:
    return live.htab_head(data, AT, start=True)


CASES: list[tuple[Parse, sw.LiveBytes, live.Record, dict[str, Any]]] = [
    (
        block,
        sw.block_chunk("vda", 3 * MIB, b"\1" * MIB),
        live.BlockChunk(b"vda", 3 * MIB, False),
        {"size": MIB},
    ),
    (block, sw.block_chunk(b"\xff/..", 0, None), live.BlockChunk(b"\xff/..", 0, True), {}),
    (block, sw.block_chunk("", 1 << 62, None), live.BlockChunk(b"", 1 << 62, True), {}),
    (block, sw.block_progress(0), live.BlockProgress(0), {}),
    (block, sw.block_progress(100), live.BlockProgress(100), {}),
    (block, sw.block_end(), live.BodyEnd(), {"last": True}),
    (
        bitmap,
        sw.bitmap_start("disk0", "b0", 512, 0),
        live.BitmapStart(b"disk0", b"b0", 512, False, False),
        {},
    ),
    (
        bitmap,
        sw.bitmap_start(None, "b1", 1 << 31, 7),
        live.BitmapStart(b"node", b"b1", 1 << 31, True, True),
        {},
    ),
    (
        bitmap,
        sw.bitmap_start("disk0", None, 4096, 2),
        live.BitmapStart(b"disk0", b"name", 4096, False, True),
        {},
    ),
    (
        bitmap,
        sw.bitmap_bits(8, 16, b"\x0f" * 32),
        live.BitmapBits(b"node", b"name", 4096, 8192, False),
        {"size": 32},
    ),
    (
        bitmap,
        sw.bitmap_bits(0, 0xFFFFFFFF, None, "n", "b"),
        live.BitmapBits(b"n", b"b", 0, 0xFFFFFFFF << 9, True),
        {},
    ),
    (bitmap, sw.bitmap_complete(), live.BitmapComplete(b"node", b"name"), {}),
    (bitmap, sw.bitmap_complete("n", "b"), live.BitmapComplete(b"n", b"b"), {}),
    (bitmap, sw.bitmap_end(), live.BodyEnd(), {"last": True}),
    (start, sw.htab_head(24), live.HTABHead(24), {"last": True}),
    (start, sw.htab_head(-1), live.HTABHead(-1), {"last": True}),
    (head, sw.htab_head(-1), live.HTABHead(-1), {"last": True}),
    (head, sw.htab_head(0), live.HTABHead(0), {}),
    (chunk, sw.htab_chunk(7, [b"e" * 16] * 3, 5), live.HTABChunk(7, 3, 5), {"size": 48}),
    (chunk, sw.htab_chunk(0, [], 5), live.HTABChunk(0, 0, 5), {}),
    (chunk, sw.htab_end(), live.BodyEnd(), {"last": True}),
    (
        storage,
        sw.storage_values(0x7000, b"abcde"),
        live.StorageValues(0x7000, 5),
        {"size": 5},
    ),
    (storage, sw.storage_done(), live.StorageDone(), {}),
    (storage, sw.storage_end(), live.BodyEnd(), {"last": True}),
    (keys, sw.storage_values(0, b""), live.StorageValues(0, 0), {}),
    (keys, sw.storage_end(), live.BodyEnd(), {"last": True}),
    (vfio, sw.vfio_tag(1), live.BodyEnd(), {"last": True}),
    (vfio, sw.vfio_tag(2), live.VFIOTag("DEV_CONFIG_STATE"), {"opaque": True}),
    (vfio, sw.vfio_tag(3), live.VFIOTag("DEV_SETUP_STATE"), {}),
    (vfio, sw.vfio_data(b"state"), live.VFIOData(5), {"size": 5}),
    (vfio, sw.vfio_data(b"", size=1 << 63), live.VFIOData(1 << 63), {"size": 1 << 63}),
    (vfio, sw.vfio_tag(5), live.VFIOTag("DEV_INIT_DATA_SENT"), {"last": True}),
    (vfio, sw.vfio_tag(6), live.VFIOTag("DEV_CONFIG_LOAD_READY"), {"last": True}),
    (live.backup_state, sw.pbs_state(b"{}"), live.BackupState(2), {"size": 2, "last": True}),
]


@pytest.mark.parametrize(("parse", "made", "record", "more"), CASES)
def test_records(
    parse: Parse, made: sw.LiveBytes, record: live.Record, more: dict[str, Any]
) -> None:
    kind, raw = made
    size = more.get("size", 0)
    present = size if size < 1 << 60 else 0
    assert parse(raw + b"\xa5" * 9) == Item(record, len(raw) - present, **more)
    assert record.kind == kind
    # Every shorter head says how much it takes, and no more than there is of it.
    for cut in range(len(raw) - present):
        with pytest.raises(Short) as short:
            parse(raw[:cut])
        assert cut < short.value.size <= len(raw) - present


def test_kinds_are_those_of_the_records() -> None:
    assert [record.kind for record in get_args(live.Record)] == list(live.KINDS)
    assert len(set(live.KINDS)) == len(live.KINDS)


def refused(parse: Parse, raw: bytes, word: str, at: int = 0) -> None:
    with pytest.raises(FormatError) as error:
        parse(raw)
    assert error.value.offset == AT + at
    assert word in str(error.value)


@pytest.mark.parametrize("flags", [0, 3, 5, 6, 8, 10, 0x11, 0x100, 0x101, 0x1FF])
def test_flags_of_a_disk(flags: int) -> None:
    refused(block, sw.be64(flags) + b"\3vda" + bytes(MIB), "word")


def test_places_on_a_disk() -> None:
    refused(block, sw.block_chunk("vda", 512, None)[1], "chunk at 0x200")
    refused(block, sw.block_chunk("vda", (1 << 64) - MIB, None)[1], "8 EiB")
    refused(block, sw.block_chunk("vda", (1 << 63) - MIB, None)[1], "8 EiB")
    refused(block, sw.block_progress(101)[1], "word")
    refused(block, sw.be64(1 << 9 | 2), "word")


@pytest.mark.parametrize(
    "flags", [0, 2, 3, 4, 0x0C, 0x11, 0x12, 0x22, 0x30, 0x50, 0x60, 0x80, 0xC0]
)
def test_flags_of_a_bitmap(flags: int) -> None:
    refused(bitmap, sw.u8(flags) + b"\1a\1b" + bytes(40), "flags")


def test_values_of_a_bitmap() -> None:
    for granularity in (0, 1, 256, 513, 65535):
        refused(bitmap, sw.bitmap_start(None, None, granularity)[1], "granularity", 1)
    for flags in (8, 0x10, 0x80):
        refused(bitmap, sw.bitmap_start(None, None, 512, flags)[1], "flags", 5)
    refused(bitmap, sw.bitmap_bits(0, 0, None)[1], "bits of 0x0 bytes")
    refused(bitmap, sw.bitmap_bits((1 << 54) - 1, 8, None)[1], "8 EiB")
    refused(bitmap, sw.bitmap_bits(0, 8, b"", size=10241)[1], "10241", 13)
    refused(bitmap, sw.bitmap_complete("", "b")[1], "no name")
    for node, name in ((None, b"b"), (b"n", None), (None, None)):
        with pytest.raises(FormatError, match="no name"):
            live.bitmap_record(sw.bitmap_complete()[1], AT, node, name)


def test_sizes_of_a_hash_page_table() -> None:
    for shift in (-2, -(1 << 31), 0, 1, 17, 47):
        refused(start, sw.htab_head(shift)[1], "shift")
    for shift in (-2, 1, 18, 24):
        refused(head, sw.htab_head(shift)[1], "shift")


def test_entries_beyond_a_hash_page_table() -> None:
    assert chunk(sw.htab_chunk((1 << 14) - 3, [bytes(16)] * 2, 1)[1]).size == 32
    raw = sw.htab_chunk((1 << 14) - 3, [bytes(16)] * 2, 2)[1]
    with pytest.raises(IntegrityError, match="at most 16384"):
        chunk(raw)
    assert live.htab_chunk(raw, AT, None).size == 32


def test_storage_of_another_kind() -> None:
    for flags in (0, 3, 0x10, 0x800, 0xFFF):
        refused(storage, sw.be64(flags) + bytes(8), "word")
    refused(keys, sw.storage_done()[1], "word")
    refused(storage, sw.storage_values(1 << 63, b"", count=1 << 60)[1], "address space")
    with pytest.raises(IntegrityError, match="incomplete"):
        keys(sw.storage_error()[1])
    # The last page there can be.
    assert storage(sw.storage_values((1 << 64) - 4096, b"", count=1)[1]).size == 1


@pytest.mark.parametrize("word", [0, 1, 0xFFFFFFFFEF100000, 0xFFFFFFFFEF100007, (1 << 64) - 1])
def test_unknown_tags(word: int) -> None:
    refused(vfio, struct.pack(">Q", word), "tag")
