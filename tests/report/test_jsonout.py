"""JSON text: one document, or one object a line, that any reader takes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vmstream.report.jsonout import dumps, record
from vmstream.report.models.pages import PageCounts
from vmstream.report.models.records import RECORDS_SCHEMA, RecordReport


def test_dumps_of_a_dataclass() -> None:
    assert json.loads(dumps(PageCounts(1, 2))) == {
        "normal": 1, "zero": 2, "xbzrle": 0, "compressed": 0
    }  # fmt: skip


def test_dumps_of_a_dict() -> None:
    assert json.loads(dumps({"a": [1, None, True]})) == {"a": [1, None, True]}
    assert "\n" not in dumps({"a": 1, "b": 2}, indent=None)


def test_nested_dataclasses() -> None:
    @dataclasses.dataclass
    class Outer:
        inner: list[PageCounts]

    assert json.loads(dumps(Outer([PageCounts(3)])))["inner"][0]["normal"] == 3


def test_numbers_stay_whole() -> None:
    big = (1 << 64) - 1
    text = record(RecordReport(RECORDS_SCHEMA, "pages", big - 1, big, {"block_offset": big}))
    assert str(big) in text
    assert json.loads(text)["block_offset"] == big


@pytest.mark.parametrize("name", ["größe", "a\nb", "\x1b[31m", "\u2028", "\udcff", "\0", '"\\'])
def test_text_is_ascii_on_one_line(name: str) -> None:
    """Safe for a terminal, for line readers and for any encoding of standard output."""
    text = record(RecordReport(RECORDS_SCHEMA, "section", 0, 1, {"idstr": name}))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["idstr"] == name
    assert dumps({"a": name}).isascii()


def test_record_is_flat() -> None:
    found = json.loads(record(RecordReport("s", "footer", 5, 10, {"section_id": 3})))
    assert found == {
        "schema": "s", "type": "footer", "offset": 5, "end": 10, "channel": None, "section_id": 3,
    }  # fmt: skip
