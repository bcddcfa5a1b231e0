"""Directories that are one document: whole or not there, and never left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commandline import no_leftovers
from vmstream.errors import OutputError
from vmstream.transport.directory import MANIFEST, InputDirectory, OutputDirectory


def fill(out: OutputDirectory, text: bytes) -> None:
    out.write("folder", "a", text)
    out.write("", MANIFEST, text)


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("exists", [False, True])
def test_it_appears_whole(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "dir"
    if exists:
        path.mkdir()
    with OutputDirectory(path) as out:
        fill(out, b"text")
        assert not path.exists() or not (path / MANIFEST).exists()
        out.commit()
    assert content(path) == {"folder/a": b"text", MANIFEST: b"text"}
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_without_commit_nothing(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "dir"
    if exists:
        path.mkdir()
        (path / MANIFEST).write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), OutputDirectory(path, force=True) as out:
        fill(out, b"text")
        raise ZeroDivisionError
    assert path.exists() == exists
    assert not exists or content(path) == {MANIFEST: b"old"}
    assert no_leftovers(tmp_path)


def test_force_keeps_what_is_of_others(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_bytes(b"mine")
    (tmp_path / MANIFEST).write_bytes(b"old")
    with pytest.raises(OutputError, match="not empty"):
        OutputDirectory(tmp_path)
    with OutputDirectory(tmp_path, force=True) as out:
        fill(out, b"text")
        out.commit()
    assert content(tmp_path) == {"folder/a": b"text", "folder/mine": b"mine", MANIFEST: b"text"}


def test_no_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "dir" / "folder").symlink_to(tmp_path / "away")
    out = OutputDirectory(tmp_path / "dir", force=True)
    with out, pytest.raises(OutputError, match="symbolic link"):
        fill(out, b"text")
        out.commit()
    assert not os.listdir(tmp_path / "away")
    assert not (tmp_path / "dir" / MANIFEST).exists()


def test_a_parent_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OutputDirectory(tmp_path / "no" / "dir")


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"text")
    (tmp_path / "b").symlink_to(tmp_path / "folder" / "a")
    with InputDirectory(tmp_path) as directory:
        assert directory.read("folder", "a", 4) == b"text"
        with pytest.raises(OutputError, match="more than 3 bytes"):
            directory.read("folder", "a", 3)
        for name in ("", ".", "..", "x/y", "/x", "x\0"):
            with pytest.raises(OutputError, match="no name of a file"):
                directory.file("folder", name)
        with pytest.raises(OutputError, match="symbolic link"):
            directory.file("", "b")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            directory.file("folder", "nowhere")
        with pytest.raises(OSError, match=r"x{300}"):
            directory.file("folder", "x" * 300)
        with pytest.raises(OutputError, match="not a regular file"):
            directory.file("", "folder")
