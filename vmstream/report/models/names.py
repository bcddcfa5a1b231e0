"""Names from a stream as text, and in full where they are no plain UTF-8."""

from __future__ import annotations

import base64


def readable(name: bytes) -> str:
    """Name as text: UTF-8, with what is none as backslash escapes."""
    return name.decode("utf-8", "backslashreplace")


def full(name: str, name_b64: str | None) -> bytes:
    """Name that `readable` and `in_full` gave. Raises ValueError if the base64 is none."""
    return name.encode() if name_b64 is None else base64.b64decode(name_b64, validate=True)


def in_full(name: bytes) -> str | None:
    """Base64 of a name that `readable` does not give back, else `None`."""
    text = readable(name)
    return None if text.encode() == name else base64.b64encode(name).decode()
