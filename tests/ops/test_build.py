"""Directories as streams: the same state for every fixture, edits, and hostile directories."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commandline import no_leftovers
from tests.ops.test_unpack import WHOLE, manifest_of, unpacked, unpacked_fixture, written
from tests.streamwriter import RamBlock, StreamWriter, simple_stream
from tests.truth import check_block_bytes, fixture_file, known_blocks, load_manifest
from vmstream.container.open import OpenStream
from vmstream.errors import EncodeError, OutputError, VmstreamError
from vmstream.guest.devices import Section
from vmstream.ops.build import BlockFiles, BuildOptions, build
from vmstream.ops.devices import Devices
from vmstream.ops.inspect import Summary
from vmstream.ops.memory import MemoryOptions, index_memory
from vmstream.ops.pipeline import events
from vmstream.report.models.unpack import BuildReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Command, Event, RAMBlock
from vmstream.transport.sink import SavedFile

PAGE = 4096


def built(directory: Path, **options: Any) -> BuildReport:
    """Build a directory into 'out' beside it."""
    return build(directory, BuildOptions(directory.parent / "out", True, **options))


class Seen:
    """Fold: the devices, what is accounted for, the commands, and sums of known memory."""

    def __init__(self, path: Path, truth: dict[str, Any] | None = None) -> None:
        self.devices, self.summary = Devices(), Summary()
        self.commands: list[int] = []
        with OpenStream(path) as opened:
            found = self._events(
                events(opened.source, Decoder(strict=True), None, opened.container)
            )
            if truth is None:
                for _ in found:
                    pass
            else:
                with index_memory(found, opened.source, MemoryOptions()) as memory:
                    for idstr in known_blocks(truth):
                        index = memory.block_index(idstr)
                        length = memory.blocks[index].used_length
                        if index not in memory.elsewhere and length <= 64 << 20:
                            content = memory.read_block(idstr, 0, length)
                            check_block_bytes(truth, idstr, content)
        self.summary.finish()

    def _events(self, found: Iterable[Event]) -> Iterator[Event]:
        for event in found:
            self.devices.on(event)
            self.summary.on(event)
            if isinstance(event, Command):
                self.commands.append(event.cmd)
            yield event

    @property
    def state(self) -> list[tuple[bytes, int, int, bytes]]:
        found: list[Section] = list(self.devices.tree.sections)
        return sorted((s.idstr, s.instance_id, s.version_id, s.body) for s in found)


def sent(summary: Summary) -> list[list[bool]]:
    return [b.sent.members(0, b.pages).tolist() for b in summary.coverage_blocks()]


@pytest.mark.parametrize("name", WHOLE)
def test_the_same_state(name: str, tmp_path: Path) -> None:
    """Of the files alone: the stream is gone when they are read."""
    path, directory = fixture_file(name, tmp_path), unpacked_fixture(name, tmp_path)
    before = Seen(path)
    path.unlink()
    report = built(directory)
    after = Seen(tmp_path / "out", load_manifest(name))
    assert after.state == before.state
    assert after.summary.complete
    assert after.summary.findings.error is None
    assert not after.commands
    assert report.output_size == (tmp_path / "out").stat().st_size
    text = before.devices.text
    if "mapped" not in name:
        assert (after.devices.text, report.vmdescription) == (text, "kept" if text else "none")
    c, d = before.summary.configuration, after.summary.configuration
    assert (c is None) == (d is None)
    if c is not None and d is not None:
        assert (c.name, c.uuid, c.target_page_bits) == (d.name, d.uuid, d.target_page_bits)
        assert [*d.capabilities] == [k for k in c.capabilities if k != b"mapped-ram"]
    if ".ch" not in name:
        assert sent(after.summary) == sent(before.summary)
    # Each page once.
    assert not any(b.resent.count() for b in after.summary.coverage_blocks())
    assert no_leftovers(tmp_path)


def test_what_is_built_is_built_again(tmp_path: Path) -> None:
    """A stream of ours, unpacked and built, is the same to the byte."""
    directory = unpacked_fixture("plain-7.2-pc", tmp_path)
    built(directory)
    first = (tmp_path / "out").read_bytes()
    (tmp_path / "out").rename(tmp_path / "again")
    unpacked(tmp_path / "again", tmp_path / "dir2")
    built(tmp_path / "dir2")
    assert (tmp_path / "out").read_bytes() == first


def test_pages_without_a_record(tmp_path: Path) -> None:
    """They stay so, unless somebody writes to them."""
    w = StreamWriter()
    w.header()
    w.configuration("pc")
    w.ram_start([RamBlock("a", 8 * PAGE), RamBlock("b", 2 * PAGE)])
    with w.ram_end():
        w.page("a", 0, b"x" * PAGE)
        w.zero("a", PAGE)
        w.page("a", 3 * PAGE, b"x" * PAGE)
    w.eof()
    path = written(w, tmp_path)
    unpacked(path, tmp_path / "dir")
    built(tmp_path / "dir")
    before = sent(Seen(path).summary)
    assert sent(Seen(tmp_path / "out").summary) == before
    with (tmp_path / "dir" / "blocks" / "a.raw").open("r+b") as file:
        file.seek(2 * PAGE)
        file.write(bytes(PAGE))  # no hole any more, but zeros
        file.seek(5 * PAGE + 1)
        file.write(b"y")
        file.seek(3 * PAGE)
        file.write(bytes(PAGE))  # a page that was sent is sent
    built(tmp_path / "dir")
    before[0][5] = True
    assert sent(Seen(tmp_path / "out").summary) == before


def test_block_files_are_pages(tmp_path: Path) -> None:
    """Against a plain reading of the file, for holes, zeros and ranges wherever they are."""
    rng = random.Random(5)
    for _ in range(30):
        count = rng.randrange(1, 400)
        size = rng.choice([512, PAGE])
        used = count * size - rng.choice([0, size // 2])
        content = bytearray(count * size)
        path = tmp_path / "block"
        with path.open("wb") as file:
            file.truncate(used)
            for page in range(count):
                if rng.random() < 0.5:
                    data = bytes(size) if rng.random() < 0.4 else bytes([page & 0xFF | 1]) * size
                    data = data[: used - page * size]
                    file.seek(page * size)
                    file.write(data)
                    content[page * size : page * size + len(data)] = data
        unsent, at = [], 0
        while at < count and rng.random() < 0.9:
            first = at + rng.randrange(0, 9)
            stop = min(count, first + rng.randrange(1, 9))
            if first < stop:
                unsent.append([first * size, min(stop * size, used) - first * size])
            at = stop
        skipped = {p for a, n in unsent for p in range(a // size, -(-(a + n) // size))}
        with SavedFile(path) as file:
            pages = BlockFiles((RAMBlock(b"x", used),), size, [file], [unsent])
            found: dict[int, bytes] = {}
            last = -1
            for offset, got in pages.pages(0):
                rows = [bytes(size)] * got if isinstance(got, int) else [r.tobytes() for r in got]
                for i, row in enumerate(rows):
                    page = offset // size + i
                    assert page > last
                    last = page
                    found[page] = row
        whole = {p: bytes(content[p * size : (p + 1) * size]) for p in range(count)}
        assert found == {p: d for p, d in whole.items() if p not in skipped or any(d)}


# ---- edits ---------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return unpacked_fixture("plain-7.2-pc", tmp_path)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def device(directory: Path, name: str) -> Path:
    [path] = (directory / "devices").glob(f"[0-9][0-9][0-9]-{name}.json")
    return path


def field(document: Any, name: str) -> Any:
    [found] = [f for f in document if f.get("name") == name]
    return found


def values(path: Path, pattern: str) -> list[object]:
    return [n.value for n in Seen(path).devices.tree.find(pattern)]


def test_values(directory: Path) -> None:
    def change(document: Any) -> None:
        field(document, "env.eip")["value"] = "0x7c00"
        field(document, "env.regs")["values"][2] = (1 << 64) - 1

    edit(device(directory, "cpu"), change)
    edit(
        device(directory, "globalstate"),
        lambda d: field(d, "runstate").update(text="paused"),
    )
    assert built(directory).vmdescription == "kept"
    out = directory.parent / "out"
    assert values(out, "cpu[0]/env.eip") == [0x7C00]
    assert values(out, "cpu[0]/env.regs[2]") == [(1 << 64) - 1]
    assert values(out, "globalstate/runstate") == [b"paused".ljust(100, b"\0")]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (1 << 64, "takes 0x0 to 0xffffffffffffffff"),
        (-1, "takes 0x0 to"),
        ("x", "takes a number"),
        (True, "takes no bool"),
        (None, "takes no NoneType"),
        (1.5, "takes no float"),
        ([1], "takes no list"),
    ],
)
def test_values_that_are_none(directory: Path, given: object, why: str) -> None:
    path = device(directory, "cpu")
    edit(path, lambda d: field(d, "env.eip").update(value=given))
    with pytest.raises(EncodeError, match=why) as caught:
        built(directory)
    assert f"{path}: env.eip" in str(caught.value)
    assert not (directory.parent / "out").exists()


def test_a_subsection_goes(directory: Path) -> None:
    """With its description; QEMU loads without one of these."""
    path = device(directory, "fdc")
    before = len(path.read_text())

    def drop(entries: Any) -> None:
        for entry in list(entries):
            if entry.get("type") == "subsection":
                entries.remove(entry)
            else:
                drop(entry.get("fields", []))

    edit(path, drop)
    assert len(path.read_text()) < before
    assert built(directory).vmdescription == "changed"
    tree = Seen(directory.parent / "out").devices.tree
    [fdc] = tree.find("fdc")
    assert not [n for n in fdc.walk() if n.type in ("subsection", "raw")]
    sections = Seen(directory.parent / "out").summary.sections
    assert [s.framing for s in sections if s.start.idstr == b"fdc"] == ["vmdescription"]


def test_a_state_that_is_not_described(directory: Path) -> None:
    path = device(directory, "cpu")
    edit(path, lambda d: d.append({"raw": "00"}))
    with pytest.raises(EncodeError, match="does not describe") as caught:
        built(directory)
    assert str(path) in str(caught.value)
    # Without a description it is the reader's business, as QEMU does not look at it.
    edit(directory / "manifest.json", lambda m: m.update(vmdescription=None))
    assert built(directory).vmdescription == "none"


def test_another_machine_and_a_device_less(directory: Path) -> None:
    def change(manifest: Any) -> None:
        manifest["configuration"]["name"] = "pc-q35-10.1-of-ours"
        manifest["configuration"]["uuid"] = "00112233-4455-6677-8899-aabbccddeeff"
        manifest["sections"] = [s for s in manifest["sections"] if s["idstr"] != "vmmouse"]

    count = len(Seen(directory.parent / "plain-7.2-pc.qevm").state)
    edit(directory / "manifest.json", change)
    assert built(directory).vmdescription == "changed"
    seen = Seen(directory.parent / "out")
    assert seen.summary.machine == "pc-q35-10.1-of-ours"
    assert seen.summary.configuration is not None
    assert seen.summary.configuration.uuid == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert len(seen.state) == count - 1 == len(json.loads(seen.devices.text or b"")["devices"])


def test_the_configuration_is_described(tmp_path: Path) -> None:
    """By QEMU 8.2 on."""
    directory = unpacked_fixture("uuid-11.1-pc", tmp_path)

    def change(manifest: Any) -> None:
        manifest["configuration"]["name"] += "-long"
        manifest["configuration"]["uuid"] = None

    edit(directory / "manifest.json", change)
    built(directory)
    described = json.loads(Seen(tmp_path / "out").devices.text or b"")["configuration"]
    [name] = [f for f in described["fields"] if f["name"] == "name"]
    assert name["size"] == len(manifest_of(directory)["configuration"]["name"])
    assert "configuration/uuid" not in str(described)


# ---- hostile directories -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.update(schema="x"), "no manifest"),
        (lambda m: m.pop("sections"), "has no 'sections'"),
        (lambda m: m.update(page_size=4097), "page_size: is one of"),
        (lambda m: m.update(page_size=-1), "from 0 on"),
        (lambda m: m["blocks"].clear(), "1 to 4096"),
        (lambda m: m["blocks"].append(m["blocks"][0]), "two blocks of the name"),
        (lambda m: m["blocks"][0].update(used_length=5), "by the manifest"),
        (lambda m: m["blocks"][0].update(used_length=1 << 60), "--max-ram"),
        (lambda m: m["blocks"][0].update(idstr="x" * 256), "1 to 255"),
        (lambda m: m["blocks"][0].update(idstr_b64="?"), "is no name"),
        (lambda m: m["blocks"][0].update(gpa=0), "each has a gpa"),
        (lambda m: m["blocks"][0].update(unsent=[[1, 2]]), "ascending"),
        (lambda m: m["blocks"][0].update(unsent=[[0, 1 << 50]]), "beyond the block"),
        (lambda m: m["blocks"][0].update(unsent=[[0]]), "ascending"),
        (lambda m: m["sections"][0].update(part="x"), "is none"),
        (lambda m: m["sections"][0].update(file="x"), "is that of the blocks"),
        (lambda m: m["sections"][0].update(idstr="x"), r"name of a file"),
        (lambda m: m["sections"].pop(0), "no start of section"),
        (lambda m: m["sections"].pop(1), "each once"),
        (lambda m: m["sections"][2].update(section_id=1 << 32), "section header"),
        (lambda m: m["sections"][2].update(idstr="x" * 256), "describes no device"),
        (lambda m: m["sections"][2].update(instance_id=9), "describes no device"),
        (lambda m: m["sections"].insert(2, m["sections"][0]), "each once"),
        (lambda m: m["configuration"].update(uuid="x"), "is no UUID"),
        (lambda m: m["configuration"].update(name=""), "has a name"),
        (lambda m: m["configuration"].update(target_page_bits=14), "does not say 4096"),
        (lambda m: m.update(configuration=[]), "is an object"),
    ],
)  # fmt: skip
def test_manifests_that_are_none(directory: Path, change: Callable[[Any], None], why: str) -> None:
    edit(directory / "manifest.json", change)
    with pytest.raises(EncodeError, match=why):
        built(directory)
    assert not (directory.parent / "out").exists()


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", "..", ".", "", "a\0b", "a/b"])
@pytest.mark.parametrize("where", ["block", "device", "vmdescription"])
def test_names_that_leave_it(directory: Path, name: str, where: str) -> None:
    def change(manifest: Any) -> None:
        if where == "vmdescription":
            manifest["vmdescription"] = name
        else:
            manifest["blocks" if where == "block" else "sections"][-1]["file"] = name

    edit(directory / "manifest.json", change)
    with pytest.raises(OutputError, match="is no name of a file"):
        built(directory)


def test_links_and_others(directory: Path) -> None:
    block = directory / "blocks" / "pc.ram.raw"
    shutil.move(block, directory.parent / "elsewhere")
    with pytest.raises(OSError, match=r"pc\.ram\.raw"):
        built(directory)
    block.symlink_to(directory.parent / "elsewhere")
    with pytest.raises(OutputError, match="a symbolic link"):
        built(directory)
    block.unlink()
    os.mkfifo(block)
    with pytest.raises(OutputError, match="not a regular file"):
        built(directory)
    block.unlink()
    block.mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        built(directory)
    shutil.rmtree(directory / "blocks")
    (directory / "blocks").symlink_to(directory.parent)
    with pytest.raises(OutputError, match="a symbolic link"):
        built(directory)
    (directory / "manifest.json").unlink()
    with pytest.raises(OSError, match=r"manifest\.json"):
        built(directory)
    with pytest.raises(NotADirectoryError):
        built(directory.parent / "elsewhere")


def test_whatever_is_in_it(tmp_path: Path) -> None:
    """Mutated manifests and devices: our errors or a stream, which can be read."""
    path = written(simple_stream(), tmp_path)
    unpacked(path, tmp_path / "dir")
    rng, made = np.random.default_rng(3), 0
    files = list((tmp_path / "dir").rglob("*.json"))
    texts = {p: p.read_bytes() for p in files}
    odd = [
        None, True, -1, 0, 1, 3, 1 << 31, 1 << 40, 1 << 70, 1.5, "", "x", "ram", "../x", "\udcff",
        [], {}, [[]], [0], "0" * 9, "part", "device", 1e400,
    ]  # fmt: skip
    for number in range(400):
        target = files[int(rng.integers(len(files)))]
        data = bytearray(texts[target])
        if number % 4 == 0:
            at = int(rng.integers(len(data)))
            data[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(0, 9)))
        else:
            document = json.loads(data)
            _mutate(document, odd, rng)
            data = bytearray(json.dumps(document).encode())
        target.write_bytes(data)
        try:
            built(tmp_path / "dir", max_ram=1 << 30)
        except (VmstreamError, OSError):
            pass
        else:
            made += 1
            Seen(tmp_path / "out")
        target.write_bytes(texts[target])
    assert made


def _mutate(document: Any, odd: list[object], rng: np.random.Generator) -> None:
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        here = waiting.pop()
        for key in here if isinstance(here, dict) else range(len(here)):
            places.append((here, key))
            if isinstance(here[key], (dict, list)):
                waiting.append(here[key])
    if places:
        holder, key = places[int(rng.integers(len(places)))]
        if rng.random() < 0.2:
            del holder[key]
        elif isinstance(holder, list) and rng.random() < 0.3:
            holder.append(holder[key])
        else:
            holder[key] = odd[int(rng.integers(len(odd)))]
