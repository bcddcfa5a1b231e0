"""What each code of a finding means, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """Of a code: what it means, and what to do."""

    text: str
    advice: str


_CAPTURE = "capture the stream again; check disk space, and that the migration completed"

MEANINGS: dict[str, Meaning] = {
    "truncated": Meaning(
        "The input ends inside an item: QEMU fails there with an input/output error.",
        _CAPTURE + "; `extract-ram --partial` writes what is there",
    ),
    "format": Meaning(
        "The bytes contradict the grammar: QEMU refuses the stream at this place.",
        "compare with another copy; `extract-ram --partial` writes what can be read",
    ),
    "integrity": Meaning(
        "The items can be read, but contradict each other, or a page does not decode.",
        "compare with another copy; `extract-ram --partial` writes what can be read",
    ),
    "unsupported": Meaning(
        "A QEMU may write this, but this version of vmstream does not read it.",
        "see the message for what is missing; QEMU itself may load the stream",
    ),
    "limit": Meaning(
        "The stream asks for more memory than was allowed.",
        "raise the bound with the option that the message names, if the stream is trusted",
    ),
    "no-end": Meaning(
        "An iterable section was begun and never finished: the migration was cut off or cancelled.",
        _CAPTURE,
    ),
    "pages-missing": Meaning(
        "No record names these pages: a destination keeps what it has there, mostly zeros.",
        "harmless with free page hints or a balloon in the guest; else capture again",
    ),
    "chunks-missing": Meaning(
        "No record has these chunks of a disk: the disk of a destination keeps what it had.",
        "a disk of which only the end was sent is incremental: take it with its base",
    ),
    "bitmap-order": Meaning(
        "Bits of a bitmap come in an unexpected order, or in that of another host.",
        "check what is made of this bitmap; a warning means that the bits agree with no order",
    ),
    "storage-keys": Meaning(
        "Storage keys of s390 do not read as such, or end early: QEMU refuses the section.",
        _CAPTURE,
    ),
    "pages-elsewhere": Meaning(
        "Pages of this migration travelled on other connections.",
        "give the recorded channels with --channel",
    ),
    "own-pages": Meaning(
        "A main channel of multifd has no pages with data of its own, but this one has.",
        "check that the channels are of the same migration",
    ),
    "trailing": Meaning(
        "Bytes stand behind the end of the stream. QEMU does not read them.",
        "look whether two files were joined; `rewrite` leaves them as they are",
    ),
    "unfinished-save": Meaning(
        "libvirt did not finish this save image, and refuses to restore it.",
        "save the domain again",
    ),
    "container": Meaning(
        "The header around the stream states what is not there.",
        "check where the file comes from; the stream inside was read as it is",
    ),
    "vmdescription-size": Meaning(
        "The vmdescription states another size of device state than the bytes show.",
        "QEMU does not read the description; names of fields in this device can be wrong",
    ),
    "vmdescription-differs": Meaning(
        "The vmdescription does not have this section, or has another version of it.",
        "a stream whose description was put in by hand; QEMU does not read it",
    ),
    "vmdescription-section": Meaning(
        "The vmdescription describes a device that has no section in the stream.",
        "a section was taken out, or lost: a destination leaves the device as after a reset",
    ),
    "device-state": Meaning(
        "Bytes of a device are not what its description says is there.",
        "the device state is damaged, or the description is of another version of the device",
    ),
    "null-marker": Meaning(
        "A pointer is described as NULL and has no marker of that (0x30): QEMU refuses it.",
        "the device state is damaged there: capture again",
    ),
    "section-twice": Meaning(
        "A section with this name and instance comes twice: QEMU loads both into the same device.",
        "normal for an old machine with two devices of one name; else a copy was put in",
    ),
    "page-size": Meaning(
        "The configuration states another page size than the vmdescription.",
        "one of the two is damaged; --page-size states it",
    ),
    "command": Meaning(
        "QEMU refuses this command, or its length.",
        "the stream is damaged there, or of a newer QEMU",
    ),
    "out-of-place": Meaning(
        "A page record stands between two that belong elsewhere: perhaps a damaged address.",
        "compare these pages with another copy",
    ),
    "xbzrle-base": Meaning(
        "XBZRLE records change pages that were never sent whole.",
        "the stream begins in the middle, or records were lost: capture again",
    ),
    "fill-byte": Meaning(
        "A page of equal bytes other than zero: QEMU from 9.0 on refuses it, older ones load it.",
        "normal for a stream of QEMU 1.4 and older; else a damaged byte",
    ),
    "quick-end-not-found": Meaning(
        "The end of the stream was not found from the tail of the file.",
        "read the whole stream",
    ),
    "no-end-mark": Meaning(
        "This compressed format does not mark its end, so that a cut between blocks does not show.",
        "compare the size with that at the source",
    ),
    "no-vmdescription": Meaning(
        "The stream does not describe its device state: where it ends was inferred.",
        "nothing, if it was left out on purpose; `rewrite --add-vmdescription` puts one in",
    ),
    "stripped-unframed": Meaning(
        "The vmdescription was all that told device sections apart, and was taken off.",
        "keep the stream as it was, too; `rewrite --add-vmdescription` puts one in again",
    ),
    "header-scan": Meaning(
        "Device state is told apart by what looks like headers, which is inference.",
        "nothing: old machine types write no more than that",
    ),
    "unframed": Meaning(
        "Device sections cannot be told apart.",
        "RAM was verified, device state was not",
    ),
    "no-ram-end": Meaning("A background snapshot has no END of RAM.", "nothing: QEMU loads it"),
    "ignore-shared": Meaning(
        "Shared memory was left to its files (x-ignore-shared).",
        "keep the files with the stream: it is not whole without them",
    ),
    "unplugged": Meaning("Pages of virtio-mem that are not plugged are not sent.", "nothing"),
    "offset": Meaning(
        "The stream begins behind other bytes.",
        "give QEMU the same offset: `file:PATH,offset=N`",
    ),
    "schema": Meaning("Names of device state come from elsewhere.", "nothing"),
    "no-channel": Meaning("A file of the directory is no channel.", "nothing, if it is none"),
    "many-sections": Meaning("There are more sections than a report lists.", "nothing"),
    "many-disks": Meaning("There are more disks than a report lists.", "nothing"),
    "hash": Meaning(
        "A file is not what it was when the manifest was written.",
        "take another copy: this one was changed or damaged since",
    ),
    "hash-missing": Meaning(
        "A file that the manifest names is not there, or the manifest has no hash of it.",
        "run it where the paths of the manifest lead to, or beside the files",
    ),
}
