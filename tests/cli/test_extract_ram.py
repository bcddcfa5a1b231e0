"""`vmstream extract-ram`: what it writes, says and refuses, as a user meets it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import no_leftovers, vmstream
from tests.ops.test_extract import MARKS, big_stream, check_marks, rtc
from tests.streamwriter import RamBlock, StreamWriter
from tests.truth import check_block, fixture_file, load_manifest, open_fixture

GIB = 1 << 30
PAGE = 4096


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fixture_file("plain-7.2-pc", tmp_path)


def test_image(plain: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", plain, "-o", "ram.raw", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines()[:3] == [
        "ram.raw: guest-physical image, 16 MiB",
        "  0x0..0x1000000  pc.ram+0x0  (cmos)",
        "  decided by cmos (inferred)",
    ]
    check_block(load_manifest("plain-7.2-pc"), "pc.ram", tmp_path / "ram.raw")
    assert no_leftovers(tmp_path)


def test_pipe(tmp_path: Path) -> None:
    data = open_fixture("plain-10.0-q35")
    run = vmstream("extract-ram", "-", "--output", "ram.raw", stdin=data, cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    check_block(load_manifest("plain-10.0-q35"), "mem", tmp_path / "ram.raw")


def test_block(plain: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", plain, "--block", "pc.bios", "-o", "bios", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    assert run.out == "bios: block pc.bios, 256 KiB\n"
    assert (tmp_path / "bios").stat().st_size == 1 << 18


def test_all_blocks(tmp_path: Path) -> None:
    path = fixture_file("plain-11.1-pc", tmp_path)
    run = vmstream("extract-ram", path, "--all-blocks", "out/", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest = load_manifest("plain-11.1-pc")
    assert len(account["blocks"]) == len(manifest["blocks"]) == len(run.out.splitlines())
    for block in account["blocks"]:
        check_block(manifest, block["idstr"], tmp_path / "out" / block["file"])
        assert f"out/{block['file']}: block {block['idstr']}, " in run.out


def test_json(plain: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", plain, "-o", "ram.raw", "--json", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    found = run.json()
    assert found["schema"] == "vmstream.extract-ram/1"
    assert found["outputs"] == [
        {
            "path": "ram.raw",
            "size": 1 << 24,
            "idstr": None,
            "sha256": None,
            "format": "raw",
            "compression": None,
            "content_size": None,
            "content_sha256": None,
        }
    ]
    assert found["layout"]["decided_by"] == "cmos"
    assert found["layout"]["source"] == "inferred"


def test_manifest(plain: Path, tmp_path: Path) -> None:
    args = ["extract-ram", str(plain), "-o", "ram.raw", "--manifest", "ram.json"]
    run = vmstream(*args, cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    found = json.loads((tmp_path / "ram.json").read_text())
    assert found["arguments"] == args
    assert found["input_sha256"] == hashlib.sha256(plain.read_bytes()).hexdigest()
    content = (tmp_path / "ram.raw").read_bytes()
    assert found["outputs"][0]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_doubt(tmp_path: Path) -> None:
    """On standard error, and as exit status 1."""
    path = fixture_file("numa-dimm-10.0-pc", tmp_path)
    run = vmstream("extract-ram", path, "-o", "ram.raw", cwd=tmp_path)
    assert run.status == 1
    assert run.err.startswith("vmstream: warning: nothing tells the order of blocks n0, n1")
    assert "warning" not in run.out
    assert (tmp_path / "ram.raw").stat().st_size == 4 * GIB + (128 << 20)


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_below_4g(how: str, tmp_path: Path) -> None:
    data = big_stream("pc-q35-9.0", 5 * GIB, MARKS, rtc(2 * GIB, 3 * GIB))
    (tmp_path / "s").write_bytes(data)
    stream, stdin = ("s", None) if how == "file" else ("-", data)
    run = vmstream(
        "extract-ram", stream, "-o", "image", "--below-4g", "3G", stdin=stdin, cwd=tmp_path
    )
    assert (run.status, run.err) == (0, "")
    assert "decided by user" in run.out
    check_marks(tmp_path / "image", 3 * GIB)


# -- damaged streams ------------------------------------------------------------------------------


def test_a_cut_stream_is_refused(tmp_path: Path) -> None:
    path = fixture_file("interrupted-pipe-11.1-pc", tmp_path)
    for args in (["-o", "x"], ["--all-blocks", "d"], ["-o", "x", "--block", "mem"]):
        run = vmstream("extract-ram", path, *args, cwd=tmp_path)
        assert run.status == 3
        assert run.out == ""
        assert "--partial writes what is there" in run.err
        assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]


def test_partial(tmp_path: Path) -> None:
    path = fixture_file("interrupted-stopped-11.1-q35", tmp_path)
    run = vmstream("extract-ram", path, "-o", "x", "--partial", cwd=tmp_path)
    assert run.status == 3
    assert "x: guest-physical image, 16 MiB" in run.out
    assert "block mem lacks 3,456 pages" in run.err
    assert (tmp_path / "x").stat().st_size == 1 << 24


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("multifd-7.2-pc.ch0", "multifd"),
        ("ignoreshared-10.0-pc", "x-ignore-shared"),
    ],
)
@pytest.mark.parametrize("partial", [[], ["--partial"]])
def test_not_supported(name: str, word: str, partial: list[str], tmp_path: Path) -> None:
    path = fixture_file(name, tmp_path)
    run = vmstream("extract-ram", path, "-o", "x", *partial, cwd=tmp_path)
    assert run.status == 4
    assert run.out == ""
    assert word in run.err
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--block", "pc.ram"],
        ["--all-blocks", "d", "--block", "pc.ram"],
        ["--all-blocks", "d", "-o", "x"],
        ["-o", "x", "--below-4g", "lots"],
        ["-o", "x", "--below-4g", "-1"],
        ["-o", "x", "--page-size", "5000"],
        ["--all-blocks", "plain-7.2-pc.qevm"],
        ["-o", "."],
        ["-o", "/dev/null"],
        ["-o", "/dev/null", "--force"],
        ["-o", "x", "--block", "nowhere"],
        ["-o", "x", "--below-4g", "1T"],
        ["-o", "x", "--below-4g", "5000"],
    ],
    ids=" ".join,
)
def test_usage(args: list[str], plain: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", plain, *args, cwd=tmp_path)
    assert run.status == 2, run.out
    assert run.out == ""
    assert run.err
    assert "Traceback" not in run.err
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [plain.name]


def test_nothing_is_written_over(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    run = vmstream("extract-ram", plain, "-o", "x", cwd=tmp_path)
    assert run.status == 2
    assert run.err == "vmstream: x: exists (--force replaces it)\n"
    assert (tmp_path / "x").read_bytes() == b"old"
    run = vmstream("extract-ram", plain, "-o", "y", "--manifest", "x", cwd=tmp_path)
    assert run.status == 2
    assert not (tmp_path / "y").exists()
    run = vmstream("extract-ram", plain, "-o", "x", "--force", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    assert (tmp_path / "x").stat().st_size == 1 << 24
    assert no_leftovers(tmp_path)


def test_standard_input_is_not_written_over(plain: Path, tmp_path: Path) -> None:
    """A redirected file is known, though it has no name here."""
    before = plain.read_bytes()
    for args in (["-o", plain.name], ["-o", "x", "--manifest", plain.name]):
        run = vmstream("extract-ram", "-", *args, "--force", stdin=plain, cwd=tmp_path)
        assert run.status == 2
        assert plain.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == [plain.name]


def test_a_directory_that_is_not_there(plain: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", plain, "-o", "no/where", cwd=tmp_path)
    assert run.status == 6
    assert run.err == "vmstream: no/where: No such file or directory\n"
    run = vmstream("extract-ram", plain, "-o", "x", "--manifest", "no/where", cwd=tmp_path)
    assert run.status == 6
    assert run.err == "vmstream: no/where: No such file or directory\n"
    run = vmstream("extract-ram", plain, "--all-blocks", "new/one", cwd=tmp_path)
    assert run.status == 0
    assert (tmp_path / "new" / "one" / "manifest.json").exists()


def test_the_names_are_offered(tmp_path: Path) -> None:
    """Where the layout cannot be known, what can be written is."""
    w = StreamWriter()
    w.header()
    w.configuration("sun4m")
    w.ram_start([RamBlock("sun4m.ram", 2 * PAGE), RamBlock("other", PAGE)])
    with w.ram_part():
        for page in range(2):
            w.page("sun4m.ram", page * PAGE, b"\1" * PAGE)
        w.zero("other", 0)
    with w.ram_end():
        pass
    w.eof()
    w.vmdescription()
    for stdin in (None, bytes(w)):
        (tmp_path / "s").write_bytes(bytes(w))
        name: Any = "s" if stdin is None else "-"
        run = vmstream("extract-ram", name, "-o", "x", stdin=stdin, cwd=tmp_path)
        assert run.status == 2
        assert "'sun4m.ram', 'other'" in run.err
        assert "--block IDSTR" in run.err
        assert [p.name for p in tmp_path.iterdir()] == ["s"]


# -- formats and layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "what", "size"),
    [
        ("raw", "guest-physical image", 1 << 24),
        ("lime", "guest-physical memory in LiME format", (1 << 24) + 32),
        ("elf", "guest-physical memory as an ELF core", (1 << 24) + (1 << 16)),
    ],
)
def test_formats(form: str, what: str, size: int, plain: Path, tmp_path: Path) -> None:
    run = vmstream("extract-ram", plain, "--format", form, "-o", "ram", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines()[0].startswith(f"ram: {what}, 16")
    assert (tmp_path / "ram").stat().st_size == size
    run = vmstream(
        "extract-ram", plain, "--format", form, "-o", "again", "--json", "--manifest", "m",
        cwd=tmp_path,
    )  # fmt: skip
    found = run.json()
    assert found == json.loads((tmp_path / "m").read_text())
    digest = hashlib.sha256((tmp_path / "ram").read_bytes()).hexdigest()
    assert found["outputs"] == [
        {"path": "again", "size": size, "idstr": None, "sha256": digest, "format": form}
    ]
    (region,) = found["layout"]["regions"]
    assert region == {
        "gpa": 0, "length": 1 << 24, "idstr": "pc.ram", "block_offset": 0, "source": "cmos",
        "file_offset": size - (1 << 24),
    }  # fmt: skip


def test_format_blocks(plain: Path, tmp_path: Path) -> None:
    """Another way to say --all-blocks."""
    for args in (["--format", "blocks", "-o", "one"], ["--all-blocks", "two"],
                 ["--format", "blocks", "--all-blocks", "three"]):  # fmt: skip
        run = vmstream("extract-ram", plain, *args, cwd=tmp_path)
        assert (run.status, run.err) == (0, "")
    one, two, three = (
        {p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("one", "two", "three")
    )
    assert one == two == three
    assert "manifest.json" in one


def test_layout(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "lay").write_text(
        '[{"gpa": "0x200000", "length": "0x100000", "block": "pc.ram", "block_offset": 4096}]'
    )
    run = vmstream("extract-ram", plain, "--layout", "lay", "-o", "ram", cwd=tmp_path)
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines() == [
        "ram: guest-physical image, 3 MiB",
        "  0x200000..0x300000  pc.ram+0x1000  (user)",
        "  decided by user",
        "  regions as lay states them: 1",
    ]
    (tmp_path / "bad").write_text('[{"gpa": 0, "length": 4096, "block": "no"}]')
    run = vmstream("extract-ram", plain, "--layout", "bad", "-o", "x", cwd=tmp_path)
    assert run.status == 2
    assert "bad: entry 0: no block 'no'" in run.err
    assert not (tmp_path / "x").exists()
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "lime", "--block", "pc.ram", "-o", "x"], "--format lime is not for --block"),
        (["--format", "blocks", "--block", "pc.ram", "-o", "x"], "--format blocks is not for"),
        (["--format", "elf", "--all-blocks", "x"], "--format elf is not for --block"),
        (["--format", "elf"], "give -o FILE"),
        (["--format", "blocks", "-o", "x", "--all-blocks", "y"], "give -o FILE"),
        (["--layout", "lay", "--all-blocks", "x"], "--layout is for the guest-physical image"),
        (["--layout", "lay", "--format", "blocks", "-o", "x"], "--layout is for"),
        (["--layout", "lay", "--block", "pc.ram", "-o", "x"], "--layout is for"),
        (["--layout", "lay", "--below-4g", "1M", "-o", "x"], "only one can decide"),
        (["--layout", "none", "-o", "x"], "does not exist"),
        (["--layout", "lay", "--rom", "-o", "x"], "--rom is for the guest-physical image"),
        (["--block", "pc.ram", "--rom", "-o", "x"], "--rom is for"),
        (["--all-blocks", "x", "--rom"], "--rom is for"),
        (["--format", "kdump", "-o", "x"], "'kdump' is not one of"),
    ],
)
def test_what_does_not_go_together(
    args: list[str], message: str, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "lay").write_text("[]")
    run = vmstream("extract-ram", plain, *args, cwd=tmp_path)
    assert run.status == 2
    assert message in run.err
    assert {p.name for p in tmp_path.iterdir()} == {plain.name, "lay"}
