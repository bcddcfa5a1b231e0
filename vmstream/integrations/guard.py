"""How a guest is put back that a capture changed: by the capture, or behind one that was killed.

Run as a program, this is the companion of a capture (`vmstream/transport/companion.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmstream.errors import OutputError, printable
from vmstream.integrations.qmp import Monitor, RefusedError
from vmstream.transport.companion import last_told
from vmstream.transport.signals import end_within

NAME = "vmstream-capture"
"""Of the descriptors that QEMU is given."""

# QEMU v10.1.0 qapi/migration.json MigrationStatus: that nothing goes on.
IDLE = frozenset(("none", "completed", "failed", "cancelled"))

_POLL = 0.1
_CANCEL_TIMEOUT = 60.0
_RESUME_TIMEOUT = 30.0
# QEMU may be in the last writes of a migration before it takes a new client.
_GREETING_TIMEOUT = 60.0
# Of all that the guard does.
_LIMIT = 180


@dataclass(slots=True)
class Changes:
    """What a capture changed of a guest, or is about to.

    Attributes:
        qmp: The monitor's socket.
        temporary: The output, under its temporary name; `None` if there is no such file.
        migrating: A migration of ours may go on, and QEMU have the descriptor for it.
        resume: The guest ran, and is to go on.
        undo: Commands with their arguments, which set back what was set.
    """

    qmp: str
    temporary: str | None = None
    migrating: bool = False
    resume: bool = False
    undo: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def restore(self, monitor: Monitor) -> list[str]:
        """End what goes on, have the guest go on, and put everything back; return what failed."""
        run = monitor.run
        steps: list[Callable[[], object]] = []
        if self.migrating:
            steps += [lambda: _cancel(run)]
        if self.resume:
            steps += [lambda: _resume(run)]
        steps += [lambda c=command, a=arguments: run(c, **a) for command, arguments in self.undo]  # type: ignore[misc]
        if self.migrating:
            steps += [lambda: _close(run)]
        troubles = []
        for step in steps:
            try:
                step()
            except OutputError as exc:
                troubles.append(str(exc))
        return troubles


def _status(run: Callable[..., Any]) -> Any:
    return run("query-migrate").get("status", "none")


def _cancel(run: Callable[..., Any]) -> None:
    if _status(run) in IDLE:
        return
    run("migrate_cancel")
    until = time.monotonic() + _CANCEL_TIMEOUT
    while time.monotonic() < until:
        if _status(run) in IDLE:
            return
        time.sleep(_POLL)
    raise OutputError("the migration does not end, though it was cancelled")


# The state of the migration changes a moment before that of the guest, and in between QEMU
# refuses `cont`: "Migration is not finalized yet".
def _resume(run: Callable[..., Any]) -> None:
    until = time.monotonic() + _RESUME_TIMEOUT
    while run("query-status")["status"] != "running":
        try:
            run("cont")
        except RefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL)


# A migration takes the descriptor of getfd with it. An fdset goes when QEMU has closed what it
# opened of it.
def _close(run: Callable[..., Any]) -> None:
    with suppress(RefusedError):
        run("closefd", fdname=NAME)
    for fdset in run("query-fdsets"):
        if any(fd.get("opaque") == NAME for fd in fdset["fds"]):
            run("remove-fd", fdset_id=fdset["fdset-id"])


def main() -> None:
    """Wait for the end of a capture, and put back what it left."""
    told = last_told()
    if told is None:
        return
    end_within(_LIMIT)
    changes = Changes(**told)
    said = ""
    try:
        if changes.migrating or changes.resume or changes.undo:
            with Monitor(Path(changes.qmp), _GREETING_TIMEOUT) as monitor:
                troubles = changes.restore(monitor)
            said = (
                f"not all could be put back: {'; '.join(troubles)}"
                if troubles
                else ("the guest was put back")
            )
    except (FileNotFoundError, ConnectionRefusedError):
        pass  # so is QEMU
    except (OutputError, OSError) as exc:
        said = f"nothing could be put back: {exc}"
    if changes.temporary is not None:
        with suppress(OSError):
            Path(changes.temporary).unlink()
    if said:
        line = f"vmstream: the capture was killed; {printable(said)}\n"
        with suppress(OSError):  # a terminal or pipe that is gone
            os.write(2, line.encode(errors="backslashreplace"))


if __name__ == "__main__":
    main()
