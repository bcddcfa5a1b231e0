"""The vmdescription as a document that is changed: what is not touched comes out as it went in.

Keys that come several times in one object, as those of the elements of lists do, stay. So does the
style: QEMU 2.3 to 5.2 put blanks inside brackets and ahead of colons (QEMU v5.2.0 qobject/qjson.c),
later ones do not (QEMU v6.0.0 qobject/json-writer.c).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from vmstream.errors import EncodeError
from vmstream.wire.constants import SectionType
from vmstream.wire.parse import ConfigurationValues
from vmstream.wire.vmsd import PAIRS, SUBSECTION_FRAME, body_size, field_size

# Fields of the subsections of 'configuration'. QEMU v10.1.0 migration/savevm.c.
_PAGE_BITS = [("name", "target_page_bits"), ("type", "uint32"), ("size", 4)]
_UUID = [("name", "uuid.data"), ("array_len", 16), ("type", "uint8"), ("size", 1)]
_CAPABILITIES = [("name", "caps_count"), ("type", "uint32"), ("size", 4)]


class Document:
    """A vmdescription.

    Args:
        tree: As `DeviceTree.document` gives it. It is changed.
        text: Where it comes from.

    Attributes:
        changed: Something was.

    Raises:
        EncodeError: From every method: it is not of its shape.
    """

    def __init__(self, tree: Mapping[Any, Any], text: bytes) -> None:
        self._tree = tree
        self._spaced = text.startswith(b"{ ")
        self.changed = False

    def text(self) -> bytes:
        """Return the JSON."""
        return "".join(self._tokens(self._tree)).encode("utf-8", "surrogateescape")

    def drop_device(self, device: Mapping[Any, Any]) -> None:
        """Take a device out."""
        _remove(self._tree["devices"], device)
        self.changed = True

    def drop_subsection(self, device: Mapping[Any, Any], subsection: Mapping[Any, Any]) -> None:
        """Take a subsection out of a device, and off the sizes of the structs that it is in.

        Raises:
            EncodeError: It is in elements of an array that share one description.
        """
        chain = next(_chains(device, subsection), None)
        if chain is None:
            raise EncodeError("the vmdescription does not have it")
        size = SUBSECTION_FRAME + len(_encoded(subsection["vmsd_name"])) + body_size(subsection)
        *fields, owner = chain
        for field in fields:
            if field.get("array_len", 1) != 1:
                raise EncodeError("elements of an array share its description")
            _set(field, "size", field_size(field) - size)
        _remove(owner, subsection)
        self.changed = True

    def fit(self, device: Mapping[Any, Any], body: bytes) -> bool:
        """Take out of a device the subsections whose frames its state does not have.

        Returns:
            Whether the rest describes the state; if not, nothing was taken out.
        """
        absent: list[Mapping[Any, Any]] = []
        if _end(device, body, 0, absent) != len(body):
            return False
        for subsection in absent:
            self.drop_subsection(device, subsection)
        return True

    def configure(self, values: ConfigurationValues) -> None:
        """Describe other values of the configuration section, where it is described (8.2 on)."""
        described = self._tree.get("configuration")
        if not isinstance(described, Mapping):
            return
        for field in described.get("fields", ()):
            if field.get("name") == "name":
                _set(field, "size", len(values.name))
        made: dict[bytes, list[Sequence[tuple[str, Any]]]] = {
            b"configuration/target-page-bits": [_PAGE_BITS],
            b"configuration/uuid": [_UUID],
            b"configuration/capabilities": [_CAPABILITIES, *_described(values.capabilities)],
        }
        subsections = [
            _object(
                [
                    ("vmsd_name", name.decode()),
                    ("version", 1),
                    ("fields", [_object(pairs) for pairs in made[name]]),
                ]
            )
            for name in values.subsections
        ]
        pairs = described[PAIRS]
        pairs[:] = [p for p in pairs if p[0] != "subsections"]
        if subsections:
            pairs.append(("subsections", subsections))
        self.changed = True

    def _tokens(self, value: Any) -> Iterator[str]:
        blank = " " if self._spaced else ""
        if isinstance(value, Mapping):
            # QEMU writes the key with the first subsection.
            pairs = [p for p in value[PAIRS] if p != ("subsections", [])]
            yield "{" + blank
            for number, (key, inner) in enumerate(pairs):
                yield (", " if number else "") + _scalar(key) + blank + ": "
                yield from self._tokens(inner)
            yield blank + "}"
        elif isinstance(value, list):
            yield "[" + blank
            for number, inner in enumerate(value):
                yield ", " if number else ""
                yield from self._tokens(inner)
            yield blank + "]"
        else:
            yield _scalar(value)


def _scalar(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _encoded(name: object) -> bytes:
    return str(name).encode("utf-8", "surrogateescape")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[Any, Any]:
    return {**dict(pairs), PAIRS: list(pairs)}


# An element each, since their sizes differ.
def _described(capabilities: Sequence[bytes]) -> Iterator[Sequence[tuple[str, Any]]]:
    for number, name in enumerate(capabilities):
        index = [("index", number)] if len(capabilities) > 1 else []
        yield [("name", "capabilities"), *index, ("type", "capability"), ("size", 1 + len(name))]


# Equal objects are not the same one.
def _remove(items: list[Any], item: object) -> None:
    del items[next(i for i, other in enumerate(items) if other is item)]


def _set(described: Any, key: str, value: int) -> None:
    target: MutableMapping[Any, Any] = described
    target[key] = value
    pairs = described[PAIRS]
    pairs[:] = [(k, value if k == key else v) for k, v in pairs]


# Where a vmsd ends in a state; its subsections that are not there are added to a list. As
# `Node` has them: a subsection is there where its frame is.
def _end(vmsd: Mapping[Any, Any], body: bytes, at: int, absent: list[Mapping[Any, Any]]) -> int:
    for field in vmsd.get("fields", ()):
        size, inner = field_size(field), field.get("struct")
        own = isinstance(inner, Mapping) and "array_len" not in field
        at = _end(inner, body, at, absent) if own and body_size(inner) == size else at + size
    for sub in vmsd.get("subsections", ()):
        name = _encoded(sub["vmsd_name"])
        if body.startswith(bytes([SectionType.QEMU_VM_SUBSECTION, len(name) & 0xFF]) + name, at):
            at = _end(sub, body, at + SUBSECTION_FRAME + len(name), absent)
        else:
            absent.append(sub)
    return at


# From a vmsd down to a subsection: the fields on the way, then the list that it is in.
def _chains(vmsd: Mapping[Any, Any], wanted: object) -> Iterator[list[Any]]:
    for subsections in (v for k, v in vmsd.get(PAIRS, ()) if k == "subsections"):
        for sub in subsections:
            if sub is wanted:
                yield [subsections]
            yield from _chains(sub, wanted)
    for fields in (v for k, v in vmsd.get(PAIRS, ()) if k == "fields"):
        for field in fields:
            inner = field.get("struct", field)
            for chain in _chains(inner, wanted):
                yield [field, *chain]
