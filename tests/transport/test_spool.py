"""The file without a name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vmstream.transport.spool import Spool, in_memory

PAGE = 4096


def test_pages(tmp_path: Path) -> None:
    window = memoryview(bytes(range(256)) * 32)
    with Spool(tmp_path) as spool:
        assert spool.stored == 0
        at, to = np.array([0, PAGE]), np.array([5 * PAGE, 9 * PAGE])
        spool.write_pages(window, at, to, PAGE, PAGE)
        spool.write(100 * PAGE, b"end")
        assert list(tmp_path.iterdir()) == []
        buffer = bytearray(2 * PAGE)
        assert spool.read_into(4 * PAGE, memoryview(buffer)) == 2 * PAGE
        assert buffer == bytes(PAGE) + window[:PAGE]
        assert spool.read_into(100 * PAGE + 1, memoryview(buffer)) == 2
        assert buffer[:2] == b"nd"
        assert 0 < spool.stored < 20 * PAGE
    assert spool.stored == 0


def test_one_that_is_not_needed_takes_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path / "nowhere") as spool:
        assert spool.read_into(0, memoryview(bytearray(9))) == 0


def test_it_gives_its_file_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Spool(tmp_path) as spool:
        spool.write(0, b"x")
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with Spool(tmp_path / "nowhere") as spool, pytest.raises(FileNotFoundError) as caught:
        spool.write(0, b"x")
    assert caught.value.filename == str(tmp_path / "nowhere")


def test_a_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.fail("no /dev/full")
    with Spool() as spool:
        spool.write(0, b"x")
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, spool._fd)
        os.close(full)
        with pytest.raises(OSError, match="No space left") as caught:
            spool.write(0, b"x")
        assert caught.value.filename


def test_in_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with in_memory([(0, b"head"), (9 * PAGE, b"end")], 10 * PAGE) as path, open(path, "rb") as file:
        assert os.fstat(file.fileno()).st_size == 10 * PAGE
        assert os.fstat(file.fileno()).st_blocks * 512 <= 4 * PAGE
    # Whoever opened it keeps it.
    with in_memory([(0, b"head"), (9 * PAGE, b"end")], 10 * PAGE) as path:
        kept = open(path, "rb")  # noqa: SIM115
    with kept:
        assert kept.read() == b"head".ljust(9 * PAGE, b"\0") + b"end".ljust(PAGE, b"\0")
    assert len(os.listdir("/proc/self/fd")) == before
