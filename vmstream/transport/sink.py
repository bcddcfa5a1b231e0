"""Where output goes: files that appear under their name only when whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import OutputError

# Pages of a run are gathered into a buffer of this size and written at once. One copy and one
# call a MiB beat an iovec a page (docs/architecture.md).
_GATHER = 1 << 20
_HASH_CHUNK = 4 << 20

_STDOUT = 1

# What a hole in a file is at the least, on most file systems.
_BLOCK = 4096


class Output(Protocol):
    """Where a result goes, in order."""

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write what comes next, which stands at `offset`."""
        ...


class SparseFile:
    """A file to write pages to and read them from; what was not written is zeros.

    Args:
        fd: Open for both.
        path: For messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self._fd = fd
        self._gather = np.empty(_GATHER, np.uint8)

    def resize(self, size: int) -> None:
        """Set the length in bytes; what was not written is a hole."""
        with _named(self.path):
            os.ftruncate(self._fd, size)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        with _named(self.path):
            _write_all(self._fd, memoryview(data).cast("B"), offset)

    def write_pages(
        self,
        window: memoryview,
        positions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        size: int,
        stride: int,
    ) -> None:
        """Write pages of `size` bytes.

        Pages that follow each other in the file, and in the window at `stride`, are gathered and
        written at once; a page alone is written from where it is.

        Args:
            window: Where the pages are.
            positions: Of each page in `window`, int64 (n,).
            offsets: Of each page in the file, int64 (n,), ascending.
            size: Bytes of a page.
            stride: Bytes from page to page in the window where they are next to each other.
        """
        if not len(positions):
            return
        fd, pwrite = self._fd, os.pwrite
        apart = (np.diff(offsets) != size) | (np.diff(positions) != stride)
        first, counts = _stretches(apart)
        try:
            for count, at, offset in zip(
                counts, positions[first].tolist(), offsets[first].tolist(), strict=True
            ):
                if count == 1:
                    if pwrite(fd, window[at : at + size], offset) != size:
                        _write_all(fd, window[at : at + size], offset)
                else:
                    rows: NDArray[np.uint8] = np.ndarray(
                        (count, size), np.uint8, window, at, (stride, 1)
                    )
                    self._write_rows(offset, rows)
        except OSError as exc:
            raise _with_path(exc, self.path) from exc

    def _write_rows(self, offset: int, rows: NDArray[np.uint8]) -> None:
        step = max(1, _GATHER // rows.shape[1])
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            np.copyto(self._gather[: part.size].reshape(part.shape), part)
            _write_all(self._fd, self._gather.data[: part.size], offset)
            offset += part.size

    def read_pages(self, offsets: NDArray[np.int64], pages: NDArray[np.uint8]) -> None:
        """Fill `pages`, uint8 (n, page size), with what stands at `offsets`, int64 (n,).

        Holes are zeros; bytes behind the end of the file are left as they are.
        """
        size = pages.shape[1]
        first, counts = _stretches(np.diff(offsets) != size)
        with _named(self.path):
            for row, count, offset in zip(
                first.tolist(), counts, offsets[first].tolist(), strict=True
            ):
                target = pages[row : row + count].reshape(-1).data
                while target and (done := os.preadv(self._fd, [target], offset)):
                    target = target[done:]
                    offset += done

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._fd).st_size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end."""
        done = 0
        with _named(self.path):
            while done < len(buffer) and (
                got := os.preadv(self._fd, [buffer[done:]], offset + done)
            ):
                done += got
        return done

    def extents(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield [begin, end) of what is no hole within a range, ascending."""
        with _named(self.path):
            yield from _extents(self._fd, begin, end)

    def chunks(self, size: int) -> Iterator[tuple[int, memoryview | None]]:
        """Yield (length, bytes) of each `size` bytes, the last ones maybe fewer; `None` for a hole.

        An empty file gives one chunk of nothing.
        """
        whole = self.size
        extents = self.extents(0, whole)
        no_more = (whole, whole + size)
        begin, end = next(extents, no_more)
        for at in range(0, max(whole, 1), size):
            while end <= at:
                begin, end = next(extents, no_more)
            count, data = min(size, whole - at), None
            if begin < at + count:
                data = memoryview(bytearray(count))
                self.read_into(at, data)
            yield count, data

    def has_data(self, offset: int, length: int) -> bool:
        """Whether a stretch is no hole."""
        with _named(self.path):
            return any(_extents(self._fd, offset, offset + length))

    def write_sparse(self, offset: int, data: memoryview, *, over: bool) -> None:
        """Write contiguous bytes, a multiple of 4096; blocks of zeros are left out.

        Args:
            offset: Where they go.
            data: The bytes.
            over: Something may have been written there before.
        """
        blocks = np.frombuffer(data, np.uint8).reshape(-1, _BLOCK)
        filled: NDArray[np.bool_] = np.asarray(blocks.any(axis=1))
        first, counts = _stretches(filled[1:] != filled[:-1])
        for block, count in zip(first.tolist(), counts, strict=True):
            at, length = block * _BLOCK, count * _BLOCK
            if filled[block]:
                self.write(offset + at, data[at : at + length])
            elif over:
                self.clear(offset + at, length)

    def clear(self, offset: int, length: int) -> None:
        """Make zeros of what was written there; holes stay holes."""
        with _named(self.path):
            for begin, end in _extents(self._fd, offset, offset + length):
                self.zero(begin, end - begin)

    def zero(self, offset: int, length: int) -> None:
        """Write zeros over what was written before."""
        zeros = memoryview(bytes(min(length, _GATHER)))
        while length:
            part = zeros[:length]
            self.write(offset, part)
            offset += len(part)
            length -= len(part)


class SavedFile(SparseFile):
    """A file that was written before, to be read; a context manager.

    Args:
        path: The file.
        within: Descriptor of the directory that it is in; then no symbolic link is followed.

    Raises:
        OutputError: It is no regular file.
        OSError: With the path.
    """

    def __init__(self, path: Path, *, within: int | None = None) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        with _named(path):
            if within is None:
                fd = os.open(path, flags)
            else:
                fd = os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=within)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OutputError(f"{path}: not a regular file")
        super().__init__(fd, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


@runtime_checkable
class Copier(Protocol):
    """An input that the kernel can copy from."""

    def copy_into(self, fd: int, offset: int, length: int, to: int) -> int:
        """Copy a stretch to `to` in another file; return the bytes that were copied."""
        ...


class OutputFile(SparseFile):
    """A sparse file under a temporary name beside its final one; a context manager.

    Leaving the context without `commit()` removes it.

    Args:
        path: Final name.
        force: Replace a file of that name.

    Attributes:
        temporary: The name until then, for another process that opens the file by it.

    Raises:
        OutputError: The name is taken.
        OSError: With the path.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = Path(path)
        self._force = force
        check_free(self.path, force=force)
        self.temporary = self._temporary_name()
        with _named(self.path):
            fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        super().__init__(fd, self.path)
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    @contextlib.contextmanager
    def for_writing(self) -> Iterator[int]:
        """Open it once more, for writing alone, to hand the descriptor to another process."""
        with _named(self.path):
            fd = os.open(self.temporary, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def take(self, copier: Copier, begin: int, length: int, offset: int) -> int:
        """Have the kernel copy a stretch of an input to `offset`; return the bytes it did."""
        with _named(self.path):
            return copier.copy_into(self._fd, begin, length, offset)

    def take_file(self, path: Path, begin: int, length: int, offset: int) -> None:
        """Copy a stretch of another file to `offset`; its holes stay holes.

        Raises:
            OSError: With the path of the file that is at fault.
        """
        with _named(path):
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for low, high in _extents(source, begin, begin + length):
                with _named(self.path):
                    _copy(source, low, self._fd, offset + low - begin, high - low)
        finally:
            os.close(source)

    def rearrange(self, moves: Iterable[tuple[int, int, int]], size: int) -> None:
        """Lay the file out anew: (old offset, new offset, length) for all that is to stay."""
        name = self._temporary_name()
        with _named(self.path):
            fresh = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(fresh, size)
                for old, new, length in moves:
                    for begin, end in _extents(self._fd, old, old + length):
                        _copy(self._fd, begin, fresh, new + begin - old, end - begin)
            except BaseException:
                os.close(fresh)
                os.unlink(name)
                raise
            os.close(self._fd)
            os.replace(name, self.temporary)
        self._fd = fresh

    def sha256(self) -> str:
        """SHA-256 of the content, holes included."""
        digest = hashlib.sha256()
        zeros = bytes(_HASH_CHUNK)
        with _named(self.path):
            size = os.fstat(self._fd).st_size
            at = 0
            for begin, end in _extents(self._fd, 0, size):
                _digest_zeros(digest, zeros, begin - at)
                for place in range(begin, end, _HASH_CHUNK):
                    digest.update(os.pread(self._fd, min(_HASH_CHUNK, end - place), place))
                at = end
            _digest_zeros(digest, zeros, size - at)
        return digest.hexdigest()

    def commit(self) -> None:
        """Give the file its final name."""
        with _named(self.path):
            os.close(self._fd)
            self._open = False
            try:
                if self._force:
                    check_free(self.path, force=True)
                    os.replace(self.temporary, self.path)
                else:
                    _rename_new(self.temporary, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(self.temporary)
                raise

    def abort(self) -> None:
        """Remove the file, unless it was committed."""
        if self._open:
            self._open = False
            os.close(self._fd)
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)

    def _temporary_name(self) -> Path:
        return self.path.with_name(f".vmstream-{secrets.token_hex(8)}.part")


class StandardOutput:
    """Standard output, for an output that is not text.

    Args:
        digest: Of what is written, if it is wanted.

    Raises:
        OutputError: It is a terminal.
        OSError: From every method; BrokenPipeError if nobody reads.
    """

    def __init__(self, *, digest: bool = False) -> None:
        self.size = 0
        self._digest = hashlib.sha256() if digest else None
        if os.isatty(_STDOUT):
            raise OutputError("standard output is a terminal: redirect it to a file or a pipe")

    def append(self, data: memoryview | bytes) -> None:
        """Write what comes next."""
        self.size += len(data)
        if self._digest is not None:
            self._digest.update(data)
        rest = memoryview(data)
        with _named(Path("standard output")):
            while rest:
                rest = rest[os.write(_STDOUT, rest) :]

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write what comes next, which stands at `offset`."""
        if offset != self.size:
            raise ValueError(f"{offset} is not what comes next")
        self.append(data)

    def sha256(self) -> str:
        """SHA-256 of what was written, if it was wanted."""
        return "" if self._digest is None else self._digest.hexdigest()


def check_free(path: Path, *, force: bool, keep: tuple[int, int] | None = None) -> None:
    """Raise OutputError if `path` is taken and may not be replaced.

    Args:
        path: The name.
        force: A regular file may be replaced.
        keep: Device and inode of a file that may not in any case.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{path}: not a regular file")
    if (status.st_dev, status.st_ino) == keep:
        raise OutputError(f"{path}: is the input")
    if not force:
        raise OutputError(f"{path}: exists (--force replaces it)")


def check_parent(path: Path) -> None:
    """Raise OSError if `path` has no directory to stand in. Better said first than last."""
    with _named(path):
        os.stat(path.parent)


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write a small text file whole."""
    write_whole(path, text.encode(), force=force)


def write_whole(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a small file whole."""
    with OutputFile(path, force=force) as out:
        out.write(0, data)
        out.commit()


@contextlib.contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Make a directory and its parents; what of them is new goes again if nothing came into it."""
    fresh = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for made in fresh:
                made.rmdir()


def safe_names(names: Iterable[bytes], suffix: str) -> list[str]:
    """File names for names from a stream: no separators, no dots in front, no two alike.

    A name on the wire is hostile ('../../x', '/rom@etc/acpi/tables'), and a file system may
    fold case.
    """
    taken: set[str] = set()
    made = []
    for name in names:
        text = name.decode("utf-8", "replace")
        clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-@+") else "_" for c in text)
        clean = clean.strip("._")[:100] or "block"
        unique, count = clean, 1
        while unique.lower() in taken or unique.lower() + suffix == "manifest.json":
            count += 1
            unique = f"{clean}-{count}"
        taken.add(unique.lower())
        made.append(unique + suffix)
    return made


# Put the path into errors of calls that have only a descriptor.
@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _with_path(exc, path) from exc


# Where stretches start, and their lengths, from what is apart from the one before it.
def _stretches(apart: NDArray[np.bool_]) -> tuple[NDArray[np.int64], list[int]]:
    first = np.concatenate(([0], np.flatnonzero(apart) + 1))
    return first, np.diff(first, append=len(apart) + 1).tolist()


def _with_path(exc: OSError, path: Path) -> OSError:
    return OSError(exc.errno, exc.strerror, str(path))


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        offset += done
        data = data[done:]


# Rename unless the new name is taken. A link fails where it is, with no moment between.
def _rename_new(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except FileExistsError:
        raise OutputError(f"{new}: exists (--force replaces it)") from None
    except OSError:
        check_free(new, force=False)
        os.rename(old, new)
    else:
        os.unlink(old)


# Stretches of data between holes, within [begin, end).
def _extents(fd: int, begin: int, end: int) -> Iterable[tuple[int, int]]:
    while begin < end:
        try:
            begin = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        if begin >= end:
            return
        stop = min(end, os.lseek(fd, begin, os.SEEK_HOLE))
        yield begin, stop
        begin = stop


def _copy(source: int, begin: int, target: int, to: int, length: int) -> None:
    while length:
        part = os.pread(source, min(length, _HASH_CHUNK), begin)
        if not part:
            return
        _write_all(target, memoryview(part), to)
        begin, to, length = begin + len(part), to + len(part), length - len(part)


def _digest_zeros(digest: hashlib._Hash, zeros: bytes, length: int) -> None:
    while length > 0:
        part = min(length, len(zeros))
        digest.update(memoryview(zeros)[:part])
        length -= part
