"""Device state by the static description that `qemu -M X -dump-vmstate FILE` writes.

It has the fields of each device type with their sizes, but not what a run decided: which
conditional fields are there, how many elements an array of variable length has, and, before QEMU
8.1, that a field is an array at all. Subsections tell themselves by their frames. So all layouts
that end where the section does are worked out together, and a field is named only where every one
of them has it at the same place: the rest is of type 'ambiguous'. State that a function of its own
writes, of any size, leaves nothing that the end could settle. Types are not in it either: 1, 2, 4
and 8 bytes are taken for an unsigned number. All of that is inference.
QEMU v10.1.0 migration/savevm.c dump_vmstate_vmsf(); `num` came with 8.1 (patch
"migration/vmstate-dump: Dump array size too", April 2023), and is looked for.

Layouts are not listed one by one, since there can be 2^n of them: a set of places in the body is an
integer with a bit for each, which a field shifts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vmstream.wire.vmsd import SUBSECTION_FRAME

# A static description: that of QEMU 11.1 has 0.9 MB, 237 devices, 7 levels and 4,600 fields.
MAX_SCHEMA = 16 << 20
_MAX_DEPTH = 32
_MAX_SIZE = 1 << 48

# Bytes of sets that are worked through for one section and for all before they are given up; what
# a step costs at the least; elements.
_MAX_WORK = 1 << 27
_MAX_WORK_IN_ALL = 1 << 29
_STEP_WORK = 512
_MAX_STEPS = 1 << 17

# Device types of one name, and what it costs at the least to hold a section against one.
_MAX_KINDS = 64
_KIND_WORK = 1 << 13

_INTEGERS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


class _TooMuchError(Exception):
    """More layouts than are worth the time."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A field, or a subsection, as it can stand in a body.

    Attributes:
        name: Of the field.
        size: Bytes of an element, if it is no struct; 0 if that is not stated.
        count: Elements; `None` if that is not stated.
        optional: The field may be absent.
        inner: Steps of a struct or subsection.
        frame: Of a subsection, up to its name.
    """

    name: str
    size: int
    count: int | None = 1
    optional: bool = False
    inner: tuple[_Step, ...] | None = None
    frame: bytes = b""


@dataclass(frozen=True, slots=True)
class StaticSchema:
    """What a file of -dump-vmstate says.

    Attributes:
        machine: Machine type that it was written for, if it says so.
        counted: It has the lengths of arrays (QEMU 8.1 and later).
    """

    machine: str | None
    counted: bool
    _kinds: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)
    _left: list[int] = field(repr=False, default_factory=lambda: [_MAX_WORK_IN_ALL])

    @classmethod
    def load(cls, text: bytes) -> StaticSchema:
        """Parse a file.

        Raises:
            ValueError: It is not what -dump-vmstate writes.
        """
        if len(text) > MAX_SCHEMA:
            raise ValueError(f"over {MAX_SCHEMA >> 20} MiB")
        try:
            tree = json.loads(text.decode("utf-8", "surrogateescape"))
            machine = tree.get("vmschkmachine", {}).get("Name")
            kinds: dict[str, list[Mapping[str, Any]]] = {}
            for kind in tree.values():
                vmsd = kind.get("Description")
                if vmsd is not None:
                    there = kinds.setdefault(str(vmsd["name"]), [])
                    if len(there) <= _MAX_KINDS and vmsd not in there:
                        there.append(vmsd)
        except RecursionError as exc:
            raise ValueError("nested too deep") from exc
        except (KeyError, TypeError, AttributeError, UnicodeError) as exc:
            raise ValueError(f"not a file of -dump-vmstate: {exc!r}") from exc
        if not kinds:
            raise ValueError("not a file of -dump-vmstate: no device has a description")
        machine = machine if isinstance(machine, str) else None
        return cls(machine, b'"num":' in text, kinds)

    def describe(self, idstr: bytes, version: int, body: bytes) -> Mapping[str, Any] | None:
        """Return a description of a section, in the form of the vmdescription.

        Args:
            idstr: Name of the section.
            version: Its version.
            body: Its bytes.

        Returns:
            A vmsd whose fields cover the body, those that are not settled of type 'ambiguous';
            `None` if no device type of that name can have this version and size.
        """
        found: list[dict[str, Any]] = []
        named = self.named(idstr.decode("utf-8", "surrogateescape"))
        if named and (self._left[0] <= 0 or len(named) > _MAX_KINDS):
            return _vmsd(str(named[0]["name"]), version, [_ambiguous(0, len(body))])
        for vmsd in named:
            described = self._layout(vmsd, version, body)
            if described is not None and described not in found:
                found.append(described)
        if len(found) > 1:
            return _vmsd(found[0]["vmsd_name"], version, [_ambiguous(0, len(body))])
        return found[0] if found else None

    def named(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return the vmsds that a section can be of: a path of the bus stands ahead of the name."""
        while name not in self._kinds and "/" in name:
            name = name.partition("/")[2]
        return self._kinds.get(name, ())

    def _layout(self, vmsd: Mapping[str, Any], version: int, body: bytes) -> dict[str, Any] | None:
        try:
            low = _number(vmsd["minimum_version_id"], signed=True)
            if not low <= version <= _number(vmsd["version_id"], signed=True):
                return None
            self._left[0] -= _KIND_WORK
            steps = tuple(_steps(vmsd, version, 0))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        # Lengths that are not stated are asked for only where no layout goes without, if those
        # of other arrays are.
        for stretch in (False, True) if self.counted else (True,):
            layouts = _Layouts(body, stretch, min(_MAX_WORK, self._left[0]))
            try:
                fields = list(layouts.between(steps, 0, len(body)))
            except _TooMuchError:
                fields = [_ambiguous(0, len(body))]
            except LookupError:
                continue
            finally:
                self._left[0] -= layouts.work
            free = list(_unsized(steps, body))
            if len(free) > 1 and any(free):
                fields = [_ambiguous(0, len(body))]
            return _vmsd(str(vmsd["name"]), version, fields)
        return None


def _vmsd(name: str, version: int, fields: list[dict[str, Any]]) -> dict[str, Any]:
    # Subsections are among the fields, since one of a struct can stand between others.
    return {"vmsd_name": name, "version": version, "fields": fields}


def _ambiguous(at: int, size: int) -> dict[str, Any]:
    return {"name": f"ambiguous@{at:#x}", "type": "ambiguous", "size": size}


def _number(value: object, *, signed: bool = False) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -signed * _MAX_SIZE <= value:
        raise ValueError("not a number")
    if value >= _MAX_SIZE:
        raise ValueError("no size")
    return value


# The fields of a vmsd at a version, then its subsections.
# QEMU v10.1.0 migration/vmstate.c vmstate_save_state_v(): the callback decides, else the version.
def _steps(vmsd: Mapping[str, Any], version: int, depth: int) -> Iterator[_Step]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    fields = vmsd.get("Fields", ())
    times = Counter(str(f["field"]) for f in fields)
    seen: Counter[str] = Counter()
    for f in fields:
        name = str(f["field"])
        if times[name] > 1:
            # As the vmdescription tells them apart. vmstate.c vmfield_get_name().
            seen[name] += 1
            name += f"[{seen[name] - 1}]"
        optional = f["field_exists"] is True
        if not optional and _number(f["version_id"], signed=True) > version:
            continue
        count = _number(f["num"]) if "num" in f else None
        inner = f.get("Description")
        if inner is not None:
            steps = tuple(_steps(inner, _number(inner["version_id"], signed=True), depth + 1))
            yield _Step(name, 0, count, optional, steps)
        else:
            yield _Step(name, _number(f["size"]), count, optional)
    for sub in vmsd.get("Subsections", ()):
        encoded = str(sub["name"]).encode("utf-8", "surrogateescape")
        steps = tuple(_steps(sub, _number(sub["version_id"], signed=True), depth + 1))
        frame = b"\5" + bytes([len(encoded) & 0xFF]) + encoded
        yield _Step(str(sub["name"]), 0, 1, inner=steps, frame=frame)


# Each field without a length, in structs and subsections too: whether it has no size either.
def _unsized(steps: Sequence[_Step], body: bytes) -> Iterator[bool]:
    for step in steps:
        if step.inner is not None:
            if step.frame in body:
                yield from _unsized(step.inner, body)
        elif step.count is None:
            yield not step.size


class _Layouts:
    """All layouts of one body, as sets of places: bit n of an integer is byte n.

    `stretch`: a field without a length may have more than one element; `most`: work to do.
    """

    def __init__(self, body: bytes, stretch: bool, most: int) -> None:
        self.body = body
        self.all = (1 << len(body) + 1) - 1
        self.stretch = stretch
        self.work = 0
        self.most = most
        self.frames: dict[bytes, int] = {}

    # The fields between two places, by what all layouts have in common. LookupError: none fits.
    def between(self, steps: Sequence[_Step], begin: int, end: int) -> Iterator[dict[str, Any]]:
        ahead = [1 << begin]
        for step in steps:
            ahead.append(self._through(step, ahead[-1]))
        behind = [1 << end]
        for step in reversed(steps):
            behind.append(self._back(step, behind[-1]))
        places = [a & b for a, b in zip(ahead, reversed(behind), strict=True)]
        if not places[0]:
            raise LookupError
        at = begin
        pending = False
        for step, here, there in zip(steps, places, places[1:], strict=False):
            if there & there - 1:
                pending = True
                continue
            to = there.bit_length() - 1
            if pending or here & here - 1:
                if to > at:
                    yield _ambiguous(at, to - at)
            elif to > at:
                yield from self._fields(step, at, to)
            at, pending = to, False

    # Where a step can end, of where it begins.
    def _through(self, step: _Step, places: int) -> int:
        self._spend()
        if step.frame:
            begun, other = self._framed(step, places)
            return other | self._inner(step, begun << self._frame_size(step) & self.all)
        return self._repeat(step, places, back=False) | (places if step.optional else 0)

    # Where it can begin, of where it ends.
    def _back(self, step: _Step, places: int) -> int:
        self._spend()
        if step.frame:
            begun, _ = self._framed(
                step, self._inner(step, places, back=True) >> self._frame_size(step)
            )
            _, other = self._framed(step, places)
            return other | begun
        return self._repeat(step, places, back=True) | (places if step.optional else 0)

    def _spend(self) -> None:
        self.work += _STEP_WORK + len(self.body) // 8
        if self.work > self.most:
            raise _TooMuchError

    # A subsection is there where its frame is, and only there.
    # QEMU v10.1.0 migration/vmstate.c vmstate_subsection_load().
    def _framed(self, step: _Step, places: int) -> tuple[int, int]:
        if step.frame not in self.frames:
            marks, at = 0, self.body.find(step.frame)
            while at >= 0:
                self._spend()
                marks |= 1 << at
                at = self.body.find(step.frame, at + 1)
            self.frames[step.frame] = marks
        return places & self.frames[step.frame], places & ~self.frames[step.frame]

    @staticmethod
    def _frame_size(step: _Step) -> int:
        return SUBSECTION_FRAME + len(step.frame) - 2

    def _inner(self, step: _Step, places: int, *, back: bool = False) -> int:
        inner = step.inner or ()
        for s in reversed(inner) if back else inner:
            if not places:
                break
            places = self._back(s, places) if back else self._through(s, places)
        return places

    def _repeat(self, step: _Step, places: int, *, back: bool) -> int:
        if step.inner is None and not step.size and step.count is None:
            # Written by a function of its own: of any size.
            if not places:
                return 0
            return (2 << places.bit_length() - 1) - 1 if back else self.all & -(places & -places)
        if step.count is not None:
            if step.inner is None:
                size = step.size * step.count
                return places >> size if back else self._shift(places, size)
            for _ in range(step.count):
                if not places:
                    break
                self._spend()
                before, places = places, self._inner(step, places, back=back)
                if places == before:
                    break
            return places
        found = reached = self._once(step, places, back=back)
        if self.stretch and step.inner is not None:
            found |= places  # an array of structs may have no element
        while reached and self._stretches(step):
            self._spend()
            reached = self._once(step, reached, back=back) & ~found
            found |= reached
        return found

    def _stretches(self, step: _Step) -> bool:
        return self.stretch and (step.inner is not None or step.size in _INTEGERS)

    def _once(self, step: _Step, places: int, *, back: bool) -> int:
        if step.inner is not None:
            return self._inner(step, places, back=back)
        return places >> step.size if back else self._shift(places, step.size)

    def _shift(self, places: int, size: int) -> int:
        return places << size & self.all if size <= len(self.body) else 0

    # A step whose place is known.
    def _fields(self, step: _Step, at: int, to: int) -> Iterator[dict[str, Any]]:
        size = to - at
        if step.frame:
            inside = at + self._frame_size(step)
            version = int.from_bytes(self.body[inside - 4 : inside], "big")
            vmsd = _vmsd(step.name, version, list(self.between(step.inner or (), inside, to)))
            yield {"name": step.name, "type": "subsection", "size": size, **vmsd}
        elif step.inner is None and step.size in _INTEGERS:
            made = {"name": step.name, "type": _INTEGERS[step.size], "size": step.size}
            if size != step.size:
                made["array_len"] = size // step.size
            yield made
        elif step.inner is None:
            yield {"name": step.name, "type": "buffer", "size": size}
        elif (count := self._elements(step, at, to)) is None:
            yield _ambiguous(at, size)
        elif count == 1:
            inner = _vmsd(step.name, 0, list(self.between(step.inner, at, to)))
            yield {"name": step.name, "type": "struct", "size": size, "struct": inner}
        else:
            one = replace(step, count=1, optional=False)
            elements = tuple(replace(one, name=f"{step.name}[{n}]") for n in range(count))
            yield from self.between(elements, at, to)

    # How many elements of a struct stand between two places; `None` if that is not settled.
    def _elements(self, step: _Step, at: int, to: int) -> int | None:
        if step.count is not None:
            return step.count if step.count <= _MAX_STEPS else None
        found, places = None, 1 << at
        for count in range(1, _MAX_STEPS if self.stretch else 2):
            self._spend()
            places = self._inner(step, places) & (2 << to) - 1
            if places >> to & 1:
                if found is not None:
                    return None
                found = count
            if not places or places == 1 << to:
                break
        return found
