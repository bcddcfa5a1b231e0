"""The save image of libvirt: a header, the domain XML, then the stream or a compressed file of it.

libvirt src/qemu/qemu_saveimage.c qemuSaveImageOpen().
"""

from __future__ import annotations

import re
from xml.sax.saxutils import unescape

from vmstream.container.layers import Container, Finding, Layer, SaveImage, ShiftedSource
from vmstream.errors import LimitError, TruncatedError
from vmstream.transport.source import Source
from vmstream.wire import grammar, parse
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
    return unescape(text, {"&quot;": '"', "&apos;": "'"})


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
