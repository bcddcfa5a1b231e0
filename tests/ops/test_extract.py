"""Extraction against the truth of every fixture, and refusals that leave nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.commandline import no_leftovers
from tests.dumps import DumpRange, elf_ranges, lime_ranges, read_range
from tests.strategies import corrupted_streams, cut_streams, examples
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, simple_stream
from tests.truth import (
    FIXTURES,
    LONG,
    block_sums,
    channel_names,
    check_block,
    fixture_file,
    fixture_names,
    has_truth,
    known_blocks,
    load_manifest,
    open_fixture,
    range_sha256,
)
from vmstream.errors import (
    FormatError,
    IntegrityError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    VmstreamError,
)
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.report.models.extract import ExtractReport
from vmstream.transport.source import OpenSource, PipeSource

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB

# What is refused on its own, with the block that is in the way.
REFUSED = {
    "multifd-7.2-pc.ch0": "mem",
    "multifd-11.1-pc.ch0": "mem",
    "multifd-zlib-10.0-q35.ch0": "mem",
    "multifd-zstd-11.1-pc.ch0": "mem",
    "postcopy-preempt-11.1-pc.ch0": "pc.ram",
    "ignoreshared-10.0-pc": "mem",
    "mapped-ignoreshared-11.1-pc": "mem",
}
SHARED = [name for name in REFUSED if "ignoreshared" in name]
INTERRUPTED = ["interrupted-11.1-pc", "interrupted-pipe-11.1-pc", "interrupted-stopped-11.1-q35"]
COMPLETE = [name for name in fixture_names() if name not in {*REFUSED, *INTERRUPTED}]
# Guest-physical address and block of the image's stretches, where that is not one block at 0.
LAYOUTS: dict[str, list[tuple[int, int, str, int]]] = {
    "own-big-pc": [(0, 3 * GIB, "mem", 0), (FOUR_GIB, 2 * GIB, "mem", 3 * GIB)],
    "own-big-q35": [(0, 2 * GIB, "mem", 0), (FOUR_GIB, 3 * GIB, "mem", 2 * GIB)],
    "big-10.0-q35": [(0, 2 * GIB, "mem", 0), (FOUR_GIB, 3 * GIB, "mem", 2 * GIB)],
    "numa-dimm-10.0-pc": [
        (0, 16 * MIB, "n0", 0),
        (16 * MIB, 16 * MIB, "n1", 0),
        (4 * GIB, 128 * MIB, "d0", 0),
    ],
    "aarch64-10.0-virt": [(0x40000000, 32 * MIB, "mem", 0)],
    "riscv64-10.0-virt": [(0x80000000, 32 * MIB, "mem", 0)],
}


def run(stream: Path, **options: Any) -> tuple[ExtractReport, int]:
    with OpenSource(stream) as source:
        return extract(source, ExtractOptions(**options))


@contextlib.contextmanager
def pipe_of(data: bytes) -> Iterator[PipeSource]:
    """A source that reads a pipe into which a thread writes."""
    reader, writer = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as out:
            out.write(data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    source = PipeSource(io.FileIO(reader, "rb"), "a pipe")
    try:
        yield source
    finally:
        source.close()
        thread.join()


def run_pipe(data: bytes, **options: Any) -> tuple[ExtractReport, int]:
    with pipe_of(data) as source:
        return extract(source, ExtractOptions(**options))


def files_in(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


def same_sparse(one: Path, two: Path) -> bool:
    """Whether two files have the same content, by what is not zero in them."""
    return block_sums(one, whole=False) == block_sums(two, whole=False)


def write(path: Path, w: StreamWriter | bytes) -> Path:
    path.write_bytes(bytes(w))
    return path


# -- every fixture ------------------------------------------------------------------------------


def test_every_fixture_is_tested() -> None:
    named = {*COMPLETE, *REFUSED, *INTERRUPTED}
    assert named == set(fixture_names())
    named |= LONG
    beside = {c for name in named for c in channel_names(name)}
    assert {p.name.split(".qevm")[0] for p in FIXTURES.glob("*.qevm.zst")} == named | beside
    assert sum("pmemsave" in load_manifest(name) for name in COMPLETE) >= 10
    for version in ("5.2", "7.2", "10.0", "11.1"):
        assert any(load_manifest(n)["qemu"].startswith(version) for n in COMPLETE)


@pytest.mark.parametrize("name", [*COMPLETE, *LONG])
def test_all_blocks(name: str, tmp_path: Path) -> None:
    """The guest is whole and the stream is real: nothing to find in it."""
    manifest = load_manifest(name)
    out = tmp_path / "out"
    report, code = run(fixture_file(name, tmp_path), all_blocks=out)
    assert code == 0, report.anomalies
    assert report.complete
    account = json.loads((out / "manifest.json").read_text())
    files = {b["idstr"]: b["file"] for b in account["blocks"]}
    assert set(files) == set(manifest["blocks"])
    assert files_in(out) == {*files.values(), "manifest.json"}
    for block in account["blocks"]:
        idstr = block["idstr"]
        assert block["pages_missing"] == 0
        assert block["size"] == manifest["blocks"][idstr]["size"]
        assert (out / files[idstr]).stat().st_size == block["size"]
    known = known_blocks(manifest)
    assert known
    for idstr in known:
        check_block(manifest, idstr, out / files[idstr], whole=False)
    assert {o.idstr: o.path for o in report.outputs} == {
        idstr: str(out / file) for idstr, file in files.items()
    }


@pytest.mark.parametrize("name", COMPLETE)
def test_image(name: str, tmp_path: Path) -> None:
    """Where the blocks belong, with their content; from a pipe just the same."""
    manifest = load_manifest(name)
    stream = fixture_file(name, tmp_path)
    image, piped = tmp_path / "image", tmp_path / "piped"
    report, code = run(stream, output=image)
    assert code == (1 if name == "numa-dimm-10.0-pc" else 0), report.anomalies
    assert report.layout is not None
    known = known_blocks(manifest)
    main = "pc.ram" if "pc.ram" in known else "mem"
    size = manifest["blocks"].get(main, {}).get("size", 0)
    layout = LAYOUTS.get(name, [(0, size, main, 0)])
    regions = [(r.gpa, r.length, r.idstr, r.block_offset) for r in report.layout.regions]
    assert regions == layout
    assert image.stat().st_size == max(gpa + length for gpa, length, _, _ in layout)
    for gpa, length, idstr, offset in layout:
        if has_truth(manifest, idstr) and length == manifest["blocks"][idstr]["size"]:
            assert offset == 0
            sums = block_sums(image, offset=gpa, size=length, whole=False)
            assert sums.nonzero_sha256 == manifest["blocks"][idstr]["nonzero_sha256"]
    for taken in manifest.get("pmemsave", []):
        # Where the machine shows something else than RAM, the manifest names no block.
        if "block" in taken and (taken["size"] < GIB or taken["gpa"] != MIB):
            found = range_sha256(image, taken["gpa"], taken["size"])
            assert found == taken["sha256"], hex(taken["gpa"])

    if name.startswith("mapped"):
        # Its list runs through the file.
        with pytest.raises(UnsupportedError, match="a pipe"):
            run_pipe(stream.read_bytes(), output=piped)
        assert not piped.exists()
        return
    again, piped_code = run_pipe(stream.read_bytes(), output=piped)
    assert piped_code == code
    assert same_sparse(image, piped)
    assert again.layout == report.layout
    assert again.ram_blocks == report.ram_blocks
    assert again.anomalies == report.anomalies
    assert files_in(tmp_path) == {stream.name, "image", "piped"}


RANGES = {"lime": lime_ranges, "elf": elf_ranges}


def joined(layout: list[tuple[int, int, str, int]]) -> list[tuple[int, int]]:
    """Stretches that follow each other are one range."""
    found: list[tuple[int, int]] = []
    for gpa, length, _, _ in layout:
        if found and sum(found[-1]) == gpa:
            gpa, length = found[-1][0], found.pop()[1] + length
        found.append((gpa, length))
    return found


@pytest.mark.parametrize("name", COMPLETE)
def test_formats(name: str, tmp_path: Path) -> None:
    """Each range has the bytes of the raw image, whatever came first, map or pages."""
    stream = fixture_file(name, tmp_path)
    raw, code = run(stream, output=tmp_path / "raw")
    assert raw.layout is not None
    layout = [(r.gpa, r.length, r.idstr, r.block_offset) for r in raw.layout.regions]
    for form, ranges_of in RANGES.items():
        path, piped = tmp_path / form, tmp_path / "piped"
        report, again = run(stream, output=path, format=form)
        assert again == code
        (output,) = report.outputs
        assert (output.format, output.size) == (form, path.stat().st_size)
        assert report.layout is not None
        assert [r.gpa for r in report.layout.regions] == [r.gpa for r in raw.layout.regions]
        ranges = ranges_of(path)
        assert [(r.gpa, r.length) for r in ranges] == joined(layout)
        for r in ranges:
            ours = block_sums(path, offset=r.offset, size=r.length, whole=False)
            assert ours == block_sums(tmp_path / "raw", offset=r.gpa, size=r.length, whole=False)
        for region in report.layout.regions:
            (inside,) = [r for r in ranges if r.gpa <= region.gpa < r.gpa + r.length]
            assert region.file_offset == inside.offset + region.gpa - inside.gpa
        if not name.startswith("mapped"):
            run_pipe(stream.read_bytes(), output=piped, format=form, force=True)
            assert ranges_of(piped) == ranges
            assert same_sparse(path, piped)
            assert piped.stat().st_size == path.stat().st_size


@pytest.mark.parametrize("name", ["plain-5.2-pc", "live-10.0-q35", "aarch64-10.0-virt"])
def test_one_block(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    for idstr in known_blocks(manifest):
        out = tmp_path / "block"
        report, code = run(fixture_file(name, tmp_path), output=out, block=idstr, force=True)
        assert code == 0
        assert report.layout is None
        assert [(o.idstr, o.size) for o in report.outputs] == [(idstr, out.stat().st_size)]
        check_block(manifest, idstr, out)


@pytest.mark.parametrize("way", ["image", "block", "all", "partial"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, way: str, tmp_path: Path) -> None:
    """What is not decoded is said, and leaves no file nor directory, with --partial neither."""
    stream = fixture_file(name, tmp_path)
    out = tmp_path / "out"
    options: dict[str, dict[str, Any]] = {
        "image": {"output": out},
        "block": {"output": out, "block": REFUSED[name]},
        "all": {"all_blocks": out},
        "partial": {"output": out, "partial": True},
    }
    if name in SHARED and way == "all":
        return  # below: the other blocks are there
    if name == "postcopy-preempt-11.1-pc.ch0" and way == "partial":
        return  # in test_channels.py: the other pages are there
    for source in (lambda: OpenSource(stream), lambda: pipe_of(stream.read_bytes())):
        with source() as opened, pytest.raises(UnsupportedError) as caught:
            extract(opened, ExtractOptions(**options[way]))
        assert caught.value.exit_code == 4
    assert [p.name for p in tmp_path.iterdir()] == [stream.name]


@pytest.mark.parametrize("name", SHARED)
def test_blocks_beside_a_shared_one(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    out = tmp_path / "out"
    report, code = run(fixture_file(name, tmp_path), all_blocks=out)
    assert code == 0
    account = json.loads((out / "manifest.json").read_text())
    files = {b["idstr"]: b["file"] for b in account["blocks"]}
    assert files["mem"] is None
    assert "mem" not in [o.idstr for o in report.outputs]
    assert {b["idstr"]: b["pages_missing"] for b in account["blocks"]}["mem"] == 4096
    assert set(known_blocks(manifest)) == {i for i in manifest["blocks"] if i != "mem"}
    for idstr in known_blocks(manifest):
        check_block(manifest, idstr, out / files[idstr])
    assert files_in(out) == {"manifest.json", *(f for f in files.values() if f)}


@pytest.mark.parametrize("way", ["image", "block", "all"])
def test_nothing_but_shared_blocks(way: str, tmp_path: Path) -> None:
    """There is not one page in the stream: no file may say that there is."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0", capabilities=["x-ignore-shared"])
    w.ram_start([RamBlock("mem", 16 * PAGE, gpa=0)])
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    stream, out = write(tmp_path / "stream", w), tmp_path / "out"
    options: dict[str, dict[str, Any]] = {
        "image": {"output": out},
        "block": {"output": out, "block": "mem"},
        "all": {"all_blocks": out},
    }
    with contextlib.suppress(VmstreamError):
        run(stream, **options[way])
    assert files_in(tmp_path) <= {"stream", "out/manifest.json"}


# -- interrupted streams ------------------------------------------------------------------------


@dataclass
class Replay:
    """RAM records of a stream with footers, read without vmstream, up to where it breaks off."""

    blocks: dict[str, bytearray] = field(default_factory=dict)
    pages: dict[str, set[int]] = field(default_factory=dict)
    heads: list[int] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    footers: list[int] = field(default_factory=list)
    block_list: int = 0
    list_end: int = 0

    @classmethod
    def of(cls, data: bytes) -> Replay:
        self = cls()
        with contextlib.suppress(IndexError, struct.error):
            self._read(data)
        return self

    def _read(self, data: bytes) -> None:
        at = data.index(b"\x03ram" + struct.pack(">II", 0, 4)) + 12
        self.block_list = at
        (total,) = struct.unpack_from(">Q", data, at)
        assert total & 0xFFF == 4
        at += 8
        while sum(map(len, self.blocks.values())) < total - 4:
            name = data[at + 1 : at + 1 + data[at]].decode()
            at += 1 + data[at]
            self.blocks[name] = bytearray(struct.unpack_from(">Q", data, at)[0])
            self.pages[name] = set()
            at += 8
        self.list_end = at
        assert struct.unpack_from(">Q", data, at) == (0x10,)
        at += 8
        block = ""
        while True:
            self.footers.append(at)
            assert data[at] == 0x7E
            at += 5
            while data[at] == 8:  # commands between the sections
                at += 5 + struct.unpack_from(">H", data, at + 3)[0]
            if data[at] not in (2, 3):
                return
            at += 5
            while True:
                (word,) = struct.unpack_from(">Q", data, at)
                head, address, flags = at, word & ~0xFFF, word & 0xFFF
                at += 8
                if flags == 0x10:
                    break
                if not flags & 0x20:
                    block = data[at + 1 : at + 1 + data[at]].decode()
                    at += 1 + data[at]
                size = 1 if flags & 2 else PAGE
                body = data[at : at + size]
                if len(body) < size:
                    return
                (self.named if not flags & 0x20 else self.heads).append(head)
                self.blocks[block][address : address + PAGE] = body * (PAGE // size)
                self.pages[block].add(address)
                at += size


@pytest.mark.parametrize("name", INTERRUPTED)
@pytest.mark.parametrize("way", ["image", "block", "all"])
def test_interrupted_is_refused(name: str, way: str, tmp_path: Path) -> None:
    stream, out = fixture_file(name, tmp_path), tmp_path / "out"
    options: dict[str, dict[str, Any]] = {
        "image": {"output": out, "manifest": tmp_path / "account"},
        "block": {"output": out, "block": "pc.bios"},
        "all": {"all_blocks": out},
    }
    size = stream.stat().st_size
    for source in (lambda: OpenSource(stream), lambda: pipe_of(stream.read_bytes())):
        with source() as opened, pytest.raises(TruncatedError, match="--partial") as caught:
            extract(opened, ExtractOptions(**options[way]))
        assert caught.value.exit_code == 3
        assert size - PAGE <= caught.value.offset <= size
    assert files_in(tmp_path) == {stream.name}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_partial(name: str, tmp_path: Path) -> None:
    """What was sent is right, what was not is zero and counted."""
    data, out, image = open_fixture(name), tmp_path / "out", tmp_path / "image"
    truth, manifest = Replay.of(data), load_manifest(name)
    report, code = run(fixture_file(name, tmp_path), all_blocks=out, partial=True)
    assert code == 3
    assert report.partial
    assert not report.complete
    account = json.loads((out / "manifest.json").read_text())
    assert not account["complete"]
    missing = {b.idstr: b.pages_missing for b in report.ram_blocks}
    assert missing == {b["idstr"]: b["pages_missing"] for b in account["blocks"]}
    files = {b["idstr"]: b["file"] for b in account["blocks"]}
    for idstr, content in truth.blocks.items():
        pages = len(content) // PAGE
        assert missing[idstr] == pages - len(truth.pages[idstr])
        file = files[idstr]
        if not truth.pages[idstr]:
            assert file is None
            continue
        assert file is not None
        assert (out / file).read_bytes() == content
        if has_truth(manifest, idstr):
            assert (
                block_sums(out / file).nonzero_pages <= manifest["blocks"][idstr]["nonzero_pages"]
            )
    assert sum(n or 0 for n in missing.values()) > 0 or name == "interrupted-11.1-pc"

    report, code = run(fixture_file(name, tmp_path), output=image, partial=True)
    assert code == 3
    main = "mem" if "mem" in truth.blocks else "pc.ram"
    assert image.read_bytes() == truth.blocks[main]
    again, code = run_pipe(data, output=tmp_path / "piped", partial=True)
    assert code == 3
    assert (tmp_path / "piped").read_bytes() == image.read_bytes()
    assert again.layout == report.layout


def test_the_replay_agrees_with_the_truth() -> None:
    """The oracle above on trial."""
    for name in ("plain-7.2-pc", "live-11.1-pc"):
        manifest, truth = load_manifest(name), Replay.of(open_fixture(name))
        for idstr in known_blocks(manifest):
            found = hashlib.sha256(truth.blocks[idstr]).hexdigest()
            assert found == manifest["blocks"][idstr]["sha256"]


@pytest.mark.parametrize(
    ("where", "writes"),
    [(0, False), (7, False), (20, False), (60, False), (200, True), (300_000, True), (-1, True)],
)
def test_cut_anywhere(where: int, writes: bool, tmp_path: Path) -> None:
    data = open_fixture("plain-7.2-pc")[:where]
    stream, out = write(tmp_path / "cut", data), tmp_path / "out"
    with pytest.raises(StreamError) as caught:
        run(stream, output=out)
    assert caught.value.exit_code == 3
    assert files_in(tmp_path) == {"cut"}
    if writes:
        report, code = run(stream, output=out, partial=True)
        assert code == 3
        assert report.partial
        assert out.read_bytes() == Replay.of(data).blocks["pc.ram"]
    else:
        with pytest.raises(VmstreamError) as caught_too:
            run(stream, output=out, partial=True)
        assert caught_too.value.exit_code == 3
        assert files_in(tmp_path) == {"cut"}


# -- damage -------------------------------------------------------------------------------------


def outcome(path: Path, out: Path) -> int:
    """Exit status of an extraction; nothing may be there if it was refused."""
    try:
        _, code = run(path, output=out)
    except VmstreamError as error:
        code = error.exit_code
        assert not out.exists()
    else:
        out.unlink()
    assert not list(out.parent.glob(".vmstream-*"))
    return code


class Flips:
    """Bits of a real stream to flip, one at a time."""

    def __init__(self, name: str = "plain-7.2-pc", seed: int = 1) -> None:
        self.data = bytearray(open_fixture(name))
        self.places = Replay.of(bytes(self.data))
        self.rng = random.Random(seed)

    def check(self, tmp_path: Path, bits: list[tuple[int, int]]) -> None:
        path, out, survived = tmp_path / "flipped", tmp_path / "out", []
        path.write_bytes(self.data)
        with path.open("r+b") as file:
            for at, bit in bits:
                was = self.data[at]
                file.seek(at)
                file.write(bytes([was ^ 1 << bit]))
                file.flush()
                if outcome(path, out) == 0:
                    survived.append((hex(at), bit))
                file.seek(at)
                file.write(bytes([was]))
                file.flush()
            assert outcome(path, out) == 0  # it is whole again
        assert not survived, f"{len(survived)} of {len(bits)} flips gave exit status 0"


def test_flipped_bits_in_page_heads(tmp_path: Path) -> None:
    """Kind, address, CONTINUE: any of the 64 bits."""
    flips = Flips()
    heads = [*flips.rng.sample(flips.places.heads, 200), *flips.places.named]
    bits = []
    for at in heads:
        bit = flips.rng.randrange(64)
        bits.append((at + 7 - bit // 8, bit % 8))
    flips.check(tmp_path, bits)


def test_page_and_eos_in_one_word(tmp_path: Path) -> None:
    flips = Flips(seed=2)
    heads = flips.rng.sample(flips.places.heads, 12)
    flips.check(tmp_path, [(at + 7, 4) for at in heads])


def test_flipped_address_bits(tmp_path: Path) -> None:
    """Inside the block a page is then missing, beyond it the address is impossible."""
    flips = Flips(seed=3)
    bits = []
    for at in flips.rng.sample(flips.places.heads, 40):
        bit = flips.rng.choice((12, 13, 14, 15, 16, 20, 23, 24, 30, 40, 63))
        bits.append((at + 7 - bit // 8, bit % 8))
    flips.check(tmp_path, bits)


def test_an_address_inside_the_block_gives_a_finding(tmp_path: Path) -> None:
    flips = Flips(seed=4)
    at = next(
        at
        for at in flips.places.heads[100:]
        if not struct.unpack_from(">Q", flips.data, at)[0] >> 23
    )
    flips.data[at + 5] ^= 0x10  # 1 MiB further
    stream, out = write(tmp_path / "flipped", bytes(flips.data)), tmp_path / "out"
    report, code = run(stream, output=out)
    assert code == 1
    assert any(a.severity == "warning" for a in report.anomalies)
    assert {b.idstr: b.pages_missing for b in report.ram_blocks}["pc.ram"] == 1
    assert out.exists()


def test_flipped_bits_of_the_block_list(tmp_path: Path) -> None:
    """The sum, names and lengths."""
    flips = Flips(seed=5)
    span = range(flips.places.block_list, flips.places.list_end)
    flips.check(tmp_path, [(at, flips.rng.randrange(8)) for at in span])


def test_flipped_bits_of_names_and_fills(tmp_path: Path) -> None:
    """The name behind a page head; the fill byte of a zero page, which is 0 since QEMU 1.5."""
    flips = Flips(seed=6)
    bits = []
    for at in flips.places.named:
        bits += [(at + 8 + i, flips.rng.randrange(8)) for i in range(1 + flips.data[at + 8])]
    zeros = [at for at in flips.places.heads if flips.data[at + 7] == 0x22]
    bits += [(at + 8, flips.rng.randrange(8)) for at in flips.rng.sample(zeros, 10)]
    flips.check(tmp_path, bits)


def test_flipped_bits_of_ram_framing(tmp_path: Path) -> None:
    """EOS words, footers, part heads and the first of the device sections."""
    flips = Flips(seed=7)
    bits = []
    for footer in flips.places.footers:
        bits += [(at, flips.rng.randrange(8)) for at in range(footer - 8, footer + 10)]
    flips.check(tmp_path, bits)


def test_flipped_bits_of_the_header(tmp_path: Path) -> None:
    flips = Flips(seed=8)
    # Behind the header: the type byte and the length of the configuration section.
    flips.check(tmp_path, [(at, bit) for at in (*range(8), *range(8, 13)) for bit in range(8)])


@given(st.one_of(corrupted_streams(), cut_streams().map(lambda c: bytes(c[0])[: c[1]])))
@settings(max_examples=examples(150))
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Only our own errors, with files or without, and never both."""
    directory = tmp_path_factory.mktemp("damage")
    stream, out = write(directory / "s", data), directory / "out"
    outcome(stream, out)
    for options in ({"output": out}, {"all_blocks": out}):
        try:
            report, code = run(stream, partial=True, **options)
        except VmstreamError:
            assert not files_in(directory) - {"s"}
        else:
            assert code or report.complete
            assert all(Path(o.path).stat().st_size == o.size for o in report.outputs)
        assert no_leftovers(directory)
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
    shutil.rmtree(directory)


# -- built streams ------------------------------------------------------------------------------


def cmos(below: int, above: int) -> bytes:
    """As QEMU's hw/i386/pc.c pc_cmos_init() fills it in, in units of 64 KiB."""
    raw = bytearray(b"\x5a" * 128)
    struct.pack_into("<H", raw, 0x34, max(0, below - 16 * MIB) >> 16)
    raw[0x5B:0x5E] = struct.pack("<I", above >> 16)[:3]
    return bytes(raw)


def rtc(below: int, above: int, *, before: bytes = b"") -> Device:
    fields = [Field("before", "buffer", before)] if before else []
    fields += [
        Field("cmos_data", "buffer", cmos(below, above)),
        Field("cmos_index", "uint8", b"\x0f"),
        Field("current_tm", "buffer", bytes(40)),
    ]
    return Device("mc146818rtc", 0, 3, fields)


def mark_of(page: int) -> bytes:
    return struct.pack(">Q", page) * (PAGE // 8)


def big_stream(
    machine: str | None,
    size: int,
    marks: list[int],
    *devices: Device,
    name: str = "mem",
    described: bool = True,
) -> bytes:
    """A guest with one block of `size` bytes, zeros but for the pages in `marks`."""
    w = StreamWriter()
    w.header()
    if machine is not None:
        w.configuration(machine)
    w.ram_id = 2
    w.start(2, "ram", 0, 4)
    w.raw(struct.pack(">Q", size | 4) + bytes([len(name)]) + name.encode())
    w.raw(struct.pack(">Q", size))
    w.eos()
    w.footer(2)
    with w.ram_part():
        # Page 0 has the name, the others are CONTINUE.
        w.raw(struct.pack(">Q", 0x08) + bytes([len(name)]) + name.encode() + mark_of(0))
        at = 1
        for mark in [*sorted(marks), size // PAGE]:
            zeros = np.zeros(mark - at, np.dtype([("head", ">u8"), ("fill", "u1")]))
            zeros["head"] = np.arange(at, mark, dtype=np.uint64) * np.uint64(PAGE) | np.uint64(0x22)
            w.raw(zeros.tobytes())
            if mark * PAGE < size:
                w.raw(struct.pack(">Q", mark * PAGE | 0x28) + mark_of(mark))
            at = mark + 1
    with w.ram_end():
        pass
    for device in devices:
        w.device(device)
    w.eof()
    if described:
        w.vmdescription()
    return bytes(w)


MARKS = [1, 0x3FFFF, 0x40000, 0x7FFFF, 0x80000, 0xBFFFF, 0xC0000, 0x13FFFF]


def check_marks(image: Path, below: int, size: int = 5 * GIB) -> None:
    assert image.stat().st_size == (size if below == size else FOUR_GIB + size - below)
    with image.open("rb") as file:
        for mark in MARKS:
            at = mark * PAGE
            file.seek(at if at < below else at - below + FOUR_GIB)
            assert file.read(PAGE) == mark_of(mark), hex(at)
    assert block_sums(image, whole=False).nonzero_pages == len(MARKS)  # page 0 is zero


@pytest.mark.parametrize(
    ("machine", "below", "more"),
    [
        ("pc-q35-9.0", 3 * GIB, {}),  # the rule says 2 GiB: the image shrinks
        ("pc-q35-9.0", 1 * GIB, {}),  # it grows
        ("pc-i440fx-9.0", 1 * GIB, {}),
        ("pc-q35-9.0", 3 * GIB, {"before": b"\1" * 7}),  # CMOS not first: the description tells
        ("pc-q35-9.0", 3 * GIB, {"described": False}),
        (None, 1 * GIB, {}),  # no configuration section: the sections tell
        ("pc-q35-9.0", 2 * GIB, {}),  # CMOS agrees with the rule: nothing to mend
    ],
)
def test_a_pipe_is_mended_at_the_end(
    machine: str | None, below: int, more: dict[str, Any], tmp_path: Path
) -> None:
    """On a pipe the CMOS comes behind the pages, when they are written already."""
    clock = rtc(below, 5 * GIB - below, before=more.get("before", b""))
    mch = Device("0000:00:00.0/mch", 0, 1, [Field("x", "uint8", b"\1")])
    data = big_stream(machine, 5 * GIB, MARKS, mch, clock, described=more.get("described", True))
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    first, code = run(write(tmp_path / "stream", data), output=file)
    assert code == 0
    assert first.layout is not None
    assert first.layout.decided_by == "cmos"
    assert first.layout.below_4g == below
    check_marks(file, below)
    second, code = run_pipe(data, output=pipe)
    assert code == 0
    assert second.layout == first.layout
    check_marks(pipe, below)
    assert same_sparse(file, pipe)
    assert files_in(tmp_path) == {"stream", "file", "pipe"}
    assert pipe.stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("form", RANGES)
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_dump_of_a_cut_stream(form: str, way: str, tmp_path: Path) -> None:
    """Nothing without --partial; with it what is there, in a file that reads as whole."""
    data = open_fixture("plain-5.2-pc")
    data = data[: len(data) // 2]
    stream = write(tmp_path / "stream", data)

    def again(**options: Any) -> tuple[ExtractReport, int]:
        return run_pipe(data, **options) if way == "pipe" else run(stream, **options)

    with pytest.raises(TruncatedError):
        again(output=tmp_path / "x", format=form)
    assert files_in(tmp_path) == {"stream"}
    _, raw_code = again(output=tmp_path / "raw", partial=True)
    _, code = again(output=tmp_path / "x", format=form, partial=True)
    assert code == raw_code == 3
    (found,) = RANGES[form](tmp_path / "x")
    assert (found.gpa, found.length) == (0, (tmp_path / "raw").stat().st_size)
    content = read_range(tmp_path / "x", found, 0, found.length)
    assert content == (tmp_path / "raw").read_bytes()
    assert any(content)


@pytest.mark.parametrize("form", RANGES)
@pytest.mark.parametrize("below", [GIB, 2 * GIB, 3 * GIB, 5 * GIB // 2])
def test_a_dump_from_a_pipe_is_mended_at_the_end(form: str, below: int, tmp_path: Path) -> None:
    """Heads and RAM move to where the map of the end has them, and holes stay holes."""
    data = big_stream("pc-q35-9.0", 5 * GIB, MARKS, rtc(below, 5 * GIB - below))
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    first, code = run(write(tmp_path / "stream", data), output=file, format=form)
    second, again = run_pipe(data, output=pipe, format=form)
    assert code == again == 0
    assert first.layout == second.layout
    assert same_sparse(file, pipe)
    ranges = RANGES[form](pipe)
    assert [(r.gpa, r.length) for r in ranges] == [(0, below), (FOUR_GIB, 5 * GIB - below)]
    assert second.layout is not None
    assert {r.source for r in second.layout.regions} == {"cmos"}
    check_marked_ranges(pipe, ranges, below)
    assert pipe.stat().st_blocks * 512 < MIB
    assert files_in(tmp_path) == {"stream", "file", "pipe"}


def check_marked_ranges(path: Path, ranges: list[DumpRange], below: int) -> None:
    for mark in MARKS:
        at = mark * PAGE
        gpa = at if at < below else at - below + FOUR_GIB
        (inside,) = [r for r in ranges if r.gpa <= gpa < r.gpa + r.length]
        assert read_range(path, inside, gpa, PAGE) == mark_of(mark), hex(at)


def test_a_dump_of_a_machine_that_the_end_tells(tmp_path: Path) -> None:
    """Where nothing is known at first, RAM is kept in any order."""
    mch = Device("0000:00:00.0/mch", 0, 1, [Field("x", "uint8", b"\1")])
    data = big_stream(None, 5 * GIB, MARKS, mch, rtc(GIB, 4 * GIB))
    report, code = run_pipe(data, output=tmp_path / "x", format="lime")
    assert code == 0, report.anomalies
    ranges = lime_ranges(tmp_path / "x")
    assert [(r.gpa, r.length) for r in ranges] == [(0, GIB), (FOUR_GIB, 4 * GIB)]
    check_marked_ranges(tmp_path / "x", ranges, GIB)


# Where firmware stands, of streams whose blocks have a truth.
ROMS = {
    "plain-10.0-q35": {"pc.bios": [FOUR_GIB - 256 * 1024]},
    "numa-dimm-10.0-pc": {"pc.bios": [FOUR_GIB - 256 * 1024]},
    "own-isapc": {"pc.rom": [0xC0000], "pc.bios": [0xE0000, 0xFFFE0000]},
    "own-microvm": {"pc.bios": [0xF0000, 0xFFFF0000]},
    "aarch64-10.0-virt": {"virt.flash0": [0], "virt.flash1": [64 * MIB]},
}


@pytest.mark.parametrize("form", ["raw", *RANGES])
@pytest.mark.parametrize("name", ROMS)
def test_rom(name: str, form: str, tmp_path: Path) -> None:
    """Beside the RAM that an image has without it; with several blocks a pipe waits for CMOS."""
    stream = fixture_file(name, tmp_path)
    bare, plain = run(stream, output=tmp_path / "bare")
    report, code = run(stream, output=tmp_path / "file", rom=True, format=form)
    again, piped = run_pipe(stream.read_bytes(), output=tmp_path / "piped", rom=True, format=form)
    assert plain == code == piped
    assert same_sparse(tmp_path / "file", tmp_path / "piped")
    assert bare.layout is not None
    assert report.layout is not None
    assert report.layout == again.layout
    run(stream, all_blocks=tmp_path / "all")
    account = json.loads((tmp_path / "all" / "manifest.json").read_text())
    files = {b["idstr"]: tmp_path / "all" / b["file"] for b in account["blocks"]}
    places: dict[str, list[int]] = {}
    for r in report.layout.regions:
        assert r.file_offset is not None
        if r.idstr not in {b.idstr for b in bare.layout.regions}:
            places.setdefault(r.idstr, []).append(r.gpa)
        # The block's own file is compared with its truth in test_all_blocks.
        data = files[r.idstr].read_bytes()[r.block_offset : r.block_offset + r.length]
        with (tmp_path / "file").open("rb") as file:
            file.seek(r.file_offset)
            assert file.read(r.length) == data
    assert places == ROMS[name]


# -- a layout of the user's ----------------------------------------------------------------------


def layout_file(path: Path, *entries: tuple[int, int, str, int]) -> Path:
    keys = ("gpa", "length", "block", "block_offset")
    path.write_text(json.dumps([dict(zip(keys, e, strict=True)) for e in entries]))
    return path


@pytest.mark.parametrize("form", ["raw", *RANGES])
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_layout(form: str, way: str, tmp_path: Path) -> None:
    """It overrules CMOS and machine, and needs neither."""
    lay = layout_file(
        tmp_path / "lay",
        (FOUR_GIB, 4 * GIB, "mem", GIB),
        (GIB, GIB, "mem", 0),
        (8 * GIB, GIB, "mem", GIB),  # a second time
    )
    for machine in ("pc-q35-9.0", "sun4m"):
        data = big_stream(machine, 5 * GIB, MARKS, rtc(2 * GIB, 3 * GIB))
        out = tmp_path / machine
        options: dict[str, Any] = {"output": out, "layout": lay, "format": form}
        stream = write(tmp_path / "stream", data)
        report, code = run_pipe(data, **options) if way == "pipe" else run(stream, **options)
        assert code == 0, report.anomalies
        layout = report.layout
        assert layout is not None
        assert (layout.decided_by, layout.source, layout.below_4g) == ("user", "user", None)
        assert [(r.gpa, r.length, r.block_offset, r.source) for r in layout.regions] == [
            (GIB, GIB, 0, "user"),
            (FOUR_GIB, 4 * GIB, GIB, "user"),
            (8 * GIB, GIB, GIB, "user"),
        ]
        ranges = [DumpRange(0, 9 * GIB, 0)] if form == "raw" else RANGES[form](out)
        if form != "raw":
            assert [(r.gpa, r.length) for r in ranges] == [(GIB, GIB), (FOUR_GIB, 5 * GIB)]
        for mark in MARKS:
            at = mark * PAGE
            places = [at + GIB] if at < GIB else [at + 3 * GIB]
            places += [at + 7 * GIB] if GIB <= at < 2 * GIB else []
            for gpa in places:
                (inside,) = [r for r in ranges if r.gpa <= gpa < r.gpa + r.length]
                assert read_range(out, inside, gpa, PAGE) == mark_of(mark)


def test_layout_with_plugged_memory(tmp_path: Path) -> None:
    """What inference places with a warning, the user can place."""
    name = "numa-dimm-10.0-pc"
    manifest = load_manifest(name)
    dimm, size = "d0", 128 * MIB
    lay = layout_file(
        tmp_path / "lay",
        (0, 16 * MIB, "n0", 0), (16 * MIB, 16 * MIB, "n1", 0), (FOUR_GIB, size, dimm, 0),
    )  # fmt: skip
    report, code = run(fixture_file(name, tmp_path), output=tmp_path / "image", layout=lay)
    assert code == 0
    assert report.layout is not None
    assert not report.layout.doubts
    sums = block_sums(tmp_path / "image", offset=FOUR_GIB, size=size, whole=False)
    assert sums.nonzero_sha256 == manifest["blocks"][dimm]["nonzero_sha256"]


@pytest.mark.parametrize("form", ["raw", "kdump"])
def test_a_layout_that_no_file_can_hold(form: str, tmp_path: Path) -> None:
    lay = layout_file(tmp_path / "lay", ((1 << 63) - PAGE, PAGE, "mem", 0))
    stream = write(tmp_path / "stream", big_stream("pc-q35-9.0", 16 * MIB, [1]))
    with pytest.raises(OutputError, match="RAM ends at 0x8000000000000000, beyond what"):
        run(stream, output=tmp_path / "out", layout=lay, format=form)
    assert files_in(tmp_path) == {"lay", "stream"}


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(0, PAGE, "none", 0)], "entry 0: no block 'none'; the stream has: mem"),
        ([(0, PAGE, "mem", 0), (0, PAGE, "mem", PAGE)], "entry 1: 0x0..0x1000 overlaps"),
        ([(0, 16 * MIB + PAGE, "mem", 0)], "entry 0: ends at 0x1001000 of block 'mem'"),
        ([(100, PAGE, "mem", 0)], "entry 0: gpa 0x64 is no multiple of the page size, 4096"),
        ([], "has to be a list"),
    ],
)
def test_a_layout_that_is_wrong(
    entries: list[tuple[int, int, str, int]], message: str, way: str, tmp_path: Path
) -> None:
    data = big_stream("pc-q35-9.0", 16 * MIB, [1])
    lay = layout_file(tmp_path / "lay", *entries)
    stream = write(tmp_path / "stream", data)
    options: dict[str, Any] = {"output": tmp_path / "out", "layout": lay}
    with pytest.raises(OutputError, match=re.escape(message)) as caught:
        run_pipe(data, **options) if way == "pipe" else run(stream, **options)
    assert str(lay) in str(caught.value)
    assert files_in(tmp_path) == {"lay", "stream"}


@pytest.mark.parametrize("name", SHARED)
def test_a_layout_without_the_shared_block(name: str, tmp_path: Path) -> None:
    """It is its absence from the stream that refuses an image, and only if it is placed."""
    manifest = load_manifest(name)
    other = next(i for i in known_blocks(manifest) if i != "mem")
    size = manifest["blocks"][other]["size"]
    stream = fixture_file(name, tmp_path)
    lay = layout_file(tmp_path / "lay", (0, size, other, 0))
    _, code = run(stream, output=tmp_path / "out", layout=lay)
    assert code == 0
    check_block(manifest, other, tmp_path / "out")
    lay = layout_file(tmp_path / "lay", (0, size, other, 0), (1 << 30, PAGE, "mem", 0))
    with pytest.raises(UnsupportedError, match="'mem' is shared memory"):
        run(stream, output=tmp_path / "again", layout=lay)
    assert not (tmp_path / "again").exists()


def test_a_clock_in_a_page(tmp_path: Path) -> None:
    """What a guest holds in RAM can mislead the look ahead, and must not decide."""
    size = 32 * MIB
    fake = sw.footer(1) + sw.section_header(sw.SECTION_FULL, 2, "mc146818rtc", 0, 3)
    fake += cmos(24 * MIB, 8 * MIB)
    w = simple(
        lambda w: [w.page("mem", 5 * PAGE, fake.ljust(PAGE, b"\x7e"))],
        lambda w: [w.page("mem", size - PAGE, b"\1" * PAGE)],
        mem=size // PAGE,
    )
    for i, way in enumerate((run_pipe, lambda d, **o: run(write(tmp_path / "s", d), **o))):
        report, code = way(bytes(w), output=tmp_path / str(i))
        assert code == 0, report.anomalies
        assert report.layout is not None
        assert report.layout.below_4g == size
        assert (tmp_path / str(i)).read_bytes() == w.blocks["mem"]


def test_cmos_that_does_not_fit(tmp_path: Path) -> None:
    """A doubt is a finding."""
    data = big_stream("pc-q35-9.0", 5 * GIB, MARKS, rtc(3 * GIB, 3 * GIB))
    for i, way in enumerate((run_pipe, lambda d, **o: run(write(tmp_path / "s", d), **o))):
        image = tmp_path / str(i)
        report, code = way(data, output=image)
        assert code == 1
        assert report.layout is not None
        assert report.layout.decided_by == "machine rule"
        assert len(report.layout.doubts) == 1
        check_marks(image, 2 * GIB)


def test_below_4g_overrules_all(tmp_path: Path) -> None:
    data = big_stream("pc-q35-9.0", 5 * GIB, MARKS, rtc(2 * GIB, 3 * GIB))
    report, code = run_pipe(data, output=tmp_path / "image", below_4g=GIB)
    assert code == 0
    assert report.layout is not None
    assert report.layout.decided_by == "user"
    check_marks(tmp_path / "image", GIB)


@pytest.mark.parametrize("machine", ["sun4m", "none", None])
def test_a_layout_that_cannot_be_known(machine: str | None, tmp_path: Path) -> None:
    """A pipe is read to its end, since that might tell, and then refused like a file."""
    data = big_stream(machine, 16 * MIB, [3])
    for way in (run_pipe, lambda d, **o: run(write(tmp_path / "s", d), **o)):
        with pytest.raises(OutputError, match="no rule for where machine") as caught:
            way(data, output=tmp_path / "image")
        assert "'mem'" in str(caught.value)
        assert files_in(tmp_path) <= {"s"}
    _, code = run_pipe(data, output=tmp_path / "block", block="mem")
    assert code == 0
    assert (tmp_path / "block").stat().st_size == 16 * MIB


def simple(*parts: Callable[[StreamWriter], object], **sizes: int) -> StreamWriter:
    """A complete stream of these blocks, every page zero, and then the parts."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock(name, pages * PAGE) for name, pages in sizes.items()])
    with w.ram_part():
        for name, pages in sizes.items():
            for page in range(pages):
                w.zero(name, page * PAGE)
    for part in parts:
        with w.ram_part():
            part(w)
    with w.ram_end():
        pass
    w.device(rtc(sum(sizes.values()) * PAGE, 0))
    w.eof()
    w.vmdescription()
    return w


def test_data_that_becomes_zero(tmp_path: Path) -> None:
    def data(w: StreamWriter) -> None:
        for page in range(16):
            w.page("mem", page * PAGE, bytes([page + 1]) * PAGE)

    def zero(w: StreamWriter) -> None:
        for page in (0, 3, 4, 5, 9, 15):
            w.zero("mem", page * PAGE)

    def back(w: StreamWriter) -> None:
        w.page("mem", 4 * PAGE, b"\xee" * PAGE)

    w = simple(data, zero, back, mem=16)
    for way in (run_pipe, lambda d, **o: run(write(tmp_path / "s", d), **o)):
        report, code = way(bytes(w), output=tmp_path / "image", force=True)
        assert code == 0, report.anomalies
        assert (tmp_path / "image").read_bytes() == w.blocks["mem"]
    assert not any(w.blocks["mem"][:PAGE])
    assert w.blocks["mem"][4 * PAGE] == 0xEE


def test_a_pass_that_starts_over_is_no_damage(tmp_path: Path) -> None:
    """Few dirty pages: 5 ends a round, 3 is the next, then 7 is dirty when the scan comes there."""
    w = simple(
        lambda w: [w.page("mem", n * PAGE, b"\1" * PAGE) for n in (1, 5, 3)],
        lambda w: [w.page("mem", n * PAGE, b"\2" * PAGE) for n in (7, 12)],
        mem=16,
    )
    report, code = run(write(tmp_path / "s", w), output=tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == w.blocks["mem"]
    assert code == 0, report.anomalies


def test_a_page_that_no_record_names(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 4 * PAGE), RamBlock("pc.bios", PAGE)])
    with w.ram_part():
        for page in (0, 1, 3):
            w.page("mem", page * PAGE, b"\1" * PAGE)
        w.page("pc.bios", 0, b"\2" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    report, code = run(write(tmp_path / "s", w), output=tmp_path / "image")
    assert code == 1
    assert {b.idstr: b.pages_missing for b in report.ram_blocks} == {"mem": 1, "pc.bios": 0}
    assert any(a.code == "pages-missing" for a in report.anomalies)
    assert (tmp_path / "image").read_bytes() == w.blocks["mem"]


@pytest.mark.parametrize("shows", ["nothing", "configuration", "footers", "vmdescription"])
def test_fill_bytes_are_of_their_time(shows: str, tmp_path: Path) -> None:
    """No QEMU since 1.5 writes one but 0; whatever came later shows that it is damage."""
    w = StreamWriter(footers=shows == "footers")
    w.header()
    if shows == "configuration":
        w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    with w.ram_part():
        for page, fill in enumerate((0, 0x20, 0, 0xFF)):
            w.zero("pc.ram", page * PAGE, fill)
        w.page("pc.ram", 0, b"\1" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    if shows == "vmdescription":
        w.vmdescription()
    report, code = run(write(tmp_path / "s", w), output=tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == w.blocks["pc.ram"]
    assert any(a.code == "fill-byte" for a in report.anomalies)
    assert code == (0 if shows == "nothing" else 1)


def test_no_end_of_ram(tmp_path: Path) -> None:
    """EOF without END: only a background snapshot does that, and it sends each page once."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 4 * PAGE)])
    with w.ram_part():
        for page in (0, 1, 3):
            w.page("mem", page * PAGE, b"\1" * PAGE)
    w.eof()
    w.vmdescription()
    stream = write(tmp_path / "s", w)
    with pytest.raises(IntegrityError):
        run(stream, output=tmp_path / "image")
    assert files_in(tmp_path) == {"s"}
    report, code = run(stream, output=tmp_path / "image", partial=True)
    assert code != 0
    assert not report.complete
    assert (tmp_path / "image").read_bytes() == w.blocks["mem"]


def test_manifest(tmp_path: Path) -> None:
    """Its sums are those of the files, the holes included."""
    name = "own-plain-q35"
    stream, out, account = fixture_file(name, tmp_path), tmp_path / "out", tmp_path / "account"
    arguments = ("extract-ram", "x", "--all-blocks", "out")
    report, _ = run(stream, all_blocks=out, manifest=account, arguments=arguments)
    told = json.loads(account.read_text())
    (file,) = (f for f in load_manifest(name)["files"] if f["role"] == "stream")
    assert told["input_sha256"] == report.input_sha256 == file["sha256"]
    assert told["input_size"] == file["size"]
    assert told["input"] == str(stream)
    assert told["arguments"] == list(arguments)
    assert re.fullmatch(r"vmstream \d+\.\d+.*", told["tool"])
    assert len(told["outputs"]) == len(report.outputs) == 6
    for output in told["outputs"]:
        content = Path(output["path"]).read_bytes()
        assert output["size"] == len(content)
        assert output["sha256"] == hashlib.sha256(content).hexdigest()
    image = tmp_path / "image"
    report, _ = run_pipe(stream.read_bytes(), output=image, manifest=account, force=True)
    told = json.loads(account.read_text())
    assert told["input_sha256"] == file["sha256"]
    assert told["input_size"] == file["size"]
    (output,) = told["outputs"]
    assert output["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert output["idstr"] is None


@pytest.mark.parametrize("plugged", [True, False])
def test_plugged_virtio_mem_is_missed_aloud(tmp_path: Path, plugged: bool) -> None:
    """Its block has a path for a name, like memory of a device's own; it is the guest's RAM."""
    path = "0000:00:01.0"
    w = simple_stream(
        {f"{path}/vmem0": {PAGE: b"\7" * PAGE} if plugged else {}, "pc.ram": {0: b"\1" * PAGE}},
        sizes={f"{path}/vmem0": 4 * PAGE},
        devices=[Device(f"{path}/virtio-mem", fields=[Field("x", "buffer", bytes(8))])],
    )
    stream = write(tmp_path / "stream", w)
    report, code = run(stream, output=tmp_path / "image")
    assert report.layout is not None
    assert (tmp_path / "image").read_bytes() == b"\1" * PAGE
    assert [f"{path}/vmem0" in d for d in report.layout.doubts] == [True] * plugged
    assert code == plugged
    lay = layout_file(
        tmp_path / "lay", (0, PAGE, "pc.ram", 0), (PAGE, 4 * PAGE, f"{path}/vmem0", 0)
    )
    report, code = run(stream, output=tmp_path / "placed", layout=lay)
    assert code == 0
    assert (tmp_path / "placed").read_bytes()[2 * PAGE : 3 * PAGE] == bytes([7 * plugged]) * PAGE
    _, code = run(stream, block=f"{path}/vmem0", output=tmp_path / "block")
    assert (code, (tmp_path / "block").read_bytes()[PAGE : 2 * PAGE]) == (
        0,
        bytes([7 * plugged]) * PAGE,
    )


def test_without_manifest_nothing_is_hashed(tmp_path: Path) -> None:
    report, _ = run(fixture_file("plain-7.2-pc", tmp_path), output=tmp_path / "image")
    assert report.input_sha256 is None
    assert [o.sha256 for o in report.outputs] == [None]


HOSTILE = [
    "../../x", "/rom@etc/acpi/tables", ".", "..", "...", "/", "a\0b", "a" * 255, "größe", "MEM",
    "mem", "manifest", "manifest.json", ".hidden", "-rf", "a\nb", "$(reboot)", "\x1b[31m",
    "/etc/passwd", "mem/../../y", "~", "con",
]  # fmt: skip


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b" / "out"

    def pages(w: StreamWriter) -> None:
        for i, name in enumerate(HOSTILE):
            w.page(name, 0, struct.pack(">I", i + 1) * (PAGE // 4))

    w = simple(pages, **dict.fromkeys(HOSTILE, 1))
    stream = write(tmp_path / "stream", w)
    report, code = run(stream, all_blocks=inside)
    assert code == 0, report.anomalies
    account = json.loads((inside / "manifest.json").read_text())
    assert [b["idstr"] for b in account["blocks"]] == HOSTILE
    made = [b["file"] for b in account["blocks"]]
    assert len({f.lower() for f in made}) == len(HOSTILE)
    assert files_in(tmp_path) == {"stream", *(f"a/b/out/{f}" for f in made)} | {
        "a/b/out/manifest.json"
    }
    for name, file in zip(HOSTILE, made, strict=True):
        assert (inside / file).read_bytes() == w.blocks[name]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """It comes readable and in full, and the readable one finds it."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.start(2, "ram", 0, 4)
    w.raw(struct.pack(">Q", PAGE | 4) + b"\x02\xff\xfe" + struct.pack(">Q", PAGE))
    w.eos()
    w.footer(2)
    w.ram_id = 2
    with w.ram_part():
        w.raw(struct.pack(">Q", 8) + b"\x02\xff\xfe" + b"\7" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    stream = write(tmp_path / "s", w)
    run(stream, all_blocks=tmp_path / "out")
    (block,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["blocks"]
    assert block["idstr"] == r"\xff\xfe"
    assert block["idstr_b64"] == "//4="
    _, code = run(stream, output=tmp_path / "block", block=r"\xff\xfe")
    assert code == 0
    assert (tmp_path / "block").read_bytes() == b"\7" * PAGE


# -- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["output", "manifest"])
def test_taken_names(taken: str, tmp_path: Path) -> None:
    """Refused before anything is read: the input here does not even exist as a stream."""
    stream = write(tmp_path / "s", b"no stream")
    (tmp_path / taken).write_bytes(b"old")
    options = {"output": tmp_path / "output", "manifest": tmp_path / "manifest"}
    with pytest.raises(OutputError, match=f"{taken}: exists"):
        run(stream, **options)
    assert (tmp_path / taken).read_bytes() == b"old"
    assert files_in(tmp_path) == {"s", taken}


@pytest.mark.parametrize("taken", ["mem.raw", "pc.bios.raw", "manifest.json"])
def test_taken_names_in_the_directory(taken: str, tmp_path: Path) -> None:
    w = simple(**{"mem": 2, "pc.bios": 1})
    stream, out = write(tmp_path / "s", w), tmp_path / "out"
    out.mkdir()
    (out / taken).write_bytes(b"old")
    with pytest.raises(OutputError, match=f"{taken}: exists"):
        run(stream, all_blocks=out)
    assert (out / taken).read_bytes() == b"old"
    assert files_in(tmp_path) == {"s", f"out/{taken}"}
    _, code = run(stream, all_blocks=out, force=True)
    assert code == 0
    assert (out / taken).read_bytes() != b"old"
    assert files_in(out) == {"mem.raw", "pc.bios.raw", "manifest.json"}


def test_force_replaces_nothing_if_it_fails(tmp_path: Path) -> None:
    out = write(tmp_path / "image", b"old")
    stream = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    with pytest.raises(TruncatedError):
        run(stream, output=out, force=True)
    assert out.read_bytes() == b"old"
    assert files_in(tmp_path) == {"image", stream.name}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["image", "block", "all", "all manifest"])
def test_an_output_is_not_written_over_by_another(way: str, force: bool, tmp_path: Path) -> None:
    """--manifest names a file that is an output too: one of them would be lost."""
    w = simple(mem=2)
    stream, out = write(tmp_path / "s", w), tmp_path / "out"
    options: dict[str, dict[str, Any]] = {
        "image": {"output": out, "manifest": out},
        "block": {"output": out, "block": "mem", "manifest": tmp_path / "." / "out"},
        "all": {"all_blocks": out, "manifest": out / "mem.raw"},
        "all manifest": {"all_blocks": out, "manifest": out / "manifest.json"},
    }
    with pytest.raises(OutputError):
        run(stream, force=force, **options[way])
    assert files_in(tmp_path) == {"s"}


@pytest.mark.parametrize("what", ["output", "manifest"])
def test_the_input_is_not_replaced(what: str, tmp_path: Path) -> None:
    """Not even with --force: it is the evidence."""
    w = simple(mem=2)
    stream = write(tmp_path / "s", w)
    options = {"output": tmp_path / "image", what: stream}
    with contextlib.suppress(OutputError):
        run(stream, force=True, **options)
    assert stream.read_bytes() == bytes(w)


@pytest.mark.parametrize("name", ["nowhere", "MEM", ""])
def test_a_block_that_is_not_there(name: str, tmp_path: Path) -> None:
    w = simple(**{"mem": 2, "pc.bios": 1})
    stream = write(tmp_path / "s", w)
    with pytest.raises(OutputError, match=r"the stream has: .*mem.*pc\.bios"):
        run(stream, output=tmp_path / "out", block=name)
    assert files_in(tmp_path) == {"s"}


def test_no_ram_in_the_stream(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.device(Device("timer", fields=[Field("x", "uint8", b"\1")]))
    w.eof()
    w.vmdescription()
    with pytest.raises(StreamError):
        run(write(tmp_path / "s", w), output=tmp_path / "out")
    assert files_in(tmp_path) == {"s"}


@pytest.mark.parametrize("data", [b"", b"hello, world\n" * 100, b"QEVM\0\0\0\2", b"\x7fELF" * 9])
@pytest.mark.parametrize("partial", [False, True])
def test_what_is_no_stream(data: bytes, partial: bool, tmp_path: Path) -> None:
    with pytest.raises(FormatError if data else StreamError):
        run(write(tmp_path / "s", data), output=tmp_path / "out", partial=partial)
    assert files_in(tmp_path) == {"s"}


@pytest.mark.parametrize("size", [1024, 8192, 65536])
def test_other_page_sizes(size: int, tmp_path: Path) -> None:
    w = StreamWriter(size)
    w.header()
    w.configuration("virt-9.0", page_bits=size.bit_length() - 1)
    w.ram_start([RamBlock("mach-virt.ram", 16 * size), RamBlock("virt.flash0", 4 * size)])
    for turn in range(3):
        with w.ram_part():
            for page in range(16):
                if (page + turn) % 3:
                    w.page("mach-virt.ram", page * size, bytes([page + turn + 1]) * size)
                else:
                    w.zero("mach-virt.ram", page * size)
            for page in range(4):
                w.zero("virt.flash0", page * size)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    report, code = run(write(tmp_path / "s", w), output=tmp_path / "image")
    assert code == 0, report.anomalies
    image = (tmp_path / "image").open("rb")
    with image:
        image.seek(0x40000000)
        assert image.read() == w.blocks["mach-virt.ram"]


# ---- pages in other encodings ------------------------------------------------------------------

BROKEN = {
    "xbzrle": lambda w: w.xbzrle("mem", PAGE, b"\1\2ab\0\1c", truth=False),
    "zlib": lambda w: w.compress_page("mem", PAGE, b"blob", truth=False),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_page_that_does_not_decode(kind: str, tmp_path: Path) -> None:
    """No image; with --partial all that can be decoded, and a finding at the record."""

    def part(w: StreamWriter) -> None:
        w.page("mem", 0, b"\1" * PAGE)
        w.page("mem", PAGE, b"\2" * PAGE)
        BROKEN[kind](w)
        w.page("mem", 2 * PAGE, b"\3" * PAGE)

    w = simple(part, mem=4)
    path, image = write(tmp_path / "s", w), tmp_path / "image"
    (item,) = w.items_of("XBZRLE" if kind == "xbzrle" else "COMPRESS_PAGE")
    with pytest.raises(IntegrityError, match="--partial") as caught:
        run(path, output=image)
    assert caught.value.offset == item.offset
    assert files_in(tmp_path) == {"s"}
    report, code = run(path, output=image, partial=True)
    assert code == caught.value.exit_code
    assert [(a.offset, a.code) for a in report.anomalies] == [(item.offset, "integrity")]
    got = image.read_bytes()
    assert got[:PAGE] == b"\1" * PAGE
    assert got[PAGE : 2 * PAGE] == (b"\2ab" + b"\2" * 4093 if kind == "xbzrle" else bytes(PAGE))
    assert got[2 * PAGE :] == b"\3" * PAGE + bytes(PAGE)


@pytest.mark.parametrize("pages", [1, 300])
def test_a_difference_to_nothing(pages: int, tmp_path: Path) -> None:
    """QEMU's loader changes whatever is there: zeros, in a fresh destination."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", (pages + 1) * PAGE)])
    with w.ram_part():
        w.zero("mem", pages * PAGE)
        for page in range(pages):
            w.xbzrle("mem", page * PAGE, b"\5\2ab")
    with w.ram_end():
        pass
    w.device(rtc((pages + 1) * PAGE, 0))
    w.eof()
    w.vmdescription()
    path = write(tmp_path / "s", w)
    report, code = run(path, output=tmp_path / "image")
    assert code == 1
    assert (tmp_path / "image").read_bytes() == w.blocks["mem"]
    first = w.items_of("XBZRLE")[0].offset
    assert [(a.offset, a.code, a.severity) for a in report.anomalies] == [
        (first, "xbzrle-base", "warning")
    ]
    assert f"{pages} XBZRLE records" in report.anomalies[0].message


# ---- postcopy -----------------------------------------------------------------------------------


def withdrawn(
    *ranges: tuple[int, int], again: tuple[int, ...] = (), block: str = "mem"
) -> StreamWriter:
    """Eight pages of data, of which ranges are withdrawn, and some of those sent again."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.postcopy_advise()
    w.ram_start([RamBlock("mem", 8 * PAGE), RamBlock("pc.bios", PAGE)])
    with w.ram_part():
        for page in range(8):
            w.page("mem", page * PAGE, bytes([page + 1]) * PAGE)
        w.zero("pc.bios", 0)
    w.ram_discard(block, ranges)
    with w.ram_end():
        for page in again:
            w.page("mem", page * PAGE, b"\x99" * PAGE)
    w.device(rtc(8 * PAGE, 0))
    w.eof()
    w.vmdescription()
    return w


def test_pages_that_are_withdrawn_and_sent_again(tmp_path: Path) -> None:
    w = withdrawn((PAGE, 2 * PAGE), (7 * PAGE, PAGE), again=(7, 1, 2))
    report, code = run(write(tmp_path / "s", w), output=tmp_path / "image")
    assert code == 0, report.anomalies
    assert (tmp_path / "image").read_bytes() == w.blocks["mem"]
    assert report.ram_blocks[0].pages_missing == 0


def test_pages_that_are_withdrawn_for_good(tmp_path: Path) -> None:
    """As after an interruption, or in the main channel of postcopy-preempt."""
    w = withdrawn((PAGE, 3 * PAGE), again=(2,))
    path = write(tmp_path / "s", w)
    with pytest.raises(UnsupportedError, match="postcopy-preempt"):
        run(path, output=tmp_path / "image")
    assert files_in(tmp_path) == {"s"}
    report, code = run(path, output=tmp_path / "image", partial=True)
    assert code == 1
    assert [a.code for a in report.anomalies] == ["pages-elsewhere"]
    assert report.ram_blocks[0].pages_missing == 2
    # What was withdrawn is gone, not what it was before.
    assert (tmp_path / "image").read_bytes() == w.blocks["mem"]


@pytest.mark.parametrize(
    ("ranges", "block"),
    [
        (((8 * PAGE, PAGE),), "mem"),
        (((7 * PAGE, 2 * PAGE),), "mem"),
        (((100, PAGE),), "mem"),
        (((0, 100),), "mem"),
        (((1 << 63, 1 << 63),), "mem"),
        (((0, PAGE),), "none"),
        ((), "mem"),
    ],
)
def test_what_cannot_be_withdrawn(
    ranges: tuple[tuple[int, int], ...], block: str, tmp_path: Path
) -> None:
    w = withdrawn((0, PAGE), again=(0,))
    (item,) = w.items_of("COMMAND")[-1:]
    data = bytearray(bytes(w))
    body = b"\0" + bytes([len(block)]) + block.encode() + b"\0"
    body += b"".join(struct.pack(">QQ", *r) for r in ranges)
    command = b"\x08" + struct.pack(">HH", 6, len(body)) + body
    data[item.offset : item.stop] = command
    path = write(tmp_path / "s", bytes(data))
    with pytest.raises(IntegrityError, match="withdrawn") as caught:
        run(path, output=tmp_path / "image")
    assert caught.value.offset == item.offset
    report, code = run(path, output=tmp_path / "image", partial=True)
    assert code == IntegrityError.exit_code
    assert {(a.offset, a.code) for a in report.anomalies} == {
        (item.offset, "command"), (item.offset, "integrity"),
    }  # fmt: skip


# ---- shared memory from its file ----------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory_from_its_file(name: str, tmp_path: Path) -> None:
    """In the image, as a block and among all; the other blocks are those of the stream."""
    stream, memory = fixture_file(name, tmp_path), tmp_path / "memory"
    content = bytearray(16 * MIB)
    content[5 * MIB : 5 * MIB + 8] = b"content!"
    memory.write_bytes(content)
    shared = (("mem", memory),)
    for options in (
        {"output": tmp_path / "image"},
        {"output": tmp_path / "block", "block": "mem"},
        {"all_blocks": tmp_path / "all"},
    ):
        report, code = run(stream, shared_blocks=shared, **options)
        assert code == 0, report.anomalies
    assert (tmp_path / "image").read_bytes() == content
    assert (tmp_path / "block").read_bytes() == content
    account = json.loads((tmp_path / "all" / "manifest.json").read_text())
    files = {b["idstr"]: tmp_path / "all" / b["file"] for b in account["blocks"]}
    assert files["mem"].read_bytes() == content
    for idstr in known_blocks(load_manifest(name)):
        if idstr != "mem":
            check_block(load_manifest(name), idstr, files[idstr])


def over_shared(directory: Path) -> tuple[Path, Path, bytes]:
    """A stream with some pages of a block whose memory is in a file; both, and what it then is."""
    memory = bytearray(b"".join(bytes([page + 1]) * PAGE for page in range(6)))
    (directory / "memory").write_bytes(memory)
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0", capabilities=["x-ignore-shared"])
    w.ram_start([RamBlock("mem", 6 * PAGE, gpa=0)])
    w.blocks["mem"][:] = memory
    with w.ram_part():
        w.zero("mem", PAGE)
        w.page("mem", 2 * PAGE, b"\x99" * PAGE)
        w.xbzrle_to("mem", 3 * PAGE, b"new" + bytes(memory[3 * PAGE + 3 : 4 * PAGE]))
        w.page("mem", 4 * PAGE, b"\x77" * PAGE)
    with w.ram_end():
        w.zero("mem", 4 * PAGE)
    w.eof()
    w.vmdescription()
    return write(directory / "stream", w), directory / "memory", bytes(w.blocks["mem"])


def test_pages_over_shared_memory(tmp_path: Path) -> None:
    """Those of zeros and differences, too."""
    stream, memory, want = over_shared(tmp_path)
    shared = (("mem", memory),)
    for options in ({}, {"block": "mem"}):
        run(stream, output=tmp_path / "out", force=True, shared_blocks=shared, **options)
        assert (tmp_path / "out").read_bytes() == want


def test_shared_memory_that_does_not_fit(tmp_path: Path) -> None:
    stream = fixture_file("ignoreshared-10.0-pc", tmp_path)
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(100))
    for name, word in (("mem", "100 bytes"), ("none", "no block")):
        with pytest.raises(OutputError, match=word):
            run(stream, output=tmp_path / "image", shared_blocks=((name, memory),))
    memory.write_bytes(bytes(16 * MIB))
    with pytest.raises(OutputError):
        run(stream, output=memory, force=True, shared_blocks=(("mem", memory),))
    assert memory.stat().st_size == 16 * MIB
    assert files_in(tmp_path) == {stream.name, "memory"}
