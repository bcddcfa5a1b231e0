"""The reader of mapped-ram on trial: QEMU's files are read to the truth, broken ones refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.containers import image_file
from tests.mappedreader import MIB, MappedError, MappedFile
from tests.truth import check_block_bytes, known_blocks, load_manifest, open_fixture

MAPPED = [
    "mapped-10.0-pc",
    "mapped-live-10.0-q35",
    "mapped-multifd-11.1-pc",
    "mapped-ignoreshared-11.1-pc",
]


@pytest.mark.parametrize("name", MAPPED)
def test_files_of_qemu(name: str) -> None:
    manifest = load_manifest(name)
    file = MappedFile(open_fixture(name))
    names = known_blocks(manifest)
    assert names
    for idstr in names:
        check_block_bytes(manifest, idstr, file[idstr].content())
        assert not file[idstr].empty()
    shared = [b.name for b in file.blocks if b.shared]
    assert shared == manifest.get("not_in_stream", [])
    assert {b.name for b in file.blocks} >= set(manifest["blocks"])
    assert file.data[file.tail] == 4


def test_a_stale_page_is_seen() -> None:
    data = bytearray(open_fixture("mapped-10.0-pc"))
    block = MappedFile(bytes(data))["mem"]
    assert not block.stale()
    page = next(p for p in range(4096) if p not in block.present)
    data[block.pages_offset + page * 4096] = 1
    seen = MappedFile(bytes(data))["mem"]
    assert (seen.stale(), seen.content()) == ([page], block.content())
    # And one of zeros that has its bit.
    data[block.pages_offset + page * 4096] = 0
    data[block.bitmap_offset + page // 8] |= 1 << page % 8
    assert MappedFile(bytes(data))["mem"].empty() == [page]


def test_broken_ones() -> None:
    whole = open_fixture("mapped-10.0-pc")
    file = MappedFile(whole)
    block = file["/rom@etc/acpi/tables"]
    assert block.length == 32 * 4096  # half of a long
    header, area = block.bitmap_offset - 28, block.pages_offset
    end = area + block.length
    last = file.blocks[-1].pages_offset + file.blocks[-1].length
    first = file.blocks[0]
    for at, new, rule in (
        (header, struct.pack(">I", 2), "version 2"),
        (header + 4, struct.pack(">Q", 8192), "pages of several sizes"),
        (header + 4, struct.pack(">Q", 4095), "pages of 4095"),
        (header - 8, struct.pack(">Q", block.length + 1), "length"),
        (header + 12, struct.pack(">Q", block.bitmap_offset + 8), "not behind its header"),
        (header + 20, struct.pack(">Q", area + 4096), "pages at"),
        (header + 20, struct.pack(">Q", area + MIB), "pages at"),
        (block.bitmap_offset + 4, b"\1", "behind the last page"),
        (block.bitmap_offset + 8, b"\1", "between bitmap and pages"),
        (area - 1, b"\1", "between bitmap and pages"),
        (last, b"\0" * 7 + b"\x08", "no EOS"),
        (last + 8, b"\x7d", "no footer"),
        (first.bitmap_offset - 28 - 8 - 4 - 8 + 7, b"\x08", "no MEM_SIZE"),
        (whole.index(b"\x0amapped-ram") + 1, b"x", "no capability"),
    ):
        broken = bytearray(whole)
        broken[at : at + len(new)] = new
        with pytest.raises(MappedError, match=rule):
            MappedFile(bytes(broken))
    for cut in (end - 1, area, block.bitmap_offset + 3, header, last + 9, file.tail):
        with pytest.raises(MappedError):
            MappedFile(whole[:cut])


def test_a_stream_behind_other_bytes(tmp_path: Path) -> None:
    """libvirt's sparse format; offsets are those of the file."""
    name = "libvirt-12.8-sparse-parallel"
    manifest, path = load_manifest(name), image_file(name, tmp_path)
    data = path.read_bytes()
    origin = data.index(b"QEVM")
    assert origin
    file = MappedFile(path, origin)
    for idstr in known_blocks(manifest):
        check_block_bytes(manifest, idstr, file[idstr].content())
    with pytest.raises(MappedError, match="not behind its header"):
        MappedFile(data[origin:])
