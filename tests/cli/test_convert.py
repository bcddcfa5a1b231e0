"""`vmstream convert`: options, text, JSON, standard input and output."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, vmstream
from tests.containers import XML
from tests.report.test_models import validator
from tests.truth import channel_names, fixture_file


@pytest.fixture
def live(tmp_path: Path) -> Path:
    return fixture_file("live-11.1-pc", tmp_path)


def test_what_was_written_and_what_takes_it(live: Path, tmp_path: Path) -> None:
    out = tmp_path / "a name.zst"
    run = vmstream("convert", live, out)
    assert (run.status, run.err) == (0, "")
    first, second = run.out.splitlines()
    assert first.startswith(f"{out}: stream, zstd, {out.stat().st_size} bytes (the stream in the ")
    # The command in it is one for a shell.
    assert f"exec:zstd -dc '{out}'" in second
    assert vmstream("inspect", out).status == 0

    run = vmstream("convert", live, tmp_path / "mapped", "--to", "mapped-ram")
    assert "migrate_incoming file:" in run.out
    assert "(QEMU 9.0 on)" in run.out
    assert run.out.splitlines()[-1] == "capabilities to set there first: mapped-ram"

    (tmp_path / "xml").write_bytes(XML)
    args = ("--to", "libvirt:sparse", "--xml", tmp_path / "xml")
    run = vmstream("convert", live, tmp_path / "image", *args)
    assert run.out.splitlines()[-1] == f"load it: virsh restore {tmp_path / 'image'}"
    assert vmstream("xml", tmp_path / "image").out == XML.decode()


def test_memory_left_out_of_mapped_ram_takes_a_later_qemu(tmp_path: Path) -> None:
    """10.0 ends when it loads one: it reads a bitmap that is not there."""
    path = fixture_file("ignoreshared-10.0-pc", tmp_path)
    run = vmstream("convert", path, tmp_path / "out", "--to", "mapped-ram")
    assert run.status == 0
    assert "(QEMU 11.1 on)" in run.out
    assert "x-ignore-shared" in run.out.splitlines()[-1]


def test_json(live: Path, tmp_path: Path) -> None:
    found = vmstream("convert", live, tmp_path / "out", "--to", "mapped-ram", "--json").json()
    validator("convert").validate(found)
    assert found["schema"] == "vmstream.convert/1"
    assert (found["to"], found["capabilities"]) == ("mapped-ram", ["mapped-ram"])
    assert found["output_size"] == (tmp_path / "out").stat().st_size
    kinds = [c["what"] for c in found["changes"]]
    assert any("configuration.capabilities: none -> mapped-ram" in k for k in kinds)


def test_channels(tmp_path: Path) -> None:
    main = fixture_file("multifd-11.1-pc.ch0", tmp_path)
    run = vmstream("convert", main, tmp_path / "out")
    assert run.status == 4
    assert "--channel" in run.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "others").mkdir()
    for name in channel_names("multifd-11.1-pc.ch0"):
        fixture_file(name, tmp_path / "others")
    args = ("convert", main, tmp_path / "out", "--channel", tmp_path / "others", "--json")
    found = vmstream(*args).json()
    validator("convert").validate(found)
    assert len(found["channels"]) == 2
    told = vmstream("inspect", "--json", tmp_path / "out").json()
    assert "multifd" not in told["features"]
    assert all(b["pages_missing"] == 0 for b in told["ram_blocks"])


def test_standard_input_and_output(live: Path, tmp_path: Path) -> None:
    assert vmstream("convert", live, tmp_path / "out").status == 0
    done = subprocess.run(
        [*COMMAND, "convert", "-", "-"],
        input=live.read_bytes(),
        capture_output=True,
        env=environment(TMPDIR=str(tmp_path)),
    )
    assert done.returncode == 0
    assert done.stdout == (tmp_path / "out").read_bytes()
    assert done.stderr.startswith(b"-: stream, ")
    assert sorted(p.name for p in tmp_path.iterdir()) == [live.name, "out"]


@pytest.mark.parametrize(
    ("args", "status", "why"),
    [
        (["out", "--to", "qcow2"], 2, "is not one of"),
        (["-", "--json"], 2, "no room for --json"),
        (["-", "--to", "mapped-ram"], 2, "not to a pipe"),
        (["out", "--to", "libvirt"], 2, "virsh dumpxml"),
        (["no/such/out"], 6, "no/such"),
        (["."], 2, "not a regular file"),
    ],
)
def test_refusals(args: list[str], status: int, why: str, live: Path, tmp_path: Path) -> None:
    run = vmstream("convert", live, *args, cwd=tmp_path)
    assert run.status == status, run.err
    assert why in run.err
    assert [p.name for p in tmp_path.iterdir()] == [live.name]
