"""`vmstream hexdump`: guest memory at an address, as a user meets it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.commandline import COMMAND, environment, vmstream
from tests.ops.test_extract import GIB
from tests.ops.test_memory import holed
from tests.truth import channel_names, check_block_bytes, fixture_file, load_manifest, open_fixture

PAGE = 4096


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def raw(*args: str | Path, stdin: bytes | None = None) -> bytes:
    """The bytes that --raw writes."""
    done = subprocess.run(
        [*COMMAND, "hexdump", *map(str, args), "--raw"],
        input=stdin, capture_output=True, env=environment(), check=True,
    )  # fmt: skip
    assert done.stderr == b""
    return done.stdout


def test_the_whole_of_a_guest(plain: Path) -> None:
    image = raw(plain, "--phys", "0", "-n", "16M")
    assert check_block_bytes(load_manifest("plain-7.2-pc"), "pc.ram", image)
    assert raw(plain, "--block", "pc.ram", "--length", "0x1000000") == image
    assert raw(plain, "--phys", "0x7c05", "-n", "70000") == image[0x7C05 : 0x7C05 + 70000]
    assert raw(plain, "--block", "pc.ram", "--offset", "1M", "-n", "9") == image[1 << 20 :][:9]


def test_lines(plain: Path) -> None:
    """The boot sector, where the BIOS put it."""
    run = vmstream("hexdump", plain, "--phys", "0x7c00", "-n", "512")
    assert (run.status, run.err) == (0, "")
    lines = run.out.splitlines()
    assert len(lines) == 32
    assert [int(line[:12], 16) for line in lines] == list(range(0x7C00, 0x7E00, 16))
    assert re.search(r" 55 aa  \|.{14}U\.\|$", lines[-1])
    data = bytes.fromhex("".join(line[14:62] for line in lines))
    assert data == raw(plain, "--phys", "0x7c00", "-n", "512")
    assert len(vmstream("hexdump", plain, "--phys", "0").out.splitlines()) == 16


def test_many_lines_have_no_seam(plain: Path) -> None:
    run = vmstream("hexdump", plain, "--phys", "7", "-n", "200000")
    lines = run.out.splitlines()
    assert [int(line[:12], 16) for line in lines] == list(range(7, 200007, 16))


def test_channels_and_spool(tmp_path: Path) -> None:
    main = fixture_file("multifd-zstd-11.1-pc.ch0", tmp_path)
    others = [fixture_file(n, tmp_path) for n in channel_names("multifd-zstd-11.1-pc.ch0")]
    given = [word for other in others for word in ("--channel", str(other))]
    manifest = load_manifest("multifd-zstd-11.1-pc.ch0")
    size = manifest["blocks"]["mem"]["size"]
    assert check_block_bytes(manifest, "mem", raw(main, *given, "--block", "mem", "-n", str(size)))
    data = open_fixture("plain-7.2-pc")
    run = vmstream("hexdump", "-", "--phys", "0", stdin=data)
    assert (run.status, run.out) == (4, "")
    assert "--spool" in run.err
    spool = tmp_path / "spool"
    spool.mkdir()
    image = raw("-", "--phys", "0", "-n", "16M", "--spool", spool, stdin=data)
    assert check_block_bytes(load_manifest("plain-7.2-pc"), "pc.ram", image)
    assert list(spool.iterdir()) == []


def test_no_ram_there(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(holed({2 * GIB - PAGE: b"\x20" * PAGE})))
    call = ("hexdump", tmp_path / "s", "--phys", "0x7ffffff8", "-n", "16")
    run = vmstream(*call)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("vmstream: no RAM at address 0x80000000; ")
    run = vmstream(*call, "--fill", "255")
    assert run.status == 1
    assert run.err.startswith("vmstream: warning: pages never sent (mem: 1310719, pc.bios: 1)")
    assert (
        run.out
        == "00007ffffff8  20 20 20 20 20 20 20 20  ff ff ff ff ff ff ff ff  |        ........|\n"
    )
    run = vmstream("hexdump", tmp_path / "s", "--phys", "0x7ffffff8", "-n", "1", "--below-4g", "1G")
    assert run.status == 2
    run = vmstream("hexdump", tmp_path / "s", "--block", "pc.bios", "--offset", "0x2000", "-n", "1")
    assert (run.status, run.out) == (2, "")
    assert "offset 0x2000 is not in block 'pc.bios'" in run.err
    run = vmstream("hexdump", tmp_path / "s", "--block", "nothing")
    assert (run.status, run.out) == (2, "")
    assert "the stream has: mem, pc.bios" in run.err


def test_doubts_about_the_layout(tmp_path: Path) -> None:
    """They count for addresses, as they do for an image, and not inside a block."""
    path = fixture_file("numa-dimm-10.0-pc", tmp_path)
    run = vmstream("hexdump", path, "--phys", "0", "-n", "16")
    assert run.status == 1
    assert len(run.out.splitlines()) == 1
    assert re.match(r"vmstream: warning: nothing tells the order of blocks n0, n1", run.err)
    run = vmstream("hexdump", path, "--block", "n0", "-n", "16")
    assert (run.status, run.err) == (0, "")


def test_partial(tmp_path: Path) -> None:
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    run = vmstream("hexdump", path, "--phys", "0")
    assert (run.status, run.out) == (3, "")
    assert "--partial" in run.err
    run = vmstream("hexdump", path, "--phys", "0", "--partial")
    assert run.status == 3
    assert len(run.out.splitlines()) == 16
    assert "the input ends" in run.err


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--phys", "0", "--block", "pc.ram"],
        ["--phys", "0", "--offset", "0"],
        ["--block", "pc.ram", "--fill", "0"],
        ["--phys", "x"],
        ["--phys", "-1"],
        ["--phys", "0", "-n", "many"],
        ["--phys", "0", "--fill", "256"],
    ],
)
def test_usage(args: list[str], plain: Path) -> None:
    run = vmstream("hexdump", plain, *args)
    assert (run.status, run.out) == (2, "")
    assert "Error: " in run.err


def test_virtual_addresses(tmp_path: Path) -> None:
    """Without paging they are the physical ones."""
    path = fixture_file("plain-11.1-q35", tmp_path)
    run = vmstream("hexdump", path, "--virt", "0x7c00", "-n", "64")
    assert (run.status, run.err) == (0, "")
    assert run.out == vmstream("hexdump", path, "--phys", "0x7c00", "-n", "64").out
    run = vmstream("hexdump", path, "--virt", "0", "--cpu", "7")
    assert run.status == 2
    assert "no CPU 7; there is 0, 1" in run.err
    run = vmstream("hexdump", path, "--virt", "0", "--phys", "0")
    assert run.status == 2
