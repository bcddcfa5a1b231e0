"""What people see: whole, and harmless whatever names a stream has."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests import streamwriter as sw
from tests.commandline import environment, on_terminal, vmstream
from tests.decoding import BytesSource
from tests.qcow2images import Saved, build
from tests.streamwriter import Device, Field, RamBlock, StreamWriter
from tests.truth import fixture_file, fixture_names, open_fixture
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.extract_block import BlockOptions, extract_block
from vmstream.ops.inspect import inspect
from vmstream.ops.records import Records
from vmstream.ops.snapshots import snapshots
from vmstream.report.models.inspect import InspectReport
from vmstream.report.render import (
    clock_text,
    console,
    printable,
    record_line,
    render_extract,
    render_extract_block,
    render_inspect,
    render_snapshots,
    size_text,
)
from vmstream.transport.source import OpenSource

PAGE = 4096

# Names that would colour, clear, retitle, overwrite or link something, or break the layout.
HOSTILE = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "a\rb", "a\nb", "a\tb", "a\bb", "\x9b31m",
    "\u202egpj.exe", "\u2028", "\u200b", "\x7f", "[bold]x[/bold]", "[/]", "[/red]", "[red",
    "[link=http://example.com]y[/link]", "\\[red]", "[[]]", ":smile:", "größe", "名前", "{0}", "%s",
    "'", '"', "`", "\\n", "\\\\", "[@click=x]z[/]", "a  b",
]  # fmt: skip
SGR = re.compile(r"\x1b\[[0-9;]*m")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:[349][0-9]|10[0-7])(?:;[0-9;]*)?m")


def hostile_stream() -> StreamWriter:
    """The names as machine, blocks, live sections and devices, and some findings."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-" + "".join(HOSTILE))
    w.ram_start([RamBlock(name, 2 * PAGE) for name in HOSTILE])
    with w.ram_part():
        for name in HOSTILE:
            w.page(name, 0, b"\1" * PAGE)
    with w.ram_part():
        for name in HOSTILE:
            w.page(name, 0, b"\2" * PAGE)
    # The end of a live section is inferred, and a name that does not print speaks against it.
    for i, name in enumerate(n for n in HOSTILE if n.isascii() and n.isprintable()):
        w.live_section("START", 1000 + i, b"x", name)
    with w.ram_end():
        pass
    for i, name in enumerate(HOSTILE):
        w.device(Device(name, i, 1, [Field("x", "uint8", b"1")]))
    w.eof()
    w.vmdescription()
    return w


def visible(name: str) -> str:
    """As it may be shown: what does not print is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def report_of(data: bytes) -> InspectReport:
    return inspect(BytesSource(data))[0]


def rendered(report: InspectReport, **flags: bool) -> str:
    out = io.StringIO()
    render_inspect(report, out=console(out), **flags)
    return out.getvalue()


LONG = {"devices": True, "sections": True, "passes": True}


def live_stream(names: list[str]) -> bytes:
    """Names of disks and bitmaps, which are any bytes; and every other iterable section."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("mem", PAGE)])
    sections: list[tuple[str, int, list[sw.LiveBytes], list[sw.LiveBytes]]] = [
        (
            "block",
            1,
            [sw.block_end()],
            [*(sw.block_chunk(name, 0, None) for name in names), sw.block_end()],
        ),
        (
            "dirty-bitmap",
            1,
            [*(sw.bitmap_start(name, name, 65536, 3) for name in names), sw.bitmap_end()],
            [sw.bitmap_bits(0, 128, b"\1" * 8, names[0], names[0]), sw.bitmap_end()],
        ),
        ("spapr/htab", 1, [sw.htab_head(20)], [sw.htab_head(0), sw.htab_end()]),
        (
            "s390-storage_attributes",
            0,
            [sw.storage_end()],
            [sw.storage_values(0, b"a" * 4000), sw.storage_end()],
        ),
        ("0:1/vfio", 1, [sw.vfio_tag(3), sw.vfio_tag(1)], [sw.vfio_data(b"abc"), sw.vfio_tag(1)]),
        ("pbs-state", 1, [sw.pbs_state(b"{}")], []),
    ]
    for i, (name, version, start, _) in enumerate(sections):
        w.live_records("START", 40 + i, start, name, version)
    for i, (_, _, _, end) in enumerate(sections):
        if end:
            w.live_records("END", 40 + i, end)
    with w.ram_end():
        w.zero("mem", 0)
    w.eof()
    w.vmdescription()
    return bytes(w)


def test_iterable_sections() -> None:
    lines = rendered(report_of(live_stream(["vda"]))).splitlines()
    chunks = "0 chunks of 1 MiB, 1 zero, 0 resent, 0 missing"
    said = [re.sub(r"\s+", " ", line) for line in lines]
    for line in (
        f"disk vda: {chunks}, the last ends at 0x100000 (size not stated)",
        "bitmap vda/vda: 1 bit set of 64 KiB each, enabled, persistent, not complete",
        "page table 1 MiB, 0 valid and 0 invalid entries sent",
        "s390 storage attributes of 4,000 pages in 1 range",
        "vfio 0:1/vfio: 3 bytes in 1 record",
        "pbs-state 2 bytes",
    ):
        assert line in said


def test_bits_are_in_the_json_alone() -> None:
    items = list(Records(BytesSource(live_stream(["vda"])), kinds=("bitmap-bits",)))
    (line,) = map(record_line, items)
    assert items[0].fields["data"] == "01" * 8
    assert line.endswith("node=vda name=vda disk_offset=0 length=65536 zeroes=False")


def test_a_guest_without_a_hash_page_table() -> None:
    w = StreamWriter()
    w.header()
    w.live_records("START", 3, [sw.htab_head(-1)], "spapr/htab")
    w.eof()
    assert "page table   none (radix), 0 valid" in rendered(report_of(bytes(w)))


def test_hostile_names_of_disks_and_bitmaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in HOSTILE if name][:10]
    path = tmp_path / "s"
    path.write_bytes(live_stream(names))
    text = rendered(report_of(path.read_bytes()))
    assert harmless(text)
    for name in names:
        assert f"disk         {visible(name)}: " in text
        assert f"bitmap       {visible(name)}/{visible(name)}: " in text
    with OpenSource(path) as source:
        report, _ = extract_block(source, BlockOptions(directory=tmp_path / "d"))
    render_extract_block(report)
    said = capsys.readouterr()
    assert harmless(said.out + said.err)
    for name in names:
        assert f": disk {visible(name)}, 1 MiB (inferred" in said.out


def test_many_disks_are_cut_and_it_is_said() -> None:
    text = rendered(report_of(live_stream([f"disk{i}" for i in range(25)])))
    assert text.count("disk         ") == 10
    assert text.count("  ... 15 more (--json)") == 2


# -- harmless -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, LONG, {"devices": True}])
def test_hostile_names_in_inspect(flags: dict[str, bool]) -> None:
    text = rendered(report_of(bytes(hostile_stream())), **flags)
    assert harmless(text)
    for name in HOSTILE:
        assert visible(name) in text, repr(name)


def test_hostile_names_are_shown_as_they_are() -> None:
    """In the table of blocks, each is what stands between the margin and the next column."""
    text = rendered(report_of(bytes(hostile_stream())))
    for name in HOSTILE:
        pattern = r"^  " + re.escape(visible(name)) + r"\s+0x2000\s+2\s+0\s+0\s+0\s"
        assert re.search(pattern, text, re.MULTILINE), repr(name)


def test_a_name_that_ends_in_a_backslash() -> None:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("a\\", PAGE), RamBlock("b\\\\", PAGE)])
    with w.ram_part():
        w.page("a\\", 0, b"\1" * PAGE)
        w.page("b\\\\", 0, b"\1" * PAGE)
    w.eof()
    text = rendered(report_of(bytes(w)))
    assert re.search(r"^  a\\\s+0x1000", text, re.MULTILINE)
    assert re.search(r"^  b\\\\\s+0x1000", text, re.MULTILINE)


def test_hostile_names_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "[red]s"
    path.write_bytes(bytes(hostile_stream()))
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=400, highlight=False, emoji=False)
    render_inspect(report_of(path.read_bytes()), out=screen, **LONG)
    text = out.getvalue()
    assert SGR.search(text)
    text = SGR.sub("", text)
    assert harmless(text)
    for name in HOSTILE:
        assert visible(name) in text, repr(name)
    seen = on_terminal("inspect", "--sections", path, columns=300).out
    # Only what rich does to draw and clear its bar: nothing of the names.
    left = re.sub(r"\x1b\[(?:\?25[lh]|[0-9;]*[mAK])", "", seen).replace("\r", "")
    assert harmless(left), sorted({c for c in left if not c.isprintable()})
    assert "[red]s: migration stream" in left


def test_hostile_names_in_records() -> None:
    data = bytes(hostile_stream())
    found = [record_line(item) for item in Records(BytesSource(data))]
    for line in found:
        assert line.isprintable()
        assert line == line.rstrip()
    text = "\n".join(found)
    for name in HOSTILE:
        assert visible(name) in text, repr(name)
    cut = [record_line(item) for item in Records(BytesSource(data[:-500].replace(b"~", b"?")))]
    assert all(line.isprintable() for line in cut)


def test_hostile_names_in_extract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    path.write_bytes(bytes(hostile_stream()))
    out = tmp_path / "[red]\x1b[31mout"
    source = BytesSource(path.read_bytes(), "[b]in\x1b[0m")
    report, code = extract(source, ExtractOptions(all_blocks=out, partial=True))
    assert code == 1, report.anomalies
    render_extract(report)
    told = capsys.readouterr()
    assert harmless(told.out)
    assert harmless(told.err)
    assert r"[red]\x1b[31mout/" in told.out
    for name in HOSTILE:
        assert visible(name) in told.out, repr(name)
        assert f"block {visible(name)} lacks 1 pages" in told.err.replace("page ", "pages ")


@pytest.mark.parametrize(
    "args",
    [
        ("inspect",), ("inspect", "--sections"), ("inspect", "--json"), ("records",),
        ("records", "--json"), ("extract-ram", "-o", "out", "--block", "\x1b[31m[red]"),
        ("extract-ram", "-o", "out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", [False, True])
def test_hostile_names_in_messages(args: tuple[str, ...], damage: bool, tmp_path: Path) -> None:
    data = bytearray(bytes(hostile_stream()))
    if damage:
        w = hostile_stream()
        page = w.items_of("PAGE")[3]
        data[page.offset + 9 : page.offset + 12] = b"\x1b]0"  # a block that the list does not have
        data = data[:-3000]
    stream = tmp_path / "s\x1b[31m\xff"
    stream.write_bytes(data)
    run = vmstream(args[0], stream, *args[1:], cwd=tmp_path)
    assert harmless(run.out)
    assert harmless(run.err)
    assert "Traceback" not in run.err
    if damage:
        assert run.status in (2, 3)
    missing = vmstream(*args, tmp_path / "no\x1b[31mwhere", cwd=tmp_path)
    assert missing.status == 6
    assert harmless(missing.err)
    assert r"no\x1b[31mwhere" in missing.err


def test_printable() -> None:
    for name in HOSTILE:
        out = io.StringIO()
        console(out).print(printable(name), soft_wrap=True)
        assert out.getvalue() == visible(name) + "\n"


# -- plain, or in colour --------------------------------------------------------------------------


def test_plain_where_it_is_no_terminal(tmp_path: Path) -> None:
    path = fixture_file("own-live-q35", tmp_path)
    for args in (("inspect", path, "--sections", "--passes"), ("records", path)):
        run = vmstream(*args, env=environment(TERM="xterm-256color"))
        assert run.status == 0
        assert run.err == ""
        assert harmless(run.out)
        assert all(line == line.rstrip() for line in run.out.splitlines() if "…" in line)


def test_colour_on_a_terminal(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    seen = on_terminal("inspect", path)
    assert seen.status == 0
    assert COLOUR.search(seen.out)
    assert "complete" in seen.out


@pytest.mark.parametrize("command", ["inspect", "extract-ram"])
def test_no_color(command: str, tmp_path: Path) -> None:
    path = fixture_file("numa-dimm-10.0-pc", tmp_path)
    more = ["-o", tmp_path / "image"] if command == "extract-ram" else []
    seen = on_terminal(command, path, *more, env={"NO_COLOR": "1"})
    assert not COLOUR.search(seen.out)
    assert "n0" in seen.out


def test_a_dumb_terminal(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    seen = on_terminal("inspect", path, env={"TERM": "dumb"})
    assert seen.status == 0
    assert not COLOUR.search(seen.out)


@pytest.mark.parametrize("columns", [80, 60, 200])
def test_no_number_is_cut_off(columns: int, tmp_path: Path) -> None:
    """However narrow the terminal is: half a number is a wrong number."""
    path = fixture_file("own-live-q35", tmp_path)
    report = report_of(path.read_bytes())
    text = SGR.sub("", on_terminal("inspect", path, columns=columns).out).replace("\r\n", "\n")
    (block,) = [b for b in report.ram_blocks if b.idstr == "mem"]
    assert block.pages is not None
    for number in (block.pages.normal, block.pages.zero, block.wire_bytes, block.pages_resent):
        assert f"{number:,}" in text.replace("\n", "")
    assert f"{block.used_length:#x}" in text
    assert "…" not in text


def test_long_names_do_not_hide_the_numbers() -> None:
    """A name can have 255 bytes, and must not push out what is missing."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("m" * 255, 1237 * PAGE), RamBlock("mem", PAGE)])
    with w.ram_part():
        w.page("m" * 255, 0, b"\1" * PAGE)
        w.page("mem", 0, b"\1" * PAGE)
    with w.ram_end():
        pass
    w.device(Device("d" * 255, 0x1234567, 89, [Field("x", "buffer", bytes(4567))]))
    w.eof()
    w.vmdescription()
    text = rendered(report_of(bytes(w)), sections=True)
    assert "1,236" in text  # missing
    assert f"{1237 * PAGE:#x}" in text
    assert "0x1234567" in text
    assert "4,567" in text


# -- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fixture_names())
def test_every_fixture(name: str) -> None:
    report = report_of(open_fixture(name))
    for flags in ({}, LONG):
        text = rendered(report, **flags)
        assert harmless(text)
        assert ("not complete" not in text) == report.complete
        assert (report.machine or "not stated") in text
        for block in report.ram_blocks:
            assert block.idstr in text
        for anomaly in report.anomalies[:10]:
            assert anomaly.message in text
    for section in report.sections:
        assert section.idstr in text


def test_lists_are_cut_and_it_is_said() -> None:
    report = report_of(open_fixture("own-live-q35"))
    passes = [dataclasses.replace(report.passes[0], number=i + 1) for i in range(50)]
    many = dataclasses.replace(report, passes=passes, pass_count=50)
    assert "44 more (--passes)" in rendered(many)
    assert "more (--passes)" not in rendered(many, passes=True)
    listed = [s for s in report.sections if s.section_type == "FULL"]
    many = dataclasses.replace(report, sections=listed * 10)
    assert f"{len(listed) * 10 - 60} more (--devices)" in rendered(many)
    assert "more (--devices)" not in rendered(many, devices=True)


def test_findings_are_cut_and_counted() -> None:
    report = report_of(open_fixture("interrupted-pipe-11.1-pc"))
    many = dataclasses.replace(report, anomalies=report.anomalies * 25, anomaly_count=25)
    text = rendered(many)
    assert re.search(r"^findings +25$", text, re.MULTILINE)
    assert text.count(report.anomalies[0].message) == 10
    assert "15 more (--json)" in text


def test_snapshots_with_hostile_names(tmp_path: Path) -> None:
    """Each on a line of its own, and nothing that a terminal would act on."""
    saved = [Saved(name, b"x", id=name) for name in [*HOSTILE, "x" * 5000]]
    with OpenSource(build(saved).write(tmp_path / "image")) as source:
        report, _ = snapshots(source)
    file = io.StringIO()
    render_snapshots(report, console(file))
    text = file.getvalue()
    assert harmless(text)
    assert len(text.splitlines()) == 2 + len(saved)
    for name in HOSTILE:
        assert visible(name) in text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0:00:00.000"),
        (999_999, "0:00:00.000"),
        (1_140_000_000, "0:00:01.140"),
        (59_999_999_999, "0:00:59.999"),
        (3_600_000_000_000, "1:00:00.000"),
        ((1 << 64) - 1, "5124095:34:33.709"),
    ],
)
def test_clock_text(nanoseconds: int, text: str) -> None:
    assert clock_text(nanoseconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (3 << 30, "3 GiB"),
        (5 << 40, "5 TiB"),
        (1 << 60, "1.049e+06 TiB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


# -- the encoding of the terminal -----------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("args", [("inspect",), ("records",), ("extract-ram", "--all-blocks", "o")])
def test_any_encoding(encoding: str, args: tuple[str, ...], tmp_path: Path) -> None:
    """A name that the encoding does not have is escaped, not an error."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock(name, PAGE) for name in ("größe", "名前")])
    with w.ram_part():
        for name in ("größe", "名前"):
            w.page(name, 0, b"\1" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    (tmp_path / "s").write_bytes(bytes(w))
    env = environment(PYTHONIOENCODING=encoding)
    run = vmstream(args[0], "s", *args[1:], cwd=tmp_path, env=env)
    assert "Traceback" not in run.err
    assert run.status == 0
    assert "gr" in run.out
    assert ("größe" in run.out and "名前" in run.out) or encoding != "utf-8"
