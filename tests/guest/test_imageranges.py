"""Where memory stands in files: those that `imagefile` plans, and headers made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.dumps import elf_ranges, lime_ranges
from tests.guest.test_imagefile import NUMA, written
from vmstream.errors import FormatError, StreamError, TruncatedError, UnsupportedError
from vmstream.guest.imagefile import Range, plan
from vmstream.guest.imageranges import Image, image_ranges


def image_of(data: bytes, size: int | None = None) -> Image:
    return image_ranges(lambda at, n: data[at : at + n], len(data) if size is None else size)


def elf32(*loads: tuple[int, int, int], order: str = ">") -> bytes:
    """(offset, address, bytes) of each; System V ABI."""
    identity = b"\x7fELF" + bytes((1, 2 if order == ">" else 1, 1)) + bytes(9)
    head = struct.pack(order + "HHIIIIIHHHHHH", 4, 20, 1, 0, 52, 0, 0, 52, 32, len(loads), 0, 0, 0)
    rows = (
        struct.pack(order + "IIIIIIII", 1, at, 0, gpa, size, size, 0, 0) for at, gpa, size in loads
    )
    return identity + head + b"".join(rows)


@pytest.mark.parametrize(("form", "reader"), [("elf", elf_ranges), ("lime", lime_ranges)])
def test_what_other_readers_find(tmp_path: Path, form: str, reader: object) -> None:
    path = written(tmp_path / "x", plan(form, NUMA))
    with path.open("rb") as file:

        def read(at: int, length: int) -> bytes:
            file.seek(at)
            return file.read(length)

        found = image_ranges(read, path.stat().st_size)
    assert found.format == form
    want = [(r.gpa, r.length, r.offset) for r in reader(path)]  # type: ignore[operator]
    assert [(r.gpa, r.length, r.offset) for r in found.ranges] == want


def test_what_has_no_magic_is_raw() -> None:
    assert image_of(bytes(512)) == Image("raw", (Range(0, 512, 0),))


@pytest.mark.parametrize("order", "<>")
def test_32_bits_and_overlaps(order: str) -> None:
    """A core with paging has memory once for each virtual address; it counts once."""
    data = elf32((1000, 4096, 50), (1000, 4096, 50), (1030, 4126, 40), order=order) + bytes(2000)
    assert image_of(data).ranges == (Range(4096, 50, 1000), Range(4146, 20, 1050))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"KDUMP   " + bytes(100), UnsupportedError),
        (b"\x7fELF\3\1" + bytes(100), FormatError),
        (b"\x7fELF\2\1", TruncatedError),
        (elf32(), FormatError),
        (elf32((4000, 0, 10)), TruncatedError),
        (struct.pack("<IIQQ8x", 0x4C694D45, 1, 0, 99), TruncatedError),
        (struct.pack("<IIQQ8x", 0x4C694D45, 2, 0, 99), UnsupportedError),
        (struct.pack("<IIQQ8x", 0x4C694D45, 1, 9, 5), FormatError),
        (struct.pack("<IIQQ8x", 0x4C694D45, 1, 0, 0) + bytes(33), FormatError),
    ],
)
def test_refused(data: bytes, error: type[StreamError]) -> None:
    with pytest.raises(error):
        image_of(data)
