"""Edited memory: a reader finds the new bytes, whatever the pages were sent as."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.decoding import decode
from tests.ops.test_rewrite import rewritten
from tests.strategies import examples, streams
from tests.streamwriter import RamBlock, StreamWriter, simple_stream
from tests.truth import fixture_file, fixture_names, load_manifest, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import AddressError, EncodeError, VmstreamError
from vmstream.ops.memory import MemoryOptions, read_memory

PAGE = 4096
BODY = bytes(range(256)) * 16


def memory_of(path: Path) -> dict[bytes, bytes]:
    """All blocks, as a strict reader finds them."""
    with OpenStream(path) as opened, read_memory(opened, MemoryOptions()) as memory:
        return {b.idstr: memory.read_block(b.idstr, 0, b.used_length) for b in memory.blocks}


def patched(tmp_path: Path, data: bytes, *patches: tuple[str, str]) -> dict[bytes, bytes]:
    (tmp_path / "in").write_bytes(data)
    rewritten(tmp_path / "in", patches=patches)
    return memory_of(tmp_path / "out")


def test_every_kind_of_record(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 8 * PAGE), RamBlock("b", 2 * PAGE)])
    with w.ram_part():
        w.zero("pc.ram", 0)
        w.page("pc.ram", PAGE, BODY)
        w.page("pc.ram", 2 * PAGE, BODY)
        w.xbzrle_to("pc.ram", 2 * PAGE, BODY[:100] + b"x" * 50 + BODY[150:])
        w.compress_page("pc.ram", 3 * PAGE, zlib.compress(BODY))
        w.zero("b", 0)
        w.page("pc.ram", 4 * PAGE, BODY)
        w.zero("pc.ram", 4 * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    want = {n: bytearray(c) for n, c in w.blocks.items()}
    patches = []
    for page in range(8):
        at = page * PAGE + 1000
        want["pc.ram"][at : at + 2] = b"\xaa\xbb"
        patches.append((f"pc.ram+{at:#x}", "hex:aabb"))
    want["b"][4090:4100] = b"0123456789"
    (tmp_path / "ten").write_bytes(b"0123456789")
    patches.append(("b+4090", str(tmp_path / "ten")))
    found = patched(tmp_path, bytes(w), *patches)
    assert found == {n.encode(): bytes(c) for n, c in want.items()}
    out = (tmp_path / "out").read_bytes()
    assert decode(out, strict=True).error is None


@settings(max_examples=examples(60))
@given(streams(xbzrle=True, compress=True, fills=True), st.integers(0, 1 << 32))
def test_any_stream(tmp_path_factory: pytest.TempPathFactory, w: StreamWriter, seed: int) -> None:
    """Also pages that were never sent, with other edits beside them."""
    rng = random.Random(seed)
    tmp_path = tmp_path_factory.mktemp("patch")
    (tmp_path / "in").write_bytes(bytes(w))
    try:
        before = memory_of(tmp_path / "in")
    except VmstreamError:
        return
    want = {n: bytearray(c) for n, c in before.items()}
    patches = []
    for number in range(rng.randrange(1, 4)):
        name = rng.choice(list(want))
        if not name or not name.isascii():
            continue
        # Patches must not overlap: each has its part of the block.
        part = len(want[name]) // 4
        at = number * part + rng.randrange(part)
        data = rng.randbytes(rng.randrange(1, part - at % part + 1))[: part - at % part]
        want[name][at : at + len(data)] = data
        patches.append((f"{name.decode()}+{at}", f"hex:{data.hex()}"))
    rewritten(tmp_path / "in", patches=tuple(patches))
    assert memory_of(tmp_path / "out") == {n: bytes(c) for n, c in want.items()}


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in fixture_names()
        if not n.startswith(("interrupted", "multifd", "postcopy-pre", "dirtyb"))
    ],
)
def test_real_streams(tmp_path: Path, name: str) -> None:
    """In each block its ends, the middle, and a stretch over several pages."""
    path = fixture_file(name, tmp_path)
    with OpenStream(path) as opened, read_memory(opened, MemoryOptions(partial=True)) as memory:
        blocks = {b.idstr: b.used_length for b in memory.blocks}
        shared = memory.elsewhere
        left = [b.idstr for i, b in enumerate(memory.blocks) if i not in shared]
    rng = random.Random(name)
    patches, wrote = [], []
    for idstr in left[:6]:
        length = blocks[idstr]
        for at, count in ((0, 5), (length // 2 - 3, min(9000, length // 4)), (length - 7, 7)):
            data = rng.randbytes(count)
            (tmp_path / f"data{len(wrote)}").write_bytes(data)
            patches.append((f"{idstr.decode()}+{at}", str(tmp_path / f"data{len(wrote)}")))
            wrote.append((idstr, at, data))
    rewritten(path, patches=tuple(patches))
    with (
        OpenStream(path) as opened,
        read_memory(opened, MemoryOptions(partial=True)) as old,
        OpenStream(tmp_path / "out") as other,
        read_memory(other, MemoryOptions(partial=True)) as new,
    ):
        for idstr in left:
            if blocks[idstr] > 64 << 20:
                continue
            want = bytearray(old.read_block(idstr, 0, blocks[idstr]))
            for there, at, data in wrote:
                if there == idstr:
                    want[at : at + len(data)] = data
            assert new.read_block(idstr, 0, blocks[idstr]) == want, idstr
        assert new.exit_code == old.exit_code


def test_mapped_ram_is_changed_in_place(tmp_path: Path) -> None:
    data = open_fixture("mapped-10.0-pc")
    (tmp_path / "in").write_bytes(data)
    report, _ = rewritten(
        tmp_path / "in", patches=(("mem+0xf00000", "hex:01"), ("0xf01000", "hex:02"))
    )
    out = (tmp_path / "out").read_bytes()
    assert len(out) == len(data)
    told = [c.what for c in report.changes]
    assert "--patch-ram: bitmap of mapped-ram" in told
    changed = sum(a != b for a, b in zip(data, out, strict=True))
    assert changed == 3  # two bytes of pages, one of the bitmap


def test_a_page_that_was_withdrawn(tmp_path: Path) -> None:
    """It comes before the end of RAM, as one that was never sent."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.postcopy_advise()
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    with w.ram_part():
        w.page("pc.ram", 0, BODY)
        w.page("pc.ram", PAGE, BODY)
    w.ram_discard("pc.ram", [(0, PAGE)])
    with w.ram_part():
        w.page("pc.ram", 0, b"\1" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    (found,) = patched(tmp_path, bytes(w), ("pc.ram+1", "hex:ff")).values()
    assert found == b"\1\xff" + b"\1" * (PAGE - 2) + BODY


def test_the_new_name_of_a_block(tmp_path: Path) -> None:
    """A page that is put in has it."""
    w = simple_stream({"pc.ram": {PAGE: BODY}})
    (tmp_path / "in").write_bytes(bytes(w))
    rewritten(tmp_path / "in", patches=(("pc.ram+1", "hex:ff"),), renames=(("pc.ram", "m"),))
    (content,) = memory_of(tmp_path / "out").values()
    assert content == b"\0\xff" + bytes(PAGE - 2) + BODY


def test_ram_of_version_3(tmp_path: Path) -> None:
    """Has no names: records are as long as they were."""
    w = StreamWriter(ram_version=3, footers=False)
    w.header()
    w.ram_start([RamBlock("", 4 * PAGE)])
    with w.ram_part():
        w.page("", 0, BODY)
    with w.ram_end():
        pass
    w.eof()
    (tmp_path / "in").write_bytes(bytes(w))
    with OpenStream(tmp_path / "in") as opened, read_memory(opened, MemoryOptions()) as memory:
        (block,) = memory.blocks
    name = block.idstr.decode()
    found = patched(tmp_path, bytes(w), (f"{name}+1", "hex:ff"), (f"{name}+8193", "hex:ee"))
    (content,) = found.values()
    assert content[:2] == b"\0\xff"
    assert content[2 * PAGE : 2 * PAGE + 2] == b"\0\xee"


@pytest.mark.parametrize(
    ("patch", "error", "why"),
    [
        (("0x100000000", "hex:00"), AddressError, "no RAM at address 0x100000000"),
        (("pc.ram+0xfff", "hex:0000"), AddressError, "not in block"),
        (("x+0", "hex:00"), VmstreamError, "no block 'x'"),
        (("x", "hex:00"), EncodeError, "a number, or IDSTR"),
        (("pc.ram+x", "hex:00"), EncodeError, "a number, or IDSTR"),
        (("pc.ram+0", "hex:0"), EncodeError, "is not hex"),
        (("pc.ram+0", "hex:"), EncodeError, "nothing to put"),
        (("pc.ram+0", "/dev/null"), EncodeError, "not a regular file"),
        (("pc.ram+0", "/nowhere/x"), OSError, "No such file"),
    ],
)
def test_refusals(tmp_path: Path, patch: tuple[str, str], error: Any, why: str) -> None:
    (tmp_path / "in").write_bytes(bytes(simple_stream()))
    with pytest.raises(error, match=why):
        rewritten(tmp_path / "in", patches=(patch,))
    assert not (tmp_path / "out").exists()


def test_overlaps(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(simple_stream()))
    with pytest.raises(EncodeError, match="overlap"):
        rewritten(tmp_path / "in", patches=(("pc.ram+0", "hex:0000"), ("pc.ram+1", "hex:00")))


def test_pages_on_other_channels(tmp_path: Path) -> None:
    path = fixture_file("multifd-11.1-pc.ch0", tmp_path)
    with pytest.raises(EncodeError, match="other channels"):
        rewritten(path, patches=(("mem+0", "hex:00"),))


def test_shared_memory(tmp_path: Path) -> None:
    assert "mem" in str(load_manifest("ignoreshared-10.0-pc"))
    path = fixture_file("ignoreshared-10.0-pc", tmp_path)
    with pytest.raises(EncodeError, match="shared memory"):
        rewritten(path, patches=(("mem+0", "hex:00"),))
