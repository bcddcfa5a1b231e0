"""`report`: all that one reading of a stream tells, bounded to what a page can show."""

from __future__ import annotations

from itertools import groupby

from vmstream.container.open import OpenStream
from vmstream.errors import OutputError
from vmstream.guest.devices import Node
from vmstream.guest.index import most_pages
from vmstream.guest.meaning import meaning
from vmstream.ops.channels import Channels
from vmstream.ops.convergence import ACPITables, map_of, pass_reports
from vmstream.ops.devices import cpus_report, numbers_of
from vmstream.ops.extract import MapEvidence
from vmstream.ops.inspect import Summary
from vmstream.ops.pipeline import Progress
from vmstream.ops.rammap import LastKinds, ram_map
from vmstream.ops.verify import described, examine, judge
from vmstream.report.models.cpus import CPUReport
from vmstream.report.models.names import readable
from vmstream.report.models.report import ExtentReport, FieldReport, StreamReport
from vmstream.stream.events import (
    Anomaly,
    ChannelEvent,
    Command,
    Configuration,
    EndOfStream,
    Event,
    FileHeader,
    Gap,
    Padding,
    SectionFooter,
    SectionStart,
    VMDescription,
)
from vmstream.version import __version__
from vmstream.wire.constants import SectionType, command_name

# What a page shows of what a stream can make as long as it likes.
MOST_FINDINGS = 200
MOST_EXTENTS = 1000
MOST_CPUS = 64
# Fields, in all and of one device; they are shared out evenly where there are too many.
MOST_FIELDS = 20_000
_MOST_OF_DEVICE = 4_000
_MOST_DEVICES = 2_000
# Bytes of a value, numbers of an array, and numbers that are looked at for that.
_MOST_BYTES = 32
_MOST_NUMBERS = 24
_MOST_ARRAY = 4096

_KIND_OF_EVENT: dict[type, tuple[str, str]] = {
    FileHeader: ("frame", "header"),
    Configuration: ("frame", "configuration"),
    EndOfStream: ("frame", "end of stream"),
    VMDescription: ("description", "vmdescription"),
    Padding: ("frame", "padding"),
    Gap: ("gap", "not read"),
}


class Extents:
    """Fold: which bytes of the main channel belong to what.

    Attributes:
        found: In order, adjacent; behind MOST_EXTENTS the last one has all the rest.
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, str, int, int]] = []
        self._section = ("frame", "")

    def on(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, (Anomaly, ChannelEvent)) or event.end == event.offset:
            return
        if isinstance(event, SectionStart):
            live = event.section_type != SectionType.QEMU_VM_SECTION_FULL
            kind = ("ram" if event.idstr == b"ram" else "live") if live else "device"
            instance = f"[{event.instance_id}]" if event.instance_id else ""
            self._section = kind, readable(event.idstr) + instance
        what = _KIND_OF_EVENT.get(type(event), self._section)
        if isinstance(event, Command):
            what = "frame", command_name(event.cmd)
        begin, last = event.offset, self._found[-1] if self._found else None
        if last is not None and (last[:2] == what or len(self._found) == MOST_EXTENTS):
            begin = last[2]
            self._found.pop()
            if last[:2] != what:
                what = "frame", "and more"
        self._found.append((*what, begin, event.end))
        if isinstance(event, SectionFooter) and self._section[0] == "device":
            self._section = ("frame", "")

    @property
    def found(self) -> list[ExtentReport]:
        """What there is."""
        return [ExtentReport(*extent) for extent in self._found]


class _Fields:
    """Takes fields over, so many and no more."""

    def __init__(self, left: int) -> None:
        self.left = left

    def of(self, node: Node) -> FieldReport:
        """Return a node and what is in it."""
        self.left -= 1
        large = node.type == "array" and int(node.description.get("array_len", 0)) > _MOST_ARRAY
        numbers = None if large else numbers_of(node)
        if numbers is not None:
            shown = numbers[:_MOST_NUMBERS]
            return _leaf(node, shown, cut=len(shown) < len(numbers))
        children = () if large and "struct" not in node.description else node.children
        value = None if children or node.type == "nullptr" else _value(node)
        if not children:
            return _leaf(node, value, cut=isinstance(value, str) and node.size > _MOST_BYTES)
        fields: list[FieldReport] = []
        left_out = 0
        # Elements of nothing but zeros are told once.
        for zeros, run in groupby(children, lambda c: node.type == "array" and not any(c.raw)):
            alike = list(run)
            if self.left <= 0:
                left_out += len(alike)
            elif zeros and len(alike) > 1:
                self.left -= 1
                first, size = alike[0], sum(c.size for c in alike)
                fields.append(
                    FieldReport(first.name, "zeros", first.offset, size, until=alike[-1].name)
                )
            else:
                for child in alike:
                    if self.left > 0:
                        fields.append(self.of(child))
                    else:
                        left_out += 1
        return FieldReport(
            node.name, node.type, node.offset, node.size,
            meaning=meaning(node), fields=fields, left_out=left_out, version=node.version,
        )  # fmt: skip


def _leaf(node: Node, value: int | str | list[int] | None, *, cut: bool) -> FieldReport:
    return FieldReport(
        node.name, node.type, node.offset, node.size, value, cut, meaning(node),
        version=node.version,
    )  # fmt: skip


def _value(node: Node) -> int | str | None:
    if node.size > _MOST_BYTES:
        return node.raw[:_MOST_BYTES].hex()
    value = node.value
    return value.hex() if isinstance(value, bytes) else value


def _devices(tree: list[Node]) -> list[FieldReport]:
    left, made = MOST_FIELDS, []
    # Small devices first: what they leave is for the large ones.
    for rank, node in enumerate(sorted(tree, key=lambda n: n.size)):
        share = _Fields(min(_MOST_OF_DEVICE, left // max(1, len(tree) - rank)))
        before = share.left
        made.append(share.of(node))
        left -= before - share.left
    return sorted(made, key=lambda f: f.offset)


def read_report(
    opened: OpenStream,
    channels: Channels | None = None,
    *,
    page_size: int | None = None,
    below_4g: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> tuple[StreamReport, int]:
    """Read a stream once, as far as it goes, and account for it.

    Args:
        opened: The stream.
        channels: Recorded beside the main one.
        page_size: Target page size in bytes, to overrule what the stream shows.
        below_4g: Size of RAM below 4 GiB, bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state, and that is looked at.
        progress: Called with (offset, size or None).

    Returns:
        The account, and the exit status, as of `inspect`.

    Raises:
        StreamError: The input is no migration stream at all. Any later fault is in the account.
        LimitError: There is more RAM than is looked at.

    Memory:
        Device state, which the decoder bounds; 7 bytes a page.
    """
    summary, evidence, extents = Summary(), MapEvidence(), Extents()
    seen, tables = LastKinds(summary, most_pages(max_ram)), ACPITables(summary, channels)
    found = examine(
        opened.source,
        page_size=page_size,
        progress=progress,
        container=opened.container,
        channels=channels,
        max_ram=max_ram,
        summary=summary,
        beside=[evidence, seen, tables, extents],
    )
    if summary.findings.error is not None and not summary.read:
        raise summary.findings.error
    place = map_of(summary, evidence, tables, below_4g)
    cpus: list[CPUReport] = []
    no_cpus = None
    try:
        cpus = cpus_report(opened.source, found.devices).cpus
    except OutputError as error:
        no_cpus = str(error)
    weight = {"error": 0, "warning": 1}
    findings = sorted(summary.findings.kept, key=lambda a: (weight.get(a.severity, 2), a.offset))
    tree = list(found.devices.tree)[:_MOST_DEVICES]
    report = StreamReport(
        inspect=summary.report(
            opened.source, found.decoder, container=opened.container, channels=channels
        ),
        verdict=judge(summary)[0],
        findings=[described(a) for a in findings[:MOST_FINDINGS]],
        finding_count=summary.findings.count,
        passes=pass_reports(summary, seen.sent),
        map=ram_map(summary, seen, place) if summary.blocks else None,
        doubts=[str(place)] if isinstance(place, OutputError) else list(place.doubts),
        extents=extents.found,
        devices=_devices(tree),
        described=found.devices.described,
        cpus=cpus[:MOST_CPUS],
        cpu_count=len(cpus),
        no_cpus=no_cpus,
        made_by=__version__,
    )
    return report, summary.exit_code
