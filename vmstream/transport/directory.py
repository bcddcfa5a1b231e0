"""A directory that is one document: files in folders, and a manifest that says what they are.

It appears under its name only when whole. Read back, it is an input like any other: what its
manifest names stays inside.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Self

from vmstream.errors import OutputError
from vmstream.transport.sink import OutputFile, SavedFile

MANIFEST = "manifest.json"


class OutputDirectory:
    """A directory under a temporary name until it is whole; a context manager.

    One that exists gets the files at the end, the manifest last, and keeps what else is in it.

    Args:
        path: Its name.
        force: It may exist and have something in it, which is replaced file by file.

    Raises:
        OutputError: It is no directory, or has something in it.
        OSError: With the path.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path.resolve()
        self._name = path
        self._exists = os.path.lexists(self.path)
        if self._exists and not self.path.is_dir():
            raise OutputError(f"{path}: not a directory")
        if self._exists and not force and any(self.path.iterdir()):
            raise OutputError(f"{path}: exists and is not empty (--force replaces what is in it)")
        beside = self.path / "x" if self._exists else self.path
        self._temporary = beside.with_name(f".vmstream-{secrets.token_hex(8)}.part")
        self._temporary.mkdir()
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open:
            self._open = False
            shutil.rmtree(self._temporary, ignore_errors=True)

    def file(self, folder: str, name: str) -> OutputFile:
        """Open a file in a folder of it, or in itself for an empty one."""
        within = self._temporary / folder
        within.mkdir(exist_ok=True)
        return OutputFile(within / name)

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a small file whole."""
        with self.file(folder, name) as out:
            out.write(0, data)
            out.commit()

    def commit(self) -> None:
        """Give it its name."""
        if self._exists:
            self._move()
            self._temporary.rmdir()
        else:
            # Fails, as it should, if somebody else has made one with something in it.
            os.rename(self._temporary, self.path)
        self._open = False

    # Without a manifest what is there counts for nothing, so half of it cannot be taken for all.
    def _move(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / MANIFEST).unlink()
        for made in sorted(self._temporary.iterdir(), key=lambda p: p.name == MANIFEST):
            target = self.path / made.name
            if not made.is_dir():
                os.replace(made, target)
                continue
            target.mkdir(exist_ok=True)
            if target.is_symlink():
                raise OutputError(f"{self._name / made.name}: a symbolic link")
            for file in made.iterdir():
                os.replace(file, target / file.name)
            made.rmdir()


class InputDirectory:
    """A directory to read; a context manager.

    Args:
        path: Its name.

    Raises:
        OSError: It is no directory, or cannot be read; with the path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def file(self, folder: str, name: str) -> SavedFile:
        """Open a file in a folder of it, or in itself for an empty one.

        Raises:
            OutputError: It is no name of a file, or the file is a symbolic link or not regular.
            OSError: With the path.
        """
        path = self.path / folder / name
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise OutputError(f"{self.path}: {name!r} is no name of a file in it")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            within = os.open(folder or ".", flags, dir_fd=self._fd)
        except OSError as exc:
            raise _refused(exc, path.parent) from exc
        try:
            return SavedFile(path, within=within)
        except OSError as exc:
            raise _refused(exc, path) from exc
        finally:
            os.close(within)

    def read(self, folder: str, name: str, most: int) -> bytes:
        """Return what is in a file.

        Raises:
            OutputError: It has more than `most` bytes; and as of `file`.
            OSError: With the path.
        """
        with self.file(folder, name) as file:
            size = file.size
            if size > most:
                raise OutputError(f"{file.path}: more than {most} bytes")
            data = bytearray(size)
            return bytes(data[: file.read_into(0, memoryview(data))])


def _refused(exc: OSError, path: Path) -> Exception:
    if path.is_symlink():
        return OutputError(f"{path}: a symbolic link, which is not followed")
    return OSError(exc.errno, exc.strerror, str(path))
