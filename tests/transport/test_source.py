"""Sources: every window holds what was asked for, wherever the bytes come from."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tests.decoding import decode, facts
from tests.strategies import examples
from tests.streamwriter import simple_stream
from vmstream.errors import OutputError, TruncatedError, UnsupportedError
from vmstream.stream.events import Gap
from vmstream.transport import source as source_module
from vmstream.transport.source import (
    DigestSource,
    FileSource,
    OpenSource,
    PipeSource,
    Source,
    Window,
    measure,
    read_small,
)

GRAIN = mmap.ALLOCATIONGRANULARITY
DATA = random.Random(1).randbytes(300_001)


def small(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Make windows and mappings so small that a test sees many."""
    monkeypatch.setattr(source_module, "MAPPED_WINDOW", window)
    monkeypatch.setattr(source_module, "_OVERLAP", GRAIN)
    monkeypatch.setattr(source_module, "_MAPPING", 5 * window)
    monkeypatch.setattr(source_module, "_ALIGNMENT", 2 * GRAIN)
    monkeypatch.setattr(source_module, "_PROBED", GRAIN)


@pytest.fixture(params=["mapped", "touched", "read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to a file's bytes, with small windows."""
    monkeypatch.setattr(source_module, "_SLOW", 0.0 if request.param == "touched" else 1.0)
    small(monkeypatch, 4 * GRAIN)
    monkeypatch.setattr(source_module, "READ_WINDOW", 10_000)
    if request.param == "read":
        monkeypatch.setattr(FileSource, "_is_cached", lambda self, base, length: False)
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "stream"
    path.write_bytes(DATA)
    return path


@contextmanager
def opened(path: Path, start: int = 0) -> Iterator[FileSource]:
    source = FileSource(os.open(path, os.O_RDONLY), str(path), start)
    try:
        yield source
    finally:
        source.close()


def check_window(source: Source, data: bytes, offset: int, need: int) -> int:
    """One window keeps what the protocol promises; returns where it ends."""
    view, base, at_end = source.window(offset, need)
    assert view.readonly
    assert base <= offset
    assert view == data[base : base + len(view)]
    end = base + len(view)
    assert end >= min(offset + need, len(data))
    assert end <= len(data)
    if at_end:
        assert end == len(data)
    else:
        # A window that falls short of what was asked for has to say that the input ends.
        assert end >= offset + need
    return end


def owned(window: Window) -> tuple[bytes, int, bool]:
    view, base, at_end = window
    return bytes(view), base, at_end


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, GRAIN - 1, GRAIN, GRAIN + 1, len(DATA) - 1])
def test_windows_of_a_file(path: Path, way: str, start: int) -> None:
    data = DATA[start:]
    edges = {0, 1, 9_999, 10_000, 10_001, len(data) - 1, len(data)}
    edges |= {k * GRAIN + d - start for k in (1, 4, 5, 8) for d in (-1, 0, 1)}
    with opened(path, start) as source:
        assert source.size == len(data)
        assert source.seekable
        for offset in sorted(e for e in edges if 0 <= e <= len(data)):
            for need in (1, 2, GRAIN, 5 * GRAIN, 10_001, 1 << 20):
                check_window(source, data, offset, need)
        # And back again: any order will do.
        check_window(source, data, 0, 8)


def test_a_file_from_end_to_end(path: Path, way: str) -> None:
    with opened(path) as source:
        offset, count = 0, 0
        while offset < len(DATA):
            end = check_window(source, DATA, offset, 8)
            offset, count = max(offset + 1, end - 7), count + 1
        assert count >= len(DATA) // (5 * GRAIN)
        view, base, at_end = source.window(len(DATA), 1)
        assert (bytes(view), base, at_end) == (b"", len(DATA), True)


@settings(deadline=None, max_examples=examples(100))
@given(st.integers(0, len(DATA)), st.integers(1, 1 << 19), st.integers(0, len(DATA)), st.booleans())
def test_any_window(
    tmp_path_factory: pytest.TempPathFactory, offset: int, need: int, start: int, mapped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-window"
    if not path.exists():
        path.write_bytes(DATA)
    data = DATA[start:]
    with pytest.MonkeyPatch.context() as patch, opened(path, start) as source:
        small(patch, 2 * GRAIN)
        patch.setattr(source_module, "READ_WINDOW", 5_000)
        if not mapped:
            patch.setattr(source, "_is_cached", lambda base, length: False)
        check_window(source, data, min(offset, len(data)), need)


@pytest.mark.parametrize("size", [0, 1, GRAIN, GRAIN + 1])
def test_small_files(tmp_path: Path, way: str, size: int) -> None:
    path = tmp_path / "small"
    path.write_bytes(DATA[:size])
    with opened(path) as source:
        assert source.size == size
        view, base, at_end = source.window(0, 8)
        assert (bytes(view), base, at_end) == (DATA[:size], 0, True)


def test_start_behind_the_end(path: Path, way: str) -> None:
    with opened(path, len(DATA) + 100) as source:
        assert source.size == 0
        assert source.window(0, 8)[2]


def test_both_ways_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was just written is in the page cache, and mapped."""
    reads: list[int] = []
    real = FileSource._read

    def read(self: FileSource, begin: int, length: int) -> memoryview:
        reads.append(begin)
        return real(self, begin, length)

    monkeypatch.setattr(FileSource, "_read", read)
    with opened(path) as source:
        check_window(source, DATA, 0, 8)
        mapped = not reads
        monkeypatch.setattr(mmap, "mmap", _refuse)
        check_window(source, DATA, 5, 8)  # still mapped
    with opened(path) as source:
        check_window(source, DATA, 5, 8)
    # Where the kernel cannot tell what is cached, all is read; either way it was read at last.
    assert reads == ([5] if mapped else [0, 5, 5])


def _refuse(*args: object, **kwargs: object) -> None:
    raise OSError("no mapping")


@pytest.mark.parametrize("left", [0, 1, 5_000, 50_000, len(DATA) - 1])
def test_a_file_that_shrinks(path: Path, way: str, left: int) -> None:
    """What is left is a stream that ends early; nothing is made up."""
    with opened(path) as source:
        os.truncate(path, left)
        offset = 0
        while True:
            view, base, at_end = source.window(offset, 8)
            assert view == DATA[base : base + len(view)]
            assert base + len(view) <= left
            if at_end:
                break
            assert len(view) >= 8
            offset = base + len(view)
        assert base + len(view) == left


def test_a_stream_that_shrinks(tmp_path: Path, way: str) -> None:
    data = bytes(simple_stream())
    path = tmp_path / "stream"
    path.write_bytes(data)
    with opened(path) as source:
        os.truncate(path, len(data) // 2)
        found = decode(data, source, strict=True)
    assert isinstance(found.error, TruncatedError)
    assert found.error.offset == len(data) // 2


def test_a_file_that_grows(path: Path, way: str) -> None:
    """The input is what it was when it was opened."""
    with opened(path) as source, path.open("ab") as more:
        more.write(b"more" * 1000)
        more.flush()
        end = 0
        while end < len(DATA):
            end = check_window(source, DATA, end, 1)
        assert owned(source.window(end, 1)) == (b"", end, True)


def test_a_view_does_not_change_under_its_user(path: Path, way: str) -> None:
    """Until the next window is asked for."""
    with opened(path) as source:
        view, base, _ = source.window(0, 100)
        kept = bytes(view)
        assert kept == DATA[base : base + len(view)]
        del view
        source.window(40_000, 100)


@pytest.mark.parametrize("keep", [False, True])
def test_windows_in_order_are_touched_ahead(
    path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """Each on a thread while the one before is in use; views outlive it, and the thread ends."""
    small(monkeypatch, 4 * GRAIN)
    touched: list[int] = []
    real = source_module._Ahead.start

    def start(self: source_module._Ahead, window: NDArray[np.uint8]) -> None:
        touched.append(len(window))
        real(self, window)

    monkeypatch.setattr(source_module._Ahead, "start", start)
    monkeypatch.setattr(source_module, "_SLOW", 0.0)
    before = threading.active_count()
    kept: list[tuple[memoryview, int]] = []
    with opened(path) as source:
        if not source._is_cached(0, GRAIN):
            pytest.skip("the kernel does not tell what is in the page cache")
        offset, count = 0, 0
        while offset < len(DATA):
            view, base, _ = source.window(offset, 8)
            assert view == DATA[base : base + len(view)]
            offset, count = base + len(view) - (base + len(view) < len(DATA)), count + 1
            if keep:
                kept.append((view, base))
        assert len(touched) >= 3 * count // 4 > 10
        # Back and forth, where nothing was prepared.
        for at in (len(DATA) // 2, 0, GRAIN, len(DATA) - 1):
            check_window(source, DATA, at, 8)
    assert threading.active_count() == before
    for view, base in kept:
        assert view == DATA[base : base + len(view)]


def test_a_file_that_shrinks_ahead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window that was prepared is gone: what is left is read."""
    small(monkeypatch, 4 * GRAIN)
    with opened(path) as source:
        end = check_window(source, DATA, 0, 8)
        end = check_window(source, DATA, end - 1, 8)
        left = end + GRAIN
        os.truncate(path, left)
        view, base, at_end = source.window(end - 1, 8)
        assert (base + len(view), at_end) == (left, True)
        assert view == DATA[base:left]


def test_streams_through_files(tmp_path: Path, way: str) -> None:
    w = simple_stream({"pc.ram": {i * 4096: bytes([i]) * 4096 * (i % 3 > 0) for i in range(60)}})
    data = bytes(w)
    for lead in (0, 1, GRAIN - 3):
        path = tmp_path / f"lead{lead}"
        path.write_bytes(DATA[:lead] + data)
        with opened(path, lead) as source:
            assert facts(decode(data, source).events) == facts(decode(data).events)


# ---- pipes -----------------------------------------------------------------------------------


@contextmanager
def pipe(write: Callable[[int], None]) -> Iterator[PipeSource]:
    """A pipe that `write` fills from a thread."""
    reader, writer = os.pipe()

    def run() -> None:
        try:
            write(writer)
        except BrokenPipeError:
            pass  # nobody reads on
        finally:
            os.close(writer)

    thread = threading.Thread(target=run)
    thread.start()
    source = PipeSource(io.FileIO(reader, "rb"), "pipe")
    try:
        yield source
    finally:
        source.close()
        thread.join()


def dribble(data: bytes, seed: int, most: int) -> Callable[[int], None]:
    """Write in little pieces of 1 to `most` bytes."""

    def write(fd: int) -> None:
        rng = random.Random(seed)
        at = 0
        while at < len(data):
            at += os.write(fd, data[at : at + rng.randrange(1, most + 1)])

    return write


@pytest.mark.parametrize("most", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("window", [16, 1000, 8 << 20])
def test_windows_of_a_pipe(monkeypatch: pytest.MonkeyPatch, most: int, window: int) -> None:
    monkeypatch.setattr(source_module, "READ_WINDOW", window)
    data = DATA[:20_000]
    rng = random.Random(most + window)
    with pipe(dribble(data, 3, most)) as source:
        assert not source.seekable
        assert source.size is None
        offset = end = 0
        while offset < len(data):
            end = check_window(source, data, offset, rng.choice((1, 8, 100, 3 * window % 9999)))
            offset = rng.randrange(offset, end + 1)
        assert end == len(data)
        view, base, at_end = source.window(len(data), 1)
        assert (bytes(view), base, at_end) == (b"", len(data), True)
        assert source.size == len(data)


def test_a_pipe_keeps_what_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "READ_WINDOW", 100)
    with pipe(dribble(DATA[:1000], 1, 1000)) as source:
        assert source.window(0, 1)[0] == DATA[:100]
        assert source.window(99, 1)[0] == DATA[99:199]
        assert source.window(99, 500)[0][:500] == DATA[99:599]
        assert owned(source.window(100, 900)) == (DATA[100:1000], 100, True)


def test_a_pipe_does_not_go_forward_unread() -> None:
    with pipe(dribble(DATA[:1000], 1, 1000)) as source:
        source.window(0, 8)
        with pytest.raises(UnsupportedError, match="seek"):
            source.window(1001, 8)


@pytest.mark.parametrize("back", [1, 5, 999])
def test_a_pipe_does_not_go_back(back: int) -> None:
    """Not even to what is in the buffer: mapped-ram looks ahead and then returns."""
    with pipe(lambda fd: os.write(fd, DATA[:2000])) as source:
        source.window(0, 1)
        source.window(1000, 1)
        with pytest.raises(UnsupportedError, match="seek"):
            source.window(1000 - back, 1)


def test_an_empty_pipe() -> None:
    with pipe(lambda fd: None) as source:
        assert owned(source.window(0, 8)) == (b"", 0, True)
        assert source.size == 0


def test_the_end_at_the_end_of_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full buffer does not tell that nothing follows; the next window does."""
    monkeypatch.setattr(source_module, "READ_WINDOW", 1000)
    with pipe(dribble(DATA[:1000], 1, 1000)) as source:
        view, _, at_end = source.window(0, 8)
        assert len(view) == 1000
        if not at_end:
            assert owned(source.window(0, 1001)) == (DATA[:1000], 0, True)


def test_a_pipe_without_bytes_for_now_has_not_ended() -> None:
    """A pipe that another program made non-blocking: waited for, or refused, but not cut off."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    source = PipeSource(io.FileIO(reader, "rb"), "pipe")

    def write() -> None:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(DATA[:1000])

    thread = threading.Timer(0.05, write)
    thread.start()
    try:
        assert bytes(source.window(0, 1001)[0]) == DATA[:1000]
    except BlockingIOError:
        pass
    finally:
        thread.join()
        source.close()


def test_streams_through_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(simple_stream({"pc.ram": {i * 4096: DATA[i : i + 4096] for i in range(20)}}))
    want = facts(decode(data).events)
    for window in (70_000, 8 << 20):
        monkeypatch.setattr(source_module, "READ_WINDOW", window)
        with pipe(dribble(data, 5, 300)) as source:
            assert facts(decode(data, source).events) == want


# ---- the digest ------------------------------------------------------------------------------


def walk(source: Source, step: int) -> None:
    offset = 0
    while True:
        view, base, at_end = source.window(offset, 8)
        end = base + len(view)
        if at_end:
            return
        offset = min(end, offset + step)


@pytest.mark.parametrize("step", [1000, 9_999, 1 << 30])
def test_digest_of_a_file(path: Path, way: str, step: int) -> None:
    with opened(path) as inner:
        source = DigestSource(inner)
        assert (source.name, source.size, source.seekable) == (str(path), len(DATA), True)
        assert source.hexdigest() is None
        walk(source, step)
        assert source.hexdigest() == hashlib.sha256(DATA).hexdigest()
        # Looking at it again changes nothing.
        check_window(source, DATA, 7, 100)
        assert source.hexdigest() == hashlib.sha256(DATA).hexdigest()


def test_digest_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "READ_WINDOW", 1000)
    with pipe(dribble(DATA[:50_000], 1, 700)) as inner:
        source = DigestSource(inner)
        assert source.size is None
        walk(source, 333)
        assert source.size == 50_000
        assert source.hexdigest() == hashlib.sha256(DATA[:50_000]).hexdigest()


def test_no_digest_of_a_part(path: Path, way: str) -> None:
    with opened(path) as inner:
        source = DigestSource(inner)
        source.window(0, 100)
        assert source.hexdigest() is None
        # What was left out cannot be made up for.
        source.window(250_000, 60_000)
        assert source.hexdigest() is None


def test_digest_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with opened(path) as inner:
        source = DigestSource(inner)
        source.window(0, 1)
        assert source.hexdigest() == hashlib.sha256(b"").hexdigest()


def test_digest_without_the_source(path: Path) -> None:
    """Its thread ends, the sum stays, and the source inside is still open."""
    inner = FileSource(os.open(path, os.O_RDONLY), "x")
    source = DigestSource(inner)
    offset = 0
    while not (found := source.window(offset, 1))[2]:
        offset = found[1] + len(found[0])
    source.finish()
    assert source.hexdigest() == hashlib.sha256(DATA).hexdigest()
    source.finish()
    assert len(inner.window(0, 1)[0])
    inner.close()


def test_digest_closes_what_is_in_it(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    source = DigestSource(FileSource(fd, "x"))
    source.window(0, 1)
    source.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_digest_of_a_decoded_stream(tmp_path: Path, way: str) -> None:
    """Decoding reads every byte: of a whole stream, and of a damaged one."""
    good = bytes(simple_stream())
    for data in (good, good + bytes(50_000), good[:-100], good[:3000] + b"\xff" + good[3001:]):
        path = tmp_path / "stream"
        path.write_bytes(data)
        with opened(path) as inner:
            source = DigestSource(inner)
            decode(data, source)
            assert source.hexdigest() == hashlib.sha256(data).hexdigest()


# ---- opening ---------------------------------------------------------------------------------


def test_open_a_file(path: Path) -> None:
    for name in (path, str(path)):
        with OpenSource(name) as source:
            assert isinstance(source, FileSource)
            assert source.name == str(path)
            assert source.size == len(DATA)
            fd = source._fd
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_open_closes_on_error(path: Path) -> None:
    with pytest.raises(RuntimeError), OpenSource(path) as source:
        assert isinstance(source, FileSource)
        fd = source._fd
        raise RuntimeError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        OpenSource(tmp_path / "none")
    assert missing.value.filename == str(tmp_path / "none") or missing.value.filename == (
        tmp_path / "none"
    )
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(IsADirectoryError) as directory:
        OpenSource(tmp_path)
    assert directory.value.filename == str(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_open_a_fifo(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def write() -> None:
        path.write_bytes(DATA[:1000])

    thread = threading.Thread(target=write)
    thread.start()
    with OpenSource(path) as source:
        assert isinstance(source, PipeSource)
        assert source.name == str(path)
        assert owned(source.window(0, 2000)) == (DATA[:1000], 0, True)
    thread.join()


class Stdin:
    def fileno(self) -> int:
        return 0


@contextmanager
def standard_input(fd: int) -> Iterator[None]:
    """Make `fd` the standard input, of the process and of Python."""
    kept = os.dup(0)
    os.dup2(fd, 0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", Stdin())
            yield
        # It was lent, and is still open.
        assert os.fstat(0).st_ino == os.fstat(fd).st_ino
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(fd)


@pytest.mark.parametrize("start", [0, 1, GRAIN + 7, len(DATA)])
def test_standard_input_at_an_offset(path: Path, way: str, start: int) -> None:
    """A file that the shell opened, of which another program has read a part."""
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, start, os.SEEK_SET)
    with standard_input(fd), OpenSource("-") as source:
        assert isinstance(source, FileSource)
        assert source.name == "standard input"
        assert source.size == len(DATA) - start
        offset = 0
        while offset < len(DATA) - start:
            offset = check_window(source, DATA[start:], offset, 8)


def test_standard_input_from_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, DATA[:1000])
    os.close(writer)
    with standard_input(reader), OpenSource("-") as source:
        assert isinstance(source, PipeSource)
        assert owned(source.window(0, 2000)) == (DATA[:1000], 0, True)


def test_identity(path: Path, tmp_path: Path) -> None:
    """Two names of one file are told apart from two files; a pipe is nothing of the kind."""
    other = tmp_path / "other"
    other.write_bytes(DATA)
    link = tmp_path / "link"
    link.symlink_to(path)
    with OpenSource(path) as one, OpenSource(link) as same, OpenSource(other) as another:
        assert one.identity == same.identity == DigestSource(one).identity
        assert one.identity != another.identity
    with pipe(lambda fd: None) as source:
        assert source.identity is None


def test_what_no_window_holds_is_a_gap(path: Path) -> None:
    """A device or file of any bytes is covered to its end."""
    with OpenSource(path) as source:
        found = decode(DATA, source)
    assert found.of(Gap)[-1].end == len(DATA)


@pytest.mark.parametrize("start", [0, 1000])
def test_read_at(path: Path, start: int) -> None:
    """Anywhere, whatever windows were asked for, and no further than the end."""
    with opened(path, start) as source:
        data = DATA[start:]
        check_window(source, data, 5000, 10)
        for offset, length in [(0, 1), (123, 4567), (len(data) - 5, 5), (0, len(data)), (7, 0)]:
            assert source.read_at(offset, length) == data[offset : offset + length]
        assert source.read_at(len(data) - 5, 100) == data[-5:]
        assert source.read_at(len(data) + 5, 100) == b""
        buffer = bytearray(b"x" * 20)
        assert source.read_into(len(data) - 5, memoryview(buffer)) == 5
        assert buffer == data[-5:] + b"x" * 15
        check_window(source, data, 6000, 10)


def test_read_small(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_small(path, 5) == b"12345"
    with pytest.raises(OutputError, match="x: more than 4 bytes"):
        read_small(path, 4)
    with pytest.raises(OSError) as caught:
        read_small(tmp_path / "none", 4)
    assert caught.value.filename == str(tmp_path / "none")


def test_what_a_file_takes_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 100_000)
    with OpenSource(path) as source:
        assert isinstance(source, FileSource)
        assert source.stored == 100_000
    os.truncate(path, 1 << 40)
    with OpenSource(path) as source:
        assert isinstance(source, FileSource)
        assert 100_000 <= source.stored < 1 << 30


def test_a_fingerprint(tmp_path: Path) -> None:
    """Of any length; what is in the sample, and the time."""
    path = tmp_path / "x"

    def taken() -> tuple[int, int, str]:
        with OpenSource(path) as source:
            assert isinstance(source, FileSource)
            return source.fingerprint()

    for size in (0, 1, 5000, 100_000, 9 << 20):
        data = bytearray(random.Random(size).randbytes(size))
        path.write_bytes(data)
        os.utime(path, ns=(5, 1_000_000_007))
        first = taken()
        assert first[:2] == (size, 1_000_000_007)
        for at in {0, size * 100 // 257, size - 1} if size else ():
            data[at] ^= 1
            path.write_bytes(data)
            assert taken()[2] != first[2]
            data[at] ^= 1
        path.write_bytes(data)
        assert taken()[2] == first[2]
        assert taken()[1] != first[1]


def test_measure(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(DATA)
    with OpenSource(path) as source:
        assert measure(source, digest=False) == (len(DATA), None)
        assert measure(source, digest=True) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    for digest in (False, True):
        pipe = PipeSource(io.BytesIO(DATA), "pipe")  # type: ignore[arg-type]
        size, total = measure(pipe, digest=digest)
        assert size == len(DATA)
        assert total == (hashlib.sha256(DATA).hexdigest() if digest else None)
