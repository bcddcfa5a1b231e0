"""Set registers of a stopped guest through QEMU's gdbstub, so that none of them is zero by chance.

GDB Remote Serial Protocol: packets '$...#sum', answered by '+' and a packet.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tests.qemu import Qemu


class Stub:
    """The gdbstub of a guest that is stopped, and stays so."""

    def __init__(self, vm: Qemu) -> None:
        path = vm.path("guest.gdb")
        vm.hmp(f"gdbserver unix:{path},server=on,wait=off")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._input = self._socket.makefile("rb")
        # Single registers can be set by who knows their numbers.
        self.ask("qXfer:features:read:target.xml:0,ffb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._input.close()
        self._socket.close()

    def ask(self, text: str) -> str:
        packet = text.encode()
        self._socket.sendall(b"$%s#%02x" % (packet, sum(packet) & 0xFF))
        while self._input.read(1) != b"$":
            pass
        answer = bytearray()
        while (byte := self._input.read(1)) != b"#":
            answer += byte
        self._input.read(2)
        self._socket.sendall(b"+")
        return answer.decode()

    def read(self, number: int) -> bytes:
        answer = self.ask(f"p{number:x}")
        return b"" if answer.startswith("E") else bytes.fromhex(answer)

    def fill(self, cpus: int, numbers: Iterable[int], seed: int = 7) -> int:
        """Give registers random content, on each CPU another; return how many took it."""
        made, taken = random.Random(seed), 0
        listed = list(numbers)
        for cpu in range(1, cpus + 1):
            assert self.ask(f"Hg{cpu:x}") == "OK"
            for number in listed:
                size = len(self.read(number))
                if size:
                    content = made.randbytes(size).hex()
                    taken += self.ask(f"P{number:x}={content}") == "OK"
        return taken
