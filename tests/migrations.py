"""Migrations over sockets between two of the installed QEMU, recorded, each with its truth.

    capture = multifd(tmp_path, "zstd", 3, live=True)
    capture = postcopy(tmp_path, preempt=True, live=False)
    capture.main, capture.others      # files, one for each connection
    capture.truth["pc.bios"]          # what the destination holds of a block

The destination is started with -S, so it only loads, and its memory is the truth for a running
guest too: QEMU 7.2 with TCG misses writes, so the source's memory may differ from what it sent.
No code of vmstream takes part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.channels import MainChannel, MultifdChannel, multifd_memory, urgent_records
from tests.qemu import Guest, Qemu, QemuError, userfault_refused
from tests.relay import Channel, Relay

MIB, GIB = 1 << 20, 1 << 30
FOUR_GIB = 1 << 32
SIZE = 16 * MIB
MACHINE = ["-M", "pc", "-accel", "tcg"]
ATTEMPTS = 4
# More pages than the TLB of TCG has slots, else hardly any of them is seen to be dirty.
BUSY = Guest(fill=768, dirty=768)
CALM = Guest(fill=768, dirty=200)


@dataclass(frozen=True)
class Capture:
    """What was recorded: the main channel, the others in the order in which they came.

    `registers` are those of the destination, which has not run.
    """

    main: Path
    others: list[Path]
    returned: Path
    truth: dict[str, bytes] = field(repr=False)
    registers: str = field(repr=False)

    @classmethod
    def of(cls, channels: list[Channel], truth: dict[str, bytes], registers: str) -> Capture:
        main, *others = channels
        return cls(main.sent, [c.sent for c in others], main.returned, truth, registers)


def memory_of(vm: Qemu, size: int = SIZE) -> bytes:
    """The RAM of a pc of less than 3 GiB, from the process."""
    place = vm.gpa2hva(MIB)
    assert place is not None
    return vm.process_memory(place[1] - MIB, size)


def firmware_of(vm: Qemu) -> bytes:
    """The block pc.bios, from the process."""
    (size,) = [b.used for b in vm.ram_blocks() if b.idstr == "pc.bios"]
    place = vm.gpa2hva(FOUR_GIB - size)
    assert place is not None
    assert place[0] == "pc.bios"
    return vm.process_memory(place[1], size)


def _must_be_7(vm: Qemu) -> None:
    """From 8.1 on channels are synced at other places, and from 9.0 on they have zero pages."""
    if not vm.version().startswith("7."):
        pytest.skip(f"tests/channels.py reads what QEMU 7.2 writes, and this is {vm.version()}")


def _in(directory: Path, attempt: int) -> Path:
    made = directory / str(attempt)
    made.mkdir()
    return made


def precopy(directory: Path, *, tcp: bool) -> Capture:
    """A stopped guest, one connection, with answers on it."""
    with (
        Qemu(MACHINE, guest=CALM, mem=("mem", SIZE)) as source,
        Qemu(MACHINE, guest=CALM, mem=("mem", SIZE), incoming="defer") as destination,
    ):
        source.set_capabilities(return_path=True)
        destination.qmp("migrate-incoming", uri="unix:guest.sock")
        source.wait_serial(b"FILLED")
        source.stop()
        with Relay(destination.path("guest.sock"), directory, tcp=tcp) as relay:
            source.migrate(relay.uri)
            destination.wait_loaded()
            channels = relay.finish()
        memory = destination.backend.read_bytes()
        assert memory == source.backend.read_bytes()
        truth = {"mem": memory, "pc.bios": firmware_of(destination)}
        return Capture.of(channels, truth, destination.registers())


def multifd(directory: Path, method: str, count: int, *, live: bool) -> Capture:
    """`count` channels beside the main one; a running guest goes through several passes."""
    for attempt in range(ATTEMPTS):
        capture = _multifd(_in(directory, attempt), method, count, live)
        main = MainChannel(capture.main.read_bytes())
        channels = [MultifdChannel(c.read_bytes()) for c in capture.others]
        # None: two channels have different contents of a page at the same time.
        if (memory := multifd_memory(main, channels)) is not None:
            break
    assert memory is not None
    assert sorted(c.id for c in channels) == list(range(count))
    assert {p.method for c in channels for p in c.packets if p.pages} == {method}
    assert all(any(p.pages for p in c.packets) for c in channels)
    assert {name: memory[name] for name in capture.truth} == capture.truth
    return capture


def _multifd(directory: Path, method: str, count: int, live: bool) -> Capture:
    guest = BUSY if live else CALM
    with (
        Qemu(MACHINE, guest=guest, mem=("mem", SIZE)) as source,
        Qemu(MACHINE, guest=guest, mem=("mem", SIZE), incoming="defer") as destination,
    ):
        _must_be_7(source)
        for vm in (source, destination):
            vm.set_capabilities(multifd=True)
            vm.set_parameters(multifd_channels=count, multifd_compression=method)
        destination.qmp("migrate-incoming", uri="unix:guest.sock")
        source.wait_serial(b"FILLED")
        if not live:
            source.stop()
        with Relay(destination.path("guest.sock"), directory) as relay:
            if live:
                source.set_parameters(max_bandwidth=4 * MIB, downtime_limit=1)
                source.migrate(relay.uri, wait=False)
                source.wait_passes(3)
                source.set_parameters(max_bandwidth=GIB, downtime_limit=10000)
                source.wait_migration()
            else:
                source.migrate(relay.uri)
            destination.wait_loaded()
            channels = relay.finish()
        assert destination.qmp("query-status")["status"] == "paused"
        truth = {"mem": destination.backend.read_bytes(), "pc.bios": firmware_of(destination)}
        registers = destination.registers()
    assert len(channels) == 1 + count
    return Capture.of(channels, truth, registers)


def postcopy(directory: Path, *, preempt: bool, live: bool) -> Capture:
    """A pass of precopy or a part of it, the switch, then the rest.

    In between the destination's monitor looks at pages that have not come: they are asked for, and
    come out of turn, with `preempt` on a second channel.
    """
    for attempt in range(ATTEMPTS):
        capture = _postcopy(_in(directory, attempt), preempt, live)
        if not preempt or urgent_records(capture.others[0].read_bytes()):
            return capture
    raise QemuError("no page was asked for in time")


def _postcopy(directory: Path, preempt: bool, live: bool) -> Capture:
    guest = BUSY if live else CALM
    # userfaultfd takes no memory of a file, so RAM is anonymous.
    args = [*MACHINE, "-m", f"{SIZE // MIB}M"]
    with (
        Qemu(args, guest=guest) as source,
        Qemu(args, guest=guest, incoming="defer") as destination,
    ):
        _must_be_7(source)
        for vm in (source, destination):
            said = vm.refuses(postcopy_ram=True)
            if said is not None:
                why = userfault_refused()
                assert why is not None, said
                assert "Postcopy is not supported" in said
                assert "userfaultfd not available" in vm.errors()
                pytest.skip(f"the kernel gives no userfaultfd ({why}), so QEMU: {said}")
            if preempt:
                vm.set_capabilities(postcopy_preempt=True)
        destination.qmp("migrate-incoming", uri="unix:guest.sock")
        source.wait_serial(b"FILLED")
        if not live:
            source.stop()
        with Relay(destination.path("guest.sock"), directory) as relay:
            source.set_parameters(
                max_bandwidth=(4 if live else 1) * MIB,
                downtime_limit=1,
                max_postcopy_bandwidth=MIB,
            )
            source.migrate(relay.uri, wait=False)
            if live:
                source.wait_passes(2)
            else:
                time.sleep(0.5)
            source.qmp("migrate-start-postcopy")
            source._wait(
                lambda: source.query_migrate()["status"] == "postcopy-active", 30, "postcopy"
            )
            for page in range(600, 750, 30):
                assert f"{MIB + page * 4096:016x}:" in destination.hmp(
                    f"xp /2wx {MIB + page * 4096:#x}"
                )
            source.set_parameters(max_postcopy_bandwidth=0)
            source.wait_migration()
            destination._wait(
                lambda: destination.query_migrate()["status"] == "completed", 30, "the last page"
            )
            channels = relay.finish()
        # Not once has the guest run here.
        assert destination.qmp("query-status")["status"] == "paused"
        truth = {"pc.ram": memory_of(destination), "pc.bios": firmware_of(destination)}
        if not live:
            assert truth["pc.ram"] == memory_of(source)
        registers = destination.registers()
    assert len(channels) == (2 if preempt else 1)
    return Capture.of(channels, truth, registers)
