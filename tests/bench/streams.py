"""Streams for the benchmarks: as large as asked for, quick to make, legal to the last byte.

The page bodies come from a real capture (tests/fixtures), so that caches and page contents are
those of a guest; the lengths of the runs are drawn, so that each case is known.
"""

from __future__ import annotations

import itertools
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard

from tests.channelwriter import ChannelWriter

PAGE_SIZE = 4096
FIXTURES = Path(__file__).parent.parent / "fixtures"
SECTION_ID = 2
_FOOTER = b"\x7e" + struct.pack(">I", SECTION_ID)
_EOS = struct.pack(">Q", 0x10)
_PAGE = np.dtype([("head", ">u8"), ("body", "u1", (PAGE_SIZE,))])
_ZERO = np.dtype([("head", ">u8"), ("fill", "u1")])


class Bytes:
    """A stream in memory as a source of one window."""

    name, seekable, identity, origin = "memory", True, None, 0

    def __init__(self, data: bytes) -> None:
        self.size: int | None = len(data)
        self._view = memoryview(data)

    def window(self, offset: int, need: int) -> tuple[memoryview, int, bool]:
        """All of it."""
        del offset, need
        return self._view, 0, True

    def close(self) -> None:
        """Nothing to release."""


def fixture(name: str) -> bytes:
    """A real capture."""
    raw = (FIXTURES / f"{name}.qevm.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(raw)


def _capture() -> bytes:
    return fixture("own-live-q35")


def differences(pages: int, changed: int) -> bytes:
    """A stream of PAGE records and then XBZRLE records, in which `changed` bytes of each stretch
    of `changed` + 2 are new: as many as fit an encoded page."""
    token = 2 + changed if changed < 128 else 3 + changed
    count = min(PAGE_SIZE // token, PAGE_SIZE // (changed + 2))
    head = bytes([2, changed]) if changed < 128 else bytes([2, 0x80 | changed & 0x7F, changed >> 7])
    payload = (head + bytes(range(changed))) * count
    xbzrle = np.dtype([("head", ">u8"), ("rest", "u1", (3 + len(payload),))])
    chunks = list(stream(pages, pages, zero_share=0))
    second = np.empty(pages, xbzrle)
    second["head"] = np.arange(pages, dtype=np.uint64) * np.uint64(PAGE_SIZE) | np.uint64(0x60)
    second["rest"] = np.frombuffer(b"\1" + struct.pack(">H", len(payload)) + payload, np.uint8)
    part = b"\x02" + struct.pack(">I", SECTION_ID)
    end = b"\x03" + struct.pack(">I", SECTION_ID) + _EOS + _FOOTER
    whole = b"".join(chunks)
    at = whole.rindex(end)
    return whole[:at] + part + second.tobytes() + _EOS + _FOOTER + whole[at:]


def mapped(path: Path, pages: int, run: int) -> int:
    """Write a mapped-ram file in which every second run of pages is there; return their bytes.

    QEMU v10.1.0 migration/ram.c mapped_ram_setup_ramblock().
    """
    real = bodies()
    name, total, align = b"pc-q35-9.0", pages * PAGE_SIZE, 1 << 20
    subsection = b"\x05\x1aconfiguration/capabilities" + struct.pack(">I", 1)
    subsection += struct.pack(">I", 1) + b"\x0amapped-ram"
    head = b"QEVM" + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", len(name)) + name
    head += subsection + b"\x01" + struct.pack(">I", SECTION_ID) + b"\x03ram"
    head += struct.pack(">II", 0, 4) + struct.pack(">Q", total | 4)
    head += b"\x03mem" + struct.pack(">Q", total)
    present = np.arange(pages) // run % 2 == 0
    bitmap_at = len(head) + 28
    pages_at = -(-(bitmap_at + pages // 8) // align) * align
    bitmap = np.packbits(present, bitorder="little").tobytes()
    with path.open("wb") as out:
        out.write(head + struct.pack(">IQQQ", 1, PAGE_SIZE, bitmap_at, pages_at) + bitmap)
        for first in np.flatnonzero(present & (np.arange(pages) % run == 0)).tolist():
            out.seek(pages_at + first * PAGE_SIZE)
            out.write(real[(first + np.arange(min(run, pages - first))) % len(real)].tobytes())
        out.seek(pages_at + total)
        end = b"\x03" + struct.pack(">I", SECTION_ID) + _EOS + _FOOTER
        out.write(_EOS + _FOOTER + end + device_sections())
    return int(present.sum()) * PAGE_SIZE


def multifd(work: Path, pages: int, channels: int, compression: str) -> tuple[Path, list[Path]]:
    """Write a migration of one round over full packets, as QEMU 9.0 and later send it."""
    real = bodies(1024)
    total = pages * PAGE_SIZE
    flush = struct.pack(">Q", 0x200)
    name = b"pc-q35-9.0"
    main = b"QEVM" + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", len(name)) + name
    main += b"\x01" + struct.pack(">I", SECTION_ID) + b"\x03ram" + struct.pack(">II", 0, 4)
    main += struct.pack(">Q", total | 4) + b"\x03mem" + struct.pack(">Q", total)
    main += flush + _EOS + _FOOTER
    main += b"\x03" + struct.pack(">I", SECTION_ID) + flush + _EOS + _FOOTER
    (work / "main.bin").write_bytes(main + device_sections())
    writers = [ChannelWriter(i, compression=compression) for i in range(channels)]
    number = itertools.count()
    for writer in writers:
        writer.init()
        writer.sync(next(number))
    for first in range(0, pages, 128):
        which = range(first, min(first + 128, pages))
        body = {n * PAGE_SIZE: real[n % len(real)].tobytes() for n in which}
        writers[first // 128 % channels].packet(next(number), "mem", body)
    paths = [work / f"ch{i}.bin" for i in range(channels)]
    for writer, path in zip(writers, paths, strict=True):
        writer.sync(next(number))
        path.write_bytes(bytes(writer))
    return work / "main.bin", paths


def device_sections() -> bytes:
    """Everything behind RAM in a real capture, whose RAM section has the same id."""
    data = _capture()
    return data[data.rindex(_FOOTER + b"\x04") + len(_FOOTER) :]


def bodies(count: int = 64) -> np.ndarray:
    """Page bodies of a real guest, uint8 (count, 4096)."""
    data = _capture()
    pages = np.frombuffer(data[: len(data) // PAGE_SIZE * PAGE_SIZE], np.uint8)
    return pages.reshape(-1, PAGE_SIZE)[:count]


def stream(
    pages: int, mean_run: float, *, zero_share: float = 0.5, seed: int = 1
) -> Iterator[bytes]:
    """Yield a stream of one pass over `pages` pages, in runs of PAGE and ZERO records."""
    rng = np.random.default_rng(seed)
    real = bodies()
    total = pages * PAGE_SIZE
    name = b"pc-q35-7.2"
    yield b"QEVM" + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", len(name)) + name
    yield b"\x01" + struct.pack(">I", SECTION_ID) + b"\x03ram" + struct.pack(">II", 0, 4)
    yield struct.pack(">Q", total | 4) + b"\x03mem" + struct.pack(">Q", total) + _EOS + _FOOTER
    part = b"\x02" + struct.pack(">I", SECTION_ID)
    yield part + struct.pack(">Q", 0x08) + b"\x03mem" + real[0].tobytes()
    at, zero = 1, False
    while at < pages:
        mean = 2 * mean_run * (zero_share if zero else 1 - zero_share)
        count = int(min(pages - at, max(1, rng.geometric(1 / max(mean, 1))), 8192))
        offsets = (at + np.arange(count, dtype=np.uint64)) * np.uint64(PAGE_SIZE)
        if zero:
            records = np.zeros(count, _ZERO)
            records["head"] = offsets | np.uint64(0x22)
        else:
            records = np.empty(count, _PAGE)
            records["head"] = offsets | np.uint64(0x28)
            records["body"] = real[(at + np.arange(count)) % len(real)]
        yield records.tobytes()
        at, zero = at + count, zero_share > 0 and not zero
    yield _EOS + _FOOTER + b"\x03" + struct.pack(">I", SECTION_ID) + _EOS + _FOOTER
    yield device_sections()


def write(path: Path, pages: int, mean_run: float, **more: float) -> None:
    """Write a stream to a file."""
    with path.open("wb") as out:
        for chunk in stream(pages, mean_run, **more):  # type: ignore[arg-type]
            out.write(chunk)


def endless_pages(gib: int) -> Iterator[bytes]:
    """Yield a stream of `gib` GiB of PAGE records, as fast as a pipe takes it."""
    pages = gib << 18
    pieces = stream(pages, 4096, zero_share=0)
    for _ in range(4):
        yield next(pieces)
    real = bodies(1024)
    records = np.empty(1024, _PAGE)
    records["body"] = real[np.arange(1024) % len(real)]
    ramp = np.arange(1024, dtype=np.uint64) * np.uint64(PAGE_SIZE)
    for first in range(1, pages, 1024):
        count = min(1024, pages - first)
        heads = ramp + np.uint64(first * PAGE_SIZE) | np.uint64(0x28)
        records["head"] = heads
        yield memoryview(records[:count]).cast("B")  # type: ignore[misc]
    yield _EOS + _FOOTER + b"\x03" + struct.pack(">I", SECTION_ID) + _EOS + _FOOTER
    yield device_sections()


if __name__ == "__main__":
    # A pipe's writer: python -m tests.bench.streams GIB > pipe
    for piece in endless_pages(int(sys.argv[1])):
        sys.stdout.buffer.write(piece)
