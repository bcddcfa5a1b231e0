"""Benchmarks: every figure as a ratio against something in the same run.

    python -m tests.bench.bench [--size MIB] [--runs N] [--stream FILE] [--pipe-gib N] [--dir DIR]

Makes its streams in DIR (a temporary directory), reads each once to warm the page cache, and
prints a table: the median of the runs, and the ratio to the command or loop named beside it.
`--stream` adds a real capture of yours. `--pipe-gib 64` is the memory run of the README.
"""

from __future__ import annotations

import argparse
import gzip
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import vmstream
from tests.bench import streams
from tests.qcow2images import Saved, build
from vmstream.guest.memory import Placement, RAMImage
from vmstream.ops.feed import feed
from vmstream.ops.inspect import inspect
from vmstream.ops.pipeline import events
from vmstream.stream.channel import MultiFDDecoder
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import MultiFDPacket, PageBatch, RAMBlock
from vmstream.stream.writer import StreamWriter
from vmstream.transport.source import OpenSource
from vmstream.wire.constants import RAMSaveFlag

ROOT = Path(__file__).parent.parent.parent
VMSTREAM = [sys.executable, "-m", "vmstream"]


def median(action: Callable[[], object], runs: int) -> float:
    """Median wall time of an action, seconds."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def row(name: str, figure: str, against: str = "") -> None:
    """Print a line of the table."""
    print(f"{name:<44} {figure:<28} {against}", flush=True)


def touch(path: Path) -> None:
    """Map a file and read one byte of every page: what any walk over mapped pages pays."""
    window, size = 32 << 20, path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        for at in range(0, size, window):
            length = min(window, size - at)
            np.frombuffer(mapping, np.uint8, length, at)[:: mmap.PAGESIZE].max()
            mapping.madvise(mmap.MADV_DONTNEED, at, length)


def count(path: Path) -> int:
    """Walk a stream; return the number of page records."""
    with OpenSource(path) as source:
        return sum(len(e) for e in events(source, Decoder()) if isinstance(e, PageBatch))


def read_all(path: Path) -> None:
    """Read the file through one buffer of 1 MiB, as cat does."""
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def account(path: Path) -> None:
    """Inspect a file in this process."""
    with OpenSource(path) as source:
        inspect(source)


def bench_inspect(name: str, path: Path, short: Path, runs: int) -> None:
    """Time per page record, less that of a stream of two, against the page cache alone."""
    records = count(path)
    actions: dict[str, Callable[[Path], object]] = {
        "decode": count, "inspect": account, "touch": touch, "read": read_all
    }  # fmt: skip
    # In turn, since the page cache of a machine does not stay as it is.
    times = [{k: median(lambda f=f: f(path), 1) for k, f in actions.items()} for _ in range(runs)]
    start = {k: median(lambda f=f: f(short), runs) for k, f in actions.items()}
    us = {k: (statistics.median(t[k] for t in times) - start[k]) / records * 1e6 for k in actions}
    row(
        f"inspect, {name}, {records:,} records",
        f"{us['inspect']:.3f} us a record",
        f"{us['inspect'] / us['read']:.2f} x reading the file ({us['read']:.3f} us), "
        f"{us['inspect'] / us['touch']:.2f} x touching its pages ({us['touch']:.3f} us), "
        f"decoder alone {us['decode']:.3f} us",
    )


def run(*command: str | Path, stdin: int | None = None) -> None:
    """Run a command; its output is of no interest.

    Status 1 is all right: the device state of the streams is that of a smaller guest.
    """
    done = subprocess.run(
        [str(c) for c in command],
        check=False,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    if done.returncode > 1:
        raise SystemExit(f"{command}: status {done.returncode}")


def bench_extract(path: Path, work: Path, runs: int) -> None:
    """extract-ram against dd, in turn."""
    image, copy = work / "ram.raw", work / "copy"
    dd, mine = in_turn(
        runs,
        (["dd", "bs=1M", f"if={path}", f"of={copy}"], copy),
        ([*VMSTREAM, "extract-ram", path, "-o", image], image),
    )
    row(
        "extract-ram, start-up included",
        f"{mine:.2f} s",
        f"{mine / dd:.2f} x dd bs=1M ({dd:.2f} s)",
    )


def bench_rewrite(path: Path, work: Path, runs: int) -> None:
    """rewrite and convert against cp of the input, in turn."""
    out = work / "rewritten.bin"
    rewrite: list[str | Path] = ["rewrite", path, "-o", out]
    cases: dict[str, list[str | Path]] = {
        "rewrite, without edits": rewrite,
        "rewrite --set of a field": [*rewrite, "--set", "globalstate/runstate=paused"],
        "rewrite --strip-vmdescription": [*rewrite, "--strip-vmdescription"],
        "rewrite --squash": [*rewrite, "--squash"],
        "convert --to mapped-ram": ["convert", path, out, "--to", "mapped-ram"],
        "convert --compress zstd": ["convert", path, out, "--compress", "zstd"],
    }
    cp, *ours = in_turn(
        runs,
        (["cp", path, out], out),
        *(([*VMSTREAM, *words], out) for words in cases.values()),
    )
    for name, took in zip(cases, ours, strict=True):
        row(
            f"{name}, {path.name}, start-up included",
            f"{took:.2f} s",
            f"{took / cp:.2f} x cp ({cp:.2f} s)",
        )


def bench_writer(pages: int, runs: int) -> None:
    """Pages from a numpy array into nothing, against a copy of them in memory."""
    made = np.resize(streams.bodies(1024), (pages, 4096))

    def write() -> None:
        with open(os.devnull, "wb", buffering=0) as file:
            out = StreamWriter(file.write)
            out.header()
            ram = out.start(b"ram", version_id=4)
            out.block_list((RAMBlock(b"mem", made.nbytes),))
            out.close()
            out.end(ram)
            out.pages(0, 0, made)
            out.close()
            out.finish()

    times = [(median(write, 1), median(made.copy, 1)) for _ in range(runs)]
    ours, theirs = (statistics.median(t) for t in zip(*times, strict=True))
    row(
        f"StreamWriter, {made.nbytes >> 20} MiB of pages",
        f"{made.nbytes / ours / 1e9:.2f} GB/s",
        f"{ours / theirs:.2f} x a copy in memory ({made.nbytes / theirs / 1e9:.2f} GB/s)",
    )


def bench_search(path: Path, runs: int) -> None:
    """search for what is not there, against grep over the file."""
    text = "no such text in it"
    find: list[str | Path] = [*VMSTREAM, "search", path]
    grep, *ours = in_turn(
        runs,
        (["grep", "-c", "-a", "-F", text, path], None),
        ([*find, text], None),
        ([*find, "--regex", f"{text}+"], None),
        ([*find, "--regex", f"[N]{text}"], None),
        ([*find, "--history", text], None),
    )
    names = ("text", "an expression, text first", "an expression", "text, --history")
    for name, took in zip(names, ours, strict=True):
        row(
            f"search, {path.name}, {name}, start-up included",
            f"{took:.2f} s, {path.stat().st_size / took / 1e9:.2f} GB/s of the file",
            f"{took / grep:.1f} x grep ({grep:.2f} s)",
        )


def bench_stats(path: Path, runs: int) -> None:
    """stats of a capture, against summing up its bytes."""
    find: list[str | Path] = [*VMSTREAM, "stats", path]
    theirs, *ours = in_turn(
        runs,
        (["sha256sum", path], None),
        (find, None),
        ([*find, "--what-if", "xbzrle"], None),
        ([*find, "--what-if", "zstd"], None),
        ([*find, "--what-if", "zlib"], None),
    )
    names = ("pages as they are", "what if xbzrle", "what if zstd", "what if zlib")
    for name, took in zip(names, ours, strict=True):
        row(
            f"stats, {path.name}, {name}, start-up included",
            f"{took:.1f} s, {path.stat().st_size / took / 1e6:.0f} MB/s of the file",
            f"{took / theirs:.1f} x sha256sum ({theirs:.1f} s)",
        )


def bench_diff(name: str, path: Path, work: Path, runs: int) -> None:
    """diff of a stream and a copy of it, against cmp of their images."""
    copy, images = work / "copy.bin", (work / "a.raw", work / "b.raw")
    shutil.copyfile(path, copy)
    for stream, image in zip((path, copy), images, strict=True):
        run(*VMSTREAM, "extract-ram", stream, "--block", "mem", "-o", image)
    size = images[0].stat().st_size
    ours, theirs = in_turn(runs, ([*VMSTREAM, "diff", path, copy], None), (["cmp", *images], None))
    row(
        f"diff, {name}, {size >> 20} MiB of RAM, start-up included",
        f"{ours:.2f} s, {size / ours / 1e9:.2f} GB/s of RAM",
        f"{ours / theirs:.2f} x cmp of the images ({theirs:.2f} s)",
    )
    for made in (copy, *images):
        made.unlink()


def bench_history(work: Path, pages: int, runs: int) -> None:
    """history of four passes over RAM against inspect, and its versions as files against cp."""
    made = np.resize(streams.bodies(1024), (pages, 4096))
    path, old = work / "passes.bin", work / "old"
    with path.open("wb") as file:
        out = StreamWriter(file.write)
        out.header()
        ram = out.start(b"ram", version_id=4)
        out.block_list((RAMBlock(b"mem", made.nbytes),))
        out.close()
        for _ in range(3):
            out.part(ram)
            out.pages(0, 0, made)
            out.close()
        out.end(ram)
        out.pages(0, 0, made)
        out.close()
        out.finish()
    look, history, page, write, copy = in_turn(
        runs,
        ([*VMSTREAM, "inspect", path], None),
        ([*VMSTREAM, "history", path], None),
        ([*VMSTREAM, "history", path, "--page", "mem+0"], None),
        ([*VMSTREAM, "history", path, "--superseded", old, "--force"], None),
        (["cp", path, work / "copy"], None),
    )
    for made_file in (path, work / "copy"):
        made_file.unlink()
    shutil.rmtree(old, ignore_errors=True)
    name = f"history, {4 * made.nbytes >> 20} MiB in 4 passes"
    row(f"{name}, start-up included", f"{history:.2f} s", f"{history / look:.2f} x inspect")
    row(f"{name}, --page", f"{page:.2f} s", f"{page / look:.2f} x inspect")
    row(
        f"{name}, --superseded of {3 * pages:,} versions",
        f"{write:.2f} s",
        f"{write / copy:.1f} x cp of the stream ({copy:.2f} s)",
    )


class Pages:
    """A sink in memory, as a block of RAM."""

    def __init__(self, size: int) -> None:
        self.data = np.zeros(size, np.uint8)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        self.data[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def write_pages(
        self,
        window: memoryview,
        positions: np.ndarray,
        offsets: np.ndarray,
        size: int,
        stride: int,
    ) -> None:
        """Write pages; the fewest numpy calls, since this is not what is measured."""
        del stride
        rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(window, np.uint8), size)
        self.data.reshape(-1, size)[offsets // size] = rows[positions]

    def read_pages(self, offsets: np.ndarray, pages: np.ndarray) -> None:
        """Give pages back."""
        pages[:] = self.data.reshape(-1, pages.shape[1])[offsets // pages.shape[1]]

    def zero(self, offset: int, length: int) -> None:
        """Write zeros."""
        self.data[offset : offset + length] = 0


def bench_encoded(name: str, data: bytes, runs: int) -> None:
    """Page bytes a second of encoded pages into memory, against a copy of as many pages."""
    source = streams.Bytes(data)
    batches = [e for e in events(source, Decoder()) if isinstance(e, PageBatch)]
    encoded = int(RAMSaveFlag.XBZRLE | RAMSaveFlag.COMPRESS_PAGE)
    pages = sum(int(((b.flags & encoded) != 0).sum()) for b in batches)
    blocks = batches[0].blocks
    places = [
        Placement(i, 0, b.used_length, Pages(-(-b.used_length // 4096) * 4096), 0)
        for i, b in enumerate(blocks)
    ]
    took = []
    for _ in range(runs):
        image = RAMImage(blocks, 4096, places)
        spent = 0.0
        for batch in batches:
            begin = time.perf_counter()
            image.add(batch)
            spent += time.perf_counter() - begin
        took.append(spent)
    held = np.ones((min(pages, 1 << 16), 4096), np.uint8)
    copied = median(lambda: held.copy(), runs) / len(held) * pages
    ours = statistics.median(took)
    row(
        f"{name}, {pages:,} encoded pages",
        f"{pages * 4096 / ours / 1e6:,.0f} MB/s of page bytes",
        f"{ours / copied:.1f} x a copy in memory ({pages * 4096 / copied / 1e6:,.0f} MB/s)",
    )


def in_turn(runs: int, *commands: tuple[list[str | Path], Path | None]) -> list[float]:
    """Median wall times of commands that are run in turn; each with what it leaves behind."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(runs):
        for taken, (command, target) in zip(times, commands, strict=True):
            os.sync()
            begin = time.perf_counter()
            run(*command)
            taken.append(time.perf_counter() - begin)
            if target is not None:
                target.unlink()
    return [statistics.median(t) for t in times]


def bench_mapped(work: Path, pages: int, runs: int) -> None:
    """extract-ram of a mapped-ram file against a sparse copy of it."""
    path, image, copy = work / "mapped.bin", work / "ram.raw", work / "copy"
    data = streams.mapped(path, pages, 64)
    command = [*VMSTREAM, "extract-ram", path, "--block", "mem", "-o", image]
    ours, theirs = in_turn(runs, (command, image), (["cp", "--sparse=always", path, copy], copy))
    row(
        f"mapped-ram, {data >> 20} MiB of pages, start-up included",
        f"{ours:.2f} s",
        f"{ours / theirs:.2f} x cp --sparse=always ({theirs:.2f} s)",
    )
    path.unlink()


def bench_multifd(work: Path, pages: int, runs: int) -> None:
    """extract-ram of two channels, against dd of their bytes, or the library that unpacks them."""
    image, copy, joined = work / "ram.raw", work / "copy", work / "joined"
    for kind in ("none", "zstd", "zlib"):
        main, channels = streams.multifd(work, pages, 2, kind)
        packets = [e for c in channels for e in packets_of(c, pages)]
        options = [o for c in channels for o in ("--channel", c)]
        command = [*VMSTREAM, "extract-ram", main, *options, "--block", "mem", "-o", image]
        joined.write_bytes(b"".join(c.read_bytes() for c in channels))
        dd: list[str | Path] = ["dd", "bs=1M", f"if={joined}", f"of={copy}"]
        ours, copied = in_turn(runs, (command, image), (dd, copy))
        against = f"{ours / copied:.2f} x dd bs=1M of the channels ({copied:.2f} s)"
        if kind != "none":
            alone = median(lambda kind=kind, packets=packets: unpack(kind, packets), runs)
            against += f", {ours / alone:.2f} x {kind} in memory ({alone:.2f} s)"
        row(
            f"multifd, {kind}, {pages >> 8} MiB of pages, start-up included",
            f"{ours:.2f} s, {pages * 4096 / ours / 1e6:,.0f} MB/s of page bytes",
            against,
        )
        for path in (main, *channels, joined):
            path.unlink()


def packets_of(channel: Path, pages: int) -> list[tuple[int, bytes]]:
    """Channel and payload of each packet."""
    reader = MultiFDDecoder((RAMBlock(b"mem", pages * 4096),), 4096, strict=True)
    found = feed(streams.Bytes(channel.read_bytes()), reader)
    return [
        (hash(channel), bytes(e.payload))
        for e in found
        if isinstance(e, MultiFDPacket) and len(e.payload)
    ]


def unpack(kind: str, packets: list[tuple[int, bytes]]) -> None:
    """The library alone, one stream a channel."""
    engines: dict[int, Any] = {}
    for channel, payload in packets:
        if channel not in engines:
            zstd = kind == "zstd"
            engines[channel] = (
                zstandard.ZstdDecompressor().decompressobj() if zstd else zlib.decompressobj()
            )
        engines[channel].decompress(payload)


def bench_packed(path: Path, work: Path, runs: int) -> None:
    """inspect of a compressed stream, against the library that unpacks it."""
    data = path.read_bytes()
    zstd = zstandard.ZstdCompressor(1), zstandard.ZstdDecompressor()
    for kind, packed, unpack in (
        ("zstd", zstd[0].compress(data), zstd[1].decompress),
        ("gzip", gzip.compress(data, 1), gzip.decompress),
    ):
        file = work / f"packed.{kind}"
        file.write_bytes(packed)
        command = [*VMSTREAM, "inspect", file]
        (ours,) = in_turn(runs, (command, None))
        theirs = median(lambda unpack=unpack, packed=packed: unpack(packed), runs)
        row(
            f"inspect, {len(data) >> 20} MiB in {kind}, start-up included",
            f"{len(data) / ours / 1e6:,.0f} MB/s unpacked",
            f"{ours / theirs:.2f} x {kind} in memory ({len(data) / theirs / 1e6:,.0f} MB/s)",
        )
        file.unlink()


def bench_qcow2(path: Path, work: Path, runs: int) -> None:
    """inspect of VM state in an image, against the same stream in a file of its own."""
    data = path.read_bytes()
    for bits in (12, 16):
        image = work / "disk.qcow2"
        image.write_bytes(build([Saved("s", data)], cluster_bits=bits).data)
        ours, theirs = in_turn(
            runs, ([*VMSTREAM, "inspect", image], None), ([*VMSTREAM, "inspect", path], None)
        )
        row(
            f"inspect, {len(data) >> 20} MiB in qcow2, clusters of {1 << bits}",
            f"{ours:.2f} s",
            f"{ours / theirs:.2f} x the stream in a file ({theirs:.2f} s)",
        )
        image.unlink()


def bench_inflate(data: bytes, runs: int) -> None:
    """zlib itself on the pages of a stream, for scale."""
    source = streams.Bytes(data)
    blobs: list[bytes] = []
    for batch in events(source, Decoder()):
        if isinstance(batch, PageBatch):
            rows = np.flatnonzero((batch.flags & int(RAMSaveFlag.COMPRESS_PAGE)) != 0)
            blobs += [bytes(batch.payload(int(i))[4:]) for i in rows]
    took = median(lambda: [zlib.decompress(b) for b in blobs], runs)
    row("zlib.decompress alone", f"{len(blobs) * 4096 / took / 1e6:,.0f} MB/s of page bytes")


def bench_pipe(path: Path, runs: int) -> None:
    """Inspect from a pipe, against a pipe into nothing."""

    def piped(*reader: str) -> None:
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, cwd=ROOT) as cat:
            assert cat.stdout is not None
            run(*reader, stdin=cat.stdout.fileno())

    ours = median(lambda: piped(*VMSTREAM, "inspect", "-"), runs)
    theirs = median(lambda: piped("cat"), runs)
    size = path.stat().st_size
    row(
        "inspect from a pipe, start-up included",
        f"{size / ours / 1e9:.2f} GB/s",
        f"{ours / theirs:.2f} x cat | cat ({size / theirs / 1e9:.2f} GB/s)",
    )


def bench_index(name: str, path: Path, work: Path, runs: int) -> None:
    """The index of a stream against inspect, and reads by it against those of the image."""
    image = work / "ram.raw"
    run(*VMSTREAM, "extract-ram", path, "-o", image)

    def index() -> None:
        with vmstream.open(path) as stream, stream.memory():
            pass

    times = [(median(index, 1), median(lambda: account(path), 1)) for _ in range(runs)]
    ours, theirs = (statistics.median(t) for t in zip(*times, strict=True))
    with vmstream.open(path) as stream:
        tracemalloc.start()
        memory = stream.memory()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        pages = sum(b.used_length for b in memory.blocks) // 4096
        row(
            f"index, {name}",
            f"{ours:.3f} s; {held >> 10:,} KiB for {pages:,} pages",
            f"{ours / theirs:.2f} x inspect ({theirs:.3f} s)",
        )
        stretches = [(s, s.regions[0].gpa) for s in memory.stretches()]
        rng, some = random.Random(1), list[int]()
        while len(some) < 20_000:
            stretch, gpa = rng.choice(stretches)
            at = rng.randrange(stretch.length // 4096) * 4096
            if stretch.has_data(at, 4096):
                some.append(gpa + at)
        took = median(lambda: [memory.read(at, 4096) for at in some], runs)
        buffer = memoryview(bytearray(1 << 20))

        def sweep() -> None:
            for stretch, gpa in stretches:
                for at in range(0, stretch.length, len(buffer)):
                    memory.read_into(gpa + at, buffer[: stretch.length - at])

        size = sum(s.length for s, _ in stretches)
        sweeps = [(median(sweep, 1), median(lambda: read_all(image), 1)) for _ in range(runs)]
        ours, theirs = (statistics.median(t) for t in zip(*sweeps, strict=True))
        row(
            f"memory in place, {name}",
            f"{size / ours / 1e9:.2f} GB/s, {len(some) / took:,.0f} pages a second",
            f"{ours / theirs:.2f} x reading its image ({size / theirs / 1e9:.2f} GB/s)",
        )
    image.unlink()


def bench_indices(busy: Path, given: list[Path], work: Path, pages: int, runs: int) -> None:
    """The index of each encoding."""
    for path in (busy, *given):
        bench_index(path.name, path, work, runs)
    path = work / "indexed.bin"
    path.write_bytes(streams.differences(pages // 4, 8))
    bench_index("XBZRLE", path, work, runs)
    path.write_bytes(streams.fixture("zlib-5.2-pc"))
    bench_index("zlib, a capture", path, work, runs)
    path.unlink()
    streams.mapped(path, pages, 64)
    bench_index("mapped-ram", path, work, runs)
    path.unlink()


def peak_of(pid: int) -> int:
    """Largest resident size of a process so far, KiB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line), 0)


def bench_memory(gib: int) -> None:
    """Peak memory of inspect on a long pipe."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.streams", str(gib)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None
    begin = time.perf_counter()
    reader = subprocess.Popen(
        [*VMSTREAM, "inspect", "-"], stdin=writer.stdout, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    writer.stdout.close()
    # Not wait4's figure: that of a child starts at what its parent had when it was started.
    peak = 0
    while reader.poll() is None:
        peak = max(peak, peak_of(reader.pid))
        time.sleep(0.05)
    took = time.perf_counter() - begin
    writer.wait()
    speed = gib * (4104 / 4096) * 2**30 / 1e9 / took
    row(
        f"inspect, {gib} GiB through a pipe",
        f"{peak / 1024:.0f} MiB at the peak",
        f"{speed:.2f} GB/s, exit status {reader.returncode}",
    )


def bench_quick(path: Path, runs: int) -> None:
    """The quick look and the help text, as whole processes."""
    quick = median(lambda: run(*VMSTREAM, "inspect", "--quick", path), runs)
    bare = median(lambda: run(sys.executable, "-c", "import numpy, construct"), runs)
    row("inspect --quick", f"{quick:.3f} s", f"{bare:.3f} s to import numpy and construct")
    usage = median(lambda: run(*VMSTREAM, "--help"), runs)
    python = median(lambda: run(sys.executable, "-c", "pass"), runs)
    row("--help", f"{usage:.3f} s", f"{python:.3f} s for python alone")


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="MiB of a stream, about")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stream", type=Path, action="append", default=[])
    parser.add_argument("--pipe-gib", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="vmstream-bench-", dir=options.dir))
    try:
        pages = options.size * 256
        short = work / "short.bin"
        streams.write(short, 2, 1)
        for name, mean, share, times in (
            ("runs of 10 on average", 10, 0.5, 2),
            ("PAGE runs of 1000", 1000, 0, 1),
            ("ZERO and PAGE runs of 1000", 1000, 0.5, 2),
            ("ZERO runs of 2000, a PAGE between", 1000, 1.0, 32),
        ):
            path = work / f"{mean}-{share}.bin"
            streams.write(path, times * pages, mean, zero_share=share)
            count(path)
            bench_inspect(name, path, short, options.runs)
            if share <= 0.5:
                bench_diff(name, path, work, options.runs)
            if mean == 10:
                busy = path
            else:
                path.unlink()
        for path in options.stream:
            count(path)
            bench_inspect(path.name, path, short, options.runs)
        count(busy)
        bench_extract(busy, work, options.runs)
        for path in options.stream:
            bench_extract(path, work, options.runs)
            bench_rewrite(path, work, options.runs)
            bench_search(path, options.runs)
            bench_stats(path, options.runs)
        bench_rewrite(busy, work, options.runs)
        bench_history(work, pages // 4, options.runs)
        bench_writer(pages // 2, options.runs)
        bench_indices(busy, options.stream, work, pages, options.runs)
        bench_mapped(work, 2 * pages, options.runs)
        bench_multifd(work, pages, options.runs)
        middle = work / "middle.bin"
        streams.write(middle, pages // 2, 10)
        bench_packed(middle, work, options.runs)
        bench_qcow2(middle, work, options.runs)
        middle.unlink()
        bench_encoded("XBZRLE, a capture", streams.fixture("xbzrle-5.2-pc"), options.runs)
        for changed in (1, 8, 200):
            name = f"XBZRLE, {changed} of {changed + 2} bytes new"
            bench_encoded(name, streams.differences(8192, changed), options.runs)
        bench_encoded("zlib, a capture", streams.fixture("zlib-5.2-pc"), options.runs)
        bench_inflate(streams.fixture("zlib-5.2-pc"), options.runs)
        bench_pipe(busy, options.runs)
        bench_quick(busy, options.runs)
        if options.pipe_gib:
            bench_memory(options.pipe_gib)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
