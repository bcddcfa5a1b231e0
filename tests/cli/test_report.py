"""`vmstream report` as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import no_leftovers, vmstream
from tests.report.test_html import HOSTILE, document
from tests.streamwriter import Device, Field, simple_stream
from tests.truth import fixture_file
from vmstream.cli.main import main


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_file("own-live-q35", tmp_path_factory.mktemp("report"))


def test_a_file(live: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(live), "-o", str(out)]) == 0
    data = out.read_bytes()
    assert len(data) < 500_000
    text = document(data).text()
    for words in ("pc-q35-7.2", "sound", "mc146818rtc", "0x0..0x1000000", "rip", "Last sent"):
        assert words in text
    told = f"{out}: {len(data):,} bytes, the stream is sound, findings: 0\n"
    assert capsys.readouterr().out == told
    assert main(["report", str(live), "-o", str(out)]) == 2
    assert "exists (--force replaces it)" in capsys.readouterr().err
    assert main(["report", str(live), "-o", str(out), "--force"]) == 0
    assert no_leftovers(tmp_path)


def test_a_pipe_that_is_cut_off(live: Path) -> None:
    run = vmstream("report", "-", "-o", "-", stdin=live.read_bytes()[: 2 << 20])
    assert run.status == 3
    found = document(run.out.encode())
    assert "cut off" in found.text()
    assert "The input ends inside an item" in found.text()
    assert "the input ends" in run.err


def test_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the file's name, machine, blocks, devices and fields."""
    w = simple_stream(
        {HOSTILE: {0: b"\1" * 4096, 4096: b""}},
        devices=[Device(HOSTILE, fields=[Field(HOSTILE, HOSTILE, b"\1\2\3")])],
    )
    path = tmp_path / "<script>alert(1)<\\script>"
    path.write_bytes(bytes(w).replace(b"pc-i440fx-7.2", b"<i>machine<i>"))
    out = tmp_path / "out.html"
    main(["report", str(path), "-o", str(out)])
    found = document(out.read_bytes())
    assert found.text().count("alert(1)") > 5
    assert "<i>machine<i>" in found.text()
