"""`vmstream build`: text, JSON, standard output, refusals."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, no_leftovers, vmstream
from tests.report.test_models import validator
from tests.truth import fixture_file


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    assert vmstream("unpack", fixture_file("plain-7.2-pc", tmp_path), tmp_path / "dir").status == 0
    return tmp_path / "dir"


def test_text_json_and_standard_output(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = vmstream("build", "--from-dir", directory, "-o", out)
    assert (run.status, run.err) == (0, "")
    size = out.stat().st_size
    assert run.out == f"{out}: {size} bytes, 6 blocks, 31 devices, the vmdescription as it was\n"
    refused = vmstream("build", "--from-dir", directory, "-o", out)
    assert refused.status == 2
    assert "--force" in refused.err
    run = vmstream("build", "--from-dir", directory, "-o", out, "--force", "--json")
    validator("build").validate(run.json())
    assert run.json()["vmdescription"] == "kept"
    piped = subprocess.run(
        [*COMMAND, "build", "--from-dir", str(directory), "-o", "-"],
        capture_output=True,
        env=environment(),
    )
    assert (piped.returncode, piped.stdout) == (0, out.read_bytes())
    assert vmstream("inspect", out).status == 0


def test_refusals(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    [cpu] = (directory / "devices").glob("*-cpu.json")
    cpu.write_text(cpu.read_text().replace('"value": ', '"value": 99999999999999999999', 1))
    run = vmstream("build", "--from-dir", directory, "-o", out)
    assert (run.status, run.out) == (2, "")
    assert f"vmstream: {cpu}: " in run.err
    assert vmstream("build", "--from-dir", tmp_path / "no", "-o", out).status == 6
    assert vmstream("build", "--from-dir", directory, "-o", "-", "--json").status == 2
    assert vmstream("build", "--from-dir", directory, "-o", out, "--max-ram", "1M").status == 2
    assert not out.exists()
    assert no_leftovers(tmp_path)
