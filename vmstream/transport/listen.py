"""Connections that others make to us: a socket that listens, on loopback unless told otherwise."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import socket
from typing import Self

from vmstream.errors import OutputError

# More than multifd can have.
MAX_CONNECTIONS = 300

_ANSWER_TIMEOUT = 10.0


class Connection:
    """One connection.

    Attributes:
        number: In the order in which they came, from 0.
    """

    def __init__(self, connected: socket.socket, number: int) -> None:
        self.number = number
        self.socket = connected

    def read(self, buffer: memoryview) -> int:
        """Read what there is; return the bytes, 0 at the end. A reset is an end."""
        try:
            return self.socket.recv_into(buffer)
        except ConnectionError:
            return 0

    def answer(self, data: bytes) -> None:
        """Send a few bytes back; nothing if the other side is gone."""
        self.socket.settimeout(_ANSWER_TIMEOUT)
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)


class Listener:
    """A socket that listens, and the connections to it; a context manager.

    Args:
        address: `unix:PATH` or `tcp:HOST:PORT`, as QEMU writes it; port 0 is a free one.
        allow_remote: HOST may be other than loopback.

    Attributes:
        address: With the port that it got.
        open: Connections that are.

    Raises:
        OutputError: It is no such address, the path exists, or HOST is not loopback.
        OSError: It cannot be listened at.
    """

    def __init__(self, address: str, *, allow_remote: bool = False) -> None:
        kind, _, rest = address.partition(":")
        self._path = rest if kind == "unix" else None
        if kind == "unix" and rest:
            self._server = _unix(rest)
            self.address = address
        elif kind == "tcp" and ":" in rest:
            self._server = _tcp(rest, allow_remote=allow_remote)
            host, port = self._server.getsockname()[:2]
            self.address = f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
        else:
            raise OutputError(f"{address!r} is no address: unix:PATH or tcp:HOST:PORT")
        self.open: list[Connection] = []
        self._count = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in list(self.open):
            self.close(connection)
        self._selector.close()
        self._server.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def ready(self, timeout: float) -> list[Connection]:
        """Wait at most `timeout` seconds; return connections that have bytes, or end."""
        found = []
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                found.append(key.data)
            else:
                self._accept()
        return found

    def close(self, connection: Connection) -> None:
        """Close a connection."""
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self.open.remove(connection)

    def _accept(self) -> None:
        connected, _ = self._server.accept()
        if len(self.open) == MAX_CONNECTIONS:
            connected.close()
            return
        connection = Connection(connected, self._count)
        self._count += 1
        self.open.append(connection)
        self._selector.register(connected, selectors.EVENT_READ, connection)


def _unix(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(path)
        server.listen(MAX_CONNECTIONS)
    except OSError as exc:
        server.close()
        if exc.errno == errno.EADDRINUSE:
            raise OutputError(f"{path}: exists; a socket that nobody listens at may go") from exc
        raise OSError(exc.errno, exc.strerror or str(exc), path) from exc
    return server


def _tcp(where: str, *, allow_remote: bool) -> socket.socket:
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as exc:
        raise OutputError(f"tcp:{where} is no address: {exc}") from exc
    if not (allow_remote or ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback):
        raise OutputError(
            f"tcp:{where} can be reached from elsewhere, and anybody who does is recorded: "
            "--allow-remote has it so"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=MAX_CONNECTIONS)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror or str(exc), f"tcp:{where}") from exc
