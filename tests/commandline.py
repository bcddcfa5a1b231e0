"""Run the command line as users do: in a process of its own, which tests.forkserver makes.

run = vmstream("inspect", "--json", path)
run = vmstream("records", "-", stdin=stream_bytes)     # through a pipe
run = vmstream("inspect", "-", stdin=path)             # redirected from a file
run.status, run.out, run.err, run.json()
run = on_terminal("inspect", path, columns=80)         # what a person sees
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import forkserver

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "vmstream")


@dataclass(frozen=True)
class Run:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Its output, one JSON document."""
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        """Its output, one JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**changes: str) -> dict[str, str]:
    """The environment without what changes output or Python itself, able to import vmstream."""
    plain = {"NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in plain and not name.startswith("PYTHON")
    }
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def vmstream(
    *args: str | Path,
    stdin: bytes | Path | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Run:
    """Run `vmstream ARGS`; bytes for stdin come through a pipe, a path is a redirected file."""
    command = list(map(str, args))
    env = environment() if env is None else env
    with open(stdin if isinstance(stdin, Path) else os.devnull, "rb") as file:
        given = stdin if isinstance(stdin, bytes) else file.fileno()
        status, out, err = forkserver.run(command, given, cwd, env)
    return Run(status, _text(out), _text(err))


def on_terminal(*args: str | Path, columns: int = 80, env: dict[str, str] | None = None) -> Run:
    """Run `vmstream ARGS` with standard output and error on a terminal; `out` is both."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = environment(**{"TERM": "xterm-256color", **(env or {})})
    command = [*COMMAND, *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while part := os.read(ours, 1 << 16):
                parts.append(part)
    os.close(ours)
    return Run(process.returncode, _text(b"".join(parts)), "")


def no_leftovers(directory: Path) -> bool:
    """Whether no temporary file of ours is below a directory."""
    return not [p for p in directory.rglob("*") if p.name.endswith(".part")]
