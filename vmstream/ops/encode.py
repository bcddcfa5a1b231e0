"""From the finished image of an extraction to the output that was asked for.

Pages come in any order, and again; what is compressed has to come once, in order. So compressed
files and kdump files are both made of an image that is whole, in a sparse temporary file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import OutputError
from vmstream.guest.kdump import FLAGS, Flattened, KdumpPlan, bitmap_parts
from vmstream.ops.pipeline import Progress
from vmstream.transport.compress import SUFFIXES, compressed, in_order, page_codec
from vmstream.transport.sink import OutputFile, SparseFile, StandardOutput

COMPRESSIONS = ("none", "gzip", "zlib", "zstd")
STANDARD_OUTPUT = Path("-")

# Bytes of RAM that a thread compresses at a time.
_BATCH = 1 << 20
# Descriptors of frames of zeros that are written at a time.
_DESCRIPTORS = 1 << 16

Write = Callable[[int, memoryview | bytes], None]


def compression_of(form: str, output: Path | None, asked: str | None) -> str | None:
    """Return how an output is compressed: 'gzip' or 'zstd', a kdump file 'zlib' or 'zstd'; or not.

    Args:
        form: Format of the output.
        output: Its name, whose suffix tells where nothing was asked for.
        asked: One of COMPRESSIONS.

    Raises:
        OutputError: The format does not allow it.
    """
    by_name = next((c for c, s in SUFFIXES.items() if output and output.suffix == s), None)
    if form == "kdump":
        if by_name is not None:
            raise OutputError(
                f"{output}: a kdump file has compressed pages and is not compressed once more; "
                "give a name without the suffix"
            )
        found = asked or "zlib"
        allowed = [name or "none" for name in FLAGS]
    else:
        found = asked or by_name or "none"
        allowed = ["none", *SUFFIXES]
    if found not in allowed:
        raise OutputError(f"--compress {found} is not for {form}: {', '.join(allowed)}")
    return None if found == "none" else found


def encode(
    image: SparseFile,
    target: OutputFile | StandardOutput,
    compression: str | None,
    kdump: KdumpPlan | None,
    progress: Progress | None = None,
) -> None:
    """Write an output from its image.

    Args:
        image: The file as it is without compression, whole; for kdump the guest-physical image.
        target: Where the output goes; a kdump file goes to standard output flattened.
        compression: As of `compression_of`.
        kdump: What a kdump file is made of.
        progress: Called with (bytes of the image that are done, those there are).
    """
    if kdump is None:
        done = 0
        for part in compressed(image, compression):
            target.write(done, part)
            done += len(part)
            if progress is not None:
                progress(done, None)
    elif isinstance(target, StandardOutput):
        flattened = Flattened(target.append)
        write_kdump(image, kdump, compression, flattened.write, progress)
        flattened.finish()
    else:
        write_kdump(image, kdump, compression, target.write, progress)


def write_kdump(
    image: SparseFile,
    plan: KdumpPlan,
    compression: str | None,
    write: Write,
    progress: Progress | None = None,
) -> None:
    """Write a kdump file.

    Args:
        image: Guest-physical image: the offset is the address.
        plan: What the file is made of.
        compression: 'zlib', 'zstd', or `None`.
        write: Called with (offset, bytes), in any order, never twice for a place.
        progress: Called with (bytes of RAM written, those there are).

    Memory:
        Two batches of 1 MiB a thread.
    """
    block = plan.block_size
    write(0, plan.head)
    for offset, bits in bitmap_parts(plan):
        for bitmap in plan.bitmaps:
            write(bitmap + offset, bits)
    write(plan.data, bytes(block))
    shared = np.zeros(_DESCRIPTORS, plan.descriptor)
    shared["offset"], shared["size"] = plan.data, block
    total = block * sum(count for _, count in plan.frames)
    done, descriptors, data = 0, plan.descriptors, plan.data + block
    for batch in in_order(partial(_packed, image, block, compression), _batches(image, plan)):
        rest = batch.frames
        made = shared[: min(rest, _DESCRIPTORS)]
        if len(batch.filled):
            made = made.copy()
            sizes = batch.sizes
            made["offset"][batch.filled] = data + np.cumsum(sizes) - sizes
            made["size"][batch.filled] = sizes
            made["flags"][batch.filled] = np.where(sizes < block, FLAGS[compression], 0)
            write(data, batch.data)
            data += len(batch.data)
        while rest:
            part = made[:rest]
            write(descriptors, part.tobytes())
            descriptors += part.nbytes
            rest -= len(part)
        done += batch.frames * block
        if progress is not None:
            progress(done, total)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Frames that follow each other; `sizes` and `data` are of those with the indices `filled`."""

    frames: int
    filled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    data: bytes = b""


# (first frame, how many, whether there may be other bytes than zeros) of all frames, in order.
def _batches(image: SparseFile, plan: KdumpPlan) -> Iterator[tuple[int, int, bool]]:
    block, most = plan.block_size, max(1, _BATCH // plan.block_size)
    for first, count in plan.frames:
        at, end = first, first + count
        for begin, stop in image.extents(first * block, end * block):
            low, high = max(at, begin // block), -(-stop // block)
            if at < low:
                yield at, low - at, False
            for frame in range(low, high, most):
                yield frame, min(most, high - frame), True
            at = max(at, high)
        if at < end:
            yield at, end - at, False


def _packed(
    image: SparseFile, block: int, compression: str | None, batch: tuple[int, int, bool]
) -> _Batch:
    first, count, data = batch
    if not data:
        return _Batch(count)
    pages = np.zeros((count, block), np.uint8)
    view = pages.reshape(-1).data
    image.read_into(first * block, view)
    filled = np.flatnonzero(pages.view(np.uint64).any(axis=1))
    if not len(filled):
        return _Batch(count)
    if compression is None:
        sizes = np.full(len(filled), block, np.int64)
        return _Batch(count, filled, sizes, pages[filled].tobytes())
    compress = page_codec(compression, block)
    packed: list[bytes | memoryview] = [
        compress(view[at : at + block]) for at in (filled * block).tolist()
    ]
    sizes = np.fromiter(map(len, packed), np.int64, len(packed))
    # What does not shrink is stored, as readers tell the two by the flag alone.
    for i in np.flatnonzero(sizes >= block).tolist():
        at = int(filled[i]) * block
        packed[i] = view[at : at + block]
    return _Batch(count, filled, np.minimum(sizes, block), b"".join(packed))
