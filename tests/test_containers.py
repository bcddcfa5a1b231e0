"""Real save images and compressed streams through every command: exact, or an error with why."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

import vmstream as library
from tests.commandline import no_leftovers, vmstream
from tests.containers import MISSING, PACK, image_file, image_names, open_image, save_image
from tests.report.test_models import validator
from tests.streamwriter import simple_stream
from tests.truth import check_block, has_truth, load_manifest, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import EXIT_OK, StreamError, TruncatedError
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.inspect import inspect
from vmstream.ops.records import Records
from vmstream.report.models.extract import ExtractReport
from vmstream.report.models.inspect import InspectReport

READ = [n for n in image_names() if "sparse" not in n]
KINDS = list(PACK)


def account(path: Path, **options: Any) -> tuple[InspectReport, int]:
    with OpenStream(path) as opened:
        return inspect(opened.source, container=opened.container, **options)


def rebuild(path: Path, **options: Any) -> tuple[ExtractReport, int]:
    with OpenStream(path, digest="manifest" in options) as opened:
        return extract(opened.source, ExtractOptions(**options), container=opened.container)


def test_images_of_every_format() -> None:
    formats = {load_manifest(n)["libvirt"]["save_image_format"] for n in image_names()}
    assert formats | set(MISSING) >= {"raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"}
    assert {load_manifest(n)["libvirt"]["version"].split(".")[0] for n in READ} == {"9", "11", "12"}


# -- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("pipe", [False, True])
def test_blocks_are_those_of_the_guest(name: str, pipe: bool, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    data = open_image(name)
    assert hashlib.sha256(data).hexdigest() == manifest["files"][0]["sha256"]
    if pipe:
        run = vmstream("extract-ram", "-", "--all-blocks", "out", stdin=data, cwd=tmp_path)
    else:
        path = image_file(name, tmp_path)
        run = vmstream("extract-ram", path, "--all-blocks", "out", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    checked = 0
    for block in told["blocks"]:
        if has_truth(manifest, block["idstr"]):
            check_block(manifest, block["idstr"], tmp_path / "out" / block["file"])
            checked += 1
    assert checked >= 2
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("name", READ)
def test_inspect_of_an_image(name: str, tmp_path: Path) -> None:
    libvirt = load_manifest(name)["libvirt"]
    form = libvirt["save_image_format"]
    path = image_file(name, tmp_path)
    report, code = account(path)
    assert (code, report.complete, report.container) == (0, True, "libvirt")
    assert [la.kind for la in report.layers] == ["libvirt"] + [form] * (form != "raw")
    image = report.layers[0].libvirt
    assert image is not None
    assert (image.name, image.format, image.finished) == ("guest", form, True)
    assert image.was_running == ("--running" in libvirt["save_options"])
    assert report.layers[0].size == path.stat().st_size
    assert report.size == report.end_offset
    if form != "raw":
        assert report.layers[1].size == path.stat().st_size - image.stream_offset


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_through_each_codec(kind: str, tmp_path: Path) -> None:
    stream = open_fixture("plain-10.0-q35")
    (tmp_path / "plain").write_bytes(stream)
    (tmp_path / "packed").write_bytes(PACK[kind](stream))
    plain, packed = account(tmp_path / "plain")[0], account(tmp_path / "packed")[0]
    assert (plain.container, packed.container) == ("raw", kind)
    assert packed.layers[0].size == (tmp_path / "packed").stat().st_size
    for field in ("machine", "size", "end_offset", "ram_blocks", "passes", "sections", "anomalies"):
        assert getattr(packed, field) == getattr(plain, field)
    lines = [vmstream("records", "--json", tmp_path / n).out for n in ("plain", "packed")]
    assert lines[0] == lines[1]
    report, code = rebuild(
        tmp_path / "packed", output=tmp_path / "image", manifest=tmp_path / "account"
    )
    assert code == 0
    check_block(load_manifest("plain-10.0-q35"), "mem", tmp_path / "image")
    assert report.input_sha256 == hashlib.sha256((tmp_path / "packed").read_bytes()).hexdigest()
    assert report.input_size == (tmp_path / "packed").stat().st_size
    assert report.layers == packed.layers


def test_the_library_opens_them(tmp_path: Path) -> None:
    path = image_file("libvirt-9.0-xz", tmp_path)
    with library.open(path) as stream:
        assert [la.kind for la in stream.layers] == ["libvirt", "xz"]
        assert stream.machine == "pc-i440fx-7.2"
        end = 0
        for event in stream:
            if not isinstance(event, library.Anomaly):
                assert event.offset == end
                end = event.end
    assert end == account(path)[0].size


def test_quick(tmp_path: Path) -> None:
    """Of an image that is not compressed; else there is no seeking."""
    image = image_file("libvirt-11.3-raw", tmp_path)
    report, code = account(image, quick=True)
    assert (code, report.quick, report.complete) == (0, True, True)
    assert report.sections[1:] == account(image)[0].sections[1:]
    run = vmstream("inspect", "--quick", image_file("libvirt-9.0-xz", tmp_path))
    assert (run.status, run.out) == (4, "")
    assert "no compressed data; leave out --quick" in run.err


def test_the_input_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACK["gzip"](open_fixture("plain-7.2-pc")))
    before = path.read_bytes()
    run = vmstream("extract-ram", path, "-o", path, "--force", cwd=tmp_path)
    assert run.status == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", READ)
def test_json(name: str, tmp_path: Path) -> None:
    """As the schemas promise, and the layers stand in both documents."""
    path = image_file(name, tmp_path)
    run = vmstream("inspect", "--json", path)
    validator("inspect").validate(run.json())
    assert run.json()["container"] == "libvirt"
    done = vmstream("extract-ram", "--json", path, "--block", "pc.ram", "-o", tmp_path / "out")
    validator("extract-ram").validate(done.json())
    assert done.json()["layers"] == run.json()["layers"]
    assert run.json()["layers"][0]["libvirt"]["name"] == "guest"


def test_a_hostile_name_does_no_harm(tmp_path: Path) -> None:
    xml = "<domain><name>\x1b[2J\u202e[red]x[/red]\n\x9b</name></domain>".encode()
    (tmp_path / "x").write_bytes(save_image(bytes(simple_stream().data), xml=xml))
    run = vmstream("inspect", tmp_path / "x")
    assert run.status == 0
    (line,) = [line for line in run.out.splitlines() if line.startswith("domain")]
    assert line == "domain       \\x1b[2J\\u202e[red]x[/red]\\n\\x9b, was running"


# -- said, and read all the same ------------------------------------------------------------------


def test_an_unfinished_save(tmp_path: Path) -> None:
    data = open_image("libvirt-11.3-raw").replace(b"LibvirtQemudSave", b"LibvirtQemudPart", 1)
    (tmp_path / "x").write_bytes(data)
    for quick in (False, True):
        report, code = account(tmp_path / "x", quick=quick)
        assert code == 1
        assert [a.code for a in report.anomalies] == ["unfinished-save"]
    report, code = rebuild(tmp_path / "x", output=tmp_path / "image")
    assert code == 1
    check_block(load_manifest("libvirt-11.3-raw"), "pc.ram", tmp_path / "image")
    run = vmstream("inspect", tmp_path / "x")
    assert "libvirt save image v2, not finished" in run.out
    run = vmstream("records", "--json", "--kind", "anomaly", tmp_path / "x")
    assert (run.status, run.lines()[0]["code"]) == (1, "unfinished-save")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_format_that_is_not_there(order: str, tmp_path: Path) -> None:
    stream = simple_stream().data
    (tmp_path / "x").write_bytes(save_image(PACK["xz"](bytes(stream)), number=1, order=order))
    report, code = account(tmp_path / "x")
    assert (code, report.complete) == (1, True)
    assert [a.code for a in report.anomalies] == ["container"]
    assert "the format is gzip, but the data is xz" in report.anomalies[0].message


def test_padding_and_what_is_behind(tmp_path: Path) -> None:
    data = open_image("libvirt-9.0-xz")
    (tmp_path / "x").write_bytes(data + bytes(100_000))
    assert account(tmp_path / "x")[1] == 0
    (tmp_path / "x").write_bytes(data + bytes(100) + b"stale" * 1000)
    report, code = account(tmp_path / "x")
    assert code == 1
    assert [a.code for a in report.anomalies] == ["trailing"]
    assert report.anomalies[0].offset == len(data) + 100
    assert rebuild(tmp_path / "x", output=tmp_path / "image")[1] == 1


@pytest.mark.parametrize("name", [n for n in image_names() if "sparse" in n])
def test_mapped_ram_in_a_save_image(name: str, tmp_path: Path) -> None:
    """Its offsets are those of the whole file; a pipe is refused."""
    path = image_file(name, tmp_path)
    report, code = account(path)
    assert code == 0, report.anomalies
    assert report.layers[0].libvirt is not None
    assert report.layers[0].libvirt.format == "sparse"
    assert "mapped-ram" in report.features
    rebuild(path, all_blocks=tmp_path / "blocks")
    told = json.loads((tmp_path / "blocks" / "manifest.json").read_text())
    truth = [b for b in told["blocks"] if has_truth(load_manifest(name), b["idstr"])]
    assert len(truth) >= 2
    for block in truth:
        check_block(load_manifest(name), block["idstr"], tmp_path / "blocks" / block["file"])
    run = vmstream("extract-ram", "-", "-o", tmp_path / "out", stdin=path.read_bytes())
    assert run.status == 4
    assert "a pipe" in run.err
    assert not (tmp_path / "out").exists()


# -- cut and damaged ------------------------------------------------------------------------------


def outcome(path: Path) -> tuple[int, InspectReport | None]:
    try:
        report, code = account(path)
    except StreamError as error:
        return error.exit_code, None
    return code, report


@pytest.mark.parametrize("name", READ)
def test_a_cut_image_is_never_good(name: str, tmp_path: Path) -> None:
    data = open_image(name)
    dice = random.Random(name)
    stops = [*range(len(data) - 16, len(data)), *(dice.randrange(len(data)) for _ in range(14))]
    out = tmp_path / "out"
    for stop in stops:
        (tmp_path / "x").write_bytes(data[:stop])
        code, report = outcome(tmp_path / "x")
        assert code == 3, stop
        assert report is None or not report.complete
        with pytest.raises(StreamError):
            rebuild(tmp_path / "x", output=out)
        assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_front_of_a_cut_is_extracted(kind: str, tmp_path: Path) -> None:
    """With --partial; the report names the cause ahead of what it does to the stream."""
    stream = open_fixture("live-10.0-q35")
    packed = PACK[kind](stream)
    data = packed[: len(packed) * 3 // 4]
    path = tmp_path / "x"
    path.write_bytes(data)
    report, code = account(path)
    first, second = report.anomalies[:2]
    assert (code, first.code, first.severity) == (3, "truncated", "error")
    assert first.offset == len(data)
    assert f"the {kind} data ends before its end mark" in first.message
    assert second.code == "truncated"
    assert sum(b.pages.normal for b in report.ram_blocks if b.pages) > 500
    run = vmstream("inspect", path)
    assert (run.status, f"{kind} data ends" in run.err) == (3, True)
    with pytest.raises(TruncatedError, match="--partial writes what is there"):
        rebuild(path, output=tmp_path / "out")
    done, code = rebuild(path, output=tmp_path / "out", partial=True, manifest=tmp_path / "told")
    assert (code, done.complete) == (3, False)
    assert done.input_size == len(data)
    assert done.input_sha256 == hashlib.sha256(data).hexdigest()


def test_strict_and_not(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(PACK["zstd"](open_fixture("plain-7.2-pc"))[:-3])
    with library.open(tmp_path / "x") as stream:
        found = [e for e in stream if isinstance(e, library.Anomaly)]
    assert found[0].code == "truncated"
    assert isinstance(found[0].error, TruncatedError)
    with library.open(tmp_path / "x", strict=True) as stream:
        before = 0
        with pytest.raises(TruncatedError, match="zstd data ends"):
            for event in stream:
                before = event.end
    assert before > 2_000_000


@pytest.mark.parametrize("kind", [*KINDS, "raw"])
def test_damaged_images_give_our_errors(kind: str, tmp_path: Path) -> None:
    """Any byte, of header, XML and data, and stretches of them."""
    stream = bytes(simple_stream().data)
    inner = PACK[kind](stream) if kind != "raw" else stream
    number = {"gzip": 1, "bzip2": 2, "xz": 3, "lzop": 4, "zstd": 5}.get(kind, 0)
    data = save_image(inner, number=number)
    dice = random.Random(kind)
    path = tmp_path / "x"
    for _ in range(400):
        damaged = bytearray(data)
        at = dice.randrange(len(data))
        size = dice.choice((1, 1, 4, 50))
        damaged[at : at + size] = dice.randbytes(min(size, len(data) - at))
        path.write_bytes(damaged)
        code, report = outcome(path)
        assert code in (0, 1, 2, 3, 4, 5)
        if code == EXIT_OK:
            assert report is not None
            assert report.complete


def test_records_of_a_cut_stream_tile(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(PACK["gzip"](open_fixture("plain-7.2-pc"))[:100_000])
    with OpenStream(tmp_path / "x") as opened:
        records = Records(opened.source, container=opened.container)
        items = list(records)
    assert records.findings.exit_code == 3
    end = 0
    for item in items:
        if item.type != "anomaly":
            assert item.offset == end
            end = item.end
    assert next(i.fields["code"] for i in items if i.type == "anomaly") == "truncated"
