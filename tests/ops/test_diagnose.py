"""Messages of QEMU, and the bytes they point at."""

from __future__ import annotations

import pytest

from tests.decoding import BytesSource
from tests.ops.test_check import FIELDS, SUB, dev, stream
from tests.streamwriter import Device, Field
from vmstream.ops.diagnose import diagnose
from vmstream.report.models.diagnose import CauseReport

CONFIG = Field("config", "pci config", bytes(range(64)))
PCI = Device(
    "pci/nic",
    version=3,
    fields=(
        Field(
            "dev",
            "struct",
            CONFIG.data,
            extra={
                "struct": {"vmsd_name": "PCIDevice", "version": 2, "fields": [CONFIG.describe()]}
            },
        ),
    ),
)
STREAM = stream(dev(2, FIELDS, SUB), PCI, switchover_start=True)


def causes(log: str, data: bytes = STREAM) -> list[CauseReport]:
    report, code = diagnose(BytesSource(data), log.encode())
    assert code == (not report.causes)
    return report.causes


def place(text: bytes, shift: int = 0) -> int:
    return STREAM.index(text) + shift


NAME = b"\x07bus/dev"
BODY = len(NAME) + 8
LINES = {
    # message: (code, offset, section, field)
    "Not a migration stream": ("not-a-stream", 0, None, None),
    "Machine type received is 'pc-q35-7.2' and local is 'x'": (
        "machine", place(b"pc-q35-7.2"), "configuration", "name",
    ),
    "Unknown savevm section or instance 'bus/dev' 0. Make sure": (
        "section", place(NAME, -5), "bus/dev[0]", None,
    ),
    "savevm: unsupported version 2 for 'bus/dev' v1": (
        "version", place(NAME, BODY - 4), "bus/dev[0]", None,
    ),
    "load of migration failed: Invalid argument: Unknown section or instance 'bus/dev' 0. Make": (
        "section", place(NAME, -5), "bus/dev[0]", None,
    ),
    "load of migration failed: Invalid argument: unsupported version 2 for 'bus/dev' v1": (
        "version", place(NAME, BODY - 4), "bus/dev[0]", None,
    ),
    "load of migration failed: Invalid argument: error while loading state for instance 0x0 of "
    "device 'bus/dev': dev: incoming version_id 2 is too old for local minimum version_id 3": (
        "version-state", place(NAME, BODY - 4), "bus/dev[0]", "dev",
    ),
    "load of migration failed: Invalid argument: error while loading state for instance 0x0 of "
    "device 'bus/dev': VM subsection 'dev/more' in 'dev' does not exist": (
        "subsection", place(b"\x05\x08dev/more"), "bus/dev[0]", "dev/more",
    ),
    "load of migration failed: Invalid argument: error while loading state for instance 0x0 of "
    "device 'bus/dev': Failed to load element of type int32 equal for n": (
        "state", place(NAME, BODY + 4), "bus/dev[0]", "n",
    ),
    "MIG_CMD 0xb unknown (len 0x0)": ("command", place(b"\x08\0\x0b\0\0"), None, None),
    "Missing section footer for bus/dev": (
        "footer", place(NAME, BODY + 8 + 6 + 8 + 4), "bus/dev[0]", None,
    ),
    "error while loading state for instance 0x0 of device 'bus/dev'": (
        "state", place(NAME, BODY), "bus/dev[0]", None,
    ),
    "Size mismatch: pc.ram: 0x2000 != 0x4000: Invalid argument": (
        "ram-length", place(b"\6pc.ram", 7), "ram", "pc.ram",
    ),
    "Length mismatch: pc.ram: 0x2000 in != 0x4000": (
        "ram-length", place(b"\6pc.ram", 7), "ram", "pc.ram",
    ),
    'Unknown ramblock "pc.ram", cannot accept migration': (
        "ram-block", place(b"\6pc.ram", 7), "ram", "pc.ram",
    ),
    "Unknown combination of migration flags: 0x8c2": ("ram-flags", None, None, None),
    "Failed to load dev:n": ("field", None, None, "n"),
    "load of migration failed: Input/output error": ("load-failed", None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_message(line: str) -> None:
    (cause,) = causes(f"2026-01-01 other\nqemu-system-x86_64: {line}\n")
    assert (cause.code, cause.offset, cause.section, cause.field) == LINES[line]
    assert cause.line == 2
    assert cause.cause
    assert cause.advice


def test_a_field_by_its_lines() -> None:
    log = "10 != 4\nFailed to load dev:n\n"
    log += "error while loading state for instance 0x0 of device 'bus/dev'"
    *_, last = causes(log)
    assert (last.code, last.field) == ("state", "n")
    assert last.offset == place(NAME, BODY + 4)
    assert "0x4" in last.cause


def test_an_unknown_subsection_is_among_those_there() -> None:
    """As QEMU said it before 10.2: the name is not told."""
    log = "error while loading state for instance 0x0 of device 'bus/dev'\n"
    *_, last = causes(log + "load of migration failed: No such file or directory\n")
    assert last.offset == place(b"\x05\x08dev/more")
    assert "bus/dev[0] has dev/more" in last.cause


def test_config_space() -> None:
    log = (
        "get_pci_config_device: Bad config data: i=0x2c read: 2c device: 0 cmask: ff wmask: 0 w1\n"
        "Failed to load PCIDevice:config\nFailed to load nic:dev\n"
        "error while loading state for instance 0x0 of device 'pci/nic'\n"
    )
    *_, last = causes(log)
    assert last.offset == place(CONFIG.data, 0x2C)
    assert "0x2c" in last.cause


def test_damage_is_pointed_at() -> None:
    data = bytearray(STREAM)
    at = place(b"\6pc.ram", 7 + 8 + 8 + 5 + 5)
    data[at : at + 8] = b"\0" * 6 + b"\x0a\xff"
    (cause,) = causes("Unknown combination of migration flags: 0xfff", bytes(data))
    assert cause.offset is not None
    assert abs(cause.offset - at) < 64


def test_a_log_of_another_stream() -> None:
    (cause,) = causes("savevm: unsupported version 2 for 'other' v1")
    assert "another" in cause.cause
    assert cause.offset is None


def test_what_is_no_stream() -> None:
    (cause,) = causes("qemu: Not a migration stream", b"hello")
    assert "no migration stream" in cause.cause


@pytest.mark.parametrize("log", ["", "hello\n", "\0\xff" * 99, "Failed to load"])
def test_nothing_known(log: str) -> None:
    assert causes(log) == []
