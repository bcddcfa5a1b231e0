"""A stream that the writer made: a real QEMU loads it, and what cannot be one is refused."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import vmstream
from tests import streamwriter as sw
from tests.decoding import decode
from tests.qemu import Guest, Qemu
from tests.strategies import SEEDS, block_names, devices, examples
from vmstream.errors import EncodeError
from vmstream.stream.events import (
    Anomaly,
    Configuration,
    EndOfStream,
    PageBatch,
    Payload,
    RAMBlock,
    SectionStart,
    VMDescription,
)
from vmstream.stream.writer import StreamWriter
from vmstream.wire.constants import RAMSaveFlag, SectionType

MIB, PAGE = 1 << 20, 4096
ARGS = ["-M", "q35", "-accel", "tcg", "-smp", "2"]


def again(source: Path, target: Path) -> None:
    """Write the state of a stream anew: each page once, in the order of the blocks."""
    with vmstream.open(source) as stream, target.open("wb") as file:
        out, starts = StreamWriter(file.write), {}
        with vmstream.open(source) as opened, opened.memory() as memory:
            for event in stream:
                match event:
                    case Configuration():
                        out.header(event)
                    case SectionStart(section_type=SectionType.QEMU_VM_SECTION_FULL):
                        starts[event.section_id] = event
                    case SectionStart(section_type=SectionType.QEMU_VM_SECTION_START):
                        assert event.idstr == b"ram"
                        ram = out.start(b"ram", 0, event.version_id, section_id=event.section_id)
                        out.block_list(stream.blocks)
                        out.close()
                    case SectionStart(section_type=SectionType.QEMU_VM_SECTION_END):
                        out.end(ram)
                        for i, block in enumerate(stream.blocks):
                            data = memory.read_block(block.idstr, 0, block.used_length)
                            out.pages(i, 0, np.frombuffer(data, np.uint8).reshape(-1, PAGE))
                        out.close()
                    case Payload():
                        head = starts[event.section_id]
                        out.device(
                            head.idstr,
                            head.instance_id,
                            head.version_id,
                            event.data,
                            section_id=head.section_id,
                        )
                    case VMDescription():
                        out.finish(event.text)


@pytest.mark.qemu
def test_a_real_qemu_loads_it(tmp_path: Path) -> None:
    made = tmp_path / "made.bin"
    with Qemu(ARGS, guest=Guest(fill=512, dirty=200), mem=("mem", 16 * MIB)) as vm:
        vm.wait_serial(b"FILLED")
        vm.migrate("exec:cat>guest.out")
        again(vm.path("guest.out"), made)
        assert made.stat().st_size < vm.path("guest.out").stat().st_size
        truth = vm.backend.read_bytes()
        registers = vm.registers(all_cpus=True)
    uri = f"exec:cat {made}"
    with Qemu(ARGS, guest=Guest(fill=512), mem=("mem", 16 * MIB), incoming=uri) as vm:
        vm.wait_loaded()
        assert vm.backend.read_bytes() == truth
        assert vm.registers(all_cpus=True) == registers
        vm.cont()
        deadline = time.monotonic() + 30
        while vm.backend.read_bytes() == truth:  # it goes on changing its pages
            assert time.monotonic() < deadline
            time.sleep(0.05)


BLOCKS = (RAMBlock(b"mem", 64 * PAGE), RAMBlock(b"rom", 8 * PAGE))


class Parts(list[bytes]):
    """A sink that keeps copies."""

    def take(self, data: bytes | memoryview) -> None:
        self.append(bytes(data))

    def bytes(self) -> bytes:
        return b"".join(self)


@pytest.fixture
def parts() -> Parts:
    return Parts()


def begun(parts: Parts) -> tuple[StreamWriter, int]:
    out = StreamWriter(parts.take)
    out.header()
    ram = out.start(b"ram", version_id=4)
    out.block_list(BLOCKS)
    return out, ram


def test_runs_of_pages_and_zeros(parts: Parts) -> None:
    out, ram = begun(parts)
    pages = np.zeros((64, PAGE), np.uint8)
    pages[3:20, 7] = 1
    pages[40, -1] = 2
    out.pages(0, 0, pages)
    out.zero_pages(1, 0, 8)
    out.close()
    out.end(ram)
    out.close()
    out.finish()
    data = parts.bytes()
    assert out.offset == len(data)
    found = decode(data, strict=True)
    assert found.error is None
    got = np.zeros_like(pages)
    kinds = []
    for batch in found.of(PageBatch):
        for run in batch.runs():
            kinds.append((run.kind, run.block, run.block_offset // PAGE, run.pages))
            for i in range(run.pages if run.kind == RAMSaveFlag.PAGE else 0):
                at = run.payload + i * run.stride
                got[run.block_offset // PAGE + i] = np.frombuffer(
                    batch.window[at : at + PAGE], np.uint8
                )
    assert np.array_equal(got, pages)
    assert sum(n for _, block, _, n in kinds if block == 0) == 64
    assert {first for kind, _, first, _ in kinds if kind == RAMSaveFlag.PAGE} == {3, 40}
    assert len(found.of(EndOfStream)) == 1


def test_what_cannot_be_a_stream_is_refused(parts: Parts) -> None:
    out, ram = begun(parts)
    with pytest.raises(EncodeError, match="not in block 'rom'"):
        out.zero_pages(1, 7 * PAGE, 2)
    with pytest.raises(EncodeError, match="not in block"):
        out.zero_pages(0, 5, 1)
    with pytest.raises(EncodeError, match="no block 2"):
        out.zero_pages(2, 0, 1)
    with pytest.raises(EncodeError, match="uint8"):
        out.pages(0, 0, np.zeros((1, 512), np.uint8))
    with pytest.raises(EncodeError, match="is open"):
        out.device(b"cpu", 0, 1, b"")
    out.close()
    with pytest.raises(EncodeError, match="no section is open"):
        out.close()
    with pytest.raises(EncodeError, match="without an END: ram"):
        out.finish()
    with pytest.raises(EncodeError, match="was not started"):
        out.part(ram + 1)
    with pytest.raises(EncodeError, match="was started before"):
        out.start(b"x", section_id=ram)
    with pytest.raises(EncodeError, match="belong into"):
        out.zero_pages(0, 0, 1)
    with pytest.raises(EncodeError, match="section header"):
        out.start(b"x" * 256)


# -- any stream -----------------------------------------------------------------------------------

RUNS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1 << 16), st.integers(1, 40), SEEDS),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(30))
@given(st.data())
def test_the_same_as_the_independent_writer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """To the byte, and read back by index it is what was written."""
    draw, parts = data.draw, Parts()
    size = draw(st.sampled_from((4096, 4096, 1024, 65536)))
    footers = draw(st.booleans())
    truth = sw.StreamWriter(size, footers=footers)
    out = StreamWriter(parts.take, page_size=size, footers=footers)
    bits, uuid = size.bit_length() - 1, draw(st.none() | st.just(bytes(range(16))))
    words = draw(st.none() | st.just(["events", "xbzrle"]))
    truth.header()
    truth.configuration("pc-q35-7.2", page_bits=bits, capabilities=words, uuid=uuid)
    subsections = (
        b"configuration/target-page-bits",
        *([b"configuration/capabilities"] if words else []),
        *([b"configuration/uuid"] if uuid else []),
    )
    told = tuple(w.encode() for w in words or ())
    out.header(Configuration(0, 0, b"pc-q35-7.2", bits, told, uuid, subsections))
    names = draw(st.lists(block_names, min_size=1, max_size=3, unique=True))
    pages = [draw(st.integers(1, 40)) for _ in names]
    lengths = [n * size for n in pages]
    section = draw(st.sampled_from((0, 1, 0xFFFFFFFE)))
    truth.ram_start([sw.RamBlock(*b) for b in zip(names, lengths, strict=True)], section_id=section)
    assert out.start(b"ram", version_id=4, section_id=section) == section
    out.block_list(tuple(RAMBlock(n.encode(), b) for n, b in zip(names, lengths, strict=True)))
    out.close()
    rounds = draw(st.lists(RUNS, min_size=1, max_size=3))
    for number, runs in enumerate([*rounds, []]):
        end = number == len(rounds)
        truth.last_block = None  # each part starts with a name
        with truth.ram_end() if end else truth.ram_part():
            out.end(section) if end else out.part(section)
            for index, first, count, seed in runs:
                block = index % len(names)
                at, rng = first % pages[block], random.Random(seed)
                share = rng.choice((0, 0.1, 0.5, 1))
                content = [
                    bytes(size) if rng.random() < share else rng.randbytes(size)
                    for _ in range(min(count, pages[block] - at))
                ]
                for i, page in enumerate(content):
                    if any(page):
                        truth.page(names[block], (at + i) * size, page)
                    else:
                        truth.zero(names[block], (at + i) * size)
                if not any(map(any, content)) and rng.random() < 0.5:
                    out.zero_pages(block, at * size, len(content))
                else:
                    rows = np.frombuffer(b"".join(content), np.uint8).reshape(-1, size)
                    out.pages(block, at * size, rows)
            out.close()
    for device in draw(devices()):
        truth.device(device)
        (*_, head) = truth.items_of("FULL")
        out.device(
            device.name.encode(),
            device.instance_id,
            device.version,
            device.payload(),
            section_id=head.attrs["section_id"],
        )
    truth.eof()
    out.finish(truth.vmdescription().attrs["text"])
    made = parts.bytes()
    assert made == bytes(truth)
    assert out.offset == len(made)
    assert not decode(made, strict=True).of(Anomaly)
    if not any(map(any, truth.blocks.values())):
        return  # zero pages alone are taken for the main channel of multifd
    path = tmp_path_factory.mktemp("writer") / "made"
    path.write_bytes(made)
    with vmstream.open(path) as stream, stream.memory(partial=True) as memory:
        for name, want in truth.blocks.items():
            assert memory.read_block(name, 0, len(want)) == want


CALLS = ("part", "end", "close", "device", "pages", "zero_pages", "block_list", "start", "finish")


@settings(max_examples=examples(100))
@given(SEEDS)
def test_whatever_is_called(seed: int) -> None:
    """What is refused writes nothing; what is accepted is a stream without findings."""
    rng, parts = random.Random(seed), Parts()
    out = StreamWriter(parts.take)
    out.header(Configuration(0, 0, b"pc", None, (), None, ()))
    pages = np.ones((3, PAGE), np.uint8)
    started: list[int] = []
    devices, live = 0, ""

    def call(name: str) -> None:
        nonlocal devices, live
        section, block = rng.choice((*started, 7)), rng.choice((0, 0, 1, 2))
        offset = rng.choice((0, PAGE, 6 * PAGE, 61 * PAGE, -PAGE, 100))
        match name:
            case "part" | "end":
                getattr(out, name)(section)
                live = name
            case "close":
                out.close()
                live = "" if live == "end" else live
            case "device" if not live:  # QEMU has none between the parts, and there no reader looks
                out.device(b"timer", devices, 2, bytes(8))
                devices += 1
            case "pages":
                out.pages(block, offset, pages[: rng.randrange(4)])
            case "zero_pages":
                out.zero_pages(block, offset, rng.randrange(9))
            case "block_list":
                out.block_list(BLOCKS)
            case "start":
                started.append(out.start(b"ram", version_id=4))
                live = name
            case "finish":
                out.finish()

    for _ in range(rng.randrange(60)):
        before, name = len(parts), rng.choice(CALLS[:-1])
        try:
            call(name)
        except EncodeError:
            assert len(parts) == before
    for name in ("block_list", "close"):
        with contextlib.suppress(EncodeError):
            call(name)
    for section in started:
        with contextlib.suppress(EncodeError):  # it has ended
            out.end(section)
            out.close()
    out.finish()
    found = decode(parts.bytes(), strict=True)
    assert found.error is None
    assert not [a for a in found.of(Anomaly) if a.severity != "info"]
    assert len(found.of(Payload)) == devices
