"""From the vmdescription to the byte layout of device state: sizes and places, not meaning.

QEMU v10.1.0 migration/vmstate.c vmstate_save_state_v() writes the JSON beside the bytes. A field
stands for `size` bytes, or `array_len` times as many; a subsection for its tag, its name, its
version and its fields; a nested struct's `size` already has its subsections in it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vmstream.wire.constants import MAX_VMDESCRIPTION, TARGET_PAGE_BITS

SUBSECTION_FRAME = 1 + 1 + 4

# Keys of a description that are ours, as no key of JSON can be: the vmsds of the elements of a list
# or a tree, what a field means, in words, and all keys and values as they came.
ELEMENTS = object()
MEANING = object()
PAIRS = object()


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """One device of the vmdescription.

    Attributes:
        idstr: Name of the section.
        instance_id: Its instance.
        size: Bytes of the section's body, as the description adds up.
        description: The JSON object, as it came.
    """

    idstr: bytes
    instance_id: int
    size: int
    description: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VMDescriptionLayout:
    """The vmdescription, as far as framing needs it."""

    page_size: int | None
    devices: tuple[DeviceLayout, ...]

    def queues(self) -> dict[tuple[bytes, int], deque[DeviceLayout]]:
        """The devices by name and instance, which two can share: then in stream order."""
        found: dict[tuple[bytes, int], deque[DeviceLayout]] = {}
        for device in self.devices:
            found.setdefault((device.idstr, device.instance_id), deque()).append(device)
        return found


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 64:
        raise ValueError("not an integer of 64 bits")
    return value


def _count(value: object) -> int:
    number = _integer(value)
    if not 0 <= number < 1 << 48:
        raise ValueError(f"no size: {number}")
    return number


# As configuration/target-page-bits may state it.
def _page_size(value: object) -> int:
    number = _count(value)
    if number not in (1 << bits for bits in TARGET_PAGE_BITS):
        raise ValueError(f"no page size: {number}")
    return number


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def field_size(field: Mapping[str, Any]) -> int:
    """Bytes that one entry of `fields` stands for. Raises ValueError on a damaged entry."""
    return _count(field["size"]) * _count(field.get("array_len", 1))


def body_size(vmsd: Mapping[str, Any]) -> int:
    """Bytes of a vmsd on the wire. Raises ValueError or KeyError on a damaged description."""
    size = sum(field_size(f) for f in _list(vmsd.get("fields", [])))
    for sub in _list(vmsd.get("subsections", [])):
        name = str(sub["vmsd_name"]).encode("utf-8", "surrogateescape")
        size += SUBSECTION_FRAME + len(name) + body_size(sub)
    return size


def top_fields(vmsd: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset in the body, size) of the fields at the top of a vmsd."""
    offset = 0
    for field in _list(vmsd.get("fields", [])):
        size = field_size(field)
        yield str(field.get("name", "")), offset, size
        offset += size


def may_lie(vmsd: Mapping[str, Any]) -> bool:
    """Whether the size of this description is one that QEMU is known to get wrong.

    QEMU 2.9 to 9.2 described a NULL element of a pointer array as a struct of size 1, and let
    element 0 stand for all of a compressed array (QEMU v8.2.7 migration/vmstate.c
    vmstate_save_state_v(); fixed in 10.0 by `nullptr` entries).
    """
    waiting = [vmsd]
    while waiting:
        here = waiting.pop()
        for f in _list(here.get("fields", [])):
            inner = f.get("struct")
            if isinstance(inner, dict):
                if f.get("size") == 1 or "array_len" in f:
                    return True
                waiting.append(inner)
        waiting.extend(_list(here.get("subsections", [])))
    return False


def load(text: bytes) -> VMDescriptionLayout:
    """Parse the JSON of a VMDESCRIPTION.

    Raises:
        ValueError: It is no vmdescription: not JSON, or not of its shape.
    """
    if len(text) > MAX_VMDESCRIPTION:
        raise ValueError(f"over {MAX_VMDESCRIPTION >> 20} MiB")
    try:
        tree = json.loads(text.decode("utf-8", "surrogateescape"))
        devices = tuple(
            DeviceLayout(
                idstr=str(d["name"]).encode("utf-8", "surrogateescape"),
                # QEMU prints it signed in some releases.
                instance_id=_integer(d["instance_id"]) & 0xFFFFFFFF,
                size=body_size(d),
                description=d,
            )
            for d in _list(tree["devices"])
        )
        page_size = tree.get("page_size")
        return VMDescriptionLayout(None if page_size is None else _page_size(page_size), devices)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc
    except (KeyError, TypeError, AttributeError, UnicodeError) as exc:
        raise ValueError(f"not a vmdescription: {exc!r}") from exc
