"""Compression of outputs: pages on their own, and files as a whole, on all CPUs."""

from __future__ import annotations

import gzip
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import zstandard

from vmstream.transport.sink import SparseFile

# Suffix of a file that is compressed as a whole, by codec.
SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}

# Bytes of a file that are compressed at a time: with gzip, those of a member.
_CHUNK = 4 << 20

_GZIP_LEVEL, _ZLIB_LEVEL = 1, 1
_ZSTD_LEVEL, _ZSTD_PAGE_LEVEL = 3, 1

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield work(item) for each item, in order, made on as many threads as there are CPUs.

    Memory:
        Two items a thread are taken ahead of the result that is waited for.
    """
    threads = len(os.sched_getaffinity(0))
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def page_codec(name: str, page_size: int) -> Callable[[memoryview], bytes]:
    """Return a function that compresses a page, for one thread.

    Args:
        name: 'zlib' or 'zstd'.
        page_size: Bytes.
    """
    if name == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_PAGE_LEVEL).compress
    # Setting up a window of 32 KiB takes as long as compressing a page of 4 KiB.
    return partial(zlib.compress, level=_ZLIB_LEVEL, wbits=min(15, page_size.bit_length()))


def compressed(source: SparseFile, codec: str | None) -> Iterator[memoryview | bytes]:
    """Yield the content of a file, compressed; holes are not read.

    Args:
        source: The file, whole.
        codec: 'zstd', one frame with content size and checksum; 'gzip', a member for each 4 MiB;
            `None` for the bytes as they are.
    """
    chunks = source.chunks(_CHUNK)
    if codec == "gzip":
        return in_order(_Members(), chunks)
    zeros = memoryview(bytes(_CHUNK))
    plain = (zeros[:count] if data is None else data for count, data in chunks)
    return plain if codec is None else _zstd(plain, source.size)


def _zstd(plain: Iterable[memoryview], size: int) -> Iterator[bytes]:
    packer = zstandard.ZstdCompressor(
        level=_ZSTD_LEVEL, threads=-1, write_checksum=True
    ).compressobj(size=size)
    for data in plain:
        yield packer.compress(data)
    yield packer.flush()


# One of zeros is made once for each length.
class _Members:
    def __init__(self) -> None:
        self._zeros: dict[int, bytes] = {}

    def __call__(self, chunk: tuple[int, memoryview | None]) -> bytes:
        count, data = chunk
        if data is not None:
            return gzip.compress(data, _GZIP_LEVEL, mtime=0)
        if count not in self._zeros:
            self._zeros[count] = gzip.compress(bytes(count), _GZIP_LEVEL, mtime=0)
        return self._zeros[count]
