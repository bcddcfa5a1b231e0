"""A source from some offset on, and the findings of a container."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.decoding import BytesSource, CutSource
from vmstream.container.layers import Container, Finding, Layer, ShiftedSource
from vmstream.errors import UnsupportedError
from vmstream.transport.source import OpenSource, RandomAccess

DATA = random.Random(4).randbytes(1000)


def test_shifted_windows() -> None:
    for start in (0, 1, 100, 999, 1000, 2000):
        for back in (0, 1, 50, 5000):
            source = ShiftedSource(CutSource(DATA, lambda offset, need: 7, back=back), start)
            assert source.size == max(0, 1000 - start)
            assert (source.name, source.seekable, source.identity) == ("bytes", True, None)
            for offset in (0, 1, 33, 0):
                if start + offset > 1000:
                    continue
                view, base, at_end = source.window(offset, 20)
                assert 0 <= base <= offset
                assert bytes(view) == DATA[start + base : start + base + len(view)]
                assert at_end or base + len(view) >= offset + 20


def test_shifted_reads(tmp_path: Path) -> None:
    """Here and there, beside the windows."""
    (tmp_path / "x").write_bytes(DATA)
    with OpenSource(tmp_path / "x") as inner:
        source = ShiftedSource(inner, 100)
        assert isinstance(source, RandomAccess)
        view, base, _ = source.window(0, 10)
        buffer = bytearray(50)
        assert source.read_into(300, memoryview(buffer)) == 50
        assert buffer == DATA[400:450]
        assert source.read_into(890, memoryview(buffer)) == 10
        assert buffer[:10] == DATA[990:]
        assert bytes(view[-base:][:10]) == DATA[100:110]
    with pytest.raises(UnsupportedError, match="sought"):
        ShiftedSource(BytesSource(DATA), 1).read_into(0, memoryview(bytearray(1)))


def test_shifted_size_that_is_not_known() -> None:
    inner = BytesSource(DATA)
    inner.size = None
    assert ShiftedSource(inner, 10).size is None


def test_findings_are_taken_once() -> None:
    container = Container()
    assert container.take_findings() == []
    container.note(Finding("info", "container", 3, "x"))
    container.note(Finding("warning", "trailing", 4, "y"))
    assert [f.offset for f in container.take_findings()] == [3, 4]
    assert container.take_findings() == []
    container.layers.append(Layer("gzip", BytesSource(DATA)))
    assert container.layers[0].image is None
