"""Guest memory by the virtual addresses of a CPU."""

from __future__ import annotations

from typing import Protocol

from vmstream.container.layers import Container
from vmstream.errors import AddressError, OutputError, UnsupportedError
from vmstream.guest.cpus import CPU, cpus
from vmstream.guest.paging import translate
from vmstream.ops.devices import read_devices
from vmstream.transport.source import Source


def cpu_of(
    source: Source,
    number: int,
    *,
    page_size: int | None = None,
    container: Container | None = None,
) -> CPU:
    """Return a CPU of a stream.

    Raises:
        UnsupportedError: The input is a pipe or compressed, which can be read once.
        OutputError: There is no such CPU, or nothing names its registers.
    """
    if not source.seekable:
        raise UnsupportedError(
            0, "virtual addresses take an input to seek in", advice="save it to a file first"
        )
    found = read_devices(source, page_size=page_size, container=container)
    there = {cpu.instance_id: cpu for cpu in cpus(found.tree)}
    if number not in there:
        names = ", ".join(map(str, there)) or "none whose registers are named"
        raise OutputError(f"{source.name}: no CPU {number}; there is {names}")
    return there[number]


class Physical(Protocol):
    """Guest-physical memory."""

    def read(self, gpa: int, length: int, *, fill: int | None = None) -> bytes:
        """Return bytes from an address on; `fill` stands for what is not there."""
        ...


class VirtualMemory:
    """Memory as a CPU sees it.

    Args:
        memory: Guest-physical memory.
        cpu: The CPU, by whose page tables addresses are translated.
    """

    def __init__(self, memory: Physical, cpu: CPU) -> None:
        self._memory = memory
        self._cpu = cpu

    def read(self, address: int, length: int, *, fill: int | None = None) -> bytes:
        """Return bytes from a virtual address on.

        Args:
            address: The virtual address.
            length: Bytes.
            fill: The byte to give where nothing is mapped or the guest has no RAM.

        Raises:
            AddressError: There is such a place, and no `fill`.
            UnsupportedError: The page tables are of a kind that is not read here.
        """
        out = bytearray()
        while len(out) < length:
            at = address + len(out)
            left = length - len(out)
            try:
                physical, room = translate(self._memory.read, self._cpu, at)
            except AddressError:
                if fill is None:
                    raise
                out += bytes([fill]) * min(left, 4096 - at % 4096)
                continue
            out += self._memory.read(physical, min(left, room), fill=fill)
        return bytes(out)
