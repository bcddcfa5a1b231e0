"""`capture --libvirt`: have libvirt write a save image of a domain, and leave the domain as it was.

`virsh save` ends the domain. A snapshot of memory alone, external and without metadata, writes the
same image by the same code (libvirt v9.0.0 src/qemu/qemu_snapshot.c
qemuSnapshotCreateActiveExternal(), qemu_saveimage.c qemuSaveImageCreate()), and the domain goes on
behind it, which libvirt itself sees to: also if the job fails, is aborted, or nobody waits for it.
"""

from __future__ import annotations

import datetime
import errno
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from vmstream.container.open import OpenStream
from vmstream.errors import EXIT_FINDINGS, OutputError, StreamError
from vmstream.integrations.capture import MAX_PASSES, verified
from vmstream.ops.pipeline import Progress
from vmstream.report.models.capture import CAPTURE_SCHEMA, CaptureReport
from vmstream.transport.signals import Deferred
from vmstream.transport.sink import OutputFile
from vmstream.transport.source import measure
from vmstream.version import __version__

_POLL = 0.1
_ABORT_TIMEOUT = 60.0

# virDomainState, by number: include/libvirt/libvirt-domain.h.
_STATES = (
    "no state", "running", "blocked", "paused", "in shutdown", "shut off", "crashed", "pmsuspended",
)  # fmt: skip

_ADVICE = {
    errno.EACCES: "libvirt's daemon, which may be another user, may not write there: give a "
    "directory of yours that it can enter; in /tmp the kernel lets nobody else write to your files",
    errno.ENOENT: "libvirt's daemon does not see that directory: does it run in a container, or "
    "on another machine?",
}


@dataclass(frozen=True, slots=True)
class DomainOptions:
    """What `capture_domain` is asked for.

    Attributes:
        domain: Name, UUID or id.
        output: File to write.
        uri: Of the connection; libvirt's own choice if `None`.
        live: Let the domain run meanwhile.
        stop: Leave it paused behind a capture that is whole; not with `live`.
        passes: Passes after which a `live` capture pauses it to come to its end.
        verify: Read the output afterwards.
        digest: Sum up the output, and the stream in it.
        force: Replace a file that exists.
    """

    domain: str
    output: Path
    uri: str | None = None
    live: bool = False
    stop: bool = False
    passes: int = MAX_PASSES
    verify: bool = False
    digest: bool = False
    force: bool = False


class _Domain:
    """A domain, and a job of it."""

    def __init__(self, options: DomainOptions, stack: ExitStack) -> None:
        self.options = options
        self.api = _binding()
        self.troubles: list[str] = []
        try:
            self.connection = self.api.open(options.uri)
            stack.callback(self._close)
            self.uri: str = self.connection.getURI()
            self._check_connection()
            self.domain = self._find(options.domain)
            self.name: str = self.domain.name()
            self.state = self.state_now()
            self._check_domain()
            self.xml = ElementTree.fromstring(self.domain.XMLDesc(0))  # noqa: S314 (libvirt's own)
        except self.api.libvirtError as exc:
            raise OutputError(f"libvirt: {exc}") from exc

    @property
    def running(self) -> bool:
        """It ran when we came."""
        return self.state in ("running", "blocked")

    def state_now(self) -> str:
        """Its state, in libvirt's word."""
        number = self.domain.state()[0]
        return _STATES[number] if number < len(_STATES) else str(number)

    def _close(self) -> None:
        with suppress(self.api.libvirtError):
            self.connection.close()

    def _check_connection(self) -> None:
        host = urlsplit(self.uri).hostname
        if host:
            raise OutputError(
                f"{self.uri}: libvirt writes the file where it runs, on {host}: run vmstream there"
            )
        kind = self.connection.getType()
        if kind != "QEMU":
            raise OutputError(f"{self.uri} is a connection to {kind}, not to QEMU: give --connect")

    # In the order of virsh.
    def _find(self, wanted: str) -> Any:
        ways: list[Callable[[], Any]] = [
            lambda: self.connection.lookupByName(wanted),
            lambda: self.connection.lookupByUUIDString(wanted),
        ]
        if wanted.isascii() and wanted.isdecimal():
            ways.insert(0, lambda: self.connection.lookupByID(int(wanted)))
        for way in ways:
            try:
                return way()
            except self.api.libvirtError as exc:
                code = exc.get_error_code()
                if code not in (self.api.VIR_ERR_NO_DOMAIN, self.api.VIR_ERR_INVALID_ARG):
                    raise
        raise OutputError(
            f"{self.uri} has no domain {wanted!r}: `virsh -c {self.uri} list` shows those that run;"
            " --connect is for another libvirt"
        )

    def _check_domain(self) -> None:
        if self.state not in ("running", "blocked", "paused"):
            raise OutputError(f"the domain {self.name!r} is {self.state}: only one that runs, or "
                              "is paused, can be captured")  # fmt: skip
        job = self.domain.jobStats()
        if job["type"] != self.api.VIR_DOMAIN_JOB_NONE:
            raise OutputError(
                f"a job of the domain {self.name!r} goes on already: wait for its end "
                "(virsh domjobinfo), or virsh domjobabort"
            )

    def snapshot_xml(self, path: Path) -> str:
        """Ask for memory in a file; disks are named, as libvirt would make overlays for them."""
        root = ElementTree.Element("domainsnapshot")
        ElementTree.SubElement(root, "memory", snapshot="external", file=str(path))
        disks = ElementTree.SubElement(root, "disks")
        for target in self.xml.iterfind("devices/disk/target"):
            ElementTree.SubElement(disks, "disk", name=target.get("dev", ""), snapshot="no")
        return ElementTree.tostring(root, encoding="unicode")

    def prepare(self) -> None:
        """Pause a domain that is to stay so: behind the job, libvirt would let it run a moment."""
        if self.running and self.options.stop:
            try:
                self.domain.suspend()
            except self.api.libvirtError as exc:
                raise OutputError(f"libvirt: {exc}") from exc

    def save(self, path: Path, signals: Deferred, progress: Progress | None) -> None:
        """Write the image, and wait for the end of that.

        Args:
            path: An empty file that is there.
            signals: When one comes, the job is aborted.
            progress: Called with (bytes, how many there are to be).

        Raises:
            OutputError: It failed or was aborted.
        """
        live = self.options.live and self.running
        flags = self.api.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        if live:
            flags |= self.api.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        failures: list[Exception] = []
        text = self.snapshot_xml(path)

        def job() -> None:
            try:
                self.domain.snapshotCreateXML(text, flags)
            except self.api.libvirtError as exc:
                failures.append(exc)

        # A daemon, as a libvirt that hangs is not waited for behind the time for an abort.
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        until, paused = 0.0, False
        while True:
            thread.join(_POLL)
            if not thread.is_alive():
                break
            if signals.number:
                until = until or time.monotonic() + _ABORT_TIMEOUT
                if time.monotonic() > until:
                    raise OutputError("libvirt's job does not end, though it was aborted")
            # What is asked here is refused at some moments, and the next one comes soon.
            with suppress(self.api.libvirtError):
                stats = self.domain.jobStats()
                # Until it begins, there may be a job of somebody else.
                if stats.get("operation") != self.api.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT:
                    continue
                if signals.number:
                    self.domain.abortJob()
                    continue
                done, rest = stats.get("data_processed", 0), stats.get("data_remaining", 0)
                if progress is not None and done + rest:
                    progress(done, done + rest)
                passes = stats.get("memory_iteration", 0)
                if live and not paused and passes > self.options.passes:
                    self.domain.suspend()
                    paused = True
        if failures:
            raise OutputError(self._explained(failures[0], path)) from failures[0]

    def _explained(self, exc: Any, path: Path) -> str:
        text = f"libvirt: {exc}".replace(str(path), str(self.options.output))
        if "previous migration" in text:
            text += "; virsh resume, and suspend if it is to be paused, make it possible again"
        if exc.get_error_code() != self.api.VIR_ERR_SYSTEM_ERROR:
            return text
        advice = _ADVICE.get(exc.get_int1())
        return f"{text}; {advice}" if advice else text

    def restore(self, *, stop: bool) -> None:
        """Have it go on if it does not; note what fails.

        Args:
            stop: Leave it paused.
        """
        try:
            if self.running and not stop and self.state_now() == "paused":
                self.domain.resume()
        except self.api.libvirtError as exc:
            self.troubles.append(f"the domain, which ran: {exc}")

    def report(self, started: datetime.datetime) -> CaptureReport:
        """What was done, without sizes."""
        try:
            done = self.domain.jobStats(self.api.VIR_DOMAIN_JOB_STATS_COMPLETED)
        except self.api.libvirtError:
            done = {}
        try:
            return CaptureReport(
                schema=CAPTURE_SCHEMA,
                tool=f"vmstream {__version__}",
                qmp=None,
                uri=self.uri,
                libvirt=_version(self.connection.getLibVersion()),
                output=str(self.options.output),
                output_size=0,
                output_sha256=None,
                stream_size=0,
                stream_sha256=None,
                format="",
                mode="live" if self.options.live else "stopped",
                qemu=None,
                machine=getattr(self.xml.find("os/type"), "attrib", {}).get("machine", ""),
                name=self.name,
                uuid=self.domain.UUIDString(),
                started=started.isoformat(timespec="seconds"),
                total_time_ms=done.get("time_elapsed"),
                downtime_ms=done.get("downtime"),
                passes=done.get("memory_iteration"),
                status_before=self.state,
                status_after=self.state_now(),
                settings=[],
                troubles=self.troubles,
                complete=None,
                anomalies=[],
            )
        except self.api.libvirtError as exc:
            raise OutputError(f"libvirt: {exc}") from exc


def capture_domain(
    options: DomainOptions,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[CaptureReport, int]:
    """Have libvirt write a save image of a domain into a file, and leave the domain as it was.

    A domain that ran goes on, whether the capture succeeds, fails or is ended by SIGINT, SIGTERM or
    SIGHUP. The file appears under its name when it is whole; it is made here and written by
    libvirt's daemon, which has to be on this machine. libvirt is told to print no errors of its
    own, in this whole process.

    Args:
        options: What is asked for.
        progress: Called with (bytes, how many there are to be).
        tell: Called with each thing that could not be put back.

    Returns:
        The document, and the exit status: 1 if something could not be put back, and what
        `inspect` says with `verify`.

    Raises:
        OutputError: The binding is missing, there is no such domain, libvirt refuses, in its words,
            or the image is not whole.
        OSError: The output fails; with the path.
        KeyboardInterrupt, SystemExit: A signal came.

    Memory:
        A few MiB.
    """
    with Deferred() as signals, ExitStack() as stack:
        out = stack.enter_context(OutputFile(options.output, force=options.force))
        domain = _Domain(options, stack)
        started = datetime.datetime.now(datetime.UTC)
        whole = False
        try:
            domain.prepare()
            domain.save(out.temporary.absolute(), signals, progress)
            whole = not signals.number
        finally:
            domain.restore(stop=options.stop and whole)
            for trouble in domain.troubles:
                if tell is not None:
                    tell(trouble)
        if signals.number:
            raise OutputError("interrupted")  # which the signal replaces
        report = _measured(domain.report(started), out, digest=options.digest)
        out.commit()
    code = EXIT_FINDINGS if domain.troubles else 0
    if not options.verify:
        return report, code
    checked, status = verified(options.output, report.stream_size)
    return replace(report, complete=checked.complete, anomalies=checked.anomalies), status or code


# The guest has gone on here, and the rest may take its time.
def _measured(report: CaptureReport, out: OutputFile, *, digest: bool) -> CaptureReport:
    if not out.size:
        raise OutputError(
            f"{out.path}: libvirt says that it has written it, but nothing came: its daemon sees "
            "another file system"
        )
    try:
        with OpenStream(out.temporary) as opened:
            image = opened.container.layers[0].image if opened.container.layers else None
            if image is None or not image.header.finished:
                raise OutputError(f"{out.path}: what libvirt has written is no finished save image")
            size, total = measure(opened.source, digest=digest)
    except StreamError as exc:
        raise OutputError(f"{out.path}: libvirt's job completed, but {exc}") from exc
    return replace(
        report,
        output_size=out.size,
        output_sha256=out.sha256() if digest else None,
        stream_size=size,
        stream_sha256=total,
        format=f"libvirt-{image.format}",
    )


def _binding() -> Any:
    try:
        import libvirt
    except ImportError:
        raise OutputError(
            "talking to libvirt takes its binding: pip install 'vmstream[libvirt]', which compiles "
            "it (libvirt-dev, a C compiler), or Debian's package python3-libvirt"
        ) from None
    # It would print what comes as an exception.
    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
