"""`Listener`: loopback alone, and connections as they come."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vmstream.errors import OutputError
from vmstream.transport.listen import Listener


def test_tcp_and_answers() -> None:
    with Listener("tcp:localhost:0") as listener:
        host, port = listener.address.removeprefix("tcp:").rsplit(":", 1)
        with socket.create_connection((host.strip("[]"), int(port))) as other:
            assert listener.ready(5) == []
            [connection] = listener.open
            assert connection.number == 0
            other.sendall(b"hello")
            assert listener.ready(5) == [connection]
            buffer = memoryview(bytearray(10))
            assert connection.read(buffer) == 5
            connection.answer(b"yes")
            assert other.recv(10) == b"yes"
        assert listener.ready(5) == [connection]
        assert connection.read(buffer) == 0
        connection.answer(b"to nobody")
        listener.close(connection)
        assert listener.open == []


def test_remote_takes_a_word() -> None:
    for address in ("tcp:0.0.0.0:0", "tcp::0", "tcp:[::]:0"):
        with pytest.raises(OutputError, match="--allow-remote"):
            Listener(address)
    with Listener("tcp:0.0.0.0:0", allow_remote=True) as listener:
        assert listener.address.startswith("tcp:0.0.0.0:")


def test_addresses(tmp_path: Path) -> None:
    for address in ("exec:true", "unix:", "tcp:1", "tcp:host.invalid.:1", "/run/sock"):
        with pytest.raises(OutputError, match="no address"):
            Listener(address)
    with Listener(f"unix:{tmp_path / 'sock'}"), pytest.raises(OutputError, match="exists"):
        Listener(f"unix:{tmp_path / 'sock'}")
    assert not (tmp_path / "sock").exists()
    with pytest.raises(FileNotFoundError):
        Listener(f"unix:{tmp_path / 'no' / 'sock'}")
