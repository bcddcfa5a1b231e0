"""Passes of records, and RAM behind a pass, against a plain replay of the records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.decoding import decode
from tests.ops.test_extract import simple
from tests.ops.test_history import Version, records
from tests.streamwriter import StreamWriter
from tests.truth import block_sums, fixture_file, load_manifest, open_fixture
from vmstream.container.open import OpenStream
from vmstream.errors import OutputError
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.inspect import Summary
from vmstream.ops.passes import PassNumbers
from vmstream.report.models.extract import ExtractReport
from vmstream.stream.events import PageBatch

PAGE = 4096
SEVERAL = ("own-live-q35", "xbzrle-5.2-pc")


def passes_of(versions: list[Version]) -> list[int]:
    """The pass of each record: a new one begins where the order goes back to a page sent before."""
    order: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    last, number, told = (-1, -1), 1, []
    for _, block, page, _ in versions:
        key = order.setdefault(block, len(order)), page
        number += key <= last and (block, page) in seen
        seen.add((block, page))
        last = key
        told.append(number)
    return told


def content_after(versions: list[Version], number: int, block: str, length: int) -> bytes:
    """A block behind a pass."""
    image = bytearray(length)
    for (_, name, page, content), in_pass in zip(versions, passes_of(versions), strict=True):
        if name == block and in_pass <= number:
            image[page * PAGE : (page + 1) * PAGE] = content
    return bytes(image)


def run(path: Path, number: int, out: Path) -> ExtractReport:
    with OpenStream(path) as opened:
        options = ExtractOptions(out, "mem", passes=number, force=True)
        return extract(opened.source, options, None, opened.container)[0]


@pytest.mark.parametrize("name", SEVERAL)
def test_fixtures(name: str, tmp_path: Path) -> None:
    path, data = fixture_file(name, tmp_path), open_fixture(name)
    versions = list(records(data, PAGE))
    want = passes_of(versions)
    summary = Summary()
    numbers, told = PassNumbers(summary), []
    for event in decode(data).events:
        summary.on(event)
        if isinstance(event, PageBatch):
            told += np.broadcast_to(numbers.of(event), len(event)).tolist()
    assert told == want
    count = want[-1]
    length = load_manifest(name)["blocks"]["mem"]["size"]
    for number in (1, 2, count - 1):
        report = run(path, number, tmp_path / "out")
        assert (report.after_pass, report.pass_count) == (number, count)
        image = content_after(versions, number, "mem", length)
        assert (tmp_path / "out").read_bytes() == image
        assert image != content_after(versions, count, "mem", length)
    run(path, count, tmp_path / "out")
    assert block_sums(tmp_path / "out").sha256 == load_manifest(name)["blocks"]["mem"]["sha256"]
    with pytest.raises(OutputError, match=f"no pass {count + 1} .* has {count} passes"):
        run(path, count + 1, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_pass_that_begins_within_a_batch(tmp_path: Path) -> None:
    """The records in front of it count, those behind do not."""

    def several(w: StreamWriter) -> None:
        for number in range(5):
            w.page("mem", number % 2 * PAGE, bytes([number + 1]) * PAGE)

    w = simple(several, mem=2)
    (tmp_path / "s").write_bytes(bytes(w))
    for number, want in ((1, b"\0\0"), (2, b"\1\2"), (3, b"\3\4"), (4, b"\5\4")):
        run(tmp_path / "s", number, tmp_path / "out")
        assert (tmp_path / "out").read_bytes()[::PAGE] == want
