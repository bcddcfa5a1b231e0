"""Splices: what is not named is as it was."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.commandline import no_leftovers
from tests.strategies import examples
from tests.truth import data_extents
from vmstream.errors import EncodeError, TruncatedError
from vmstream.ops import splice as module
from vmstream.ops.splice import Ahead, Nowhere, Splice, Target, in_order, write_spliced
from vmstream.stream.events import Anomaly, PageBatch
from vmstream.transport.sink import OutputFile, StandardOutput
from vmstream.transport.source import FileSource


class Reader:
    """Bytes that can be read here and there."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, buffer: memoryview) -> int:
        part = self.data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def written(
    path: Path, data: bytes, splices: list[Splice], *, sparse: bool = False, copied: int = 0
) -> bytes:
    """What is written; where the account says, there stands what each splice makes."""
    ordered = in_order(splices)
    with OutputFile(path, force=True) as out:
        out.write(0, data[:copied])
        places, size = write_spliced(
            Reader(data), len(data), ordered, out, sparse=sparse, copied=copied
        )
        out.commit()
    content = path.read_bytes()
    assert size == len(content)
    assert (places, size) == write_spliced(Reader(data), len(data), ordered, Nowhere())
    for s, (at, length) in zip(ordered, places, strict=True):
        made = Made()
        if isinstance(s.data, bytes):
            made.write(s.data)
        else:
            s.data(made)
        assert content[at : at + length] == made.content
    return content


class Made:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.content = b""

    @property
    def offset(self) -> int:
        return len(self.content)

    def write(self, data: bytes | memoryview) -> None:
        self.content += data

    def skip(self, length: int) -> None:
        self.content += bytes(length)

    def put(self, offset: int, data: bytes | memoryview) -> None:
        after = self.content[offset + len(data) :]
        self.content = self.content[:offset] + bytes(data) + after


def maker(data: bytes, rng: random.Random) -> Callable[[Target], None]:
    """Write bytes in parts, where they are zeros perhaps as a hole."""
    cut, hole = rng.randrange(len(data) + 1), not any(data) and rng.random() < 0.5

    def make(to: Target) -> None:
        to.write(data[:cut])
        if hole:
            to.skip(len(data) - cut)
        else:
            to.write(data[cut:])

    return make


@settings(max_examples=examples(80))
@given(st.integers(0, 1 << 32), st.booleans(), st.booleans())
def test_any_splices(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sparse: bool, ahead: bool
) -> None:
    rng = random.Random(seed)
    data = b"".join(
        rng.choice((bytes(5000), rng.randbytes(3000))) for _ in range(rng.randrange(12))
    )
    cuts = sorted(rng.choices(range(len(data) + 1), k=2 * rng.randrange(6)))
    splices, want, at = [], bytearray(), 0
    for begin, end in zip(cuts[::2], cuts[1::2], strict=True):
        new = rng.choice((b"", rng.randbytes(7), bytes(9000)))
        made = rng.choice((new, maker(new, rng)))
        splices.append(Splice(begin, end, made, "x", rng.choice((len(new), None))))
        want += data[at:begin] + new
        at = end
    want += data[at:]
    shuffled = rng.sample(splices, len(splices)) if len(set(cuts)) == len(cuts) else splices
    path = tmp_path_factory.mktemp("splice") / "out"
    copied = rng.randrange(len(data) + 1) if ahead else 0
    assert written(path, data, shuffled, sparse=sparse, copied=copied) == want


def test_two_edits_of_one_place() -> None:
    first, second = Splice(0, 10, b"", "first"), Splice(9, 12, b"", "second")
    with pytest.raises(EncodeError, match="the bytes at 0x9: first; second"):
        in_order([second, first])
    with pytest.raises(EncodeError, match="two edits"):
        in_order([first, Splice(3, 3, b"x", "put in")])
    # Side by side, and at one point.
    assert len(in_order([first, Splice(10, 12, b"", "x"), Splice(10, 10, b"a", "y")])) == 3


def test_holes_stay_holes(tmp_path: Path) -> None:
    data = b"x" * 4096 + bytes(module._AT_ONCE * 3) + b"y" * 4096
    assert written(tmp_path / "out", data, [Splice(3, 4, b"z", "")], sparse=True)[3:4] == b"z"
    with (tmp_path / "out").open("rb") as file:
        assert sum(b - a for a, b in data_extents(file.fileno(), len(data))) < 1 << 20
    # At the end, too.
    assert written(tmp_path / "out", bytes(1 << 20), [], sparse=True) == bytes(1 << 20)


def test_put_where_it_was_skipped(tmp_path: Path) -> None:
    def make(to: Target) -> None:
        begin = to.offset
        to.skip(10)
        to.write(b"behind")
        to.put(begin + 2, memoryview(b"put"))
        to.put(begin, b"")

    got = written(tmp_path / "out", b"abc", [Splice(1, 2, make, "")])
    assert got == b"a" + b"\0\0put" + bytes(5) + b"behind" + b"c"


def test_put_where_nothing_can_be(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    splice = Splice(0, 0, lambda to: to.put(0, b""), "")
    with pytest.raises(EncodeError, match="goes to a file"):
        write_spliced(Reader(b""), 0, [splice], StandardOutput())
    assert capfdbinary.readouterr().out == b""


class Counted(Reader):
    """An input that notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self.read.append((offset, offset + len(buffer)))
        return super().read_into(offset, buffer)


def test_what_was_copied_is_not_read_again(tmp_path: Path) -> None:
    """But for what stands elsewhere now, from the first edit that changes a length to the next."""
    data = random.Random(1).randbytes(1000)
    source = Counted(data)
    splices = [Splice(10, 12, b"ab", ""), Splice(100, 100, b"xyz", ""), Splice(200, 203, b"", "")]
    with OutputFile(tmp_path / "out") as out:
        out.write(0, data[:900])
        write_spliced(source, len(data), splices, out, copied=900)
        out.commit()
    assert source.read == [(100, 200), (900, 1000)]
    want = data[:10] + b"ab" + data[12:100] + b"xyz" + data[100:200] + data[203:]
    assert (tmp_path / "out").read_bytes() == want


PAGES = PageBatch(0, 0, (), (), 4096, memoryview(b""), 0)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[FileSource]:
    before = set(threading.enumerate())
    (tmp_path / "in").write_bytes(random.Random(0).randbytes((1 << 20) + 77))
    source = FileSource(os.open(tmp_path / "in", os.O_RDONLY), "in", 5)
    yield source
    source.close()
    assert set(threading.enumerate()) <= before
    assert no_leftovers(tmp_path)


def test_a_copy_ahead(tmp_path: Path, opened: FileSource) -> None:
    size = opened.size or 0
    with OutputFile(tmp_path / "out") as out, Ahead(opened, size, out) as ahead:
        ahead.on(Anomaly(0, 0, "info", "x", "x"))
        assert ahead.stop() == 0  # no pages so far
    with OutputFile(tmp_path / "out") as out, Ahead(opened, size, out) as ahead:
        ahead.on(PAGES)
        while out.size < size:
            time.sleep(0.01)
        ahead.on(PAGES)
        assert ahead.stop() == size
        out.commit()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()[5:]


def test_a_copy_ahead_stops(
    tmp_path: Path, opened: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is left by an exception; nothing is written then to a file that is closed."""
    monkeypatch.setattr(module, "_BY_KERNEL", 1)
    with (
        pytest.raises(KeyboardInterrupt),
        OutputFile(tmp_path / "out") as out,
        Ahead(opened, opened.size or 0, out) as ahead,
    ):
        ahead.on(PAGES)
        while not out.size:
            time.sleep(0.001)
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full(
    tmp_path: Path, opened: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with OutputFile(tmp_path / "out") as out, Ahead(opened, 1000, out) as ahead:
        ahead.on(PAGES)
        with pytest.raises(OSError, match=r"full.*out"):
            ahead.stop()


def test_an_input_that_shrank(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out") as out, pytest.raises(TruncatedError, match="0x3"):
        write_spliced(Reader(b"abc"), 4, [], out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [None, errno.EXDEV, errno.ENOSPC])
def test_stretches_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    """The kernel copies them, or a buffer does where it cannot; a full disk is told."""
    data = random.Random(0).randbytes((1 << 20) + 77)
    (tmp_path / "in").write_bytes(b"front" + data)
    calls = []

    def copy(*args: int) -> int:
        calls.append(args)
        if error is not None:
            raise OSError(error, "no")
        return copy_file_range(*args)

    copy_file_range = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", copy)
    monkeypatch.setattr(module, "_BY_KERNEL", 1 << 19)
    source = FileSource(os.open(tmp_path / "in", os.O_RDONLY), "in", 5)
    splices = [Splice(3, 9, b"new", ""), Splice(len(data), len(data), b"end", "")]
    with OutputFile(tmp_path / "out") as out:
        if error == errno.ENOSPC:
            with pytest.raises(OSError, match="out"):
                write_spliced(source, len(data), splices, out)
            source.close()
            return
        write_spliced(source, len(data), splices, out)
        out.commit()
    source.close()
    assert calls
    assert (tmp_path / "out").read_bytes() == data[:3] + b"new" + data[9:] + b"end"
