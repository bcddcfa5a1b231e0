"""`inspect --quick`: head and tail of a seekable stream, and nothing between.

The vmdescription at the end names every device section in order, so the first of them can be
found, and from there the tail is framed as always.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmstream.errors import StreamError, UnsupportedError
from vmstream.ops.pipeline import events
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event, Gap, MappedPages, SectionStart
from vmstream.stream.tail import FOOTER_SIZE, Tail, find_vmdescriptions, frame_tail, has_footer
from vmstream.transport.source import Source
from vmstream.wire import grammar
from vmstream.wire.constants import SectionType

# Bytes from the end that are looked at: first, and at the most.
_FIRST_LOOK = 1 << 20
_LAST_LOOK = 16 << 20

# Places that look like the first device section, that are tried.
_MOST_STARTS = 8
_MAX_HEAD = 64 << 20


def quick_events(source: Source, decoder: Decoder) -> Iterator[Event]:
    """Yield the events of head and tail, with one `Gap` for what is between.

    Raises:
        UnsupportedError: The source is a pipe, or compressed.
    """
    if not source.seekable or source.size is None:
        raise UnsupportedError(
            0,
            "a quick look needs a file it can seek in: no pipe, and no compressed data",
            advice="leave out --quick",
        )
    live: dict[int, None] = {}
    offset = 0
    for event in events(source, decoder):
        if isinstance(event, SectionStart):
            late = event.section_type in (
                SectionType.QEMU_VM_SECTION_PART,
                SectionType.QEMU_VM_SECTION_END,
            )
            if late or event.offset > _MAX_HEAD:
                break
            if event.section_type == SectionType.QEMU_VM_SECTION_START:
                live[event.section_id] = None
        if isinstance(event, MappedPages):
            break
        offset = event.end if not isinstance(event, Anomaly) else offset
        yield event
    else:
        return
    start, tail = _find_tail(source, offset, list(live), decoder.footers)
    if tail is None:
        yield Gap(offset, source.size, "not read")
        yield Anomaly(
            offset,
            offset,
            "warning",
            "quick-end-not-found",
            "no end of stream that a quick look can tell: truncated, or of a kind that takes "
            "reading it whole (leave out --quick)",
        )
        return
    yield Gap(offset, start, "not read")
    yield from frame_tail(tail)


# Where the device sections start, and the tail from there; (0, None) if they are not found.
def _find_tail(
    source: Source, low: int, live: list[int], footers: bool | None
) -> tuple[int, Tail | None]:
    size = source.size or 0
    look = _FIRST_LOOK
    while True:
        begin = max(low, size - look)
        view, base, _ = source.window(begin, size - begin)
        data = memoryview(bytes(view[begin - base :]))
        for starts in _candidates(data, live, footers):
            fits: dict[int, Tail] = {}
            for at in starts:
                if (
                    footers
                    and live
                    and not any(
                        at >= FOOTER_SIZE and has_footer(data, at - FOOTER_SIZE, i) for i in live
                    )
                ):
                    continue
                tail = Tail(data[at:], begin + at, footers, strict=True)
                if _frames(tail):
                    fits[at] = tail
            if len(fits) == 1:
                ((at, tail),) = fits.items()
                return begin + at, tail
            if fits:
                # RAM and device state may hold what looks like a start. Which one is it?
                return 0, None
        if begin == low or look >= _LAST_LOOK:
            return 0, None
        look *= 4


# Positions where the first device section may stand, in groups of one kind, the likeliest first.
def _candidates(data: memoryview, live: list[int], footers: bool | None) -> Iterator[list[int]]:
    full = bytes([SectionType.QEMU_VM_SECTION_FULL])
    frame = next(find_vmdescriptions(data), None)
    if frame is not None:
        # The first of the description may have come ahead of RAM.
        for device in frame.layout.devices[:4]:
            if 0 < len(device.idstr) < 256:
                name = grammar.COUNTED_STRING.build(device.idstr)
                mark = re.escape(name + device.instance_id.to_bytes(4, "big"))
                found = re.finditer(full + b".{4}" + mark, data, re.DOTALL)
                yield [m.start() for m in found][-_MOST_STARTS:]
    elif footers and live:
        marks = (
            re.escape(bytes([SectionType.QEMU_VM_SECTION_FOOTER]) + i.to_bytes(4, "big") + full)
            for i in live
        )
        found = re.finditer(b"|".join(marks), data)
        yield [m.end() - 1 for m in found][-_MOST_STARTS:]


def _frames(tail: Tail) -> bool:
    try:
        return not any(
            isinstance(e, Gap) or (isinstance(e, Anomaly) and e.severity != "info")
            for e in frame_tail(tail)
        )
    except StreamError:
        return False
