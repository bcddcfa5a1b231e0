"""The seam: layers by content, a bare stream untouched, bounds, and what is closed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import vmstream as library
from tests.commandline import vmstream
from tests.containers import MISSING, PACK, save_image
from tests.decoding import BytesSource
from tests.ops.test_extract import pipe_of
from tests.transport.test_source import standard_input
from tests.truth import (
    check_block,
    load_manifest,
    open_fixture,
    qcow2_file,
    qcow2_names,
    snapshot_manifests,
)
from vmstream.container import codecs, open as seam
from vmstream.container.open import MAX_LAYERS, OpenStream, kind_of
from vmstream.errors import LimitError, OutputError, TruncatedError, UnsupportedError
from vmstream.transport.source import DigestSource, FileSource, PipeSource, Source

STREAM = b"QEVM\0\0\0\3" + bytes(range(256)) * 3


def whole(source: Source) -> bytes:
    out = b""
    while True:
        view, base, at_end = source.window(len(out), 1)
        out += view[len(out) - base :]
        if at_end:
            return out


def layers(path: Path, data: bytes) -> tuple[list[str], bytes]:
    path.write_bytes(data)
    with OpenStream(path) as opened:
        return [la.kind for la in opened.container.layers], whole(opened.source)


@pytest.mark.parametrize("kind", list(PACK))
def test_kinds_by_content(kind: str, tmp_path: Path) -> None:
    """The name says nothing."""
    data = PACK[kind](STREAM)
    assert kind_of(memoryview(data)) == kind
    for name in ("x", "x.gz", "x.qevm"):
        assert layers(tmp_path / name, data) == ([kind], STREAM)


@pytest.mark.parametrize("kind", list(PACK))
@pytest.mark.parametrize("order", ["<", ">"])
def test_libvirt(kind: str, order: str, tmp_path: Path) -> None:
    number = {"gzip": 1, "bzip2": 2, "xz": 3, "lzop": 4, "zstd": 5}.get(kind, 0)
    data = save_image(PACK[kind](STREAM), number=number, order=order)
    assert layers(tmp_path / "x", data) == (["libvirt", kind], STREAM)
    assert layers(tmp_path / "x", PACK[kind](data)) == ([kind, "libvirt", kind], STREAM)


def test_a_bare_stream_has_its_own_source(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (STREAM, b"", b"Q", b"something else", b"\x1f\x8b", b"BZ", b"Libvirt"):
        path.write_bytes(data)
        with OpenStream(path, digest=True) as opened:
            assert type(opened.source) is FileSource
            assert opened.container.layers == []
            assert opened.container.digest is None
            assert whole(opened.source) == data


def test_standard_input() -> None:
    """From a pipe; of a bare stream with the source of a pipe itself."""
    image = save_image(PACK["zstd"](STREAM), number=5)
    for data, kinds in ((STREAM, []), (PACK["xz"](STREAM), ["xz"]), (image, ["libvirt", "zstd"])):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        with standard_input(reader), OpenStream("-") as opened:
            assert [la.kind for la in opened.container.layers] == kinds
            assert (type(opened.source) is PipeSource) == (kinds == [])
            assert opened.source.name == "standard input"
            assert whole(opened.source) == STREAM


@pytest.mark.parametrize("kind", [*PACK, "libvirt"])
def test_an_empty_inside(kind: str, tmp_path: Path) -> None:
    data = save_image(b"") if kind == "libvirt" else PACK[kind](b"")
    assert layers(tmp_path / "x", data) == ([kind], b"")


def test_nesting_is_bounded(tmp_path: Path) -> None:
    data = STREAM
    for _ in range(MAX_LAYERS):
        data = PACK["gzip"](data)
    assert layers(tmp_path / "x", data) == (["gzip"] * MAX_LAYERS, STREAM)
    data = PACK["xz"](data)
    with pytest.raises(LimitError, match="over 4 containers") as caught:
        layers(tmp_path / "x", data)
    assert caught.value.found == "xz, gzip, gzip, gzip, gzip"
    assert caught.value.advice == "--max-layers 5 goes on"
    with OpenStream(tmp_path / "x", max_layers=5) as opened:
        assert whole(opened.source) == STREAM
    with pytest.raises(LimitError, match="over 1 containers"):
        OpenStream(tmp_path / "x", max_layers=1)


def test_nothing_readable_raises(tmp_path: Path) -> None:
    for data in (PACK["xz"](STREAM)[:20], PACK["zstd"](STREAM)[:10], save_image(b"")[:99]):
        with pytest.raises(TruncatedError):
            layers(tmp_path / "x", data)


def test_every_cut_of_two_layers(tmp_path: Path) -> None:
    packed = PACK["gzip"](STREAM)
    data = save_image(packed, number=1, padding=3)
    for stop in range(8, len(data)):
        (tmp_path / "x").write_bytes(data[:stop])
        with (
            pytest.raises(TruncatedError) as caught,
            OpenStream(tmp_path / "x") as opened,
        ):
            whole(opened.source)
            # Nothing at all behind the XML: for the decoder to refuse.
            assert stop == len(data) - len(packed)
            raise TruncatedError(stop, "empty")
        assert caught.value.offset == stop


def test_digest_is_of_the_input(tmp_path: Path) -> None:
    for kind, pack in PACK.items():
        data = pack(STREAM) + bytes(1000)
        (tmp_path / "x").write_bytes(data)
        with OpenStream(tmp_path / "x", digest=True) as opened:
            assert whole(opened.source) == STREAM
            assert isinstance(opened.container.digest, DigestSource)
            assert opened.container.digest.hexdigest() == hashlib.sha256(data).hexdigest(), kind
            assert opened.container.layers[0].source.size == len(data)
            status = (tmp_path / "x").stat()
            assert opened.source.identity == (status.st_dev, status.st_ino)


def test_image_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    # What is in it is left alone: here it is damaged.
    path.write_bytes(PACK["xz"](save_image(PACK["gzip"](STREAM)[:5])))
    with OpenStream(path, image_only=True) as opened:
        assert [la.kind for la in opened.container.layers] == ["xz", "libvirt"]


def test_snapshots(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(STREAM)
    with pytest.raises(OutputError, match="snapshots"):
        OpenStream(tmp_path / "x", snapshot="first")


def test_closed_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(save_image(b"")[:99])
    closed = []
    close = FileSource.close
    monkeypatch.setattr(FileSource, "close", lambda self: (closed.append(1), close(self)))
    with pytest.raises(TruncatedError):
        OpenStream(tmp_path / "x")
    assert closed == [1]
    (tmp_path / "x").write_bytes(PACK["gzip"](save_image(PACK["zstd"](STREAM))))
    with OpenStream(tmp_path / "x", digest=True):
        pass
    assert closed == [1, 1]


def test_a_missing_package_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(module: str, kind: str, extra: str) -> None:
        raise UnsupportedError(0, f"{kind} data takes a package", advice=f"vmstream[{extra}]")

    monkeypatch.setattr(codecs, "optional_package", none)
    (tmp_path / "x").write_bytes(b"\x89LZO\0\r\n\x1a\n" + bytes(100))
    with pytest.raises(UnsupportedError, match=r"vmstream\[lzo\]"):
        OpenStream(tmp_path / "x")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OpenStream(tmp_path / "none")


def test_kinds_are_told_apart() -> None:
    assert kind_of(memoryview(b"QEVM\0\0\0\3")) is None
    assert set(seam._OPENERS) == {"libvirt", "qcow2", *PACK, *MISSING}


def test_windows_of_a_save_image_are_those_of_the_file() -> None:
    """Not copied: views of one buffer."""
    data = save_image(open_fixture("plain-7.2-pc"))
    container = seam.Container()
    source = seam.open_save_image(BytesSource(data), container)
    view, base, _ = source.window(0, 1)
    assert view.obj is data
    assert base <= 0
    with pipe_of(data) as pipe:
        source = seam.open_save_image(pipe, container)
        assert whole(source) == open_fixture("plain-7.2-pc")


# -- qcow2 ----------------------------------------------------------------------------------------


def test_a_snapshot_of_an_image(tmp_path: Path) -> None:
    """By every command, by name or id; without one the error lists what there is."""
    name = qcow2_names()[0]
    path = qcow2_file(name, tmp_path)
    for wanted, manifest in snapshot_manifests(name).items():
        run = vmstream("inspect", "--json", path, "--snapshot", wanted)
        assert run.status == 0, run.err
        (layer,) = run.json()["layers"]
        assert (layer["kind"], layer["snapshot"]["name"]) == ("qcow2", wanted)
        out = tmp_path / wanted
        run = vmstream("extract-ram", path, "--snapshot", wanted, "--block", "mem", "-o", out)
        assert run.status == 0, run.err
        check_block(manifest, "mem", out)
    lines = [vmstream("records", path, "--snapshot", w).out for w in ("first", "1")]
    assert lines[0] == lines[1] != ""
    with library.open(path, snapshot="second") as stream:
        assert [la.kind for la in stream.layers] == ["qcow2"]
    run = vmstream("inspect", path)
    assert run.status == 2
    assert "'first' (id '1'), 'second' (id '2')" in run.err
    assert "--snapshot" in run.err
    run = vmstream("extract-ram", path, "--snapshot", "third", "-o", tmp_path / "x")
    assert run.status == 2
    assert "no snapshot 'third'" in run.err


def test_an_image_in_a_pipe(tmp_path: Path) -> None:
    path = qcow2_file(qcow2_names()[0], tmp_path)
    run = vmstream("inspect", "-", "--snapshot", "first", stdin=path.read_bytes())
    assert run.status == 4
    assert "save it to a file" in run.err


def test_no_snapshots_here(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(open_fixture("plain-7.2-pc"))
    run = vmstream("inspect", tmp_path / "s", "--snapshot", "first")
    assert run.status == 2
    assert "nothing here has snapshots" in run.err


# -- pipes that are copied first ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mapped-10.0-pc", "qcow2"])
def test_spool(name: str, tmp_path: Path) -> None:
    """What takes seeking comes from a pipe, too; nothing is left behind."""
    spool = tmp_path / "spool"
    spool.mkdir()
    if name == "qcow2":
        data, more = qcow2_file(qcow2_names()[0], tmp_path).read_bytes(), ["--snapshot", "first"]
        truth = snapshot_manifests(qcow2_names()[0])["first"]
    else:
        data, more, truth = open_fixture(name), [], load_manifest(name)
    out = tmp_path / "out"
    run = vmstream("extract-ram", "-", "--block", "mem", "-o", out, *more, stdin=data)
    assert run.status == 4
    assert "--spool DIR" in run.err
    more += ["--spool", str(spool)]
    run = vmstream("extract-ram", "-", "--block", "mem", "-o", out, *more, stdin=data)
    assert run.status == 0, run.err
    check_block(truth, "mem", out)
    assert list(spool.iterdir()) == []
    assert vmstream("inspect", "-", *more, stdin=data).status == 0
    assert vmstream("inspect", "-", "--spool", str(tmp_path / "none"), stdin=data).status == 2


@pytest.mark.parametrize("name", ["mapped-10.0-pc", "qcow2", "plain-7.2-pc"])
def test_the_manifest_has_the_hash_of_the_file(name: str, tmp_path: Path) -> None:
    """However it was read."""
    if name == "qcow2":
        path, more = qcow2_file(qcow2_names()[0], tmp_path), ["--snapshot", "first"]
    else:
        path, more = tmp_path / "s", []
        path.write_bytes(open_fixture(name))
    account = tmp_path / "account"
    run = vmstream("extract-ram", path, "-o", tmp_path / "x", "--manifest", account, *more)
    assert run.status == 0, run.err
    told = json.loads(account.read_text())
    assert told["input_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["input_size"] == path.stat().st_size
    assert told["outputs"][0]["sha256"] == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


# -- a stream behind other bytes (file:PATH,offset=N) ---------------------------------------------


@pytest.mark.parametrize("front", [b"\0" * 4096, b"some header of 33 bytes, or longer"])
def test_an_offset(front: bytes, tmp_path: Path) -> None:
    stream = STREAM[:8] + b"\7" + STREAM[9:]
    assert layers(tmp_path / "x", front + stream) == (["offset"], stream)
    with OpenStream(tmp_path / "x") as opened:
        (finding,) = opened.container.take_findings()
    assert (finding.severity, finding.code, finding.offset) == ("info", "offset", len(front))
    with pipe_of(front + stream) as source:
        assert whole(source) == front + stream


def test_no_offset(tmp_path: Path) -> None:
    """Too far in, of another version, in front of nothing, or behind what is no header of ours."""
    stream = STREAM[:8] + b"\7" + STREAM[9:]
    for data in (
        bytes(1 << 20) + stream,
        bytes(100) + b"QEVM\0\0\0\2\7",
        bytes(100) + stream[:8] + b"\x09",
        b"\x11\x22\x33\x44" + bytes(60) + stream,
        STREAM[:8] + b"\x09" + stream,
    ):
        assert layers(tmp_path / "x", data) == ([], data)


@pytest.mark.parametrize("name", ["plain-7.2-pc", "old-5.2-pc-i440fx-2.3"])
def test_real_streams_at_an_offset(name: str, tmp_path: Path) -> None:
    path, block = tmp_path / "x", tmp_path / "block"
    path.write_bytes(b"\xa5" * 12345 + open_fixture(name))
    run = vmstream("extract-ram", path, "--block", "pc.ram", "-o", block)
    assert run.status == 0, run.err
    check_block(load_manifest(name), "pc.ram", block)
    assert "begins here" in run.err
    piped = vmstream("inspect", "--json", "-", stdin=path.read_bytes()).json()
    assert piped["complete"]
    assert [la["kind"] for la in piped["layers"]] == ["offset"]
