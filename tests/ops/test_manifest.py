"""The manifest of a directory: what is taken, and where it is wrong."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vmstream.errors import EncodeError
from vmstream.ops.manifest import full_name, parse_manifest
from vmstream.report.jsonout import dumps
from vmstream.report.models.unpack import (
    UNPACKED_SCHEMA,
    UnpackedBlock,
    UnpackedConfiguration,
    UnpackedManifest,
    UnpackedSection,
)

MANIFEST = UnpackedManifest(
    UNPACKED_SCHEMA,
    4096,
    True,
    UnpackedConfiguration("pc", None, ["x"], None),
    [UnpackedBlock("a", 4096, "a.raw", None, [[0, 4096]])],
    [UnpackedSection("device", 1, "d", 0, 1, "d.json", False, [])],
    None,
)


def test_there_and_back() -> None:
    assert parse_manifest(dumps(MANIFEST).encode(), "m") == MANIFEST


def test_fields_of_later_versions_are_passed_over() -> None:
    document = {**dataclasses.asdict(MANIFEST), "later": 1}
    assert parse_manifest(json.dumps(document).encode(), "m") == MANIFEST


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("page_size",), "x", "m: page_size: is an integer"),
        (("page_size",), True, "m: page_size: is an integer"),
        (("page_size",), 1 << 64, "of 64 bits"),
        (("footers",), 1, "m: footers: is true or false"),
        (("blocks",), {}, "m: blocks: is a list"),
        (("blocks", 0), 5, r"m: blocks\[0\]: is an object"),
        (("blocks", 0, "unsent", 0), 5, r"m: blocks\[0\]: unsent\[0\]: is a list"),
        (("configuration", "capabilities", 0), 5, r"capabilities\[0\]: is text"),
        (("vmdescription",), 5, "m: vmdescription: is text"),
    ],
)
def test_wrong_types(path: tuple[str | int, ...], value: object, why: str) -> None:
    document: Any = dataclasses.asdict(MANIFEST)
    here = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    with pytest.raises(EncodeError, match=why):
        parse_manifest(json.dumps(document).encode(), "m")


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{}", b"[" * 100000, b"9" * 5000])
def test_no_manifest(text: bytes) -> None:
    with pytest.raises(EncodeError, match="m: no "):
        parse_manifest(text, "m")


def test_names_in_full() -> None:
    assert full_name("x", None, "m") == b"x"
    assert full_name("x", "/w==", "m") == b"\xff"
    for name, packed in (("x", "?"), ("\udcff", None), ("x", "\u00e9")):
        with pytest.raises(EncodeError, match="is no name"):
            full_name(name, packed, "m")
