"""The front door of the library, as its documentation says it works."""

from __future__ import annotations

import contextlib
import doctest
import gc
import io
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import vmstream
from tests import streamwriter as sw
from tests.commandline import environment
from tests.decoding import assert_tiles, facts, owned
from tests.strategies import examples, streams
from tests.streamwriter import RamBlock, StreamWriter, simple_stream
from tests.truth import (
    check_block_bytes,
    fixture_file,
    fixture_names,
    known_blocks,
    load_manifest,
    open_fixture,
)

PAGE = 4096


def open_files() -> int:
    gc.collect()  # a mapping has a descriptor of its own, and goes with its last view
    return len(os.listdir("/proc/self/fd"))


def all_events(path: Path, **options: object) -> list[vmstream.Event]:
    with vmstream.open(path, **options) as stream:  # type: ignore[arg-type]
        return [owned(event) for event in stream]


@pytest.mark.parametrize("name", fixture_names())
def test_fixtures(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    path = fixture_file(name, tmp_path)
    with vmstream.open(path) as stream:
        assert isinstance(stream, vmstream.Stream)
        if name.startswith(("own-old", "old-5.2-pc-1.0", "old-5.2-pc-i440fx")):
            assert stream.machine is None
        else:
            assert stream.machine is not None
        sizes = {b.idstr.decode(): b.used_length for b in stream.blocks}
        if name == "interrupted-11.1-pc":
            assert sizes["mem"] == manifest["blocks"]["mem"]["size"]
        else:
            assert sizes == {i: b["size"] for i, b in manifest["blocks"].items()}
            assert stream.page_size in (4096, None)
        events = [owned(event) for event in stream]
        assert list(stream) == []  # read once
    assert_tiles(events, path.stat().st_size)


@given(streams())
@settings(max_examples=examples(40))
def test_built_streams(tmp_path_factory: pytest.TempPathFactory, w: StreamWriter) -> None:
    """The head that was read ahead is handed out again, whole and in order."""
    path = tmp_path_factory.mktemp("stream") / "s"
    path.write_bytes(bytes(w))
    with vmstream.open(path, page_size=w.page_size) as stream:
        assert stream.page_size == w.page_size
        assert {b.idstr.decode(): b.used_length for b in stream.blocks} == {
            name: len(content) for name, content in w.blocks.items()
        }
        machine = next((i.attrs["machine"] for i in w.items_of("CONFIGURATION")), None)
        assert stream.machine == machine
        events = [owned(event) for event in stream]
    assert_tiles(events, len(w.data))
    again = all_events(path, page_size=w.page_size)
    assert facts(again) == facts(events)
    pages = sum(len(e) for e in events if isinstance(e, vmstream.PageBatch))
    assert pages == sum(sum(c.values()) for c in w.counts.values())
    path.unlink()


def test_what_is_known_before_iterating(tmp_path: Path) -> None:
    w = simple_stream({"größe": {0: b"\1" * 8192}}, page_size=8192)
    path = tmp_path / "s"
    path.write_bytes(bytes(w))
    with vmstream.open(path) as stream:
        assert stream.machine == "pc-i440fx-7.2"
        assert stream.page_size == 8192
        assert stream.blocks == (vmstream.RAMBlock("größe".encode(), 8192),)
    # Nothing states the size here: it is found from the first pages.
    w = simple_stream({"mem": {n * PAGE: b"\1" * PAGE for n in range(4)}})
    path.write_bytes(bytes(w))
    with vmstream.open(os.fspath(path)) as stream:
        assert stream.page_size == PAGE


def test_pages_are_borrowed_while_iterating(tmp_path: Path) -> None:
    """RAM rebuilt with the public interface alone."""
    name = "plain-10.0-q35"
    ram: dict[int, bytearray] = {}
    with vmstream.open(fixture_file(name, tmp_path)) as stream:
        ram = {i: bytearray(b.used_length) for i, b in enumerate(stream.blocks)}
        names = [b.idstr.decode() for b in stream.blocks]
        for event in stream:
            if not isinstance(event, vmstream.PageBatch):
                continue
            for run in event.runs():
                for i in range(run.pages):
                    at = run.payload + i * run.stride
                    body: bytes | memoryview = event.window[at : at + event.page_size]
                    if run.kind.name == "ZERO":
                        body = bytes([event.window[at]]) * event.page_size
                    to = run.block_offset + i * event.page_size
                    ram[run.block][to : to + event.page_size] = body
    manifest = load_manifest(name)
    for idstr in known_blocks(manifest):
        check_block_bytes(manifest, idstr, ram[names.index(idstr)])


def test_detached_batches_can_be_kept(tmp_path: Path) -> None:
    w = simple_stream({"mem": {n * PAGE: bytes([n + 1]) * PAGE for n in range(8)}})
    path = tmp_path / "s"
    path.write_bytes(bytes(w))
    with vmstream.open(path) as stream:
        kept = [e.detach() for e in stream if isinstance(e, vmstream.PageBatch)]
    bodies = [bytes(batch.payload(i)) for batch in kept for i in range(len(batch))]
    assert bodies == [bytes([n + 1]) * PAGE for n in range(8)]
    assert all(isinstance(batch.block_offset, np.ndarray) for batch in kept)


# -- faults ---------------------------------------------------------------------------------------


def test_a_fault_is_an_anomaly(tmp_path: Path) -> None:
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    events = all_events(path)
    (anomaly,) = [e for e in events if isinstance(e, vmstream.Anomaly)]
    assert anomaly.severity == "error"
    assert isinstance(anomaly.error, vmstream.TruncatedError)
    assert any(isinstance(e, vmstream.Gap) for e in events)


def test_strict_raises_it(tmp_path: Path) -> None:
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    with vmstream.open(path, strict=True) as stream:
        assert stream.machine == "pc-i440fx-11.1"
        with pytest.raises(vmstream.TruncatedError) as caught:
            for _ in stream:
                pass
    assert 0 < caught.value.offset <= path.stat().st_size


def test_strict_in_the_head_raises_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for data in (b"", b"no stream", open_fixture("plain-7.2-pc")[:30]):
        path.write_bytes(data)
        before = open_files()
        with pytest.raises(vmstream.StreamError):
            vmstream.open(path, strict=True)
        assert open_files() == before  # closed again
        events = all_events(path)
        assert_tiles(events, len(data))
        assert any(isinstance(e, vmstream.Anomaly) for e in events)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        vmstream.open(tmp_path / "nowhere")
    assert caught.value.filename == str(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        vmstream.open(tmp_path)


def test_it_closes_its_file(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    before = open_files()
    for _ in range(3):
        with vmstream.open(path) as stream, contextlib.suppress(RuntimeError):
            next(iter(stream))
            raise RuntimeError
        stream = vmstream.open(path)
        stream.close()
    del stream
    assert open_files() == before


def test_standard_input() -> None:
    code = (
        "import vmstream\n"
        "with vmstream.open('-') as s:\n"
        "    print(s.machine, s.page_size, sum(e.end - e.offset for e in s))\n"
    )
    data = open_fixture("plain-7.2-pc")
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, env=environment(), check=True
    )
    assert done.stdout.decode() == f"pc-i440fx-7.2 4096 {len(data)}\n"


def test_a_stream_without_ram(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.eof()
    path = tmp_path / "s"
    path.write_bytes(bytes(w))
    with vmstream.open(path) as stream:
        assert (stream.machine, stream.page_size, stream.blocks) == (None, None, ())
        assert [type(e) for e in stream if not isinstance(e, vmstream.Anomaly)] == [
            vmstream.FileHeader,
            vmstream.EndOfStream,
        ]


CHUNK = sw.block_chunk("vda", 0, b"\x11" * (1 << 20))[1] + sw.block_end()[1]


@pytest.mark.parametrize(
    ("start", "part"),
    [((b"x", "other"), b"\x11" * (1 << 20)), ((sw.block_end()[1], "block"), CHUNK)],
    ids=["not decoded", "decoded"],
)
def test_open_does_not_read_to_the_first_page_whatever_it_takes(
    start: tuple[bytes, str], part: bytes, tmp_path: Path
) -> None:
    """Another section's parts can come before RAM's, and hold a disk: they are not kept."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("mem", PAGE)])
    w.live_section("START", 5, *start)
    for _ in range(64):
        w.live_section("PART", 5, part)
    with w.ram_part():
        w.page("mem", 0, b"\1" * PAGE)
    w.eof()
    path = tmp_path / "s"
    path.write_bytes(bytes(w))
    code = (
        "import sys, tracemalloc, vmstream\n"
        "import vmstream.ops.stream\n"
        "tracemalloc.start()\n"
        "with vmstream.open(sys.argv[1]) as s:\n"
        "    print(s.blocks[0].idstr, tracemalloc.get_traced_memory()[1] < 32 << 20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, env=environment(), check=True
    )
    assert done.stdout.decode() == "b'mem' True\n"


# -- documentation --------------------------------------------------------------------------------


def test_the_example_in_the_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture_file("plain-7.2-pc", tmp_path).rename(tmp_path / "dump.bin")
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestParser().get_examples(vmstream.open.__doc__ or "")
    names = {"vmstream": vmstream}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example.source, names)  # noqa: S102
    assert out.getvalue().startswith("pc-i440fx-7.2 4096 [b'pc.ram', ")
    sizes = (block["size"] for block in load_manifest("plain-7.2-pc")["blocks"].values())
    assert names["pages"] == sum(sizes) // PAGE  # type: ignore[comparison-overlap]


def test_the_public_names() -> None:
    """All that is promised is there, and documented."""
    for name in vmstream.__all__:
        found = getattr(vmstream, name)
        if name != "__version__":
            assert found.__doc__, name
            assert isinstance(found, type | types.FunctionType | types.UnionType)
    assert {"open", "Stream", "PageBatch", "Anomaly", "StreamError"} <= set(vmstream.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vmstream.nonsense  # type: ignore[attr-defined]
    scope: dict[str, object] = {}
    exec("from vmstream import *", scope)  # noqa: S102
    assert set(vmstream.__all__) <= {*scope, "__version__"}


def test_errors_have_one_root() -> None:
    names = [n for n in vmstream.__all__ if n.endswith("Error")]
    assert len(names) >= 8
    for name in names:
        assert issubclass(getattr(vmstream, name), vmstream.VmstreamError)


def test_importing_it_costs_little() -> None:
    code = "import sys, vmstream; print([m for m in ('numpy', 'construct') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(), check=True
    )
    assert done.stdout.decode() == "[]\n"
