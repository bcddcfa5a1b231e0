"""Fixtures and the truth about them, for tests.

    manifest = load_manifest("plain-7.2-pc")
    stream = open_fixture("plain-7.2-pc")
    check_block(manifest, "pc.ram", extracted_file)

Nothing here knows the stream format or vmstream; the capture script uses the same sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

FIXTURES = Path(__file__).resolve().parent / "fixtures"
TRUTH_PAGE = 4096  # the manifests count in pages of this size, whatever the target's is
STEP = 4 << 20
# Hashing gigabytes of zeros takes seconds and says nothing that size and nonzero_sha256 do not.
WHOLE_LIMIT = 256 << 20
_ZEROS = bytes(STEP)


# 42,000 empty parts of a live section: seconds, where others take a tenth of one.
LONG = {"dirtybitmap-10.0-pc"}


def fixture_names(pattern: str = "*", *, long: bool = False) -> list[str]:
    """Names of the streams whose name matches the glob `pattern`; NAME.ch0 is a main channel."""
    names = (p.name.removesuffix(".qevm.zst") for p in FIXTURES.glob(f"{pattern}.qevm.zst"))
    return sorted(n for n in names if not re.search(r"\.ch[1-9]$", n) and (long or n not in LONG))


def channel_names(name: str) -> list[str]:
    """Names of the other channels of NAME.ch0, in order."""
    stem = name.removesuffix(".ch0")
    found = (p.name.removesuffix(".qevm.zst") for p in FIXTURES.glob(f"{stem}.ch[1-9].qevm.zst"))
    return sorted(found)


def load_manifest(name: str) -> dict[str, Any]:
    """The manifest of a stream; those of one migration ("NAME.ch0") share that of NAME."""
    stem = re.sub(r"\.(ch|ret)\d+$", "", name)
    manifest: dict[str, Any] = json.loads((FIXTURES / f"{stem}.json").read_text())
    return manifest


@lru_cache(maxsize=4)
def open_fixture(name: str) -> bytes:
    """The uncompressed stream."""
    packed = (FIXTURES / f"{name}.qevm.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        return reader.readall()


def fixture_file(name: str, directory: str | os.PathLike[str]) -> Path:
    """The uncompressed stream as a file in `directory`; zeros become holes, as mapped-ram needs."""
    path = Path(directory) / f"{name}.qevm"
    if not path.exists():
        write_sparse(path, open_fixture(name))
    return path


def write_sparse(path: Path, data: bytes) -> None:
    """Write a file, leaving out aligned pages of zeros."""
    with path.open("wb") as out:
        for at in range(0, len(data), TRUTH_PAGE):
            page = data[at : at + TRUTH_PAGE]
            if page.count(0) != len(page):
                out.seek(at)
                out.write(page)
        out.truncate(len(data))


@dataclass(frozen=True)
class BlockSums:
    """What a manifest says about a RAM block. `sha256` is None if it was not asked for."""

    size: int
    sha256: str | None
    nonzero_pages: int
    nonzero_sha256: str


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) ranges of a file that are not holes, in ascending order."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole up to the end
        if start >= size:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, stop
        at = stop


def _chunks(fd: int, start: int, stop: int) -> Iterator[tuple[int, bytes | None]]:
    """(position, bytes) over [start, stop) in steps of at most STEP; None stands for a hole.

    Positions are multiples of TRUTH_PAGE from `start`.
    """
    size = os.fstat(fd).st_size
    extents = data_extents(fd, min(stop, size))
    data = next(extents, None)
    at = start
    while at < stop:
        while data is not None and data[1] <= at:
            data = next(extents, None)
        end = min(at + STEP, stop)
        if data is None or data[0] >= end:
            yield at, None
        else:
            part = os.pread(fd, end - at, at)
            if len(part) != end - at:
                raise AssertionError(f"file ends at {at + len(part):#x}, wanted {stop:#x}")
            yield at, part
        at = end


def block_sums(
    path: str | os.PathLike[str], *, offset: int = 0, size: int | None = None, whole: bool = True
) -> BlockSums:
    """Sums of a file (or a range of it), in the manifests' terms; holes are not read."""
    everything, nonzero, count = hashlib.sha256(), hashlib.sha256(), 0
    fd = os.open(path, os.O_RDONLY)
    try:
        if size is None:
            size = os.fstat(fd).st_size - offset
        for at, part in _chunks(fd, offset, offset + size):
            if part is None:
                if whole:
                    everything.update(memoryview(_ZEROS)[: min(STEP, offset + size - at)])
                continue
            if whole:
                everything.update(part)
            first = (at - offset) // TRUTH_PAGE
            for index in _nonzero_pages(part):
                count += 1
                nonzero.update((first + index).to_bytes(8, "big"))
                nonzero.update(part[index * TRUTH_PAGE : (index + 1) * TRUTH_PAGE])
    finally:
        os.close(fd)
    return BlockSums(size, everything.hexdigest() if whole else None, count, nonzero.hexdigest())


def _nonzero_pages(part: bytes) -> list[int]:
    """Indexes of the pages of `part` that hold a byte other than zero."""
    full = len(part) // TRUTH_PAGE
    view = np.frombuffer(part, dtype=np.uint8, count=full * TRUTH_PAGE)
    found: list[int] = np.flatnonzero(view.reshape(full, TRUTH_PAGE).any(axis=1)).tolist()
    if any(part[full * TRUTH_PAGE :]):
        found.append(full)
    return found


def sums_of_bytes(data: bytes | bytearray | memoryview) -> BlockSums:
    """block_sums of something held in memory."""
    part = bytes(data)
    nonzero = hashlib.sha256()
    pages = _nonzero_pages(part)
    for index in pages:
        nonzero.update(index.to_bytes(8, "big"))
        nonzero.update(part[index * TRUTH_PAGE : (index + 1) * TRUTH_PAGE])
    return BlockSums(len(part), hashlib.sha256(part).hexdigest(), len(pages), nonzero.hexdigest())


def has_truth(manifest: dict[str, Any], idstr: str) -> bool:
    """Whether the content of a block is known (old QEMUs do not tell where all blocks are)."""
    return "nonzero_sha256" in manifest["blocks"].get(idstr, {})


def known_blocks(manifest: dict[str, Any]) -> list[str]:
    """The blocks with known content that the stream carries."""
    absent = manifest.get("not_in_stream", [])
    return [name for name in manifest["blocks"] if has_truth(manifest, name) and name not in absent]


def check_block(
    manifest: dict[str, Any],
    idstr: str,
    file_path: str | os.PathLike[str],
    *,
    whole: bool | None = None,
) -> bool:
    """Assert that a file holds exactly the guest's RAM block; returns True.

    `whole` also compares the hash over zero pages; by default only for blocks that are not huge.
    """
    want = manifest["blocks"][idstr]
    assert has_truth(manifest, idstr), f"{idstr}: no truth was taken ({want.get('how')})"
    size = os.stat(file_path).st_size
    assert size == want["size"], f"{idstr}: {size} bytes, wanted {want['size']}"
    if whole is None:
        whole = size <= WHOLE_LIMIT
    _compare(block_sums(file_path, whole=whole), want, idstr)
    return True


def check_block_bytes(
    manifest: dict[str, Any], idstr: str, data: bytes | bytearray | memoryview
) -> bool:
    """check_block for a block held in memory."""
    want = manifest["blocks"][idstr]
    assert has_truth(manifest, idstr), f"{idstr}: no truth was taken ({want.get('how')})"
    _compare(sums_of_bytes(data), want, idstr)
    return True


def _compare(got: BlockSums, want: dict[str, Any], idstr: str) -> None:
    assert got.size == want["size"], f"{idstr}: {got.size} bytes, wanted {want['size']}"
    assert got.nonzero_pages == want["nonzero_pages"], (
        f"{idstr}: {got.nonzero_pages} non-zero pages, wanted {want['nonzero_pages']}"
    )
    assert got.nonzero_sha256 == want["nonzero_sha256"], f"{idstr}: other content"
    assert got.sha256 in (None, want["sha256"]), f"{idstr}: other content"


def range_sha256(path: str | os.PathLike[str], offset: int, size: int) -> str:
    """Hash of a range of a (sparse) file, for the `pmemsave` entries of a manifest."""
    digest = block_sums(path, offset=offset, size=size).sha256
    assert digest is not None
    return digest


def qcow2_names() -> list[str]:
    """Names of the qcow2 images with snapshots."""
    return sorted(p.name.removesuffix(".qcow2.zst") for p in FIXTURES.glob("*.qcow2.zst"))


@lru_cache(maxsize=1)
def read_qcow2(name: str) -> bytes:
    """The uncompressed image."""
    packed = (FIXTURES / f"{name}.qcow2.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        return reader.readall()


def qcow2_file(name: str, directory: str | os.PathLike[str]) -> Path:
    """The uncompressed image as a file in `directory`."""
    path = Path(directory) / f"{name}.qcow2"
    if not path.exists():
        write_sparse(path, read_qcow2(name))
    return path


def snapshot_manifests(name: str) -> dict[str, dict[str, Any]]:
    """What is true about each snapshot of a qcow2 image, by its name; like a manifest."""
    return {s["name"]: s for s in load_manifest(name)["snapshots"]}
