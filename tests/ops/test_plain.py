"""Streams made plain: the truth of every fixture, each page once, and the rest to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vmstream as library
from tests.decoding import decode
from tests.ops.test_channels import full, small
from tests.ops.test_extract import COMPLETE, INTERRUPTED, SHARED, rtc
from tests.streamwriter import RamBlock, StreamWriter
from tests.truth import (
    channel_names,
    check_block_bytes,
    fixture_file,
    fixture_names,
    known_blocks,
    load_manifest,
)
from vmstream.container.open import OpenStream
from vmstream.errors import EncodeError, StreamError
from vmstream.ops.channels import Channels
from vmstream.ops.edits import RewriteOptions
from vmstream.ops.rewrite import rewrite
from vmstream.report.models.rewrite import RewriteReport
from vmstream.stream.events import (
    Command,
    Configuration,
    Event,
    LiveRecord,
    MappedPages,
    PageBatch,
    Payload,
    RAMBlockList,
    SectionStart,
    VMDescription,
)
from vmstream.wire.constants import RAMSaveFlag, SectionType

PAGE = 4096
WITH_CHANNELS = [name for name in fixture_names("*.ch0") if channel_names(name)]
SIZES = 1 << 29  # what is read back in one piece


def squashed(path: Path, out: Path, *channels: Path, **options: object) -> RewriteReport:
    wanted = RewriteOptions(output=out, squash=True, **options)  # type: ignore[arg-type]
    with OpenStream(str(path)) as opened, Channels(channels) as beside:
        report, _ = rewrite(
            opened.source, wanted, None, opened.container, beside if channels else None
        )
    return report


def devices(found: list[Event]) -> list[tuple[bytes, int, int, int, bytes]]:
    """Each device section, in order: name, instance, version, id, body."""
    made: list[tuple[bytes, int, int, int, bytes]] = []
    for event in found:
        if isinstance(event, SectionStart):
            head = (event.idstr, event.instance_id, event.version_id, event.section_id)
            made.append((*head, b""))
        elif isinstance(event, Payload):
            made[-1] = (*made[-1][:4], made[-1][4] + bytes(event.data))
    return [m for m in made if m[4]]


def live(found: list[Event]) -> list[tuple[object, bytes]]:
    return [(e.record, bytes(e.data)) for e in found if isinstance(e, LiveRecord)]


def check_plain(found: list[Event]) -> None:
    """RAM has one START with a list and one END with its pages, each once and in order."""
    starts = [e for e in found if isinstance(e, SectionStart) and e.idstr == b"ram"]
    assert [s.section_type for s in starts] == [
        SectionType.QEMU_VM_SECTION_START,
        SectionType.QEMU_VM_SECTION_END,
    ]
    assert not [e for e in found if isinstance(e, (Command, MappedPages))]
    last = -1
    for batch in (e for e in found if isinstance(e, PageBatch)):
        assert batch.offset > starts[1].offset
        kinds = batch.flags & ~np.uint16(RAMSaveFlag.CONTINUE)
        assert set(kinds.tolist()) <= {RAMSaveFlag.PAGE, RAMSaveFlag.ZERO}
        for i in np.flatnonzero(kinds == RAMSaveFlag.PAGE).tolist()[:50]:
            assert any(batch.payload(i)), "a page of zeros as one with data"
        place = (batch.block.astype(np.int64) << 48) + batch.block_offset.view(np.int64)
        assert (np.diff(place, prepend=last) > 0).all()
        last = int(place[-1])


@pytest.mark.parametrize("name", sorted({*COMPLETE, *WITH_CHANNELS, *SHARED}))
def test_every_fixture(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    path, out = fixture_file(name, tmp_path), tmp_path / "out"
    report = squashed(path, out, *(fixture_file(n, tmp_path) for n in channel_names(name)))
    assert report.output_size == out.stat().st_size
    before, after = decode(path.read_bytes()).events, decode(out.read_bytes(), strict=True)
    assert after.error is None
    check_plain(after.events)
    assert devices(after.events) == devices(before)
    assert live(after.events) == live(before)
    mapped = b"mapped-ram"
    for old, new in zip(
        (e for e in before if isinstance(e, Configuration)),
        (e for e in after.events if isinstance(e, Configuration)),
        strict=True,
    ):
        assert (old.name, old.uuid, old.target_page_bits) == (
            new.name,
            new.uuid,
            new.target_page_bits,
        )
        assert new.capabilities == tuple(c for c in old.capabilities if c != mapped)
        if mapped not in old.capabilities:
            assert [e.text for e in before if isinstance(e, VMDescription)] == [
                e.text for e in after.events if isinstance(e, VMDescription)
            ]
    listed = next(e for e in after.events if isinstance(e, RAMBlockList))
    assert all(b.host_page_size is None for b in listed.blocks)
    with library.open(out) as stream, stream.memory() as memory:
        checked = 0
        for idstr in known_blocks(manifest):
            block = memory.block_index(idstr)
            length = memory.blocks[block].used_length
            if length <= SIZES and block not in memory.elsewhere:
                check_block_bytes(manifest, idstr, memory.read_block(idstr, 0, length))
                checked += 1
        assert checked or name in SHARED
    # Once more changes nothing.
    assert squashed(out, tmp_path / "again").change_count == 2
    assert (tmp_path / "again").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("name", INTERRUPTED)
def test_what_is_not_complete_is_refused(name: str, tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    with pytest.raises(StreamError) as raised:
        squashed(path, tmp_path / "out")
    assert "extract-ram --partial" in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# -- streams made for one question ---------------------------------------------------------------


def made(tmp_path: Path, w: StreamWriter, **options: object) -> tuple[list[Event], RewriteReport]:
    """What a stream of the tests becomes; the memory of both is the same."""
    path, out = tmp_path / "in", tmp_path / "out"
    path.write_bytes(bytes(w))
    report = squashed(path, out, **options)
    found = decode(out.read_bytes(), strict=True)
    assert found.error is None
    if "patches" not in options and "renames" not in options:
        with library.open(out) as stream, stream.memory() as memory:
            for idstr, content in w.blocks.items():
                assert (
                    memory.read_block(idstr or memory.blocks[0].idstr, 0, len(content)) == content
                )
    return found.events, report


def ended(w: StreamWriter) -> StreamWriter:
    with w.ram_end():
        pass
    w.device(rtc(8 * PAGE, 0))
    w.eof()
    w.vmdescription()
    return w


def test_pages_in_start(tmp_path: Path) -> None:
    """Old versions send some there, and so do hostile ones."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.start(1, "ram", 0, 4)
    w.block_list([RamBlock("mem", 8 * PAGE)])
    for page in range(8):
        w.page("mem", page * PAGE, bytes([page]) * PAGE)
    w.eos()
    w.footer(1)
    check_plain(made(tmp_path, ended(w))[0])


@pytest.mark.parametrize("footers", [True, False])
def test_one_flat_space(footers: bool, tmp_path: Path) -> None:
    """RAM section version 3: records without a name stay so."""
    w = StreamWriter(ram_version=3, footers=footers)
    w.header()
    w.ram_start([RamBlock("", 8 * PAGE)])
    for value in (1, 2):
        with w.ram_part():
            for page in range(8):
                w.page("", page * PAGE, bytes([value * (page % 3)]) * PAGE)
    found, _ = made(tmp_path, ended(w))
    assert [len(e) for e in found if isinstance(e, PageBatch)] == [8]
    with (
        OpenStream(tmp_path / "in") as opened,
        pytest.raises(EncodeError, match="configuration section"),
    ):
        options = RewriteOptions(output=tmp_path / "mapped", squash=True, mapped=True)
        rewrite(opened.source, options, None, opened.container)


def test_postcopy_with_a_live_section(tmp_path: Path) -> None:
    """Devices come out of the package; what is behind it that is no memory stays behind."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.open_return_path()
    w.postcopy_advise()
    w.ram_start([RamBlock("mem", 8 * PAGE, page_size=2 << 20), RamBlock("rom", PAGE)])
    with w.ram_part():
        for page in range(8):
            w.page("mem", page * PAGE, bytes([page + 1]) * PAGE)
        w.zero("rom", 0)
    w.ping(3)
    w.ram_discard("mem", [(2 * PAGE, 2 * PAGE)])
    inner = StreamWriter()
    inner.postcopy_listen()
    device = rtc(8 * PAGE, 0)
    inner.device(device)
    inner.ping(4)
    inner.postcopy_run()
    w.packaged(inner)
    with w.ram_part():
        w.page("mem", 2 * PAGE, b"\x77" * PAGE)
        w.zero("mem", 3 * PAGE)
    with w.ram_end():
        pass
    w.eof()
    found, report = made(tmp_path, w)
    check_plain(found)
    assert [d[0] for d in devices(found)] == [b"mc146818rtc"]
    listed = next(e for e in found if isinstance(e, RAMBlockList))
    assert [b.host_page_size for b in listed.blocks] == [None, None]
    kinds = [type(e).__name__ for e in found if not isinstance(e, PageBatch)]
    assert kinds.index("EndOfStream") == len(kinds) - 1
    told = [c.what for c in report.changes]
    assert "left out: commands of a live migration" in told
    assert "the block list alone" in told


def test_a_device_ahead_of_all_pages_stays_there(tmp_path: Path) -> None:
    """As that of virtio-mem, which has to be known first."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 8 * PAGE)])
    w.device(rtc(PAGE, 0))
    with w.ram_part():
        for page in range(8):
            w.page("mem", page * PAGE, bytes([page]) * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    found, _ = made(tmp_path, w)
    order = [e.section_type for e in found if isinstance(e, SectionStart)]
    assert order == [
        SectionType.QEMU_VM_SECTION_START,
        SectionType.QEMU_VM_SECTION_FULL,
        SectionType.QEMU_VM_SECTION_END,
    ]


def test_without_an_end(tmp_path: Path) -> None:
    """A background snapshot has none: it is made, in front of the devices."""
    path = fixture_file("bgsnapshot-11.1-pc", tmp_path)
    before = decode(path.read_bytes()).events
    ends = [e for e in before if isinstance(e, SectionStart)]
    assert SectionType.QEMU_VM_SECTION_END not in [e.section_type for e in ends]
    squashed(path, tmp_path / "out")
    check_plain(decode((tmp_path / "out").read_bytes()).events)


def test_edits_go_with_it(tmp_path: Path) -> None:
    """Another name of a block, patches of pages that were sent, as zeros, and never; a section."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 8 * PAGE), RamBlock("rom", PAGE)])
    with w.ram_part():
        for page in range(6):
            w.page("mem", page * PAGE, bytes([page % 2]) * PAGE)
    found, _ = made(
        tmp_path,
        ended(w),
        renames=(("mem", "another"),),
        patches=tuple((f"mem+{at:#x}", "hex:aabb") for at in (1, PAGE, 7 * PAGE)),
        drop_sections=("mc146818rtc",),
        strip_vmdescription=True,
    )
    check_plain(found)
    assert not devices(found)
    assert not [e for e in found if isinstance(e, VMDescription)]
    listed = next(e for e in found if isinstance(e, RAMBlockList))
    assert [b.idstr for b in listed.blocks] == [b"another", b"rom"]
    sent = [o for e in found if isinstance(e, PageBatch) for o in e.block_offset.tolist()]
    assert sent == [page * PAGE for page in (0, 1, 2, 3, 4, 5, 7)], "what was sent, and the patch"
    want = bytearray(w.blocks["mem"])
    for at in (1, PAGE, 7 * PAGE):
        want[at : at + 2] = b"\xaa\xbb"
    with library.open(tmp_path / "out") as stream, stream.memory() as memory:
        assert memory.read_block("another", 0, 8 * PAGE) == want


def test_shared_memory_comes_in(tmp_path: Path) -> None:
    """With its file x-ignore-shared is no capability of the stream any more."""
    name = "ignoreshared-10.0-pc"
    path, shared = fixture_file(name, tmp_path), tmp_path / "mem"
    content = bytes(range(256)) * 16
    with library.open(path) as stream:
        length = next(b.used_length for b in stream.blocks if b.idstr == b"mem")
    shared.write_bytes(content.ljust(length, b"\0"))
    report = squashed(path, tmp_path / "out", shared_blocks=(("mem", shared),))
    found = decode((tmp_path / "out").read_bytes(), strict=True).events
    check_plain(found)
    assert next(e for e in found if isinstance(e, Configuration)).capabilities == ()
    listed = next(e for e in found if isinstance(e, RAMBlockList))
    assert {b.gpa for b in listed.blocks} == {None}
    with library.open(tmp_path / "out") as stream, stream.memory() as memory:
        assert memory.read_block("mem", 0, length) == shared.read_bytes()
    assert "configuration.capabilities: x-ignore-shared -> none" in str(report.changes)


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    """Two sections of RAM; device state in a channel; the list of QEMU 4.0; no memory."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", PAGE)])
    w.start(9, "ram", 1, 4)
    w.block_list([RamBlock("mem", PAGE)])
    w.eos()
    w.footer(9)
    (tmp_path / "in").write_bytes(bytes(ended(w)))
    with pytest.raises((EncodeError, StreamError)):
        squashed(tmp_path / "in", tmp_path / "out")

    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0", capabilities=["x-ignore-shared"])
    w.ram_start([RamBlock("mem", 8 * PAGE, page_size=1 << 21, gpa=0, ignored=0)])
    with w.ram_part():
        for page in range(8):
            w.page("mem", page * PAGE, bytes([page]) * PAGE)
    (tmp_path / "in").write_bytes(bytes(ended(w)))
    with pytest.raises(EncodeError, match=r"QEMU 4\.0"):
        squashed(tmp_path / "in", tmp_path / "out", renames=(("mem", "other"),))

    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.device(rtc(8 * PAGE, 0))
    w.eof()
    w.vmdescription()
    (tmp_path / "in").write_bytes(bytes(w))
    with pytest.raises(StreamError, match="no RAM"):
        squashed(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]

    channel = full()
    channel.device_state("0000:00:03.0/vfio", 0, b"x" * 100)
    path = small(tmp_path, channel)
    with pytest.raises(EncodeError, match="device state in channels of multifd"):
        squashed(path, tmp_path / "out", tmp_path / "ch0")
