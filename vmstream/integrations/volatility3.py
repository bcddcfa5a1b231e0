"""A layer of Volatility 3 over a stream: `vol -f STREAM PLUGIN`.

Volatility stacks layers on the file that it is given. `StreamStacker` comes ahead of its own
formats and puts guest-physical memory on a file with a stream in it; then Volatility finds the
operating system in that as in a raw image. Where it does not, `PageTableStacker` comes last, with
virtual memory by the page tables of the first CPU.

Settings are read from Volatility's configuration (`vol -e KEY=VALUE`, the value as JSON):
`vmstream.snapshot`, name or id in a qcow2 image; `vmstream.channels`, a list of files or
directories with the other channels of a migration.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel, physical

from vmstream.errors import AddressError, FormatError, UnsupportedError, VmstreamError

if TYPE_CHECKING:
    from vmstream.guest.cpus import CPU
    from vmstream.ops.memory import GuestMemory
    from vmstream.stream.events import Event

_log = logging.getLogger(__name__)
_join = interfaces.configuration.path_join

_CONFIG = "vmstream"
_PAGE = 4096

# A plugin reads page tables and structures a few bytes at a time: 17 us each, 1 us from here.
_PAGES_KEPT = 4096

# Intel SDM volume 3, chapter 5: where CR3 has the address of the tables.
_CR0_PG, _CR4_PAE, _CR4_LA57, _EFER_LMA = 1 << 31, 1 << 5, 1 << 12, 1 << 10
_ROOT_LONG, _ROOT_PAE, _ROOT = 0x000F_FFFF_FFFF_F000, 0xFFFF_FFE0, 0xFFFF_F000

# Linux with page table isolation has two top tables, side by side: that of the kernel, and that of
# programs, without the kernel. Linux v6.1 arch/x86/entry/calling.h PTI_USER_PGTABLE_BIT; the
# kernel's has NX set for the part of programs, arch/x86/mm/pti.c __pti_set_user_pgtbl(), and a CPU
# sets Accessed and Dirty in each.
_PTI_USER = 1 << 12
_PTI_DIFFER = 1 << 63 | 1 << 6 | 1 << 5
_TOP = struct.Struct("<512Q")
_LOWER = 256
_PRESENT = 1


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Guest:
    """A stream that was read.

    page:   the page of RAM with this number
    ranges: (gpa, length) of RAM that can be read, by address; adjacent ones are one
    tables: class of the layer, and guest-physical address, of the first CPU's page tables
    """

    memory: GuestMemory
    page: Callable[[int], bytes]
    ranges: tuple[tuple[int, int], ...]
    tables: tuple[type[intel.Intel], int] | None


class StreamLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Guest-physical memory of a stream, the last version of each page.

    Pages that the stream says nothing of are zeros; what cannot be read is no valid address.
    `metadata` has "page_map_offset", the page-table root of the first CPU, if there is one.

    Raises:
        LayerException: The stream cannot be read; nothing else of what vmstream raises.
    """

    _metadata: dict[str, Any]

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(context, config_path, name, metadata)
        self._guest_: _Guest | None = None
        tables = self._guest.tables
        if tables is not None:
            self._metadata = {**self._metadata, "page_map_offset": tables[1]}

    @classmethod
    def get_requirements(cls) -> list[interfaces.configuration.RequirementInterface]:
        """Return what is configured: where the file is, and what to take of it."""
        return [
            requirements.StringRequirement(name="location", optional=False),
            requirements.StringRequirement(name="snapshot", optional=True),
            requirements.ListRequirement(name="channels", element_type=str, optional=True),
        ]

    @property
    def page_tables(self) -> tuple[type[intel.Intel], int] | None:
        """Layer class and root of the first CPU's page tables; `None` without any it can walk."""
        return self._guest.tables

    @property
    def minimum_address(self) -> int:
        """First address of RAM."""
        return self._guest.ranges[0][0]

    @property
    def maximum_address(self) -> int:
        """Last address of RAM."""
        start, length = self._guest.ranges[-1]
        return start + length - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Whether there is RAM at all these addresses."""
        return any(a <= offset and offset + length <= a + n for a, n in self._guest.ranges)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Return memory; with `pad`, zeros for what is not there.

        Raises:
            InvalidAddressException: There is no RAM at one of them, or it cannot be read.
        """
        guest, inside = self._guest, offset % _PAGE
        try:
            if inside + length <= _PAGE and not pad:
                return guest.page(offset // _PAGE)[inside : inside + length]
            return guest.memory.read(offset, length, fill=0 if pad else None)
        except AddressError as error:
            raise exceptions.InvalidAddressException(
                self.name, error.address, str(error)
            ) from error
        except (VmstreamError, OSError, ValueError) as error:
            if not pad:
                raise exceptions.InvalidAddressException(self.name, offset, str(error)) from error
        if length <= _PAGE:
            return bytes(length)
        half = length // 2
        return self.read(offset, half, pad=True) + self.read(offset + half, length - half, pad=True)

    def write(self, offset: int, data: bytes) -> None:
        """Raise: a stream is evidence."""
        raise exceptions.LayerException(self.name, "a stream is not written to")

    # Chunks are those of a layer without holes, of each range of RAM.
    def _scan_iterator(self, scanner: Any, sections: Iterable[tuple[int, int]]) -> Iterable[Any]:
        yield from super()._scan_iterator(scanner, list(self._within(sections)))

    def _within(self, sections: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for start, length in sections:
            for gpa, size in self._guest.ranges:
                first, stop = max(start, gpa), min(start + length, gpa + size)
                if first < stop:
                    yield first, stop - first

    # Layers are copied and go to other processes; what is open does not.
    @property
    def _guest(self) -> _Guest:
        if self._guest_ is None:
            config = self.config
            self._guest_ = _opened(
                config["location"],
                config.get("snapshot"),
                tuple(config.get("channels") or ()),
                self.name,
            )
        return self._guest_

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_guest_": None}


class StreamStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Puts guest memory on a file with a stream in it."""

    # Ahead of Volatility's own layer for streams, which has 10.
    stack_order = 5

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: Callable[[float, str], None] | None = None,
    ) -> StreamLayer | None:
        """Return the layer; `None` for what is no stream, or cannot be read, with the reason."""
        file = context.layers[layer_name]
        if not isinstance(file, physical.FileLayer) or urlsplit(file.location).scheme != "file":
            return None
        name = context.layers.free_layer_name(StreamLayer.__name__)
        context.config[_join(name, "location")] = file.location
        for key in ("snapshot", "channels"):
            value = context.config.get(_join(_CONFIG, key))
            if value is not None:
                context.config[_join(name, key)] = value
        try:
            return StreamLayer(context, name, name)
        except exceptions.LayerException as error:
            # What begins as nothing that is read here is another format's.
            level = logging.DEBUG if isinstance(error.__cause__, FormatError) else logging.WARNING
            _log.log(level, "vmstream: %s", error.__cause__)
            return None


class PageTableStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Puts virtual memory on guest memory, by the page tables that the first CPU uses.

    Comes behind Volatility's own stackers, which know the operating system and need its symbols.
    """

    stack_order = 100

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: Callable[[float, str], None] | None = None,
    ) -> intel.Intel | None:
        """Return the layer; `None` if there is no stream below, or no CPU with tables to walk."""
        memory = context.layers[layer_name]
        if not isinstance(memory, StreamLayer) or memory.page_tables is None:
            return None
        layer_class, root = memory.page_tables
        name = context.layers.free_layer_name("IntelLayer")
        path = _join("vmstream", name)
        context.config[_join(path, "memory_layer")] = layer_name
        context.config[_join(path, "page_map_offset")] = root
        return layer_class(context, path, name)


def page_tables(
    cpu: CPU, read: Callable[[int, int], bytes]
) -> tuple[type[intel.Intel], int] | None:
    """Return the class of Volatility's layer for the page tables of a CPU, and their root.

    Args:
        cpu: The CPU.
        read: Reads guest-physical memory: (address, length) to bytes.

    Returns:
        `None` if it is no x86 CPU with paging, has five levels of tables, which Volatility does
        not walk, or its tables are not in RAM. Of a CPU that runs a program of a Linux with page
        table isolation, the root is that of the kernel's tables.

    Raises:
        StreamError: As of `read`, and OSError.
    """
    control = cpu.groups.get("control", {})
    if cpu.architecture != "x86" or not control["cr0"] & _CR0_PG:
        return None
    cr3, cr4 = control["cr3"], control["cr4"]
    try:
        if not control.get("efer", 0) & _EFER_LMA:
            pae = cr4 & _CR4_PAE
            found = (intel.IntelPAE, cr3 & _ROOT_PAE) if pae else (intel.Intel, cr3 & _ROOT)
            read(found[1], 1)
            return found
        if cr4 & _CR4_LA57:
            return None
        return intel.Intel32e, _kernel_root(read, cr3 & _ROOT_LONG)
    except AddressError:
        return None


def _kernel_root(read: Callable[[int, int], bytes], root: int) -> int:
    tables = _TOP.unpack(read(root, _TOP.size))
    if not root & _PTI_USER:
        return root
    try:
        kernel = _TOP.unpack(read(root - _PTI_USER, _TOP.size))
    except AddressError:
        return root
    pairs = zip(tables[:_LOWER], kernel[:_LOWER], strict=True)
    same = any(tables[:_LOWER]) and not any((a ^ b) & ~_PTI_DIFFER for a, b in pairs)
    more = sum(e & _PRESENT for e in kernel[_LOWER:]) > sum(e & _PRESENT for e in tables[_LOWER:])
    return root - _PTI_USER if same and more else root


# A stream is read once, though Volatility makes its layers twice. A worker process that was forked
# has it open; all reads state where, so that they can share the descriptor.
def _opened(location: str, snapshot: str | None, channels: tuple[str, ...], name: str) -> _Guest:
    path = url2pathname(urlsplit(location).path)
    try:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return _read(path, identity, snapshot, channels)
    except (VmstreamError, OSError) as error:
        raise exceptions.LayerException(name, str(error)) from error


@lru_cache(maxsize=2)
def _read(
    path: str, identity: tuple[int, ...], snapshot: str | None, channels: tuple[str, ...]
) -> _Guest:
    # Volatility imports all its plugins at each start.
    from vmstream.container.open import OpenStream
    from vmstream.guest.cpus import cpus
    from vmstream.ops.channels import Channels
    from vmstream.ops.devices import Devices
    from vmstream.ops.memory import MemoryOptions, index_memory
    from vmstream.ops.pipeline import events
    from vmstream.stream.decoder import Decoder

    with ExitStack() as stack:
        opened = stack.enter_context(OpenStream(path, snapshot=snapshot))
        others = Channels(channels, opened.identity) if channels else None
        if others is not None:
            stack.enter_context(others)
        devices = Devices()

        def both() -> Iterator[Event]:
            decoder = Decoder(strict=False)
            for event in events(opened.source, decoder, None, opened.container, others):
                devices.on(event)
                yield event

        options = MemoryOptions(partial=True, spool=tempfile.gettempdir())
        memory = stack.enter_context(index_memory(both(), opened.source, options, others))
        behind = any(layer.kind == "offset" for layer in opened.container.layers)
        if behind and memory.exit_code:
            # Memory of a guest may have a stream in it, too.
            raise FormatError(0, "not a migration stream, though bytes of one are in it")
        ranges = tuple(_ranges(memory))
        found = (page_tables(cpu, memory.read) for cpu in cpus(devices.tree))
        tables = next((t for t in found if t is not None), None)

        @lru_cache(maxsize=_PAGES_KEPT)
        def page(number: int) -> bytes:
            return memory.read(number * _PAGE, _PAGE)

        guest = _Guest(memory, page, ranges, tables)
        # Volatility does not say when it is done with a layer.
        weakref.finalize(guest, stack.pop_all().close)
    for finding in memory.findings:
        level = logging.INFO if finding.severity == "info" else logging.WARNING
        _log.log(level, "vmstream: %s: %s", path, finding.message)
    return guest


# Addresses of RAM, without what is in a file instead of the stream (x-ignore-shared).
def _ranges(memory: GuestMemory) -> Iterator[tuple[int, int]]:
    start = end = 0
    for region in memory.map.regions:
        try:
            memory.read(region.gpa, 1)
        except UnsupportedError:
            continue
        if region.gpa != end:
            if start < end:
                yield start, end - start
            start = region.gpa
        end = region.gpa + region.length
    if start == end:
        raise UnsupportedError(0, "no RAM whose pages are in the stream")
    yield start, end - start
