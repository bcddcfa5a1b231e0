"""A libvirtd of our own, with nothing but its directory, and domains of it.

As in `tests.qemu`, nothing here knows the stream format. libvirtd runs for a session, so it touches
nothing of the machine's; started by root, which has no session, it runs as another user.

    with Libvirtd() as daemon:
        domain = daemon.domain("busy", Guest(fill=768, dirty=768), mem=16 << 20)
        daemon.memory(domain)                # guest-physical memory, as QEMU tells it
        vmstream("capture", "--libvirt", "busy", "--connect", daemon.uri, ...)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self

from tests.qemu import Guest, find_qemu

_NOBODY = 65534

_DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='b'>{mem}</memory>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>{qemu}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='hda' bus='ide'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
    <serial type='file'><source path='{serial}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>"""

_CONFIG = """stdio_handler = "file"
security_driver = "none"
memory_backing_dir = "{memory}"
"""


@cache
def missing() -> str | None:
    """What of libvirt is not here, `None` if all is."""
    try:
        import libvirt  # noqa: F401, PLC0415
        import libvirt_qemu  # noqa: F401, PLC0415
    except ImportError:
        return "no binding for libvirt in this Python"
    if shutil.which("libvirtd") is None:
        return "no libvirtd on PATH"
    driver = "libvirt/connection-driver/libvirt_driver_qemu.so"
    if not [
        p for place in ("lib*", "lib*/*-linux-*") for p in Path("/usr").glob(f"{place}/{driver}")
    ]:
        return "no driver for QEMU of libvirt's"
    return None


class Libvirtd:
    """A daemon and a connection to it; a context manager, which ends its domains, too.

    Attributes:
        uri: For others to connect to.
        directory: Everybody may write there.
    """

    def __init__(self) -> None:
        import libvirt  # noqa: PLC0415

        self.api = libvirt
        # What it would print comes as an exception.
        libvirt.registerErrorHandler(lambda *_: None, None)
        # A short name: the address of a unix socket holds about 100 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="lv-"))
        self.directory.chmod(0o777)
        self.uri = f"qemu+unix:///session?socket={self.directory}/run/libvirt/libvirt-sock"
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": ()}
        try:
            self._start()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _start(self) -> None:
        places = {n: self.directory / n for n in ("run", "config", "cache", "data", "memory")}
        config = places["config"] / "libvirt"
        for place in (*places.values(), config):
            place.mkdir()
            if self._user:
                os.chown(place, _NOBODY, _NOBODY)
        places["run"].chmod(0o700)
        (config / "qemu.conf").write_text(_CONFIG.format(memory=places["memory"]))
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(places["run"]),
            **{f"XDG_{n.upper()}_HOME": str(places[n]) for n in ("config", "cache", "data")},
        }
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["libvirtd"],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._user,
            )
        until = time.monotonic() + 30
        while True:
            try:
                self.connection = self.api.open(self.uri)
                return
            except self.api.libvirtError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)

    def _end(self) -> None:
        if hasattr(self, "connection"):
            for domain in self.connection.listAllDomains(0):
                if domain.isActive():
                    domain.destroyFlags(0)
            self.connection.close()
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def domain(self, name: str, guest: Guest, mem: int) -> Any:
        """Start a domain with `mem` bytes of RAM, and wait until the guest has filled its memory.

        It has a disk and a drive for CDs, empty. Its RAM is a file, `backend`.
        """
        disk, serial = self.directory / f"{name}.img", self.directory / f"{name}.serial"
        disk.write_bytes(guest.image())
        disk.chmod(0o666)
        text = _DOMAIN.format(name=name, mem=mem, qemu=find_qemu(), disk=disk, serial=serial)
        domain = self.connection.createXML(text, 0)
        until = time.monotonic() + 60
        # It is for the daemon alone, which may be another user.
        while b"FILLED" not in (serial.read_bytes() if serial.exists() else b""):
            assert time.monotonic() < until, (self.directory / "log").read_text()
            time.sleep(0.02)
        return domain

    def limit_files(self, size: int | str) -> None:
        """Bytes of a file that the daemon and what it starts may write; 'unlimited' for any."""
        command = ["prlimit", "--pid", str(self.process.pid), f"--fsize={size}:unlimited"]
        subprocess.run(command, check=True, **self._user)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[Any]:
        """Wait for a job that writes a file, and have it write nothing meanwhile.

        `libvirt_iohelper` writes for libvirt what comes from QEMU in a pipe.
        """
        until = time.monotonic() + 60
        while (pid := self._helper()) is None:
            assert time.monotonic() < until
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _helper(self) -> int | None:
        parent = f"PPid:\t{self.process.pid}\n"
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                helps = b"libvirt_iohelper" in (process / "cmdline").read_bytes()
                if helps and parent in (process / "status").read_text():
                    return int(process.name)
        return None

    def backend(self, name: str) -> Path:
        """The file that is the RAM of a domain."""
        (found,) = (self.directory / "memory").glob(f"**/*{name}*/*")
        return found

    def memory(self, domain: Any, size: int) -> bytes:
        """Guest-physical memory from 0 on, as QEMU writes it."""
        import libvirt_qemu  # noqa: PLC0415

        path = self.directory / "pmemsave"
        said = libvirt_qemu.qemuMonitorCommand(
            domain,
            f'pmemsave 0 {size} "{path}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
        )
        assert not said.strip(), said
        held = path.read_bytes()
        path.unlink()
        return held
