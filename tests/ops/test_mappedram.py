"""mapped-ram as we write it: by the rules of a reader that shares no code, and to the truth."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tests.containers import image_file
from tests.mappedreader import MappedFile
from tests.strategies import examples
from tests.streamwriter import EOF, StreamWriter
from tests.truth import (
    check_block_bytes,
    data_extents,
    fixture_file,
    known_blocks,
    load_manifest,
)
from vmstream.container.open import OpenStream
from vmstream.errors import EncodeError
from vmstream.ops.inspect import Summary
from vmstream.ops.lastpages import LastPages, Pages
from vmstream.ops.mappedram import write_mapped
from vmstream.ops.memory import MemoryOptions, index_memory, read_memory
from vmstream.ops.pipeline import events
from vmstream.ops.splice import Nowhere, Splice, Target, in_order, write_spliced
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Configuration, Event, RAMBlock, RAMControl, SectionStart
from vmstream.transport.sink import OutputFile, StandardOutput
from vmstream.transport.source import RandomAccess, Source
from vmstream.wire import build
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    CAP_MAPPED_RAM,
    RAMSaveFlag,
)
from vmstream.wire.parse import ConfigurationValues

MIB, PAGE = 1 << 20, 4096
KINDS = [
    "plain-7.2-pc",
    "plain-11.1-q35",
    "live-10.0-q35",
    "xbzrle-5.2-pc",
    "zlib-xbzrle-5.2-pc",
    "aarch64-10.0-virt",
    "uuid-11.1-pc",
    "mapped-10.0-pc",
    "mapped-live-10.0-q35",
    "mapped-ignoreshared-11.1-pc",
    "ignoreshared-10.0-pc",
]


def random_access(source: Source) -> RandomAccess:
    assert isinstance(source, RandomAccess)
    return source


class RAM:
    """Fold: where RAM and the configuration stand."""

    def __init__(self) -> None:
        self.configuration: Configuration | None = None
        self.parts: list[tuple[SectionStart, int]] = []  # and the offset of the EOS
        self._open: SectionStart | None = None

    def on(self, event: Event) -> None:
        match event:
            case Configuration():
                self.configuration = event
            case SectionStart():
                self._open = event if event.idstr == b"ram" else None
            case RAMControl() if event.flags & RAMSaveFlag.EOS and self._open is not None:
                self.parts.append((self._open, event.offset))


def to_mapped(path: Path, out: Path, front: bytes = b"") -> int:
    """Write a file's stream as mapped-ram behind other bytes; where what follows RAM stands."""
    with OpenStream(path) as opened:
        source, summary, ram = opened.source, Summary(), RAM()

        def walk() -> Iterator[Event]:
            for event in events(source, Decoder(), None, opened.container):
                summary.on(event)
                ram.on(event)
                yield event

        memory = index_memory(walk(), source, MemoryOptions(partial=True))
        with memory, OutputFile(out) as file:
            c = ram.configuration
            assert c is not None
            shared = CAP_IGNORE_SHARED in c.capabilities
            capabilities = tuple(dict.fromkeys([*c.capabilities, CAP_MAPPED_RAM]))
            names = dict.fromkeys([*c.subsections, b"configuration/capabilities"])
            values = ConfigurationValues(
                c.name, c.target_page_bits, capabilities, c.uuid, tuple(sorted(names))
            )
            pages = LastPages(memory, summary.coverage_blocks())

            def write(to: Target) -> None:
                write_mapped(pages, to, ignore_shared=shared, elsewhere=memory.elsewhere)

            (start, eos), *others = ram.parts
            splices = [
                Splice(0, 0, front, "front"),
                Splice(c.offset, c.end, build.configuration(values), "configuration"),
                Splice(start.end, eos, write, "RAM"),
                *(Splice(part.end, eos, b"", "part") for part, eos in others),
            ]
            size = source.size or 0
            write_spliced(random_access(source), size, in_order(splices), file, sparse=True)
            file.commit()
        return ram.parts[-1][1]


@pytest.mark.parametrize("name", KINDS)
def test_fixtures(name: str, tmp_path: Path) -> None:
    manifest, path, out = load_manifest(name), fixture_file(name, tmp_path), tmp_path / "out"
    rest = to_mapped(path, out)
    file = MappedFile(out)
    for idstr in known_blocks(manifest):
        check_block_bytes(manifest, idstr, file[idstr].content())
    assert [b.name for b in file.blocks if b.shared] == manifest.get("not_in_stream", [])
    for block in file.blocks:
        # Exactly those that hold something; all others are holes, but for a few between them.
        assert not block.empty()
        assert not block.stale()
    present = sum(len(b.present) * b.page_size for b in file.blocks)
    for b in file.blocks:
        gaps = np.diff(np.array(b.present or [0])) - 1
        present += int(gaps[gaps <= 2].sum()) * b.page_size
    with out.open("rb") as opened:
        held = sum(b - a for a, b in data_extents(opened.fileno(), out.stat().st_size))
    with path.open("rb") as before:
        before.seek(rest)
        tail = before.read()
    assert file.data[-len(tail) :] == tail
    assert held <= present + len(tail) + 4 * PAGE * (1 + len(file.blocks))
    # And vmstream finds the same.
    summary = Summary()
    with OpenStream(out) as again:
        for event in events(again.source, Decoder(strict=True)):
            summary.on(event)
    summary.finish()
    assert {f.code for f in summary.findings.kept} <= {"ignore-shared"}
    with OpenStream(out) as again, read_memory(again, MemoryOptions(partial=True)) as memory:
        for idstr in known_blocks(manifest):
            size = manifest["blocks"][idstr]["size"]
            check_block_bytes(manifest, idstr, memory.read_block(idstr, 0, size))


@pytest.mark.parametrize("length", [1, 92, 4096, MIB - 100, MIB + 1])
def test_behind_other_bytes(length: int, tmp_path: Path) -> None:
    """Offsets and what they are multiples of are those of the file."""
    manifest = load_manifest("plain-10.0-pc")
    path, out = fixture_file("plain-10.0-pc", tmp_path), tmp_path / "out"
    to_mapped(path, out, random.Random(length).randbytes(length))
    file = MappedFile(out, length)
    for idstr in known_blocks(manifest):
        check_block_bytes(manifest, idstr, file[idstr].content())


def test_from_an_image_of_libvirt(tmp_path: Path) -> None:
    """Mapped-ram behind a header comes out at the front."""
    name = "libvirt-12.8-sparse-parallel"
    manifest, out = load_manifest(name), tmp_path / "out"
    to_mapped(image_file(name, tmp_path), out)
    file = MappedFile(out)
    for idstr in known_blocks(manifest):
        check_block_bytes(manifest, idstr, file[idstr].content())


def test_laid_out_as_qemu_does(tmp_path: Path) -> None:
    """A stopped guest's file: the very bytes of QEMU's, but for the order of capabilities."""
    path, out = fixture_file("mapped-10.0-pc", tmp_path), tmp_path / "out"
    to_mapped(path, out)
    assert out.read_bytes() == path.read_bytes()


# ---- any pages -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """Pages of blocks, and the parts in which they come."""

    blocks: tuple[RAMBlock, ...]
    page_size: int
    parts: list[list[tuple[int, NDArray[np.uint8] | int]]] = field(repr=False)
    contents: tuple[bytes, ...] = field(default=(), repr=False)

    def pages(self, block: int) -> Iterator[tuple[int, NDArray[np.uint8] | int]]:
        for offset, part in self.parts[block]:
            if isinstance(part, int):
                yield offset, part
                continue
            lent = part.copy()
            yield offset, lent
            lent[:] = 0xA5  # borrowed until the next are asked for


@st.composite
def made_pages(draw: st.DrawFn) -> Made:
    """Blocks of any length with pages of data, of zeros and unsent ones."""
    size = draw(st.sampled_from([1024, 4096, 8192]))
    blocks, parts, contents = [], [], []
    for index in range(draw(st.integers(1, 3))):
        # Not sent; zeros that are told as a number; bytes at these places, or none.
        kinds = draw(st.lists(st.sampled_from([-2, -1, 0, 7, 8, size - 1, size]), min_size=1))
        count, content = draw(st.integers(len(kinds), 200)), bytearray()
        mine: list[tuple[int, NDArray[np.uint8] | int]] = []
        for kind, group in itertools.groupby(kinds, lambda k: min(k, 0)):
            rows = np.zeros((len(places := list(group)), size), np.uint8)
            for row, at in zip(rows, places, strict=True):
                if at >= 0:
                    row[at : at + 1] = 255
            if kind != -2:
                mine.append((len(content), rows if kind == 0 else len(rows)))
            content += rows.tobytes()
        blocks.append(RAMBlock(b"block %d" % index, count * size))
        parts.append(mine)
        contents.append(bytes(content.ljust(count * size, b"\0")))
    return Made(tuple(blocks), size, parts, tuple(contents))


def written(pages: Pages, path: Path, front: int = 0) -> MappedFile:
    """A file with no devices, read back."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0", capabilities=["mapped-ram"])
    w.start(2, "ram", 0, 4)
    head = bytes(front) + bytes(w)
    end = b"\3" + struct.pack(">I", 2)
    done = struct.pack(">QBI", 16, 0x7E, 2)
    splices = [
        Splice(0, 0, head, ""),
        Splice(0, 0, lambda to: write_mapped(pages, to), ""),
        Splice(0, 0, done + end + done + bytes([EOF]), ""),
    ]
    with OpenStream(Path(__file__)) as opened, OutputFile(path, force=True) as out:
        source = random_access(opened.source)
        told = write_spliced(source, 0, splices, out)
        assert write_spliced(source, 0, splices, Nowhere()) == told
        out.commit()
    return MappedFile(path, front)


@settings(max_examples=examples(50))
@given(made_pages(), st.integers(0, 2 * MIB))
def test_any_pages(tmp_path_factory: pytest.TempPathFactory, pages: Made, front: int) -> None:
    path = tmp_path_factory.mktemp("mapped") / "out"
    file = written(pages, path, front)
    assert [b.name for b in file.blocks] == [b.idstr.decode() for b in pages.blocks]
    assert {b.page_size for b in file.blocks} == {pages.page_size}
    for block, content in zip(file.blocks, pages.contents, strict=True):
        assert block.content() == content
        size = pages.page_size
        filled = [p for p in range(len(content) // size) if any(content[p * size :][:size])]
        assert list(block.present) == filled
        assert not block.stale()
    path.unlink()


# ---- what the format does not have -----------------------------------------------------------


class Kept:
    """A target that keeps what was written."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.content: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        self.content.append(bytes(data))
        self.offset += len(data)

    def skip(self, length: int) -> None:
        self.offset += length

    def put(self, offset: int, data: bytes | memoryview) -> None:
        if data:
            self.content.append(bytes(data))


ONE = RAMBlock(b"one", 4 * PAGE)


@pytest.mark.parametrize(
    ("pages", "options", "message"),
    [
        (Made((ONE,), 4095, [[]]), {}, "pages of 4095"),
        (Made((), PAGE, []), {}, "1 to 4096 RAM blocks, and not 0"),
        (Made((ONE,) * 4097, PAGE, []), {}, "and not 4097"),
        (Made((replace(ONE, used_length=PAGE + 1),), PAGE, [[]]), {}, "'one' of 0x1001 bytes"),
        (Made((replace(ONE, used_length=0),), PAGE, [[]]), {}, "'one' of 0x0 bytes"),
        (Made((replace(ONE, used_length=1 << 62),), PAGE, [[]]), {}, "no file is as long"),
        (Made((ONE,), PAGE, [[]]), {"elsewhere": {0}}, "x-ignore-shared"),
        (Made((ONE,), PAGE, [[]]), {"ignore_shared": True}, "has an address"),
        (Made((replace(ONE, idstr=b"x" * 256),), PAGE, [[]]), {}, "RAM block list"),
    ],
)
def test_refused_before_anything_is_written(
    pages: Made, options: dict[str, bool], message: str
) -> None:
    to = Kept()
    with pytest.raises(EncodeError, match=message):
        write_mapped(pages, to, **options)  # type: ignore[arg-type]
    assert not to.content


@pytest.mark.parametrize(
    "parts",
    [
        [(4 * PAGE, 1)],
        [(3 * PAGE, np.ones((2, PAGE), np.uint8))],
        [(100, np.ones((1, PAGE), np.uint8))],
        [(PAGE, np.ones((2, PAGE), np.uint8)), (2 * PAGE, np.ones((1, PAGE), np.uint8))],
        [(-PAGE, 1)],
    ],
)
def test_pages_that_are_not_in_their_block(
    parts: list[tuple[int, NDArray[np.uint8] | int]],
) -> None:
    with pytest.raises(EncodeError, match="not in block 'one' of 0x4000"):
        write_mapped(Made((ONE,), PAGE, [parts]), Kept())


def test_an_output_that_cannot_be_sought_in(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    pages = Made((ONE,), PAGE, [[(0, 4)]])
    splices = [Splice(0, 0, lambda to: write_mapped(pages, to), "")]
    with OpenStream(Path(__file__)) as opened, pytest.raises(EncodeError, match="goes to a file"):
        write_spliced(random_access(opened.source), 0, splices, StandardOutput())
    assert capfdbinary.readouterr().out == b""


def test_shared_memory_has_neither_bitmap_nor_area() -> None:
    """Wire: QEMU v11.1.0 migration/ram.c mapped_ram_setup_ramblock()."""
    blocks = (replace(ONE, gpa=0), RAMBlock(b"two", PAGE, gpa=0xFFFC0000))
    to = Kept(100)
    write_mapped(Made(blocks, PAGE, [[], []]), to, ignore_shared=True, elsewhere={0})
    entry = struct.Struct(">B3sQQIQQQ")
    word, first, second, *_ = to.content
    assert word == struct.pack(">Q", 5 * PAGE | 4)
    assert first == entry.pack(3, b"one", 4 * PAGE, 0, 1, PAGE, 0, 0)
    bitmap = 100 + 8 + 2 * entry.size
    assert second == entry.pack(3, b"two", PAGE, 0xFFFC0000, 1, PAGE, bitmap, MIB)
    assert to.offset == MIB + PAGE
