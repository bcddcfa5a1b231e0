"""`vmstream history` as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import no_leftovers, vmstream
from tests.truth import fixture_file


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_file("own-live-q35", tmp_path_factory.mktemp("history"))


def test_text_and_json(live: Path) -> None:
    run = vmstream("history", live, "--top", "2")
    assert (run.status, run.err) == (0, "")
    assert "6, inferred from where the page order starts over" in run.out
    assert "2,825 versions replaced by a later one" in run.out
    assert "mem+0x100000  0x100000" in run.out
    found = vmstream("history", "-", "--json", stdin=live.read_bytes()).json()
    assert found["schema"] == "vmstream.history/1"
    assert [p["last"] for p in found["passes"]] == [3457, 255, 0, 0, 0, 514]


def test_page(live: Path) -> None:
    run = vmstream("history", live, "--page", "0x106000")
    assert (run.status, run.err) == (0, "")
    assert run.out.count("3 bytes changed at 0x58, 0x800, 0xfff") == 4
    by_name = vmstream("history", "-", "--page", "mem+0x106000", "--json", stdin=live)
    assert [v["number"] for v in by_name.lines()] == [1, 2, 3, 4, 5, 6]
    assert {v["data"] for v in by_name.lines()} == {None}
    shown = vmstream("history", live, "--page", "mem+0x106000", "--hex").out
    assert "000000000fff" not in shown
    assert "000000000ff0" in shown


def test_superseded(live: Path, tmp_path: Path) -> None:
    run = vmstream("history", live, "--superseded", tmp_path / "old")
    assert run.status == 0, run.err
    assert f"{tmp_path / 'old'}: " in run.out
    assert (tmp_path / "old" / "index.csv").exists()
    run = vmstream("history", live, "--superseded", tmp_path / "old")
    assert run.status == 2
    assert "not empty" in run.err
    run = vmstream("history", live, "--superseded", tmp_path / "x", "--max-superseded", "1M")
    assert run.status == 5
    assert not (tmp_path / "x").exists()
    no_leftovers(tmp_path)


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--page", "mem"], 2, "is no number"),
        (["--page", "0x10000000000"], 2, "no RAM at address"),
        (["--page", "mem+0x1000000"], 2, "is not in block 'mem'"),
        (["--page", "none+0"], 2, "no block 'none'"),
        (["--hex"], 2, "--hex is for --page"),
        (["--page", "0", "--superseded", "d"], 2, "not both"),
        (["--force"], 2, "are for --superseded"),
    ],
)
def test_refusals(live: Path, args: list[str], status: int, words: str) -> None:
    run = vmstream("history", live, *args)
    assert run.status == status
    assert words in run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize("args", [["--page", "0"], ["--superseded", "old"]])
def test_a_pipe_comes_once(live: Path, args: list[str], tmp_path: Path) -> None:
    run = vmstream("history", "-", *args, stdin=live.read_bytes(), cwd=tmp_path)
    assert run.status == 4
    assert "reads the stream twice" in run.err
    assert not (tmp_path / "old").exists()


def test_extract_behind_a_pass(live: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", live, "--pass", "2", "-o", tmp_path / "image")
    assert run.status == 0, run.err
    assert "RAM as known behind pass 2 of 6 (passes are inferred)" in run.out
    run = vmstream("extract-ram", live, "--pass", "2", "--format", "elf", "-o", tmp_path / "e")
    assert run.status == 2
