"""`vmstream rewrite`: options, text, JSON, standard output."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, vmstream
from tests.report.test_models import validator
from tests.truth import fixture_file


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def test_what_changed_is_told(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = vmstream(
        "rewrite", plain, "-o", out, "--set", "configuration.name=pc-i440fx-7.1",
        "--set", "cpu[0]/env.eip=0x7c00", "--patch-ram", "0x7c00=hex:9090",
    )  # fmt: skip
    assert (run.status, run.err) == (0, "")
    lines = run.out.splitlines()
    assert lines[0] == "0x8: configuration.name: pc-i440fx-7.2 -> pc-i440fx-7.1"
    assert "--patch-ram 0x7c00: 'pc.ram' page at 0x7000" in lines[1]
    assert lines[2].endswith("cpu[0]/env.eip: 0x7d44 -> 0x7c00") or "env.eip" in lines[2]
    assert lines[-1].startswith(f"{out}: ")
    assert vmstream("get", out, "--hex", "cpu[0]/env.eip").out == "0x7c00\n"
    assert vmstream("inspect", "--json", out).json()["machine"] == "pc-i440fx-7.1"
    assert "90 90 " in vmstream("hexdump", out, "--phys", "0x7c00", "--length", "16").out


def test_dry_run_and_json(plain: Path, tmp_path: Path) -> None:
    args = ("rewrite", plain, "--dry-run", "--strip-vmdescription")
    run = vmstream(*args)
    assert run.status == 0
    assert "vmdescription: taken off" in run.out
    assert "not written" in run.out
    found = vmstream(*args, "--json").json()
    validator("rewrite").validate(found)
    assert found["output"] is None
    assert found["output_size"] < found["input_size"]
    assert [p.name for p in tmp_path.iterdir()] == [plain.name]


def test_standard_output_and_a_pipe(plain: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "rewrite", str(plain), "-o", "-", "--set", "globalstate/runstate=paused"],
        capture_output=True,
        env=environment(),
    )
    assert done.returncode == 0
    assert b"0 changes" in done.stderr or b"runstate" in done.stderr
    assert done.stdout[:4] == b"QEVM"
    assert len(done.stdout) == plain.stat().st_size
    for name, more in (("out", []), ("other", ["--spool", plain.parent])):
        args = ("rewrite", "-", "-o", plain.parent / name, *more)
        assert vmstream(*args, stdin=plain.read_bytes()).status == 0
        assert (plain.parent / name).read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("args", "status", "why"),
    [
        ([], 2, "--dry-run"),
        (["--dry-run", "--set", "x"], 2, "has no '='"),
        (["--dry-run", "--set", "cpu[0]/env.nothing=1"], 2, "there is cpu[0]/env.regs"),
        (["--dry-run", "--set", "cpu[0]/env.eip=x"], 2, "takes a number"),
        (["--dry-run", "--set", "configuration.nothing=1"], 2, "there is configuration.name"),
        (["--dry-run", "--drop-section", "ram"], 2, "is not dropped"),
        (["--dry-run", "--rename-block", "x=y"], 2, "no block 'x'"),
        (["--dry-run", "--patch-ram", "0x1000000000=hex:00"], 2, "no RAM at address"),
        (["-o", "-", "--json"], 2, "no room"),
    ],
)
def test_refusals(plain: Path, args: list[str], status: int, why: str) -> None:
    run = vmstream("rewrite", plain, *args)
    assert run.status == status
    assert run.out == ""
    assert why in run.err
