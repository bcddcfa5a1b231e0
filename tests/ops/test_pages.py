"""The fold under extraction and the index: which events reach what keeps pages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.streams import Bytes
from tests.ops.test_extract import simple, withdrawn
from tests.truth import channel_names, open_fixture
from vmstream.errors import IntegrityError, TruncatedError, UnsupportedError
from vmstream.ops.channels import Channels
from vmstream.ops.inspect import Summary
from vmstream.ops.pages import PageFold, check_complete, check_pages
from vmstream.ops.pipeline import events
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import MappedPages, MultiFDPacket, PageBatch

PAGE = 4096


class Kept:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add(self, batch: PageBatch) -> None:
        self.calls.append(("batch", len(batch)))

    def add_mapped(self, event: MappedPages) -> None:
        self.calls.append(("mapped", event.block))

    def add_packet(self, packet: MultiFDPacket, pages: memoryview) -> None:
        assert len(pages) == len(packet.normal) * packet.page_size
        self.calls.append(("packet", len(packet.normal) + len(packet.zero)))

    def discard(self, block: int, start: int, length: int) -> None:
        self.calls.append(("discard", block, start, length))


class Fold(PageFold[Kept]):
    def __init__(self, summary: Summary, channels: Channels | None = None, **more: bool) -> None:
        super().__init__(summary, channels, **{"partial": False, **more})
        self.sources: set[int] = set()

    def open(self, page_size: int) -> Kept:
        assert page_size == PAGE
        return Kept()

    def opened(self, page_size: int) -> Kept:
        self.sources.add(self.source)
        return super().opened(page_size)


def folded(data: bytes, channels: Channels | None = None, **more: bool) -> tuple[Fold, Summary]:
    summary = Summary()
    fold = Fold(summary, channels, **more)
    for event in events(Bytes(data), Decoder(), channels=channels):
        summary.on(event)
        fold.on(event)
    summary.finish()
    return fold, summary


def calls(fold: Fold) -> list[Any]:
    assert fold.keeper is not None
    return fold.keeper.calls


def test_batches_and_discards() -> None:
    w = withdrawn((PAGE, 2 * PAGE), again=(1, 2))
    fold, summary = folded(bytes(w))
    assert ("discard", 0, PAGE, 2 * PAGE) in calls(fold)
    assert {kind for kind, *_ in calls(fold)} == {"batch", "discard"}
    assert fold.sources == {0}
    check_pages(summary, partial=False)
    check_complete(summary, "reads", partial=False)


def test_mapped() -> None:
    fold, _ = folded(open_fixture("mapped-10.0-pc"))
    assert {kind for kind, *_ in calls(fold)} == {"mapped"}


def test_channels(tmp_path: Any) -> None:
    name = "multifd-zlib-10.0-q35.ch0"
    for other in channel_names(name):
        (tmp_path / other).write_bytes(open_fixture(other))
    with Channels([tmp_path]) as channels:
        fold, _ = folded(open_fixture(name), channels)
    assert fold.sources >= {1, 2}
    assert sum(n for kind, n in calls(fold) if kind == "packet") > 1000


def test_pages_that_are_elsewhere() -> None:
    _, summary = folded(open_fixture("multifd-11.1-pc.ch0"))
    with pytest.raises(UnsupportedError, match="--channel"):
        check_pages(summary, partial=True)
    _, summary = folded(bytes(withdrawn((PAGE, 2 * PAGE), again=(1,))))
    check_pages(summary, partial=True)
    with pytest.raises(UnsupportedError, match="withdrew"):
        check_pages(summary, partial=False)


def test_what_is_broken() -> None:
    data = bytes(withdrawn((0, 99 * PAGE)))
    with pytest.raises(IntegrityError, match="there are not"):
        folded(data)
    fold, summary = folded(data, partial=True)
    assert "there are not" in str(summary.findings.error)
    assert all(kind == "batch" for kind, *_ in calls(fold))


def test_what_is_not_complete() -> None:
    data = bytes(simple(lambda w: w.page("mem", 0, b"x" * PAGE), mem=2))
    _, summary = folded(data[: data.index(b"x" * PAGE) + PAGE])
    check_complete(summary, "writes", partial=True)
    with pytest.raises(TruncatedError):
        check_complete(summary, "writes", partial=False)
