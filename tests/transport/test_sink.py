"""Output files: exact, sparse, whole or not there, and named by us even if a stream says it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.commandline import environment
from tests.strategies import examples
from vmstream.errors import OutputError
from vmstream.transport import sink
from vmstream.transport.sink import (
    OutputFile,
    SavedFile,
    check_free,
    output_directory,
    safe_names,
    write_text,
)

PAGE = 4096
MIB = 1 << 20


def names_in(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


# -- whole or not there -------------------------------------------------------------------------


def test_the_name_appears_with_commit(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with OutputFile(path) as out:
        out.resize(PAGE)
        out.write(0, b"x")
        assert not path.exists()
        out.commit()
        assert names_in(tmp_path) == ["image"]
    assert path.read_bytes() == b"x" + bytes(PAGE - 1)
    assert names_in(tmp_path) == ["image"]


def test_the_temporary_name(tmp_path: Path) -> None:
    """What another process writes under it is there."""
    with OutputFile(tmp_path / "out") as out:
        out.temporary.write_bytes(b"theirs")
        assert out.size == 6
        out.commit()
    assert (tmp_path / "out").read_bytes() == b"theirs"


def test_left_without_commit(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "image") as out:
        out.write(0, b"x")
        assert len(names_in(tmp_path)) == 1
    assert names_in(tmp_path) == []
    out.abort()  # again does no harm


def test_left_by_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFile(tmp_path / "image") as out:
        out.write(0, b"x")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []


def test_the_temporary_stands_beside_its_final_name(tmp_path: Path) -> None:
    """On one file system, or the rename would copy; hidden, and of no name from a stream."""
    with OutputFile(tmp_path / "image"):
        (name,) = names_in(tmp_path)
        assert name.startswith(".vmstream-")
        assert name.endswith(".part")


def test_two_writers_of_one_name(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "image") as one, OutputFile(tmp_path / "image") as two:
        one.write(0, b"one")
        two.write(0, b"two")
        one.commit()
        with pytest.raises(OutputError, match="image: exists"):
            two.commit()
    assert (tmp_path / "image").read_bytes() == b"one"
    assert names_in(tmp_path) == ["image"]


def test_mode_is_that_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# -- names that are taken -----------------------------------------------------------------------


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"image: exists \(--force replaces it\)") as caught:
        OutputFile(path)
    assert caught.value.exit_code == 2
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["image"]


def test_force_replaces_at_commit(tmp_path: Path) -> None:
    path, link = tmp_path / "image", tmp_path / "link"
    path.write_bytes(b"old and longer")
    os.link(path, link)
    with OutputFile(path, force=True) as out:
        out.write(0, b"new")
        assert path.read_bytes() == b"old and longer"
        out.commit()
    assert path.read_bytes() == b"new"
    assert link.read_bytes() == b"old and longer"  # replaced, not written into
    assert names_in(tmp_path) == ["image", "link"]


def test_force_without_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "text", force=True)
    assert (tmp_path / "a").read_text() == "text"


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # an address holds about 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


TAKEN: dict[str, Callable[[Path], object]] = {
    "directory": lambda p: p.mkdir(),
    "link to a file": lambda p: (p.parent / "victim").write_bytes(b"") or p.symlink_to("victim"),
    "link to a directory": lambda p: p.symlink_to("."),
    "link to nothing": lambda p: p.symlink_to("nowhere"),
    "link to itself": lambda p: p.symlink_to(p.name),
    "link to a device": lambda p: p.symlink_to("/dev/null"),
    "fifo": lambda p: os.mkfifo(p),
    "socket": make_socket,
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_no_file_is_never_replaced(tmp_path: Path, kind: str, force: bool) -> None:
    path = tmp_path / "image"
    TAKEN[kind](path)
    before, was = names_in(tmp_path), path.lstat()
    with pytest.raises(OutputError, match="image: not a regular file"):
        OutputFile(path, force=force)
    with pytest.raises(OutputError, match="image: not a regular file"):
        check_free(path, force=force)
    assert names_in(tmp_path) == before
    assert path.lstat().st_ino == was.st_ino
    assert not (tmp_path / "victim").exists() or (tmp_path / "victim").read_bytes() == b""


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_is_refused(device: str, force: bool) -> None:
    with pytest.raises(OutputError, match=f"{device}: not a regular file"):
        OutputFile(device, force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", TAKEN)
def test_a_name_taken_while_writing(tmp_path: Path, kind: str, force: bool) -> None:
    """The commit is refused, and the work of it goes away."""
    path = tmp_path / "image"
    with pytest.raises(OutputError), OutputFile(path, force=force) as out:
        out.write(0, b"new")
        TAKEN[kind](path)
        out.commit()
    assert set(names_in(tmp_path)) <= {"image", "victim"}
    assert not path.is_file() or path.read_bytes() == b""


def test_a_file_made_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with pytest.raises(OutputError, match="exists"), OutputFile(path) as out:
        out.write(0, b"new")
        path.write_bytes(b"other")
        out.commit()
    assert path.read_bytes() == b"other"
    assert names_in(tmp_path) == ["image"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(_old: object, _new: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "image"
    with OutputFile(path) as out:
        out.write(0, b"new")
        out.commit()
    assert path.read_bytes() == b"new"
    with pytest.raises(OutputError, match="exists"), OutputFile(tmp_path / "other") as out:
        (tmp_path / "other").write_bytes(b"old")
        out.commit()
    assert (tmp_path / "other").read_bytes() == b"old"
    assert names_in(tmp_path) == ["image", "other"]


@pytest.mark.parametrize("where", ["nowhere/image", "file/image", "x" * 300])
def test_places_that_cannot_be(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / where
    with pytest.raises(OSError) as caught, OutputFile(path) as out:
        out.commit()
    assert caught.value.filename is not None
    assert where in str(caught.value.filename)
    assert names_in(tmp_path) == ["file"]


# -- errors of the system -----------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "write_pages", "write_rows", "zero", "resize"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The error has the path that the user gave, and nothing is left."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "image"
    window = memoryview(bytes(8 * PAGE))
    with pytest.raises(OSError) as caught, OutputFile(path) as out:
        monkeypatch.setattr(os, "pwrite", full)
        monkeypatch.setattr(os, "ftruncate", full)
        if call == "write":
            out.write(0, b"x")
        elif call == "write_pages":
            out.write_pages(window, np.array([0]), np.array([0]), PAGE, PAGE + 8)
        elif call == "write_rows":
            pages = np.array([0, PAGE + 8])
            out.write_pages(window, pages, np.array([0, PAGE]), PAGE, PAGE + 8)
        elif call == "zero":
            out.zero(0, 1)
        else:
            out.resize(1)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert names_in(tmp_path) == []


LIMITED = """
import resource, sys
from vmstream.transport.sink import OutputFile
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with OutputFile(sys.argv[1]) as out:
        out.write((1 << 20) - 100, bytes(200))
        out.commit()
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_real_limit(tmp_path: Path) -> None:
    """The write comes short at the limit, and the next one fails."""
    path = tmp_path / "image"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, env=environment()
    )
    assert done.stdout.decode().split() == [str(errno.EFBIG), str(path)], done.stderr.decode()
    assert names_in(tmp_path) == []


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rng = os.pwrite, random.Random(1)

    def short(fd: int, data: memoryview | bytes, offset: int) -> int:
        return real(fd, memoryview(data)[: rng.randint(1, len(data))], offset)

    monkeypatch.setattr(os, "pwrite", short)
    content = rng.randbytes(64 * PAGE)
    with OutputFile(tmp_path / "image") as out:
        out.write(0, content[: 20 * PAGE])
        wanted = np.arange(20, 64)
        out.write_pages(memoryview(content), wanted * PAGE, wanted * PAGE, PAGE, PAGE)
        out.write_pages(memoryview(content), np.array([0]), np.array([70 * PAGE]), PAGE, PAGE)
        out.zero(5 * PAGE, 2 * PAGE)
        out.commit()
    found = (tmp_path / "image").read_bytes()
    want = content[: 5 * PAGE] + bytes(2 * PAGE) + content[7 * PAGE :]
    assert found == want + bytes(6 * PAGE) + content[:PAGE]


# -- content ------------------------------------------------------------------------------------


def test_holes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with OutputFile(path) as out:
        out.resize(8 << 30)
        out.write(0, b"a" * PAGE)
        out.write(5 << 30, b"b" * PAGE)
        out.commit()
    assert path.stat().st_size == 8 << 30
    assert allocated(path) <= 64 << 10


def test_read_into_and_has_data(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "image") as out:
        out.resize(1 << 30)
        out.write(512 << 20, b"a" * PAGE)
        out.write((1 << 30) - PAGE, b"b" * PAGE)
        buffer = bytearray(b"x" * 3 * PAGE)
        assert out.read_into((512 << 20) - PAGE, memoryview(buffer)) == 3 * PAGE
        assert buffer == bytes(PAGE) + b"a" * PAGE + bytes(PAGE)
        buffer[:] = b"x" * 3 * PAGE
        assert out.read_into((1 << 30) - PAGE - 1, memoryview(buffer)) == PAGE + 1
        assert buffer == b"\0" + b"b" * PAGE + b"x" * (2 * PAGE - 1)
        assert out.read_into(1 << 30, memoryview(buffer)) == 0
        assert not out.has_data(0, 512 << 20)
        assert out.has_data(0, (512 << 20) + 1)
        assert out.has_data(512 << 20, PAGE)
        assert not out.has_data((512 << 20) + PAGE, 256 << 20)
        assert out.has_data(1 << 29, 1 << 29)


page_runs = st.lists(
    # Pages in the file from a gap behind the last, so many, at such a stride in the window.
    st.tuples(st.integers(0, 3), st.integers(1, 400), st.sampled_from((0, 8, 8, 8, 15))),
    min_size=1,
    max_size=12,
)


@given(page_runs, st.sampled_from((1024, 4096, 65536)), st.integers(0, 100))
@example([(0, 1, 8), (1, 257, 8), (0, 300, 8)], 4096, 3)  # more than is gathered at once
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_write_pages(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int, int]], size: int, pad: int
) -> None:
    limit = (4 << 20) // size
    positions, offsets, at, page = [], [], pad, 0
    for gap, count, between in runs:
        page += gap
        for _ in range(min(count, limit)):
            positions.append(at)
            offsets.append(page * size)
            at += size + between
            page += 1
    window = memoryview(random.Random(pad).randbytes(at + size))
    want = bytearray(page * size)
    for where, offset in zip(positions, offsets, strict=True):
        want[offset : offset + size] = window[where : where + size]
    path = tmp_path_factory.mktemp("pages") / "image"
    with OutputFile(path) as out:
        out.resize(page * size)
        out.write_pages(window, np.array(positions), np.array(offsets), size, size + 8)
        digest = out.sha256()
        out.commit()
    assert path.read_bytes() == want
    assert digest == hashlib.sha256(want).hexdigest()
    path.unlink()


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), alignment=st.integers(0, 9))
def test_write_sparse(tmp_path: Path, seed: int, alignment: int) -> None:
    """Blocks of zeros are left out, and made where something else may stand."""
    rng = random.Random(seed)
    want = bytearray(64 * PAGE)
    path = tmp_path / "image"
    with OutputFile(path, force=True) as out:
        out.resize(len(want))
        for _ in range(6):
            count = rng.randrange(1, 17)
            place = rng.randrange(64 - count) * PAGE
            data = b"".join(
                rng.choice((bytes(PAGE), rng.randbytes(PAGE), b"\0" * (PAGE - 1) + b"\1"))
                for _ in range(count)
            )
            want[place : place + len(data)] = data
            view = memoryview(bytes(alignment) + data)[alignment:]
            out.write_sparse(place, view, over=True)
        out.commit()
    assert path.read_bytes() == want


def test_write_sparse_leaves_holes(tmp_path: Path) -> None:
    data = memoryview(b"\1" * PAGE + bytes(30 * PAGE) + b"\2" * PAGE)
    with OutputFile(tmp_path / "image") as out:
        out.resize(3 * len(data))
        out.write_sparse(0, data, over=False)
        out.write_sparse(len(data), memoryview(bytes(len(data))), over=True)
        out.commit()
    assert (tmp_path / "image").read_bytes() == bytes(data) + bytes(2 * len(data))
    assert allocated(tmp_path / "image") <= 4 * PAGE


def test_clear_touches_nothing_but_what_was_written(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "image") as out:
        out.resize(16 * MIB)
        out.write(0, b"\1" * (2 * PAGE))
        out.write(MIB, b"\1" * PAGE)
        out.clear(PAGE, 8 * MIB)
        # Behind the end of the file there is nothing.
        out.clear(15 * MIB, 1 << 40)
        out.commit()
    found = (tmp_path / "image").read_bytes()
    assert found == (b"\1" * PAGE).ljust(16 * MIB, b"\0")
    assert allocated(tmp_path / "image") <= 8 * PAGE


def test_no_pages(tmp_path: Path) -> None:
    none = np.array([], np.int64)
    with OutputFile(tmp_path / "image") as out:
        out.write_pages(memoryview(b""), none, none, PAGE, PAGE + 8)
        out.commit()
    assert (tmp_path / "image").read_bytes() == b""


@pytest.mark.parametrize("length", [1, PAGE, MIB, 3 * MIB + 5])
def test_zero(tmp_path: Path, length: int) -> None:
    with OutputFile(tmp_path / "image") as out:
        out.write(0, b"\xff" * (4 * MIB))
        out.zero(7, length)
        out.commit()
    want = b"\xff" * 7 + bytes(length) + b"\xff" * (4 * MIB - 7 - length)
    assert (tmp_path / "image").read_bytes() == want


# -- rearrange ----------------------------------------------------------------------------------


def content_of(size: int, seed: int = 1) -> bytearray:
    """Data and holes, in stretches of pages."""
    rng = random.Random(seed)
    out = bytearray(size)
    for at in range(0, size, PAGE):
        if rng.random() < 0.5:
            out[at : at + PAGE] = rng.randbytes(min(PAGE, size - at))
    return out


def fill(out: OutputFile, content: bytes | bytearray) -> None:
    out.resize(len(content))
    for at in range(0, len(content), PAGE):
        page = bytes(content[at : at + PAGE])
        if any(page):
            out.write(at, page)


Move = tuple[int, int, int]

MOVES: dict[str, tuple[list[Move], int]] = {
    "as it is": ([(0, 0, 64)], 64),
    "grow": ([(0, 0, 32), (32, 100, 32)], 132),
    "shrink": ([(0, 0, 16), (48, 16, 16)], 32),
    "overlap up": ([(0, 1, 63)], 64),
    "overlap down": ([(1, 0, 63)], 63),
    "swap": ([(0, 32, 32), (32, 0, 32)], 64),
    "backwards": ([(i, 63 - i, 1) for i in range(64)], 64),
    "nothing stays": ([], 10),
    "empty": ([], 0),
    "twice": ([(0, 0, 8), (0, 8, 8)], 16),
}


@pytest.mark.parametrize("name", MOVES)
def test_rearrange(tmp_path: Path, name: str) -> None:
    pages, size = MOVES[name]
    moves = [(a * PAGE, b * PAGE, n * PAGE) for a, b, n in pages]
    before = content_of(64 * PAGE)
    want = bytearray(size * PAGE)
    for old, new, length in moves:
        want[new : new + length] = before[old : old + length]
    path = tmp_path / "image"
    with OutputFile(path) as out:
        fill(out, before)
        out.rearrange(moves, len(want))
        assert len(names_in(tmp_path)) == 1
        digest = out.sha256()
        out.commit()
    assert path.read_bytes() == want
    assert digest == hashlib.sha256(want).hexdigest()
    assert names_in(tmp_path) == ["image"]


def test_rearrange_keeps_holes(tmp_path: Path) -> None:
    gib = 1 << 30
    path = tmp_path / "image"
    with OutputFile(path) as out:
        out.resize(5 * gib)
        out.write(gib, b"a" * PAGE)
        out.write(5 * gib - PAGE, b"b" * PAGE)
        out.rearrange([(0, 0, 3 * gib), (3 * gib, 4 * gib, 2 * gib)], 6 * gib)
        out.write(0, b"c" * PAGE)  # it goes on being written to
        out.commit()
    assert path.stat().st_size == 6 * gib
    assert allocated(path) <= 128 << 10
    with path.open("rb") as image:
        for at, byte in ((0, b"c"), (gib, b"a"), (6 * gib - PAGE, b"b")):
            image.seek(at)
            assert image.read(PAGE) == byte * PAGE


def test_rearrange_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "image"
    with pytest.raises(OSError) as caught, OutputFile(path) as out:
        fill(out, content_of(16 * PAGE))
        monkeypatch.setattr(os, "pwrite", full)
        out.rearrange([(0, PAGE, 16 * PAGE)], 17 * PAGE)
    assert caught.value.filename == str(path)
    assert names_in(tmp_path) == []


# -- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PAGE, 4 * MIB, 9 * MIB + 123])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = content_of(size, size)
    with OutputFile(tmp_path / "image") as out:
        fill(out, content)
        assert out.sha256() == hashlib.sha256(content).hexdigest()


def test_sha256_of_holes_alone(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "image") as out:
        out.resize(20 * MIB + 1)
        assert out.sha256() == hashlib.sha256(bytes(20 * MIB + 1)).hexdigest()
        out.write(6 * MIB + 7, b"x")
        want = bytearray(20 * MIB + 1)
        want[6 * MIB + 7] = ord("x")
        assert out.sha256() == hashlib.sha256(want).hexdigest()


# -- small things -------------------------------------------------------------------------------


def test_write_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    with pytest.raises(OutputError, match="exists"):
        write_text(path, "other")
    write_text(path, "", force=True)
    assert path.read_bytes() == b""
    assert names_in(tmp_path) == ["a.json"]


def test_output_directory(tmp_path: Path) -> None:
    """Made with its parents; what is new and stays empty goes again, what was there stays."""
    deep = tmp_path / "a" / "b"
    with output_directory(deep):
        assert deep.is_dir()
    assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), output_directory(deep):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with output_directory(deep):
        (deep / "file").write_text("x")
    assert (deep / "file").exists()
    (tmp_path / "empty").mkdir()
    with output_directory(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError) as caught, output_directory(tmp_path / "file"):
        pass
    assert caught.value.filename == str(tmp_path / "file")


# -- names from a stream ------------------------------------------------------------------------

HOSTILE = [
    b"../../x", b"/rom@etc/acpi/tables", b"", b".", b"..", b"...", b"/", b"//", b"\0", b"a\0b",
    b"a" * 255, b"\xff\xfe", b"\xc3\xa4", b"MEM", b"mem", b"Mem", b"mem-2", b"MEM-2", b"manifest",
    b"Manifest", b"manifest.json", b".hidden", b"-rf", b"a\nb", b"a b", b"$(reboot)", b"~root",
    b"con", b"0000:00:02.0/vga.vram", b"0000_00_02.0_vga.vram", b"\x1b[31m", b"a.raw", b"a",
    "\u202egpj".encode(), b"_", b"__", b"block", b"a" * 254 + b"b", b"." * 255,
]  # fmt: skip


def check_names(made: list[str], suffix: str) -> None:
    for name in made:
        assert name.endswith(suffix)
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set("/\\\0 \n$~'\"*?:")
        assert not name.startswith(".")
        assert 0 < len(name) <= 255
        assert name.lower() != "manifest.json"
        assert len(name) > len(suffix)
    assert len({name.casefold() for name in made}) == len(made)


@pytest.mark.parametrize("suffix", [".raw", ".json", ""])
def test_safe_names_of_hostile_ones(suffix: str) -> None:
    made = safe_names(HOSTILE, suffix)
    assert len(made) == len(HOSTILE)
    check_names(made, suffix)
    assert safe_names(HOSTILE, suffix) == made


@given(st.lists(st.one_of(st.binary(max_size=255), st.sampled_from(HOSTILE)), max_size=40))
@example([b"a", b"a-2", b"a", b"A"])
@example([b"manifest", b"manifest", b"manifest-2"])
@example([b"\xc3\x84", b"\xc3\xa4"])
def test_safe_names(names: list[bytes]) -> None:
    for suffix in (".raw", ".json"):
        check_names(safe_names(names, suffix), suffix)


def test_usual_names_stay_readable() -> None:
    names = [b"pc.ram", b"mem", b"/rom@etc/acpi/tables", b"0000:00:02.0/vga.vram", b"pc.bios"]
    assert safe_names(names, ".raw") == [
        "pc.ram.raw", "mem.raw", "rom@etc_acpi_tables.raw", "0000_00_02.0_vga.vram.raw",
        "pc.bios.raw",
    ]  # fmt: skip


def test_the_gather_buffer_is_no_limit_of_a_page() -> None:
    """A page of any target fits, so that a row is never cut."""
    assert sink._GATHER >= 65536


def test_a_saved_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    with SavedFile(path) as file:
        buffer = bytearray(9)
        assert (file.size, file.read_into(1, memoryview(buffer))) == (5, 4)
        assert buffer == b"2345" + bytes(5)
        with pytest.raises(OSError) as caught:
            file.write(0, b"x")
        assert caught.value.filename == str(path)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OutputError, match="not a regular file"):
            SavedFile(other)
    with pytest.raises(OSError) as caught:
        SavedFile(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
