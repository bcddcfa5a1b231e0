"""The save image of libvirt: a header, the domain XML, then the stream or a compressed file of it.

libvirt src/qemu/qemu_saveimage.c qemuSaveImageOpen(), virQEMUSaveDataWrite().
"""

from __future__ import annotations

import re
from html import unescape
from xml.parsers import expat

from vmstream.container.layers import Container, Finding, Layer, SaveImage, ShiftedSource
from vmstream.errors import EncodeError, LimitError, TruncatedError
from vmstream.transport.source import Source
from vmstream.wire import build, grammar, parse
from vmstream.wire.constants import LZOP_MAGIC, MAX_SAVE_XML, QEMU_SAVE_FORMATS, QEMU_VM_FILE_MAGIC

# What stands behind the XML starts with one of these, by format.
_STARTS = (
    QEMU_VM_FILE_MAGIC, b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", LZOP_MAGIC, b"\x28\xb5\x2f\xfd",
)  # fmt: skip

_CONTEXT = "libvirt header"
_HEADER = grammar.save_header("little").sizeof()

# libvirt writes the name first. Not an XML parser: what is hostile must not expand, and every
# repetition has a bound.
_NAME = re.compile(rb"<domain\b[^<>]{0,4096}>\s{0,256}<name>([^<]{1,1024})</name>")
_NAME_WITHIN = 64 << 10

# So that the XML can be replaced with a longer one. libvirt src/qemu/qemu_saveimage.c
# virQEMUSaveDataWrite().
_PADDING = 64 << 10

_XML_ADVICE = "give the XML of 'virsh dumpxml' or 'virsh save-image-dumpxml'"


def open_save_image(source: Source, container: Container) -> Source:
    """Take a save image off: add its layer, return the source of what is behind the XML.

    Raises:
        TruncatedError: It ends inside header or XML.
        LimitError: The XML is longer than MAX_SAVE_XML.
    """
    header, _ = parse.save_header(_read(source, _HEADER))
    if header.data_length > MAX_SAVE_XML:
        raise LimitError(
            20,
            f"{header.data_length} bytes of XML",
            context=_CONTEXT,
            expected=f"at most {MAX_SAVE_XML}",
        )
    area = _read(source, _HEADER + header.data_length)[_HEADER:]
    # Up to its NUL; the cookie stands behind that.
    xml = area.partition(b"\0")[0]
    cookie = None
    if header.cookie_offset:
        cookie = area[header.cookie_offset :].partition(b"\0")[0]
    known = header.format < len(QEMU_SAVE_FORMATS)
    image = SaveImage(
        header,
        QEMU_SAVE_FORMATS[header.format] if known else f"unknown ({header.format})",
        _domain_name(xml),
        xml,
        cookie or None,
        _HEADER + header.data_length,
    )
    container.layers.append(Layer("libvirt", source, image))
    _note_oddities(container, image)
    return ShiftedSource(source, image.stream_offset)


def _read(source: Source, size: int) -> bytes:
    view, base, _ = source.window(0, size)
    data = bytes(view[-base:size] if base else view[:size])
    if len(data) < size:
        raise TruncatedError(
            len(data),
            "the save image ends in front of the stream",
            context=_CONTEXT,
            expected=f"{size - len(data)} bytes more",
        )
    return data


def _domain_name(xml: bytes) -> str | None:
    found = _NAME.search(xml[:_NAME_WITHIN])
    if found is None:
        return None
    text = found[1].decode("utf-8", "backslashreplace")
    return unescape(text)


def _note_oddities(container: Container, image: SaveImage) -> None:
    if not image.header.finished:
        container.note(
            Finding(
                "warning",
                "unfinished-save",
                0,
                "offset 0x0, libvirt header: the save did not finish, the stream may be cut",
            )
        )
    if image.header.cookie_offset and image.cookie is None:
        container.note(
            Finding(
                "warning",
                "container",
                32,
                "offset 0x20, libvirt header: no cookie stands where the header says",
            )
        )


def check_start(image: SaveImage, head: bytes) -> None:
    """Raise TruncatedError if the image ends inside the first bytes of what is behind the XML."""
    if head and any(len(head) < len(m) and m.startswith(head) for m in _STARTS):
        raise TruncatedError(
            image.stream_offset + len(head),
            "the save image ends in the first bytes of the stream",
            context=_CONTEXT,
        )


def note_format(container: Container, image: SaveImage, found: str) -> None:
    """Say so if behind the XML stands something else than the header states.

    Args:
        container: Takes the finding.
        image: The image.
        found: Kind of what is there, 'raw' if it is not compressed.
    """
    # libvirt never unpacks version 1; a sparse image holds a bare stream, of mapped-ram.
    stated = "raw" if image.header.version == 1 else image.format
    if found != ("raw" if stated == "sparse" else stated):
        container.note(
            Finding(
                "warning",
                "container",
                28,
                f"offset 0x1c, libvirt header: the format is {stated}, but the data is {found}",
            )
        )


def save_head(xml: bytes, form: str, *, running: bool, cookie: bytes | None = None) -> bytes:
    """Make what stands in front of the stream in a save image.

    Args:
        xml: The domain XML; a NUL is put behind it.
        form: Of what follows, one of QEMU_SAVE_FORMATS. The offsets in a mapped-ram stream
            ('sparse') are those in the image.
        running: Whether 'virsh restore' lets the guest run.
        cookie: libvirt's own XML of another image of this domain, if there is one.

    Raises:
        EncodeError: libvirt would not take the XML.

    Wire:
        Header, XML, NUL, cookie, NUL, and 64 KiB of zeros: no alignment for any format.
        libvirt src/qemu/qemu_saveimage.c virQEMUSaveDataWrite().
    """
    area = xml + b"\0" + (b"" if cookie is None else cookie + b"\0") + bytes(_PADDING)
    if len(area) > MAX_SAVE_XML:
        raise EncodeError(
            f"domain XML: {len(area)} bytes with cookie and padding, over {MAX_SAVE_XML}; "
            + _XML_ADVICE
        )
    if b"\0" in xml or b"\0" in (cookie or b""):
        raise EncodeError(f"domain XML: a NUL within, which ends it in an image; {_XML_ADVICE}")
    _check_xml(xml)
    header = parse.SaveHeader(
        byte_order="little",
        finished=True,
        version=2,
        data_length=len(area),
        was_running=running,
        format=QEMU_SAVE_FORMATS.index(form),
        cookie_offset=0 if cookie is None else len(xml) + 1,
    )
    return build.save_header(header) + area


# A parser that stops at a document type, which could define what expands.
def _check_xml(xml: bytes) -> None:
    def root(name: str, _: dict[str, str]) -> None:
        parser.StartElementHandler = None
        if name != "domain":
            raise EncodeError(f"domain XML: the document is a <{name}>, no <domain>; {_XML_ADVICE}")

    def doctype(*_: object) -> None:
        raise EncodeError("domain XML: it has a document type, which no domain has; leave that out")

    parser = expat.ParserCreate()
    parser.StartElementHandler = root
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise EncodeError(f"domain XML: {error}; {_XML_ADVICE}") from error
