"""`vmstream records`: a line an item, for people or as JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture
from vmstream.ops.records import KINDS


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def test_lines(plain: Path) -> None:
    run = vmstream("records", plain)
    assert (run.status, run.err) == (0, "")
    lines = run.out.splitlines()
    at = 0
    for line in lines:
        found = re.match(r"(0x[0-9a-f]{12}) +(\d+)  ([a-z-]+) *(.*)$", line)
        assert found, line
        assert int(found[1], 16) == at
        at += int(found[2])
        assert found[3] in KINDS
    assert at == plain.stat().st_size
    assert lines[0].split() == ["0x000000000000", "8", "header", "version=3"]
    assert "machine=pc-i440fx-7.2" in lines[1]


def test_json_says_the_same(plain: Path) -> None:
    run = vmstream("records", "--json", plain)
    assert (run.status, run.err) == (0, "")
    lines = vmstream("records", plain).out.splitlines()
    found = run.lines()
    assert len(found) == len(lines)
    for item, line in zip(found, lines, strict=True):
        assert item["schema"] == "vmstream.records/1"
        assert line.split()[:3] == [
            f"{item['offset']:#014x}", str(item["end"] - item["offset"]), item["type"]
        ]  # fmt: skip


def test_pipe_and_file(plain: Path) -> None:
    file = vmstream("records", plain)
    assert vmstream("records", "-", stdin=plain.read_bytes()) == file
    assert vmstream("records", "-", stdin=plain) == file


@pytest.mark.parametrize("kind", ["section", "zero", "pages"])
def test_kind(kind: str, plain: Path) -> None:
    every = vmstream("records", "--json", plain).lines()
    run = vmstream("records", "--json", "--kind", kind, plain)
    assert run.status == 0
    assert run.lines() == [i for i in every if kind in (i["type"], i.get("kind"))]


def test_kinds_are_added_up(plain: Path) -> None:
    every = vmstream("records", "--json", plain).lines()
    run = vmstream("records", "--json", "--kind", "footer", "--kind", "eof", plain)
    assert run.lines() == [i for i in every if i["type"] in ("footer", "eof")]


def test_an_unknown_kind(plain: Path) -> None:
    run = vmstream("records", "--kind", "nonsense", plain)
    assert (run.status, run.out) == (2, "")
    for kind in KINDS:
        assert repr(kind) in run.err


def test_the_help_names_every_kind() -> None:
    text = vmstream("records", "--help").out
    assert set(text.partition("Kinds:")[2].split()) == set(KINDS)


@pytest.mark.parametrize(
    ("span", "low", "high"),
    [
        ("0:0x30", 0, 0x30),
        (":0x30", 0, 0x30),
        ("0x1f0000:0x1f4000", 0x1F0000, 0x1F4000),
        ("2031616:2048000", 2031616, 2048000),
        ("0x250000:", 0x250000, None),
        (":", 0, None),
        ("0x10000000:", 0x10000000, None),
    ],
)
def test_range(span: str, low: int, high: int | None, plain: Path) -> None:
    every = vmstream("records", "--json", plain).lines()
    run = vmstream("records", "--json", "--range", span, plain)
    assert (run.status, run.err) == (0, "")
    assert run.lines() == [
        i for i in every if i["end"] > low and (high is None or i["offset"] < high)
    ]


@pytest.mark.parametrize("span", ["", "5", "x:y", "5:3", "-1:5", "0x:", "1:2:3", "1.5:2"])
def test_what_is_no_range(span: str, plain: Path) -> None:
    run = vmstream("records", "--range", span, plain)
    assert (run.status, run.out) == (2, "")
    assert "is no range" in run.err


def test_damage(tmp_path: Path) -> None:
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    run = vmstream("records", path)
    assert run.status == 3
    assert re.search(r"  anomaly +error truncated: offset 0x[0-9a-f]+", run.out)
    assert re.fullmatch(r"vmstream: offset 0x[0-9a-f]+.*the input ends.*\n", run.err)
    # What is asked for lies before the damage.
    run = vmstream("records", "--range", "0:0x10000", path)
    assert (run.status, run.err) == (0, "")


def test_commands_and_postcopy() -> None:
    run = vmstream("records", "--kind", "command", "-", stdin=open_fixture("postcopy-11.1-pc.ch0"))
    assert run.status == 0
    assert "name=POSTCOPY_RAM_DISCARD" in run.out
    assert "name=PACKAGED" in run.out


def test_page_size(plain: Path) -> None:
    run = vmstream("records", "--page-size", "4096", plain)
    assert run == vmstream("records", plain)
    assert vmstream("records", "--page-size", "1024", plain).status == 3
