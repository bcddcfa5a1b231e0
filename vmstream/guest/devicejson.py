"""Device state as JSON that people edit, and back: what the file of `vmstream unpack` has.

Fields are a list, not an object: their order is that of the wire, and names can repeat. Each says
its type and, where that does not tell it, its size, so the bytes follow from the JSON alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from vmstream.errors import EncodeError
from vmstream.guest import values
from vmstream.guest.devices import INTEGER, MAX_DEPTH, MAX_ELEMENTS, Node
from vmstream.wire import build
from vmstream.wire.constants import MAX_DEVICE_TAIL

# Integers beyond are strings, since not every reader of JSON keeps them.
_EXACT = 1 << 53
# Elements of one byte that are a list; more are hex.
_MOST_BYTES = 16

# The JSON of a device without state.
EMPTY = "[\n]\n"

_KEYS = frozenset({"name", "type", "version", "size", "count"})
# What a field is given as: one of these.
_FORMS = ("value", "values", "text", "fields", "raw")


def to_json(device: Node) -> str:
    """Return the JSON of a device: a field a line.

    `to_bytes` gives back its state; what would not come back so is hex that has no type.
    """
    text = _text(_entries(device))
    if to_bytes(text, "") != device.raw:
        text = _text([_raw(device)])
    return text


def to_bytes(text: str, name: str) -> bytes:
    """Return the state that a JSON is.

    Args:
        text: The JSON.
        name: For messages: of the file.

    Raises:
        EncodeError: It is no such JSON, or a value is none of its type, range or size.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise EncodeError(f"{name}: no JSON: {exc}") from None
    made = _Encoding(name)
    made.fields(document, "", 0)
    return bytes(made.state)


# ---- to JSON -------------------------------------------------------------------------------------


def _entries(node: Node) -> list[dict[str, Any]]:
    return [_entry(child) for child in node.children if child.size]


def _entry(node: Node) -> dict[str, Any]:
    head: dict[str, Any] = {"name": node.name, "type": node.type}
    if node.type == "raw":
        return _raw(node)
    if node.type == "array" and (numbers := _array(node)) is not None:
        return numbers
    if node.value is None and node.type != "nullptr" and node.children:
        first = node.children[0]
        if node.type == "subsection":
            if first.type == "raw" and first.size == node.size:
                return {"name": node.name, **_raw(node)}
            head["version"] = node.version
        return {**head, "fields": _entries(node)}
    value = node.value
    if isinstance(value, int):
        if not (INTEGER.fullmatch(node.type) or node.type == "bool"):
            head["size"] = node.size
        if isinstance(value, bool) and node.raw != bytes([value]):
            return {"name": node.name, **_raw(node)}
        return {**head, "value": _number(value)}
    head["size"] = node.size
    if node.name in values.TEXTS:
        words = node.raw.rstrip(b"\0")
        if len(words) < node.size and words.isascii() and words.decode().isprintable():
            return {**head, "text": words.decode()}
    return {**head, "value": node.raw.hex()}


# An array of integers.
def _array(node: Node) -> dict[str, Any] | None:
    kind, count = str(node.description.get("type")), int(node.description.get("array_len", 0))
    match = INTEGER.fullmatch(kind)
    if match is None or "struct" in node.description or not 0 < count <= MAX_ELEMENTS:
        return None
    step = int(match[2]) // 8
    if step * count != node.size:
        return None
    head = {"name": node.name, "type": kind, "count": count}
    if step == 1 and count > _MOST_BYTES:
        return {**head, "values": node.raw.hex()}
    order, signed, raw = values.order(kind), not match[1], node.raw
    made = [
        _number(int.from_bytes(raw[at : at + step], order, signed=signed))
        for at in range(0, len(raw), step)
    ]
    return {**head, "values": made}


def _number(value: int) -> int | str:
    return value if abs(value) < _EXACT else hex(value)


def _raw(node: Node) -> dict[str, Any]:
    return {"raw": node.raw.hex()}


def _text(entries: list[dict[str, Any]]) -> str:
    return "\n".join(["[", *_lines(entries, 1), "]"]) + "\n"


def _lines(entries: list[dict[str, Any]], depth: int) -> Iterator[str]:
    for number, entry in enumerate(entries, 1):
        comma = "," if number < len(entries) else ""
        if "fields" not in entry:
            yield " " * depth + json.dumps(entry) + comma
            continue
        head = json.dumps({k: v for k, v in entry.items() if k != "fields"})
        yield " " * depth + head[:-1] + ', "fields": ['
        yield from _lines(entry["fields"], depth + 1)
        yield " " * depth + "]}" + comma


# ---- to bytes ------------------------------------------------------------------------------------


class _Encoding:
    """The state so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = bytearray()

    def fields(self, entries: object, path: str, depth: int) -> None:
        if not isinstance(entries, list) or depth > MAX_DEPTH:
            raise self.wrong(path, "is a list of fields, nested as the state of a device is")
        for number, entry in enumerate(entries):
            name = entry.get("name") if isinstance(entry, dict) else None
            here = name if isinstance(name, str) else f"field {number}"
            self.field(entry, f"{path}/{here}" if path else here, depth)
            if len(self.state) > MAX_DEVICE_TAIL:
                raise self.wrong(here, f"over {MAX_DEVICE_TAIL >> 20} MiB of state")

    def field(self, entry: object, path: str, depth: int) -> None:
        if not isinstance(entry, dict):
            raise self.wrong(path, "is an object")
        forms = [key for key in entry if key not in _KEYS]
        if len(forms) != 1 or forms[0] not in _FORMS:
            raise self.wrong(path, f"has one of {', '.join(_FORMS)}, and not {forms}")
        form, given = forms[0], entry[forms[0]]
        if form == "raw":
            self.state += self.hex(given, path)
            return
        kind = entry.get("type")
        if not isinstance(kind, str):
            raise self.wrong(path, "has no 'type'")
        if form == "fields":
            if kind == "subsection":
                name, version = entry.get("name"), self.count(entry, "version", path)
                if not isinstance(name, str):
                    raise self.wrong(path, "has no 'name'")
                encoded = name.encode("utf-8", "surrogateescape")
                self.state += build.subsection_head(encoded, version)
            self.fields(given, path, depth + 1)
        elif form == "values":
            self.values(entry, given, kind, path)
        else:
            self.state += self.value(self.node(entry, kind, path), given, form)

    def values(self, entry: Mapping[str, Any], given: object, kind: str, path: str) -> None:
        count, node = self.count(entry, "count", path), self.node(entry, kind, path)
        if isinstance(given, str) and node.size == 1:
            data = self.hex(given, path)
            if len(data) != count:
                raise self.wrong(path, f"takes {count} bytes in hex, and not {len(data)}")
            self.state += data
            return
        if not isinstance(given, list) or len(given) != count:
            found = f", and not {len(given)}" if isinstance(given, list) else ""
            raise self.wrong(path, f"takes a list of {count} values{found}")
        # Nearly all there are; the others tell which of them is wrong, too.
        if INTEGER.fullmatch(kind) and all(type(value) is int for value in given):
            with suppress(OverflowError):
                size, order, signed = node.size, values.order(kind), kind[0] != "u"
                self.state += b"".join(v.to_bytes(size, order, signed=signed) for v in given)
                return
        for value in given:
            self.state += self.value(node, value, "value")

    def value(self, node: Node, given: object, form: str) -> bytes:
        if form == "value" and not isinstance(node.value, int):
            data = self.hex(given, node.path)
            if len(data) != node.size:
                raise self.wrong(node.path, f"takes {node.size} bytes in hex, and not {len(data)}")
            return data
        wanted: tuple[type, ...] = (str,) if form == "text" else (int, str)
        if form == "text" and node.name not in values.TEXTS:
            raise self.wrong(node.path, "is no text")
        if not isinstance(given, wanted) or (
            isinstance(given, bool) and not isinstance(node.value, bool)
        ):
            raise self.wrong(node.path, f"takes no {type(given).__name__}")
        try:
            return b"".join(data for _, data in values.encode(node, str(given)))
        except (EncodeError, UnicodeError) as error:
            raise EncodeError(f"{self.name}: {error}") from None

    # A node of this type, whose value is yet to come.
    def node(self, entry: Mapping[str, Any], kind: str, path: str) -> Node:
        match = INTEGER.fullmatch(kind)
        if "size" in entry or (match is None and kind != "bool"):
            size = self.count(entry, "size", path)
        else:
            size = int(match[2]) // 8 if match is not None else 1
        # Only numbers have a value of their own; the rest is bytes, whatever it is called.
        body = memoryview(bytes(size if size <= 8 else 0))
        made = Node(str(entry.get("name")), path, kind, 0, size, None, body)
        if size > 8 or not isinstance(made.value, int):
            made = Node(made.name, path, "bytes", 0, size, None, body)
        return made

    def count(self, entry: Mapping[str, Any], key: str, path: str) -> int:
        value = entry.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
            raise self.wrong(path, f"'{key}' is a number from 0 on, and not {value!r}")
        return value

    def hex(self, given: object, path: str) -> bytes:
        try:
            return bytes.fromhex(given) if isinstance(given, str) else self._no_hex(path)
        except ValueError:
            return self._no_hex(path)

    def _no_hex(self, path: str) -> bytes:
        raise self.wrong(path, "takes bytes in hex")

    def wrong(self, path: str, what: str) -> EncodeError:
        return EncodeError(f"{self.name}: {path or 'the document'}: {what}")
