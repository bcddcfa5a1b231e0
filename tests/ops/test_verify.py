"""Healthy streams have no error, and each kind of planted damage is found."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import streamwriter as sw
from tests.commandline import vmstream
from tests.decoding import BytesSource
from tests.stream.test_mapped import Block, mapped
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, Subsection, simple_stream
from tests.truth import channel_names, fixture_file, fixture_names, open_fixture
from vmstream.errors import OutputError
from vmstream.ops.channels import Channels
from vmstream.ops.verify import verify
from vmstream.report.models.verify import VerifyReport

PAGE = 4096
BODY = bytes(range(256)) * 16
DEVICE = Device(
    "timer",
    version=2,
    fields=(Field("ticks", "int64", bytes(8)), Field("none", "nullptr", b"0")),
    subsections=(Subsection("timer/more", 1, (Field("x", "uint32", bytes(4)),)),),
)


def look(data: bytes) -> tuple[VerifyReport, int]:
    return verify(BytesSource(bytes(data), "name"))


@pytest.mark.parametrize("name", fixture_names(long=True))
def test_healthy_streams(name: str, tmp_path: Path) -> None:
    paths = [fixture_file(n, tmp_path) for n in channel_names(name)] if ".ch0" in name else []
    with Channels(paths) as channels:
        report, code = verify(BytesSource(open_fixture(name), name), channels=channels)
    if name.startswith("interrupted"):
        assert (report.verdict, code) == ("truncated", 7)
    else:
        assert (report.verdict, code) == ("sound", 0), report.findings
        assert report.complete
    assert report.pages


def healthy() -> StreamWriter:
    """Zero, plain, XBZRLE and zlib pages, an iterable section, devices and their description."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("pc.ram", 8 * PAGE), RamBlock("rom", PAGE)])
    with w.ram_part():
        for page in range(8):
            w.page("pc.ram", page * PAGE, BODY) if page < 5 else w.zero("pc.ram", page * PAGE)
        w.zero("rom", 0)
    with w.ram_end():
        w.xbzrle_to("pc.ram", 0, BODY[:100] + b"!" + BODY[101:])
        w.compress_page("pc.ram", PAGE, zlib.compress(BODY))
    w.device(DEVICE)
    w.device(Device("other", fields=(Field("a", "uint8", b"\1"),)))
    w.eof()
    w.vmdescription()
    return w


def test_the_one_that_is_damaged_below_is_sound() -> None:
    report, code = look(bytes(healthy()))
    assert (report.verdict, code, report.findings) == ("sound", 0, [])
    assert (report.pages, report.sections, report.machine) == (11, 3, "pc-q35-9.0")


def item(w: StreamWriter, kind: str, which: int = 0) -> tuple[int, int]:
    found = w.items_of(kind)[which]
    return found.offset, found.stop


def put(at: Callable[[StreamWriter], int], data: bytes) -> Callable[[], bytes]:
    """The healthy stream with bytes changed at a place."""

    def made() -> bytes:
        w = healthy()
        place, raw = at(w), bytearray(bytes(w))
        assert raw[place : place + len(data)] != data
        raw[place : place + len(data)] = data
        return bytes(raw)

    return made


def cut(at: Callable[[StreamWriter], int]) -> Callable[[], bytes]:
    def made() -> bytes:
        w = healthy()
        return bytes(w)[: at(w)]

    return made


def found(text: bytes, shift: int = 0) -> Callable[[StreamWriter], int]:
    return lambda w: bytes(w).index(text) + shift


def missing_page() -> bytes:
    return bytes(simple_stream({"pc.ram": {0: BODY, 2 * PAGE: BODY}}))


def more_behind() -> bytes:
    return bytes(healthy()) + b"garbage"


def no_ram_end() -> bytes:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
    for _ in range(2):
        with w.ram_part():
            w.page("pc.ram", 0, BODY)
            w.zero("pc.ram", PAGE)
    w.eof()
    return bytes(w)


def a_command() -> bytes:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.command(3, bytes(7))
    w.ram_start([RamBlock("pc.ram", PAGE)])
    with w.ram_end():
        w.zero("pc.ram", 0)
    w.eof()
    return bytes(w)


def with_page(write: Callable[[StreamWriter], object]) -> Callable[[], bytes]:
    def made() -> bytes:
        w = StreamWriter()
        w.header()
        w.configuration()
        w.ram_start([RamBlock("pc.ram", 2 * PAGE)])
        with w.ram_part():
            w.page("pc.ram", 0, BODY)
            w.zero("pc.ram", PAGE)
        with w.ram_end():
            write(w)
        w.eof()
        return bytes(w)

    return made


def described(*devices: Device) -> bytes:
    return bytes(simple_stream(devices=devices))


def lost_section() -> bytes:
    """Without its section 'other'."""
    w = healthy()
    head, foot = w.items_of("FULL")[-1], w.items_of("FOOTER")[-1]
    return bytes(w)[: head.offset] + bytes(w)[foot.stop :]


def raw_page(address: int, flags: int, body: bytes) -> Callable[[StreamWriter], object]:
    return lambda w: w.raw((address | flags | sw.FLAG_CONTINUE).to_bytes(8, "big") + body)


DAMAGE: dict[str, tuple[Callable[[], bytes], str, str, int]] = {
    # what: (stream, code, verdict, exit status)
    "magic": (put(lambda w: 0, b"X"), "format", "corrupt", 3),
    "version": (put(lambda w: 7, b"\2"), "format", "corrupt", 3),
    "cut in the header": (cut(lambda w: 3), "truncated", "corrupt", 3),
    "cut in a page": (cut(lambda w: item(w, "PAGE", 3)[1] - 9), "truncated", "truncated", 7),
    "cut between pages": (cut(lambda w: item(w, "PAGE", 3)[1]), "truncated", "truncated", 7),
    "cut in a device": (cut(found(b"timer/more")), "truncated", "truncated", 7),
    "cut before the end": (cut(lambda w: item(w, "EOF")[0]), "truncated", "truncated", 7),
    "cut in the vmdescription": (
        cut(lambda w: item(w, "VMDESCRIPTION")[1] - 9), "trailing", "truncated", 7,
    ),
    "section type": (put(lambda w: item(w, "START")[0], b"\x55"), "format", "corrupt", 3),
    "part of no section": (put(lambda w: item(w, "PART")[0] + 4, b"\x77"), "format", "corrupt", 3),
    "footer mark": (put(lambda w: item(w, "FOOTER", 0)[0], b"\0"), "integrity", "corrupt", 3),
    "footer id": (put(lambda w: item(w, "FOOTER", 1)[0] + 4, b"\x99"), "format", "corrupt", 3),
    "flags of a page": (
        with_page(raw_page(0, sw.FLAG_PAGE | sw.FLAG_ZERO, BODY)), "format", "corrupt", 3,
    ),
    "a page beyond its block": (
        with_page(raw_page(2 * PAGE, sw.FLAG_PAGE, BODY)), "integrity", "corrupt", 3,
    ),
    "a page of no block": (
        with_page(lambda w: w.raw((0 | sw.FLAG_ZERO).to_bytes(8, "big") + b"\4none\0")),
        "format", "corrupt", 3,
    ),
    "lengths of blocks": (put(found(b"pc.ram", 6 + 5), b"\1"), "integrity", "corrupt", 3),
    "XBZRLE beyond the page": (
        with_page(raw_page(0, sw.FLAG_XBZRLE, b"\1\0\4\x80\x7f\1!")), "integrity", "corrupt", 3,
    ),
    "XBZRLE without a literal": (
        with_page(raw_page(0, sw.FLAG_XBZRLE, b"\1\0\2\1\0")), "integrity", "corrupt", 3,
    ),
    "XBZRLE of another encoding": (
        with_page(raw_page(0, sw.FLAG_XBZRLE, b"\2\0\3\1\1!")), "integrity", "corrupt", 3,
    ),
    "zlib": (
        with_page(raw_page(0, sw.FLAG_COMPRESS_PAGE, b"\0\0\0\5hello")), "integrity", "corrupt", 3,
    ),
    "a fill byte": (with_page(raw_page(PAGE, sw.FLAG_ZERO, b"\7")), "fill-byte", "doubtful", 1),
    "a missing page": (missing_page, "pages-missing", "doubtful", 1),
    "no END": (no_ram_end, "no-end", "doubtful", 1),
    "a command": (a_command, "command", "doubtful", 1),
    "bytes behind the end": (more_behind, "trailing", "doubtful", 1),
    "JSON": (put(lambda w: item(w, "VMDESCRIPTION")[0] + 5, b"["), "format", "corrupt", 3),
    "size in the vmdescription": (
        lambda: described(Device("timer", fields=(Field("a", "uint32", bytes(4), size=2),))),
        "vmdescription-size", "doubtful", 1,
    ),
    "version in the vmdescription": (
        lambda: described(Device("timer", version=3, vmsd_version=2, fields=DEVICE.fields)),
        "vmdescription-differs", "doubtful", 1,
    ),
    "a subsection": (put(found(b"timer/more"), b"T"), "device-state", "doubtful", 1),
    "a marker of NULL": (
        put(lambda w: bytes(w).index(b"\5\x0atimer/more") - 1, b"1"), "null-marker", "doubtful", 1,
    ),
    "a section that is described": (lost_section, "vmdescription-section", "doubtful", 1),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found(what: str) -> None:
    make, code, verdict, status = DAMAGE[what]
    report, exit_code = look(make())
    assert (report.verdict, exit_code) == (verdict, status), report.findings
    first = next(f for f in report.findings if f.severity != "info")
    assert first.code == code, report.findings
    assert first.meaning
    assert first.advice


def test_mapped_ram() -> None:
    good = mapped([Block("pc.ram", 4, {0: BODY, 2: BODY})])
    assert look(good)[1] == 0, look(good)
    assert look(good[: len(good) // 2])[1] == 7
    moved = mapped([Block("pc.ram", 4, {0: BODY, 2: BODY}, bitmap_shift=1 << 40)])
    assert look(moved)[0].verdict in ("truncated", "corrupt")
    # In a pipe it is not read.
    source = BytesSource(good)
    source.seekable = False
    report, code = verify(source)
    assert (report.verdict, code) == ("unsupported", 4)


def test_the_manifest(tmp_path: Path) -> None:
    stream = fixture_file("own-plain-pc", tmp_path)
    made = vmstream("extract-ram", stream, "-o", "ram.raw", "--manifest", "ram.json", cwd=tmp_path)
    assert made.status == 0, made.err
    args = ("verify", "--json", stream, "--manifest", tmp_path / "ram.json")
    run = vmstream(*args)
    assert run.status == 0, run.err
    assert [f["same"] for f in run.json()["manifest"]] == [True, True]
    through_a_pipe = vmstream(*args[:2], "-", *args[3:], stdin=stream.read_bytes())
    assert [f["same"] for f in through_a_pipe.json()["manifest"]] == [True, True]
    with (tmp_path / "ram.raw").open("r+b") as image:
        image.seek(5000)
        image.write(b"!")
    run = vmstream(*args)
    assert run.status == 3
    assert [f["code"] for f in run.json()["findings"]] == ["hash"]
    (tmp_path / "ram.raw").unlink()
    run = vmstream(*args)
    assert run.status == 1
    assert [f["code"] for f in run.json()["findings"]] == ["hash-missing"]
    with stream.open("r+b") as file:
        file.seek(1 << 20)
        byte = file.read(1)
        file.seek(1 << 20)
        file.write(bytes([byte[0] ^ 1]))
    assert vmstream(*args).json()["manifest"][0]["same"] is False


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "vmstream.extract-ram/1"}', "[" * 9999]
)
def test_what_is_no_manifest(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(OutputError, match="no manifest"):
        verify(BytesSource(bytes(healthy())), manifest=path)


def test_a_hostile_manifest(tmp_path: Path) -> None:
    """Paths that cannot be read are told, not raised."""
    path = tmp_path / "m.json"
    outputs = [{"path": p, "sha256": "0" * 64} for p in ("/dev/zero", ".", "x" * 999, "")]
    document = {"schema": "vmstream.extract-ram/1", "input": "x", "input_sha256": None}
    path.write_text(json.dumps({**document, "outputs": outputs}))
    report, code = verify(BytesSource(bytes(healthy())), manifest=path)
    assert code == 1
    assert {f.code for f in report.findings} == {"hash-missing"}
