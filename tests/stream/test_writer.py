"""A stream that the writer made: a real QEMU loads it, and what cannot be one is refused."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import vmstream
from tests.decoding import decode
from tests.qemu import Guest, Qemu
from vmstream.errors import EncodeError
from vmstream.stream.events import (
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
