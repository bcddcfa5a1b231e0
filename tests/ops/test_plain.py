"""Streams made plain: the truth of every fixture, each page once, and the rest to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vmstream as library
from tests.decoding import decode
from tests.ops.test_extract import COMPLETE, INTERRUPTED, SHARED
from tests.truth import (
    channel_names,
    check_block_bytes,
    fixture_file,
    fixture_names,
    known_blocks,
    load_manifest,
)
from vmstream.container.open import OpenStream
from vmstream.errors import StreamError
from vmstream.ops.channels import Channels
from vmstream.ops.edits import RewriteOptions
from vmstream.ops.rewrite import rewrite
from vmstream.report.models import RewriteReport
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


@pytest.mark.parametrize("name", [*COMPLETE, *WITH_CHANNELS, *SHARED])
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
