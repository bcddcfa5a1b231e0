"""Drive a real QEMU: start it in a directory of its own, talk QMP, migrate, read guest memory.

Used by scripts/capture_fixtures.py and by tests that compare with a live QEMU. Nothing here knows
the stream format, so whatever it reports (RAM blocks, guest-physical memory, registers) is truth
that was taken without vmstream.

    with Qemu(["-M", "q35", "-accel", "tcg", "-m", "16M"], guest=Guest(fill=512)) as vm:
        vm.wait_serial(b"FILLED")
        vm.stop()
        vm.migrate("exec:cat>guest.out")
        stream = vm.path("guest.out")

QEMU runs with its directory as working directory, so every file name on its command line and in a
migration URI is a base name and command lines can be recorded as they are.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GUEST_IMAGE = Path(__file__).resolve().parent / "fixtures" / "guest" / "dirty.img"
SETTINGS_OFFSET = 490
BOOT_DISK_SIZE = 1 << 20
FINISHED = frozenset({"completed", "failed", "cancelled"})


class QemuError(RuntimeError):
    """QEMU died, refused a command, or did not reach a state in time."""


def find_qemu(arch: str = "x86_64") -> str | None:
    """The emulator for `arch` on PATH, or None."""
    return shutil.which(f"qemu-system-{arch}")


@cache
def _machines(arch: str) -> frozenset[str]:
    done = subprocess.run(
        [f"qemu-system-{arch}", "-M", "help"], capture_output=True, text=True, check=True
    )
    return frozenset(line.split()[0] for line in done.stdout.splitlines() if line.strip())


def has_machine(name: str, arch: str = "x86_64") -> bool:
    """Whether the installed emulator has this machine type; old ones are removed in time."""
    return name in _machines(arch)


@dataclass(frozen=True)
class Guest:
    """Settings patched into the boot sector, in the order of guest/dirty.S."""

    fill: int = 768
    dirty: int = 400
    delay: int = 20000
    seed: int = 0
    wide: int = 63

    def image(self) -> bytes:
        """The boot disk with these settings, lengthened as IDE and SeaBIOS want it."""
        boot = bytearray(GUEST_IMAGE.read_bytes())
        struct.pack_into(
            "<5I", boot, SETTINGS_OFFSET, self.fill, self.dirty, self.delay, self.seed, self.wide
        )
        return bytes(boot).ljust(BOOT_DISK_SIZE, b"\0")

    def settings(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class RamBlock:
    """One line of 'info ramblock'. `hva` is None before QEMU 10.0, which does not print it."""

    idstr: str
    used: int
    hva: int | None


class Qemu:
    """One QEMU process. Use as a context manager: leaving it always kills QEMU and its files.

    args:     everything but the monitor, serial port and boot disk
    guest:    attach the boot sector with these settings as an IDE disk
    mem:      (block name, bytes): make RAM a shared file-backed block and give it to the machine;
              its file is `backend`. Without it the machine allocates RAM itself.
    incoming: load this URI; QEMU then stays stopped (-S) after loading
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        binary: str = "qemu-system-x86_64",
        guest: Guest | None = None,
        mem: tuple[str, int] | None = None,
        incoming: str | None = None,
        files: dict[str, bytes | Path] | None = None,
    ) -> None:
        self.args = list(args)
        self.binary = binary
        self.guest = guest
        self.mem = mem
        self.incoming = incoming
        self.files = dict(files or {})
        self.command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._socket: socket.socket | None = None
        self._qmp: Any = None

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        if find_qemu(self.binary.removeprefix("qemu-system-")) is None:
            raise QemuError(f"{self.binary} is not on PATH")
        # A short directory name: a unix socket address holds about 100 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="qemu-"))
        for name, content in self.files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, self.path(name))
            else:
                self.path(name).write_bytes(content)
        self.command = self._command()
        with self.path("guest.err").open("wb") as err:
            self._process = subprocess.Popen(
                self.command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=err, stderr=err
            )
        self._connect()

    def _command(self) -> list[str]:
        command = [self.binary, "-nodefaults", "-display", "none"]
        command += ["-serial", "file:guest.log", "-qmp", "unix:guest.qmp,server=on,wait=off"]
        args = list(self.args)
        if self.mem is not None:
            block, size = self.mem
            mib = size >> 20
            command += ["-m", f"{mib}M", "-object"]
            command += [f"memory-backend-file,id={block},size={mib}M,mem-path=guest.mem,share=on"]
            args[args.index("-M") + 1] += f",memory-backend={block}"
        command += args
        if self.guest is not None:
            self.path("guest.boot.img").write_bytes(self.guest.image())
            # Without locking a second QEMU may be given the same command line.
            command += ["-drive", "file=guest.boot.img,format=raw,if=ide,file.locking=off"]
        if self.incoming is not None:
            command += ["-S", "-incoming", self.incoming]
        return command

    def _connect(self, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.path("guest.qmp")))
                break
            except OSError as error:
                connection.close()
                self._check_alive()
                if time.monotonic() > deadline:
                    raise QemuError("no QMP socket") from error
                time.sleep(0.02)
        self._socket = connection
        self._qmp = connection.makefile("rwb", buffering=0)
        self._read_reply()  # the greeting
        self.qmp("qmp_capabilities")

    def close(self) -> None:
        """Kill QEMU and remove its directory. May be called more than once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._socket is not None:
            self._qmp.close()
            self._socket.close()
            self._socket = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """SIGKILL, but leave the files: what an interrupted migration has written can be read."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def path(self, name: str) -> Path:
        """A file in QEMU's directory."""
        assert self._directory is not None, "not running"
        return self._directory / name

    @property
    def backend(self) -> Path:
        """The file that is the RAM block `mem`, live while QEMU runs."""
        assert self.mem is not None, "no memory backend"
        return self.path("guest.mem")

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise QemuError("QEMU ended: " + self.errors())

    def errors(self) -> str:
        """What QEMU has printed."""
        path = self.path("guest.err")
        return path.read_text(errors="replace").strip() if path.exists() else ""

    # -- monitor ------------------------------------------------------------------------------

    def _read_reply(self) -> dict[str, Any]:
        while True:
            try:
                line = self._qmp.readline()
            except OSError:
                line = b""
            if not line:
                raise QemuError("QMP closed: " + self.errors())
            reply: dict[str, Any] = json.loads(line)
            if "event" not in reply:
                return reply

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command; underscores in argument names become dashes."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": named}
        try:
            self._qmp.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QemuError("QMP closed: " + self.errors()) from error
        reply = self._read_reply()
        if "error" in reply:
            raise QemuError(f"{command}: {reply['error'].get('desc')}")
        return reply["return"]

    def hmp(self, line: str) -> str:
        """Run a line of the human monitor and return what it prints, with plain newlines."""
        text: str = self.qmp("human-monitor-command", command_line=line)
        return text.replace("\r\n", "\n")

    def version(self) -> str:
        """As in the manifests: '7.2.22 Debian ...'."""
        answer = self.qmp("query-version")
        number = answer["qemu"]
        package = answer["package"].strip().strip("()")
        return f"{number['major']}.{number['minor']}.{number['micro']} {package}".strip()

    def wait_serial(self, text: bytes, timeout: float = 60) -> None:
        log = self.path("guest.log")
        self._wait(lambda: log.exists() and text in log.read_bytes(), timeout, f"serial {text!r}")

    def _wait(self, ready: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            self._check_alive()
            if time.monotonic() > deadline:
                raise QemuError(f"{what}: not within {timeout} s. {self.errors()}")
            time.sleep(0.02)

    def stop(self) -> None:
        self.qmp("stop")

    def cont(self) -> None:
        self.qmp("cont")

    def registers(self, all_cpus: bool = False) -> str:
        return self.hmp("info registers -a" if all_cpus else "info registers")

    # -- migration ----------------------------------------------------------------------------

    def set_capabilities(self, **capabilities: bool) -> None:
        self.qmp(
            "migrate-set-capabilities",
            capabilities=[
                {"capability": name.replace("_", "-"), "state": state}
                for name, state in capabilities.items()
            ],
        )

    def refuses(self, **capabilities: bool) -> str | None:
        """Set capabilities; what QEMU says if it will not have them."""
        try:
            self.set_capabilities(**capabilities)
        except QemuError as error:
            self._check_alive()
            return str(error)
        return None

    def set_parameters(self, **parameters: Any) -> None:
        self.qmp("migrate-set-parameters", **parameters)

    def migrate(self, uri: str, *, wait: bool = True, timeout: float = 120) -> dict[str, Any]:
        """Start an outgoing migration ("exec:cat>guest.out", "file:guest.out" from 8.2 on).

        With `wait` returns the final query-migrate and raises unless it completed.
        """
        self.qmp("migrate", uri=uri)
        return self.wait_migration(timeout) if wait else self.query_migrate()

    def query_migrate(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.qmp("query-migrate")
        return answer

    def wait_migration(self, timeout: float = 120) -> dict[str, Any]:
        self._wait(
            lambda: self.query_migrate().get("status") in FINISHED, timeout, "end of migration"
        )
        answer = self.query_migrate()
        if answer["status"] != "completed":
            raise QemuError(f"migration {answer['status']}: {answer.get('error-desc', '')}")
        return answer

    def wait_passes(self, passes: int, timeout: float = 60) -> None:
        """Wait until more than `passes` passes over RAM have begun."""

        def reached() -> bool:
            status = self.query_migrate()
            if status.get("ram", {}).get("dirty-sync-count", 0) > passes:
                return True
            if status.get("status") in FINISHED:
                raise QemuError(f"migration {status['status']} before pass {passes}")
            return False

        self._wait(reached, timeout, f"pass {passes}")

    def wait_loaded(self, timeout: float = 120) -> None:
        """Wait until an incoming stream is loaded (with -S QEMU is then 'paused')."""
        self._wait(
            lambda: self.qmp("query-status")["status"] not in ("inmigrate", "restore-vm"),
            timeout,
            "loading",
        )

    # -- memory -------------------------------------------------------------------------------

    def ram_blocks(self) -> list[RamBlock]:
        """All RAM blocks, as 'info ramblock' lists them (also those that do not migrate)."""
        blocks = []
        for line in self.hmp("info ramblock").splitlines():
            found = re.match(
                r"\s*(\S.*?)\s+\d+ [KMGT]iB\s+(0x\w+)\s+(0x\w+)\s+(0x\w+)(?:\s+(0x\w+))?", line
            )
            if found:
                name, _, used, _, hva = found.groups()
                blocks.append(RamBlock(name, int(used, 16), int(hva, 16) if hva else None))
        return blocks

    def gpa2hva(self, gpa: int) -> tuple[str, int] | None:
        """(memory region, address in the QEMU process) of a guest-physical address of RAM."""
        text = self.hmp(f"gpa2hva {gpa:#x}")
        found = re.search(r"\((.+?)\) is (0x[0-9a-f]+)", text)
        return (found[1], int(found[2], 16)) if found else None

    def process_memory(self, hva: int, size: int) -> bytes:
        """Bytes of the QEMU process. The guest should be stopped."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(hva)
            parts = []
            while size and (part := memory.read(min(size, 1 << 24))):
                parts.append(part)
                size -= len(part)
        return b"".join(parts)

    def pmemsave(self, gpa: int, size: int) -> Iterator[bytes]:
        """Guest-physical memory [gpa, gpa + size) as the CPU would see it, in chunks.

        It goes through a pipe, so that gigabytes need no disk space.
        """
        fifo = self.path("guest.pmem")
        os.mkfifo(fifo)
        failure: list[Exception] = []

        def save() -> None:
            try:
                self.qmp("pmemsave", val=gpa, size=size, filename=fifo.name)
            except (QemuError, OSError, ValueError) as error:
                failure.append(error)
                # QEMU may not have opened the pipe: do it, so that the reader sees an end.
                with fifo.open("wb"):
                    pass

        thread = threading.Thread(target=save, daemon=True)
        thread.start()
        total = 0
        try:
            with fifo.open("rb") as pipe:
                while chunk := pipe.read(1 << 20):
                    total += len(chunk)
                    yield chunk
        finally:
            thread.join(timeout=60)
            fifo.unlink()
        if failure:
            raise failure[0]
        if total != size:
            raise QemuError(f"pmemsave gave {total} of {size} bytes")


def check_range(vm: Qemu, image: Path, gpa: int, size: int, *, offset: int | None = None) -> None:
    """Assert that a file has what the CPU sees at `gpa`, there or at another offset."""
    with image.open("rb") as file:
        file.seek(gpa if offset is None else offset)
        at = gpa
        for chunk in vm.pmemsave(gpa, size):
            assert file.read(len(chunk)) == chunk, hex(at)
            at += len(chunk)


def userfault_refused() -> str | None:
    """Why the kernel gives this process no userfaultfd for faults of its own, or None.

    Postcopy and background snapshots need one. Without CAP_SYS_PTRACE, as in many containers and
    for most users, the sysctl vm.unprivileged_userfaultfd decides; seccomp may forbid it too.
    """
    number = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine)
    if number is None:
        return "not looked for on this architecture"
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    os.close(fd)
    return None
