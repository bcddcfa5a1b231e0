"""The XML of a save image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers import COOKIE, PACK, XML, save_image
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError
from vmstream.ops.domain import domain_xml


def told(path: Path, data: bytes, **options: bool) -> bytes:
    path.write_bytes(data)
    with OpenStream(path, image_only=True) as opened:
        return domain_xml(opened.container, "input", **options)


def test_xml_and_cookie(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (save_image(b"anything"), PACK["gzip"](save_image(b""))):
        assert told(path, data) == XML
        assert told(path, data, cookie=True) == COOKIE


def test_none(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OutputError, match="no cookie"):
        told(path, save_image(b"", cookie=None), cookie=True)
    for data in (b"QEVM\0\0\0\3", b"", PACK["gzip"](b"QEVM")):
        with pytest.raises(OutputError, match="no libvirt save image"):
            told(path, data)
