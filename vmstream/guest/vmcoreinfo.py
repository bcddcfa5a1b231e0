"""VMCOREINFO: what a Linux kernel writes of itself for those who read its memory.

A note of text lines, the first of them OSRELEASE. The guest's driver tells QEMU's vmcoreinfo device
where it is; without that device memory is searched for it, which is inference. The kernel keeps
the text twice: with the head of an ELF note in front of it, and plain.
Linux v6.12 kernel/vmcore_info.c crash_save_vmcoreinfo_init(), drivers/firmware/qemu_fw_cfg.c
fw_cfg_write_vmcoreinfo().
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vmstream.errors import AddressError
from vmstream.guest.devices import DeviceTree
from vmstream.guest.notes import Note

# Returns so many bytes from a guest-physical address on. Raises AddressError where no RAM is.
Reader = Callable[[int, int], bytes]

NAME = "VMCOREINFO"
OSRELEASE = b"OSRELEASE="

# QEMU v10.1.0 dump/dump.c MAX_GUEST_NOTE_SIZE, and include/standard-headers/linux/qemu_fw_cfg.h.
_MOST_NOTE = 1 << 20
_FORMAT_ELF = 1
_NHDR = 12
_HEAD = _NHDR + 12  # with the name

# A kernel has a page for the text; the largest is 64 KiB.
_MOST_TEXT = 64 << 10

# Memory that is searched at a time, and what a guest may have us look at: places with the word in
# that much memory, and texts that look right.
_STEP = 1 << 20
_MOST_PLACES = 256
_MOST_FOUND = 64

# Lines of the kernel's own strings end in '%s' and the like, and have no release.
_TEXT = re.compile(rb"OSRELEASE=(?=[0-9]+\.)[!-$&-~]{1,64}\n(?:[!-<>-~]+=[ -~]*\n)+")
_LINE = re.compile(rb"^([!-<>-~]+)=([ -~]*)$", re.MULTILINE)

# Of struct new_utsname: a field, and which of them the release is. Linux
# include/uapi/linux/utsname.h.
_UTS_FIELD, _UTS_RELEASE = 65, 2


class Stretch(Protocol):
    """Memory without a hole, as `ops.memory` has it."""

    @property
    def length(self) -> int:
        """Bytes."""
        ...

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer from a place in the stretch on; both lie within it."""
        ...

    def has_data(self, at: int, length: int) -> bool:
        """Whether any of these bytes may be another than zero."""
        ...

    def address(self, at: int) -> int | None:
        """Guest-physical address of a place in the stretch; `None` if it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class VMCoreInfo:
    """A note, and where it was found.

    Attributes:
        note: Name, type and content. The content is the text but for a guest that has written
            something else for QEMU's device, as a driver of Windows does.
        source: 'device', where the device's state points to it, or 'scan', where memory was
            searched: then it is inferred.
        gpa: Guest-physical address of the note's head, or of the text if there is no head.
        size: Bytes that the device's state gives, or that head and text take.
        has_head: The head of an ELF note stands in front of the text in memory.
        confirmed: The kernel's own `init_uts_ns` stands where the text says, with that release.
        stretch: Number of the stretch it was found in, and `at` the place there.
    """

    note: Note
    source: str
    gpa: int | None
    size: int
    has_head: bool = True
    confirmed: bool = False
    stretch: int | None = None
    at: int = 0

    @property
    def fields(self) -> dict[str, str]:
        """The lines of the text, by what is left of '='; of two alike the last."""
        found = _LINE.findall(self.note.desc) if self.note.desc.startswith(OSRELEASE) else ()
        return {name.decode(): value.decode() for name, value in found}

    @property
    def release(self) -> str | None:
        """Release of the kernel."""
        return self.fields.get("OSRELEASE")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        best: The note of the guest's kernel, as far as can be told; `None` if there is none.
        others: Further texts, from kernels before it, guests of the guest or files in memory.
        reasons: How it was decided, a sentence each.
    """

    best: VMCoreInfo | None
    others: tuple[VMCoreInfo, ...] = ()
    reasons: tuple[str, ...] = ()


def find(tree: DeviceTree | None, read: Reader, stretches: Sequence[Stretch]) -> Found:
    """Find the note of the guest's kernel: by the device's state, else by searching memory.

    Args:
        tree: The devices; `None` if they were not read.
        read: Reads guest-physical memory.
        stretches: All of RAM.
    """
    found, why = of_device(tree, read)
    if found is not None:
        return Found(found, (), (why,))
    picked = choose(scan(stretches), read)
    return replace(picked, reasons=(why, *picked.reasons))


def of_device(tree: DeviceTree | None, read: Reader) -> tuple[VMCoreInfo | None, str]:
    """Return the note that the state of QEMU's device points to, and a sentence of how.

    QEMU v10.1.0 hw/misc/vmcoreinfo.c vmstate_vmcoreinfo, dump/dump.c dump_init().
    """
    if tree is None:
        return None, "the device state was not read"
    device = next(iter(tree.find("vmcoreinfo")), None)
    if device is None:
        return None, "the machine has no vmcoreinfo device"
    values = {c.name.removeprefix("vmcoreinfo."): int.from_bytes(c.raw) for c in device.children}
    if "has_vmcoreinfo" not in values:
        return None, "nothing describes the state of the vmcoreinfo device"
    if not values["has_vmcoreinfo"]:
        return None, "the guest has told the vmcoreinfo device nothing"
    form, size, gpa = (values.get(n, 0) for n in ("guest_format", "size", "paddr"))
    if form == _FORMAT_ELF << 8:
        # Little-endian as the guest writes them, they are sent as numbers of the host.
        form, size, gpa = _FORMAT_ELF, _swapped(size, 4), _swapped(gpa, 8)
    told = f"the vmcoreinfo device points to {size} bytes at {gpa:#x}"
    if form != _FORMAT_ELF or not _NHDR <= size <= _MOST_NOTE:
        return None, f"{told}, in format {form}: no note"
    try:
        note = _parse(read(gpa, size))
    except AddressError:
        return None, f"{told}, where no RAM is"
    if note is None:
        return None, f"{told}, where no note is"
    return _confirm(VMCoreInfo(note, "device", gpa, size), read), told


def scan(stretches: Sequence[Stretch]) -> Iterator[VMCoreInfo]:
    """Yield each text in memory that looks like one of a kernel, by address."""
    for number, _, at in occurrences(stretches, (OSRELEASE,)):
        found = candidate(stretches, number, at)
        if found is not None:
            yield found


def candidate(stretches: Sequence[Stretch], number: int, at: int) -> VMCoreInfo | None:
    """Return the text whose first line starts at a place in a stretch, if it looks right."""
    stretch, address = stretches[number], stretches[number].address(at)
    before = bytearray(min(at, _HEAD))
    stretch.read_into(at - len(before), memoryview(before))
    front = bytes(before)
    name = front.endswith(b"\0" + NAME.encode() + b"\0\0")
    # The kernel's own, not a line of some other text.
    if not name and front[-1:] not in (b"", b"\0") and (at if address is None else address) % 4096:
        return None
    buffer = bytearray(min(stretch.length - at, _MOST_TEXT))
    stretch.read_into(at, memoryview(buffer))
    text = bytes(buffer)
    match = _TEXT.match(text)
    desc = b"" if match is None else match[0]
    if b"\nPAGESIZE=" not in desc or b"\nSYMBOL(" not in desc:
        return None
    note = _parse(front + text) if name else None
    if note is not None and note.desc == desc:
        begin = None if address is None else address - _HEAD
        return VMCoreInfo(note, "scan", begin, _HEAD + len(desc), stretch=number, at=at - _HEAD)
    if text[len(desc) : len(desc) + 1] not in (b"\0", b""):
        return None
    return VMCoreInfo(
        Note(NAME, 0, desc), "scan", address, len(desc), has_head=False, stretch=number, at=at
    )


def choose(found: Iterator[VMCoreInfo], read: Reader) -> Found:
    """Choose among texts the one of the kernel that runs: confirmed, then with a note's head."""
    kept: dict[bytes, VMCoreInfo] = {}
    reasons = []
    for one in found:
        text = one.note.desc
        if text in kept:
            # The two that a kernel has.
            if not kept[text].has_head and one.has_head:
                kept[text] = replace(one, confirmed=kept[text].confirmed)
            continue
        if len(kept) == _MOST_FOUND:
            reasons.append(f"more than {_MOST_FOUND} texts: what is behind them was left out")
            break
        kept[text] = _confirm(one, read)
    ranked = sorted(kept.values(), key=lambda v: (v.confirmed, v.has_head), reverse=True)
    if not ranked:
        return Found(None, (), ("no VMCOREINFO in memory",))
    best = ranked[0]
    words = "its kernel is where it says" if best.confirmed else "its kernel was not seen in memory"
    reasons.insert(0, f"found by searching memory; {words}")
    if len(ranked) > 1:
        same = sum((v.confirmed, v.has_head) == (best.confirmed, best.has_head) for v in ranked)
        reasons.append(
            f"one of {len(ranked)} texts; {same} are as good, this is the first by address"
            if same > 1
            else f"one of {len(ranked)} texts; the others are less good"
        )
    return Found(best, tuple(ranked[1:]), tuple(reasons))


def occurrences(
    stretches: Sequence[Stretch], needles: Sequence[bytes]
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (number of the stretch, needle, place in it) of bytes that start with no zero.

    By stretch, then by MiB, and in each by needle; of each no more than a guest has by itself.

    Memory:
        1 MiB.
    """
    buffer = bytearray(_STEP + max(map(len, needles)) - 1)
    for number, stretch in enumerate(stretches):
        for begin in range(0, stretch.length, _STEP):
            if not stretch.has_data(begin, min(_STEP, stretch.length - begin)):
                continue
            count = min(len(buffer), stretch.length - begin)
            stretch.read_into(begin, memoryview(buffer)[:count])
            for needle in needles:
                last = min(count, _STEP + len(needle) - 1)
                at = buffer.find(needle, 0, last)
                for _ in range(_MOST_PLACES):
                    if at < 0:
                        break
                    yield number, needle, begin + at
                    at = buffer.find(needle, at + len(needle), last)


# The note that bytes start with, in either order. QEMU v10.1.0 dump/dump.c get_note_sizes().
def _parse(data: bytes) -> Note | None:
    for order in "<>":
        name_size, size, kind = struct.unpack_from(order + "III", data)
        begin = _NHDR + -(-name_size // 4) * 4
        if 0 < name_size <= _MOST_NOTE and 0 < size <= _MOST_NOTE and begin + size <= len(data):
            name = data[_NHDR : _NHDR + name_size].rstrip(b"\0")
            return Note(name.decode("latin-1"), kind, data[begin : begin + size])
    return None


def _confirm(found: VMCoreInfo, read: Reader) -> VMCoreInfo:
    return replace(found, confirmed=True) if utsname(found, read) else found


def utsname(found: VMCoreInfo, read: Reader) -> bytes:
    """Return the kernel's own `struct new_utsname`, 390 bytes, if it is where the text says."""
    fields = found.fields
    release = fields.get("OSRELEASE", "").encode()
    for gpa in physical(fields, "init_uts_ns"):
        try:
            uts = read(gpa + _number(fields, "OFFSET(uts_namespace.name)", 10), 6 * _UTS_FIELD)
        except AddressError:
            continue
        there = uts[_UTS_RELEASE * _UTS_FIELD :][:_UTS_FIELD].split(b"\0")[0]
        if uts.startswith(b"Linux\0") and release and there == release:
            return uts
    return b""


def physical(fields: dict[str, str], symbol: str) -> Iterator[int]:
    """Yield where a symbol of the kernel's image can be in guest-physical memory.

    The text does not name its architecture, and each has a rule of its own; no two of them lead to
    the same bytes. Linux v6.12 arch/*/kernel/vmcore_info.c.
    """
    at = _number(fields, f"SYMBOL({symbol})", 16)
    if not at:
        return
    text, direct = 0xFFFFFFFF80000000, 0xC000000000000000
    rules = (
        at - text + _number(fields, "NUMBER(phys_base)", 10),  # x86_64
        at - _number(fields, "NUMBER(kimage_voffset)", 16),  # arm64
        at - _number(fields, "NUMBER(va_kernel_pa_offset)", 16),  # riscv
        at - _number(fields, "KERNELOFFSET", 16) + _number(fields, "KERNELOFFPHYS", 16),  # s390
        at - direct,  # ppc64
        at - (direct >> 32),  # i386
        at,
    )
    yield from dict.fromkeys(gpa for gpa in rules if 0 <= gpa < 1 << 56)


def _number(fields: dict[str, str], name: str, base: int) -> int:
    try:
        return int(fields.get(name, "0"), base)
    except ValueError:
        return 0


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"))
