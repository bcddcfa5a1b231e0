"""Memory by virtual addresses: translated page by page, and without paging as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmstream
from tests.decoding import BytesSource
from tests.ops.test_extract import pipe_of
from tests.truth import fixture_file, open_fixture
from vmstream.errors import AddressError, OutputError, UnsupportedError
from vmstream.guest.cpus import CPU
from vmstream.ops.virtual import VirtualMemory, cpu_of


def test_cpus() -> None:
    source = BytesSource(open_fixture("plain-11.1-q35"), "x")
    assert cpu_of(source, 1).instance_id == 1
    with pytest.raises(OutputError, match="no CPU 2; there is 0, 1"):
        cpu_of(source, 2)
    with pytest.raises(OutputError, match="none whose registers"):
        cpu_of(BytesSource(open_fixture("novmdesc-11.1-pc")), 0)
    with pipe_of(source.data) as pipe, pytest.raises(UnsupportedError):
        cpu_of(pipe, 0)


def test_a_guest_without_paging(tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-q35", tmp_path)
    cpu = cpu_of(BytesSource(path.read_bytes()), 0)
    with vmstream.open(path) as stream, stream.memory() as memory:
        virtual = VirtualMemory(memory, cpu)
        assert virtual.read(0x7C00, 10_000) == memory.read(0x7C00, 10_000)
        with pytest.raises(AddressError):
            virtual.read(1 << 31, 16)
        assert virtual.read(1 << 31, 16, fill=7) == b"\7" * 16


class Physical:
    """Memory with two levels of tables at 0x1000; pages 0 and 1 are mapped the other way."""

    def __init__(self) -> None:
        self.data = bytearray(0x8000)
        self.data[0x1000:0x1004] = (0x2001).to_bytes(4, "little")
        self.data[0x2000:0x2008] = (0x5001).to_bytes(4, "little") + (0x4001).to_bytes(4, "little")
        self.data[0x4000:0x5000] = b"\4" * 4096
        self.data[0x5000:0x6000] = b"\5" * 4096

    def read(self, gpa: int, length: int, *, fill: int | None = None) -> bytes:
        return bytes(self.data[gpa : gpa + length])


def test_pages_are_put_together() -> None:
    control = {"cr0": 1 << 31, "cr3": 0x1000, "cr4": 0, "efer": 0}
    virtual = VirtualMemory(Physical(), CPU(0, "x86", {"control": control}, ""))
    assert virtual.read(4000, 200) == b"\5" * 96 + b"\4" * 104
    with pytest.raises(AddressError, match="0x2000"):
        virtual.read(8000, 500)
    assert virtual.read(8000, 500, fill=0) == b"\4" * 192 + bytes(308)
