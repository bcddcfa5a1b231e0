"""JSON contract of `vmstream cpus`."""

from __future__ import annotations

from dataclasses import dataclass

from vmstream.report.models.anomalies import AnomalyReport

CPUS_SCHEMA = "vmstream.cpus/1"


@dataclass(frozen=True, slots=True)
class CPUReport:
    """One CPU.

    Attributes:
        instance_id: Index of the CPU.
        architecture: 'x86', 'aarch64', 'ppc64', 'riscv64', 's390x', 'arm', 'ppc' or 'riscv32'.
        mode: What it executes, in words.
        flags: Condition and control flags that are set.
        halted: It waits for an interrupt; `None` if the stream does not say.
        registers: By group, then by name.
    """

    instance_id: int
    architecture: str
    mode: str
    flags: list[str]
    halted: bool | None
    registers: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class CPUsReport:
    """Document of `vmstream cpus --json`.

    Attributes:
        schema: 'vmstream.cpus/1'.
        input: Path, or 'standard input'.
        machine: Machine type, `None` without a configuration section.
        cpus: In the order of the stream.
        anomalies: As in the inspect report.
    """

    schema: str
    input: str
    machine: str | None
    cpus: list[CPUReport]
    anomalies: list[AnomalyReport]
