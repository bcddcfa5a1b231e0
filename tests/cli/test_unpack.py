"""`vmstream unpack`: text, JSON, a pipe, schemas, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commandline import no_leftovers, vmstream
from tests.report.test_models import validator
from tests.truth import fixture_file


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def test_text_json_and_schemas(plain: Path, tmp_path: Path) -> None:
    run = vmstream("unpack", plain, tmp_path / "dir")
    assert (run.status, run.err) == (0, "")
    assert run.out == f"{tmp_path / 'dir'}: 6 blocks, 31 devices, 31 of them by names\n"
    assert {p.name for p in (tmp_path / "dir").iterdir()} == {
        "manifest.json", "vmdescription.json", "blocks", "devices",
    }  # fmt: skip
    validator("unpacked").validate(json.loads((tmp_path / "dir" / "manifest.json").read_text()))
    for path in (tmp_path / "dir" / "devices").iterdir():
        validator("device").validate(json.loads(path.read_text()))
    refused = vmstream("unpack", plain, tmp_path / "dir")
    assert (refused.status, refused.out) == (2, "")
    assert "--force" in refused.err
    run = vmstream("unpack", plain, tmp_path / "dir", "--force", "--json")
    validator("unpack").validate(run.json())
    assert run.json()["described"] == "stream"


def test_a_pipe(plain: Path, tmp_path: Path) -> None:
    assert vmstream("unpack", "-", tmp_path / "a", stdin=plain.read_bytes()).status == 0
    assert vmstream("unpack", plain, tmp_path / "b").status == 0
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_names_of_another_stream(tmp_path: Path) -> None:
    bare = fixture_file("novmdesc-11.1-pc", tmp_path)
    other = fixture_file("plain-11.1-pc", tmp_path)
    run = vmstream("unpack", bare, tmp_path / "dir", "--schema", other, "--json")
    assert run.status == 0, run.err
    assert run.json()["described"] == "schema"
    [cpu] = (tmp_path / "dir" / "devices").glob("*-cpu.json")
    assert '"env.eip"' in cpu.read_text()
    run = vmstream("build", "--from-dir", tmp_path / "dir", "-o", tmp_path / "out")
    assert "without a vmdescription" in run.out
    eip = [
        vmstream("get", p, "cpu[0]/env.eip", "--schema", other).out
        for p in (bare, tmp_path / "out")
    ]
    assert eip[0] == eip[1] != ""


def test_a_damaged_stream(plain: Path, tmp_path: Path) -> None:
    plain.write_bytes(plain.read_bytes()[:100000])
    run = vmstream("unpack", plain, tmp_path / "dir")
    assert (run.status, run.out) == (3, "")
    assert "extract-ram --partial" in run.err
    assert not (tmp_path / "dir").exists()
    assert no_leftovers(tmp_path)
