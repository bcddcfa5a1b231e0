"""Compression of outputs: pages on their own, and files as a whole, on all CPUs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

import zstandard

from vmstream.transport.sink import SparseFile

# Suffix of a file that is compressed as a whole, by codec.
SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}

# Bytes of a file that are compressed at a time: those of a member.
CHUNK = 4 << 20

_GZIP_LEVEL, _ZLIB_LEVEL = 1, 1
_ZSTD_LEVEL, _ZSTD_PAGE_LEVEL = 3, 1
# What libvirt calls xz with, src/qemu/qemu_saveimage.c qemuSaveImageGetCompressionProgram(). Its
# window is as long as a chunk: a higher one would find nothing more in that.
_XZ_PRESET = 3

# What makes a member of a chunk, by codec: a file is any number of them, one behind another.
MEMBERS: dict[str, Callable[[bytearray | memoryview], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=_GZIP_LEVEL, mtime=0),
    "bzip2": bz2.compress,
    "xz": partial(lzma.compress, preset=_XZ_PRESET),
}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers(Generic[_Item, _Result]):
    """As many threads as there are CPUs, whose results come in the order of the items.

    Args:
        work: What is done with an item.

    Memory:
        Two items a thread are taken ahead of the result that is waited for.
    """

    def __init__(self, work: Callable[[_Item], _Result]) -> None:
        self._work = work
        self._threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads)
        self._waiting: deque[Future[_Result]] = deque()
        # Of what nobody waits for any more, which a process that ends would wait for.
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def give(self, item: _Item) -> Iterable[_Result]:
        """Take an item; return the result that is next, if it is time to wait for it.

        Raises:
            Exception: That of the work on an earlier item; there are no more results then.
        """
        self._waiting.append(self._pool.submit(self._work, item))
        return self._results(2 * self._threads)

    def rest(self) -> Iterable[_Result]:
        """Yield the results that are left, and end the threads."""
        yield from self._results(0)
        self.close()

    def close(self) -> None:
        """End the threads; what they did not begin is left."""
        self._pool.shutdown(cancel_futures=True)

    def _results(self, most: int) -> Iterator[_Result]:
        while len(self._waiting) > most:
            yield self._waiting.popleft().result()


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield work(item) for each item, in order, made by `Workers`."""
    workers = Workers(work)
    try:
        for item in items:
            yield from workers.give(item)
        yield from workers.rest()
    finally:
        workers.close()


class ZstdFrame:
    """One frame with a checksum, made by threads of the library's own.

    Args:
        size: Bytes of what is given, if that is known.
    """

    def __init__(self, size: int = -1) -> None:
        self._packer = zstandard.ZstdCompressor(
            level=_ZSTD_LEVEL, threads=-1, write_checksum=True
        ).compressobj(size=size)

    def give(self, data: bytearray | memoryview) -> Iterable[bytes]:
        """Take what comes next; return what there is of the frame."""
        return (self._packer.compress(data),)

    def rest(self) -> Iterable[bytes]:
        """Return the end of the frame."""
        return (self._packer.flush(),)


def page_codec(
    name: str, page_size: int, zlib_level: int = _ZLIB_LEVEL
) -> Callable[[memoryview], bytes]:
    """Return a function that compresses a page, for one thread.

    Args:
        name: 'zlib' or 'zstd'.
        page_size: Bytes.
        zlib_level: 0 to 9.
    """
    if name == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_PAGE_LEVEL).compress
    # Setting up a window of 32 KiB takes as long as compressing a page of 4 KiB.
    return partial(zlib.compress, level=zlib_level, wbits=min(15, page_size.bit_length()))


class PacketStream:
    """What packets of pages come to if they are one stream that is flushed behind each.

    As QEMU has it for each channel of multifd: v7.2.0 migration/multifd-zlib.c zlib_send_prepare()
    with Z_SYNC_FLUSH, migration/multifd-zstd.c zstd_send_prepare() with ZSTD_e_flush.

    Args:
        name: 'zlib' or 'zstd'.
        level: Of the codec.

    Memory:
        The window of the compressor.
    """

    def __init__(self, name: str, level: int) -> None:
        self._packer: Any
        if name == "zstd":
            self._packer = zstandard.ZstdCompressor(level=level).compressobj()
            self._flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        else:
            self._packer = zlib.compressobj(level)
            self._flush = zlib.Z_SYNC_FLUSH

    def add(self, pages: Iterable[memoryview]) -> int:
        """Take the pages of a packet, in pieces; return the bytes of its payload."""
        size = sum(len(self._packer.compress(p)) for p in pages)
        return size + len(self._packer.flush(self._flush))


def compressed(source: SparseFile, codec: str | None) -> Iterator[memoryview | bytes]:
    """Yield the content of a file, compressed; holes are not read.

    Args:
        source: The file, whole.
        codec: 'zstd', one frame with content size and checksum; 'gzip', a member for each 4 MiB;
            `None` for the bytes as they are.
    """
    chunks = source.chunks(CHUNK)
    if codec == "gzip":
        return in_order(_Members(), chunks)
    zeros = memoryview(bytes(CHUNK))
    plain = (zeros[:count] if data is None else data for count, data in chunks)
    return plain if codec is None else _framed(plain, source.size)


def _framed(plain: Iterable[memoryview], size: int) -> Iterator[bytes]:
    frame = ZstdFrame(size)
    for data in plain:
        yield from frame.give(data)
    yield from frame.rest()


# One of zeros is made once for each length.
class _Members:
    def __init__(self) -> None:
        self._zeros: dict[int, bytes] = {}

    def __call__(self, chunk: tuple[int, memoryview | None]) -> bytes:
        count, data = chunk
        if data is not None:
            return MEMBERS["gzip"](data)
        if count not in self._zeros:
            self._zeros[count] = MEMBERS["gzip"](memoryview(bytes(count)))
        return self._zeros[count]
