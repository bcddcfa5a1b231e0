"""Save images of libvirt: what the header says, in either byte order, and what is wrong in it."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.containers import (
    COOKIE,
    FORMATS,
    MISSING,
    XML,
    image_names,
    open_image,
    save_image,
)
from tests.decoding import BytesSource
from tests.truth import load_manifest
from vmstream.container.layers import Container, SaveImage
from vmstream.container.libvirt import note_format, open_save_image, save_head
from vmstream.container.open import OpenStream
from vmstream.container.packing import PackedOutput
from vmstream.errors import (
    EncodeError,
    FormatError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.transport.sink import OutputFile
from vmstream.wire.constants import MAX_SAVE_XML


def opened(data: bytes) -> tuple[SaveImage, bytes, Container]:
    container = Container()
    source = open_save_image(BytesSource(data), container)
    (layer,) = container.layers
    assert layer.kind == "libvirt"
    assert layer.image is not None
    view, base, _ = source.window(0, 1)
    return layer.image, bytes(view[-base:] if base else view), container


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("cookie", [None, COOKIE])
def test_header(order: str, version: int, cookie: bytes | None) -> None:
    data = save_image(b"behind", order=order, version=version, running=0, cookie=cookie)
    image, behind, container = opened(data)
    assert behind == b"behind"
    assert image.header.byte_order == {"<": "little", ">": "big"}[order]
    assert (image.header.version, image.header.was_running) == (version, False)
    assert (image.xml, image.cookie, image.name) == (XML, cookie, "guest")
    assert image.stream_offset == len(data) - len(b"behind")
    assert container.take_findings() == []


@pytest.mark.parametrize("name", image_names())
def test_real_images(name: str) -> None:
    data = open_image(name)
    libvirt = load_manifest(name)["libvirt"]
    image, _, container = opened(data)
    assert image.format == libvirt["save_image_format"]
    assert image.name == "guest"
    assert image.xml.startswith(b"<domain type='qemu'>")
    assert image.xml.endswith(b"</domain>\n")
    assert image.cookie is not None
    assert image.cookie.endswith(b"</cookie>\n")
    assert image.header.was_running == ("--running" in libvirt["save_options"])
    assert container.take_findings() == []


def test_unfinished() -> None:
    image, behind, container = opened(save_image(b"QEVM", magic=b"LibvirtQemudPart"))
    assert (image.header.finished, behind) == (False, b"QEVM")
    (finding,) = container.take_findings()
    assert (finding.severity, finding.code) == ("warning", "unfinished-save")


@pytest.mark.parametrize("offset", [5000, 1 << 31, len(XML) + 1 + len(COOKIE) + 1])
def test_cookie_that_is_not_there(offset: int) -> None:
    image, _, container = opened(save_image(b"x", cookie_offset=offset))
    assert image.cookie is None
    (finding,) = container.take_findings()
    assert (finding.code, finding.offset) == ("container", 32)


@pytest.mark.parametrize(("number", "name"), [(6, "sparse"), (7, "unknown (7)"), (1 << 31, None)])
def test_formats(number: int, name: str | None) -> None:
    image, _, _ = opened(save_image(b"x", number=number))
    assert image.format == (name or f"unknown ({number})")


@pytest.mark.parametrize("version", [0, 4, 0x01010101])
def test_versions_that_are_not_known(version: int) -> None:
    with pytest.raises(UnsupportedError) as caught:
        opened(save_image(b"x", version=version))
    assert caught.value.offset == 16


def test_something_like_it() -> None:
    with pytest.raises(FormatError):
        opened(save_image(b"x", magic=b"LibvirtQemudXXXX"))


def test_cut_anywhere() -> None:
    data = save_image(b"")
    for stop in range(len(data)):
        with pytest.raises(TruncatedError) as caught:
            opened(data[:stop])
        assert caught.value.offset == stop
    assert opened(data)[1] == b""


def test_xml_is_bounded() -> None:
    for length in ((16 << 20) + 1, 0xFFFFFFFF):
        data = bytearray(save_image(b"x"))
        data[20:24] = struct.pack("<I", length)
        with pytest.raises(LimitError) as caught:
            opened(bytes(data))
        assert caught.value.offset == 20


@pytest.mark.parametrize(
    ("xml", "name"),
    [
        (b"", None),
        (b"<domain><name>a</name></domain>", "a"),
        (b"<domain type='kvm' id='3'>\n\t <name>a&amp;b &lt;&quot;&apos;</name>", "a&b <\"'"),
        ("<domain><name>größe</name>".encode(), "größe"),
        (b"<domain><name>\xff</name>", "\\xff"),
        (b"<domain><title>x</title><name>a</name>", None),
        (b"<domain><name></name>", None),
        (b"<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><name>&a;&a;</name>", "&a;&a;"),
        (b"<domain><name>&amp;lt;</name>", "&lt;"),
        (bytes([0xFF]) * 1000, None),
    ],
)
def test_names(xml: bytes, name: str | None) -> None:
    assert opened(save_image(b"x", xml=xml))[0].name == name


@pytest.mark.parametrize(
    "piece", [b"<domain ", b"<domain>", b"<domain> ", b"<domain><name>", b"<domain>" + b" " * 500]
)
def test_hostile_xml_takes_no_time(piece: bytes) -> None:
    xml = piece * ((8 << 20) // len(piece))
    begin = time.monotonic()
    assert opened(save_image(b"x", xml=xml))[0].name is None
    assert time.monotonic() - begin < 5


def test_any_bytes_of_the_header() -> None:
    data = save_image(b"QEVM")
    for at in range(92):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            # Any other error would fail the test.
            with contextlib.suppress(StreamError):
                opened(bytes(damaged))


@pytest.mark.parametrize("stated", [*FORMATS, "unknown"])
@pytest.mark.parametrize("found", ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "lz4"])
def test_format_against_content(stated: str, found: str) -> None:
    image, _, container = opened(save_image(b"", number=FORMATS.get(stated, 99)))
    note_format(container, image, found)
    findings = container.take_findings()
    if found == stated or (found, stated) == ("raw", "sparse"):
        assert findings == []
    else:
        (finding,) = findings
        assert (finding.severity, finding.code, finding.offset) == ("warning", "container", 28)
        assert found in finding.message


def test_version_1_is_never_compressed() -> None:
    image, _, container = opened(save_image(b"", version=1, number=1))
    note_format(container, image, "raw")
    assert container.take_findings() == []
    note_format(container, image, "gzip")
    assert len(container.take_findings()) == 1


@pytest.mark.parametrize("kind", ["raw", "gzip", "bzip2", "xz", "zstd", "lzop"])
def test_cut_within_the_first_bytes_of_the_stream(kind: str, tmp_path: Path) -> None:
    starts = {
        "raw": b"QEVM", "gzip": b"\x1f\x8b\x08", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0",
        "zstd": b"\x28\xb5\x2f\xfd", "lzop": b"\x89LZO\0\r\n\x1a\n",
    }  # fmt: skip
    for length in range(1, len(starts[kind])):
        data = save_image(starts[kind][:length], number=FORMATS[kind])
        (tmp_path / "x").write_bytes(data)
        run = vmstream("inspect", tmp_path / "x")
        assert run.status == 3
        assert f"offset {len(data):#x}, libvirt header: the save image ends" in run.err
    # Other bytes are no stream, short as they are.
    (tmp_path / "x").write_bytes(save_image(b"XY", number=FORMATS[kind]))
    assert "not a migration stream" in vmstream("inspect", tmp_path / "x").err


@pytest.mark.parametrize("name", image_names())
def test_heads_of_real_images(name: str) -> None:
    """What libvirt wrote is what is made of its XML and cookie."""
    data = open_image(name)
    image, _, _ = opened(data)
    made = save_head(image.xml, image.format, running=image.header.was_running, cookie=image.cookie)
    assert made == data[: image.stream_offset]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("cookie", [None, COOKIE])
@pytest.mark.parametrize("running", [False, True])
def test_head(form: str, cookie: bytes | None, running: bool) -> None:
    made = save_head(XML, form, running=running, cookie=cookie)
    assert made == save_image(
        b"", number=FORMATS[form], cookie=cookie, running=running, padding=64 << 10
    )


@pytest.mark.parametrize("form", [f for f in FORMATS if f not in (*MISSING, "sparse")])
def test_image_opens(form: str, tmp_path: Path) -> None:
    stream = b"QEVM\0\0\0\3" + bytes(range(256)) * 20_000
    head = save_head(XML, form, running=True, cookie=COOKIE)
    with OutputFile(tmp_path / "image") as out:
        out.write(0, head)
        if form == "raw":
            out.write(len(head), stream)
        else:
            packed = PackedOutput(out, form, len(head))
            packed.write(0, stream)
            packed.finish()
        out.commit()
    with OpenStream(tmp_path / "image") as image:
        kinds = [layer.kind for layer in image.container.layers]
        assert kinds == ["libvirt"] + ([form] if form != "raw" else [])
        view, base, _ = image.source.window(0, len(stream) + 1)
        assert bytes(view[-base:] if base else view) == stream
        assert image.container.take_findings() == []


@pytest.mark.parametrize(
    "xml",
    [
        XML,
        b"<domain/>",
        b"<?xml version='1.0' encoding='UTF-8'?>\n<!-- made by hand -->\n" + XML,
        b"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:env/></domain>",
        "<domain><name>gr\u00f6\u00dfe</name></domain>".encode(),
    ],
)
def test_xml_that_is_taken(xml: bytes) -> None:
    assert opened(save_head(xml, "raw", running=True))[0].xml == xml


BOMB = b"<!DOCTYPE d [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><domain><name>&b;</name></domain>"


@pytest.mark.parametrize(
    ("xml", "match"),
    [
        (b"", "no element found"),
        (b"guest.xml", "syntax error"),
        (XML[:-4], "unclosed token: line 3"),
        (XML + XML, "junk after document element"),
        (b"<domain><name>a</domain>", "mismatched tag"),
        (b"<domain><name>\xff</name></domain>", "invalid token"),
        (b"<?xml version='1.0' encoding='no'?>" + XML, "unknown encoding"),
        (b"<domainsnapshot><domain/></domainsnapshot>", "a <domainsnapshot>, no <domain>"),
        (BOMB, "document type"),
        (XML + b"\0", "a NUL within"),
        (XML.decode().encode("utf-16"), "a NUL within"),
        (b"<domain>" + bytes([32]) * MAX_SAVE_XML + b"</domain>", f"over {MAX_SAVE_XML}"),
    ],
)
def test_xml_that_is_refused(xml: bytes, match: str) -> None:
    with pytest.raises(EncodeError, match=match) as caught:
        save_head(xml, "raw", running=True)
    assert str(caught.value).startswith("domain XML: ")
    assert ";" in str(caught.value)


def test_longest_xml() -> None:
    """What is written can be read."""
    size = MAX_SAVE_XML - (64 << 10) - 1
    xml = b"<domain>".ljust(size - len(b"</domain>")) + b"</domain>"
    assert opened(save_head(xml, "raw", running=True))[0].xml == xml
    with pytest.raises(EncodeError, match=f"{MAX_SAVE_XML + 1} bytes"):
        save_head(xml + b"\n", "raw", running=True)


def test_cookie_with_a_nul() -> None:
    with pytest.raises(EncodeError, match="a NUL within"):
        save_head(XML, "raw", running=True, cookie=b"<cookie/>\0")
