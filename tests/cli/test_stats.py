"""`vmstream stats` as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_file("own-live-q35", tmp_path_factory.mktemp("stats"))


def test_text(live: Path) -> None:
    run = vmstream(
        "stats", live, "--what-if", "zlib:2,xbzrle:1M", "--multifd-channels", "3", "--top", "1"
    )
    assert (run.status, run.err) == (0, "")
    for words in (
        "7,051 pages of 4096 bytes in 14.44 MiB",
        "68 of 884 pages that are not zeros equal another one",
        "multifd zlib level 2, 3 channels",
        "xbzrle, cache 1 MiB: ",
        "as it was sent",
    ):
        assert words in run.out
    assert run.out.count("mem+0x") == 1
    assert "what if" not in vmstream("stats", live).out


def test_json_and_a_pipe(live: Path, tmp_path: Path) -> None:
    what_if = ["--what-if", "compress", "--what-if", "xbzrle,compress:1"]
    found = vmstream("stats", live, *what_if, "--json").json()
    assert found["schema"] == "vmstream.stats/1"
    assert [i["encoding"] for i in found["what_if"]] == ["plain", "compress", "xbzrle"]
    piped = vmstream(
        "stats", "-", *what_if, "--json", "--spool", tmp_path, stdin=open_fixture("own-live-q35")
    )
    assert piped.status == 0, piped.err
    again = piped.json()
    for item in (*found["what_if"], *again["what_if"]):
        item["cpu_seconds"] = None
    assert again | {"input": found["input"]} == found
    assert not list(tmp_path.iterdir())
    run = vmstream("stats", "-", stdin=open_fixture("own-live-q35"))
    assert run.status == 4
    assert "--spool DIR" in run.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--what-if", "lz4"], "'lz4' is none of zstd, zlib, compress, xbzrle"),
        (["--what-if", "zstd:99"], "no level '99': 0 to 20"),
        (["--what-if", "xbzrle:3M"], "powers of two"),
        (["--what-if", "xbzrle:big"], "is no size"),
        (["--multifd-channels", "4"], "--multifd-channels is for"),
        (["--what-if", "xbzrle", "--multifd-channels", "4"], "--multifd-channels is for"),
        (["--what-if", "xbzrle:1024"], "no room for a page"),
    ],
)
def test_refusals(live: Path, args: list[str], words: str) -> None:
    run = vmstream("stats", live, *args)
    assert run.status == 2
    assert words in run.err
    assert "Traceback" not in run.err
    assert run.out == ""


def test_a_cut_stream(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(open_fixture("own-live-q35")[:3_000_000])
    run = vmstream("stats", tmp_path / "cut", "--what-if", "zstd")
    assert run.status == 3
    assert "not complete" in run.out
    assert "vmstream: error: " in run.err
