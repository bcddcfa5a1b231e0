"""A small Linux guest: a kernel of Debian's, and an initrd of busybox and an init made here.

`scripts/test` puts kernel, modules and busybox into `.cache/linux`; tests marked `linux` need them.
As in `tests.qemu`, nothing here knows the stream format.

    with Qemu(["-M", "q35", "-m", "256M", *Linux(modules=["qemu_fw_cfg"]).args(tmp_path)]) as vm:
        vm.wait_serial(b"BOOTED")
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "linux"
KERNEL = CACHE / "vmlinuz"
BUSYBOX = CACHE / "busybox"

# What says BOOTED is the last but one line; then a line a second, so that a guest that was moved is
# seen to live on.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod /lib/$module; done
{script}
echo BOOTED
n=0
while :; do n=$((n+1)); echo ALIVE $n; sleep 1; done
"""


@dataclass(frozen=True)
class Linux:
    """What the guest does.

    modules: kernel modules that are loaded, by name; those that they need come first
    script:  shell lines that its init runs before it prints BOOTED on the serial port
    append:  more of the kernel's command line
    """

    modules: Sequence[str] = ()
    script: str = ""
    append: str = ""

    def args(self, directory: Path) -> list[str]:
        """Options for QEMU; the initrd is written into `directory`."""
        initrd = directory / "initrd"
        initrd.write_bytes(self.initrd())
        command_line = f"console=ttyS0 quiet panic=-1 {self.append}".strip()
        return ["-kernel", str(KERNEL), "-initrd", str(initrd), "-append", command_line]

    def initrd(self) -> bytes:
        """A cpio archive, which a kernel unpacks as its root."""
        modules = list(_with_needs(self.modules))
        files = {
            "init": _INIT.format(script=self.script).encode(),
            "bin/busybox": BUSYBOX.read_bytes(),
            "modules": " ".join(name for name, _ in modules).encode(),
            **{f"lib/{name}": content for name, content in modules},
        }
        directories = ("bin", "dev", "lib", "proc", "sys")
        made = bytearray()
        for number, name in enumerate(directories, 1):
            made += _entry(number, name, stat.S_IFDIR | 0o755, b"")
        for number, (name, content) in enumerate(files.items(), 100):
            made += _entry(number, name, stat.S_IFREG | 0o755, content)
        return bytes(made + _entry(0, "TRAILER!!!", 0, b""))


# Documentation/driver-api/early-userspace/buffer-format.rst of Linux: magic 070701, thirteen
# fields of eight hex digits; name and content are padded to four bytes.
def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    named = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(named), 0)
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + named
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


# (name of the file, content) of modules, each behind those it needs.
def _with_needs(wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    if not wanted:
        return
    directory = next((CACHE / "modules").iterdir())
    found = {_name(path.name): path for path in directory.rglob("*.ko*")}
    given: set[str] = set()
    for name in wanted:
        yield from _module(_name(name), found, given)


def _module(name: str, found: dict[str, Path], given: set[str]) -> Iterator[tuple[str, bytes]]:
    if name in given:
        return
    given.add(name)
    path = found[name]
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    for need in _needs(content):
        yield from _module(_name(need), found, given)
    yield name + ".ko", content


# The section .modinfo has strings of the form key=value.
def _needs(content: bytes) -> list[str]:
    _, _, rest = content.partition(b"\0depends=")
    return [name.decode() for name in rest.split(b"\0", 1)[0].split(b",") if name]


def _name(text: str) -> str:
    return text.split(".ko", 1)[0].replace("-", "_")
