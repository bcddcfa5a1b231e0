"""`vmcoreinfo` and `banner`: what the guest's kernel says of itself."""

from __future__ import annotations

from collections.abc import Iterator

from vmstream.errors import OutputError
from vmstream.guest.banner import START, Banners
from vmstream.guest.devices import DeviceTree
from vmstream.guest.vmcoreinfo import (
    OSRELEASE,
    Found,
    VMCoreInfo,
    candidate,
    choose,
    find,
    occurrences,
    of_device,
)
from vmstream.ops.memory import GuestMemory, Stretch
from vmstream.report.models.kernel import (
    BANNER_SCHEMA,
    VMCOREINFO_SCHEMA,
    BannerCandidate,
    BannerReport,
    KernelNoteReport,
    VMCoreInfoReport,
)


def vmcoreinfo(memory: GuestMemory, tree: DeviceTree | None) -> Found:
    """Find the VMCOREINFO note of the guest's kernel.

    Args:
        memory: The guest's.
        tree: The devices; `None` if they were not read.

    Raises:
        StreamError: The input is damaged where it is read, or not what it was.
    """
    return find(tree, memory.read, all_stretches(memory))


def all_stretches(memory: GuestMemory) -> list[Stretch]:
    """RAM by address or, where the stream does not tell the layout, by block."""
    try:
        return memory.stretches()
    except OutputError:
        return [s for i in range(len(memory.blocks)) for s in memory.stretches(i)]


def vmcoreinfo_report(name: str, found: Found) -> VMCoreInfoReport:
    """Make the document of `vmstream vmcoreinfo --json`."""
    return VMCoreInfoReport(
        VMCOREINFO_SCHEMA,
        name,
        None if found.best is None else _note(found.best),
        [_note(v) for v in found.others],
        list(found.reasons),
    )


def banner_report(name: str, memory: GuestMemory, tree: DeviceTree | None) -> BannerReport:
    """Search memory, once, for the banner of the guest's kernel.

    Raises:
        StreamError: The input is damaged where it is read, or not what it was.
    """
    stretches = all_stretches(memory)
    banners = Banners()

    def notes() -> Iterator[VMCoreInfo]:
        for number, needle, at in occurrences(stretches, (START, OSRELEASE)):
            if needle == START:
                banners.add(stretches[number], at)
            elif (note := candidate(stretches, number, at)) is not None:
                yield note

    every = list(notes())
    best = of_device(tree, memory.read)[0] or choose(iter(every), memory.read).best
    release = None if best is None else best.release
    ranked = banners.ranked(release)
    return BannerReport(
        BANNER_SCHEMA,
        name,
        ranked[0].text if ranked else None,
        "inferred",
        release,
        [BannerCandidate(b.text, b.release, b.gpa, b.count, b.whole) for b in ranked],
    )


def _note(found: VMCoreInfo) -> KernelNoteReport:
    return KernelNoteReport(
        "device" if found.source == "device" else "inferred",
        found.confirmed,
        found.gpa,
        found.size,
        found.has_head,
        found.fields,
    )
