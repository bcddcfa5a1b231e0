"""Edits of a stream but those of memory: each is a splice of the input."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmstream.container.layers import Container
from vmstream.container.open import OpenStream
from vmstream.errors import (
    EncodeError,
    LimitError,
    quoted,
)
from vmstream.guest import values
from vmstream.guest.coverage import BlockCoverage
from vmstream.guest.devices import DeviceTree, Node, Section, path_pattern
from vmstream.guest.vmdesc import Document
from vmstream.ops.devices import Devices, find
from vmstream.ops.inspect import Summary
from vmstream.ops.lastpages import LastPages
from vmstream.ops.mappedram import write_mapped
from vmstream.ops.memory import GuestMemory
from vmstream.ops.pipeline import Consumer, Progress, run
from vmstream.ops.plain import RAMPlaces, plain_blocks, plain_splices
from vmstream.ops.splice import Splice, in_order
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Command,
    Configuration,
    EndOfStream,
    Event,
    Gap,
    MappedBlock,
    MappedPages,
    PageBatch,
    PageColumns,
    Payload,
    RAMBlockList,
    RAMControl,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.transport.source import RandomAccess, Source
from vmstream.wire import build
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    CAP_MAPPED_RAM,
    FLAT_RAM,
    TARGET_PAGE_BITS,
    MigCmd,
    RAMSaveFlag,
    SectionType,
)
from vmstream.wire.layout import RAM_WORD_SIZE
from vmstream.wire.parse import ConfigurationValues, command_fields, discarded_ranges

# Splices that are held.
_MOST_SPLICES = 1 << 20

_CONTINUE = int(RAMSaveFlag.CONTINUE)
_SUGGESTED = 5
CONFIGURATION = "configuration."
# In the order of the wire.
_SUBSECTIONS = {
    "target_page_bits": b"configuration/target-page-bits",
    "capabilities": b"configuration/capabilities",
    "uuid": b"configuration/uuid",
}
# Capabilities that say how RAM stands in the stream.
_OF_RAM = frozenset({CAP_MAPPED_RAM, CAP_IGNORE_SHARED})


@dataclass(frozen=True, slots=True)
class RewriteOptions:
    """The edits, in the words of the command line, and where the result goes.

    Attributes:
        output: The file, or '-' for standard output; `None` to write nothing.
        sets: (path, value) of fields.
        patches: (address, 'hex:...' or name of a file) of guest memory.
        drop_sections: Patterns of sections.
        drop_subsections: Patterns of subsections.
        renames: (old, new) names of RAM blocks.
        strip_vmdescription: Take it off.
        add_vmdescription: Stream of the same machine whose vmdescription is put in.
        force: Replace a file.
        page_size: Target page size in bytes, if the user states it.
        below_4g: Size of RAM below 4 GiB in bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        spool: Directory for pages that have no bytes in the input, as of `stream.memory()`, and
            for an input that cannot be sought in; by default that of the output.
        squash: Make the stream plain: each page once, as it was left.
        mapped: With `squash`, RAM as mapped-ram.
        shared_blocks: Names of blocks whose memory is in a file (x-ignore-shared), and the files;
            with `squash` it comes into the stream.
    """

    output: Path | None = None
    sets: tuple[tuple[str, str], ...] = ()
    patches: tuple[tuple[str, str], ...] = ()
    drop_sections: tuple[str, ...] = ()
    drop_subsections: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    strip_vmdescription: bool = False
    add_vmdescription: str | None = None
    force: bool = False
    page_size: int | None = None
    below_4g: int | None = None
    max_ram: int | None = None
    spool: str | None = None
    squash: bool = False
    mapped: bool = False
    shared_blocks: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class _Span:
    """A section or part, from its head to behind its footer."""

    start: SectionStart
    end: int


class Places:
    """Fold: where in the input stands what edits may touch.

    Args:
        renamed: Blocks whose named records are noted.
        live: Whether the parts of an iterable section of this name and instance are noted.
    """

    def __init__(self, renamed: frozenset[bytes], live: Callable[[str], bool]) -> None:
        self._renamed = renamed
        self._is_noted = live
        self.configuration: Configuration | None = None
        self.block_list: RAMBlockList | None = None
        self.mapped: list[MappedBlock] = []
        self.mapped_end = 0
        self.flat = False
        self.devices: dict[int, _Span] = {}  # by the offset of the body
        self.parts: list[_Span] = []
        self.ram_end: int | None = None  # of the last EOS
        self.end: EndOfStream | None = None
        self.vmdescription: VMDescription | None = None
        self.packages: list[tuple[Command, int]] = []
        self.discards: list[Command] = []
        self.names: list[tuple[bytes, NDArray[np.uint64]]] = []
        self._named = 0
        self._open: SectionStart | None = None
        self._whole = False

    def on(self, event: Event) -> None:
        """Take one event."""
        match event:
            case Configuration():
                self.configuration = event
            case SectionStart():
                self._close(event.offset)
                self._open = event
                self._whole = event.section_type != SectionType.QEMU_VM_SECTION_FULL
                if event.idstr == b"ram":
                    self.flat = event.version_id == FLAT_RAM
            case RAMBlockList():
                self.block_list = event
            case MappedBlock():
                self.mapped.append(event)
                self.mapped_end = event.end
            case MappedPages():
                self.mapped_end = event.end
            case PageBatch():
                self._batch(event)
            case RAMControl() if event.flags & RAMSaveFlag.EOS:
                self.ram_end = event.offset
            case Payload():
                self._whole = self._whole or event.final
            case Gap():
                self._whole = False
            case SectionFooter():
                self._whole = True
                self._close(event.end)
            case Command():
                self._close(event.offset)
                self._command(event)
            case EndOfStream():
                self._close(event.offset)
                self.end = event
            case VMDescription():
                self.vmdescription = event

    # Without a footer a section ends where the next item starts.
    def _close(self, end: int) -> None:
        start, self._open = self._open, None
        if start is None or not self._whole:
            return
        if start.section_type == SectionType.QEMU_VM_SECTION_FULL:
            self.devices[start.end] = _Span(start, end)
        elif self._is_noted(_path(start)):
            self.parts.append(_Span(start, end))
            check_count(len(self.parts), start.offset)

    def _command(self, event: Command) -> None:
        if event.cmd == MigCmd.PACKAGED:
            length = command_fields(event.cmd, event.data).get("length", 0)
            self.packages.append((event, event.end + length))
        elif event.cmd == MigCmd.POSTCOPY_RAM_DISCARD and self._renamed:
            found = discarded_ranges(event.data)
            if found is not None and found[0] in self._renamed:
                self.discards.append(event)
                check_count(len(self.discards), event.offset)

    def _batch(self, batch: PageBatch) -> None:
        if not self._renamed:
            return
        for index, block in enumerate(batch.blocks):
            if block.idstr not in self._renamed:
                continue
            if isinstance(batch.pages, PageColumns):
                c = batch.columns
                named = ((c.flags & _CONTINUE) == 0) & (c.block == index)
                found = c.record_offset[named]
            else:
                found = np.array(
                    [
                        r.record_offset + i * r.stride
                        for r in batch.pages
                        if not r.flags & _CONTINUE and r.block == index
                        for i in range(r.pages)
                    ],
                    np.uint64,
                )
            if len(found):
                self._named += len(found)
                check_count(self._named, int(found[0]))
                self.names.append((block.idstr, found))


def check_count(count: int, offset: int) -> None:
    """Raise LimitError beyond as many places as are held."""
    if count > _MOST_SPLICES:
        raise LimitError(offset, f"over {_MOST_SPLICES} places to edit")


def _path(start: SectionStart) -> str:
    return f"{readable(start.idstr)}[{start.instance_id}]"


def _matches(pattern: str, path: str) -> bool:
    match = path_pattern(pattern)
    return bool(match(path) or match(path.rpartition("[")[0]))


class Editing:
    """What a stream is, as far as edits need it, and the splices so far."""

    def __init__(
        self,
        source: Source,
        access: RandomAccess,
        options: RewriteOptions,
        container: Container | None,
    ) -> None:
        self.source = source
        self.access = access
        self.options = options
        self.container = container
        self.summary = Summary()
        self.devices = Devices()
        self.renames = {old.encode(): new.encode() for old, new in options.renames}
        # Records of a plain stream are written anew.
        self.plain = RAMPlaces() if options.squash else None
        self.places = Places(
            frozenset(() if options.squash else self.renames),
            lambda path: any(_matches(p, path) for p in options.drop_sections),
        )
        self.splices: list[Splice] = []
        # Pages that --patch-ram changes in a plain stream, by block and number.
        self.changed: dict[int, dict[int, Callable[[], bytes]]] = {}
        self.capabilities: tuple[bytes, ...] = ()  # of the configuration as it will be
        self.doubts: tuple[str, ...] = ()
        self._document: Document | None = None
        self._text: bytes | None = None

    @cached_property
    def coverage(self) -> list[BlockCoverage]:
        """Pages that were sent, once all events were taken."""
        return self.summary.coverage_blocks()

    @property
    def folds(self) -> list[Consumer]:
        """What is to take each event of the stream."""
        folds: list[Consumer] = [self.summary, self.devices, self.places]
        return folds if self.plain is None else [*folds, self.plain]

    @cached_property
    def tree(self) -> DeviceTree:
        """The device sections."""
        return self.devices.tree

    @property
    def _vmdesc(self) -> Document:
        if self._document is None:
            self._document = Document(self.tree.document, self.devices.text or b"")
        return self._document

    def add(self, begin: int, end: int, data: bytes, what: str) -> None:
        """Add a splice."""
        self.splices.append(Splice(begin, end, data, what))
        check_count(len(self.splices), begin)

    # ---- the edits -----------------------------------------------------------------------

    def edit(self) -> None:
        """Make the splices of all edits but those of memory."""
        options = self.options
        if options.add_vmdescription is not None:
            self._borrow(options.add_vmdescription)
        self._configure([(p, v) for p, v in options.sets if p.startswith(CONFIGURATION)])
        for path, text in options.sets:
            if not path.startswith(CONFIGURATION):
                self._set(path, text)
        for pattern in options.drop_sections:
            self._drop_section(pattern)
        for pattern in options.drop_subsections:
            self._drop_subsection(pattern)
        self._rename()
        self._describe()

    # The vmdescription of another stream, which describes this one if all sections are the same.
    def _borrow(self, path: str) -> None:
        places = self.places
        if places.vmdescription is not None and not self.options.strip_vmdescription:
            raise EncodeError("the stream has a vmdescription: --strip-vmdescription takes it off")
        if places.end is None or places.end.inferred or (places.packages and not self.plain):
            raise EncodeError(
                "no place for a vmdescription: it stands behind the end of a stream that is "
                "whole, whose device sections are told apart, and that is no postcopy"
            )
        other = Devices()
        with OpenStream(path, max_ram=self.options.max_ram) as opened:
            run(opened.source, Decoder(max_ram=self.options.max_ram), [other])
        if other.text is None:
            raise EncodeError(f"{path}: no vmdescription in it")
        wrong = _differences(self.devices.tree.sections, other.tree.sections)
        if wrong:
            shown = "; ".join(wrong[:_SUGGESTED]) + ("; ..." if len(wrong) > _SUGGESTED else "")
            raise EncodeError(
                f"{path}: its vmdescription is not that of this stream: {len(wrong)} sections "
                f"differ: {shown}"
            )
        self._text = self.devices.text = other.text

    def _configure(self, sets: list[tuple[str, str]]) -> None:
        event = self.places.configuration
        if event is None:
            if not sets and not self.options.mapped:
                return
            raise EncodeError(
                "the stream has no configuration section: machine types up to 2.3 have none"
            )
        old = made = ConfigurationValues(
            event.name, event.target_page_bits, event.capabilities, event.uuid, event.subsections
        )
        for path, text in sets:
            made = self._configured(made, path.removeprefix(CONFIGURATION), text)
        if self.plain is not None:
            made = self._of_plain(made)
        self.capabilities = made.capabilities
        told = []
        for name in ("name", *_SUBSECTIONS):
            before, after = getattr(old, name), getattr(made, name)
            if before != after:
                told.append(f"{CONFIGURATION}{name}: {_shown(before)} -> {_shown(after)}")
        if told:
            self.add(event.offset, event.end, build.configuration(made), "; ".join(told))
            self._redescribe(lambda document: document.configure(made))

    def _configured(self, old: ConfigurationValues, name: str, text: str) -> ConfigurationValues:
        if name == "name":
            if not text:
                raise EncodeError("configuration.name: a machine type has a name")
            return replace(old, name=text.encode())
        if name not in _SUBSECTIONS:
            names = ", ".join(CONFIGURATION + n for n in ("name", *_SUBSECTIONS))
            raise EncodeError(f"nothing is named '{CONFIGURATION}{name}'; there is {names}")
        value: int | bytes | tuple[bytes, ...] | None
        if name == "uuid":
            try:
                value = uuid.UUID(text).bytes if text else None
            except ValueError:
                raise EncodeError(f"configuration.uuid: {text!r} is no UUID") from None
        elif name == "capabilities":
            value = tuple(word.encode() for word in text.split(",") if word)
            for changed in sorted(_OF_RAM & (set(value) ^ set(old.capabilities))):
                raise EncodeError(
                    f"configuration.capabilities: {changed.decode()} says how RAM stands in the "
                    "stream, which would not be so"
                )
        else:
            value = int(text) if re.fullmatch(r"\d{1,3}", text) else None
            if text and value not in TARGET_PAGE_BITS:
                raise EncodeError(f"configuration.target_page_bits: {text!r} is no page size")
            size = self.summary.coverage.page_size if self.summary.coverage else None
            if isinstance(value, int) and size is not None and 1 << value != size:
                raise EncodeError(
                    f"configuration.target_page_bits: RAM of the stream has pages of {size} bytes"
                )
        return _with(old, name, value)

    # Capabilities that say how RAM stands in the stream.
    def _of_plain(self, old: ConfigurationValues) -> ConfigurationValues:
        gone = {CAP_MAPPED_RAM, *((CAP_IGNORE_SHARED,) if self.options.shared_blocks else ())}
        value = [c for c in old.capabilities if c not in gone]
        if self.options.mapped:
            value.append(CAP_MAPPED_RAM)
        same = tuple(value) == old.capabilities
        return old if same else _with(old, "capabilities", tuple(value))

    def _set(self, path: str, text: str) -> None:
        for found in self._find(path):
            for node, data in values.encode(found, text):
                if data != node.raw:
                    what = f"{node.path}: {_shown(_of(node))} -> {_shown(_of(node, data))}"
                    self.add(node.offset, node.offset + node.size, data, what)

    def _find(self, pattern: str) -> list[Node]:
        return find(self.devices, pattern, self.source.name, self.tree)

    def _drop_section(self, pattern: str) -> None:
        parts = [s for s in self.places.parts if _matches(pattern, _path(s.start))]
        if any(s.start.idstr == b"ram" for s in parts):
            raise EncodeError("section 'ram' is the guest's memory, and is not dropped")
        for span in parts:
            kind = SectionType(span.start.section_type).name.removeprefix("QEMU_VM_SECTION_")
            self.add(span.start.offset, span.end, b"", f"{_path(span.start)}: {kind} dropped")
        tree = self.tree
        dropped = [n for n, device in enumerate(tree) if _matches(pattern, device.path)]
        if not dropped and not parts:
            self._find(pattern)
        for number in dropped:
            device = tree[number]
            span = self.places.devices[device.offset]
            self.add(span.start.offset, span.end, b"", f"{device.path}: dropped")
            if device.description:
                self._redescribe(partial(_drop_device, device))

    def _drop_subsection(self, pattern: str) -> None:
        nodes = [n for n in self._find(pattern) if n.type == "subsection"]
        if not nodes:
            raise EncodeError(f"{pattern!r} matches no subsection")
        for node in nodes:
            if any(n is not node and node.path.startswith(n.path + "/") for n in nodes):
                continue  # it goes with the one that it is in
            self.add(node.offset, node.offset + node.size, b"", f"{node.path}: dropped")
            device = next(d for d in self.tree if d.offset <= node.offset < d.offset + d.size)
            self._redescribe(partial(_drop_subsection, device, node))

    # Change the vmdescription. Its framing was checked, not all that is in it.
    def _redescribe(self, change: Callable[[Document], None]) -> None:
        if self.devices.text is None:
            return
        try:
            change(self._vmdesc)
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as exc:
            raise EncodeError("the vmdescription is not of its shape: it cannot be mended") from exc

    def _rename(self) -> None:
        renames = self.renames
        if not renames:
            return
        listed = self.places.block_list
        names = [b.idstr for b in listed.blocks] if listed is not None else []
        for old, new in renames.items():
            if old not in names:
                there = ", ".join(quoted(n) for n in names[:_SUGGESTED])
                raise EncodeError(f"no block {quoted(old)}; the stream has {there or 'none'}")
            if not 0 < len(new) < 256:
                raise EncodeError(f"a block has a name of 1 to 255 bytes, and not {len(new)}")
        after = [renames.get(n, n) for n in names]
        if len(set(after)) < len(set(names)):
            raise EncodeError("two blocks of one name")
        if self.places.flat:
            raise EncodeError("RAM of section version 3 has no names of blocks")
        if self.plain is not None:
            return
        self.check_pages_here("--rename-block", "their packets have the names")
        at = self._entries()
        for name, places in zip(names, at, strict=True):
            if name in renames:
                what = f"block list: {quoted(name)} -> {quoted(renames[name])}"
                self._rename_at(places, name, renames[name], what)
        for name, records in self.places.names:
            for offset in (records + np.uint64(RAM_WORD_SIZE)).tolist():
                what = f"page record: {quoted(name)} -> {quoted(renames[name])}"
                self._rename_at(offset, name, renames[name], what)
        for event in self.places.discards:
            name, ranges = discarded_ranges(event.data) or (b"", ())
            what = f"POSTCOPY_RAM_DISCARD: {quoted(name)} -> {quoted(renames[name])}"
            self.add(event.offset, event.end, build.ram_discard(renames[name], ranges), what)

    def _rename_at(self, offset: int, old: bytes, new: bytes, what: str) -> None:
        self.add(offset, offset + 1 + len(old), build.counted(new), what)

    # Where the entries of the block list stand.
    def _entries(self) -> list[int]:
        event = self.places.block_list
        if event is None or self.places.mapped:
            return [m.offset for m in self.places.mapped]
        sizes = [
            1 + len(b.idstr) + 8 + 8 * (b.host_page_size is not None) + 8 * (b.gpa is not None)
            for b in event.blocks
        ]
        begin = event.offset + RAM_WORD_SIZE
        # x-ignore-shared of 4.0 has a byte more in each entry.
        more = (event.end - begin - sum(sizes)) // len(sizes)
        ends = np.cumsum(np.array(sizes) + more)
        return [begin, *(begin + ends[:-1]).tolist()]

    def check_pages_here(self, option: str, why: str) -> None:
        """Raise EncodeError if pages of the stream are on other channels."""
        if self.summary.pages_elsewhere() or self.summary.pages_withdrawn():
            raise EncodeError(
                f"{option}: pages of this stream travel on other channels (multifd or "
                f"postcopy-preempt): {why}"
            )

    def squash(self, memory: GuestMemory, progress: Progress | None) -> None:
        """Make the splices that make the stream plain.

        Args:
            memory: That of the stream, which is read when they are written.
            progress: Called with (bytes of RAM that are done, those there are).
        """
        plain, listed = self.plain, self.places.block_list
        if plain is None:
            return
        capabilities = self.summary.capabilities
        if self.options.shared_blocks and memory.elsewhere:
            names = ", ".join(quoted(memory.blocks[b].idstr) for b in sorted(memory.elsewhere))
            raise EncodeError(f"shared memory is given for some blocks, but not for {names}")
        for block in memory.from_files:
            self.coverage[block].sent.add_range(0, self.coverage[block].pages)
        last = LastPages(memory, self.coverage, progress)
        last.changed = self.changed
        shared = CAP_IGNORE_SHARED in capabilities and not self.options.shared_blocks
        blocks = plain_blocks(listed.blocks if listed else (), self.renames, shared=shared)
        mapped = partial(write_mapped, last, ignore_shared=shared, elsewhere=memory.elsewhere)
        self.splices += plain_splices(plain, last, blocks, mapped if self.options.mapped else None)
        check_count(len(self.splices), 0)

    # The vmdescription as the edits leave it.
    def _describe(self) -> None:
        event, end = self.places.vmdescription, self.places.end
        strip = self.options.strip_vmdescription
        if strip and event is None:
            raise EncodeError("the stream has no vmdescription to take off")
        text = self._text
        if self._document is not None and self._document.changed and (text or not strip):
            text = self._document.text()
        if text is None:
            if strip and event is not None:
                self.add(event.offset, event.end, b"", "vmdescription: taken off")
            return
        data = build.vmdescription(text)
        if event is not None:
            if text != event.text:
                self.add(event.offset, event.end, data, f"vmdescription: {len(text)} bytes of JSON")
        elif end is not None:
            self.add(end.end, end.end, data, f"vmdescription: put in, {len(text)} bytes of JSON")

    # ---- what all edits have to keep -----------------------------------------------------

    def finish(self) -> list[Splice]:
        """Mend what states lengths, refuse what cannot be mended; return the splices in order."""
        places = self.places
        if self.plain is not None:
            return in_order(self.splices)
        for splice in self.splices if places.mapped else ():
            if splice.delta and splice.begin < places.mapped_end:
                raise EncodeError(
                    f"{splice.what}: pages of mapped-ram stand at fixed places of the file, "
                    "which a longer or shorter value in front of them would move"
                )
        for event, end in places.packages:
            delta = sum(s.delta for s in self.splices if event.end <= s.begin and s.end <= end)
            if delta:
                length = end - event.end
                made = build.packaged(length + delta)
                what = f"PACKAGED: length {length} -> {length + delta}"
                self.add(event.offset, event.end, made, what)
        return in_order(self.splices)


def _with(
    old: ConfigurationValues, name: str, value: int | bytes | tuple[bytes, ...] | None
) -> ConfigurationValues:
    there = {*old.subsections} - {_SUBSECTIONS[name]}
    if value is not None and value != ():
        there.add(_SUBSECTIONS[name])
    order = [s for s in _SUBSECTIONS.values() if s in there]
    fields = {
        "target_page_bits": old.target_page_bits,
        "capabilities": old.capabilities,
        "uuid": old.uuid,
        name: value,
    }
    return ConfigurationValues(old.name, subsections=tuple(order), **fields)  # type: ignore[arg-type]


def _drop_device(device: Node, document: Document) -> None:
    document.drop_device(device.description)


def _drop_subsection(device: Node, node: Node, document: Document) -> None:
    try:
        document.drop_subsection(device.description, node.description)
    except EncodeError as error:
        raise EncodeError(f"{node.path}: {error}") from error


def _of(node: Node, data: bytes | None = None) -> object:
    if data is not None:
        node = replace(node, _body=memoryview(data))
    return node.value


def _shown(value: object) -> str:
    match value:
        case None | ():
            return "none"
        case bool():
            return str(value).lower()
        case int():
            return f"{value:#x}"
        case bytes():
            text = value.rstrip(b"\0").decode("latin-1")
            short = text if text.isascii() and text.isprintable() and text else value.hex()
            return short if len(short) <= 64 else short[:61] + "..."
        case tuple():
            return ",".join(readable(v) for v in value)
    return str(value)


# How the sections of two streams differ, in words.
def _differences(mine: Iterable[Section], other: Iterable[Section]) -> list[str]:
    def facts(sections: Iterable[Section]) -> list[tuple[str, int, int]]:
        return [
            (f"{readable(s.idstr)}[{s.instance_id}]", s.version_id, len(s.body)) for s in sections
        ]

    ours, theirs = facts(mine), facts(other)
    left = list(theirs)
    wrong = []
    for fact in ours:
        if fact in left:
            left.remove(fact)
        else:
            wrong.append("{} version {} of {} bytes is not there".format(*fact))
    wrong += ["{} version {} of {} bytes is not here".format(*fact) for fact in left]
    return wrong
