"""A recording relay: what goes between two QEMUs, each connection in a file of its own.

    with Relay(destination.path("guest.sock"), tmp_path) as relay:
        source.migrate(relay.uri)
        main, *others = relay.finish()
    main.sent.read_bytes()         # what the source wrote on the first connection
    main.returned.read_bytes()     # what came back on it

The relay listens on a unix socket in its directory, or on loopback TCP; for each connection it
makes one to the destination, in the order in which they came. QEMU v7.2.0 takes the first for the
main channel (migration/migration.c migration_ioc_process_incoming()), so the order must be kept.
Nothing here knows what is in a stream.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

STEP = 1 << 20
# A unix address, or host and port of TCP.
Address = Path | tuple[str, int]


@dataclass(frozen=True)
class Channel:
    """The two directions of a connection."""

    sent: Path
    returned: Path


def _socket(address: Address) -> tuple[socket.socket, str | tuple[str, int]]:
    if isinstance(address, Path):
        return socket.socket(socket.AF_UNIX), str(address)
    return socket.socket(socket.AF_INET), address


class Relay:
    """Use as a context manager: leaving it closes every connection.

    to:        where the destination listens
    directory: for the socket and the files, which are chN and retN
    tcp:       listen on a port of the loopback interface instead of a unix socket
    """

    def __init__(self, to: Address, directory: Path, *, tcp: bool = False) -> None:
        self.to = to
        self.directory = directory
        self.channels: list[Channel] = []
        self._failures: list[OSError] = []
        self._sockets: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []
        listen: Address = ("127.0.0.1", 0) if tcp else directory / "relay.sock"
        self._server, address = _socket(listen)
        self._server.bind(address)
        self._server.listen(32)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def uri(self) -> str:
        """The address for the source's `migrate`."""
        name = self._server.getsockname()
        return f"unix:{name}" if isinstance(name, str) else f"tcp:{name[0]}:{name[1]}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing alone would not wake a thread that waits in accept() or recv().
        for end in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        for pump in self._pumps:
            pump.join()
        for end in (self._server, *self._sockets):
            end.close()
        if self._server.family == socket.AF_UNIX:
            (self.directory / "relay.sock").unlink(missing_ok=True)

    def finish(self, timeout: float = 60) -> list[Channel]:
        """Wait until both sides have closed every connection; the channels, first one first."""
        deadline = time.monotonic() + timeout
        for pump in self._pumps:
            pump.join(max(0, deadline - time.monotonic()))
            assert not pump.is_alive(), f"a connection is still open after {timeout} s"
        if self._failures:
            raise self._failures[0]
        assert self.channels, "nobody has connected"
        return list(self.channels)

    def _accept(self) -> None:
        while True:
            try:
                source, _ = self._server.accept()
            except OSError:
                return  # closed
            destination, address = _socket(self.to)
            self._sockets += [source, destination]
            try:
                destination.connect(address)
            except OSError as error:
                self._failures.append(error)
                return
            number = len(self.channels)
            channel = Channel(self.directory / f"ch{number}", self.directory / f"ret{number}")
            for args in (
                (source, destination, channel.sent),
                (destination, source, channel.returned),
            ):
                pump = threading.Thread(target=self._pump, args=args, daemon=True)
                self._pumps.append(pump)
                pump.start()
            self.channels.append(channel)

    def _pump(self, source: socket.socket, to: socket.socket, record: Path) -> None:
        """Pass bytes on until one side closes; what could not be passed on is recorded too."""
        # Unbuffered, so that what the file holds is all that has come.
        with record.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while data := source.recv(STEP):
                file.write(data)
                to.sendall(data)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)
