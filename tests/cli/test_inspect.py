"""`vmstream inspect`: the report for people and for programs, from files and pipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commandline import on_terminal, vmstream
from tests.streamwriter import Device, Field, simple_stream
from tests.truth import fixture_file, open_fixture

PAGE = 4096


def test_the_screen(tmp_path: Path) -> None:
    run = vmstream("inspect", fixture_file("plain-7.2-pc", tmp_path))
    assert (run.status, run.err) == (0, "")
    first, *rest = run.out.splitlines()
    assert first.endswith("plain-7.2-pc.qevm: migration stream (raw), 2.429 MiB, complete")
    words = {line.split()[0] for line in rest if line and line[0] != " "}
    assert {"machine", "page", "capabilities", "features", "RAM", "iterable", "devices", "end",
            "findings"} <= words  # fmt: skip
    assert "machine      pc-i440fx-7.2" in rest
    assert "findings     none" in rest
    assert re.search(r"^  pc\.ram +0x1000000 +\d+ ", run.out, re.MULTILINE)


def test_pipe_and_file_say_the_same(tmp_path: Path) -> None:
    path = fixture_file("live-11.1-pc", tmp_path)
    file, pipe = vmstream("inspect", path), vmstream("inspect", "-", stdin=path.read_bytes())
    redirected = vmstream("inspect", "-", stdin=path)
    assert (
        file.out.partition(":")[2] == pipe.out.partition(":")[2] == redirected.out.partition(":")[2]
    )
    assert pipe.out.startswith("standard input: migration stream")
    told = [
        vmstream("inspect", "--json", path).json(),
        vmstream("inspect", "--json", "-", stdin=path.read_bytes()).json(),
    ]
    assert {told[0].pop("input"), told[1].pop("input")} == {str(path), "standard input"}
    assert told[0] == told[1]


def test_json(tmp_path: Path) -> None:
    run = vmstream("inspect", fixture_file("devices-11.1-q35", tmp_path), "--json")
    assert (run.status, run.err) == (0, "")
    found = run.json()
    assert found["schema"] == "vmstream.inspect/1"
    assert found["machine"] == "pc-q35-11.1"
    assert found["complete"] is True
    assert found["size"] == found["end_offset"] == 2371331
    assert found["pass_count"] == 1
    assert {s["section_type"] for s in found["sections"]} == {"START", "FULL"}


def test_errors_go_to_both_ends(tmp_path: Path) -> None:
    """The document has the fault, and who reads standard error sees it too."""
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    run = vmstream("inspect", "--json", path)
    assert run.status == 3
    found = run.json()
    assert found["complete"] is False
    (error,) = [a for a in found["anomalies"] if a["severity"] == "error"]
    assert run.err == f"vmstream: {error['message']}\n"
    plain = vmstream("inspect", path)
    assert plain.status == 3
    assert "not complete" in plain.out
    assert error["message"] in plain.out
    assert plain.err == run.err


@pytest.mark.parametrize(
    ("flag", "has", "lacks"),
    [
        ("--devices", ["mc146818rtc", "framing"], [r"^  \d+ +START"]),
        ("--sections", ["mc146818rtc", r"^  \d+ +START +ram"], []),
        ("--passes", [r"^  6 +0x"], [r"\(--passes\)"]),
    ],
)
def test_long_lists(flag: str, has: list[str], lacks: list[str], tmp_path: Path) -> None:
    run = vmstream("inspect", flag, fixture_file("own-live-q35", tmp_path))
    assert run.status == 0
    for pattern in has:
        assert re.search(pattern, run.out, re.MULTILINE), pattern
    for pattern in lacks:
        assert not re.search(pattern, run.out, re.MULTILINE), pattern


def test_every_device_is_listed(tmp_path: Path) -> None:
    path = fixture_file("devices-11.1-q35", tmp_path)
    sections = vmstream("inspect", "--json", path).json()["sections"]
    text = vmstream("inspect", "--devices", path).out
    for section in sections:
        if section["section_type"] == "FULL":
            line = rf"^  {section['section_id']} +FULL +{re.escape(section['idstr'])} .*"
            assert re.search(line + f"{section['offset']:#x} ", text, re.MULTILINE), section


def test_quick(tmp_path: Path) -> None:
    path = fixture_file("own-big-q35", tmp_path)
    run = vmstream("inspect", "--quick", path)
    assert (run.status, run.err) == (0, "")
    assert "pages not read (--quick)" in run.out
    found = vmstream("inspect", "--quick", "--json", path).json()
    assert found["quick"] is True
    assert found["complete"] is True
    assert {b["pages"] for b in found["ram_blocks"]} == {None}


def test_quick_of_a_pipe(tmp_path: Path) -> None:
    run = vmstream("inspect", "--quick", "-", stdin=open_fixture("plain-7.2-pc"))
    assert run.status == 4
    assert run.out == ""
    assert "leave out --quick" in run.err
    path = fixture_file("plain-7.2-pc", tmp_path)
    assert vmstream("inspect", "--quick", "-", stdin=path).status == 0


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("interrupted-11.1-pc", 3, ["not complete", "the input ends", "not seen"]),
        ("mapped-10.0-pc", 0, ["complete", "mapped-ram", "stated by the mapped-ram headers"]),
        ("multifd-11.1-pc.ch0", 1, ["multifd", "other channels"]),
        ("postcopy-11.1-pc.ch0", 0, ["postcopy", "POSTCOPY_RAM_DISCARD"]),
        ("ignoreshared-10.0-pc", 0, ["x-ignore-shared"]),
        ("bgsnapshot-11.1-pc", 0, ["background-snapshot"]),
        ("xbzrle-5.2-pc", 0, ["xbzrle"]),
        ("zlib-5.2-pc", 0, ["compress"]),
        ("uuid-11.1-pc", 0, ["uuid  "]),
        ("own-old-pc-2.1", 0, ["not stated", "inferred from their headers"]),
        ("own-isapc", 0, ["isapc"]),
        ("aarch64-10.0-virt", 0, ["stated by the configuration section"]),
    ],
)
def test_what_is_special(name: str, status: int, words: list[str], tmp_path: Path) -> None:
    run = vmstream("inspect", fixture_file(name, tmp_path))
    assert run.status == status, run.out + run.err
    for word in words:
        assert word in run.out


def test_padding_is_told(tmp_path: Path) -> None:
    w = simple_stream(devices=[Device("timer", fields=[Field("x", "uint8", b"\1")])])
    w.padding(1536)
    (tmp_path / "s").write_bytes(bytes(w))
    run = vmstream("inspect", "s", cwd=tmp_path)
    assert run.status == 0
    assert "1.5 KiB behind it" in run.out


def test_the_bar_is_for_people(tmp_path: Path) -> None:
    """On a terminal, on standard error, and gone when done."""
    path = fixture_file("plain-7.2-pc", tmp_path)
    seen = on_terminal("inspect", path)
    assert "\x1b[?25h" in seen.out  # the cursor is back
    assert "reading" in seen.out
    assert "reading" not in vmstream("inspect", path).err


def test_page_size(tmp_path: Path) -> None:
    path = fixture_file("plain-7.2-pc", tmp_path)
    found = vmstream("inspect", "--json", "--page-size", "4096", path).json()
    assert (found["page_size"], found["page_size_source"]) == (4096, "argument")


def test_a_wrong_page_size(tmp_path: Path) -> None:
    """It is damage then, and said so; the way out is named."""
    path = fixture_file("plain-7.2-pc", tmp_path)
    for size in ("1024", "8192", "65536"):
        run = vmstream("inspect", "--page-size", size, path)
        assert run.status == 3
        assert "page" in run.err
        assert "Traceback" not in run.err


def test_mapped_ram_from_a_pipe() -> None:
    """What was read, and what to do; from a file there is more."""
    run = vmstream("inspect", "-", stdin=open_fixture("mapped-10.0-pc"))
    assert run.status == 4
    assert "machine      pc-i440fx-10.0" in run.out
    assert "capabilities mapped-ram" in run.out
    assert re.search(r"^  mem +0x1000000 ", run.out, re.MULTILINE)
    assert "give --spool DIR" in run.err
