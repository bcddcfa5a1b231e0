"""What `devices`, `get` and `cpus` have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture, qcow2_file

COMMANDS = {"devices": ["cpu"], "get": ["cpu/env.regs"], "cpus": []}


@pytest.mark.parametrize("command", COMMANDS)
def test_inputs(command: str, tmp_path: Path) -> None:
    """A file, a pipe, a compressed file, a snapshot: the same."""
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream(command, path, *COMMANDS[command])
    assert (run.status, run.err) == (0, "")
    piped = vmstream(command, "-", *COMMANDS[command], stdin=open_fixture("plain-11.1-q35"))
    assert (piped.status, piped.out) == (0, run.out)
    image = qcow2_file("savevm-11.1-pc", tmp_path)
    both = [
        vmstream(command, image, *COMMANDS[command], "--snapshot", name)
        for name in ("first", "second")
    ]
    assert [r.status for r in both] == [0, 0]
    assert both[0].out != both[1].out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_pipe_and_limits(command: str, tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream(command, path, *COMMANDS[command], "--max-ram", "1M")
    assert run.status == 5
    assert "--max-ram" in run.err


def test_a_schema_that_is_none(tmp_path: Path) -> None:
    path = fixture_file("novmdesc-11.1-pc", tmp_path)
    run = vmstream("cpus", path, "--schema", path)
    assert (run.status, run.out) == (2, "")
    assert "no vmdescription that could be a schema" in run.err
