"""Pages as a stream leaves them: the truth of every fixture, and only pages that were sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ops.test_extract import COMPLETE, SHARED
from tests.streamwriter import RamBlock, StreamWriter
from tests.truth import check_block_bytes, fixture_file, known_blocks, load_manifest
from vmstream.container.open import OpenStream
from vmstream.ops.inspect import Summary
from vmstream.ops.lastpages import LastPages
from vmstream.ops.memory import GuestMemory, MemoryOptions, index_memory, read_memory
from vmstream.ops.pipeline import events
from vmstream.stream.decoder import Decoder

PAGE = 4096


def assembled(last: LastPages, block: int) -> tuple[bytes, list[tuple[int, int | None]]]:
    """The content of a block, and what it came as: (page, how many of zeros or `None`)."""
    content, parts = bytearray(last.blocks[block].used_length + last.page_size - 1), []
    stop = 0
    for offset, pages in last.pages(block):
        count = pages if isinstance(pages, int) else len(pages)
        assert offset >= stop, "ascending"
        stop = offset + count * last.page_size
        if isinstance(pages, int):
            parts.append((offset // last.page_size, count))
        else:
            content[offset:stop] = pages.tobytes()
            parts += [(offset // last.page_size + i, None) for i in range(count)]
    used = last.blocks[block].used_length
    assert not any(content[used:])
    return bytes(content[:used]), parts


@pytest.mark.parametrize("name", COMPLETE)
def test_content_is_the_truth(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    with (
        OpenStream(str(fixture_file(name, tmp_path))) as opened,
        read_memory(opened, MemoryOptions()) as memory,
    ):
        last = LastPages(memory)
        for idstr in known_blocks(manifest):
            block = memory.block_index(idstr)
            if memory.blocks[block].used_length <= 256 << 20:
                check_block_bytes(manifest, idstr, assembled(last, block)[0])


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory_has_none(name: str, tmp_path: Path) -> None:
    with (
        OpenStream(str(fixture_file(name, tmp_path))) as opened,
        read_memory(opened, MemoryOptions(partial=True)) as memory,
    ):
        last = LastPages(memory)
        assert memory.elsewhere
        assert all(not list(last.pages(block)) for block in memory.elsewhere)


def indexed(path: Path) -> tuple[GuestMemory, Summary]:
    summary = Summary()
    with OpenStream(str(path)) as opened:
        found = list(events(opened.source, Decoder()))
        for event in found:
            summary.on(event)
    opened = OpenStream(str(path)).__enter__()
    source = opened.source
    return index_memory(events(source, Decoder()), source, MemoryOptions()), summary


def test_what_was_not_sent_is_not_there(tmp_path: Path) -> None:
    """Nor are changes lost: of a page that was sent, of zeros, and of one that was not."""

    def part(w: StreamWriter) -> None:
        w.page("b", 0, b"\1" * PAGE)
        w.page("b", PAGE, bytes(PAGE))
        w.zero("b", 2 * PAGE)
        w.page("b", 300 * PAGE, b"\2" * PAGE)
        for page in range(700, 1500):
            w.zero("b", page * PAGE)

    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("a", 2 * PAGE), RamBlock("b", 2000 * PAGE)])
    with w.ram_part():
        for page in range(2):
            w.zero("a", page * PAGE)
        part(w)
    with w.ram_end():
        pass
    w.eof()
    path = tmp_path / "stream"
    path.write_bytes(bytes(w))
    memory, summary = indexed(path)
    coverage = summary.coverage_blocks()
    last = LastPages(memory, coverage)
    assert assembled(last, 0)[1] == [(0, 2)]
    content, parts = assembled(last, 1)
    assert content == b"\1" * PAGE + bytes(299 * PAGE) + b"\2" * PAGE + bytes(1699 * PAGE)
    # Pages with data, or of those that were sent with data, one by one.
    assert parts == [(0, None), (1, None), (2, None), (300, None), (700, 800)]
    # Without coverage all pages count as sent.
    assert sum(n or 1 for _, n in assembled(LastPages(memory), 1)[1]) == 2000

    fresh = {0: lambda: b"\5" * PAGE, 800: lambda: b"\6" * PAGE, 900: lambda: b"\7" * PAGE}
    last.changed = {1: fresh}
    coverage[1].sent.add(np.array([900]))
    content, parts = assembled(last, 1)
    assert content[:PAGE] == b"\5" * PAGE
    assert content[800 * PAGE : 801 * PAGE] == b"\6" * PAGE
    assert content[900 * PAGE : 901 * PAGE] == b"\7" * PAGE
    assert content.count(0) == len(content) - 4 * PAGE
    memory.close()
