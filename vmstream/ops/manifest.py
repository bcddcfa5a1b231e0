"""The manifest of an unpacked stream: written by us, edited by anybody, read as hostile."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from vmstream.errors import EncodeError
from vmstream.report.models.names import full
from vmstream.report.models.unpack import UNPACKED_SCHEMA, UnpackedManifest

# Bytes of a manifest, sections, parts of iterable ones, and ranges of pages that were not sent.
MAX_MANIFEST = 128 << 20
MAX_SECTIONS = 1 << 14
MAX_PARTS = 1 << 20
MAX_UNSENT = 1 << 20

# Version of the section 'ram' that has blocks, since QEMU 0.13.
RAM_VERSION = 4

# Folders of the directory.
BLOCKS, DEVICES, LIVE = "blocks", "devices", "live"
VMDESCRIPTION = "vmdescription.json"


def parse_manifest(text: bytes, name: str) -> UnpackedManifest:
    """Read a manifest.

    Args:
        text: The JSON.
        name: For messages: of the file.

    Raises:
        EncodeError: It is none: no JSON, a field that is missing or of another type.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise EncodeError(f"{name}: no JSON: {exc}") from None
    if not isinstance(document, dict) or document.get("schema") != UNPACKED_SCHEMA:
        raise EncodeError(
            f"{name}: no manifest of vmstream unpack: its schema is not {UNPACKED_SCHEMA}"
        )
    made: UnpackedManifest = _of(UnpackedManifest, document, name)
    return made


def full_name(name: str, name_b64: str | None, where: str) -> bytes:
    """Return the name that a manifest gives.

    Raises:
        EncodeError: It is none.
    """
    try:
        return full(name, name_b64)
    except ValueError:
        raise EncodeError(f"{where}: {name_b64 or name!r} is no name") from None


# A value of the type that an annotation says. Fields that are not known are passed over, as they
# are added within a major number; those without a default have to be there.
def _of(kind: Any, value: object, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return _of(args[0], value, path)
    if origin is list:
        if not isinstance(value, list):
            raise EncodeError(f"{path}: is a list")
        return [_of(args[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind, value, path)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "an integer", str: "text", bool: "true or false"}
        raise EncodeError(f"{path}: is {words[kind]}")
    if kind is int and not 0 <= typing.cast(int, value) < 1 << 64:
        raise EncodeError(f"{path}: is an integer from 0 on, of 64 bits")
    return value


def _object(kind: type, value: object, path: str) -> Any:
    if not isinstance(value, dict):
        raise EncodeError(f"{path}: is an object")
    hints, given = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            given[field.name] = _of(hints[field.name], value[field.name], f"{path}: {field.name}")
        elif field.default is dataclasses.MISSING:
            raise EncodeError(f"{path}: has no {field.name!r}")
    return kind(**given)
