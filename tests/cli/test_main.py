"""The command as a whole: help, exit status, pipes that close, signals."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, no_leftovers, vmstream
from tests.streamwriter import RamBlock, StreamWriter, simple_stream
from tests.truth import fixture_file, open_fixture
from vmstream.cli.main import main
from vmstream.version import __version__

COMMANDS = {
    "inspect": "STREAM",
    "records": "STREAM",
    "extract-ram": "STREAM",
    "verify": "STREAM",
    "check": "STREAM",
    "diagnose": "STREAM",
    "rewrite": "STREAM",
    "convert": "STREAM OUT",
    "unpack": "STREAM DIR",
    "build": "",
    "devices": "STREAM",
    "get": "STREAM",
    "cpus": "STREAM",
    "cmdline": "STREAM",
    "hexdump": "STREAM",
    "search": "STREAM PATTERN",
    "diff": "A B",
    "history": "STREAM",
    "stats": "STREAM",
    "heatmap": "STREAM",
    "report": "STREAM",
    "vmcoreinfo": "STREAM",
    "banner": "STREAM",
    "xml": "STREAM",
    "capture": "",
    "receive": "",
    "snapshots": "DISK",
}
# What a command takes besides the stream.
MORE = {
    "check": ["--against", os.devnull],
    "diagnose": ["--log", os.devnull],
    "extract-ram": ["-o", "out"],
    "rewrite": ["-o", "out"],
    "convert": ["out"],
    "unpack": ["out"],
    "get": ["timer"],
    "hexdump": ["--phys", "0"],
    "search": ["text"],
    "diff": ["none"],
    "heatmap": ["-o", "out"],
    "report": ["-o", "out"],
}
PAGE = 4096


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(flag: str) -> None:
    run = vmstream(flag)
    assert run.status == 0
    assert run.err == ""
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", run.out, re.MULTILINE)
    for word in ("Usage:", "Examples:", "exec:cat>", "Exit status:", '"migrate"'):
        assert word in run.out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_command(command: str, flag: str) -> None:
    run = vmstream(command, flag)
    assert run.status == 0, run.err
    assert f"Usage: vmstream {command} [OPTIONS] {COMMANDS[command]}".rstrip() in run.out
    examples = run.out.partition("Examples:")[2]
    assert f"  vmstream {command} " in examples
    # Every option says what it does.
    for line in re.findall(r"^  (?:-\w, )?--[\w-]+.*$", run.out, re.MULTILINE):
        assert re.search(r"\S  +\S", line) or f"{line}\n        " in run.out, line


def test_the_examples_are_real_options() -> None:
    for command in COMMANDS:
        text = vmstream(command, "--help").out
        options, _, examples = text.partition("Examples:")
        for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", examples):
            if option not in ("-r", "-qmp", "-d"):  # of jq and QEMU
                assert re.search(rf"(?<!\S){option}\b", options), (command, option)


def test_help_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vmstream", "--help"],
        capture_output=True,
        env=environment(),
    )
    imported = re.findall(r"\|\s*([\w.]+)$", done.stderr.decode(), re.MULTILINE)
    assert "vmstream.cli.main" in imported
    heavy = {"numpy", "construct", "rich", "zstandard"}
    assert not heavy & {name.partition(".")[0] for name in imported}


def test_version() -> None:
    run = vmstream("--version")
    assert (run.status, run.err) == (0, "")
    assert __version__ in run.out
    assert run.out.startswith("vmstream")


def test_no_command() -> None:
    run = vmstream()
    assert run.status in (0, 2)  # as click's release has it
    assert "Usage:" in run.out + run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    "args", [["nonsense"], ["--nonsense"], ["inspect"], ["records", "--x", "f"]]
)
def test_usage(args: list[str]) -> None:
    run = vmstream(*args)
    assert run.status == 2
    assert run.out == ""
    assert "Usage: vmstream" in run.err
    assert "Error: " in run.err


def test_in_process(capsys: pytest.CaptureFixture[str], plain: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["--version"]) == 0
        assert main(["nonsense"]) == 2
        assert main(["inspect", str(plain)]) == 0
        assert main(["inspect", str(plain.parent / "nowhere")]) == 6
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "complete" in capsys.readouterr().out


# -- exit status ----------------------------------------------------------------------------------


def no_pages() -> bytes:
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 4 * PAGE)])
    with w.ram_part():
        w.page("mem", 0, b"\1" * PAGE)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    return bytes(w)


def hook() -> bytes:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("mem", 4 * PAGE)])
    with w.ram_part():
        w.hook()
    return bytes(w)


def huge_package() -> bytes:
    w = simple_stream()
    start = w.items_of("START")[0].offset
    again = StreamWriter()
    again.header()
    again.packaged(b"", length=1 << 30)
    return bytes(again) + bytes(w.data[start:])


INPUTS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "whole": (0, lambda: open_fixture("plain-7.2-pc")),
    "pages missing": (1, no_pages),
    "cut": (3, lambda: open_fixture("plain-7.2-pc")[:100_000]),
    "empty": (3, lambda: b""),
    "one byte": (3, lambda: b"Q"),
    "text": (3, lambda: b"This is a text.\n" * 1000),
    "zeros": (3, lambda: bytes(100_000)),
    "magic alone": (3, lambda: b"QEVM"),
    "old version": (3, lambda: b"QEVM\0\0\0\2" + bytes(100)),
    "RDMA": (4, hook),
    "limit": (5, huge_package),
}


@pytest.mark.parametrize("command", ["inspect", "records"])
def test_mapped_ram_in_a_pipe(command: str) -> None:
    run = vmstream(command, "-", stdin=open_fixture("mapped-10.0-pc"))
    assert run.status == 4
    assert "a pipe" in run.err
    assert "save it to a file" in run.err


@pytest.mark.parametrize("how", ["file", "pipe", "redirected"])
@pytest.mark.parametrize("name", INPUTS)
def test_status(name: str, how: str, tmp_path: Path) -> None:
    status, make = INPUTS[name]
    path = tmp_path / "stream"
    path.write_bytes(make())
    given = {
        "file": (str(path), None),
        "pipe": ("-", path.read_bytes()),
        "redirected": ("-", path),
    }
    stream, stdin = given[how]
    run = vmstream("inspect", stream, stdin=stdin)
    assert run.status == status, run.err
    assert "Traceback" not in run.err
    if status >= 3:
        # The offset of the fault, for people who look at standard error alone.
        assert re.search(r"^vmstream: offset 0x[0-9a-f]+", run.err, re.MULTILINE)
    else:
        assert run.err == ""
    if name in ("empty", "text", "zeros", "one byte", "magic alone", "old version"):
        assert run.out == ""
    else:
        assert "migration stream" in run.out


@pytest.mark.parametrize("command", [c for c, usage in COMMANDS.items() if usage])
def test_what_cannot_be_opened(command: str, tmp_path: Path) -> None:
    more = MORE.get(command, [])
    run = vmstream(command, tmp_path / "nowhere", *more, cwd=tmp_path)
    assert run.status == 6
    assert run.out == ""
    assert run.err == f"vmstream: {tmp_path}/nowhere: No such file or directory\n"
    run = vmstream(command, tmp_path, *more, cwd=tmp_path)
    assert run.status == 6
    assert run.out == ""
    assert run.err == f"vmstream: {tmp_path}: Is a directory\n"
    assert list(tmp_path.iterdir()) == []


def test_any_other_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    run = vmstream("inspect", "loop", cwd=tmp_path)
    assert (run.status, run.out) == (6, "")
    assert run.err == f"vmstream: loop: {os.strerror(errno.ELOOP)}\n"


@pytest.mark.parametrize(
    "command", [c for c, what in COMMANDS.items() if what.startswith("STREAM") and c != "xml"]
)
@pytest.mark.parametrize("data", [b"", b"This is a text.\n" * 99, b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_stream(command: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(data)
    more = MORE.get(command, [])
    if command in ("hexdump", "search", "stats", "vmcoreinfo", "banner"):
        more = [*more, "--spool", tmp_path]
    for stdin, name in ((None, "s"), (data, "-")):
        run = vmstream(command, name, *more, stdin=stdin, cwd=tmp_path)
        assert run.status == 3
        assert "Traceback" not in run.err
        assert "migration stream" in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_redirected_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    """Another program may have read a container's head already."""
    path = tmp_path / "container"
    path.write_bytes(b"head" * 5 + open_fixture("plain-7.2-pc"))
    with path.open("rb") as file:
        file.seek(20)
        done = subprocess.run(
            [*COMMAND, "inspect", "-"], stdin=file, capture_output=True, env=environment()
        )
    assert done.returncode == 0, done.stderr.decode()
    assert "2.429 MiB, complete" in done.stdout.decode()


# -- standard streams that are not what they should be --------------------------------------------


def until_line(*args: str | Path) -> tuple[int, bytes, bytes]:
    """Run, read one line of output, and close it: `vmstream ARGS | head -1`."""
    with subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    return process.returncode, line, err


@pytest.mark.parametrize("args", [["records"], ["records", "--json"]])
def test_head(args: list[str], tmp_path: Path) -> None:
    status, line, err = until_line(*args, fixture_file("dirtybitmap-10.0-pc", tmp_path))
    assert line.startswith((b"0x000000000000", b'{"schema"'))
    assert err == b""
    assert status == 141


@pytest.mark.parametrize(
    "args",
    [["inspect"], ["inspect", "--json"], ["records"], ["extract-ram", "-o", "out"]],
    ids=" ".join,
)
def test_nobody_reads(args: list[str], plain: Path, tmp_path: Path) -> None:
    """`| true`: the reader is gone before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *args, str(plain)],
            stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE,
            env=environment(), cwd=tmp_path,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize(
    "args",
    [["inspect"], ["inspect", "--json"], ["records"], ["extract-ram", "-o", "out"], ["--help"]],
    ids=" ".join,
)
def test_a_full_disk_behind_standard_output(args: list[str], plain: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *args, *([] if args == ["--help"] else [str(plain)])],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE,
            env=environment(), cwd=tmp_path,
        )  # fmt: skip
    err = done.stderr.decode()
    assert os.strerror(errno.ENOSPC) in err
    assert "Traceback" not in err
    assert done.returncode == 6
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("args", [["inspect"], ["records"], ["extract-ram", "-o", "x"]])
def test_closed_standard_input(args: list[str], tmp_path: Path) -> None:
    """`vmstream inspect - <&-`."""
    command = " ".join([*COMMAND, *args, "-", "<&-"])
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, env=environment(), cwd=tmp_path
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["inspect"], ["records"], ["extract-ram", "-o", "x"]])
def test_closed_standard_output(args: list[str], plain: Path, tmp_path: Path) -> None:
    """`vmstream inspect FILE >&-`."""
    command = " ".join([*COMMAND, *args, str(plain), ">&-"])
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, env=environment(), cwd=tmp_path
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 6, 141)
    assert no_leftovers(tmp_path)


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_leaves_nothing(number: signal.Signals, status: int, tmp_path: Path) -> None:
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0")
    w.ram_start([RamBlock("mem", 16 * PAGE)])
    w.part(w.ram_id)
    w.page("mem", 0, b"\1" * PAGE)
    data = bytes(w) + (PAGE | 0x28).to_bytes(8, "big") + b"\2" * PAGE
    with subprocess.Popen(
        [*COMMAND, "extract-ram", "-", "-o", str(tmp_path / "out")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        # More than a window, so that the output is open; then it waits for more, and so do we.
        process.stdin.write(data + data[-PAGE - 8 :] * (10 << 8))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not any(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == status
    assert b"Traceback" not in err
    assert out == b""
    assert list(tmp_path.iterdir()) == []
