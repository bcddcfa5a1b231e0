"""Random edits of any stream: what they name is as they say, and all else as it was, to the byte.

The account names the ranges; that nothing differs outside of them is compared here. What is in
them is proved by reading both streams: bodies of sections, names and values of fields, all of RAM.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

import vmstream
from tests.ops.test_rewrite import rewritten
from tests.strategies import SEEDS, examples, streams
from tests.streamwriter import StreamWriter
from tests.truth import fixture_file
from vmstream.errors import EncodeError, StreamError
from vmstream.guest.devices import INTEGER, Node, Section
from vmstream.ops.devices import Devices, find, plain_values, read_devices
from vmstream.report.models.rewrite import RewriteReport
from vmstream.transport.source import OpenSource

# Each of another make: versions, machines, orders of bytes, encodings, packages, channels.
FIXTURES = (
    "plain-7.2-pc", "plain-11.1-q35", "s390x-10.0", "old-5.2-pc-i440fx-2.1",
    "zlib-xbzrle-5.2-pc", "mapped-10.0-pc", "postcopy-11.1-pc.ch0", "novmdesc-11.1-pc",
    "ignoreshared-10.0-pc", "multifd-11.1-pc.ch0",
)  # fmt: skip


@dataclass
class State:
    """What a stream says.

    nodes: of each device the fields, structs and subsections
    leaves: of each device names and bytes of the fields; which of several devices of a name it is
        does not count
    """

    data: bytes
    devices: Devices
    sections: Sequence[Section]
    nodes: list[list[Node]]
    leaves: list[list[tuple[str, Node]]]
    blocks: dict[str, bytes]
    footers: bool

    @property
    def machine(self) -> str | None:
        return self.devices.machine


def state(path: Path) -> State:
    with OpenSource(path) as source:
        devices = read_devices(source)
    tree = devices.tree
    nodes = [[*d.walk()] for d in tree]
    leaves = [
        [(re.sub(r"#\d+", "", n.path), n) for n in of if not n.children and n.size] for of in nodes
    ]
    blocks: dict[str, bytes] = {}
    with (
        contextlib.suppress(StreamError),  # pages are on channels that are not here
        vmstream.open(path) as stream,
        stream.memory(partial=True) as memory,
    ):
        for index, block in enumerate(memory.blocks):
            if index not in memory.elsewhere:
                name = block.idstr.decode()
                blocks[name] = memory.read_block(name, 0, block.used_length)
    with vmstream.open(path) as stream:
        footers = any(isinstance(e, vmstream.SectionFooter) for e in stream)
    return State(path.read_bytes(), devices, tree.sections, nodes, leaves, blocks, footers)


def assert_the_rest_is_as_it_was(data: bytes, out: bytes, report: RewriteReport) -> None:
    """Outside of the ranges that the account names."""
    assert report.change_count == len(report.changes)
    assert (report.input_size, report.output_size) == (len(data), len(out))
    at = to = 0
    for change in report.changes:
        assert at <= change.offset <= change.end
        assert change.offset - at == change.output_offset - to
        assert data[at : change.offset] == out[to : change.output_offset]
        was = data[change.offset : change.end]
        now = out[change.output_offset : change.output_offset + change.length]
        assert was != now, change.what
        at, to = change.end, change.output_offset + change.length
    assert data[at:] == out[to:]


class Edits:
    """Edits that are drawn, and what they make of a stream.

    cut: offsets in the stream of what goes from device state
    """

    def __init__(self, rng: random.Random, before: State) -> None:
        self.rng, self.before = rng, before
        self.options: dict[str, Any] = {}
        self.bodies = [bytearray(s.body) for s in before.sections]
        self.blocks = {n: bytearray(b) for n, b in before.blocks.items()}
        self.values: list[tuple[str, int]] = []
        self.cut: list[tuple[int, int]] = []
        kinds: list[Callable[[], None]] = [
            self.set, self.patch, self.drop_section, self.drop_subsection, self.rename,
            self.strip, self.configure,
        ]  # fmt: skip
        for kind in rng.sample(kinds, rng.randrange(1, 4)):
            kind()

    def add(self, option: str, *given: Any) -> None:
        self.options[option] = (*self.options.get(option, ()), *given)

    def set(self) -> None:
        """Numbers of any width and order of bytes, in decimal or hex."""
        nodes = [
            (i, n)
            for i, device in enumerate(self.before.nodes)
            for n in device
            if n.size and INTEGER.fullmatch(n.type) and isinstance(n.value, int)
        ]
        for index, node in self.rng.sample(nodes, min(len(nodes), self.rng.randrange(1, 4))):
            raw = self.rng.randbytes(node.size)
            little, signed = node.type.endswith("little"), node.type.startswith("int")
            value = int.from_bytes(raw, "little" if little else "big", signed=signed)
            self.add("sets", (node.path, self.rng.choice((str, hex))(value)))
            self.values.append((node.path, value))
            at = node.offset - self.before.sections[index].offset
            self.bodies[index][at : at + node.size] = raw

    def patch(self) -> None:
        """Up to four pages, at any place."""
        names = [n for n, b in self.blocks.items() if b]
        if not names:
            return
        name = self.rng.choice(names)
        block = self.blocks[name]
        at = self.rng.randrange(len(block))
        data = self.rng.randbytes(self.rng.randrange(1, min(len(block) - at, 9000) + 1))
        self.add("patches", (f"{name}+{at:#x}", "hex:" + data.hex()))
        block[at : at + len(data)] = data

    def drop_section(self) -> None:
        if self.before.nodes:
            device, *_ = self.rng.choice(self.before.nodes)
            self.add("drop_sections", device.path)
            self.cut.append((device.offset, device.offset + device.size))

    def drop_subsection(self) -> None:
        found = [n for of in self.before.nodes for n in of if n.type == "subsection"]
        if found:
            node = self.rng.choice(found)
            self.add("drop_subsections", node.path)
            self.cut.append((node.offset, node.offset + node.size))

    def rename(self) -> None:
        if self.blocks:
            old = self.rng.choice([*self.blocks])
            new = self.rng.choice(("renamed" * self.rng.randrange(1, 4), "x" * len(old)))
            self.add("renames", (old, new))

    def strip(self) -> None:
        # Without footers too, nothing tells where the body of a device ends.
        if self.before.devices.text is not None and self.before.footers:
            self.options["strip_vmdescription"] = True

    def configure(self) -> None:
        if self.before.machine is not None:
            uuid = self.rng.choice(("", "00010203-0405-0607-0809-0a0b0c0d0e0f"))
            self.add("sets", ("configuration.name", "m-1"), ("configuration.uuid", uuid))

    # Whether it goes, at its offset in the stream.
    def _goes(self, offset: int) -> bool:
        return any(begin <= offset < end for begin, end in self.cut)

    def check(self, after: State) -> None:
        """The stream says what it said, but for the edits."""
        before, options = self.before, self.options
        kept = [
            i
            for i, s in enumerate(before.sections)
            if (s.offset, s.offset + len(s.body)) not in self.cut
            or before.nodes[i][0].path not in options.get("drop_sections", ())
        ]
        bodies = []
        for i in kept:
            start, body = before.sections[i].offset, self.bodies[i]
            bodies.append(bytes(b for k, b in enumerate(body) if not self._goes(start + k)))
        names = [before.sections[i] for i in kept]
        assert [(s.idstr, s.instance_id, s.version_id) for s in after.sections] == [
            (s.idstr, s.instance_id, s.version_id) for s in names
        ]
        assert [s.body for s in after.sections] == bodies
        if "strip_vmdescription" not in options:
            want = [
                (path, bytes(self.bodies[i][at : at + n.size]))
                for i in kept
                for path, n in before.leaves[i]
                if not self._goes(n.offset)
                for at in (n.offset - before.sections[i].offset,)
            ]
            assert [(path, n.raw) for of in after.leaves for path, n in of] == want
        if not {"strip_vmdescription", "drop_sections", "drop_subsections"} & {*options}:
            for path, value in self.values:
                ((_, text),) = plain_values(find(after.devices, path, "out"))
                assert int(text, 0) == value
        renames = dict(options.get("renames", ()))
        assert after.blocks == {renames.get(n, n): bytes(b) for n, b in self.blocks.items()}
        sets = dict(options.get("sets", ()))
        assert after.machine == sets.get("configuration.name", before.machine)


def check(path: Path, before: State, seed: int) -> bool:
    """Make edits; return whether they were not refused."""
    edits, out = Edits(random.Random(seed), before), path.parent / "out"
    out.unlink(missing_ok=True)
    try:
        report, _ = rewritten(path, **edits.options)
    except EncodeError:
        assert not out.exists()
        return False
    assert_the_rest_is_as_it_was(before.data, out.read_bytes(), report)
    edits.check(state(out))
    return True


@pytest.mark.parametrize("name", FIXTURES)
def test_of_real_streams(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    before = state(path)
    assert sum(check(path, before, seed) for seed in range(3))


@settings(max_examples=examples(40))
@given(streams(max_pages=30, xbzrle=True, compress=True), SEEDS)
def test_of_any_stream(
    tmp_path_factory: pytest.TempPathFactory, writer: StreamWriter, seed: int
) -> None:
    path = tmp_path_factory.mktemp("properties") / "in"
    path.write_bytes(bytes(writer))
    check(path, state(path), seed)
