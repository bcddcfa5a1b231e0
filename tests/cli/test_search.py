"""`vmstream search`: hits in guest memory, as a user meets them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, vmstream
from tests.ops.test_extract import simple
from tests.report.test_models import validator
from tests.truth import fixture_file

PAGE = 4096


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def test_text(plain: Path, tmp_path: Path) -> None:
    """What the same search finds in the image that extract-ram writes."""
    assert vmstream("extract-ram", plain, "-o", tmp_path / "ram").status == 0
    image = (tmp_path / "ram").read_bytes()
    want = [m.start() for m in re.finditer(b"SeaBIOS", image)]
    assert want
    run = vmstream("search", plain, "SeaBIOS")
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines() == [f"{at:012x}  pc.ram+{at:#x}  |SeaBIOS|" for at in want]
    for args in (["--hex", "53 65 61 42494f53"], ["--regex", "[S]eaBIOS"]):
        assert vmstream("search", plain, *args) == run
    assert (
        vmstream("search", plain, "SeaBIOS", "--limit", "1").out == run.out.splitlines()[0] + "\n"
    )


def test_json(plain: Path) -> None:
    run = vmstream("search", plain, "_SM_", "--json", "--block", "pc.bios")
    assert (run.status, run.err) == (0, "")
    assert run.lines()
    for hit in run.lines():
        validator("search").validate(hit)
        assert hit["schema"] == "vmstream.search/1"
        assert (hit["block"], hit["gpa"], hit["data"]) == ("pc.bios", None, b"_SM_".hex())


def test_nothing_is_found(plain: Path) -> None:
    run = vmstream("search", plain, "there is no such text in it")
    assert (run.status, run.out, run.err) == (0, "", "")


def test_text_is_utf_8_and_other_bytes_stay(tmp_path: Path) -> None:
    page = "größe".encode().ljust(100, b"\0") + b"\xff\xfe"
    path = tmp_path / "s"
    path.write_bytes(bytes(simple(lambda w: w.page("mem", 0, page.ljust(PAGE, b"\0")), mem=2)))
    assert vmstream("search", path, "größe").out.startswith("000000000000  mem+0x0  |")
    done = subprocess.run(
        [os.fsencode(word) for word in (*COMMAND, "search", str(path))] + [b"\xff\xfe"],
        capture_output=True, env=environment(LC_ALL="C.UTF-8"), check=True,
    )  # fmt: skip
    assert done.stdout == b"000000000064  mem+0x64  |..|\n"


def test_a_damaged_stream(tmp_path: Path) -> None:
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    assert vmstream("search", path, "SeaBIOS").status == 3
    run = vmstream("search", path, "SeaBIOS", "--partial")
    assert run.status == 3
    assert "|SeaBIOS|" in run.out
    assert "the input ends" in run.err


def test_history(tmp_path: Path) -> None:
    def page(text: bytes) -> bytes:
        return text.ljust(PAGE, b"\0")

    w = simple(*(lambda w, t=t: w.page("mem", PAGE, page(t)) for t in (b"old", b"new")), mem=4)
    path = tmp_path / "s"
    path.write_bytes(bytes(w))
    first, last = (i.offset for i in w.items_of("PAGE"))
    run = vmstream("search", path, "--regex", "old|new", "--history")
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines() == [
        f"000000001000  mem+0x1000  |old|  record {first:#x}, superseded",
        f"000000001000  mem+0x1000  |new|  record {last:#x}",
    ]
    run = vmstream("search", path, "old", "--history", "--json")
    (hit,) = run.lines()
    validator("search").validate(hit)
    assert (hit["superseded"], hit["record_offset"], hit["channel"]) == (True, first, None)
    assert vmstream("search", path, "old").out == ""
    run = vmstream("search", "-", "old", "--history", "--spool", tmp_path, stdin=bytes(w))
    assert (run.status, run.out) == (4, "")
    assert "save it to a file" in run.err


def test_there_is_no_history(plain: Path) -> None:
    run = vmstream("search", plain, "_SM_", "--history", "--limit", "1")
    assert run.status == 0
    assert run.out.count("record 0x") == 1
    assert "there is no history" in run.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([""], "1 to 65536 bytes"),
        (["--hex", "5"], "non-hexadecimal"),
        (["--hex", "zz"], "non-hexadecimal"),
        (["--regex", "["], "no regular expression"),
        (["--regex", "--hex", "55"], "not both"),
        (["x", "--limit", "0"], "--limit"),
        ([], "Missing argument"),
    ],
)
def test_usage(args: list[str], said: str, plain: Path) -> None:
    run = vmstream("search", plain, *args)
    assert (run.status, run.out) == (2, "")
    assert said in run.err
