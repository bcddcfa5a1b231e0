"""Outputs made of a finished image: kdump pages, compressed files, standard output."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.commandline import COMMAND, ROOT, environment, no_leftovers, vmstream
from tests.kdumps import Kdump
from tests.truth import channel_names, fixture_file
from vmstream.errors import OutputError
from vmstream.guest.kdump import kdump_plan
from vmstream.guest.physical import PhysicalMap, Region
from vmstream.ops.encode import compression_of, write_kdump
from vmstream.transport.sink import OutputFile

MIB = 1 << 20


def piped(*args: str | Path, stdin: bytes = b"", status: int = 0) -> bytes:
    """What `vmstream extract-ram ARGS` writes to standard output."""
    done = subprocess.run(
        [*COMMAND, "extract-ram", *map(str, args)],
        input=stdin, capture_output=True, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


def extracted(*args: str | Path, status: int = 0, stdin: bytes | None = None) -> dict[str, Any]:
    done = vmstream("extract-ram", *args, "--json", stdin=stdin)
    assert done.status == status, done.err
    (output,) = done.json()["outputs"]
    found: dict[str, Any] = output
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("form", "name", "asked", "found"),
    [
        ("raw", "a.raw", None, None),
        ("raw", "a.raw.gz", None, "gzip"),
        ("lime", "a.zst", None, "zstd"),
        ("elf", "a.zst", "none", None),
        ("elf", "a.zst", "gzip", "gzip"),
        ("raw", "-", "zstd", "zstd"),
        ("kdump", "a", None, "zlib"),
        ("kdump", "a", "zstd", "zstd"),
        ("kdump", "-", "none", None),
        ("raw", None, "gzip", "gzip"),
    ],
)
def test_compression(form: str, name: str | None, asked: str | None, found: str | None) -> None:
    assert compression_of(form, Path(name) if name else None, asked) == found


@pytest.mark.parametrize(
    ("form", "name", "asked"),
    [
        ("raw", "a", "zlib"),
        ("kdump", "a", "gzip"),
        ("kdump", "a.gz", None),
        ("kdump", "a.zst", "zstd"),
    ],
)
def test_no_compression(form: str, name: str, asked: str | None) -> None:
    with pytest.raises(OutputError):
        compression_of(form, Path(name), asked)


@pytest.mark.parametrize("compression", ["zlib", "zstd", None])
@pytest.mark.parametrize("block", [4096, 65536])
def test_pages(compression: str | None, block: int, tmp_path: Path) -> None:
    """Pages that shrink, that do not, of zeros and in holes, across batches; frames in part."""
    rng = random.Random(block)
    gpa, size = 5 * MIB + 4096, 6 * MIB
    image = bytearray(gpa + size)
    for at in range(gpa, gpa + size, 4096):
        kind = rng.choice("ztr") if at < gpa + 4 * MIB else "z"
        if kind == "r":
            image[at : at + 4096] = rng.randbytes(4096)
        elif kind == "t":
            image[at : at + 4096] = b"text %d" % at * 3 + bytes(4096 - len(b"text %d" % at * 3))
    family = "arm virt" if block == 65536 else "pc"
    layout = PhysicalMap((Region(gpa, size, 0, 0),), None, "user", (), family=family)
    plan = kdump_plan(layout, page_size=4096, compression=compression)
    with OutputFile(tmp_path / "image") as source, OutputFile(tmp_path / "out") as out:
        source.resize(len(image))
        for at in range(0, len(image), 4096):
            if any(image[at : at + 4096]):
                source.write(at, image[at : at + 4096])
        seen: list[tuple[int, int | None]] = []
        write_kdump(source, plan, compression, out.write, lambda at, of: seen.append((at, of)))
        out.commit()
    kdump = Kdump(tmp_path / "out")
    assert kdump.header["block_size"] == block
    assert kdump.frames == [*range(gpa // block, -(-(gpa + size) // block))]
    image.extend(bytes(block))
    for frame, page in kdump.pages():
        assert page == image[frame * block : (frame + 1) * block], frame
    flag = {"zlib": 1, "zstd": 0x20, None: 0}[compression]
    assert set(kdump.flags) == {0, flag}
    assert seen[-1] == (len(kdump.frames) * block,) * 2


# Every way that pages come: PAGE, XBZRLE, zlib, mapped-ram, packets, a container; every byte order.
FIXTURES = [
    "plain-7.2-pc", "own-live-q35", "zlib-xbzrle-5.2-pc", "mapped-10.0-pc",
    "multifd-zstd-11.1-pc.ch0", "aarch64-10.0-virt", "s390x-10.0", "numa-dimm-10.0-pc",
    "old-5.2-pc-i440fx-2.1",
]  # fmt: skip


@pytest.mark.parametrize("name", FIXTURES)
def test_kdump_of_fixtures(name: str, tmp_path: Path) -> None:
    """Each frame has the bytes of the raw image; so it is from a pipe, flattened."""
    stream = fixture_file(name, tmp_path)
    args: list[str | Path] = []
    for channel in channel_names(name.removesuffix(".ch0")) if name.endswith(".ch0") else ():
        args += ["--channel", fixture_file(channel, tmp_path)]
    raw, path = tmp_path / "raw", tmp_path / "kdump"
    done = vmstream("extract-ram", stream, "-o", raw, *args, "--json")
    status = done.status
    output = extracted(stream, "-o", path, "--format", "kdump", *args, status=status)
    assert (output["format"], output["compression"]) == ("kdump", "zlib")
    assert (output["size"], output["content_size"]) == (path.stat().st_size, raw.stat().st_size)
    kdump, there = Kdump(path), 0
    with raw.open("rb") as file:
        for gpa, data in kdump.stretches():
            file.seek(gpa)
            assert file.read(len(data)) == data, hex(gpa)
            there += len(data)
    regions = done.json()["layout"]["regions"]
    assert there == sum(r["length"] for r in regions)
    assert kdump.header["nr_cpus"] >= 1
    if not name.startswith(("mapped", "multifd")):
        flat = piped("-", "-o", "-", "--format", "kdump", stdin=stream.read_bytes(), status=status)
        assert flat.startswith(b"makedumpfile")
        assert Kdump(flat).data == path.read_bytes()
        if shutil.which("makedumpfile"):
            made = tmp_path / "made"
            subprocess.run(
                ["makedumpfile", "-R", made], input=flat, check=True, capture_output=True
            )
            assert made.read_bytes() == path.read_bytes()


def test_kdump_of_a_packed_pipe(tmp_path: Path) -> None:
    stream, path = fixture_file("plain-7.2-pc", tmp_path), tmp_path / "out"
    extracted(stream, "-o", path, "--format", "kdump", "--compress", "zstd")
    packed = gzip.compress(stream.read_bytes(), 1)
    extracted(
        "-", "-o", tmp_path / "piped", "--format", "kdump", "--compress", "zstd", stdin=packed
    )
    assert (tmp_path / "piped").read_bytes() == path.read_bytes()


UNPACK = {
    "gz": gzip.decompress,
    "zst": lambda data: zstandard.ZstdDecompressor().decompress(data),
}


@pytest.mark.parametrize(("form", "suffix"), [("raw", "zst"), ("lime", "gz"), ("elf", "zst")])
def test_compressed(form: str, suffix: str, tmp_path: Path) -> None:
    """Unpacked it is the file that is written without compression; so is standard output."""
    stream = fixture_file("plain-7.2-pc", tmp_path)
    plain, out, account = tmp_path / "plain", tmp_path / f"out.{suffix}", tmp_path / "account"
    extracted(stream, "-o", plain, "--format", form)
    output = extracted(stream, "-o", out, "--format", form, "--manifest", account)
    data, packed = plain.read_bytes(), out.read_bytes()
    assert UNPACK[suffix](packed) == data
    assert (output["size"], output["sha256"]) == (len(packed), sha256(packed))
    assert (output["content_size"], output["content_sha256"]) == (len(data), sha256(data))
    assert piped(stream, "-o", "-", "--format", form) == data
    to_pipe = piped(
        stream, "-o", "-", "--format", form, "--compress", output["compression"],
        "--manifest", account, "--force",
    )  # fmt: skip
    assert UNPACK[suffix](to_pipe) == data
    (told,) = json.loads(account.read_text())["outputs"]
    assert (told["path"], told["sha256"]) == ("-", sha256(to_pipe))
    assert no_leftovers(tmp_path)


def test_blocks(tmp_path: Path) -> None:
    stream = fixture_file("plain-7.2-pc", tmp_path)
    assert vmstream("extract-ram", stream, "--all-blocks", tmp_path / "a").status == 0
    done = vmstream(
        "extract-ram", stream, "--all-blocks", tmp_path / "b", "--compress", "zstd"
    )  # fmt: skip
    assert done.status == 0, done.err
    account = json.loads((tmp_path / "b" / "manifest.json").read_text())
    names = {b["file"] for b in account["blocks"]}
    assert {p.name for p in (tmp_path / "b").iterdir()} == {*names, "manifest.json"}
    for name in names:
        assert name.endswith(".raw.zst")
        plain = (tmp_path / "a" / name.removesuffix(".zst")).read_bytes()
        assert UNPACK["zst"]((tmp_path / "b" / name).read_bytes()) == plain
    one = piped(stream, "--block", "pc.bios", "-o", "-")
    assert one == (tmp_path / "a" / "pc.bios.raw").read_bytes()


@pytest.mark.parametrize("args", [["--format", "kdump"], ["--compress", "gzip"], []])
def test_nothing_is_left(args: list[str], tmp_path: Path) -> None:
    """Of a damaged stream; with --partial what is there, and a kdump file says it is not all."""
    data = fixture_file("plain-7.2-pc", tmp_path).read_bytes()
    (tmp_path / "plain-7.2-pc.qevm").unlink()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) // 2])
    target = "-" if not args else str(tmp_path / "out")
    spool = tmp_path / "spool"
    spool.mkdir()
    done = vmstream("extract-ram", cut, "-o", target, *args, "--spool", spool)
    assert done.status == 3
    assert done.out == ""
    assert {p.name for p in tmp_path.rglob("*")} == {"cut", "spool"}
    done = vmstream(
        "extract-ram", cut, "-o", tmp_path / "out", "--partial", "--spool", spool, *args,
    )  # fmt: skip
    assert done.status == 3, done.err
    assert not [*spool.iterdir()]
    if "kdump" in args:
        assert Kdump(tmp_path / "out").header["status"] == 1 | 8


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    stream = fixture_file("plain-7.2-pc", tmp_path)
    out = tmp_path / "out.zst"
    out.write_bytes(b"mine")
    done = vmstream("extract-ram", stream, "-o", out)
    assert (done.status, out.read_bytes()) == (2, b"mine")
    assert vmstream("extract-ram", stream, "-o", out, "--force").status == 0
    assert out.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert no_leftovers(tmp_path)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """Quiet, and nothing stays in the directory for temporary files."""
    stream = fixture_file("plain-7.2-pc", tmp_path)
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "vmstream", "extract-ram", str(stream), "-o", "-"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(tmp_path / "tmp")), cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()
    assert not [*(tmp_path / "tmp").iterdir()]


def test_standard_output_is_for_one_thing(tmp_path: Path) -> None:
    stream = fixture_file("plain-7.2-pc", tmp_path)
    done = vmstream("extract-ram", stream, "-o", "-", "--json")
    assert (done.status, done.out) == (2, "")
    assert "--manifest" in done.err
