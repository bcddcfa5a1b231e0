"""Channels against the truth of real recordings, and of made ones, pages parted in every way."""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import vmstream
from tests.channelwriter import FLAGS, SYNC, ChannelWriter
from tests.commandline import no_leftovers
from tests.decoding import BytesSource
from tests.strategies import examples
from tests.streamwriter import RamBlock, StreamWriter, be64, cstr8
from tests.truth import (
    channel_names,
    check_block,
    fixture_file,
    fixture_names,
    has_truth,
    load_manifest,
)
from vmstream.container.open import OpenStream
from vmstream.errors import FormatError, IntegrityError, StreamError, TruncatedError
from vmstream.ops.channels import ChannelCounts, Channels
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.inspect import inspect
from vmstream.report.models.extract import ExtractReport
from vmstream.report.models.inspect import InspectReport
from vmstream.report.models.pages import PageCounts

RECORDED = [n for n in fixture_names("*.ch0") if channel_names(n)]
FLUSH = be64(0x200)
PAGE = 4096


def files_of(name: str, directory: Path) -> tuple[Path, list[Path]]:
    main = fixture_file(name, directory)
    return main, [fixture_file(n, directory) for n in channel_names(name)]


def take(main: Path, channels: Sequence[Path | str], **options: Any) -> tuple[ExtractReport, int]:
    with OpenStream(main) as opened, Channels(channels, opened.identity) as beside:
        return extract(opened.source, ExtractOptions(**options), None, opened.container, beside)


def look(main: Path, channels: Sequence[Path | str]) -> tuple[InspectReport, int]:
    with OpenStream(main) as opened, Channels(channels, opened.identity) as beside:
        return inspect(opened.source, container=opened.container, channels=beside)


# ---- real recordings ---------------------------------------------------------------------------


def test_there_are_recordings() -> None:
    assert set(RECORDED) >= {
        "multifd-7.2-pc.ch0", "multifd-11.1-pc.ch0", "multifd-zlib-10.0-q35.ch0",
        "multifd-zstd-11.1-pc.ch0", "postcopy-preempt-11.1-pc.ch0",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_exact(name: str, tmp_path: Path) -> None:
    """Every block, with the channels in every order, and as a directory."""
    main, channels = files_of(name, tmp_path)
    manifest = load_manifest(name)
    for i, order in enumerate([*itertools.permutations(channels), [tmp_path]]):
        out = tmp_path / f"out{i}"
        report, code = take(main, order, all_blocks=out)
        assert code == 0
        known = [n for n in manifest["blocks"] if has_truth(manifest, n)]
        assert known
        for output in report.outputs:
            if output.idstr in known:
                check_block(manifest, output.idstr, Path(output.path))


@pytest.mark.parametrize("name", RECORDED)
def test_report(name: str, tmp_path: Path) -> None:
    main, channels = files_of(name, tmp_path)
    report, code = look(main, channels[::-1])
    assert (code, report.complete) == (0, True)
    assert [a for a in report.anomalies if a.severity != "info"] == []
    assert [c.name for c in report.channels] == [str(c) for c in channels]
    assert [c.size for c in report.channels] == [c.stat().st_size for c in channels]
    assert all(b.pages_missing == 0 for b in report.ram_blocks)
    status = load_manifest(name)["query_migrate"]["ram"]
    if name.startswith("multifd"):
        assert [c.channel_id for c in report.channels] == [0, 1]
        assert report.page_size_source == "multifd"
        assert "multifd" in report.features
        # QEMU counts pages itself.
        sent = [b.pages for b in report.ram_blocks if b.pages]
        normal = sum(p.normal + p.compressed for p in sent)
        if "7.2" in name:
            # It leaves out some of those that a SYNC sent off.
            assert status["normal"] <= normal <= status["normal"] + report.channels[0].syncs
        else:
            assert normal == status["normal"]
        assert sum(p.zero for p in sent) == status["duplicate"]
        words = {w for c in report.channels for w in c.compression}
        expected = next((w for w in ("zlib", "zstd") if w in name), "none")
        assert words == {expected}
        assert (f"multifd-{expected}" in report.features) == (expected != "none")
        syncs = {c.syncs for c in report.channels}
        assert len(syncs) == 1
    else:
        assert [c.kind for c in report.channels] == ["preempt"]
        assert report.channels[0].pages.normal > 0


def test_passes(tmp_path: Path) -> None:
    """MULTIFD_FLUSH words part them; before 8.1 it is inferred. The sources counted rounds."""
    for name, source in (("multifd-11.1-pc.ch0", "wire"), ("multifd-7.2-pc.ch0", "inferred")):
        report, _ = look(*files_of(name, tmp_path))
        assert {p.source for p in report.passes} == {source}
        rounds = load_manifest(name)["query_migrate"]["ram"]["dirty-sync-count"]
        assert abs(report.pass_count - rounds) <= 1, (report.pass_count, rounds)
        assert report.passes[0].pages.zero > 3000


@pytest.mark.parametrize("name", [n for n in RECORDED if n.startswith("multifd")])
def test_a_channel_is_missing(name: str, tmp_path: Path) -> None:
    main, channels = files_of(name, tmp_path)
    for i, left in enumerate(channels):
        with pytest.raises(IntegrityError, match=f"channel {1 - i} of multifd is missing"):
            take(main, [left], output=tmp_path / "x")
        assert not (tmp_path / "x").exists()
        assert no_leftovers(tmp_path)
        report, code = look(main, [left])
        assert code == 3
        assert any(f"channel {1 - i} of multifd is missing" in a.message for a in report.anomalies)
        report2, code = take(main, [left], output=tmp_path / f"y{i}", partial=True, block="mem")
        assert code == 3
        assert report2.ram_blocks[0].pages_missing


def test_without_channels(tmp_path: Path) -> None:
    """The main channel of preempt alone: its pages are elsewhere."""
    main, channels = files_of("postcopy-preempt-11.1-pc.ch0", tmp_path)
    with OpenStream(main) as opened, pytest.raises(StreamError, match="postcopy-preempt"):
        extract(opened.source, ExtractOptions(output=tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    with OpenStream(main) as opened:
        options = ExtractOptions(output=tmp_path / "x", block="pc.ram", partial=True)
        report, code = extract(opened.source, options)
    whole, _ = take(main, channels, output=tmp_path / "y", block="pc.ram")
    assert code == 1
    missing = report.ram_blocks[0].pages_missing or 0
    differ = np.fromfile(tmp_path / "x", "V4096") != np.fromfile(tmp_path / "y", "V4096")
    assert 0 < np.count_nonzero(differ) <= missing
    assert whole.ram_blocks[0].pages_missing == 0


def test_cut_channels(tmp_path: Path) -> None:
    """A cut in a channel has that channel's name and offset, and leaves nothing behind."""
    main, channels = files_of("multifd-zstd-11.1-pc.ch0", tmp_path)
    whole = channels[1].read_bytes()
    cut = tmp_path / "cut"
    rng = random.Random(3)
    for size in (40, 64, 64 + 1344, *(rng.randrange(100, len(whole)) for _ in range(12))):
        cut.write_bytes(whole[:size])
        with pytest.raises((TruncatedError, IntegrityError)) as error:
            take(main, [channels[0], cut], output=tmp_path / "x")
        assert "cut" in error.value.context
        assert error.value.offset <= size
        assert not (tmp_path / "x").exists()
        if size < 64:
            continue
        report, code = take(main, [channels[0], cut], output=tmp_path / "y", partial=True)
        assert code == 3
        assert report.anomalies[0].channel == str(cut)
        (tmp_path / "y").unlink()
    assert no_leftovers(tmp_path)


def test_flipped_bytes(tmp_path: Path) -> None:
    """Only our errors come of damage, on any channel of any kind."""
    rng = random.Random(8)
    bad = tmp_path / "bad"
    for name in RECORDED:
        main, channels = files_of(name, tmp_path)
        data = bytearray(channels[-1].read_bytes())
        for _ in range(12):
            copy = bytearray(data)
            for _ in range(rng.choice((1, 20))):
                copy[rng.choice((rng.randrange(2000), rng.randrange(len(copy))))] ^= rng.randrange(
                    256
                )
            bad.write_bytes(copy)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                try:
                    take(main, [*channels[:-1], bad], output=tmp_path / "x", block="mem")
                    (tmp_path / "x").unlink()
                except vmstream.VmstreamError:
                    assert not (tmp_path / "x").exists()
                try:
                    _, code = look(main, [*channels[:-1], bad])
                except vmstream.StreamError:
                    continue
                assert code in (0, 1, 3, 4)
    assert no_leftovers(tmp_path)


# ---- the set of channels -----------------------------------------------------------------------


def small(directory: Path, *channels: ChannelWriter, flush: bool = True) -> Path:
    """A main channel with one generation behind its START."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)], tail=FLUSH if flush else b"")
    with w.ram_end():
        if flush:
            w.multifd_flush()
    w.eof()
    w.vmdescription()
    (directory / "main").write_bytes(bytes(w))
    for c in channels:
        (directory / f"ch{c.channel_id}").write_bytes(bytes(c))
    return directory / "main"


def full(channel_id: int = 0, *, of: int = 1, **options: Any) -> ChannelWriter:
    """A channel with its share of four pages, numbered as the only source would."""
    w = ChannelWriter(channel_id, **options)
    w.init()
    w.sync(channel_id)
    mine = {a * PAGE: bytes([a + 1]) * PAGE for a in range(4) if a % of == channel_id}
    w.packet(of + channel_id, "pc.ram", mine)
    w.sync(2 * of + channel_id)
    return w


IMAGE = b"".join(bytes([a + 1]) * PAGE for a in range(4))


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_made(count: int, flush: bool, tmp_path: Path) -> None:
    writers = [full(i, of=count) for i in range(count)]
    main = small(tmp_path, *writers, flush=flush)
    paths = [tmp_path / f"ch{i}" for i in reversed(range(count))]
    report, code = take(main, paths, output=tmp_path / "x", block="pc.ram")
    assert code == 0
    assert (tmp_path / "x").read_bytes() == IMAGE
    assert [Path(c.path).name for c in report.channels] == [f"ch{i}" for i in range(count)]


def test_compressed_files(tmp_path: Path) -> None:
    """What is around a channel is taken off as it is of the stream."""
    main = small(tmp_path)
    (tmp_path / "packed").write_bytes(gzip.compress(bytes(full())))
    take(main, [tmp_path / "packed"], output=tmp_path / "x", block="pc.ram")
    assert (tmp_path / "x").read_bytes() == IMAGE


def test_a_directory(tmp_path: Path) -> None:
    """What is a channel is taken, the main channel is left out, and the rest is told."""
    main = small(tmp_path, full(0, of=2), full(1, of=2))
    (tmp_path / "notes.txt").write_text("what was done\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "deeper").mkdir()
    report, code = look(main, [tmp_path])
    assert code == 0
    assert [c.channel_id for c in report.channels] == [0, 1]
    told = [a.message for a in report.anomalies if a.code == "no-channel"]
    assert told == ["empty: no channel, passed over", "notes.txt: no channel, passed over"]


def test_files_that_are_none(tmp_path: Path) -> None:
    main = small(tmp_path, full())
    (tmp_path / "text").write_text("hello, world, and more of it\n")
    with pytest.raises(FormatError, match="no channel of multifd or postcopy-preempt"):
        look(main, [tmp_path / "text"])
    with pytest.raises(FormatError, match="a main channel"):
        look(main, [main])
    with pytest.raises(FileNotFoundError):
        look(main, [tmp_path / "nothing"])
    (tmp_path / "cut").write_bytes(bytes(full())[:50])
    with pytest.raises(TruncatedError, match="cut, first packet"):
        look(main, [tmp_path / "cut"])


def test_an_empty_file(tmp_path: Path) -> None:
    """A preempt channel over which nothing had to be sent."""
    main = small(tmp_path, full())
    (tmp_path / "empty").write_bytes(b"")
    report, code = look(main, [tmp_path / "ch0", tmp_path / "empty"])
    assert (code, len(report.channels)) == (0, 1)


def test_channels_of_two_migrations(tmp_path: Path) -> None:
    main = small(tmp_path, full(0, of=2), full(1, of=2, uuid=b"u" * 16))
    with pytest.raises(IntegrityError, match="of another guest"):
        take(main, [tmp_path], output=tmp_path / "x")
    main = small(tmp_path, full(0, of=2), full(1, of=2))
    (tmp_path / "again").write_bytes((tmp_path / "ch0").read_bytes())
    with pytest.raises(IntegrityError, match="two files are channel 0"):
        take(main, [tmp_path], output=tmp_path / "x")
    report, code = look(main, [tmp_path])
    assert code == 3
    assert any("two files" in a.message for a in report.anomalies)


def test_the_uuid_of_the_main_channel(tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration(uuid=b"v" * 16)
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)], tail=FLUSH)
    with w.ram_end():
        w.multifd_flush()
    w.eof()
    (tmp_path / "main").write_bytes(bytes(w))
    for uuid, good in ((b"v" * 16, True), (b"u" * 16, False)):
        (tmp_path / "ch0").write_bytes(bytes(full(uuid=uuid)))
        report, code = look(tmp_path / "main", [tmp_path / "ch0"])
        assert (code == 0) == good
        assert any("of another guest" in a.message for a in report.anomalies) != good
        if not good:
            with pytest.raises(IntegrityError, match="of another guest"):
                take(tmp_path / "main", [tmp_path / "ch0"], output=tmp_path / "x")


def test_a_stream_that_has_its_pages(tmp_path: Path) -> None:
    """Channels of multifd beside one that is not of multifd."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    with w.ram_end():
        w.page("pc.ram", 0, b"\1" * PAGE)
        w.zero("pc.ram", PAGE)
    w.eof()
    (tmp_path / "main").write_bytes(bytes(w))
    (tmp_path / "ch0").write_bytes(bytes(full()))
    report, code = look(tmp_path / "main", [tmp_path / "ch0"])
    assert code == 1
    (told,) = [a.message for a in report.anomalies if a.code == "own-pages"]
    assert "has 1 pages" in told


def test_the_last_channel_is_missing(tmp_path: Path) -> None:
    """No number tells, but the packets are numbered over all channels."""
    main = small(tmp_path, *(full(i, of=3) for i in range(3)))
    with pytest.raises(IntegrityError, match="channel 2 of multifd is missing") as error:
        take(main, [tmp_path / "ch0", tmp_path / "ch1"], output=tmp_path / "x")
    assert "expected 8 packets, found 6" in str(error.value)
    with pytest.raises(IntegrityError, match="channel 0, 1 of multifd is missing"):
        take(main, [tmp_path / "ch2"], output=tmp_path / "x")


def test_numbers_of_old_sources(tmp_path: Path) -> None:
    """Before 9.0 a SYNC could take the number of the packet ahead of it, and then two have it."""
    w = ChannelWriter(old=True)
    w.init()
    w.sync(0)
    w.packet(2, "pc.ram", {a * PAGE: bytes([a + 1]) * PAGE for a in range(4)}, flags=SYNC)
    w.packet(2, "pc.ram", size=524288)
    main = small(tmp_path, w, flush=False)
    _, code = take(main, [tmp_path / "ch0"], output=tmp_path / "x", block="pc.ram")
    assert code == 0
    assert (tmp_path / "x").read_bytes() == IMAGE


@pytest.mark.parametrize("given", [1, 2, 3])
@pytest.mark.parametrize("lost", [0, 1])
def test_packets_that_old_sources_leave_out(lost: int, given: int, tmp_path: Path) -> None:
    """One a channel may wait when all is over, and is not sent: no sign of another channel."""
    numbers = itertools.count()
    writers = [ChannelWriter(i, old=True) for i in range(3)]
    for c in writers:
        c.init()
        c.sync(next(numbers))
    for part in range(4):
        for c in writers:
            c.packet(next(numbers), "pc.ram", {part * PAGE: bytes([part + 1]) * PAGE})
        for c in writers:
            c.sync(next(numbers) + lost * (part == 3) * (c.channel_id + 1))
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    for _ in range(3):
        with w.ram_part():
            pass
    with w.ram_end():
        pass
    w.eof()
    (tmp_path / "main").write_bytes(bytes(w))
    paths = [tmp_path / f"ch{c.channel_id}" for c in writers]
    for path, c in zip(paths, writers, strict=True):
        path.write_bytes(bytes(c))
    if given == 3:
        take(tmp_path / "main", paths, output=tmp_path / "x", block="pc.ram")
        assert (tmp_path / "x").read_bytes() == IMAGE
        return
    with pytest.raises(IntegrityError, match=f"channel {given} of multifd is missing"):
        take(tmp_path / "main", paths[:given], output=tmp_path / "x", block="pc.ram")


def test_a_sync_more(tmp_path: Path) -> None:
    """9.1 and 9.2 end with a SYNC that the main channel has no word for."""
    w = full()
    w.sync(3)
    main = small(tmp_path, w)
    assert take(main, [tmp_path / "ch0"], output=tmp_path / "x", block="pc.ram")[1] == 0


def test_page_size_of_packets(tmp_path: Path) -> None:
    """No page record tells it, the size of a packet does."""
    w = ChannelWriter(page_size=8192)
    w.init()
    w.sync(0)
    w.packet(1, "pc.ram", {0: b"\1" * 8192}, [8192])
    w.sync(2)
    main = small(tmp_path, w)
    with OpenStream(main) as opened, Channels([tmp_path / "ch0"]) as beside:
        report, _ = inspect(opened.source, channels=beside)
    assert (report.page_size, report.page_size_source) == (8192, "multifd")
    assert report.ram_blocks[0].pages == PageCounts(1, 1, 0, 0)
    # The vmdescription of this stream says 4096, and has the last word.
    assert any("another page size" in a.message for a in report.anomalies)


def test_device_state(tmp_path: Path) -> None:
    w = full()
    w.device_state("0000:00:03.0/vfio", 0, b"x" * 100)
    w.device_state("0000:00:03.0/vfio", 0, b"y" * 23)
    w.device_state("0000:00:04.0/vfio", 1, b"z")
    main = small(tmp_path, w)
    report, code = look(main, [tmp_path / "ch0"])
    assert code == 0
    states = report.channels[0].device_states
    assert [(d.idstr, d.instance_id, d.packets, d.size) for d in states] == [
        ("0000:00:03.0/vfio", 0, 2, 123),
        ("0000:00:04.0/vfio", 1, 1, 1),
    ]


def test_damaged_payload(tmp_path: Path) -> None:
    """A packet that does not unpack: refused, or its pages stay as they were."""
    w = ChannelWriter(compression="zstd")
    w.init()
    w.sync(0)
    w.packet(1, "pc.ram", {0: b"\1" * PAGE}, [PAGE])
    w.packet(2, "pc.ram", {2 * PAGE: b"\2" * PAGE}, [3 * PAGE], payload=b"rubbish")
    w.sync(3)
    main = small(tmp_path, w)
    with pytest.raises(IntegrityError, match="a payload of zstd") as error:
        take(main, [tmp_path / "ch0"], output=tmp_path / "x", block="pc.ram")
    assert error.value.offset == w.packets[2]
    assert "ch0, packet 2" in error.value.context
    report, code = take(
        main, [tmp_path / "ch0"], output=tmp_path / "x", block="pc.ram", partial=True
    )
    assert (code, len(report.anomalies)) == (3, 1)
    assert (tmp_path / "x").read_bytes() == b"\1" * PAGE + bytes(3 * PAGE)


def test_counts() -> None:
    counts = ChannelCounts()
    assert (counts.packets, counts.syncs, counts.end) == (0, 0, 0)


# ---- every way to part pages -------------------------------------------------------------------

BLOCKS = {"pc.ram": 40, "b": 3}

contents = st.one_of(
    st.just(b""), st.binary(min_size=1, max_size=6).map(lambda b: (b * PAGE)[:PAGE])
)


@st.composite
def migrations(draw: st.DrawFn) -> dict[str, Any]:
    """Generations of pages, and which channel has each; -1 is the main one (zero pages only)."""
    old = draw(st.booleans())
    channels = draw(st.integers(1, 3))
    generations = []
    for _ in range(draw(st.integers(1, 4))):
        pages = draw(
            st.dictionaries(
                st.sampled_from([(b, i) for b, n in BLOCKS.items() for i in range(n)]),
                st.tuples(contents, st.integers(0, channels - 1), st.booleans()),
                max_size=20,
            )
        )
        generations.append(pages)
    return {
        "old": old,
        "channels": channels,
        "generations": generations,
        "compression": draw(st.sampled_from(list(FLAGS))),
        "after": draw(st.dictionaries(st.integers(0, 39), contents, max_size=4)),
        "seed": draw(st.integers(0, 99)),
    }


def build(plan: dict[str, Any], directory: Path) -> tuple[Path, list[Path], dict[str, bytearray]]:
    """The files of a migration, and the memory at its end."""
    old, count = plan["old"], plan["channels"]
    rng = random.Random(plan["seed"])
    truth = {b: bytearray(n * PAGE) for b, n in BLOCKS.items()}
    writers = [ChannelWriter(i, compression=plan["compression"], old=old) for i in range(count)]
    numbers = itertools.count()
    for c in writers:
        c.init()
        c.sync(next(numbers))
    w = StreamWriter()
    w.header()
    w.configuration()
    w.ram_start([RamBlock(b, n * PAGE) for b, n in BLOCKS.items()], tail=b"" if old else FLUSH)
    for generation in plan["generations"]:
        # Without words for it, each part is a generation.
        with w.ram_part():
            packets: list[tuple[int, str, dict[int, bytes], list[int]]] = []
            for (block, index), (body, channel, on_main) in generation.items():
                address = index * PAGE
                truth[block][address : address + PAGE] = body or bytes(PAGE)
                if not body and (old or on_main):
                    w.zero(block, address)
                    continue
                mine = [p for p in packets if p[:2] == (channel, block)]
                if not mine or rng.random() < 0.3:
                    mine = [(channel, block, {}, [])]
                    packets += mine
                if body:
                    mine[-1][2][address] = body
                else:
                    mine[-1][3].append(address)
            rng.shuffle(packets)
            for channel, block, normal, zero in packets:
                writers[channel].packet(next(numbers), block, normal, zero)
            for c in writers:
                c.sync(next(numbers))
            if not old:
                w.multifd_flush()
        if not old and rng.random() < 0.5:
            with w.ram_part():
                pass
    # Pages of postcopy come on the main channel, and are newer than all of these.
    if plan["after"]:
        w.packaged(b"")
        with w.ram_end():
            for index, body in plan["after"].items():
                if body:
                    w.page("pc.ram", index * PAGE, body)
                else:
                    w.zero("pc.ram", index * PAGE)
                truth["pc.ram"][index * PAGE : (index + 1) * PAGE] = body or bytes(PAGE)
    else:
        with w.ram_end():
            pass
    if old:
        for c in writers:
            c.sync(next(numbers))
    w.eof()
    (directory / "main").write_bytes(bytes(w))
    paths = [directory / f"ch{c.channel_id}" for c in writers]
    for path, c in zip(paths, writers, strict=True):
        path.write_bytes(bytes(c))
    rng.shuffle(paths)
    return directory / "main", paths, truth


@settings(max_examples=examples(60), deadline=None)
@given(migrations())
def test_however_pages_are_parted(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, Any]
) -> None:
    directory = tmp_path_factory.mktemp("migration")
    main, paths, truth = build(plan, directory)
    report, code = take(main, paths, all_blocks=directory / "out")
    assert code in (0, 1)  # pages may be missing
    for output in report.outputs:
        assert Path(output.path).read_bytes() == truth[str(output.idstr)]
    written = {o.idstr for o in report.outputs}
    assert all(not any(content) for block, content in truth.items() if block not in written)


# ---- the library -------------------------------------------------------------------------------


def test_api(tmp_path: Path) -> None:
    main, channels = files_of("multifd-11.1-pc.ch0", tmp_path)
    pages = 0
    with vmstream.open(main, channels=channels[::-1]) as stream:
        assert stream.channels == tuple(map(str, channels))
        for event in stream:
            if isinstance(event, vmstream.ChannelEvent) and isinstance(
                event.event, vmstream.MultiFDPacket
            ):
                pages += len(event.event.normal)
                assert event.end > event.offset
        assert stream.page_size == 4096
    assert pages == load_manifest("multifd-11.1-pc")["query_migrate"]["ram"]["normal"]
    with (
        pytest.raises(IntegrityError),
        vmstream.open(main, channels=channels[:1], strict=True) as stream,
    ):
        list(stream)


def test_nothing_is_read_without_blocks(tmp_path: Path) -> None:
    """A main channel that ends before its block list."""
    main = small(tmp_path, full())
    cut = main.read_bytes()[:40]
    with Channels([tmp_path / "ch0"]) as beside:
        report, code = inspect(BytesSource(cut), channels=beside)
    assert (code, report.channels[0].packets) == (3, 0)


def test_preempt_pages(tmp_path: Path) -> None:
    """They are newer than what the main channel withdrew."""
    w = StreamWriter()
    w.header()
    w.configuration()
    w.postcopy_advise()
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    with w.ram_part():
        for i in range(4):
            w.page("pc.ram", i * PAGE, bytes([i + 1]) * PAGE)
    w.ram_discard("pc.ram", [(PAGE, 2 * PAGE)])
    w.packaged(b"")
    with w.ram_end():
        w.page("pc.ram", PAGE, b"\x21" * PAGE)
    w.eof()
    (tmp_path / "main").write_bytes(bytes(w))
    urgent = be64(2 * PAGE | 8) + cstr8("pc.ram") + b"\x22" * PAGE
    (tmp_path / "urgent").write_bytes(urgent)
    report, code = take(
        tmp_path / "main", [tmp_path / "urgent"], output=tmp_path / "x", block="pc.ram"
    )
    assert code == 0
    assert (tmp_path / "x").read_bytes() == b"".join(bytes([v]) * PAGE for v in (1, 0x21, 0x22, 4))
    assert report.channels[0].size == len(urgent)
