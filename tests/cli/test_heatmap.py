"""`vmstream heatmap` as users run it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, no_leftovers
from tests.report.test_picture import read
from tests.truth import fixture_file, qcow2_file
from vmstream.cli.main import main


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_file("own-live-q35", tmp_path_factory.mktemp("heatmap"))


def test_a_file(live: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.png"
    assert main(["heatmap", str(live), "-o", str(out)]) == 0
    kinds = read(out.read_bytes())
    said = capsys.readouterr()
    assert said.out == f"{out}: {kinds.width} x {kinds.height} pixels\n"
    assert main(["heatmap", str(live), "-o", str(out), "--by", "times"]) == 2
    assert "exists (--force replaces it)" in capsys.readouterr().err
    assert main(["heatmap", str(live), "-o", str(out), "--by", "times", "--force"]) == 0
    assert read(out.read_bytes()).rows != kinds.rows
    before = live.read_bytes()
    assert main(["heatmap", str(live), "-o", str(live), "--force"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert live.read_bytes() == before
    assert main(["heatmap", str(live), "-o", str(tmp_path / "no" / "map.png")]) == 6
    assert no_leftovers(tmp_path)


def test_pipes(live: Path, tmp_path: Path) -> None:
    command = ["sh", "-c", 'cat | "$@" | cat', "sh", *COMMAND, "heatmap", "-", "-o", "-"]
    with live.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, env=environment())
    assert read(done.stdout).width > 1024
    assert done.stderr.startswith(b"-: ")


def test_containers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = qcow2_file("savevm-10.0-q35", tmp_path)
    out = str(tmp_path / "map.png")
    assert main(["heatmap", str(disk), "--snapshot", "first", "--by", "pass", "-o", out]) == 0
    assert "no page was sent a second time" in capsys.readouterr().err
    saved = fixture_file("mapped-10.0-pc", tmp_path)
    assert main(["heatmap", str(saved), "--by", "times", "-o", out, "--force"]) == 0
    assert "mapped-ram" in capsys.readouterr().err


def test_nothing_is_written_of_what_is_no_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").write_bytes(b"nothing")
    assert main(["heatmap", str(tmp_path / "s"), "-o", str(tmp_path / "map.png")]) == 3
    assert "not a migration stream" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
