"""JSON contract of `vmstream vmcoreinfo` and `vmstream banner`."""

from __future__ import annotations

from dataclasses import dataclass

VMCOREINFO_SCHEMA = "vmstream.vmcoreinfo/1"
BANNER_SCHEMA = "vmstream.banner/1"


@dataclass(frozen=True, slots=True)
class KernelNoteReport:
    """A VMCOREINFO note.

    Attributes:
        source: 'device', where the state of QEMU's vmcoreinfo device points to it, or 'inferred',
            where memory was searched for it.
        confirmed: The kernel's own name stands in memory where the note says.
        gpa: Guest-physical address of the note, `None` if it is not known.
        size: Bytes that the device's state gives, or that head and text take.
        has_head: The head of an ELF note stands in front of the text in memory.
        fields: The lines, by what is left of '='.
    """

    source: str
    confirmed: bool
    gpa: int | None
    size: int
    has_head: bool
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class VMCoreInfoReport:
    """Document of `vmstream vmcoreinfo --json`.

    Attributes:
        schema: 'vmstream.vmcoreinfo/1'.
        input: Path, or '-'.
        note: That of the guest's kernel, `None` if there is none.
        others: Further ones in memory: of kernels before it, of guests of the guest, of files.
        reasons: How it was decided, a sentence each.
    """

    schema: str
    input: str
    note: KernelNoteReport | None
    others: list[KernelNoteReport]
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class BannerCandidate:
    """A text that looks like the banner of a kernel.

    Attributes:
        text: The banner.
        release: What it says of the release.
        gpa: Guest-physical address of the first of them, `None` if it is not known.
        count: How often it stands in memory.
        whole: It ends as in a kernel's image, not as in a log.
    """

    text: str
    release: str
    gpa: int | None
    count: int
    whole: bool


@dataclass(frozen=True, slots=True)
class BannerReport:
    """Document of `vmstream banner --json`.

    Attributes:
        schema: 'vmstream.banner/1'.
        input: Path, or '-'.
        banner: Of the guest's kernel, `None` if there is none.
        source: 'inferred': found by searching memory.
        osrelease: Release by the kernel's VMCOREINFO, `None` without one.
        candidates: All texts, the chosen one first.
    """

    schema: str
    input: str
    banner: str | None
    source: str
    osrelease: str | None
    candidates: list[BannerCandidate]
