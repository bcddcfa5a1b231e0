"""The index in a file: the same memory, and nothing but errors of ours for any other input."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmstream
from tests.containers import image_file
from tests.ops.test_extract import INTERRUPTED
from tests.truth import channel_names, fixture_file, qcow2_file
from vmstream.errors import (
    FormatError,
    IntegrityError,
    OutputError,
    StreamError,
    UnsupportedError,
    VmstreamError,
)
from vmstream.ops import memory as memory_module
from vmstream.ops.memory import GuestMemory

PAGE, MIB = 4096, 1 << 20
HEAD = struct.Struct("<16sQQ32s")


def content(memory: GuestMemory) -> list[object]:
    """All there is to be read."""
    blocks = [memory.read_block(b.idstr, 0, b.used_length) for b in memory.blocks]
    return [memory.blocks, memory.page_size, memory.map, memory.exit_code, blocks]


@pytest.mark.parametrize(
    "name",
    [
        "own-live-q35", "xbzrle-5.2-pc", "zlib-xbzrle-5.2-pc", "mapped-10.0-pc",
        "postcopy-11.1-pc.ch0", "multifd-11.1-pc.ch0", "multifd-zlib-10.0-q35.ch0",
        "libvirt-11.3-raw", "libvirt-12.8-zstd", "savevm-11.1-pc", "numa-dimm-10.0-pc",
    ],
)  # fmt: skip
def test_the_same_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = {"savevm": qcow2_file, "libvirt": image_file}.get(name.partition("-")[0], fixture_file)
    path, index = make(name, tmp_path), tmp_path / "index"
    options: dict[str, Any] = {"channels": [fixture_file(c, tmp_path) for c in channel_names(name)]}
    if make is qcow2_file:
        options["snapshot"] = "second"
    with vmstream.open(path, **options) as stream, stream.memory(spool=tmp_path) as memory:
        want = content(memory)
    before = {*tmp_path.iterdir()}
    with vmstream.open(path, **options) as stream, stream.memory(index=index) as memory:
        assert content(memory) == want
    assert {*tmp_path.iterdir()} - before == {index}
    # Read no more.
    monkeypatch.setattr(memory_module, "index_memory", None)
    monkeypatch.setattr("vmstream.ops.stream.index_memory", None)
    with vmstream.open(path, **options) as stream, stream.memory(index=index) as memory:
        assert content(memory) == want
    if options.get("snapshot"):
        options["snapshot"] = "first"
        refused(path, index, "containers or snapshot", **options)
    elif options["channels"]:
        refused(path, index, "another number of channels", channels=options["channels"][:1])


def refused(path: Path, index: Path, word: str, **options: Any) -> None:
    partial = options.pop("partial", False)
    with vmstream.open(path, **options) as stream, pytest.raises(IntegrityError) as caught:
        stream.memory(index=index, partial=partial)
    assert word in str(caught.value)
    assert "delete it" in str(caught.value)


def test_shared_memory(tmp_path: Path) -> None:
    path, file, index = (
        fixture_file("ignoreshared-10.0-pc", tmp_path),
        tmp_path / "m",
        tmp_path / "i",
    )
    data = random.Random(1).randbytes(16 * MIB)
    file.write_bytes(data)
    for _ in range(2):
        with (
            vmstream.open(path) as stream,
            stream.memory(index=index, shared_blocks={"mem": file}) as memory,
        ):
            assert memory.open().read() == data
    refused(path, index, "another number of files of shared blocks")
    file.write_bytes(data[::-1])
    with vmstream.open(path) as stream, pytest.raises(IntegrityError, match="file of block 'mem'"):
        stream.memory(index=index, shared_blocks={"mem": file})
    index.unlink()
    for _ in range(2):
        with (
            vmstream.open(path) as stream,
            stream.memory(index=index) as memory,
            pytest.raises(UnsupportedError, match="shared memory"),
        ):
            memory.read(0, 1)


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Path]:
    path, index = fixture_file("own-plain-q35", tmp_path), tmp_path / "index"
    with vmstream.open(path) as stream, stream.memory(index=index):
        pass
    return path, index


def test_a_stream_that_changed(plain: tuple[Path, Path]) -> None:
    path, index = plain
    was, status = path.read_bytes(), path.stat()

    def change(data: bytes, *, back: bool) -> None:
        path.write_bytes(data)
        if back:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    change(was, back=False)
    refused(path, index, "the stream is not what it was: other time of modification")
    change(was, back=True)
    with vmstream.open(path) as stream, stream.memory(index=index) as memory:
        assert memory.exit_code == 0
    change(was + b"\0", back=True)
    refused(path, index, "other length")
    for at in (40_000, len(was) - 9, len(was) * 100 // 257 + 5):
        changed = bytearray(was)
        changed[at] ^= 1
        change(bytes(changed), back=True)
        refused(path, index, "other content")


def test_other_options(plain: tuple[Path, Path], tmp_path: Path) -> None:
    path, index = plain
    refused(path, index, "pages of 4096 bytes, not of 8192", page_size=8192)
    with vmstream.open(path) as stream, stream.memory(index=index, below_4g=MIB) as memory:
        assert memory.map.regions[0].length == MIB
    path = fixture_file(INTERRUPTED[0], tmp_path)
    other = tmp_path / "other"
    with vmstream.open(path) as stream, pytest.raises(StreamError):
        stream.memory(index=other)
    assert not other.exists()
    refused(path, index, "other length", partial=True)
    found = []
    for _ in range(2):
        with vmstream.open(path) as stream, stream.memory(index=other, partial=True) as memory:
            found.append([*content(memory), [f.message for f in memory.findings]])
            assert memory.exit_code == 3
    assert found[0] == found[1]
    refused(path, other, "--partial")


def test_what_is_no_index(plain: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = plain
    other = tmp_path / "other"
    for data in (b"", b"notes of mine" * 99):
        other.write_bytes(data)
        with vmstream.open(path) as stream, pytest.raises(FormatError, match="not an index"):
            stream.memory(index=other)
        assert other.read_bytes() == data
    other.unlink()
    os.mkfifo(other)
    with vmstream.open(path) as stream, pytest.raises(OutputError, match="not a regular file"):
        stream.memory(index=other)
    with vmstream.open(path) as stream, pytest.raises(OSError, match="none"):
        stream.memory(index=tmp_path / "none" / "index")


def rewritten(index: Path, document: Any, places: bytes | None = None) -> None:
    """Put another document into an index, with sums that are right."""
    data = bytearray(index.read_bytes())
    _, at, _, _ = HEAD.unpack(data[: HEAD.size])
    if places is not None:
        data[at - len(places) : at] = places
        document["places_sha256"] = hashlib.sha256(places).hexdigest()
    text = json.dumps(document).encode()
    data[at:] = text
    data[: HEAD.size] = HEAD.pack(data[:16], at, len(text), hashlib.sha256(text).digest())
    index.write_bytes(data)


def read_all(path: Path, index: Path) -> bytes | None:
    """Memory by an index; `None` where it is refused."""
    try:
        with vmstream.open(path) as stream, stream.memory(index=index) as memory:
            for block in memory.blocks:
                memory.read_block(block.idstr, 0, block.used_length)
            return memory.open().read()
    except VmstreamError:
        return None


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a document."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def test_a_hostile_index(tmp_path: Path) -> None:
    """Bytes that changed, and documents and places that state anything with sums that are right."""
    path, index, rng = fixture_file("own-microvm", tmp_path), tmp_path / "index", random.Random(3)
    want = read_all(path, index)
    assert want is not None
    whole = index.read_bytes()
    _, at, _, _ = HEAD.unpack(whole[: HEAD.size])
    document = json.loads(whole[at:])
    pages = sum(-(-used // PAGE) for _, used, *_ in document["blocks"])
    places = whole[at - 8 * pages : at]
    for _ in range(40):
        data = bytearray(whole)
        place = rng.choice((rng.randrange(HEAD.size), at - 1 - rng.randrange(8 * pages), at))
        data[place] ^= 1 << rng.randrange(8)
        index.write_bytes(data)
        assert read_all(path, index) is None
    for size in (0, 20, 64, at - 5, at, len(whole) - 1):
        index.write_bytes(whole[:size])
        assert read_all(path, index) is None
    index.write_bytes(whole)
    odd = [None, -1, 1 << 70, 2.5, "x", "QQ==", [], {}, [[]], True, "\ud800", [1] * 9]
    refusals = 0
    every = [*leaves(document)]
    rng.shuffle(every)
    for where in every[:60]:
        changed = json.loads(json.dumps(document))
        value: Any = rng.choice(odd)
        if where:
            inner = changed
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = value
        else:
            changed = value
        rewritten(index, changed)
        refusals += read_all(path, index) is None
        index.write_bytes(whole)
    assert refusals > 20
    for word in (1, 5 << 48, (1 << 48) + PAGE * 7, (2 << 48) + (1 << 40), (1 << 64) - 1, 3 << 48):
        rewritten(index, json.loads(json.dumps(document)), struct.pack("<Q", word) + places[8:])
        assert read_all(path, index) is None
        index.write_bytes(whole)
    # And the sums of the test are what they should be.
    rewritten(index, document, places)
    assert read_all(path, index) == want
