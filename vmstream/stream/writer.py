"""Write a stream: header, sections, pages, footers, end, in the order in which QEMU loads them.

    with open("out.bin", "wb") as file:
        out = StreamWriter(file.write)
        out.header(Configuration(0, 0, b"pc-q35-7.2", None, (), None, ()))
        ram = out.start(b"ram", version_id=4)
        out.block_list(blocks)
        out.close()
        out.end(ram)
        out.pages(0, 0, array)          # uint8 (pages, page size)
        out.close()
        out.device(b"globalstate", 0, 1, body)
        out.finish(vmdescription)

What QEMU would not load is refused: a part of a section that was not started, a page that is not in
its block, an open section at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import EncodeError
from vmstream.stream.encoder import encode_blocks
from vmstream.stream.events import Configuration, RAMBlock, SectionStart
from vmstream.wire import build
from vmstream.wire.constants import DEFAULT_PAGE_SIZE, FLAT_RAM, RAMSaveFlag, SectionType
from vmstream.wire.layout import RAM_WORD_SIZE, ZERO_STRIDE
from vmstream.wire.parse import ConfigurationValues, SectionHead

Sink = Callable[[bytes | memoryview], object]

_CONTINUE = int(RAMSaveFlag.CONTINUE)
_ZERO, _PAGE = int(RAMSaveFlag.ZERO), int(RAMSaveFlag.PAGE)

# Bytes of records that are put together at a time.
_AT_ONCE = 4 << 20


class StreamWriter:
    """Writes one stream to a sink, in order; nothing is kept but what later parts refer to.

    Args:
        sink: Called with bytes, which it may not keep. A memoryview is only valid in the call.
        page_size: Target page size, bytes.
        footers: Sections have footers: machine types of 2.4 on.

    Attributes:
        offset: Bytes written so far.
        blocks: The block list, once it was written.
    """

    def __init__(
        self, sink: Sink, *, page_size: int = DEFAULT_PAGE_SIZE, footers: bool = True
    ) -> None:
        self.offset = 0
        self.blocks: tuple[RAMBlock, ...] = ()
        self.page_size = page_size
        self.footers = footers
        self._sink = sink
        self._ids = 0
        self._has_ram = False
        self._live: dict[int, bytes] = {}  # iterable sections that were started and have not ended
        self._open: int | None = None  # section whose body is being written
        self._kind = SectionType.QEMU_VM_EOF  # of that section or part
        self._body = 0  # offset of the body of the section that was started last
        self._block = -1  # of the record before, in this section or part
        self._flat = False  # RAM section version 3
        self._buffer = np.empty(_AT_ONCE, np.uint8)

    def raw(self, data: bytes | memoryview) -> None:
        """Write bytes as they are: the body of a section, or what was taken from another stream."""
        if len(data):
            self._sink(data)
            self.offset += len(data)

    def header(self, configuration: Configuration | None = None) -> None:
        """Write magic and version and, for machine types of 2.4 on, the configuration."""
        self.raw(build.file_header())
        if configuration is not None:
            c = configuration
            values = (c.name, c.target_page_bits, c.capabilities, c.uuid, c.subsections)
            self.raw(build.configuration(ConfigurationValues(*values)))

    def start(
        self,
        idstr: bytes,
        instance_id: int = 0,
        version_id: int = 1,
        *,
        section_id: int | None = None,
    ) -> int:
        """Open the START of an iterable section; return its section id."""
        if idstr == b"ram" and self._has_ram:
            raise EncodeError("section 'ram' was started before: there is one")
        kind = SectionType.QEMU_VM_SECTION_START
        made = self._head(kind, idstr, instance_id, version_id, section_id)
        self._live[made] = idstr
        if idstr == b"ram":
            self._has_ram, self._flat = True, version_id == FLAT_RAM
        return made

    def go_on(self, start: SectionStart, blocks: tuple[RAMBlock, ...] = ()) -> None:
        """Take it that a START was written elsewhere, and the block list if it is that of 'ram'."""
        self._live[start.section_id] = start.idstr
        if start.idstr == b"ram":
            self.blocks, self._flat = blocks, start.version_id == FLAT_RAM

    def part(self, section_id: int) -> None:
        """Open a PART of a section that was started."""
        self._part(SectionType.QEMU_VM_SECTION_PART, section_id)

    def end(self, section_id: int) -> None:
        """Open the END of a section that was started."""
        self._part(SectionType.QEMU_VM_SECTION_END, section_id)

    def close(self, *, footer: bool | None = None) -> None:
        """Close what is open; that of 'ram' gets its EOS.

        Args:
            footer: Whether there is one; as given to the writer if `None`.
        """
        if self._open is None:
            raise EncodeError("no section is open")
        if self._live.get(self._open) == b"ram":
            if self._kind == SectionType.QEMU_VM_SECTION_START and self.offset == self._body:
                raise EncodeError("the START of 'ram' has the block list")
            self.raw(build.BODY_ENDS[b"ram"])
        if self.footers if footer is None else footer:
            self.raw(build.section_footer(self._open))
        if self._kind == SectionType.QEMU_VM_SECTION_END:
            del self._live[self._open]
        self._open = None

    def device(
        self,
        idstr: bytes,
        instance_id: int,
        version_id: int,
        body: bytes | memoryview,
        *,
        section_id: int | None = None,
    ) -> None:
        """Write a device: a FULL section."""
        kind = SectionType.QEMU_VM_SECTION_FULL
        self._head(kind, idstr, instance_id, version_id, section_id)
        self.raw(body)
        self.close()

    def command(self, cmd: int, data: bytes = b"") -> None:
        """Write a COMMAND."""
        self._apart()
        self.raw(build.command(cmd, data))

    def block_list(self, blocks: tuple[RAMBlock, ...]) -> None:
        """Write MEM_SIZE and the block list, behind the START of 'ram'; version 3 has no list."""
        self._in_ram()
        if self._kind != SectionType.QEMU_VM_SECTION_START or self.offset != self._body:
            raise EncodeError("the block list is the first in the START of 'ram'")
        self.blocks = blocks
        total = sum(b.used_length for b in blocks)
        self.raw(encode_blocks(total, () if self._flat else blocks))

    def pages(self, block: int, offset: int, pages: NDArray[np.uint8]) -> None:
        """Write pages that follow each other; those of zeros as zero pages.

        Args:
            block: Index in the block list.
            offset: Of the first in the block, bytes, a multiple of the page size.
            pages: uint8 (n, page size).
        """
        self._check_pages(block, offset, len(pages))
        if pages.dtype != np.uint8 or pages.shape[1:] != (self.page_size,):
            raise EncodeError(f"pages are uint8 (n, {self.page_size}), not {pages.shape}")
        words = np.ascontiguousarray(pages).view(np.uint64)
        step = max(1, _AT_ONCE // (self.page_size + RAM_WORD_SIZE) - 1)
        for first in range(0, len(pages), step):
            part = pages[first : first + step]
            zero = np.asarray(~words[first : first + step].any(axis=1))
            self._records(block, offset + first * self.page_size, zero, part)

    def zero_pages(self, block: int, offset: int, count: int) -> None:
        """Write so many zero pages that follow each other."""
        self._check_pages(block, offset, count)
        nothing = np.empty((0, self.page_size), np.uint8)
        step = _AT_ONCE // ZERO_STRIDE - 256
        for first in range(0, count, step):
            zero = np.ones(min(step, count - first), np.bool_)
            self._records(block, offset + first * self.page_size, zero, nothing)

    def finish(self, vmdescription: bytes | None = None) -> None:
        """Write EOF and, for machine types of 2.3 on, the vmdescription.

        Raises:
            EncodeError: A section was started and has not ended.
        """
        self._apart()
        if self._live:
            names = ", ".join(sorted(n.decode(errors="replace") for n in self._live.values()))
            raise EncodeError(f"sections without an END: {names}")
        self.raw(bytes([SectionType.QEMU_VM_EOF]))
        if vmdescription is not None:
            self.raw(build.vmdescription(vmdescription))

    def _apart(self) -> None:
        if self._open is not None:
            raise EncodeError(f"section {self._open} is open")

    def _head(
        self, kind: SectionType, idstr: bytes, instance: int, version: int, section_id: int | None
    ) -> int:
        self._apart()
        made = self._ids if section_id is None else section_id
        if made in self._live:
            raise EncodeError(f"section {made} was started before, and has not ended")
        self.raw(build.section_head(SectionHead(kind, made, idstr, instance, version)))
        self._ids = max(self._ids, made + 1)
        self._open, self._kind, self._block, self._body = made, kind, -1, self.offset
        return made

    def _part(self, kind: SectionType, section_id: int) -> None:
        self._apart()
        if section_id not in self._live:
            raise EncodeError(f"section {section_id} was not started, or has ended")
        self.raw(build.section_part(kind, section_id))
        self._open, self._kind, self._block = section_id, kind, -1

    def _in_ram(self) -> None:
        if self._open is None or self._live.get(self._open) != b"ram":
            raise EncodeError("pages and their blocks belong into the section 'ram'")

    def _check_pages(self, block: int, offset: int, count: int) -> None:
        self._in_ram()
        if not 0 <= block < len(self.blocks):
            raise EncodeError(f"there is no block {block}")
        used = self.blocks[block].used_length
        stop = offset + count * self.page_size
        if (
            offset < 0
            or offset % self.page_size
            or stop > -(-used // self.page_size) * self.page_size
        ):
            name = self.blocks[block].idstr.decode(errors="replace")
            raise EncodeError(
                f"pages {offset:#x} to {stop:#x} are not in block {name!r} of {used:#x}"
            )

    # One buffer of records: page i is zero, or the row of `pages` of this number.
    def _records(
        self, block: int, offset: int, zero: NDArray[np.bool_], pages: NDArray[np.uint8]
    ) -> None:
        size, count = self.page_size, len(zero)
        # Records of version 3 have neither a name nor the flag that says so.
        again = 0 if self._flat else _CONTINUE
        name = b"" if block == self._block or self._flat else _name(self.blocks[block])
        sizes = np.where(zero, ZERO_STRIDE, RAM_WORD_SIZE + size)
        sizes[0] += len(name)
        ends = np.cumsum(sizes)
        out = self._buffer[: int(ends[-1])]
        heads = np.arange(offset, offset + count * size, size, dtype=np.uint64)
        heads |= np.where(zero, _ZERO | again, _PAGE | again).astype(np.uint64)
        if name:
            heads[0] ^= np.uint64(_CONTINUE)
            out[RAM_WORD_SIZE : RAM_WORD_SIZE + len(name)] = np.frombuffer(name, np.uint8)
        at = (ends - sizes)[:, None] + np.arange(RAM_WORD_SIZE)
        out[at] = heads.astype(">u8").view(np.uint8).reshape(-1, RAM_WORD_SIZE)
        out[ends[zero] - 1] = 0
        cuts = np.flatnonzero(zero[1:] != zero[:-1]) + 1
        first = [0, *cuts.tolist()]
        for begin, stop in zip(first, [*first[1:], count], strict=True):
            if not zero[begin]:
                rows: NDArray[np.uint8] = np.ndarray(
                    (stop - begin, size),
                    np.uint8,
                    out.data,
                    int(ends[begin]) - size,
                    (RAM_WORD_SIZE + size, 1),
                )
                rows[:] = pages[begin:stop]
        self._block = block
        self.raw(out.data)


def _name(block: RAMBlock) -> bytes:
    return build.counted(block.idstr)
