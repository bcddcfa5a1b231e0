"""Conversion from and to every container: the same stream comes out, and memory is the truth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import vmstream as library
from tests.containers import PACK, XML, image_file, image_names, save_image
from tests.mappedreader import MappedFile
from tests.truth import (
    check_block_bytes,
    fixture_file,
    known_blocks,
    load_manifest,
    open_fixture,
    qcow2_file,
    snapshot_manifests,
)
from vmstream.container.open import OpenStream
from vmstream.errors import EncodeError, OutputError, StreamError
from vmstream.ops.convert import TARGETS, ConvertOptions, convert
from vmstream.report.models.rewrite import ConvertReport

SMALL = "live-11.1-pc"


def converted(
    path: Path | str, out: Path, *, snapshot: str | None = None, **options: Any
) -> ConvertReport:
    with OpenStream(str(path), snapshot=snapshot) as opened:
        wanted = ConvertOptions(output=out, **options)
        report, code = convert(opened.source, wanted, None, opened.container)
    assert code == 0
    assert report.output_size == out.stat().st_size
    return report


def check_memory(path: Path, manifest: dict[str, Any], spool: Path) -> None:
    with library.open(path) as stream, stream.memory(spool=spool) as memory:
        for idstr in known_blocks(manifest):
            block = memory.block_index(idstr)
            data = memory.read_block(idstr, 0, memory.blocks[block].used_length)
            check_block_bytes(manifest, idstr, data)


@pytest.mark.parametrize("to", TARGETS)
def test_every_target(to: str, tmp_path: Path) -> None:
    path, xml = fixture_file(SMALL, tmp_path), tmp_path / "guest.xml"
    xml.write_bytes(XML)
    libvirt = to.startswith("libvirt")
    report = converted(path, tmp_path / "out", to=to, xml=xml if libvirt else None)
    assert report.to == ("libvirt:raw" if to == "libvirt" else to)
    check_memory(tmp_path / "out", load_manifest(SMALL), tmp_path)
    assert report.capabilities == (["mapped-ram"] if to in ("mapped-ram", "libvirt:sparse") else [])
    data = (tmp_path / "out").read_bytes()
    if not libvirt:
        assert (report.stream_offset, report.stream_size) == (0, len(data))
    if report.capabilities:
        # Offsets are those of the file, a save image too.
        file = MappedFile(data, origin=report.stream_offset)
        check_block_bytes(load_manifest(SMALL), "mem", file["mem"].content())
    with OpenStream(tmp_path / "out") as opened:
        images = [la.image for la in opened.container.layers if la.image is not None]
        assert [i.xml for i in images] == ([XML] if libvirt else [])
        assert all(i.header.was_running for i in images), "as globalstate says"
    # And back: it is the same stream, whatever it was in.
    converted(tmp_path / "out", tmp_path / "back")
    converted(path, tmp_path / "plain")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("name", image_names())
def test_save_images(name: str, tmp_path: Path) -> None:
    """XML, cookie and whether the guest ran stay; what is inside becomes what was asked for."""
    path = image_file(name, tmp_path)
    converted(path, tmp_path / "out", to="libvirt:gzip")
    check_memory(tmp_path / "out", load_manifest(name), tmp_path)
    with OpenStream(path) as first, OpenStream(tmp_path / "out") as second:
        old, new = first.container.layers[0].image, second.container.layers[0].image
        assert old is not None
        assert new is not None
        assert (old.xml, old.cookie) == (new.xml, new.cookie)
        assert old.header.was_running == new.header.was_running
        assert new.format == "gzip"
    # Other XML is put in its place.
    (tmp_path / "xml").write_bytes(XML)
    converted(path, tmp_path / "other", to="libvirt", xml=tmp_path / "xml")
    with OpenStream(tmp_path / "other") as third:
        image = third.container.layers[0].image
        assert image is not None
        assert image.xml == XML


@pytest.mark.parametrize("name", ["savevm-10.0-q35", "savevm-11.1-pc"])
def test_snapshots(name: str, tmp_path: Path) -> None:
    path = qcow2_file(name, tmp_path)
    for number, (snapshot, manifest) in enumerate(snapshot_manifests(name).items()):
        converted(path, tmp_path / str(number), snapshot=snapshot)
        check_memory(tmp_path / str(number), manifest, tmp_path)


@pytest.mark.parametrize("kind", PACK)
def test_compressed_input(kind: str, tmp_path: Path) -> None:
    """By way of a copy beside the output, of which nothing is left."""
    (tmp_path / "in").write_bytes(PACK[kind](open_fixture(SMALL)))
    converted(tmp_path / "in", tmp_path / "out")
    check_memory(tmp_path / "out", load_manifest(SMALL), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(("suffix", "codec"), [(".gz", "gzip"), (".zst", "zstd"), ("", None)])
def test_the_suffix_tells(suffix: str, codec: str | None, tmp_path: Path) -> None:
    path = fixture_file(SMALL, tmp_path)
    report = converted(path, tmp_path / f"out{suffix}")
    assert report.compression == codec
    check_memory(tmp_path / f"out{suffix}", load_manifest(SMALL), tmp_path)
    size = converted(path, tmp_path / "plain").output_size
    assert report.stream_size == size
    assert (report.output_size < size) == (codec is not None)


def test_a_paused_guest_is_not_said_to_run(tmp_path: Path) -> None:
    (tmp_path / "xml").write_bytes(XML)
    path = fixture_file("plain-7.2-pc", tmp_path)
    state = load_manifest("plain-7.2-pc")
    converted(path, tmp_path / "out", to="libvirt", xml=tmp_path / "xml")
    with library.open(path) as stream:
        (stored,) = (n.raw for n in stream.devices().find("globalstate/runstate"))
    with OpenStream(tmp_path / "out") as opened:
        image = opened.container.layers[0].image
        assert image is not None
        assert image.header.was_running == (stored.rstrip(b"\0") == b"running"), state


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"to": "libvirt:xz"}, EncodeError, "--xml FILE"),
        ({"to": "libvirt", "compress": "gzip"}, OutputError, "libvirt:zstd"),
        ({"to": "mapped-ram", "compress": "zstd"}, OutputError, "not for mapped-ram"),
        ({"to": "mapped-ram", "output": Path("-")}, OutputError, "not to a pipe"),
        ({"to": "stream", "xml": Path(__file__)}, OutputError, "--xml is for a save image"),
        ({"to": "libvirt", "xml": Path(__file__)}, EncodeError, "domain XML"),
        ({"output": Path(os.devnull)}, OutputError, "not a regular file"),
        ({"schema": "{own}"}, EncodeError, "has a vmdescription"),
    ],
)
def test_refusals(
    options: dict[str, Any], error: type[Exception], why: str, tmp_path: Path
) -> None:
    path = fixture_file(SMALL, tmp_path)
    wanted = {"output": tmp_path / "out", **options}
    if "schema" in wanted:
        wanted["schema"] = str(path)
    with OpenStream(path) as opened, pytest.raises(error, match=why):
        convert(opened.source, ConvertOptions(**wanted), None, opened.container)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_configuration_no_mapped_ram(tmp_path: Path) -> None:
    path = fixture_file("own-old-pc-2.3", tmp_path)
    with OpenStream(path) as opened, pytest.raises(EncodeError, match="configuration section"):
        convert(opened.source, ConvertOptions(tmp_path / "out", "mapped-ram"), None, None)
    # As a stream it is one of old again.
    converted(path, tmp_path / "out")
    check_memory(tmp_path / "out", load_manifest("own-old-pc-2.3"), tmp_path)


@pytest.mark.parametrize("cut", [1, 100_000])
@pytest.mark.parametrize("around", ["raw", "gzip", "save image"])
def test_a_cut_input_leaves_nothing(cut: int, around: str, tmp_path: Path) -> None:
    data = open_fixture(SMALL)
    if around == "gzip":
        data = PACK["gzip"](data)
    elif around == "save image":
        data = save_image(data)
    (tmp_path / "in").write_bytes(data[: -min(cut, len(data) - 100)])
    with OpenStream(tmp_path / "in") as opened, pytest.raises(StreamError) as raised:
        convert(opened.source, ConvertOptions(tmp_path / "out"), None, opened.container)
    assert raised.value.offset is not None
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_what_is_no_stream_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "in.gz").write_bytes(PACK["gzip"](b"text\n" * 1000))
    with OpenStream(tmp_path / "in.gz") as opened, pytest.raises(StreamError, match="not a"):
        convert(opened.source, ConvertOptions(tmp_path / "out"), None, opened.container)


def test_images_differ_by_head_alone(tmp_path: Path) -> None:
    (tmp_path / "xml").write_bytes(XML)
    path = fixture_file(SMALL, tmp_path)
    report = converted(path, tmp_path / "out", to="libvirt:raw", xml=tmp_path / "xml")
    converted(path, tmp_path / "plain")
    data = (tmp_path / "out").read_bytes()
    assert data[report.stream_offset :] == (tmp_path / "plain").read_bytes()
