"""Guest memory read in place: against the truth of every fixture, and against extracted images."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import mmap
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import vmstream
from tests.containers import image_file, image_names
from tests.ops.test_extract import (
    COMPLETE,
    FOUR_GIB,
    GIB,
    INTERRUPTED,
    LAYOUTS,
    REFUSED,
    SHARED,
    over_shared,
    pipe_of,
    rtc,
    simple,
    withdrawn,
)
from tests.strategies import corrupted_streams, cut_streams, examples, streams
from tests.streamwriter import Item, RamBlock, StreamWriter
from tests.truth import (
    TRUTH_PAGE,
    WHOLE_LIMIT,
    channel_names,
    check_block_bytes,
    data_extents,
    fixture_file,
    known_blocks,
    load_manifest,
    open_fixture,
    qcow2_file,
    read_qcow2,
    snapshot_manifests,
    write_sparse,
)
from vmstream.container.open import OpenStream
from vmstream.errors import (
    AddressError,
    IntegrityError,
    LimitError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    VmstreamError,
)
from vmstream.guest.physical import Region
from vmstream.ops.channels import Channels
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.memory import GuestMemory, MemoryOptions, index_memory
from vmstream.ops.pipeline import events
from vmstream.stream.decoder import Decoder

PAGE = 4096
MIB = 1 << 20
WAYS: tuple[dict[str, Any], ...] = ({}, {"partial": True})
WITH_CHANNELS = [name for name in REFUSED if name not in SHARED]


def in_pieces(memory: GuestMemory, idstr: str, size: int) -> bytes:
    """A block, read in pieces of any length and in any order."""
    rng = random.Random(size)
    cuts = sorted({0, size, *(rng.randrange(size + 1) for _ in range(40))})
    pieces = [(a, b - a) for a, b in itertools.pairwise(cuts)]
    rng.shuffle(pieces)
    found = bytearray(size)
    for offset, length in pieces:
        data = memory.read_block(idstr, offset, length)
        assert len(data) == length
        found[offset : offset + length] = data
    return bytes(found)


def check_nonzero(memory: GuestMemory, idstr: str, want: dict[str, Any]) -> None:
    """The pages of a huge block that have data, by the manifest's sum over them."""
    (stretch,) = memory.stretches(memory.block_index(idstr))
    assert stretch.length == want["size"]
    digest, count = hashlib.sha256(), 0
    for at in range(0, stretch.length, MIB):
        if not stretch.has_data(at, MIB):
            continue
        data = memory.read_block(idstr, at, MIB)
        for offset in range(0, MIB, TRUTH_PAGE):
            page = data[offset : offset + TRUTH_PAGE]
            if any(page):
                digest.update(((at + offset) // TRUTH_PAGE).to_bytes(8, "big") + page)
                count += 1
    assert count == want["nonzero_pages"]
    assert digest.hexdigest() == want["nonzero_sha256"]


def check_memory(memory: GuestMemory, manifest: dict[str, Any]) -> None:
    """All blocks whose content is known."""
    known = known_blocks(manifest)
    assert known
    for idstr in known:
        want = manifest["blocks"][idstr]
        if want["size"] > WHOLE_LIMIT:
            check_nonzero(memory, idstr, want)
        else:
            check_block_bytes(manifest, idstr, in_pieces(memory, idstr, want["size"]))


# -- the truth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPLETE)
def test_fixtures(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    with vmstream.open(fixture_file(name, tmp_path)) as stream, stream.memory() as memory:
        assert memory.exit_code == 0, memory.findings
        check_memory(memory, manifest)
        regions = [
            (r.gpa, r.length, memory.blocks[r.block].idstr.decode(), r.block_offset)
            for r in memory.map.regions
        ]
        if name in LAYOUTS:
            assert regions == LAYOUTS[name]
        for taken in manifest.get("pmemsave", []):
            if "block" in taken and taken["size"] < GIB:
                found = memory.read(taken["gpa"], taken["size"])
                assert hashlib.sha256(found).hexdigest() == taken["sha256"], hex(taken["gpa"])


@pytest.mark.parametrize("name", WITH_CHANNELS)
def test_channels(name: str, tmp_path: Path) -> None:
    others = [fixture_file(other, tmp_path) for other in channel_names(name)]
    main = fixture_file(name, tmp_path)
    with vmstream.open(main, channels=others) as stream, stream.memory() as memory:
        check_memory(memory, load_manifest(name))
    with vmstream.open(main) as stream, pytest.raises(UnsupportedError, match="--channel"):
        stream.memory()


def test_channels_that_are_compressed(tmp_path: Path) -> None:
    """A file of a channel that cannot be read in any order: its pages are kept."""
    name = "multifd-11.1-pc.ch0"
    others = []
    for other in channel_names(name):
        others.append(tmp_path / f"{other}.gz")
        others[-1].write_bytes(gzip.compress(open_fixture(other), 1))
    with (
        vmstream.open(fixture_file(name, tmp_path), channels=others) as stream,
        pytest.raises(UnsupportedError, match="--spool"),
    ):
        stream.memory()
    with (
        vmstream.open(fixture_file(name, tmp_path), channels=others) as stream,
        stream.memory(spool=tmp_path) as memory,
    ):
        check_memory(memory, load_manifest(name))


@pytest.mark.parametrize("name", image_names())
def test_save_images(name: str, tmp_path: Path) -> None:
    path = image_file(name, tmp_path)
    with vmstream.open(path) as stream:
        if name.endswith(("raw", "parallel")):
            with stream.memory() as memory:
                check_memory(memory, load_manifest(name))
            return
        with pytest.raises(UnsupportedError, match="--spool"):
            stream.memory()
    with vmstream.open(path) as stream, stream.memory(spool=tmp_path) as memory:
        check_memory(memory, load_manifest(name))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["savevm-10.0-q35", "savevm-11.1-pc"])
def test_snapshots(name: str, tmp_path: Path) -> None:
    path = qcow2_file(name, tmp_path)
    for snapshot, manifest in snapshot_manifests(name).items():
        with vmstream.open(path, snapshot=snapshot) as stream, stream.memory() as memory:
            check_memory(memory, manifest)


def test_a_pipe_is_kept(tmp_path: Path) -> None:
    for spool in (None, tmp_path):
        with pipe_of(open_fixture("xbzrle-5.2-pc")) as source:
            found = events(source, Decoder())
            if spool is None:
                with pytest.raises(UnsupportedError, match="--spool"):
                    index_memory(found, source, MemoryOptions())
                continue
            with index_memory(found, source, MemoryOptions(spool=spool)) as memory:
                check_memory(memory, load_manifest("xbzrle-5.2-pc"))
    assert list(tmp_path.iterdir()) == []


# -- against extract-ram --------------------------------------------------------------------------


EDGE = 1 << 16


def image_of(path: Path, out: Path, *, snapshot: str | None = None, **options: Any) -> bytes | None:
    """What extract-ram writes; `None` where it refuses."""
    try:
        with OpenStream(path, snapshot=snapshot) as opened:
            wanted = ExtractOptions(output=out, force=True, **options)
            extract(opened.source, wanted, container=opened.container)
    except VmstreamError:
        return None
    return out.read_bytes()


def memory_of(
    path: Path,
    block: str | None,
    *,
    snapshot: str | None = None,
    **options: Any,
) -> bytes | None:
    """The same, read as memory."""
    try:
        with (
            vmstream.open(path, snapshot=snapshot) as stream,
            stream.memory(**options) as memory,
        ):
            if block is None:
                return memory.open().read()
            index = memory.block_index(block)
            return in_pieces(memory, block, memory.blocks[index].used_length)
    except VmstreamError:
        return None


# One of each way in which pages are sent and kept.
ENCODINGS = [
    "own-plain-q35", "own-live-q35", "xbzrle-5.2-pc", "zlib-5.2-pc", "zlib-xbzrle-5.2-pc",
    "mapped-10.0-pc", "mapped-live-10.0-q35", "postcopy-11.1-pc.ch0", *WITH_CHANNELS,
    "libvirt-11.3-raw", "libvirt-12.8-zstd", "libvirt-12.8-sparse-parallel", "savevm-11.1-pc",
    "numa-dimm-10.0-pc", "own-big-pc",
]  # fmt: skip
RANDOM_READS = 10_000


@pytest.mark.parametrize("name", ENCODINGS)
def test_random_reads(name: str, tmp_path: Path) -> None:
    """Up to three pages from anywhere, as in the extracted image; half of them among data."""
    make = {"savevm": qcow2_file, "libvirt": image_file}.get(name.partition("-")[0], fixture_file)
    path, out, rng = make(name, tmp_path), tmp_path / "out", random.Random(name)
    snapshot = "second" if make is qcow2_file else None
    others = [fixture_file(other, tmp_path) for other in channel_names(name)]
    with OpenStream(path, snapshot=snapshot) as opened, ExitStack() as stack:
        beside = stack.enter_context(Channels(others, opened.identity)) if others else None
        wanted = ExtractOptions(output=out)
        report, _ = extract(opened.source, wanted, None, opened.container, beside)
    assert report.layout is not None
    regions = [(r.gpa, r.gpa + r.length) for r in report.layout.regions]
    edges = [edge for region in regions for edge in region]
    size = edges[-1]
    with (
        vmstream.open(path, snapshot=snapshot, channels=others) as stream,
        stream.memory(spool=tmp_path) as memory,
        memory.open() as file,
        out.open("rb") as written,
        mmap.mmap(written.fileno(), 0, prot=mmap.PROT_READ) as image,
    ):
        assert len(image) == memory.map.size == size
        image.madvise(mmap.MADV_RANDOM)
        extents = [*data_extents(written.fileno(), size)]
        data = 0
        for turn in range(RANDOM_READS):
            low, high = rng.choice(extents if turn & 2 else regions)
            if turn % 16 < 2:
                low, high = (edge := rng.choice(edges)) - 2 * PAGE, edge + PAGE
            gpa = max(0, low + int(rng.random() * (high - low)))
            length = int(rng.random() * (3 * PAGE + 1))
            if turn % 5 == 0:
                gpa, length = gpa // PAGE * PAGE, length // PAGE * PAGE
            want = image[gpa : gpa + length]
            if turn % 2:
                file.seek(gpa)
                found = file.read(length)
            else:
                found = memory.read(gpa, length, fill=0)
                want += bytes(length - len(want))
            assert found == want, (hex(gpa), length)
            data += want.count(0) != len(want)
        assert data > RANDOM_READS // 4


@given(streams(fills=True, xbzrle=True, compress=True, vmdescription=True), st.integers(0, 3))
@settings(max_examples=examples(60), deadline=None)
def test_built_streams(
    tmp_path_factory: pytest.TempPathFactory, w: StreamWriter, which: int
) -> None:
    directory = tmp_path_factory.mktemp("memory")
    path, out = directory / "stream", directory / "out"
    path.write_bytes(bytes(w))
    with vmstream.open(path) as stream:
        names = [b.idstr.decode() for b in stream.blocks]
    block = names[which % len(names)]
    want = image_of(path, out, block=block)
    assert memory_of(path, block) == want
    if want is None:
        assert memory_of(path, block, partial=True) == image_of(
            path, out, block=block, partial=True
        )


@given(st.one_of(corrupted_streams(), cut_streams().map(lambda c: bytes(c[0])[: c[1]])))
@settings(max_examples=examples(60), deadline=None)
def test_damage(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Only errors of ours, and memory only where extraction gives an image, and the same."""
    directory = tmp_path_factory.mktemp("memory")
    path, out = directory / "stream", directory / "out"
    path.write_bytes(data)
    for options in WAYS:
        with contextlib.suppress(VmstreamError), OpenStream(path) as opened:
            wanted = ExtractOptions(output=out, **options)
            extract(opened.source, wanted, container=opened.container)
        if not out.exists():
            assert memory_of(path, None, **options) is None
            continue
        # What is at 4 GiB has four of them in front, which would take long to read.
        size = out.stat().st_size
        with (
            vmstream.open(path) as stream,
            stream.memory(**options) as memory,
            memory.open() as file,
            out.open("rb") as image,
        ):
            assert file.seek(0, os.SEEK_END) == size
            at = 0
            for start, stop in (*data_extents(image.fileno(), size), (size, size)):
                hole = ((at, EDGE), (max(at, start - EDGE), EDGE))
                for place, length in (*hole, (start, stop - start)):
                    for both in (image, file):
                        both.seek(place)
                    assert file.read(length) == image.read(length)
                at = stop
        out.unlink()


@pytest.mark.parametrize(
    "name", ["zlib-xbzrle-5.2-pc", "mapped-live-10.0-q35", "postcopy-11.1-pc.ch0", "savevm-11.1-pc"]
)
def test_damage_to_real_streams(name: str, tmp_path: Path) -> None:
    """Cut or changed somewhere: the same as extraction, strictly and with `partial`."""
    rng = random.Random(name)
    path, out = tmp_path / "s", tmp_path / "out"
    whole = read_qcow2(name) if name.startswith("savevm") else open_fixture(name)
    images = 0
    for turn in range(6):
        data = bytearray(whole)
        if turn % 2:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(1 << turn):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        write_sparse(path, bytes(data))
        for options in WAYS:
            snapshot = "first" if name.startswith("savevm") else None
            want = image_of(path, out, snapshot=snapshot, **options)
            assert memory_of(path, None, snapshot=snapshot, **options) == want
            images += want is not None
    assert images >= 4


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    with vmstream.open(path) as stream, pytest.raises(StreamError, match="--partial") as caught:
        stream.memory()
    with vmstream.open(path, strict=True) as stream, pytest.raises(type(caught.value)):
        stream.memory()
    assert memory_of(path, None, partial=True) == image_of(path, tmp_path / "o", partial=True)
    with vmstream.open(path) as stream, stream.memory(partial=True) as memory:
        assert memory.exit_code == 3
        assert any(f.error is not None for f in memory.findings)


# -- addresses ------------------------------------------------------------------------------------


class Large(StreamWriter):
    """A writer that does not hold the memory that it writes."""

    def _new_block(self, idstr: str, length: int) -> None:
        super()._new_block(idstr, 0)

    def _set(self, item: Item, content: bytes) -> None:
        pass


def holed(pages: dict[int, bytes]) -> StreamWriter:
    """5 GiB of RAM of a q35 guest, 2 GiB of them below 4 GiB, with data at some offsets."""
    w = Large()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 5 * GIB), RamBlock("pc.bios", 2 * PAGE)])
    with w.ram_part():
        for offset, body in pages.items():
            w.page("mem", offset, body)
        w.page("pc.bios", PAGE, b"\xb1" * PAGE)
    with w.ram_end():
        pass
    w.device(rtc(2 * GIB, 3 * GIB))
    w.eof()
    w.vmdescription()
    return w


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[GuestMemory]:
    pages = {0: b"\x10" * PAGE, 2 * GIB - PAGE: b"\x20" * PAGE, 2 * GIB: b"\x30" * PAGE}
    (tmp_path / "s").write_bytes(bytes(holed(pages)))
    with vmstream.open(tmp_path / "s") as stream, stream.memory() as found:
        yield found


def test_addresses(memory: GuestMemory) -> None:
    assert memory.map.regions == (Region(0, 2 * GIB, 0, 0), Region(FOUR_GIB, 3 * GIB, 0, 2 * GIB))
    assert memory.read(PAGE - 2, 4) == b"\x10\x10\0\0"
    assert memory.read(2 * GIB - 3, 3) == b"\x20" * 3
    assert memory.read(FOUR_GIB, 2) == memory.read_block("mem", 2 * GIB, 2) == b"\x30\x30"
    assert memory.read(7 * GIB - 1, 1) == b"\0"
    assert memory.read(9 * GIB, 0) == b""
    assert memory.read_block(b"mem", 2 * GIB - 1, 2) == b"\x20\x30"
    assert memory.read_block("pc.bios", PAGE - 1, 2) == b"\0\xb1"
    assert memory.locate(FOUR_GIB + 5) == (0, 2 * GIB + 5)
    assert memory.locate(3 * GIB) is None
    assert memory.address_of(0, 2 * GIB + 5) == FOUR_GIB + 5
    assert memory.address_of(1, 0) is None


def test_no_ram_at_an_address(memory: GuestMemory) -> None:
    for gpa, length, first in (
        (2 * GIB, 1, 2 * GIB),
        (2 * GIB - 1, 2, 2 * GIB),
        (FOUR_GIB - 1, 2, FOUR_GIB - 1),
        (7 * GIB - 1, 2, 7 * GIB),
        (1 << 70, 1, 1 << 70),
        (0, 1 << 70, 2 * GIB),  # and no memory is taken for it
    ):
        with pytest.raises(AddressError, match=rf"no RAM at address {first:#x}; .* at 0x0\.\.0x8"):
            memory.read(gpa, length)
    with pytest.raises(AddressError) as caught:
        memory.read(2 * GIB - 1, 9)
    assert caught.value.address == 2 * GIB
    assert caught.value.exit_code == 2
    assert memory.read(2 * GIB - 1, 3, fill=0xEE) == b"\x20\xee\xee"
    assert memory.read(FOUR_GIB - 1, 2, fill=0) == b"\0\x30"
    assert memory.read(8 * GIB, 2, fill=7) == b"\7\7"


def test_outside_a_block(memory: GuestMemory) -> None:
    for offset, length, first in (
        (2 * PAGE, 1, 0x2000),
        (PAGE, PAGE + 1, 0x2000),
        (99999, 1, 99999),
    ):
        with pytest.raises(AddressError, match=f"offset {first:#x} is not in block 'pc.bios'"):
            memory.read_block("pc.bios", offset, length)
    assert memory.read_block("pc.bios", 2 * PAGE, 0) == b""
    with pytest.raises(OutputError, match=r"no block 'x'.*mem, pc\.bios"):
        memory.read_block("x", 0, 1)


def test_negative_numbers(memory: GuestMemory) -> None:
    for call in (
        lambda: memory.read(-1, 1),
        lambda: memory.read(0, -1),
        lambda: memory.read_block("mem", -1, 1),
        lambda: memory.read_block("mem", 0, -1),
    ):
        with pytest.raises(ValueError, match="-1 is negative"):
            call()


def test_a_file(memory: GuestMemory) -> None:
    file = memory.open()
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert file.seek(0, os.SEEK_END) == 7 * GIB
    assert file.read(1) == b""
    assert file.seek(-1, os.SEEK_CUR) == 7 * GIB - 1
    assert file.read(5) == b"\0"
    assert file.tell() == 7 * GIB
    file.seek(8 * GIB)
    assert file.read(1) == b""
    file.seek(2 * GIB - 2)
    assert file.read(4) == b"\x20\x20\0\0"
    file.seek(FOUR_GIB - 1)
    assert io.BufferedReader(file).read(3) == b"\0\x30\x30"
    for offset, whence in ((-1, os.SEEK_SET), (0, 9)):
        with pytest.raises(ValueError, match="no place"):
            memory.open().seek(offset, whence)
    holes = memory.open(fill=None)
    holes.seek(2 * GIB - 1)
    with pytest.raises(AddressError):
        holes.read(2)
    other = memory.open(fill=0xFF)
    other.seek(3 * GIB)
    assert other.read(2) == b"\xff\xff"


def test_a_closed_memory(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    with vmstream.open(path) as stream:
        memory = stream.memory()
        assert len(memory.read(0, 16)) == 16
    with pytest.raises(ValueError, match="closed"):
        memory.read(0, 16)


def test_stretches(memory: GuestMemory, tmp_path: Path) -> None:
    low, high = memory.stretches()
    assert (low.length, high.length) == (2 * GIB, 3 * GIB)
    assert low.has_data(0, 1)
    assert not low.has_data(PAGE, GIB)
    assert high.place(5) == (0, 2 * GIB + 5)
    assert [low.address(at) for at in (0, 5, 2 * GIB - 1)] == [0, 5, 2 * GIB - 1]
    assert [high.address(at) for at in (0, 3 * GIB - 1)] == [FOUR_GIB, 7 * GIB - 1]
    (block,) = memory.stretches(1)
    assert block.address(0) is None
    assert (block.length, block.place(3)) == (2 * PAGE, (1, 3))
    path = fixture_file("numa-dimm-10.0-pc", tmp_path)
    with vmstream.open(path) as stream, stream.memory() as two:
        joined, dimm = two.stretches()
        assert [r.gpa for r in dimm.regions] == [4 * GIB]
        assert len(joined.regions) == 2
        edge = joined.regions[0].length
        buffer = bytearray(8)
        joined.read_into(edge - 4, memoryview(buffer))
        assert bytes(buffer) == two.read(edge - 4, 8)
        assert joined.place(edge) == (joined.regions[1].block, 0)


# -- what is refused, and what is taken -----------------------------------------------------------


def test_pages_that_are_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(bytes(withdrawn((PAGE, 2 * PAGE), again=(1, 2))))
    with vmstream.open(path) as stream, stream.memory() as memory:
        assert [memory.read(p * PAGE, 1)[0] for p in range(4)] == [1, 0x99, 0x99, 4]
    path.write_bytes(bytes(withdrawn((PAGE, 2 * PAGE), again=(1,))))
    with vmstream.open(path) as stream, pytest.raises(UnsupportedError, match="withdrew"):
        stream.memory()
    with vmstream.open(path) as stream, stream.memory(partial=True) as memory:
        assert [memory.read(p * PAGE, 1)[0] for p in range(4)] == [1, 0x99, 0, 4]
    path.write_bytes(bytes(withdrawn((0, 99 * PAGE))))
    with vmstream.open(path) as stream, pytest.raises(IntegrityError, match="there are not"):
        stream.memory()


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    with vmstream.open(fixture_file(name, tmp_path)) as stream, stream.memory() as memory:
        for idstr in known_blocks(manifest):
            size = manifest["blocks"][idstr]["size"]
            check_block_bytes(manifest, idstr, memory.read_block(idstr, 0, size))
        with pytest.raises(UnsupportedError, match="block 'mem' is shared memory"):
            memory.read(0, 1)
        (ram,) = memory.stretches()
        assert ram.has_data(0, 1)


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory_from_its_file(name: str, tmp_path: Path) -> None:
    stream_path, file, manifest = fixture_file(name, tmp_path), tmp_path / "m", load_manifest(name)
    content = random.Random(7).randbytes(16 * MIB)
    file.write_bytes(content)
    with (
        vmstream.open(stream_path) as stream,
        stream.memory(shared_blocks={"mem": file}) as memory,
    ):
        assert memory.open().read() == content
        (ram,) = memory.stretches()
        assert ram.has_data(5 * MIB, 1)
        for idstr in known_blocks(manifest):
            if idstr != "mem":
                size = manifest["blocks"][idstr]["size"]
                check_block_bytes(manifest, idstr, in_pieces(memory, idstr, size))
        os.truncate(file, MIB)
        with pytest.raises(TruncatedError, match="shorter than it was"):
            memory.read(MIB, 1)
    for size, block, error, word in (
        (MIB, "mem", OutputError, "m: 1048576 bytes, but block 'mem' has 16777216"),
        (MIB, "none", OutputError, "no block 'none'"),
        (None, "mem", OSError, "No such file"),
    ):
        if size is None:
            file.unlink()
        with vmstream.open(stream_path) as stream, pytest.raises(error, match=word):
            stream.memory(shared_blocks={block: file})


def test_pages_over_shared_memory(tmp_path: Path) -> None:
    path, file, want = over_shared(tmp_path)
    with vmstream.open(path) as stream, stream.memory(shared_blocks={"mem": file}) as memory:
        assert memory.read_block("mem", 0, len(want)) == want
        assert not memory.stretches(0)[0].has_data(PAGE, PAGE)


def test_a_layout_that_is_not_known(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("toaster-9.0")
    w.ram_start([RamBlock("heat", PAGE)])
    with w.ram_end():
        w.page("heat", 0, b"\x44" * PAGE)
    w.eof()
    w.vmdescription()
    (tmp_path / "s").write_bytes(bytes(w))
    with vmstream.open(tmp_path / "s") as stream, stream.memory() as memory:
        assert memory.read_block("heat", 0, 2) == b"DD"
        assert memory.address_of(0, 0) is None
        for call in (lambda: memory.read(0, 1), memory.open, memory.stretches):
            with pytest.raises(OutputError, match="no rule for where"):
                call()


def test_below_4g(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(holed({GIB: b"\x77" * PAGE})))
    with vmstream.open(tmp_path / "s") as stream, stream.memory(below_4g=GIB) as memory:
        assert memory.read(FOUR_GIB, 1) == b"\x77"


def test_more_ram_than_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(simple(mem=64)))
    with vmstream.open(tmp_path / "s", max_ram=64 * PAGE) as stream:
        assert stream.memory().read(0, 1) == b"\0"
    w = Large()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 2 << 40)])
    with w.ram_end():
        w.page("mem", 0, b"x" * PAGE)
    w.eof()
    (tmp_path / "s").write_bytes(bytes(w))
    with vmstream.open(tmp_path / "s") as stream, pytest.raises(LimitError, match="--max-ram"):
        stream.memory()
    with vmstream.open(tmp_path / "s", max_ram=2 << 40) as stream:
        assert stream.memory().read_block("mem", (2 << 40) - 1, 1) == b"\0"


def test_a_file_that_is_cut_behind_our_back(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(bytes(simple(lambda w: w.page("mem", 0, b"x" * PAGE), mem=4)))
    with vmstream.open(path) as stream, stream.memory() as memory:
        assert memory.read(0, 1) == b"x"
        os.truncate(path, 300)
        with pytest.raises(TruncatedError, match="shorter than it was"):
            memory.read(0, PAGE)


def test_events_are_taken_once(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    with vmstream.open(path) as stream:
        next(iter(stream))
        with pytest.raises(OutputError, match="open it again"):
            stream.memory()
    with vmstream.open(path) as stream:
        stream.memory()
        with pytest.raises(OutputError, match="open it again"):
            stream.memory()


@pytest.mark.parametrize("data", [b"", b"text" * 99])
def test_what_is_no_stream(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(data)
    for partial in (False, True):
        with vmstream.open(tmp_path / "s") as stream, pytest.raises(StreamError):
            stream.memory(partial=partial)


def test_a_stream_without_ram(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("none")
    w.eof()
    (tmp_path / "s").write_bytes(bytes(w))
    with vmstream.open(tmp_path / "s") as stream, pytest.raises(IntegrityError, match="no RAM"):
        stream.memory()
