"""A stream as one page of HTML that needs nothing else: no network, no other file.

Every name in it is from a stream, and hostile: nothing comes into the page but by `_text`. Style
and script are files of the package, and the page's policy allows those two by their hash, and
pictures that are in the page; a name that came in as markup could still not run or fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from vmstream.errors import printable
from vmstream.report.picture import BAR, View, block_png, size_text, view_of

if TYPE_CHECKING:
    from vmstream.report.models.cpus import CPUReport
    from vmstream.report.models.inspect import InspectReport, SectionReport
    from vmstream.report.models.rammap import BlockMap, RAMMap
    from vmstream.report.models.report import ExtentReport, FieldReport, StreamReport

# Of what a stream can make as long as it likes: characters of a name and of a message, rows of a
# table, bytes of all devices and of all CPUs. A page has less than 5 MB by these.
_MOST_NAME = 120
_MOST_MESSAGE = 600
_MOST_WORDS = 40
_MOST_ROWS = 300
_ROWS_AT_A_GLANCE = 12
_MOST_DEVICES = 1_800_000
_MOST_CPUS = 700_000
_MOST_BARS = 48
_VALUES_SHOWN = 6
# Numbers that need no hex, and such that nobody reads as decimals.
_PLAIN, _LARGE = 10, 1 << 32

_KINDS = {
    "ram": "RAM", "live": "other iterable sections", "device": "devices",
    "description": "vmdescription", "frame": "between sections", "gap": "not read",
}  # fmt: skip
_VERDICTS = {
    "sound": ("good", "sound"), "doubtful": ("warning", "doubtful"),
    "truncated": ("error", "cut off"), "corrupt": ("error", "damaged"),
}  # fmt: skip
_NO_FINDINGS = "none: the stream holds against every rule of QEMU's loader that it shows by itself"
_AT_FIRST = ("general", "segment", "control")
_VIEW_WORDS = {"kind": "What was sent", "times": "How often", "pass": "Last pass"}
_LAYER_NAMES = {"libvirt": "libvirt save image", "offset": "behind other bytes"}


def page(report: StreamReport) -> bytes:
    """Return the page, UTF-8."""
    style, script = _asset("report.css"), _asset("report.js")
    told = report.inspect
    allowed = f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    parts = [
        ("summary", "Summary", _summary(report)),
        ("findings", "Findings", _findings(report)),
        ("memory", "Memory", _memory(report)),
        ("passes", "Passes", _passes(report)),
        ("sections", "Sections", _sections(report)),
        ("cpus", "CPUs", _cpus(report)),
        ("devices", "Devices", _devices(report)),
    ]
    name = _text(told.input.rpartition("/")[2] or told.input)
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, body in parts if body)
    bodies = "\n".join(
        f'<section id="{key}" aria-label="{title}">{body}</section>' if key != "summary" else body
        for key, title, body in parts
        if body
    )
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
{allowed}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} - vmstream</title>
<style>{style}</style>
<script>{script}</script>
</head>
<body>
<header class="top"><div class="page"><span class="name">{name}</span>
<nav aria-label="Parts of this page">{links}</nav>
<button type="button" class="theme script-only" aria-label="Light or dark">Dark</button>
</div></header>
<main class="page">
{bodies}
<footer>Made by vmstream {_text(report.made_by)} of {_text(told.input)}. Names of devices and \
fields, and addresses, are as the stream tells or as was inferred from it.</footer>
</main>
</body>
</html>
"""
    return text.encode("utf-8", "backslashreplace")


def _asset(name: str) -> str:
    return (pkgutil.get_data("vmstream.report", name) or b"").decode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Text from a stream: as it prints, not too long, and never markup.
def _text(text: str, most: int = _MOST_NAME) -> str:
    shown = printable(text[: most + 1])
    return escape(shown if len(text) <= most else shown[:most] + "…")


# Words of ours, in which commands stand between backticks.
def _prose(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", _text(text, _MOST_MESSAGE))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a head that begins with '>' is of numbers. Cells are HTML."""
    css = [' class="n"' if h.startswith(">") else "" for h in heads]
    head = "".join(f"<th{c}>{h.removeprefix('>')}</th>" for c, h in zip(css, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{x}</td>" for c, x in zip(css, r, strict=True)) + "</tr>"
        for r in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# A table whose first rows are seen; the others on demand.
def _long_table(heads: Sequence[str], rows: Sequence[Sequence[str]], total: int, what: str) -> str:
    made = _table(heads, rows[:_ROWS_AT_A_GLANCE])
    if len(rows) > _ROWS_AT_A_GLANCE:
        shown = rows[_ROWS_AT_A_GLANCE:_MOST_ROWS]
        left = total - _ROWS_AT_A_GLANCE - len(shown)
        also = f"; {left:,} more are not shown" if left else ""
        made += (
            f'<details class="more"><summary>{len(shown):,} more {what}{also}</summary>'
            f"{_table(heads, shown)}</details>"
        )
    return made


# ---- the summary -------------------------------------------------------------------------------


def _summary(report: StreamReport) -> str:
    told = report.inspect
    css, verdict = _VERDICTS.get(report.verdict, ("error", report.verdict))
    around = [_LAYER_NAMES.get(la.kind, la.kind) for la in told.layers]
    what = f"Migration stream of QEMU{', in ' + _text(', '.join(around)) if around else ''}"
    state = "complete" if told.complete else "not complete"
    records = sum(_all(b.pages) for b in told.ram_blocks if b.pages)
    resent = sum(b.pages_resent or 0 for b in told.ram_blocks)
    missing = sum(b.pages_missing or 0 for b in told.ram_blocks)
    devices = [s for s in told.sections if s.section_type == "FULL"]
    ram = sum(b.used_length for b in told.ram_blocks)
    parted = "on the wire" if any(p.source == "wire" for p in report.passes) else "inferred"
    kinds = {c.architecture for c in report.cpus}
    cards = [
        ("Machine", _text(told.machine or "not stated", 48), _page_size(told)),
        ("Memory", size_text(ram), _count(len(told.ram_blocks), "block")),
        ("Page records", f"{records:,}", f"{resent:,} sent again" if resent else "no page twice"),
        ("Passes over RAM", f"{told.pass_count:,}", parted if told.pass_count else "none"),
        ("Devices", f"{len(devices):,}", size_text(sum(s.body_size for s in devices))),
        ("CPUs", f"{report.cpu_count:,}" if kinds else "unknown", _text(", ".join(sorted(kinds)))),
    ]
    made = "".join(
        f'<div class="card"><dt>{name}</dt><dd><span class="big">{big}</span>'
        f'<span class="small">{small}</span></dd></div>'
        for name, big, small in cards
    )
    title = _text(told.input.rpartition("/")[2] or told.input, 200)
    return (
        f'<div id="summary"><div class="title"><h1>{title}</h1>'
        f'<span class="chip {css}">{_text(verdict)}</span></div>'
        f'<p class="sub">{what}, {size_text(told.size)}, {state}</p></div>'
        f'<dl class="cards">{made}</dl>'
        f'<section aria-label="Facts">{_facts(report, missing)}</section>'
    )


def _all(pages: object) -> int:
    return sum(getattr(pages, kind) for kind in ("normal", "zero", "xbzrle", "compressed"))


def _page_size(told: InspectReport) -> str:
    return f"pages of {size_text(told.page_size)}" if told.page_size else "page size unknown"


def _words(words: Sequence[str], none: str) -> str:
    made = ", ".join(_text(w) for w in words[:_MOST_WORDS])
    more = len(words) - _MOST_WORDS
    return (made or none) + (f" and {more:,} more" if more > 0 else "")


def _facts(report: StreamReport, missing: int) -> str:
    told = report.inspect
    commands = [f"{c} x{n}" if n > 1 else c for c, n in _counted(c.name for c in told.commands)]
    framing = dict.fromkeys(s.framing for s in told.sections if s.section_type == "FULL")
    rows = [
        ("Findings", "" if report.finding_count else _NO_FINDINGS),
        ("Capabilities", _words(told.capabilities, "none stated")),
        ("Features", _words(told.features, "none")),
        ("Commands", _words(commands, "")),
        ("UUID", _text(told.uuid or "")),
        ("Containers", "".join(_layer(la.kind, la.size) for la in told.layers)),
        ("Snapshot", _snapshot(told)),
        (
            "Domain",
            _words([la.libvirt.name for la in told.layers if la.libvirt and la.libvirt.name], ""),
        ),
        ("Channels", _channels(told)),
        ("Pages never sent", f"{missing:,}" if missing else ""),
        ("Devices framed by", _words(list(framing), "nothing")),
        ("Ends at", "" if told.end_offset is None else f"<code>{told.end_offset:#x}</code>"),
    ]
    made = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f'<dl class="facts">{made}</dl>'


def _counted(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, len(list(same))) for name, same in groupby(sorted(names))]


def _layer(kind: str, size: int | None) -> str:
    told = f", {size_text(size)}" if size is not None else ""
    return f"<div>{_text(_LAYER_NAMES.get(kind, kind))}{told}</div>"


def _snapshot(told: InspectReport) -> str:
    found = [la.snapshot for la in told.layers if la.snapshot is not None]
    return _words([f"{s.name} (id {s.id}), {s.date}" for s in found], "")


def _channels(told: InspectReport) -> str:
    made = [
        f"<div>{_text(c.kind)} {_text(c.name)}: {size_text(c.size)}, "
        f"{_count(_all(c.pages), 'page')}, {_words(c.compression, 'not')} compressed</div>"
        if c.compression and c.compression != ["none"]
        else f"<div>{_text(c.kind)} {_text(c.name)}: {size_text(c.size)}, "
        f"{_count(_all(c.pages), 'page')}</div>"
        for c in told.channels[:_MOST_WORDS]
    ]
    return "".join(made)


# ---- findings ----------------------------------------------------------------------------------


def _findings(report: StreamReport) -> str:
    if not report.finding_count:
        return ""
    items = []
    for f in report.findings:
        where = f" in {_text(f.channel)}" if f.channel else ""
        severity = f.severity if f.severity in ("error", "warning") else "info"
        items.append(
            f'<li><span class="chip {severity}">{_text(f.severity)}</span><div>'
            f"<p>{_text(f.message, _MOST_MESSAGE)}</p>"
            f"<p>{_prose(f.meaning)} To do: {_prose(f.advice)}.</p>"
            f"<p><code>{_text(f.code)}</code> at <code>{f.offset:#x}</code>{where}</p></div></li>"
        )
    left = report.finding_count - len(items)
    more = f'<p class="note">{left:,} more are not shown.</p>' if left else ""
    return f'<h2>Findings</h2><ul class="findings">{"".join(items)}</ul>{more}'


# ---- memory ------------------------------------------------------------------------------------


def _memory(report: StreamReport) -> str:
    ram = report.map
    if ram is None:
        return ""
    names = ["kind"] + (["times", "pass"] if ram.resent and not ram.mapped else [])
    views = [view_of(ram, name) for name in names]
    radios = "".join(
        f'<input type="radio" class="choice" name="by" id="by-{v.name}"'
        f"{' checked' if v.name == 'kind' else ''}>"
        for v in views
    )
    labels = "".join(f'<label for="by-{v.name}">{_VIEW_WORDS[v.name]}</label>' for v in views)
    switch = f'<div class="switch">{labels}</div>' if len(views) > 1 else ""
    size = ram.page_size * ram.pages_per_cell
    pages = (
        "a page" if ram.pages_per_cell == 1 else f"the most telling of {ram.pages_per_cell:,} pages"
    )
    alike = "" if len(views) > 1 else " No page was sent a second time."
    if ram.mapped:
        alike = " A mapped-ram file has one version of each page."
    note = (
        f"Every block to scale, the largest first. A cell is {pages}, {size_text(size)}; a row "
        f"is {size_text(size * ram.columns)}.{alike}"
    )
    legends = "".join(_legend(ram, v) for v in views)
    large = [b for b in ram.blocks if len(b.kinds) > ram.columns]
    small = [b for b in ram.blocks if len(b.kinds) <= ram.columns]
    figures = "".join(_block(ram, views, b) for b in large)
    if small:
        inner = "".join(_block(ram, views, b) for b in small)
        figures += f'<div class="blocks">{inner}</div>'
    if ram.left_out[0]:
        count, total = ram.left_out
        told = f"{count:,} smaller blocks, {size_text(total)}, are not drawn."
        figures += f'<p class="note">{told}</p>'
    doubts = "".join(f'<p class="note">{_text(d, _MOST_MESSAGE)}</p>' for d in report.doubts[:10])
    return (
        f'<h2>Memory</h2><p class="note">{note}</p>{radios}{switch}'
        f'<div class="map">{legends}{figures}</div>{_block_table(report)}{doubts}'
    )


def _legend(ram: RAMMap, view: View) -> str:
    items = []
    for i in view.used:
        red, green, blue, alpha = view.colours[i]
        count = f' <span class="count">{ram.counts[i]:,}</span>' if view.name == "kind" else ""
        items.append(
            f'<li data-label="{view.labels[i]}" data-colour="{red},{green},{blue},{alpha}">'
            f'<svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" '
            f'fill="rgb({red},{green},{blue})" fill-opacity="{alpha / 255:.3f}"/></svg>'
            f"<span>{view.labels[i]}{count}</span></li>"
        )
    return f'<ul class="legend view {view.name}" aria-label="{view.title}">{"".join(items)}</ul>'


def _block(ram: RAMMap, views: Sequence[View], block: BlockMap) -> str:
    images = []
    for view in views:
        data, columns, rows = block_png(ram, view, block)
        high = BAR + 2 if len(block.kinds) <= ram.columns else rows * ram.cell
        images.append(
            f'<img class="view {view.name}" data-view="{view.name}" width="{columns * ram.cell}" '
            f'height="{high}" alt="{view.title} of {_text(block.idstr)}" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        )
    at = ", ".join(f"<code>{r.gpa:#x}..{r.gpa + r.length:#x}</code>" for r in block.ranges)
    ranges = " ".join(f"{r.gpa}:{r.length}:{r.block_offset}" for r in block.ranges)
    return (
        f'<figure class="block" data-name="{_text(block.idstr)}" data-used="{block.used_length}" '
        f'data-step="{ram.page_size * ram.pages_per_cell}" data-ranges="{ranges}"><figcaption>'
        f"<b>{_text(block.idstr)}</b><span>{size_text(block.used_length)}</span>"
        f"{f'<span>{at}</span>' if at else ''}</figcaption>{''.join(images)}</figure>"
    )


def _block_table(report: StreamReport) -> str:
    rows = [
        (
            _text(b.idstr), f"{b.used_length:#x}", *_pages(b.pages), f"{b.wire_bytes or 0:,}",
            f"{b.pages_resent or 0:,}", f"{b.pages_missing or 0:,}",
        )
        for b in report.inspect.ram_blocks[:_MOST_ROWS]
    ]  # fmt: skip
    heads = ("Block", ">Length", ">Normal", ">Zero", ">XBZRLE", ">Compressed", ">Bytes on the wire",
             ">Sent again", ">Never sent")  # fmt: skip
    return (
        f'<details class="more"><summary>Records of each block</summary>'
        f"{_long_table(heads, rows, len(report.inspect.ram_blocks), 'blocks')}</details>"
    )


def _pages(pages: object) -> tuple[str, ...]:
    kinds = ("normal", "zero", "xbzrle", "compressed")
    return tuple(f"{getattr(pages, kind, 0):,}" for kind in kinds)


# ---- passes ------------------------------------------------------------------------------------


def _passes(report: StreamReport) -> str:
    passes = report.passes
    if len(passes) < 2:
        return ""
    # Passes in a row share a bar where there are too many.
    step = -(-len(passes) // _MOST_BARS)
    groups = [passes[i : i + step] for i in range(0, len(passes), step)]
    names = [str(g[0].number) if step == 1 else f"{g[0].number}-{g[-1].number}" for g in groups]
    pages = [sum(_all(p.pages) for p in g) for g in groups]
    wire = [sum(p.wire_bytes for p in g) for g in groups]
    told = "as MULTIFD_FLUSH words part them"
    if passes[0].source != "wire":
        told = "inferred from where the order of pages starts over"
    several = f" A bar is of {step} passes." if step > 1 else ""
    more = report.inspect.pass_count - len(passes)
    also = f" {more:,} more are counted with the last." if more > 0 else ""
    first = pages[0] or 1
    rest = sum(pages[1:])
    share = (
        f"What came behind the first is {rest / first:.1%} of it in pages. " if step == 1 else ""
    )
    heads = ("Pass", ">Offset", ">Pages", ">Of the pass before", ">Normal", ">Zero", ">XBZRLE",
             ">Compressed", ">On the wire", ">First sent", ">Last sent")  # fmt: skip
    rows = [
        (
            str(p.number), f"<code>{p.offset:#x}</code>", f"{_all(p.pages):,}",
            _share(_all(p.pages), _all(passes[i - 1].pages)) if i else "",
            *_pages(p.pages), size_text(p.wire_bytes), f"{p.first:,}", f"{p.last:,}",
        )
        for i, p in enumerate(passes[:_MOST_ROWS])
    ]  # fmt: skip
    return (
        f'<h2>Passes</h2><p class="note">{_count(report.inspect.pass_count, "pass", "passes")}, '
        f"{told}.{also} {share}Both scales are logarithmic: a migration converges where bars go "
        f"down by steps.{several}</p>"
        '<div class="charts"><figure><h3>Pages</h3>'
        f"{_chart(names, pages, '{:,}'.format, 10, '')}</figure>"
        f"<figure><h3>Bytes on the wire</h3>{_chart(names, wire, size_text, 32, ' wire')}</figure>"
        "</div>"
        f"{_long_table(heads, rows, len(passes), 'passes')}"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


# Bars with a logarithmic scale: lines at powers of `base`, from 1 on.
def _chart(
    names: Sequence[str], values: Sequence[int], told: Callable[[int], str], base: int, css: str
) -> str:
    width, height, left, top, low = 520, 210, 76, 20, 22
    tall = height - top - low
    low_power = max(0, math.floor(math.log(max(1, min((v for v in values if v), default=1)), base)))
    low_power = max(0, low_power - 1) if base == 10 else low_power
    high_power = max(low_power + 1, math.ceil(math.log(max(1, *values), base)))
    span = high_power - low_power

    def y(value: int) -> float:
        share = (math.log(max(value, 1), base) - low_power) / span
        return top + tall * (1 - min(1.0, max(0.0, share)))

    lines = []
    for power in range(low_power, high_power + 1):
        at = y(base**power)
        lines.append(
            f'<line class="grid" x1="{left}" x2="{width}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{told(base**power)}</text>'
        )
    room = (width - left) / len(values)
    wide = min(46.0, room * 0.72)
    every = -(-len(values) // 12)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        x = left + room * (i + 0.5)
        if value:
            at = y(value)
            # A bar of the least that is drawn can be seen, too.
            tallness = max(2.0, top + tall - at)
            lines.append(
                f'<rect x="{x - wide / 2:.1f}" y="{top + tall - tallness:.1f}" width="{wide:.1f}" '
                f'height="{tallness:.1f}"><title>pass {name}: {told(value)}</title></rect>'
            )
            if len(values) <= _VALUES_SHOWN:
                lines.append(
                    f'<text class="value" x="{x:.1f}" y="{top + tall - tallness - 5:.1f}" '
                    f'text-anchor="middle">{told(value)}</text>'
                )
        if i % every == 0:
            begin = name.partition("-")[0]
            lines.append(f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{begin}</text>')
    return (
        f'<svg class="chart{css}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Bars of passes">{"".join(lines)}</svg>'
    )


# ---- sections ----------------------------------------------------------------------------------


def _sections(report: StreamReport) -> str:
    extents = report.extents
    if not extents:
        return ""
    rest = [e for e in extents if e.kind not in ("ram", "live")]
    total = sum(e.end - e.offset for e in extents)
    used = [k for k in _KINDS if any(e.kind == k for e in extents)]
    legend = "".join(
        f'<li><svg width="14" height="14" aria-hidden="true"><rect class="x-{k}" width="14" '
        f'height="14"/></svg><span>{_KINDS[k]} <span class="count">'
        f"{size_text(sum(e.end - e.offset for e in extents if e.kind == k))}</span></span></li>"
        for k in used
    )
    strips = _strip("The whole stream", extents)
    if rest and len(rest) < len(extents):
        strips += _strip("All but iterable sections", rest)
    devices = [e for e in rest if e.kind == "device"]
    if devices and len(devices) < len(rest):
        strips += _strip("Devices", devices)
    by_size = sorted(report.inspect.sections, key=lambda s: -s.size)
    rows = [_section_row(s, total) for s in by_size[:_MOST_ROWS]]
    heads = ("Section", ">Version", "Kind", ">Offset", ">Bytes", ">Of the stream", "End found by")
    return (
        f'<h2>Sections</h2><p class="note">To scale, in the order of the stream; what is under the '
        f'pointer is named. Below, the largest first.</p><ul class="legend always">'
        f"{legend}</ul>{strips}{_long_table(heads, rows, len(by_size), 'sections')}"
    )


def _strip(title: str, extents: Sequence[ExtentReport]) -> str:
    total = sum(e.end - e.offset for e in extents) or 1
    x, odd, made = 0.0, False, []
    for e in extents:
        wide = (e.end - e.offset) / total * 1024
        odd = not odd if e.kind == "device" else odd
        css = f"x-{e.kind}{' odd' if odd and e.kind == 'device' else ''}"
        made.append(
            f'<rect class="{css}" x="{x:.3f}" width="{wide:.3f}" height="38"><title>'
            f"{_text(e.name)}\n{size_text(e.end - e.offset)} at {e.offset:#x}</title></rect>"
        )
        x += wide
    return (
        f"<h3>{title}, {size_text(total)}</h3>"
        '<svg class="strip" viewBox="0 0 1024 38" preserveAspectRatio="none" role="img" '
        f'aria-label="Sections to scale">{"".join(made)}</svg>'
    )


def _percent(part: int, whole: int) -> str:
    share = part / max(1, whole)
    return f"{share:.2%}" if share >= 0.0001 else "below 0.01%"


def _section_row(section: SectionReport, total: int) -> tuple[str, ...]:
    kind = "iterable" if section.section_type == "START" else "device"
    parts = f", {section.parts:,} parts" if section.parts > 1 else ""
    instance = f"[{section.instance_id}]" if section.instance_id else ""
    return (
        _text(section.idstr) + instance, str(section.version_id), kind + parts,
        f"<code>{section.offset:#x}</code>", f"{section.size:,}",
        _percent(section.size, total), _text(section.framing),
    )  # fmt: skip


# ---- CPUs --------------------------------------------------------------------------------------


def _cpus(report: StreamReport) -> str:
    if report.no_cpus is not None:
        return f'<h2>CPUs</h2><p class="note">{_text(report.no_cpus, _MOST_MESSAGE)}</p>'
    made, left = [], _MOST_CPUS
    for i, cpu in enumerate(report.cpus):
        text = _cpu(cpu, opened=i == 0)
        left -= len(text)
        if left < 0:
            break
        made.append(text)
    more = report.cpu_count - len(made)
    also = (
        f'<p class="note">{more:,} more are not shown: <code>vmstream cpus</code> has them.</p>'
        if more
        else ""
    )
    return f"<h2>CPUs</h2>{''.join(made)}{also}"


def _cpu(cpu: CPUReport, *, opened: bool) -> str:
    halted = ", halted" if cpu.halted else ""
    flags = f"; flags {_words(cpu.flags, '')}" if cpu.flags else ""
    groups: dict[bool, list[str]] = {True: [], False: []}
    for name, registers in cpu.registers.items():
        items = "".join(
            f"<div><dt>{_text(register)}</dt><dd>{value:#x}</dd></div>"
            for register, value in registers.items()
        )
        wide = " wide" if any(value >> 64 for value in registers.values()) else ""
        groups[name in _AT_FIRST].append(
            f'<h3>{_text(name)}</h3><dl class="registers{wide}">{items}</dl>'
        )
    rest = ""
    if groups[False]:
        names = ", ".join(name for name in cpu.registers if name not in _AT_FIRST)
        rest = f'<details class="more"><summary>{_text(names)}</summary>'
        rest += f"{''.join(groups[False])}</details>"
    return (
        f'<details class="cpu"{" open" if opened else ""}><summary><b>CPU {cpu.instance_id}</b>'
        f"<span>{_text(cpu.architecture)}, {_text(cpu.mode)}{halted}{flags}</span></summary>"
        f"{''.join(groups[True])}{rest}</details>"
    )


# ---- devices -----------------------------------------------------------------------------------


class _Room:
    """Bytes that are left."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, text: str) -> str:
        """Return the text, or nothing where there is no more room."""
        self.left -= len(text)
        return text if self.left >= 0 else ""


def _devices(report: StreamReport) -> str:
    if not report.devices:
        return ""
    room = _Room(_MOST_DEVICES)
    made = "".join(_device(d, room) for d in report.devices)
    if report.described == "none":
        note = "The stream has no vmdescription, so that nothing in these has a name."
    else:
        note = (
            "State by the names that the stream gives. Fields of nothing but zeros are told "
            "together, and long values are cut."
        )
    if room.left < 0:
        note += " There is more than fits: <code>vmstream devices</code> has all of it."
    box = (
        '<div class="search script-only" role="search"><input type="search" autocomplete="off" '
        'placeholder="Find a device, field or value ( / )" '
        'aria-label="Find a device, field or value" spellcheck="false">'
        '<output aria-live="polite"></output></div>'
    )
    return f'<h2>Devices</h2><p class="note">{note}</p>{box}<ul class="tree">{made}</ul>'


def _device(device: FieldReport, room: _Room) -> str:
    told = f"v{device.version}, {size_text(device.size)} at {device.offset:#x}"
    head = room.take(
        f"<li><details><summary><b>{_text(device.name)}</b><small>{told}</small></summary><ul>"
    )
    if not head:
        return ""
    fields = device.fields or ([] if device.value is None else [device])
    inner = "".join(_field(f, room) for f in fields) + _left_out(device)
    return f"{head}{inner}</ul></details></li>\n"


def _field(field: FieldReport, room: _Room) -> str:
    if not field.fields:
        return room.take(_leaf(field))
    told = "" if field.version is None else f"v{field.version}, "
    told += f"{_text(field.type)}, {size_text(field.size)}"
    said = f"; {_text(field.meaning)}" if field.meaning else ""
    head = room.take(
        f"<li><details><summary><i>{_text(field.name)}</i><small>{told}{said}</small></summary><ul>"
    )
    if not head:
        return ""
    inner = "".join(_field(f, room) for f in field.fields) + _left_out(field)
    return f"{head}{inner}</ul></details></li>"


def _left_out(field: FieldReport) -> str:
    return f"<li><small>and {field.left_out:,} more</small></li>" if field.left_out else ""


def _leaf(field: FieldReport) -> str:
    name = _text(field.name if field.until is None else f"{field.name} to {field.until}")
    said = f"<small>{_text(field.meaning)}</small>" if field.meaning else ""
    where = f"{_text(field.type)}, {size_text(field.size)} at {field.offset:#x}"
    return f'<li title="{where}"><i>{name}</i>{_value(field)}{said}</li>'


def _value(field: FieldReport) -> str:
    value, more = field.value, " …" if field.cut else ""
    if field.type == "zeros":
        return f"zeros, {size_text(field.size)}"
    if field.type == "nullptr":
        return "NULL"
    if isinstance(value, list):
        runs = [(v, sum(1 for _ in same)) for v, same in groupby(value)]
        return " ".join(f"{v:#x}" + (f" x{n}" if n > 1 else "") for v, n in runs) + more
    if isinstance(value, str):
        if not value.strip("0") and not field.cut:
            return "zeros" if value else "empty"
        return " ".join(value[i : i + 2] for i in range(0, len(value), 2)) + more
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if field.type.startswith("int") or value < _PLAIN:
        return str(value)
    return f"{value:#x} ({value})" if value < _LARGE else f"{value:#x}"
