"""What is around a stream, made without our code: compressed files and libvirt save images.

    data = PACK["xz"](stream)                   # one member, with its sums and end mark
    image = save_image(data, number=3)          # what 'virsh save' writes
    image_names(), open_image(name)             # images that libvirt wrote

lzop is written here from its source, block by block; the other formats by their libraries. What
is not installed is not in PACK, and tests/container/test_codecs.py says so: `dev` has all of them.
"""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

from tests.truth import FIXTURES, write_sparse

XML = b"<domain type='qemu'>\n  <name>guest</name>\n</domain>\n"
COOKIE = b"<cookie>\n</cookie>\n"
FORMATS = {"raw": 0, "gzip": 1, "bzip2": 2, "xz": 3, "lzop": 4, "zstd": 5, "sparse": 6}

LZ4_BLOCK = 8 << 20
LZOP_MAGIC = b"\x89LZO\x00\r\n\x1a\n"


def save_image(
    payload: bytes,
    *,
    magic: bytes = b"LibvirtQemudSave",
    version: int = 2,
    running: int = 1,
    number: int = 0,
    xml: bytes = XML,
    cookie: bytes | None = COOKIE,
    padding: int = 100,
    order: str = "<",
    cookie_offset: int | None = None,
) -> bytes:
    """A libvirt save image with this behind the XML."""
    area = xml + b"\0"
    at = len(area) if cookie is not None else 0
    area += (cookie + b"\0" if cookie is not None else b"") + bytes(padding)
    at = at if cookie_offset is None else cookie_offset
    words = struct.pack(f"{order}5I", version, len(area), running, number, at)
    return magic + words + bytes(56) + area + payload


def lzop(
    data: bytes,
    *,
    flags: int = 0x3000001,
    version: int = 0x1040,
    method: int = 1,
    block: int = 256 << 10,
    name: bytes = b"",
    extra: bytes | None = None,
) -> bytes:
    """A file of lzop; `flags` say which sums a block has."""
    import lzallright

    flags |= 0x40 if extra is not None else 0
    head = struct.pack(">HH", version, 0x20A0)
    head += struct.pack(">H", 0x0940) if version >= 0x0940 else b""
    head += bytes([method]) + (b"\5" if version >= 0x0940 else b"")
    head += struct.pack(">III", flags, 0o100644, 0)
    head += struct.pack(">I", 0) if version >= 0x0940 else b""
    head += bytes([len(name)]) + name
    sum_of = zlib.crc32 if flags & 0x1000 else zlib.adler32
    out = LZOP_MAGIC + head + struct.pack(">I", sum_of(head))
    if extra is not None:
        out += struct.pack(">I", len(extra)) + extra + struct.pack(">I", zlib.adler32(extra))
    for at in range(0, len(data), block):
        part = data[at : at + block]
        packed = lzallright.LZOCompressor().compress(part)
        packed = packed if len(packed) < len(part) else part
        out += struct.pack(">II", len(part), len(packed))
        out += struct.pack(">I", zlib.adler32(part)) if flags & 1 else b""
        out += struct.pack(">I", zlib.crc32(part)) if flags & 0x100 else b""
        if len(packed) < len(part):
            out += struct.pack(">I", zlib.adler32(packed)) if flags & 2 else b""
            out += struct.pack(">I", zlib.crc32(packed)) if flags & 0x200 else b""
        out += packed
    return out + bytes(4)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def lz4_frame(data: bytes) -> bytes:
    import lz4.frame

    packed: bytes = lz4.frame.compress(data, content_checksum=True)
    return packed


def lz4_legacy(data: bytes, block: int = LZ4_BLOCK) -> bytes:
    """One member as `lz4 -l` writes it, built here: full blocks but for the last."""
    import lz4.block

    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), block):
        packed = lz4.block.compress(data[at : at + block], store_size=False)
        out += struct.pack("<I", len(packed)) + packed
    return out


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
    "lz4": lz4_frame,
    "lzop": lzop,
}

MISSING = [
    kind
    for kind, package in (("lz4", "lz4"), ("lzop", "lzallright"))
    if importlib.util.find_spec(package) is None
]
for _kind in MISSING:
    del PACK[_kind]


def image_names() -> list[str]:
    """Names of the images that libvirt wrote, of the formats that can be unpacked here."""
    names = sorted(p.name.removesuffix(".save.zst") for p in FIXTURES.glob("*.save.zst"))
    return [n for n in names if n.rpartition("-")[2] not in MISSING]


def open_image(name: str) -> bytes:
    """The image as libvirt wrote it."""
    packed = (FIXTURES / f"{name}.save.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        return reader.readall()


def image_file(name: str, directory: Path) -> Path:
    """The image as a file in `directory`."""
    path = directory / f"{name}.save"
    if not path.exists():
        write_sparse(path, open_image(name))
    return path
