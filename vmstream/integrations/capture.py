"""`capture`: have a running QEMU write its stream, and leave it as it was.

QEMU gets a descriptor of ours, so the file is made, named and owned by who captures, and nothing
depends on what the QEMU process may open or start: `fd:` with a socket, or `file:/dev/fdset/N` for
mapped-ram, which takes a file to seek in. QEMU v9.1 deprecated `fd:` for files, not for sockets.

A companion is told of each change before it is made, and puts the guest back if the capture is
killed (`guard.py`).
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vmstream.container.open import OpenStream
from vmstream.errors import EXIT_FINDINGS, OutputError, StreamError
from vmstream.integrations.guard import IDLE, NAME, Changes
from vmstream.integrations.qmp import Monitor
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.ops.inspect import inspect
from vmstream.ops.pipeline import Progress
from vmstream.report.models.capture import CAPTURE_SCHEMA, CaptureReport, SettingReport
from vmstream.report.models.inspect import InspectReport
from vmstream.transport.companion import Companion
from vmstream.transport.pump import Pump
from vmstream.transport.signals import Deferred
from vmstream.transport.sink import OutputFile, StandardOutput
from vmstream.version import __version__

MAX_PASSES = 10

_POLL = 0.1
_CLOSE_TIMEOUT = 30.0

# More than any disk takes, and far from what QEMU multiplies it with overflowing.
_BANDWIDTH = 1 << 40

# Capabilities that may stay on. All others change where the bytes go, or what they are, or the
# guest itself: release-ram gives memory away that was sent.
_HARMLESS = frozenset(
    ("auto-converge", "dirty-bitmaps", "events", "late-block-activate", "validate-uuid")
)
# Beside a background snapshot QEMU refuses nearly all of them. QEMU v10.0.0 migration/options.c
# INCOMPATIBLE_BACKGROUND_SNAPSHOT.
_HARMLESS_TO_A_SNAPSHOT = frozenset(("events",))
# In QEMU since, for those that are asked for.
_SINCE = {"background-snapshot": "6.0", "mapped-ram": "9.0", "xbzrle": "1.3"}


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What `capture` is asked for.

    Attributes:
        qmp: The monitor's socket.
        output: File to write; `-` for standard output.
        mode: 'stopped', 'live' or 'background-snapshot'.
        stop: Leave the guest stopped behind a capture that is whole.
        mapped_ram: Write mapped-ram.
        xbzrle: Send pages again as differences; 'live' alone.
        zstd: Compress what comes.
        passes: Passes after which a 'live' capture pauses the guest to come to its end.
        verify: Read the output afterwards.
        digest: Sum up the output.
        force: Replace a file that exists.
    """

    qmp: Path
    output: Path
    mode: str = "stopped"
    stop: bool = False
    mapped_ram: bool = False
    xbzrle: bool = False
    zstd: bool = False
    passes: int = MAX_PASSES
    verify: bool = False
    digest: bool = False
    force: bool = False


class _Guest:
    """A QEMU, what was changed of it, and how that is put back."""

    def __init__(
        self, monitor: Monitor, options: CaptureOptions, guard: Companion, changes: Changes
    ) -> None:
        self.run = monitor.run
        self.monitor = monitor
        self.options = options
        self._guard = guard
        self._changes = changes
        self.settings: list[SettingReport] = []
        self.troubles: list[str] = []
        version = self.run("query-version")
        number = version["qemu"]
        package = version["package"].strip().strip("()")
        self.version = f"{number['major']}.{number['minor']}.{number['micro']} {package}".strip()
        self.state: str = self.run("query-status")["status"]

    @property
    def running(self) -> bool:
        """It ran when we came."""
        return self.state == "running"

    def check(self) -> None:
        """Refuse what cannot be captured; nothing has been changed yet."""
        status = self.migration().get("status", "none")
        if status not in IDLE:
            raise OutputError(
                f"a migration of this guest goes on already ({status}): wait for its end, or "
                "migrate_cancel"
            )
        if self.state == "inmigrate":
            raise OutputError("this QEMU waits for a migration to come: there is no guest yet")
        if self.state == "suspended":
            raise OutputError(
                "the guest is suspended, which old QEMUs forget when it goes on: wake it first "
                "(system_wakeup)"
            )
        if self.options.mode == "background-snapshot" and not self.running:
            raise OutputError(
                f"the guest does not run ({self.state}), and a background snapshot would start it: "
                "leave out --background-snapshot"
            )

    def migration(self) -> dict[str, Any]:
        """How the migration goes."""
        found: dict[str, Any] = self.run("query-migrate")
        return found

    def prepare(self) -> None:
        """Set capabilities and parameters, noting what they were, and pause the guest."""
        self._guard.ready()
        options = self.options
        snapshot = options.mode == "background-snapshot"
        wanted = {
            "xbzrle": options.xbzrle,
            "mapped-ram": options.mapped_ram,
            "background-snapshot": snapshot,
        }
        before = {c["capability"]: bool(c["state"]) for c in self.run("query-migrate-capabilities")}
        for name in (name for name, on in wanted.items() if on and name not in before):
            raise OutputError(
                f"QEMU {self.version} has no capability {name}, which came with {_SINCE[name]}"
            )
        harmless = _HARMLESS_TO_A_SNAPSHOT if snapshot else _HARMLESS
        during = {
            name: (name in harmless and state) or wanted.get(name, False)
            for name, state in before.items()
        }
        changed = {name: on for name, on in during.items() if on != before[name]}
        self._set(
            "migrate-set-capabilities", "capability", before, changed,
            lambda some: {"capabilities": [{"capability": n, "state": s} for n, s in some.items()]},
        )  # fmt: skip
        parameters = self.run("query-migrate-parameters")
        fitting = {"max-bandwidth": _BANDWIDTH, "tls-creds": "", "mode": "normal"}
        self._set(
            "migrate-set-parameters", "parameter", parameters,
            {n: v for n, v in fitting.items() if n in parameters and parameters[n] != v}, dict,
        )  # fmt: skip
        # QEMU may be at it already when the answer comes, or end it at once.
        self._note(migrating=True, resume=self.running)
        if self.running and options.mode == "stopped":
            self.run("stop")

    # To the guard first: whatever is done may be the last that this process does.
    def _note(self, **changed: Any) -> None:
        self._changes = replace(self._changes, **changed)
        self._guard.tell(asdict(self._changes))

    def _set(
        self,
        command: str,
        kind: str,
        before: dict[str, Any],
        changed: dict[str, Any],
        arguments: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        if not changed:
            return
        # Noted first: QEMU sets one after the other, and may refuse the second.
        undo = (command, arguments({name: before[name] for name in changed}))
        self._note(undo=[*self._changes.undo, undo])
        self.settings += [SettingReport(kind, n, before[n], v) for n, v in changed.items()]
        self.run(command, **arguments(changed))

    def restore(self, *, stop: bool) -> None:
        """End what goes on, have the guest go on, and put everything back; note what fails.

        Args:
            stop: Leave the guest stopped.
        """
        resume = self._changes.resume
        self.troubles += replace(self._changes, resume=resume and not stop).restore(self.monitor)
        # Without a file under its name, the guest is not to stay stopped.
        self._note(migrating=False, undo=[], resume=resume and stop)

    def leave(self) -> None:
        """Leave it as `restore` did, killed or not."""
        self._note(resume=False)

    def migrate(self, uri: str, progress: Progress | None, over: Callable[[], bool]) -> bool:
        """Migrate, and wait for the end of it; return whether it is complete.

        Args:
            uri: Where to.
            progress: Called with (bytes, how many there are to be).
            over: Waits a moment, and says whether to wait no longer.

        Raises:
            OutputError: QEMU refuses it, or it failed.
        """
        self.run("migrate", uri=uri)
        while True:
            enough = over()
            found = self.migration()
            status, ram = found.get("status", "none"), found.get("ram", {})
            if progress is not None and ram:
                progress(ram["transferred"], ram["transferred"] + ram["remaining"])
            if status == "completed":
                return True
            if status in IDLE:
                said = found.get("error-desc", "without a reason; QEMU's log may have one")
                raise OutputError(f"QEMU's migration {status}: {said}")
            if enough:
                return False
            live = self.options.mode == "live" and self.running
            if live and ram.get("dirty-sync-count", 0) > self.options.passes:
                self.run("stop")

    def report(self, started: datetime.datetime) -> CaptureReport:
        """What was done, without sizes."""
        options, done = self.options, self.migration()
        layout = "mapped-ram" if options.mapped_ram else "zstd" if options.zstd else "plain"
        machine = self.run("qom-get", path="/machine", property="type")
        return CaptureReport(
            schema=CAPTURE_SCHEMA,
            tool=f"vmstream {__version__}",
            qmp=str(options.qmp),
            uri=None,
            libvirt=None,
            output=str(options.output),
            output_size=0,
            output_sha256=None,
            stream_size=0,
            stream_sha256=None,
            format=layout,
            mode=options.mode,
            qemu=self.version,
            machine=machine.removesuffix("-machine"),
            name=self.run("query-name").get("name"),
            uuid=self.run("query-uuid")["UUID"],
            started=started.isoformat(timespec="seconds"),
            total_time_ms=done.get("total-time"),
            downtime_ms=done.get("downtime"),
            passes=done.get("ram", {}).get("dirty-sync-count"),
            status_before=self.state,
            status_after=self.run("query-status")["status"],
            settings=self.settings,
            troubles=self.troubles,
            complete=None,
            anomalies=[],
        )


def capture(
    options: CaptureOptions,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[CaptureReport, int]:
    """Have a running QEMU write its stream into a file, and leave it as it was.

    The guest goes on, capabilities and parameters are set back, whether the capture succeeds, fails
    or is ended by SIGINT, SIGTERM or SIGHUP; by a process started for that, if by SIGKILL. The file
    appears under its name when it is whole.

    Args:
        options: What is asked for.
        progress: Called with (bytes, how many there are to be).
        tell: Called with each thing that could not be put back.

    Returns:
        The document, and the exit status: 1 if something could not be put back, and what
        `inspect` says with `verify`.

    Raises:
        OutputError: QEMU refuses, in its words, or its migration failed.
        OSError: The output fails, or the monitor's socket; with the path.
        KeyboardInterrupt, SystemExit: A signal came.

    Memory:
        A few MiB, and a Python process beside.
    """
    with Deferred() as signals, ExitStack() as stack:
        guard = stack.enter_context(Companion("vmstream.integrations.guard"))
        changes = Changes(str(options.qmp))
        out: OutputFile | StandardOutput
        if options.output == STANDARD_OUTPUT:
            out = StandardOutput(digest=options.digest)
        else:
            out = stack.enter_context(OutputFile(options.output, force=options.force))
            changes.temporary = str(out.temporary)
            guard.tell(asdict(changes))
        monitor = stack.enter_context(Monitor(options.qmp))
        guest = _Guest(monitor, options, guard, changes)
        guest.check()
        started = datetime.datetime.now(datetime.UTC)
        pump, whole = None, False
        try:
            guest.prepare()
            if options.mapped_ram and isinstance(out, OutputFile):
                whole = _into(guest, out, signals, progress)
            else:
                pump, whole = _through(guest, out, signals, progress)
        finally:
            guest.restore(stop=options.stop and whole)
            for trouble in guest.troubles:
                if tell is not None:
                    tell(trouble)
        if signals.number:
            raise OutputError("interrupted")  # which the signal replaces
        report = guest.report(started)
        # From here on the guest has what it had, and the rest may take its time.
        stream_sum = None if pump is None else pump.sha256()
        out_sum = out.sha256() if options.digest else None
        report = replace(
            report,
            output_size=out.size,
            output_sha256=out_sum,
            stream_size=out.size if pump is None else pump.received,
            stream_sha256=stream_sum or out_sum,
        )
        guest.leave()
        if isinstance(out, OutputFile):
            out.commit()
    code = EXIT_FINDINGS if guest.troubles else 0
    if not options.verify:
        return report, code
    checked, status = verified(options.output, report.stream_size)
    return replace(report, complete=checked.complete, anomalies=checked.anomalies), status or code


# Over a socket, on which QEMU's migration can be cut at any time.
def _through(
    guest: _Guest,
    out: OutputFile | StandardOutput,
    signals: Deferred,
    progress: Progress | None,
) -> tuple[Pump, bool]:
    zstd = guest.options.zstd
    with Pump(out, zstd=zstd, digest=zstd and guest.options.digest) as pump:
        signals.stop = pump.stop

        def over() -> bool:
            if pump.wait(_POLL):
                time.sleep(_POLL)
            return bool(signals.number or pump.error)

        guest.monitor.run_with(pump.descriptor, "getfd", fdname=NAME)
        pump.given()
        try:
            complete = guest.migrate(f"fd:{NAME}", progress, over)
        finally:
            signals.stop = None
            if pump.error is not None:
                raise pump.error
        if complete and not pump.wait(_CLOSE_TIMEOUT):
            raise OutputError("QEMU's migration completed, but QEMU does not close the stream")
        if pump.error is not None:
            raise pump.error
    return pump, complete and not signals.number


# A file that QEMU seeks in; that of an fdset has to be open for writing alone, as QEMU asks for it.
def _into(guest: _Guest, out: OutputFile, signals: Deferred, progress: Progress | None) -> bool:
    def over() -> bool:
        time.sleep(_POLL)
        return bool(signals.number)

    with out.for_writing() as descriptor:
        fdset = guest.monitor.run_with(descriptor, "add-fd", opaque=NAME)["fdset-id"]
    return guest.migrate(f"file:/dev/fdset/{fdset}", progress, over)


def verified(path: Path, size: int) -> tuple[InspectReport, int]:
    """Read a capture as `inspect` does.

    Args:
        path: The file.
        size: Bytes of the stream in it.

    Raises:
        OutputError: It cannot be read.
    """
    try:
        with OpenStream(path, max_ram=size) as opened:
            return inspect(opened.source, container=opened.container)
    except StreamError as exc:
        raise OutputError(f"{path}: QEMU's migration completed, but {exc}") from exc
