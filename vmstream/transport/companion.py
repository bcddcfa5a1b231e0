"""A process beside this one, which learns of its end, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import IO, Any, Self, cast

from vmstream.errors import OutputError
from vmstream.transport.signals import ignore_ending


class Companion:
    """A module of ours that runs in a process of its own; a context manager.

    It is told things, and acts on the last of them if this process ends inside of the context, as
    only SIGKILL and the like make it: its standard input ends then. Leaving the context ends it.
    It is in a session of its own, out of reach for what is sent to a terminal or a process group,
    and has standard error in common with this process.

    Started, not forked: there may be threads, and files that are not its business.

    Args:
        module: Its name. Run as a program, it calls `last_told`.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, module: str) -> None:
        # What this process imports from, and not the working directory beside it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", module], bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        self._telling = cast("IO[bytes]", self._process.stdin)
        self._hearing = cast("IO[bytes]", self._process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        with self._process:
            pass

    def ready(self) -> None:
        """Wait until it listens, which takes as long as Python starts.

        Raises:
            OutputError: It has ended.
        """
        if not self._hearing.read(1):
            raise OutputError("the process that guards this one did not start")

    def tell(self, what: Any) -> None:
        """Replace what it was told before; JSON. If it has ended, nothing happens."""
        with contextlib.suppress(BrokenPipeError):
            self._telling.write(json.dumps(what).encode() + b"\n")


def last_told() -> Any:
    """Wait, in the companion, for the other process to end, and return what it told last.

    `None` if it told nothing. From here on SIGINT, SIGTERM and SIGHUP are ignored.
    """
    ignore_ending()
    with contextlib.suppress(BrokenPipeError):
        os.write(1, b"\n")
    # Of a line that is cut off the end never came, so what it tells of was not done.
    lines = sys.stdin.buffer.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else None
