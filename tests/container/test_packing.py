"""What is packed on its way is what the programs of each format unpack, as it was, in order."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.containers import LZOP_MAGIC, MISSING
from vmstream.container.open import OpenStream
from vmstream.container.packing import PackedOutput
from vmstream.transport.sink import OutputFile

MIB = 1 << 20


class Collected:
    """An output that takes what comes next, and nothing else."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.data = bytearray()

    def write(self, offset: int, data: memoryview | bytes) -> None:
        assert offset == self.start + len(self.data)
        self.data += data


def packed(data: bytes | memoryview, codec: str, step: int = MIB, start: int = 0) -> bytes:
    out = Collected(start)
    to = PackedOutput(out, codec, start)
    for at in range(0, len(data), step):
        # What is borrowed is gone behind the call.
        borrowed = bytearray(data[at : at + step])
        to.write(at, memoryview(borrowed))
        borrowed[:] = bytes(len(borrowed))
    to.finish()
    assert to.end == start + len(out.data)
    return bytes(out.data)


def unstored(data: bytes) -> bytes:
    """What is in an lzop file of stored blocks, read without our code."""
    assert data.startswith(LZOP_MAGIC)
    fields = struct.Struct(">HHHBBIIIIB")
    version, _, needed, method, _, flags, *_, name = fields.unpack_from(data, 9)
    assert (version, needed, method, name) == (0x1040, 0x0940, 1, 0)
    assert flags & 0xFFFFFF == 0xD
    at = 9 + fields.size
    assert struct.unpack_from(">I", data, at) == (zlib.adler32(data[9:at]),)
    at += 4
    found = bytearray()
    while size := struct.unpack_from(">I", data, at)[0]:
        stored, checksum = struct.unpack_from(">II", data, at + 4)
        assert stored == size <= 256 << 10
        found += data[at + 12 : at + 12 + size]
        assert zlib.adler32(data[at + 12 : at + 12 + size]) == checksum
        at += 12 + size
    assert at + 4 == len(data)
    return bytes(found)


def unframed(data: bytes) -> bytes:
    """What is in the one frame of a zstd file, which has a checksum."""
    assert zstandard.get_frame_parameters(data).has_checksum
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    found = unpacker.decompress(data)
    assert unpacker.eof
    assert not unpacker.unused_data
    return found


UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "bzip2": bz2.decompress,
    "xz": lzma.decompress,
    "lzop": unstored,
    "zstd": unframed,
}


def pages(count: int) -> bytes:
    """Memory: runs of zeros, between them pages of some text and of noise."""
    rng = random.Random(count)
    text = b"".join(b"line %d of text\n" % i for i in range(300))[:4096]
    runs = []
    while count > 0:
        run = min(count, rng.randint(1, 40))
        runs += [bytes(4096 * (run - 1)), rng.choice((text, rng.randbytes(4096)))]
        count -= run
    return b"".join(runs)


# Bytes, and how many come at a time.
CASES = {
    "empty": (b"", 1),
    "byte": (b"x", 1),
    "small": (pages(5)[:-1], 7),
    "chunk": (pages(1024), 65536),
    "chunk-and-byte": (pages(1024) + b"x", 9 * MIB),
    "many": (pages(2300), 5000),
    "zeros": (bytes(9 * MIB), 3 * MIB),
}


@pytest.mark.parametrize("codec", UNPACK)
@pytest.mark.parametrize("case", CASES)
def test_packed(codec: str, case: str) -> None:
    data, step = CASES[case]
    made = packed(data, codec, step, start=1000)
    assert UNPACK[codec](made) == data
    # As libvirt calls it, and it checks the sums.
    if shutil.which(codec) is None:
        return
    done = subprocess.run([codec, "-dc"], input=made, capture_output=True, check=True)
    assert done.stdout == data
    assert not done.stderr


@pytest.mark.parametrize("codec", [c for c in UNPACK if c not in MISSING])
def test_opens(codec: str, tmp_path: Path) -> None:
    """Our own reader finds nothing odd in it, behind other bytes or not."""
    data = b"QEVM\0\0\0\3" + pages(1500)
    (tmp_path / "file").write_bytes(packed(data, codec))
    with OpenStream(tmp_path / "file") as opened:
        assert [layer.kind for layer in opened.container.layers] == [codec]
        view, base, _ = opened.source.window(0, len(data) + 1)
        assert view[-base:] == data if base else view == data
        assert opened.container.take_findings() == []


@pytest.mark.parametrize("codec", ["gzip", "lzop"])
def test_order_is_kept(codec: str) -> None:
    """Chunks that take long to pack do not come behind those that do not."""
    data = b"".join(random.Random(i).randbytes(MIB) + bytes(3 * MIB) for i in range(3))
    data = b"".join(part + bytes(4 * MIB) for part in (data[: 4 * MIB], data[4 * MIB :]))
    assert UNPACK[codec](packed(data, codec)) == data


def test_what_is_not_next() -> None:
    to = PackedOutput(Collected(), "gzip")
    to.write(0, b"abc")
    with pytest.raises(ValueError, match="4 is not what comes next"):
        to.write(4, b"d")


@pytest.mark.parametrize("codec", UNPACK)
def test_output_that_is_full(codec: str) -> None:
    class Full:
        def write(self, offset: int, data: memoryview | bytes) -> None:
            if offset + len(data) > 4096:
                raise OSError(errno.ENOSPC, "No space left on device", "out")

    to = PackedOutput(Full(), codec)
    with pytest.raises(OSError, match="No space left"):
        to.write(0, pages(1100))
        to.finish()


def test_fault_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(data: object) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setitem(sys.modules["vmstream.transport.compress"].MEMBERS, "gzip", fails)
    to = PackedOutput(Collected(), "gzip")
    to.write(0, bytes(5 * MIB))
    with pytest.raises(MemoryError):
        to.finish()


def test_memory() -> None:
    class Nowhere:
        def write(self, offset: int, data: memoryview | bytes) -> None:
            pass

    noise = memoryview(random.Random(1).randbytes(4 * MIB))
    # Two pieces for each thread, packed and unpacked, and those at work.
    most = (2 * len(os.sched_getaffinity(0)) + 2) * 3 * 4 * MIB
    tracemalloc.start()
    to = PackedOutput(Nowhere(), "lzop")
    for at in range(0, 2 * most, len(noise)):
        to.write(at, noise)
    to.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most


def test_file(tmp_path: Path) -> None:
    """Behind a head, in a file that is there once it is whole."""
    data = pages(3000)
    with OutputFile(tmp_path / "out") as out:
        out.write(0, b"head")
        to = PackedOutput(out, "gzip", 4)
        to.write(0, data)
        to.finish()
        out.commit()
    made = (tmp_path / "out").read_bytes()
    assert made[:4] == b"head"
    assert gzip.decompress(made[4:]) == data
    # A member for each 4 MiB, so that all CPUs can work.
    engine = zlib.decompressobj(31)
    assert len(engine.decompress(made[4:])) == 4 * MIB
    assert engine.unused_data.startswith(b"\x1f\x8b")
