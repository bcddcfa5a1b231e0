"""VMCOREINFO in memory: what is taken for it, what is not, and which of several."""

from __future__ import annotations

import itertools
import json
import struct
import time
from dataclasses import dataclass

import pytest

from vmstream.errors import AddressError
from vmstream.guest import vmcoreinfo
from vmstream.guest.devices import DeviceTree, Section
from vmstream.guest.vmcoreinfo import Found, VMCoreInfo

# Of x86_64, whose kernel stands at 0x100000 for the virtual address 0xffffffff81100000.
LINES = (
    "OSRELEASE={release}\nBUILD-ID=00ff\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff81100000\n"
    "OFFSET(uts_namespace.name)=4\nNUMBER(phys_base)=-16777216\nKERNELOFFSET=0\n"
)
BASE, SIZE = 0x40000, 3 << 20
UTS = 0x100000


@dataclass
class Memory:
    """RAM from BASE on, as a stretch and as what is read by address."""

    data: bytearray
    known: bool = True

    @property
    def length(self) -> int:
        return len(self.data)

    def read_into(self, at: int, buffer: memoryview) -> None:
        assert 0 <= at <= at + len(buffer) <= self.length
        buffer[:] = self.data[at : at + len(buffer)]

    def has_data(self, at: int, length: int) -> bool:
        return any(self.data[at : at + length])

    def address(self, at: int) -> int | None:
        return BASE + at if self.known else None

    def read(self, gpa: int, length: int) -> bytes:
        if not BASE <= gpa <= gpa + length <= BASE + self.length:
            raise AddressError(gpa, "no RAM")
        return bytes(self.data[gpa - BASE : gpa - BASE + length])

    def put(self, gpa: int, data: bytes) -> None:
        self.data[gpa - BASE : gpa - BASE + len(data)] = data


def text(release: str = "6.1.0-9-amd64") -> bytes:
    return LINES.format(release=release).encode()


def note(desc: bytes, order: str = "<", name: bytes = b"VMCOREINFO\0") -> bytes:
    head = struct.pack(order + "III", len(name), len(desc), 0) + name + bytes(-len(name) % 4)
    return head + desc + bytes(-len(desc) % 4)


def kernel(release: bytes = b"6.1.0-9-amd64") -> bytes:
    fields = (b"Linux", b"(none)", release, b"#1 SMP", b"x86_64", b"(none)")
    return bytes(4) + b"".join(f.ljust(65, b"\0") for f in fields)


@pytest.fixture
def memory() -> Memory:
    made = Memory(bytearray(SIZE))
    made.put(UTS, kernel())
    return made


def scanned(memory: Memory) -> Found:
    return vmcoreinfo.choose(vmcoreinfo.scan([memory]), memory.read)


def best(memory: Memory) -> VMCoreInfo:
    found = scanned(memory).best
    assert found is not None
    return found


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_note_in_either_byte_order(memory: Memory, order: str) -> None:
    memory.put(0x51000, note(text(), order))
    found = best(memory)
    assert (found.note.name, found.note.type, found.note.desc) == ("VMCOREINFO", 0, text())
    assert (found.gpa, found.size, found.source) == (0x51000, 24 + len(text()), "scan")
    assert (found.has_head, found.confirmed, found.release) == (True, True, "6.1.0-9-amd64")
    assert found.fields["BUILD-ID"] == "00ff"


# A MiB is searched at a time, and the kernel's arrays of old stand at any address.
@pytest.mark.parametrize("at", [0, 4, (1 << 20) - 30, (1 << 20) - 25, (1 << 20) - 5, 1 << 20])
def test_wherever_it_stands(memory: Memory, at: int) -> None:
    memory.put(BASE + at, note(text()))
    assert (best(memory).gpa, best(memory).note.desc) == (BASE + at, text())


def test_the_plain_text_where_there_is_no_head(memory: Memory) -> None:
    memory.put(0x51000 - 1, b"x" + text())
    found = best(memory)
    assert (found.gpa, found.size, found.has_head, found.confirmed) == (
        0x51000, len(text()), False, True,
    )  # fmt: skip
    # The note of the same kernel is preferred, though it comes later, and is no other text.
    memory.put(0x60000, note(text()))
    assert best(memory).gpa == 0x60000
    assert scanned(memory).others == ()


def test_an_address_need_not_be_known(memory: Memory) -> None:
    memory.known = False
    memory.put(0x51000, note(text()))
    found = best(memory)
    assert (found.gpa, found.stretch, found.at) == (None, 0, 0x51000 - BASE)


@pytest.mark.parametrize(
    "data",
    [
        b"\0VMCOREINFO\0OSRELEASE=%s\n\0BUILD-ID=%20phN\n\0PAGESIZE=%ld\n\0SYMBOL(%s)=%lx\n\0",
        b"\0" + text("%s"),
        b"\0" + text("6.1%s"),
        b"\0OSRELEASE=6.1\nPAGESIZE=4096\n\0",
        b"\0OSRELEASE=6.1\nSYMBOL(init_uts_ns)=ff\n\0",
        b"\0" + text()[:-1] + b"\xff\n\0",
        b"\nX-" + text() + b"\0",
        b"OSRELEASE=",
    ],
)
def test_what_is_none(memory: Memory, data: bytes) -> None:
    memory.put(0x51010, data)
    assert scanned(memory) == Found(None, (), ("no VMCOREINFO in memory",))


def test_at_the_end_of_memory(memory: Memory) -> None:
    memory.put(BASE + SIZE - len(text()), text())
    memory.data[SIZE - len(text()) - 1] = 0
    assert best(memory).note.desc == text()
    memory.put(BASE + SIZE - 24, note(text())[:24])
    memory.put(BASE + SIZE - 10, b"OSRELEASE=")
    assert scanned(memory).best is None


def test_the_kernel_that_is_where_its_text_says(memory: Memory) -> None:
    """Kernels before it, guests of the guest and dumps in the page cache have texts, too."""
    memory.put(0x50000, note(text("5.10.0-1")))
    memory.put(0x51000, note(text("6.1.0-9-amd64").replace(b"81100000", b"91100000")))
    memory.put(0x52000 - 1, b"\0" + text())
    found = scanned(memory)
    assert found.best is not None
    assert (found.best.gpa, found.best.confirmed) == (0x52000, True)
    assert [o.gpa for o in found.others] == [0x50000, 0x51000]
    assert not any(o.confirmed for o in found.others)
    assert found.reasons == (
        "found by searching memory; its kernel is where it says",
        "one of 3 texts; the others are less good",
    )
    memory.put(UTS, bytes(400))
    found = scanned(memory)
    assert found.best is not None
    assert (found.best.gpa, found.best.confirmed) == (0x50000, False)
    assert found.reasons[1] == "one of 3 texts; 2 are as good, this is the first by address"


@pytest.mark.parametrize(
    ("architecture", "lines"),
    [
        ("x86_64", "SYMBOL(init_uts_ns)=ffffffff91100000\nNUMBER(phys_base)=-285212672"),
        (
            "arm64",
            "SYMBOL(init_uts_ns)=ffff800081100000\nNUMBER(kimage_voffset)=0xffff800081000000",
        ),
        (
            "riscv",
            "SYMBOL(init_uts_ns)=ffffffff80100000\nNUMBER(va_kernel_pa_offset)=0xffffffff80000000",
        ),
        ("s390 before 6.10", "SYMBOL(init_uts_ns)=100000\nKERNELOFFSET=0"),
        (
            "s390",
            "SYMBOL(init_uts_ns)=3ffe0100000\nKERNELOFFSET=3ffe0000000\nKERNELOFFPHYS=0",
        ),
        ("ppc64", "SYMBOL(init_uts_ns)=c000000000100000"),
        ("i386", "SYMBOL(init_uts_ns)=c0100000"),
    ],
)
def test_the_rule_of_each_architecture(memory: Memory, architecture: str, lines: str) -> None:
    desc = f"OSRELEASE=6.1.0-9-amd64\nPAGESIZE=4096\nOFFSET(uts_namespace.name)=4\n{lines}\n"
    memory.put(0x51000, note(desc.encode()))
    assert best(memory).confirmed
    memory.put(UTS + 4 + 130, b"6.1.0-8")
    assert not best(memory).confirmed


# -- the device --------------------------------------------------------------------------------


def device(has: int, host: int, guest: int, size: int, gpa: int) -> DeviceTree:
    kinds = (("has_vmcoreinfo", "bool", 1), ("vmcoreinfo.host_format", "uint16", 2),
             ("vmcoreinfo.guest_format", "uint16", 2), ("vmcoreinfo.size", "uint32", 4),
             ("vmcoreinfo.paddr", "uint64", 8))  # fmt: skip
    fields = [{"name": n, "type": t, "size": s} for n, t, s in kinds]
    described = {"name": "vmcoreinfo", "instance_id": 0, "vmsd_name": "vmcoreinfo", "version": 1}
    text = json.dumps({"devices": [{**described, "fields": fields}]}).encode()
    body = struct.pack(">BHHIQ", has, host, guest, size, gpa)
    return DeviceTree([Section(b"vmcoreinfo", 0, 1, 0, body)], text)


def test_what_the_device_points_to(memory: Memory) -> None:
    made = note(text())
    memory.put(0x70000, made)
    memory.put(0x50000, note(text("6.0.0")))
    found = vmcoreinfo.find(device(1, 0, 1, 4132, 0x70000), memory.read, [memory])
    assert found.best is not None
    assert (found.best.source, found.best.gpa, found.best.size) == ("device", 0x70000, 4132)
    assert (found.best.note.desc, found.best.confirmed) == (text(), True)
    assert found.reasons == ("the vmcoreinfo device points to 4132 bytes at 0x70000",)
    # Of a host that is big-endian: the guest wrote little-endian.
    swapped = device(1, 0, 0x100, 0x24100000, 0x0000070000000000)
    assert vmcoreinfo.find(swapped, memory.read, [memory]).best == found.best
    # A guest may have another content than Linux's.
    memory.put(0x70000, note(b"PAGEDU64" + bytes(100)))
    other, _ = vmcoreinfo.of_device(device(1, 1, 1, 200, 0x70000), memory.read)
    assert other is not None
    assert (other.note.desc[:8], other.fields, other.confirmed) == (b"PAGEDU64", {}, False)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ((0, 1, 0, 0, 0), "the guest has told the vmcoreinfo device nothing"),
        ((1, 0, 0, 99, 0x70000), "in format 0: no note"),
        ((1, 0, 1, 11, 0x70000), "in format 1: no note"),
        ((1, 0, 1, (1 << 20) + 1, 0x70000), "in format 1: no note"),
        ((1, 0, 1, 4132, 1 << 40), "where no RAM is"),
        ((1, 0, 1, 4132, (1 << 64) - 1), "where no RAM is"),
        ((1, 0, 1, 4132, 0x60000), "where no note is"),
        ((1, 0, 1, len(note(text())) - 8, 0x70000), "where no note is"),
    ],
)
def test_a_device_that_points_to_none(
    memory: Memory, state: tuple[int, int, int, int, int], why: str
) -> None:
    memory.put(0x70000, note(text()))
    found = vmcoreinfo.find(device(*state), memory.read, [memory])
    assert why in found.reasons[0]
    assert found.best is not None
    assert found.best.source == "scan"


def test_no_device_and_one_without_a_description(memory: Memory) -> None:
    assert vmcoreinfo.of_device(DeviceTree([], None), memory.read) == (
        None, "the machine has no vmcoreinfo device",
    )  # fmt: skip
    bare = DeviceTree([Section(b"vmcoreinfo", 0, 1, 0, bytes(17))], None)
    assert "nothing describes" in vmcoreinfo.of_device(bare, memory.read)[1]


# -- hostile -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit",
    [
        b"OSRELEASE=", b"\0OSRELEASE=1.1\nA=1\n", b"OSRELEASE=1.1\n", note(text()),
        b"\0OSRELEASE=1.1\n" + b"=" * 4000, b"\0OSRELEASE=1.1\n" + b"A=" + b"=" * 4000,
        struct.pack("<III", 11, 0xFFFFFFFF, 0) + b"VMCOREINFO\0\0OSRELEASE=1.1\n",
    ],
)  # fmt: skip
def test_memory_full_of_it_takes_no_longer(memory: Memory, unit: bytes) -> None:
    memory.data[:] = (unit * (SIZE // len(unit) + 1))[:SIZE]
    begin = time.monotonic()
    scanned(memory)
    assert time.monotonic() - begin < 5


def test_so_many_texts_and_no_more(memory: Memory) -> None:
    for n in range(100):
        memory.put(0x50000 + n * 0x1000, note(text(f"6.{n}")))
    memory.put(UTS, kernel(b"6.99"))
    found = scanned(memory)
    assert found.best is not None
    assert found.best.release == "6.0"
    assert len(found.others) == 63
    assert found.reasons[1].startswith("more than 64 texts")


def test_numbers_that_are_none() -> None:
    fields = {"SYMBOL(init_uts_ns)": "nothing", "NUMBER(phys_base)": "z"}
    assert list(vmcoreinfo.physical(fields, "init_uts_ns")) == []
    fields["SYMBOL(init_uts_ns)"] = "f" * 400
    assert list(vmcoreinfo.physical(fields, "init_uts_ns")) == []


def test_places_are_found_once_in_order() -> None:
    memory = Memory(bytearray(SIZE))
    for at in (0, (1 << 20) - 4, (1 << 20) + 1, (2 << 20) - 1, SIZE - 4):
        memory.data[at : at + 4] = b"abcd"
    places = vmcoreinfo.occurrences([memory], (b"abcd", b"bc"))
    found = sorted((needle, at) for _, needle, at in itertools.islice(places, 99))
    assert [at for needle, at in found if needle == b"abcd"] == [
        0, (1 << 20) - 4, (1 << 20) + 1, (2 << 20) - 1, SIZE - 4,
    ]  # fmt: skip
    assert [at for needle, at in found if needle == b"bc"] == [
        1, (1 << 20) - 3, (1 << 20) + 2, 2 << 20, SIZE - 3,
    ]  # fmt: skip
