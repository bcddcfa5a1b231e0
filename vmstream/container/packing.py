"""An output that is compressed on its way, on all CPUs: as a file, or behind a head in one."""

from __future__ import annotations

from collections.abc import Iterable

from vmstream.container.lzop import LZOP_END, LZOP_HEAD, lzop_blocks
from vmstream.transport.compress import CHUNK, MEMBERS, Workers, ZstdFrame
from vmstream.transport.sink import Output


class PackedOutput:
    """An output, written in order, whose content goes compressed to another one.

    Args:
        out: Where it goes, in order.
        codec: 'gzip', 'bzip2' or 'xz', a member for each 4 MiB; 'lzop', blocks of 256 KiB that are
            stored; 'zstd', one frame with a checksum.
        start: Offset in `out` of what is compressed.

    Attributes:
        end: Offset in `out` behind what was written to it.

    Memory:
        Two pieces of 4 MiB for each CPU, packed and unpacked, and what the codec takes: xz some
        32 MiB for each CPU.
    """

    def __init__(self, out: Output, codec: str, start: int = 0) -> None:
        self.end = start
        self._out = out
        self._taken = 0
        self._chunk = bytearray()
        self._tail = b""
        self._packer: Workers[bytearray | memoryview, bytes] | ZstdFrame
        if codec == "zstd":
            self._packer = ZstdFrame()
        elif codec == "lzop":
            self._packer = Workers(lzop_blocks)
            self._put((LZOP_HEAD,))
            self._tail = LZOP_END
        else:
            self._packer = Workers(MEMBERS[codec])

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Compress what comes next, which stands at `offset` in what is not compressed.

        Raises:
            OSError: Of the output.
        """
        if offset != self._taken:
            raise ValueError(f"{offset} is not what comes next")
        rest = memoryview(data).cast("B")
        self._taken += len(rest)
        while rest:
            part = rest[: CHUNK - len(self._chunk)]
            self._chunk += part
            rest = rest[len(part) :]
            if len(self._chunk) == CHUNK:
                self._give()

    def finish(self) -> None:
        """Write what is left, and the end.

        Raises:
            OSError: Of the output.
        """
        # What is empty has a member too, so that it is a file of its kind.
        if self._chunk or not self._taken:
            self._give()
        self._put(self._packer.rest())
        self._put((self._tail,))

    def _give(self) -> None:
        chunk, self._chunk = self._chunk, bytearray()
        self._put(self._packer.give(chunk))

    def _put(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self._out.write(self.end, part)
            self.end += len(part)
