"""`devices`, `get` and `cpus`: device state by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, OutputError
from vmstream.guest.cpus import cpus
from vmstream.guest.devices import DeviceTree, Node, Section
from vmstream.guest.meaning import meaning
from vmstream.guest.schema import MAX_SCHEMA, StaticSchema
from vmstream.guest.values import TEXTS
from vmstream.ops.pipeline import Findings, Progress, run
from vmstream.ops.quick import quick_events
from vmstream.report.models.cpus import CPUS_SCHEMA, CPUReport, CPUsReport
from vmstream.report.models.devices import DEVICES_SCHEMA, DevicesReport, NodeReport
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Anomaly,
    Configuration,
    EndOfStream,
    Event,
    LiveRecord,
    Payload,
    SectionStart,
    VMDescription,
)
from vmstream.transport.source import Source
from vmstream.wire.constants import SectionType
from vmstream.wire.live import BlockProgress, BodyEnd

# White space that may stand ahead of JSON.
_BLANKS = 64

# Names that a message suggests.
_SUGGESTED = 5


class LiveContent:
    """What came of an iterable section other than RAM, summed up.

    Attributes:
        decoded: By its records, without those of progress; else by all its bytes.
    """

    def __init__(self) -> None:
        self.decoded = True
        self._sum = hashlib.sha256()
        self._goes_on = False

    def record(self, event: LiveRecord) -> None:
        """Take a record, or a stretch of one."""
        if isinstance(event.record, (BlockProgress, BodyEnd)):
            return
        if not self._goes_on:
            self._sum.update(repr(event.record).encode())
        self._goes_on = not event.final
        self._sum.update(event.data)

    def payload(self, event: Payload) -> None:
        """Take bytes that nothing is known of."""
        self.decoded = False
        self._sum.update(event.data)

    @property
    def sha256(self) -> str:
        """The sum so far."""
        return self._sum.hexdigest()


class Devices:
    """Fold: device sections with their bytes, and what describes them.

    Attributes:
        findings: Anomalies so far.
        machine: Machine type; `None` if the stream does not say.
        configuration: The configuration section; `None` if there is none.
        live: Starts of the iterable sections, MAX_LIVE at the most.
        contents: What came of those other than RAM, by section id.
        whole: All of the stream was seen, not head and tail alone.
        text: The vmdescription; `None` if there is none.
        ended: EOF was seen.
        schema: The vmdescription of another stream, for a stream without.
        static: What -dump-vmstate wrote, in its place.

    Memory:
        The bodies, which the decoder bounds.
    """

    MAX_LIVE = 1000

    def __init__(self) -> None:
        self.findings = Findings()
        self.machine: str | None = None
        self.configuration: Configuration | None = None
        self.live: list[SectionStart] = []
        self.contents: dict[int, LiveContent] = {}
        self.whole = True
        self._content: LiveContent | None = None
        self.text: bytes | None = None
        self.ended = False
        self.schema: bytes | None = None
        self.static: StaticSchema | None = None
        self._sections: list[Section] = []
        self._start: SectionStart | None = None
        self._body = bytearray()
        self._offset = 0

    def on(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Anomaly):
            self.findings.on(event)
        elif isinstance(event, SectionStart):
            full = event.section_type == SectionType.QEMU_VM_SECTION_FULL
            self._start = event if full else None
            live = event.section_type == SectionType.QEMU_VM_SECTION_START
            if live and len(self.live) < self.MAX_LIVE:
                self.live.append(event)
                if event.idstr != b"ram":
                    self.contents[event.section_id] = LiveContent()
            self._content = None if full else self.contents.get(event.section_id)
            self._body.clear()
            self._offset = event.end
        elif isinstance(event, LiveRecord) and self._content is not None:
            self._content.record(event)
        elif isinstance(event, Payload) and self._content is not None:
            self._content.payload(event)
        elif isinstance(event, Payload) and self._start is not None:
            self._body += event.data
            if event.final:
                start = self._start
                self._sections.append(
                    Section(
                        start.idstr,
                        start.instance_id,
                        start.version_id,
                        self._offset,
                        bytes(self._body),
                    )
                )
        elif isinstance(event, Configuration):
            self.machine = readable(event.name)
            self.configuration = event
        elif isinstance(event, VMDescription):
            self.text = event.text
        elif isinstance(event, EndOfStream):
            self.ended = True

    @property
    def tree(self) -> DeviceTree:
        """The devices so far."""
        if self.text is None and self.schema is not None:
            return DeviceTree(self._sections, self.schema, borrowed=True)
        return DeviceTree(self._sections, self.text, static=self.static)

    @property
    def described(self) -> str:
        """Where the names come from: 'stream', 'schema' or 'dump-vmstate' (inferred), or 'none'."""
        if self.text is not None:
            return "stream"
        if self.static is not None:
            return "dump-vmstate"
        return "none" if self.schema is None else "schema"

    @property
    def exit_code(self) -> int:
        """Exit status: that of the findings, or 1 for a stream that does not end."""
        return self.findings.exit_code or (0 if self.ended else EXIT_FINDINGS)


def read_devices(
    source: Source,
    *,
    page_size: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
    container: Container | None = None,
) -> Devices:
    """Read the device sections of a stream: head and tail alone where that is enough.

    Args:
        source: The input.
        page_size: Target page size in bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        progress: Called with (offset, size or None).
        container: What is around the stream.

    Raises:
        StreamError: The input is no migration stream, or damaged ahead of the first device.
    """
    if source.seekable and source.size is not None:
        found = Devices()
        for event in quick_events(source, Decoder(page_size, max_ram=max_ram)):
            found.on(event)
        if found.ended and found.text is not None and not found.findings.error:
            found.whole = False
            return found
    found = Devices()
    run(source, Decoder(page_size, max_ram=max_ram), [found], progress, container)
    if found.findings.error is not None and not found.tree:
        raise found.findings.error
    return found


def with_schema(found: Devices, schema: Source, container: Container | None) -> None:
    """Let the vmdescription of another stream, or a file of -dump-vmstate, name the state.

    Raises:
        OutputError: The other has none either, or is JSON of another kind.
        StreamError: The other is no stream.
    """
    if found.text is not None:
        return
    if is_static(schema):
        _with_static(found, schema)
        return
    other = read_devices(schema, container=container)
    if other.text is None:
        raise OutputError(f"{schema.name}: no vmdescription that could be a schema")
    found.schema = other.text
    lost = found.tree.undescribed
    told = f"; none of the same version and size for {', '.join(lost[:_SUGGESTED])}" if lost else ""
    message = f"names are inferred from the vmdescription of {schema.name}{told}"
    found.findings.on(Anomaly(0, 0, "info", "schema", message))


def is_static(source: Source) -> bool:
    """Whether an input begins as JSON does."""
    return bytes(source.window(0, 1)[0][:_BLANKS]).lstrip().startswith(b"{")


def load_static(schema: Source) -> StaticSchema:
    """Read a file of -dump-vmstate. Raises OutputError if it is none."""
    text, at_end = bytearray(), False
    while not at_end and len(text) <= MAX_SCHEMA:
        view, begin, at_end = schema.window(len(text), 1)
        text += view[len(text) - begin :]
    try:
        return StaticSchema.load(bytes(text))
    except ValueError as exc:
        raise OutputError(f"{schema.name}: no schema: {exc}") from exc


def _with_static(found: Devices, schema: Source) -> None:
    found.static = load_static(schema)
    tree = found.tree
    lost = tree.undescribed
    unsettled = [d.path for d in tree if any(n.type == "ambiguous" for n in d.walk())]
    parts = [f"names are inferred from {schema.name}, which -dump-vmstate wrote"]
    if found.static.machine not in (None, found.machine):
        parts.append(f"it is of machine type {found.static.machine}")
    if not found.static.counted:
        parts.append("it does not state the lengths of arrays, as that of QEMU 8.1 and later does")
    for what, paths in (("not settled", unsettled), ("no names", lost)):
        if paths:
            more = ", ..." if len(paths) > _SUGGESTED else ""
            shown = ", ".join(paths[:_SUGGESTED])
            parts.append(f"{what} in {len(paths)} of {len(tree)} devices: {shown}{more}")
    found.findings.on(Anomaly(0, 0, "info", "schema", "; ".join(parts)))


def find(found: Devices, pattern: str, name: str, tree: DeviceTree | None = None) -> list[Node]:
    """Return the nodes that a pattern matches, of `found.tree` or one that was made of it before.

    Raises:
        StreamError: There are none in what could be read of the stream.
        OutputError: There are none; with names that are like it.
    """
    tree = found.tree if tree is None else tree
    nodes = list(tree.find(pattern))
    if nodes:
        return nodes
    if found.findings.error is not None:
        raise found.findings.error
    first, _, rest = pattern.partition("/")
    devices = list(tree.find(first)) or list(tree)
    names = [n.path for d in devices for n in (d.children if rest and len(devices) < 4 else (d,))]
    shown = ", ".join(names[:_SUGGESTED]) + (", ..." if len(names) > _SUGGESTED else "")
    raise OutputError(f"{name}: nothing is named {pattern!r}; there is {shown or 'no device'}")


def devices_report(
    source: Source, found: Devices, nodes: Iterable[Node], *, deep: bool = True
) -> DevicesReport:
    """Make the document of nodes and, if `deep`, all that is in them."""
    listed: dict[str, NodeReport] = {}
    for top in nodes:
        for node in _walk(top) if deep else (top,):
            listed.setdefault(node.path, node_report(node))
    return DevicesReport(
        DEVICES_SCHEMA,
        source.name,
        found.machine,
        found.described,
        list(listed.values()),
        found.findings.report(),
    )


# A node and what is below it, but for the numbers of arrays, which are with the array.
def _walk(node: Node) -> Iterable[Node]:
    yield node
    if numbers_of(node) is None:
        for child in node.children:
            yield from _walk(child)


def numbers_of(node: Node) -> list[int] | None:
    """Return the elements of an array of numbers; `None` for any other node."""
    if node.type != "array" or not node.children:
        return None
    values = [c.value for c in node.children]
    return (
        [int(v) for v in values if isinstance(v, int)]
        if all(isinstance(v, int) for v in values)
        else None
    )


def plain_values(nodes: Iterable[Node], *, as_hex: bool = False) -> list[tuple[str, str]]:
    """Return path and value of each node as text: one number, word or string of hex.

    Of what has no value of its own those in it are given; of an array of numbers one line.
    """
    found: dict[str, str] = {}
    for top in nodes:
        for node in _walk(top):
            numbers = numbers_of(node)
            if numbers is not None:
                found[node.path] = " ".join(_number(n, as_hex=as_hex) for n in numbers)
            elif not node.children or node is top:
                text = _plain(node, as_hex=as_hex)
                if text is not None:
                    found[node.path] = text
    return list(found.items())


def _number(value: int, *, as_hex: bool) -> str:
    return f"{value:#x}" if as_hex else str(value)


def _plain(node: Node, *, as_hex: bool) -> str | None:
    value = node.value
    if node.name in TEXTS and (text := meaning(node)) is not None:
        return text
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is not None:
        return _number(value, as_hex=as_hex)
    return "null" if node.type == "nullptr" else None


def node_report(node: Node) -> NodeReport:
    """Account for one node."""
    value = node.value
    return NodeReport(
        node.path,
        node.type,
        node.offset,
        node.size,
        node.version,
        value.hex() if isinstance(value, bytes) else numbers_of(node) if value is None else value,
        meaning(node),
    )


def cpus_report(source: Source, found: Devices) -> CPUsReport:
    """Make the document of the CPUs.

    Raises:
        OutputError: There is none whose registers are known.
    """
    listed = [
        CPUReport(c.instance_id, c.architecture, c.mode, list(c.flags), c.halted, c.groups)
        for c in cpus(found.tree)
    ]
    if not listed:
        why = "no cpu section is known"
        if found.text is None:
            why = "the stream has no vmdescription; --schema takes that of another one"
            if found.schema is not None:
                why = "that of the other stream describes none of its cpu sections"
            if found.static is not None:
                why += ", not what -dump-vmstate writes, which has no registers"
        raise OutputError(f"{source.name}: no CPU to show: {why}")
    return CPUsReport(CPUS_SCHEMA, source.name, found.machine, listed, found.findings.report())
