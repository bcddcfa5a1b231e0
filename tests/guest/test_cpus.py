"""Registers against what QEMU's `info registers` printed at the stop."""

from __future__ import annotations

import pytest

from tests.guest.test_devices import tree_of
from tests.registers import by_cpu, numbers, x86
from tests.truth import fixture_names, load_manifest, open_fixture
from vmstream.guest.cpus import CPU, cpus

# A guest that ran on has other registers in its stream than at the stop.
RAN_ON = {"bgsnapshot-11.1-pc"}
NO_DESCRIPTION = {"old-5.2-pc-i440fx-2.1", "own-old-pc-2.1"}
WITH_REGISTERS = [
    n
    for n in fixture_names()
    if load_manifest(n).get("registers")
    and n not in RAN_ON
    and not n.startswith(("interrupted", "postcopy"))
]


def of(name: str) -> list[CPU]:
    return list(cpus(tree_of(open_fixture(name))))


def everything(cpu: CPU) -> dict[str, int]:
    return {name: value for group in cpu.groups.values() for name, value in group.items()}


@pytest.mark.parametrize("name", WITH_REGISTERS)
def test_registers(name: str) -> None:
    texts = by_cpu(load_manifest(name)["registers"])
    found = of(name)
    compared = 0
    for cpu in found:
        text = texts.get(cpu.instance_id)
        if text is None:
            continue
        mine = everything(cpu)
        if cpu.architecture == "x86":
            theirs = x86(text)
            assert ("HLT=1" in text) == cpu.halted
            assert ("SMM=1" in text) == ("SMM" in cpu.mode)
            assert f"CPL={cpu.mode.partition('CPL ')[2][0]}" in text
            wide = "RAX=" in text
        else:
            theirs = numbers(text)
            wide = True
        for register, value in mine.items():
            if register in theirs:
                mask = (1 << 64 if wide else 1 << 32) - 1
                assert value & mask == theirs[register] & mask, (cpu.instance_id, register)
                compared += 1
    assert compared >= 20 * min(1, len(found))
    described = load_manifest(name)["arch"] == "x86_64" and "novmdesc" not in name
    assert found or not described or name in NO_DESCRIPTION


def test_all_architectures_and_versions_are_compared() -> None:
    architectures = {c.architecture for n in WITH_REGISTERS for c in of(n)}
    assert architectures == {"x86", "aarch64", "ppc64", "riscv64", "s390x"}
    versions = {load_manifest(n)["qemu"].split(".")[0] for n in WITH_REGISTERS}
    assert {"5", "7", "10", "11"} <= versions


def test_modes() -> None:
    first, second = of("plain-11.1-q35")
    assert (first.mode, first.halted) == ("protected mode, 32-bit code, CPL 0", False)
    assert second.halted
    assert of("microvm-11.1")[0].mode.startswith(("real", "protected"))
    arm = of("aarch64-10.0-virt")
    assert [c.mode for c in arm] == ["AArch64, EL1h", "AArch64, EL1h, powered off"]
    assert arm[1].flags == ("Z",)
    assert {"ttbr0_el1", "tcr_el1"} <= arm[0].groups["system"].keys()
    assert of("ppc64-10.0-pseries")[0].mode == "64-bit, supervisor state, big-endian"
    assert of("riscv64-10.0-virt")[0].mode == "machine"
    assert of("s390x-10.0")[0].mode == "64-bit, supervisor state"


def test_without_a_description() -> None:
    assert of("novmdesc-11.1-pc") == []
