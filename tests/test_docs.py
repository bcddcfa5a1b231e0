"""The documents against the code: commands, options, exit status, codes, examples."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path

import click
import pytest

import vmstream
from tests.commandline import ROOT, vmstream as run_vmstream
from tests.truth import fixture_file
from vmstream import errors
from vmstream.cli.main import cli
from vmstream.ops.records import KINDS
from vmstream.wire.live import KINDS as LIVE_KINDS

README = ROOT / "README.md"
JSON = ROOT / "docs" / "json.md"
COMMANDS = (
    "inspect", "records", "extract-ram", "extract-block", "verify", "check", "diagnose", "rewrite",
    "convert", "unpack", "build", "devices", "get", "cpus", "cmdline", "hexdump", "search", "diff",
    "history", "stats", "heatmap", "report", "vmcoreinfo", "banner", "xml", "capture", "receive",
    "snapshots",
)  # fmt: skip
NAMES = "|".join(COMMANDS)
CALL = re.compile(rf"(?<![\w/.-])vmstream ((?:{NAMES})[^\n`|>]*)")
SHOWN = re.compile(rf"^(?:    |\$ )vmstream ((?:{NAMES}) .*)$", re.MULTILINE)
WRITERS = ("extract", "rewrite", "convert", "heatmap", "report")
FILES = {"dump.bin", "cut.bin", "disks.bin"}  # of the examples
FILE = re.compile(r"\b((?:vmstream|tests|scripts|docs)/[\w/]+\.(?:py|md|json))\b")
MODULE = re.compile(r"`((?:cli|container|guest|ops|report|stream|tools|transport|wire)/\w+\.py)\b")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/format.md",
    "docs/json.md",
)


def text_of(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"no {path.name}")
    return path.read_text()


def command_of(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def statuses() -> dict[int, set[str]]:
    """Exit status: names of the error classes that end with it."""
    found: dict[int, set[str]] = {}
    for name, cls in vars(errors).items():
        if not isinstance(cls, type) or not issubclass(cls, errors.VmstreamError):
            continue
        if cls not in (errors.VmstreamError, errors.StreamError):  # the roots are never raised
            found.setdefault(cls.exit_code, set()).add(name)
    found[errors.EXIT_OS] = {"OSError"}
    return found


def table_below(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    section = re.split(r"^#+ ", text.partition(heading)[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    cut = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows
    ]
    return cut[2:]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# -- README.md ------------------------------------------------------------------------------------


def test_the_commands_are_all() -> None:
    assert tuple(cli.list_commands(click.Context(cli))) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_readme_has_every_command_and_option(name: str) -> None:
    text = text_of(README)
    assert re.search(rf"^    vmstream {name} ", text, re.MULTILINE)
    section = re.split(rf"^#+ {name}$", text, maxsplit=1, flags=re.MULTILINE)
    assert len(section) == 2, f"no section {name}"
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            named = [o for o in parameter.opts if re.search(rf"(?<![\w-]){o}(?![\w-])", text)]
            assert named, f"{name}: {'/'.join(parameter.opts)} is not in README.md"


@pytest.mark.parametrize(
    "path", ["README.md", "docs/json.md", "docs/architecture.md", "CONTRIBUTING.md"]
)
def test_no_options_that_do_not_exist(path: str) -> None:
    """Of the lines that call vmstream."""
    text = text_of(ROOT / path)
    for line in CALL.findall(text):
        name, *words = re.split(r"\s+", line)
        options = {o for p in command_of(name).params for o in (*p.opts, *p.secondary_opts)}
        for word in words:
            if re.fullmatch(r"--?[a-z][\w-]*", word):
                assert word in options, line


def test_readme_exit_status() -> None:
    rows = table_below(text_of(README), "## Exit status")
    told = [int(row[0]) for row in rows]
    assert told == sorted(
        {
            errors.EXIT_OK,
            errors.EXIT_FINDINGS,
            errors.EXIT_USAGE,
            errors.EXIT_TRUNCATED,
            *statuses(),
        }
    )
    words = {
        0: "done",
        1: "findings",
        2: "usage",
        3: "truncated or damaged",
        4: "not supported",
        5: "limit",
        6: "operating system",
        7: "cut off",
    }
    for status, row in zip(told, rows, strict=True):
        assert words[status] in row[1]


def test_help_has_the_same_statuses() -> None:
    text = re.sub(r"\s+", " ", cli.epilog or "")
    for status in sorted({0, 1, 2, *statuses()}):
        assert re.search(rf"[ :]{status} [a-z]", text), status


@pytest.mark.parametrize(
    "path",
    ["README.md", "docs/architecture.md", "docs/format.md", "docs/json.md", "CONTRIBUTING.md"],
)
def test_links(path: str) -> None:
    """Of files in the checkout."""
    text = text_of(ROOT / path)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert ((ROOT / path).parent / target).exists(), target


def test_the_library_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, *_ = [b for b in code_blocks(text_of(README), "python") if "vmstream.open" in b]
    fixture_file("plain-7.2-pc", tmp_path).rename(tmp_path / "dump.bin")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, {})  # noqa: S102
    lines = out.getvalue().splitlines()
    assert lines[0] == "pc-i440fx-7.2 4096"
    assert "b'pc.ram' 16777216" in lines
    assert lines[-1] == "4226 page records"


def test_the_library_example_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, example, _ = [b for b in code_blocks(text_of(README), "python") if "vmstream.open" in b]
    fixture_file("plain-7.2-pc", tmp_path).rename(tmp_path / "dump.bin")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, {})  # noqa: S102
    boot, rest, size = out.getvalue().splitlines()
    assert boot.endswith("55 aa")
    assert rest == "16 bytes of pc.bios"
    assert size == str(16 << 20)


def test_the_library_examples_that_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stream without findings, and a copy of a real one."""
    blocks = code_blocks(text_of(README), "python")
    writer, encoder = (b for b in blocks if "StreamWriter" in b or "Encoder" in b)
    fixture_file("plain-7.2-pc", tmp_path).rename(tmp_path / "dump.bin")
    monkeypatch.chdir(tmp_path)
    exec(writer, {})  # noqa: S102
    with vmstream.open("new.bin", strict=True) as stream, stream.memory() as memory:
        assert memory.read_block("pc.ram", 0, 1 << 20) == b"\1" * 65536 + bytes(983040)
        assert [d.path for d in stream.devices()] == ["timer[0]"]
    exec(encoder, {})  # noqa: S102
    assert Path("copy.bin").read_bytes() == Path("dump.bin").read_bytes()


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """Every line that needs a stream and nothing else."""
    fixture_file("plain-7.2-pc", tmp_path).rename(tmp_path / "dump.bin")
    fixture_file("interrupted-pipe-11.1-pc", tmp_path).rename(tmp_path / "cut.bin")
    fixture_file("blockmig-5.2-pc", tmp_path).rename(tmp_path / "disks.bin")
    (tmp_path / "guest.xml").write_text("<domain><name>guest</name></domain>")
    (tmp_path / "layout.json").write_text('[{"gpa": 4096, "length": 4096, "block": "pc.ram"}]')
    text = text_of(README)
    ran = 0
    for line in SHOWN.findall(text):
        # Commands end at a remark of several blanks, or at a pipe.
        call = re.split(r"   +|\|", line)[0]
        words = shlex.split(call)
        if words[-1] == "-" or "IDSTR" in call or not FILES & set(words):
            continue
        if words[0] == "capture":  # of a QEMU
            continue
        run = run_vmstream(
            *words,
            *(["--force"] if words[0].startswith(WRITERS) else []),
            cwd=tmp_path,
        )
        cut = 7 if words[0] == "verify" else 3
        assert run.status == (cut if "cut.bin" in words else 0), f"{call}: {run.err}"
        ran += 1
    assert ran >= 10


# -- docs/json.md ---------------------------------------------------------------------------------


def test_json_exit_status() -> None:
    """With the classes of vmstream/errors.py."""
    rows = {int(row[0]): row for row in table_below(text_of(JSON), "## Exit status")}
    for status, names in statuses().items():
        assert set(re.findall(r"`(\w+Error)`", rows[status][2])) == names
    assert {0, 1, 130, 141} <= rows.keys()
    more = {errors.EXIT_TRUNCATED}
    assert rows.keys() - {0, 1, 130, 141, 143} - more == statuses().keys()


def test_json_has_every_type_of_record() -> None:
    rows = table_below(text_of(JSON), "## `records`")
    told = {row[0].strip("`") for row in rows}
    pages = {"normal", "zero", "xbzrle", "compressed"}
    assert told == set(KINDS) - pages - {"unset"} - set(LIVE_KINDS)


def test_json_has_every_kind_of_live_record() -> None:
    rows = table_below(text_of(JSON), "### Kinds of `live`")
    assert [row[0].strip("`") for row in rows] == list(LIVE_KINDS)


def codes() -> set[str]:
    """The codes of anomalies, as they stand in the source: Anomaly, Finding and _note(...)."""
    found = {
        cls.__name__.removesuffix("Error").lower()
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.StreamError)
    } - {"stream"}
    for path in (ROOT / "vmstream").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = {"Anomaly": 3, "Finding": 1, "_note": 1}.get(name)
            if place is None or len(node.args) <= place:
                continue
            code = node.args[place]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                found.add(code.value)
    return found


def test_json_has_every_code() -> None:
    found = codes()
    assert {"truncated", "no-end", "pages-missing", "trailing", "unframed"} <= found
    told = {
        c
        for row in table_below(text_of(JSON), "## Anomalies")
        for c in re.findall(r"`([\w-]+)`", row[0])
    }
    assert told == found


def test_names_in_the_documents_exist() -> None:
    """`vmstream.NAME`, `vmstream/PATH.py` and `ROOM/MODULE.py` are there."""
    for path in DOCUMENTS:
        text = text_of(ROOT / path)
        for name in set(re.findall(r"\bvmstream\.([A-Z]\w+)", text)):
            assert hasattr(vmstream, name), (path, name)
        for file in set(FILE.findall(text)):
            assert (ROOT / file).exists(), (path, file)
        for file in set(MODULE.findall(text)):
            assert (ROOT / "vmstream" / file).exists(), (path, file)
