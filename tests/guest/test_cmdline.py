"""Command lines from names alone."""

from __future__ import annotations

import shlex

from vmstream.guest.cmdline import CommandLine, command_line
from vmstream.guest.devices import DeviceTree, Section
from vmstream.stream.events import RAMBlock

MIB = 1 << 20


def block(name: str, size: int) -> RAMBlock:
    return RAMBlock(name.encode(), size, None, None)


def line(machine: bytes | None, blocks: list[RAMBlock], *names: str) -> CommandLine:
    sections = [Section(n.encode(), i, 1, 0, b"") for i, n in enumerate(names)]
    return command_line(machine, tuple(blocks), DeviceTree(sections, None))


def words(made: CommandLine, option: str) -> list[str]:
    return [a.words[-1] for a in made.arguments if a.words[0] == option]


def test_unknown_sections_are_told() -> None:
    made = line(b"pc-i440fx-7.2", [block("pc.ram", 64 * MIB)], "timer", "0000:00:04.0/odd", "odd")
    assert sorted(made.unknown) == ["0000:00:04.0/odd", "odd"]
    assert words(made, "-m") == ["64M"]
    assert words(made, "-device") == []


def test_bridges_come_first() -> None:
    made = line(
        b"pc-q35-7.2", [block("pc.ram", 64 * MIB)],
        "0000:00:01.0:00.0/e1000e", "0000:00:05.0/1/usb-kbd", "0000:00:05.0/xhci",
        "0000:00:01.0/pcie-root-port",
    )  # fmt: skip
    devices = words(made, "-device")
    assert devices[0] == "pcie-root-port,id=bridge0,bus=pcie.0,addr=01.0,chassis=1"
    assert devices[1].startswith("e1000e,bus=bridge0,addr=00.0,netdev=net0")
    # A controller whose identity is not known is none: neither is what hangs on it.
    assert made.unknown == ["0000:00:05.0/xhci", "0000:00:05.0/1/usb-kbd"]


def test_hostile_names() -> None:
    evil = "pc-x,;$(reboot)'\n"
    made = line(evil.encode(), [block("a,b", MIB)], "0000:00:04.0/x';reboot;'")
    (machine,) = (a for a in made.arguments if a.words[0] == "-machine" and "pc-x" in a.words[1])
    assert machine.words[1].startswith("pc-x,,;")
    assert shlex.split(shlex.quote(machine.words[1])) == [machine.words[1]]
    assert any("id=a,,b" in w for w in words(made, "-object"))


def test_options_of_the_machine() -> None:
    made = line(b"virt-7.2", [block("mach-virt.ram", MIB), block("virt.flash0", MIB)],
                "arm_gicv3", "smmuv3", "virt_acpi_build", "cpu_common", "cpu_common")  # fmt: skip
    assert made.emulator == "qemu-system-aarch64"
    assert words(made, "-machine") == ["virt-7.2,gic-version=3,its=off,iommu=smmuv3"]
    assert words(made, "-smp") == ["2"]


def test_nothing() -> None:
    made = line(None, [])
    assert words(made, "-machine") == []
    assert any("-machine" in text for text in made.not_stated)
    assert any("-m)" in text for text in made.not_stated)
