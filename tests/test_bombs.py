"""Small inputs that unpack to much: each ends with exit 5, soon, in bounded memory, and leaves
nothing behind.

All of them are built here, and all are legal streams as far as anyone reads, so that nothing but
the limit stops them.
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard

from tests.commandline import vmstream
from tests.containers import PACK, save_image
from tests.qcow2images import COPIED, Saved, build
from tests.test_memory_bound import LIMIT, MIB, peak, stream
from vmstream import LimitError, open as open_stream
from vmstream.container.layers import Container
from vmstream.wire.constants import MAX_EXPANSION, MAX_RAM, MAX_UNPACKED

PAGE = 4096
GIB = 1 << 30
KINDS = list(PACK)


PASS = 64


def head(total: int = PASS * PAGE) -> bytes:
    """A stream up to its first page record, of a named page."""
    out = b"QEVM" + struct.pack(">I", 3) + b"\1" + struct.pack(">I", 2) + b"\3ram"
    out += struct.pack(">II", 0, 4) + struct.pack(">Q", total | 4) + b"\3mem"
    out += struct.pack(">QQ", total, 0x10) + b"\x7e" + struct.pack(">I", 2)
    return out + b"\2" + struct.pack(">IQ", 2, 8) + b"\3mem" + b"\1" * PAGE


def endless(size: int) -> bytes:
    """The same pages over and over, as often as fits."""
    again = b"".join(zero_pages(PASS))
    return head() + again * (size // len(again))


def zero_pages(pages: int) -> Iterator[bytes]:
    """PAGE records of zeros: what a QEMU that does not look for zero pages writes."""
    data = np.zeros(8192, np.dtype([("head", ">u8"), ("body", "u1", (PAGE,))]))
    for at in range(1, pages, len(data)):
        data["head"] = (np.arange(at, at + len(data), dtype=np.uint64) << np.uint64(12)) | 0x28
        yield data[: pages - at].tobytes()


def bomb(kind: str, content: bytes) -> bytes:
    """Packed until it is a bomb: once, or for formats that expand little, twice."""
    data = content
    for _ in range(3):
        data = PACK[kind](data)
        if len(data) * MAX_EXPANSION * 2 < len(content):
            return data
    raise AssertionError(f"{kind} does not shrink it: {len(data)}")


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bombs")
    content = endless(96 * MIB)
    found = {}
    for kind in KINDS:
        data = bomb(kind, content)
        found[kind] = folder / kind
        found[kind].write_bytes(data)
        if kind in ("gzip", "zstd"):
            found[f"{kind} in an image"] = folder / f"{kind}.save"
            number = {"gzip": 1, "zstd": 5}[kind]
            found[f"{kind} in an image"].write_bytes(save_image(data, number=number))
    found["all in one"] = folder / "nested"
    data = content
    for kind in [k for k in ("lz4", "lzop", "gzip", "zstd") if k in PACK]:
        data = PACK[kind](data)
    found["all in one"].write_bytes(data)
    return found


NAMES = [*KINDS, "gzip in an image", "zstd in an image", "all in one"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "args",
    [
        ["inspect", "--json"],
        ["records", "--json"],
        ["extract-ram", "--all-blocks", "OUT"],
        ["extract-ram", "--partial", "-o", "OUT"],
    ],
    ids=" ".join,
)
def test_each_codec(name: str, args: list[str], bombs: dict[str, Path], tmp_path: Path) -> None:
    path, out = bombs[name], tmp_path / "out"
    args = [str(out) if a == "OUT" else a for a in args]
    started = time.monotonic()
    run = vmstream(*args, "--max-ram", "64M", path)
    assert run.status == 5, run.err
    assert "--max-ram SIZE allows SIZE bytes" in run.err
    assert time.monotonic() - started < 30
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_they_can_be_allowed(name: str, bombs: dict[str, Path]) -> None:
    """Then only the end of the stream is missing."""
    with open_stream(bombs[name]) as opened:
        errors = [e.error for e in opened if getattr(e, "error", None) is not None]
    assert [e.code for e in errors] == ["truncated"]
    with open_stream(bombs[name], max_ram=64 * MIB) as opened:
        errors = [e.error for e in opened if getattr(e, "error", None) is not None]
    assert isinstance(errors[0], LimitError)


def test_memory(bombs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("zstd", "xz", "all in one"):
        status, most = peak(
            ["inspect", "--json", "--max-ram", "64M", str(bombs[name])],
            subprocess.DEVNULL,
            tmp_path / "out",
        )
        assert status == 5
        assert most < LIMIT, f"{name}: {most / MIB:.0f} MiB"


def test_terabytes_in_kilobytes(tmp_path: Path) -> None:
    """Without an option: frames in a frame, of which a handful of bytes is a GiB."""
    frame = PACK["zstd"](endless(64 * MIB)[len(head()) :])
    data = PACK["zstd"](PACK["zstd"](head()) + frame * 16384)
    assert len(data) < 300 << 10
    path, out = tmp_path / "bomb", tmp_path / "out"
    path.write_bytes(data)
    started = time.monotonic()
    status, most = peak(["inspect", "--json", str(path)], subprocess.DEVNULL, out)
    assert status == 5
    assert time.monotonic() - started < 120
    assert most < LIMIT, f"{most / MIB:.0f} MiB"
    assert "--max-ram" in out.read_text()


# -- what is none ---------------------------------------------------------------------------------


def test_a_guest_of_5_gib_that_is_mostly_zero(tmp_path: Path) -> None:
    """Compressed twice it is a bomb by its ratio, and fine."""
    pages = 5 * GIB // PAGE
    outer, inner = (zstandard.ZstdCompressor(1).compressobj() for _ in range(2))
    path = tmp_path / "guest.zst.zst"
    end = struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    end += b"\3" + struct.pack(">IQ", 2, 0x10) + b"\x7e" + struct.pack(">I", 2) + b"\0"
    with path.open("wb") as out:
        out.write(outer.compress(inner.compress(head(pages * PAGE))))
        for piece in zero_pages(pages):
            out.write(outer.compress(inner.compress(piece)))
        out.write(outer.compress(inner.compress(end) + inner.flush()) + outer.flush())
    assert path.stat().st_size * MAX_EXPANSION < 5 * GIB < MAX_UNPACKED
    run = vmstream("inspect", "--json", path)
    assert run.status == 0, run.err
    assert run.json()["complete"]
    assert run.json()["ram_blocks"][0]["pages"]["normal"] == pages


def test_a_long_stream_is_no_bomb(tmp_path: Path) -> None:
    """Many passes of a small guest, over any limit, whose pages do not shrink a thousandfold."""
    data = b"".join(stream(96 * MIB, pages=256, zeros=0, passes=90))
    path = tmp_path / "long"
    path.write_bytes(PACK["zstd"](data))
    assert len(data) > 60 * path.stat().st_size
    run = vmstream("inspect", "--json", "--max-ram", "64M", path)
    assert run.status == 0, run.err


def test_the_rule() -> None:
    container = Container(most_unpacked=10_000)
    for given, size, allowed in (
        (10_000, 0, True),
        (10_001, 10, False),
        (10_001, 11, True),
        (1 << 50, 1 << 41, True),
        (1 << 50, 1 << 40, False),
    ):
        if allowed:
            container.check_expansion(given, size, 3, "layer")
        else:
            with pytest.raises(LimitError, match=f"{size} bytes of input unpack to {given}"):
                container.check_expansion(given, size, 3, "layer")


# -- what is stated -------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [MAX_RAM + PAGE, 1 << 50, (1 << 63) - PAGE])
def test_a_block_list(total: int, tmp_path: Path) -> None:
    path, out = tmp_path / "stream", tmp_path / "out"
    path.write_bytes(head(total))
    for args in (["inspect", path], ["extract-ram", path, "--block", "mem", "-o", out]):
        run = vmstream(*args)
        assert run.status == 5, run.err
        assert "--max-ram" in run.err
    assert not out.exists()


def test_what_the_most_ram_takes(tmp_path: Path) -> None:
    """README.md: 256 MiB for the bits of 4 TiB."""
    path = tmp_path / "stream"
    path.write_bytes(head(MAX_RAM))
    status, most = peak(["inspect", "--json", str(path)], subprocess.DEVNULL, tmp_path / "out")
    assert status == 3
    assert most < LIMIT + 256 * MIB, f"{most / MIB:.0f} MiB"


@pytest.mark.parametrize("sparse", [0, 1 << 42])
def test_one_cluster_a_million_times(sparse: int, tmp_path: Path) -> None:
    """By one L2 table that the L1 table has over and over; a file of holes makes it no better."""
    cluster = 1 << 16
    image = build([Saved("a", head())], cluster_bits=16)
    entry, reach = image.places["entry", 0], cluster // 8 * cluster
    data = image.get(image.places["l2", 0])
    l2 = len(image.data) + -len(image.data) % cluster
    image.data += bytes(l2 - len(image.data)) + struct.pack(">Q", data) * (cluster // 8)
    size = (1 << 20) * cluster
    first = -(-image.get(24) // reach)
    count = first + size // reach
    l1 = len(image.data)
    image.data += struct.pack(">Q", l2 | COPIED) * count + bytes(cluster - 8 * count)
    image.put(entry, "Q", l1).put(entry + 8, "I", count).put(entry + 40, "Q", size)
    path = image.write(tmp_path / "disk.qcow2")
    os.truncate(path, max(sparse, path.stat().st_size))
    out = tmp_path / "out"
    for args in (["inspect", path], ["extract-ram", path, "--block", "mem", "-o", out]):
        run = vmstream(*args)
        assert run.status == 5, run.err
        assert "--max-ram" in run.err
    assert not out.exists()
    # The image is a legal one for a reader that does not mind; the stream in it is not.
    run = vmstream("records", "--range", "0:0x40", "--max-ram", "64G", path)
    assert run.status == 3, run.err
    assert "total=" in run.out
