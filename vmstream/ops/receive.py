"""`receive`: be the destination of a migration, and record what comes.

The source needs few answers: a PONG for each PING, and SHUT when all is loaded, without which one
with the capability return-path does not complete. QEMU v7.2.0 migration/migration.c
source_return_path_thread(), process_incoming_migration_co().
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vmstream.container.open import OpenStream
from vmstream.errors import OutputError
from vmstream.ops.channels import Channels
from vmstream.ops.inspect import inspect
from vmstream.ops.pipeline import Progress
from vmstream.report.models.receive import RECEIVE_SCHEMA, ReceivedChannel, ReceiveReport
from vmstream.stream.cursor import NEED_DATA
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Command, EndOfStream, SectionStart
from vmstream.transport.directory import OutputDirectory
from vmstream.transport.listen import Connection, Listener
from vmstream.transport.signals import Deferred
from vmstream.transport.sink import OutputFile
from vmstream.version import __version__
from vmstream.wire.constants import MigCmd, MigRPMsg, SectionType

_STEP = 1 << 20
_POLL = 0.1

# A stream is over when nothing has come for so long, in seconds, and its end is there: the
# vmdescription, which states its length; or else EOF behind a footer.
_IDLE, _IDLE_BARE = 0.2, 2.0
_TAIL = 16 << 20

_MAIN = b"QEVM"
_MULTIFD = b"\x11\x22\x33\x44"
_HEAD = 25  # up to the number of a multifd channel
_TLS = b"\x16\x03"

# A destination would have to go on from where it was, or to run the guest. Postcopy alone needs
# neither: the source sends what nobody asks for, too. QEMU v7.2.0 migration/ram.c
# get_queued_page(), ram_find_and_save_block().
_GOES_ON = "the source goes on with a postcopy migration that broke off, of which nothing is here"
_REFUSED = {
    MigCmd.POSTCOPY_RESUME: _GOES_ON,
    MigCmd.RECV_BITMAP: _GOES_ON,
    MigCmd.ENABLE_COLO: "the source has the capability x-colo, for which a destination has to run "
    "the guest: turn it off there and migrate again; the guest runs on at the source",
}


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """What `receive` is asked for.

    Attributes:
        listen: `unix:PATH` or `tcp:HOST:PORT`.
        directory: Where the files go.
        timeout: Seconds in which nothing comes that end it, `None` for no end.
        allow_remote: Listen elsewhere than on loopback.
        force: The directory may have something in it.
        switchover_ack: Answer a source that has this capability.
    """

    listen: str
    directory: Path
    timeout: float | None = None
    allow_remote: bool = False
    force: bool = False
    switchover_ack: bool = False


class _Follower:
    """Reads along on the main channel, and says what to answer.

    As far as the devices of precopy: no command comes behind them. In postcopy they are in a
    package.
    """

    def __init__(self, *, switchover_ack: bool = False) -> None:
        self._switchover_ack = switchover_ack
        self.return_path = False
        self.pings = 0
        self._decoder = Decoder()
        self._pending, self._base = b"", 0
        self._waits, self._over = False, False

    def take(self, data: bytes) -> bytes:
        """Take what comes next; return the answer."""
        answer = b""
        decoder = self._decoder
        self._pending += b"" if self._over else data
        while not self._over:
            if self._waits:
                self._pending = self._pending[decoder.offset - self._base :]
                self._base = decoder.offset
                if len(self._pending) < decoder.need:
                    break
                decoder.supply(memoryview(self._pending), self._base, at_end=False)
                self._waits = False
            event = decoder.next_event()
            if event is NEED_DATA:
                self._waits = True
            elif isinstance(event, Command):
                answer += self._command(event)
            else:
                # Devices, or what cannot be followed.
                self._over = (
                    event is None
                    or isinstance(event, EndOfStream)
                    or (isinstance(event, Anomaly) and event.severity == "error")
                    or (
                        isinstance(event, SectionStart)
                        and event.section_type == SectionType.QEMU_VM_SECTION_FULL
                        and not event.packaged
                    )
                )
        return answer

    def _command(self, event: Command) -> bytes:
        if event.cmd in _REFUSED:
            raise OutputError(_REFUSED[MigCmd(event.cmd)])
        if event.cmd == MigCmd.OPEN_RETURN_PATH:
            self.return_path = True
            # Not unasked: a QEMU before 8.1 fails on it, and the capability is not on the wire.
            # QEMU v8.1.0 migration/savevm.c loadvm_process_command(), migration/migration.c
            # migration_can_switchover().
            return _message(MigRPMsg.SWITCHOVER_ACK, b"") if self._switchover_ack else b""
        if event.cmd == MigCmd.PING and self.return_path:
            self.pings += 1
            return _message(MigRPMsg.PONG, event.data)
        return b""


class _Recording:
    """One connection on its way into a file."""

    def __init__(self, connection: Connection, options: ReceiveOptions) -> None:
        self.connection = connection
        self._options = options
        self.head = b""
        self.out: OutputFile | None = None
        self.name = self.kind = ""
        self.size = 0
        self.follower: _Follower | None = None
        self.told = False

    def named(self, *, at_end: bool) -> bool:
        """Whether its first bytes say what it is; then `name` and `kind` are set."""
        head = self.head
        if head.startswith(_TLS):
            raise OutputError(
                "the source speaks TLS: unset its parameter tls-creds (migrate_set_parameter "
                "tls-creds '')"
            )
        if head.startswith(_MAIN):
            self.name, self.kind = "main.bin", "main"
            self.follower = _Follower(switchover_ack=self._options.switchover_ack)
        elif head.startswith(_MULTIFD) and len(head) >= _HEAD:
            self.name, self.kind = f"ch{head[_HEAD - 1]}.bin", "multifd"
        elif at_end or len(head) >= _HEAD:
            self.name, self.kind = f"other{self.connection.number}.bin", "other"
        return bool(self.name)

    def write(self, data: bytes | memoryview) -> None:
        """Record what comes next, and answer it."""
        if self.out is None:
            raise ValueError("it has no name yet")
        self.out.write(self.size, data)
        self.size += len(data)
        if self.follower is not None and (answer := self.follower.take(bytes(data))):
            self.connection.answer(answer)

    def shut(self, idle: float) -> None:
        """Say that all has come, if it has: once, and to a source that waits for it."""
        if self.told or self.out is None or self.follower is None or not self.follower.return_path:
            return
        if idle >= _IDLE and _ended(self.out, self.size, bare=idle >= _IDLE_BARE):
            self.told = True
            self.connection.answer(_message(MigRPMsg.SHUT, bytes(4)))


def receive(
    options: ReceiveOptions,
    progress: Progress | None = None,
    listening: Callable[[str], None] | None = None,
) -> tuple[ReceiveReport, int]:
    """Wait for a migration, record each channel as it comes, and verify them.

    The directory appears when the source has closed all connections, also if the stream breaks off:
    it is what came. Ended by a signal, a timeout or a full disk, nothing is left.

    Args:
        options: What is asked for.
        progress: Called with (bytes so far, `None`).
        listening: Called once with the address, with the port that it got, when a source can
            connect.

    Returns:
        The document, and the exit status as `inspect` has it.

    Raises:
        OutputError: The address or the directory will not do, the source wants what cannot be
            given, or nothing came in time.
        StreamError: What came is no migration stream; it is kept.
        OSError: With the path.
        KeyboardInterrupt, SystemExit: A signal came.

    Memory:
        A few MiB for recording, and what `inspect` takes.
    """
    with Deferred() as signals, ExitStack() as stack:
        directory = stack.enter_context(OutputDirectory(options.directory, force=options.force))
        listener = stack.enter_context(Listener(options.listen, allow_remote=options.allow_remote))
        if listening is not None:
            listening(listener.address)
        recordings = _record(listener, directory, stack, signals, options, progress)
        channels = []
        for r in recordings:
            if r.out is not None:
                digest = r.out.sha256()
                r.out.commit()
                channels.append(ReceivedChannel(r.name, r.kind, r.size, digest))
        if not any(c.kind == "main" for c in channels):
            raise OutputError("no main channel came: what connected is no QEMU that migrates")
        directory.commit()
    main = next(r for r in recordings if r.kind == "main")
    beside = [options.directory / c.file for c in channels if c.kind != "main"]
    with ExitStack() as stack:
        opened = stack.enter_context(OpenStream(options.directory / main.name))
        others = stack.enter_context(Channels(beside, opened.identity)) if beside else None
        found, code = inspect(opened.source, container=opened.container, channels=others)
    follower = main.follower
    return (
        ReceiveReport(
            schema=RECEIVE_SCHEMA,
            tool=f"vmstream {__version__}",
            listen=listener.address,
            output=str(options.directory),
            channels=sorted(channels, key=lambda c: (c.kind != "main", len(c.file), c.file)),
            return_path=follower is not None and follower.return_path,
            pings=0 if follower is None else follower.pings,
            shut=main.told,
            machine=found.machine,
            complete=found.complete,
            anomalies=found.anomalies,
        ),
        code,
    )


def _record(
    listener: Listener,
    directory: OutputDirectory,
    stack: ExitStack,
    signals: Deferred,
    options: ReceiveOptions,
    progress: Progress | None,
) -> list[_Recording]:
    buffer = memoryview(bytearray(_STEP))
    recordings: dict[int, _Recording] = {}
    names: set[str] = set()
    total, last = 0, time.monotonic()
    while not (recordings and not listener.open and "main.bin" in names):
        ready = listener.ready(_POLL)
        if signals.number:
            raise OutputError("interrupted")  # which the signal replaces
        now = time.monotonic()
        for connection in ready:
            recording = recordings.setdefault(connection.number, _Recording(connection, options))
            got = connection.read(buffer)
            data: bytes | memoryview = buffer[:got]
            if recording.out is None:
                recording.head += bytes(data)
                data = recording.head
                if data and recording.named(at_end=not got):
                    if recording.name in names:
                        raise OutputError(f"two connections say they are {recording.name}")
                    names.add(recording.name)
                    recording.out = stack.enter_context(directory.file("", recording.name))
            if recording.out is not None and (got or recording.size < len(recording.head)):
                recording.write(data)
            if not got:
                listener.close(connection)
            total += got
        if ready:
            last = now
            if progress is not None:
                progress(total, None)
        else:
            for recording in recordings.values():
                recording.shut(now - last)
        if options.timeout is not None and now - last > options.timeout:
            raise OutputError(f"nothing came for {options.timeout:g} s: what came is not kept")
    return list(recordings.values())


def _message(kind: MigRPMsg, data: bytes) -> bytes:
    return struct.pack(">HH", kind, len(data)) + data


# Whether a recording ends as a stream does. EOF, the type byte of the vmdescription and its length,
# which has to reach to the end; JSON has no NUL.
def _ended(out: OutputFile, size: int, *, bare: bool) -> bool:
    tail = memoryview(bytearray(min(size, _TAIL)))
    out.read_into(size - len(tail), tail)
    data = bytes(tail)
    at = data.rfind(b"\0\x06")
    for _ in range(8):  # the length may look like it
        if at < 0:
            break
        begin = at + 6
        if data[begin : begin + 1] == b"{" and data[at + 2 : begin] == struct.pack(
            ">I", len(data) - begin
        ):
            try:
                return isinstance(json.loads(data[begin:]), dict)
            except ValueError:
                return False
        at = data.rfind(b"\0\x06", 0, at + 1)
    return bare and data[-6:-5] == b"\x7e" and data[-1:] == b"\0"
