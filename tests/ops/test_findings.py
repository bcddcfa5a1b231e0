"""Every code has a sentence of meaning, and what to do."""

from __future__ import annotations

import re

from tests.commandline import ROOT
from vmstream.ops.findings import MEANINGS


def test_every_code_of_the_documents_has_a_meaning() -> None:
    table = (ROOT / "docs" / "json.md").read_text().partition("## Anomalies")[2]
    table = table.partition("\n## ")[0]
    told = {
        c
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for c in re.findall(r"`([\w-]+)`", row)
    }
    assert told - {"code"} == MEANINGS.keys()


def test_meanings_read_as_sentences() -> None:
    for code, meaning in MEANINGS.items():
        assert re.fullmatch(r"\S.*\.", meaning.text), code
        assert re.fullmatch(r"\S.*[^.]", meaning.advice), code
