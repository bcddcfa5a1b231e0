"""A process with vmstream imported, which forks one for each command that a test runs.

Starting Python and importing takes ten times what most commands of the tests take. Run as a
program this is the server: a request on the socket that is its standard input is a JSON of
arguments, directory and environment, with descriptors for the command's standard input, output and
error, and one that its exit status is written to. `run` is for the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import vmstream
from vmstream.cli.main import main

_server: socket.socket | None = None


def run(
    args: list[str], stdin: int | bytes, cwd: Path | None, env: dict[str, str]
) -> tuple[int, bytes, bytes]:
    """Run `vmstream ARGS` in a process of its own: (exit status, output, error output).

    Standard input is a descriptor, or bytes that come through a pipe; the others are pipes.
    """
    given = None
    if isinstance(stdin, bytes):
        given, stdin, data = *reversed(os.pipe()), stdin
    (out, to_out), (err, to_err), (status, to_status) = os.pipe(), os.pipe(), os.pipe()
    request = json.dumps([args, str(cwd or Path.cwd()), env]).encode()
    theirs = [stdin, to_out, to_err, to_status]
    socket.send_fds(_started(env), [request], theirs)
    for fd in theirs if given is not None else theirs[1:]:
        os.close(fd)
    with ThreadPoolExecutor() as pool:
        if given is not None:
            pool.submit(_write, given, data)
        read = list(pool.map(_read, (out, err, status)))
    return int(read[2]), read[0], read[1]


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(fd, "wb") as file:
        file.write(data)


def _started(env: dict[str, str]) -> socket.socket:
    global _server
    if _server is None:
        _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Without -P, tests/ would be the first place for imports, and tests/qemu.py be `qemu`.
            process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs, env=env)
        atexit.register(process.wait)
        atexit.register(_server.close)  # is called first
    return _server


# What commands import when they run, too; but for what extras of their own bring.
def _import_all() -> None:
    for module in pkgutil.walk_packages(vmstream.__path__, "vmstream."):
        if not module.name.startswith(("vmstream.integrations", "vmstream.__main__")):
            importlib.import_module(module.name)
    for name in ("console", "progress", "table", "text"):
        importlib.import_module(f"rich.{name}")
    gc.freeze()  # a collection in a fork would copy all of it


def _serve() -> list[str]:
    """Fork for each request; return its arguments in the process that is to be the command."""
    _import_all()
    server = socket.socket(fileno=0)
    while True:
        request, fds, _, _ = socket.recv_fds(server, 1 << 20, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not request:
            os._exit(0)
        if os.fork() == 0:
            break
        for fd in fds:
            os.close(fd)
    told = fds.pop()
    if (child := os.fork()) != 0:
        for fd in (0, *fds):
            os.close(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(told, b"%d\n" % status)
        os._exit(0)
    os.close(told)
    server.detach()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    args, directory, env = json.loads(request)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(directory)
    # What Python made at its start is for the files that were there then.
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace")
    sys.stdin.buffer.raw.name = "<stdin>"  # as Python does
    return args


if __name__ == "__main__":
    sys.argv[1:] = _serve()
    sys.exit(main())
