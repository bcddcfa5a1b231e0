"""Generate docs/schema/*.json from the dataclasses in vmstream/report/models.

    python scripts/update_schema.py            write the files
    python scripts/update_schema.py --check    exit status 1 if a file is not what would be written

Types come from the annotations, descriptions from the docstrings: the text above "Attributes:" for
an object, the entry in it for a field. All fields are written always, so all are required; readers
must accept more, since fields are added within a major number.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vmstream.report import models as package  # noqa: E402

SCHEMA_DIR = ROOT / "docs" / "schema"

# What all modules of the package define.
models = types.SimpleNamespace()
for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
    vars(models).update(vars(importlib.import_module(found.name)))

# File: (name of the schema, dataclasses). Of several dataclasses a document is any one.
SCHEMAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inspect.json": (models.INSPECT_SCHEMA, ("InspectReport",)),
    "records.json": (models.RECORDS_SCHEMA, ("RecordReport",)),
    "blocks.json": (models.BLOCKS_SCHEMA, ("BlocksManifest",)),
    "extract-ram.json": (models.EXTRACT_SCHEMA, ("ExtractReport",)),
    "extract-block.json": (models.EXTRACT_BLOCK_SCHEMA, ("ExtractBlockReport",)),
    "snapshots.json": (models.SNAPSHOTS_SCHEMA, ("SnapshotsReport",)),
    "devices.json": (models.DEVICES_SCHEMA, ("DevicesReport",)),
    "cpus.json": (models.CPUS_SCHEMA, ("CPUsReport",)),
    "cmdline.json": (models.CMDLINE_SCHEMA, ("CmdlineReport",)),
    "search.json": (models.SEARCH_SCHEMA, ("HitReport",)),
    "vmcoreinfo.json": (models.VMCOREINFO_SCHEMA, ("VMCoreInfoReport",)),
    "banner.json": (models.BANNER_SCHEMA, ("BannerReport",)),
    "rewrite.json": (models.REWRITE_SCHEMA, ("RewriteReport",)),
    "convert.json": (models.CONVERT_SCHEMA, ("ConvertReport",)),
    "unpack.json": (models.UNPACK_SCHEMA, ("UnpackReport",)),
    "unpacked.json": (models.UNPACKED_SCHEMA, ("UnpackedManifest",)),
    "build.json": (models.BUILD_SCHEMA, ("BuildReport",)),
    "diff.json": (models.DIFF_SCHEMA, ("DiffReport",)),
    "capture.json": (models.CAPTURE_SCHEMA, ("CaptureReport",)),
    "receive.json": (models.RECEIVE_SCHEMA, ("ReceiveReport",)),
    "verify.json": (models.VERIFY_SCHEMA, ("VerifyReport",)),
    "check.json": (models.CHECK_SCHEMA, ("CheckReport",)),
    "diagnose.json": (models.DIAGNOSE_SCHEMA, ("DiagnoseReport",)),
    "history.json": (models.HISTORY_SCHEMA, ("HistoryReport",)),
    "stats.json": (models.STATS_SCHEMA, ("StatsReport",)),
    "version.json": (models.VERSION_SCHEMA, ("VersionReport",)),
}

# Files that users write: a list of objects, in which fields with a default may be left out.
INPUTS: dict[str, tuple[str, str]] = {
    "layout.json": (models.LAYOUT_SCHEMA, "LayoutEntry"),
    "device.json": (models.DEVICE_SCHEMA, "DeviceField"),
}

# Fields whose entries stand in the object itself (report/jsonout.py record()).
FLATTENED = {("RecordReport", "fields")}

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


def parse_docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Split the docstring of a dataclass into its text and the entries of "Attributes:"."""
    text, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    # The section ends where the indentation does.
    section = re.match(r"(?: +.*\n?|\n)*", rest)
    parts = _ENTRY.split(inspect.cleandoc("\n" + section[0] if section else ""))
    entries = dict(zip(parts[1::2], map(_one_line, parts[2::2]), strict=True))
    base = cls.__base__
    if base is not None and dataclasses.is_dataclass(base):
        entries = parse_docstring(base)[1] | entries
    return _one_line(text), entries


def _one_line(text: str) -> str:
    # Markup of the docstrings; JSON says null.
    return " ".join(text.split()).replace("`None`", "null").replace("`", "'")


class Generator:
    """Schemas of types; those of dataclasses are gathered in `defs`."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.defs: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of one type."""
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if kind in (Any, object):
            return {}
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self._reference(kind)
        if origin in (types.UnionType, typing.Union):
            return self._union([self.of(a) for a in args])
        if origin is typing.Literal:
            return {"enum": list(args)}
        if origin is list or (origin is tuple and args[1:] == (...,)):
            return {"type": "array", "items": self.of(args[0])}
        if origin is dict and args[0] is str:
            return {"type": "object", "additionalProperties": self.of(args[1])}
        raise TypeError(f"no JSON schema for {kind!r}")

    def _union(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        if all(p.keys() == {"type"} for p in parts):
            return {"type": [p["type"] for p in parts]}
        return {"anyOf": parts}

    def _reference(self, cls: type) -> dict[str, Any]:
        if cls.__name__ not in self.defs:
            self.defs[cls.__name__] = {}  # a type may refer to itself
            self.defs[cls.__name__] = self.object(cls)
        return {"$ref": f"#/$defs/{cls.__name__}"}

    def object(self, cls: type) -> dict[str, Any]:
        """Return the schema of a dataclass itself."""
        text, entries = parse_docstring(cls)
        hints = typing.get_type_hints(cls)
        fields = [f.name for f in dataclasses.fields(cls)]
        if unknown := entries.keys() - set(fields):
            raise TypeError(f"{cls.__name__} documents fields it does not have: {sorted(unknown)}")
        names = [name for name in fields if (cls.__name__, name) not in FLATTENED]
        properties = {}
        for name in names:
            # Draft 2020-12 allows a description beside $ref.
            properties[name] = self.of(hints[name])
            if name == "schema":
                properties[name] = {"const": self.schema}
            if name in entries:
                properties[name]["description"] = entries[name]
        return {
            "type": "object",
            "description": text,
            "properties": properties,
            "required": names,
        }


def generate(schema: str, classes: tuple[str, ...]) -> str | None:
    """Return the text of one schema file, or None while the dataclasses do not exist."""
    found = [getattr(models, name, None) for name in classes]
    if any(cls is None for cls in found):
        return None
    made = Generator(schema)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": schema}
    one = len(found) == 1
    body = made.object(found[0]) if one else {"anyOf": [made.of(cls) for cls in found]}
    defs = {"$defs": dict(sorted(made.defs.items()))} if made.defs else {}
    return json.dumps(head | body | defs, indent=2) + "\n"


def generate_input(schema: str, name: str) -> str:
    """Return the text of the schema of a list that users write."""
    cls = getattr(models, name)
    made = Generator(schema)
    item = made.object(cls)
    fields = dataclasses.fields(cls)
    for written in (item, *made.defs.values()):
        written["required"] = [f.name for f in fields if f.default is dataclasses.MISSING]
        written["additionalProperties"] = False
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": schema}
    body = {"type": "array", "minItems": 1, "items": item}
    defs = {"$defs": made.defs} if made.defs else {}
    return json.dumps(head | body | defs, indent=2) + "\n"


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description="Generate docs/schema/*.json.")
    parser.add_argument("--check", action="store_true", help="only tell what differs")
    check = parser.parse_args().check
    status = 0
    texts = {name: generate(*of) for name, of in SCHEMAS.items()}
    texts |= {name: generate_input(*of) for name, of in INPUTS.items()}
    for name, text in texts.items():
        path = SCHEMA_DIR / name
        if text is None:
            print(f"{name}: a dataclass is missing", file=sys.stderr)
            status = 1
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{name}: {'differs from the dataclasses' if check else 'written'}")
            status = status or int(check)
            if not check:
                SCHEMA_DIR.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in sorted(SCHEMA_DIR.glob("*.json")):
        if path.name not in SCHEMAS and path.name not in INPUTS:
            print(f"{path.name}: not in SCHEMAS", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
