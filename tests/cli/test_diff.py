"""`vmstream diff`: a stream and what is made of it are the same; options, JSON, status."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.report.test_models import validator
from tests.truth import fixture_file


def test_what_is_made_of_a_stream_is_the_same(tmp_path: Path) -> None:
    path = fixture_file("xbzrle-5.2-pc", tmp_path)
    made = {
        "squashed": ("rewrite", path, "--squash", "-o"),
        "mapped": ("convert", path, "--to", "mapped-ram"),
        "s.zst": ("convert", path),
        "ram.raw": ("extract-ram", path, "-o"),
        "ram.elf": ("extract-ram", path, "--format", "elf", "-o"),
        "ram.lime": ("extract-ram", path, "--format", "lime", "-o"),
    }
    for name, (command, *words) in made.items():
        assert vmstream(command, *words, tmp_path / name).status == 0, name
        run = vmstream("diff", path, tmp_path / name, "--spool", tmp_path)
        assert (run.status, run.err) == (0, ""), name
        assert run.out.endswith("result       the same\n")
        # One byte in the last page of 'pc.ram' that has data is found in any of them.
    image = tmp_path / "ram.lime"
    data = bytearray(image.read_bytes())
    data[0x7C00 + 32] ^= 0xFF
    image.write_bytes(data)
    run = vmstream("diff", image, path, "--json", "--hex")
    assert run.status == 1
    found = run.json()
    validator("diff").validate(found)
    assert [(r["gpa"], r["pages"], r["bytes"]) for r in found["ram"]["runs"]] == [(0x7000, 1, 1)]
    (row,) = found["ram"]["rows"]
    assert row["gpa"] == 0x7C00
    assert (found["a"]["kind"], found["b"]["kind"]) == ("lime", "stream")
    assert vmstream("diff", image, path, "--exit-zero").status == 0


def test_usage_and_trouble(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    assert vmstream("diff", path, path, "--ram-only", "--devices-only").status == 2
    assert vmstream("diff", "-", "-").status == 2
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[:100_000])
    run = vmstream("diff", path, cut)
    assert run.status == 3
    assert str(cut) in run.err
    run = vmstream("diff", path, cut, "--partial")
    assert run.status == 3
    assert "result       different" in run.out


@pytest.mark.parametrize("first", [True, False])
def test_channels_of_either_side(tmp_path: Path, first: bool) -> None:
    main = fixture_file("multifd-11.1-pc.ch0", tmp_path)
    others = [fixture_file(f"multifd-11.1-pc.ch{n}", tmp_path) for n in (1, 2)]
    plain = tmp_path / "plain"
    words = [w for o in others for w in ("--channel", o)]
    assert vmstream("convert", main, plain, *words).status == 0
    pair = (main, plain) if first else (plain, main)
    option = "--channel" if first else "--channel-b"
    run = vmstream("diff", *pair, *(w for o in others for w in (option, o)), "--json")
    assert run.status == 0, run.err
    validator("diff").validate(run.json())
