"""Where bytes come from: files and pipes, as windows for the decoder.

A window is a view of the input from some offset on. A stretch of a file that is in the
page cache is mapped, since the walk looks at one word of every page and copying the rest would
cost ten times the walk; anything else is read into one reused buffer, so that a bad disk is an
OSError and not a SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import mmap
import os
import select
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import OutputError, UnsupportedError

# Of a mapped file, where pages are touched on a thread, and twice that where they are not.
MAPPED_WINDOW = 32 << 20
READ_WINDOW = 8 << 20
_PIPE_SIZE = 1 << 20

# What a window may have of the one before it: the record that its end cut.
_OVERLAP = 128 << 10

# Address space that is taken at a time; 1/512 of it are page tables. It starts where a huge page
# of the page cache could.
_MAPPING = 1 << 30
_ALIGNMENT = 2 << 20

# The thread that touches pages is worth its while where a fault takes this many seconds, by a
# sample of so many over a quarter of the window: in small folios. A fault maps the 16 pages
# around it.
_SLOW = 2.2e-6
_FAULTS = 32

# Parts of a window of which the thread takes some, and the seconds in which it takes up a job
# unless it is busy.
_SHARES = 16
_PROMPT = 150e-6

# Whether the page cache has a stretch of a file is asked for one byte of each of these.
_PROBED = 2 << 20

Window = tuple[memoryview, int, bool]


_FINGERPRINT_ENDS = 64 << 10


class Source(Protocol):
    """An input, as the decoder's driver wants it."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes, `None` while it is not known."""
        ...

    @property
    def seekable(self) -> bool:
        """Windows may be asked for in any order."""
        ...

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the file, `None` for a pipe."""
        ...

    @property
    def origin(self) -> int:
        """Offset of the first byte in the file, for what states offsets of the whole file."""
        ...

    def window(self, offset: int, need: int) -> Window:
        """Return (view, offset of its first byte, whether the input ends with it).

        The view starts at `offset` or before and reaches at least `need` bytes behind it, or
        to the end of the input. It is valid until the next call.

        Raises:
            StreamError: Once, where what holds the stream is cut or damaged and bytes behind that
                are asked for. Asked again, the window has what there is, as the end of the input.
        """
        ...

    def close(self) -> None:
        """Release the descriptor."""
        ...


@runtime_checkable
class RandomAccess(Protocol):
    """A source that can be read here and there without a window of it being spoilt."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end."""
        ...


class _Ahead:
    """A thread that touches pages of the next mapped window.

    It is work of the kernel that can cost more than the walk over the window, and lets go of the
    GIL. The thread takes the end of the window, and so much of it that neither waits for long:
    the walk touches the rest as it goes.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[NDArray[np.uint8] | None] = SimpleQueue()
        self._started = threading.Lock()
        self._started.acquire()
        self._share = _SHARES
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, window: NDArray[np.uint8]) -> None:
        """Have the pages of a window touched, when those of the one before are."""
        begin = time.perf_counter()
        self._jobs.put(window[len(window) // _SHARES * (_SHARES - self._share) :])
        # Until it has run as far as to let go of the GIL. Else it could wait 5 ms for it, which
        # is longer than a window takes.
        self._started.acquire()
        waited = time.perf_counter() - begin > _PROMPT
        self._share = max(_SHARES // 4, min(_SHARES, self._share + (-1 if waited else 1)))

    def stop(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (pages := self._jobs.get()) is not None:
            self._started.release()
            # Of bytes: numpy would hold the GIL for numbers that it has to swap.
            pages[:: mmap.PAGESIZE].max()
            del pages


class FileSource:
    """A regular file or a block device."""

    seekable = True

    def __init__(self, fd: int, name: str, start: int = 0) -> None:
        self.name = name
        self._fd = fd
        self._start = self.origin = start
        status = os.fstat(fd)
        self.identity = status.st_dev, status.st_ino
        self.size: int | None = max(0, os.lseek(fd, 0, os.SEEK_END) - start)
        # Bytes that it takes on disk, fewer for a sparse one. Devices have no blocks, and some file
        # systems do not say.
        self.stored = min(self.size, status.st_blocks * 512 or self.size)
        self._buffer: memoryview | None = None
        self._sample = [bytearray(1)]
        self._ahead: _Ahead | None = None
        self._mapping: mmap.mmap | None = None
        self._base = 0  # of the mapping in the file
        self._kept = 0  # pages before this offset in the file are unmapped
        self._stop = -1  # end of the last window
        self._size = MAPPED_WINDOW  # of the next window
        self._asked = -1  # up to here the page cache has it
        self._cost: float | None = None  # of a fault, seconds, of late
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def window(self, offset: int, need: int) -> Window:
        """Map or read from `offset` on."""
        begin, end = self._start + offset, self._start + (self.size or 0)
        if end <= begin:
            return memoryview(b""), offset, True
        goes_on = 0 <= self._stop - begin < _OVERLAP
        if not goes_on:
            self._size, self._asked = MAPPED_WINDOW, -1
        stop = (begin + _OVERLAP) // self._size * self._size + self._size
        stop = min(end, max(stop, begin + need))
        # Not again what was asked for already, but for the last: the file may have been cut since.
        asked = max(begin, min(self._asked, stop - 1))
        mapping = self._map(begin, stop, end) if self._is_cached(asked, stop) else None
        if mapping is not None:
            if goes_on:
                self._touch(mapping, begin, stop, end)
            self._stop = stop
            return mapping[begin - self._base : stop - self._base], offset, stop == end
        stop = self._stop = min(end, begin + max(READ_WINDOW, need))
        view = self._read(begin, stop - begin)
        # Shorter than it was: the file shrank. What is left is a truncated stream.
        short = len(view) < stop - begin
        return view, offset, short or stop == end

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], self._start + offset + done)
            if not got:
                break
            done += got
        return done

    def copy_into(self, fd: int, offset: int, length: int, to: int) -> int:
        """Have the kernel copy a stretch to `to` in another file; return the bytes it did.

        0 where it cannot, between these file systems or at all.
        """
        done = 0
        try:
            while done < length and (
                got := os.copy_file_range(
                    self._fd, fd, length - done, self._start + offset + done, to + done
                )
            ):
                done += got
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        return done

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset` on, fewer only at the end.

        `length` is trusted: the caller has bounded it.
        """
        data = bytearray(length)
        return bytes(data[: self.read_into(offset, memoryview(data))])

    def fingerprint(self) -> tuple[int, int, str]:
        """Return (length, time of modification in ns, SHA-256 of a sample).

        The sample is the first and last 64 KiB, and 4 KiB at 256 places evenly between.
        """
        size, digest = self.size or 0, hashlib.sha256()
        for place in range(257):
            length = 4096 if place else _FINGERPRINT_ENDS
            digest.update(self.read_at(size * place // 257, length))
        digest.update(self.read_at(max(0, size - _FINGERPRINT_ENDS), _FINGERPRINT_ENDS))
        return size, os.fstat(self._fd).st_mtime_ns, digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._ahead is not None:
            self._ahead.stop()
        os.close(self._fd)

    # A mapping with a stretch of the file, from `self._base` on, and no page in front of it.
    def _map(self, begin: int, stop: int, end: int) -> memoryview | None:
        mapping = self._mapping
        if mapping is not None:
            fits = self._kept <= begin and stop <= self._base + len(mapping)
            free = begin - begin % mmap.PAGESIZE if fits else self._base + len(mapping)
            if free > self._kept:
                # Whoever still looks there has the page mapped again.
                mapping.madvise(mmap.MADV_DONTNEED, self._kept - self._base, free - self._kept)
                self._kept = free
            if fits:
                return memoryview(mapping)
        self._base = self._kept = begin - begin % _ALIGNMENT
        length = min(end, max(stop, self._base + _MAPPING)) - self._base
        try:
            mapping = mmap.mmap(
                self._fd, length, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED, offset=self._base
            )
        except (OSError, ValueError):
            mapping = None
        self._mapping = mapping
        return None if mapping is None else memoryview(mapping)

    # Where touching is slow, have it done for the next window while this one is in use. Where it
    # is not, take longer windows instead.
    def _touch(self, mapping: memoryview, begin: int, stop: int, end: int) -> None:
        after = min(end, stop + MAPPED_WINDOW, self._base + len(mapping))
        window = np.frombuffer(mapping[stop - self._base : after - self._base], np.uint8)
        if not len(window) or not self._is_cached(stop, after):
            return
        self._asked = after
        # Of its beginning alone: where folios are huge, a fault maps one, and soon all of them.
        sample = window[: len(window) // 4 : max(mmap.PAGESIZE, len(window) // 4 // _FAULTS)]
        started = time.perf_counter()
        sample.max()
        cost = (time.perf_counter() - started) / len(sample)
        # Pieces of a file differ, so that one window does not tell for the next.
        self._cost = cost if self._cost is None else (3 * self._cost + cost) / 4
        slow = self._cost > _SLOW
        self._size = MAPPED_WINDOW if slow else 2 * MAPPED_WINDOW
        if slow and stop - begin <= MAPPED_WINDOW + _OVERLAP:
            if self._ahead is None:
                self._ahead = _Ahead()
            self._ahead.start(window)

    # Whether the page cache holds a stretch of the file, by a sample: asking for each page
    # (mincore) costs more than the walk over them.
    def _is_cached(self, begin: int, stop: int) -> bool:
        try:
            return all(
                os.preadv(self._fd, self._sample, at, os.RWF_NOWAIT)
                for at in (*range(begin, stop, _PROBED), stop - 1)
            )
        except OSError:
            return False

    def _read(self, begin: int, length: int) -> memoryview:
        if self._buffer is None or len(self._buffer) < length:
            self._buffer = memoryview(bytearray(max(length, READ_WINDOW)))
        done = self.read_into(begin - self._start, self._buffer[:length])
        return self._buffer[:done].toreadonly()


class PipeSource:
    """A pipe, socket or terminal: read once, in order."""

    seekable = False
    identity = None
    origin = 0

    def __init__(self, stream: io.RawIOBase, name: str) -> None:
        self.name = name
        self.size: int | None = None
        self._stream = stream
        self._buffer = memoryview(bytearray(READ_WINDOW))
        self._base = 0
        self._filled = 0
        with contextlib.suppress(OSError, AttributeError, io.UnsupportedOperation):
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def window(self, offset: int, need: int) -> Window:
        """Keep what is left from `offset` on and fill the buffer behind it."""
        kept = self._filled - (offset - self._base)
        if not 0 <= kept <= self._filled:
            raise UnsupportedError(
                offset,
                "this stream takes an input to seek in, and this is a pipe",
                advice="save it to a file first, or give --spool DIR",
            )
        held = self._buffer[self._filled - kept : self._filled]
        if need > len(self._buffer):
            self._buffer = memoryview(bytearray(max(need, 2 * len(self._buffer))))
        self._buffer[:kept] = held
        self._base, self._filled = offset, kept
        while self.size is None and self._filled < len(self._buffer):
            got = self._stream.readinto(self._buffer[self._filled :])
            if got is None:
                # The other end made the pipe non-blocking, and has nothing for now.
                select.select([self._stream], [], [])
            elif not got:
                self.size = self._base + self._filled
            else:
                self._filled += got
        view = self._buffer[: self._filled].toreadonly()
        return view, self._base, self.size is not None

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


class DigestSource:
    """Another source, with the SHA-256 of all bytes that came through it.

    The digest is taken on a thread while the window is in use: hashlib lets go of the GIL.
    """

    def __init__(self, inner: Source) -> None:
        self.inner = inner
        self.name = inner.name
        self.seekable = inner.seekable
        self.identity = inner.identity
        self.origin = inner.origin
        self._digest = hashlib.sha256()
        self._done = 0
        self._pool = ThreadPoolExecutor(1)
        self._busy: Future[None] | None = None

    @property
    def size(self) -> int | None:
        """Bytes, `None` while it is not known."""
        return self.inner.size

    def window(self, offset: int, need: int) -> Window:
        """Pass a window on, with its bytes hashed in order."""
        self._wait()
        view, base, at_end = self.inner.window(offset, need)
        fresh = view[max(0, self._done - base) :]
        if base <= self._done and len(fresh):
            self._done += len(fresh)
            self._busy = self._pool.submit(self._digest.update, fresh)
        return view, base, at_end

    def hexdigest(self) -> str | None:
        """SHA-256 of the whole input; `None` if it was not read whole."""
        self._wait()
        return self._digest.hexdigest() if self._done == self.size else None

    def finish(self) -> None:
        """Let go of the bytes of the last window, and end the thread."""
        self._wait()
        self._pool.shutdown()

    def close(self) -> None:
        """Close the inner source."""
        self.finish()
        self.inner.close()

    def _wait(self) -> None:
        if self._busy is not None:
            self._busy.result()
            self._busy = None


def whole_digest(source: Source) -> str | None:
    """SHA-256 of an input that was read here and there; `None` for one that cannot be sought in."""
    if not source.seekable:
        return None
    digest = hashlib.sha256()
    for stretch in _in_order(source):
        digest.update(stretch)
    return digest.hexdigest()


def measure(source: Source, *, digest: bool) -> tuple[int, str | None]:
    """Bytes of an input, and their SHA-256 if it is wanted; read only as far as that takes."""
    if source.size is not None and not digest:
        return source.size, None
    size, total = 0, hashlib.sha256()
    for stretch in _in_order(source):
        size += len(stretch)
        if digest:
            total.update(stretch)
    return size, total.hexdigest() if digest else None


# All bytes of an input, a window at a time.
def _in_order(source: Source) -> Iterator[memoryview]:
    offset, at_end = 0, False
    while not at_end:
        view, base, at_end = source.window(offset, 1)
        yield view[offset - base :]
        offset = base + len(view)


class OpenSource:
    """Open a path, or standard input for '-', as the right source; a context manager.

    Raises:
        OSError: It cannot be opened, with its path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.source = _open(path)

    def __enter__(self) -> Source:
        return self.source

    def __exit__(self, *exc: object) -> None:
        self.source.close()


def read_small(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a file that the user gives beside the stream.

    Raises:
        OutputError: It has more than `most` bytes.
        OSError: With the path.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OutputError(f"{os.fspath(path)}: more than {most} bytes")
    return data


def spooled(source: Source, directory: str | os.PathLike[str]) -> FileSource:
    """Copy what can only be read in order to a file without a name.

    Raises:
        OSError: The directory cannot be written to, or is full; with its path.
        StreamError: What holds the stream is damaged.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            for rest in _in_order(source):
                while rest:
                    rest = rest[file.write(rest) :]
            return FileSource(os.dup(file.fileno()), source.name)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, os.fspath(directory)) from exc


def _open(path: str | os.PathLike[str]) -> Source:
    if str(path) == "-":
        fd, name, start = os.dup(0), "standard input", None
    else:
        fd, name, start = os.open(path, os.O_RDONLY | os.O_CLOEXEC), os.fspath(path), 0
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return FileSource(fd, name, os.lseek(fd, 0, os.SEEK_CUR) if start is None else start)
    if stat.S_ISDIR(mode):
        os.close(fd)
        raise IsADirectoryError(21, os.strerror(21), name)
    return PipeSource(io.FileIO(fd, "rb"), name)
