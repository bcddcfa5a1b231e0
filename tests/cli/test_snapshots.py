"""`vmstream snapshots`: a table for people, JSON for programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.qcow2images import Saved, build
from tests.streamwriter import simple_stream
from tests.truth import qcow2_file


def test_table(tmp_path: Path) -> None:
    run = vmstream("snapshots", qcow2_file("savevm-10.0-q35", tmp_path).name, cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    sizes = "disk of 8 MiB, clusters of 64 KiB"
    assert run.out.splitlines() == [
        f"savevm-10.0-q35.qcow2: qcow2 image (version 3), {sizes}, 2 snapshots",
        "  id  name    date (UTC)           guest clock         VM state",
        "  1   first   2026-11-23 01:01:25  0:00:00.636  2,733,809 bytes",
        "  2   second  2026-11-23 01:01:25  0:00:01.140  2,729,714 bytes",
    ]


def test_json(tmp_path: Path) -> None:
    run = vmstream("snapshots", "--json", qcow2_file("savevm-10.0-q35", tmp_path))
    assert (run.status, run.err) == (0, "")
    found = run.json()
    assert found["schema"] == "vmstream.snapshots/1"
    assert [s["name"] for s in found["snapshots"]] == ["first", "second"]


def test_notes_go_to_standard_error(tmp_path: Path) -> None:
    path = build([Saved("disk", b"")], features=1).write(tmp_path / "d")
    run = vmstream("snapshots", path)
    assert run.status == 1
    assert "disk only" in run.out
    assert run.err.startswith("vmstream: warning: the image is marked dirty")


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"", 3), (b"QFI", 3), (bytes(simple_stream()), 3), (b"QFI\xfb\0\0\0\1" + bytes(64), 4)],
)
def test_no_image(data: bytes, status: int, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(data)
    run = vmstream("snapshots", tmp_path / "d")
    assert (run.status, run.out) == (status, "")
    assert run.err.startswith("vmstream: offset 0x")
    assert len(run.err.splitlines()) == 1


def test_a_pipe() -> None:
    run = vmstream("snapshots", "-", stdin=bytes(build([Saved("a", b"x")]).data))
    assert run.status == 4
    assert "save it to a file" in run.err


def test_a_file_on_standard_input(tmp_path: Path) -> None:
    path = build([Saved("a", b"x")]).write(tmp_path / "d")
    assert vmstream("snapshots", "-", stdin=path).status == 0


def test_no_file(tmp_path: Path) -> None:
    run = vmstream("snapshots", tmp_path / "none")
    assert run.status == 6
    assert "none" in run.err
