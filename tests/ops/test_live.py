"""What iterable sections other than RAM amount to, against what was written and real streams."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.decoding import BytesSource
from tests.strategies import examples
from tests.streamwriter import Device, RamBlock, StreamWriter
from tests.truth import load_manifest, open_fixture
from vmstream.ops import live as ops_live
from vmstream.ops.inspect import inspect
from vmstream.ops.records import Records
from vmstream.report.models.inspect import InspectReport
from vmstream.report.models.live import HTABReport, LiveReport, StorageReport, VFIOReport

PAGE = 4096
MIB = 1 << 20


def report(data: bytes | bytearray) -> tuple[LiveReport, InspectReport]:
    found, _ = inspect(BytesSource(bytes(data)))
    assert found.live is not None
    return found.live, found


def stream(name: str, *parts: list[sw.LiveBytes], version: int = 1, tail: Any = ()) -> StreamWriter:
    """A stream with one such section: START, PARTs, END."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("mem", PAGE)])
    for i, records in enumerate(parts):
        kind = "START" if i == 0 else "PART" if i < len(parts) - 1 else "END"
        w.live_records(kind, 9, records, name, version)
    with w.ram_end():
        w.zero("mem", 0)
    for device in tail:
        w.device(device)
    w.eof()
    w.vmdescription()
    return w


def codes(found: InspectReport) -> list[str]:
    return [a.code for a in found.anomalies]


# ---- disks --------------------------------------------------------------------------------------


def test_a_real_block_migration() -> None:
    disks = load_manifest("blockmig-5.2-pc")["disks"]
    found, whole = report(open_fixture("blockmig-5.2-pc"))
    assert {d.device: d.end for d in found.block_devices} == {
        name: disk["size"] for name, disk in disks.items()
    }
    assert [(d.chunks, d.zero_chunks, d.resent, d.missing) for d in found.block_devices] == [
        (4, 0, 0, 0),
        (1, 0, 0, 0),
    ]
    section = next(s for s in whole.sections if s.idstr == "block")
    assert (section.framing, section.parts, section.ended) == ("records", 4, True)
    assert not whole.anomalies


def test_chunks_are_counted() -> None:
    chunks = [
        sw.block_chunk("a", 0, b"\1" * MIB),
        sw.block_chunk("a", 5 * MIB, None),
        sw.block_chunk(b"\xff", 0, None),
        sw.block_chunk("a", 0, None),
        sw.block_chunk("a", 5 * MIB, b"\1" * MIB),
    ]
    w = stream("block", [sw.block_end()], [*chunks, sw.block_end()], [sw.block_end()])
    found, whole = report(w.data)
    a, b = found.block_devices
    assert (a.device, a.device_b64) == ("a", None)
    assert (a.chunks, a.zero_chunks, a.resent, a.missing, a.end) == (2, 2, 2, 4, 6 * MIB)
    assert (b.device, b.device_b64, b.end) == ("\\xff", "/w==", MIB)
    assert codes(whole) == ["chunks-missing"]


@pytest.mark.parametrize(
    ("ends", "percent", "short"),
    [
        ([4, 1], 60, False),
        ([4, 1], 59, True),
        ([6, 7], 78, True),
        ([6, 10], 99, False),
        ([1], 0, False),
        ([2], 49, True),
        ([2], 50, False),
        ([1, 1, 1], 0, False),
        ([100], 98, True),
        ([100], 99, False),
    ],
)
def test_a_migration_that_ended_too_early(ends: list[int], percent: int, short: bool) -> None:
    """The progress on the way is that of all disks; the last MiB of each is not counted."""
    chunks = [
        sw.block_chunk(f"d{i}", at * MIB, None) for i, end in enumerate(ends) for at in range(end)
    ]
    part = [*chunks, sw.block_progress(percent), sw.block_end()]
    end = [sw.block_progress(100), sw.block_end()]
    _, whole = report(stream("block", [sw.block_end()], part, end).data)
    assert codes(whole) == ["chunks-missing"] * short
    # Where none was stated, there is nothing to compare.
    _, whole = report(stream("block", [sw.block_end()], [*chunks, sw.block_end()], end).data)
    assert codes(whole) == []


def test_disks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_live, "MAX_BLOCK_DEVICES", 3)
    chunks = [sw.block_chunk(f"d{i}", 0, None) for i in range(6)]
    found, whole = report(stream("block", [sw.block_end()], [*chunks, sw.block_end()]).data)
    assert [d.device for d in found.block_devices] == ["d0", "d1", "d2"]
    assert codes(whole) == ["many-disks"]


def test_disks_of_any_size_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which chunks were sent is kept only around where some were."""
    chunks = [sw.block_chunk("d", i << 40, None) for i in range(20)]
    w = stream("block", [sw.block_end()], [*chunks, sw.block_end()])
    found, whole = report(w.data)
    (disk,) = found.block_devices
    assert (disk.zero_chunks, disk.end) == (20, (19 << 40) + MIB)
    assert disk.missing == 19 * ((1 << 20) - 1)
    monkeypatch.setattr(ops_live, "_MAX_BITMAPS", 7)
    found, whole = report(w.data)
    assert found.block_devices[0].zero_chunks == 7
    assert codes(whole)[0] == "many-disks"


# ---- dirty bitmaps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "whole"),
    [([sw.bitmap_end()], True), ([sw.bitmap_start("disk", "b"), sw.bitmap_end()], False)],
)
def test_no_end_without_a_bitmap(start: list[sw.LiveBytes], whole: bool) -> None:
    """As QEMU 5.2 to 11.1 write it with the capability dirty-bitmaps and no bitmap."""
    _, found = report(stream("dirty-bitmap", start).data)
    assert found.complete is whole
    assert codes(found) == ([] if whole else ["no-end"])


def test_real_dirty_bitmaps() -> None:
    """Of three bitmaps none has a bit set, as QEMU said, too."""
    manifest = load_manifest("dirtybitmap-10.0-pc")
    found, whole = report(open_fixture("dirtybitmap-10.0-pc"))
    want = {
        (b["name"], b["granularity"], b["recording"], b["persistent"], b["count"])
        for b in manifest["dirty_bitmaps"]
    }
    assert want == {
        (b.name, b.granularity, b.enabled, b.persistent, b.bits_set * b.granularity)
        for b in found.dirty_bitmaps
    }
    for bitmap in found.dirty_bitmaps:
        assert bitmap.node == manifest["node"]
        assert bitmap.length == manifest["disk_size"]
        assert bitmap.complete
        assert bitmap.ranges == []
    assert not whole.anomalies


def pack(bits: list[int]) -> bytes:
    """Bits as QEMU has them: the lowest of the lowest byte first, padded to 32 bytes."""
    number = sum(bit << i for i, bit in enumerate(bits))
    return number.to_bytes(-(-len(bits) // 256) * 32, "little")


@settings(deadline=None, max_examples=examples(60))
@given(st.integers(0, 1 << 32), st.sampled_from((512, 4096, 65536)), st.integers(1, 3))
def test_bits(seed: int, granularity: int, chunks: int) -> None:
    rng = random.Random(seed)
    per_chunk = 512
    total = per_chunk * (chunks - 1) + rng.randrange(1, per_chunk)
    bits = [int(rng.random() < rng.choice((0.02, 0.5, 0.98))) for _ in range(total)]
    short = rng.randrange(granularity // 512) * 512  # the last bit stands for less
    size = total * granularity - short
    parts = []
    for at in range(0, total, per_chunk):
        part = bits[at : at + per_chunk]
        first = at * granularity
        sectors = (min(size, first + per_chunk * granularity) - first) >> 9
        raw = pack(part) if any(part) else None
        parts.append([sw.bitmap_bits(first >> 9, sectors, raw), sw.bitmap_end()])
    start = [sw.bitmap_start("disk0", "b", granularity, 3), sw.bitmap_end()]
    end = [sw.bitmap_complete(), sw.bitmap_end()]
    found, whole = report(stream("dirty-bitmap", start, *parts, end).data)
    (bitmap,) = found.dirty_bitmaps
    assert bitmap.bits_set == sum(bits)
    assert (bitmap.length, bitmap.complete) == (size, True)
    assert bitmap.range_count == len(bitmap.ranges)
    # The ranges are the bits, and no two of them touch.
    dirty = {
        at
        for begin, length in bitmap.ranges
        for at in range(begin // granularity, -(-(begin + length) // granularity))
    }
    assert dirty == {i for i, bit in enumerate(bits) if bit}
    assert all(a[0] + a[1] < b[0] for a, b in zip(bitmap.ranges, bitmap.ranges[1:], strict=False))
    assert all(begin + length <= size for begin, length in bitmap.ranges)
    assert not whole.anomalies


def test_bitmaps_as_they_are() -> None:
    start = [
        sw.bitmap_start("n", "off", 512, 2),
        sw.bitmap_start(b"\xfe", b"\xff", 1 << 20, 1),
        sw.bitmap_end(),
    ]
    end = [sw.bitmap_complete("n", "off"), sw.bitmap_end()]
    found, _ = report(stream("dirty-bitmap", start, end).data)
    off, odd = found.dirty_bitmaps
    assert (off.enabled, off.persistent, off.complete, off.length) == (False, True, True, 0)
    assert (odd.enabled, odd.persistent, odd.complete) == (True, False, False)
    assert (odd.node, odd.node_b64, odd.name_b64) == ("\\xfe", "/g==", "/w==")


def test_ranges_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_live, "MAX_DIRTY_RANGES", 5)
    start = [sw.bitmap_start("n", "a", 512), sw.bitmap_start("n", "b", 512), sw.bitmap_end()]
    bits = [
        sw.bitmap_bits(0, 64, b"\x55" * 32, "n", "a"),
        sw.bitmap_bits(0, 64, b"\x11" * 32, "n", "b"),
        sw.bitmap_bits(64, 64, b"\x11" * 32, "n", "a"),
    ]
    found, _ = report(stream("dirty-bitmap", start, [*bits, sw.bitmap_end()]).data)
    a, b = found.dirty_bitmaps
    assert (a.bits_set, a.range_count, len(a.ranges)) == (48, 48, 5)
    assert (b.bits_set, b.range_count, len(b.ranges)) == (16, 16, 0)
    assert a.ranges == [[i * 1024, 512] for i in range(5)]


def test_bits_out_of_order_are_told() -> None:
    start = [sw.bitmap_start("n", "a", 512), sw.bitmap_end()]
    bits = [sw.bitmap_bits(64, 64, b"\1" * 32), sw.bitmap_bits(0, 64, b"\1" * 32)]
    found, whole = report(stream("dirty-bitmap", start, [*bits, *bits, sw.bitmap_end()]).data)
    assert codes(whole) == ["bitmap-order"]
    assert found.dirty_bitmaps[0].bits_set == 32
    assert found.dirty_bitmaps[0].length == 64 << 10


# ---- others -------------------------------------------------------------------------------------


def test_a_hash_page_table() -> None:
    entries = [sw.htab_chunk(9, [b"e" * 16] * 3, 2), sw.htab_chunk(0, [], 7), sw.htab_end()]
    parts = [sw.htab_head(0), *entries]
    found, _ = report(stream("spapr/htab", [sw.htab_head(24)], parts, parts).data)
    assert found.htab == HTABReport(24, False, 6, 18)
    found, _ = report(stream("spapr/htab", [sw.htab_head(-1)], [sw.htab_head(-1)]).data)
    assert found.htab == HTABReport(None, True, 0, 0)
    found, _ = report(open_fixture("ppc64-10.0-pseries"))
    assert found.htab == HTABReport(21, False, 0, 0)


def test_entries_of_a_real_hash_page_table() -> None:
    """A program entered a page into each of some groups: the entry is the first of its group."""
    groups = load_manifest("own-ppc64-htab")["htab"]["groups"]
    data = open_fixture("own-ppc64-htab")
    found, whole = report(data)
    assert found.htab == HTABReport(21, False, len(groups), 0)
    assert not whole.anomalies
    chunks = list(Records(BytesSource(data), kinds=("htab-chunk",)))
    assert [c.fields["index"] for c in chunks] == groups
    for chunk in chunks:
        entry = data[chunk.end - 16 : chunk.end]
        # Valid, of the first page; the page it stands for, in memory (M). QEMU v7.2.0
        # target/ppc/mmu-hash64.h HPTE64_V_VALID, HPTE64_R_WIMG.
        assert int.from_bytes(entry[:8], "big") & 1
        place = int.from_bytes(entry[8:], "big")
        assert place & 0x78 == 0x10
        assert place & 0x7000 == int(str(chunk.fields["index"])) << 12 & 0x7000


def test_storage_attributes() -> None:
    values = [
        sw.storage_values(0x10000, b"a" * 4),
        sw.storage_values(0x14000, b"b" * 4),
        sw.storage_values(0, b"c"),
        sw.storage_values(0x9000, b""),
        sw.storage_end(),
    ]
    w = stream(
        "s390-storage_attributes",
        [sw.storage_end()],
        values,
        [sw.storage_done(), sw.storage_end()],
        version=0,
    )
    found, _ = report(w.data)
    assert found.storage_attributes == StorageReport(9, [[0x10000, 8], [0, 1]], 2)
    found, _ = report(open_fixture("s390x-10.0"))
    assert found.storage_attributes == StorageReport(0, [], 0)
    assert found.storage_keys == StorageReport(0, [], 0)


def keys(*records: sw.LiveBytes, more: bytes = b"") -> InspectReport:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("mem", PAGE)])
    with w.ram_end():
        w.zero("mem", 0)
    body = b"".join(raw for _, raw in records) + more
    w.device(Device("s390-skeys", 0, 1, old_style=body))
    w.eof()
    w.vmdescription()
    return inspect(BytesSource(bytes(w)))[0]


def test_storage_keys() -> None:
    found = keys(
        sw.storage_values(0, b"k" * 100), sw.storage_values(1 << 32, b"k" * 50), sw.storage_end()
    )
    assert found.live is not None
    assert found.live.storage_keys == StorageReport(150, [[0, 100], [1 << 32, 50]], 2)
    assert not found.anomalies


def test_real_storage_keys() -> None:
    want = load_manifest("own-s390x-keys")["storage_keys"]
    data = open_fixture("own-s390x-keys")
    found, whole = report(data)
    assert found.storage_keys == StorageReport(want["pages"], [[0, want["pages"]]], 1)
    assert "storage-keys" not in codes(whole)
    section = next(s for s in whole.sections if s.idstr == "s390-skeys")
    assert section.body_size == 16 + want["pages"] + 8
    body = data[section.body_offset + 16 :][: want["pages"]]
    # The low bits say whether the page was used and changed.
    assert {key & 0xF0 for key in body[: want["first"]]} == {want["key"]}
    assert {key & 0xF0 for key in body[want["first"] :]} == {0}


@pytest.mark.parametrize(
    ("records", "more"),
    [
        ([sw.storage_error()], b""),
        ([sw.storage_values(0, b"k" * 100)], b""),
        ([sw.storage_values(0, b"k", count=1 << 50)], b""),
        ([sw.storage_end()], b"more"),
        ([sw.storage_done(), sw.storage_end()], b""),
        ([], b"\0"),
    ],
)
def test_storage_keys_that_are_none(records: list[sw.LiveBytes], more: bytes) -> None:
    found = keys(*records, more=more)
    assert found.live is None
    assert codes(found) == ["storage-keys"]


def test_ranges_of_storage_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_live, "MAX_STORAGE_RANGES", 3)
    found = keys(*[sw.storage_values(i << 20, b"k") for i in range(9)], sw.storage_end())
    assert found.live is not None
    assert found.live.storage_keys == StorageReport(9, [[i << 20, 1] for i in range(3)], 9)


def test_vfio() -> None:
    parts = [sw.vfio_data(b"x" * 100), sw.vfio_data(b""), sw.vfio_tag(5)]
    w = stream(
        "0000:00:03.0/vfio",
        [sw.vfio_tag(3), sw.vfio_tag(1)],
        parts,
        [sw.vfio_data(b"y" * (3 * MIB)), sw.vfio_tag(1)],
    )
    found, whole = report(w.data)
    assert found.vfio == [VFIOReport("0000:00:03.0/vfio", 0, 3, 100 + 3 * MIB)]
    assert next(s for s in whole.sections if "vfio" in s.idstr).framing == "records"


def test_a_vfio_device_with_its_configuration_in_the_end() -> None:
    """What is inferred of a section stays named so."""
    w = stream("vfio", [sw.vfio_tag(3), sw.vfio_tag(1)], [sw.vfio_tag(2), sw.vfio_tag(1)])
    found, whole = report(w.data)
    assert found.vfio == [VFIOReport("vfio", 0, 0, 0)]
    assert next(s for s in whole.sections if s.idstr == "vfio").framing == "footer-scan"


def test_the_state_of_proxmox_backup_has_no_end() -> None:
    found, whole = report(stream("pbs-state", [sw.pbs_state(b"{}" * 99)]).data)
    assert found.pbs_state_size == 198
    assert whole.complete
    assert not whole.anomalies


def test_nothing_to_tell() -> None:
    assert inspect(BytesSource(open_fixture("plain-7.2-pc")))[0].live is None
