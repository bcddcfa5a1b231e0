"""Reports for people. The only module that lays out text."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmstream.errors import printable

if TYPE_CHECKING:
    from vmstream.report.models.anomalies import AnomalyReport
    from vmstream.report.models.capture import CaptureReport
    from vmstream.report.models.extract import ExtractReport
    from vmstream.report.models.extract_block import ExtractBlockReport
    from vmstream.report.models.history import HistoryReport
    from vmstream.report.models.inspect import InspectReport
    from vmstream.report.models.pages import PageCounts
    from vmstream.report.models.receive import ReceiveReport
    from vmstream.report.models.records import RecordReport
    from vmstream.report.models.rewrite import ConvertReport, RewriteReport
    from vmstream.report.models.snapshots import SnapshotsReport
    from vmstream.report.models.unpack import BuildReport, UnpackReport

# More than any table takes, so that none is made narrower.
_WIDTH = 4000
_DEVICES_AT_A_GLANCE = 60
_PASSES_AT_A_GLANCE = 6
_FINDINGS_AT_A_GLANCE = 10
_CHANGES_AT_A_GLANCE = 40
_LIVE_AT_A_GLANCE = 10

_PASS_WORDS = {
    "inferred": "inferred from where the page order starts over",
    "wire": "as MULTIFD_FLUSH words part them",
}

_LAYER_NAMES = {"libvirt": "libvirt save image", "offset": "behind other bytes"}


class _Console(Console):
    # Not rich's own way, which ends the process with status 1.
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(file: IO[str] | None = None) -> Console:
    """Return a console that colours only terminals, and honours NO_COLOR.

    Lines are as long as they have to be: a number cut off would be another number.
    """
    return _Console(
        file=file or sys.stdout,
        highlight=False,
        emoji=False,
        markup=False,
        soft_wrap=True,
        width=_WIDTH,
    )


def size_text(size: int) -> str:
    """Bytes in the unit that reads best."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size:,} bytes" if unit == "bytes" else f"{value:.4g} {unit}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if column != name else "left", no_wrap=True)
    return table


# Text, not markup: names from a stream may look like it.
def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))


def _pages(pages: PageCounts) -> list[str]:
    return [f"{n:,}" for n in (pages.normal, pages.zero, pages.xbzrle, pages.compressed)]


def _row(out: Console, name: str, text: str) -> None:
    out.print(Text.assemble((f"{name:<13}", "bold"), text))


def render_inspect(
    report: InspectReport,
    *,
    devices: bool = False,
    sections: bool = False,
    passes: bool = False,
    out: Console | None = None,
) -> None:
    """Print an inspect report; the flags add the long lists."""
    out = out or console()
    state = ("complete", "green") if report.complete else ("not complete", "red")
    around = ", ".join(_LAYER_NAMES.get(la.kind, la.kind) for la in report.layers)
    what = f": migration stream ({around or report.container}), {size_text(report.size)}, "
    out.print(Text.assemble((printable(report.input), "bold"), what, state))
    _layers(out, report)
    _row(out, "machine", printable(report.machine or "not stated (no configuration section)"))
    if report.uuid:
        _row(out, "uuid", report.uuid)
    _row(out, "page size", f"{report.page_size or 'unknown'} ({_page_size_words(report)})")
    _row(out, "capabilities", printable(", ".join(report.capabilities)) or "none stated")
    _row(out, "features", printable(", ".join(report.features)) or "none")
    if report.commands:
        names = [c.name for c in report.commands]
        counted = [
            f"{n} x{names.count(n)}" if names.count(n) > 1 else n for n in dict.fromkeys(names)
        ]
        _row(out, "commands", ", ".join(counted))
    _channels(out, report)
    _ram(out, report, long=passes)
    _live(out, report)
    _sections(out, report, devices=devices, sections=sections)
    _end(out, report)


def _layers(out: Console, report: InspectReport) -> None:
    if not report.layers:
        return
    names = []
    for layer in report.layers:
        if layer.snapshot is not None:
            named = f"{printable(layer.snapshot.name)} (id {printable(layer.snapshot.id)})"
            _row(out, "snapshot", f"{named}, taken {layer.snapshot.date}")
        if (image := layer.libvirt) is None:
            names.append(_LAYER_NAMES.get(layer.kind, layer.kind))
            continue
        unfinished = "" if image.finished else ", not finished"
        names.append(f"{_LAYER_NAMES[layer.kind]} v{image.version}{unfinished}")
        name = printable(image.name) if image.name is not None else "name not found in the XML"
        _row(out, "domain", f"{name}, {'was running' if image.was_running else 'was not running'}")
    size = report.layers[0].size
    _row(out, "container", f"{', '.join(names)}{f'; {size_text(size)}' if size else ''}")


def _channels(out: Console, report: InspectReport) -> None:
    if not report.channels:
        return
    _row(out, "channels", f"{len(report.channels)} beside the main one")
    table = _table(
        "  id", "file", ">bytes", ">packets", ">syncs", "compression", ">normal", ">zero",
        ">compressed",
    )  # fmt: skip
    for c in report.channels:
        pages = c.pages
        _add(
            table,
            f"  {c.kind if c.channel_id is None else c.channel_id}",
            printable(c.name),
            *(f"{n:,}" for n in (c.size, c.packets, c.syncs)),
            ", ".join(c.compression) or "none",
            *(f"{n:,}" for n in (pages.normal, pages.zero, pages.compressed)),
        )
    out.print(table)
    for c in report.channels:
        for d in c.device_states:
            where = f"{printable(d.idstr)}{f'#{d.instance_id:x}' if d.instance_id else ''}"
            out.print(f"  {where}: {size_text(d.size)} of device state in {d.packets:,} packets")


def _page_size_words(report: InspectReport) -> str:
    return {
        "argument": "as asked for",
        "target-page-bits": "stated by the configuration section",
        "probe": "found from where the page records stand",
        "mapped-ram": "stated by the mapped-ram headers",
        "multifd": "found from the size of multifd packets",
        "vmdescription": "stated by the vmdescription",
        "default": "assumed, no page record tells",
    }.get(report.page_size_source or "", "no page record was read")


def _ram(out: Console, report: InspectReport, *, long: bool) -> None:
    if not report.ram_blocks:
        return
    total = size_text(report.ram_total or 0)
    passes = f"{report.pass_count} pass" + ("es" if report.pass_count != 1 else "")
    records = sum(
        p.normal + p.zero + p.xbzrle + p.compressed for b in report.ram_blocks if (p := b.pages)
    )
    told = "pages not read (--quick)" if report.quick else f"{records:,} page records in {passes}"
    _row(out, "RAM", f"{total} in {len(report.ram_blocks)} blocks, {told}")
    table = _table(
        "  block", ">length", ">normal", ">zero", ">xbzrle", ">compressed", ">on the wire",
        ">resent", ">missing",
    )  # fmt: skip
    for block in report.ram_blocks:
        pages = _pages(block.pages) if block.pages else ["-"] * 4
        numbers = (block.wire_bytes, block.pages_resent, block.pages_missing)
        wire, resent, missing = ("-" if n is None else f"{n:,}" for n in numbers)
        _add(
            table,
            f"  {printable(block.idstr)}",
            f"{block.used_length:#x}",
            *pages,
            wire,
            resent,
            missing,
        )
    out.print(table)
    if report.pass_count < 2 and not long:
        return
    source = report.passes[0].source if report.passes else "inferred"
    _row(out, "passes", f"{report.pass_count}, {_PASS_WORDS[source]}")
    table = _table(
        "  pass", ">offset", ">normal", ">zero", ">xbzrle", ">compressed", ">on the wire"
    )
    shown = report.passes if long else report.passes[:_PASSES_AT_A_GLANCE]
    for item in shown:
        _add(
            table,
            f"  {item.number}",
            f"{item.offset:#x}",
            *_pages(item.pages),
            f"{item.wire_bytes:,}",
        )
    out.print(table)
    if len(shown) < report.pass_count:
        out.print(f"  ... {report.pass_count - len(shown)} more (--passes)")


def _live(out: Console, report: InspectReport) -> None:
    found = report.live
    if found is None:
        return
    for disk in found.block_devices[:_LIVE_AT_A_GLANCE]:
        told = f"{_count(disk.chunks, 'chunk')} of 1 MiB, {disk.zero_chunks:,} zero"
        told += f", {disk.resent:,} resent"
        told += f", {disk.missing:,} missing, the last ends at {disk.end:#x} (size not stated)"
        _row(out, "disk", f"{printable(disk.device)}: {told}")
    _more(out, len(found.block_devices))
    for bitmap in found.dirty_bitmaps[:_LIVE_AT_A_GLANCE]:
        words = [f"{_count(bitmap.bits_set, 'bit')} set of {size_text(bitmap.granularity)} each"]
        words += ["enabled" if bitmap.enabled else "disabled"]
        words += ["persistent"] if bitmap.persistent else []
        words += [] if bitmap.complete else ["not complete"]
        _row(out, "bitmap", printable(f"{bitmap.node}/{bitmap.name}: {', '.join(words)}"))
    _more(out, len(found.dirty_bitmaps))
    if (htab := found.htab) is not None:
        size = "none (radix)" if htab.radix else size_text(1 << (htab.htab_shift or 0))
        entries = f"{htab.valid:,} valid and {htab.invalid:,} invalid entries sent"
        _row(out, "page table", f"{size}, {entries}")
    for name, storage in (("attributes", found.storage_attributes), ("keys", found.storage_keys)):
        if storage is not None:
            pages = f"{_count(storage.pages, 'page')} in {_count(storage.range_count, 'range')}"
            _row(out, "s390", f"storage {name} of {pages}")
    for device in found.vfio[:_LIVE_AT_A_GLANCE]:
        told = f"{size_text(device.size)} in {_count(device.records, 'record')}"
        _row(out, "vfio", f"{printable(device.idstr)}: {told}")
    _more(out, len(found.vfio))
    if found.pbs_state_size is not None:
        _row(out, "pbs-state", size_text(found.pbs_state_size))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _more(out: Console, count: int) -> None:
    if count > _LIVE_AT_A_GLANCE:
        out.print(f"  ... {count - _LIVE_AT_A_GLANCE} more (--json)")


def _sections(out: Console, report: InspectReport, *, devices: bool, sections: bool) -> None:
    listed = [s for s in report.sections if s.section_type == "FULL"]
    live = [s for s in report.sections if s.section_type == "START"]
    if live:
        names = (f"{printable(s.idstr)} v{s.version_id} ({s.parts} parts)" for s in live)
        _row(out, "iterable", ", ".join(names))
    framings = ", ".join(dict.fromkeys(s.framing for s in listed)) or "none"
    size = sum(s.body_size for s in listed)
    _row(out, "devices", f"{len(listed)} with {size_text(size)} of state, framed by: {framings}")
    if devices or sections:
        table = _table(
            "  id",
            "type",
            "idstr",
            ">instance",
            ">version",
            ">offset",
            ">bytes",
            ">parts",
            "framing",
        )
        for s in report.sections if sections else listed:
            _add(table,
                f"  {s.section_id}", s.section_type, printable(s.idstr), f"{s.instance_id:#x}",
                str(s.version_id), f"{s.offset:#x}", f"{s.body_size:,}", str(s.parts), s.framing,
            )  # fmt: skip
        out.print(table)
    elif listed:
        glance = listed[:_DEVICES_AT_A_GLANCE]
        words = [
            f"{printable(s.idstr)}{f'#{s.instance_id:x}' if s.instance_id else ''} "
            f"v{s.version_id} {s.body_size}"
            for s in glance
        ]
        for line in _flow(words, 100):
            out.print(f"  {line}")
        if len(listed) > len(glance):
            out.print(f"  ... {len(listed) - len(glance)} more (--devices)")


def _flow(words: Iterable[str], width: int) -> Iterable[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) + 2 > width:
            yield line + ","
            line = ""
        line = f"{line}, {word}" if line else word
    if line:
        yield line


def _end(out: Console, report: InspectReport) -> None:
    where = f"at {report.end_offset:#x}" if report.end_offset is not None else "not seen"
    rest = report.size - (report.end_offset or report.size)
    _row(out, "end", f"{where}{f', {size_text(rest)} behind it' if rest else ''}")
    if not report.anomaly_count:
        _row(out, "findings", "none")
        return
    _row(out, "findings", str(report.anomaly_count))
    colours = {"error": "red", "warning": "yellow", "info": "blue"}
    for a in report.anomalies[:_FINDINGS_AT_A_GLANCE]:
        severity = (a.severity, colours[a.severity])
        out.print(Text.assemble("  ", severity, f": {printable(a.message)}"))
    if report.anomaly_count > _FINDINGS_AT_A_GLANCE:
        out.print(f"  ... {report.anomaly_count - _FINDINGS_AT_A_GLANCE} more (--json)")


_IMAGES = {
    "raw": "guest-physical image",
    "lime": "guest-physical memory in LiME format",
    "elf": "guest-physical memory as an ELF core",
    "kdump": "guest-physical memory in the compressed kdump format",
}


def render_extract(report: ExtractReport, out: Console | None = None) -> None:
    """Print what was written to stdout, and what is to be known about it to stderr."""
    out = out or console()
    for item in report.outputs:
        what = f"block {printable(item.idstr)}" if item.idstr else _IMAGES[item.format]
        path = "standard output" if item.path == "-" else printable(item.path)
        how = f", {item.compression}" if item.compression else ""
        out.print(f"{path}: {what}{how}, {size_text(item.size)}")
    if report.layout is not None:
        for region in report.layout.regions:
            end = region.gpa + region.length
            out.print(
                f"  {region.gpa:#x}..{end:#x}  {printable(region.idstr)}+{region.block_offset:#x}"
                f"  ({region.source})"
            )
        how = " (inferred)" if report.layout.source == "inferred" else ""
        out.print(f"  decided by {report.layout.decided_by}{how}")
        for reason in report.layout.reasons:
            out.print(f"  {printable(reason)}")
    if report.after_pass is not None:
        how = "" if report.passes_from == "wire" else " (passes are inferred)"
        out.print(f"  RAM as known behind pass {report.after_pass} of {report.pass_count}{how}")
    notes = console(sys.stderr)
    for doubt in report.layout.doubts if report.layout else ():
        notes.print(f"vmstream: warning: {printable(doubt)}")
    for a in report.anomalies[:_FINDINGS_AT_A_GLANCE]:
        notes.print(f"vmstream: {a.severity}: {printable(a.message)}")
    for block in report.ram_blocks:
        if block.pages_missing:
            notes.print(
                f"vmstream: block {printable(block.idstr)} lacks {block.pages_missing:,} pages",
            )


def render_history(report: HistoryReport, out: Console | None = None) -> None:
    """Print passes, how they converge, and the pages that were sent most often."""
    out = out or console()
    state = ("complete", "green") if report.complete else ("not complete", "red")
    what = f": migration stream, {size_text(report.size)}, "
    out.print(Text.assemble((printable(report.input), "bold"), what, state))
    again = report.records - report.pages_sent
    _row(out, "RAM", f"{report.pages:,} pages of {report.page_size or '?'} bytes, "
         f"{report.pages_sent:,} sent, {again:,} versions replaced by a later one")  # fmt: skip
    source = report.passes[0].source if report.passes else "inferred"
    _row(out, "passes", f"{report.pass_count}, {_PASS_WORDS[source]}")
    table = _table(
        "  pass", ">offset", ">normal", ">zero", ">xbzrle", ">compressed", ">on the wire", ">pages",
        ">of the pass before", ">first sent", ">last sent",
    )  # fmt: skip
    before = 0
    for item in report.passes:
        pages = sum(dataclasses.astuple(item.pages))
        share = f"{pages / before:.1%}" if before else "-"
        numbers = (item.wire_bytes, pages, share, item.first, item.last)
        told = [n if isinstance(n, str) else f"{n:,}" for n in numbers]
        _add(table, f"  {item.number}", f"{item.offset:#x}", *_pages(item.pages), *told)
        before = pages
    out.print(table)
    if report.top:
        _row(out, "sent most", "addresses are guest-physical, inferred")
        table = _table("  page", ">address", ">times")
        for page in report.top:
            gpa = "-" if page.gpa is None else f"{page.gpa:#x}"
            where = f"  {printable(page.block)}+{page.block_offset:#x}"
            _add(table, where, gpa, f"{page.times:,}")
        out.print(table)
    if (written := report.superseded) is not None:
        zeros = f"; {written.zeros:,} versions of zeros left out" if written.zeros else ""
        out.print(f"{printable(written.directory)}: {written.versions:,} versions{zeros}")
        for file in written.files:
            what = f"block {printable(file.block)}, {file.versions:,} versions"
            out.print(f"  {file.file}: {what}, {size_text(file.size)}")
    notes = console(sys.stderr)
    render_findings(report.anomalies, notes)
    for doubt in report.layout_doubts if report.top else ():
        notes.print(f"vmstream: warning: {printable(doubt)}")


def render_findings(anomalies: Iterable[AnomalyReport], out: Console) -> None:
    """Print what is odd in a stream, the first of it."""
    for a in [*anomalies][:_FINDINGS_AT_A_GLANCE]:
        out.print(f"vmstream: {a.severity}: {printable(a.message)}")


def render_extract_block(report: ExtractBlockReport, out: Console | None = None) -> None:
    """Print what was written to stdout, and what is to be known about it to stderr."""
    out = out or console()
    for item in report.outputs:
        told = f"disk {printable(item.device.device)}, {size_text(item.size)}"
        if item.size_source == "inferred":
            told += " (inferred: the end of the last chunk; the stream does not state it)"
        out.print(f"{printable(item.path)}: {told}")
    notes = console(sys.stderr)
    for a in report.anomalies[:_FINDINGS_AT_A_GLANCE]:
        notes.print(f"vmstream: {a.severity}: {printable(a.message)}")


def render_rewrite(report: RewriteReport, out: Console | None = None) -> None:
    """Print what changed, with offsets, and what is to be known about the input to stderr."""
    out = out or console()
    for c in report.changes[:_CHANGES_AT_A_GLANCE]:
        out.print(f"{c.offset:#x}: {printable(c.what)}")
    if report.change_count > _CHANGES_AT_A_GLANCE:
        out.print(f"... and {report.change_count - _CHANGES_AT_A_GLANCE} more (--json)")
    count = f"{report.change_count} change" + ("s" if report.change_count != 1 else "")
    name = "not written" if report.output is None else printable(report.output)
    out.print(f"{name}: {count}, {report.output_size} bytes (the input has {report.input_size})")
    _notes_of(report)


# How a destination takes each kind of file.
_UNPACK = {None: "cat", "gzip": "gzip -dc", "zstd": "zstd -dc"}


def render_convert(report: ConvertReport, out: Console | None = None) -> None:
    """Print what was written and what takes it, and what is to be known of the input to stderr."""
    out = out or console()
    name = printable(report.output or "")
    packed = f", {report.compression}" if report.compression else ""
    out.print(
        f"{name}: {report.to}{packed}, {report.output_size} bytes "
        f"(the stream in the input has {report.input_size})"
    )
    word = shlex.quote(name)
    if report.to.startswith("libvirt"):
        out.print(f"load it: virsh restore {word}")
    elif report.output != "-":
        how = f'-incoming "exec:{_UNPACK[report.compression]} {word}"'
        if report.to == "mapped-ram":
            # Memory that is left out of it is taken so by 11.1 alone: 10.0 looks for its bitmap.
            since = "11.1" if "x-ignore-shared" in report.capabilities else "9.0"
            how = f"-incoming defer, then migrate_incoming file:{name} (QEMU {since} on)"
        out.print(f"load it: the same machine with {how}")
        if report.capabilities:
            caps = ", ".join(printable(c) for c in report.capabilities)
            out.print(f"capabilities to set there first: {caps}")
    _notes_of(report)


def _notes_of(report: RewriteReport) -> None:
    notes = console(sys.stderr)
    for a in report.anomalies[:_FINDINGS_AT_A_GLANCE]:
        notes.print(f"vmstream: {a.severity}: {printable(a.message)}")
    for doubt in report.doubts:
        notes.print(f"vmstream: warning: {printable(doubt)}")


def render_unpack(report: UnpackReport, out: Console | None = None) -> None:
    """Print what was written, and what is to be known about the input to stderr."""
    out = out or console()
    named = report.devices - len(report.undescribed)
    out.print(
        f"{printable(report.output)}: {report.blocks} blocks, {report.devices} devices, "
        f"{named} of them by names"
    )
    notes = console(sys.stderr)
    for a in report.anomalies[:_FINDINGS_AT_A_GLANCE]:
        notes.print(f"vmstream: {a.severity}: {printable(a.message)}")


def render_build(report: BuildReport, out: Console | None = None) -> None:
    """Print what was written."""
    out = out or console()
    said = {"none": "without a vmdescription", "kept": "the vmdescription as it was"}
    out.print(
        f"{printable(report.output)}: {report.output_size} bytes, {report.blocks} blocks, "
        f"{report.devices} devices, "
        f"{said.get(report.vmdescription, 'the vmdescription follows the edits')}"
    )


def render_capture(report: CaptureReport, out: Console | None = None) -> None:
    """Print what was captured, and how the guest was left."""
    out = out or console()
    what = size_text(report.output_size)
    if report.output_size != report.stream_size:
        what += f", of a stream of {size_text(report.stream_size)}"
    by = f"QEMU {report.qemu}" if report.libvirt is None else f"libvirt {report.libvirt}"
    guest = f"{report.machine}, {by}"
    if report.name:
        guest += f", {report.name!r}"
    took = "" if report.total_time_ms is None else f" in {report.total_time_ms} ms"
    out.print(f"{printable(report.output)}: {what} ({report.format}){took}; {printable(guest)}")
    how = report.mode if report.mode != "live" else f"live, {report.passes} passes"
    said = f"captured {how}; the guest was {report.status_before} and is {report.status_after}"
    if report.libvirt is None:
        said += f"; settings changed for it: {len(report.settings)}, "
        said += "NOT all set back" if report.troubles else "all set back"
    out.print(said)
    if report.complete is not None:
        found = f"{len(report.anomalies)} findings" if report.anomalies else "no findings"
        out.print(f"verified: {'complete' if report.complete else 'NOT complete'}, {found}")


def render_receive(report: ReceiveReport, out: Console | None = None) -> None:
    """Print what was received."""
    out = out or console()
    machine = report.machine or "of an unknown machine"
    out.print(f"{printable(report.output)}: a migration of {printable(machine)}")
    for channel in report.channels:
        out.print(f"  {channel.file}: {size_text(channel.size)} ({channel.kind})")
    found = f"{len(report.anomalies)} findings" if report.anomalies else "no findings"
    out.print(f"verified: {'complete' if report.complete else 'NOT complete'}, {found}")


def render_snapshots(report: SnapshotsReport, out: Console | None = None) -> None:
    """Print the snapshots to stdout, and what is to be known about the image to stderr."""
    out = out or console()
    what = (
        f": qcow2 image (version {report.version}), disk of {size_text(report.disk_size)}, "
        f"clusters of {size_text(report.cluster_size)}, "
    )
    count = f"{len(report.snapshots)} snapshot" + ("s" if len(report.snapshots) != 1 else "")
    out.print(Text.assemble((printable(report.input), "bold"), what, count))
    if report.snapshots:
        table = _table("  id", "name", "date (UTC)", ">guest clock", ">VM state")
        for s in report.snapshots:
            _add(
                table,
                f"  {printable(s.id)}",
                printable(s.name),
                s.date.replace("T", " ").removesuffix("Z"),
                clock_text(s.vm_clock_nsec),
                f"{s.vm_state_size:,} bytes" if s.vm_state_size else "disk only",
            )
        out.print(table)
    notes = console(sys.stderr)
    for note in report.notes:
        notes.print(f"vmstream: warning: {note}")


def clock_text(nanoseconds: int) -> str:
    """Nanoseconds as hours, minutes and seconds."""
    milliseconds = nanoseconds // 1_000_000
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"


def record_line(item: RecordReport) -> str:
    """One item of `records` as a line of text: offset, size, type, what it says."""
    fields = dict(item.fields)
    if item.type == "live":
        fields.pop("data", None)  # up to 10 KiB of bits
    size = item.end - item.offset
    if item.type == "pages":
        first, count = int(str(fields["block_offset"])), int(str(fields["count"]))
        last = first + count * int(str(fields["page_size"]))
        said = f"{fields['kind']:<10} {fields['block']} {first:#x}..{last:#x} x{count}"
    elif item.type == "section":
        said = (
            f"{fields['section_type']:<5} id={fields['section_id']} {fields['idstr']} "
            f"instance={fields['instance_id']:#x} version={fields['version_id']}"
        )
    elif item.type == "anomaly":
        said = f"{fields['severity']} {fields['code']}: {fields['message']}"
    elif item.type == "packet":
        said = f"num={fields['packet_num']}{' SYNC' if fields['sync'] else ''}"
        if "block" in fields:
            runs: Any = (fields["normal"], fields["zero"])
            normal, zero = (sum(n for _, n in part) for part in runs)
            said += f" {fields['block']} normal x{normal} zero x{zero} {fields['compression']}"
    elif item.type == "ram-blocks":
        blocks: Any = fields["blocks"]
        names = (f"{b['idstr']}={b['used_length']:#x}" for b in blocks)
        said = f"total={fields['total']:#x} {' '.join(names)}"
    else:
        said = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    said = said if item.channel is None else f"{item.channel}: {said}"
    text = f"{item.offset:#014x} {size:>10}  {item.type:<13} {said}".rstrip()
    return printable(text)
