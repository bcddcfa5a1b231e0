"""Values of options, and what several commands share."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.commandline import vmstream
from tests.streamwriter import simple_stream
from tests.truth import fixture_file
from vmstream.cli.main import cli
from vmstream.cli.options import byte_size, progress_bar
from vmstream.cli.records import _range
from vmstream.wire.constants import TARGET_PAGE_SIZES

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("3221225472", 3 * GIB),
        ("0xc0000000", 3 * GIB),
        ("0xC0000000", 3 * GIB),
        ("0xb0000000", 0xB0000000),
        ("3G", 3 * GIB),
        ("3g", 3 * GIB),
        ("3GB", 3 * GIB),
        ("3GiB", 3 * GIB),
        ("3072M", 3 * GIB),
        ("3145728k", 3 * GIB),
        ("64KiB", 1 << 16),
        ("1T", 1 << 40),
        ("0x1", 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "lots", "-1", "1.5G", "3P", "0x", "3 G", "1_000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises((click.BadParameter, ValueError)):
        byte_size(text)


@pytest.mark.parametrize("text", ["lots", "1.5G", "", "010", "99999999999999999999999G"])
def test_bad_sizes_are_usage(text: str, tmp_path: Path) -> None:
    run = vmstream(
        "extract-ram", fixture_file("plain-7.2-pc", tmp_path), "-o", tmp_path / "x",
        "--below-4g", text,
    )  # fmt: skip
    assert run.status == 2
    assert "Traceback" not in run.err
    assert "below-4g" in run.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("0:", (0, None)),
        (":", (0, None)),
        ("0x10:0x20", (16, 32)),
        ("16:32", (16, 32)),
        (":0x20", (0, 32)),
        ("5:5", (5, 5)),
    ],
)
def test_ranges(text: str, span: tuple[int, int | None]) -> None:
    assert _range(text) == span


@pytest.mark.parametrize("command", ["inspect", "records", "extract-ram"])
def test_no_such_page_size(command: str) -> None:
    more = ["-o", "x"] if command == "extract-ram" else []
    for bad in ("5000", "0", "-4096", "4K", "131072"):
        result = CliRunner().invoke(cli, [command, "nowhere", "--page-size", bad, *more])
        assert result.exit_code == 2
        for size in TARGET_PAGE_SIZES:
            assert f"'{size}'" in result.output


@pytest.mark.parametrize("size", TARGET_PAGE_SIZES)
def test_page_sizes(size: int, tmp_path: Path) -> None:
    """Every size that a target has, for every command."""
    pages = {n * size: bytes([n]) * size if n % 2 else b"" for n in range(1, 6)}
    w = simple_stream({"mem": {0: b"\xee" * size, **pages}}, page_size=size)
    (tmp_path / "s").write_bytes(bytes(w))
    option = ("--page-size", str(size))
    found = vmstream("inspect", "s", *option, "--json", cwd=tmp_path).json()
    assert (found["page_size"], found["page_size_source"]) == (size, "argument")
    assert found["complete"]
    lines = vmstream("records", "s", *option, "--json", "--kind", "pages", cwd=tmp_path).lines()
    assert {item["page_size"] for item in lines} == {size}
    run = vmstream("extract-ram", "s", *option, "-o", "x", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    assert (tmp_path / "x").read_bytes() == w.blocks["mem"]


def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("reading") as progress:
        assert progress is None


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar("reading") as progress:
        assert progress is not None
        progress(1 << 20, None)  # a pipe has no size
        progress(1 << 20, 2 << 20)
    assert "reading" in screen.getvalue()


def test_options_may_stand_anywhere(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    one, two = vmstream("inspect", "--json", path), vmstream("inspect", path, "--json")
    assert one == two
    assert one.status == 0


def test_a_file_whose_name_begins_with_a_dash(tmp_path: Path) -> None:
    fixture_file("plain-7.2-pc", tmp_path).rename(tmp_path / "-dump")
    assert vmstream("inspect", "--", "-dump", cwd=tmp_path).status == 0
    assert vmstream("inspect", "./-dump", cwd=tmp_path).status == 0
    assert vmstream("inspect", "-dump", cwd=tmp_path).status == 2


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "dump\udcff"
    fixture_file("plain-7.2-pc", tmp_path).rename(path)
    for args in (["inspect"], ["inspect", "--json"], ["records"]):
        run = vmstream(*args, path)
        assert (run.status, run.err) == (0, "")
    run = vmstream("extract-ram", path, "-o", tmp_path / "out\udcff", "--manifest", tmp_path / "m")
    assert (run.status, run.err) == (0, "")
    assert (tmp_path / "out\udcff").exists()


@pytest.mark.parametrize("command", ["inspect", "records", "extract-ram"])
@pytest.mark.parametrize("bad", [["--max-ram", "lots"], ["--max-layers", "0"]])
def test_bad_limits_are_usage(command: str, bad: list[str], tmp_path: Path) -> None:
    more = ["-o", tmp_path / "x"] if command == "extract-ram" else []
    run = vmstream(command, fixture_file("plain-7.2-pc", tmp_path), *more, *bad)
    assert run.status == 2
    assert bad[0] in run.err


@pytest.mark.parametrize("command", ["inspect", "records", "extract-ram"])
def test_limits_reach_the_decoder(command: str, tmp_path: Path) -> None:
    """16 MiB of RAM and some ROM: 16 MiB are not enough, 32 are."""
    path = fixture_file("plain-7.2-pc", tmp_path)
    more = ["-o", tmp_path / "x", "--force"] if command == "extract-ram" else []
    assert vmstream(command, path, *more, "--max-ram", "32M").status == 0
    run = vmstream(command, path, *more, "--max-ram", "16M")
    assert run.status == 5
    assert "--max-ram 17M allows it" in run.err
