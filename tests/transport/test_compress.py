"""Compressed outputs are what the tools of their formats unpack, in order, holes and all."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from vmstream.transport.compress import (
    PacketStream,
    Workers,
    compressed,
    in_order,
    page_codec,
)
from vmstream.transport.sink import OutputFile

MIB = 1 << 20
TOOLS = {"gzip": ["gzip", "-dc"], "zstd": ["zstd", "-dc"]}


def test_in_order() -> None:
    """Results come in the order of the items, and no more are taken than can be worked on."""
    taken, threads = 0, set()

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(50):
            taken += 1
            yield i

    def work(i: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(random.Random(i).random() / 500)
        return i * i

    most = 2 * len(os.sched_getaffinity(0)) + 1
    for i, result in enumerate(in_order(work, items())):
        assert result == i * i
        assert taken - i <= most
    assert i == 49
    assert threading.get_ident() not in threads


def test_in_order_fails() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise OSError("full")
        return i

    made = in_order(work, range(1000))
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="full"):
        next(made)


def test_work_that_nobody_waits_for() -> None:
    """What a thread has begun ends; what waits for one is not begun."""
    begun, go, cpus = [], threading.Event(), len(os.sched_getaffinity(0))

    def work(i: int) -> None:
        begun.append(i)
        go.wait(10)

    workers = Workers(work)
    for i in range(2 * cpus):
        workers.give(i)
    del workers
    go.set()
    time.sleep(0.2)
    assert len(begun) <= cpus


# Length, and the stretches that have bytes.
FILES = {
    "empty": (0, []),
    "byte": (1, [(0, 1)]),
    "hole": (9 * MIB + 5, []),
    "mixed": (33 * MIB + 77, [(0, 4096), (8 * MIB - 100, 200), (20 * MIB, 5 * MIB)]),
    "end": (16 * MIB, [(16 * MIB - 1, 1)]),
}


@pytest.mark.parametrize("codec", ["gzip", "zstd", None])
@pytest.mark.parametrize("name", FILES)
def test_compressed(codec: str | None, name: str, tmp_path: Path) -> None:
    size, stretches = FILES[name]
    data = bytearray(size)
    with OutputFile(tmp_path / "out") as out:
        out.resize(size)
        for at, length in stretches:
            data[at : at + length] = random.Random(at).randbytes(length)
            out.write(at, data[at : at + length])
        packed = b"".join(compressed(out, codec))
    if codec is None:
        assert packed == data
        return
    if name == "hole":
        assert len(packed) < 64 << 10
    if codec == "zstd":
        # Readers that take one frame only, with its size, get all.
        assert zstandard.ZstdDecompressor().decompress(packed) == data
    if shutil.which(TOOLS[codec][0]) is None:
        pytest.skip(f"no {codec}")
    done = subprocess.run(TOOLS[codec], input=packed, capture_output=True, check=True)
    assert done.stdout == data


@pytest.mark.parametrize("size", [4096, 16384, 65536])
def test_pages(size: int) -> None:
    """Any zlib unpacks pages, whatever window they were packed with."""
    page = bytes(range(64)) * (size // 128) + random.Random(size).randbytes(size // 2)
    assert zlib.decompress(page_codec("zlib", size)(memoryview(page))) == page
    packed = page_codec("zstd", size)(memoryview(page))
    assert zstandard.ZstdDecompressor().decompress(packed) == page


@pytest.mark.parametrize("level", [1, 6])
@pytest.mark.parametrize("name", ["zlib", "zstd"])
def test_packets_are_one_stream(name: str, level: int) -> None:
    """As QEMU does it: page by page, flushed behind each packet."""
    rng = random.Random(level)
    words = [rng.randbytes(rng.randrange(1, 40)) for _ in range(300)]
    packets = [
        [b"".join(rng.choices(words, k=400))[:4096].ljust(4096, b"\0") for _ in range(count)]
        for count in (128, 1, 128, 37)
    ]
    stream = PacketStream(name, level)
    found = [
        stream.add([memoryview(b"".join(p[:50])), memoryview(b"".join(p[50:]))]) for p in packets
    ]
    packer: Any = (
        zlib.compressobj(level)
        if name == "zlib"
        else zstandard.ZstdCompressor(level=level).compressobj()
    )
    flush = zlib.Z_SYNC_FLUSH if name == "zlib" else zstandard.COMPRESSOBJ_FLUSH_BLOCK
    want = []
    for pages in packets:
        payload = b"".join(packer.compress(page) for page in pages)
        want.append(len(payload + packer.flush(flush)))
    assert found == want


def test_level_of_a_page() -> None:
    page = memoryview(b"".join(b"%d " % i for i in range(2000))[:4096])
    assert len(page_codec("zlib", 4096, 0)(page)) > 4096 > len(page_codec("zlib", 4096)(page))
    # A smaller window than usual makes nothing larger: there is one page to look back on.
    assert len(page_codec("zlib", 4096)(page)) == len(zlib.compress(page, 1))
