"""Streams as directories: what is in them, for every fixture; what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import no_leftovers
from tests.ops.test_extract import SHARED
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, simple_stream
from tests.truth import (
    channel_names,
    fixture_file,
    fixture_names,
    open_fixture,
)
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError, StreamError, UnsupportedError
from vmstream.ops.channels import Channels
from vmstream.ops.unpack import UnpackOptions, unpack
from vmstream.report.models.unpack import UnpackReport

PAGE = 4096
BROKEN = [n for n in fixture_names() if n.startswith("interrupted")]
# The others have some 10,000 parts of live sections, and take as many seconds as all of these.
SLOW = ("ppc64-10.0-pseries", "own-ppc64-htab")
WHOLE = [n for n in fixture_names() if n not in (*BROKEN, *SLOW)]


def unpacked(
    path: Path, output: Path, channels: tuple[Path, ...] = (), **options: Any
) -> tuple[UnpackReport, int]:
    """Unpack a file."""
    with OpenStream(path) as opened:
        beside = Channels([str(c) for c in channels], opened.identity) if channels else None
        made = UnpackOptions(output, **options)
        return unpack(opened.source, made, None, opened.container, beside)


def unpacked_fixture(name: str, tmp_path: Path) -> Path:
    """A directory of a fixture, with its channels."""
    beside = tuple(fixture_file(c, tmp_path) for c in channel_names(name))
    unpacked(fixture_file(name, tmp_path), tmp_path / "dir", beside)
    return tmp_path / "dir"


def manifest_of(directory: Path) -> Any:
    """Its manifest."""
    return json.loads((directory / "manifest.json").read_text())


def written(writer: StreamWriter, tmp_path: Path) -> Path:
    (tmp_path / "in").write_bytes(writer.data)
    return tmp_path / "in"


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_ones_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="extract-ram --partial"):
        unpacked_fixture(name, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.qevm"]


@pytest.mark.parametrize("name", ["plain-7.2-pc", "postcopy-11.1-pc.ch0"])
def test_so_are_cut_ones(name: str, tmp_path: Path) -> None:
    data = open_fixture(name)
    for part in (3, 10, 2000):
        (tmp_path / "cut").write_bytes(data[: len(data) * part // 2001])
        with pytest.raises(StreamError):
            unpacked(tmp_path / "cut", tmp_path / "dir")
        assert not (tmp_path / "dir").exists()


def test_channels_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--channel"):
        unpacked(fixture_file("multifd-7.2-pc.ch0", tmp_path), tmp_path / "dir")
    assert not (tmp_path / "dir").exists()


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory_has_no_file(name: str, tmp_path: Path) -> None:
    directory = unpacked_fixture(name, tmp_path)
    manifest = manifest_of(directory)
    [shared] = [b for b in manifest["blocks"] if b["file"] is None]
    assert all(b["gpa"] is not None for b in manifest["blocks"])
    assert manifest["configuration"]["capabilities"] == ["x-ignore-shared"]
    # With the file behind it, it is a block like others.
    with (tmp_path / "memory").open("wb") as file:
        file.truncate(shared["used_length"])
        file.seek(5)
        file.write(b"words")
    shared_blocks = ((shared["idstr"], tmp_path / "memory"),)
    unpacked(tmp_path / f"{name}.qevm", tmp_path / "with", shared_blocks=shared_blocks)
    manifest = manifest_of(tmp_path / "with")
    assert {b["gpa"] for b in manifest["blocks"]} == {None}
    assert manifest["configuration"]["capabilities"] is None
    [file_name] = [b["file"] for b in manifest["blocks"] if b["idstr"] == shared["idstr"]]
    content = (tmp_path / "with" / "blocks" / file_name).read_bytes()
    assert content == (tmp_path / "memory").read_bytes()


def test_pages_that_were_not_sent(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("pc")
    w.ram_start([RamBlock("a", 8 * PAGE), RamBlock("b", 2 * PAGE), RamBlock("c", PAGE)])
    with w.ram_end():
        for number in (0, 3, 6):
            w.page("a", number * PAGE, bytes([number + 1]) * PAGE)
        w.zero("a", PAGE)
        w.zero("b", 0)
        w.zero("b", PAGE)
    w.eof()
    unpacked(written(w, tmp_path), tmp_path / "dir")
    manifest = manifest_of(tmp_path / "dir")
    assert [b["unsent"] for b in manifest["blocks"]] == [
        [[2 * PAGE, PAGE], [4 * PAGE, 2 * PAGE], [7 * PAGE, PAGE]],
        [],
        [[0, PAGE]],
    ]


def test_hostile_names(tmp_path: Path) -> None:
    names = [b"../../x", b"a/b", b"A/B", b"manifest.json"]
    blocks = ["../../x", "/etc/passwd", "a", "A", "..", "pc.ram"]
    w = StreamWriter()
    w.header()
    w.configuration("pc")
    w.ram_start([RamBlock(b, PAGE) for b in blocks])
    with w.ram_end():
        for block in blocks:
            w.zero(block, 0)
    for number, name in enumerate(names, 5):
        body = Device("x", fields=[Field("f", "uint32", bytes(4))])
        w.raw(b"\4" + number.to_bytes(4) + bytes([len(name)]) + name + bytes(7) + b"\1")
        w.payload(body.payload())
        w.raw(b"\x7e" + number.to_bytes(4))
    w.eof()
    unpacked(written(w, tmp_path), tmp_path / "dir")
    files = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert len({str(f).lower() for f in files}) == len(files) == 2 + len(blocks) + len(names)
    assert {f.parts[0] for f in files} == {"in", "dir"}


def test_a_directory_that_exists(tmp_path: Path) -> None:
    path = written(simple_stream(), tmp_path)
    (tmp_path / "dir").mkdir()
    unpacked(path, tmp_path / "dir")
    before = os.listdir(tmp_path / "dir")
    (tmp_path / "dir" / "mine").write_text("kept")
    with pytest.raises(OutputError, match="--force"):
        unpacked(path, tmp_path / "dir")
    unpacked(path, tmp_path / "dir", force=True)
    assert sorted(os.listdir(tmp_path / "dir")) == sorted([*before, "mine"])
    with pytest.raises(OutputError, match="not a directory"):
        unpacked(path, path)
    assert no_leftovers(tmp_path)


def test_of_a_damaged_one_nothing_is_replaced(tmp_path: Path) -> None:
    path = written(simple_stream(), tmp_path)
    unpacked(path, tmp_path / "dir")
    before = {p: p.read_bytes() for p in (tmp_path / "dir").rglob("*") if p.is_file()}
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StreamError):
        unpacked(path, tmp_path / "dir", force=True)
    after = {p: p.read_bytes() for p in (tmp_path / "dir").rglob("*") if p.is_file()}
    assert after == before
