"""The monitor of a running QEMU, by the library qemu.qmp."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmstream.errors import OutputError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_GREETING_TIMEOUT = 10.0


class RefusedError(OutputError):
    """QEMU says no to a command; the message has its words."""


class Monitor:
    """A QMP monitor on a unix socket, without events; a context manager.

    Args:
        path: The socket.
        patience: Seconds to wait for the greeting; 10 by default.

    Raises:
        OutputError: qemu.qmp is not installed, or what listens there is no QMP monitor or talks to
            somebody else.
        OSError: Nothing listens there; with the path.
    """

    def __init__(self, path: Path, patience: float | None = None) -> None:
        import asyncio  # which is slow to come, and not needed to wait for a capture

        try:
            import qemu.qmp
        except ImportError:
            raise OutputError(
                "talking to QEMU takes the package qemu.qmp: pip install 'vmstream[capture]'"
            ) from None
        self.path = path
        self._errors = qemu.qmp
        # What it would log comes as an exception.
        logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
        self._loop = asyncio.new_event_loop()
        try:
            self._client = self._connect(patience or _GREETING_TIMEOUT)
        except BaseException:
            self._loop.close()
            raise

    def _connect(self, patience: float) -> QMPClient:
        import asyncio

        client = self._errors.QMPClient()
        try:
            self._wait(asyncio.wait_for(client.connect(str(self.path)), patience))
        except TimeoutError:
            raise OutputError(
                f"{self.path}: no greeting; a monitor talks to one client at a time: give QEMU "
                "another one (-qmp unix:PATH,server=on,wait=off)"
            ) from None
        except self._errors.ConnectError as exc:
            if isinstance(exc.exc, OSError):
                raise OSError(exc.exc.errno, exc.exc.strerror, str(self.path)) from exc
            raise OutputError(f"{self.path}: no QMP monitor: {exc}") from exc
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._wait(self._client.disconnect())
        except (self._errors.QMPError, OSError, EOFError):
            pass  # it is gone
        finally:
            self._loop.close()

    def run(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns; underscores in names become dashes.

        Raises:
            RefusedError: QEMU says no.
            OutputError: The connection is gone.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._client.events.clear()
            return self._wait(self._client.execute(command, named))
        except self._errors.ExecuteError as exc:
            raise RefusedError(f"QEMU refuses {command}: {exc}") from exc
        except (self._errors.QMPError, OSError, EOFError) as exc:
            raise OutputError(f"{self.path}: the connection to QEMU broke: {exc}") from exc

    def run_with(self, descriptor: int, command: str, **arguments: Any) -> Any:
        """Run a command that takes a descriptor, getfd or add-fd; as of `run`."""
        try:
            self._client.send_fd_scm(descriptor)
        except (self._errors.QMPError, OSError) as exc:
            raise OutputError(f"{self.path}: no descriptor can be sent: {exc}") from exc
        return self.run(command, **arguments)

    def _wait(self, job: Any) -> Any:
        return self._loop.run_until_complete(job)
