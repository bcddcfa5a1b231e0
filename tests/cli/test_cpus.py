"""`vmstream cpus`: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture


def test_cpus(tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream("cpus", path)
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith("CPU#0  x86, protected mode, 32-bit code, CPL 0\n")
    found = vmstream("cpus", "-", "--json", stdin=open_fixture("plain-11.1-q35")).json()
    assert [c["instance_id"] for c in found["cpus"]] == [0, 1]
    assert found["cpus"][0]["registers"]["general"]["rip"] == 0x7D46


def test_without_names(tmp_path: Path) -> None:
    path, schema = (fixture_file(n, tmp_path) for n in ("novmdesc-11.1-pc", "plain-11.1-pc"))
    run = vmstream("cpus", path)
    assert (run.status, run.out) == (2, "")
    assert "--schema" in run.err
    run = vmstream("cpus", path, "--schema", schema)
    assert run.status == 0
    assert "rip 0000000000007d4a" in run.out
