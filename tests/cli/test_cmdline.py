"""`vmstream cmdline`: the command on standard output, what it does not tell on standard error."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture


def test_cmdline(tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream("cmdline", path)
    assert run.status == 0
    words = shlex.split(run.out.replace("\\\n", " "))
    assert words[:3] == ["qemu-system-x86_64", "-machine", "pc-q35-11.1"]
    assert words[-2:] == ["-incoming", f"exec:cat {shlex.quote(str(path))}"]
    assert "not stated: the CPU model" in run.err
    found = vmstream("cmdline", path, "--json").json()
    assert found["schema"] == "vmstream.cmdline/1"
    assert {a["source"] for a in found["arguments"]} == {"wire", "inferred"}


def test_errors(tmp_path: Path) -> None:
    run = vmstream("cmdline", "-", stdin=b"hello\n")
    assert (run.status, run.out) == (3, "")
    cut = tmp_path / "cut"
    cut.write_bytes(open_fixture("plain-11.1-q35")[:300_000])
    run = vmstream("cmdline", cut)
    assert run.status == 3
    assert "-machine pc-q35-11.1" in run.out
    assert "the input ends" in run.err
