"""Text to the bytes of a field of device state: the reverse of `Node.value`, as `get` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from vmstream.errors import EncodeError
from vmstream.guest.devices import INTEGER, Node

_TRUTH = {"true": 1, "1": 1, "false": 0, "0": 0}
# Fields of text, padded with NULs.
TEXTS = frozenset({"runstate"})
_NO_VALUE = frozenset({"nullptr", "ptr-marker", "ambiguous"})


def encode(node: Node, text: str) -> Iterator[tuple[Node, bytes]]:
    """Yield the bytes that a value is, for the node itself or for the elements of an array.

    Args:
        node: A number, truth value, bytes, text, or an array of these.
        text: A number, decimal or 0x hex; true or false; bytes in hex; the elements of an array
            with blanks or commas between.

    Raises:
        EncodeError: The text is no value of this type, of this range and this length.
    """
    if node.type == "array" and node.children:
        words = re.split(r"[\s,]+", text.strip())
        if len(words) != len(node.children):
            raise _wrong(node, f"takes {len(node.children)} values, and not {len(words)}")
        for child, word in zip(node.children, words, strict=True):
            yield from encode(child, word)
        return
    value = node.value
    if value is None or node.type in _NO_VALUE:
        raise _wrong(node, "has no value of its own: set what is in it")
    match = INTEGER.fullmatch(node.type)
    if isinstance(value, bytes):
        yield node, _bytes(node, text)
    elif isinstance(value, bool):
        if text.lower() not in _TRUTH:
            raise _wrong(node, f"takes true or false, and not {text!r}")
        yield node, bytes([_TRUTH[text.lower()]])
    else:
        signed = match is not None and not match[1]
        yield node, _number(node, text).to_bytes(node.size, order(node.type), signed=signed)


def order(kind: str) -> Literal["big", "little"]:
    """Return the byte order of a type."""
    return "little" if kind.endswith(" little") else "big"


def _number(node: Node, text: str) -> int:
    match = INTEGER.fullmatch(node.type)
    bits = 8 * node.size
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1)
    if match is None or match[1]:
        low, high = 0, (1 << bits) - 1
    try:
        number = int(text, 0)
    except ValueError:
        raise _wrong(node, f"takes a number, and not {text!r}") from None
    if not low <= number <= high:
        raise _wrong(node, f"takes {low:#x} to {high:#x}, and not {text}")
    return number


def _bytes(node: Node, text: str) -> bytes:
    if node.name in TEXTS:
        data = text.encode()
        # A NUL ends it.
        if len(data) >= node.size:
            raise _wrong(node, f"takes fewer than {node.size} bytes of text")
        return data.ljust(node.size, b"\0")
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise _wrong(node, f"takes {node.size} bytes in hex") from None
    if len(data) != node.size:
        raise _wrong(node, f"takes {node.size} bytes in hex, and not {len(data)}")
    return data


def _wrong(node: Node, what: str) -> EncodeError:
    return EncodeError(f"{node.path} ({node.type}) {what}")
