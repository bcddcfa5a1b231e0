"""Pages that cannot be read where they stand in the input, in a file without a name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vmstream.transport.sink import SparseFile


class Spool:
    """A sparse file that is gone when it is closed; a context manager.

    It is made at the first write, so that one that is not needed takes nothing.

    Args:
        directory: Where; the system's directory for temporary files if `None`.

    Raises:
        OSError: From every method: the directory cannot be written to, or is full; with its path.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._directory = Path(tempfile.gettempdir() if directory is None else directory)
        self._fd = -1
        self._file: SparseFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def stored(self) -> int:
        """Bytes that it takes on disk."""
        return os.fstat(self._fd).st_blocks * 512 if self._fd >= 0 else 0

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        self._opened().write(offset, data)

    def write_pages(
        self,
        window: memoryview,
        positions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        size: int,
        stride: int,
    ) -> None:
        """Write pages, as `SparseFile.write_pages`."""
        self._opened().write_pages(window, positions, offsets, size, stride)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end."""
        done = 0
        while done < len(buffer) and self._fd >= 0:
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not got:
                break
            done += got
        return done

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._file = -1, None

    def _opened(self) -> SparseFile:
        if self._file is None:
            try:
                with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                    self._fd = os.dup(file.fileno())
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, str(self._directory)) from exc
            self._file = SparseFile(self._fd, self._directory)
        return self._file


@contextlib.contextmanager
def in_memory(parts: Iterable[tuple[int, bytes]], size: int) -> Iterator[str]:
    """Give the path of a file in memory that has these parts, by offset; the rest are holes.

    Whoever opened it keeps it.
    """
    fd = os.memfd_create("vmstream", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        for offset, data in parts:
            os.pwrite(fd, data, offset)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
