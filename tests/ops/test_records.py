"""The lines of `records` against the items that the writer wrote, however the input is cut."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.channelwriter import ChannelWriter
from tests.decoding import BytesSource, CutSource
from tests.ops.test_extract import pipe_of
from tests.strategies import examples, streams
from tests.streamwriter import Device, Field, Item, RamBlock, StreamWriter, simple_stream
from tests.truth import channel_names, fixture_file, load_manifest, open_fixture
from vmstream.ops.channels import Channels
from vmstream.ops.records import KINDS, Records
from vmstream.report.jsonout import record
from vmstream.report.models.records import RECORDS_SCHEMA, RecordReport
from vmstream.transport.source import OpenSource, Source

PAGE = 4096
PAGES = {"PAGE": "normal", "ZERO": "zero", "XBZRLE": "xbzrle", "COMPRESS_PAGE": "compressed"}
TYPES = {
    "HEADER": "header",
    "CONFIGURATION": "configuration",
    "START": "section",
    "PART": "section",
    "END": "section",
    "FULL": "section",
    "BLOCKS": "ram-blocks",
    "EOS": "ram-control",
    "MULTIFD_FLUSH": "ram-control",
    "LIVE": "live",
    "PAYLOAD": "payload",
    "FOOTER": "footer",
    "COMMAND": "command",
    "EOF": "eof",
    "VMDESCRIPTION": "vmdescription",
    "PADDING": "padding",
}


def lines(data: bytes, source: Source | None = None, **options: Any) -> list[RecordReport]:
    return list(Records(BytesSource(data) if source is None else source, **options))


def tiny(data: bytes, seed: int = 1) -> CutSource:
    rng = random.Random(seed)
    return CutSource(data, lambda _o, _n: rng.choice((1, 9, 50, 4113)), late_end=bool(seed % 2))


def told(items: list[RecordReport]) -> list[RecordReport]:
    """Without the anomalies, which have no bytes."""
    return [item for item in items if item.type != "anomaly"]


def follows(first: Item, second: Item, page_size: int) -> bool:
    """Whether two page records of the writer are of one run."""
    a, b = first.attrs, second.attrs
    same = first.kind == second.kind and a["block"] == b["block"]
    same = same and first.stop - first.offset == second.stop - second.offset
    return same and first.stop == second.offset and b["address"] == a["address"] + page_size


def check_against(w: StreamWriter, found: list[RecordReport]) -> None:
    """Every item is there once, at its offset; pages of a run are one line, as long as it goes."""
    items = [item for item in w.items if item.kind not in ("RAW", "PACKAGE")]
    lines = iter(found)
    at = 0
    while at < len(items):
        item, line = items[at], next(lines)
        assert line.offset == item.offset
        if item.kind not in PAGES:
            assert line.type == TYPES[item.kind]
            assert line.end == item.stop
            check_fields(item, line.fields)
            at += 1
            continue
        stop = at + 1
        while stop < len(items) and items[stop].kind in PAGES:
            if not follows(items[stop - 1], items[stop], w.page_size):
                break
            stop += 1
        assert line.type == "pages"
        assert line.end == items[stop - 1].stop
        assert line.fields["kind"] == PAGES[item.kind]
        assert line.fields["block"] == item.attrs["block"]
        assert line.fields["block_offset"] == item.attrs["address"]
        assert line.fields["count"] == stop - at
        assert line.fields["page_size"] == w.page_size
        assert line.fields["record_size"] == item.stop - item.offset
        at = stop
    assert not list(lines)


def check_fields(item: Item, fields: dict[str, object]) -> None:
    attrs = item.attrs
    if item.kind in ("START", "FULL"):
        for name in ("section_id", "idstr", "instance_id", "version_id"):
            assert fields[name] == attrs[name]
    if item.kind in ("START", "PART", "END", "FULL"):
        assert fields["section_type"] == item.kind
        assert fields["section_id"] == attrs["section_id"]
    elif item.kind == "FOOTER":
        assert fields == {"section_id": attrs["section_id"]}
    elif item.kind in ("EOS", "MULTIFD_FLUSH"):
        assert fields == {"flag": item.kind}
    elif item.kind == "BLOCKS":
        assert fields["total"] == attrs["total"]
        blocks: Any = fields["blocks"]
        sizes = [(b["idstr"], b["used_length"]) for b in blocks]
        assert sizes == [(b.idstr, b.length) for b in attrs["blocks"]]
    elif item.kind == "COMMAND":
        assert fields["cmd"] == attrs["command"]
        assert fields["data"] == attrs["payload"].hex()
    elif item.kind == "CONFIGURATION":
        assert fields["machine"] == attrs["machine"]
        assert fields.get("target_page_bits") == attrs["page_bits"]
        assert fields.get("uuid") == (attrs["uuid"].hex() if attrs["uuid"] else None)
    elif item.kind == "LIVE":
        assert fields["section_id"] == attrs["section_id"]
        assert fields["kind"] == attrs["record"]
    elif item.kind == "EOF":
        assert fields == {"inferred": False}


# A stream with neither footers nor a description has device state that cannot be told apart.
framed = st.one_of(
    streams(footers=True, xbzrle=True, compress=True, fills=True),
    streams(vmdescription=True, xbzrle=True, compress=True, fills=True),
)


@given(framed, st.integers(0, 1 << 16))
@settings(max_examples=examples(80))
def test_items(w: StreamWriter, seed: int) -> None:
    data = bytes(w)
    found = lines(data, page_size=w.page_size)
    check_against(w, told(found))
    assert lines(data, tiny(data, seed), page_size=w.page_size) == found


@given(framed)
@settings(max_examples=examples(40))
def test_lines_tile_the_stream(w: StreamWriter) -> None:
    data = bytes(w)
    at = 0
    for item in told(lines(data, page_size=w.page_size)):
        assert item.offset == at
        at = item.end
        # Maximal runs: the next one could not have been joined.
    assert at == len(data)


def test_runs_are_joined_across_batches() -> None:
    """More pages than a batch holds are one line."""
    count = 300_000
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_id = 1
    w.start(1, "ram", 0, 4)
    size = (count + 1) * PAGE
    w.raw((size | 4).to_bytes(8, "big") + b"\x03mem" + size.to_bytes(8, "big"))
    w.eos()
    w.footer(1)
    with w.ram_part():
        w.raw((8).to_bytes(8, "big") + b"\x03mem" + b"\1" * PAGE)
        first = w.offset
        w.raw(b"".join((n * PAGE | 0x22).to_bytes(8, "big") + b"\0" for n in range(1, count + 1)))
        last = w.offset
    with w.ram_end():
        pass
    w.eof()
    data = bytes(w)
    pages = [i for i in lines(data) if i.type == "pages"]
    assert [(i.offset, i.end, i.fields["count"]) for i in pages][1:] == [(first, last, count)]
    assert [i for i in lines(data, tiny(data)) if i.type == "pages"] == pages


def test_what_looks_like_a_run() -> None:
    """Pages in sequence, of one size on the wire: but of two blocks, kinds or directions."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("a", 16 * PAGE), RamBlock("b", 16 * PAGE)])
    with w.ram_part():
        for page in range(8):
            w.page("ab"[page % 2], page * PAGE, b"\1" * PAGE)
        for page in (8, 9, 9, 8, 10, 11):
            w.page("b", page * PAGE, b"\2" * PAGE)
        for page in (1, 2):
            w.xbzrle("b", page * PAGE, b"\0\2AB")
        w.compress_page("b", 3 * PAGE, b"x", truth=False)
        w.xbzrle("b", 4 * PAGE, b"\0\3ABC")
    with w.ram_part():
        w.page("b", 12 * PAGE, b"\3" * PAGE)
    with w.ram_part():
        w.page("b", 13 * PAGE, b"\3" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    data = bytes(w)
    found = lines(data)
    check_against(w, told(found))
    assert lines(data, tiny(data)) == found


@pytest.mark.parametrize("name", ["plain-7.2-pc", "postcopy-11.1-pc.ch0", "s390x-10.0"])
def test_file_and_pipe(name: str, tmp_path: Path) -> None:
    data = open_fixture(name)
    found = lines(data)
    with OpenSource(fixture_file(name, tmp_path)) as source:
        assert lines(data, source) == found
    with pipe_of(data) as source:
        assert lines(data, source) == found
    seen = {item.type for item in found}
    assert {"header", "configuration", "section", "pages", "footer", "payload", "eof"} <= seen


@pytest.mark.parametrize("name", ["interrupted-pipe-11.1-pc", "old-5.2-pc-i440fx-2.1"])
def test_file_and_tiny_windows(name: str) -> None:
    data = open_fixture(name)
    found = lines(data)
    sizes = itertools.cycle((9, 4113, 100, 1 << 16))
    assert lines(data, CutSource(data, lambda _o, _n: next(sizes))) == found
    assert found[-1].end == len(data) or found[-1].type == "anomaly"


# -- what is asked for ----------------------------------------------------------------------------


# Iterable sections other than RAM: name, version, bodies.
LIVE: tuple[tuple[str, int, dict[str, list[sw.LiveBytes]]], ...] = (
    (
        "block",
        1,
        {
            "START": [sw.block_chunk("vda", 0, None), sw.block_end()],
            "END": [sw.block_progress(100), sw.block_end()],
        },
    ),
    (
        "dirty-bitmap",
        1,
        {
            "START": [sw.bitmap_start("n", "b", 512, 3), sw.bitmap_end()],
            "END": [sw.bitmap_bits(8, 8, b"\x81"), sw.bitmap_complete(), sw.bitmap_end()],
        },
    ),
    (
        "spapr/htab",
        1,
        {
            "START": [sw.htab_head(20)],
            "END": [sw.htab_head(0), sw.htab_chunk(5, [bytes(16)] * 2, 3), sw.htab_end()],
        },
    ),
    (
        "s390-storage_attributes",
        0,
        {
            "START": [sw.storage_end()],
            "END": [sw.storage_values(0x3000, b"abc"), sw.storage_done(), sw.storage_end()],
        },
    ),
    (
        "0000:00:04.0/vfio",
        1,
        {
            "START": [sw.vfio_tag(3), sw.vfio_tag(1)],
            "END": [sw.vfio_data(b"state"), sw.vfio_tag(1)],
        },
    ),
    ("pbs-state", 1, {"START": [sw.pbs_state(b"{}")]}),
)


def everything() -> StreamWriter:
    """One stream with all there is."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0", uuid=bytes(range(16)))
    w.open_return_path()
    w.ping(7)
    w.postcopy_advise()
    w.ram_start([RamBlock("mem", 16 * PAGE), RamBlock("größe", 4 * PAGE)])
    with w.ram_part():
        for page in range(8):
            w.page("mem", page * PAGE, bytes([page + 1]) * PAGE)
        for page in range(8, 16):
            w.zero("mem", page * PAGE)
        for page in range(4):
            w.zero("größe", page * PAGE)
        w.multifd_flush()
    with w.ram_part():
        w.xbzrle("mem", 0, b"\0\2AB")
        w.compress_page("mem", PAGE, b"blob", truth=False)
    w.live_section("START", 40, b"abc", "other")
    w.live_section("PART", 40, b"defg")
    w.live_section("END", 40, b"")
    for section_id, (name, version, parts) in enumerate(LIVE, 50):
        for kind, records in parts.items():
            w.live_records(kind, section_id, records, name, version)
    w.switchover_start()
    with w.ram_end():
        pass
    w.device(Device("timer", 0, 2, [Field("ticks", "int64", bytes(range(8)))]))
    w.device(Device("cpu", 1, 3))
    w.eof()
    w.vmdescription()
    w.padding(100)
    return w


# Where these are, there are no page records, or they are in another channel.
ELSEWHERE = ("mapped-block", "unset", "channel", "packet", "device-state")


def test_everything_is_there() -> None:
    w = everything()
    found = lines(bytes(w))
    check_against(w, told(found))
    seen = {item.type for item in found} | {
        str(item.fields["kind"]) for item in found if item.type in ("pages", "live")
    }
    assert set(KINDS) - seen <= {"gap", "anomaly", *ELSEWHERE}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    data = bytes(everything())
    found = [i for i in lines(data) if kind in (i.type, i.fields.get("kind"))]
    assert lines(data, kinds=(kind,)) == found
    assert bool(found) == (kind not in ("gap", "anomaly", *ELSEWHERE))


def in_channels(
    tmp_path: Path, *, begin: int = 0, end: int | None = None, kinds: tuple[str, ...] = ()
) -> list[RecordReport]:
    name = "multifd-zstd-11.1-pc.ch0"
    paths = [fixture_file(n, tmp_path) for n in channel_names(name)]
    with Channels(paths) as beside:
        source = BytesSource(open_fixture(name))
        return list(Records(source, begin=begin, end=end, kinds=kinds, channels=beside))


def test_channels(tmp_path: Path) -> None:
    """Every byte of each file is in one item of its own, and the main channel's are as without."""
    found = in_channels(tmp_path)
    assert [i for i in found if i.channel is None] == lines(
        open_fixture("multifd-zstd-11.1-pc.ch0")
    )
    names = [n for n in dict.fromkeys(i.channel for i in found) if n is not None]
    assert [Path(n).name for n in names] == [
        "multifd-zstd-11.1-pc.ch1.qevm", "multifd-zstd-11.1-pc.ch2.qevm",
    ]  # fmt: skip
    for name in names:
        items = [i for i in found if i.channel == name]
        assert items[0].type == "channel"
        assert {i.type for i in items[1:]} == {"packet"}
        at = 0
        for item in items:
            assert item.offset == at
            at = item.end
        assert at == Path(name).stat().st_size
    packets = [i.fields for i in found if i.type == "packet"]
    runs: Any = [r for p in packets for r in (*p.get("normal", ()), *p.get("zero", ()))]
    counts = load_manifest("multifd-zstd-11.1-pc.ch0")["query_migrate"]["ram"]
    assert sum(n for _, n in runs) == counts["normal"] + counts["duplicate"]
    assert {p["compression"] for p in packets if p.get("normal")} == {"zstd"}
    # A mark of the main channel stands in front of the SYNC packets.
    order = [i.fields.get("flag", i.fields.get("sync")) for i in found
             if i.type in ("ram-control", "packet")]  # fmt: skip
    assert order[:3] == ["MULTIFD_FLUSH", True, True]


def test_a_range_is_of_the_main_channel(tmp_path: Path) -> None:
    found = in_channels(tmp_path, begin=8, end=0x200)
    assert found == lines(open_fixture("multifd-zstd-11.1-pc.ch0"), begin=8, end=0x200)
    assert {i.type for i in in_channels(tmp_path, kinds=("packet",))} == {"packet"}


def test_device_state_in_a_channel(tmp_path: Path) -> None:
    w = ChannelWriter()
    w.init()
    w.device_state("0000:00:03.0/vfio", 4, b"abc")
    (tmp_path / "ch0").write_bytes(bytes(w))
    with Channels([tmp_path / "ch0"]) as beside:
        found = list(Records(BytesSource(bytes(simple_stream())), channels=beside))
    (item,) = [i for i in found if i.type == "device-state"]
    assert item.fields == {
        "idstr": "0000:00:03.0/vfio", "instance_id": 4, "size": 3, "final": True,
    }  # fmt: skip


def test_mapped_ram() -> None:
    """Its headers, and runs of pages that are there or not, which fill the areas."""
    found = lines(open_fixture("mapped-10.0-pc"))
    assert {i.fields["kind"] for i in found if i.type == "pages"} == {"normal", "unset"}
    headers = [i for i in found if i.type == "mapped-block"]
    blocks = next(i.fields["blocks"] for i in found if i.type == "ram-blocks")
    assert isinstance(blocks, list)
    assert [h.fields["block_index"] for h in headers] == list(range(len(blocks)))
    for block in blocks:
        pages = [i for i in found if i.fields.get("block") == block["idstr"]]
        assert sum(i.end - i.offset for i in pages) == block["used_length"]
    assert [i for i in found if i.fields.get("kind") == "unset"] == lines(
        open_fixture("mapped-10.0-pc"), kinds=("unset",)
    )


def test_what_records_of_iterable_sections_say() -> None:
    """By the names that they have in the field."""
    found = [i.fields for i in lines(bytes(everything())) if i.type == "live"]
    said = {str(f["kind"]): {k: v for k, v in f.items() if k not in ("kind", "section_id")}
            for f in found}  # fmt: skip
    assert all(f.pop("final") is True for f in said.values())
    assert said == {
        "block-chunk": {"device": "vda", "device_offset": 0, "zero": True},
        "block-progress": {"percent": 100},
        "bitmap-start": {
            "node": "n", "name": "b", "granularity": 512, "enabled": True, "persistent": True
        },
        "bitmap-bits": {
            "node": "n", "name": "b", "disk_offset": 4096, "length": 4096, "zeroes": False,
            "data": "81",
        },
        "bitmap-complete": {"node": "n", "name": "b"},
        "htab-head": {"htab_shift": 0},
        "htab-chunk": {"index": 5, "n_valid": 2, "n_invalid": 3},
        "storage-values": {"gpa": 0x3000, "count": 3},
        "storage-done": {},
        "vfio-tag": {"tag": "DEV_SETUP_STATE"},
        "vfio-data": {"size": 5},
        "pbs-state": {"size": 2},
        "live-end": {},
    }  # fmt: skip


def test_stretches_of_a_long_record_are_one_line() -> None:
    w = StreamWriter()
    w.header()
    w.live_records("START", 3, [sw.pbs_state(b"\x55" * (3 << 20))], "pbs-state")
    w.eof()
    data = bytes(w)
    found = lines(data)
    assert [i.type for i in told(found)] == ["header", "section", "live", "footer", "eof"]
    source = CutSource(data, lambda _o, _n: 100_000)
    assert lines(data, source) == found
    assert found[2].fields["size"] == 3 << 20


def test_several_kinds() -> None:
    data = bytes(everything())
    found = lines(data, kinds=("zero", "footer", "eof"))
    assert [i for i in lines(data) if i in found] == found
    assert {i.type for i in found} == {"pages", "footer", "eof"}
    assert {i.fields["kind"] for i in found if i.type == "pages"} == {"zero"}


def test_kinds_with_damage() -> None:
    data = bytearray(bytes(everything()))
    (footer, *_) = everything().items_of("FOOTER")
    data[footer.offset] = 0x7F
    found = lines(bytes(data), kinds=("gap", "anomaly"))
    assert {i.type for i in found} == {"gap", "anomaly"}
    anomaly = next(i for i in found if i.type == "anomaly")
    assert anomaly.offset == anomaly.end
    assert anomaly.fields["severity"] == "error"
    assert anomaly.fields["code"] == "format"


@given(framed, st.data())
@settings(max_examples=examples(60))
def test_range(w: StreamWriter, data: st.DataObject) -> None:
    """Items with bytes in the range, whole."""
    raw = bytes(w)
    begin = data.draw(st.integers(0, len(raw) + 10))
    end = data.draw(st.one_of(st.none(), st.integers(begin, len(raw) + 20)))
    every = told(lines(raw, page_size=w.page_size))
    found = told(lines(raw, begin=begin, end=end, page_size=w.page_size))
    want = [
        i
        for i in every
        if (i.end > begin or i.offset == i.end == begin) and (end is None or i.offset < end)
    ]
    assert found == want


def test_range_edges() -> None:
    w = everything()
    data = bytes(w)
    every = told(lines(data))
    for item in (every[0], every[7], every[-1]):
        if item.offset == item.end:
            continue
        assert lines(data, begin=item.offset, end=item.end) == [item]
        assert lines(data, begin=item.end - 1, end=item.end) == [item]
        assert item not in lines(data, begin=item.end, end=item.end + 1)
    assert lines(data, begin=len(data)) == []
    assert lines(data, begin=0, end=0) == []


def test_reading_stops_at_the_end_of_the_range() -> None:
    data = open_fixture("plain-7.2-pc")
    furthest = 0

    def need_only(offset: int, need: int) -> int:
        nonlocal furthest
        furthest = max(furthest, offset + need)
        return need

    found = lines(data, CutSource(data, need_only), end=0x8000)
    assert found == [i for i in lines(data) if i.offset < 0x8000]
    assert furthest < len(data) // 2


# -- JSON -----------------------------------------------------------------------------------------


def test_json() -> None:
    for item in lines(bytes(everything())):
        text = record(item)
        assert "\n" not in text
        found = json.loads(text)
        assert list(found)[:4] == ["schema", "type", "offset", "end"]
        assert found["schema"] == RECORDS_SCHEMA == "vmstream.records/1"
        assert {k: v for k, v in found.items() if k in item.fields} == json.loads(
            json.dumps(item.fields)
        )


def test_names_that_are_no_text() -> None:
    """Readable, and in full beside it."""
    w = simple_stream({"ab": {0: b"\1" * PAGE, PAGE: b""}})
    data = bytes(w).replace(b"\2ab", b"\2\xff\x9b").replace(b"pc-i440fx-7.2", b"pc-i440fx-7.\xf0")
    blocks, pages, config = (
        next(i for i in lines(data) if i.type == t)
        for t in ("ram-blocks", "pages", "configuration")
    )
    listed: Any = blocks.fields["blocks"]
    assert listed == [{"idstr": r"\xff\x9b", "idstr_b64": "/5s=", "used_length": 2 * PAGE}]
    assert pages.fields["block"] == r"\xff\x9b"
    assert pages.fields["block_b64"] == "/5s="
    assert config.fields["machine"] == r"pc-i440fx-7.\xf0"
    assert "machine_b64" in config.fields


def test_commands_have_their_numbers() -> None:
    found = {i.fields["name"]: i.fields for i in lines(bytes(everything())) if i.type == "command"}
    assert found["PING"]["data"] == "00000007"
    assert 7 in found["PING"].values()
    assert found["OPEN_RETURN_PATH"] == {"cmd": 1, "name": "OPEN_RETURN_PATH", "data": ""}
    assert 4096 in found["POSTCOPY_ADVISE"].values()
    assert found["SWITCHOVER_START"]["cmd"] == 11


def test_findings() -> None:
    data = bytes(everything())
    records = Records(BytesSource(data))
    assert list(records)
    assert records.findings.exit_code == 0
    cut = Records(BytesSource(data[:3000]))
    found = list(cut)
    assert cut.findings.exit_code == 3
    assert any(i.type == "anomaly" and i.fields["code"] == "truncated" for i in found)
    assert told(found)[-1].end == 3000


def test_an_iterator_that_is_left() -> None:
    with contextlib.closing(iter(Records(BytesSource(bytes(everything()))))) as items:
        assert next(items).type == "header"
