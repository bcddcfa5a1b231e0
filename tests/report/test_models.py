"""The JSON contract: what is written is what the schemas in docs/schema promise."""

from __future__ import annotations

import base64
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from tests.commandline import ROOT, environment
from tests.decoding import BytesSource
from tests.qcow2images import Saved, build
from tests.strategies import examples, live_streams
from tests.streamwriter import Device, Field, RamBlock, StreamWriter
from tests.truth import fixture_file, fixture_names, open_fixture, qcow2_file, qcow2_names
from vmstream.errors import OutputError
from vmstream.guest.userlayout import parse_layout
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.extract_block import BlockOptions, extract_block
from vmstream.ops.inspect import inspect
from vmstream.ops.records import Records
from vmstream.ops.snapshots import snapshots
from vmstream.report import models
from vmstream.report.jsonout import dumps, record
from vmstream.report.models.extract import BLOCKS_SCHEMA, EXTRACT_SCHEMA
from vmstream.report.models.extract_block import EXTRACT_BLOCK_SCHEMA
from vmstream.report.models.inspect import INSPECT_SCHEMA
from vmstream.report.models.names import in_full, readable
from vmstream.transport.source import OpenSource

SCHEMAS = ROOT / "docs" / "schema"
UPDATE = ROOT / "scripts" / "update_schema.py"
PAGE = 4096


def validator(name: str) -> jsonschema.Draft202012Validator:
    path = SCHEMAS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no docs/schema/{name}.json")
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def odd_stream() -> bytes:
    """Names that are no text, commands, an unknown one, two passes."""
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-9.0", uuid=bytes(16), capabilities=["x-ignore-shared"])
    w.ping(1)
    w.command(60, b"\1\2")
    w.start(1, "ram", 0, 4)
    w.raw((2 * PAGE | 4).to_bytes(8, "big"))
    w.raw(b"\2\xff\xfe" + PAGE.to_bytes(8, "big") + bytes(8))
    w.raw(b"\3a\nb" + PAGE.to_bytes(8, "big") + bytes(8))
    w.eos()
    w.footer(1)
    for _ in range(2):
        with w.ram_part():
            w.raw((8).to_bytes(8, "big") + b"\2\xff\xfe" + b"\1" * PAGE)
    with w.ram_end():
        pass
    w.device(Device("timer", 3, 2, [Field("ticks", "int64", bytes(8))]))
    w.eof()
    w.vmdescription()
    w.raw(b"behind")
    return bytes(w)


def streams() -> dict[str, bytes]:
    w = StreamWriter()
    w.header()
    w.ram_start([RamBlock("mem", 4 * PAGE)])
    with w.ram_part():
        w.page("mem", PAGE, b"\1" * PAGE)
    return {
        "odd": odd_stream(),
        "cut": bytes(w)[:-20],
        "no end": bytes(w),
        "header": bytes(w)[:8],
        "one byte": b"Q",
        "damaged": bytes(w).replace(b"\x7e", b"\x7f"),
    }


@pytest.mark.parametrize("name", fixture_names())
@pytest.mark.parametrize("quick", [False, True])
def test_inspect_of_fixtures(name: str, quick: bool) -> None:
    report, _ = inspect(BytesSource(open_fixture(name)), quick=quick)
    validator("inspect").validate(json.loads(dumps(report)))


@pytest.mark.parametrize("name", [*qcow2_names(), "odd"])
def test_snapshots(name: str, tmp_path: Path) -> None:
    if name == "odd":
        path = build(
            [Saved(b"\xff", b"x"), Saved("a", b"", extra=b"")], version=3, features=3
        ).write(tmp_path / "image")
    else:
        path = qcow2_file(name, tmp_path)
    with OpenSource(path) as source:
        report, _ = snapshots(source)
    validator("snapshots").validate(json.loads(dumps(report)))


@pytest.mark.parametrize("name", sorted(streams()))
def test_inspect_of_odd_streams(name: str) -> None:
    data = streams()[name]
    if name == "one byte":
        with pytest.raises(Exception, match="offset"):
            inspect(BytesSource(data))
        return
    report, _ = inspect(BytesSource(data))
    found = json.loads(dumps(report))
    validator("inspect").validate(found)
    assert found["schema"] == INSPECT_SCHEMA == "vmstream.inspect/1"
    assert found["anomaly_count"] == len(found["anomalies"])


@pytest.mark.parametrize("name", [*sorted(streams()), "fixture", "postcopy", "disks"])
def test_records(name: str) -> None:
    fixtures = {
        "fixture": "devices-11.1-q35",
        "postcopy": "postcopy-11.1-pc.ch0",
        "disks": "blockmig-5.2-pc",
    }
    data = open_fixture(fixtures[name]) if name in fixtures else streams()[name]
    check = validator("records")
    for item in Records(BytesSource(data)):
        check.validate(json.loads(record(item)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain-7.2-pc", {}),
        ("plain-7.2-pc", {"block": "pc.bios"}),
        ("plain-7.2-pc", {"all": True}),
        ("numa-dimm-10.0-pc", {"manifest": True}),
        ("aarch64-10.0-virt", {"all": True, "manifest": True}),
        ("interrupted-pipe-11.1-pc", {"partial": True}),
        ("interrupted-pipe-11.1-pc", {"partial": True, "all": True}),
        ("ignoreshared-10.0-pc", {"all": True}),
        ("old-5.2-pc-i440fx-2.1", {}),
    ],
)
def test_extract(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    everything = options.pop("all", False)
    out = {"all_blocks": tmp_path / "out"} if everything else {"output": tmp_path / "image"}
    account = tmp_path / "account" if options.pop("manifest", False) else None
    with OpenSource(fixture_file(name, tmp_path)) as source:
        report, _ = extract(source, ExtractOptions(**out, **options, manifest=account))
    check = validator("extract-ram")
    check.validate(json.loads(dumps(report)))
    if account is not None:
        told = json.loads(account.read_text())
        check.validate(told)
        assert told == json.loads(dumps(report))
        assert told["schema"] == EXTRACT_SCHEMA == "vmstream.extract-ram/1"
    if everything:
        told = json.loads((tmp_path / "out" / "manifest.json").read_text())
        validator("blocks").validate(told)
        assert told["schema"] == BLOCKS_SCHEMA == "vmstream.blocks/1"


@settings(deadline=None, max_examples=examples(20))
@given(live_streams())
def test_inspect_of_iterable_sections(w: StreamWriter) -> None:
    found = json.loads(dumps(inspect(BytesSource(bytes(w)))[0]))
    validator("inspect").validate(found)
    assert found["live"] is not None
    quick = json.loads(dumps(inspect(BytesSource(bytes(w)), quick=True)[0]))
    validator("inspect").validate(quick)
    assert quick["live"] is None


@pytest.mark.parametrize("partial", [False, True])
def test_extract_block(partial: bool, tmp_path: Path) -> None:
    with OpenSource(fixture_file("blockmig-5.2-pc", tmp_path)) as source:
        options = BlockOptions(directory=tmp_path / "d", partial=partial)
        report, _ = extract_block(source, options)
    found = json.loads(dumps(report))
    validator("extract-block").validate(found)
    assert found["schema"] == EXTRACT_BLOCK_SCHEMA == "vmstream.extract-block/1"
    assert found["partial"] == partial


@pytest.mark.parametrize("form", ["lime", "elf"])
def test_extract_in_other_formats(form: str, tmp_path: Path) -> None:
    layout = tmp_path / "lay"
    layout.write_text('[{"gpa": 4096, "length": 4096, "block": "pc.ram"}]')
    with OpenSource(fixture_file("plain-7.2-pc", tmp_path)) as source:
        report, _ = extract(
            source, ExtractOptions(output=tmp_path / "x", format=form, layout=layout)
        )
    found = json.loads(dumps(report))
    validator("extract-ram").validate(found)
    assert found["layout"]["source"] == "user"


def test_layout_files(tmp_path: Path) -> None:
    """What the document shows is taken, and the schema takes and refuses what we do."""
    check = validator("layout")
    text = (ROOT / "docs" / "json.md").read_text()
    (shown,) = re.findall(r"^```json\n(\[.*?)^```$", text, re.MULTILINE | re.DOTALL)
    listed = json.loads(shown)
    check.validate(listed)
    assert len(parse_layout(shown.encode(), "x")) == len(listed) == 3
    for wrong in ({}, [], [7], [{"gpa": 0}], [{**listed[0], "idstr": "x"}]):
        assert not check.is_valid(wrong)
        with pytest.raises(OutputError):
            parse_layout(json.dumps(wrong).encode(), "x")


def test_the_schemas_are_those_of_the_dataclasses() -> None:
    if not UPDATE.exists():
        pytest.skip("no scripts/update_schema.py")
    done = subprocess.run(
        [sys.executable, str(UPDATE), "--check"], capture_output=True, env=environment()
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_the_check_fails_on_drift(tmp_path: Path) -> None:
    """A copy of the checkout, with a schema that is behind."""
    if not UPDATE.exists():
        pytest.skip("no scripts/update_schema.py")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "update_schema.py").write_text(UPDATE.read_text())
    (tmp_path / "vmstream").symlink_to(ROOT / "vmstream")
    for path in SCHEMAS.glob("*.json"):
        (tmp_path / "docs" / "schema").mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / "schema" / path.name).write_text(path.read_text())
    command = [sys.executable, str(tmp_path / "scripts" / "update_schema.py"), "--check"]
    assert subprocess.run(command, capture_output=True, env=environment()).returncode == 0
    inspect_schema = tmp_path / "docs" / "schema" / "inspect.json"
    inspect_schema.write_text(inspect_schema.read_text().replace("quick", "slow"))
    done = subprocess.run(command, capture_output=True, env=environment())
    assert done.returncode == 1
    assert b"inspect.json" in done.stdout


def documents() -> list[type]:
    return [
        value
        for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}.")
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, type) and value.__module__ == module.name
    ]


@pytest.mark.parametrize("cls", documents(), ids=lambda cls: cls.__name__)
def test_documents_are_plain_values(cls: type) -> None:
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    # A dataclass without a docstring gets its signature for one.
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"pc.ram", "pc.ram"),
        ("größe".encode(), "größe"),
        (b"", ""),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"a\xc3", r"a\xc3"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),  # a surrogate is no UTF-8
    ],
)
def test_readable(name: bytes, text: str) -> None:
    assert readable(name) == text
    full = in_full(name)
    assert (full is None) == (text.encode() == name)


def test_in_full_gives_it_back() -> None:
    for name in (b"\xff", b"a\x80b", bytes(range(256))[:255]):
        full = in_full(name)
        assert full is not None
        assert base64.b64decode(full) == name
    # What looks like an escape, but is the name itself, is plain text.
    assert in_full(rb"\xff") is None
