"""Device state as a tree: the vmdescription's fields over the bytes of each section.

The description says how many bytes each field has, so a value is found without the code that wrote
it. What it does not name, or names wrongly, is a node of type 'raw': the nodes of a device cover
its body to the byte. Nothing is decoded before it is asked for.
QEMU v10.1.0 migration/vmstate.c vmstate_save_state_v(), vmsd_desc_field_start().
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from vmstream.guest.schema import StaticSchema
from vmstream.guest.virtio import describe
from vmstream.wire.vmsd import (
    ELEMENTS,
    MEANING,
    PAIRS,
    SUBSECTION_FRAME,
    body_size,
    field_size,
)

# 'le' is a comparison of QEMU's; numbers that are little-endian are so in a guest's structures.
INTEGER = re.compile(r"(u?)int(8|16|32|64)( equal| le| little)?")
# Written by functions of their own, as one big-endian number.
# QEMU v10.1.0 target/arm/machine.c vmstate_cpsr, hw/arm/armv7m.c; target/ppc/machine.c.
_NUMBERS = frozenset({"timer", "cpsr", "xpsr", "fpscr", "CPU_Double_U", "float64"})
_LISTS = frozenset({"qtailq", "qlist", "gtree"})
_INLINE = frozenset({"tmp", "vstruct"})
# QEMU v10.1.0 migration/vmstate-types.c VMS_NULLPTR_MARKER; since 2.9, and 0x31 for one that is
# not NULL since 11.0.
_NULL = 0x30
_SUBSECTION = 5

# What a hostile description may nest, and nodes that a device may have.
MAX_DEPTH = 64
MAX_ELEMENTS = 1 << 20

# Descriptions of another stream that are held against one section, and fields in all.
_MAX_ALIKE = 16
_MAX_FIELDS_TRIED = 1 << 20

Value = int | bool | bytes | None


@dataclass(frozen=True, eq=False)
class Node:
    """A field, an element, a struct, a subsection, a device, or bytes that nothing names.

    Attributes:
        name: As in the description; an element of an array has its index behind it.
        path: Names from the device down, joined by '/'.
        type: Of the description; 'struct', 'array', 'subsection', 'device' or 'raw'.
        offset: In the stream, bytes.
        size: Bytes.
        version: Of a device or subsection.
    """

    name: str
    path: str
    type: str
    offset: int
    size: int
    version: int | None = None
    _body: memoryview = field(repr=False, default=memoryview(b""))
    _describe: Mapping[Any, Any] = field(repr=False, default_factory=dict)
    _depth: int = 0

    @property
    def raw(self) -> bytes:
        """The bytes."""
        return bytes(self._body)

    @property
    def value(self) -> Value:
        """Number, truth value or bytes; `None` for a NULL pointer and for what has children."""
        match = INTEGER.fullmatch(self.type)
        if match is not None and self.size * 8 == int(match[2]):
            order: Literal["big", "little"] = "little" if match[3] == " little" else "big"
            return int.from_bytes(self._body, order, signed=not match[1])
        if self.type in ("bool", "powered_off") and self.size == 1:
            return bool(self._body[0])
        if self.type in _NUMBERS and self.size in (1, 2, 4, 8):
            return int.from_bytes(self._body, "big")
        if self.type in ("nullptr", "struct", "array", "subsection", "device", *_INLINE, *_LISTS):
            return None
        if self.type == "virtio" and self.children:
            return None
        return self.raw

    @property
    def description(self) -> Mapping[Any, Any]:
        """What the vmdescription says of it, as it was parsed; empty where it says nothing."""
        return self._describe

    @property
    def said(self) -> str | None:
        """What the value means in words, where its place tells; an inference."""
        words = self._describe.get(MEANING)
        return str(words) if words is not None else None

    @cached_property
    def children(self) -> tuple[Node, ...]:
        """What is inside, in the order of the wire; empty for a value."""
        try:
            return tuple(self._children())
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            return (self._raw(0, self.size),) if self.size else ()

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def _children(self) -> Iterator[Node]:
        inside = self.type in ("array", "subsection", "struct", "device", *_INLINE, *_LISTS)
        if inside and self._depth >= MAX_DEPTH:
            yield self._raw(0, self.size)
        elif self.type == "array":
            length = int(self._describe["array_len"])
            if not self.size or length > MAX_ELEMENTS:
                # Elements without bytes can be as many as somebody cares to state.
                if self.size:
                    yield self._raw(0, self.size)
                return
            step = self.size // length
            for i in range(length):
                yield self._element(self._describe, f"{self.name}[{i}]", i * step, step)
        elif self.type == "subsection":
            yield from self._vmsd(self._describe, SUBSECTION_FRAME + len(_encoded(self.name)))
        elif self.type in _LISTS:
            yield from self._list()
        elif self.type == "virtio":
            made = describe(self._body, self.path.rpartition("/")[0]) if self.size else None
            if made is not None:
                yield from self._vmsd(made, 0)
        elif self.type in ("struct", "device", *_INLINE):
            inner = self._describe.get("struct", self._describe)
            if inner.get("fields") or inner.get("subsections") or self.type == "device":
                yield from self._vmsd(inner, 0)
            elif self.size:
                yield self._raw(0, self.size)

    # The fields and subsections of a vmsd from `at` on, and what is left.
    def _vmsd(self, vmsd: Mapping[str, Any], at: int) -> Iterator[Node]:
        counts: dict[str, int] = {}
        names = [str(f.get("name", "")) for f in vmsd.get("fields", ())]
        times = Counter(names)
        several = {name for name, count in times.items() if count > 1}
        for f, name in zip(vmsd.get("fields", ()), names, strict=True):
            size = field_size(f)
            if at + size > self.size:
                break
            if "index" in f:
                # The last of them comes without (10.0), as each does since 11.0.
                counts[name] = int(f["index"]) + 1
                yield self._element(f, f"{name}[{int(f['index'])}]", at, size)
            elif name in several:
                # An array in runs: NULL pointers apart (10.0), or a marker for each (11.0).
                yield from self._run(f, name, at, counts)
            else:
                yield self._field(f, name, at, size, again=f"{name}[0]" in times)
            at += size
        else:
            for sub in vmsd.get("subsections", ()):
                name = str(sub["vmsd_name"])
                size = SUBSECTION_FRAME + len(_encoded(name)) + body_size(sub)
                if at + size > self.size or not self._is_subsection(at, name):
                    break
                version = int.from_bytes(self._body[at + 2 + len(_encoded(name)) :][:4], "big")
                yield self._node(name, "subsection", at, size, sub, version)
                at += size
        if at < self.size:
            yield self._raw(at, self.size - at)

    def _is_subsection(self, at: int, name: str) -> bool:
        encoded = _encoded(name)
        head = bytes([_SUBSECTION, len(encoded) & 0xFF]) + encoded
        return self._body[at : at + len(head)] == head

    def _run(
        self, f: Mapping[str, Any], name: str, at: int, counts: dict[str, int]
    ) -> Iterator[Node]:
        length, size = int(f.get("array_len", 1)), field_size(f)
        if not size or length > MAX_ELEMENTS:
            yield self._node(f"{name}[{counts.get(name, 0)}]", "array", at, size, f)
            counts[name] = counts.get(name, 0) + 1
            return
        size //= length
        for i in range(length):
            number = counts.get(name, 0)
            if f["type"] == "ptr-marker":
                if self._body[at] == _NULL:
                    yield self._node(f"{name}[{number}]", "nullptr", at, size, f)
                    counts[name] = number + 1
                else:
                    yield self._node(f"{name}[{number}].marker", "ptr-marker", at, size, f)
            else:
                yield self._element(f, f"{name}[{number}]", at + i * size, size)
                counts[name] = number + 1

    # `again`: another field is named as an element of this one would be (the array behind
    # env.vfp.xregs[0] of QEMU v10.1.0 target/arm/machine.c vmstate_vfp).
    def _field(
        self, f: Mapping[str, Any], name: str, at: int, size: int, *, again: bool = False
    ) -> Node:
        if int(f.get("array_len", 1)) != 1 or "array_len" in f:
            made = self._node(name, "array", at, size, f)
            return replace(made, path=made.path + "#2") if again else made
        return self._element(f, name, at, size)

    # One value or struct. A struct of one byte without fields is a NULL pointer (2.9 to 9.2).
    def _element(self, f: Mapping[str, Any], name: str, at: int, size: int) -> Node:
        inner = f.get("struct")
        null = isinstance(inner, Mapping) and not inner.get("fields") and size == 1
        if null and self._body[at] == _NULL:
            return self._node(name, "nullptr", at, size, f)
        # A static description has them among the fields.
        version = int(f["version"]) if f["type"] == "subsection" else None
        return self._node(name, str(f["type"]), at, size, f, version)

    # A byte of 1 and the element, again and again, then 0. A tree has the number of its elements in
    # front, and a key ahead of each: a vmsd of its own, or a number of 64 bits. QEMU v10.1.0
    # migration/vmstate-types.c put_qtailq(), put_qlist(), put_gtree().
    def _list(self) -> Iterator[Node]:
        elements = self._describe.get(ELEMENTS, ())
        at, keyed = 0, False
        if self.type == "gtree" and self.size >= 4:
            count = int.from_bytes(self._body[:4], "big")
            yield self._node(f"{self.name}.count", "uint32", 0, 4, {})
            at, keyed = 4, bool(elements) and len(elements) == 2 * count
        for number in range(len(elements) // (2 if keyed else 1)):
            vmsd = elements[2 * number + 1 if keyed else number]
            key, size = 0, body_size(vmsd)
            if self.type == "gtree":
                key = body_size(elements[2 * number]) if keyed else 8
            if at + 1 + key + size >= self.size or self._body[at] != 1:
                break
            name = f"{self.name}[{number}]"
            yield self._node(f"{name}.marker", "ptr-marker", at, 1, {})
            if keyed:
                yield self._node(f"{name}.key", "struct", at + 1, key, elements[2 * number])
            elif key:
                yield self._node(f"{name}.key", "uint64", at + 1, key, {})
            yield self._node(name, "struct", at + 1 + key, size, vmsd)
            at += 1 + key + size
        if at + 1 == self.size and not self._body[at]:
            yield self._node(f"{self.name}.end", "ptr-marker", at, 1, {})
        elif at < self.size:
            yield self._raw(at, self.size - at)

    def _raw(self, at: int, size: int) -> Node:
        return self._node(f"raw@{at:#x}", "raw", at, size, {})

    def _node(
        self,
        name: str,
        kind: str,
        at: int,
        size: int,
        describe: Mapping[str, Any],
        version: int | None = None,
    ) -> Node:
        # An element is named as if it stood beside its array, as it does where QEMU lists it alone.
        alone = (self.type == "array" or self.type in _LISTS) and name.startswith(self.name)
        return Node(
            name,
            self.path + name[len(self.name) :] if alone else f"{self.path}/{name}",
            kind,
            self.offset + at,
            size,
            version,
            self._body[at : at + size],
            describe,
            self._depth + 1,
        )


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# Several vmsds in one object are elements of a list, whose keys come once for each.
_VMSD_KEYS = ("vmsd_name", "version", "fields", "subsections")


def _object(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    made: dict[Any, Any] = dict(pairs)
    made[PAIRS] = pairs
    if made.get("type") in _LISTS:
        elements: list[dict[str, Any]] = []
        for key, value in pairs:
            if key == "vmsd_name":
                elements.append({})
            if key in _VMSD_KEYS and elements:
                elements[-1][key] = value
        made[ELEMENTS] = elements
    return made


@dataclass(frozen=True, slots=True)
class Section:
    """A device section as it stands in a stream.

    Attributes:
        idstr: Name of the section.
        instance_id: Its instance.
        version_id: Version of its state.
        offset: Of the body in the stream, bytes.
        body: The body, owned.
    """

    idstr: bytes
    instance_id: int
    version_id: int
    offset: int
    body: bytes = field(repr=False)


class DeviceTree(Sequence[Node]):
    """The devices of a stream, in its order; each is a `Node`.

    Args:
        sections: The device sections.
        text: The vmdescription; without one every body is raw.
        borrowed: The vmdescription is that of another stream: it counts for a section of the same
            name and version only if it has the same size, but for subsections that are absent, and
            then it is an inference.
        static: What `qemu -M X -dump-vmstate FILE` wrote, for sections without a description.

    Attributes:
        sections: The device sections, in the order of the devices.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        text: bytes | None,
        *,
        borrowed: bool = False,
        static: StaticSchema | None = None,
    ) -> None:
        self.sections = sections
        self._text = text
        self._borrowed = borrowed
        self._static = static
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self.sections)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if number not in self._nodes:
            self._nodes[number] = self._device(number)
        return self._nodes[number]

    def find(self, pattern: str) -> Iterator[Node]:
        """Yield the nodes whose path a pattern matches.

        A path is the name of the section, its instance in brackets, and the names below: as in
        `cpu[0]/env.regs[4]`. In a pattern `*` is any text but '/', `**` any text, `?` a character.
        The instance may be left out.
        """
        match = path_pattern(pattern)
        deep = "/" in pattern or "**" in pattern
        for device in self:
            short = device.path.rpartition("[")[0]
            if not deep and not match(device.path) and not match(short):
                continue
            for node in device.walk() if deep else (device,):
                if match(node.path) or match(short + node.path[len(device.path) :]):
                    yield node

    @cached_property
    def _paths(self) -> list[str]:
        seen: dict[str, int] = {}
        paths = []
        for section in self.sections:
            name = section.idstr.decode("utf-8", "backslashreplace")
            path = f"{name}[{section.instance_id}]"
            seen[path] = seen.get(path, 0) + 1
            # (name, instance) is not unique: isapc of 7.2 has two isa-ide of instance 0.
            paths.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
        return paths

    @property
    def undescribed(self) -> list[str]:
        """Paths of the devices that no description fits."""
        return [path for n, path in enumerate(self._paths) if n not in self._described]

    # The descriptions of the devices, in order, by name and instance.
    @cached_property
    def _described(self) -> dict[int, Mapping[str, Any]]:
        waiting: dict[tuple[bytes, int], list[Mapping[str, Any]]] = {}
        try:
            for device in self._descriptions():
                key = _encoded(str(device["name"])), int(device["instance_id"]) & 0xFFFFFFFF
                waiting.setdefault(key, []).append(device)
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
        # One device describes another of its kind, on another bus too.
        kinds: dict[bytes, list[Mapping[str, Any]]] = {}
        for (idstr, _), there in waiting.items():
            kinds.setdefault(idstr.rpartition(b"/")[2], []).extend(there)
        found = {}
        borrowing = _Borrowing()
        for number, section in enumerate(self.sections):
            there = waiting.get((section.idstr, section.instance_id), [])
            described: Mapping[str, Any] | None = None
            if self._borrowed:
                alike = kinds.get(section.idstr.rpartition(b"/")[2], [])
                tried = (*there[:_MAX_ALIKE], *alike[:_MAX_ALIKE])
                described = borrowing.describe(section, tried)
            elif there:
                described = there.pop(0)
            if described is None and self._static is not None:
                described = self._static.describe(section.idstr, section.version_id, section.body)
            if described is not None:
                found[number] = described
        return found

    def _descriptions(self) -> Sequence[Mapping[str, Any]]:
        if self._text is None:
            return ()
        devices: Sequence[Mapping[str, Any]] = self.document["devices"]
        return devices

    @cached_property
    def document(self) -> Mapping[Any, Any]:
        """The vmdescription as it was parsed. Raises ValueError, or RecursionError."""
        text = (self._text or b"").decode("utf-8", "surrogateescape")
        document: Mapping[Any, Any] = json.loads(text, object_pairs_hook=_object)
        return document

    def _device(self, number: int) -> Node:
        section = self.sections[number]
        path = self._paths[number]
        return Node(
            path,
            path,
            "device",
            section.offset,
            len(section.body),
            section.version_id,
            memoryview(section.body),
            self._described.get(number, {}),
        )


class _Borrowing:
    """What of another stream's vmdescription can be of a section: its version and its size."""

    def __init__(self) -> None:
        self.left = _MAX_FIELDS_TRIED
        self.sizes: dict[int, int | None] = {}

    def describe(
        self, section: Section, tried: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any] | None:
        size = len(section.body)
        there = [d for d in tried if d.get("version") in (section.version_id, None)]
        for one in there:
            if self._size(one) == size:
                return one
        for one in there if self.left > 0 else ():
            full = self._size(one)
            if full is not None and (made := self._fitted(one, full, section.body)) is not None:
                return made
        return None

    def _size(self, one: Mapping[str, Any]) -> int | None:
        if id(one) not in self.sizes:
            try:
                self.sizes[id(one)] = body_size(one)
            except (KeyError, TypeError, ValueError, AttributeError):
                self.sizes[id(one)] = None
        return self.sizes[id(one)]

    # Without the subsections that the section does not have, as those of an older machine type.
    def _fitted(self, one: Mapping[str, Any], full: int, body: bytes) -> Mapping[str, Any] | None:
        self.left -= 1
        if full < len(body):
            return None
        try:
            made, end = self._without(one, body, 0)
        except (LookupError, TypeError, ValueError, AttributeError):
            return None
        return made if end == len(body) else None

    # A subsection is there where its frame is. Those of a struct come behind its fields.
    # QEMU v10.1.0 migration/vmstate.c vmstate_subsection_load().
    def _without(
        self, vmsd: Mapping[str, Any], body: bytes, at: int
    ) -> tuple[Mapping[str, Any], int]:
        fields, subsections = [], []
        for f in vmsd.get("fields", ()):
            self.left -= 1
            size, inner = field_size(f), f.get("struct")
            if self.left < 0 or at > len(body):
                raise LookupError
            if isinstance(inner, Mapping) and "array_len" not in f and self._size(inner) == size:
                made, end = self._without(inner, body, at)
                fields.append({**f, "struct": made, "size": end - at})
                at = end
            else:
                fields.append(f)
                at += size
        for sub in vmsd.get("subsections", ()):
            name = _encoded(str(sub["vmsd_name"]))
            head = bytes([_SUBSECTION, len(name) & 0xFF]) + name
            version = int(sub["version"]).to_bytes(4, "big")
            if body.startswith(head + version, at):
                made, at = self._without(sub, body, at + len(head) + len(version))
                subsections.append(made)
        return {**vmsd, "fields": fields, "subsections": subsections}, at


def path_pattern(pattern: str) -> Callable[[str], Any]:
    """Return what tells whether a path is of a pattern, as `DeviceTree.find` has them."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(words.get(part) or re.escape(part) for part in parts)
    return re.compile(text, re.DOTALL).fullmatch
