"""`vmstream get`: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture


def test_get(tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream("get", path, "cpu[0]/env.eip")
    assert (run.status, run.out, run.err) == (0, "32070\n", "")
    assert vmstream("get", path, "--hex", "cpu[0]/env.eip").out == "0x7d46\n"
    several = vmstream("get", path, "--hex", "cpu[*]/env.eip").out
    assert several == "cpu[0]/env.eip\t0x7d46\ncpu[1]/env.eip\t0xfd0a9\n"
    assert vmstream("get", path, "globalstate/runstate").out == "paused\n"
    found = vmstream("get", path, "--json", "cpu[0]/env.eip").json()
    assert [n["value"] for n in found["nodes"]] == [0x7D46]


def test_what_is_not_there(tmp_path: Path) -> None:
    run = vmstream("get", "-", "cpu[7]/env.eip", stdin=open_fixture("plain-11.1-q35"))
    assert (run.status, run.out) == (2, "")
    assert "nothing is named 'cpu[7]/env.eip'" in run.err


def test_schema(tmp_path: Path) -> None:
    path, schema = (fixture_file(n, tmp_path) for n in ("novmdesc-11.1-pc", "plain-11.1-pc"))
    run = vmstream("get", path, "--schema", schema, "cpu/env.eip")
    assert (run.status, run.out) == (0, "32074\n")
