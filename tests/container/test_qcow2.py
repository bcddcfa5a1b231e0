"""VM state in qcow2 images: real ones against the guest's memory, any cluster, hostile ones."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.commandline import vmstream
from tests.decoding import assert_tiles, owned
from tests.ops.test_extract import pipe_of
from tests.qcow2images import COPIED, FULL, PACKED, Image, Saved, build
from tests.strategies import examples
from tests.streamwriter import simple_stream
from tests.truth import (
    check_block,
    known_blocks,
    open_fixture,
    qcow2_file,
    qcow2_names,
    snapshot_manifests,
)
from vmstream.container import qcow2
from vmstream.container.qcow2 import Qcow2Image, VMStateSource, read_image
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    VmstreamError,
)
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.inspect import inspect
from vmstream.ops.pipeline import events
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event, PageBatch
from vmstream.transport.source import FileSource, OpenSource
from vmstream.wire import grammar

MIB = 1 << 20
STREAM = random.Random(3).randbytes(70_001)
# What compresses, so that a compressed cluster is smaller than one.
TEXT = b"".join(b"line %d of a text that compresses\n" % i for i in range(2500))

ALL_SNAPSHOTS = [
    (name, snapshot) for name in qcow2_names() for snapshot in snapshot_manifests(name)
]


@contextmanager
def opened(data: bytes | bytearray | Path) -> Iterator[FileSource]:
    """An image as a file."""
    if isinstance(data, Path):
        fd = os.open(data, os.O_RDONLY)
    else:
        fd = os.memfd_create("image")
        os.write(fd, data)
    source = FileSource(fd, "image")
    try:
        yield source
    finally:
        source.close()


def whole(source: VMStateSource) -> bytes:
    """Everything, window by window; each keeps what the protocol promises."""
    parts, offset, end = [], 0, False
    while not end:
        view, base, end = source.window(offset, 1)
        assert base == offset
        assert len(view) >= 1 or end
        assert view.readonly
        parts.append(bytes(view))
        offset += len(view)
    assert offset == source.size
    return b"".join(parts)


def state(image: bytes | bytearray | Path, name: str | None = None) -> bytes:
    with opened(image) as source:
        found = read_image(source)
        return whole(VMStateSource(source, found, found.choose(name)))


def fault(image: bytes | bytearray, name: str | None = None) -> VmstreamError:
    """The error that reading it all ends in."""
    with pytest.raises(VmstreamError) as caught:
        state(image, name)
    assert str(caught.value).isprintable()
    return caught.value


# -- images of QEMU -------------------------------------------------------------------------------


def test_there_are_images() -> None:
    assert len(ALL_SNAPSHOTS) == 4


@pytest.mark.parametrize(("name", "snapshot"), ALL_SNAPSHOTS)
def test_every_block_is_the_guests(name: str, snapshot: str, tmp_path: Path) -> None:
    truth = snapshot_manifests(name)[snapshot]
    with OpenSource(qcow2_file(name, tmp_path)) as source:
        image = read_image(source)
        stream = VMStateSource(source, image, image.choose(snapshot))
        report, code = extract(stream, ExtractOptions(all_blocks=tmp_path / "out"))
    assert (code, report.anomalies, report.complete) == (0, [], True)
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    files = {b["idstr"]: b["file"] for b in account["blocks"]}
    known = known_blocks(truth)
    assert len(known) >= 5
    for block in known:
        assert check_block(truth, block, tmp_path / "out" / files[block])


@pytest.mark.parametrize(("name", "snapshot"), ALL_SNAPSHOTS)
@pytest.mark.parametrize("quick", [False, True])
def test_inspect(name: str, snapshot: str, quick: bool, tmp_path: Path) -> None:
    """The stream is whole, and ends where the VM state does."""
    with OpenSource(qcow2_file(name, tmp_path)) as source:
        image = read_image(source)
        stream = VMStateSource(source, image, image.choose(snapshot))
        report, code = inspect(stream, quick=quick)
    assert code == 0
    assert report.complete
    assert report.size == report.end_offset == stream.size
    if not quick:
        assert ("switchover-start" in report.features) == (name == "savevm-10.0-q35")


@pytest.mark.parametrize("name", qcow2_names())
def test_what_the_table_says(name: str, tmp_path: Path) -> None:
    with OpenSource(qcow2_file(name, tmp_path)) as source:
        image = read_image(source)
    assert image.header.version == 3
    assert image.header.cluster_bits == 16
    assert image.notes == ()
    assert [(s.id_str, s.name) for s in image.snapshots] == [(b"1", b"first"), (b"2", b"second")]
    for s in image.snapshots:
        assert s.disk_size == image.header.size == 8 * MIB
        assert s.icount is None
        assert 2 * MIB < s.vm_state_size < 3 * MIB
        assert 0 < s.vm_clock_nsec < 10 * 10**9
        assert s.date_sec > 1_600_000_000
        assert s.date_nsec < 10**9


# -- clusters of every kind -----------------------------------------------------------------------

KINDS = "data zero data data packed hole empty packed packed data data data"
SHAPES = [
    {"cluster_bits": 9},
    {"cluster_bits": 9, "backwards": True},
    {"cluster_bits": 12, "compression": 1},
    {"cluster_bits": 16},
    {"cluster_bits": 14, "extended": True},
    {"cluster_bits": 15, "extended": True, "compression": 1},
    {"cluster_bits": 21},
]


def kinds_of(shape: dict[str, object]) -> str:
    return KINDS + " sub sub data sub" if shape.get("extended") else KINDS


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kind_of_cluster(shape: dict[str, object]) -> None:
    image = build(
        [Saved("a", TEXT, kinds_of(shape)), Saved("b", TEXT[::-1], kinds_of(shape), id="2")],
        **shape,  # type: ignore[arg-type]
    )
    assert [state(image.data, "a"), state(image.data, "b")] == image.truth
    assert image.truth[0] != TEXT or shape["cluster_bits"] == 21


def test_plain_clusters_of_version_2() -> None:
    image = build([Saved("a", STREAM, "data packed hole data", extra=b"")], version=2)
    assert state(image.data) == image.truth[0]


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@given(data=st.data())
@settings(max_examples=examples(25))
def test_any_window(shape: dict[str, object], data: st.DataObject) -> None:
    """In any order, of any length: the same bytes."""
    image = build([Saved("a", TEXT, kinds_of(shape))], **shape)  # type: ignore[arg-type]
    truth = image.truth[0]
    sizes = st.tuples(st.integers(0, len(truth) + 5), st.integers(1, len(truth)))
    with pytest.MonkeyPatch.context() as patch, opened(image.data) as source:
        patch.setattr(qcow2, "READ_WINDOW", data.draw(st.sampled_from([1, 700, 5000])))
        patch.setattr(qcow2, "_L2_CACHE", 1)
        if data.draw(st.booleans()):
            patch.setattr(FileSource, "_is_cached", lambda self, begin, stop: True)
        found = read_image(source)
        stream = VMStateSource(source, found, found.choose())
        for offset, need in data.draw(st.lists(sizes, min_size=1, max_size=8)):
            view, base, at_end = stream.window(offset, need)
            assert base == offset
            assert view == truth[offset : offset + len(view)]
            assert len(view) >= min(need, max(0, len(truth) - offset))
            assert at_end == (offset + len(view) >= len(truth))
            # The same at another place, with the window left as it is.
            held, other = bytes(view), data.draw(st.integers(0, len(truth)))
            buffer = bytearray(need)
            got = stream.read_into(other, memoryview(buffer))
            assert got == min(need, len(truth) - other)
            assert buffer[:got] == truth[other : other + got]
            assert view == held


def test_runs_are_long() -> None:
    """Clusters that follow each other are read at once."""
    image = build([Saved("a", bytes(4 * MIB))], cluster_bits=12)
    reads = []
    with opened(image.data) as source:
        found = read_image(source)
        stream = VMStateSource(source, found, found.choose())
        into = source.read_into
        source.read_into = lambda o, b: reads.append(len(b)) or into(o, b)  # type: ignore
        whole(stream)
    # 4 KiB of L2 table cover 2 MiB.
    assert [n for n in reads if n != 4096] == [2 * MIB, 2 * MIB]


def test_long_runs_are_windows_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not copied where the page cache has them, and as exact."""
    data = random.Random(2).randbytes(24 * MIB + 77)
    image = build([Saved("a", data)], cluster_bits=16)
    monkeypatch.setattr(FileSource, "_is_cached", lambda self, begin, stop: True)
    reads = []
    with opened(image.data) as source:
        found = read_image(source)
        stream = VMStateSource(source, found, found.choose())
        into = source.read_into
        source.read_into = lambda o, b: reads.append(len(b)) or into(o, b)  # type: ignore
        view, base, at_end = stream.window(5, 9 * MIB)
        assert (base, at_end, len(view)) == (5, True, len(data) - 5)
        assert view == data[5:]
        assert whole(stream) == data
    assert sum(reads) == 65536  # the L2 table


def test_a_file_that_becomes_shorter() -> None:
    image = build([Saved("a", bytes(24 * MIB))], cluster_bits=16)
    with opened(image.data) as source:
        found = read_image(source)
        stream = VMStateSource(source, found, found.choose())
        stream.window(0, 1)
        os.truncate(f"/proc/self/fd/{source._fd}", 20 * MIB)
        for offset in (10 * MIB, 21 * MIB):
            with pytest.raises(TruncatedError):
                stream.window(offset, 13 * MIB if offset < 20 * MIB else 1)


def test_a_stream_through_it() -> None:
    raw = bytes(simple_stream())
    image = build([Saved("a", raw, "data packed")], compression=1)
    with opened(image.data) as source:
        found = read_image(source)
        report, code = inspect(VMStateSource(source, found, found.choose()))
    assert (code, report.complete, report.size) == (0, True, len(raw))


def test_manifest(tmp_path: Path) -> None:
    """The digest is that of the stream, not of the image."""
    raw = bytes(simple_stream())
    options = ExtractOptions(all_blocks=tmp_path / "out", manifest=tmp_path / "account")
    with opened(build([Saved("a", raw)]).data) as source:
        found = read_image(source)
        report, _ = extract(VMStateSource(source, found, found.choose()), options)
    assert report.input_sha256 == hashlib.sha256(raw).hexdigest()
    assert report.input_size == len(raw)


def test_a_fault_leaves_no_output(tmp_path: Path) -> None:
    raw = open_fixture("plain-11.1-pc")
    image = build([Saved("a", raw)], cluster_bits=16)
    image.put(image.places["l2", 0] + 8 * 20, "Q", 1 << 50)
    (tmp_path / "out").mkdir()
    with opened(image.data) as source:
        found = read_image(source)
        stream = VMStateSource(source, found, found.choose())
        with pytest.raises(TruncatedError):
            extract(stream, ExtractOptions(output=tmp_path / "out" / "ram", block="pc.ram"))
        report, code = inspect(stream)
    assert (code, report.anomalies[0].code) == (3, "truncated")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_size_of_the_snapshot_counts() -> None:
    """The disk was made larger since."""
    image = build([Saved("a", STREAM)], disk_size=1 << 20)
    image.put(24, "Q", 1 << 30)
    assert state(image.data) == STREAM


def test_a_backing_file_has_no_vm_state() -> None:
    """What is behind the end of the disk is not looked for there: QEMU reads zeros."""
    image = build([Saved("a", STREAM, "data hole")], header={"backing_file_offset": 400})
    assert state(image.data) == image.truth[0] != STREAM


def test_the_large_size_counts() -> None:
    image = build([Saved("a", STREAM, fields={"vm_state_size": 0})])
    assert state(image.data) == STREAM
    image = build([Saved("a", STREAM, extra=len(STREAM).to_bytes(8, "big"))])
    with opened(image.data) as source:
        (snapshot,) = read_image(source).snapshots
    assert (snapshot.vm_state_size, snapshot.disk_size) == (len(STREAM), None)
    assert state(image.data) == STREAM


def test_the_file_may_end_inside_the_last_cluster() -> None:
    """QEMU writes what there is: bytes behind the VM state are not needed."""
    image = build([Saved("a", b"x" * 600)], cluster_bits=12)
    at = image.get(image.places["l2", 0]) & ((1 << 56) - 1)
    moved = len(image.data)
    image.put(image.places["l2", 0], "Q", moved)
    image.data += image.data[at : at + 600]
    assert state(image.data) == b"x" * 600
    error = fault(image.data[:-1])
    assert isinstance(error, TruncatedError)
    assert error.offset == len(image.data) - 1


# -- which snapshot -------------------------------------------------------------------------------


def image_of(*saved: Saved) -> Qcow2Image:
    with opened(build(saved).data) as source:
        return read_image(source)


def test_choose() -> None:
    image = image_of(
        Saved("2", b"x", id="1"), Saved("b", b"y", id="2"), Saved("disk", b"", id="3"),
        Saved("twice", b"z", id="4"), Saved("twice", b"z", id="5"), Saved(b"\xff", b"z", id="6"),
        Saved("half", b"", id="7"), Saved("half", b"z", id="8"),
    )  # fmt: skip
    by = {wanted: image.choose(wanted).id_str for wanted in ("2", "b", "1", "4", "5", "half")}
    assert by == {"2": b"1", "b": b"2", "1": b"1", "4": b"4", "5": b"5", "half": b"8"}
    assert image.choose(os.fsdecode(b"\xff")).id_str == b"6"
    for wanted, words in {
        "none": ["no snapshot 'none'", "'b' (id '2')", "'twice' (id '4')", "'twice' (id '5')"],
        "disk": ["'disk' is of disks alone", "'b' (id '2')"],
        "twice": ["2 snapshots are 'twice'", "(id '4')", "(id '5')"],
        None: ["6 snapshots with VM state", "'2' (id '1')"],
    }.items():
        with pytest.raises(OutputError) as caught:
            image.choose(wanted)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_only_one_is_the_default() -> None:
    image = image_of(Saved("disk", b"", id="1"), Saved("a", b"x", id="2"))
    assert image.choose().name == b"a"


def test_none_has_vm_state() -> None:
    for image in (image_of(), image_of(Saved("disk", b""))):
        for wanted in (None, "disk"):
            with pytest.raises(FormatError, match="no snapshot of this image has VM state"):
                image.choose(wanted)


def test_many_names_are_not_all_listed() -> None:
    image = image_of(*(Saved(f"n{i}", b"x", id=str(i)) for i in range(50)))
    with pytest.raises(OutputError, match="and 30 more"):
        image.choose()


def test_names_are_harmless_in_messages() -> None:
    image = image_of(Saved("\x1b[31m\n", b"x", id="1"), Saved(b"\xff\0", b"x", id="2"))
    with pytest.raises(OutputError) as caught:
        image.choose()
    assert str(caught.value).isprintable()


# -- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "features", "word", "offset"),
    [
        ({"crypt_method": 1}, 0, "AES", 32),
        ({"crypt_method": 2}, 0, "LUKS", 32),
        ({"crypt_method": 9}, 0, "unknown method", 32),
        ({}, 4, "another file", 72),
    ],
)
def test_images_that_are_listed_but_not_read(
    header: dict[str, int], features: int, word: str, offset: int
) -> None:
    image = build([Saved("a", STREAM)], header=header, features=features)
    with opened(image.data) as source:
        found = read_image(source)
    assert [s.name for s in found.snapshots] == [b"a"]
    assert len(found.notes) == 1
    error = fault(image.data)
    assert isinstance(error, UnsupportedError)
    assert word in str(error)
    assert error.offset == offset
    assert error.advice


@pytest.mark.parametrize(("bit", "word"), [(1, "dirty"), (2, "corrupt")])
def test_images_that_are_read_with_a_note(bit: int, word: str) -> None:
    image = build([Saved("a", STREAM)], features=bit)
    with opened(image.data) as source:
        (note,) = read_image(source).notes
    assert word in note
    assert state(image.data) == STREAM


def test_a_pipe() -> None:
    with (
        pipe_of(bytes(build([Saved("a", STREAM)]).data)) as source,
        pytest.raises(UnsupportedError, match="save it to a file"),
    ):
        read_image(source)


Spoil = Callable[[Image], object]
L2, VM_L1, ENTRY = ("l2", 0), ("vm-l1", 0), ("entry", 0)
HOSTILE: dict[str, tuple[type[StreamError], Spoil, int | tuple[str, int] | None]] = {
    "magic": (FormatError, lambda i: i.put(0, "I", 0), 0),
    "version 1": (UnsupportedError, lambda i: i.put(4, "I", 1), 4),
    "version 4": (UnsupportedError, lambda i: i.put(4, "I", 4), 4),
    "cluster bits 8": (FormatError, lambda i: i.put(20, "I", 8), 20),
    "cluster bits 22": (FormatError, lambda i: i.put(20, "I", 22), 20),
    "cluster bits 2^32-1": (FormatError, lambda i: i.put(20, "I", FULL), 20),
    "small extended": (FormatError, lambda i: i.put(72, "Q", 16), 20),
    "unknown feature": (UnsupportedError, lambda i: i.put(72, "Q", 1 << 5), 72),
    "unknown feature 63": (UnsupportedError, lambda i: i.put(72, "Q", 1 << 63), 72),
    "header length": (FormatError, lambda i: i.put(100, "I", 103), 100),
    "compression without bit": (FormatError, lambda i: i.put(104, "B", 1), 104),
    "bit without compression": (FormatError, lambda i: i.put(72, "Q", 8), 104),
    "unknown compression": (
        UnsupportedError, lambda i: (i.put(72, "Q", 8), i.put(104, "B", 2)), 104
    ),
    "2^32-1 snapshots": (LimitError, lambda i: i.put(60, "I", FULL), 60),
    "65536 snapshots": (StreamError, lambda i: i.put(60, "I", 65536), None),
    "table at 0": (FormatError, lambda i: i.put(64, "Q", 0), 64),
    "table unaligned": (FormatError, lambda i: i.put(64, "Q", 513), 64),
    "table behind the end": (TruncatedError, lambda i: i.put(64, "Q", 1 << 62), None),
    "extra data": (LimitError, lambda i: i.put(i.places[ENTRY] + 36, "I", 1025), None),
    "extra data 2^32-1": (LimitError, lambda i: i.put(i.places[ENTRY] + 36, "I", FULL), None),
    "id too long": (TruncatedError, lambda i: i.put(i.places[ENTRY] + 12, "H", 65535), None),
    "name too long": (TruncatedError, lambda i: i.put(i.places[ENTRY] + 14, "H", 65535), None),
    "L1 at 0": (FormatError, lambda i: i.put(i.places[ENTRY], "Q", 0), ENTRY),
    "L1 unaligned": (FormatError, lambda i: i.put(i.places[ENTRY], "Q", 1025), ENTRY),
    "L1 behind the end": (TruncatedError, lambda i: i.put(i.places[ENTRY], "Q", 1 << 50), None),
    "L1 too long": (LimitError, lambda i: i.put(i.places[ENTRY] + 8, "I", FULL), None),
    "L1 too short": (IntegrityError, lambda i: i.put(i.places[ENTRY] + 8, "I", 2), None),
    "L1 longer than the file": (
        TruncatedError, lambda i: i.put(i.places[ENTRY] + 8, "I", 1 << 20), None
    ),
    "VM state 2^64-1": (
        IntegrityError, lambda i: i.put(i.places[ENTRY] + 40, "Q", (1 << 64) - 1), None
    ),
    "disk 2^64-1": (
        IntegrityError, lambda i: i.put(i.places[ENTRY] + 48, "Q", (1 << 64) - 1), None
    ),
    "L2 behind the end": (TruncatedError, lambda i: i.put(i.places[VM_L1], "Q", 1 << 50), None),
    "cluster behind the end": (TruncatedError, lambda i: i.put(i.places[L2], "Q", 1 << 50), None),
    "packed behind the end": (
        TruncatedError, lambda i: i.put(i.places[L2], "Q", PACKED | 1 << 50), None
    ),
    "packed is no deflate": (FormatError, lambda i: i.put(i.places[L2], "Q", PACKED | 0), 0),
}  # fmt: skip


def test_hostile_image_is_fine_before() -> None:
    image = build([Saved("a", STREAM)])
    assert image.cluster == 512
    assert state(image.data) == STREAM


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    kind, spoil, where = HOSTILE[name]
    image = build([Saved("a", STREAM)])
    spoil(image)
    started = time.monotonic()
    error = fault(image.data)
    assert time.monotonic() - started < 5
    assert type(error) is kind or (kind is StreamError and isinstance(error, StreamError)), error
    assert isinstance(error, StreamError)
    if where is not None:
        assert error.offset == (where if isinstance(where, int) else image.places[where])
    assert 0 <= error.offset <= len(image.data)
    if kind is not IntegrityError:
        assert error.advice or error.expected, str(error)


def test_tables_and_clusters_start_at_clusters() -> None:
    image = build([Saved("a", TEXT)], cluster_bits=12)
    entry = image.get(image.places["vm-l1", 0])
    error = fault(image.put(image.places["vm-l1", 0], "Q", entry + 512).data)
    assert isinstance(error, FormatError)
    assert error.offset == image.places["vm-l1", 0]
    image = build([Saved("a", TEXT)], cluster_bits=12)
    entry = image.get(image.places["l2", 0] + 16)
    error = fault(image.put(image.places["l2", 0] + 16, "Q", entry + 512).data)
    assert isinstance(error, FormatError)
    assert error.offset == image.places["l2", 0] + 16


def test_zero_clusters_are_of_version_3() -> None:
    image = build([Saved("a", TEXT, "data zero")], version=2)
    error = fault(image.data)
    assert isinstance(error, FormatError)
    assert error.offset == image.places["l2", 0] + 8


@pytest.mark.parametrize(
    ("entry", "bitmap"),
    [
        (None, 1 | 1 << 32),  # there, and zeros
        (None, FULL | FULL << 32),
        (0, FULL),  # nowhere, and there
        (0, 1),
    ],
)
def test_subclusters_that_contradict_themselves(entry: int | None, bitmap: int) -> None:
    image = build([Saved("a", TEXT)], extended=True)
    at = image.places["l2", 0] + 16
    if entry is not None:
        image.put(at, "Q", entry)
    error = fault(image.put(at + 8, "Q", bitmap).data)
    assert isinstance(error, FormatError)
    assert error.offset == at


@pytest.mark.parametrize("compression", [0, 1])
def test_damaged_compressed_clusters(compression: int) -> None:
    image = build([Saved("a", TEXT, "packed")], cluster_bits=12, compression=compression)
    entry = image.get(image.places["l2", 0])
    at = entry & ((1 << 58) - 1)
    for damage in (b"\xff" * 40, b"\0" * 40, b"\x28\xb5\x2f\xfd" + b"\xff" * 40):
        spoilt = dataclasses.replace(image, data=bytearray(image.data))
        spoilt.data[at : at + len(damage)] = damage
        error = fault(spoilt.data)
        assert isinstance(error, FormatError)
        assert error.offset == at
        assert f"{image.places['l2', 0]:#x}" in str(error)
    # Fewer sectors than it takes.
    spoilt = dataclasses.replace(image, data=bytearray(image.data))
    big = build(
        [Saved("a", random.Random(1).randbytes(4096), "packed")],
        cluster_bits=12, compression=compression,
    )  # fmt: skip
    entry = big.get(big.places["l2", 0])
    error = fault(big.put(big.places["l2", 0], "Q", entry & ~(0xF << 58) | PACKED).data)
    assert isinstance(error, FormatError)


def test_a_frame_may_not_ask_for_memory() -> None:
    """Zstandard lets a frame of some bytes ask for a window of 128 MiB and more."""
    image = build([Saved("a", TEXT, "packed")], cluster_bits=12, compression=1)
    at = image.get(image.places["l2", 0]) & ((1 << 58) - 1)
    image.data[at : at + 6] = b"\x28\xb5\x2f\xfd\x00" + bytes([(27 - 10) << 3])
    assert isinstance(fault(image.data), FormatError)


def test_what_is_in_front_of_a_fault_is_read() -> None:
    image = build([Saved("a", STREAM)])
    image.put(image.places["l2", 0] + 8 * 20, "Q", 1 << 50)
    with opened(image.data) as source:
        found = read_image(source)
        stream = VMStateSource(source, found, found.choose())
        view, base, at_end = stream.window(100, 1000)
        assert (view, base, at_end) == (STREAM[100 : 20 * 512], 100, False)
        with pytest.raises(TruncatedError):
            stream.window(100, 20 * 512)


def test_exabytes_of_nothing() -> None:
    """Clusters that are not there cost a file nothing, and would take a year to read."""
    image = build([Saved("a", b"x", fields={"l1_size": 1 << 20})], cluster_bits=21)
    image.data += bytes(8 * MIB)
    image.put(image.places["entry", 0] + 40, "Q", (1 << 20) // 2 * (1 << 39))
    error = fault(image.data)
    assert isinstance(error, LimitError)
    assert error.offset == image.places["entry", 0] + 40


def test_many_snapshots_take_bounded_time_and_memory() -> None:
    """As many as QEMU allows, with names as long as the table allows."""
    entry = grammar.QCOW2_SNAPSHOT.build(
        {
            "l1_table_offset": 512, "l1_size": 1, "date_sec": 0, "date_nsec": 0,
            "vm_clock_nsec": 0, "vm_state_size": 1, "extra_data": b"", "id_str": b"",
            "name": b"n" * 65535,
        }
    )  # fmt: skip
    entry += bytes(-len(entry) % 8)
    image = build([Saved("a", b"x")])
    image.put(60, "I", 65536)
    at = image.places["table", 0]
    del image.data[at:]
    image.data += entry * 1100
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = fault(image.data)
    assert isinstance(error, LimitError)
    assert error.offset > at + (64 << 20)
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


# -- any damage -----------------------------------------------------------------------------------


def every_shape() -> Iterator[Image]:
    for shape in ({"cluster_bits": 9}, {"compression": 1}, {"extended": True}, {"version": 2}):
        saved = [Saved("a", TEXT[:9000], kinds_of(shape)), Saved("b", TEXT[:3000], id="2")]
        if shape.get("version") == 2:
            saved = [dataclasses.replace(s, kinds="data packed hole") for s in saved]
        yield build(saved, **shape)  # type: ignore[arg-type]


def read_all(data: bytes | bytearray) -> list[bytes | str]:
    """What each snapshot reads as, or the class of our error; no other may come."""
    found: list[bytes | str] = []
    errors: list[StreamError] = []
    try:
        with opened(data) as source:
            image = read_image(source)
            for snapshot in image.snapshots:
                try:
                    found.append(whole(VMStateSource(source, image, snapshot)))
                except StreamError as exc:
                    errors.append(exc)
                    found.append(type(exc).__name__)
    except StreamError as exc:
        errors.append(exc)
        found.append(type(exc).__name__)
    for error in errors:
        # Of a field of the header that is behind the end, by where it should be.
        assert 0 <= error.offset <= max(len(data), 104)
    return found


def test_truncation() -> None:
    """At every offset of the header and many others: never other bytes than those saved."""
    for image in every_shape():
        size = len(image.data)
        cuts = sorted({*range(130), *range(0, size, 97), *range(size - 130, size)})
        for cut in cuts:
            found = read_all(image.data[:cut])
            assert found
            for got, truth in zip(found, image.truth, strict=False):
                assert isinstance(got, str) or got == truth
            if cut < image.places["table", 0]:
                assert found in (["TruncatedError"], ["FormatError"])


def test_truncation_of_an_image_of_qemu(tmp_path: Path) -> None:
    data = qcow2_file("savevm-11.1-pc", tmp_path).read_bytes()
    truth = read_all(data)
    assert len(truth) == 2
    random_cuts = random.Random(5).sample(range(len(data)), 25)
    for cut in [*random_cuts, len(data) - 1, 65536, 3 * 65536]:
        found = read_all(data[:cut])
        for got, whole_state in itertools.zip_longest(found, truth):
            assert got is None or isinstance(got, str) or got == whole_state


IMAGES = list(every_shape())


@given(
    number=st.integers(0, len(IMAGES) - 1),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.booleans(), st.integers(0, 255)),
        min_size=1, max_size=6,
    ),
)  # fmt: skip
@settings(max_examples=examples(400))
def test_mutation(number: int, changes: list[tuple[float, bool, int]]) -> None:
    image = IMAGES[number]
    data = bytearray(image.data)
    # Half of the damage goes where it hurts: the header and the tables.
    tables = [
        at + i
        for (kind, _), start in image.places.items()
        if kind != "vm-l1"
        for at in (start,)
        for i in range(128)
        if at + i < len(data)
    ]
    tables += range(112)
    for place, anywhere, value in changes:
        at = int(place * len(data)) if anywhere else tables[int(place * len(tables))]
        data[at] = value
    started = time.monotonic()
    assert isinstance(read_all(data), list)
    assert time.monotonic() - started < 5


# -- behind a fault -------------------------------------------------------------------------------


def parts_stream() -> tuple[bytes, dict[str, bytearray]]:
    """Many PARTs, and the name of the block in the first alone: the next come with CONTINUE."""
    w = sw.StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([sw.RamBlock("mem", 600 * 4096), sw.RamBlock("rom", 8 * 4096)])
    dice = random.Random(5)
    for first in range(0, 600, 20):
        with w.ram_part():
            for page in range(first, first + 20):
                # So that it packs; no two pages are the same.
                w.page("mem", page * 4096, (b"%4d" % page + dice.randbytes(4)) * 512)
    with w.ram_end():
        for page in range(8):
            w.page("rom", page * 4096, bytes([page + 1]) * 4096)
    w.device(sw.Device("timer", 0, 2, fields=[sw.Field("x", "buffer", b"\7" * 24)]))
    w.eof()
    w.vmdescription()
    return bytes(w), w.blocks


def test_pages_behind_damaged_clusters(tmp_path: Path) -> None:
    """What a cluster of 64 KiB held is missing, and nothing is made up for it."""
    data, blocks = parts_stream()
    for which in (3, 17, 30):
        image = build([Saved("a", data, kinds="packed")], cluster_bits=16)
        entry = image.get(image.places["l2", 0] + 8 * which)
        host = entry & ((1 << (62 - 8)) - 1)
        image.data[host + 40 : host + 60] = b"\xff" * 20
        path, out = image.write(tmp_path / "disk.qcow2"), tmp_path / "out"
        report = vmstream("inspect", "--json", path).json()
        assert [a["code"] for a in report["anomalies"] if a["severity"] == "error"] == ["format"]
        assert report["anomalies"][0]["offset"] == host
        assert report["end_offset"] == len(data)
        run = vmstream("extract-ram", path, "--block", "mem", "-o", out)
        assert run.status == 3
        assert not out.exists()
        run = vmstream("extract-ram", path, "--block", "mem", "--partial", "-o", out)
        assert run.status == 3, run.err
        got, lost = out.read_bytes(), []
        for page in range(600):
            at = slice(page * 4096, page * 4096 + 4096)
            if got[at] != blocks["mem"][at]:
                assert not any(got[at])
                lost.append(page)
        # Up to the end of the PART that the cluster ends in, at the most.
        assert 14 <= len(lost) <= 16 + 40
        assert lost == list(range(lost[0], lost[-1] + 1))
        at = which * 65536
        assert at - 4200 <= lost[0] * 4104 + lost[0] // 20 * 18 <= at + 200
        out.unlink()


def test_every_cluster_once() -> None:
    """Events tile, whatever cluster is damaged, and only one error is told for it."""
    data, blocks = parts_stream()
    count = -(-len(data) // 65536)
    for which in range(count):
        image = build([Saved("a", data, kinds="packed")], cluster_bits=16)
        entry = image.get(image.places["l2", 0] + 8 * which)
        host = entry & ((1 << (62 - 8)) - 1)
        image.data[host : host + 60] = b"\xff" * 60
        with opened(image.data) as source:
            found = read_image(source)
            got = [
                owned(e) for e in events(VMStateSource(source, found, found.choose()), Decoder())
            ]
        assert_tiles(without_anomalies(got), len(data))
        for batch in (e for e in got if isinstance(e, PageBatch)):
            for block, at, content in records_of(batch):
                assert bytes(blocks[block][at : at + 4096]) == content


def without_anomalies(found: list[Event]) -> list[Event]:
    """Those have offsets in the image."""
    return [e for e in found if not isinstance(e, Anomaly)]


def records_of(batch: PageBatch) -> list[tuple[str, int, bytes]]:
    return [
        (
            batch.blocks[int(batch.block[i])].idstr.decode(),
            int(batch.block_offset[i]),
            bytes(batch.payload(i)),
        )
        for i in range(len(batch))
    ]


def test_an_l2_table_that_cannot_be_read() -> None:
    """All that it covers is missing; behind it reading goes on."""
    data, _ = parts_stream()
    image = build([Saved("a", data)], cluster_bits=12)  # 512 entries, 2 MiB each
    l1 = image.places["vm-l1", 0]
    image.put(l1, "Q", (1 << 40) | COPIED)
    with opened(image.data) as source:
        found = read_image(source)
        got = [owned(e) for e in events(VMStateSource(source, found, found.choose()), Decoder())]
    assert_tiles(without_anomalies(got), len(data))
    (first, *_) = [e for e in got if isinstance(e, Anomaly)]
    assert isinstance(first.error, TruncatedError)
    # Without its head no stream is read.
    assert not any(isinstance(e, PageBatch) for e in got)
    image = build([Saved("a", data)], cluster_bits=12)
    image.put(l1 + 8, "Q", (1 << 40) | COPIED)
    with opened(image.data) as source:
        found = read_image(source)
        got = [owned(e) for e in events(VMStateSource(source, found, found.choose()), Decoder())]
    assert_tiles(without_anomalies(got), len(data))
    assert sum(len(e) for e in got if isinstance(e, PageBatch)) > 490


def test_clusters_in_a_row_are_one_fault() -> None:
    """As of an image that was cut: they are told of once."""
    data, _ = parts_stream()
    image = build([Saved("a", data)], cluster_bits=12)
    for number in range(100, 141):
        image.put(image.places["l2", 0] + 8 * number, "Q", 1 << 40)
    with opened(image.data) as source:
        found = read_image(source)
        got = [owned(e) for e in events(VMStateSource(source, found, found.choose()), Decoder())]
    assert_tiles(without_anomalies(got), len(data))
    assert len([e for e in got if isinstance(e, Anomaly) and e.error is not None]) == 1
    assert sum(len(e) for e in got if isinstance(e, PageBatch)) >= 608 - 41 - 20 - 2
