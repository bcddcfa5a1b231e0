"""What another process writes to a socket of ours, put into an output."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from typing import Self

from vmstream.transport.compress import ZstdFrame
from vmstream.transport.sink import Output

_STEP = 1 << 20


class Pump:
    """A socket to hand to another process, and a thread that puts what comes into an output.

    A socket, as closing it from this side is seen at once by who writes: QEMU can neither wait for
    a reader that is gone nor go on writing. A context manager, to be used once.

    Args:
        output: Where the bytes go.
        zstd: Compress them on the way, one frame.
        digest: Sum up what comes, before it is compressed.

    Attributes:
        received: Bytes that came so far.
        written: Bytes that went into the output.
        error: What the output said when it failed; the socket is closed then.

    Memory:
        1 MiB, and what zstd takes.
    """

    def __init__(self, output: Output, *, zstd: bool = False, digest: bool = False) -> None:
        self.received = self.written = 0
        self.error: OSError | None = None
        self._output = output
        self._frame = ZstdFrame() if zstd else None
        self._digest = hashlib.sha256() if digest else None
        self._ours, self._theirs = socket.socketpair()
        # A daemon, as standard output may be a pipe that nobody reads for ever.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._theirs.close()
        if self.wait(5):
            self._ours.close()

    @property
    def descriptor(self) -> int:
        """The end for the other process."""
        return self._theirs.fileno()

    def given(self) -> None:
        """Close our copy of that end: the other process has its own."""
        self._theirs.close()

    def stop(self) -> None:
        """Take no more; who writes gets an error. May be called from a signal handler."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    def wait(self, timeout: float) -> bool:
        """Wait until all has come, or nothing more is taken; return whether that is so."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def sha256(self) -> str | None:
        """SHA-256 of what came, if it was wanted."""
        return None if self._digest is None else self._digest.hexdigest()

    def _run(self) -> None:
        buffer = memoryview(bytearray(_STEP))
        frame = self._frame
        try:
            while got := self._ours.recv_into(buffer):
                data = buffer[:got]
                self.received += got
                if self._digest is not None:
                    self._digest.update(data)
                for part in (data,) if frame is None else frame.give(data):
                    self._put(part)
            for part in () if frame is None else frame.rest():
                self._put(part)
        except OSError as exc:
            self.error = exc
            self.stop()

    def _put(self, data: memoryview | bytes) -> None:
        self._output.write(self.written, data)
        self.written += len(data)
