"""A stream made plain: each page once, as it was left, and nothing that only a migration needs.

What is cut and put in are splices of the input (`ops/splice.py`), so device state, and live
sections other than RAM, stay to the byte. RAM keeps its START with the block list. Its pages, which
may have come in many passes, on other channels, behind the devices (postcopy) or in fixed places
(mapped-ram), come with one END in front of the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vmstream.errors import EncodeError, quoted
from vmstream.ops.lastpages import Pages, write_pages
from vmstream.ops.splice import Splice, Target
from vmstream.stream.encoder import encode_blocks
from vmstream.stream.events import (
    ChannelEvent,
    Command,
    DeviceState,
    EndOfStream,
    Event,
    MappedBlock,
    Padding,
    RAMBlock,
    RAMBlockList,
    RAMControl,
    SectionFooter,
    SectionStart,
)
from vmstream.stream.writer import StreamWriter
from vmstream.wire.constants import FLAT_RAM, MigCmd, RAMSaveFlag, SectionType

# What a destination is told that takes a stream as it comes, from a source that listens. QEMU
# v10.1.0 migration/savevm.c loadvm_process_command().
_OF_MIGRATION = frozenset(
    {
        MigCmd.OPEN_RETURN_PATH,
        MigCmd.PING,
        MigCmd.POSTCOPY_ADVISE,
        MigCmd.POSTCOPY_LISTEN,
        MigCmd.POSTCOPY_RUN,
        MigCmd.POSTCOPY_RAM_DISCARD,
        MigCmd.POSTCOPY_RESUME,
        MigCmd.PACKAGED,
        MigCmd.RECV_BITMAP,
        MigCmd.SWITCHOVER_START,
    }
)
_WITH_PAGES = "the block list, with each page as it was left"
_FULL = SectionType.QEMU_VM_SECTION_FULL


@dataclass(slots=True)
class _Cut:
    """A stretch that is left out."""

    begin: int
    end: int
    what: str


class RAMPlaces:
    """Fold: where RAM stands, and what else a plain stream leaves out."""

    def __init__(self) -> None:
        self.start: SectionStart | None = None
        self.listed: RAMBlockList | None = None
        self.mapped = False
        self.list_end = 0  # of MEM_SIZE and the list
        self.start_eos = 0  # offset of the EOS of START
        self.footer = False
        self.place: int | None = None  # where the END is to stand
        self.cuts: list[_Cut] = []
        self.device_states: set[bytes] = set()
        self._ram: SectionStart | None = None  # PART or END that is open
        self._parts = 0

    def on(self, event: Event) -> None:
        """Take one event."""
        match event:
            case SectionStart():
                self._close(event.offset)
                self._section(event)
            case RAMBlockList():
                self.listed, self.list_end = event, event.end
            case MappedBlock():
                self.mapped = True
            case RAMControl() if event.flags & RAMSaveFlag.EOS:
                if self.start is not None and not self.start_eos:
                    self.start_eos = event.offset
            case SectionFooter():
                if self.start is not None and event.section_id == self.start.section_id:
                    self.footer = True
                self._close(event.end)
            case Command():
                self._close(event.offset)
                if event.cmd in _OF_MIGRATION:
                    if event.cmd == MigCmd.PACKAGED:
                        self._put(event.offset)
                    self._cut(event.offset, event.end, "commands of a live migration")
            case EndOfStream():
                self._close(event.offset)
                self._put(event.offset)
            case Padding():
                self._cut(event.offset, event.end, "padding")
            case ChannelEvent(event=DeviceState(idstr=idstr)):
                self.device_states.add(idstr)

    def _section(self, event: SectionStart) -> None:
        if event.section_type == _FULL:
            # One ahead of all pages is there for them: virtio-mem-device-early.
            if self._parts:
                self._put(event.offset)
        elif event.idstr == b"ram":
            if event.section_type == SectionType.QEMU_VM_SECTION_START:
                if self.start is not None:
                    raise EncodeError("two sections 'ram': one of them is not the guest's memory")
                self.start = event
                return
            if event.section_type == SectionType.QEMU_VM_SECTION_END:
                self._put(event.offset)
            self._parts += 1
            self._ram = event

    def _put(self, offset: int) -> None:
        if self.place is None:
            self.place = offset

    def _close(self, end: int) -> None:
        if self._ram is not None:
            self._cut(self._ram.offset, end, "memory as it was sent")
            self._ram = None

    def _cut(self, begin: int, end: int, what: str) -> None:
        last = self.cuts[-1] if self.cuts else None
        # What is put in has to stand between.
        if last is not None and last.end == begin and last.what == what and begin != self.place:
            last.end = end
        else:
            self.cuts.append(_Cut(begin, end, what))


def plain_splices(
    places: RAMPlaces,
    pages: Pages,
    blocks: tuple[RAMBlock, ...],
    write_start: Callable[[Target], None] | None = None,
) -> list[Splice]:
    """Make the splices that a plain stream is the input with.

    Args:
        places: Fold of all events.
        pages: RAM.
        blocks: The block list as it is to be.
        write_start: Writes what START has between its head and its EOS, with all pages: the list of
            mapped-ram. Without it the pages come in END.

    Raises:
        EncodeError: The stream has no RAM, or what a plain stream has no room for.
    """
    start, listed, place = places.start, places.listed, places.place
    if start is None or listed is None or not places.start_eos:
        raise EncodeError("the stream has no RAM")
    if places.device_states:
        names = ", ".join(sorted(map(quoted, places.device_states)))
        raise EncodeError(f"device state in channels of multifd has no place in a stream: {names}")
    if place is None or place < places.start_eos:
        raise EncodeError("the section 'ram' has no end")
    made = [Splice(c.begin, c.end, b"", f"left out: {c.what}") for c in places.cuts]
    flat = start.version_id == FLAT_RAM
    if write_start is not None:
        if flat:
            raise EncodeError("RAM of section version 3 has no blocks, as mapped-ram needs them")
        made.append(Splice(listed.offset, places.start_eos, write_start, _WITH_PAGES))
    elif blocks != listed.blocks or places.start_eos != places.list_end or places.mapped:
        head = encode_blocks(listed.total, () if flat else blocks)
        if not places.mapped and len(encode_blocks(0, listed.blocks)) < listed.end - listed.offset:
            raise EncodeError("a block list with x-ignore-shared as QEMU 4.0 alone has it")
        made.append(Splice(listed.offset, places.start_eos, head, "the block list alone"))

    def write_end(to: Target) -> None:
        out = StreamWriter(to.write, page_size=pages.page_size, footers=places.footer)
        out.go_on(start, blocks)
        out.end(start.section_id)
        if write_start is None:
            write_pages(pages, out)
        out.close()

    what = "the end of RAM" if write_start is not None else "each page, as it was left"
    made.append(Splice(place, place, write_end, what))
    return made


def plain_blocks(
    blocks: tuple[RAMBlock, ...], renames: Mapping[bytes, bytes], *, shared: bool
) -> tuple[RAMBlock, ...]:
    """Return the block list of a plain stream.

    Args:
        blocks: That of the input.
        renames: Names that change.
        shared: x-ignore-shared is among the capabilities, so addresses stay.
    """
    # Sizes of backing pages are there for postcopy alone. QEMU v10.1.0 migration/ram.c
    # parse_ramblock().
    return tuple(
        replace(
            b,
            idstr=renames.get(b.idstr, b.idstr),
            host_page_size=None,
            gpa=b.gpa if shared else None,
        )
        for b in blocks
    )
