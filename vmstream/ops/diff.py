"""`diff`: what two streams, or a stream and a file of guest memory, do not have alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from vmstream.container.open import OpenStream, kind_of_foreign
from vmstream.errors import OutputError, StreamError, UnsupportedError
from vmstream.guest.cpus import CPU, cpus
from vmstream.guest.devices import DeviceTree, Node, path_pattern
from vmstream.guest.imageranges import Image, image_ranges
from vmstream.guest.meaning import meaning
from vmstream.ops.channels import Channels
from vmstream.ops.devices import Devices, LiveContent, read_devices
from vmstream.ops.diffram import Comparable, compare, two_streams, with_image
from vmstream.ops.memory import GuestMemory, MemoryOptions, index_memory
from vmstream.ops.pipeline import Findings, Progress, events, run
from vmstream.report.models.diff import (
    DIFF_SCHEMA,
    DiffFact,
    DiffField,
    DiffInput,
    DiffLive,
    DiffRegister,
    DiffReport,
    DiffSection,
)
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Event
from vmstream.transport.source import RandomAccess, Source
from vmstream.version import __version__
from vmstream.wire.constants import DEFAULT_PAGE_SIZE, QEMU_VM_FILE_MAGIC

MAX_FIELDS = 1 << 14
MAX_REGISTERS = 4096

# Bytes that tell what an input is.
_MAGIC = 16

# Bytes of a value that are shown.
_SHOWN = 64

# What goes on by itself while a guest runs. A name is enough to group by, not to leave out.
_CLOCKS = tuple(
    path_pattern(p)
    for p in (
        "**clock*",
        "**time*",
        "**tsc*",
        "**expir*",
        "hpet[*/hpet_counter",
        "mc146818rtc[*/base_rtc",
        "mc146818rtc[*/last_update",
    )
)


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """What is compared.

    Attributes:
        memory: How memory is indexed, of both.
        page_size: Target page size, bytes, if the user states it.
        ram: Compare RAM.
        devices: Compare what is not RAM.
        ignore: Patterns of paths that are left out, and what is in them.
        rows: Keep the bytes of RAM that differ.
    """

    memory: MemoryOptions = field(default_factory=MemoryOptions)
    page_size: int | None = None
    ram: bool = True
    devices: bool = True
    ignore: tuple[str, ...] = ()
    rows: bool = False


@dataclass(frozen=True, slots=True)
class _Side:
    name: str
    devices: Devices | None = None
    memory: GuestMemory | None = None
    image: tuple[Image, RandomAccess] | None = None

    @property
    def findings(self) -> Findings:
        """What was odd: all that the memory has noted, or else the devices."""
        found = Findings()
        kept = self.memory.findings if self.memory is not None else ()
        if self.memory is None and self.devices is not None:
            kept = tuple(self.devices.findings.kept)
        for anomaly in kept:
            found.on(anomaly)
        return found

    def report(self, tree: DeviceTree | None) -> DiffInput:
        """Account for it."""
        devices = self.devices
        return DiffInput(
            self.name,
            "stream" if self.image is None else self.image[0].format,
            None if devices is None else devices.machine,
            None if self.memory is None else self.memory.page_size,
            "none" if devices is None or tree is None else devices.described,
            self.findings.report(),
        )


def diff(
    a: OpenStream,
    b: OpenStream,
    options: DiffOptions,
    channels: tuple[Channels | None, Channels | None] = (None, None),
    progress: Callable[[str], Progress | None] = lambda _what: None,
) -> tuple[DiffReport, int]:
    """Compare two inputs; at least one is a stream, the other can be a file of guest memory.

    Args:
        a: The first.
        b: The second.
        options: What is compared.
        channels: Recorded beside the main one, of A and of B.
        progress: Given what is done, returns what is called with (done, of how many or None).

    Returns:
        The account, and the exit status of the faults that were read over: 0 if there were none.

    Raises:
        OutputError: None is a stream; or memory of a stream whose map is not known is to be
            compared with an image.
        StreamError: An input is damaged, and `partial` was not asked for.
        UnsupportedError: An input cannot be read here and there, and there is no room for a copy.

    Memory:
        As `index_memory`, twice, and device state; 64 MiB at the most for what is compared.
    """
    with ExitStack() as held:
        sides = []
        for opened, beside, letter in zip((a, b), channels, "AB", strict=True):
            try:
                side = _read(opened, beside, options, held, progress(f"reading {letter}"))
            except StreamError as error:
                named = f"{opened.source.name}, {error.context}" if error.context else ""
                error.context = named or opened.source.name
                raise
            sides.append(side)
        first, second = sides
        if not options.ram and (first.image is not None or second.image is not None):
            raise OutputError("--devices-only compares two streams: an image has memory alone")
        return _report(first, second, options, progress("comparing"))


def _read(
    opened: OpenStream,
    channels: Channels | None,
    options: DiffOptions,
    held: ExitStack,
    progress: Progress | None,
) -> _Side:
    source = opened.source
    image = _image(source)
    if image is not None:
        return _Side(source.name, image=image)
    if not options.ram and channels is None:
        found = read_devices(
            source,
            page_size=options.page_size,
            max_ram=options.memory.max_ram,
            progress=progress,
            container=opened.container,
        )
        if found.contents and not found.whole:
            # Their content stands between the parts of RAM.
            found = Devices()
            decoder = Decoder(options.page_size, max_ram=options.memory.max_ram)
            run(source, decoder, [found], progress, opened.container)
        if found.findings.error is not None and not options.memory.partial:
            raise found.findings.error
        return _Side(source.name, found)
    devices = Devices()
    partial = options.memory.partial
    decoder = Decoder(options.page_size, strict=not partial, max_ram=options.memory.max_ram)
    stream = events(source, decoder, progress, opened.container, channels)
    memory = index_memory(_seen(stream, devices), source, options.memory, channels)
    return _Side(source.name, devices, held.enter_context(memory))


# Show a fold what passes.
def _seen(stream: Iterable[Event], fold: Devices) -> Iterator[Event]:
    for event in stream:
        fold.on(event)
        yield event


# What is no stream, nor anything known that could have one in it.
def _image(source: Source) -> tuple[Image, RandomAccess] | None:
    view, base, _ = source.window(0, 1)
    head = bytes(view[-base:][:_MAGIC])
    if not head or head.startswith(QEMU_VM_FILE_MAGIC) or kind_of_foreign(head):
        return None
    if not source.seekable or source.size is None or not isinstance(source, RandomAccess):
        raise UnsupportedError(
            0,
            "no migration stream, and an image of memory is read where it stands in its file",
            found=head[:8].hex(),
            advice="save it to a file, unpacked",
        )
    size, file = source.size, source

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(min(length, max(0, size - offset)))
        return bytes(buffer[: file.read_into(offset, memoryview(buffer))])

    return image_ranges(read, size), file


def _report(
    a: _Side, b: _Side, options: DiffOptions, progress: Progress | None
) -> tuple[DiffReport, int]:
    found = _Found(options.ignore)
    trees = None
    if options.devices and a.devices is not None and b.devices is not None:
        trees = _trees(a.devices, b.devices)
        found.facts(a.devices, b.devices)
        found.sections(*trees)
        found.live(a.devices, b.devices)
        found.cpus(*trees)
    if a.memory is not None and b.memory is not None and options.devices:
        found.fact("page size", str(a.memory.page_size), str(b.memory.page_size))
    ram, unequal = None, False
    if options.ram:
        these = _comparable(a, b)
        sizes = [s.memory.page_size for s in (a, b) if s.memory is not None]
        ram = compare(these, min(sizes, default=DEFAULT_PAGE_SIZE), rows=options.rows,
                      progress=progress)  # fmt: skip
        unequal = these.unequal or ram.pages > 0
    told = [f for f in found.told if not f.transport]
    live = found.live_changed or found.live_left_out
    state = found.changed or found.field_count or found.register_count or live
    same = not (told or state or unequal)
    report = DiffReport(
        DIFF_SCHEMA,
        f"vmstream {__version__}",
        a.report(trees[0] if trees else None),
        b.report(trees[1] if trees else None),
        same,
        found.told,
        found.changed,
        found.registers,
        found.register_count,
        found.fields,
        found.field_count,
        found.clock_count,
        found.ignored_count,
        found.common,
        found.live_changed,
        found.live_left_out,
        ram,
    )
    faults = [s.findings.error for s in (a, b)]
    return report, next((e.exit_code for e in faults if e is not None), 0)


# A stream without a description has its names from the other.
def _trees(a: Devices, b: Devices) -> tuple[DeviceTree, DeviceTree]:
    if a.text is None:
        a.schema = b.text
    elif b.text is None:
        b.schema = a.text
    return a.tree, b.tree


def _comparable(a: _Side, b: _Side) -> Comparable:
    if a.memory is not None and b.memory is not None:
        return two_streams(a.memory, b.memory)
    if a.memory is not None and b.image is not None:
        return with_image(a.memory, *b.image, first=True)
    if b.memory is not None and a.image is not None:
        return with_image(b.memory, *a.image, first=False)
    raise OutputError(
        f"neither {a.name} nor {b.name} is a migration stream: cmp compares two images"
    )


class _Found:
    """What differs in all that is not RAM."""

    def __init__(self, ignore: Sequence[str]) -> None:
        self._ignore = [path_pattern(p) for p in ignore]
        self.told: list[DiffFact] = []
        self.changed: list[DiffSection] = []
        self.fields: list[DiffField] = []
        self.field_count = self.clock_count = self.ignored_count = 0
        self.registers: list[DiffRegister] = []
        self.register_count = 0
        self.common: int | None = None
        self.live_changed: list[DiffLive] = []
        self.live_left_out: list[str] = []

    def facts(self, a: Devices, b: Devices) -> None:
        """Compare the configuration."""
        ours, theirs = a.configuration, b.configuration
        self.fact("machine", a.machine, b.machine)
        uuids = [c.uuid.hex() if c is not None and c.uuid else None for c in (ours, theirs)]
        self.fact("uuid", *uuids)
        names = [
            None if c is None else ", ".join(sorted(map(readable, c.capabilities))) or None
            for c in (ours, theirs)
        ]
        self.fact("capabilities", *names, transport=True)

    def fact(self, name: str, a: str | None, b: str | None, *, transport: bool = False) -> None:
        """Compare one."""
        if a != b:
            self.told.append(DiffFact(name, transport, a, b))

    def sections(self, a: DeviceTree, b: DeviceTree) -> None:
        """Compare the device sections, by name and instance."""
        theirs = {node.path: node for node in b}
        self.common = 0
        for node in a:
            other = theirs.pop(node.path, None)
            self._section(node.path, node, other)
            if other is not None:
                self.common += 1
                if node.raw != other.raw:
                    self._pair(node, other)
        for node in theirs.values():
            self._section(node.path, None, node)

    def live(self, a: Devices, b: Devices) -> None:
        """Compare the iterable sections other than RAM: their records, or else their bytes."""
        ours, theirs = ({f"{readable(s.idstr)}[{s.instance_id}]": s for s in side.live}
                        for side in (a, b))  # fmt: skip
        for path in dict.fromkeys([*ours, *theirs]):
            one, two = ours.get(path), theirs.get(path)
            version_a = None if one is None else one.version_id
            version_b = None if two is None else two.version_id
            if one is None or two is None or version_a != version_b:
                self._change(path, (version_a, version_b), (None, None))
            elif path != "ram[0]":
                self._live(path, a.contents.get(one.section_id), b.contents.get(two.section_id))

    def _live(self, path: str, a: LiveContent | None, b: LiveContent | None) -> None:
        if a is None or b is None or a.decoded != b.decoded:
            self.live_left_out.append(path)
        elif a.sha256 != b.sha256:
            if self._ignored(path):
                self.ignored_count += 1
                return
            by = "records" if a.decoded else "bytes"
            self.live_changed.append(DiffLive(path, by, a.sha256, b.sha256))

    def cpus(self, a: DeviceTree, b: DeviceTree) -> None:
        """Compare registers by their names."""
        ours, theirs = ({c.instance_id: c for c in cpus(tree)} for tree in (a, b))
        for number in ours.keys() & theirs.keys():
            if self._ignored(f"cpu[{number}]"):
                continue
            one, two = _registers(ours[number]), _registers(theirs[number])
            for name in dict.fromkeys([*one, *two]):
                if one.get(name) != two.get(name):
                    self.register_count += 1
                    if len(self.registers) < MAX_REGISTERS:
                        values = one.get(name), two.get(name)
                        self.registers.append(DiffRegister(number, name, *values))

    def _section(self, path: str, a: Node | None, b: Node | None) -> None:
        if a is None or b is None or a.version != b.version:
            versions = (None if a is None else a.version), (None if b is None else b.version)
            sizes = (None if a is None else a.size), (None if b is None else b.size)
            self._change(path, versions, sizes)

    def _change(
        self,
        path: str,
        versions: tuple[int | None, int | None],
        sizes: tuple[int | None, int | None],
    ) -> None:
        if self._ignored(path):
            self.ignored_count += 1
            return
        status = "added" if versions[0] is None else "removed" if versions[1] is None else "version"
        self.changed.append(DiffSection(path, status, *versions, *sizes))

    # Fields of two nodes of one name whose bytes differ.
    def _pair(self, a: Node, b: Node) -> None:
        if not a.children or not b.children or a.value is not None:
            self._field(a, b)
            return
        theirs = _by_name(b.children)
        for name, node in _by_name(a.children).items():
            other = theirs.pop(name, None)
            if other is None:
                self._field(node, None)
            elif node.raw != other.raw:
                self._pair(node, other)
        for node in theirs.values():
            self._field(None, node)

    def _field(self, a: Node | None, b: Node | None) -> None:
        node = a or b
        if node is None:
            return
        if self._ignored(node.path):
            self.ignored_count += 1
            return
        clock = any(match(node.path) for match in _CLOCKS)
        self.field_count += 1
        self.clock_count += clock
        if len(self.fields) < MAX_FIELDS:
            self.fields.append(_field_report(node, a, b, "clocks" if clock else None))

    # A pattern of a path is one of all that is in it; the instance may be left out.
    def _ignored(self, path: str) -> bool:
        if not self._ignore:
            return False
        device, _, rest = path.partition("[")
        short = device + rest.partition("]")[2]
        for text in (path, short):
            parts = text.split("/")
            above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
            if any(match(one) for match in self._ignore for one in above):
                return True
        return False


def _by_name(nodes: Iterable[Node]) -> dict[tuple[str, int], Node]:
    seen: dict[str, int] = {}
    found = {}
    for node in nodes:
        seen[node.name] = seen.get(node.name, 0) + 1
        found[node.name, seen[node.name]] = node
    return found


def _field_report(node: Node, a: Node | None, b: Node | None, group: str | None) -> DiffField:
    at = _first_shown(a, b)
    return DiffField(
        node.path,
        node.type,
        group,
        _value(a, at),
        _value(b, at),
        None if a is None else meaning(a),
        None if b is None else meaning(b),
        at,
        None if a is None else a.size,
        None if b is None else b.size,
        None if a is None else a.offset,
        None if b is None else b.offset,
    )


def _registers(cpu: CPU) -> dict[str, int]:
    return {name: value for group in cpu.groups.values() for name, value in group.items()}


# Of bytes that are more than are shown: where they begin to differ.
def _first_shown(a: Node | None, b: Node | None) -> int:
    if a is None or b is None or max(a.size, b.size) <= _SHOWN:
        return 0
    ours, theirs = a.raw, b.raw
    least = min(len(ours), len(theirs))
    return next((i for i in range(least) if ours[i] != theirs[i]), least)


def _value(node: Node | None, at: int) -> int | bool | str | None:
    if node is None:
        return None
    value = node.value
    if value is None and node.type != "nullptr":
        value = node.raw
    return value[at : at + _SHOWN].hex() if isinstance(value, bytes) else value
