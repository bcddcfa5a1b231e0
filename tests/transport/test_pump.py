"""`Pump`: what comes over the socket goes into the output, and who writes sees the end of it."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest
import zstandard

from vmstream.transport.pump import Pump
from vmstream.transport.sink import OutputFile

DATA = os.urandom(1000) * 3000


class Full:
    def write(self, offset: int, data: memoryview | bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out")


def send(pump: Pump, data: bytes) -> None:
    with socket.socket(fileno=os.dup(pump.descriptor)) as other:
        pump.given()
        other.sendall(data)


@pytest.mark.parametrize("zstd", [False, True])
def test_all_of_it(zstd: bool, tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out") as out:
        with Pump(out, zstd=zstd, digest=True) as pump:
            send(pump, DATA)
            assert pump.wait(20)
        out.commit()
    written = (tmp_path / "out").read_bytes()
    assert (
        zstandard.ZstdDecompressor().decompressobj().decompress(written) if zstd else written
    ) == DATA
    assert pump.error is None
    assert (pump.received, pump.written) == (len(DATA), len(written))
    assert pump.sha256() == hashlib.sha256(DATA).hexdigest()


def test_an_output_that_fails_and_stop() -> None:
    with Pump(Full()) as pump:
        with pytest.raises(ConnectionError):
            send(pump, DATA)
        assert pump.wait(20)
    assert pump.error is not None
    assert pump.error.errno == errno.ENOSPC
    with Pump(Full()) as pump, socket.socket(fileno=os.dup(pump.descriptor)) as other:
        assert not pump.wait(0.01)
        pump.stop()
        assert pump.wait(20)
        with pytest.raises(BrokenPipeError):
            other.sendall(b"x")
    assert pump.error is None
