"""`vmstream extract-block` as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import no_leftovers, vmstream
from tests.truth import FIXTURES, block_sums, fixture_file, load_manifest, open_fixture

PACKED = FIXTURES / "blockmig-5.2-pc.qevm.zst"
DISKS = load_manifest("blockmig-5.2-pc")["disks"]


def test_all(tmp_path: Path) -> None:
    run = vmstream("extract-block", PACKED, "--all", tmp_path / "d")
    assert (run.status, run.err) == (0, "")
    for name, disk in DISKS.items():
        assert block_sums(tmp_path / "d" / f"{name}.raw").sha256 == disk["sha256"]
        (line,) = [li for li in run.out.splitlines() if f"disk {name}," in li]
        assert "inferred" in line
    assert no_leftovers(tmp_path)


def test_one_from_a_pipe(tmp_path: Path) -> None:
    data = open_fixture("blockmig-5.2-pc")
    run = vmstream(
        "extract-block", "-", "--device", "vdisk", "-o", "v", "--json", stdin=data, cwd=tmp_path
    )
    assert (run.status, run.err) == (0, "")
    found = run.json()
    assert found["schema"] == "vmstream.extract-block/1"
    (output,) = found["outputs"]
    assert (output["path"], output["size"], output["size_source"]) == ("v", 4 << 20, "inferred")
    assert output["device"]["chunks"] == 4
    assert block_sums(tmp_path / "v").sha256 == DISKS["vdisk"]["sha256"]


def test_size(tmp_path: Path) -> None:
    args = ("extract-block", PACKED, "--device", "vdisk", "-o", tmp_path / "v", "--size")
    run = vmstream(*args, "3.5M")
    assert run.status == 2
    run = vmstream(*args, "3M")
    assert run.status == 2
    assert "larger than" in run.err
    assert not list(tmp_path.iterdir())
    run = vmstream(*args, "3584K")
    assert (run.status, run.err) == (0, "")
    assert "inferred" not in run.out
    assert (tmp_path / "v").stat().st_size == 3584 << 10
    run = vmstream(*args, "5M")
    assert run.status == 2
    assert "exists" in run.err
    run = vmstream(*args, "5M", "--force")
    assert run.status == 1
    assert "no chunk was sent of its last 1048576 bytes" in run.err
    assert (tmp_path / "v").stat().st_size == 5 << 20


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--device", "vdisk"),
        ("-o", "x"),
        ("--size", "4M"),
        ("--all", "d", "--device", "vdisk"),
        ("--all", "d", "-o", "x"),
        ("--all", "d", "--size", "4M"),
    ],
    ids=" ".join,
)
def test_usage(args: tuple[str, ...], tmp_path: Path) -> None:
    run = vmstream("extract-block", PACKED, *args, cwd=tmp_path)
    assert run.status == 2
    assert "--device NAME and -o FILE, or --all DIR" in run.err
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    run = vmstream("extract-block", PACKED, "--device", "vda", "-o", tmp_path / "x")
    assert run.status == 2
    assert run.err == "vmstream: no disk 'vda'; the stream has: vdisk, ide0-hd0\n"
    run = vmstream("extract-block", fixture_file("plain-7.2-pc", tmp_path), "--all", tmp_path / "d")
    assert run.status == 2
    assert "no disks" in run.err
    assert not (tmp_path / "d").exists()


def test_partial(tmp_path: Path) -> None:
    cut = open_fixture("blockmig-5.2-pc")[:4_000_000]
    run = vmstream("extract-block", "-", "--all", tmp_path / "d", stdin=cut)
    assert run.status == 3
    assert "--partial" in run.err
    assert not list(tmp_path.iterdir())
    run = vmstream("extract-block", "-", "--all", tmp_path / "d", "--partial", stdin=cut)
    assert run.status == 3
    assert "the input ends" in run.err
    # Two chunks of it are there, the second and the third.
    assert (tmp_path / "d" / "vdisk.raw").stat().st_size == 3 << 20
