"""`vmstream devices`: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

from tests.commandline import vmstream
from tests.truth import fixture_file, open_fixture


def test_devices(tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream("devices", path)
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith("apic[0]  v3  181 bytes at ")
    assert "cpu[1]  v12" in run.out
    run = vmstream("devices", path, "cpu[*]/env.eip")
    assert run.out == "cpu[0]/env.eip  0x7d46\ncpu[1]/env.eip  0xfd0a9\n"
    found = vmstream("devices", path, "--json", "timer").json()
    assert [n["path"] for n in found["nodes"]][:2] == ["timer[0]", "timer[0]/cpu_ticks_offset"]
    assert found["described"] == "stream"


def test_from_a_pipe_and_of_a_container(tmp_path: Path) -> None:
    piped = vmstream("devices", "-", "rtc*", stdin=open_fixture("plain-11.1-q35"))
    assert piped.status == 2  # no such name
    assert "nothing is named 'rtc*'" in piped.err
    piped = vmstream("devices", "-", "*rtc", stdin=open_fixture("plain-11.1-q35"))
    assert piped.status == 0
    assert "cmos_data  buffer, 128 bytes:" in piped.out


def test_schema(tmp_path: Path) -> None:
    path, schema = (fixture_file(n, tmp_path) for n in ("novmdesc-11.1-pc", "plain-11.1-pc"))
    bare = vmstream("devices", path, "cpu")
    assert (bare.status, "raw@0x0" in bare.out) == (0, True)
    run = vmstream("devices", path, "cpu/env.eip", "--schema", schema)
    assert (run.status, run.out) == (0, "cpu[0]/env.eip  0x7d4a\n")
    assert "names are inferred from the vmdescription of" in run.err


def test_errors(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello\n")
    run = vmstream("devices", text)
    assert (run.status, run.out) == (3, "")
    cut = tmp_path / "cut"
    cut.write_bytes(open_fixture("plain-11.1-q35")[:-30000])
    run = vmstream("devices", cut)
    assert run.status == 3
    assert "the input ends" in run.err
    assert "timer[0]" in run.out
    cut.write_bytes(open_fixture("plain-11.1-q35")[:300_000])
    run = vmstream("devices", cut, "cpu")
    assert (run.status, run.out) == (3, "")
    assert "the input ends" in run.err
